"""What the check of token manifests finds, what it only remarks, and its exit status."""

import gzip
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import validate_manifests as validator
from lhotse import AudioSource, CutSet, Features, MonoCut
from manifest_report import _KEPT_PROBLEMS, SplitReport
from manifest_tables import entropy_bits, perplexity
from tiny_cuts import CODEC, write_manifest

from valle.data.manifest import load_cuts
from valle.data.shar import write_shards


@pytest.fixture
def folder(tmp_path) -> Path:
    for split in ("train", "validation", "test"):
        write_manifest(tmp_path, [40.0, 20.0], split=split, window_sec=10, minimum_sec=2)
    return tmp_path


def check(folder: Path, monkeypatch, *flags: object) -> int | str:
    """The exit status of the program: 0, or the line that it ends with."""
    monkeypatch.setattr(sys, "argv", ["validate", "--manifest-dir", *map(str, (folder, *flags))])
    try:
        validator.main()
    except SystemExit as end:
        return end.code
    return 0


def test_sound_manifests_pass_and_codes_are_counted(folder, monkeypatch, capsys):
    reports, problems = validator.validate(folder)
    assert problems == []
    train = reports["train"]
    assert (train.num_cuts, train.seconds, train.codec) == (6, 60, CODEC)
    assert train.durations == {100: 6}
    assert {r.seconds for r in train.recordings.values()} == {40, 20}
    assert train.counts.sum(axis=1).tolist() == [3000] * 4
    stored = [np.load(folder / "tokens" / f"train-{i}.npy") for i in range(2)]
    expected = np.bincount(np.concatenate(stored)[:, 2], minlength=64)
    np.testing.assert_array_equal(train.counts[2], expected)
    assert check(folder, monkeypatch) == 0
    out = capsys.readouterr().out
    assert f"training may start: no problems found in {folder}" in out
    assert "WARNING" not in out


def test_entropy_and_perplexity_of_known_counts():
    assert entropy_bits(np.array([5, 5, 0, 5, 5])) == pytest.approx(2)
    assert perplexity(np.array([5, 5, 0, 5, 5])) == pytest.approx(4)
    assert entropy_bits(np.array([2, 1, 1])) == pytest.approx(1.5)
    assert str(entropy_bits(np.array([7, 0]))) == "0.0"
    assert entropy_bits(np.zeros(3)) == 0


def token_file(folder: Path) -> Path:
    return folder / "tokens" / "train-1.npy"


def cut_short(path: Path, num_bytes: int) -> None:
    path.write_bytes(path.read_bytes()[:num_bytes])


DAMAGE = {
    "missing": (lambda path: path.unlink(), "train-1-0000.*No such file"),
    "empty": (lambda path: path.write_bytes(b""), "train-1-0000.*cannot be read"),
    "half a header": (lambda path: cut_short(path, 40), "train-1-0000.*cannot be read"),
    "cut off": (lambda path: cut_short(path, 1000), "train-1-0000.*cannot be read"),
    "no array": (lambda path: path.write_bytes(b"la la la" * 50), "train-1-0000.*cannot be read"),
    "longer": (
        lambda path: np.save(path, np.zeros((1001, 4), np.int16)),
        r"train-1-0000: .*array \(1001, 4\), its cut says \(1000, 4\)",
    ),
    "shorter": (
        lambda path: np.save(path, np.zeros((990, 4), np.int16)),
        "train-1-0001 lasts 10.0 s, 500 frames, but has 490",
    ),
    "fewer quantizers": (
        lambda path: np.save(path, np.zeros((1000, 3), np.int16)),
        "train-1-0000 has 3 quantizers, expected 4",
    ),
    "one dimension": (
        lambda path: np.save(path, np.zeros(1000, np.int16)),
        r"train-1-0000: tokens have shape \(500,\)",
    ),
    "floats": (
        lambda path: np.save(path, np.zeros((1000, 4), np.float32)),
        "train-1-0000: .* holds float32, expected int16",
    ),
    "fractions": (
        lambda path: np.save(path, np.full((1000, 4), 0.5)),
        "train-1-0000: float64 values that are not whole numbers",
    ),
    "out of range": (
        lambda path: np.save(path, np.full((1000, 4), 64, np.int16)),
        "train-1-0000 has codes from 64 to 64, expected 0 to 63",
    ),
    "negative": (
        lambda path: np.save(path, np.full((1000, 4), -1, np.int16)),
        "train-1-0000 has codes from -1 to -1",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_array_is_named_and_the_rest_is_read(damage, folder, monkeypatch, capsys):
    spoil, message = DAMAGE[damage]
    spoil(token_file(folder))
    reports, problems = validator.validate(folder)
    assert 1 <= len(problems) <= 2  # one for each of its cuts
    assert any(re.search(message, problem) for problem in problems)
    assert reports["train"].num_cuts == 6
    assert reports["train"].counts[0].sum() >= 2000  # the other recording's
    assert reports["test"].counts[0].sum() == 3000
    ending = check(folder, monkeypatch)
    assert f"training must not start: {len(problems)} problems in {folder}" == ending
    assert capsys.readouterr().out.count("PROBLEM") == len(problems)


def test_wider_numbers_train_the_same_and_are_remarked(folder, monkeypatch, capsys):
    path = token_file(folder)
    np.save(path, np.load(path).astype(np.int32))
    assert check(folder, monkeypatch) == 0
    assert f"WARNING {path} holds int32" in capsys.readouterr().out


@pytest.mark.parametrize("keep", [0.6, 0.0])
def test_a_damaged_manifest_is_a_problem(keep, folder):
    path = folder / "cuts_validation.jsonl.gz"
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))] if keep else b"no gzip at all")
    _, problems = validator.validate(folder)
    assert len(problems) == 1
    assert "cuts_validation.jsonl.gz cannot be read beyond" in problems[0]


