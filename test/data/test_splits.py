import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from valle.data.split_table import Row, piece_of_its_own
from valle.data.splits import (
    ORDER,
    describe_shared,
    draw_pieces,
    pieces_together,
    shared_pieces,
    split_by_csv,
    split_by_hash,
)

ATEPP_LIKE = """artist,midi_path,split
A,Bach/Partita_1/00001.mid,train
B,Bach/Partita_1/00002.mid,validation
C,Chopin/Etude/00001.mid,test
"""


@given(st.integers(0, 60), st.floats(0, 0.45), st.floats(0, 0.45), st.integers(0, 9))
def test_every_recording_is_in_one_split_and_no_wanted_split_is_empty(total, valid, test, seed):
    ids = [f"piece-{i}" for i in range(total)]
    splits = split_by_hash(ids, valid, test, seed)
    assert sorted(splits) == sorted(ids)
    counts = {name: list(splits.values()).count(name) for name in ("train", "validation", "test")}
    if total:
        assert counts["train"] >= 1
    for name, fraction in (("validation", valid), ("test", test)):
        assert (counts[name] > 0) == (fraction > 0) or total < 3
        assert abs(counts[name] - fraction * total) <= 1.5


def test_order_plays_no_part_and_the_seed_does():
    ids = [f"piece-{i}" for i in range(40)]
    shuffled = random.Random(0).sample(ids, len(ids))
    assert split_by_hash(ids, 0.2, 0.2, 1) == split_by_hash(shuffled, 0.2, 0.2, 1)
    assert split_by_hash(ids, 0.2, 0.2, 1) != split_by_hash(ids, 0.2, 0.2, 2)


def test_a_new_recording_hardly_moves_the_others():
    ids = [f"piece-{i}" for i in range(100)]
    before, after = split_by_hash(ids, 0.1, 0.1, 0), split_by_hash([*ids, "new"], 0.1, 0.1, 0)
    assert sum(before[i] != after[i] for i in ids) <= 2


@pytest.mark.parametrize(("valid", "test"), [(-0.1, 0.1), (0.5, 0.5), (0.1, 1.0)])
def test_fractions_that_leave_nothing(valid, test):
    with pytest.raises(ValueError, match="something is left to train on"):
        split_by_hash(["a", "b", "c"], valid, test, 0)


@pytest.fixture
def table(tmp_path) -> Path:
    path = tmp_path / "ATEPP-1.2-clean.csv"
    path.write_text(ATEPP_LIKE, encoding="utf-8-sig")
    return path


def test_rows_are_found_by_file_name_and_folders(table):
    paths = {
        "p1": "download/recordings/Bach/Partita_1/00001.flac",
        "c1": "download/recordings/Chopin/Etude/00001.flac",
        "p2": "elsewhere/00002.mp3",
        "unknown": "download/recordings/00009.flac",
    }
    splits = split_by_csv(paths, table, "midi_path", "split")
    assert splits == {"p1": "train", "c1": "test", "p2": "validation"}


def test_an_ambiguous_name_is_refused(table):
    with pytest.raises(ValueError, match=r"different splits \(test, train\)"):
        split_by_csv({"x": "flat/00001.wav"}, table, "midi_path", "split")


def test_tables_that_do_not_fit(table):
    paths = {"p2": "00002.mp3"}
    with pytest.raises(ValueError, match=r"no column file.*it has artist, midi_path, split"):
        split_by_csv(paths, table, "file", "split")
    with pytest.raises(ValueError, match="no recording matches a row"):
        split_by_csv({"x": "nothing.wav"}, table, "midi_path", "split")
    table.write_text(ATEPP_LIKE.replace("validation", "holdout"))
    with pytest.raises(ValueError, match="'holdout', expected one of train"):
        split_by_csv(paths, table, "midi_path", "split")
    with pytest.raises(FileNotFoundError):
        split_by_csv(paths, table.with_name("no.csv"), "midi_path", "split")


PIECES = st.dictionaries(st.text("abc", min_size=1), st.sampled_from("PQRSTUVW"), max_size=40)


@given(PIECES, st.floats(0, 0.45), st.floats(0, 0.45), st.integers(0, 9))
def test_drawn_pieces_stay_whole_and_no_recording_is_lost(pieces, valid, test, seed):
    splits = draw_pieces(pieces, valid, test, seed)
    assert splits.keys() == pieces.keys()
    assert shared_pieces(splits, pieces) == {}
    # the number of pieces is what the fractions are of
    drawn = {piece: splits[id_] for id_, piece in pieces.items()}
    assert drawn == split_by_hash(set(pieces.values()), valid, test, seed)


ROWS = st.lists(st.tuples(st.sampled_from("PQRST"), st.sampled_from(ORDER)), max_size=30)


@given(ROWS)
def test_a_piece_goes_where_most_of_its_rows_are(drawn):
    rows = [Row((str(i),), split, piece) for i, (piece, split) in enumerate(drawn)]
    homes = pieces_together(rows)
    assert homes.keys() == {piece for piece, _ in drawn}
    for piece, home in homes.items():
        counts = [sum(row == (piece, split) for row in drawn) for split in ORDER]
        assert counts[ORDER.index(home)] == max(counts)
        assert ORDER.index(home) == counts.index(max(counts))  # of several, the first


def test_rows_without_a_piece_or_a_split_have_no_say():
    rows = [Row(("1",), "test", None), Row(("2",), None, "waltz"), Row(("3",), "test", "fugue")]
    assert pieces_together(rows) == {"fugue": "test"}


def test_shared_pieces_are_counted_by_the_splits_that_share_them():
    splits = {"a": "train", "b": "test", "c": "validation", "d": "train", "e": "test", "f": "train"}
    pieces = {"a": "x", "b": "x", "c": "y", "d": "y", "e": "z", "f": "x", "left out": "z"}
    pieces["own"] = piece_of_its_own("own")
    shared = shared_pieces(splits, pieces)
    assert shared == {("train", "validation"): ["y"], ("train", "test"): ["x"]}
    assert describe_shared(shared, 3) == "2 of 3 (train+validation 1, train+test 1)"
    assert describe_shared({}, 3) == "0 of 3"
