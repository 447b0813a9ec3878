"""Tables of repetition measures, means over recordings with their standard errors.

N recordings, T frames.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from valle.evaluation.repetition import measure

# Each measure with the heading of its column and its format.
COLUMNS = {
    "repeated_4grams": ("repeated 4-grams", "{:.1%}"),
    "repeated_8grams": ("repeated 8-grams", "{:.1%}"),
    "often": ("heard often", "{:.1%}"),
    "entropy": ("entropy (nats)", "{:.2f}"),
    "distinct": ("distinct codes", "{:.0f}"),
    "longest_run_sec": ("longest run (s)", "{:.2f}"),
    "longest_loop_sec": ("longest loop (s)", "{:.2f}"),
    "in_loops": ("frames in loops", "{:.1%}"),
    "frozen": ("frames in runs of one code", "{:.1%}"),
}
DRIFT_COLUMNS = ("repeated_4grams", "entropy", "in_loops", "frozen")
MAX_GROUPS = 6  # columns of a drift table; more segments are averaged side by side


class Row(NamedTuple):
    """Measures of a setting, or of true music.

    Attributes:
      whole: measures of each of N recordings, over equally many frames in all rows.
      segments: for each recording, measures of its segments in order.
    """

    whole: list[dict[str, float]]
    segments: list[list[dict[str, float]]]


def measure_row(
    sequences: Sequence[np.ndarray], num_compared: int, segment: int, frame_rate: float
) -> Row:
    """Measure N sequences (T,): the first frames of each, and whole segments while all last."""
    num_segments = min(map(len, sequences)) // segment
    return Row(
        [measure(codes[:num_compared], frame_rate) for codes in sequences],
        [
            [
                measure(part, frame_rate)
                for part in codes[: num_segments * segment].reshape(num_segments, segment)
            ]
            for codes in sequences
        ],
    )


def with_error(values: Sequence[float], form: str, sign: str = "") -> str:
    """Mean, with a sign if asked, and of several values its standard error."""
    text = form.replace("{:", "{:" + sign).format(np.mean(values))
    if len(values) == 1:
        return text
    return f"{text} ± {form.format(np.std(values, ddof=1) / np.sqrt(len(values)))}"


def whole_table(rows: dict[str, Row]) -> str:
    """Markdown: a line a setting, a column a measure."""
    lines = [
        _line("", *(heading for heading, _ in COLUMNS.values())),
        "|---" * (len(COLUMNS) + 1) + "|",
    ]
    for name, row in rows.items():
        cells = (
            with_error([values[key] for values in row.whole], form)
            for key, (_, form) in COLUMNS.items()
        )
        lines.append(_line(name, *cells))
    return "\n".join(lines)


def drift_table(rows: dict[str, Row], key: str, segment_sec: float) -> str:
    """Markdown: a line a setting, a column for some segments side by side, and late less early.

    Late is the last group of segments that a row has in full; true music may have fewer.
    """
    num_segments = max(len(row.segments[0]) for row in rows.values())
    groups = group_segments(num_segments)
    heading, form = COLUMNS[key]
    spans = (f"{g.start * segment_sec:g}-{g.stop * segment_sec:g} s" for g in groups)
    lines = [_line(heading, *spans, "last - first"), "|---" * (len(groups) + 2) + "|"]
    for name, row in rows.items():
        values = np.array([[segment[key] for segment in piece] for piece in row.segments])
        means = [values[:, g].mean(1) for g in groups if g.stop <= values.shape[1]]
        cells = [with_error(mean.tolist(), form) for mean in means]
        cells += ["-"] * (len(groups) - len(means))
        change = (means[-1] - means[0]).tolist() if means else []
        cells.append(with_error(change, form, sign="+") if means else "-")
        lines.append(_line(name, *cells))
    return "\n".join(lines)


def group_segments(num_segments: int) -> list[slice]:
    """MAX_GROUPS of neighbouring segments or fewer, of like size but for the last."""
    size = -(-num_segments // MAX_GROUPS)
    starts = range(0, num_segments, size)
    return [slice(start, min(start + size, num_segments)) for start in starts]


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
