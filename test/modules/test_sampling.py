import pytest
import torch

from valle.modules.sampling import (
    GREEDY,
    RowDraws,
    Sampling,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    row_generators,
    sample,
    sample_unlike,
)

LOGITS = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))


def drawn_share(how: Sampling, num: int = 4000) -> torch.Tensor:
    uniforms = torch.rand(num, generator=torch.Generator().manual_seed(0))
    ids = sample(LOGITS.expand(num, -1), how, uniforms)
    return torch.bincount(ids, minlength=4) / num


def test_greedy_takes_the_likeliest():
    assert sample(torch.randn(3, 5, 9), GREEDY, torch.rand(3, 5)).shape == (3, 5)
    assert sample(LOGITS, GREEDY, torch.rand(())).item() == 0


def test_draws_follow_the_distribution():
    torch.testing.assert_close(drawn_share(Sampling()), LOGITS.exp(), atol=0.03, rtol=0)


def test_temperature_sharpens_as_a_power():
    sharp = (LOGITS.exp() ** 2) / (LOGITS.exp() ** 2).sum()
    torch.testing.assert_close(drawn_share(Sampling(temperature=0.5)), sharp, atol=0.03, rtol=0)


def test_top_k_keeps_k():
    assert keep_top_k(LOGITS, 2).isfinite().tolist() == [True, True, False, False]
    assert drawn_share(Sampling(top_k=2))[2:].sum() == 0
    assert torch.equal(keep_top_k(LOGITS, 0), LOGITS)
    assert torch.equal(keep_top_k(LOGITS, 99), LOGITS)


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.01, 1), (0.49, 1), (0.6, 2), (0.8, 2), (0.9, 3), (1.0, 4)]
)
def test_top_p_keeps_the_fewest_that_reach_it(top_p, kept):
    order = torch.tensor([2, 0, 3, 1])
    assert keep_top_p(LOGITS[order], top_p).isfinite().sum().item() == kept


def test_min_p_keeps_what_is_near_the_likeliest():
    order = torch.tensor([2, 0, 3, 1])
    kept = {0.0: 4, 0.05: 4, 0.2: 3, 0.5: 2, 0.9: 1}
    for min_p, number in kept.items():
        assert keep_min_p(LOGITS[order], min_p).isfinite().sum().item() == number
    assert drawn_share(Sampling(min_p=0.5))[2:].sum() == 0


def test_what_has_no_probability_is_never_drawn():
    """The ends of the unit interval must not reach past the ids that may be drawn."""
    logits = torch.tensor([-torch.inf, 0.0, 3.0, -torch.inf, 1.0, -torch.inf]).repeat(2000, 1)
    uniforms = torch.cat([torch.zeros(1000), torch.full((1000,), 1 - 2**-24)])
    logits[:, 1] += torch.linspace(0, 5, 2000)
    ids = sample(logits, Sampling(), uniforms)
    assert ids.unique().tolist() == [1, 4]


def test_repetition_draws_another_id():
    how = Sampling(temperature=0.0, repetition_window=4, repetition_threshold=0.25)
    logits, uniforms = LOGITS.expand(4000, -1), torch.rand(4000, 2)
    fresh = torch.tensor([0, 1, 2, 3]).expand(4000, -1)  # the likeliest makes up a quarter: allowed
    assert sample_unlike(logits, how, uniforms, fresh).unique().tolist() == [0]
    stale = torch.tensor([0, 1, 0, -1]).expand(4000, -1)
    shares = torch.bincount(sample_unlike(logits, how, uniforms, stale), minlength=4) / 4000
    expected = torch.tensor([0, 0.6, 0.3, 0.1])
    torch.testing.assert_close(shares, expected, atol=0.03, rtol=0)


def test_rows_draw_from_their_own_generators():
    def draws(seeds, *takes):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        source = RowDraws(generators, 3, torch.device("cpu"))
        return torch.cat([source.take(n) for n in takes], dim=1)

    together = draws([1, 2, 3], 40)
    assert together.shape == (3, 40, 3)
    assert torch.equal(together[1:2], draws([2], 40))
    assert torch.equal(together, draws([1, 2, 3], 1, 7, 16, 16))
    assert together.min() >= 0
    assert together.max() < 1


def test_a_rows_seed_does_not_depend_on_the_rows_after_it():
    def numbers(num_rows):
        source = torch.Generator().manual_seed(5)
        return [torch.rand((), generator=g).item() for g in row_generators(num_rows, source)]

    assert numbers(8)[:3] == numbers(3)
    assert len(set(numbers(8))) == 8


def test_row_generators_are_one_a_row():
    mine = [torch.Generator(), torch.Generator()]
    assert row_generators(2, mine) == mine
    with pytest.raises(ValueError, match="3 rows need as many generators, got 2"):
        row_generators(3, mine)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"temperature": -1}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 0}, "top_p"),
        ({"min_p": 1}, "min_p"),
        ({"repetition_window": -1}, "repetition_window"),
        ({"repetition_threshold": 2}, "repetition_threshold"),
    ],
)
def test_settings_that_cannot_be_are_named(setting, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**setting)
