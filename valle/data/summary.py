"""What a token manifest holds, written beside it: training need not read a million cuts to count.

`cuts_train.summary.json` belongs to `cuts_train.jsonl.gz`, or to the folder of shards `cuts_train`.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

from valle.data.codec_info import CodecInfo
from valle.utils.files import written_whole

_VERSION = 1
_STEP_SEC = 0.01
TOLERANCE_SEC = 1e-6  # manifests hold durations rounded to 8 digits: 15 s may read 15.00000001


@dataclass
class DurationBin:
    """Cuts of like duration.

    Attributes:
      num_cuts: How many.
      seconds: Sum of their durations.
      shortest, longest: Of them, in seconds.
    """

    num_cuts: int = 0
    seconds: float = 0.0
    shortest: float = math.inf
    longest: float = 0.0

    def add(self, seconds: float) -> None:
        """Count one more cut."""
        self.num_cuts += 1
        self.seconds += seconds
        self.shortest = min(self.shortest, seconds)
        self.longest = max(self.longest, seconds)


@dataclass
class Summary:
    """How many cuts of which durations there are, and the codec of all of them.

    Durations are kept in bins that a filter rarely cuts through: one for each whole hundredth of a
    second, one for what lies between two of them. So the size does not grow with the hours.

    Attributes:
      bins: By number; see `_bin_of`.
      codec: The record that all cuts carry, None where they carry none.
      is_mixed: Whether they do not all carry the same; a summary can say no more about that.
    """

    bins: dict[int, DurationBin] = field(default_factory=dict)
    codec: dict[str, Any] | None = None
    is_mixed: bool = False

    @property
    def num_cuts(self) -> int:
        """Of all durations."""
        return sum(each.num_cuts for each in self.bins.values())

    def counted(self, cuts: Iterable[Any]) -> Iterator[Any]:
        """Pass cuts on, and take note of them."""
        for cut in cuts:
            self.add(cut.duration, (getattr(cut, "custom", None) or {}).get("codec"))
            yield cut

    def add(self, seconds: float, codec: dict[str, Any] | None) -> None:
        """Take note of a cut that lasts so long and carries this record."""
        if not self.bins:
            self.codec = codec
        self.is_mixed |= codec != self.codec
        self.bins.setdefault(_bin_of(seconds), DurationBin()).add(seconds)

    def between(self, min_sec: float, max_sec: float) -> tuple[int, float] | None:
        """Cuts that a filter of durations keeps, and the seconds they last.

        Returns:
          Exact numbers; None where a bin has cuts on both sides of a bound.
        """
        low, high = min_sec - TOLERANCE_SEC, max_sec + TOLERANCE_SEC
        num_cuts, seconds = 0, 0.0
        for _, each in sorted(self.bins.items()):
            if each.longest < low or each.shortest > high:
                continue
            if each.shortest < low or each.longest > high:
                return None
            num_cuts += each.num_cuts
            seconds += each.seconds
        return num_cuts, seconds

    def codec_info(self) -> CodecInfo | None:
        """The codec record, checked."""
        return None if self.codec is None else CodecInfo.from_dict(self.codec)


def _bin_of(seconds: float) -> int:
    """Even for a whole number of hundredths, odd for what lies between two of them."""
    nearest = round(seconds / _STEP_SEC)
    if abs(seconds - nearest * _STEP_SEC) <= TOLERANCE_SEC:
        return 2 * nearest
    return 2 * math.floor(seconds / _STEP_SEC) + 1


def summary_path(manifest: Path) -> Path:
    """Where the summary of a manifest lies."""
    return manifest.with_name(f"{manifest.name.split('.')[0]}.summary.json")


def write_summary(manifest: Path, summary: Summary) -> None:
    """Write the summary of a manifest that was just written; none where it could not help."""
    path = summary_path(manifest)
    if summary.is_mixed or not summary.bins:
        path.unlink(missing_ok=True)
        return
    content = {
        "version": _VERSION,
        "manifest": fingerprint(manifest),
        "num_cuts": summary.num_cuts,
        "codec": summary.codec,
        "durations": [[number, *astuple(each)] for number, each in sorted(summary.bins.items())],
    }
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")


def read_summary(manifest: Path) -> Summary | None:
    """The summary of a manifest.

    Returns:
      None where there is none, or one of another manifest than the one that lies there now: then
      the manifest itself must be read.
    """
    path = summary_path(manifest)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["version"] != _VERSION or content["manifest"] != fingerprint(manifest):
            return None
        bins = {number: DurationBin(*each) for number, *each in content["durations"]}
        return Summary(bins, content["codec"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # no summary, or not one of ours


def promised_cuts(manifest: Path) -> int | None:
    """How many cuts there were when the summary was written, even if they are others now.

    Returns:
      None where there is no summary.
    """
    try:
        count = json.loads(summary_path(manifest).read_text(encoding="utf-8"))["num_cuts"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return count if isinstance(count, int) else None


def fingerprint(manifest: Path) -> str:
    """Short hash that changes with the content of a manifest, or of all shards of a folder.

    The end of a gzip file holds a checksum and the length of all that was packed, so that neither a
    large manifest nor its date needs to be looked at; a copy has the fingerprint of the original.

    Raises:
      OSError: It cannot be read.
    """
    digest = hashlib.sha256()
    files = sorted(manifest.glob("cuts.*.jsonl.gz")) if manifest.is_dir() else [manifest]
    for file in files:
        digest.update(f"{file.name.split('.', 1)[1]} {file.stat().st_size} ".encode())
        digest.update(_last_bytes(file, 8))
    return digest.hexdigest()[:16]


def _last_bytes(path: Path, count: int) -> bytes:
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(max(size - count, 0))
        return file.read()
