"""MusicGen's decoder as a model of codes: its delay pattern, its likelihood, its continuations.

Quantizer q of frame t, both counted from 0, stands in column t + q (arXiv 2306.05284, section 2.2,
"delay"), so a sequence of L frames has L + Q - 1 columns. All codes of a column are predicted
at once, from the columns before it. Column -1 holds the special id alone, as do all places where a
column has no code.

B rows, S prompt frames, T target frames, L = S + T, N new frames, Q quantizers, V codebook size,
D model width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from peers import musicgen_decoder
from torch import Tensor

from valle.evaluation import FrameCosts
from valle.models.config import AudioLMConfig
from valle.modules.embedding import CodeEmbedding, init_head
from valle.modules.losses import masked_cross_entropy, target_ranks
from valle.modules.masks import FrameRange, close_gap, length_mask
from valle.modules.sampling import RowDraws, Sampling, row_generators, sample


@dataclass(frozen=True)
class Shape:
    """Of a decoder; as many heads as ours."""

    width: int
    num_layers: int

    @property
    def num_parameters(self) -> int:
        """Without tables and heads: 12 D^2 a layer, which has no biases, and the norms."""
        D, N = self.width, self.num_layers
        return N * (12 * D**2 + 4 * D) + 2 * D


def nearest_shape(num_parameters: int, nhead: int, depths: Sequence[int]) -> Shape:
    """The shape with so many parameters, tables and heads left out.

    Widths are even multiples of `nhead`. Among shapes that miss the number by less than 2 %, the
    depth in the middle of `depths` is preferred.
    """
    step = nhead if nhead % 2 == 0 else 2 * nhead
    middle = (depths[0] + depths[-1]) / 2

    def distance(shape: Shape) -> tuple[int, float]:
        missed = abs(shape.num_parameters / num_parameters - 1)
        return int(50 * missed), abs(shape.num_layers - middle)

    shapes = []
    for depth in depths:
        width = (num_parameters / (12 * depth)) ** 0.5
        below = max(int(width // step), 1)
        shapes += [Shape(step * n, depth) for n in (below, below + 1)]
    return min(shapes, key=distance)


def make_decoder(config: AudioLMConfig, shape: Shape, device: torch.device) -> Any:
    """A `MusicgenForCausalLM` in train mode, with fresh weights, without all of cross-attention.

    Args:
      config: ours: for heads, quantizers, codes and dropout.
      shape: its own.
      device: where it goes.
    """
    asked = AudioLMConfig(
        shape.width,
        config.nhead,
        shape.num_layers,
        num_quantizers=config.num_quantizers,
        num_audio_tokens=config.num_audio_tokens,
        positions="sine",  # MusicGen's own; rotary ones would not take every width
    )
    musicgen_decoder.cache_clear()  # its weights are those of one contender alone
    model = musicgen_decoder(asked, "float32", device)
    musicgen_decoder.cache_clear()
    decoder = model.model.decoder
    decoder.dropout = config.dropout
    for layer in decoder.layers:
        layer.dropout = config.dropout
        layer.encoder_attn_layer_norm = None  # of the cross-attention, which is gone already
    return model.train()


@torch.no_grad()
def init_from_codebooks(model: Any, codebooks: Tensor) -> None:
    """Start tables and heads from (Q, V, D_codec) vectors of the codec, as ours can."""
    Q, V, _ = codebooks.shape
    tables = CodeEmbedding(Q, V, model.config.hidden_size)
    directions = tables.init_from(codebooks)
    pairs = zip(model.model.decoder.embed_tokens, tables.tables, strict=True)
    for q, (theirs, ours) in enumerate(pairs):
        theirs.weight[:V] = ours.weight.to(theirs.weight)
        start = torch.nn.Linear(model.config.hidden_size, V, bias=False)
        start.weight.copy_(model.lm_heads[q].weight)
        init_head(start, codebooks[q], directions)
        model.lm_heads[q].weight.copy_(start.weight)


# The pattern


def delayed(codes: Tensor, lens: Tensor, special: int) -> Tensor:
    """(B, L, Q) codes with lengths (B,) to (B, L + Q - 1, Q) columns."""
    B, L, Q = codes.shape
    codes = codes.masked_fill(~length_mask(lens, L)[:, :, None], special)
    columns = codes.new_full((B, L + Q - 1, Q), special)
    for q in range(Q):
        columns[:, q : q + L, q] = codes[:, :, q]
    return columns


def undelayed(columns: Tensor) -> Tensor:
    """(B, L + Q - 1, Q) columns to (B, L, Q) codes."""
    Q = columns.shape[2]
    L = columns.shape[1] - Q + 1
    return torch.stack([columns[:, q : q + L, q] for q in range(Q)], dim=2)


def with_start(columns: Tensor, special: int) -> Tensor:
    """The column of special ids before all others."""
    return torch.cat([torch.full_like(columns[:, :1], special), columns], dim=1)


# The likelihood


def frame_logits(
    model: Any, codes: Tensor, lens: Tensor, starts: Tensor, num_frames: int
) -> list[Tensor]:
    """Logits of frames `starts` to `starts + num_frames` of every row, each from what is before.

    A row's padding comes last, so no mask is needed: what is real never sees it.

    Args:
      model: of `make_decoder`.
      codes: (B, L, Q); lens: (B,).
      starts: (B,) first frame that is predicted.
      num_frames: T; logits beyond a row's length have no meaning.

    Returns:
      Q tensors (B, T, V).
    """
    special = model.config.pad_token_id
    columns = with_start(delayed(codes, lens, special), special)[:, :-1]
    inputs = columns.transpose(1, 2).flatten(0, 1)  # (B Q, L + Q - 1), as it takes them
    hidden = model.model(input_ids=inputs, use_cache=False).last_hidden_state
    return [
        head(FrameRange(starts + q, num_frames).take_from(hidden))
        for q, head in enumerate(model.lm_heads)
    ]


def summed_loss(model: Any, codes: Tensor, lens: Tensor, starts: Tensor) -> Tensor:
    """Cross-entropy from `starts` (B,) to the rows' ends, summed; the mean over quantizers."""
    num_frames = int((lens - starts).max())
    targets = FrameRange(starts, num_frames).take_from(codes)
    mask = length_mask(lens - starts, num_frames)
    logits = frame_logits(model, codes, lens, starts, num_frames)
    losses = [
        masked_cross_entropy(of_one, targets[:, :, q], mask).total.sum()
        for q, of_one in enumerate(logits)
    ]
    return torch.stack(losses).mean()


