"""Which split each recording goes into, as the command line of tokenizer.py says."""

import argparse
import logging
from collections import Counter
from collections.abc import Mapping

from valle.data.sources import Source
from valle.data.split_table import (
    Row,
    add_table_arguments,
    group_columns,
    match_rows,
    piece_of_its_own,
    read_table,
)
from valle.data.splits import (
    ORDER,
    describe_shared,
    draw_pieces,
    pieces_together,
    shared_pieces,
    split_by_hash,
)

Splits = dict[str, str]


def add_split_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that `assign_splits` reads."""
    add_table_arguments(parser)
    add = parser.add_argument_group(
        "splits", "whole recordings go to train, validation or test"
    ).add_argument
    add("--csv-split-column", default="split", help="the table's column of splits; none: draw them")
    add(
        "--split-by",
        choices=["recording", "composition"],
        default="recording",
        help="composition: no piece is in two splits; needs --split-csv and --csv-group-column",
    )
    share = (
        "of the recordings, or of the pieces with --split-by composition; where splits are drawn"
    )
    add("--valid-fraction", type=float, default=0.1, help=share)
    add("--test-fraction", type=float, default=0.1, help=share)
    add("--seed", type=int, default=42, help="of the drawn splits")


def assign_splits(sources: list[Source], args: argparse.Namespace) -> Splits:
    """The split of each recording id, and log lines on pieces that are in several splits.

    Where the splits are a table's, recordings without a row are left out; where they are drawn,
    such a recording counts as a piece of its own.

    Raises:
      FileNotFoundError: There is no such table.
      ValueError: The table does not fit, or flags do not go together; the message says which.
    """
    _check_flags(args)
    if args.split_csv is None:
        return _draw({source.id: piece_of_its_own(source.id) for source in sources}, args)
    rows, found = _look_up(sources, args)
    if _draws(args):
        splits = _draw(_pieces_of(sources, found), args)
    else:
        splits = _read_splits(rows, found, args)
    if group_columns(args.csv_group_column):
        _log_shared(_summary(sources, splits, found), args)
    return splits


def pieces_summary(
    sources: list[Source], splits: Mapping[str, str], args: argparse.Namespace
) -> str | None:
    """How many pieces are in several splits, as "3 of 120 (train+test 3)"; None if none is named.

    Args:
      sources: The recordings.
      splits: Of `assign_splits`; recordings without one are passed over.
      args: The command line.
    """
    if args.split_csv is None or not group_columns(args.csv_group_column):
        return None
    return _summary(sources, splits, _look_up(sources, args)[1])


def _summary(sources: list[Source], splits: Mapping[str, str], found: Mapping[str, Row]) -> str:
    pieces = _pieces_of(sources, found)
    pieces = {id_: piece for id_, piece in pieces.items() if id_ in splits}
    return describe_shared(shared_pieces(splits, pieces), len(set(pieces.values())))


def _log_shared(summary: str, args: argparse.Namespace) -> None:
    logging.info(f"pieces in several splits: {summary}")
    if args.split_by == "recording" and not summary.startswith("0 of"):
        logging.warning(
            "some pieces are in several splits, each time in another recording; to keep every "
            "piece in one split: --split-by composition"
        )


def _check_flags(args: argparse.Namespace) -> None:
    if args.split_by == "composition" and (
        args.split_csv is None or not group_columns(args.csv_group_column)
    ):
        raise ValueError(
            "--split-by composition needs a table that names the piece of each recording: give "
            "--split-csv and --csv-group-column, or take --split-by recording"
        )


def _draws(args: argparse.Namespace) -> bool:
    """Whether the table says nothing of splits, so that they are drawn."""
    return str(args.csv_split_column).lower() == "none"


def _look_up(sources: list[Source], args: argparse.Namespace) -> tuple[list[Row], dict[str, Row]]:
    """All rows of the table, and by id those of the recordings."""
    split_column = None if _draws(args) else args.csv_split_column
    columns = group_columns(args.csv_group_column)
    rows = read_table(args.split_csv, args.csv_file_column, split_column, columns)
    paths = {source.id: source.path for source in sources}
    return rows, match_rows(paths, rows, args.split_csv, args.csv_file_column)


def _pieces_of(sources: list[Source], found: Mapping[str, Row]) -> dict[str, str]:
    """The piece of each recording; one that the table does not name is a piece of its own."""
    named = {id_: row.piece for id_, row in found.items()}
    return {source.id: named.get(source.id) or piece_of_its_own(source.id) for source in sources}


def _draw(pieces: Mapping[str, str], args: argparse.Namespace) -> Splits:
    shares = (args.valid_fraction, args.test_fraction, args.seed)
    if args.split_by == "composition":
        return draw_pieces(pieces, *shares)
    return split_by_hash(pieces, *shares)


def _read_splits(rows: list[Row], found: Mapping[str, Row], args: argparse.Namespace) -> Splits:
    """The table's splits; with `--split-by composition` each piece's in one of them."""
    listed = {id_: str(row.split) for id_, row in found.items()}
    if args.split_by == "recording":
        return listed
    homes = pieces_together(rows)
    splits = {
        id_: homes[row.piece] if row.piece is not None else listed[id_]
        for id_, row in found.items()
    }
    _log_moves(listed, splits)
    return splits


def _log_moves(before: Splits, after: Splits) -> None:
    moved = sum(before[id_] != after[id_] for id_ in after)
    was, now = Counter(before.values()), Counter(after.values())
    sizes = ", ".join(f"{name} {now[name]} (was {was[name]})" for name in ORDER)
    logging.info(f"--split-by composition moved {moved} of {len(after)} recordings: {sizes}")
    if any(2 * now[name] < was[name] for name in ORDER):
        logging.warning(
            "a split lost more than half of its recordings, as most recordings of most pieces are "
            "in another; --csv-split-column none draws the splits anew, by piece"
        )
