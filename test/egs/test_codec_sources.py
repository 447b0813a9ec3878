"""Which recordings a codec learns from, by the flags and files of the tokenizer."""

import argparse
import json
from pathlib import Path

import codec_sources
import pytest
from codec_runs import write_recordings
from conftest import write_token_cuts


def options(*flags: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    codec_sources.add_source_arguments(parser)
    return parser.parse_args([str(flag) for flag in flags])


def ids(splits) -> dict[str, list[str]]:
    return {name: [source.id for source in sources] for name, sources in splits.items()}


def test_a_folder_is_split_as_the_tokenizer_splits_it(tmp_path):
    from tokenizer_splits import assign_splits

    from valle.data.sources import find_recordings

    write_recordings(tmp_path, 10, seconds=0.1)
    args = options("--src-dir", tmp_path, "--seed", 3)
    found = ids(codec_sources.open_splits(args))
    assert {name: len(some) for name, some in found.items()} == {
        "train": 8, "validation": 1, "test": 1
    }  # fmt: skip
    theirs = assign_splits(find_recordings(tmp_path), args)
    assert {id_: name for name, some in found.items() for id_ in some} == theirs


def test_a_table_decides(tmp_path):
    write_recordings(tmp_path, 4, seconds=0.1)
    table = tmp_path / "table.csv"
    table.write_text("file,split\n0.wav,test\n1.wav,train\n2.wav,validation\n")
    args = options("--src-dir", tmp_path, "--split-csv", table, "--csv-file-column", "file")
    assert ids(codec_sources.open_splits(args)) == {
        "train": ["1"], "validation": ["2"], "test": ["0"]
    }  # fmt: skip


def test_a_prepared_folder_knows_its_recordings_and_splits(tmp_path):
    """A path is from here, or from the folder; what was skipped is not there."""
    write_recordings(tmp_path / "sound", 2, seconds=0.1)
    rows = [
        {"id": "a", "path": str(tmp_path / "sound/0.wav"), "split": "train"},
        {"id": "b", "path": "sound/1.wav", "split": "test"},
        {"id": "c", "path": "sound/2.wav", "skipped": "damaged"},
        {"id": "d", "path": "sound/3.wav", "split": None},
    ]
    (tmp_path / "recordings.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    splits = codec_sources.open_splits(options("--manifest-dir", tmp_path))
    assert ids(splits) == {"train": ["a"], "validation": [], "test": ["b"]}
    assert Path(splits["test"][0].path) == tmp_path / "sound/1.wav"


def test_token_manifests_from_elsewhere_name_their_recordings(tmp_path, codec_info):
    write_token_cuts(tmp_path, "train", 3, codec_info)
    write_token_cuts(tmp_path, "test", 2, codec_info)
    splits = codec_sources.open_splits(options("--manifest-dir", tmp_path))
    assert ids(splits) == {
        "train": ["train-0", "train-1", "train-2"], "validation": [], "test": ["test-0", "test-1"]
    }  # fmt: skip
    with pytest.raises(FileNotFoundError, match=r"cuts_train\.jsonl\.gz"):
        codec_sources.open_splits(options("--manifest-dir", tmp_path / "none"))


def test_what_is_held_out_is_the_first_that_there_is(tmp_path):
    splits = {"train": [1], "validation": [], "test": [2]}
    assert codec_sources.held_out(splits, ("validation", "test")) == [2]
    with pytest.raises(ValueError, match="no recording in validation: a codec is judged"):
        codec_sources.held_out(splits, ("validation",))
