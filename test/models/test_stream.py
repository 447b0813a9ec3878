"""Pieces that come in chunks, and pieces longer than what the halves read at a time."""

import pytest
import torch
from conftest import make_model

from valle.models import Engine, GenerationOptions
from valle.models.continuation import Continuation
from valle.models.engine import STREAM_OPTIONS
from valle.models.options import Windows

SAMPLED = {"top_k": 9, "nar_temperature": 0.7, "repetition_window": 4}
WINDOWS = [
    {"chunk": 5},
    {"chunk": 5, "lookahead": 3},
    {"chunk": 5, "lookahead": 3, "nar_context": 4},
    {"chunk": 30, "lookahead": 3},
    {"window": 16},
    {"window": 16, "stride": 10, "lookahead": 2},
    {"window": 16, "stride": 9, "chunk": 4, "lookahead": 3, "nar_context": 6},
]


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize("windows", WINDOWS)
def test_chunks_joined_are_the_inference_of_the_same_windows(model, batch, windows):
    options = SAMPLED | {"max_new_tokens": 23, "ignore_eos": True, "lookahead": 0, "nar_context": 0}
    options |= windows
    joint = model.inference(batch.x[:1], generator=seeded(1), **options)
    options = {"chunk": 0} | options
    chunks = list(model.stream(batch.x[:1], generator=seeded(1), **options))
    assert torch.equal(torch.cat(chunks, dim=1), joint[:, 7:])
    expected = options["chunk"] or options["window"] // 2
    if options.get("stride"):
        expected = options["chunk"] or options["stride"] - options["lookahead"]
    assert {c.shape[1] for c in chunks[:-1]} <= {expected}
    assert joint.shape == (1, 30, 3)


@pytest.mark.parametrize("windows", WINDOWS)
@pytest.mark.parametrize("eos", [-1e9, 1.5])
def test_rows_do_not_depend_on_their_neighbours(batch, windows, eos):
    """Neither where rows end in the midst of chunks, nor where their windows move apart."""
    model = make_model()
    with torch.no_grad():
        model.ar.head.bias[model.eos_id] = eos
    x, x_lens = batch.x.repeat(2, 1, 1), batch.x_lens.repeat(2)
    options = SAMPLED | {"max_new_tokens": 23, "return_lens": True} | windows
    together, lens = model.inference(x, x_lens, generator=seeded(*range(6)), **options)
    for b, n in enumerate(x_lens):
        alone, alone_lens = model.inference(x[b : b + 1, :n], generator=seeded(b), **options)
        assert alone_lens[0] == lens[b]
        assert torch.equal(alone[0], together[b, : lens[b]])
        assert (together[b, lens[b] :] == -1).all()
    if eos > 0:
        assert len((lens - x_lens).unique()) > 2


@torch.no_grad()
def test_a_chunk_is_the_full_pass_over_the_frames_it_hears(model, batch):
    """Quantizers 2 and up: 4 complete frames, a chunk of 5, 3 frames of quantizer 1 after it."""
    out = model.inference(
        batch.x[:1], max_new_tokens=20, ignore_eos=True, chunk=5, lookahead=3, nar_context=4
    )
    for start in range(7, 27, 5):
        complete, heard = out[:, start - 4 : start], out[:, start : start + 8].clone()
        for q in (1, 2):
            logits = model.nar(
                model.nar.embedding(complete), torch.tensor([4]), heard[:, :, :q],
                torch.tensor([heard.shape[1]]), torch.tensor([q]),
            )  # fmt: skip
            heard[:, :, q] = logits.argmax(-1)
        assert torch.equal(heard[:, :5], out[:, start : start + 5])


@torch.no_grad()
@pytest.mark.parametrize("prepend_bos", [False, True])
def test_the_window_moves_by_its_stride(batch, prepend_bos):
    """What the AR half drew is what it predicts from the frames that its window holds."""
    model = make_model(prepend_bos=prepend_bos)
    options = {"window": 12, "stride": 6, "chunk": 3, "lookahead": 2}
    out = model.inference(batch.x[:1], max_new_tokens=30, temperature=0, ignore_eos=True, **options)
    # chunks end at 10, 13, ...; quantizer 1 is 2 frames ahead; 12 - 6 frames stay, 2 of them ahead
    moves = [(0, 7)] + [(done - 4, done) for done in range(10, 35, 6)]
    for (first, done), (_, next_done) in zip(moves, [*moves[1:], (0, 35)], strict=True):
        stop = min(next_done + 2, 37)
        condition, codes = out[:, first:done], out[:, done:stop, 0]
        logits = model.ar(
            model.ar.embedding(condition), torch.tensor([done - first]),
            codes, torch.tensor([codes.shape[1]]),
        )  # fmt: skip
        predicted = logits[0, :, : model.eos_id].argmax(-1)
        ahead = 0 if first == 0 else 2  # these were drawn from the window before
        assert torch.equal(predicted[ahead:-1], codes[0, ahead:])
        assert condition.shape[1] + codes.shape[1] <= 12


def test_a_long_prompt_is_read_from_its_end(model):
    prompt = torch.randint(0, 20, (1, 40, 3))
    options = {"max_new_tokens": 20, "temperature": 0, "ignore_eos": True, "window": 16}
    out = model.inference(prompt, **options)
    assert torch.equal(out[:, :40], prompt)
    assert torch.equal(out[:, 40:], model.inference(prompt[:, -8:], **options)[:, 8:])


