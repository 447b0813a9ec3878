import pytest
import torch
from conftest import Batch, make_model

GREEDY = {"temperature": 0.0, "ignore_eos": True}
VARIANTS = [{}, {"prepend_bos": True}, {"norm_first": False}, {"add_prenet": True}]


@pytest.mark.parametrize("options", VARIANTS)
def test_cached_logits_equal_uncached(options):
    model = make_model(**options)
    lens = torch.tensor([5, 2, 4])
    condition = torch.randn(3, 5, 32)
    codes = torch.randint(0, 20, (3, 12))
    with torch.no_grad():
        expected = model.ar(condition, lens, codes, torch.full((3,), 12))
        logits, state = model.ar.prefill(condition, lens, max_new_frames=12)
        torch.testing.assert_close(logits, expected[:, 0], atol=1e-4, rtol=0)
        for t in range(12):
            logits = model.ar.decode_one_frame(codes[:, t], state)
            torch.testing.assert_close(logits, expected[:, t + 1], atol=1e-4, rtol=0)


@pytest.mark.parametrize("options", VARIANTS)
def test_ragged_batch_equals_one_by_one(batch: Batch, options):
    model = make_model(**options)
    together, lens = model.inference(
        batch.x, batch.x_lens, max_new_tokens=20, return_lens=True, **GREEDY
    )
    assert lens.tolist() == [27, 23, 25]
    for b, n in enumerate(batch.x_lens):
        alone = model.inference(batch.x[b : b + 1, :n], max_new_tokens=20, **GREEDY)
        assert torch.equal(together[b, : lens[b]], alone[0])
        assert (together[b, lens[b] :] == -1).all()


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
    logits = model.ar(model.ar.embedding(prompt), lens[0], out[:, 7:, 0], lens[1])
    assert torch.equal(logits[:, :9, : model.eos_id].argmax(-1), out[:, 7:, 0])
    predictions = model(prompt, lens[0], out[:, 7:], lens[1], train_stage=2).predictions
    assert torch.equal(predictions[:, :, 1:], out[:, 7:, 1:])


def end_at(model, num_frames: int) -> None:
    """Make the model emit EOS, and nothing else, once a row holds `num_frames` new frames."""
    decode = model.ar.decode_one_frame
    prefill = model.ar.prefill

    def force(logits, new):
        logits[:, model.eos_id] = 1e9 if new >= num_frames else -1e9
        return logits

    start = {}

    def prefilled(condition, lens, max_new):
        logits, state = prefill(condition, lens, max_new)
        start["len"] = state.longest
        return force(logits, 0), state

    def decoded(codes, state):
        logits = decode(codes, state)
        return force(logits, state.longest - start["len"])

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


def test_rows_end_independently(batch):
    model = make_model()
    with torch.no_grad():
        model.ar.head.bias[model.eos_id] = 1.5  # EOS is likely enough to come at random
    _, lens = model.inference(
        batch.x.repeat(8, 1, 1),
        max_new_tokens=60,
        return_lens=True,
        generator=torch.Generator().manual_seed(0),
    )
    assert len(lens.unique()) > 3


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
    ],
)
def test_inference_refuses_what_cannot_be(model, change, message):
    with pytest.raises(ValueError, match=message):
        model.inference(**({"x": torch.zeros(1, 5, 3).long()} | change))
