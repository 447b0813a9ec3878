import pytest
import torch
from conftest import Batch, make_model

from valle.models import Engine
from valle.models.ar import ARState
from valle.models.condition import Condition, Known
from valle.modules.fused_step import FusedStep, why_not_fused

GREEDY = {"temperature": 0.0, "ignore_eos": True}
SAMPLED = {"top_k": 9, "nar_temperature": 0.7, "repetition_window": 4, "ignore_eos": True}
VARIANTS = [
    {},
    {"prepend_bos": True},
    {"norm_first": False},
    {"add_prenet": True},
    {"positions": "sine"},
]


@pytest.fixture(params=["fused", "eager"])
def fused(request) -> bool:
    """Both ways through a frame, where this machine has both."""
    reason = why_not_fused(make_model().ar.decoder)
    if request.param == "fused" and reason is not None:
        pytest.skip(reason)
    return request.param == "fused"


@pytest.mark.parametrize("longest", [None, 5])
@pytest.mark.parametrize("num_known", [0, 3])
@pytest.mark.parametrize("options", VARIANTS)
def test_cached_logits_equal_uncached(options, num_known, longest, fused):
    """However many codes come with the prefill, and for a device that reads the whole cache."""
    ar = make_model(**options).ar
    lens, code_lens = torch.tensor([5, 2, 4]), torch.full((3,), num_known)
    condition, codes = Condition(torch.randn(3, 5, 32), lens), torch.randint(0, 20, (3, 12))
    cache = ar.decoder.new_cache(batch_size=3, max_len=5 + 12 + ar.num_bos)
    with torch.no_grad():
        expected = ar(condition, codes, torch.full((3,), 12))
        logits, read = ar.prefill(condition, Known(codes[:, :num_known], code_lens), cache)
        torch.testing.assert_close(logits, expected[:, num_known], atol=1e-4, rtol=0)
        longest = longest and longest + num_known + ar.num_bos
        step = FusedStep(ar.decoder, ar.head) if fused else None
        state = ARState(cache, read, longest, step)
        for t in range(num_known, 12):
            logits = ar.decode_one_frame(codes[:, t], state)
            torch.testing.assert_close(logits, expected[:, t + 1], atol=1e-4, rtol=0)


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize("how", [GREEDY, SAMPLED])
@pytest.mark.parametrize("options", VARIANTS)
def test_ragged_batch_equals_one_by_one(batch: Batch, options, how, fused):
    engine = Engine(make_model(**options), fused=fused)
    together, lens = engine.inference(
        batch.x, batch.x_lens, max_new_tokens=20, return_lens=True, generator=seeded(1, 2, 3), **how
    )
    assert lens.tolist() == [27, 23, 25]
    for b, n in enumerate(batch.x_lens):
        alone = engine.inference(
            batch.x[b : b + 1, :n], max_new_tokens=20, generator=seeded(b + 1), **how
        )
        assert torch.equal(together[b, : lens[b]], alone[0])
        assert (together[b, lens[b] :] == -1).all()


def test_rows_that_end_do_not_touch_the_others(batch, fused):
    model = make_model()
    with torch.no_grad():
        model.ar.head.bias[model.eos_id] = 1.5  # EOS is likely enough to come at random
    engine, x = Engine(model, fused=fused), batch.x.repeat(4, 1, 1)
    options = {"max_new_tokens": 60, "return_lens": True}
    together, lens = engine.inference(x, generator=seeded(*range(12)), **options)
    assert len(lens.unique()) > 3
    for b in range(12):
        alone, alone_lens = engine.inference(x[b : b + 1], generator=seeded(b), **options)
        assert alone_lens[0] == lens[b]
        assert torch.equal(alone[0], together[b, : lens[b]])


def test_samples_share_a_prefill_and_equal_rows_of_their_own(batch, monkeypatch):
    model = make_model()
    prefill, seen = model.ar.prefill, []
    monkeypatch.setattr(
        model.ar, "prefill", lambda *args: seen.append(len(args[0].lens)) or prefill(*args)
    )
    options = SAMPLED | {"max_new_tokens": 9, "return_lens": True}
    samples, lens = model.inference(
        batch.x, batch.x_lens, num_samples=3, generator=seeded(*range(9)), **options
    )
    assert sum(seen) == 3
    x, x_lens = (t.repeat_interleave(3, dim=0) for t in (batch.x, batch.x_lens))
    rows, row_lens = model.inference(x, x_lens, generator=seeded(*range(9)), **options)
    assert torch.equal(samples, rows)
    assert torch.equal(lens, row_lens)
    assert not torch.equal(samples[0], samples[1])


def test_one_seed_gives_the_same_rows_in_any_batch(model, batch):
    def rows(x):
        generator = torch.Generator().manual_seed(7)
        return model.inference(x, max_new_tokens=9, generator=generator, **SAMPLED)

    assert torch.equal(rows(batch.x)[:2], rows(batch.x[:2]))


def test_prompt_comes_back_untouched_and_all_frames_are_codes(model, batch):
    out = model.inference(batch.x, max_new_tokens=20, ignore_eos=True)
    assert out.shape == (3, 27, 3)
    assert torch.equal(out[:, :7], batch.x)
    assert out.min() >= 0
    assert out.max() < 20


def test_greedy_codes_are_the_models_own_predictions(model, batch):
    """Teacher forcing on what was generated must predict just that."""
    prompt = batch.x[:1]
    out = model.inference(prompt, max_new_tokens=9, **GREEDY)
    lens = torch.tensor([7]), torch.tensor([9])
    logits = model.ar(model.ar.read(prompt, lens[0])[0], out[:, 7:, 0], lens[1])
    assert torch.equal(logits[:, :9, : model.eos_id].argmax(-1), out[:, 7:, 0])
    predictions = model(prompt, lens[0], out[:, 7:], lens[1], train_stage=2).predictions
    assert torch.equal(predictions[:, :, 1:], out[:, 7:, 1:])


