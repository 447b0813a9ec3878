import math
from itertools import product

import pytest
import torch
from conftest import TINY
from quality_contenders import Parameters
from quality_musicgen import (
    Shape,
    continue_prompts,
    delayed,
    frame_logits,
    init_from_codebooks,
    make_decoder,
    musicgen_costs,
    nearest_shape,
    summed_loss,
    undelayed,
)

from valle.models import AudioLMConfig
from valle.modules.masks import close_gap
from valle.modules.sampling import GREEDY, Sampling

CPU = torch.device("cpu")
CONFIG = AudioLMConfig(**TINY)
SHAPE = Shape(32, 2)


def decoder(config=CONFIG):
    torch.manual_seed(0)
    model = make_decoder(config, SHAPE, CPU).eval()
    for parameter in model.parameters():  # far from uniform, or likelihoods hardly differ
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model


def test_a_delay_of_one_a_quantizer():
    codes = torch.arange(24).view(1, 8, 3)
    columns = delayed(codes, torch.tensor([5]), special=99)
    assert columns.shape == (1, 10, 3)
    assert columns[0, :3].tolist() == [[0, 99, 99], [3, 1, 99], [6, 4, 2]]
    assert columns[0, 5:8].tolist() == [[99, 13, 11], [99, 99, 14], [99, 99, 99]]
    full = delayed(codes, torch.tensor([8]), special=99)
    assert torch.equal(undelayed(full), codes)


def test_the_pattern_is_that_of_transformers():
    """Their columns begin with the special id, and stop at the last frame of quantizer 1."""
    model, (B, Q, L) = decoder(), (2, 3, 6)
    codes = torch.randint(20, (B, L, Q))
    start = torch.full((B * Q, 1), 20)
    theirs = torch.cat([start, codes.transpose(1, 2).flatten(0, 1)], dim=1)
    _, pattern = model.build_delay_pattern_mask(theirs, pad_token_id=20, max_length=L + Q)
    columns = delayed(codes, torch.full((B,), L), special=20)
    assert torch.equal(pattern.view(B, Q, -1)[:, :, 1:].transpose(1, 2), columns)


def test_likelihoods_of_all_continuations_sum_up_to_one():
    sizes = {"num_quantizers": 2, "num_audio_tokens": 3}
    model = decoder(AudioLMConfig(**TINY | sizes))
    all_targets = torch.tensor(list(product(range(3), repeat=4))).view(81, 2, 2)  # T = 2
    prompt = torch.tensor([[[0, 2], [1, 1], [2, 0]]]).expand(81, -1, -1)
    lens = torch.full((81,), 3), torch.full((81,), 2)
    costs = musicgen_costs(model, prompt, lens[0], all_targets, lens[1])
    likelihoods = (-costs.nats.sum((1, 2))).exp()
    assert likelihoods.std() > 0.1 * likelihoods.mean()
    torch.testing.assert_close(likelihoods.sum(), torch.tensor(1.0))


def test_a_code_is_predicted_from_earlier_columns_alone(batch):
    model, b = decoder(), batch
    codes, lens = close_gap(b.x, b.x_lens, b.y, b.y_lens), b.x_lens + b.y_lens
    vectors = []
    for table in model.model.decoder.embed_tokens:
        table.register_forward_hook(lambda _, __, out: vectors.append(out) or out.retain_grad())
    row, frame = 1, 5
    for q in range(3):
        vectors.clear()
        logits = frame_logits(model, codes, lens, torch.zeros_like(lens), int(lens.max()))
        logits[q][row, frame].sum().backward()
        read = torch.stack([v.grad.abs().sum((0, 2)) for v in vectors])  # input columns
        assert (read[:, : frame + q + 1] > 0).all()  # column c is read at place c + 1
        assert not read[:, frame + q + 1 :].any()


