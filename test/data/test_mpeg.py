"""Lengths of mp3 files that say it, do not say it, or say it wrong."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from valle.data import mpeg
from valle.data.audio import AudioError, read_mono
from valle.data.mpeg import mpeg_length

SECONDS = 4.0


def sound(rate: int, order: tuple[str, ...] = ("dense", "quiet")) -> np.ndarray:
    """Noise, which takes many bits, and a soft sine, which takes few."""
    size = round(SECONDS / 2 * rate)
    parts = {
        "dense": 0.3 * np.random.default_rng(0).standard_normal(size),
        "quiet": 0.05 * np.sin(2 * np.pi * 300 * np.arange(size) / rate),
    }
    return np.concatenate([parts[name] for name in order])


def write(path: Path, samples: np.ndarray, rate: int = 44100, channels: int = 1) -> bytes:
    with soundfile.SoundFile(
        path, "w", rate, channels, bitrate_mode="VARIABLE", compression_level=0.5
    ) as file:
        file.write(np.stack([samples] * channels, axis=1))
    return path.read_bytes()


def without(whole: bytes, num_frames: int = 1) -> bytes:
    """Without its first frames; the very first tells the length and is silent."""
    place = 0
    for _ in range(num_frames):
        place += mpeg._frame_at(whole, place).size
    assert b"Xing" in whole[:place]
    return whole[place:]


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", [8000, 16000, 22050, 32000, 44100, 48000])
def test_all_frames_are_counted(tmp_path, rate, channels):
    whole = write(tmp_path / "a.mp3", sound(rate), rate, channels)
    length = mpeg_length(tmp_path / "a.mp3")
    assert length.is_declared
    assert 0 <= length.num_samples - SECONDS * rate <= 4 * length.frame_size
    assert read_mono(tmp_path / "a.mp3").duration_sec == pytest.approx(SECONDS, abs=0.11)
    (tmp_path / "b.mp3").write_bytes(without(whole))
    untold = mpeg_length(tmp_path / "b.mp3")
    assert (untold.is_declared, untold.num_samples) == (False, length.num_samples)


def test_tags_and_noise_around_frames_are_passed_over(tmp_path):
    whole = write(tmp_path / "a.mp3", sound(44100))
    title = b"ID3\x04\x00\x00\x00\x00\x02\x00" + b"\xff\xfb\x90\x00 and so on".ljust(256, b" ")
    (tmp_path / "b.mp3").write_bytes(title + whole + b"TAG" + bytes(125))
    assert mpeg_length(tmp_path / "b.mp3") == mpeg_length(tmp_path / "a.mp3")


def test_a_guess_that_is_too_short_loses_nothing_in_silence(tmp_path):
    """libsndfile takes the bit rate of the first frames for that of all."""
    path = tmp_path / "a.mp3"
    path.write_bytes(without(write(path, sound(44100, ("dense", "quiet")))))
    assert soundfile.info(path).frames < 0.9 * SECONDS * 44100
    with pytest.raises(AudioError, match=r"a\.mp3 holds 178560 samples, of which \d+ can") as it:
        read_mono(path)
    assert it.value.kind == "length unknown"
    assert read_mono(path, 0.5).duration_sec == pytest.approx(0.5)  # that much was read


def test_a_guess_that_is_too_long_is_no_missing_end(tmp_path):
    path = tmp_path / "a.mp3"
    path.write_bytes(without(write(path, sound(44100, ("quiet", "dense"))), 10))
    assert soundfile.info(path).frames > 1.1 * SECONDS * 44100
    missing = 9 * 1152 / 44100
    assert read_mono(path).duration_sec == pytest.approx(SECONDS - missing, abs=0.11)


def test_files_that_were_joined_are_not_taken_for_the_first_of_them(tmp_path):
    path = tmp_path / "a.mp3"
    path.write_bytes(2 * write(path, sound(44100)))
    with pytest.raises(AudioError, match="or several that were joined"):
        read_mono(path)


def test_what_has_no_frames_has_no_length(tmp_path):
    for name, content in (("a", b""), ("b", b"\xff\xfb"), ("c", b"no sound" * 1000)):
        (tmp_path / name).write_bytes(content)
        assert mpeg_length(tmp_path / name) is None