def spoil_a_byte(path: Path, index: int) -> None:
    content = bytearray(path.read_bytes())
    content[index] ^= 0x46
    path.write_bytes(content)


def with_line(path: Path, change: Callable[[str], str]) -> None:
    """Change the third of the manifest's lines."""
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    lines[2] = change(lines[2])
    path.write_bytes(gzip.compress("\n".join(lines).encode()))


WRONG_LINES = {
    "null": lambda line: "null",
    "a list": lambda line: "[1]",
    "no cut": lambda line: '{"id": "train-0-0002", "recording_id": "r", "start": 0, "duration": 1}',
    "a renamed field": lambda line: line.replace('"start"', '"begin"', 1),
    "a field of another kind": lambda line: line.replace('"duration": 10.0', '"duration": "x"', 1),
    "a negative duration": lambda line: line.replace('"duration": 10.0', '"duration": -1.0', 1),
    "an id that is a list": lambda line: re.sub('"id": "[^"]*"', '"id": ["a"]', line, count=1),
}


# its mark, the first packed byte, some further, its checksum, its length
@pytest.mark.parametrize("index", [0, 10, 50, 100, 200, 300, -8, -4])
def test_a_spoilt_byte_is_a_problem_of_its_file(index, folder, monkeypatch, capsys):
    spoil_a_byte(folder / "cuts_train.jsonl.gz", index)
    assert "training must not start" in str(check(folder, monkeypatch))
    out = capsys.readouterr().out
    assert f"PROBLEM {folder}/cuts_train.jsonl.gz cannot be read beyond" in out
    assert re.search(r"test +6", out)  # the others were read


@pytest.mark.parametrize("what", WRONG_LINES)
def test_a_wrong_line_is_a_problem_of_its_file(what, folder):
    with_line(folder / "cuts_train.jsonl.gz", WRONG_LINES[what])
    reports, problems = validator.validate(folder)
    assert any(
        f"{folder}/cuts_train.jsonl.gz cannot be read beyond" in problem
        or "train-0-0002" in problem
        for problem in problems
    )
    assert reports["train"].num_cuts >= 2
    assert reports["test"].num_cuts == 6


def test_a_field_of_the_tokens_that_is_missing_is_a_problem_of_its_cut(folder):
    path = folder / "cuts_train.jsonl.gz"
    with_line(path, lambda line: line.replace('"temporal_dim"', '"time"'))
    reports, problems = validator.validate(folder)
    assert len(problems) == 1
    assert "cut train-0-0002: its tokens cannot be read (AttributeError" in problems[0]
    assert reports["train"].num_cuts == 6


@pytest.mark.parametrize(("split", "starts"), [("test", True), ("validation", False)])
@pytest.mark.parametrize("how", ["missing", "empty"])
def test_a_split_without_cuts_matters_only_where_training_opens_it(
    split, starts, how, folder, monkeypatch, capsys
):
    path = folder / f"cuts_{split}.jsonl.gz"
    path.unlink()
    if how == "empty":
        path.write_bytes(gzip.compress(b""))
    ending = check(folder, monkeypatch)
    assert (ending == 0) == starts
    assert f"{'WARNING' if starts else 'PROBLEM'} no cuts for {split}" in capsys.readouterr().out


