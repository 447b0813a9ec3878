"""Recordings -> train, validation, test. Whole recordings: an excerpt never leaves its siblings."""

import csv
import hashlib
from collections.abc import Iterable, Mapping, Sequence
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


def split_by_hash(
    ids: Iterable[str], valid_fraction: float, test_fraction: float, seed: int
) -> dict[str, str]:
    """Draw splits by a seeded hash of each id.

    The order of the ids plays no part, and a recording that is added later hardly moves the
    others: it takes its place in their ranking.

    Args:
      ids: Ids of recordings.
      valid_fraction: Share for validation, of the number of recordings.
      test_fraction: Share for the test.
      seed: Another seed, another draw.

    Returns:
      The split of each id. With three recordings or more, no split with a share above 0 is empty.

    Raises:
      ValueError: Shares that are negative or leave nothing to train on.
    """
    if min(valid_fraction, test_fraction) < 0 or valid_fraction + test_fraction >= 1:
        raise ValueError(
            f"fractions {valid_fraction} (validation) and {test_fraction} (test), expected two "
            "numbers from 0 whose sum is below 1, so that something is left to train on"
        )
    ranked = sorted(set(ids), key=lambda id_: hashlib.sha256(f"{seed}/{id_}".encode()).digest())
    num_valid, num_test = _counts(len(ranked), valid_fraction, test_fraction)
    names = ["validation"] * num_valid + ["test"] * num_test
    names += ["train"] * (len(ranked) - len(names))
    return dict(zip(ranked, names, strict=True))


def _counts(total: int, *fractions: float) -> list[int]:
    """Recordings for each fraction: at least one, and at least one left over."""
    counts = [max(1, round(total * fraction)) if fraction > 0 else 0 for fraction in fractions]
    while sum(counts) >= max(total, 1):
        largest = max(counts)
        index = len(counts) - 1 - counts[::-1].index(largest)  # the last of the largest
        counts[index] -= 1
    return counts


def split_by_csv(
    paths: Mapping[str, str], csv_file: str | Path, file_column: str, split_column: str
) -> dict[str, str]:
    """Read the split of each recording from a table.

    A row belongs to the recording whose path has the same file name, extension aside; among
    several such rows, to the one with which it shares most folders, counted from the file up. So
    `Composer/Piece/00042.mid` in ATEPP's table names `recordings/Composer/Piece/00042.flac`.

    Args:
      paths: Path of each recording, by id.
      csv_file: The table, with a header line.
      file_column: Column of the files.
      split_column: Column of the splits: train, validation (or valid, val, dev) or test.

    Returns:
      The split of each id that has a row; ids without one are left out.

    Raises:
      FileNotFoundError: There is no such table.
      ValueError: A column is missing, a split has another name, a recording matches two splits, or
        nothing matches.
    """
    rows = _rows_by_stem(csv_file, file_column, split_column)
    splits = {}
    for id_, path in paths.items():
        parts = _parts(path)
        found = _best_rows(parts, rows.get(parts[0], []))
        if len(found) > 1:
            raise ValueError(
                f"{path} matches rows of {csv_file} in different splits ({', '.join(found)}): "
                "give its folders as in the table, or make the file names unique"
            )
        if found:
            splits[id_] = found[0]
    if not splits:
        raise ValueError(
            f"no recording matches a row of {csv_file}: it names files like "
            f"{next(iter(rows), 'none')!r}, the recordings are like "
            f"{next(iter(paths.values()), 'none')!r}; is --csv-file-column {file_column} right?"
        )
    return splits


def _rows_by_stem(
    csv_file: str | Path, file_column: str, split_column: str
) -> dict[str, list[tuple[Sequence[str], str]]]:
    rows: dict[str, list[tuple[Sequence[str], str]]] = {}
    with open(csv_file, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or []
        missing = {file_column, split_column} - set(columns)
        if missing:
            raise ValueError(
                f"{csv_file} has no column {' or '.join(sorted(missing))}, it has "
                f"{', '.join(columns)}: set --csv-file-column and --csv-split-column"
            )
        for row in reader:
            if not row[file_column]:
                continue
            parts = _parts(row[file_column])
            rows.setdefault(parts[0], []).append((parts, _split_name(row[split_column], csv_file)))
    return rows


def _split_name(name: str | None, csv_file: str | Path) -> str:
    known = _SPLIT_NAMES.get((name or "").strip().lower())
    if known is None:
        raise ValueError(
            f"{csv_file} names a split {name!r}, expected one of {', '.join(_SPLIT_NAMES)}"
        )
    return known


def _parts(path: str) -> list[str]:
    """From the file up: stem, folder, folder above, ..."""
    pure = PurePosixPath(path.strip().replace("\\", "/"))
    return [pure.stem, *reversed(pure.parent.parts)]


def _best_rows(parts: Sequence[str], rows: Iterable[tuple[Sequence[str], str]]) -> list[str]:
    """The splits of the rows that share most trailing parts with a path."""
    best: set[str] = set()
    most = 0
    for row_parts, split in rows:
        shared = next(
            (i for i, (a, b) in enumerate(zip(parts, row_parts, strict=False)) if a != b),
            min(len(parts), len(row_parts)),
        )
        if shared > most:
            most, best = shared, set()
        if shared == most:
            best.add(split)
    return sorted(best)
