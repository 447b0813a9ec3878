"""Measures of how a sequence of codes repeats itself: numbers in, numbers out.

T frames, n codes of an n-gram.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

# What counts as a repetition.
HORIZON_SEC = 10.0  # an n-gram is repeated if it was there so many seconds before
MAX_PERIOD_SEC = 2.0  # a loop comes round in so many seconds at most
MIN_LOOP_SEC = 1.0  # shorter loops are as likely a tone that is held; of one code: silence
# Repetition-aware sampling, as in VALL-E 2, objects to a code that it heard this often.
OFTEN_WINDOW, OFTEN_SHARE = 10, 0.1


def repeated_ngrams(codes: np.ndarray, n: int, horizon: int) -> float:
    """Share of n-grams that have begun before, `horizon` frames earlier at most; 0 without any.

    The two may overlap, so that in a row of one code every n-gram but the first is repeated.
    """
    if len(codes) < n:
        return 0.0
    grams = sliding_window_view(codes, n)
    _, ids = np.unique(grams, axis=0, return_inverse=True)
    order = np.argsort(ids.ravel(), kind="stable")  # equal n-grams side by side, in their order
    is_equal = np.diff(ids.ravel()[order]) == 0
    return float((is_equal & (np.diff(order) <= horizon)).sum() / len(grams))


def entropy(codes: np.ndarray) -> float:
    """Nats of the frequencies of the codes; compare equal numbers of frames only."""
    _, counts = np.unique(codes, return_counts=True)
    shares = counts / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def share_heard_often(codes: np.ndarray, window: int, threshold: float) -> float:
    """Share of frames whose code makes up more than `threshold` of the `window` frames before.

    Repetition-aware sampling would draw these again; true music tells whether it should.
    """
    if len(codes) <= window:
        return 0.0
    before = sliding_window_view(codes[:-1], window)
    shares = (before == codes[window:, None]).mean(1)
    return float((shares > threshold).mean())


class Loop(NamedTuple):
    """Frames [start, stop) that come round every `period` frames, twice at least."""

    start: int
    stop: int
    period: int

    @property
    def num_frames(self) -> int:
        return self.stop - self.start


def find_loops(codes: np.ndarray, max_period: int) -> Iterator[Loop]:
    """The longest stretches in which every code equals the one `period` frames before it.

    A stretch must hold two rounds. What loops with a period loops with its multiples too, and is
    found once for each of them.
    """
    for period in range(1, min(max_period, len(codes) // 2) + 1):
        returns = np.pad(codes[period:] == codes[:-period], 1)
        edges = np.flatnonzero(np.diff(returns.astype(np.int8)))
        for start, stop in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
            if stop - start >= period:
                yield Loop(start, stop + period, period)


def longest_run(codes: np.ndarray) -> int:
    """Frames of the longest row of one code."""
    changes = np.flatnonzero(np.diff(codes)) + 1
    return int(np.diff([0, *changes, len(codes)]).max())


def share_in_loops(loops: Sequence[Loop], num_frames: int, min_frames: int) -> float:
    """Share of frames that lie in a loop lasting `min_frames` or more."""
    is_inside = np.zeros(num_frames, dtype=bool)
    for loop in loops:
        if loop.num_frames >= min_frames:
            is_inside[loop.start : loop.stop] = True
    return float(is_inside.mean())


def measure(codes: np.ndarray, frame_rate: float) -> dict[str, float]:
    """All measures of a sequence (T,) of codes, T > 0, under the names in COLUMNS."""
    horizon, min_loop = round(HORIZON_SEC * frame_rate), round(MIN_LOOP_SEC * frame_rate)
    loops = list(find_loops(codes, round(MAX_PERIOD_SEC * frame_rate)))
    longest_loop = max((loop.num_frames for loop in loops), default=0)
    return {
        "repeated_4grams": repeated_ngrams(codes, 4, horizon),
        "repeated_8grams": repeated_ngrams(codes, 8, horizon),
        "often": share_heard_often(codes, OFTEN_WINDOW, OFTEN_SHARE),
        "entropy": entropy(codes),
        "distinct": float(len(np.unique(codes))),
        "longest_run_sec": longest_run(codes) / frame_rate,
        "longest_loop_sec": longest_loop / frame_rate,
        "in_loops": share_in_loops(loops, len(codes), min_loop),
        "frozen": share_in_loops([x for x in loops if x.period == 1], len(codes), min_loop),
    }
