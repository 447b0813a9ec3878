"""How loud a recording is, how much of it is silence, and how much is clipped.

Letters: N samples, K blocks.
"""

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

BLOCK_SEC = 0.020  # silence is judged in blocks of this length
# 16 bits reach 32767 / 32768 upwards, 24 bits and floats reach further
FULL_SCALE = 32767 / 32768
# what digital silence is given instead of minus infinity, which JSON does not know
LOWEST_DB = -200.0
_RUN = 3  # so many samples in a row at full scale: a single one may be a peak that just fits


@dataclass(frozen=True)
class Levels:
    """What was measured of one recording.

    Attributes:
      peak_db: The largest sample, in dB of full scale.
      rms_db: The root of the mean square, in dB of full scale.
      silence_share: Of the blocks of 20 ms, those whose rms is below the limit.
      clipped_share: Of the samples, those at full scale in a run of three or more.
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


def measure_levels(samples: Tensor, sampling_rate: int, silence_db: float) -> Levels:
    """Measure a recording.

    Args:
      samples: (N,) float32, full scale at 1, N at least 1.
      sampling_rate: Samples a second.
      silence_db: A block is silent below this, in dB of full scale.

    Raises:
      ValueError: Another shape, or no samples.
    """
    rms = block_rms(samples, sampling_rate)  # (K,)
    low, high = (float(x) for x in torch.aminmax(samples))
    sizes = _block_sizes(samples.shape[0], sampling_rate)
    mean_square = float((rms.double().square() * sizes).sum() / samples.shape[0])
    return Levels(
        peak_db=to_db(max(-low, high)),
        rms_db=to_db(math.sqrt(mean_square)),
        silence_share=float((rms < from_db(silence_db)).double().mean()),
        clipped_share=count_clipped(samples) / samples.shape[0],
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


def count_clipped(samples: Tensor) -> int:
    """Samples at full scale, of either sign, in a run of three or more."""
    full = (samples >= FULL_SCALE) | (samples <= -FULL_SCALE)  # (N,)
    if int(full.sum()) < _RUN:
        return 0
    starts = full[:-2] & full[1:-1] & full[2:]  # (N - 2,), where three in a row begin
    return int((pad(starts, (0, 2)) | pad(starts, (1, 1)) | pad(starts, (2, 0))).sum())


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
