"""Gaps: who sees what, in training and in generation; B = 3 rows, the last without an `after`."""

from typing import NamedTuple

import pytest
import torch
from conftest import Batch, make_model
from torch import Tensor

from valle.models import AudioLM, Engine
from valle.models.condition import Ahead, Condition
from valle.models.generation import UNKNOWN
from valle.models.infilling import Gap
from valle.modules.fused_step import why_not_fused

GREEDY = {"temperature": 0.0}
SAMPLED = {"top_k": 9, "nar_temperature": 0.7, "repetition_window": 4}
AHEAD = 6  # frames of what follows that the AR half reads, fewer than there are
VARIANTS = [
    {},
    {"prepend_bos": True},
    {"norm_first": False},
    {"add_prenet": True},
    {"positions": "sine"},
]


class Gaps(NamedTuple):
    """Passages around gaps of unequal lengths: arguments of `AudioLM.forward`."""

    x: Tensor
    x_lens: Tensor
    y: Tensor
    y_lens: Tensor
    after: Tensor
    after_lens: Tensor

    def row(self, b: int) -> "Gaps":
        parts = []
        for codes, lens in zip(self[::2], self[1::2], strict=True):
            parts += [codes[b : b + 1, : lens[b]], lens[b : b + 1]]
        return Gaps(*parts)


@pytest.fixture
def gaps(batch: Batch) -> Gaps:
    after = torch.randint(0, 20, (3, 9, 3), generator=torch.Generator().manual_seed(2))
    return Gaps(*batch, after, torch.tensor([9, 4, 0]))


def infill_model(**changes) -> AudioLM:
    model = make_model(ahead_frames=AHEAD, **changes)
    with torch.no_grad():
        model.ar.ahead_mark.normal_()
        for half in (model.ar, model.nar):  # greedy choices far apart, so that rounding moves none
            for name, parameter in half.named_parameters():
                if "head" in name and "weight" in name:
                    parameter.mul_(8)
    return model


# Who sees what


@pytest.mark.parametrize("options", VARIANTS)
def test_the_gap_sees_all_that_follows_it_and_no_later_frame_of_its_own(options):
    ar = infill_model(**options).ar
    codes = torch.randint(0, 20, (1, 6))
    vectors = ar.embedding(codes[:, :, None]).detach().requires_grad_()
    ar.embedding.forward = lambda codes: vectors  # watch what each output depends on
    condition = torch.randn(1, 4, 32, requires_grad=True)
    later = torch.randn(1, 3, 32, requires_grad=True)
    ahead = Ahead(later, torch.tensor([3]), torch.tensor([10]))
    read = Condition(condition, torch.tensor([4]), ahead)
    logits = ar(read, codes, torch.tensor([6]))
    assert logits.shape == (1, 7, 21)
    for t in range(7):
        seen = torch.autograd.grad(
            logits[0, t].sum(), [condition, later, vectors], retain_graph=True
        )
        is_seen = [(grad[0].abs().sum(-1) > 0).tolist() for grad in seen]
        assert is_seen == [[True] * 4, [True] * 3, [i < t for i in range(6)]]


def test_the_nar_half_sees_both_sides():
    nar = infill_model().nar
    sides = [torch.randn(1, n, 32, requires_grad=True) for n in (4, 3)]
    ahead = Ahead(sides[1], torch.tensor([3]), torch.tensor([10]))
    codes, lens = torch.randint(0, 20, (1, 6, 3)), (torch.tensor([4]), torch.tensor([6]))
    logits = nar(Condition(sides[0], lens[0], ahead), codes, lens[1], torch.tensor([1]))
    for t in range(6):
        seen = torch.autograd.grad(logits[0, t].sum(), sides, retain_graph=True)
        assert all((grad[0].abs().sum(-1) > 0).all() for grad in seen)


def test_what_follows_stands_at_its_place_in_time(gaps):
    """The same passage one frame later, as after a longer gap, is not the same to a gap."""
    ar, row = infill_model().ar, gaps.row(0)
    vectors = ar.embedding(row.after)

    def first_logits(start: int) -> Tensor:
        ahead = Ahead(vectors, row.after_lens, torch.tensor([start]))
        condition = Condition(ar.embedding(row.x), row.x_lens, ahead)
        return ar(condition, row.y[:, :, 0], row.y_lens)[:, 0]

    assert not torch.allclose(first_logits(11), first_logits(12), atol=1e-3)


