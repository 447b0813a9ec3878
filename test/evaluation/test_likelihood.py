"""Costs of true continuations: those of the loss, where they should be, and what they add up to."""

import math

import pytest
import torch
from conftest import make_model

from valle.data import split_prompt
from valle.evaluation import FrameCosts, Likelihood, LikelihoodMeter, frame_costs, prompts_before

LENS = torch.tensor([30, 21, 26])


@pytest.fixture
def model():
    return make_model().eval()


@pytest.fixture
def codes(model):
    shape = (3, 30, model.config.num_quantizers)
    return torch.randint(model.config.num_audio_tokens, shape, generator=seeded())


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_the_sums_are_those_of_the_loss(model, codes):
    batch = split_prompt(codes, LENS, 0.4)
    metrics = model(**batch._asdict()).metrics
    meter = LikelihoodMeter(7)
    meter.add(frame_costs(model, *batch))
    found = meter.overall()
    assert found.num_frames == int(batch.y_lens.sum())
    for q in range(model.config.num_quantizers):
        assert found.nats[q] == pytest.approx(metrics[f"loss_q{q + 1}"].mean().item(), rel=1e-5)
        assert found.top1[q] == pytest.approx(metrics[f"accuracy_q{q + 1}"].mean().item())
    assert found.top10[0] == pytest.approx(metrics["ArTop10Accuracy"].mean().item(), rel=1e-5)
    nar = sum(found.top10[1:]) / len(found.top10[1:])
    assert nar == pytest.approx(metrics["NarTop10Accuracy"].mean().item(), rel=1e-5)


def test_rows_and_padding_change_nothing(model, codes):
    batch = split_prompt(codes, LENS, 0.4)
    together = frame_costs(model, *batch)
    for row in range(3):
        alone = frame_costs(model, *split_prompt(codes[row : row + 1], LENS[row : row + 1], 0.4))
        size = alone.nats.shape[1]
        torch.testing.assert_close(together.nats[row, :size], alone.nats[0], atol=1e-4, rtol=1e-4)
        assert together.frames[row].sum() == size


def test_costs_stand_at_their_positions():
    nats = torch.arange(10.0)[None, :, None].expand(2, 10, 2) * torch.tensor([1.0, 10.0])
    ranks = torch.tensor([0, 5, 50] * 10)[:10][None, :, None].expand(2, 10, 2)
    frames = torch.arange(10) < torch.tensor([[10], [4]])
    meter = LikelihoodMeter(4)
    meter.add(FrameCosts(nats, ranks, frames))
    bins = meter.by_position()
    assert [part.num_frames for part in bins] == [8, 4, 2]
    assert [part.nats for part in bins] == [[1.5, 15.0], [5.5, 55.0], [8.5, 85.0]]
    assert bins[0].top1 == [0.5, 0.5]  # frames 0 and 3
    assert bins[0].top10 == [0.75, 0.75]
    meter.add(FrameCosts(nats[:, :2], ranks[:, :2], frames[:, :2]))  # shorter than the first
    assert [part.num_frames for part in meter.by_position()] == [12, 4, 2]
    assert meter.overall().num_frames == 18


def test_bits_and_perplexity_of_a_guess_among_all_codes():
    nats = torch.full((1, 5, 4), math.log(1024))
    meter = LikelihoodMeter(100)
    meter.add(FrameCosts(nats, torch.zeros_like(nats).long(), torch.ones(1, 5, dtype=torch.bool)))
    (only,) = meter.by_position()
    assert only.perplexity == pytest.approx([1024.0] * 4, rel=1e-5)
    assert only.bits_a_second(50) == pytest.approx(50 * 4 * 10, rel=1e-6)


def test_prompts_of_any_length_come_before_the_same_targets(codes):
    long, short = (prompts_before(codes, LENS, 22, size) for size in (22, 5))
    assert torch.equal(long.y, short.y)
    assert long.y_lens.tolist() == [8, 4]  # the second row ends before
    assert torch.equal(long.y[0], codes[0, 22:30])
    assert torch.equal(short.x[1], codes[2, 17:22])
    assert torch.equal(long.x[1], codes[2, :22])
    assert prompts_before(codes, LENS, 30, 5) is None
    with pytest.raises(ValueError, match="prompt_frames is 23, expected 1 to begin, 22"):
        prompts_before(codes, LENS, 22, 23)


def test_costs_that_are_not_finite_are_refused():
    for value in (math.nan, math.inf):
        nats = torch.tensor([[[1.0, value]]])
        meter = LikelihoodMeter(1)
        meter.add(FrameCosts(nats, torch.zeros(1, 1, 2).long(), torch.ones(1, 1).bool()))
        with pytest.raises(ValueError, match=f"are 1, {value} nats a frame, expected finite"):
            meter.overall()


def test_perplexity_beyond_all_numbers_is_infinite():
    likelihood = Likelihood(1, [709.0, 710.0], [0.0] * 2, [0.0] * 2)
    assert likelihood.perplexity == [math.exp(709), math.inf]


def test_a_meter_of_nothing():
    with pytest.raises(ValueError, match="no frame was scored"):
        LikelihoodMeter(5).overall()
    with pytest.raises(ValueError, match="bin_frames is 0, expected 1 or more"):
        LikelihoodMeter(0)
