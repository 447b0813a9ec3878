"""The autoregressive half: predicts quantizer 1, frame by frame, with causal attention.

It continues any condition that comes as vectors and knows nothing of what these stand for.

B batch, S vectors of the condition, T target frames, A frames ahead, L = A + S + T, P prompt
frames, Q quantizers, V codebook size, D model width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from valle.models.condition import Ahead, Condition, Given, Known, Places
from valle.models.reading import Reader
from valle.modules.attention import AttentionSpan, Opening, Rotation, computing_dtype
from valle.modules.dropout import Dropout
from valle.modules.embedding import CodeEmbedding, PreNet, init_head, make_positions, place
from valle.modules.fused_step import FusedStep
from valle.modules.masks import FrameRange, close_gap
from valle.modules.transformer import Decoder, KVCache


@dataclass
class ARState:
    """What the frames read so far leave for the next one. Its tensors are written in place.

    Attributes:
      cache: keys and values of the frames read, for B rows.
      lens: (B,) how many frames each row has read.
      longest: the longest of them where the host keeps count and all that is cached is real. None:
        every step reads the whole cache behind a mask, so that each is the same to the device.
      fused: reads a frame in one call, in the place of the layers.
      num_out_of_time: (B,) by how much more has been read than the place of the next frame says;
        None: by nothing.
    """

    cache: KVCache
    lens: Tensor
    longest: int | None = None
    fused: FusedStep | None = None
    num_out_of_time: Tensor | None = None

    @property
    def places(self) -> Tensor:
        """(B,) where in time the next frame stands."""
        return self.lens if self.num_out_of_time is None else self.lens - self.num_out_of_time


class ARDecoder(nn.Module):
    """Causal transformer over a condition and the codes of quantizer 1 that follow it.

    The output at the last condition frame predicts the first target frame. With `prepend_bos` a
    learned BOS frame stands between the two and predicts it, and the condition may be empty. BOS
    is a vector and not an id, so no head can emit it.

    With `ahead_frames` it reads at most so many frames of what follows a gap before it fills it,
    marked by a learned vector. With a `reader` the condition is text or events, and a prompt is the
    beginning of what it predicts, of quantizer 1 alone, as in VALL-E.
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
        ahead_frames: int = 0,
        positions: str = "rotary",
        reader: Reader | None = None,
    ):
        super().__init__()
        self.eos_id = codebook_size
        self.reader = reader
        num_read = num_quantizers if reader is None else 1
        self.embedding = CodeEmbedding(num_read, codebook_size, d_model)
        self.bos = nn.Parameter(torch.randn(d_model)) if prepend_bos else None
        self.prenet = PreNet(d_model) if add_prenet else nn.Identity()
        self.positions = make_positions(positions, d_model, nhead, learned_scale=True)
        self.dropout = Dropout(dropout)
        self.decoder = Decoder(d_model, nhead, num_layers, norm_first, dropout=dropout)
        self.head = nn.Linear(d_model, codebook_size + 1)  # one more for EOS
        self.ahead_frames = ahead_frames
        # small, not zero: ScaledAdam moves a tensor in proportion to its size
        self.ahead_mark = nn.Parameter(0.1 * torch.randn(d_model)) if ahead_frames else None

    def init_embeddings(self, codebooks: Tensor) -> None:
        """Start from (Q, V, D_codec) codebook vectors; the row of EOS keeps its random start."""
        directions = self.embedding.init_from(codebooks)
        init_head(self.head, codebooks[0], directions)

    def read(
        self, prompts: Tensor, lens: Tensor, given: Given | None = None
    ) -> tuple[Condition, Known]:
        """What is read before the first new frame.

        Args:
          prompts: (B, P, Q) codes; `lens` (B,).
          given: text or events, where the model reads these.

        Returns:
          A condition, and codes (B, P) of quantizer 1 that follow it.
        """
        if self.reader is None or given is None:
            return Condition(self.embedding(prompts), lens), Known.nothing(prompts[:, :, 0])
        places = Places(self.reader.places(given.tokens), torch.zeros_like(given.lens))
        vectors = self.reader(given.tokens)
        condition = Condition(vectors, given.lens, places=places, is_open=True)
        return condition, Known(prompts[:, :, 0], lens)

    def forward(self, condition: Condition, codes: Tensor, code_lens: Tensor) -> Tensor:
        """Predict each target frame from all before it (teacher forcing).

        Args:
          condition: what is read first; what lies ahead as `look_ahead` gives it.
          codes: (B, T) codes of quantizer 1; `code_lens` (B,).

        Returns:
          (B, T + 1, V + 1) logits; [:, t] predicts codes[:, t], and the one at a row's own length
          predicts what follows its last frame, which may be EOS.
        """
        x, span, before = self._read(condition, codes, code_lens)
        targets = FrameRange(before - 1, codes.shape[1] + 1)
        return self.head(self.decoder(x, span, wanted=targets))

    def forward_whole(
        self, condition: Condition, codes: Tensor, code_lens: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What `forward` returns, and the same for the condition where its frames are codes, too.

        Returns:
          (B, T + 1, V + 1) logits; and (B, S - 1, V + 1), of which [:, s] predicts what stands at
          s + 1 in the condition from all before it.
        """
        x, span, before = self._read(condition, codes, code_lens)
        hidden = self.decoder(x, span)
        first = before - self.num_bos - condition.lens  # what lies ahead comes before it
        targets = FrameRange(before - 1, codes.shape[1] + 1)
        own = FrameRange(first, max(condition.vectors.shape[1] - 1, 0))
        return self.head(targets.take_from(hidden)), self.head(own.take_from(hidden))

    def look_ahead(self, codes: Ahead) -> Ahead:
        """What is read of codes (B, A, Q) that follow a gap, as marked vectors."""
        assert self.ahead_mark is not None
        ahead = codes.first(self.ahead_frames).embedded(self.embedding)
        return ahead._replace(vectors=ahead.vectors + self.ahead_mark)

    def prefill(self, condition: Condition, known: Known, cache: KVCache) -> tuple[Tensor, Tensor]:
        """Read a condition, and codes that follow it, into a cache.

        Args:
          condition: what is read first; what lies ahead as `look_ahead` gives it.
          known: codes (B, T) of quantizer 1 that are known already, T may be 0.
          cache: of these B rows; what it holds is overwritten from the first frame on.

        Returns:
          (B, V + 1) float logits of the next frame, and (B,) how many frames a row has now read.
        """
        ahead = condition.ahead
        lens = condition.lens + self.num_bos + known.lens + (0 if ahead is None else ahead.lens)
        longest = int(lens.max())  # a cache may be no longer than that
        x, span, _ = self._read(condition, known.codes, known.lens, longest)
        hidden = self.decoder(x, span, cache=cache, wanted=FrameRange(lens - 1, 1))
        return self.head(hidden)[:, 0].float(), lens

    def decode_one_frame(self, codes: Tensor, state: ARState) -> Tensor:
        """Read one new code (B,) a row; return the (B, V + 1) float logits of the next."""
        x, rotation = self._at_positions(self._embed(codes[:, None]), state.places[:, None])
        if state.fused is not None:
            logits = state.fused(x[:, 0], state.lens, state.cache.data, rotation)
        else:
            span = _next_span(state, rotation)
            logits = self.head(self.decoder(x, span, cache=state.cache))[:, 0].float()
        state.lens += 1
        if state.longest is not None:
            state.longest += 1
        return logits

    @property
    def num_bos(self) -> int:
        """Frames that stand between condition and codes."""
        return 0 if self.bos is None else 1

    def _embed(self, codes: Tensor) -> Tensor:
        return self.embedding(codes[:, :, None])

    def _read(
        self, condition: Condition, codes: Tensor, code_lens: Tensor, longest: int | None = None
    ) -> tuple[Tensor, AttentionSpan, Tensor]:
        """All that is read, in its order and at its places, (B, L, D), and who sees whom.

        Also (B,) how many frames of it come before the codes. L is at most `longest`.
        """
        x, lens = self._with_bos(condition.vectors, condition.lens)
        x = close_gap(x, lens, self._embed(codes), code_lens)
        places = condition.all_places(x.shape[1])
        if condition.ahead is not None:
            x, places = self._after(condition.ahead, x, lens + code_lens)
            lens = condition.ahead.lens + lens
        x, places = x[:, :longest], None if places is None else places[:, :longest]
        opening = None
        if condition.is_open:
            num_open, dtype = condition.vectors.shape[1], computing_dtype(x)
            opening = Opening.of(condition.lens, num_open, x.shape[1], dtype)
        x, rotation = self._at_positions(x, places)
        return x, AttentionSpan(is_causal=True, opening=opening, rotation=rotation), lens

    def _after(self, ahead: Ahead, x: Tensor, lens: Tensor) -> tuple[Tensor, Tensor]:
        """What lies ahead, then `x` (B, L, D), and the places of both in time, (B, A + L)."""
        longest = None if ahead.longest is None else ahead.longest + self.num_bos
        x = close_gap(ahead.vectors, ahead.lens, x, lens, longest)
        order = torch.arange(x.shape[1], device=x.device)[None]
        is_ahead = order < ahead.lens[:, None]
        shift = torch.where(is_ahead, (ahead.starts + self.num_bos)[:, None], -ahead.lens[:, None])
        return x, order + shift

    def _with_bos(self, condition: Tensor, lens: Tensor) -> tuple[Tensor, Tensor]:
        if self.bos is None:
            return condition, lens
        bos = self.bos.expand(condition.shape[0], 1, -1)
        return close_gap(condition, lens, bos, torch.ones_like(lens)), lens + 1

    def _at_positions(
        self, x: Tensor, places: Tensor | None = None
    ) -> tuple[Tensor, Rotation | None]:
        x, rotation = place(self.prenet(x), self.positions, places)
        return self.dropout(x), rotation


def _next_span(state: ARState, rotation: Rotation | None) -> AttentionSpan:
    """What the next frame of each row sees: the frames its row has read, and itself."""
    num_cached = state.cache.max_len if state.longest is None else state.longest + 1
    # rows shorter than others must not see what lies behind their own end
    seen = torch.arange(num_cached, device=state.lens.device) <= state.lens[:, None]
    is_full = state.longest is not None and state.lens.shape[0] == 1
    return AttentionSpan(
        key_mask=None if is_full else seen,
        positions=state.lens,
        num_cached=num_cached,
        rotation=rotation,
    )
