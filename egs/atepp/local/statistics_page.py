#!/usr/bin/env python3
"""Show what a prepared corpus holds: tables on the terminal, and one HTML page with pictures.

    python3 egs/atepp/local/statistics_page.py --manifest-dir data/tokenized

Hours, cuts and recordings of each split; how long they last; how evenly the codes of each quantizer
are used; loudness, silence and clipping of the recordings; what was skipped and why; and, with
--split-csv and --csv-group-column, which pieces several splits share. The page needs no network.
"""

import argparse
import logging
import sys
from collections.abc import Mapping
from pathlib import Path

from manifest_report import SplitReport, read_folder, shared_between
from manifest_tables import duration_table, quantizer_table, split_table
from recordings_report import (
    FILE_NAME,
    RecordingsReport,
    kind_table,
    level_table,
    read_recordings,
    skipped_table,
)
from statistics_plots import draw_codes, draw_durations, draw_hours, draw_levels

from valle.data.split_table import add_table_arguments, readable_piece
from valle.data.splits import describe_shared
from valle.utils.files import written_whole
from valle.utils.html import Section, page
from valle.utils.plot import can_draw
from valle.utils.tables import Table, as_text

_SHOWN_PIECES = 100  # of those that splits share


def main() -> None:
    """Command line."""
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.WARNING)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--manifest-dir", type=Path, default=Path("data/tokenized"), help="token manifests")
    add("--output", type=Path, help="the page; default: statistics.html in --manifest-dir")
    add_table_arguments(parser)
    args = parser.parse_args()
    try:
        sections = describe_corpus(args)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")
    for section in sections:
        print(section_text(section))
    output = args.output or args.manifest_dir / "statistics.html"
    with written_whole(output) as temporary:
        text = page(f"The corpus in {args.manifest_dir}", sections, can_draw("the page"))
        temporary.write_text(text, encoding="utf-8")
    print(f"The same with pictures: {output}")


def section_text(section: Section) -> str:
    """A section for the terminal."""
    tables = (as_text(table) for table in section.tables if table.rows)
    return "\n\n".join(["\n".join(filter(None, (section.title, section.note))), *tables]) + "\n"


def describe_corpus(args: argparse.Namespace) -> list[Section]:
    """Read a folder of token manifests once, and say what is in it.

    Raises:
      FileNotFoundError: There is no training manifest, or no such table.
      ValueError: The table or the list of recordings does not fit; the message says how.
    """
    reports = {split: r for split, r in read_folder(args.manifest_dir).items() if r.num_cuts}
    if "train" not in reports:
        raise ValueError(
            f"the training manifest in {args.manifest_dir} holds no cuts that can be read: "
            "validate_manifests.py says what is wrong"
        )
    sections = [
        _hours(reports),
        _durations(reports),
        _codes(reports),
        *_recordings(read_recordings(args.manifest_dir)),
    ]
    shared = shared_between(reports, args)
    if shared is not None:
        sections.append(_pieces(*shared))
    return sections


def _hours(reports: Mapping[str, SplitReport]) -> Section:
    problems = sum(report.num_problems for report in reports.values())
    note = f"{problems} problems were met: see validate_manifests.py." if problems else ""
    table = split_table(reports)
    return Section("Hours", note, [table], lambda: draw_hours(reports))


def _durations(reports: Mapping[str, SplitReport]) -> Section:
    note = "How long recordings and their cuts last."
    return Section("Durations", note, [duration_table(reports)], lambda: draw_durations(reports))


def _codes(reports: Mapping[str, SplitReport]) -> Section:
    note = (
        "Bits: what one code tells on average; the dashed line is its limit, all codes equally "
        "frequent. Perplexity: how many equally frequent codes would be as hard to guess."
    )
    table = quantizer_table(reports)
    return Section("Use of the codes", note, [table], lambda: draw_codes(reports))


def _recordings(report: RecordingsReport | None) -> list[Section]:
    """Levels and kinds of the recordings, and what was skipped."""
    if report is None:
        note = f"Not known: there is no {FILE_NAME} beside the manifests."
        return [Section("Recordings", note)]
    trimmed = f"{report.trimmed_sec:.1f} s of silence were cut off in all."
    draw = (lambda: draw_levels(report)) if report.has_levels else None
    levels = Section("Levels", trimmed, [level_table(report), kind_table(report)], draw)
    total = sum(report.skipped.values())
    return [
        levels,
        Section("Skipped", f"{total} recordings were left out.", [skipped_table(report)]),
    ]


def _pieces(shared: Mapping[tuple[str, ...], list[str]], num_pieces: int) -> Section:
    """Which pieces are in which several splits."""
    note = f"In several splits: {describe_shared(shared, num_pieces)}."
    listed = [("+".join(names), piece) for names, pieces in shared.items() for piece in pieces]
    if shared:
        note += " To keep each in one, prepare with --split-by composition."
    if len(listed) > _SHOWN_PIECES:
        note += f" The first {_SHOWN_PIECES} are shown."
    rows = [[splits, readable_piece(piece)] for splits, piece in listed[:_SHOWN_PIECES]]
    return Section("Pieces", note, [Table(["splits", "piece"], rows)])


if __name__ == "__main__":
    main()
