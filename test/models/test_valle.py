"""VALL-E: who sees what, losses, generation; for text and for MIDI."""

import dataclasses

import pytest
import torch
from conftest import Pairs, make_model, make_pairs, make_valle
from torch.nn.functional import pad

from valle.evaluation import frame_costs
from valle.models import VALLE, AudioLM, Engine, VALLEConfig, get_model, load_model
from valle.models.ar import ARState
from valle.models.condition import Known
from valle.models.generation import UNKNOWN
from valle.modules.fused_step import FusedStep, why_not_fused
from valle.utils.checkpoint import save_checkpoint
from valle.utils.cli import AttributeDict
from valle.utils.vocabulary import BOS, EOS

CONDITIONS = pytest.mark.parametrize("condition", ["text", "midi"])
MODES = pytest.mark.parametrize("mode", [0, 1, 4])
VARIANTS = [{}, {"prepend_bos": True}, {"norm_first": False}, {"add_prenet": True},
            {"positions": "sine"}]  # fmt: skip
SAMPLED = {"top_k": 9, "nar_temperature": 0.7, "repetition_window": 4}


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def padded(pairs: Pairs, fill: int) -> Pairs:
    """The same rows with more padding and something else in it."""
    x = pad(pairs.x, (0, 3) if pairs.x.dim() == 2 else (0, 0, 0, 3))
    y = pad(pairs.y, (0, 0, 0, 5))
    for tokens, lens in ((x, pairs.x_lens), (y, pairs.y_lens)):
        for b, n in enumerate(lens):
            tokens[b, n:] = fill
    return Pairs(x, pairs.x_lens, y, pairs.y_lens)


def elsewhere(mode: int) -> dict[str, torch.Tensor]:
    """Prompts of 5, 0 and 3 frames for prefix mode 4."""
    if mode != 4:
        return {}
    prompts = torch.randint(0, 20, (3, 5, 3), generator=torch.Generator().manual_seed(5))
    return {"prompts": prompts, "prompts_lens": torch.tensor([5, 0, 3])}


def rows_of(inputs: dict[str, torch.Tensor], b: int) -> dict[str, torch.Tensor]:
    return {name: tensor[b : b + 1] for name, tensor in inputs.items()}


# Who sees what


@CONDITIONS
@pytest.mark.parametrize("options", VARIANTS)
def test_the_ar_half_sees_the_whole_condition_and_no_later_frame(condition, options):
    model, pairs = make_valle(condition, **options), make_pairs(condition).row(1)
    ar = model.ar
    frames = ar.embedding(pairs.y[:, :, :1]).detach().requires_grad_()
    read, known = ar.read(pairs.y[:, :0], torch.tensor([0]), model.given(pairs.x))
    assert not known.codes.numel()
    vectors = read.vectors.detach().requires_grad_()
    ar.embedding.forward = lambda codes: frames  # watch what each output depends on
    logits = ar(read._replace(vectors=vectors), pairs.y[:, :, 0], pairs.y_lens)
    assert logits.shape == (1, 10, 21)
    for t in range(10):
        seen = torch.autograd.grad(logits[0, t].sum(), [vectors, frames], retain_graph=True)
        assert (seen[0][0].abs().sum(-1) > 0).all()
        assert (seen[1][0].abs().sum(-1) > 0).tolist() == [i < t for i in range(9)]


@CONDITIONS
def test_the_condition_sees_itself_both_ways(condition):
    """What comes last in it changes how its beginning is understood."""
    model, pairs = make_valle(condition), make_pairs(condition).row(0)
    read, _ = model.ar.read(pairs.y[:, :0], torch.tensor([0]), model.given(pairs.x))
    vectors = read.vectors.detach().requires_grad_()
    keys = []
    layer = model.ar.decoder.layers[1].attention
    layer.qkv.register_forward_hook(lambda *args: keys.append(args[2]))
    model.ar(read._replace(vectors=vectors), pairs.y[:, :, 0], pairs.y_lens)
    (seen,) = torch.autograd.grad(keys[0][0, 0].sum(), [vectors])
    assert (seen[0].abs().sum(-1) > 0).all()


