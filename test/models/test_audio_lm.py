import dataclasses

import pytest
import torch
from conftest import TINY, Batch, make_model

from valle.models import AudioLM, AudioLMConfig
from valle.models.condition import Condition
from valle.utils.checkpoint import save_checkpoint

HALVES = {1: "ar", 2: "nar"}


def row(batch: Batch, b: int) -> Batch:
    """One row alone, without its padding."""
    n, m = batch.x_lens[b], batch.y_lens[b]
    return Batch(batch.x[b : b + 1, :n], n[None], batch.y[b : b + 1, :m], m[None])


def padded(batch: Batch, fill: int) -> Batch:
    """The same rows with more padding and something else in it."""
    x, y = (torch.nn.functional.pad(codes, (0, 0, 0, 3)) for codes in (batch.x, batch.y))
    for codes, lens in ((x, batch.x_lens), (y, batch.y_lens)):
        for b, n in enumerate(lens):
            codes[b, n:] = fill
    return Batch(x, batch.x_lens, y, batch.y_lens)


def gradients(model: AudioLM, batch: Batch, **options) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(**batch._asdict(), **options).loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


# Shapes of attention, by gradient


@pytest.mark.parametrize("options", [{}, {"prepend_bos": True}, {"norm_first": False}])
def test_ar_sees_no_future(options):
    model = make_model(**options)
    codes = torch.randint(0, 20, (1, 6))
    vectors = model.ar.embedding(codes[:, :, None]).detach().requires_grad_()
    model.ar.embedding.forward = lambda codes: vectors  # watch what each output depends on
    condition = torch.randn(1, 4, 32, requires_grad=True)
    logits = model.ar(Condition(condition, torch.tensor([4])), codes, torch.tensor([6]))
    assert logits.shape == (1, 7, 21)
    for t in range(7):
        seen = torch.autograd.grad(logits[0, t].sum(), [condition, vectors], retain_graph=True)
        assert (seen[0][0].abs().sum(-1) > 0).all()
        assert (seen[1][0].abs().sum(-1) > 0).tolist() == [i < t for i in range(6)]


def test_nar_sees_all_frames_both_ways():
    model = make_model()
    condition = torch.randn(1, 4, 32, requires_grad=True)
    codes = torch.randint(0, 20, (1, 6, 3))
    vectors = model.nar.embedding(codes).detach().requires_grad_()
    model.nar.embedding.forward = lambda codes, num_levels: vectors
    read = Condition(condition, torch.tensor([4]))
    logits = model.nar(read, codes, torch.tensor([6]), stages=torch.tensor([1]))
    for t in range(6):
        seen = torch.autograd.grad(logits[0, t].sum(), [condition, vectors], retain_graph=True)
        assert all((grad[0].abs().sum(-1) > 0).all() for grad in seen)


def test_nar_stage_reads_only_quantizers_below_it():
    model = make_model()
    condition, lens = Condition(torch.randn(1, 4, 32), torch.tensor([4])), torch.tensor([6])
    codes = torch.randint(0, 20, (1, 6, 3))
    for stage in (1, 2):
        logits = model.nar(condition, codes, lens, torch.tensor([stage]))
        for q in range(3):
            other = codes.clone()
            other[:, :, q] = (other[:, :, q] + 1) % 20
            moved = model.nar(condition, other, lens, torch.tensor([stage]))
            assert torch.equal(logits, moved) == (q >= stage)


def test_rows_of_different_stages_equal_rows_alone():
    model = make_model()
    condition, codes = torch.randn(4, 4, 32), torch.randint(0, 20, (4, 6, 3))
    x_lens, y_lens = torch.tensor([4, 2, 3, 4]), torch.tensor([6, 6, 3, 5])
    stages = torch.tensor([2, 1, 1, 2])
    mixed = model.nar(Condition(condition, x_lens), codes, y_lens, stages)
    for b in range(4):
        r = slice(b, b + 1)
        read = Condition(condition[r], x_lens[r])
        alone = model.nar(read, codes[r], y_lens[r], stages[r])
        torch.testing.assert_close(mixed[b, : y_lens[b]], alone[0, : y_lens[b]])


