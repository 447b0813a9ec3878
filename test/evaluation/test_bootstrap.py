import math

import numpy as np
import pytest

from valle.evaluation.bootstrap import NOTHING, bootstrap_mean, quantiles

# 10 recordings of 8 cuts; cuts of one recording are alike
LEVELS = np.random.default_rng(0).standard_normal(10)
ALIKE = np.repeat(LEVELS, 8).tolist()
RECORDINGS = [f"r{i // 8}" for i in range(80)]


def test_cuts_of_a_recording_are_no_independent_draws():
    by_recording = bootstrap_mean(ALIKE, RECORDINGS, 2000, 0)
    by_cut = bootstrap_mean(ALIKE, [str(i) for i in range(80)], 2000, 0)
    width = by_recording.high - by_recording.low
    assert width > 2 * (by_cut.high - by_cut.low)
    assert by_recording.num == 10
    # about 2 x 1.96 standard errors of ten independent values
    assert width == pytest.approx(2 * 1.96 * LEVELS.std() / math.sqrt(10), rel=0.15)
    assert by_recording.low < by_recording.mean < by_recording.high
    assert by_recording.mean == pytest.approx(np.mean(ALIKE))


def test_every_passage_counts_the_same():
    assert bootstrap_mean([1.0, 1.0, 4.0], ["a", "a", "b"], 10, 0).mean == 2.0


def test_the_same_call_gives_the_same_numbers_and_another_seed_others():
    assert bootstrap_mean(ALIKE, RECORDINGS, 100, 3) == bootstrap_mean(ALIKE, RECORDINGS, 100, 3)
    assert bootstrap_mean(ALIKE, RECORDINGS, 100, 3) != bootstrap_mean(ALIKE, RECORDINGS, 100, 4)


def test_what_is_not_there_is_left_out():
    assert bootstrap_mean([1.0, math.nan, 3.0], ["a", "b", "c"], 50, 0)[::3] == (2.0, 2)
    assert bootstrap_mean([math.nan], ["a"], 50, 0) is NOTHING
    assert NOTHING.num == 0


def test_one_recording_has_a_mean_and_no_interval():
    mean, low, high, num = bootstrap_mean([1.0, 3.0], ["a", "a"], 50, 0)
    assert (mean, num) == (2.0, 1)
    assert math.isnan(low)
    assert math.isnan(high)


def test_the_middle_95_percent():
    assert quantiles(np.arange(1001.0)) == pytest.approx((25, 975))


def test_the_interval_is_as_wide_as_means_of_other_corpora_spread():
    """Recordings of unequal numbers of passages, drawn anew."""
    rng = np.random.default_rng(1)

    def corpus() -> tuple[list[float], list[str]]:
        owners = np.repeat(np.arange(40), rng.integers(1, 8, size=40))
        return (10 + rng.standard_normal(40))[owners].tolist(), [str(i) for i in owners]

    found = [bootstrap_mean(*corpus(), 400, 0) for _ in range(150)]
    spread = np.std([interval.mean for interval in found])
    width = np.mean([interval.high - interval.low for interval in found])
    assert width == pytest.approx(2 * 1.96 * spread, rel=0.12)