def test_memory_does_not_grow_with_the_piece(model, batch):
    """All that a continuation holds, after 100 frames and after 300."""

    def held(num_frames: int) -> int:
        options = GenerationOptions(
            max_new_tokens=num_frames, ignore_eos=True, window=30, chunk=5, lookahead=3
        )
        run = Continuation(model.ar, model.nar, list(batch.x), seeded(0, 1, 2), options)
        for _ in run.chunks():
            pass
        rows = run._rows
        tensors = [*run._complete, rows.codes, rows.uniforms, rows._state.cache.data]
        return sum(t.numel() for t in tensors)

    assert held(100) == held(300)


def test_a_stream_starts_before_the_end(model, batch):
    drawn = []
    stream = model.stream(batch.x, max_new_tokens=1000, ignore_eos=True, progress=drawn.append)
    assert next(stream).shape == (3, STREAM_OPTIONS["chunk"], 3)
    assert drawn[-1] == STREAM_OPTIONS["chunk"] + STREAM_OPTIONS["lookahead"]


def test_a_stream_leaves_the_model_as_it_is_between_chunks(batch):
    model = make_model(dropout=0.5).train()
    options = {"max_new_tokens": 20, "temperature": 0, "ignore_eos": True, "chunk": 5}
    chunks = []
    for chunk in model.stream(batch.x, **options):
        assert model.ar.training
        assert model.nar.training
        assert torch.is_grad_enabled()
        chunks.append(chunk)
    expected = list(model.eval().stream(batch.x, **options))
    assert torch.equal(torch.cat(chunks, dim=1), torch.cat(expected, dim=1))


def test_nothing_comes_where_a_piece_ends_at_once(batch):
    model = make_model()
    with torch.no_grad():
        model.ar.head.bias[model.eos_id] = 1e9
    assert list(model.stream(batch.x)) == []
    assert list(model.stream(batch.x, max_new_tokens=0)) == []
    with torch.no_grad():
        model.ar.head.bias[model.eos_id] = 0
    assert list(model.stream(batch.x, max_new_tokens=0)) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunk": -1}, "chunk must be 0 or more frames, got -1"),
        ({"window": 16, "stride": 16}, "stride 16 must be less than window 16"),
        ({"window": 16, "chunk": 9}, "must fit into the stride of 8"),
        ({"window": 16, "lookahead": 8}, "must leave more than the lookahead of 8"),
        ({"window": 16, "stride": 15}, "must leave more than the lookahead of 0"),
        ({"window": 1}, "window 1"),
    ],
)
def test_windows_that_cannot_be_are_refused_at_once(model, batch, options, message):
    with pytest.raises(ValueError, match=message):
        model.stream(batch.x, **({"lookahead": 0, "chunk": 0} | options))


def test_what_is_kept_is_what_may_be_read():
    assert Windows().kept == 0
    assert Windows(nar_context=9).kept == 9
    assert Windows(context=20, stride=12).kept == 8
    assert Windows(context=20, stride=12, nar_context=15).kept == 15


class TestEngine:
    def test_bfloat16_and_its_halves(self, model, batch):
        engine = Engine(model, dtype="bfloat16")
        out = engine.inference(batch.x, max_new_tokens=9, ignore_eos=True)
        assert out.shape == (3, 16, 3)
        assert next(engine.ar.parameters()).dtype == torch.bfloat16
        assert next(model.parameters()).dtype == torch.float32
        assert engine.ar is not model.ar

    def test_the_models_own_type_copies_nothing(self, model):
        for engine in (Engine(model), Engine(model, dtype="float32")):
            assert engine.ar is model.ar
            assert engine.nar is model.nar

    def test_quantized_weights_are_only_in_the_ar_half(self, model, batch):
        engine = Engine(model, dtype="int8")
        out = engine.inference(batch.x, max_new_tokens=9, ignore_eos=True)
        assert out.shape == (3, 16, 3)
        names = [name for name, _ in engine.ar.named_parameters() if "weight" in name]
        assert all("embedding" in name or "norm" in name for name in names), names
        assert sum(p.numel() for p in engine.nar.parameters()) == sum(
            p.numel() for p in model.nar.parameters()
        )
        assert model.ar.head.weight.dtype == torch.float32
        assert engine.ar.decoder.new_cache(1, 1).data.dtype == torch.bfloat16

    def test_fused_and_layer_by_layer_agree(self, model, batch):
        fused, eager = (
            Engine(model, fused=f).inference(
                batch.x, batch.x_lens, max_new_tokens=40, temperature=0, ignore_eos=True
            )
            for f in (None, False)
        )
        assert torch.equal(fused, eager)

    def test_other_types_are_refused(self, model):
        with pytest.raises(ValueError, match="float32, bfloat16, int8, int4, got float16"):
            Engine(model, dtype="float16")

    def test_wanting_what_cannot_be_had_says_why(self, model, monkeypatch):
        monkeypatch.setenv("VALLE_FUSED", "0")
        with pytest.raises(ValueError, match="VALLE_FUSED"):
            Engine(model, fused=True)
        assert Engine(model).fused is None

    def test_unknown_options_are_named(self, model, batch):
        with pytest.raises(TypeError, match="top_q"):
            model.inference(batch.x, top_q=3)
