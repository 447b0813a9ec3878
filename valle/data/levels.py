"""How loud a recording is, how much of it is silence, and how much is clipped.

Letters: N samples, n samples of a piece, K blocks, C channels.
"""

import math
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

BLOCK_SEC = 0.020  # silence is judged in blocks of this length
# 16 bits reach 32767 / 32768 upwards, 24 bits and floats reach further, 8 bits not so far
FULL_SCALE = 32767 / 32768
FULL_SCALE_8_BITS = 127 / 128
# what digital silence is given instead of minus infinity, which JSON does not know
LOWEST_DB = -200.0
_RUN = 3  # so many samples in a row at full scale: a single one may be a peak that just fits


@dataclass(frozen=True)
class Levels:
    """What was measured of one recording.

    Attributes:
      peak_db: The largest sample of any channel, in dB of full scale.
      rms_db: The root of the mean square of the mix, in dB of full scale.
      silence_share: Of the blocks of 20 ms of the mix, those whose rms is below the limit.
      clipped_share: Of the samples, those at full scale in a run of three or more, in the channel
        that has most of them.
    """

    peak_db: float
    rms_db: float
    silence_share: float
    clipped_share: float

    def to_dict(self) -> dict[str, float]:
        """Plain numbers, rounded to what anybody would read."""
        return {
            name: round(value, 2 if name.endswith("_db") else 6)
            for name, value in asdict(self).items()
        }


@dataclass(frozen=True)
class Extremes:
    """What the mix of the channels no longer tells of them.

    Attributes:
      peak: The largest sample of any channel, without its sign.
      num_clipped: Samples at full scale, of either sign, in a run of three or more, in the channel
        that has most of them.
    """

    peak: float
    num_clipped: int


class PeakMeter:
    """Measures `Extremes` piece by piece, while a recording is read.

    Args:
      highest: What counts as full scale upwards.
    """

    def __init__(self, highest: float = FULL_SCALE) -> None:
        self._highest, self._peak = highest, 0.0
        self._runs: list[_Runs] = []

    def add(self, piece: np.ndarray) -> None:
        """The next samples: (n, C) float, n at least 1."""
        peak = max(float(piece.max()), -float(piece.min()))
        self._peak = max(self._peak, peak)
        self._runs = self._runs or [_Runs() for _ in range(piece.shape[1])]
        for samples, runs in zip(piece.T, self._runs, strict=True):
            if peak < self._highest:  # so it is nearly always, and little is left to do
                runs.end()
            else:
                runs.add((samples >= self._highest) | (samples <= -FULL_SCALE))

    def result(self) -> Extremes:
        """What was measured of all pieces."""
        return Extremes(self._peak, max((runs.total() for runs in self._runs), default=0))


class _Runs:
    """Counts the samples in runs of three or more; the last run may go on in the next piece."""

    def __init__(self) -> None:
        self._count = self._open = 0

    def add(self, full: np.ndarray) -> None:
        """The next samples: (n,) bool, True at full scale."""
        if not full[0]:
            self.end()
        edges = np.flatnonzero(np.diff(full, prepend=False, append=False))
        lengths = edges[1::2] - edges[::2]  # of each run
        if full[0]:
            lengths[0] += self._open
            self._open = 0
        if full[-1]:
            self._open, lengths = int(lengths[-1]), lengths[:-1]
        self._count += int(lengths[lengths >= _RUN].sum())

    def end(self) -> None:
        """No run goes on."""
        self._count, self._open = self.total(), 0

    def total(self) -> int:
        return self._count + (self._open if self._open >= _RUN else 0)


def measure_levels(
    samples: Tensor, sampling_rate: int, silence_db: float, extremes: Extremes
) -> Levels:
    """Measure a recording.

    Args:
      samples: (N,) float32, the mix, full scale at 1, N at least 1.
      sampling_rate: Samples a second.
      silence_db: A block is silent below this, in dB of full scale.
      extremes: Of its channels, as a `PeakMeter` saw them.

    Raises:
      ValueError: Another shape, or no samples.
    """
    rms = block_rms(samples, sampling_rate)  # (K,)
    sizes = _block_sizes(samples.shape[0], sampling_rate)
    mean_square = float((rms.double().square() * sizes).sum() / samples.shape[0])
    return Levels(
        peak_db=to_db(extremes.peak),
        rms_db=to_db(math.sqrt(mean_square)),
        silence_share=float((rms < from_db(silence_db)).double().mean()),
        clipped_share=extremes.num_clipped / samples.shape[0],
    )


def block_rms(samples: Tensor, sampling_rate: int) -> Tensor:
    """The root of the mean square of each block of 20 ms; the last block may be shorter.

    Args:
      samples: (N,) float32.
      sampling_rate: Samples a second.

    Returns:
      (K,) float32.

    Raises:
      ValueError: Another shape, or no samples.
    """
    if samples.ndim != 1 or samples.shape[0] == 0:
        raise ValueError(
            f"samples have shape {tuple(samples.shape)}, expected (N,), N at least 1: mix the "
            "channels down first"
        )
    block = block_samples(sampling_rate)
    whole = samples.shape[0] // block
    rows = samples[: whole * block].view(whole, block)
    norms = torch.linalg.vector_norm(rows, dim=1)  # (whole,), without a copy of the squares
    if samples.shape[0] > whole * block:
        rest = torch.linalg.vector_norm(samples[whole * block :], dim=0, keepdim=True)
        norms = torch.cat([norms, rest])
    return norms / _block_sizes(samples.shape[0], sampling_rate).sqrt().float()


def block_samples(sampling_rate: int) -> int:
    """Samples of a block, 1 at least."""
    return max(round(BLOCK_SEC * sampling_rate), 1)


def _block_sizes(num_samples: int, sampling_rate: int) -> Tensor:
    """(K,) float64, how many samples each block has."""
    block = block_samples(sampling_rate)
    sizes = torch.full((-(-num_samples // block),), float(block), dtype=torch.float64)
    sizes[-1] = num_samples - (len(sizes) - 1) * block
    return sizes


def peak_of(samples: Tensor) -> float:
    """The largest of (N,) samples, without its sign."""
    low, high = (float(x) for x in torch.aminmax(samples))
    return max(-low, high)


def sounding_range(samples: Tensor, sampling_rate: int, silence_db: float) -> tuple[int, int]:
    """From the first block that is not silent to the last one.

    Args:
      samples: (N,) float32.
      sampling_rate: Samples a second.
      silence_db: A block is silent when its rms is below this, in dB of full scale.

    Returns:
      Samples [start, stop); (0, 0) where all is silent.
    """
    loud = (block_rms(samples, sampling_rate) >= from_db(silence_db)).nonzero()[:, 0]
    if not len(loud):
        return 0, 0
    block = block_samples(sampling_rate)
    return int(loud[0]) * block, min((int(loud[-1]) + 1) * block, samples.shape[0])


def to_db(amplitude: float) -> float:
    """Decibels of full scale, -200 at the lowest."""
    return max(20 * math.log10(amplitude), LOWEST_DB) if amplitude > 0 else LOWEST_DB


def from_db(decibels: float) -> float:
    """The amplitude, 1 at full scale."""
    return 10 ** (decibels / 20)
