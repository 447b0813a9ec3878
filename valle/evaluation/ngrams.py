"""Uni-, bi- and trigrams of codes: what a transformer must beat to have learned anything.

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
        wide = [s.astype(np.int64) for s in sequences]
        pairs = np.concatenate([s[:-1] * V + s[1:] for s in wide])
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


class Trigram:
    """The next code given the two before, by absolute discounting down to a bigram.

    p(c | a, b) = max(n(a, b, c) - d, 0) / n(a, b) + d * kinds(a, b) / n(a, b) * p(c | b)

    Few of the V^3 triples occur, and only those are kept, sorted.
    """

    def __init__(self, sequences: Sequence[np.ndarray], codebook_size: int, discount: float):
        self.V, self.discount = codebook_size, discount
        self.pairs = Bigram(sequences, codebook_size, discount).table
        wide = [s.astype(np.int64) for s in sequences]
        triples = np.concatenate([(s[:-2] * self.V + s[1:-1]) * self.V + s[2:] for s in wide])
        keys, self.counts = np.unique(triples, return_counts=True)
        self.last = keys % self.V
        self.contexts, first = np.unique(keys // self.V, return_index=True)
        self.edges = np.append(first, len(keys))  # of the triples of each context

    def probabilities(self, before: int, last: int) -> np.ndarray:
        """(V,) of the next code after two."""
        context = before * self.V + last
        place = int(np.searchsorted(self.contexts, context))
        if place == len(self.contexts) or self.contexts[place] != context:
            return self.pairs[last]  # never seen: fall back on the bigram
        span = slice(self.edges[place], self.edges[place + 1])
        total = self.counts[span].sum()
        row = self.pairs[last] * (self.discount * (span.stop - span.start) / total)
        row[self.last[span]] += (self.counts[span] - self.discount) / total
        return row

    def score(self, sequence: np.ndarray, start: int) -> tuple[float, int]:
        """Summed cost and hits on sequence[start:], start >= 1."""
        cost, hits = 0.0, 0
        for t in range(start, len(sequence)):
            last = int(sequence[t - 1])
            row = self.pairs[last] if t < 2 else self.probabilities(int(sequence[t - 2]), last)
            cost -= float(np.log(row[sequence[t]]))
            hits += int(row.argmax() == sequence[t])
        return cost, hits


def best_score(
    kind: type[Unigram] | type[Bigram] | type[Trigram],
    train: Sequence[np.ndarray],
    held_out: Sequence[np.ndarray],
    starts: Sequence[int],
    codebook_size: int,
) -> Score:
    """Score a model whose discount was chosen on a tenth of the training sequences.

    Args:
      kind: Unigram, Bigram or Trigram.
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