# Loss


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_batch_equals_one_by_one(model, batch, stage):
    together = model(**batch._asdict(), train_stage=stage)
    alone = [model(**row(batch, b)._asdict(), train_stage=stage) for b in range(3)]
    torch.testing.assert_close(together.loss, sum(output.loss for output in alone))
    for b, output in enumerate(alone):
        assert torch.equal(together.predictions[b, : batch.y_lens[b]], output.predictions[0])
    for name, metric in together.metrics.items():
        torch.testing.assert_close(metric.total, sum(o.metrics[name].total for o in alone))


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_padding_changes_neither_loss_nor_gradients(model, batch, stage):
    model.train()
    results = []
    for fill in (0, 13, -1):
        model.stage_generator.manual_seed(5)
        results.append(gradients(model, padded(batch, fill), train_stage=stage))
    for grads in results[1:]:
        assert grads.keys() == results[0].keys()
        for name, grad in grads.items():
            torch.testing.assert_close(grad, results[0][name])
    model.stage_generator.manual_seed(5)
    for name, grad in gradients(model, batch, train_stage=stage).items():
        torch.testing.assert_close(grad, results[0][name])


def test_mean_is_sum_over_real_frames(model, batch):
    by_sum = model(**batch._asdict(), train_stage=1).loss
    by_mean = model(**batch._asdict(), train_stage=1, reduction="mean").loss
    torch.testing.assert_close(by_mean * batch.y_lens.sum(), by_sum)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_stage_0_is_the_mean_of_the_halves(model, batch, reduction):
    both, ar, nar = (
        model(**batch._asdict(), train_stage=stage, reduction=reduction).loss for stage in range(3)
    )
    torch.testing.assert_close(both, (ar + nar) / 2)


@pytest.mark.parametrize("stage", [1, 2])
def test_each_stage_touches_its_half_alone(model, batch, stage):
    touched = gradients(model.train(), batch, train_stage=stage)
    assert {name.split(".")[0] for name in touched} == {HALVES[stage]}
    assert {id(p) for p in model.half_parameters(stage)} == {
        id(p) for n, p in model.named_parameters() if n.startswith(HALVES[stage] + ".")
    }


def test_every_parameter_learns(batch):
    model = make_model(prepend_bos=True, add_prenet=True)
    touched = set()
    for _ in range(20):  # until every NAR stage was drawn
        touched |= gradients(model.train(), batch).keys()
    unused = {name for name, _ in model.named_parameters()} - touched
    assert not unused


def test_eos_is_a_target_only_where_a_recording_ends(model, batch):
    ends = torch.tensor([True, False, False])
    never = model(**batch._asdict(), train_stage=1).metrics["loss_q1"]
    once = model(**batch._asdict(), train_stage=1, y_ends=ends).metrics["loss_q1"]
    assert never.num_frames == batch.y_lens.sum()
    assert once.num_frames == never.num_frames + 1
    x, x_lens, y, y_lens = row(batch, 0)
    logits = model.ar(model.ar.read(x, x_lens)[0], y[:, :, 0], y_lens)
    cost_of_eos = -logits[0, -1].log_softmax(-1)[model.eos_id]
    torch.testing.assert_close(once.total - never.total, cost_of_eos.detach())


def test_training_draws_a_stage_per_row_from_its_generator(model):
    draws = model.nar.draw_stages(1000, torch.Generator().manual_seed(0))
    assert set(draws.tolist()) == {1, 2}
    assert torch.equal(draws, model.nar.draw_stages(1000, torch.Generator().manual_seed(0)))


def test_training_loss_repeats_with_the_state_of_its_generator(model, batch):
    model.train()
    state = model.stage_generator.get_state()
    losses = [model(**batch._asdict(), train_stage=2).loss.item() for _ in range(4)]
    model.stage_generator.set_state(state)
    assert losses == [model(**batch._asdict(), train_stage=2).loss.item() for _ in range(4)]
    assert len(set(losses)) > 1


def test_validation_scores_every_stage_and_repeats(model, batch):
    one, other = (model(**batch._asdict()) for _ in range(2))
    assert torch.equal(one.loss, other.loss)
    assert {f"loss_q{q}" for q in (1, 2, 3)} <= one.metrics.keys()
    frames = batch.y_lens.sum()
    assert all(one.metrics[f"accuracy_q{q}"].num_frames == frames for q in (1, 2, 3))
    mean_of_stages = (one.metrics["loss_q2"].total + one.metrics["loss_q3"].total) / 2
    torch.testing.assert_close(model(**batch._asdict(), train_stage=2).loss, mean_of_stages)


def test_predictions_are_the_likeliest_codes(model, batch):
    output = model(**batch._asdict())
    hits = [
        sum(
            (output.predictions[b, :n, q] == batch.y[b, :n, q]).sum()
            for b, n in enumerate(batch.y_lens)
        )
        for q in range(3)
    ]
    assert hits == [output.metrics[f"accuracy_q{q}"].total for q in (1, 2, 3)]
    assert (output.predictions[0, batch.y_lens[0] :] == -1).all()


