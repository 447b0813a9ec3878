"""Padding masks and the gather that closes the gap between a short prompt and its target.

One polarity everywhere: True marks a real frame, False padding.

B batch, S frames of the first part, T frames of the second, L frames in all, D model width.
"""

import torch
from torch import Tensor


def length_mask(lens: Tensor, max_len: int) -> Tensor:
    """(B,) lengths to a (B, max_len) bool mask, True on real frames."""
    return torch.arange(max_len, device=lens.device) < lens[:, None]


def close_gap(
    first: Tensor,
    first_lens: Tensor,
    second: Tensor,
    second_lens: Tensor,
    longest: int | None = None,
) -> Tensor:
    """Join two padded sequences so that each row is contiguous, its padding all at the end.

    A row without a gap needs no mask under causal attention: what is real never sees what is not.

    Args:
      first: (B, S, ...) with `first_lens` (B,) real frames a row.
      second: (B, T, ...) with `second_lens` (B,) real frames a row.
      longest: no row has more frames; None: S + T.

    Returns:
      (B, S + T, ...), or `longest` frames; row b holds first[b, :first_lens[b]], then
      second[b, :second_lens[b]]; frames past these are arbitrary and must be masked by their
      length.
    """
    S, T = first.shape[1], second.shape[1]
    L = S + T if longest is None else min(longest, S + T)
    if _common_number(first_lens) == S:
        return torch.cat([first, second[:, : L - S]], dim=1)
    index = torch.arange(L, device=first.device)[None]
    index = torch.where(index < first_lens[:, None], index, S + index - first_lens[:, None])
    last = S + second_lens[:, None] - 1
    return _gather_frames(
        torch.cat([first, second], dim=1), torch.minimum(index, last.clamp(min=0))
    )


class FrameRange:
    """As many frames of each row, from its own start.

    Args:
      starts: (B,) the first one.
      num_frames: how many.
    """

    def __init__(self, starts: Tensor, num_frames: int) -> None:
        self.starts, self.num_frames = starts, num_frames
        # found out here, not in a layer: a compiler could not follow
        self._same_start = _common_number(starts)

    def take_from(self, sequence: Tensor) -> Tensor:
        """(B, L, ...) to (B, num_frames, ...).

        Frames that would lie past the end repeat the last one, and must be masked by the caller.
        """
        first, num = self._same_start, self.num_frames
        if first is not None and first + num <= sequence.shape[1]:
            return sequence[:, first : first + num]
        index = self.starts[:, None] + torch.arange(num, device=sequence.device)
        return _gather_frames(sequence, index.clamp(max=sequence.shape[1] - 1))


def _common_number(numbers: Tensor) -> int | None:
    """The one number that all are, so that a slice does for a gather; None where they differ.

    A GPU is not asked, as the host would have to wait.
    """
    if numbers.device.type != "cpu" or not len(numbers):
        return None
    first = int(numbers[0])
    return first if bool((numbers == first).all()) else None


def _gather_frames(sequence: Tensor, index: Tensor) -> Tensor:
    rows = torch.arange(sequence.shape[0], device=sequence.device)[:, None]
    return sequence[rows, index]
