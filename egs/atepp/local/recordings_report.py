"""What the tokenizer measured of every recording: `recordings.jsonl` beside the manifests."""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from valle.utils.tables import Table

FILE_NAME = "recordings.jsonl"
MEASURES = {  # field of the file: heading, how it is printed
    "peak_db": ("peak, dB of full scale", "{:.1f}"),
    "rms_db": ("loudness (rms), dB of full scale", "{:.1f}"),
    "silence_share": ("share of silence", "{:.2%}"),
    "clipped_share": ("share of clipped samples", "{:.4%}"),
}


@dataclass
class RecordingsReport:
    """What a tokenizer's list of recordings says.

    Attributes:
      levels: Values of each of MEASURES in each split, one a recording.
      skipped: How many recordings were left out, by reason.
      kinds: How many have which sampling rate and number of channels.
      trimmed_sec: Seconds of silence cut off in all.
    """

    levels: dict[str, dict[str, list[float]]] = field(
        default_factory=lambda: {name: defaultdict(list) for name in MEASURES}
    )
    skipped: Counter[str] = field(default_factory=Counter)
    kinds: Counter[tuple[int, int]] = field(default_factory=Counter)
    trimmed_sec: float = 0.0

    @property
    def has_levels(self) -> bool:
        return any(values for by_split in self.levels.values() for values in by_split.values())


def read_recordings(folder: Path) -> RecordingsReport | None:
    """Read a folder's list of recordings; None where there is none, as with foreign manifests.

    Raises:
      ValueError: A line is not what the tokenizer writes; the message names it.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        return None
    report = RecordingsReport()
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                _add(report, json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{path}, line {number}: {type(error).__name__} {error}; expected a recording "
                    "as the tokenizer lists it: prepare again"
                ) from error
    return report


def _add(report: RecordingsReport, entry: Mapping[str, Any]) -> None:
    if "skipped" in entry:
        report.skipped[entry["skipped"]] += 1
        return
    report.kinds[int(entry["sampling_rate"]), int(entry["num_channels"])] += 1
    report.trimmed_sec += entry.get("trimmed_sec") or 0.0
    for name in MEASURES:
        value = entry.get(name)
        if value is not None and np.isfinite(value):  # silence has no level in dB
            report.levels[name][entry["split"]].append(float(value))


def level_table(report: RecordingsReport) -> Table:
    """A row for each measure and split."""
    header = ["of recordings", "split", "lowest", "median", "highest"]
    rows = [
        [heading, split, *(form.format(x) for x in (min(values), np.median(values), max(values)))]
        for name, (heading, form) in MEASURES.items()
        for split, values in report.levels[name].items()
    ]
    return Table(header, rows)


def kind_table(report: RecordingsReport) -> Table:
    """A row for each sampling rate and number of channels."""
    rows = [[f"{rate} Hz", str(channels), str(n)] for (rate, channels), n in _sorted(report.kinds)]
    return Table(["sampling rate", "channels", "recordings"], rows)


def skipped_table(report: RecordingsReport) -> Table:
    """A row for each reason."""
    return Table(["skipped", "recordings"], [[r, str(n)] for r, n in _sorted(report.skipped)])


def _sorted(counts: Counter[Any]) -> list[tuple[Any, int]]:
    return sorted(counts.items())
