"""How a long recording is cut into excerpts. Everything is counted in frames."""

from itertools import pairwise
from typing import NamedTuple


class Window(NamedTuple):
    """Frames [start, stop) of a recording."""

    start: int
    stop: int


def plan_windows(num_frames: int, window: int, minimum: int) -> list[Window]:
    """Cover a recording with excerpts of `window` frames, none lost and none twice.

    What remains at the end is an excerpt of its own where it has `minimum` frames at least; else
    it shares its length evenly with the excerpts before it, with no more of them than it takes. So
    the end of every recording, from which a model learns to stop, stays within an excerpt that is
    long enough to be trained on.

    Args:
      num_frames: Length of the recording.
      window: Frames of an excerpt.
      minimum: Frames that an excerpt should have at least. Above half a window some recordings
        cannot be cut so, as one of 25 s into 15 to 20 s: all their excerpts are of one length then.
        A recording that is shorter as a whole is one excerpt all the same.

    Returns:
      The excerpts in order; none for an empty recording.

    Raises:
      ValueError: Sizes that cannot be.
    """
    if not 0 <= minimum <= window or window < 1:
        raise ValueError(
            f"windows of {window} frames with a minimum of {minimum}: the minimum may be a window "
            "at most"
        )
    edges = [*range(0, num_frames, window), num_frames]
    num_full, rest = len(edges) - 2, edges[-1] - edges[-2] if num_frames else 0
    if num_full > 0 and rest < minimum:
        sharing = next(
            (n for n in range(1, num_full) if (n * window + rest) // (n + 1) >= minimum), num_full
        )
        edges[-1 - sharing :] = _shared(edges[-2 - sharing], num_frames, sharing + 1)
    return [Window(start, stop) for start, stop in pairwise(edges)]


def _shared(start: int, stop: int, num_parts: int) -> list[int]:
    """Where parts of one length, within a frame, end; longer ones first."""
    length, more = divmod(stop - start, num_parts)
    return [start + length * i + min(i, more) for i in range(1, num_parts + 1)]
