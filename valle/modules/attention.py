"""Attention of queries to keys and values, by the fastest way that the device has.

On GPUs, and in float32, that is `scaled_dot_product_attention`. CPUs that multiply matrices in
bfloat16 do so in plain products alone: the fused kernel works in float32 there, at more than twice
the time. So in bfloat16 on a CPU attention is made of plain products, a block of queries at a time.
Where all weights would be large, the backward pass computes those of a block again rather than keep
them: memory then grows with the number of frames and not with its square (FlashAttention, arXiv
2205.14135, section 3.1).

B batch, L frames, H heads, K width of a head, N = B x H.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_BLOCK_FRAMES = 128  # of queries; their scores then fit into a processor's cache
_KEPT_BYTES = 16 * 2**20  # of weights in a layer; more are computed again


class Rotation(NamedTuple):
    """Where frames stand in time, as angles by which queries and keys are turned.

    The product of a query and a key then depends on how far apart they are (RoFormer, arXiv
    2104.09864). Component i of a head turns with component i + K / 2.

    Attributes:
      cosines: (1 or B, L, K / 2), and `sines`.
    """

    cosines: Tensor
    sines: Tensor

    def turn(self, x: Tensor) -> Tensor:
        """(B, H, L, K) queries or keys."""
        cosines, sines = (t[:, None].to(x.dtype) for t in self)
        left, right = x.chunk(2, dim=-1)
        return torch.cat([left * cosines - right * sines, left * sines + right * cosines], dim=-1)


class Opening(NamedTuple):
    """A beginning that is there as a whole before the rest comes (prefix LM, arXiv 1910.10683).

    Attributes:
      bias: (B, L, L) to be added to scores: 0 where a frame sees another, causally or thanks to the
        opening, else -inf. In the type of the queries, or each layer would make and keep another.
      num_frames: of the longest opening.
    """

    bias: Tensor
    num_frames: int

    @classmethod
    def of(cls, lens: Tensor, num_frames: int, max_len: int, dtype: torch.dtype) -> "Opening":
        """The first `lens` (B,) frames, `num_frames` at most, of rows of `max_len`."""
        order = torch.arange(max_len, device=lens.device)
        is_seen = (order <= order[:, None]) | (order < lens[:, None])[:, None]
        bias = torch.zeros(is_seen.shape, dtype=dtype, device=lens.device)
        return cls(bias.masked_fill_(~is_seen, -torch.inf), num_frames)


@dataclass(frozen=True)
class AttentionSpan:
    """Who sees whom, and where the frames at hand stand.

    Attributes:
      is_causal: each frame sees itself and what came before, among the frames at hand.
      key_mask: (B, number of keys) bool, True on the keys that may be seen; None shows all. Each
        row shows at least one.
      positions: (B,) where in the cache the one new frame of each row goes. None: the frames at
        hand are the first, and see each other alone.
      num_cached: with positions, how many frames of the cache are read.
      rotation: of the frames at hand; None where their vectors tell their places.
      opening: with is_causal, the first frames of each row see each other both ways.
    """

    is_causal: bool = False
    key_mask: Tensor | None = None
    positions: Tensor | None = None
    num_cached: int = 0
    rotation: Rotation | None = None
    opening: Opening | None = None


def computing_dtype(x: Tensor) -> torch.dtype:
    """The type of queries that a linear layer makes of vectors, autocast or not."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def attend(q: Tensor, k: Tensor, v: Tensor, span: AttentionSpan) -> Tensor:
    """(B, H, L, K) queries over (B, H, number of keys, K) keys and values, to (B, H, L, K)."""
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.shape[2] > 1:
        return _attend_in_blocks(q, k, v, span)
    if span.opening is not None:
        bias = span.opening.bias[:, None].to(q.dtype)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    mask = None if span.key_mask is None else span.key_mask[:, None, None, :]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=span.is_causal)


