"""A transformer decoder with a key/value cache and an optional adaptive layer norm.

Attention goes through `scaled_dot_product_attention`. Dropout acts on residuals alone: on the
attention weights it would disable the fused kernel on CPU and slow a layer more than threefold.

B batch, L frames, D model width, H heads, K = D / H.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class LayerCache:
    """Keys and values (B, H, max_len, K) of one layer, allocated at the first write."""

    max_len: int
    keys: Tensor | None = None
    values: Tensor | None = None

    def write(self, keys: Tensor, values: Tensor, positions: Tensor) -> None:
        """Store (B, H, L, K) keys and values at each row's frame positions (B, L)."""
        if self.keys is None or self.values is None:
            B, H, _, K = keys.shape
            self.keys = keys.new_zeros(B, H, self.max_len, K)
            self.values = values.new_zeros(B, H, self.max_len, K)
        rows = torch.arange(keys.shape[0], device=keys.device)[:, None]
        self.keys[rows, :, positions] = keys.transpose(1, 2)  # indexed as (B, L, H, K)
        self.values[rows, :, positions] = values.transpose(1, 2)


@dataclass
class KVCache:
    """What a decoder remembers of the frames it has read, a `LayerCache` a layer."""

    num_layers: int
    max_len: int
    layers: list[LayerCache] = field(init=False)

    def __post_init__(self) -> None:
        self.layers = [LayerCache(self.max_len) for _ in range(self.num_layers)]


@dataclass(frozen=True)
class AttentionSpan:
    """Who sees whom, and where the frames at hand stand.

    Attributes:
      is_causal: each frame sees itself and what came before, among the frames at hand.
      key_mask: (B, number of keys) bool, True on the keys that may be seen; None shows all.
      positions: (B, L) where the frames at hand go in the cache.
      num_cached: read this many frames of the cache instead of the frames at hand.
    """

    is_causal: bool = False
    key_mask: Tensor | None = None
    positions: Tensor | None = None
    num_cached: int | None = None


class SelfAttention(nn.Module):
    """Attention of a sequence to itself, or to what a cache holds of it."""

    def __init__(self, d_model: int, nhead: int):
        super().__init__()
        self.nhead = nhead
        self.qkv = nn.Linear(d_model, 3 * d_model)
        self.out = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor, span: AttentionSpan, cache: LayerCache | None) -> Tensor:
        B, L, D = x.shape
        q, k, v = self.qkv(x).view(B, L, 3, self.nhead, -1).permute(2, 0, 3, 1, 4)  # (B, H, L, K)
        if cache is not None:
            assert span.positions is not None
            cache.write(k, v, span.positions)
            if span.num_cached is not None:
                assert cache.keys is not None
                assert cache.values is not None
                k, v = cache.keys[:, :, : span.num_cached], cache.values[:, :, : span.num_cached]
        mask = None if span.key_mask is None else span.key_mask[:, None, None, :]
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=span.is_causal)
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
        gain, shift = self.gain_and_shift(condition)[:, None].chunk(2, dim=-1)
        return x * (1 + gain) + shift


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
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, span: AttentionSpan, condition: Tensor | None, cache: LayerCache | None
    ) -> Tensor:
        if self.norm_first:
            x = x + self.dropout(self.attention(self.norm1(x, condition), span, cache))
            return x + self.dropout(self.feed_forward(self.norm2(x, condition)))
        x = self.norm1(x + self.dropout(self.attention(x, span, cache)), condition)
        return self.norm2(x + self.dropout(self.feed_forward(x)), condition)


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
    ) -> Tensor:
        """(B, L, D) to (B, L, D).

        Args:
          x: the embedded frames at hand.
          span: who sees whom.
          condition: (B, D) for adaptive norms.
          cache: is written at `span.positions`, and read where `span.num_cached` says so.
        """
        for i, layer in enumerate(self.layers):
            x = layer(x, span, condition, None if cache is None else cache.layers[i])
        return x if self.norm is None else self.norm(x, condition)