@CONDITIONS
@MODES
def test_the_nar_half_sees_condition_prompt_and_all_frames(condition, mode):
    model, pairs = make_valle(condition, prefix_mode=mode), make_pairs(condition).row(0)
    nar, given = model.nar, model.given(pairs.x)
    prompt, target = pairs.y[:, :5], pairs.y[:, 5:]
    read, known = nar.read(prompt, torch.tensor([5]), given)
    assert len(known.codes[0]) == (5 if mode == 0 else 0)
    assert read.vectors.shape[1] == 9 + (0 if mode == 0 else 5)
    vectors = read.vectors.detach().requires_grad_()
    codes, lens = known.then(target, torch.tensor([11]))
    frames = nar.embedding(codes[:, :, :1]).detach().requires_grad_()
    nar.embedding.forward = lambda codes, num_levels: frames
    logits = nar(read._replace(vectors=vectors), codes, lens, torch.tensor([1]))
    for t in range(codes.shape[1]):
        seen = torch.autograd.grad(logits[0, t].sum(), [vectors, frames], retain_graph=True)
        assert all((grad[0].abs().sum(-1) > 0).all() for grad in seen)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_condition_of_many_blocks_sees_itself_both_ways(dtype):
    """Attention in plain products goes through it a block of queries at a time."""
    model = make_valle().to(dtype)
    x = torch.randint(3, 11, (1, 300), generator=torch.Generator().manual_seed(0))
    read, _ = model.ar.read(torch.zeros(1, 0, 3).long(), torch.tensor([0]), model.given(x))
    vectors = read.vectors.detach().requires_grad_()
    keys = []
    model.ar.decoder.layers[1].attention.qkv.register_forward_hook(
        lambda *args: keys.append(args[2])
    )
    model.ar(read._replace(vectors=vectors), torch.zeros(1, 4).long(), torch.tensor([4]))
    (seen,) = torch.autograd.grad(keys[0][0, 0].float().sum(), [vectors])
    assert (seen[0].abs().sum(-1) > 0).all()


def test_notes_stand_where_they_are_struck():
    """At 50 frames and 192 ticks a second; bars of two seconds."""
    reader = make_valle("midi").ar.reader
    rows = [[BOS] * 6, [50, 9, 9, 4, 4 + 48, 4], [50, 9, 9, 4, 4 + 96, 5], [EOS] * 6]
    places = reader.places(torch.tensor([rows]))
    assert places[0].tolist() == pytest.approx([0.0, 12.5, 125.0, 125.0])
    assert make_valle("midi", frame_rate=25.0).ar.reader.places(torch.tensor([rows]))[
        0, 2
    ] == pytest.approx(62.5)


@CONDITIONS
@MODES
def test_frames_stand_at_their_own_time(condition, mode):
    """Of both halves, whatever the condition's length; a prompt from elsewhere comes before."""
    model, pairs = make_valle(condition, prefix_mode=mode), make_pairs(condition)
    places = {}
    for name in ("ar", "nar"):
        positions = getattr(model, name).positions
        forward = positions.forward
        positions.forward = lambda at, name=name, forward=forward: (
            places.setdefault(name, at), forward(at),
        )[1]  # fmt: skip
    model(**pairs._asdict(), **elsewhere(mode))
    starts = model.ar.reader.places(pairs.x)
    for b, (n, T) in enumerate(zip(pairs.x_lens, pairs.y_lens, strict=True)):
        assert places["ar"][b, : n + T].tolist() == [*starts[b, :n].tolist(), *range(T)]
        before = [0, 0, 0] if mode != 4 else [5, 0, 3]
        moved = starts[b, :n].clone()
        if condition == "midi":  # notes come after the prompt; BOS is the beginning of all
            moved[1:] += before[b]
        expected = [*moved.tolist(), *range(T + before[b])]
        found = places["nar"][b, : n + T + before[b]].tolist()
        assert found == pytest.approx(expected, abs=0.2)  # notes are moved by whole ticks


@CONDITIONS
def test_mode_4_trains_at_the_places_that_it_generates_from(condition):
    """Told of a prompt and a target on one time line, or of the target and a prompt elsewhere."""
    model, row = make_valle(condition, prefix_mode=4), make_pairs(condition).row(0)
    prompt = rows_of(elsewhere(4), 0)
    reader, seen = model.nar.reader, []
    forward = model.nar.forward
    model.nar.forward = lambda read, *more: seen.append(read) or forward(read, *more)
    model(**row._asdict(), **prompt, train_stage=2)
    later = reader.later(row.x, prompt["prompts_lens"])
    told = torch.cat([row.x[:, :1], row.x[:, 1:4], later[:, 1:]], dim=1)  # three of the prompt
    options = {"max_new_tokens": 4, "ignore_eos": True}
    model.inference(told, None, prompt["prompts"], torch.tensor([5]), **options)
    trained, made = seen[0], seen[-1]
    torch.testing.assert_close(made.vectors, trained.vectors)
    assert torch.equal(made.places.own, trained.places.own)
    assert torch.equal(made.places.next, trained.places.next)


