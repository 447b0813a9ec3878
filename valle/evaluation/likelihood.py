"""What the true continuation of a prompt costs a model, frame by frame.

The cost of a code is minus the logarithm of the probability that the model gave it, knowing what
it knows when it generates: quantizer 1 all true frames before, quantizer q the true codes of the
quantizers below it in all frames.

Letters: B batch, S prompt frames, T target frames, Q quantizers, V codes, K bins of positions.
"""

import math
import sys
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from valle.data.prompt import PromptSplit, take_rows
from valle.models import AudioLM, CodecLM, Given
from valle.models.ar import ARDecoder
from valle.models.checks import check_infills
from valle.models.nar import NARDecoder
from valle.modules.losses import target_ranks
from valle.modules.masks import FrameRange, length_mask

_MOST_NATS = math.log(sys.float_info.max)


class FrameCosts(NamedTuple):
    """Of every target frame and quantizer.

    Attributes:
      nats: (B, T, Q) float32; no meaning beyond a row's length.
      ranks: (B, T, Q) int64, how many other codes the model held as likely or likelier; 0 is a hit.
      frames: (B, T) bool, True within a row's length.
    """

    nats: Tensor
    ranks: Tensor
    frames: Tensor


@torch.no_grad()
def frame_costs(
    model: CodecLM,
    x: Tensor,
    x_lens: Tensor,
    y: Tensor,
    y_lens: Tensor,
    after: Tensor | None = None,
    after_lens: Tensor | None = None,
    given: Given | None = None,
) -> FrameCosts:
    """Score targets (B, T, Q) after prompts (B, S, Q), as `AudioLM.forward` takes them.

    With `after` (B, A, Q) the targets are gaps, and what follows them is known. With `given`,
    of `VALLE.given`, it knows text or notes of prompts and targets; prompts may then be empty. The
    model should be in eval mode. Codes alone are scored: where a recording ends is no code.
    """
    B, T, _ = y.shape
    if (given is None) != (model.config.condition is None):
        raise ValueError(
            f"{type(model).__name__} {'needs' if given is None else 'has no use for'} `given`, "
            "text or notes: VALLE.given makes it"
        )
    ahead = None
    if after is not None:
        check_infills(model.config)
    if isinstance(model, AudioLM):
        ahead = model.what_follows(x, x_lens, y_lens, after, after_lens)
    halves: list[ARDecoder | NARDecoder] = [model.ar, *[model.nar] * len(model.nar.stages)]
    columns = []
    for q, half in enumerate(halves):
        condition, known = half.read(x, x_lens, given)
        condition = condition._replace(ahead=None if ahead is None else half.look_ahead(ahead))
        if isinstance(half, ARDecoder):
            logits = half(condition, *known.then(y[:, :, 0], y_lens))
        else:
            logits = half(condition, *known.then(y, y_lens), torch.full((B,), q))
        logits = FrameRange(known.lens, T).take_from(logits)
        columns.append(_costs(logits, y[:, :, q]))
    nats, ranks = (torch.stack(parts, dim=2) for parts in zip(*columns, strict=True))
    return FrameCosts(nats, ranks, length_mask(y_lens, T))


