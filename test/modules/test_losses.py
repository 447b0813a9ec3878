import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from valle.modules.losses import frame_scores, masked_cross_entropy, target_ranks


def test_sums_are_over_real_frames_alone():
    logits = torch.randn(2, 5, 7)
    targets = torch.randint(0, 7, (2, 5))
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    loss = masked_cross_entropy(logits, targets, mask)
    by_hand = [
        -sum(logits[b, t].log_softmax(-1)[targets[b, t]] for t in range(n))
        for b, n in enumerate([5, 2])
    ]
    torch.testing.assert_close(loss.total, torch.stack(by_hand))
    assert loss.num_frames.tolist() == [5, 2]


def test_what_padding_holds_does_not_matter():
    logits = torch.randn(1, 4, 7)
    mask = torch.tensor([[True, True, False, False]])
    wild = logits.clone()
    wild[:, 2:] = torch.nan
    one = masked_cross_entropy(logits, torch.tensor([[1, 2, 3, 4]]), mask)
    other = masked_cross_entropy(wild, torch.tensor([[1, 2, -1, 999]]), mask)
    assert torch.equal(one.total, other.total)


def test_uniform_logits_cost_log_v():
    loss = masked_cross_entropy(
        torch.zeros(1, 3, 20), torch.zeros(1, 3, dtype=torch.long), torch.ones(1, 3).bool()
    )
    assert loss.mean().item() == pytest.approx(math.log(20))


def test_half_precision_is_summed_in_float32():
    logits = torch.zeros(1, 4000, 20, dtype=torch.bfloat16)
    loss = masked_cross_entropy(
        logits, torch.zeros(1, 4000, dtype=torch.long), torch.ones(1, 4000).bool()
    )
    assert loss.mean().item() == pytest.approx(math.log(20), rel=1e-5)


def test_shapes_that_disagree_are_named():
    with pytest.raises(ValueError, match=r"\(1, 3, 20\), \(1, 4\) and \(1, 3\)"):
        masked_cross_entropy(
            torch.zeros(1, 3, 20), torch.zeros(1, 4).long(), torch.ones(1, 3).bool()
        )


@given(st.integers(0, 2**16))
def test_ranks_agree_with_sorting(seed):
    logits = torch.randn(3, 15, generator=torch.Generator().manual_seed(seed))
    targets = torch.tensor([0, 7, 14])
    order = logits.argsort(-1, descending=True)
    assert (
        target_ranks(logits, targets).tolist()
        == (order == targets[:, None]).nonzero()[:, 1].tolist()
    )


def test_constant_logits_hit_nothing():
    mask = torch.ones(1, 5).bool()
    scores = frame_scores(torch.zeros(1, 5, 20), torch.zeros(1, 5).long(), mask)
    assert scores.accuracy.total.item() == 0
    assert scores.top10_accuracy.total.item() == 0


def test_accuracies_count_hits_on_real_frames():
    logits = torch.zeros(1, 4, 20)
    logits[0, :, :12] = torch.arange(12, 0, -1.0)  # id 0 is first, id 9 tenth, id 10 eleventh
    targets = torch.tensor([[0, 9, 10, 0]])
    scores = frame_scores(logits, targets, torch.tensor([[True, True, True, False]]))
    assert scores.accuracy.total.tolist() == [1]
    assert scores.top10_accuracy.total.tolist() == [2]
    assert scores.loss.num_frames.tolist() == [3]