def test_the_halves_read_a_gaps_passage_as_one_sequence(gaps):
    """The NAR half's view of it is that of a target with everything before and after it given."""
    nar, row = infill_model().nar, gaps.row(1)
    joined = torch.cat([nar.embedding(row.x), nar.embedding(row.y[:, :, :1])], dim=1)
    nar.embedding.forward = lambda codes, num_levels=None: joined[:, 3:]
    ahead = Ahead(joined[:, :2] * 0.5, torch.tensor([2]), torch.tensor([0]))
    condition = Condition(joined[:, :3], row.x_lens, ahead)
    logits = nar(condition, row.y, row.y_lens, torch.tensor([1]))
    nar.embedding.forward = lambda codes, num_levels=None: torch.cat(
        [joined[:, 3:], joined[:, :2] * 0.5], dim=1
    )
    longer = torch.cat([row.y, row.y[:, :2]], dim=1)
    condition = Condition(joined[:, :3], row.x_lens)
    whole = nar(condition, longer, row.y_lens + 2, torch.tensor([1]))
    torch.testing.assert_close(logits, whole[:, :11])


# Losses


@pytest.mark.parametrize("options", VARIANTS)
def test_nothing_after_is_a_continuation(batch, options):
    model, plain = infill_model(**options), make_model(**options)
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if "ahead" not in k})
    expected = plain(*batch).loss
    torch.testing.assert_close(model(*batch).loss, expected)
    empty = torch.zeros(3, 5, 3, dtype=torch.long), torch.zeros(3, dtype=torch.long)
    given = model(*batch, after=empty[0], after_lens=empty[1])
    torch.testing.assert_close(given.loss, expected)


@pytest.mark.parametrize("options", VARIANTS)
def test_every_frame_has_a_place_of_its_own(gaps, options):
    """In time: before, BOS if there is one, gap, after."""
    model = infill_model(**options)
    seen, positions = [], model.ar.positions.forward
    model.ar.positions.forward = lambda places: seen.append(places) or positions(places)
    for b, ahead in ((0, 6), (1, 4)):
        model(**gaps.row(b)._asdict(), train_stage=1)
        places = seen.pop()[0].tolist()
        num = len(places)
        assert sorted(places) == list(range(num))
        assert places[:ahead] == list(range(num - ahead, num))
        assert num == int(gaps.x_lens[b] + gaps.y_lens[b]) + ahead + model.ar.num_bos


@pytest.mark.parametrize("options", VARIANTS)
def test_a_gap_at_the_end_of_the_longest_row_keeps_its_eos(gaps, options):
    """A continuation in a batch with gaps; nothing is cut off its end."""
    model, ends = infill_model(**options), torch.tensor([False, False, True])
    longest = gaps._replace(y_lens=torch.tensor([4, 2, 11]))
    together = model(**longest._asdict(), y_ends=ends, train_stage=1)
    alone = [
        model(**longest.row(b)._asdict(), y_ends=ends[b : b + 1], train_stage=1) for b in range(3)
    ]
    torch.testing.assert_close(together.loss, sum(one.loss for one in alone))


@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("options", VARIANTS)
def test_batch_of_gaps_and_continuations_equals_one_by_one(gaps, stage, options):
    model = infill_model(**options)
    together = model(**gaps._asdict(), train_stage=stage)
    alone = [model(**gaps.row(b)._asdict(), train_stage=stage) for b in range(3)]
    torch.testing.assert_close(together.loss, sum(one.loss for one in alone))
    for b, one in enumerate(alone):
        n = gaps.y_lens[b]
        assert torch.equal(together.predictions[b, :n], one.predictions[0])


@pytest.mark.parametrize("longest", [None, 100])
def test_padding_after_changes_neither_loss_nor_gradients(gaps, longest):
    def loss_and_gradients(split: Gaps) -> tuple[Tensor, list[Tensor]]:
        model = infill_model()
        loss = model(**split._asdict(), longest=longest).loss
        return loss.detach(), list(torch.autograd.grad(loss, list(model.parameters())))

    padded = gaps._replace(after=torch.nn.functional.pad(gaps.after, (0, 0, 0, 5), value=7))
    torch.testing.assert_close(
        loss_and_gradients(padded), loss_and_gradients(gaps), atol=1e-4, rtol=1e-4
    )


