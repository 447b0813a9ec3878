"""Recordings -> train, validation, test. Whole recordings: an excerpt never leaves its siblings.

Two recordings of one piece may still be in two splits: a model is then tested on music that it was
trained on, played by others. `shared_pieces` counts them; `draw_pieces` and `pieces_together` give
splits where no piece is in two of them.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from valle.data.split_table import Row, match_rows, read_table

ORDER = ("train", "validation", "test")


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
    rows = read_table(csv_file, file_column, split_column)
    return {
        id_: str(row.split) for id_, row in match_rows(paths, rows, csv_file, file_column).items()
    }


def draw_pieces(
    pieces: Mapping[str, str], valid_fraction: float, test_fraction: float, seed: int
) -> dict[str, str]:
    """Draw splits of whole pieces, as `split_by_hash` draws them of recordings.

    Args:
      pieces: The piece of each recording id.
      valid_fraction: Share for validation, of the number of pieces.
      test_fraction: Share for the test.
      seed: Another seed, another draw.

    Returns:
      The split of each id.

    Raises:
      ValueError: Shares that are negative or leave nothing to train on.
    """
    drawn = split_by_hash(pieces.values(), valid_fraction, test_fraction, seed)
    return {id_: drawn[piece] for id_, piece in pieces.items()}


def pieces_together(rows: Iterable[Row]) -> dict[str, str]:
    """The split of each piece: the one where most of its rows are; of several, the first of ORDER.

    It asks the table, not which recordings are there, so that no piece moves when a recording is
    added, or turns out to be damaged.
    """
    votes: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        if row.piece is not None and row.split is not None:
            votes[row.piece][row.split] += 1
    return {piece: max(ORDER, key=count.__getitem__) for piece, count in votes.items()}


def shared_pieces(
    splits: Mapping[str, str], pieces: Mapping[str, str]
) -> dict[tuple[str, ...], list[str]]:
    """The pieces that are in several splits.

    Args:
      splits: The split of each recording id.
      pieces: The piece of each; ids without a split are passed over.

    Returns:
      Sorted pieces by the splits that share them, for instance ("train", "test").
    """
    places: dict[str, set[str]] = defaultdict(set)
    for id_, piece in pieces.items():
        if id_ in splits:
            places[piece].add(splits[id_])
    shared: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for piece in sorted(places):
        if len(places[piece]) > 1:
            shared[tuple(sorted(places[piece], key=ORDER.index))].append(piece)
    return dict(sorted(shared.items(), key=lambda item: [ORDER.index(name) for name in item[0]]))


def describe_shared(shared: Mapping[tuple[str, ...], list[str]], num_pieces: int) -> str:
    """One line: "3 of 120 (train+validation 1, train+test 2)"."""
    total = sum(map(len, shared.values()))
    where = ", ".join(f"{'+'.join(names)} {len(found)}" for names, found in shared.items())
    return f"{total} of {num_pieces}" + (f" ({where})" if where else "")
