"""Logits in, ids out. Pure functions of their arguments and a `torch.Generator`.

B batch, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How the next id is drawn.

    Attributes:
      temperature: divides the logits; 0 takes the most likely id (greedy).
      top_k: draw among the k most likely ids; 0 draws among all.
      top_p: draw among the fewest ids whose probabilities sum to at least top_p (nucleus sampling,
        arXiv 1904.09751); 1 draws among all.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise ValueError(f"temperature must be 0 (greedy) or more, got {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (all) or more, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")


GREEDY = Sampling(temperature=0.0)


def sample(logits: Tensor, how: Sampling, generator: torch.Generator | None = None) -> Tensor:
    """Draw one id a row: (..., V) logits to (...) int64."""
    if how.temperature == 0:
        return logits.argmax(-1)
    logits = keep_top_p(keep_top_k(logits.float() / how.temperature, how.top_k), how.top_p)
    probabilities = logits.softmax(-1)
    flat = torch.multinomial(probabilities.flatten(0, -2), 1, generator=generator)
    return flat.view(logits.shape[:-1])


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
