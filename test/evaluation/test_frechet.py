import numpy as np
import pytest
import torch

from valle.evaluation import frechet
from valle.evaluation.bootstrap import NOTHING
from valle.evaluation.frechet import (
    fewest_vectors,
    frechet_distance,
    moments_of,
    paired_distance,
    split_distance,
)


def normal(num: int, dims: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((num, dims)))


def test_a_shift_costs_its_squared_length():
    points = normal(50)
    shift = torch.tensor([3.0, 4.0, 0, 0, 0, 0])
    assert frechet_distance(points, points + shift) == pytest.approx(25, rel=1e-9)
    assert frechet_distance(points, points) == pytest.approx(0, abs=1e-9)


def test_spread_costs_the_squared_difference_of_deviations():
    points = normal(50) - normal(50).mean(0)
    trace = float(torch.cov(points.T).trace())
    assert frechet_distance(points, 3 * points) == pytest.approx((3 - 1) ** 2 * trace, rel=1e-9)


def test_covariances_that_do_not_commute():
    """Against the matrix square root itself, in another order."""
    left, right = normal(80, 3), normal(90, 3, 1) @ normal(3, 3, 2)
    one, two = (torch.cov(x.T) for x in (left, right))
    roots = torch.linalg.eigvals(one @ two).real.clamp_min(0).sqrt()
    expected = (left.mean(0) - right.mean(0)).square().sum() + one.trace() + two.trace()
    expected -= 2 * roots.sum()
    assert frechet_distance(left, right) == pytest.approx(float(expected), rel=1e-9)
    assert frechet_distance(right, left) == pytest.approx(float(expected), rel=1e-9)


def test_small_sets_are_further_apart_than_large_ones():
    near, far = (frechet_distance(normal(n), normal(n, seed=1)) for n in (1000, 20))
    assert near < far / 5


def test_errors_name_their_cause():
    with pytest.raises(ValueError, match=r"6 dimensions needs more vectors than that, got 6"):
        frechet_distance(normal(6), normal(50))
    with pytest.raises(ValueError, match=r"\(50, 6\) and \(50, 5\), expected \(n, D\)"):
        frechet_distance(normal(50), normal(50, 5))


def recordings(num: int, seed: int, shift: float = 0.0) -> list[torch.Tensor]:
    """Vectors of recordings, those of each about a centre of its own."""
    centres = normal(num, seed=seed)
    return [shift + centres[i] + 0.3 * normal(12, seed=100 * seed + i) for i in range(num)]


TRUE = recordings(10, 0)


def test_the_floor_is_above_0_and_what_is_shifted_lies_above_the_floor():
    true = moments_of(TRUE)
    floor = split_distance(true, true, 0, 100)
    shifted = split_distance(moments_of([x + 2 for x in TRUE]), true, 0, 100)
    assert floor.mean > 0.5
    assert shifted.low > floor.high
    assert shifted.mean - floor.mean == pytest.approx(6 * 2**2, rel=0.2)
    assert floor.low <= floor.mean <= floor.high
    assert floor.num == 10


def test_another_draw_of_the_same_music_costs_about_the_floor_and_a_copy_no_less():
    true, alike = moments_of(TRUE), moments_of(recordings(10, 1))
    floor = split_distance(true, true, 0, 100)
    assert floor.low < split_distance(alike, true, 0).mean < 2 * floor.high
    assert paired_distance(true, true) == pytest.approx(0, abs=1e-9)
    assert paired_distance(alike, true) > 0


def test_the_same_call_gives_the_same_numbers():
    true = moments_of(TRUE)
    assert split_distance(true, true, 0, 20) == split_distance(true, true, 0, 20)
    assert split_distance(true, true, 0, 20) != split_distance(true, true, 1, 20)


def test_too_few_vectors_give_nothing():
    few = moments_of([x[:1] for x in TRUE])
    assert split_distance(few, few, 0, 20) is NOTHING
    assert split_distance(few, moments_of(TRUE), 0, 20) is NOTHING
    assert np.isnan(paired_distance(moments_of(TRUE[:1]), moments_of([TRUE[0][:5]])))


def test_no_recording_is_on_both_sides_and_both_ways_round_count():
    """One recording that lies far off is once in what was made, and once not, in every split."""
    splits = frechet._splits(np.random.default_rng(0), 9)
    for one, other in splits:
        assert one @ other == 0
        assert one.sum() == other.sum() == 4
    assert len({tuple(one) for one, _ in splits}) > 10
    lone = [x + 100 * (i == 0) for i, x in enumerate(TRUE)]
    made, true = moments_of(lone), moments_of(TRUE)
    floor = split_distance(true, true, 0).mean
    ways = [
        frechet._mean_distance(made, true, [pair[::step]])
        for pair in frechet._splits(np.random.default_rng(0), 10)
        for step in (1, -1)
    ]
    assert ways[::2] == pytest.approx(ways[1::2])  # each split is measured both ways round
    assert split_distance(made, true, 0).mean == pytest.approx(np.mean(ways), rel=1e-9)
    assert split_distance(made, true, 0).mean > floor + 100


def test_fewer_than_three_recordings_have_no_interval():
    for num in (2, 3):
        some = moments_of(TRUE[:num])
        found = split_distance(some, some, 0, 50)
        assert found.num == num
        assert found.mean > 0
        assert np.isnan(found.low) == np.isnan(found.high) == (num == 2)
    for seed in range(20):  # draws of one recording alone
        assert split_distance(some, some, seed, 1).num == 3


def test_the_interval_is_as_wide_as_distances_of_other_corpora_spread():
    """Resampling one corpus tells how far others would lie, if roughly; and it surrounds it."""
    tables = [moments_of(recordings(16, seed)) for seed in range(1, 41)]
    spread = np.std([split_distance(table, table, 0).mean for table in tables])
    found = [split_distance(table, table, 0, 60) for table in tables[:6]]
    widths = [interval.high - interval.low for interval in found]
    assert 0.5 < np.mean(widths) / (2 * 1.96 * spread) < 2
    for interval in found:
        assert interval.low < interval.mean < interval.high


def test_draws_without_the_one_recording_that_is_far_off_are_in_the_interval():
    """In every split of all recordings it is on one side; in many draws it is on none."""
    true = moments_of([x + 100 * (i == 0) for i, x in enumerate(TRUE)])
    found = split_distance(true, true, 0, 100)
    assert found.low < 0.2 * found.mean


def test_many_dimensions_are_drawn_less_often(monkeypatch):
    measured = []
    monkeypatch.setattr(
        frechet, "_mean_distance", lambda m, t, splits: measured.append(splits) or 1
    )
    for dims, num_draws, num_splits in ((64, 150, 4), (65, 100, 1)):
        true = moments_of([normal(40, dims, seed) for seed in range(6)])
        measured.clear()
        split_distance(true, true, 0, 150)
        assert [len(splits) for splits in measured] == [20] + [num_splits] * num_draws


def test_the_smallest_half_is_known_before():
    assert fewest_vectors(np.array([3.0, 3.0, 3.0, 3.0, 100.0]), 0) == 6
    assert fewest_vectors(np.array([5.0]), 0) == 0


def test_moments_join_recordings():
    mean, covariance = moments_of(TRUE).gaussian(np.array([1.0, 2.0] + [0.0] * 8))
    joined = torch.cat([TRUE[0], TRUE[1], TRUE[1]])
    np.testing.assert_allclose(mean, joined.mean(0))
    np.testing.assert_allclose(covariance, torch.cov(joined.T))
