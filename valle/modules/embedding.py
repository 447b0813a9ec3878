"""Codes and positions as vectors.

B batch, T frames, Q quantizers, V codebook size, D model width.
"""

import math
from typing import cast

import torch
from torch import Tensor, nn

from valle.modules.attention import Rotation
from valle.modules.dropout import Dropout


class CodeEmbedding(nn.Module):
    """One table a quantizer; a frame is the sum of its quantizers' vectors."""

    def __init__(self, num_quantizers: int, codebook_size: int, d_model: int):
        super().__init__()
        self.tables = nn.ModuleList(
            nn.Embedding(codebook_size, d_model) for _ in range(num_quantizers)
        )

    def forward(self, codes: Tensor, num_levels: Tensor | None = None) -> Tensor:
        """Sum the vectors of a frame's codes.

        Args:
          codes: (B, T, q) int64 with q <= Q: the first q quantizers.
          num_levels: (B,) how many quantizers count in each row; None counts all q.

        Returns:
          (B, T, D).
        """
        B, T, num_given = codes.shape
        levels = []
        for q in range(num_given):
            vectors = self.tables[q](codes[:, :, q])
            if num_levels is not None:
                vectors = vectors * (q < num_levels)[:, None, None]
            levels.append(vectors)
        return torch.stack(levels).sum(0)

    @torch.no_grad()
    def init_from(self, codebooks: Tensor) -> Tensor:
        """Start the tables from the codec's own vectors, turned into the model's space.

        One projection serves all quantizers and one factor scales them, so that sums of tables
        are what sums of codebook vectors are to the codec: the point they stand for.

        Args:
          codebooks: (Q, V, D_codec), of all the codec's quantizers; there may be fewer tables.

        Returns:
          The projection, (D_codec, D), orthonormal where D >= D_codec.
        """
        weights = [cast(Tensor, table.weight) for table in self.tables]
        directions = torch.empty(codebooks.shape[-1], weights[0].shape[1])
        nn.init.orthogonal_(directions)
        vectors = (codebooks - codebooks.mean(1, keepdim=True)) @ directions
        vectors = vectors[: len(weights)]
        vectors = vectors / vectors.sum(0).std()
        for weight, values in zip(weights, vectors, strict=True):
            weight.copy_(values)
        return directions


@torch.no_grad()
def init_head(head: nn.Linear, codebook: Tensor, directions: Tensor) -> None:
    """Start the rows of an output head from (V, D_codec) codebook vectors.

    Codes that are alike then have alike logits. Rows beyond V (EOS) and the size of the weights
    stay as they were.
    """
    vectors = (codebook - codebook.mean(0)) @ directions
    head.weight[: len(codebook)] = vectors * (head.weight.std() / vectors.std())


class SinePositions(nn.Module):
    """Sinusoidal positions (Attention Is All You Need, section 3.5), computed when asked for.

    There is no table, hence no longest sequence. VALL-E scales them by one learned number in its
    autoregressive half (`learned_scale`).
    """

    def __init__(self, d_model: int, learned_scale: bool):
        super().__init__()
        self.d_model = d_model
        self.scale = nn.Parameter(torch.ones(1)) if learned_scale else None

    def forward(self, positions: Tensor) -> Tensor:
        """(..., T) frame indices to (..., T, D) float32."""
        # not a buffer, which a model in bfloat16 would round: 750 frames would share 256 places
        exponents = torch.arange(0, self.d_model, 2, device=positions.device)
        rates = torch.exp(exponents * (-math.log(10000.0) / self.d_model))
        angles = positions[..., None] * rates
        waves = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)
        return waves if self.scale is None else waves * self.scale


class RotaryPositions(nn.Module):
    """Positions as rotations of queries and keys (RoFormer, arXiv 2104.09864); no parameters.

    Args:
      head_dim: K, width of an attention head; even.
    """

    def __init__(self, head_dim: int):
        super().__init__()
        self.head_dim = head_dim

    def forward(self, positions: Tensor) -> Rotation:
        """(1 or B, L) places of frames to the rotation of as many, float32."""
        # not a buffer, for the reason given above
        exponents = torch.arange(0, self.head_dim, 2, device=positions.device)
        rates = torch.exp(exponents * (-math.log(10000.0) / self.head_dim))
        angles = positions[..., None] * rates
        return Rotation(angles.cos(), angles.sin())


POSITIONS = ("rotary", "sine")


def make_positions(kind: str, d_model: int, nhead: int, learned_scale: bool) -> nn.Module:
    """Positions of a kind in `POSITIONS`; `learned_scale` is for "sine"."""
    if kind == "rotary":
        return RotaryPositions(d_model // nhead)
    return SinePositions(d_model, learned_scale)


def place(
    x: Tensor, positions: nn.Module, places: Tensor | None = None
) -> tuple[Tensor, Rotation | None]:
    """Tell vectors (B, L, D) where they stand, or how queries and keys made of them are to turn.

    Args:
      positions: of `make_positions`.
      places: (1 or B, L) in time; None: from 0 on.
    """
    if places is None:
        places = torch.arange(x.shape[1], device=x.device)[None]
    found = positions(places)
    return (x, found) if isinstance(found, Rotation) else (x + found.to(x.dtype), None)


class PreNet(nn.Sequential):
    """The bottleneck of Tacotron, which VALL-E offers before its transformers (`--add-prenet`)."""

    WIDTH = 256
    DROPOUT = 0.25

    def __init__(self, d_model: int):
        super().__init__(
            nn.Linear(d_model, self.WIDTH),
            nn.ReLU(),
            Dropout(self.DROPOUT),
            nn.Linear(self.WIDTH, self.WIDTH),
            nn.ReLU(),
            Dropout(self.DROPOUT),
            nn.Linear(self.WIDTH, d_model),
        )