def test_the_mark_has_a_gradient_where_no_row_of_a_batch_has_a_gap(batch):
    """All ranks of a job must have the same gradients to exchange."""
    model = infill_model().train()
    model(*batch).loss.backward()
    assert model.ar.ahead_mark.grad is not None
    assert not model.ar.ahead_mark.grad.any()


def test_the_mark_learns(gaps):
    model = infill_model().train()
    model(**gaps._asdict()).loss.backward()
    assert model.ar.ahead_mark.grad.abs().min() > 0


def test_a_model_learns_to_use_what_follows():
    """The first quantizer to be filled in stands after the gap and nowhere else."""
    model = make_model(ahead_frames=AHEAD).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    lens = torch.tensor([3]).expand(8)

    def batch() -> Gaps:
        secret = torch.randint(0, 20, (8, 1, 3))
        x = torch.zeros(8, 3, 3, dtype=torch.long)
        return Gaps(x, lens, secret.expand(8, 3, 3), lens, secret.expand(8, 3, 3), lens)

    for _ in range(300):
        optimizer.zero_grad()
        model(**batch()._asdict(), reduction="mean", train_stage=1).loss.backward()
        optimizer.step()
    found = batch()
    filled = model.infill(found.x, None, found.after, None, 3, **GREEDY)
    assert torch.equal(filled[:, 3:6, 0], found.y[:, :, 0])


# Generation


@pytest.fixture(params=["fused", "eager"])
def fused(request) -> bool:
    """Both ways through a frame, where this machine has both."""
    reason = why_not_fused(make_model().ar.decoder)
    if request.param == "fused" and reason is not None:
        pytest.skip(reason)
    return request.param == "fused"


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def fill(engine: Engine | AudioLM, split: Gaps, **options) -> Tensor:
    return engine.infill(
        split.x, split.x_lens, split.after, split.after_lens, split.y_lens, **options
    )


@pytest.mark.parametrize("how", [GREEDY, SAMPLED])
@pytest.mark.parametrize("options", VARIANTS)
def test_ragged_batch_equals_one_by_one(gaps, options, how, fused):
    engine = Engine(infill_model(**options), fused=fused)
    together, lens = fill(engine, gaps, return_lens=True, generator=seeded(1, 2, 3), **how)
    assert lens.tolist() == [7 + 4 + 9, 3 + 11 + 4, 5 + 8 + 0]
    for b in range(3):
        alone = fill(engine, gaps.row(b), generator=seeded(b + 1), **how)
        assert torch.equal(together[b, : lens[b]], alone[0])
        assert (together[b, lens[b] :] == UNKNOWN).all()


@pytest.mark.parametrize("options", VARIANTS)
def test_given_frames_are_untouched_and_all_others_known(gaps, options):
    filled, lens = fill(infill_model(**options), gaps, return_lens=True, **SAMPLED)
    for b in range(3):
        row, first = gaps.row(b), gaps.x_lens[b]
        last = first + gaps.y_lens[b]
        assert torch.equal(filled[b, :first], row.x[0])
        assert torch.equal(filled[b, last : lens[b]], row.after[0])
        assert ((filled[b, first:last] >= 0) & (filled[b, first:last] < 20)).all()


@pytest.mark.parametrize("options", VARIANTS)
def test_greedy_choices_are_those_of_teacher_forcing(gaps, options, fused):
    model = infill_model(**options)
    with torch.no_grad():
        model.ar.head.bias[model.eos_id] = 1e9  # a gap may not end early, so EOS cannot come
    for b in range(3):
        row = gaps.row(b)
        filled = fill(Engine(model, fused=fused), row, **GREEDY)
        new = filled[:, row.x.shape[1] : row.x.shape[1] + row.y.shape[1]]
        with torch.no_grad():
            found = model(**row._replace(y=new)._asdict()).predictions
            model.ar.head.bias[model.eos_id] = -1e9
            codes_alone = model(**row._replace(y=new)._asdict()).predictions
            model.ar.head.bias[model.eos_id] = 1e9
        assert (found[:, :, 0] == model.eos_id).all()
        assert torch.equal(codes_alone, new)


