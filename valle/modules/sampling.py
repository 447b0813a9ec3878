"""Logits in, ids out. Pure functions: chance comes in as numbers drawn beforehand.

A row's numbers come from a generator of its own, so that no row hears of its neighbours, and they
are drawn many frames at a time, so that a frame costs no random draw on the device.

B batch, V vocabulary, K recent ids.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How the next id is drawn. The filters apply in this order.

    Attributes:
      temperature: divides the logits; 0 takes the most likely id (greedy).
      top_k: draw among the k most likely ids; 0 draws among all.
      top_p: draw among the fewest ids whose probabilities sum to at least top_p (nucleus sampling,
        arXiv 1904.09751); 1 draws among all.
      min_p: draw among ids at least min_p times as probable as the likeliest (arXiv 2407.01082);
        0 draws among all.
      repetition_window: look for repetition among so many ids before this one (repetition aware
        sampling, VALL-E 2, arXiv 2406.05370, where it is 10); 0 never looks.
      repetition_threshold: an id that makes up a larger share of the window is drawn again, without
        filters. The paper may then draw the same id once more; here it is left out.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_window: int = 0
    repetition_threshold: float = 0.1

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise ValueError(f"temperature must be 0 (greedy) or more, got {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (all) or more, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")
        if not 0 <= self.min_p < 1:
            raise ValueError(f"min_p must be in [0, 1), got {self.min_p}")
        if self.repetition_window < 0:
            raise ValueError(f"repetition_window must be 0 (off) or more: {self.repetition_window}")
        if not 0 <= self.repetition_threshold <= 1:
            raise ValueError(
                f"repetition_threshold must be in [0, 1], got {self.repetition_threshold}"
            )


GREEDY = Sampling(temperature=0.0)


class RowDraws:
    """Uniform numbers for the rows of a batch, each row's from a generator of its own.

    A row receives the same numbers in the same order however many are taken at a time.

    Args:
      generators: on the CPU, one a row.
      num_per_frame: how many numbers a frame uses.
      device: where they are wanted.
    """

    def __init__(
        self, generators: Sequence[torch.Generator], num_per_frame: int, device: torch.device
    ) -> None:
        self.generators = generators
        self.num_per_frame = num_per_frame
        self.device = device

    def take(self, num_frames: int) -> Tensor:
        """(B, num_frames, num_per_frame) float32 in [0, 1)."""
        shape = (num_frames, self.num_per_frame)
        return torch.stack([torch.rand(shape, generator=g) for g in self.generators]).to(
            self.device
        )


def row_generators(
    num_rows: int, source: torch.Generator | Sequence[torch.Generator] | None = None
) -> list[torch.Generator]:
    """A generator on the CPU for each row.

    Args:
      num_rows: B.
      source: one generator, from which the rows' seeds are drawn in order, so that row i has the
        same seed whatever comes after it; or a generator a row; None is torch's default one.

    Raises:
      ValueError: another number of generators than rows, or one that is not on the CPU.
    """
    if isinstance(source, Sequence):
        if len(source) != num_rows:
            raise ValueError(f"{num_rows} rows need as many generators, got {len(source)}")
        if any(g.device.type != "cpu" for g in source):
            raise ValueError("generators of rows must be on the CPU, so that seeds mean the same")
        return list(source)
    device = "cpu" if source is None else source.device
    seeds = torch.randint(2**62, (num_rows,), generator=source, device=device)
    return [torch.Generator().manual_seed(seed) for seed in seeds.tolist()]


def sample(logits: Tensor, how: Sampling, uniforms: Tensor) -> Tensor:
    """Draw one id a row: (..., V) logits and (...) uniform numbers in [0, 1) to (...) int64."""
    if how.temperature == 0:
        return logits.argmax(-1)
    logits = keep_top_k(logits.float() / how.temperature, how.top_k)
    logits = keep_min_p(keep_top_p(logits, how.top_p), how.min_p)
    return _draw(logits.softmax(-1), uniforms)


def sample_unlike(logits: Tensor, how: Sampling, uniforms: Tensor, recent: Tensor) -> Tensor:
    """Draw one id a row, and another where it was heard too often of late.

    Args:
      logits: (B, V).
      how: with `repetition_window` K.
      uniforms: (B, 2) numbers in [0, 1): for the draw, and for the one that replaces it.
      recent: (B, K) the ids before, in any order; -1 where there is none.
    """
    drawn = sample(logits, how, uniforms[:, 0])
    share = (recent == drawn[:, None]).float().mean(-1)
    others = logits.float().scatter(-1, drawn[:, None], -torch.inf)
    return torch.where(
        share > how.repetition_threshold, _draw(others.softmax(-1), uniforms[:, 1]), drawn
    )


def _draw(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """Invert the cumulative distribution: (..., V) and (...) to (...).

    In double precision, where a uniform number below 1 cannot round up to the whole mass; so an id
    of probability 0 is never drawn.
    """
    mass = probabilities.double().cumsum(-1)
    aim = uniforms.double()[..., None] * mass[..., -1:]
    return torch.searchsorted(mass, aim, right=True)[..., 0]


def keep_top_k(logits: Tensor, top_k: int) -> Tensor:
    """Set all but the k highest logits to -inf; ties at the border stay."""
    if top_k <= 0 or top_k >= logits.shape[-1]:
        return logits
    lowest_kept = logits.topk(top_k, dim=-1).values[..., -1:]
    return logits.masked_fill(logits < lowest_kept, -torch.inf)


def keep_top_p(logits: Tensor, top_p: float) -> Tensor:
    """Set the logits outside the nucleus to -inf; the most likely id always stays."""
    if top_p >= 1:
        return logits
    sorted_logits, order = logits.sort(dim=-1, descending=True)
    probabilities = sorted_logits.softmax(-1)
    mass_before = probabilities.cumsum(-1) - probabilities
    outside = (mass_before >= top_p).scatter(-1, order, mass_before >= top_p)
    return logits.masked_fill(outside, -torch.inf)


def keep_min_p(logits: Tensor, min_p: float) -> Tensor:
    """Set the logits of ids less than min_p times as probable as the likeliest to -inf."""
    if min_p <= 0:
        return logits
    lowest_kept = logits.amax(-1, keepdim=True) + math.log(min_p)
    return logits.masked_fill(logits < lowest_kept, -torch.inf)
