"""What the halves read beside the codes that they predict, as vectors.

B batch, S frames before the target, A frames after it, Q quantizers, D model width.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class Ahead(NamedTuple):
    """What comes after the target in time, where the target is a gap.

    The NAR half sees it in its place. The AR half reads it before all else, and the gap last, so
    that a causal model can fill it (fill-in-the-middle, arXiv 2207.14255; VoiceCraft, arXiv
    2403.16973). Of the orders proposed, "suffix, prefix, middle" leaves prompt and target side by
    side, as in a continuation. What is moved keeps its true place in time, from which the model can
    tell how long the gap is.

    Attributes:
      vectors: (B, A, D), padded at the end, or the codes (B, A, Q) of which a half makes them;
        `lens` (B,), 0 where nothing follows.
      starts: (B,) the place of the first of them, counted from the condition's first frame.
      longest: no row has more frames, all parts together; None: as many as the parts are wide.
    """

    vectors: Tensor
    lens: Tensor
    starts: Tensor
    longest: int | None = None

    def rows(self, rows: slice) -> "Ahead":
        """Some rows, without the padding that they all share."""
        lens = self.lens[rows]
        return Ahead(self.vectors[rows, : int(lens.max())], lens, self.starts[rows], self.longest)

    def first(self, num_frames: int) -> "Ahead":
        """So many frames of each row, those nearest to the gap."""
        lens = self.lens.clamp(max=num_frames)
        return self._replace(vectors=self.vectors[:, :num_frames], lens=lens)

    def embedded(self, embedding: Callable[[Tensor], Tensor]) -> "Ahead":
        """The same with vectors in the place of codes."""
        return self._replace(vectors=embedding(self.vectors))


class Condition(NamedTuple):
    """What the AR half reads before its first code.

    Attributes:
      vectors: (B, S, D), padded at the end; `lens` (B,).
      ahead: of the same rows, where a gap is filled.
    """

    vectors: Tensor
    lens: Tensor
    ahead: Ahead | None = None

    def rows(self, rows: slice) -> "Condition":
        """Some rows, without the padding that they all share."""
        lens = self.lens[rows]
        ahead = None if self.ahead is None else self.ahead.rows(rows)
        return Condition(self.vectors[rows, : int(lens.max())], lens, ahead)
