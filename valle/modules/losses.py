"""Cross-entropy and accuracy over the frames that count, as sums with counts.

B batch, T frames, V vocabulary.
"""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

IGNORED = -100


class Summed(NamedTuple):
    """A sum over frames and how many frames it is over; whoever reports divides."""

    total: Tensor
    num_frames: Tensor

    def sum(self) -> "Summed":
        return Summed(self.total.sum(), self.num_frames.sum())

    def mean(self) -> Tensor:
        return self.total / self.num_frames


class FrameScores(NamedTuple):
    """How well the codes of each row were predicted: sums (B,) over the same frames."""

    loss: Summed
    accuracy: Summed
    top10_accuracy: Summed

    def detached_sums(self, rows: Tensor) -> list[Summed]:
        """The three as sums over the rows where `rows` (B,) bool is True, without gradient."""
        return [Summed(s.total.detach() * rows, s.num_frames * rows).sum() for s in self]


def masked_cross_entropy(logits: Tensor, targets: Tensor, mask: Tensor) -> Summed:
    """Cross-entropy in nats, summed over the frames of a row that count.

    Args:
      logits: (B, T, V) float.
      targets: (B, T) int64 in [0, V); ignored where mask is False.
      mask: (B, T) bool, True on the frames that count.

    Returns:
      A sum and a count a row, both (B,).

    Raises:
      ValueError: the shapes disagree; the message gives all three.
    """
    if logits.shape[:2] != targets.shape or targets.shape != mask.shape:
        raise ValueError(
            "logits (B, T, V), targets (B, T) and mask (B, T) must agree, got "
            f"{tuple(logits.shape)}, {tuple(targets.shape)} and {tuple(mask.shape)}"
        )
    # float32: sums over thousands of frames lose their last digits in half precision
    losses = F.cross_entropy(
        logits.flatten(0, 1).float(),
        targets.masked_fill(~mask, IGNORED).flatten(),
        ignore_index=IGNORED,
        reduction="none",
    )
    return Summed(losses.view_as(targets).sum(1), mask.sum(1))


def frame_scores(logits: Tensor, targets: Tensor, mask: Tensor) -> FrameScores:
    """Loss, accuracy and top-10 accuracy of (B, T, V) logits, as in `masked_cross_entropy`."""
    loss = masked_cross_entropy(logits, targets, mask)
    ranks = target_ranks(logits.detach(), targets.masked_fill(~mask, 0))
    hits = Summed(((ranks < 1) & mask).sum(1), loss.num_frames)
    top10_hits = Summed(((ranks < 10) & mask).sum(1), loss.num_frames)
    return FrameScores(loss, hits, top10_hits)


def target_ranks(logits: Tensor, targets: Tensor) -> Tensor:
    """How many other ids score at least as high as the target: 0 is a hit.

    Counting is cheaper than sorting, and a tie counts against the model: constant logits hit
    nothing.
    """
    target_logits = logits.gather(-1, targets[..., None])
    return (logits >= target_logits).sum(-1) - 1
