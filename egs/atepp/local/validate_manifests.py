#!/usr/bin/env python3
"""Check token manifests and print what is in them; exit status 1 if training must not start.

Checked: every manifest and every array can be read; every cut carries tokens of one codec, its
frames fit its duration, its file has the shape and kind of number that it says, all codes are in
range, MIDI events are those of the cut's own span and stand for notes, the table has every symbol
of the training texts, all cuts carry the same kind of condition, ids are unique, no recording is in
two splits (by its id or its file), no shard is missing, and training and validation have cuts.

What is odd and stops nothing is printed as a warning, and leaves the exit status 0: no test split,
a split whose cuts name no recordings, a quantizer whose codes hardly vary, pieces that several
splits share (with --split-csv and --csv-group-column).

    python3 egs/atepp/local/validate_manifests.py --manifest-dir data/tokenized
"""

import argparse
import os
import sys
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path

from manifest_checks import unknown_symbols
from manifest_report import SplitReport, read_folder, shared_between
from manifest_tables import perplexity, quantizer_table, split_table

from valle.data.datamodule import TEXT_TABLE
from valle.data.manifest import SPLITS
from valle.data.split_table import add_table_arguments
from valle.data.splits import describe_shared
from valle.utils.tables import as_text

NEEDED = ("train", "validation")  # the trainer opens both
FEW_CODES = 2.0  # a perplexity below this: less than a bit a frame is told


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--manifest-dir", type=Path, default=Path("data/tokenized"))
    parser.add_argument("--max-problems", type=int, default=10, help="how many to print")
    add_table_arguments(parser)
    args = parser.parse_args()
    try:
        reports, problems = validate(args.manifest_dir)
        warnings = warnings_of(reports, args)
    except (ValueError, FileNotFoundError, ImportError) as error:
        sys.exit(f"error: {error}")
    problems += what_training_lacks(reports)
    print(as_text(split_table(reports)), as_text(quantizer_table(reports)), sep="\n\n")
    for warning in warnings:
        print(f"WARNING {warning}")
    for problem in problems[: args.max_problems]:
        print(f"PROBLEM {problem}")
    if problems:
        # problems that are not kept are counted, too
        number = len(problems) + sum(r.num_problems - len(r.problems) for r in reports.values())
        sys.exit(f"training must not start: {number} problems in {args.manifest_dir}")
    print(f"training may start: no problems found in {args.manifest_dir}")


def validate(folder: Path) -> tuple[dict[str, SplitReport], list[str]]:
    """Read all splits of a folder.

    Returns:
      A report for each split that is there, and what is wrong in them.

    Raises:
      FileNotFoundError: There is no training manifest.
      ImportError: The tokens are in HDF5 and h5py is not installed.
    """
    reports = read_folder(folder)
    problems = [problem for report in reports.values() for problem in report.problems]
    problems += shared_recordings(reports) + mixed_codecs(reports)
    return reports, problems + mixed_conditions(reports) + missing_symbols(folder, reports)


def shared_recordings(reports: Mapping[str, SplitReport]) -> list[str]:
    """Recordings that are in two splits: what is learned from one would be tested on the other."""
    return [
        problem
        for first, second in combinations(reports, 2)
        for problem in (
            *_shared_ids(reports, first, second),
            *_shared_files(reports, first, second),
        )
    ]


def _shared_ids(reports: Mapping[str, SplitReport], first: str, second: str) -> list[str]:
    shared = reports[first].recordings.keys() & reports[second].recordings.keys()
    return [f"recording {id_} is in {first} and in {second}" for id_ in sorted(shared)]


def _shared_files(reports: Mapping[str, SplitReport], first: str, second: str) -> list[str]:
    """The same file under another id."""
    ids, others = (
        {
            os.path.normpath(recorded.path): id_
            for id_, recorded in reports[split].recordings.items()
        }
        for split in (first, second)
    )
    return [
        f"{path} is in {first} as {ids[path]} and in {second} as {others[path]}"
        for path in sorted(ids.keys() & others.keys())
        if ids[path] != others[path]
    ]