@torch.no_grad()
def musicgen_costs(model: Any, x: Tensor, x_lens: Tensor, y: Tensor, y_lens: Tensor) -> FrameCosts:
    """What `valle.evaluation.frame_costs` tells of AudioLM: of the same codes, each once.

    The first frames' upper quantizers are predicted with the last upper codes of the prompt still
    unheard, as when it generates: these come in later columns.
    """
    T = y.shape[1]
    codes, lens = close_gap(x, x_lens, y, y_lens), x_lens + y_lens
    logits = [part.float() for part in frame_logits(model, codes, lens, x_lens, T)]
    nats = [
        F.cross_entropy(part.transpose(1, 2), y[:, :, q], reduction="none")
        for q, part in enumerate(logits)
    ]
    ranks = [target_ranks(part, y[:, :, q]) for q, part in enumerate(logits)]
    return FrameCosts(torch.stack(nats, dim=2), torch.stack(ranks, dim=2), length_mask(y_lens, T))


# Continuations


@torch.no_grad()
def continue_prompts(
    model: Any,
    prompts: Tensor,
    num_frames: int,
    first: Sampling,
    others: Sampling,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Continue prompts of one length, a column a pass, with a key/value cache.

    Args:
      model: in eval mode.
      prompts: (B, S, Q).
      num_frames: N.
      first: how quantizer 1 is drawn; `others`: how quantizers 2 to Q are.
      generator: gives each row a seed in turn.

    Returns:
      (B, S + N, Q) codes, the prompts untouched.
    """
    B, S, Q = prompts.shape
    L, special = S + num_frames, model.config.pad_token_id
    lens = torch.full((B,), L, device=prompts.device)
    columns = with_start(delayed(F.pad(prompts, (0, 0, 0, num_frames)), lens, special), special)
    draws = RowDraws(row_generators(B, generator), Q, prompts.device).take(num_frames + Q - 1)
    ways = [first] + [others] * (Q - 1)
    cache, begin = None, 0
    for step in range(num_frames + Q - 1):
        end = S + step + 1  # columns read so far, with the one of the start
        logits, cache = _read(model, columns[:, begin:end], cache)
        for q, how in enumerate(ways):
            if S <= end - 1 - q < L:  # else this place holds a code of the prompt, or none
                columns[:, end, q] = sample(logits[:, q], how, draws[:, step, q])
        begin = end
    return undelayed(columns[:, 1:])


def _read(model: Any, columns: Tensor, cache: Any) -> tuple[Tensor, Any]:
    """(B, K, Q) columns after those in a cache, to (B, Q, V) logits of the next, and the cache."""
    B, _, Q = columns.shape
    inputs = columns.transpose(1, 2).flatten(0, 1)
    out = model(input_ids=inputs, past_key_values=cache, use_cache=True)
    return out.logits[:, -1].view(B, Q, -1).float(), out.past_key_values
