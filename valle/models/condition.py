"""What the halves read beside the codes that they predict, as vectors.

B batch, S vectors before the target, P prompt frames, A frames after the target, K known frames,
L all that a half reads, Q quantizers, D model width.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from valle.modules.masks import FrameRange, close_gap, length_mask


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


class Places(NamedTuple):
    """Where in time vectors stand that are no frames, or not those just before the target.

    Attributes:
      own: (B, S) of the vectors, in frames, fractions included.
      next: (B,) of the frame that comes after them.
    """

    own: Tensor
    next: Tensor

    def rows(self, rows: slice, num_vectors: int) -> "Places":
        return Places(self.own[rows, :num_vectors], self.next[rows])


class Condition(NamedTuple):
    """What a half reads before the codes that it predicts.

    Attributes:
      vectors: (B, S, D), padded at the end; `lens` (B,).
      ahead: of the same rows, where a gap is filled.
      places: None: the vectors are frames, one after the other, and the target follows.
      is_open: the AR half lets them see each other both ways, as text is there before the first
        frame; else, as frames do, each sees those before it.
      longest: no row has more vectors, condition and codes together; None: as many as all parts are
        wide.
    """

    vectors: Tensor
    lens: Tensor
    ahead: Ahead | None = None
    places: Places | None = None
    is_open: bool = False
    longest: int | None = None

    def rows(self, rows: slice) -> "Condition":
        """Some rows, without the padding that they all share."""
        lens = self.lens[rows]
        num_vectors = int(lens.max())
        return self._replace(
            vectors=self.vectors[rows, :num_vectors],
            lens=lens,
            ahead=None if self.ahead is None else self.ahead.rows(rows),
            places=None if self.places is None else self.places.rows(rows, num_vectors),
        )

    def all_places(self, num: int) -> Tensor | None:
        """(B, L) places of the vectors and of what follows them, `num` in all; None: 0, 1, 2."""
        if self.places is None:
            return None
        order = torch.arange(num, device=self.lens.device)[None]
        after = order + (self.places.next - self.lens)[:, None]
        own = F.pad(self.places.own, (0, max(num - self.vectors.shape[1], 0)))[:, :num]
        return own.where(order < self.lens[:, None], after)

    @property
    def num_out_of_time(self) -> Tensor | None:
        """(B,) by how much more has been read before the next frame than its place says."""
        if self.ahead is not None:
            return self.ahead.lens
        return None if self.places is None else self.lens - self.places.next


class Given(NamedTuple):
    """What a model is told beside codes: text or events, of the prompt and the target together.

    Attributes:
      tokens: (B, S) ids of text or (B, S, 6) MIDI events, each with BOS and EOS; `lens` (B,).
      num_of_prompt: (B,) how many of them stand before those of the target, BOS not counted, where
        the NAR half is not to know these; None: it reads all.
    """

    tokens: Tensor
    lens: Tensor
    num_of_prompt: Tensor | None = None

    def of_target(self) -> "Given":
        """What the NAR half reads: BOS, then what tells of the target."""
        if self.num_of_prompt is None:
            return self
        rest = FrameRange(1 + self.num_of_prompt, self.tokens.shape[1] - 1).take_from(self.tokens)
        return Given(torch.cat([self.tokens[:, :1], rest], dim=1), self.lens - self.num_of_prompt)

    def take(self, rows: Tensor) -> "Given":
        """Rows by their numbers (N,)."""
        num = None if self.num_of_prompt is None else self.num_of_prompt[rows]
        return Given(self.tokens[rows], self.lens[rows], num)


class Known(NamedTuple):
    """Codes (B, K, q) that a half would predict, did it not know them; `lens` (B,)."""

    codes: Tensor
    lens: Tensor

    @classmethod
    def nothing(cls, codes: Tensor) -> "Known":
        """No frame of codes (B, T, q)."""
        return cls(codes[:, :0], codes.new_zeros(len(codes)))

    def then(self, codes: Tensor, lens: Tensor) -> "Known":
        """With codes (B, T, q), `lens` (B,), behind these."""
        return Known(close_gap(self.codes, self.lens, codes, lens), self.lens + lens)

    def rows(self, rows: slice) -> "Known":
        """Some rows, without the padding that they all share."""
        lens = self.lens[rows]
        return Known(self.codes[rows, : int(lens.max())], lens)

    @property
    def mask(self) -> Tensor:
        """(B, K) bool, True where a code is known."""
        return length_mask(self.lens, self.codes.shape[1])