def as_shards(folder: Path) -> Path:
    for split in ("train", "validation", "test"):
        path = folder / f"cuts_{split}.jsonl.gz"
        write_shards(folder / "shar" / f"cuts_{split}", load_cuts(path), shard_size=4)
    return folder / "shar"


def test_shards_are_read_like_files(folder, monkeypatch):
    whole, _ = validator.validate(folder)
    sharded, problems = validator.validate(as_shards(folder))
    assert problems == []
    for split, report in whole.items():
        np.testing.assert_array_equal(report.counts, sharded[split].counts)
        assert report.recordings == sharded[split].recordings
    assert check(folder / "shar", monkeypatch) == 0


def test_a_damaged_shard_is_a_problem_of_its_cuts(folder):
    shards = as_shards(folder)
    cut_short(shards / "cuts_train" / "audio_features.000000.tar", 6000)
    (shards / "cuts_train" / "audio_features.000001.tar").unlink()
    reports, problems = validator.validate(shards)
    assert reports["train"].num_cuts == 6
    assert len(problems) == 5  # one array was before the cut
    assert all("tokens cannot be read" in problem for problem in problems)


def test_a_missing_shard_is_a_problem(folder):
    shards = as_shards(folder) / "cuts_train"
    (shards / "cuts.000001.jsonl.gz").unlink()
    lacking = f"{shards} has no cuts.000001.jsonl.gz: copy that shard again, or prepare again"
    fewer = f"{shards} holds 4 cuts, 6 by the summary beside it: shards are missing, or of another"
    problems = validator.validate(shards.parent)[1]
    assert problems[0] == lacking
    assert problems[1].startswith(fewer)
    (shards / "audio_features.000001.tar").unlink()  # the last, as if it had never been
    (problem,) = validator.validate(shards.parent)[1]
    assert problem.startswith(fewer)
    (shards.parent / "cuts_train.summary.json").unlink()
    assert validator.validate(shards.parent)[1] == []  # nothing tells of it


def test_a_gap_in_the_numbers_of_shards_is_a_problem(folder):
    shards = as_shards(folder) / "cuts_train"
    for path in (*shards.glob("*.000000.*"), shards.parent / "cuts_train.summary.json"):
        path.unlink()
    (problem,) = validator.validate(shards.parent)[1]
    assert "has no cuts.000000.jsonl.gz" in problem


def test_no_training_manifest_is_an_error(tmp_path, monkeypatch):
    assert "error: no cuts_train.jsonl.gz" in check(tmp_path, monkeypatch)


def test_what_concerns_several_cuts(folder):
    cuts = list(load_cuts(folder / "cuts_train.jsonl.gz"))
    CutSet.from_cuts([cuts[0], cuts[1], cuts[1]]).to_file(folder / "cuts_train.jsonl.gz")
    CutSet.from_cuts([cuts[2]]).to_file(folder / "cuts_test.jsonl.gz")
    _, problems = validator.validate(folder)
    assert problems == [
        "cut id train-0-0001 occurs more than once in cuts_train.jsonl.gz",
        "recording train-0 is in train and in test",
    ]


def rewrite(path: Path, change: Callable[[MonoCut], MonoCut]) -> None:
    CutSet.from_cuts(list(map(change, load_cuts(path)))).to_file(path)


def test_a_file_under_two_ids_is_in_two_splits_all_the_same(folder):
    def renamed(cut: MonoCut) -> MonoCut:
        source = replace(cut.recording.sources[0], source="./train-1.flac")
        return replace(cut, recording=replace(cut.recording, sources=[source]))

    cut = next(iter(load_cuts(folder / "cuts_test.jsonl.gz")))
    CutSet.from_cuts([renamed(cut)]).to_file(folder / "cuts_test.jsonl.gz")
    assert validator.validate(folder)[1] == [
        "train-1.flac is in train as train-1 and in test as test-0"
    ]


def test_sound_in_memory_has_no_file_to_be_shared(folder):
    def in_memory(cut: MonoCut) -> MonoCut:
        source = AudioSource("shar", [0], "")
        return replace(cut, recording=replace(cut.recording, sources=[source]))

    for split in ("train", "test"):
        rewrite(folder / f"cuts_{split}.jsonl.gz", in_memory)
    assert validator.validate(folder)[1] == []


