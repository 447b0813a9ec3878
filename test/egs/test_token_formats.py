"""Tokens in either format: made, copied, moved away from their sound, and trained on."""

import shutil

import numpy as np
import pytest
import to_shar
import tokenizer
from lhotse import CutSet
from tiny_cuts import write_manifest
from token_loaders import contents, data_module
from tokenizer_runs import arguments, write_recordings
from trainer_runs import same, train, weights
from validate_manifests import validate

from valle.data import cut_codes, load_cuts
from valle.data.manifest import manifest_path
from valle.utils.checkpoint import read_checkpoint

# shares that leave no split empty
SPLITS = ("--valid-fraction", 0.3, "--test-fraction", 0.2)


@pytest.fixture(scope="module")
def made(codec_dir, tmp_path_factory):
    """Folders of tokens by their format; the sound that they were made of is gone."""
    folder = tmp_path_factory.mktemp("made")
    sound = write_recordings(folder / "sound", 14)
    for name, flags in (("numpy", ()), ("shar", ("--format", "shar", "--shard-size", 3))):
        args = arguments(codec_dir, folder / name, "--src-dir", sound, *SPLITS, *flags)
        assert tokenizer.run(args) == 0
    shutil.rmtree(sound)
    return folder


def codes_of(folder, split="train"):
    return {cut.id: cut_codes(cut) for cut in load_cuts(manifest_path(folder, split))}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[id_], expected[id_]) for id_ in found)


def test_both_formats_hold_the_same(made):
    for split in ("train", "validation", "test"):
        assert_same(codes_of(made / "shar", split), codes_of(made / "numpy", split))
    assert len(list((made / "shar" / "cuts_train").glob("*.tar"))) > 1
    assert not list((made / "shar").glob("cuts_*.jsonl.gz"))
    for name in ("numpy", "shar"):
        problems = validate(made / name)[1]
        assert not problems


@pytest.mark.parametrize("name", ["numpy", "shar"])
def test_a_moved_folder_trains_without_the_sound(made, name, tmp_path, monkeypatch):
    expected = codes_of(made / name)
    moved = tmp_path / "elsewhere" / "tokens of mine"
    moved.parent.mkdir()
    shutil.copytree(made / name, tmp_path / "copy")
    (tmp_path / "copy").rename(moved)
    hidden = made / f"{name}-hidden"
    (made / name).rename(hidden)  # nothing may be read where it was before
    try:
        monkeypatch.chdir("/")
        module = data_module("--manifest-dir", moved, "--max-duration", 4)
        assert_same(contents(module.train_dataloader(module.train_cuts(), 0)), expected)
        train(moved, tmp_path / "exp", "--num-epochs", 1, "--tensorboard", "false")
    finally:
        hidden.rename(made / name)
    assert read_checkpoint(tmp_path / "exp" / "epoch-1.pt")["batch_idx_train"] > 1
    paths = [cut.recording.sources[0].source for cut in load_cuts(manifest_path(moved, "train"))]
    assert all("sound" in path for path in paths), "what is gone is still named"


def test_a_run_over_shards_goes_on_as_the_unbroken_one(made, tmp_path):
    """Stopped within an epoch; a shard is read again, and no cut is left out or heard twice."""
    flags = ("--num-epochs", 2, "--max-duration", 4, "--tensorboard", "false")
    train(made / "shar", tmp_path / "whole", *flags)
    exp = tmp_path / "broken"
    train(made / "shar", exp, *flags, "--save-every-n", 1, "--keep-last-k", 2)
    step = min(int(path.stem.split("-")[1]) for path in exp.glob("checkpoint-*.pt"))
    (exp / "epoch-2.pt").unlink()
    log = train(made / "shar", exp, *flags, "--start-batch", step)
    assert f"checkpoint-{step}.pt, step {step}" in log
    assert same(weights(exp / "epoch-2.pt"), weights(tmp_path / "whole" / "epoch-2.pt"))


def test_tokens_that_exist_become_shards(made, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    shutil.copytree(made / "numpy", tmp_path / "in", dirs_exist_ok=True)
    (tmp_path / "in" / "recordings.jsonl").write_text('{"id": "a"}\n')
    flags = ["--manifest-dir", tmp_path / "in", "--output-dir", tmp_path / "out"]
    to_shar.main([str(flag) for flag in (*flags, "--shard-size", 3)])
    shutil.rmtree(tmp_path / "in")
    for split in ("train", "validation", "test"):
        assert_same(codes_of(tmp_path / "out", split), codes_of(made / "numpy", split))
    assert (tmp_path / "out" / "recordings.jsonl").read_text() == '{"id": "a"}\n'
    assert f"{len(codes_of(made / 'numpy'))} cuts in" in capsys.readouterr().out


def test_the_tokenizer_and_the_copy_make_the_same_shards(made, tmp_path):
    to_shar.to_shar(made / "numpy", tmp_path, 3)
    for path in sorted((made / "shar" / "cuts_train").iterdir()):
        assert path.read_bytes() == (tmp_path / "cuts_train" / path.name).read_bytes()


def test_a_folder_changes_its_format(made, codec_dir, tmp_path):
    sound = write_recordings(tmp_path / "sound", 5)
    output = tmp_path / "out"
    for flags in (("--format", "shar"), (), ("--format", "shar")):
        args = arguments(codec_dir, output, "--src-dir", sound, *SPLITS, *flags)
        assert tokenizer.run(args) == 0
        assert manifest_path(output, "train").is_dir() == bool(flags)
        assert data_module("--manifest-dir", output).train_cuts()


def test_a_wrong_size_shows_at_once(codec_dir, tmp_path, capsys):
    for wrong in ("0", "-3", "many"):
        with pytest.raises(SystemExit):
            arguments(codec_dir, tmp_path, "--src-dir", tmp_path, f"--shard-size={wrong}")
        assert f"expected a whole number from 1, got {wrong}" in capsys.readouterr().err


def test_splits_that_are_missing_are_told(tmp_path, caplog, capsys):
    write_manifest(tmp_path / "in", [3.0])
    assert to_shar.to_shar(tmp_path / "in", tmp_path / "out", 5) == {"train": 1}
    assert "no validation manifest" in caplog.text
    with pytest.raises(SystemExit, match=r"no cuts_train\.jsonl\.gz in"):
        to_shar.main(["--manifest-dir", str(tmp_path), "--output-dir", str(tmp_path / "x")])
    folders = [str(tmp_path / "in"), str(tmp_path / "out" / ".." / "in")]
    with pytest.raises(SystemExit, match="holds the manifests to copy: choose another"):
        to_shar.main(["--manifest-dir", folders[0], "--output-dir", folders[1]])


def test_lhotse_reads_what_the_tokenizer_wrote(made):
    theirs = CutSet.from_shar(in_dir=made / "shar" / "cuts_train")
    found = {cut.id: cut.load_audio_features() for cut in theirs}
    assert_same(found, codes_of(made / "numpy"))
