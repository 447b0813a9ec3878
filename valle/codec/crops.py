"""Sound for codec training: random crops of recordings, each decided by its number alone.

Crop n of a stream is the same in every run, on every rank and in every loader process, so a run
that goes on needs to know no more than how many crops there have been.

Letters: N samples of a crop.
"""

from collections.abc import Iterator

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from valle.codec.pieces import QUIET_RMS, PieceReader

GAIN_RANGE_DB = (-10.0, 4.0)
PEAK_LIMIT = 0.99
_TAKE_AS_IT_COMES = 1 / 16  # a codec that never heard a pause hums in it
_NUM_TRIES = 8


class CropDataset(Dataset):
    """Random crops, most of them audible, each at a gain of its own.

    An item is (1, N) float32; item n of a `stream` depends on seed, stream and n alone.

    Args:
      reader: The recordings; those shorter than a crop are left out.
      num_samples: N.
      seed: Of everything drawn.
      stream: Crops for another purpose are other crops.

    Raises:
      ValueError: If every piece is shorter than a crop.
    """

    def __init__(self, reader: PieceReader, num_samples: int, seed: int, stream: int) -> None:
        lengths = [reader.num_samples(i) for i in range(len(reader.pieces))]
        self.usable = [i for i, length in enumerate(lengths) if length >= num_samples]
        if not self.usable:
            raise ValueError(
                f"all {len(lengths)} recordings are shorter than a crop of {num_samples} samples: "
                "lower --segment-sec"
            )
        self.reader, self.num_samples = reader, num_samples
        self.seed, self.stream = seed, stream
        self.starts = np.cumsum([lengths[i] - num_samples + 1 for i in self.usable])

    def __getitem__(self, number: int) -> Tensor:
        rng = np.random.default_rng([self.seed, self.stream, number])
        as_it_comes = rng.random() < _TAKE_AS_IT_COMES
        for _ in range(_NUM_TRIES):
            crop = self._draw(rng)
            if as_it_comes or crop.square().mean().sqrt() >= QUIET_RMS:
                break
        return _vary_gain(crop, rng.uniform(*GAIN_RANGE_DB))[None]

    def _draw(self, rng: np.random.Generator) -> Tensor:
        pick = int(rng.integers(self.starts[-1]))
        place = int(np.searchsorted(self.starts, pick, side="right"))
        start = pick - (int(self.starts[place - 1]) if place else 0)
        return self.reader.read(self.usable[place], start, self.num_samples)


def _vary_gain(crop: Tensor, level_db: float) -> Tensor:
    peak = max(float(crop.abs().max()), 1e-4)
    return crop * min(10 ** (level_db / 20), PEAK_LIMIT / peak)


class StepSampler(Sampler[list[int]]):
    """The crops of each step, of which this rank takes its part.

    Args:
      first_step: Where to begin, from 0.
      num_steps: The step to end before.
      batch_size: Crops a step, of all ranks together; a multiple of their number.
      rank: This one.
      world_size: How many there are.
    """

    def __init__(
        self, first_step: int, num_steps: int, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self.steps = range(first_step, num_steps)
        self.batch_size, self.rank, self.share = batch_size, rank, batch_size // world_size

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.steps:
            first = step * self.batch_size + self.rank * self.share
            yield list(range(first, first + self.share))
