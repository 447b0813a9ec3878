import dataclasses
from pathlib import Path

import infill_audiolm
import numpy as np
import pytest
import soundfile
import torch
from conftest import make_model
from infill_audiolm import splice

from valle.data import Codec
from valle.utils.checkpoint import save_checkpoint


@pytest.fixture
def sounds(tmp_path) -> list[Path]:
    """Two recordings of 2 and 1.5 s; the first at a rate and channel count unlike the codec's."""
    rng = np.random.default_rng(0)
    paths = [tmp_path / "a.wav", tmp_path / "b.flac"]
    soundfile.write(paths[0], rng.uniform(-0.5, 0.5, (3200, 2)), 1600)
    soundfile.write(paths[1], rng.uniform(-0.5, 0.5, 12000), 8000)
    return paths


def write_checkpoint(path: Path, codec: dict, ahead_frames: int = 10) -> Path:
    model = make_model(num_audio_tokens=16, ahead_frames=ahead_frames)
    content = {"config": dataclasses.asdict(model.config), "codec": codec}
    save_checkpoint(path, model, content | {"filter_max_duration": 1.0})
    return path


@pytest.fixture
def checkpoint(tmp_path, codec_info) -> Path:
    return write_checkpoint(tmp_path / "model.pt", codec_info.to_dict())


def infill(checkpoint: Path, output_dir: Path, *flags: object) -> dict[str, np.ndarray]:
    """Run the script; return the sounds by file name."""
    common = ["--checkpoint", checkpoint, "--output-dir", output_dir, "--temperature", 0]
    infill_audiolm.main([str(flag) for flag in (*common, *flags)])
    return {path.name: soundfile.read(path)[0] for path in output_dir.glob("*")}


def test_a_gap_in_files_is_filled(checkpoint, sounds, tmp_path):
    found = infill(checkpoint, tmp_path / "out", "--audio-files", *sounds, "--gap", "0.5:0.9")
    kinds = ("full", "gap", "spliced")
    assert found.keys() == {f"{name}_{kind}.wav" for name in "ab" for kind in kinds}
    for name, seconds in (("a", 2.0), ("b", 1.5)):
        assert len(found[f"{name}_full.wav"]) == seconds * 8000
        assert len(found[f"{name}_spliced.wav"]) == seconds * 8000
        gap = slice(4000, 7200)
        assert np.array_equal(found[f"{name}_gap.wav"], found[f"{name}_full.wav"][gap])
        assert np.array_equal(found[f"{name}_spliced.wav"][gap], found[f"{name}_gap.wav"])
    recording = soundfile.read(sounds[1])[0]  # a frame of 160 samples is cross-faded on each side
    for kept in (slice(0, 4000 - 160), slice(7200 + 160, None)):
        np.testing.assert_allclose(found["b_spliced.wav"][kept], recording[kept], atol=1e-4)


def test_a_batch_equals_its_files_one_by_one(checkpoint, sounds, tmp_path):
    flags = ("--gap", "0.5:0.9", "--audio-files")
    together = infill(checkpoint, tmp_path / "all", *flags, *sounds)
    for path in sounds:
        alone = infill(checkpoint, tmp_path / path.stem, *flags, path)
        name = f"{path.stem}_full.wav"
        np.testing.assert_allclose(alone[name], together[name], atol=1e-4)


def test_what_lies_in_the_gap_is_never_heard(checkpoint, sounds, tmp_path):
    other = tmp_path / "other.flac"
    samples = soundfile.read(sounds[1])[0]
    samples[4000:7200] = 0.9
    soundfile.write(other, samples, 8000)
    flags = ("--gap", "0.5:0.9", "--audio-files")
    filled = [infill(checkpoint, tmp_path / p.stem, *flags, p) for p in (sounds[1], other)]
    assert np.array_equal(filled[0]["b_full.wav"], filled[1]["other_full.wav"])
    assert np.array_equal(filled[0]["b_spliced.wav"], filled[1]["other_spliced.wav"])


