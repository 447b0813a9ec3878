"""Sound files and waveforms -> mono float32 at the rate a codec wants.

Letters: N samples, C channels.
"""

import math
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from valle.data.levels import FULL_SCALE, FULL_SCALE_8_BITS, Extremes, PeakMeter
from valle.data.mpeg import mpeg_length

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
# Recorded beside the tokens: another filter gives another waveform, hence possibly other tokens.
RESAMPLER = "lhotse.augmentation.resample (sinc, Hann window)"

_BLOCK_SEC = 30.0
_LARGEST_FILTER = 2**28  # bytes
_SYSTEM_ERROR = 2  # libsndfile's code for a failure that is not the file's
_UNKNOWN_LENGTH = 2**62  # its count of samples where a file, written into a pipe, has none
_LOWEST_RATE, _HIGHEST_RATE = 1000, 1_000_000
# Bytes of samples that a wav file declares when its writer could not know, as into a pipe: 0, or
# from here on (sox 0x7FFFF000, arecord 0x80000000, ffmpeg 0xFFFFFFFF).
_UNKNOWN_BYTES = 0x7FFFF000
_EIGHT_BITS = ("PCM_U8", "PCM_S8")
# A decoder may end a few samples early; more than this missing means a cut-off file.
_MISSING_SEC_ALLOWED = 0.1
# What a coder adds to an mp3 file at both ends, and a decoder leaves out again.
_MPEG_FRAMES_ALLOWED = 4


class AudioError(ValueError):
    """Audio that cannot be encoded.

    Attributes:
      kind: "damaged", "cut off", "empty", "not finite", ...; what a summary counts by.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Sound:
    """One recording, mixed down.

    Attributes:
      samples: (N,) float32, the mean of the channels.
      sampling_rate: Samples a second.
      num_channels: Channels of the file before the mix.
      extremes: Peak and clipping of those channels.
    """

    samples: Tensor
    sampling_rate: int
    num_channels: int
    extremes: Extremes

    @property
    def duration_sec(self) -> float:
        return self.samples.shape[0] / self.sampling_rate


def read_mono(path: str | Path, max_seconds: float | None = None) -> Sound:
    """Read a sound file block by block, so that only its mono mix is ever held whole.

    Args:
      path: wav, flac, ogg (vorbis, opus) or mp3, whatever libsndfile decodes.
      max_seconds: Read no more than this from the start.

    Returns:
      The samples at the file's own rate.

    Raises:
      FileNotFoundError: There is no such file.
      OSError: The system does not let it be read.
      AudioError: Not a sound file, damaged, cut off, empty, or holding NaN or infinity; the
        message names the file.
    """
    import soundfile

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no sound file at {path}")
    excess = wav_excess(path)  # besides, libsndfile does not say why it cannot open a file
    try:
        with soundfile.SoundFile(str(path)) as file:
            # read on without a seek after each block, which fails where the length is unknown
            file.seekable = lambda: False
            rate, channels, declared = file.samplerate, file.channels, round(file.frames * excess)
            meter = PeakMeter(FULL_SCALE_8_BITS if file.subtype in _EIGHT_BITS else FULL_SCALE)
            wanted = declared if max_seconds is None else int(max_seconds * rate)
            samples = _read_blocks(file.read, wanted, int(_BLOCK_SEC * rate), meter)
            is_mpeg = file.format == "MP3"
    except soundfile.LibsndfileError as error:
        if getattr(error, "code", None) == _SYSTEM_ERROR:
            raise OSError(f"reading {path} failed: {error}") from error
        expected = f"expected an intact {', '.join(AUDIO_SUFFIXES)} file"
        raise AudioError("damaged", f"cannot decode {path}: {error}; {expected}") from error
    missing_sec = (min(declared, wanted) - samples.shape[0]) / rate
    is_known = declared < _UNKNOWN_LENGTH
    if is_mpeg:
        is_known = check_mpeg(path, samples.shape[0], None if max_seconds is None else wanted)
    if is_known and samples.shape[0] and missing_sec > _MISSING_SEC_ALLOWED:
        raise AudioError(
            "cut off",
            f"{path} is cut off: it declares {declared} samples, only {samples.shape[0]} decode",
        )
    check_samples(samples, str(path))
    return Sound(samples, rate, channels, meter.result())


def check_mpeg(path: Path, num_read: int, wanted: int | None) -> bool:
    """Refuse an mp3 file that holds more than was read, as libsndfile guessed its length too short.

    Args:
      path: The file.
      num_read: Samples that were read.
      wanted: How many were wanted at most, None for all.

    Returns:
      Whether the file says how long it is; if not, a guess that was too long means nothing.

    Raises:
      AudioError: It does.
      OSError: The system does not let it be read.
    """
    length = mpeg_length(path)
    if length is None:
        return True
    there = length.num_samples if wanted is None else min(length.num_samples, wanted)
    if there - num_read > _MPEG_FRAMES_ALLOWED * length.frame_size:
        raise AudioError(
            "length unknown",
            f"{path} holds {length.num_samples} samples, of which {num_read} can be read: an mp3 "
            "of variable bit rate without a length in its header, or several that were joined. "
            "Convert it, to flac say",
        )
    return length.is_declared


def wav_excess(path: Path) -> float:
    """How many times the bytes of samples that a wav file holds it declares.

    libsndfile takes what is there for the whole.

    Returns:
      1 where it is not cut off, does not know how long it is, or is of another format.

    Raises:
      OSError: The system does not let it be read.
    """
    with open(path, "rb") as file:
        head = file.read(12)
        if head[:4] != b"RIFF" or head[8:] != b"WAVE":
            return 1.0
        while len(chunk := file.read(8)) == 8:
            kind, size = struct.unpack("<4sI", chunk)
            if kind == b"data":
                held = os.fstat(file.fileno()).st_size - file.tell()
                return max(size / held, 1.0) if held and size < _UNKNOWN_BYTES else 1.0
            file.seek(size + size % 2, os.SEEK_CUR)
    return 1.0


def _read_blocks(
    read: Callable[..., np.ndarray], wanted: int, block: int, meter: PeakMeter
) -> Tensor:
    parts: list[np.ndarray] = []
    left = wanted
    while left > 0:
        part = read(min(block, left), dtype="float32", always_2d=True)  # (n, C)
        if not len(part):
            break
        meter.add(part)
        parts.append(_mix(part))
        left -= len(part)
    return torch.from_numpy(np.concatenate(parts)) if parts else torch.zeros(0)


def _mix(part: np.ndarray) -> np.ndarray:
    """(n, C) -> (n,), the mean; channel by channel, as numpy's own takes thirty times as long."""
    mixed = part[:, 0].copy()
    for channel in range(1, part.shape[1]):
        mixed += part[:, channel]
    return mixed / np.float32(part.shape[1])


