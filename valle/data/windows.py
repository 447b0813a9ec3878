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
    it shares its length evenly with the excerpt before it. So the end of every recording, from
    which a model learns to stop, stays within an excerpt that is long enough to be trained on.

    Args:
      num_frames: Length of the recording.
      window: Frames of an excerpt.
      minimum: Frames that an excerpt should have at least, at most half of `window`. A recording
        that is shorter as a whole is one excerpt all the same.

    Returns:
      The excerpts in order; none for an empty recording.

    Raises:
      ValueError: Sizes that cannot be.
    """
    if not 0 <= 2 * minimum <= window or window < 1:
        raise ValueError(
            f"windows of {window} frames with a minimum of {minimum}: the minimum may be half a "
            "window at most, so that a remainder can share with the window before it"
        )
    edges = [*range(0, num_frames, window), num_frames]
    if len(edges) > 2 and edges[-1] - edges[-2] < minimum:
        edges[-2] = edges[-3] + (edges[-1] - edges[-3] + 1) // 2
    return [Window(start, stop) for start, stop in pairwise(edges)]