def test_notes_are_moved_by_their_bar_and_position():
    reader = make_valle("midi").nar.reader  # 50 frames, 192 ticks a second
    rows = torch.tensor([[[BOS] * 6, [50, 9, 9, 4, 4 + 380, 4], [50, 9, 9, 4, 10, 19], [EOS] * 6]])
    moved = reader.later(rows, torch.tensor([25]))  # half a second, 96 ticks
    assert moved[0, 1].tolist() == [50, 9, 9, 4, 4 + 92, 5]
    assert moved[0, 2].tolist() == [50, 9, 9, 4, 10 + 96, 19]
    assert reader.later(rows, torch.tensor([150]))[0, 2].tolist() == [50, 9, 9, 4, 4 + 383, 19]
    assert torch.equal(moved[0, [0, 3]], rows[0, [0, 3]])
    assert torch.equal(reader.later(rows, torch.tensor([0])), rows)


# Losses


@CONDITIONS
@MODES
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_batch_equals_one_by_one(condition, mode, stage):
    model, pairs = make_valle(condition, prefix_mode=mode), make_pairs(condition)
    ends = torch.tensor([True, False, True])
    more = elsewhere(mode)
    options = {"train_stage": stage}
    whole = model(**pairs._asdict(), y_ends=ends, **more, **options)
    alone = [
        model(**pairs.row(b)._asdict(), y_ends=ends[b : b + 1], **rows_of(more, b), **options)
        for b in range(3)
    ]
    if mode == 1 and stage != 1:  # scaled to all frames by the batch's own share
        totals = {
            name: sum(float(a.metrics[name].total) for a in alone) for name in alone[0].metrics
        }
        found = {name: float(value.total) for name, value in whole.metrics.items()}
        assert found == pytest.approx(totals, rel=1e-4)
    else:
        torch.testing.assert_close(whole.loss, sum(a.loss for a in alone))
    for b, a in enumerate(alone):
        assert torch.equal(whole.predictions[b, : pairs.y_lens[b]], a.predictions[0])


@CONDITIONS
@MODES
def test_padding_changes_nothing(condition, mode):
    model, pairs = make_valle(condition, prefix_mode=mode), make_pairs(condition)
    expected = model(**pairs._asdict(), **elsewhere(mode))
    for fill in (0, 7):
        out = model(**padded(pairs, fill)._asdict(), **elsewhere(mode))
        torch.testing.assert_close(out.loss, expected.loss)
        assert torch.equal(out.predictions[:, :16], expected.predictions)
        assert (out.predictions[:, 16:] == UNKNOWN).all()


@CONDITIONS
@MODES
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_each_stage_trains_its_half_and_every_tensor_of_it(condition, mode, stage):
    """In every step, whichever quantizers are drawn: ranks exchange all gradients."""
    model, pairs = make_valle(condition, prefix_mode=mode).train(), make_pairs(condition)
    trained = {1: {"ar"}, 2: {"nar"}, 0: {"ar", "nar"}}[stage]
    for _ in range(4):
        model.zero_grad()
        row = pairs.row(0)._asdict()
        model(**row, **rows_of(elsewhere(mode), 0), train_stage=stage).loss.backward()
        found = {name for name, p in model.named_parameters() if p.grad is not None}
        every = {name for name, _ in model.named_parameters() if name.split(".")[0] in trained}
        assert found == every


