"""Cuts one code sequence into prompt and target.

Letters: B batch, T frames, S prompt frames, Q quantizers.
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


def take_rows(codes: Tensor, start: Tensor, lens: Tensor) -> Tensor:
    """Frames [start, start + lens) of each row, moved to its front, zeros behind."""
    _, T, Q = codes.shape
    offset = torch.arange(int(lens.max()), device=codes.device)  # (S,)
    index = (start[:, None] + offset).clamp(max=T - 1)  # (B, S)
    taken = codes.gather(1, index[:, :, None].expand(-1, -1, Q))
    return taken.masked_fill((offset >= lens[:, None])[:, :, None], 0)
