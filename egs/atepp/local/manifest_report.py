"""What is in the token manifests of a folder: cuts, hours, the use of every code, what is wrong.

Every manifest and every array is read once, cut by cut: only ids, counts and the length of each
recording are kept, whatever the size of the corpus.

Letters: T frames, Q quantizers, K codebook size.
"""

import argparse
import gzip
import tarfile
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from manifest_checks import StoredArrays, check_cut, missing_shards, read_condition
from tqdm import tqdm

from valle.data.codec_info import CodecInfo
from valle.data.conditions import condition_of
from valle.data.manifest import SPLITS, codec_of_cut, cut_codes, load_cuts, manifest_path
from valle.data.split_table import group_columns, match_rows, piece_of_its_own, read_table
from valle.data.splits import shared_pieces

# What reading a file raises that is missing, cut off, or something else than its name says. lhotse
# builds its objects out of whatever a line holds, so that Python itself finds what does not fit.
UNREADABLE = (
    *(ValueError, OSError, EOFError, zlib.error, tarfile.TarError),
    *(TypeError, AttributeError, LookupError, ArithmeticError, AssertionError),
)
_KEPT_PROBLEMS = 1000  # a split; a folder that lost all its tokens has one for every cut


class Recorded(NamedTuple):
    """A recording as its cuts describe it; its id stands for the path where they name no file."""

    path: str
    seconds: float


@dataclass
class SplitReport:
    """What was found in one split.

    Attributes:
      num_cuts: Cuts.
      seconds: Sum of their durations.
      recordings: Their recordings, by id.
      durations: How many cuts last so many tenths of a second.
      codec: What made their tokens; None where that is not recorded.
      counts: (Q, K) how often each code occurs; grows with the codes met.
      problems: Sentences, each naming a cut; the first thousand.
      num_problems: Of all.
      warnings: Sentences on what is odd and does not stop a training.
      condition: What the first cut carries for a model to read: "midi", "text" or None.
      num_events: Notes, or symbols of texts, of all cuts.
      symbols: All symbols of texts.
    """

    num_cuts: int = 0
    seconds: float = 0.0
    recordings: dict[str, Recorded] = field(default_factory=dict)
    durations: Counter[int] = field(default_factory=Counter)
    codec: CodecInfo | None = None
    counts: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), dtype=np.int64))
    problems: list[str] = field(default_factory=list)
    num_problems: int = 0
    warnings: list[str] = field(default_factory=list)
    condition: str | None = None
    num_events: int = 0
    symbols: set[str] = field(default_factory=set)

    @property
    def codebook_size(self) -> int:
        """K of the codec; without its record, what the highest code asks for at least."""
        return self.codec.codebook_size if self.codec else self.counts.shape[1]

    def add_problem(self, problem: str) -> None:
        self.num_problems += 1
        if len(self.problems) < _KEPT_PROBLEMS:
            self.problems.append(problem)


def read_folder(folder: Path) -> dict[str, SplitReport]:
    """Read all splits of a folder.

    Returns:
      A report for each split that has a manifest.

    Raises:
      FileNotFoundError: There is no training manifest.
      ImportError: The tokens are in HDF5 and h5py is not installed.
    """
    paths = {"train": manifest_path(folder, "train")}
    for split in SPLITS[1:]:
        try:
            paths[split] = manifest_path(folder, split)
        except FileNotFoundError:
            continue
    return {split: read_split(path) for split, path in paths.items()}


def read_split(path: Path) -> SplitReport:
    """Read a manifest and all its tokens."""
    report = SplitReport()
    if _is_empty(path):
        return report
    ids: set[str] = set()
    arrays = StoredArrays()
    try:
        for cut in tqdm(load_cuts(path), desc=path.name, unit="cut", disable=None):
            if cut.id in ids:
                report.add_problem(f"cut id {cut.id} occurs more than once in {path.name}")
            ids.add(cut.id)
            _add_cut(report, cut, arrays)
    except UNREADABLE as error:
        report.add_problem(
            f"{path} cannot be read beyond {report.num_cuts} cuts ({_described(error)}): it is "
            "damaged or cut off, make it again"
        )
    else:
        for problem in missing_shards(path, report.num_cuts):
            report.add_problem(problem)
    report.warnings += arrays.warnings
    return report