@MODES
def test_the_nar_half_scores_what_it_does_not_see_whole(mode):
    model, pairs = make_valle(prefix_mode=mode), make_pairs()
    out = model(**pairs._asdict(), **elsewhere(mode), train_stage=2)
    prefix = [6, 3, 4] if mode == 1 else [0, 0, 0]  # three eighths
    for b, n in enumerate(prefix):
        assert (out.predictions[b, :n] == UNKNOWN).all()
        assert (out.predictions[b, n : pairs.y_lens[b], 1:] >= 0).all()
    scored = pairs.y_lens.sum() - sum(prefix)
    assert out.metrics["loss_q2"].num_frames == scored
    totals = [out.metrics[f"loss_q{q}"].total for q in (2, 3)]
    expected = torch.stack(totals).mean() * pairs.y_lens.sum() / scored
    torch.testing.assert_close(out.loss.detach(), expected)


def test_prefixes_are_drawn_in_training_within_their_bounds():
    model = make_valle(frame_rate=2.0).train()  # 3 s are 6 frames
    lens = torch.tensor([8, 100])
    drawn = torch.stack([model._prefix_lens(lens) for _ in range(300)])
    assert set(drawn[:, 0].tolist()) == {0, 2, 3}  # 4 of 8 is never reached
    assert set(drawn[:, 1].tolist()) == {0, 6}
    none = (drawn == 0).float().mean()
    assert 0.05 < none < 0.15
    state = model.stage_generator.get_state()
    first = model._prefix_lens(lens)
    model.stage_generator.set_state(state)
    assert torch.equal(model._prefix_lens(lens), first)
    assert model.eval()._prefix_lens(lens).tolist() == [3, 6]


def test_a_target_of_one_frame_has_no_prefix():
    pairs = make_pairs().row(0)
    out = make_valle()(pairs.x, pairs.x_lens, pairs.y[:, :1], torch.tensor([1]))
    assert out.loss.isfinite()
    assert (out.predictions >= 0).all()


def test_mode_0_knows_nothing_of_higher_quantizers_of_its_own():
    """The prediction of quantizer 2 stands on quantizer 1 alone, in all frames."""
    model, pairs = make_valle(prefix_mode=0), make_pairs().row(0)
    other = pairs.y.clone()
    other[:, :, 1:] = (other[:, :, 1:] + 1) % 20
    found = [model(pairs.x, pairs.x_lens, y, pairs.y_lens).predictions for y in (pairs.y, other)]
    assert torch.equal(found[0][:, :, :2], found[1][:, :, :2])


def test_mode_4_hears_its_prompt_whole():
    model, pairs = make_valle(prefix_mode=4), make_pairs().row(0)
    more = rows_of(elsewhere(4), 0)
    other = {**more, "prompts": more["prompts"].clone()}
    other["prompts"][:, :, 2] = (other["prompts"][:, :, 2] + 1) % 20
    losses = [model(**pairs._asdict(), **each, train_stage=2).loss for each in (more, other)]
    assert losses[0] != losses[1]


# Generation


@pytest.fixture(params=["eager", "fused"])
def fused(request) -> bool:
    reason = why_not_fused(make_valle().ar.decoder)
    if request.param == "fused" and reason is not None:
        pytest.skip(reason)
    return request.param == "fused"


@CONDITIONS
@pytest.mark.parametrize("num_known", [0, 3])
@pytest.mark.parametrize("options", VARIANTS)
def test_cached_logits_equal_uncached(condition, options, num_known, fused):
    model, pairs = make_valle(condition, **options), make_pairs(condition)
    ar, codes = model.ar, pairs.y[:, :9, 0]
    cache = ar.decoder.new_cache(batch_size=3, max_len=9 + 9 + ar.num_bos)
    with torch.no_grad():
        read, _ = ar.read(pairs.y[:, :0], 0 * pairs.y_lens, model.given(pairs.x, pairs.x_lens))
        expected = ar(read, codes, torch.full((3,), 9))
        known = Known(codes[:, :num_known], torch.full((3,), num_known))
        logits, lens = ar.prefill(read, known, cache)
        torch.testing.assert_close(logits, expected[:, num_known], atol=1e-4, rtol=0)
        step = FusedStep(ar.decoder, ar.head) if fused else None
        state = ARState(cache, lens, None, step, read.num_out_of_time)
        for t in range(num_known, 9):
            logits = ar.decode_one_frame(codes[:, t], state)
            torch.testing.assert_close(logits, expected[:, t + 1], atol=1e-4, rtol=0)


