"""Fréchet distance between two sets of vectors, and what it takes to compare such distances.

The distance of two finite sets is never 0, even if both are of the same music, and the smaller the
sets are the larger it is. So all rows of a table are measured at one size, beside a floor:

- The recordings are parted into two halves at random, NUM_SPLITS times, the same for every row.
- A row's distance is that of its continuations of one half to the *true* continuations of the
  other, both ways round, averaged over the splits. No recording is on both sides, so that nothing
  is gained by copying; the row "true" is the floor that a perfect model reaches.
- Interval: recordings are drawn with replacement, parted so that no recording is on both sides,
  and the deviations of these draws from their mean are laid about the distance. (The draws
  themselves are larger: a set with doubles is a smaller set.) Fewer than three recordings can be
  parted in one way alone, and so have no interval.
- The time of a distance grows with the cube of the dimensions. Beyond MANY_DIMENSIONS there are
  fewer draws, each parted once: the interval is rougher, and wider rather than narrower, as the
  chance of the parting is not averaged out of it.

V recordings, n vectors, D dimensions.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from valle.evaluation.bootstrap import NOTHING, Interval, draw_recordings, quantiles

NUM_SPLITS = 20
MANY_DIMENSIONS = 64
MOST_DRAWS = 100  # of many dimensions
_SPLITS_A_DRAW = 4

Halves = tuple[np.ndarray, np.ndarray]
"""How often each recording is in one half, (V,), and in the other, (V,)."""


class Moments(NamedTuple):
    """Sums over the vectors of each of V recordings: enough for any union of them.

    Attributes:
      counts: (V,) float64, vectors.
      sums: (V, D) float64.
      products: (V, D, D) float64, sums of outer products.
    """

    counts: np.ndarray
    sums: np.ndarray
    products: np.ndarray

    def gaussian(self, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean (D,) and covariance (D, D) where each recording is there so many times, (V,)."""
        num = times @ self.counts
        mean = times @ self.sums / num
        second = np.tensordot(times, self.products, 1)
        return mean, (second - num * np.outer(mean, mean)) / max(num - 1, 1)


def moments_of(vectors: Sequence[Tensor]) -> Moments:
    """Moments of recordings given as (n, D) each, n of its own."""
    parts = [part.double().numpy() for part in vectors]
    return Moments(
        np.array([len(part) for part in parts], dtype=np.float64),
        np.stack([part.sum(0) for part in parts]),
        np.stack([part.T @ part for part in parts]),
    )


def frechet_distance(left: Tensor, right: Tensor) -> float:
    """Fréchet distance of the Gaussians fitted to two sets, (n, D) and (m, D); in float64.

    |mean - mean'|^2 + trace(C + C' - 2 (C^1/2 C' C^1/2)^1/2): the trace of the last root is the sum
    of the square roots of a symmetric matrix's eigenvalues. A set needs more vectors than
    dimensions, as its covariance would else be made up in the directions it has not seen.

    Raises:
      ValueError: other shapes, or too few vectors.
    """
    if left.ndim != 2 or right.ndim != 2 or left.shape[1] != right.shape[1]:
        raise ValueError(
            f"sets are {tuple(left.shape)} and {tuple(right.shape)}, expected (n, D) and (m, D)"
        )
    check_size(min(len(left), len(right)), left.shape[1])
    one = np.ones(1)
    return _between(moments_of([left]).gaussian(one), moments_of([right]).gaussian(one))


def check_size(num_vectors: float, num_dimensions: int) -> None:
    """Refuse sets too small for their dimensions.

    Raises:
      ValueError: With both numbers.
    """
    if num_vectors <= num_dimensions:
        raise ValueError(
            f"a Fréchet distance in {num_dimensions} dimensions needs more vectors than that, got "
            f"{num_vectors:g}: give more or longer passages, or an embedding of fewer dimensions"
        )


