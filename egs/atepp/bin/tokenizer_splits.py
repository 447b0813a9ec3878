"""Which split each recording goes into, as the command line of tokenizer.py says."""

import argparse
from pathlib import Path

from valle.data.sources import Source
from valle.data.splits import split_by_csv, split_by_hash


def add_split_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that `assign_splits` reads."""
    add = parser.add_argument_group(
        "splits", "whole recordings go to train, validation or test"
    ).add_argument
    add("--split-csv", type=Path, help="table that says which recording is in which split")
    add("--csv-file-column", default="midi_path", help="its column of file names")
    add("--csv-split-column", default="split", help="its column of splits")
    add("--valid-fraction", type=float, default=0.1, help="of the recordings, without a table")
    add("--test-fraction", type=float, default=0.1, help="of the recordings, without a table")
    add("--seed", type=int, default=42, help="of the drawn splits")


def assign_splits(sources: list[Source], args: argparse.Namespace) -> dict[str, str]:
    """The split of each recording id; with a table, recordings without a row are left out."""
    if args.split_csv is None:
        ids = [source.id for source in sources]
        return split_by_hash(ids, args.valid_fraction, args.test_fraction, args.seed)
    paths = {source.id: source.path for source in sources}
    return split_by_csv(paths, args.split_csv, args.csv_file_column, args.csv_split_column)