@CONDITIONS
@MODES
def test_ragged_batch_equals_one_by_one(condition, mode, fused):
    model, pairs = make_valle(condition, prefix_mode=mode), make_pairs(condition)
    engine = Engine(model, fused=fused)
    prompt_lens, enrolled = torch.tensor([4, 0, 2]), torch.tensor([5, 2, 3])
    options = SAMPLED | {"max_new_tokens": 12, "return_lens": True}
    with torch.no_grad():
        model.ar.head.bias[model.eos_id] = 1.0
    engine = Engine(model, fused=fused)
    together, lens = engine.inference(
        pairs.x, pairs.x_lens, pairs.y[:, :4], enrolled, y_lens=prompt_lens,
        generator=seeded(1, 2, 3), **options,
    )  # fmt: skip
    for b in range(3):
        row = pairs.row(b)
        alone, alone_lens = engine.inference(
            row.x, row.x_lens, row.y[:, : prompt_lens[b]], enrolled[b : b + 1],
            generator=seeded(b + 1), **options,
        )  # fmt: skip
        assert alone_lens[0] == lens[b]
        assert torch.equal(alone[0], together[b, : lens[b]])
        assert (together[b, lens[b] :] == UNKNOWN).all()


@CONDITIONS
@MODES
def test_greedy_codes_are_the_models_own_predictions(condition, mode):
    """Teacher forcing on prompt and what was generated must predict just that."""
    model, row = make_valle(condition, prefix_mode=mode), make_pairs(condition).row(0)
    prompt, greedy = row.y[:, :4], {"temperature": 0.0, "max_new_tokens": 7, "ignore_eos": True}
    made = model.inference(row.x, row.x_lens, prompt, **greedy)
    assert made.shape == (1, 7, 3)
    given = model.given(row.x, row.x_lens)
    lens = torch.tensor([4]), torch.tensor([7])
    with torch.no_grad():
        model.ar.head.bias[model.eos_id] = -1e9
        costs = frame_costs(model, prompt, lens[0], made, lens[1], given=given)
    assert (costs.ranks == 0).all()


def test_mode_0_takes_the_prompts_codes_as_they_are():
    """Whatever quantizer 2 of a prompt is, it is read in the pass that predicts quantizer 3."""
    model, row = make_valle(prefix_mode=0), make_pairs().row(0)
    lens = torch.tensor([5]), torch.tensor([11])
    prompts = [row.y[:, :5], row.y[:, :5].clone()]
    prompts[1][:, :, 1] = (prompts[1][:, :, 1] + 3) % 20
    given = model.given(row.x, row.x_lens)
    first, second = (
        frame_costs(model, prompt, lens[0], row.y[:, 5:], lens[1], given=given).nats
        for prompt in prompts
    )
    assert torch.equal(first[:, :, :2], second[:, :, :2])
    assert not torch.equal(first[:, :, 2], second[:, :, 2])
    seen, nar = [], model.nar.forward
    model.nar.forward = lambda read, codes, *more: seen.append(codes) or nar(read, codes, *more)
    model.inference(row.x, row.x_lens, prompts[1], max_new_tokens=6, ignore_eos=True)
    assert torch.equal(seen[1][:, :5], prompts[1][:, :, :2])


@CONDITIONS
def test_mode_4_tells_the_nar_half_of_the_target_alone(condition):
    """What belongs to the prompt is left out: BOS, then what comes behind its own EOS."""
    model, pairs = make_valle(condition, prefix_mode=4), make_pairs(condition)
    given = model.given(pairs.x, pairs.x_lens, torch.tensor([5, 2, 4])).of_target()
    assert given.lens.tolist() == [6, 4, 4]
    for b, n in enumerate([3, 0, 2]):
        expected = torch.cat([pairs.x[b, :1], pairs.x[b, 1 + n : pairs.x_lens[b]]])
        assert torch.equal(given.tokens[b, : given.lens[b]], expected)
    prompt, lens = pairs.y[:, :4], torch.tensor([4, 0, 2])
    read, _ = model.nar.read(
        prompt, lens, model.given(pairs.x, pairs.x_lens, torch.tensor([5, 2, 4]))
    )
    assert read.lens.tolist() == [6 + 4, 4, 4 + 2]
    untouched = make_valle(condition).given(pairs.x, pairs.x_lens, torch.tensor([5, 2, 4]))
    assert torch.equal(untouched.of_target().tokens, untouched.tokens)


