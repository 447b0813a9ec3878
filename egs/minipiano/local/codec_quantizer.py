"""Training of the residual quantizer: nearest codes, moving averages, dead codes, k-means.

`transformers.EncodecModel` only looks codes up; its codebooks are buffers that start at zero.
What follows fills them.

Letters: V vectors, D latent width, K codebook size, Q quantizers, B batch, T frames.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

DEAD_SHARE = 0.08  # of the average use of a code; relative, so that any batch size will do
CHECK_DEAD_EVERY = 10  # steps
CHECK_DEAD_FROM = 300  # steps: before, the averages are too short to tell
_CHUNK = 16384  # rows of a distance table made at once


class Codebook(Protocol):
    """The buffers of transformers' EncodecEuclideanCodebook that training fills."""

    embed: Tensor  # (K, D): the codes
    embed_avg: Tensor  # (K, D): moving average of the sum of the vectors a code got
    cluster_size: Tensor  # (K,): moving average of how many it got; both as shares of all vectors


def codebooks_of(model: Any) -> list[Codebook]:
    """Codebooks of an EncodecModel, coarse first."""
    return [layer.codebook for layer in model.quantizer.layers]


def nearest(vectors: Tensor, table: Tensor) -> Tensor:
    """Index (V,) of the row of table (K, D) that is nearest to each of vectors (V, D).

    |v - c|^2 is least where v.c - |c|^2 / 2 is greatest, which is one matrix product.
    """
    bias, columns = -0.5 * table.square().sum(dim=1), table.t()
    parts = [torch.addmm(bias, part, columns).argmax(dim=1) for part in vectors.split(_CHUNK)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def count_and_sum(vectors: Tensor, codes: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """How many vectors (V, D) each of ``size`` codes got, (K,), and their sums, (K, D)."""
    ones = torch.ones_like(vectors[:, 0])
    counts = vectors.new_zeros(size).index_add_(0, codes, ones)
    sums = vectors.new_zeros(size, vectors.shape[1]).index_add_(0, codes, vectors)
    return counts, sums


def draw_rows(vectors: Tensor, num: int, generator: torch.Generator) -> Tensor:
    """Draw num rows of vectors (V, D), with repetition."""
    rows = torch.randint(vectors.shape[0], (num,), generator=generator, device=vectors.device)
    return vectors[rows]


def kmeans(vectors: Tensor, centres: Tensor, rounds: int, generator: torch.Generator) -> Tensor:
    """Move centres (K, D) to the means of the vectors (V, D) nearest to them, again and again.

    A centre that gets no vector starts anew at a random one.
    """
    for _ in range(rounds):
        counts, sums = count_and_sum(vectors, nearest(vectors, centres), centres.shape[0])
        means = sums / counts.clamp_min(1).unsqueeze(1)
        restarts = draw_rows(vectors, centres.shape[0], generator)
        centres = torch.where(counts.unsqueeze(1) > 0, means, restarts)
    return centres


@torch.no_grad()
def fit_codebooks(
    books: Sequence[Codebook],
    latents: Tensor,
    generator: torch.Generator,
    rounds: int = 15,
    restart: bool = True,
) -> None:
    """Fill the codebooks by k-means, each on what the ones before it leave over.

    Args:
        books: Codebooks, coarse first; changed in place.
        latents: (V, D) float32; some 20 rows for each code are enough.
        generator: Random generator of the latents' device.
        rounds: k-means rounds a codebook.
        restart: Start from random latents instead of the codes that stand in the codebook.
    """
    rest = latents
    for book in books:
        size = book.embed.shape[0]
        start = draw_rows(rest, size, generator) if restart else book.embed
        table = kmeans(rest, start, rounds, generator)
        codes = nearest(rest, table)
        share = count_and_sum(rest, codes, size)[0] / rest.shape[0]
        book.embed.copy_(table)
        book.cluster_size.copy_(share)
        book.embed_avg.copy_(table * share.unsqueeze(1))
        rest = rest - table[codes]


@dataclass
class Quantized:
    """What `ResidualTrainer.quantize` found; codes of every level, whatever a row used."""

    latents: Tensor  # (B, D, T): the sum of the levels a row uses
    codes: Tensor  # (Q, B * T) int64
    residuals: list[Tensor]  # Q times (B * T, D): what each level was asked to code


class ResidualTrainer:
    """Quantizes latents in training and lets the codebooks follow them.

    Args:
        books: The Q codebooks, coarse first; changed in place.
        generator: Random generator of their device.
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
        chance = torch.rand(batch_size, generator=generator, device=device)
        fewer = torch.randint(1, top + 1, (batch_size,), generator=generator, device=device)
        return torch.where(chance < drop, fewer, top)

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
    def update(self, quantized: Quantized) -> None:
        """Move every code towards the vectors that chose it, and revive the unused ones."""
        decay = self._decay()
        self.num_updates += 1
        revive = self.num_updates >= CHECK_DEAD_FROM and self.num_updates % CHECK_DEAD_EVERY == 0
        for level, book in enumerate(self.books):
            vectors = quantized.residuals[level]
            counts, sums = count_and_sum(vectors, quantized.codes[level], book.embed.shape[0])
            self.usage[level] += counts
            # shares instead of counts: the averages then mean the same at every batch size
            book.cluster_size.lerp_(counts / vectors.shape[0], 1 - decay)
            book.embed_avg.lerp_(sums / vectors.shape[0], 1 - decay)
            if revive:
                self._revive(book, vectors)
            book.embed.copy_(book.embed_avg / book.cluster_size.clamp_min(1e-20).unsqueeze(1))

    def _decay(self) -> float:
        """Short averages at first, while the encoder still moves fast."""
        return 0.9 if self.num_updates < 60 else 0.96 if self.num_updates < 300 else 0.99

    def _revive(self, book: Codebook, vectors: Tensor) -> None:
        average = 1 / book.embed.shape[0]
        dead = (book.cluster_size < DEAD_SHARE * average).unsqueeze(1)
        fresh = draw_rows(vectors, book.embed.shape[0], self.generator)
        book.embed_avg.copy_(torch.where(dead, fresh * average, book.embed_avg))
        book.cluster_size.copy_(torch.where(dead[:, 0], average, book.cluster_size))

    def read_usage(self) -> Tensor:
        """Counts (Q, K) of every code since the last reading."""
        counts = self.usage.clone()
        self.usage.zero_()
        return counts


def straight_through(latents: Tensor, quantized: Tensor) -> Tensor:
    """The quantized latents in value, the latents in gradient."""
    return latents + (quantized - latents).detach()


def commitment(latents: Tensor, quantized: Tensor, most: Tensor) -> Tensor:
    """Mean square distance of latents to their codes, relative to the variance of the latents.

    Relative, because otherwise shrinking all latents would be the cheapest way to lower it; but
    relative to `most` () at most, because otherwise a few latents that run away would raise the
    variance and so lower the pull that holds them back.
    """
    variance = latents.detach().var().clamp_min(1e-8).minimum(most)
    return (latents - quantized.detach()).square().mean() / variance


def perplexity(counts: Tensor) -> Tensor:
    """Effective number of codes, exp of the entropy of counts (..., K)."""
    share = counts / counts.sum(dim=-1, keepdim=True).clamp_min(1)
    return torch.exp(-(share * share.clamp_min(1e-12).log()).sum(dim=-1))
