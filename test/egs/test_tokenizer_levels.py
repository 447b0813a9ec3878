"""What the tokenizer measures, trims and drops."""

import json
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tokenizer
from lhotse import CutSet, Recording
from tiny_codec import RATE, noise
from tokenizer_runs import arguments, contents

from valle.data.codec import Codec
from valle.data.manifest import cut_codes, load_cuts

FRAME = 1 / 50


def silence(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * RATE), dtype=np.float32)


def clipped(seconds: float) -> np.ndarray:
    return np.clip(noise(seconds) * 6, -1, 1)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("levels")
    sounds = {
        "around": [silence(1.01), noise(3.0, seed=1), silence(2.005)],
        "before": [silence(1.5), noise(2.2, seed=2)],
        "behind": [noise(2.2, seed=3), silence(0.77)],
        "clipped": [clipped(2.0)],
        "gaps": [noise(1.0, seed=4), silence(2.0), noise(0.7, seed=5)],
        "plain": [noise(2.0, seed=6)],
        "rarely": [silence(1.0), noise(0.5), silence(1.0)],
    }
    for name, parts in sounds.items():
        soundfile.write(folder / f"{name}.wav", np.concatenate(parts), RATE)
    return folder


def run(codec_dir: Path, output: Path, *flags: object) -> tuple[dict[str, dict], dict[str, list]]:
    """Lines of `recordings.jsonl` and cuts, by recording."""
    assert tokenizer.run(arguments(codec_dir, output, *flags)) == 0
    lines = [json.loads(line) for line in (output / "recordings.jsonl").read_text().splitlines()]
    cuts: dict[str, list] = {}
    for path in sorted(output.glob("cuts_*.jsonl.gz")):
        for cut in load_cuts(path):
            cuts.setdefault(cut.recording.id, []).append(cut)
    return {line["id"]: line for line in lines}, cuts


def test_without_flags_all_is_measured_and_nothing_is_trimmed(recordings, codec_dir, tmp_path):
    lines, cuts = run(codec_dir, tmp_path, "--src-dir", recordings)
    assert list(lines) == sorted(lines) == sorted(cuts)
    for id_, line in lines.items():
        assert list(line) == [
            "id", "path", "split", "num_frames", "num_samples", "sampling_rate", "num_channels",
            "peak_db", "rms_db", "silence_share", "clipped_share", "trimmed_sec",
        ]  # fmt: skip
        assert line["trimmed_sec"] == 0
        duration = sum(cut.duration for cut in cuts[id_])
        assert duration == pytest.approx(line["num_samples"] / RATE, abs=0.011)
        assert (tmp_path / f"cuts_{line['split']}.jsonl.gz").exists()
    assert lines["clipped"]["clipped_share"] > 0.1
    assert lines["plain"]["clipped_share"] == 0
    assert lines["gaps"]["silence_share"] == pytest.approx(2.0 / 3.7, abs=0.01)
    assert lines["plain"]["silence_share"] == 0


def test_silence_is_trimmed_and_times_stay_true(recordings, codec_dir, tmp_path, capsys):
    flags = ("--src-dir", recordings, "--trim-silence", -60)
    lines, cuts = run(codec_dir, tmp_path, *flags)
    assert lines.pop("rarely")["skipped"] == "too short"
    spans = {id_: (own[0].start, own[-1].end) for id_, own in cuts.items()}
    assert spans["around"] == pytest.approx((1.0, 4.02))  # outwards, to whole frames
    assert spans["before"] == pytest.approx((1.5, 3.7))
    assert spans["behind"] == pytest.approx((0, 2.2))
    assert spans["gaps"] == pytest.approx((0, 3.7))
    codec = Codec.from_pretrained(codec_dir)
    total = 0.0
    for id_, own in cuts.items():
        start, end = spans[id_]
        codes = codec.encode(recordings / f"{id_}.wav")[0][0]
        joined = np.concatenate([cut_codes(cut) for cut in own])
        expected = codes[round(start / FRAME) : round(end / FRAME)]
        np.testing.assert_array_equal(joined, expected)
        assert all(a.end == pytest.approx(b.start) for a, b in pairwise(own))
        assert [cut.id for cut in own] == [f"{id_}-{i:04d}" for i in range(len(own))]
        trimmed = lines[id_]["num_samples"] / RATE - (end - start)
        assert lines[id_]["trimmed_sec"] == pytest.approx(trimmed, abs=1e-6)
        total += trimmed
    assert f"silence trimmed          3  ({total / 3600:.2f} h)" in capsys.readouterr().out