@CONDITIONS
@MODES
def test_a_stream_in_one_chunk_is_the_inference(condition, mode):
    model, pairs = make_valle(condition, prefix_mode=mode), make_pairs(condition)
    options = {"max_new_tokens": 9, "ignore_eos": True}
    whole = model.inference(pairs.x, pairs.x_lens, generator=seeded(1, 2, 3), **options)
    how = {"chunk": 9, "lookahead": 0, "nar_context": 0}
    made = model.stream(pairs.x, pairs.x_lens, generator=seeded(1, 2, 3), **options, **how)
    assert torch.equal(torch.cat(list(made), dim=1), whole)


@CONDITIONS
@MODES
def test_each_chunk_goes_on_from_those_before_it_as_from_a_prompt(condition, mode):
    model, pairs = make_valle(condition, prefix_mode=mode), make_pairs(condition)
    lens = torch.tensor([4, 0, 2])
    options = {"temperature": 0.0, "ignore_eos": True}
    chunks = list(
        model.stream(
            pairs.x, pairs.x_lens, pairs.y[:, :4], y_lens=lens, max_new_tokens=9, chunk=4,
            lookahead=0, nar_context=0, **options,
        )
    )  # fmt: skip
    assert [chunk.shape[1] for chunk in chunks] == [4, 4, 1]
    for b, n in enumerate(lens):
        row, known = pairs.row(b), pairs.y[b : b + 1, :n]
        for chunk in chunks:
            num = chunk.shape[1]
            again = model.inference(row.x, row.x_lens, known, max_new_tokens=num, **options)
            assert torch.equal(again, chunk[b : b + 1])
            known = torch.cat([known, again], dim=1)


@CONDITIONS
@MODES
def test_frames_out_of_the_nar_context_leave_the_others_where_they_were(condition, mode):
    model, pairs = make_valle(condition, prefix_mode=mode), make_pairs(condition).row(0)
    seen, read = [], model.nar.read
    model.nar.read = lambda *args: seen.append(read(*args)) or seen[-1]
    options = {"max_new_tokens": 9, "ignore_eos": True, "chunk": 4, "lookahead": 0}
    list(model.stream(pairs.x, pairs.x_lens, pairs.y[:, :5], nar_context=3, **options))
    for done, (condition_read, known) in zip((5, 9, 13), seen, strict=True):
        first = done - 3  # the place of the first frame that is still heard
        num = condition_read.places.own.shape[1] - pairs.x.shape[1]
        assert (num, len(known.codes[0])) == ((0, 3) if mode == 0 else (3, 0))
        assert int(condition_read.places.next) == (first if mode == 0 else done)
        assert condition_read.places.own[0, pairs.x.shape[1] :].tolist() == [
            first + i for i in range(num)
        ]


def test_samples_side_by_side_equal_rows_of_their_own():
    model, pairs = make_valle(), make_pairs()
    options = SAMPLED | {"max_new_tokens": 6, "ignore_eos": True}
    samples = model.inference(
        pairs.x, pairs.x_lens, num_samples=2, generator=seeded(*range(6)), **options
    )
    x, x_lens = (t.repeat_interleave(2, dim=0) for t in (pairs.x, pairs.x_lens))
    assert torch.equal(samples, model.inference(x, x_lens, generator=seeded(*range(6)), **options))


@CONDITIONS
@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_other_types_generate(condition, dtype):
    """Logits of the next frame against those in float32, in units of their spread."""
    model, pairs = make_valle(condition), make_pairs(condition)
    engine = Engine(model, dtype=dtype)
    assert engine.inference(pairs.x, pairs.x_lens, max_new_tokens=5).shape[0] == 3
    logits = []
    for ar in (model.ar, engine.ar):
        read, known = ar.read(
            pairs.y[:, :2], torch.full((3,), 2), model.given(pairs.x, pairs.x_lens)
        )
        with torch.no_grad():
            logits.append(ar.prefill(read, known, ar.decoder.new_cache(3, 20))[0])
    exact, near = logits
    assert 0 < (near - exact).std() < 0.05 * exact.std()


def test_a_long_condition_is_read_to_its_end():
    model = make_valle()
    x = torch.randint(3, 11, (1, 3000), generator=torch.Generator().manual_seed(0))
    other = x.clone()
    other[0, -1] = 3 + (x[0, -1] - 2) % 8
    y, lens = make_pairs().row(0).y, torch.tensor([16])
    losses = [model(each, torch.tensor([3000]), y, lens).loss for each in (x, other)]
    assert losses[0] != losses[1]
    assert model.inference(x, max_new_tokens=3, ignore_eos=True).shape == (1, 3, 3)


