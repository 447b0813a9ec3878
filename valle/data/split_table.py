"""A table of recordings: which split each is in, and which piece it plays.

ATEPP, MAESTRO and most collections come with such a CSV file. A row belongs to the recording whose
path has the same file name, extension aside; among several such rows, to the one with which it
shares most folders, counted from the file up. So `Composer/Piece/00042.mid` in ATEPP's table names
`recordings/Composer/Piece/00042.flac`. Of several recordings that come to one row, those have it
that share most folders with it: others of the same file name are of another piece.
"""

import argparse
import csv
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}
_BETWEEN_CELLS = "\x1f"  # made for this: the separator of units, which no title holds


@dataclass(frozen=True)
class Row:
    """What a table says of one recording.

    Attributes:
      parts: Its file, from the file up: stem, folder, folder above, ...
      split: train, validation or test; None where the table's splits are not asked for.
      piece: What is played, a name for comparing; None where that is not asked for or not said.
    """

    parts: tuple[str, ...]
    split: str | None = None
    piece: str | None = None


def add_table_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that name a table and its columns of files and pieces."""
    add = parser.add_argument_group("table of recordings").add_argument
    add("--split-csv", type=Path, help="table of the recordings: a row for each, with its split")
    add("--csv-file-column", default="midi_path", help="its column of file names")
    add(
        "--csv-group-column",
        metavar="COLUMN[,COLUMN]",
        help="its column that names the piece played, or several that do so together, joined by "
        "commas: composition_id for ATEPP, canonical_composer,canonical_title for MAESTRO",
    )


def group_columns(joined: str | None) -> list[str]:
    """The columns of `--csv-group-column`; none for an empty value."""
    return [column.strip() for column in (joined or "").split(",") if column.strip()]


def read_table(
    csv_file: str | Path,
    file_column: str,
    split_column: str | None = None,
    piece_columns: Sequence[str] = (),
) -> list[Row]:
    """Read a table.

    Args:
      csv_file: The table, UTF-8, with a header line.
      file_column: Column of the files; rows without one are passed over.
      split_column: Column of the splits: train, validation (or valid, val, dev) or test.
      piece_columns: Columns that together name the piece. Capitals and spaces make no difference;
        a row where one of them is empty names none.

    Raises:
      FileNotFoundError: There is no such table.
      ValueError: A column is missing, or a split has another name.
    """
    split_columns = [] if split_column is None else [split_column]
    with open(csv_file, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or []
        missing = {file_column, *split_columns, *piece_columns} - set(columns)
        if missing:
            raise ValueError(
                f"{csv_file} has no column {' or '.join(sorted(missing))}, it has "
                f"{', '.join(columns)}: set --csv-file-column, --csv-split-column and "
                "--csv-group-column"
            )
        return [
            Row(
                path_parts(row[file_column]),
                None if split_column is None else _split_name(row[split_column], csv_file),
                _piece_name([row[column] for column in piece_columns]),
            )
            for row in reader
            if row[file_column]
        ]


def _split_name(name: str | None, csv_file: str | Path) -> str:
    known = _SPLIT_NAMES.get((name or "").strip().lower())
    if known is None:
        raise ValueError(
            f"{csv_file} names a split {name!r}, expected one of {', '.join(_SPLIT_NAMES)}; a "
            "table without splits: --csv-split-column none"
        )
    return known


def _piece_name(cells: Sequence[str | None]) -> str | None:
    words = [" ".join(_composed(cell or "").casefold().split()) for cell in cells]
    return _BETWEEN_CELLS.join(words) if words and all(words) else None


def readable_piece(piece: str) -> str:
    """A piece's name as people write it."""
    return piece.strip(_BETWEEN_CELLS).replace(_BETWEEN_CELLS, ", ")


def piece_of_its_own(id_: str) -> str:
    """A name for the piece of a recording of which no table knows it; equals no real name."""
    return _BETWEEN_CELLS + id_


def path_parts(path: str) -> tuple[str, ...]:
    """From the file up: stem, folder, folder above, ...

    A number is taken without leading zeros, so that a performance id 42 finds `00042.flac`, and
    accents in one form: file systems keep two, which look alike.
    """
    pure = PurePosixPath(_composed(path).strip().replace("\\", "/"))
    stem = pure.stem
    return (stem.lstrip("0") or "0" if stem.isdecimal() else stem, *reversed(pure.parent.parts))


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def match_rows(
    paths: Mapping[str, str], rows: Iterable[Row], csv_file: str | Path, file_column: str
) -> dict[str, Row]:
    """Find the row of each recording.

    Args:
      paths: Path of each recording, by id.
      rows: Of `read_table`.
      csv_file: Where they are from, for messages; `file_column` likewise.
      file_column: Column of the files.

    Returns:
      The row of each id that has one; ids without are left out. Several may have the same: a
      recording in two formats, or several folders of files that the table names without folders.

    Raises:
      ValueError: A recording matches rows of several splits or pieces, or nothing matches.
    """
    by_stem: dict[str, list[Row]] = {}
    for row in rows:
        by_stem.setdefault(row.parts[0], []).append(row)
    found: dict[str, Row] = {}
    num_shared: dict[str, int] = {}
    for id_, path in paths.items():
        best, shared = _best_rows(path, by_stem)
        if best:
            found[id_], num_shared[id_] = _only_one(best, path, csv_file), shared
    if not found:
        raise ValueError(
            f"no recording matches a row of {csv_file}: it names files like "
            f"{next(iter(by_stem), 'none')!r}, the recordings are like "
            f"{next(iter(paths.values()), 'none')!r}; is --csv-file-column {file_column} right?"
        )
    return _closest(found, num_shared)


def _closest(found: Mapping[str, Row], num_shared: Mapping[str, int]) -> dict[str, Row]:
    """Without the recordings whose row belongs to another that shares more parts with it."""
    most: dict[tuple[str, ...], int] = {}
    for id_, row in found.items():
        most[row.parts] = max(most.get(row.parts, 0), num_shared[id_])
    return {id_: row for id_, row in found.items() if num_shared[id_] == most[row.parts]}


def _best_rows(path: str, by_stem: Mapping[str, list[Row]]) -> tuple[list[Row], int]:
    """The rows that share most trailing parts with a path, and how many parts those are."""
    parts = path_parts(path)
    best: list[Row] = []
    most = 0
    for row in by_stem.get(parts[0], []):
        shared = sum(1 for _ in _shared(parts, row.parts))
        if shared > most:
            most, best = shared, []
        if shared == most:
            best.append(row)
    return best, most


def _shared(first: Sequence[str], second: Sequence[str]) -> Iterator[str]:
    for one, other in zip(first, second, strict=False):
        if one != other:
            return
        yield one


def _only_one(rows: list[Row], path: str, csv_file: str | Path) -> Row:
    for what in ("split", "piece"):
        names = sorted({getattr(row, what) or "none" for row in rows})
        if len(names) > 1:
            raise ValueError(
                f"{path} matches rows of {csv_file} in different {what}s "
                f"({', '.join(map(readable_piece, names))}): give its folders as in the table, or "
                "make the file names unique"
            )
    return rows[0]
