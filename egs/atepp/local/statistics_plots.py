"""Pictures of a prepared corpus: hours, durations, use of the codes, levels.

Letters: K codebook size.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from manifest_report import SplitReport
from manifest_tables import entropy_bits, never_used
from recordings_report import MEASURES, RecordingsReport

from valle.utils.plot import import_pyplot

COLOURS = {"train": "#2f6f9f", "validation": "#d9822b", "test": "#4f9a57"}
NUM_BINS = 25


def draw_hours(reports: Mapping[str, SplitReport]) -> Any:
    """Hours of each split, as bars."""
    figure, axis = import_pyplot().subplots(figsize=(9, 0.6 + 0.45 * len(reports)))
    hours = [report.seconds / 3600 for report in reports.values()]
    bars = axis.barh(list(reports), hours, color=[COLOURS[split] for split in reports])
    axis.bar_label(bars, [f"{value:.3g} h" for value in hours], padding=4)
    axis.invert_yaxis()
    axis.set(xlabel="hours", xlim=(0, 1.12 * max(hours) or 1))
    return _finished(figure)


def draw_durations(reports: Mapping[str, SplitReport]) -> Any:
    """Histograms of how long recordings and cuts last."""
    figure, (left, right) = import_pyplot().subplots(1, 2, figsize=(9, 3))
    minutes = {
        split: [recorded.seconds / 60 for recorded in report.recordings.values()]
        for split, report in reports.items()
    }
    draw_shares(left, minutes)
    left.set(title="recordings", xlabel="minutes", ylabel="% of the split")
    tenths = {split: list(report.durations) for split, report in reports.items()}
    draw_shares(
        right,
        {split: [value / 10 for value in values] for split, values in tenths.items()},
        {split: list(report.durations.values()) for split, report in reports.items()},
    )
    right.set(title="cuts", xlabel="seconds")
    return _finished(figure, reports)


def draw_shares(
    axis: Any,
    values: Mapping[str, Sequence[float]],
    weights: Mapping[str, Sequence[float]] | None = None,
) -> None:
    """A histogram of each split, in per cent of that split, so that large and small compare."""
    everything = [value for each in values.values() for value in each]
    span = None if any(everything) else (0.0, 1.0)  # all are 0: shares do not go below
    edges = np.histogram_bin_edges(everything or [0.0], NUM_BINS, span)
    for split, each in values.items():
        if not len(each):
            continue
        counts, _ = np.histogram(each, edges, weights=weights[split] if weights else None)
        shares = 100 * counts / counts.sum()
        axis.stairs(shares, edges, color=COLOURS[split], linewidth=1.6)
        axis.stairs(shares, edges, color=COLOURS[split], fill=True, alpha=0.15)
    axis.set_ylim(bottom=0)


def draw_codes(reports: Mapping[str, SplitReport]) -> Any:
    """Entropy and never used codes of each quantizer, and how frequent the codes of train are."""
    figure, axes = import_pyplot().subplots(1, 3, figsize=(9, 3.2))
    train = reports["train"]
    bits = math.log2(max(train.codebook_size, 1))
    _draw_bars(axes[0], {s: [entropy_bits(c) for c in r.counts] for s, r in reports.items()})
    axes[0].axhline(bits, color="grey", linestyle="--", linewidth=1)
    axes[0].set(title="entropy, bits", ylim=(0, 1.1 * bits or 1))  # dashed: all codes alike
    unused = {
        split: [100 * never_used(counts, report.codebook_size) for counts in report.counts]
        for split, report in reports.items()
    }
    highest = max((share for each in unused.values() for share in each), default=0.0)
    _draw_bars(axes[1], unused)
    axes[1].set(title="codes never used, %", ylim=(0, 1.1 * highest or 1))
    _draw_ranks(axes[2], train)
    return _finished(figure, reports)


def _draw_bars(axis: Any, values: Mapping[str, Sequence[float]]) -> None:
    values = {split: each for split, each in values.items() if len(each)}
    width = 0.8 / max(len(values), 1)
    for index, (split, each) in enumerate(values.items()):
        places = np.arange(len(each)) + 1 + (index - (len(values) - 1) / 2) * width
        axis.bar(places, each, width, color=COLOURS[split])
    axis.set(xlabel="quantizer", xticks=range(1, max(map(len, values.values()), default=1) + 1))


def _draw_ranks(axis: Any, report: SplitReport) -> None:
    """Share of each code, the most frequent first, a line a quantizer."""
    shades = import_pyplot().get_cmap("viridis")(np.linspace(0, 0.85, max(len(report.counts), 1)))
    for index, counts in enumerate(report.counts):
        shares = 100 * np.sort(counts[counts > 0])[::-1] / max(counts.sum(), 1)
        axis.plot(np.arange(len(shares)) + 1, shares, color=shades[index], label=f"q{index + 1}")
    axis.set(title="codes of train, % of frames", xlabel="rank of the code", yscale="log")
    if len(report.counts):
        axis.legend(frameon=False, fontsize="small")


def draw_levels(report: RecordingsReport) -> Any:
    """Histograms of what was measured of every recording."""
    figure, axes = import_pyplot().subplots(2, 2, figsize=(9, 5.4))
    for axis, (name, (heading, form)) in zip(axes.flat, MEASURES.items(), strict=True):
        factor = 100 if form.endswith("%}") else 1
        by_split = report.levels[name]
        ordered = {s: [factor * value for value in by_split[s]] for s in COLOURS if by_split.get(s)}
        draw_shares(axis, ordered)
        axis.set_title(heading)
        axis.set_xlabel("%" if factor == 100 else "dB")
    for axis in axes[:, 0]:
        axis.set_ylabel("% of the split's recordings")
    splits = [
        split for split in COLOURS if any(report.levels[name].get(split) for name in MEASURES)
    ]
    return _finished(figure, splits)


def _finished(figure: Any, splits: Iterable[str] = ()) -> Any:
    """Without frames, and with one legend of the splits for all axes."""
    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
    handles = [import_pyplot().Rectangle((0, 0), 1, 1, color=COLOURS[split]) for split in splits]
    if handles:
        figure.legend(handles, list(splits), loc="upper center", ncols=len(handles), frameon=False)
    # the legend takes a quarter of an inch
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.25 / figure.get_figheight() if handles else 1))
    return figure