def mixed_codecs(reports: Mapping[str, SplitReport]) -> list[str]:
    """Splits whose tokens come from another codec than those of the first."""
    problems = []
    filled = {split: report for split, report in reports.items() if report.num_cuts}
    first = next(iter(filled.values()), SplitReport())
    for split, report in filled.items():
        if (report.codec is None) != (first.codec is None):
            problems.append(f"only one of {next(iter(filled))} and {split} records its codec")
        elif report.codec is not None and first.codec is not None:
            try:
                first.codec.check_same(report.codec, where=split)
            except ValueError as error:
                problems.append(str(error))
        elif len(report.counts) and len(first.counts) != len(report.counts):
            problems.append(
                f"{split} has {len(report.counts)} quantizers, {next(iter(filled))} has "
                f"{len(first.counts)}: tokenise both with one codec"
            )
    return problems


def mixed_conditions(reports: Mapping[str, SplitReport]) -> list[str]:
    """Splits whose cuts carry another kind of condition than those of the first."""
    filled = {split: report for split, report in reports.items() if report.num_cuts}
    first = next(iter(filled), "")
    return [
        f"the cuts of {split} carry {report.condition or 'no condition'}, those of {first} "
        f"{filled[first].condition or 'none'}: tokenise them alike"
        for split, report in filled.items()
        if report.condition != filled[first].condition
    ]


def missing_symbols(folder: Path, reports: Mapping[str, SplitReport]) -> list[str]:
    """Symbols of training texts without an id; those of the other splits are left out by models."""
    if not reports["train"].symbols:
        return []
    try:
        unknown = unknown_symbols(folder / TEXT_TABLE, reports["train"].symbols)
    except (FileNotFoundError, ValueError) as error:
        return [str(error)]
    return [f"{TEXT_TABLE} lacks symbols of train: {' '.join(unknown)}; prepare again"] * bool(
        unknown
    )


def rare_symbols(reports: Mapping[str, SplitReport]) -> list[str]:
    """What training does not know of the other splits' texts."""
    known = reports["train"].symbols
    return [
        f"texts of {split} have symbols that train never has, and models leave out: "
        f"{' '.join(sorted(report.symbols - known))}"
        for split, report in reports.items()
        if known and report.symbols - known
    ]


def what_training_lacks(reports: Mapping[str, SplitReport]) -> list[str]:
    """Splits without which the trainer stops at its start."""
    return [
        f"no cuts for {split}: bring more recordings, or give that split a larger share "
        "(--valid-fraction), and prepare again"
        for split in NEEDED
        if split not in reports or not reports[split].num_cuts
    ]


def warnings_of(reports: Mapping[str, SplitReport], args: argparse.Namespace) -> list[str]:
    """What is odd and does not stop a training.

    Raises:
      FileNotFoundError, ValueError: `--split-csv` cannot be read or does not fit.
    """
    warnings = [
        f"no cuts for {split}"
        for split in SPLITS
        if split not in NEEDED and (split not in reports or not reports[split].num_cuts)
    ]
    for split, report in reports.items():
        warnings += report.warnings
        if report.num_cuts and report.codec is None:
            warnings.append(
                f"{split} does not record which codec made its tokens: only the number of "
                "quantizers could be compared, and no upper limit of the codes"
            )
        if report.num_cuts and not report.recordings:
            warnings.append(
                f"the cuts of {split} do not say which recordings they are of: whether a recording "
                "is in two splits cannot be checked"
            )
    train = reports["train"]
    warnings += [
        f"the codes of quantizer {index + 1} hardly vary in train (perplexity "
        f"{perplexity(counts):.2f}): is this the codec that was meant?"
        for index, counts in enumerate(train.counts)
        if perplexity(counts) < FEW_CODES
    ]
    warnings += rare_symbols(reports)
    shared = shared_between(reports, args)
    if shared is not None and shared[0]:
        warnings.append(
            f"pieces in several splits: {describe_shared(*shared)}; to keep each in one, prepare "
            "with --split-by composition"
        )
    return warnings


if __name__ == "__main__":
    main()