def _is_empty(path: Path) -> bool:
    """Whether a manifest holds no line at all."""
    if not path.is_file():
        return False
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            return not file.read(1)
    except UNREADABLE:
        return False  # reading it will say so


def _add_cut(report: SplitReport, cut: Any, arrays: StoredArrays) -> None:
    report.num_cuts += 1
    report.seconds += cut.duration
    report.durations[round(10 * cut.duration)] += 1
    _note_recording(report, cut)
    try:
        _check_codec(report, cut)
        codes = cut_codes(cut)
        check_cut(cut, codes, report.codec, report.counts.shape[0] or None)
        arrays.check(cut)
        _add_condition(report, cut)
    except UNREADABLE as error:
        report.add_problem(str(error) if cut.id in str(error) else _unreadable(cut, error))
    else:
        report.counts = add_counts(report.counts, codes)


def _add_condition(report: SplitReport, cut: Any) -> None:
    """Read what a cut carries; all cuts of a split carry the same kind."""
    found = condition_of(cut)
    if report.num_cuts == 1:
        report.condition = found
    elif found != report.condition:
        raise ValueError(
            f"cut {cut.id} carries {found or 'no condition'}, the first cut of the manifest "
            f"{report.condition or 'none'}: two manifests were mixed, tokenise them alike"
        )
    num_events, symbols = read_condition(cut)
    report.num_events += num_events
    report.symbols |= symbols


def _note_recording(report: SplitReport, cut: Any) -> None:
    """Take note of the recording that a cut is of, or of the one that its features are of."""
    if getattr(cut, "has_recording", False):
        id_, sources = cut.recording.id, cut.recording.sources
        path = str(sources[0].source) if sources and sources[0].type == "file" else id_
        report.recordings[id_] = Recorded(path, cut.recording.duration)
    elif getattr(cut, "has_features", False) and cut.features.recording_id:
        id_ = cut.features.recording_id
        before = report.recordings.get(id_, Recorded(id_, 0.0))  # features may be of a part
        report.recordings[id_] = Recorded(id_, max(before.seconds, cut.features.end))


def _unreadable(cut: Any, error: Exception) -> str:
    return f"cut {cut.id}: its tokens cannot be read ({_described(error)})"


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _check_codec(report: SplitReport, cut: Any) -> None:
    codec = codec_of_cut(cut)
    if report.num_cuts == 1:
        report.codec = codec
    elif (codec is None) != (report.codec is None):
        raise ValueError(
            f"cut {cut.id} records {'a' if codec else 'no'} codec, the first cut of the manifest "
            f"{'one' if report.codec else 'none'}: two manifests were mixed, tokenise them alike"
        )
    elif codec is not None and report.codec is not None and codec != report.codec:
        report.codec.check_same(codec, where=f"cut {cut.id}")


def add_counts(counts: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Counts (Q, K) with those of codes (T, Q) added; K grows as needed."""
    Q = codes.shape[1]
    K = max(int(codes.max()) + 1, counts.shape[1])
    grown = np.zeros((max(Q, counts.shape[0]), K), dtype=np.int64)
    grown[: counts.shape[0], : counts.shape[1]] = counts
    for quantizer in range(Q):
        grown[quantizer] += np.bincount(codes[:, quantizer], minlength=K)
    return grown


def shared_between(
    reports: Mapping[str, SplitReport], args: argparse.Namespace
) -> tuple[dict[tuple[str, ...], list[str]], int] | None:
    """Pieces whose recordings are in several splits.

    Args:
      reports: Of `read_folder`.
      args: With the flags of `add_table_arguments`.

    Returns:
      The pieces by the splits that share them, and how many pieces there are in all; None where no
      table names pieces.

    Raises:
      FileNotFoundError: There is no such table.
      ValueError: It does not fit; the message says how.
    """
    columns = group_columns(args.csv_group_column)
    if args.split_csv is None or not columns:
        return None
    rows = read_table(args.split_csv, args.csv_file_column, piece_columns=columns)
    paths = {
        id_: recorded.path
        for report in reports.values()
        for id_, recorded in report.recordings.items()
    }
    found = match_rows(paths, rows, args.split_csv, args.csv_file_column)
    named = {id_: row.piece for id_, row in found.items()}
    pieces = {id_: named.get(id_) or piece_of_its_own(id_) for id_ in paths}
    splits = {id_: split for split, report in reports.items() for id_ in report.recordings}
    return shared_pieces(splits, pieces), len(set(pieces.values()))
