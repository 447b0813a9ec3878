"""Training of the residual quantizer: straight-through, moving averages, dead codes.

Ranks see parts of one batch: what a codebook learns is summed over all of them, so that all have
the same codebooks after every step.

Letters: B batch, T frames, D latent width, V = B T vectors, K codebook size, Q quantizers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from valle.codec.ranks import gather_rows, own_rows, sum_over_ranks, variance_over_ranks
from valle.codec.rvq import Codebook, count_and_sum, draw_rows, nearest
from valle.utils.dist import get_world_size

DEAD_SHARE = 0.08  # of the average use of a code
CHECK_DEAD_EVERY = 10  # steps
SETTLED_FROM = 300  # updates: before, the averages are short, too short to tell who is dead
# Weight of a batch in the averages: before so many updates at most this, and never so much that
# they would rest on fewer vectors than this for each code, however small the batches are.
AVERAGING = ((60, 0.1, 6), (SETTLED_FROM, 0.04, 15), (math.inf, 0.01, 60))


@dataclass
class Quantized:
    """What `ResidualTrainer.quantize` found; codes of every level, whatever a row used."""

    latents: Tensor  # (B, D, T): the sum of the levels a row uses
    codes: Tensor  # (Q, V) int64
    residuals: list[Tensor]  # Q times (V, D): what each level was asked to code


class ResidualTrainer:
    """Quantizes latents in training and lets the codebooks follow them.

    Args:
      books: The Q codebooks, coarse first; changed in place.
      generator: Random generator of their device, in the same state on all ranks.

    Attributes:
      num_updates: How often the codebooks have moved; a checkpoint keeps it.
    """

    def __init__(self, books: Sequence[Codebook], generator: torch.Generator) -> None:
        self.books = list(books)
        self.generator = generator
        self.num_updates = 0
        table = self.books[0].embed
        self.usage = table.new_zeros(len(self.books), table.shape[0])

    def draw_levels(self, batch_size: int, drop: float) -> Tensor:
        """How many levels each row uses, (B,): all, but for a share ``drop`` any number of them.

        So the first codes alone make sense too, and a language model may predict them first.
        """
        device, generator, top = self.usage.device, self.generator, len(self.books)
        everyones = batch_size * get_world_size()
        chance = torch.rand(everyones, generator=generator, device=device)
        fewer = torch.randint(1, top + 1, (everyones,), generator=generator, device=device)
        return own_rows(torch.where(chance < drop, fewer, top))

    @torch.no_grad()
    def quantize(self, latents: Tensor, levels: Tensor | None = None) -> Quantized:
        """Find codes for latents (B, D, T); row b is rebuilt from its first levels[b] levels."""
        B, D, T = latents.shape
        rest = latents.transpose(1, 2).reshape(B * T, D)
        total = torch.zeros_like(rest)
        codes, residuals = [], []
        for level, book in enumerate(self.books):
            index = nearest(rest, book.embed)
            chosen = book.embed[index]
            codes.append(index)
            residuals.append(rest)
            rest = rest - chosen
            if levels is not None and level > 0:
                used = (levels > level).repeat_interleave(T, output_size=B * T)
                chosen = chosen * used.unsqueeze(1)
            total = total + chosen
        summed = total.view(B, T, D).transpose(1, 2)
        return Quantized(summed, torch.stack(codes), residuals)

    @torch.no_grad()
    def update(self, quantized: Quantized, is_good: Tensor | None = None) -> None:
        """Move every code towards the vectors that chose it, and revive the unused ones.

        Args:
          quantized: Of a step.
          is_good: () bool; where it is False nothing moves, and nobody has to wait to know.
        """
        total = quantized.residuals[0].shape[0] * get_world_size()
        weight = self._weight(total)
        self.num_updates += 1
        revive = self.num_updates >= SETTLED_FROM and self.num_updates % CHECK_DEAD_EVERY == 0
        for level, book in enumerate(self.books):
            vectors = quantized.residuals[level]
            size = book.embed.shape[0]
            counts, sums = count_and_sum(vectors, quantized.codes[level], size)
            counts, sums = sum_over_ranks(counts), sum_over_ranks(sums)
            self.usage[level] += counts
            # shares instead of counts: the averages then mean the same at every batch size
            shares = book.cluster_size.lerp(counts / total, weight)
            averages = book.embed_avg.lerp(sums / total, weight)
            if revive:
                shares, averages = self._revive(shares, averages, vectors)
            table = averages / shares.clamp_min(1e-20).unsqueeze(1)
            _keep_good(
                book, {"cluster_size": shares, "embed_avg": averages, "embed": table}, is_good
            )

    def _weight(self, num_vectors: int) -> float:
        """Of a batch in the averages; they are short at first, while the encoder moves fast."""
        most, memory = next(rest for before, *rest in AVERAGING if self.num_updates < before)
        return min(most, num_vectors / (memory * self.usage.shape[1]))

    def _revive(self, shares: Tensor, averages: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Set codes that hardly anything chooses onto vectors of this batch."""
        usual = 1 / shares.shape[0]
        dead = shares < DEAD_SHARE * usual
        fresh = draw_rows(gather_rows(vectors), shares.shape[0], self.generator)
        averages = torch.where(dead.unsqueeze(1), fresh * usual, averages)
        return torch.where(dead, usual, shares), averages

    def read_usage(self) -> Tensor:
        """Counts (Q, K) of every code since the last reading."""
        counts = self.usage.clone()
        self.usage.zero_()
        return counts

    def state_dict(self) -> dict[str, Any]:
        """What is not in the codebooks themselves."""
        return {"num_updates": self.num_updates, "usage": self.usage.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.num_updates = state["num_updates"]
        self.usage.copy_(state["usage"])


def _keep_good(book: Codebook, values: dict[str, Tensor], is_good: Tensor | None) -> None:
    for name, value in values.items():
        buffer = getattr(book, name)
        buffer.copy_(value if is_good is None else torch.where(is_good, value, buffer))


def straight_through(latents: Tensor, quantized: Tensor) -> Tensor:
    """The quantized latents in value, the latents in gradient."""
    return latents + (quantized - latents).detach()


def commitment(latents: Tensor, quantized: Tensor, most: Tensor) -> Tensor:
    """Mean square distance of latents to their codes, relative to the variance of the latents.

    Relative, because otherwise shrinking all latents would be the cheapest way to lower it; but
    relative to `most` () at most, because otherwise a few latents that run away would raise the
    variance and so lower the pull that holds them back.
    """
    everything = latents.detach().reshape(-1, 1)
    variance = variance_over_ranks(everything)[0].clamp_min(1e-8).minimum(most)
    return (latents - quantized.detach()).square().mean() / variance
