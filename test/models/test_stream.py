"""Pieces that come in chunks, and pieces longer than what the halves read at a time."""

import pytest
import torch
from conftest import make_model

from valle.models import Engine, GenerationOptions, generation
from valle.models.ar import ARState
from valle.models.continuation import Continuation
from valle.models.engine import STREAM_OPTIONS
from valle.models.options import Windows
from valle.modules.fused_step import why_not_fused
from valle.modules.sampling import sample_unlike

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
@pytest.mark.parametrize("fused", [None, False])
def test_rows_do_not_depend_on_their_neighbours(batch, windows, eos, fused):
    """Neither where rows end in the midst of chunks, nor where their windows move apart."""
    model = make_model()
    with torch.no_grad():
        model.ar.head.bias[model.eos_id] = eos
    model = Engine(model, fused=fused)
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
            before, _ = model.nar.read(complete, torch.tensor([4]))
            num_heard, stage = torch.tensor([heard.shape[1]]), torch.tensor([q])
            logits = model.nar(before, heard[:, :, :q], num_heard, stage)
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
        before, _ = model.ar.read(condition, torch.tensor([done - first]))
        logits = model.ar(before, codes, torch.tensor([codes.shape[1]]))
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


def test_a_window_that_holds_all_is_no_window(model, batch):
    options = SAMPLED | {"max_new_tokens": 20, "ignore_eos": True}
    plain = model.inference(batch.x, batch.x_lens, generator=seeded(1, 2, 3), **options)
    windowed = model.inference(
        batch.x, batch.x_lens, generator=seeded(1, 2, 3), window=1000, **options
    )
    assert torch.equal(plain, windowed)


@pytest.mark.parametrize("num_prompt", [3, 7])
def test_repetition_is_measured_against_the_frames_before(model, batch, monkeypatch, num_prompt):
    """Whether they are of the prompt or new."""
    seen = []

    def recording(logits, how, uniforms, recent):
        seen.append(sorted(recent[0].tolist()))
        return sample_unlike(logits, how, uniforms, recent)

    monkeypatch.setattr(generation, "sample_unlike", recording)
    options = {"max_new_tokens": 20, "ignore_eos": True, "repetition_window": 6}
    codes = model.inference(batch.x[:1, :num_prompt], **options)[0, :, 0].tolist()
    for t, recent in enumerate(seen):
        before = codes[max(num_prompt + t - 6, 0) : num_prompt + t]
        assert recent == sorted([-1] * (6 - len(before)) + before)


def test_rows_that_have_ended_leave_the_batch(batch):
    model = make_model()
    with torch.no_grad():
        model.ar.head.bias[model.eos_id] = 1.5
    decode, sizes = model.ar.decode_one_frame, []
    model.ar.decode_one_frame = lambda codes, state: (
        sizes.append(len(codes)) or decode(codes, state)
    )
    model.inference(batch.x.repeat(4, 1, 1), max_new_tokens=60, generator=seeded(*range(12)))
    assert sizes[0] > 8
    assert sizes[-1] < 4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("windows", WINDOWS)
def test_a_graph_replays_what_a_cpu_computes(batch, windows):
    model = make_model()
    with torch.no_grad():
        model.ar.head.bias[model.eos_id] = 1.5
    x, x_lens = batch.x.repeat(4, 1, 1), batch.x_lens.repeat(4)
    options = SAMPLED | {"max_new_tokens": 60} | windows
    on_cpu = model.inference(x, x_lens, generator=seeded(*range(12)), **options)
    model, x, x_lens = model.cuda(), x.cuda(), x_lens.cuda()
    on_gpu = model.inference(x, x_lens, generator=seeded(*range(12)), **options)
    assert torch.equal(on_gpu.cpu(), on_cpu)


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


def test_a_stream_fits_into_a_short_window(model, batch):
    options = {"max_new_tokens": 40, "ignore_eos": True, "window": 30}
    chunks = list(model.stream(batch.x, **options))
    assert [c.shape[1] for c in chunks] == [10] * 4


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
        ({"window": -1}, "window must be 0 or more frames, got -1"),
        ({"stride": 5}, "stride 5 moves a window, but window is 0"),
        ({"generator": seeded(1, 2)}, "3 rows need as many generators, got 2"),
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
    assert Windows(window=20, stride=12).kept == 8
    assert Windows(window=20, stride=12, nar_context=15).kept == 15


class TestEngine:
    @pytest.mark.parametrize(
        ("dtype", "bound"), [("bfloat16", 0.02), ("int8", 0.03), ("int4", 0.25)]
    )
    def test_other_types_are_near(self, model, batch, dtype, bound):
        """Logits of the fused or eager step against those in float32, in units of their spread."""
        engine = Engine(model, dtype=dtype)
        assert engine.ar is not model.ar
        assert next(engine.nar.parameters()).dtype == torch.bfloat16
        assert next(model.parameters()).dtype == torch.float32
        logits = []
        for ar, fused in ((model.ar, None), (engine.ar, engine.fused)):
            cache = ar.decoder.new_cache(3, 20)
            with torch.no_grad():
                _, lens = ar.prefill(*ar.read(batch.x, batch.x_lens), cache)
                state = ARState(cache, lens, 7, fused)
                logits.append(
                    torch.stack([ar.decode_one_frame(batch.y[:, t, 0], state) for t in range(9)])
                )
        exact, near = logits
        assert 0 < (near - exact).std() < bound * exact.std()

    def test_the_models_own_type_copies_nothing(self, model):
        for engine in (Engine(model), Engine(model, dtype="float32")):
            assert engine.ar is model.ar
            assert engine.nar is model.nar

    def test_quantized_weights_are_only_in_the_ar_half(self, model):
        engine = Engine(model, dtype="int8")
        names = [name for name, _ in engine.ar.named_parameters() if "weight" in name]
        assert all("embedding" in name or "norm" in name for name in names), names
        assert sum(p.numel() for p in engine.nar.parameters()) == sum(
            p.numel() for p in model.nar.parameters()
        )
        assert model.ar.head.weight.dtype == torch.float32
        assert engine.ar.decoder.new_cache(1, 1).data.dtype == torch.bfloat16

    def test_fused_and_layer_by_layer_agree(self, model, batch):
        if (reason := why_not_fused(model.ar.decoder)) is not None:
            pytest.skip(reason)
        fused, eager = (
            Engine(model, fused=f).inference(
                batch.x, batch.x_lens, max_new_tokens=40, temperature=0, ignore_eos=True
            )
            for f in (True, False)
        )
        assert torch.equal(fused, eager)

    def test_other_types_are_refused(self, model):
        with pytest.raises(ValueError, match="float32, bfloat16, int8, int4, got float16"):
            Engine(model, dtype="float16")

    def test_wanting_what_cannot_be_had_says_why(self, model, monkeypatch, caplog):
        monkeypatch.setenv("VALLE_FUSED", "0")
        with pytest.raises(ValueError, match="VALLE_FUSED"):
            Engine(model, fused=True)
        assert Engine(model).fused is None
        assert "layer by layer" in caplog.text

    def test_unknown_options_are_named(self, model, batch):
        with pytest.raises(TypeError, match="top_q"):
            model.inference(batch.x, top_q=3)