def test_a_batch_is_learned_by_heart_and_reproduced():
    model = make_model(d_model=64, num_layers=2)
    generator = torch.Generator().manual_seed(2)
    codes = torch.randint(0, 20, (3, 16, 3), generator=generator)
    x, y = codes[:, :6], codes[:, 6:]
    lens = torch.tensor([6, 6, 6]), torch.tensor([10, 8, 10])
    data = {"x": x, "x_lens": lens[0], "y": y, "y_lens": lens[1], "y_ends": torch.ones(3).bool()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    model.train()
    for _ in range(250):
        optimizer.zero_grad()
        model(**data, reduction="mean").loss.backward()
        optimizer.step()
    scores = model.eval()(**data).metrics
    for name in ("accuracy_q1", "accuracy_q2", "accuracy_q3"):
        assert scores[name].mean() > 0.99
    generated, total = model.inference(x, max_new_tokens=30, temperature=0, return_lens=True)
    assert total.tolist() == [16, 14, 16]  # EOS was learned too
    for b, n in enumerate(total):
        assert torch.equal(generated[b, :n], codes[b, :n])
        assert (generated[b, n:] == -1).all()


# What is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nhead": 5}, "d_model must be even and divisible by nhead, got 32 and 5"),
        ({"d_model": 0}, "d_model must be positive"),
        ({"num_layers": -1}, "num_layers must be positive"),
        ({"num_audio_tokens": 0}, "num_audio_tokens must be positive"),
        ({"num_quantizers": 1}, "num_quantizers must be at least 2"),
        ({"dropout": 1.0}, "dropout must be in"),
        ({"nar_scale_factor": 0.9}, r"nar_scale_factor 0.9 must be even and divisible"),
        ({"nar_scale_factor": 0.25}, r"num_layers x nar_scale_factor 0.25"),
        ({"nar_scale_factor": 0}, "nar_scale_factor must be positive"),
        ({"ahead_frames": -1}, "ahead_frames must be 0 or more, got -1"),
        ({"positions": "none"}, "positions must be rotary or sine, got none"),
        ({"d_model": 36}, r"rotary positions turn pairs: d_model / nhead must be even, got 36 / 4"),
    ],
)
def test_config_names_the_field_at_fault(change, message):
    with pytest.raises(ValueError, match=message):
        AudioLM(**(TINY | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(3, 7, 2).long()}, r"x must hold integer codes \(batch, frames, 3\)"),
        ({"y": torch.zeros(3, 11, 3)}, "y must hold integer codes"),
        ({"x": torch.full((3, 7, 3), 20)}, r"x must hold codes in \[0, 20\), got 0 to 20"),
        ({"y": torch.full((3, 11, 3), -2)}, r"y must hold codes in \[0, 20\)"),
        ({"x_lens": torch.tensor([7, 0, 5])}, r"x_lens must be in \[1, 7\], got 0 .*prepend_bos"),
        ({"y_lens": torch.tensor([4, 12, 8])}, r"y_lens must be in \[1, 11\], got 4 to 12"),
        ({"x_lens": torch.tensor([7, 3])}, r"x_lens must be \(3,\)"),
        ({"reduction": "none"}, 'reduction must be "sum" or "mean", got "none"'),
        ({"train_stage": 3}, "3 is not a valid TrainStage"),
    ],
)
def test_forward_refuses_what_cannot_be(model, batch, change, message):
    with pytest.raises(ValueError, match=message):
        model(**(batch._asdict() | change))


def test_config_rebuilds_the_model(batch):
    model = make_model(add_prenet=True, nar_scale_factor=2.0, prepend_bos=True)
    other = AudioLM(**dataclasses.asdict(model.config)).eval()
    other.load_state_dict(model.state_dict())
    assert torch.equal(model(**batch._asdict()).loss, other(**batch._asdict()).loss)
    with pytest.raises(dataclasses.FrozenInstanceError):
        model.config.nhead = 2


def test_a_config_that_names_no_positions_is_of_before_there_was_a_choice(tmp_path, batch):
    model = make_model(positions="sine")
    config = dataclasses.asdict(model.config)
    del config["positions"], config["ahead_frames"]
    save_checkpoint(tmp_path / "old.pt", model, {"config": config})
    old = AudioLM.from_checkpoint(tmp_path / "old.pt")
    assert old.config.positions == "sine"
    torch.testing.assert_close(old(*batch).loss, model(*batch).loss)


