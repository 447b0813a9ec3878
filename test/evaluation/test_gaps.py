import pytest
import torch
from conftest import make_model

from valle.data import middle_gaps, split_gaps
from valle.evaluation.gaps import BEFORE_ALONE, BOTH_SIDES, WRONG_AFTER, gap_costs
from valle.evaluation.likelihood import FrameCosts, frame_costs

LENS, OTHER_LENS = torch.tensor([30, 20, 25]), torch.tensor([30, 9, 40])


def codes(seed: int, num_frames: int) -> torch.Tensor:
    return torch.randint(20, (3, num_frames, 3), generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def model():
    model = make_model(ahead_frames=8)
    with torch.no_grad():
        model.ar.ahead_mark.normal_()
    return model


def real(costs: FrameCosts) -> torch.Tensor:
    return costs.nats[costs.frames]


def test_the_same_frames_are_scored_in_three_ways(model):
    found = gap_costs(model, codes(1, 30), LENS, codes(2, 40), OTHER_LENS)
    assert list(found) == [BOTH_SIDES, WRONG_AFTER, BEFORE_ALONE]
    for costs in found.values():
        assert costs.frames.sum(1).tolist() == [6, 4, 5]
    pairs = [(BOTH_SIDES, WRONG_AFTER), (BOTH_SIDES, BEFORE_ALONE), (WRONG_AFTER, BEFORE_ALONE)]
    for one, other in pairs:
        for q in range(3):  # the AR half hears what follows, and so does the NAR half
            of_one, of_other = (real(found[name])[:, q] for name in (one, other))
            assert not torch.allclose(of_one, of_other, atol=1e-3), q


def test_without_another_piece_there_is_no_wrong_one(model):
    found = gap_costs(model, codes(1, 30), LENS)
    assert list(found) == [BOTH_SIDES, BEFORE_ALONE]


def test_before_alone_is_a_continuation(model):
    split = split_gaps(codes(1, 30), LENS, *middle_gaps(LENS))
    found = gap_costs(model, codes(1, 30), LENS, codes(2, 40), OTHER_LENS)
    torch.testing.assert_close(real(found[BEFORE_ALONE]), real(frame_costs(model, *split[:4])))


def test_another_piece_that_is_the_same_one_costs_the_same(model):
    found = gap_costs(model, codes(1, 30), LENS, codes(1, 30), LENS)
    torch.testing.assert_close(real(found[WRONG_AFTER]), real(found[BOTH_SIDES]))


def test_a_piece_too_short_to_lend_frames_lends_its_last(model):
    lens = torch.tensor([30, 30, 30])
    found = gap_costs(model, codes(1, 30), lens, codes(2, 30), torch.tensor([30, 5, 1]))
    assert found[WRONG_AFTER].nats.isfinite().all()
