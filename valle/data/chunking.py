"""Cuts a long sequence into pieces that a network can take one at a time, with context."""

from typing import NamedTuple


class Chunk(NamedTuple):
    """Frames [start, stop) are kept of what the network makes of [context_start, context_stop)."""

    start: int
    stop: int
    context_start: int
    context_stop: int

    def kept(self) -> slice:
        """Where the kept frames lie within the piece."""
        return slice(self.start - self.context_start, self.stop - self.context_start)


def plan_chunks(num_frames: int, chunk: int, left: int, right: int) -> list[Chunk]:
    """Cover [0, num_frames) without gap or overlap.

    Args:
      num_frames: Length of the whole sequence.
      chunk: Frames kept of each piece; the last one may be shorter.
      left: Context frames before a piece, less at the sequence's own start.
      right: Context frames after it, less at the sequence's own end.

    Returns:
      The pieces in order; a single one without context where everything fits into `chunk`.
    """
    return [
        Chunk(
            start,
            min(start + chunk, num_frames),
            max(start - left, 0),
            min(start + chunk + right, num_frames),
        )
        for start in range(0, num_frames, chunk)
    ]
