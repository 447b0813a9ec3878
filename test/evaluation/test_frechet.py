import numpy as np
import pytest
import torch

from valle.evaluation.bootstrap import NOTHING
from valle.evaluation.frechet import (
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


def test_moments_join_recordings():
    mean, covariance = moments_of(TRUE).gaussian(np.array([1.0, 2.0] + [0.0] * 8))
    joined = torch.cat([TRUE[0], TRUE[1], TRUE[1]])
    np.testing.assert_allclose(mean, joined.mean(0))
    np.testing.assert_allclose(covariance, torch.cov(joined.T))
