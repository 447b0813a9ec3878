"""Intervals by bootstrap over recordings: cuts of one piece are alike and no independent draws.

P passages, R recordings.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

COVERED = 0.95


class Interval(NamedTuple):
    """A mean and where 95 % of the resampled means lie.

    Attributes:
      low: and `high`; nan where too few recordings tell how far others would lie from the mean.
      num: recordings behind it; 0, with nan for all else, where there was nothing to measure.
    """

    mean: float
    low: float
    high: float
    num: int


NOTHING = Interval(float("nan"), float("nan"), float("nan"), 0)


def draw_recordings(num_recordings: int, num_resamples: int, seed: int) -> np.ndarray:
    """How often each recording is drawn in each resample, (num_resamples, R) int64."""
    chances = np.full(num_recordings, 1 / num_recordings)
    return np.random.default_rng(seed).multinomial(num_recordings, chances, size=num_resamples)


def bootstrap_mean(
    values: Sequence[float], recordings: Sequence[str], num_resamples: int, seed: int
) -> Interval:
    """The mean of P values and its interval, recordings drawn with replacement.

    Of one recording there is a mean, but no interval (nan): every draw would be the same.

    Args:
      values: of the passages; nan where a passage has none, and is left out.
      recordings: (P,) which recording each passage is of.
      num_resamples: how many draws.
      seed: of the draws; the same seed draws the same recordings for every measure.
    """
    kept = [(v, r) for v, r in zip(values, recordings, strict=True) if not np.isnan(v)]
    if not kept:
        return NOTHING
    _, owner = np.unique([recording for _, recording in kept], return_inverse=True)
    sums = np.bincount(owner, weights=[value for value, _ in kept])
    counts = np.bincount(owner)
    mean = float(sums.sum() / counts.sum())
    if len(counts) == 1:
        return Interval(mean, math.nan, math.nan, 1)
    draws = draw_recordings(len(counts), num_resamples, seed)
    means = (draws @ sums) / (draws @ counts)
    return Interval(mean, *quantiles(means), len(counts))


def quantiles(resampled: np.ndarray) -> tuple[float, float]:
    """Where the middle 95 % of the resampled values begin and end."""
    rest = (1 - COVERED) / 2
    low, high = np.quantile(resampled, [rest, 1 - rest])
    return float(low), float(high)
