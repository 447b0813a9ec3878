#!/usr/bin/env python3
"""Check token manifests and print what is in them; exit status 1 if something is wrong.

Checked: every cut carries tokens of one codec, its frames fit its duration, all codes are in
range, ids are unique, and no recording is in two splits.

Letters: T frames, Q quantizers, K codebook size.
"""

import argparse
import logging
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from lhotse.array import seconds_to_frames
from tqdm import tqdm

from valle.data.codec_info import CodecInfo
from valle.data.collation import check_codes
from valle.data.manifest import (
    SPLITS,
    codec_of,
    cut_codes,
    frame_shift_of,
    load_cuts,
    manifest_path,
)


@dataclass
class SplitReport:
    """What was found in one split.

    Attributes:
      num_cuts: Cuts.
      seconds: Sum of their durations.
      recordings: Ids of their recordings.
      counts: (Q, K) how often each code occurs; grows with the codes met.
      problems: Sentences, each naming a cut.
    """

    num_cuts: int = 0
    seconds: float = 0.0
    recordings: set[str] = field(default_factory=set)
    counts: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), dtype=np.int64))
    problems: list[str] = field(default_factory=list)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--manifest-dir", type=Path, default=Path("data/tokenized"))
    parser.add_argument("--max-problems", type=int, default=10, help="how many to print")
    args = parser.parse_args()
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.WARNING)
    try:
        reports, problems = validate(args.manifest_dir)
    except (ValueError, FileNotFoundError, ImportError) as error:
        sys.exit(f"error: {error}")
    print_tables(reports)
    for problem in problems[: args.max_problems]:
        print(f"PROBLEM {problem}")
    if problems:
        sys.exit(f"{len(problems)} problems in {args.manifest_dir}")
    print("no problems found")


def validate(folder: Path) -> tuple[dict[str, SplitReport], list[str]]:
    """Read all splits of a folder.

    Returns:
      A report for each split that is there, and all problems.

    Raises:
      FileNotFoundError: There is no training manifest.
      ValueError: A manifest without cuts, or of two codecs.
    """
    paths = {"train": manifest_path(folder, "train")}
    for split in SPLITS[1:]:
        try:
            paths[split] = manifest_path(folder, split)
        except FileNotFoundError:
            logging.warning(f"no {split} manifest in {folder}")
    codecs = {split: codec_of(load_cuts(path)) for split, path in paths.items()}
    reports = {split: read_split(paths[split], codecs[split]) for split in paths}
    problems = [problem for report in reports.values() for problem in report.problems]
    return reports, problems + shared_recordings(reports) + mixed_codecs(codecs)


def read_split(path: Path, codec: CodecInfo | None) -> SplitReport:
    """Read all tokens of a manifest."""
    report = SplitReport()
    ids: Counter[str] = Counter()
    for cut in tqdm(load_cuts(path), desc=path.name, unit="cut", disable=None):
        ids[cut.id] += 1
        report.num_cuts += 1
        report.seconds += cut.duration
        if cut.has_recording:
            report.recordings.add(cut.recording.id)
        try:
            codes = cut_codes(cut)
            check_cut(cut, codes, codec)
        except (ValueError, OSError) as error:
            report.problems.append(str(error))
        else:
            report.counts = add_counts(report.counts, codes)
    report.problems += [f"cut id {id_} occurs {n} times" for id_, n in ids.items() if n > 1]
    return report


def check_cut(cut: Any, codes: np.ndarray, codec: CodecInfo | None) -> None:
    """Compare a cut's tokens with what cut and codec say of them.

    Raises:
      ValueError: They disagree.
    """
    num_quantizers = codec.num_quantizers if codec else None
    check_codes(codes, f"cut {cut.id}", num_quantizers, codec.codebook_size if codec else None)
    shift = frame_shift_of(cut)
    if codec and shift and abs(shift * codec.frame_rate - 1) > 1e-6:
        raise ValueError(
            f"cut {cut.id} has a frame every {shift} s, its codec one every {1 / codec.frame_rate}"
        )
    expected = seconds_to_frames(cut.duration, frame_shift=shift) if shift else len(codes)
    if len(codes) != expected:
        raise ValueError(
            f"cut {cut.id} lasts {cut.duration} s, {expected} frames, but has {len(codes)}"
        )


def add_counts(counts: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Counts (Q, K) with those of codes (T, Q) added; K grows as needed."""
    Q = codes.shape[1]
    K = max(int(codes.max()) + 1, counts.shape[1])
    grown = np.zeros((max(Q, counts.shape[0]), K), dtype=np.int64)
    grown[: counts.shape[0], : counts.shape[1]] = counts
    for quantizer in range(Q):
        grown[quantizer] += np.bincount(codes[:, quantizer], minlength=K)
    return grown


def shared_recordings(reports: dict[str, SplitReport]) -> list[str]:
    """Recordings that are in two splits: what is learned from one would be tested on the other."""
    names = list(reports)
    return [
        f"recording {id_} is in {first} and in {second}"
        for index, first in enumerate(names)
        for second in names[index + 1 :]
        for id_ in sorted(reports[first].recordings & reports[second].recordings)
    ]


def mixed_codecs(codecs: dict[str, CodecInfo | None]) -> list[str]:
    """Splits whose tokens come from another codec than those of the first."""
    expected = codecs["train"]
    problems = []
    for split, codec in codecs.items():
        if (codec is None) != (expected is None):
            problems.append(f"only one of train and {split} records its codec")
        elif codec is not None and expected is not None:
            try:
                expected.check_same(codec, where=split)
            except ValueError as error:
                problems.append(str(error))
    return problems


def perplexity(counts: np.ndarray) -> float:
    """How many equally frequent codes would be as hard to guess."""
    shares = counts[counts > 0] / counts.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def print_tables(reports: dict[str, SplitReport]) -> None:
    """One line for each split, then one for each of its quantizers (counted from 1)."""
    print(f"{'split':<12}{'cuts':>9}{'hours':>10}{'recordings':>12}{'seconds/cut':>13}")
    for split, report in reports.items():
        mean_sec = report.seconds / max(report.num_cuts, 1)
        print(
            f"{split:<12}{report.num_cuts:>9}{report.seconds / 3600:>10.3f}"
            f"{len(report.recordings):>12}{mean_sec:>13.2f}"
        )
    print(
        f"\n{'split':<12}{'quantizer':>9}{'frames':>10}{'codes':>12}{'used':>8}{'perplexity':>12}"
    )
    for split, report in reports.items():
        for index, counts in enumerate(report.counts):
            used = np.flatnonzero(counts)
            reach = f"{used[0]}-{used[-1]}" if used.size else "-"
            print(
                f"{split:<12}{index + 1:>9}{counts.sum():>10}{reach:>12}{used.size:>8}"
                f"{perplexity(counts):>12.1f}"
            )


if __name__ == "__main__":
    main()