def _costs(logits: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Nats and ranks (B, T) of codes (B, T), where logits are (B, T, V)."""
    logits = logits.float()
    chosen = logits.gather(2, codes[..., None])[..., 0]
    return logits.logsumexp(dim=2) - chosen, target_ranks(logits, codes)


@dataclass(frozen=True)
class Likelihood:
    """Means over frames; a list has an entry for each quantizer.

    Attributes:
      num_frames: That were scored.
      nats: Cost of a code.
      top1: Share of frames in which the likeliest code was the true one.
      top10: Share in which the true one was among the ten likeliest.
    """

    num_frames: int
    nats: list[float]
    top1: list[float]
    top10: list[float]

    @property
    def perplexity(self) -> list[float]:
        """Among how many equally likely codes the choice was as hard; infinity beyond a float."""
        return [math.exp(nats) if nats < _MOST_NATS else math.inf for nats in self.nats]

    def bits_a_second(self, frame_rate: float) -> float:
        """Of all quantizers: what a second of sound takes if the model compresses its codes."""
        return sum(self.nats) / math.log(2) * frame_rate


class LikelihoodMeter:
    """Sums costs up, by how far into the continuation a frame lies.

    Args:
      bin_frames: Frames of a bin.
    """

    def __init__(self, bin_frames: int) -> None:
        if bin_frames < 1:
            raise ValueError(f"bin_frames is {bin_frames}, expected 1 or more")
        self.bin_frames = bin_frames
        self._sums = torch.zeros(0)  # (K, Q, 3): nats, hits, hits among ten
        self._counts = torch.zeros(0, dtype=torch.int64)  # (K,)

    def add(self, costs: FrameCosts) -> None:
        """Take in a batch."""
        values = torch.stack([costs.nats, costs.ranks < 1, costs.ranks < 10], dim=3)
        values = values.masked_fill(~costs.frames[..., None, None], 0).double().sum(0).cpu()
        T, Q, _ = values.shape
        bins = torch.arange(T) // self.bin_frames
        num_bins = max(len(self._counts), int(bins[-1]) + 1)
        sums = torch.zeros(num_bins, Q, 3, dtype=torch.float64).index_add_(0, bins, values)
        counts = torch.zeros(num_bins, dtype=torch.int64)
        counts.index_add_(0, bins, costs.frames.sum(0).cpu())
        sums[: len(self._sums)] += self._sums if len(self._sums) else 0
        counts[: len(self._counts)] += self._counts
        self._sums, self._counts = sums, counts

    def by_position(self) -> list[Likelihood]:
        """A bin after the other; each has frames."""
        pairs = zip(self._sums, self._counts.tolist(), strict=True)
        return [_means(sums, count) for sums, count in pairs if count]

    def overall(self) -> Likelihood:
        """Of all frames.

        Raises:
          ValueError: Nothing was added, or costs that are not finite.
        """
        if not int(self._counts.sum()):
            raise ValueError("no frame was scored: were all cuts shorter than their prompts?")
        found = _means(self._sums.sum(0), int(self._counts.sum()))
        if not all(map(math.isfinite, found.nats)):
            nats = ", ".join(f"{value:g}" for value in found.nats)
            raise ValueError(
                f"costs of the quantizers are {nats} nats a frame, expected finite numbers: are "
                "the model's weights finite, and its numbers of a type that holds its logits?"
            )
        return found


def _means(sums: Tensor, count: int) -> Likelihood:
    """Of sums (Q, 3)."""
    nats, top1, top10 = (sums / count).T.tolist()
    return Likelihood(count, nats, top1, top10)


def prompts_before(
    codes: Tensor, lens: Tensor, begin: int, prompt_frames: int
) -> PromptSplit | None:
    """The same targets after prompts of a length: what a longer prompt is worth.

    Args:
      codes: (B, T, Q); lens: (B,).
      begin: The frame at which all targets begin.
      prompt_frames: How many frames before it the model is shown, 1 to begin.

    Returns:
      The rows that reach beyond `begin`; None if there are none.

    Raises:
      ValueError: A prompt that would begin before its row.
    """
    if not 1 <= prompt_frames <= begin:
        raise ValueError(f"prompt_frames is {prompt_frames}, expected 1 to begin, {begin}")
    kept = lens > begin
    if not bool(kept.any()):
        return None
    codes, y_lens = codes[kept], lens[kept] - begin
    first = torch.full_like(y_lens, begin)
    x_lens = torch.full_like(y_lens, prompt_frames)
    x = take_rows(codes, first - prompt_frames, x_lens)
    return PromptSplit(x, x_lens, take_rows(codes, first, y_lens), y_lens)