def end_at(model, num_frames: int) -> None:
    """Make the model emit EOS, and nothing else, once a row holds `num_frames` new frames."""
    prefill, decode = model.ar.prefill, model.ar.decode_one_frame
    new = 0

    def force(logits):
        logits[:, model.eos_id] = 1e9 if new >= num_frames else -1e9
        return logits

    def prefilled(*args):
        nonlocal new
        logits, lens = prefill(*args)
        new = 0
        return force(logits), lens

    def decoded(codes, state):
        nonlocal new
        new += 1
        return force(decode(codes, state))

    model.ar.prefill, model.ar.decode_one_frame = prefilled, decoded


@pytest.mark.parametrize("num_frames", [0, 1, 5, 16, 17])
def test_eos_ends_a_row_and_never_raises(model, batch, num_frames):
    end_at(model, num_frames)
    out, lens = model.inference(batch.x, batch.x_lens, max_new_tokens=40, return_lens=True)
    assert lens.tolist() == (batch.x_lens + num_frames).tolist()
    assert out.shape[1] == 7 + num_frames


def test_min_new_tokens_and_ignore_eos_hold_eos_back(model, batch):
    end_at(model, 5)
    assert model.inference(batch.x, max_new_tokens=40, min_new_tokens=9).shape[1] == 7 + 9
    assert model.inference(batch.x, max_new_tokens=40, ignore_eos=True).shape[1] == 7 + 40


def test_max_new_tokens_bounds_every_row(model, batch):
    assert model.inference(batch.x, max_new_tokens=0).shape == batch.x.shape
    assert model.inference(batch.x, max_new_tokens=1, ignore_eos=True).shape[1] == 8


def test_same_seed_same_continuation(model, batch):
    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        return model.inference(
            batch.x, max_new_tokens=20, generator=generator, nar_temperature=1.0, ignore_eos=True
        )

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


def test_nar_is_greedy_unless_asked(model, batch):
    def draw(nar_temperature):
        generator = torch.Generator().manual_seed(0)
        return model.inference(
            batch.x, max_new_tokens=9, temperature=0, nar_temperature=nar_temperature,
            generator=generator, ignore_eos=True,
        )  # fmt: skip

    greedy, sampled = draw(0.0), draw(1.0)
    assert torch.equal(greedy[:, :, 0], sampled[:, :, 0])
    assert not torch.equal(greedy, sampled)


def test_the_nar_half_passes_once_a_quantizer(model, batch):
    passes = []
    model.nar.register_forward_hook(lambda *args: passes.append(int(args[1][3][0])))
    model.inference(batch.x[:1], max_new_tokens=20, ignore_eos=True)
    assert passes == [1, 2]


def test_top_k_1_is_greedy(model, batch):
    greedy = model.inference(batch.x, max_new_tokens=9, **GREEDY)
    top_1 = model.inference(batch.x, max_new_tokens=9, top_k=1, ignore_eos=True)
    assert torch.equal(greedy, top_1)


def test_mode_is_restored_and_dropout_is_off(batch):
    model = make_model(dropout=0.5).train()
    one, other = (model.inference(batch.x, max_new_tokens=9, **GREEDY) for _ in range(2))
    assert model.training
    assert torch.equal(one, other)
    model.eval()
    model.inference(batch.x, max_new_tokens=1)
    assert not model.training


def test_mode_is_restored_after_an_error(model, batch):
    model.train()

    def stop(num_frames):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.inference(batch.x, progress=stop)
    assert model.training


def test_progress_counts_frames(model, batch):
    seen = []
    model.inference(batch.x, max_new_tokens=5, ignore_eos=True, progress=seen.append)
    assert seen == [1, 2, 3, 4, 5]


def test_empty_prompt_needs_bos(batch):
    empty = torch.zeros(2, 0, 3, dtype=torch.long)
    with pytest.raises(ValueError, match="prepend_bos"):
        make_model().inference(empty)
    model = make_model(prepend_bos=True)
    assert model.inference(empty, max_new_tokens=5, **GREEDY).shape == (2, 5, 3)
    mixed, lens = model.inference(
        batch.x, torch.tensor([7, 0, 5]), max_new_tokens=5, return_lens=True, **GREEDY
    )
    alone = model.inference(empty[:1], max_new_tokens=5, **GREEDY)
    assert lens.tolist() == [12, 5, 10]
    assert torch.equal(mixed[1, :5], alone[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(1, 5, 2).long()}, r"x must hold integer codes \(batch, frames, 3\)"),
        ({"x": torch.full((1, 5, 3), 20)}, r"codes in \[0, 20\)"),
        ({"max_new_tokens": -1}, "min_new_tokens <= max_new_tokens, got 0 and -1"),
        ({"min_new_tokens": 9, "max_new_tokens": 5}, "got 9 and 5"),
        ({"temperature": -1.0}, "temperature"),
        ({"nar_temperature": -1.0}, "temperature"),
        ({"num_samples": 0}, "num_samples must be 1 or more"),
        ({"x": torch.zeros(0, 5, 3).long()}, "no prompt"),
        ({"generator": seeded(1, 2)}, "1 rows need as many generators, got 2"),
    ],
)
def test_inference_refuses_what_cannot_be(model, change, message):
    with pytest.raises(ValueError, match=message):
        model.inference(**({"x": torch.zeros(1, 5, 3).long()} | change))
