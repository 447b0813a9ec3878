"""A transformer decoder with a key/value cache and an optional adaptive layer norm.

Dropout acts on residuals alone: on the attention weights it would disable the fused kernel on CPU
and slow a layer more than threefold.

B batch, L frames, D model width, H heads, K = D / H.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from valle.modules.attention import AttentionSpan, attend
from valle.modules.dropout import Dropout
from valle.modules.masks import FrameRange


@dataclass
class KVCache:
    """Keys and values of all frames that a decoder has read, in one tensor allocated once.

    Attributes:
      data: (num_layers, 2, B, H, max_len, K), keys before values. The frames of a head lie side by
        side, so that decoding reads them without a copy.
    """

    data: Tensor

    @property
    def max_len(self) -> int:
        return self.data.shape[4]

    def rows(self, rows: slice) -> "KVCache":
        """The same memory, seen for some rows of the batch."""
        return KVCache(self.data[:, :, rows])

    def take(self, rows: Tensor) -> "KVCache":
        """A cache of its own for the rows (N,) given by index; a row may be taken several times."""
        return KVCache(self.data.index_select(2, rows))


class SelfAttention(nn.Module):
    """Attention of a sequence to itself, or to what a cache holds of it."""

    def __init__(self, d_model: int, nhead: int):
        super().__init__()
        self.nhead = nhead
        self.qkv = nn.Linear(d_model, 3 * d_model)
        self.out = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor, span: AttentionSpan, cache: Tensor | None) -> Tensor:
        """(B, L, D) to (B, L, D), with the (2, B, H, max_len, K) cache of this layer."""
        B, L, D = x.shape
        qkv = self.qkv(x).view(B, L, 3, self.nhead, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, H, L, K)
        if span.rotation is not None:
            q, k = span.rotation.turn(q), span.rotation.turn(k)
        if cache is not None and span.positions is None:
            cache[0, :, :, :L], cache[1, :, :, :L] = k, v
        elif cache is not None and span.positions is not None:
            rows = torch.arange(B, device=x.device)
            cache[0, rows, :, span.positions] = k[:, :, 0]
            cache[1, rows, :, span.positions] = v[:, :, 0]
            k, v = cache[:, :, :, : span.num_cached]
        heads = attend(q, k, v, span)
        return self.out(heads.transpose(1, 2).reshape(B, L, D))


class AdaptiveLayerNorm(nn.Module):
    """A layer norm whose gain and shift come from a condition (VALL-E, section 4.2.2).

    Without a condition width it is a plain layer norm.
    """

    def __init__(self, d_model: int, adaptive: bool):
        super().__init__()
        self.norm = nn.LayerNorm(d_model, elementwise_affine=not adaptive)
        self.gain_and_shift = nn.Linear(d_model, 2 * d_model) if adaptive else None
        if self.gain_and_shift is not None:
            # small, not zero: ScaledAdam moves a tensor in proportion to its size
            nn.init.normal_(self.gain_and_shift.weight, std=0.02)
            nn.init.zeros_(self.gain_and_shift.bias)

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """(B, L, D) and a condition (B, D), or None where the norm is not adaptive."""
        x = self.norm(x)
        if self.gain_and_shift is None:
            return x
        assert condition is not None
        # in the type of x: a CPU is slow at products of two types
        gain, shift = self.gain_and_shift(condition)[:, None].to(x.dtype).chunk(2, dim=-1)
        return torch.addcmul(shift, x, 1 + gain)


class DecoderLayer(nn.Module):
    """Self-attention and a feed-forward block of four times the width, each with a residual."""

    def __init__(
        self, d_model: int, nhead: int, norm_first: bool, adaptive: bool, dropout: float
    ) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.attention = SelfAttention(d_model, nhead)
        self.feed_forward = nn.Sequential(
            nn.Linear(d_model, 4 * d_model),
            nn.ReLU(),
            nn.Linear(4 * d_model, d_model),
        )
        self.norm1 = AdaptiveLayerNorm(d_model, adaptive)
        self.norm2 = AdaptiveLayerNorm(d_model, adaptive)
        self.dropout = Dropout(dropout)
        self._attend, self._transform = _attend, _transform  # or what a compiler made of them

    def forward(
        self,
        x: Tensor,
        span: AttentionSpan,
        condition: Tensor | None,
        cache: Tensor | None,
        wanted: FrameRange | None = None,
    ) -> Tensor:
        """(B, L, D) to (B, L, D), or to the `wanted` frames alone, after all have been seen."""
        x = self._attend(self, x, span, condition, cache)
        x = x if wanted is None else wanted.take_from(x)
        return self._transform(self, x, condition)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Like that of `nn.Module`, in two parts: how frames are taken is no matter for it."""
        self._attend = torch.compile(_attend, *args, **kwargs)
        self._transform = torch.compile(_transform, *args, **kwargs)


def _attend(
    layer: DecoderLayer,
    x: Tensor,
    span: AttentionSpan,
    condition: Tensor | None,
    cache: Tensor | None,
) -> Tensor:
    """The first block of a layer."""
    if layer.norm_first:
        return x + layer.dropout(layer.attention(layer.norm1(x, condition), span, cache))
    return layer.norm1(x + layer.dropout(layer.attention(x, span, cache)), condition)


def _transform(layer: DecoderLayer, x: Tensor, condition: Tensor | None) -> Tensor:
    """The second one, which works on each frame for itself."""
    if layer.norm_first:
        return x + layer.dropout(layer.feed_forward(layer.norm2(x, condition)))
    return layer.norm2(x + layer.dropout(layer.feed_forward(x)), condition)


class Decoder(nn.Module):
    """A stack of layers, and a last norm where the layers normalise first."""

    def __init__(
        self,
        d_model: int,
        nhead: int,
        num_layers: int,
        norm_first: bool = True,
        adaptive: bool = False,
        dropout: float = 0.1,
    ):
        super().__init__()
        self.layers = nn.ModuleList(
            DecoderLayer(d_model, nhead, norm_first, adaptive, dropout) for _ in range(num_layers)
        )
        self.norm = AdaptiveLayerNorm(d_model, adaptive) if norm_first else None

    def forward(
        self,
        x: Tensor,
        span: AttentionSpan,
        condition: Tensor | None = None,
        cache: KVCache | None = None,
        wanted: FrameRange | None = None,
    ) -> Tensor:
        """(B, L, D) to (B, L, D), or to the `wanted` frames alone.

        Args:
          x: the embedded frames at hand.
          span: who sees whom.
          condition: (B, D) for adaptive norms.
          cache: what earlier frames left; the frames at hand are added, as `span` says.
          wanted: the frames of each row whose result is read; the last layer then leaves out what
            it can for the others.
        """
        last = len(self.layers) - 1
        for i, layer in enumerate(self.layers):
            cached = None if cache is None else cache.data[i]
            x = layer(x, span, condition, cached, wanted if i == last else None)
        return x if self.norm is None else self.norm(x, condition)

    def new_cache(self, batch_size: int, max_len: int) -> KVCache:
        """An empty cache for `max_len` frames a row."""
        first = cast(DecoderLayer, self.layers[0]).attention
        bias = first.qkv.bias  # of the type and on the device that keys will have
        head_dim = first.out.in_features // first.nhead
        shape = (len(self.layers), 2, batch_size, first.nhead, max_len, head_dim)
        return KVCache(torch.zeros(shape, dtype=bias.dtype, device=bias.device))
