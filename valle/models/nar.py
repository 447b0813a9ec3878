"""The non-autoregressive half: predicts quantizers 2 to Q, all frames of a quantizer at once.

One pass a quantizer; the pass that predicts quantizer index s (1 to Q - 1 in code, which counts
from 0) is stage s. It completes any condition that comes as vectors.

B batch, S condition frames, T target frames, A frames after them, Q quantizers, V codebook size,
D model width.
"""

from typing import cast

import torch
from torch import Tensor, nn

from valle.models.condition import Ahead
from valle.modules.attention import AttentionSpan
from valle.modules.dropout import Dropout
from valle.modules.embedding import CodeEmbedding, PreNet, init_head, make_positions, place
from valle.modules.masks import FrameRange, close_gap, length_mask
from valle.modules.transformer import Decoder


class NARDecoder(nn.Module):
    """Transformer with full attention, told its stage by adaptive layer norms, a head a stage."""

    def __init__(
        self,
        d_model: int,
        nhead: int,
        num_layers: int,
        num_quantizers: int,
        codebook_size: int,
        norm_first: bool = True,
        add_prenet: bool = False,
        dropout: float = 0.1,
        positions: str = "rotary",
    ):
        super().__init__()
        num_stages = num_quantizers - 1
        self.stages = range(1, num_quantizers)
        self.embedding = CodeEmbedding(num_quantizers, codebook_size, d_model)
        self.prenet = PreNet(d_model) if add_prenet else nn.Identity()
        self.positions = make_positions(positions, d_model, nhead, learned_scale=False)
        self.dropout = Dropout(dropout)
        self.stage_embedding = nn.Embedding(num_stages, d_model)
        self.decoder = Decoder(
            d_model, nhead, num_layers, norm_first, adaptive=True, dropout=dropout
        )
        self.heads = nn.ModuleList(nn.Linear(d_model, codebook_size) for _ in self.stages)

    def init_embeddings(self, codebooks: Tensor) -> None:
        """Start from (Q, V, D_codec) codebook vectors."""
        directions = self.embedding.init_from(codebooks)
        for stage, head in zip(self.stages, self.heads, strict=True):
            init_head(cast(nn.Linear, head), codebooks[stage], directions)

    def draw_stages(self, batch_size: int, generator: torch.Generator | None) -> Tensor:
        """A stage for each row, (B,) int64 on the CPU."""
        first, last = self.stages[0], self.stages[-1]
        return torch.randint(first, last + 1, (batch_size,), generator=generator)

    def look_ahead(self, codes: Ahead) -> Ahead:
        """What is read of codes (B, A, Q) that follow a gap, as vectors: all."""
        return codes.embedded(self.embedding)

    def forward(
        self,
        condition: Tensor,
        condition_lens: Tensor,
        codes: Tensor,
        code_lens: Tensor,
        stages: Tensor,
        ahead: Ahead | None = None,
    ) -> Tensor:
        """Predict quantizer `stages[b]` of every target frame of row b from those below it.

        Args:
          condition: (B, S, D) vectors, padded at the end; `condition_lens` (B,).
          codes: (B, T, q); only quantizers below a row's stage are read; `code_lens` (B,).
          stages: (B,) int64 on the CPU, so that sorting rows by stage costs no device sync.
          ahead: what follows the target frames, as `look_ahead` gives it.

        Returns:
          (B, T, V) logits.
        """
        stages_here = stages.to(codes.device, non_blocking=True)
        target = self.embedding(codes[:, :, : int(stages.max())], num_levels=stages_here)
        x, lens = (
            close_gap(condition, condition_lens, target, code_lens),
            condition_lens + code_lens,
        )
        if ahead is not None:
            x = close_gap(x, lens, ahead.vectors, ahead.lens, ahead.longest)
            lens = lens + ahead.lens
        x, rotation = place(self.prenet(x), self.positions)
        span = AttentionSpan(key_mask=_padding_mask(lens, x.shape[1]), rotation=rotation)
        condition = self.stage_embedding(stages_here - 1)
        targets = FrameRange(condition_lens, codes.shape[1])
        hidden = self.decoder(self.dropout(x), span, condition, wanted=targets)
        return self._apply_heads(hidden, stages)

    def _apply_heads(self, hidden: Tensor, stages: Tensor) -> Tensor:
        """(B, T, D) to (B, T, V), each row through the head of its stage.

        In training a head that no row asks for is given no rows: its gradient is then zero and not
        missing, so that all ranks of a job have the same gradients to exchange.
        """
        present = list(self.stages) if self.training else stages.unique().tolist()
        if len(present) == 1:
            return self.heads[present[0] - 1](hidden)
        rows = [(stages == stage).nonzero()[:, 0] for stage in present]
        logits = torch.cat(
            [
                self.heads[stage - 1](hidden[r.to(hidden.device, non_blocking=True)])
                for stage, r in zip(present, rows, strict=True)
            ]
        )
        order = torch.cat(rows)
        if bool((order.diff() > 0).all()):  # rows came sorted: no copy of the logits
            return logits
        return logits[order.argsort().to(logits.device, non_blocking=True)]


def _padding_mask(lens: Tensor, max_len: int) -> Tensor | None:
    """(B, max_len) bool; None where no row is padded, which a CPU can tell without waiting."""
    if lens.device.type == "cpu" and int(lens.min()) == max_len:
        return None
    return length_mask(lens, max_len)
