"""Attention as plain products, against the fused kernel in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from valle.modules import attention
from valle.modules.attention import AttentionSpan, Opening, attend
from valle.modules.masks import length_mask

LENS = torch.tensor([300, 7])


OPENINGS = torch.tensor([150, 3])


def case(
    is_causal: bool, padded: bool, opens: bool = False, dtype: torch.dtype = torch.bfloat16
) -> AttentionSpan:
    opening = Opening.of(OPENINGS, 160, 300, dtype) if opens else None
    return AttentionSpan(is_causal, length_mask(LENS, 300) if padded else None, opening=opening)


def attention_and_gradients(x: Tensor, span: AttentionSpan) -> list[Tensor]:
    """Outputs and gradients of (B, L, 3, H, K) queries, keys and values, in float64."""
    x = x.detach().requires_grad_()
    q, k, v = x.permute(2, 0, 3, 1, 4)
    out = attend(q, k, v, span)
    out.backward(torch.linspace(-1, 1, out.numel()).view_as(out).to(out))
    return [out.detach().double(), x.grad.double()]


@pytest.mark.parametrize("kept_bytes", [0, 2**30])
@pytest.mark.parametrize(
    ("is_causal", "padded", "opens"), [(0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 0, 1)]
)
def test_plain_products_equal_the_fused_kernel(is_causal, padded, opens, kept_bytes, monkeypatch):
    """Whether the weights are kept for the backward pass or computed again."""
    monkeypatch.setattr(attention, "_KEPT_BYTES", kept_bytes)
    torch.manual_seed(0)
    x = torch.randn(2, 300, 3, 2, 16).bfloat16()  # three blocks, the last one short
    span = case(bool(is_causal), bool(padded), bool(opens))
    found = attention_and_gradients(x, span)
    expected = attention_and_gradients(x.double(), span)
    for a, b in zip(found, expected, strict=True):
        assert ((a - b).norm() / b.norm()).item() < 0.01  # bfloat16 has 8 bits


def test_a_row_does_not_depend_on_the_others():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 300, 24).bfloat16()
    both, alone = (attend(q[i:], k[i:], v[i:], AttentionSpan()) for i in (0, 1))
    assert torch.equal(both[1:], alone)


def test_what_is_not_seen_has_no_gradient():
    x = torch.randn(2, 300, 3, 2, 16).bfloat16()
    x = x.requires_grad_()
    q, k, v = x.permute(2, 0, 3, 1, 4)
    attend(q, k, v, AttentionSpan(is_causal=True))[:, :, 140].float().sum().backward()
    assert (x.grad[:, 141:] == 0).all()
    assert (x.grad[:, 130:140, 1:] != 0).any()
    x.grad = None
    attend(q, k, v, case(False, padded=True)).float().sum().backward()
    assert (x.grad[1, 7:, 1:] == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_an_opening_is_seen_whole_and_the_rest_causally(dtype):
    """By gradient: frame 20 of an opening sees all of it, and what follows sees no future."""
    x = torch.randn(2, 300, 3, 2, 16).to(dtype).requires_grad_()
    q, k, v = x.permute(2, 0, 3, 1, 4)
    out = attend(q, k, v, case(True, False, True, dtype)).float()
    for row, frame, last in ((0, 20, 150), (0, 149, 150), (0, 150, 151), (1, 20, 21), (1, 2, 3)):
        (grad,) = torch.autograd.grad(out[row, :, frame].sum(), x, retain_graph=True)
        seen = grad[row, :, 2].abs().sum((-1, -2)) > 0
        assert seen.tolist() == [i < last for i in range(300)]


def test_memory_does_not_grow_with_the_square_of_the_frames():
    q, k, v = torch.randn(3, 1, 2, 2048, 16).bfloat16().requires_grad_().unbind()
    saved: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        attend(q, k, v, AttentionSpan())
    assert sum(saved) < 2048 * 2048


def test_other_types_take_the_fused_kernel():
    q, k, v = torch.randn(3, 2, 2, 5, 16)
    span = AttentionSpan(is_causal=True)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    assert torch.equal(attend(q, k, v, span), expected)