# Learning


@CONDITIONS
@pytest.mark.parametrize("mode", [0, 1])
def test_a_batch_is_learned_by_heart_and_reproduced(condition, mode):
    """From its condition alone, or with a prompt, to the last frame and the end after it."""
    model, pairs = make_valle(condition, prefix_mode=mode).train(), make_pairs(condition)
    pairs = pairs._replace(x=pairs.x.clone())
    pairs.x[:, 1] = pairs.x[:, 1].flip(0)  # no two rows begin alike
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(250):
        optimizer.zero_grad()
        ends = torch.ones(3, dtype=torch.bool)
        model(**pairs._asdict(), y_ends=ends, reduction="mean", all_stages=True).loss.backward()
        optimizer.step()
    model.eval()
    greedy = {"temperature": 0.0, "max_new_tokens": 30, "return_lens": True}
    for num_given in (0, 3):
        made, lens = model.inference(pairs.x, pairs.x_lens, pairs.y[:, :num_given], **greedy)
        assert lens.tolist() == (pairs.y_lens - num_given).tolist()
        for b, n in enumerate(pairs.y_lens):
            assert torch.equal(made[b, : n - num_given], pairs.y[b, num_given:n])


# Errors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(3, 9)}, "ids of symbols"),
        ({"x": torch.zeros(3, 9, 6, dtype=torch.long)}, "ids of symbols"),
        ({"x": torch.full((3, 9), 11)}, "below 11, and none below 0, got 0 to 11"),
        ({"x": torch.full((3, 9), -2)}, "got -2 to 0"),
        ({"x_lens": torch.tensor([9, 0, 6])}, r"\[1, 9\], got 0 to 9: even an empty text"),
        ({"x_lens": torch.tensor([9, 10, 6])}, r"\[1, 9\], got 6 to 10"),
        ({"x_lens": torch.tensor([9, 4])}, r"x_lens must be \(3,\)"),
        (
            {"x": torch.zeros(3, 5000, dtype=torch.long)},
            "5000 text tokens, and the model takes 4096",
        ),
        ({"y": torch.zeros(3, 16, 4, dtype=torch.long)}, "integer codes"),
        ({"reduction": "none"}, "reduction"),
        ({"prompts": torch.zeros(3, 2, 3, dtype=torch.long)}, "with 1 some came"),
        ({"prompts_lens": torch.zeros(3, dtype=torch.long)}, "with 1 none came"),
        (
            {"y_ends": torch.tensor([True])},
            "as many rows in each of the inputs, got x 3, y 3, y_en",
        ),
        (
            {"y": torch.zeros(1, 16, 3, dtype=torch.long), "y_lens": torch.tensor([16])},
            "got x 3, y 1",
        ),
    ],
)
def test_refuses_what_cannot_be(change, message):
    with pytest.raises(ValueError, match=message):
        make_valle()(**(make_pairs()._asdict() | change))


def test_refuses_events_that_cannot_be():
    pairs = make_pairs("midi")
    with pytest.raises(ValueError, match=r"MIDI events \(batch, events, 6\)"):
        make_valle("midi")(**(pairs._asdict() | {"x": pairs.x[:, :, 0]}))
    late = pairs.x.clone()
    late[0, 1, 5] = 20  # beyond the last bar
    with pytest.raises(ValueError, match=r"got .* to \[.*20\]"):
        make_valle("midi")(**(pairs._asdict() | {"x": late}))


def test_mode_4_needs_prompts():
    with pytest.raises(ValueError, match="with 4 none came"):
        make_valle(prefix_mode=4)(**make_pairs()._asdict())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"y": torch.zeros(2, 4, 3, dtype=torch.long)}, "x holds 3 rows and y 2"),
        ({"y": torch.full((3, 4, 3), 20)}, r"y must hold codes in \[0, 20\)"),
        ({"enroll_x_lens": torch.tensor([1, 2, 2])}, r"enroll_x_lens must be \(3,\), each from 2"),
        ({"enroll_x_lens": torch.tensor([9, 5, 6])}, r"to x_lens \[9, 4, 6\]"),
        ({"window": 40}, "a window would part frames from their text"),
        ({"y_lens": torch.tensor([3, 3, 3])}, "y_lens came without y"),
    ],
)
def test_inference_refuses_what_cannot_be(arguments, message):
    pairs = make_pairs()
    with pytest.raises(ValueError, match=message):
        make_valle().inference(pairs.x, pairs.x_lens, **arguments)


