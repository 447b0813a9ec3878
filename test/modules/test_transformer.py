import pytest
import torch

from valle.modules.attention import AttentionSpan
from valle.modules.masks import FrameRange, length_mask
from valle.modules.transformer import Decoder


def make_decoder(**options) -> Decoder:
    torch.manual_seed(0)
    return Decoder(16, 2, 2, dropout=0.0, **options).eval()


def reference(decoder: Decoder, x: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    """The same stack through torch's own multi-head attention and an explicit (L, L) mask."""
    for layer in decoder.layers:
        h = layer.norm1(x, None)
        attention = torch.nn.MultiheadAttention(16, 2, batch_first=True)
        attention.in_proj_weight.data = layer.attention.qkv.weight
        attention.in_proj_bias.data = layer.attention.qkv.bias
        attention.out_proj.weight.data = layer.attention.out.weight
        attention.out_proj.bias.data = layer.attention.out.bias
        x = x + attention(h, h, h, attn_mask=~allowed)[0]
        x = x + layer.feed_forward(layer.norm2(x, None))
    return decoder.norm(x, None)


def test_causal_attention_agrees_with_torch():
    decoder, x = make_decoder(), torch.randn(2, 6, 16)
    expected = reference(decoder, x, torch.ones(6, 6, dtype=torch.bool).tril())
    torch.testing.assert_close(decoder(x, AttentionSpan(is_causal=True)), expected)


def test_full_attention_agrees_with_torch():
    decoder, x = make_decoder(), torch.randn(2, 6, 16)
    expected = reference(decoder, x, torch.ones(6, 6, dtype=torch.bool))
    torch.testing.assert_close(decoder(x, AttentionSpan()), expected)


def test_masked_keys_change_nothing():
    decoder, x = make_decoder(), torch.randn(2, 6, 16)
    lens = torch.tensor([4, 6])
    span = AttentionSpan(key_mask=length_mask(lens, 6))
    alone = decoder(x[:1, :4], AttentionSpan())
    torch.testing.assert_close(decoder(x, span)[:1, :4], alone)


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("starts", [[3, 3], [1, 4]])
def test_wanted_frames_are_those_of_all(norm_first, starts):
    decoder, x = make_decoder(norm_first=norm_first), torch.randn(2, 9, 16, requires_grad=True)
    span, wanted = AttentionSpan(is_causal=True), FrameRange(torch.tensor(starts), 5)
    rows = [decoder(x, span)[b, first : first + 5] for b, first in enumerate(starts)]
    expected, found = torch.stack(rows), decoder(x, span, wanted=wanted)
    torch.testing.assert_close(found, expected)
    grads = [torch.autograd.grad(y.square().sum(), x)[0] for y in (found, expected)]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("norm_first", [True, False])
def test_cache_equals_no_cache_at_every_length(norm_first):
    decoder, x = make_decoder(norm_first=norm_first), torch.randn(2, 9, 16)
    expected = decoder(x, AttentionSpan(is_causal=True))
    cache = decoder.new_cache(batch_size=2, max_len=9)
    prefilled = decoder(x[:, :4], AttentionSpan(is_causal=True), cache=cache)
    steps = [
        decoder(
            x[:, t : t + 1],
            AttentionSpan(positions=torch.tensor([t, t]), num_cached=t + 1),
            cache=cache,
        )
        for t in range(4, 9)
    ]
    torch.testing.assert_close(torch.cat([prefilled, *steps], dim=1), expected)


def test_cache_rows_are_the_same_memory_and_taken_rows_are_their_own():
    cache = make_decoder().new_cache(batch_size=3, max_len=4)
    assert cache.data.shape == (2, 2, 3, 2, 4, 8)
    cache.rows(slice(1, 2)).data.fill_(1)
    assert cache.data.sum(dim=(0, 1, 3, 4, 5)).tolist() == [0, 2 * 2 * 2 * 4 * 8, 0]
    taken = cache.take(torch.tensor([1, 1, 0]))
    assert taken.data[:, :, :2].min() == 1
    taken.data.zero_()
    assert cache.data[:, :, 1].min() == 1


def test_adaptive_norms_listen_to_their_condition():
    decoder, x = make_decoder(adaptive=True), torch.randn(2, 6, 16)
    one, other = (decoder(x, AttentionSpan(), condition=torch.randn(2, 16)) for _ in range(2))
    assert not torch.allclose(one, other)
