"""Tables of what was found in token manifests, and how evenly their codes are used.

Letters: Q quantizers, K codebook size.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from manifest_report import SplitReport

from valle.utils.tables import Table

_EVENTS = {"midi": "notes/second", "text": "symbols/second"}  # of a condition


def entropy_bits(counts: np.ndarray) -> float:
    """Bits that one code tells on average, log2 K at most; 0 where it never changes."""
    if not counts.any():
        return 0.0
    shares = counts[counts > 0] / counts.sum()
    return abs(float((shares * np.log2(shares)).sum()))  # the sum is not positive; -0.0 is no sight


def perplexity(counts: np.ndarray) -> float:
    """How many equally frequent codes would be as hard to guess."""
    return 2.0 ** entropy_bits(counts)


def never_used(counts: np.ndarray, codebook_size: int) -> float:
    """Share of a codebook that does not occur."""
    return 1 - np.count_nonzero(counts) / max(codebook_size, 1)


def split_table(reports: Mapping[str, SplitReport]) -> Table:
    """A row for each split; with a condition, how much there is of it."""
    header = ["split", "cuts", "hours", "recordings", "seconds/cut"]
    kinds = {report.condition for report in reports.values()} - {None}
    header += [_EVENTS[kind] for kind in sorted(kinds, key=str)]
    rows = [
        [
            split,
            str(report.num_cuts),
            f"{report.seconds / 3600:.3f}",
            str(len(report.recordings)),
            f"{report.seconds / max(report.num_cuts, 1):.2f}",
            *(
                f"{report.num_events / report.seconds:.2f}" if report.condition == kind else "-"
                for kind in sorted(kinds, key=str)
            ),
        ]
        for split, report in reports.items()
    ]
    return Table(header, rows)


def duration_table(reports: Mapping[str, SplitReport]) -> Table:
    """How long recordings last in each split, and cuts to a tenth of a second."""
    seconds: dict[tuple[str, str], Sequence[float] | np.ndarray] = {}
    for split, report in reports.items():
        seconds["recordings", split] = [recorded.seconds for recorded in report.recordings.values()]
    for split, report in reports.items():
        tenths = np.repeat(list(report.durations), list(report.durations.values()))
        seconds["cuts", split] = tenths / 10
    rows = [[*names, *_spread(values)] for names, values in seconds.items() if len(values)]
    return Table(["seconds of", "split", "shortest", "median", "longest"], rows)


def _spread(values: Sequence[float] | np.ndarray) -> list[str]:
    return [f"{value:.1f}" for value in (np.min(values), np.median(values), np.max(values))]


def quantizer_table(reports: Mapping[str, SplitReport]) -> Table:
    """A row for each quantizer, counted from 1, of each split."""
    header = ["split", "quantizer", "frames", "codes", "used", "never used", "bits", "perplexity"]
    rows = [
        [split, str(index + 1), *_usage(counts, report.codebook_size)]
        for split, report in reports.items()
        for index, counts in enumerate(report.counts)
    ]
    return Table(header, rows)


def _usage(counts: np.ndarray, codebook_size: int) -> Iterable[str]:
    used = np.flatnonzero(counts)
    return (
        str(counts.sum()),
        f"{used[0]}-{used[-1]}" if used.size else "-",
        str(used.size),
        f"{never_used(counts, codebook_size):.1%}",
        f"{entropy_bits(counts):.2f}",
        f"{perplexity(counts):.1f}",
    )