def test_no_sound_is_trimmed_where_blocks_are_no_frames(codec_dir, tmp_path):
    """At 11025 Hz a block has 220 samples, and so begins anywhere within a frame."""
    (tmp_path / "in").mkdir()
    rate, sound = 11025, noise(1.3, 11025)
    starts = [0.5 + 0.013 * i for i in range(12)]
    for start in starts:
        edges = [np.zeros(round(sec * rate), dtype=np.float32) for sec in (start, 1.1 * start)]
        path = tmp_path / "in" / f"{start:.3f}.wav"
        soundfile.write(path, np.concatenate([edges[0], sound, edges[1]]), rate)
    flags = ("--src-dir", tmp_path / "in", "--trim-silence", -60)
    _, cuts = run(codec_dir, tmp_path / "out", *flags)
    for start in starts:
        (cut,) = cuts[f"{start:.3f}"]
        assert start - 2 * FRAME < cut.start < start
        assert start + 1.3 < cut.end < start + 1.3 + 2 * FRAME
        assert len(cut_codes(cut)) == round(cut.duration / FRAME)


def test_the_end_of_the_sound_is_noted_where_silence_follows(recordings, codec_dir, tmp_path):
    _, cuts = run(codec_dir, tmp_path, "--src-dir", recordings, "--trim-silence", -60)
    for id_, end in (("around", 4.02), ("behind", 2.2), ("before", None), ("plain", None)):
        for cut in cuts[id_]:
            assert cut.custom.get("sound_end_sec") == pytest.approx(end)


def test_trimming_nothing_changes_nothing(recordings, codec_dir, tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("gaps", "plain", "clipped"):
        shutil.copy(recordings / f"{name}.wav", tmp_path / "in")
    run(codec_dir, tmp_path / "plain", "--src-dir", tmp_path / "in")
    run(codec_dir, tmp_path / "trimmed", "--src-dir", tmp_path / "in", "--trim-silence", -60)
    plain, trimmed = contents(tmp_path / "plain"), contents(tmp_path / "trimmed")
    assert plain.pop("tokenizer.json") != trimmed.pop("tokenizer.json")
    assert plain == trimmed


def test_cuts_of_a_manifest_are_trimmed_too(recordings, codec_dir, tmp_path):
    whole = Recording.from_file(recordings / "around.wav", recording_id="r").to_cut()
    cuts = [
        whole.truncate(offset=offset, duration=length, preserve_id=True).with_id(id_)
        for id_, offset, length in (("lost", 0, 0.9), ("cut", 0.5, 1.5), ("whole", 1.5, 2.0))
    ]
    CutSet.from_cuts(cuts).to_file(tmp_path / "cuts.jsonl")
    flags = ("--manifest", tmp_path / "cuts.jsonl", "--trim-silence", -60)
    _, kept = run(codec_dir, tmp_path / "out", *flags)
    spans = {cut.id: (cut.start, cut.end) for cut in kept["r"]}
    assert spans == {
        "cut-0000": pytest.approx((1.0, 2.0)),
        "whole-0000": pytest.approx((1.5, 3.5)),
    }
    CutSet.from_cuts(cuts[:1]).to_file(tmp_path / "cuts.jsonl")
    assert tokenizer.run(arguments(codec_dir, tmp_path / "none", *flags)) == 1
    assert not list((tmp_path / "none").glob("cuts_*"))


def test_limits_drop_recordings_and_encode_nothing_again(
    recordings, codec_dir, tmp_path, capsys, monkeypatch
):
    flags = ("--src-dir", recordings)
    before, _ = run(codec_dir, tmp_path, *flags)
    monkeypatch.setattr(Codec, "encode", None)
    lines, cuts = run(codec_dir, tmp_path, *flags, "--max-clipped", 0.1, "--max-silence", 0.6)
    printed = " ".join(capsys.readouterr().out.split())
    assert "recordings skipped 2 clipped 1 mostly silent 1" in printed
    assert lines["clipped"]["skipped"] == "clipped"
    assert lines["rarely"]["skipped"] == "mostly silent"
    assert cuts.keys() == before.keys() - {"clipped", "rarely"}
    assert run(codec_dir, tmp_path, *flags)[0] == before


def test_another_threshold_needs_another_folder(recordings, codec_dir, tmp_path):
    run(codec_dir, tmp_path, "--src-dir", recordings)
    with pytest.raises(ValueError, match=r"trim_silence_db None then, -60\.0 now"):
        run(codec_dir, tmp_path, "--src-dir", recordings, "--trim-silence", -60)


def test_nothing_louder_than_the_threshold(recordings, codec_dir, tmp_path):
    args = arguments(codec_dir, tmp_path, "--src-dir", recordings, "--trim-silence", 0)
    assert tokenizer.run(args) == 1
    lines = [json.loads(line) for line in (tmp_path / "recordings.jsonl").read_text().splitlines()]
    assert {line["skipped"] for line in lines} == {"silent"}