def test_inference_refuses_no_rows():
    with pytest.raises(ValueError, match="x holds no row"):
        make_valle().inference(torch.zeros(0, 4, dtype=torch.long))


def test_an_audio_lm_takes_no_second_prompt(batch):
    with pytest.raises(ValueError, match="y is for a VALLE"):
        Engine(make_model()).inference(batch.x, batch.x_lens, batch.y)


def test_a_valle_fills_no_gaps(batch):
    with pytest.raises(ValueError, match="makes audio of text and fills no gaps"):
        Engine(make_valle()).infill(batch.x, None, batch.x, None, 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"condition": "lyrics"}, "condition must be text or midi, got lyrics"),
        ({"prefix_mode": 2}, "prefix_mode must be one of 0, 1, 4, got 2"),
        ({"num_text_tokens": 0}, "num_text_tokens must be positive"),
        ({"frame_rate": 0.0}, "frame_rate must be positive"),
    ],
)
def test_configurations_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        VALLEConfig(**settings)


# By name, and out of files


@pytest.mark.parametrize("name", ["valle", "VALL-E", "vall-e", "VALLE"])
def test_model_names_of_the_family(name):
    params = AttributeDict(
        model_name=name, decoder_dim=32, nhead=4, num_decoder_layers=1, norm_first=True,
        add_prenet=False, num_quantizers=3, scale_factor=1.0, prepend_bos=False,
        num_audio_tokens=20, dropout=0.0, positions="rotary", condition="text", prefix_mode=0,
        num_text_tokens=12, frame_rate=75.0,
    )  # fmt: skip
    model = get_model(params)
    assert isinstance(model, VALLE)
    assert (model.config.num_text_tokens, model.config.prefix_mode) == (12, 0)
    with pytest.raises(ValueError, match="must be one of audio-lm, valle, vall-e, got vall-f"):
        get_model(AttributeDict(params, model_name="vall-f"))


@CONDITIONS
def test_a_checkpoint_says_which_model_it_holds(condition, tmp_path):
    kinds = {"valle": make_valle(condition), "audio-lm": make_model()}
    for name, model in kinds.items():
        config = dataclasses.asdict(model.config)
        save_checkpoint(tmp_path / f"{name}.pt", model, {"config": config})
        loaded = load_model(tmp_path / f"{name}.pt")
        assert type(loaded) is type(model)
        assert loaded.config == model.config
        assert not loaded.training
    with pytest.raises(ValueError, match="holds the weights of VALLE, expected AudioLM"):
        AudioLM.from_checkpoint(tmp_path / "valle.pt")
    with pytest.raises(ValueError, match="holds the weights of AudioLM, expected VALLE"):
        VALLE.from_checkpoint(tmp_path / "audio-lm.pt")
    save_checkpoint(tmp_path / "other.pt", kinds["valle"], {"config": {"width": 3}})
    with pytest.raises(ValueError, match="no model has the settings width: was the file"):
        load_model(tmp_path / "other.pt")


def test_a_derived_class_is_rebuilt_as_what_it_is(tmp_path):
    class Mine(AudioLM):
        pass

    config = dataclasses.asdict(make_model().config)
    save_checkpoint(tmp_path / "mine.pt", make_model(), {"config": config})
    assert type(Mine.from_checkpoint(tmp_path / "mine.pt")) is Mine


def test_what_is_scored_is_told_of_what_it_needs(batch):
    valle, pairs = make_valle(), make_pairs()
    given = valle.given(pairs.x, pairs.x_lens)
    rows = (pairs.y[:, :0], torch.zeros(3, dtype=torch.long), pairs.y, pairs.y_lens)
    with pytest.raises(ValueError, match="VALLE needs `given`"):
        frame_costs(valle, *rows)
    with pytest.raises(ValueError, match="AudioLM has no use for `given`"):
        frame_costs(make_model(), *batch, given=given)
    with pytest.raises(ValueError, match="makes audio of text and fills no gaps"):
        frame_costs(valle, *rows, after=pairs.y[:, :2], given=given)