@torch.compiler.disable  # products are no work for a compiler, and it would unroll the blocks
def _attend_in_blocks(q: Tensor, k: Tensor, v: Tensor, span: AttentionSpan) -> Tensor:
    B, H, L, K = q.shape
    # the factor goes to the queries, which are fewer than scores
    q, k, v = (t.reshape(B * H, -1, K).contiguous() for t in (q * K**-0.5, k, v))
    bias = None
    if span.key_mask is not None:
        bias = torch.zeros(B, 1, 1, k.shape[1], dtype=q.dtype)
        bias = bias.masked_fill_(~span.key_mask[:, None, None], -torch.inf)
        bias = bias.expand(B, H, 1, -1).flatten(0, 1)  # (N, 1, keys)
    sight = _Sight(span.is_causal, span.opening)
    return _BlockAttention.apply(q, k, v, bias, sight).view(B, H, L, K)


class _Sight(NamedTuple):
    """Which keys a query sees beside those that a bias hides."""

    is_causal: bool
    opening: Opening | None

    def keys(self, end: int, num_keys: int) -> slice:
        """Those that a block of queries up to `end` may see."""
        if not self.is_causal:
            return slice(0, num_keys)
        return slice(0, max(end, self.opening.num_frames if self.opening else 0))

    def hide(self, scores: Tensor, queries: slice, keys: slice) -> None:
        """Scores (N, queries, keys) of what is not seen become -inf, in place."""
        if self.opening is not None:
            bias = self.opening.bias[:, None, queries, keys]  # (B, 1, queries, keys)
            scores.view(len(bias), -1, *scores.shape[1:]).add_(bias)
        elif self.is_causal:
            size = queries.stop - queries.start
            future = torch.full((size, size), -torch.inf, dtype=scores.dtype).triu_(1)
            scores[:, :, queries] += future


class _BlockAttention(torch.autograd.Function):
    """Attention of (N, L, K) scaled queries, with a bias (N, 1, keys) on the scores or None."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, sight: _Sight
    ) -> Tensor:
        out = torch.empty_like(q)
        keeps = any(ctx.needs_input_grad) and _num_bytes(q, k, sight) < _KEPT_BYTES
        kept = []
        for queries, keys in _blocks(q, k, sight):
            weights = _weights(q, k, bias, queries, keys, sight)
            torch.bmm(weights, v[:, keys], out=out[:, queries])
            kept += [weights] if keeps else []
        ctx.save_for_backward(q, k, v, bias, *kept)
        ctx.sight = sight
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        q, k, v, bias, *kept = ctx.saved_tensors
        grad = grads[0].contiguous()
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for i, (queries, keys) in enumerate(_blocks(q, k, ctx.sight)):
            weights = kept[i] if kept else _weights(q, k, bias, queries, keys, ctx.sight)
            grad_v[:, keys].baddbmm_(weights.mT, grad[:, queries])
            grad_weights = torch.bmm(grad[:, queries], v[:, keys].mT)
            grad_scores = torch._softmax_backward_data(
                grad_weights, weights, -1, grad_weights.dtype
            )
            torch.bmm(grad_scores, k[:, keys], out=grad_q[:, queries])
            grad_k[:, keys].baddbmm_(grad_scores.mT, q[:, queries])
        return grad_q, grad_k, grad_v, None, None


def _blocks(q: Tensor, k: Tensor, sight: _Sight) -> list[tuple[slice, slice]]:
    """Blocks of queries, each with the keys that it sees."""
    L = q.shape[1]
    ends = [min(start + _BLOCK_FRAMES, L) for start in range(0, L, _BLOCK_FRAMES)]
    starts = range(0, L, _BLOCK_FRAMES)
    return [
        (slice(start, end), sight.keys(end, k.shape[1]))
        for start, end in zip(starts, ends, strict=True)
    ]


def _num_bytes(q: Tensor, k: Tensor, sight: _Sight) -> int:
    """What all weights take."""
    cells = sum((a.stop - a.start) * b.stop for a, b in _blocks(q, k, sight))
    return len(q) * cells * q.element_size()


def _weights(
    q: Tensor, k: Tensor, bias: Tensor | None, queries: slice, keys: slice, sight: _Sight
) -> Tensor:
    """The attention weights of a block, (N, its queries, its keys)."""
    if bias is None:
        scores = torch.bmm(q[:, queries], k[:, keys].mT)
    else:
        scores = torch.baddbmm(bias[:, :, keys], q[:, queries], k[:, keys].mT)
    sight.hide(scores, queries, keys)
    return scores.softmax(-1)
