"""Cuts one code sequence into prompt and target, or into a gap and what lies around it.

Letters: B batch, T frames, S prompt frames, A frames after a gap, Q quantizers.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class PromptSplit(NamedTuple):
    """A batch of sequences, each cut in two.

    Attributes:
      x: (B, S, Q) prompt codes, zero beyond each row's length.
      x_lens: (B,) int64, at least 1 (0 where the ratio is 0).
      y: (B, T, Q) target codes, zero beyond each row's length.
      y_lens: (B,) int64, at least 1.
    """

    x: Tensor
    x_lens: Tensor
    y: Tensor
    y_lens: Tensor


def split_prompt(codes: Tensor, lens: Tensor, ratio: float) -> PromptSplit:
    """The first `ratio` of each row is its prompt, the rest its target.

    Each row is cut by its own length, so that padding plays no part: the prompt has
    round(ratio * len) frames, but prompt and target have one frame at least. With a ratio of 0
    prompts are empty, which only a model with BOS can continue.

    Args:
      codes: (B, T, Q).
      lens: (B,) frames of each row.
      ratio: Share of the prompt, from 0 to below 1.

    Raises:
      ValueError: A ratio that leaves no prompt or no target, shapes that disagree, or a row of
        fewer than 2 frames.
    """
    if not 0.0 <= ratio < 1.0:
        raise ValueError(f"the prompt ratio is {ratio}, expected a number from 0 to below 1")
    if codes.ndim != 3 or lens.shape != codes.shape[:1]:
        raise ValueError(
            f"codes {tuple(codes.shape)} and lens {tuple(lens.shape)}, expected (B, T, Q) and (B,)"
        )
    if codes.shape[0] == 0 or int(lens.min()) < 2 or int(lens.max()) > codes.shape[1]:
        raise ValueError(
            f"lens are {lens.tolist()}, expected from 2 (a prompt and a target frame) to the "
            f"{codes.shape[1]} frames of the batch; filter out shorter cuts"
        )
    lens = lens.long()
    prompt = torch.round(lens.double() * ratio).long().clamp(min=1 if ratio > 0 else 0)
    x_lens = torch.minimum(prompt, lens - 1)
    y_lens = lens - x_lens
    start = torch.zeros_like(x_lens)
    return PromptSplit(
        take_rows(codes, start, x_lens), x_lens, take_rows(codes, x_lens, y_lens), y_lens
    )


class GapSplit(NamedTuple):
    """A batch of sequences, each cut in three; where nothing follows it is cut in two.

    Attributes:
      x: (B, S, Q) codes before the gap, or the prompt; `x_lens` (B,).
      y: (B, T, Q) codes of the gap, or the target; `y_lens` (B,).
      after: (B, A, Q) codes after the gap; `after_lens` (B,).
    """

    x: Tensor
    x_lens: Tensor
    y: Tensor
    y_lens: Tensor
    after: Tensor
    after_lens: Tensor


MIDDLE_GAP = 0.4, 0.2  # where a gap begins and how long it is, to be scored

# Of a row's frames, in training. Short gaps are easy, as both sides tell what is missing; a gap as
# long as the target of a continuation teaches continuing, too.
SHORTEST_GAP, LONGEST_GAP = 0.1, 0.7


def split_gaps(codes: Tensor, lens: Tensor, x_lens: Tensor, y_lens: Tensor) -> GapSplit:
    """Each row of (B, T, Q) codes, `lens` (B,) frames long, cut after `x_lens`, and `y_lens` later.

    Raises:
      ValueError: lengths that leave no gap or do not fit into their row.
    """
    after_lens = lens - x_lens - y_lens
    if int(y_lens.min()) < 1 or int(x_lens.min()) < 0 or int(after_lens.min()) < 0:
        raise ValueError(
            f"x_lens {x_lens.tolist()} and y_lens {y_lens.tolist()} must be from 0 and from 1, and "
            f"together at most the lens {lens.tolist()}"
        )
    parts = []
    for start, num in ((0 * lens, x_lens), (x_lens, y_lens), (x_lens + y_lens, after_lens)):
        parts += [take_rows(codes, start, num), num]
    return GapSplit(*parts)


def middle_gaps(lens: Tensor) -> tuple[Tensor, Tensor]:
    """`x_lens` and `y_lens` (B,) for `split_gaps` that leave out the middle of each row.

    After a gap, too, there is a frame, but in rows of two.
    """
    begin, share = MIDDLE_GAP
    x_lens = (lens * begin).round().long().clamp(min=1)
    y_lens = (lens * share).round().long()
    return x_lens, torch.minimum(y_lens, lens - x_lens - 1).clamp(min=1)


def draw_gaps(
    split: PromptSplit, share: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Give about `share` of a batch's rows a gap, wherever it falls, in the place of their target.

    Args:
      split: rows of prompt and target; of what `split_prompt` gives, the lengths alone are read.
      share: from 0 to 1.
      generator: on the CPU; as many numbers are drawn for every row.

    Returns:
      `x_lens` and `y_lens` (B,) for `split_gaps`: those of `split` but in the rows with a gap,
      which has a frame before it and one after it at least; rows of under three frames get none.
    """
    lens = (split.x_lens + split.y_lens).cpu()
    chosen, size, place = torch.rand(3, len(lens), generator=generator)
    gap = SHORTEST_GAP + size * (LONGEST_GAP - SHORTEST_GAP)
    gap_lens = torch.minimum((gap * lens).round().long().clamp(min=1), lens - 2)
    before = 1 + (place * (lens - gap_lens - 1)).long()  # place is below 1: a frame is left
    is_gap = ((chosen < share) & (lens > 2)).to(split.x_lens.device)
    x_lens = split.x_lens.where(~is_gap, before.to(split.x_lens))
    return x_lens, split.y_lens.where(~is_gap, gap_lens.to(split.y_lens))


def take_rows(codes: Tensor, start: Tensor, lens: Tensor) -> Tensor:
    """Frames [start, start + lens) of each row, moved to its front, zeros behind."""
    _, T, Q = codes.shape
    offset = torch.arange(int(lens.max()), device=codes.device)  # (S,)
    index = (start[:, None] + offset).clamp(max=T - 1)  # (B, S)
    taken = codes.gather(1, index[:, :, None].expand(-1, -1, Q))
    return taken.masked_fill((offset >= lens[:, None])[:, :, None], 0)