def test_samples_of_a_gap_equal_gaps_that_are_repeated(gaps):
    model = infill_model()
    samples = fill(model, gaps, num_samples=2, generator=seeded(*range(6)), **SAMPLED)
    twice = Gaps(*(part.repeat_interleave(2, dim=0) for part in gaps))
    assert torch.equal(samples, fill(model, twice, generator=seeded(*range(6)), **SAMPLED))


def test_same_seed_same_filling_and_what_follows_matters(gaps):
    model = infill_model()
    first = fill(model, gaps, generator=seeded(1, 2, 3), **SAMPLED)
    assert torch.equal(first, fill(model, gaps, generator=seeded(1, 2, 3), **SAMPLED))
    other = gaps._replace(after=(gaps.after + 1) % 20)
    changed = fill(model, other, generator=seeded(1, 2, 3), **SAMPLED)
    assert not torch.equal(first[0, 7:11], changed[0, 7:11])
    assert torch.equal(first[2, :13], changed[2, :13])  # nothing follows there


def test_a_window_reads_the_nearest_frames_alone(gaps):
    model, row = infill_model(), gaps.row(0)
    far = row._replace(x=row.x.clone(), after=row.after.clone())
    far.x[:, :3] = 0  # a gap of 4 frames in a window of 12 has 4 before it and 4 after it
    far.after[:, 4:] = 0
    near = [fill(model, split, window=12, **GREEDY) for split in (row, far)]
    assert torch.equal(near[0][:, 7:11], near[1][:, 7:11])
    assert torch.equal(near[0][:, :7], row.x)
    assert torch.equal(near[0][:, 11:], row.after)


@pytest.mark.parametrize(
    ("num_before", "num_after", "kept"),
    [(50, 50, (10, 10)), (3, 50, (3, 17)), (50, 4, (16, 4)), (50, 0, (20, 0)), (2, 2, (2, 2))],
)
def test_sides_share_the_room_of_a_window(num_before, num_after, kept):
    frames = torch.arange(200)[:, None]
    gap = Gap(frames[:num_before], 5, frames[:num_after]).within(25, 1)
    assert (len(gap.before), len(gap.after)) == kept
    assert torch.equal(gap.before[:, 0], torch.arange(num_before)[num_before - kept[0] :])
    assert torch.equal(gap.after[:, 0], torch.arange(kept[1]))


def test_training_mode_and_progress(gaps):
    model, seen = infill_model().train(), []
    fill(model, gaps, progress=seen.append, **SAMPLED)
    assert model.training
    assert seen == list(range(1, 12))


# Refusals


def test_a_model_that_only_continues_says_so(gaps, model):
    with pytest.raises(ValueError, match=r"has not learned to fill gaps.*--infill-prob 0.3"):
        fill(model, gaps)
    with pytest.raises(ValueError, match="has not learned to fill gaps"):
        model(**gaps._asdict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y_lens": torch.tensor([3, 0, 2])}, r"gap_lens must be.*from 1.*got tensor\(\[3, 0, 2"),
        ({"y_lens": torch.tensor([3, 2])}, r"gap_lens must be.*\(3,\) of them"),
        ({"y_lens": 1.5}, "gap_lens must be.*got 1.5"),
        ({"after": torch.zeros(2, 4, 3, dtype=torch.long)}, "before holds 3 rows and after 2"),
        ({"after": torch.full((3, 9, 3), 20)}, r"after must hold codes in \[0, 20\), got 0 to 20"),
        ({"after_lens": torch.tensor([10, 1, 1])}, r"after_lens must be in \[0, 9\]"),
        (
            {"x_lens": torch.tensor([7, 0, 1])},
            r"before_lens must be in \[1, 7\].*needs a model trained",
        ),
    ],
)
def test_gaps_that_cannot_be(gaps, change, message):
    with pytest.raises(ValueError, match=message):
        fill(infill_model(), gaps._replace(**change))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 5}, "max_new_tokens cannot be asked of infill"),
        ({"ignore_eos": False, "chunk": 4}, "chunk, ignore_eos cannot be asked of infill"),
        ({"window": 11}, "a gap of 11 frames leaves nothing else to read in a window of 11"),
        ({"temperature": -1.0}, "temperature"),
        ({"generator": seeded(1)}, "generator"),
    ],
)
def test_options_that_cannot_be(gaps, options, message):
    with pytest.raises(ValueError, match=message):
        fill(infill_model(), gaps, **options)
