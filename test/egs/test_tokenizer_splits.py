"""The splits that the tokenizer's command line asks for."""

import argparse
import csv
import logging
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizer_splits import add_split_arguments, assign_splits, pieces_summary

from valle.data.sources import Source
from valle.data.splits import ORDER, shared_pieces

ROWS = [  # of ATEPP: a waltz in all splits, a fugue in one, and a performance of no known piece
    ("Chopin/Waltz/00001.mid", "train", "7"),
    ("Chopin/Waltz/00002.mid", "train", "7"),
    ("Chopin/Waltz/00003.mid", "validation", "7"),
    ("Chopin/Waltz/00004.mid", "test", "7"),
    ("Bach/Fugue/00005.mid", "test", "0"),
    ("Bach/Fugue/00006.mid", "test", "0"),
    ("Unknown/00007.mid", "validation", ""),
    ("Unknown/00008.mid", "test", ""),
]


def write_table(path: Path, rows=ROWS) -> Path:
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["midi_path", "split", "composition_id"])
        writer.writerows(rows)
    return path


@pytest.fixture
def table(tmp_path) -> Path:
    return write_table(tmp_path / "ATEPP-1.2-clean.csv")


def parse(*flags: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_split_arguments(parser)
    return parser.parse_args([str(flag) for flag in flags])


def sources_of(rows=ROWS, extra: int = 0) -> list[Source]:
    stems = [row[0].removesuffix(".mid") for row in rows] + [f"new/{i}" for i in range(extra)]
    return [Source(stem, f"recordings/{stem}.flac", stem) for stem in stems]


def grouped(table: Path) -> tuple[object, ...]:
    return ("--split-csv", table, "--csv-group-column", "composition_id")


def test_by_recording_the_table_is_kept_and_shared_pieces_are_told(table, caplog):
    caplog.set_level(logging.INFO)
    args = parse(*grouped(table))
    splits = assign_splits(sources_of(extra=1), args)
    assert splits == {row[0].removesuffix(".mid"): row[1] for row in ROWS}
    assert "pieces in several splits: 1 of 4 (train+validation+test 1)" in caplog.text
    assert "--split-by composition" in caplog.text
    assert pieces_summary(sources_of(extra=1), splits, args).startswith("1 of 4 (")


def test_by_composition_each_piece_goes_where_most_of_it_is(table, caplog):
    caplog.set_level(logging.INFO)
    args = parse(*grouped(table), "--split-by", "composition")
    splits = assign_splits(sources_of(), args)
    assert [splits[source.id] for source in sources_of()] == [
        *["train"] * 4,
        *["test"] * 2,
        "validation",
        "test",
    ]
    assert "moved 2 of 8 recordings: train 4 (was 2), validation 1 (was 2)" in caplog.text
    assert "pieces in several splits: 0 of 4" in caplog.text
    assert pieces_summary(sources_of(), splits, args) == "0 of 4"
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


def test_a_piece_does_not_move_when_recordings_come_or_go(table):
    args = parse(*grouped(table), "--split-by", "composition")
    late = [source for source in sources_of() if "00001" not in source.id]
    late = [source for source in late if "00002" not in source.id]
    assert assign_splits(late, args)["Chopin/Waltz/00003"] == "train"


def test_a_split_that_is_nearly_emptied_is_told(tmp_path, caplog):
    rows = [(f"{i:05d}.mid", "validation" if i % 5 == 0 else "train", i // 5) for i in range(20)]
    table = write_table(tmp_path / "t.csv", rows)
    splits = assign_splits(sources_of(rows), parse(*grouped(table), "--split-by", "composition"))
    assert set(splits.values()) == {"train"}
    assert "--csv-split-column none draws the splits anew" in caplog.text


TABLES = st.lists(
    st.tuples(st.sampled_from(ORDER), st.sampled_from(["1", "2", "3", "4", ""])), min_size=1
)


@pytest.mark.parametrize("drawn", [False, True])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(cells=TABLES)
def test_no_piece_is_in_two_splits_and_no_recording_is_lost(drawn, cells, tmp_path):
    rows = [(f"x/{i}.mid", split, piece) for i, (split, piece) in enumerate(cells)]
    table = write_table(tmp_path / "t.csv", rows)
    flags = ["--csv-split-column", "none"] if drawn else []
    splits = assign_splits(
        sources_of(rows), parse(*grouped(table), "--split-by", "composition", *flags)
    )
    assert splits.keys() == {source.id for source in sources_of(rows)}
    assert shared_pieces(splits, {f"x/{i}": p for i, (_, p) in enumerate(cells) if p}) == {}
    if not drawn:  # those of no known piece stay where they were
        assert all(splits[f"x/{i}"] == split for i, (split, piece) in enumerate(cells) if not piece)


def test_drawn_splits_keep_recordings_of_which_the_table_knows_nothing(table):
    flags = (*grouped(table), "--csv-split-column", "none", "--split-by", "composition")
    splits = assign_splits(sources_of(extra=9), parse(*flags))
    assert len(splits) == 17
    assert len({splits[source.id] for source in sources_of()[:4]}) == 1
    assert len({splits[f"new/{i}"] for i in range(9)}) > 1  # each a piece of its own
    by_recording = assign_splits(sources_of(extra=9), parse(*flags[:-1], "recording"))
    assert len(by_recording) == 17


def test_without_a_table_nothing_is_known_of_pieces():
    args = parse()
    splits = assign_splits(sources_of(), args)
    assert len(splits) == len(ROWS)
    assert pieces_summary(sources_of(), splits, args) is None


@pytest.mark.parametrize("flags", [[], ["--split-csv", "table.csv"], ["--csv-group-column", "x"]])
def test_composition_needs_to_know_the_pieces(flags):
    with pytest.raises(ValueError, match="needs a table that names the piece"):
        assign_splits(sources_of(), parse("--split-by", "composition", *flags))