def _between(left: tuple[np.ndarray, np.ndarray], right: tuple[np.ndarray, np.ndarray]) -> float:
    (mean, cov), (other_mean, other_cov) = left, right
    values, vectors = np.linalg.eigh(cov)
    root = vectors * np.sqrt(values.clip(0))  # root @ root.T is cov
    shared = np.linalg.eigvalsh(root.T @ other_cov @ root).clip(0)
    trace = np.trace(cov) + np.trace(other_cov) - 2 * np.sqrt(shared).sum()
    return max(float(((mean - other_mean) ** 2).sum() + trace), 0.0)  # 0 but for rounding


def split_distance(made: Moments, true: Moments, seed: int, num_resamples: int = 0) -> Interval:
    """Distance of what was made of one half of the recordings to what truly is in the other.

    Args:
      made: of V recordings, what a row made of them.
      true: of the same recordings.
      seed: of the splits and the draws.
      num_resamples: of the interval; 0 gives none (nan). Of many dimensions MOST_DRAWS at most.

    Returns:
      As the file's docstring says. Nothing (nan, of 0 recordings) where a half has no more vectors
      than dimensions; bounds of nan where there are fewer than three recordings.
    """
    V, D = true.sums.shape
    if min(fewest_vectors(m.counts, seed) for m in (made, true)) <= D:
        return NOTHING
    rng = np.random.default_rng(seed)
    distance = _mean_distance(made, true, _splits(rng, V))
    deviations = _deviations(made, true, rng, draw_recordings(V, num_resamples, seed))
    if not len(deviations):
        return Interval(distance, float("nan"), float("nan"), V)
    low, high = quantiles(deviations)
    return Interval(distance, max(distance + low, 0.0), distance + high, V)


def fewest_vectors(counts: np.ndarray, seed: int) -> float:
    """Vectors of the smallest half, where the recordings have (V,) of them."""
    splits = _splits(np.random.default_rng(seed), len(counts))
    return min(float(half @ counts) for pair in splits for half in pair)


def _splits(rng: np.random.Generator, num_recordings: int) -> list[Halves]:
    return [_halves(rng, np.ones(num_recordings)) for _ in range(NUM_SPLITS)]


def _deviations(
    made: Moments, true: Moments, rng: np.random.Generator, draws: np.ndarray
) -> np.ndarray:
    """How far the distance of each draw of recordings lies from the mean of all draws'.

    Empty where there are no draws, or fewer than three recordings.
    """
    V, D = true.sums.shape
    num_splits = _SPLITS_A_DRAW
    if D > MANY_DIMENSIONS:
        draws, num_splits = draws[:MOST_DRAWS], 1
    drawn = np.array(
        [
            _mean_distance(made, true, [_halves(rng, times) for _ in range(num_splits)])
            for times in draws.astype(np.float64)
            if V > 2 and np.count_nonzero(times) > 1  # one recording cannot be parted
        ]
    )
    return drawn - drawn.mean() if len(drawn) else drawn


def paired_distance(made: Moments, true: Moments) -> float:
    """Distance of all that was made to all that is true; nan where that is too little.

    It gains by what the pieces share, and so has no floor to be held against.
    """
    everything = np.ones(len(true.counts))
    if min(everything @ m.counts for m in (made, true)) <= true.sums.shape[1]:
        return float("nan")
    return _between(made.gaussian(everything), true.gaussian(everything))


def _halves(rng: np.random.Generator, times: np.ndarray) -> Halves:
    """Part the recordings that are there; an odd one is in neither half. (V,) and (V,) times."""
    order = rng.permutation(np.flatnonzero(times))
    half = len(order) // 2
    first, second = np.zeros_like(times), np.zeros_like(times)
    for part, chosen in ((first, order[:half]), (second, order[half : 2 * half])):
        part[chosen] = times[chosen]
    return first, second


def _mean_distance(made: Moments, true: Moments, splits: Sequence[Halves]) -> float:
    """Both ways round, over all splits."""
    pairs = [pair for one, other in splits for pair in ((one, other), (other, one))]
    return float(np.mean([_between(made.gaussian(a), true.gaussian(b)) for a, b in pairs]))
