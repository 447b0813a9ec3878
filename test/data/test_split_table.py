import argparse
import unicodedata
from pathlib import Path

import pytest

from valle.data.split_table import (
    Row,
    add_table_arguments,
    group_columns,
    match_rows,
    path_parts,
    piece_of_its_own,
    read_table,
    readable_piece,
)

MAESTRO_LIKE = '''canonical_composer,canonical_title,split,audio_filename
Claude Debussy,"Etude ""Pour les accords""",test,2009/MIDI--AUDIO_11_WAV.wav
Claude  Debussy ,L'Isle Joyeuse,train,2011/Track09_wav--1.wav
Claude Debussy,L'isle  joyeuse,train,2017/Track09_wav--1.wav
Anonymous,,train,2018/Recital.wav
'''


@pytest.fixture
def table(tmp_path) -> Path:
    path = tmp_path / "maestro-v3.0.0.csv"
    path.write_text(MAESTRO_LIKE, encoding="utf-8")
    return path


COLUMNS = ["canonical_composer", "canonical_title"]


def test_a_piece_is_named_by_all_its_columns_and_spelling_matters_little(table):
    accords, isle, isle_again, unnamed = read_table(table, "audio_filename", "split", COLUMNS)
    assert isle.piece == isle_again.piece
    assert accords.piece != isle.piece
    assert readable_piece(isle.piece) == "claude debussy, l'isle joyeuse"
    assert unnamed.piece is None  # no title: it cannot be told apart from other recordings
    by_composer = read_table(table, "audio_filename", "split", ["canonical_composer"])
    assert len({row.piece for row in by_composer}) == 2


def test_a_table_without_splits_may_still_name_pieces(table):
    rows = read_table(table, "audio_filename", piece_columns=COLUMNS)
    assert {row.split for row in rows} == {None}
    assert sum(row.piece is not None for row in rows) == 3


def test_the_name_of_a_lone_recording_is_no_other_piece(table):
    rows = read_table(table, "audio_filename", piece_columns=["canonical_composer"])
    assert piece_of_its_own(rows[0].piece) not in {row.piece for row in rows}
    assert readable_piece(piece_of_its_own("p1")) == "p1"


def test_same_name_in_two_folders_is_told_apart_by_the_folder(table):
    paths = {"a": "/x/maestro/2011/Track09_wav--1.flac", "b": "2017\\Track09_wav--1.wav"}
    rows = read_table(table, "audio_filename", "split", COLUMNS)
    found = match_rows(paths, rows, table, "audio_filename")
    assert found["a"] is rows[1]
    assert found["b"] is rows[2]


def test_a_row_belongs_to_the_recording_that_shares_most_folders_with_it(tmp_path):
    rows = [Row(path_parts("Bach/Suite/01.mid"), "train")]
    paths = {
        "own": "rec/Bach/Suite/01.wav",
        "another format": "rec/mp3/Bach/Suite/1.mp3",
        "another suite": "rec/Handel/Suite/01.wav",
        "another piece": "rec/Mozart/K331/01.wav",
    }
    found = match_rows(paths, rows, tmp_path / "table.csv", "file")
    assert found.keys() == {"own", "another format"}
    backwards = dict(reversed(paths.items()))
    assert match_rows(backwards, rows, tmp_path / "table.csv", "file") == found


def test_rows_without_folders_are_for_all_folders_alike(tmp_path):
    rows = [Row(path_parts("01"), "train"), Row(path_parts("Bach/Suite/02.mid"), "test")]
    paths = {"a": "disc 1/01.wav", "b": "disc 2/01.wav", "c": "flat/2.flac", "d": "3.wav"}
    found = match_rows(paths, rows, tmp_path / "table.csv", "file")
    assert {id_: row.split for id_, row in found.items()} == {
        "a": "train",
        "b": "train",
        "c": "test",
    }


def test_an_ambiguous_piece_is_refused(table):
    table.write_text(MAESTRO_LIKE.replace("L'isle  joyeuse", "La mer"))
    rows = read_table(table, "audio_filename", "split", COLUMNS)
    message = r"different pieces \(claude debussy, l'isle joyeuse, claude debussy, la mer\)"
    with pytest.raises(ValueError, match=message):
        match_rows({"a": "Track09_wav--1.wav"}, rows, table, "audio_filename")


def test_numbers_and_accents_are_compared_by_what_they_mean():
    assert path_parts("download/00042.wav")[0] == path_parts("42")[0] == "42"
    assert path_parts("000.mid")[0] == "0"
    assert path_parts("007_x.mid")[0] == "007_x"
    decomposed = unicodedata.normalize("NFD", "3._Mélodie/1.mid")
    assert path_parts(decomposed) == path_parts("3._Mélodie/1.mid")


def test_missing_columns_are_named(table):
    with pytest.raises(ValueError, match=r"no column composition_id, it has canonical_composer"):
        read_table(table, "audio_filename", "split", ["composition_id"])


def test_a_split_of_another_name_says_how_to_do_without(table):
    with pytest.raises(ValueError, match=r"names a split '2009.*--csv-split-column none"):
        read_table(table, "audio_filename", "audio_filename")


def test_columns_are_joined_by_commas():
    parser = argparse.ArgumentParser()
    add_table_arguments(parser)
    args = parser.parse_args(["--csv-group-column", "canonical_composer, canonical_title"])
    assert group_columns(args.csv_group_column) == COLUMNS
    assert group_columns(parser.parse_args([]).csv_group_column) == []