def test_two_recordings_are_joined(checkpoint, sounds, tmp_path, codec_dir):
    flags = ("--before", sounds[0], "--after", sounds[1], "--gap-duration", 0.3)
    found = infill(checkpoint, tmp_path / "out", *flags, "--num-samples", 2, "--temperature", 1)
    assert {name.split("_sample")[0] for name in found} == {"a"}
    assert len(found["a_sample1_full.wav"]) == 8000 * 3.8
    assert len(found["a_sample1_gap.wav"]) == 8000 * 0.3
    assert not np.array_equal(found["a_sample1_gap.wav"], found["a_sample2_gap.wav"])
    # both sides decoded are what they are to the codec, but for the frames next to the gap
    codec = Codec.from_pretrained(codec_dir)
    alone = codec.decode(codec.encode(soundfile.read(sounds[1])[0], 8000)[0])[0][0]
    end = slice(-8000, None)
    np.testing.assert_allclose(found["a_sample1_full.wav"][end], alone[end], atol=1e-3)


def test_a_recording_that_ends_within_a_frame_keeps_its_length(checkpoint, tmp_path):
    path = tmp_path / "odd.wav"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, 12011), 8000)
    found = infill(checkpoint, tmp_path / "out", "--audio-files", path, "--gap", "0.5:0.9")
    assert len(found["odd_spliced.wav"]) == 12011


def test_seed_repeats(checkpoint, sounds, tmp_path):
    flags = ("--audio-files", sounds[0], "--gap", "0.5:0.9", "--temperature", 1)
    one, again, other = (
        infill(checkpoint, tmp_path / str(i), *flags, "--seed", seed)["a_full.wav"]
        for i, seed in enumerate((1, 1, 2))
    )
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_splicing_fades_within_a_frame_outside_the_gap():
    before, after, full = torch.zeros(10), torch.zeros(7), torch.ones(24)
    spliced = splice((before, after), full, fade=4)
    rise = [0.2, 0.4, 0.6, 0.8]
    expected = [0.0] * 6 + rise + [1.0] * 6 + rise[::-1] + [0.0] * 3
    torch.testing.assert_close(spliced, torch.tensor(expected))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "nothing to do: give --audio-files FILE... with --gap START:STOP"),
        (["--audio-files", "a.wav"], "--audio-files and --gap START:STOP go together"),
        (["--before", "a.wav", "--gap-duration", 1], "--before names 1 files and --after 0"),
        (["--before", "a.wav", "--after", "b.flac"], "need --gap-duration SECONDS"),
        (["--audio-files", "a.wav", "--gap", "0.5:2.0"], "does not end within a.wav, which lasts"),
        (["--audio-files", "a.wav", "--gap", "0:0.5"], "a gap needs a frame of sound before it"),
        (["--audio-files", "a.wav", "--gap", "0.5:0.505"], "a gap must hold a frame of 0.02 s"),
        (["--audio-files", "a.wav", "--gap", "0.3:1.5"], "a gap of 60 frames leaves nothing else"),
        (["--audio-files", "no.wav", "--gap", "0.3:0.5"], "no sound file at no.wav"),
        (["--audio-files", "a.wav", "--gap", "0.3:0.5", "--num-samples", 0], "--num-samples must"),
        (["--audio-files", "a.wav", "--gap", "0.3:0.5", "--window", -1], "--window must be 0 s"),
        (["--audio-files", "a.wav", "--gap", "0.3:0.5", "--window", "inf"], "--window must be 0 s"),
        (
            ["--before", "a.wav", "--after", "b.flac", "--gap-duration", "nan"],
            "--gap-duration must be above 0 s and finite, got nan",
        ),
        (["--audio-files", "a.wav", "--gap", "0.3:0.5", "--top-p", 2], "top_p"),
    ],
)
def test_what_cannot_be_is_refused(
    checkpoint, sounds, tmp_path, monkeypatch, capsys, flags, message
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        infill(checkpoint, tmp_path / "out", *flags)
    assert stop.value.code == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("gap", ["3", "2:1", "-1:2", "a:b", "1:inf"])
def test_a_span_that_is_none(checkpoint, tmp_path, capsys, gap):
    with pytest.raises(SystemExit):
        infill(checkpoint, tmp_path / "out", "--audio-files", "a.wav", f"--gap={gap}")
    assert "expected START:STOP in seconds" in capsys.readouterr().err


def test_a_model_that_only_continues_says_so(tmp_path, codec_info, sounds, capsys):
    path = write_checkpoint(tmp_path / "plain.pt", codec_info.to_dict(), ahead_frames=0)
    with pytest.raises(SystemExit):
        infill(path, tmp_path / "out", "--audio-files", sounds[0], "--gap", "0.5:0.9")
    assert "has not learned to fill gaps" in capsys.readouterr().err