def as_features(cut: MonoCut) -> MonoCut:
    """As VALL-E stored it: tokens as features, no recording."""
    tokens = cut.audio_features
    features = Features(
        type="encodec32",
        num_frames=tokens.shape[0],
        num_features=tokens.shape[1],
        frame_shift=tokens.frame_shift,
        sampling_rate=32000,
        start=0,
        duration=cut.recording.duration,
        storage_type="numpy_files",
        storage_path=tokens.array.storage_path,
        storage_key=tokens.array.storage_key,
        recording_id=cut.recording.id,
        channels=0,
    )
    return replace(cut, recording=None, features=features, custom=None)


def test_leaks_are_seen_in_the_older_layout(folder):
    for split in ("train", "validation", "test"):
        rewrite(folder / f"cuts_{split}.jsonl.gz", as_features)
    reports, problems = validator.validate(folder)
    assert problems == []
    assert {r.seconds for r in reports["train"].recordings.values()} == {40, 20}
    CutSet.from_cuts([next(iter(load_cuts(folder / "cuts_train.jsonl.gz")))]).to_file(
        folder / "cuts_test.jsonl.gz"
    )
    assert validator.validate(folder)[1] == ["recording train-0 is in train and in test"]


def test_cuts_that_name_no_recording_are_remarked(folder, monkeypatch, capsys):
    rewrite(folder / "cuts_test.jsonl.gz", lambda cut: replace(cut, recording=None))
    assert check(folder, monkeypatch) == 0
    out = capsys.readouterr().out
    assert "WARNING the cuts of test do not say which recordings they are of" in out
    assert "the cuts of train do not say" not in out


def test_codecs_are_told_apart_within_a_split_and_between_splits(folder):
    write_manifest(folder, [4.0], "test", replace(CODEC, fingerprint="ff"))
    _, problems = validator.validate(folder)
    assert len(problems) == 1
    assert "test: codec 'tiny' was expected" in problems[0]
    mixed = list(load_cuts(folder / "cuts_train.jsonl.gz"))
    del mixed[3].custom["codec"]
    mixed[4].custom["codec"] = replace(CODEC, sampling_rate=1).to_dict()
    CutSet.from_cuts(mixed).to_file(folder / "cuts_train.jsonl.gz")
    _, problems = validator.validate(folder)
    assert len(problems) == 3
    assert "train-0-0003 records no codec, the first cut of the manifest one" in problems[0]
    assert "cut train-1-0000: codec 'tiny' was expected" in problems[1]


def test_cuts_without_a_codec_are_compared_with_each_other(folder, monkeypatch, capsys):
    for split, Q in (("train", 4), ("validation", 4), ("test", 3)):
        write_manifest(folder, [6.0], split, replace(CODEC, num_quantizers=Q))
        cuts = list(load_cuts(folder / f"cuts_{split}.jsonl.gz"))
        for cut in cuts:
            del cut.custom["codec"]
        CutSet.from_cuts(cuts).to_file(folder / f"cuts_{split}.jsonl.gz")
    _, problems = validator.validate(folder)
    assert problems == ["test has 3 quantizers, train has 4: tokenise both with one codec"]
    check(folder, monkeypatch)
    assert "WARNING train does not record which codec" in capsys.readouterr().out


def test_codes_that_hardly_vary_are_remarked(folder, monkeypatch, capsys):
    for path in (folder / "tokens").glob("train-*.npy"):
        codes = np.load(path)
        codes[:, 3] = 5
        np.save(path, codes)
    assert check(folder, monkeypatch) == 0
    assert "codes of quantizer 4 hardly vary in train (perplexity 1.00)" in capsys.readouterr().out


def test_pieces_in_several_splits_are_remarked(folder, monkeypatch, capsys):
    table = folder / "table.csv"
    table.write_text("file,piece\ntrain-0,waltz\ntest-1,waltz\ntrain-1,fugue\n")
    flags = ("--split-csv", table, "--csv-file-column", "file", "--csv-group-column", "piece")
    assert check(folder, monkeypatch, *flags) == 0
    assert "WARNING pieces in several splits: 1 of 5 (train+test 1)" in capsys.readouterr().out
    assert "error: " in str(check(folder, monkeypatch, *flags[:-1], "opus"))


def test_problems_are_counted_beyond_those_that_are_kept():
    report = SplitReport()
    for i in range(_KEPT_PROBLEMS + 5):
        report.add_problem(f"cut {i}")
    assert report.num_problems == _KEPT_PROBLEMS + 5
    assert len(report.problems) == _KEPT_PROBLEMS
