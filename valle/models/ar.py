"""The autoregressive half: predicts quantizer 1, frame by frame, with causal attention.

It continues any condition that comes as vectors and knows nothing of what these stand for.

B batch, S condition frames, T target frames, L = S + T, V codebook size, D model width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from valle.modules.embedding import CodeEmbedding, PreNet, SinePositions, init_head
from valle.modules.masks import close_gap, take_frames
from valle.modules.transformer import AttentionSpan, Decoder, KVCache


@dataclass
class ARState:
    """Where a generation stands: the cache, and how many frames each row (B,) has read."""

    cache: KVCache
    lens: Tensor
    longest: int
    is_ragged: bool


class ARDecoder(nn.Module):
    """Causal transformer over a condition and the codes of quantizer 1 that follow it.

    The output at the last condition frame predicts the first target frame. With `prepend_bos` a
    learned BOS frame stands between the two and predicts it, and the condition may be empty. BOS
    is a vector and not an id, so no head can emit it.
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
        prepend_bos: bool = False,
        dropout: float = 0.1,
    ):
        super().__init__()
        self.eos_id = codebook_size
        self.embedding = CodeEmbedding(num_quantizers, codebook_size, d_model)
        self.bos = nn.Parameter(torch.randn(d_model)) if prepend_bos else None
        self.prenet = PreNet(d_model) if add_prenet else nn.Identity()
        self.positions = SinePositions(d_model, learned_scale=True)
        self.dropout = nn.Dropout(dropout)
        self.decoder = Decoder(d_model, nhead, num_layers, norm_first, dropout=dropout)
        self.head = nn.Linear(d_model, codebook_size + 1)  # one more for EOS

    def init_embeddings(self, codebooks: Tensor) -> None:
        """Start from (Q, V, D_codec) codebook vectors; the row of EOS keeps its random start."""
        directions = self.embedding.init_from(codebooks)
        init_head(self.head, codebooks[0], directions)

    def forward(
        self, condition: Tensor, condition_lens: Tensor, codes: Tensor, code_lens: Tensor
    ) -> Tensor:
        """Predict each target frame from all before it (teacher forcing).

        Args:
          condition: (B, S, D) vectors, padded at the end; `condition_lens` (B,).
          codes: (B, T) codes of quantizer 1; `code_lens` (B,).

        Returns:
          (B, T + 1, V + 1) logits; [:, t] predicts codes[:, t], and the one at a row's own length
          predicts what follows its last frame, which may be EOS.
        """
        x, _ = self._with_bos(condition, condition_lens)
        x = close_gap(x, condition_lens + self._num_bos, self._embed(codes), code_lens)
        hidden = self.decoder(self._at_positions(x), AttentionSpan(is_causal=True))
        first = condition_lens + self._num_bos - 1
        return self.head(take_frames(hidden, first, codes.shape[1] + 1))

    def prefill(
        self, condition: Tensor, condition_lens: Tensor, max_new_frames: int
    ) -> tuple[Tensor, ARState]:
        """Read the condition; return (B, V + 1) logits of the first new frame, and the state."""
        x, lens = self._with_bos(condition, condition_lens)
        x, longest = x[:, : int(lens.max())], int(lens.max())
        cache = KVCache(len(self.decoder.layers), longest + max_new_frames)
        positions = torch.arange(longest, device=x.device).expand(x.shape[0], -1)
        span = AttentionSpan(is_causal=True, positions=positions)
        hidden = self.decoder(self._at_positions(x), span, cache=cache)
        state = ARState(cache, lens, longest, is_ragged=int(lens.min()) != longest)
        return self.head(take_frames(hidden, lens - 1, 1))[:, 0], state

    def decode_one_frame(self, codes: Tensor, state: ARState) -> Tensor:
        """Read one new code (B,) a row; return the (B, V + 1) logits of the next."""
        positions, num_cached = state.lens[:, None], state.longest + 1
        # shorter rows must not see what the prefill of longer rows left in their cache
        seen = torch.arange(num_cached, device=codes.device) <= positions
        span = AttentionSpan(
            key_mask=seen if state.is_ragged else None, positions=positions, num_cached=num_cached
        )
        x = self._at_positions(self._embed(codes[:, None]), positions)
        hidden = self.decoder(x, span, cache=state.cache)
        state.lens, state.longest = state.lens + 1, num_cached
        return self.head(hidden)[:, 0]

    @property
    def _num_bos(self) -> int:
        return 0 if self.bos is None else 1

    def _embed(self, codes: Tensor) -> Tensor:
        return self.embedding(codes[:, :, None])

    def _with_bos(self, condition: Tensor, lens: Tensor) -> tuple[Tensor, Tensor]:
        if self.bos is None:
            return condition, lens
        bos = self.bos.expand(condition.shape[0], 1, -1)
        return close_gap(condition, lens, bos, torch.ones_like(lens)), lens + 1

    def _at_positions(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        if positions is None:
            positions = torch.arange(x.shape[1], device=x.device)[None]
        return self.dropout(self.prenet(x) + self.positions(positions))
