import pytest
import torch

from valle.modules.sampling import GREEDY, Sampling, keep_top_k, keep_top_p, sample

LOGITS = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))


def drawn_share(how: Sampling, num: int = 4000) -> torch.Tensor:
    ids = sample(LOGITS.expand(num, -1), how, torch.Generator().manual_seed(0))
    return torch.bincount(ids, minlength=4) / num


def test_greedy_takes_the_likeliest():
    assert sample(torch.randn(3, 5, 9), GREEDY).shape == (3, 5)
    assert sample(LOGITS, GREEDY).item() == 0


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


def test_a_seed_repeats_its_draws():
    logits = torch.randn(5, 30)
    one, other = (sample(logits, Sampling(), torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("setting", "message"),
    [({"temperature": -1}, "temperature"), ({"top_k": -1}, "top_k"), ({"top_p": 0}, "top_p")],
)
def test_settings_that_cannot_be_are_named(setting, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**setting)
