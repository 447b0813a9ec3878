"""Codebooks of a residual quantizer: nearest codes, k-means, how evenly they are used.

`transformers.EncodecModel` only looks codes up; its codebooks are buffers that start at zero.
What follows fills them.

Letters: V vectors, D latent width, K codebook size.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

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
      latents: (V, D) float32; 20 rows for each code are the least, 200 fit what was not seen.
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
        _set(book, table, count_and_sum(rest, codes, size)[0] / rest.shape[0])
        rest = rest - table[codes]


@torch.no_grad()
def refresh_averages(books: Sequence[Codebook], latents: Tensor) -> None:
    """Begin moving averages anew around codes that stay as they are.

    What a file keeps of the averages may be rounded or counted otherwise than here.

    Args:
      books: Codebooks, coarse first; their averages are changed in place.
      latents: (V, D) float32, from which it is counted how often each code is used.
    """
    rest = latents
    for book in books:
        size = book.embed.shape[0]
        codes = nearest(rest, book.embed)
        counts = count_and_sum(rest, codes, size)[0]
        # as if each code had been seen a half time more: one without a share would be at infinity
        _set(book, book.embed.clone(), (counts + 0.5) / (rest.shape[0] + 0.5 * size))
        rest = rest - book.embed[codes]


def _set(book: Codebook, table: Tensor, share: Tensor) -> None:
    book.embed.copy_(table)
    book.cluster_size.copy_(share)
    book.embed_avg.copy_(table * share.unsqueeze(1))


def perplexity(counts: Tensor) -> Tensor:
    """Effective number of codes, exp of the entropy of counts (..., K)."""
    share = counts / counts.sum(dim=-1, keepdim=True).clamp_min(1)
    return torch.exp(-(share * share.clamp_min(1e-12).log()).sum(dim=-1))
