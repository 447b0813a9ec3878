"""Cuts of a manifest, wherever they begin and end."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from lhotse import CutSet, Recording
from tiny_codec import RATE, noise
from tokenizer_manifests import token_cuts
from tokenizer_runs import arguments

from valle.data.manifest import cut_codes, load_cuts, reaches_end
from valle.data.sources import Source
from valle.data.storage import cut_windows, make_recording, stored_frames, whole_cut, write_codes

MILLISECOND = RATE // 1000


@pytest.fixture(scope="module")
def token_folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("tokens")


@settings(max_examples=150, deadline=None)
@given(
    length=st.integers(100, 12_000),
    start=st.integers(0, 12_000),
    duration=st.integers(1, 12_000),
    to_end=st.booleans(),
)
def test_a_cut_has_the_frames_that_its_duration_says(
    token_folder, codec_info, length, start, duration, to_end
):
    """All in milliseconds, where a frame has 20."""
    start = start % length
    duration = length - start if to_end else duration  # it may promise more than there is
    num_frames = stored_frames(length / 1000, codec_info)
    write_codes(token_folder, "r", np.arange(num_frames * 3).reshape(-1, 3) % 16)
    recording = make_recording("r", "r.wav", length * MILLISECOND, RATE, 1)
    whole = whole_cut(recording, str(token_folder), "r", num_frames, codec_info)
    cut = recording.to_cut()
    cut.start, cut.duration = start / 1000, duration / 1000
    facts = {"num_samples": length * MILLISECOND, "sampling_rate": RATE, "num_channels": 1}
    entry = {"key": "r", "num_frames": num_frames, **facts}
    kept = list(token_cuts(Source("r", "r.wav", "r", [cut]), entry, codec_info))
    there = min(duration, length - start)
    if there < 20:
        assert kept == []
    if there > 40:  # one frame of two may be lost where the recording ends within it
        assert len(kept) == 1
    for token_cut in kept:
        token_cut.custom["audio_features"] = whole.audio_features
        excerpts = list(cut_windows(token_cut, codec_info, 100, 25))
        assert sum(len(cut_codes(excerpt)) for excerpt in excerpts) == stored_frames(
            token_cut.duration, codec_info
        )
        for excerpt in excerpts:
            assert len(cut_codes(excerpt)) == stored_frames(excerpt.duration, codec_info)
            assert excerpt.end <= recording.duration + 1e-6
        if to_end:
            assert reaches_end(excerpts[-1], 0.02)


def write_manifest(folder: Path, spans: dict[str, list[tuple[float, float]]]) -> Path:
    """Recordings of 3.005 s, each with cuts (start, duration); it begins and ends with silence."""
    cuts = []
    for seed, (name, own) in enumerate(spans.items()):
        sound = noise(3.005, seed=seed)
        sound[:RATE] = sound[-RATE // 2 :] = 0
        soundfile.write(folder / f"{name}.wav", sound, RATE)
        whole = Recording.from_file(folder / f"{name}.wav", recording_id=name).to_cut()
        for i, (start, duration) in enumerate(own):
            part = whole.truncate(offset=start, duration=duration, preserve_id=True)
            cuts.append(part.with_id(f"{name}-{i}"))
    CutSet.from_cuts(cuts).to_file(folder / "cuts.jsonl.gz")
    return folder / "cuts.jsonl.gz"


def test_a_recording_of_which_no_cut_is_left_is_skipped(codec_dir, tmp_path, capsys):
    spans = {
        "good": [(1.1, 1.0), (0.2, 0.01)],
        "short": [(1.1, 0.015), (2.0, 0.01)],
        "silent": [(0.1, 0.8), (2.7, 0.3)],
        "tiny": [(0.5, 0.515)],  # of which less than a frame is sound
    }
    flags = ("--manifest", write_manifest(tmp_path, spans), "--trim-silence", -60)
    args = arguments(codec_dir, tmp_path / "out", *flags)
    assert tokenizer.run(args) == 0
    lines = map(json.loads, (tmp_path / "out" / "recordings.jsonl").read_text().splitlines())
    skipped = {line["id"]: line.get("skipped") for line in lines}
    assert skipped == {"good": None} | dict.fromkeys(("short", "silent", "tiny"), "no cut left")
    printed = " ".join(capsys.readouterr().out.split())
    assert "recordings kept 1" in printed
    assert "recordings skipped 3 no cut left 3" in printed
    cuts = [c.id for path in (tmp_path / "out").glob("cuts_*.gz") for c in load_cuts(path)]
    assert cuts == ["good-0-0000"]


def test_a_recording_shorter_than_a_frame_is_skipped(codec_dir, tmp_path, capsys):
    for name, seconds in (("a", 2.0), ("b", 0.009)):
        soundfile.write(tmp_path / f"{name}.wav", noise(seconds), RATE)
    args = arguments(codec_dir, tmp_path / "out", "--src-dir", tmp_path, "--min-duration", 0)
    assert tokenizer.run(args) == 0
    assert "skipped 1 no cut left 1" in " ".join(capsys.readouterr().out.split())


def test_a_damaged_manifest_ends_in_one_line(tmp_path, monkeypatch):
    manifest = write_manifest(tmp_path, {"a": [(i / 100, 1.5) for i in range(100)]})
    manifest.write_bytes(manifest.read_bytes()[:-50])
    monkeypatch.setattr("sys.argv", ["tokenizer.py", "--manifest", str(manifest)])
    with pytest.raises(SystemExit, match=r"error: the manifest .*cuts.jsonl.gz is damaged"):
        tokenizer.main()