def to_mono(waveform: np.ndarray | Tensor, where: str = "the waveform") -> Tensor:
    """Mix a waveform down.

    Args:
      waveform: (N,) or (C, N) floating point, full scale at 1.
      where: How an error names it.

    Returns:
      (N,) float32 on the CPU, the mean of the channels.

    Raises:
      ValueError: Another shape, integers, empty, or not finite.
    """
    if isinstance(waveform, np.ndarray):
        waveform = torch.from_numpy(np.array(waveform))  # a copy: strides and writability vary
    samples = waveform.detach().cpu()
    if not samples.is_floating_point():
        raise ValueError(
            f"{where} is {samples.dtype}, expected floating point in [-1, 1]; "
            "divide integer samples by their full scale"
        )
    if samples.ndim not in (1, 2):
        raise ValueError(
            f"{where} has shape {tuple(samples.shape)}, expected (N,) or (C, N); "
            "give several recordings as a list"
        )
    if samples.ndim == 2:
        if samples.shape[0] > samples.shape[1] > 0:
            raise ValueError(
                f"{where} has shape {tuple(samples.shape)}, more channels than samples: "
                "expected (C, N), transpose it"
            )
        samples = samples.float().mean(dim=0)
    samples = samples.float()
    check_samples(samples, where)
    return samples


def check_samples(samples: Tensor, where: str) -> None:
    """Refuse what no codec can encode.

    Raises:
      AudioError: No samples, or some of them NaN or infinite; the message begins with `where`.
    """
    if samples.numel() == 0:
        raise AudioError("empty", f"{where} is empty: it holds no samples")
    low, high = torch.aminmax(samples)  # NaN where one sample is
    if not (torch.isfinite(low) and torch.isfinite(high)):
        bad = int((~torch.isfinite(samples)).sum())
        raise AudioError(
            "not finite", f"{where} holds {bad} samples that are NaN or infinite; repair the audio"
        )


def resample(samples: Tensor, source_rate: int, target_rate: int) -> Tensor:
    """Change the sampling rate with the one filter this project uses.

    lhotse's own `Recording.resample` picks scipy's or torch's filter by what happens to be
    installed, so that the same audio could give other tokens elsewhere.

    Args:
      samples: (N,) float32.
      source_rate: Rate it has.
      target_rate: Rate it shall have.

    Returns:
      (ceil(N * target_rate / source_rate),) float32.

    Raises:
      AudioError: The rates have no ratio that a filter could be made for.
    """
    from lhotse.augmentation.resample import resample as sinc_resample

    if source_rate == target_rate:
        return samples
    check_rates(source_rate, target_rate)
    return sinc_resample(samples, source_rate, target_rate)


def check_rates(source_rate: int, target_rate: int) -> None:
    """Refuse what no sound is recorded at: below 1 kHz, above 1 MHz, or rates such as 44101 Hz.

    The filter has a row of coefficients for each place that an output sample can have between two
    input samples, and a row spans a whole period of that: 44100 to 32000 Hz is 441 to 320, and
    0.6 MB; 44101 to 32000 Hz would be 6 GB.

    Raises:
      AudioError: Naming both.
    """
    divisor = math.gcd(source_rate, target_rate)
    is_odd = not _LOWEST_RATE <= source_rate <= _HIGHEST_RATE
    if is_odd or 4 * (source_rate // divisor) * (target_rate // divisor) > _LARGEST_FILTER:
        raise AudioError(
            "odd rate",
            f"a sampling rate of {source_rate} Hz cannot be brought to {target_rate} Hz: expected "
            f"{_LOWEST_RATE} to {_HIGHEST_RATE} Hz, and a common divisor above {divisor}; a "
            "damaged header? convert the file first",
        )