def test_every_target_code_counts_once_whatever_the_padding(batch):
    model, b = decoder(), batch
    costs = musicgen_costs(model, *b)
    assert costs.frames.sum(1).tolist() == b.y_lens.tolist()
    for i in range(3):
        S, T = int(b.x_lens[i]), int(b.y_lens[i])
        alone = [b.x[i : i + 1, :S], b.x_lens[i : i + 1], b.y[i : i + 1, :T], b.y_lens[i : i + 1]]
        torch.testing.assert_close(costs.nats[i, :T], musicgen_costs(model, *alone).nats[0])
    codes, lens = close_gap(b.x, b.x_lens, b.y, b.y_lens), b.x_lens + b.y_lens
    of_targets = summed_loss(model, codes, lens, b.x_lens)
    torch.testing.assert_close(of_targets, costs.nats[costs.frames].sum() / 3)
    first = codes[:, :1], torch.ones_like(lens), codes[:, 1:], lens - 1
    whole = summed_loss(model, codes, lens, torch.ones_like(lens))
    others = musicgen_costs(model, *first)
    torch.testing.assert_close(whole, others.nats[others.frames].sum() / 3)
    assert summed_loss(model, codes, lens, torch.zeros_like(lens)) > whole


def test_a_uniform_model_pays_the_logarithm_of_the_codebook(batch):
    model = decoder()
    for head in model.lm_heads:
        head.weight.data.zero_()
    costs = musicgen_costs(model, *batch)
    torch.testing.assert_close(costs.nats, torch.full_like(costs.nats, math.log(20)))


def test_greedy_continuations_are_what_scoring_holds_likeliest():
    model, prompts = decoder(), torch.randint(20, (3, 6, 3))
    codes = continue_prompts(model, prompts, 9, GREEDY, GREEDY)
    assert torch.equal(codes[:, :6], prompts)
    lens = torch.full((3,), 6), torch.full((3,), 9)
    costs = musicgen_costs(model, prompts, lens[0], codes[:, 6:], lens[1])
    assert not costs.ranks.any()
    assert len(codes[:, 6:].unique()) > 3


def test_each_quantizer_is_drawn_in_its_own_way():
    model, prompts = decoder(), torch.randint(20, (2, 4, 3))

    def made(first, others, seed):
        generator = torch.Generator().manual_seed(seed)
        return continue_prompts(model, prompts, 5, first, others, generator)[:, 4:]

    hot = Sampling(temperature=5.0)
    assert torch.equal(made(hot, hot, 1), made(hot, hot, 1))
    assert not torch.equal(made(hot, hot, 1), made(hot, hot, 2))
    # the first frame's quantizer 1 is drawn before any other code
    greedy = made(GREEDY, GREEDY, 0)
    assert torch.equal(made(GREEDY, hot, 1)[:, 0, 0], greedy[:, 0, 0])
    assert not torch.equal(made(GREEDY, hot, 1)[:, :, 1:], greedy[:, :, 1:])
    assert torch.equal(made(Sampling(5.0, top_k=1), GREEDY, 1), greedy)


@pytest.mark.parametrize("size", [300_000, 2_140_000])
def test_the_nearest_shape_has_as_many_parameters(size):
    shape = nearest_shape(size, 4, range(3, 6))
    assert abs(shape.num_parameters / size - 1) < 0.03
    assert shape.width % 4 == 0
    assert size < 1_000_000 or shape.num_layers == 4  # small ones have no width that fits


def test_parameters_are_counted_as_they_are(batch):
    model = decoder()
    counts = Parameters.of(model)
    assert counts.body == SHAPE.num_parameters
    assert counts.tables == 3 * 21 * 32
    assert counts.heads == 3 * 20 * 32
    codes, lens = close_gap(batch.x, batch.x_lens, batch.y, batch.y_lens), batch.y_lens
    summed_loss(model, codes, lens, torch.zeros_like(lens)).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())  # all have a part


def test_tables_and_heads_start_from_the_codebooks():
    model, codebooks = decoder(), torch.randn(3, 20, 8)
    codebooks[:, 4] = codebooks[:, 7]
    scale = model.lm_heads[1].weight.std()
    special = model.model.decoder.embed_tokens[1].weight[20].clone()
    init_from_codebooks(model, codebooks)
    for q in range(3):
        for weight in (model.model.decoder.embed_tokens[q].weight, model.lm_heads[q].weight):
            torch.testing.assert_close(weight[4], weight[7])
            assert not torch.equal(weight[4], weight[8])
    torch.testing.assert_close(model.lm_heads[1].weight.std(), scale)
    assert torch.equal(model.model.decoder.embed_tokens[1].weight[20], special)


def test_a_width_that_makes_odd_heads_is_made():
    config = AudioLMConfig(32, 4, 1, num_quantizers=3, num_audio_tokens=20)
    assert make_decoder(config, Shape(36, 2), torch.device("cpu")).config.hidden_size == 36
