"""Codecs of several families judged on the same recordings, as a command."""

import json
import math
from pathlib import Path

import eval_codec
import pytest
import soundfile
import torch
from codec_runs import write_recordings
from tiny_codec import CODES, QUANTIZERS, RATE, save_codec
from tiny_families import save_family

from valle.codec.measures import MEASURES, compare
from valle.codec.scores import score_codec
from valle.data import Codec


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return write_recordings(tmp_path_factory.mktemp("sound"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("codecs")
    return {
        "tiny": save_codec(folder / "tiny"),
        "24khz": save_family(folder / "24khz", "encodec_24khz"),
        "dac": save_family(folder / "dac", "dac"),
        "mimi": save_family(folder / "mimi", "mimi"),
    }


def judge(source: Path, output: Path, *flags: object) -> dict:
    """Run the command; what it wrote as numbers."""
    parts = ["--src-dir", source, "--output-dir", output, "--num-clips", 3, "--clip-sec", 1.2]
    eval_codec.main([str(part) for part in (*parts, "--device", "cpu", *flags)])
    return json.loads((output / "scores.json").read_text())


def test_all_families_side_by_side(source, folders, tmp_path, capsys):
    scores = judge(source, tmp_path, "--codecs", *folders.values(), "--num-sounds", 1)
    assert scores["sampling_rate"] == 24000  # the highest, at which all are measured
    assert list(scores["codecs"]) == list(folders)
    for row in scores["codecs"].values():
        assert set(row["measures"]) == set(MEASURES)
        assert all(math.isfinite(value) for value in row["measures"].values())
        assert row["entropy_rate"] <= row["bit_rate"] + 1e-6
    rates = [row["bit_rate"] for row in scores["codecs"].values()]
    # frames a second x quantizers x 4 bits
    assert rates == pytest.approx([50 * 3 * 0.004, 75 * 16 * 0.004, 50 * 4 * 0.004, 25 * 3 * 0.004])
    text = (tmp_path / "scores.md").read_text()
    assert "| measure | tiny | 24khz | dac | mimi | another recording |" in text
    assert text.strip() in capsys.readouterr().out
    assert (tmp_path / "spectrograms.png").stat().st_size > 10_000
    names = {path.name for path in tmp_path.glob("*.wav")}
    titles = ("original", *folders)
    assert names == {f"clip1_{title}.wav" for title in titles}
    assert soundfile.info(tmp_path / "clip1_mimi.wav").frames == 28800


def test_measures_are_those_of_the_sound_that_is_written(source, folders, tmp_path):
    """The codec's own numbers, got by hand."""
    scores = judge(source, tmp_path, "--codecs", folders["tiny"], "--every-level", "true")
    row = scores["codecs"]["tiny"]
    codec = Codec.from_pretrained(folders["tiny"])
    sounds, _ = soundfile.read(tmp_path / "clip1_original.wav", dtype="float32")
    clips = torch.from_numpy(sounds)[None]
    codes, _ = codec.encode(clips)
    again, _ = codec.decode(codes)
    written, _ = soundfile.read(tmp_path / "clip1_tiny.wav", dtype="float32")
    torch.testing.assert_close(torch.from_numpy(written), again[0], atol=1e-3, rtol=0)
    alone, _ = score_codec(codec, clips, RATE)
    assert row["measures"]["mel_log10"] == pytest.approx(alone.measures["mel_log10"], abs=0.05)
    assert list(row["by_levels"]) == [str(level) for level in range(1, QUANTIZERS + 1)]
    assert row["by_levels"][str(QUANTIZERS)] == row["measures"]
    coarse, _ = codec.decode(codes[..., :1])
    by_hand = compare(coarse, clips, RATE)
    by_level = score_codec(codec, clips, RATE, every_level=True)[0].by_levels
    assert by_level[1] == pytest.approx(by_hand)
    assert by_level[1] != by_level[QUANTIZERS]
    used = [len(codes[..., level].unique()) for level in range(QUANTIZERS)]
    assert all(a >= b for a, b in zip(row["used_codes"], used, strict=True))
    assert all(1 <= p <= CODES for p in row["perplexity"])


def test_a_perfect_codec_scores_perfectly(source, folders, tmp_path, monkeypatch):
    """And one that makes noise does not; at any rate of the measurements."""
    codec, clips = Codec.from_pretrained(folders["tiny"]), []

    def decode(self, codes, lens=None):
        return torch.stack(clips), None

    for source_file in sorted(source.glob("*.wav"))[:2]:
        clips.append(torch.from_numpy(soundfile.read(source_file, dtype="float32")[0][:16000]))
    monkeypatch.setattr(Codec, "decode", decode)
    scores, sound = score_codec(codec, torch.stack(clips), RATE)
    assert torch.equal(sound, torch.stack(clips))
    assert scores.measures["mel_log10"] == 0
    assert scores.measures["chroma"] == pytest.approx(1, abs=1e-4)


def test_fewer_quantizers_of_one_codec_beside_all_of_them(source, folders, tmp_path):
    tiny = folders["tiny"]
    scores = judge(source, tmp_path, "--codecs", tiny, f"{tiny}:1", "--num-sounds", 0)
    assert list(scores["codecs"]) == ["tiny", "tiny:1"]
    whole, coarse = scores["codecs"].values()
    assert len(coarse["used_codes"]) == 1
    assert coarse["bit_rate"] == pytest.approx(whole["bit_rate"] / QUANTIZERS)
    assert coarse["used_codes"][0] == whole["used_codes"][0]
    assert not list(tmp_path.glob("*.wav"))


def test_titles_are_as_long_as_they_must_be():
    names = ["exp/a/codec", "exp/b/codec", "facebook/encodec_32khz", "x/y/encodec_24khz"]
    titles = [eval_codec.title_of(name, names) for name in names]
    assert titles == ["a/codec", "b/codec", "encodec_32khz", "encodec_24khz"]
    assert eval_codec.split_name("facebook/encodec_24khz:8") == ("facebook/encodec_24khz", 8)
    assert eval_codec.split_name("C:codec") == ("C:codec", None)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num-clips", "0"], "--num-clips is 0, must be > 0"),
        (["--num-clips", "1"], "1 clip, at least 2 are needed"),
        (["--clip-sec", "0.1"], "at least 4096 are needed, 0.51 s"),
        (["--clip-sec", "60"], "none of 1 recordings holds an audible clip"),
        (["--test-fraction", "0"], "no recording in test"),
    ],
)
def test_what_cannot_be_judged(source, folders, tmp_path, capsys, flags, message):
    with pytest.raises(SystemExit):
        judge(source, tmp_path, "--codecs", folders["tiny"], *flags)
    assert message in capsys.readouterr().err


def test_a_codec_given_twice(source, folders, tmp_path, capsys):
    with pytest.raises(SystemExit):
        judge(source, tmp_path, "--codecs", folders["tiny"], folders["tiny"])
    assert "twice" in capsys.readouterr().err


def test_a_picture_needs_matplotlib_and_the_rest_does_not(source, folders, tmp_path, monkeypatch,
                                                          caplog):  # fmt: skip
    def missing(*_args):
        raise ImportError("pictures need matplotlib: pip install it")

    monkeypatch.setattr(eval_codec, "draw_clips", missing)
    judge(source, tmp_path, "--codecs", folders["tiny"])
    assert "no picture: pictures need matplotlib" in caplog.text
    assert (tmp_path / "scores.md").exists()
