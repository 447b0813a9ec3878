"""Unigram and bigram models of codes: what a transformer must beat to have learned anything.

Codes of one quantizer are modelled by themselves. V codebook size, T frames.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_DISCOUNTS = (0.1, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


@dataclass(frozen=True)
class Score:
    """Mean cost in nats and share of hits of the likeliest code, over the frames scored."""

    loss: float
    accuracy: float


class Unigram:
    """How often each code occurs; counts are discounted in favour of codes never seen."""

    def __init__(self, sequences: Sequence[np.ndarray], codebook_size: int, discount: float):
        counts = np.bincount(np.concatenate(sequences), minlength=codebook_size)
        total = counts.sum()
        freed = discount * (counts > 0).sum() / total
        self.probabilities = np.maximum(counts - discount, 0) / total + freed / codebook_size

    def score(self, sequence: np.ndarray, start: int) -> tuple[float, int]:
        """Summed cost and hits on sequence[start:]."""
        scored = sequence[start:]
        cost = -np.log(self.probabilities[scored]).sum()
        return float(cost), int((scored == self.probabilities.argmax()).sum())


class Bigram:
    """The next code given the one before, by absolute discounting down to a unigram.

    p(c | b) = max(n(b, c) - d, 0) / n(b) + d * kinds(b) / n(b) * p(c)
    """

    def __init__(self, sequences: Sequence[np.ndarray], codebook_size: int, discount: float):
        V = codebook_size
        self.unigram = Unigram(sequences, V, discount).probabilities
        pairs = np.concatenate([s[:-1] * V + s[1:] for s in sequences])
        counts = np.bincount(pairs, minlength=V * V).reshape(V, V)
        totals = np.maximum(counts.sum(1), 1)[:, None]
        freed = discount * (counts > 0).sum(1)[:, None] / totals
        freed[counts.sum(1) == 0] = 1.0  # never seen: fall back on the unigram
        self.table = np.maximum(counts - discount, 0) / totals + freed * self.unigram
        self.likeliest = self.table.argmax(1)

    def score(self, sequence: np.ndarray, start: int) -> tuple[float, int]:
        """Summed cost and hits on sequence[start:], start >= 1."""
        before, scored = sequence[start - 1 : -1], sequence[start:]
        cost = -np.log(self.table[before, scored]).sum()
        return float(cost), int((scored == self.likeliest[before]).sum())


def best_score(
    kind: type[Unigram] | type[Bigram],
    train: Sequence[np.ndarray],
    held_out: Sequence[np.ndarray],
    starts: Sequence[int],
    codebook_size: int,
) -> Score:
    """Score a model whose discount was chosen on a tenth of the training sequences.

    Args:
      kind: Unigram or Bigram.
      train: Sequences (T,) of one quantizer's codes.
      held_out: Sequences to score, each from its own start on.
      starts: Where scoring begins in each.
      codebook_size: V.
    """
    part, rest = list(train[::10]), [s for i, s in enumerate(train) if i % 10] or list(train)

    def cost(discount: float) -> float:
        model = kind(rest, codebook_size, discount)
        return sum(model.score(s, 1)[0] for s in part)

    model = kind(train, codebook_size, min(_DISCOUNTS, key=cost))
    scores = [model.score(s, start) for s, start in zip(held_out, starts, strict=True)]
    num_frames = sum(len(s) - start for s, start in zip(held_out, starts, strict=True))
    losses, hits = zip(*scores, strict=True)
    return Score(sum(losses) / num_frames, sum(hits) / num_frames)