def test_default_config_is_the_promised_one():
    assert dataclasses.asdict(AudioLMConfig()) == {
        "d_model": 1024,
        "nhead": 16,
        "num_layers": 12,
        "norm_first": True,
        "add_prenet": False,
        "num_quantizers": 4,
        "nar_scale_factor": 1.0,
        "prepend_bos": False,
        "num_audio_tokens": 2048,
        "dropout": 0.1,
        "ahead_frames": 0,
        "positions": "rotary",
    }


@pytest.mark.parametrize("stage", [0, 2])
def test_every_parameter_that_learns_has_a_gradient(stage):
    """Whatever NAR stages are drawn; a job's ranks wait for each other's gradients of all."""
    model = make_model().train()
    codes = torch.randint(0, 20, (1, 6, 3))
    lens = torch.tensor([6])
    model(codes, lens, codes, lens, train_stage=stage).loss.backward()
    without = [n for n, p in model.named_parameters() if p.grad is None]
    assert all(name.startswith("ar.") for name in without)
    assert bool(without) == (stage == 2)
    heads = [head.weight.grad.abs().sum() for head in model.nar.heads]
    assert sorted(bool(size) for size in heads) == [False, True]


# Prompts that are learned, too


@pytest.mark.parametrize("options", [{}, {"prepend_bos": True}, {"ahead_frames": 4}])
def test_scored_prompts_cost_what_targets_in_their_place_would(batch, options):
    """The prompt's frames cost what they would as frames that follow the prompt's first ones."""
    model = make_model(**options)
    x, x_lens, y, y_lens = row(batch, 2)
    plain = model(x, x_lens, y, y_lens, train_stage=1)
    whole = model(x, x_lens, y, y_lens, train_stage=1, score_prompts=True)
    S, T = int(x_lens), int(y_lens)
    logits, own = model.ar.forward_whole(model.ar.read(x, x_lens)[0], y[:, :, 0], y_lens)
    assert own.shape == (1, S - 1, 21)
    # [:, s] sees the prompt up to s alone: one may end it there
    for s in range(S - 1) if not options.get("prepend_bos") else ():
        shorter, _ = model.ar.read(x[:, : s + 1], torch.tensor([s + 1]))
        first = model.ar(shorter, y[:, :, 0], y_lens)[:, 0]
        torch.testing.assert_close(own[:, s], first)
    costs = torch.nn.functional.cross_entropy(own[0], x[0, 1:, 0], reduction="sum")
    mean = (plain.loss + costs) / (T + S - 1)
    torch.testing.assert_close(whole.loss, mean * T)
    assert whole.metrics == plain.metrics


@pytest.mark.parametrize("options", [{}, {"prepend_bos": True}])
def test_scored_prompts_see_no_future(options):
    model = make_model(**options)
    condition = torch.randn(1, 4, 32, requires_grad=True)
    codes, lens = torch.randint(0, 20, (1, 6)), torch.tensor([6])
    own = model.ar.forward_whole(Condition(condition, torch.tensor([4])), codes, lens)[1]
    for s in range(3):
        (seen,) = torch.autograd.grad(own[0, s].sum(), [condition], retain_graph=True)
        assert (seen[0].abs().sum(-1) > 0).tolist() == [i <= s for i in range(4)]


@pytest.mark.parametrize("options", [{}, {"prepend_bos": True}, {"ahead_frames": 4}])
def test_scored_prompts_of_a_batch_equal_one_by_one(batch, options):
    model = make_model(**options)
    together = model(**batch._asdict(), train_stage=1, score_prompts=True).loss
    alone = [model(*row(batch, b), train_stage=1, score_prompts=True).loss for b in range(3)]
    torch.testing.assert_close(together, sum(alone))


def test_an_empty_prompt_has_nothing_to_score(batch):
    model = make_model(prepend_bos=True)
    x, lens = batch.x[:, :0], torch.zeros(3, dtype=torch.long)
    plain = model(x, lens, batch.y, batch.y_lens, train_stage=1).loss
    whole = model(x, lens, batch.y, batch.y_lens, train_stage=1, score_prompts=True).loss
    torch.testing.assert_close(whole, plain)


def test_all_stages_in_training_are_those_of_validation(model, batch):
    """And one that is drawn for each row is part of them."""
    expected = model(**batch._asdict(), train_stage=2)
    model.train()
    found = model(**batch._asdict(), train_stage=2, all_stages=True)
    torch.testing.assert_close(found.loss, expected.loss)
    found.loss.backward()
    assert all(head.weight.grad.any() for head in model.nar.heads)
