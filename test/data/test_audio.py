import numpy as np
import pytest
import soundfile
import torch

from valle.data import audio
from valle.data.audio import AudioError, read_mono, resample


def tone(rate: int, seconds: float = 1.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * 440 * np.arange(int(rate * seconds)) / rate)).astype("float32")


def test_blocks_join_without_seam(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    stereo = rng.uniform(-1, 1, (10_001, 2)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", stereo, 8000, subtype="FLOAT")
    monkeypatch.setattr(audio, "_BLOCK_SEC", 0.1)
    sound = read_mono(tmp_path / "a.wav")
    np.testing.assert_allclose(sound.samples.numpy(), stereo.mean(axis=1), atol=1e-7)
    assert (sound.sampling_rate, sound.num_channels) == (8000, 2)
    start = read_mono(tmp_path / "a.wav", max_seconds=0.25)
    assert torch.equal(start.samples, sound.samples[:2000])


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3"])
def test_formats(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    soundfile.write(path, tone(16000), 16000)
    sound = read_mono(path)
    assert abs(sound.duration_sec - 1) < 0.1
    assert abs(float(sound.samples.abs().max()) - 0.5) < 0.1


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".mp3"])
def test_half_a_file_is_an_error_that_names_it(tmp_path, suffix):
    path = tmp_path / f"half{suffix}"
    soundfile.write(path, tone(16000, 5), 16000)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(AudioError, match="half") as error:
        read_mono(path)
    assert error.value.kind in ("damaged", "cut off")


def with_size_of_samples(path, size: int | None = None, kept: int | None = None, **how) -> None:
    """A wav of 1 s whose header declares so many bytes of samples; the file may be cut."""
    soundfile.write(path, tone(8000), 8000, **how)
    content = bytearray(path.read_bytes())
    start = content.index(b"data") + 8
    if size is not None:
        content[start - 4 : start] = size.to_bytes(4, "little")
    path.write_bytes(content[: kept and start + kept])


@pytest.mark.parametrize("size", [0x7FFFF000, 0x80000000, 0xFFFFFFFF])
def test_a_wav_whose_writer_did_not_know_its_length_is_whole(tmp_path, size):
    with_size_of_samples(tmp_path / "a.wav", size)
    assert len(read_mono(tmp_path / "a.wav").samples) == 8000


@pytest.mark.parametrize("how", [{}, {"subtype": "PCM_24", "format": "WAVEX"}])
def test_a_wav_may_end_a_little_early(tmp_path, how):
    width = 3 if how else 2
    with_size_of_samples(tmp_path / "a.wav", kept=7300 * width, **how)
    assert len(read_mono(tmp_path / "a.wav").samples) == 7300
    with_size_of_samples(tmp_path / "a.wav", kept=7100 * width, **how)
    with pytest.raises(AudioError, match=r"declares 8000 samples, only 7100 decode"):
        read_mono(tmp_path / "a.wav")
    assert len(read_mono(tmp_path / "a.wav", max_seconds=0.5).samples) == 4000


def test_what_stands_behind_the_samples_of_a_wav_does_not_matter(tmp_path):
    with_size_of_samples(tmp_path / "a.wav")
    with open(tmp_path / "a.wav", "ab") as file:
        file.write(b"LIST" + (9000).to_bytes(4, "little") + bytes(9000))
    assert len(read_mono(tmp_path / "a.wav").samples) == 8000


def test_kinds_of_useless_audio(tmp_path):
    soundfile.write(tmp_path / "nan.wav", np.array([0.0, np.nan]), 8000, subtype="FLOAT")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 8000)
    (tmp_path / "text.wav").write_text("la la la")
    kinds = {}
    for path in tmp_path.iterdir():
        with pytest.raises(AudioError, match=path.name) as error:
            read_mono(path)
        kinds[path.stem] = error.value.kind
    assert kinds == {"nan": "not finite", "empty": "empty", "text": "damaged"}


@pytest.mark.parametrize(("source", "target"), [(44100, 32000), (22050, 32000), (48000, 24000)])
def test_resampling_keeps_pitch_level_and_length(source, target):
    got = resample(torch.from_numpy(tone(source)), source, target).numpy()
    assert len(got) == target
    inner = slice(500, -500)  # the filter sees zeros beyond the ends
    np.testing.assert_allclose(got[inner], tone(target)[inner], atol=2e-3)


def test_resampling_to_the_same_rate_changes_nothing():
    samples = torch.from_numpy(tone(8000))
    assert resample(samples, 8000, 8000) is samples
