"""The non-autoregressive half: predicts quantizers 2 to Q, all frames of a quantizer at once.

One pass a quantizer; the pass that predicts quantizer index s (1 to Q - 1 in code, which counts
from 0) is stage s. It completes any condition that comes as vectors.

B batch, S vectors of the condition, T target frames, A frames after them, P prompt frames,
Q quantizers, V codebook size, D model width.
"""

from typing import cast

import torch
from torch import Tensor, nn

from valle.models.condition import Ahead, Condition, Given, Known, Places
from valle.models.reading import Reader
from valle.modules.attention import AttentionSpan
from valle.modules.dropout import Dropout
from valle.modules.embedding import CodeEmbedding, PreNet, init_head, make_positions, place
from valle.modules.masks import FrameRange, close_gap, length_mask
from valle.modules.transformer import Decoder


class NARDecoder(nn.Module):
    """Transformer with full attention, told its stage by adaptive layer norms, a head a stage.

    With a `reader` the condition begins with text or events. A prompt, whole, is a part of the
    condition; without `reads_prompts` it is the beginning of what is predicted, and no more is read
    of it than of that.
    """

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
        reader: Reader | None = None,
        reads_prompts: bool = True,
    ):
        super().__init__()
        num_stages = num_quantizers - 1
        self.stages = range(1, num_quantizers)
        self.reader, self.reads_prompts = reader, reads_prompts
        num_read = num_quantizers if reads_prompts else num_stages
        self.embedding = CodeEmbedding(num_read, codebook_size, d_model)
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

    def read(
        self,
        frames: Tensor,
        lens: Tensor,
        given: Given | None = None,
        ends: Tensor | None = None,
    ) -> tuple[Condition, Known]:
        """What is read of the frames before the target.

        Args:
          frames: (B, P, Q) codes; `lens` (B,).
          given: text or events, where the model reads these.
          ends: (B,) where in time the frames end; None: after `lens`.

        Returns:
          A condition, and codes (B, P, Q) that come first of those predicted.
        """
        if self.reader is None or given is None:
            return Condition(self.embedding(frames), lens), Known.nothing(frames)
        given, ends = given.of_target(), lens if ends is None else ends
        vectors, places = self.reader(given.tokens), self.reader.places(given.tokens)
        if not self.reads_prompts:
            first = Places(places, ends - lens)
            return Condition(vectors, given.lens, places=first), Known(frames, lens)
        order = torch.arange(frames.shape[1], device=ends.device) + (ends - lens)[:, None]
        vectors = close_gap(vectors, given.lens, self.embedding(frames), lens)
        places = close_gap(places, given.lens, order.to(places), lens)
        condition = Condition(vectors, given.lens + lens, places=Places(places, ends))
        return condition, Known.nothing(frames)

    def forward(
        self, condition: Condition, codes: Tensor, code_lens: Tensor, stages: Tensor
    ) -> Tensor:
        """Predict quantizer `stages[b]` of every target frame of row b from those below it.

        Args:
          condition: what is read beside; what lies ahead as `look_ahead` gives it.
          codes: (B, T, q); only quantizers below a row's stage are read; `code_lens` (B,).
          stages: (B,) int64 on the CPU, so that sorting rows by stage costs no device sync.

        Returns:
          (B, T, V) logits.
        """
        stages_here = stages.to(codes.device, non_blocking=True)
        target = self.embedding(codes[:, :, : self._num_levels(stages)], num_levels=stages_here)
        x = close_gap(condition.vectors, condition.lens, target, code_lens, condition.longest)
        lens, ahead = condition.lens + code_lens, condition.ahead
        if ahead is not None:
            x = close_gap(x, lens, ahead.vectors, ahead.lens, ahead.longest)
            lens = lens + ahead.lens
        x, rotation = place(self.prenet(x), self.positions, condition.all_places(x.shape[1]))
        span = AttentionSpan(key_mask=_padding_mask(lens, x.shape[1]), rotation=rotation)
        targets = FrameRange(condition.lens, codes.shape[1])
        stage = self.stage_embedding(stages_here - 1)
        hidden = self.decoder(self.dropout(x), span, stage, wanted=targets)
        return self._apply_heads(hidden, stages)

    def _num_levels(self, stages: Tensor) -> int:
        """How many quantizers of the target are looked up.

        In training all tables take part, that of each gets a gradient then: those of quantizers
        that no row reads come into play by the prompt, where it is read.
        """
        if self.training and not self.reads_prompts:
            return self.stages[-1]
        return int(stages.max())

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
