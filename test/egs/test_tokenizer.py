"""The tokenizer program, the check of its manifests, and the shell script around them."""

import argparse
import importlib.util
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tokenizer
import tokenizer_reading
import torch
from lhotse import CutSet, Recording
from tiny_codec import CODES, QUANTIZERS, RATE, noise, save_codec
from tiny_cuts import CODEC, write_manifest

from valle.data.codec import Codec
from valle.data.manifest import codec_of, cut_codes, load_cuts, reaches_end

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "egs" / "atepp"


def load_script(path: Path):
    spec = importlib.util.spec_from_file_location(f"script_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


validator = load_script(RECIPE / "local" / "validate_manifests.py")


@pytest.fixture(scope="module")
def codec_dir(tmp_path_factory):
    return save_codec(tmp_path_factory.mktemp("codec"))


@pytest.fixture
def recordings(tmp_path):
    """Six good recordings of several kinds and rates, in folders."""
    folder = tmp_path / "recordings"
    kinds = [("wav", RATE, 6.3), ("flac", 11025, 2.0), ("ogg", 16000, 3.21)]
    kinds += [("wav", 44100, 4.005), ("flac", RATE, 1.5), ("mp3", 16000, 2.5)]
    for i, (suffix, rate, seconds) in enumerate(kinds):
        path = folder / "some composer" / f"{'piece/' if i % 2 else ''}{i:05d}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        sound = noise(seconds, rate, seed=i)
        soundfile.write(path, np.stack([sound, sound], axis=1) if i == 3 else sound, rate)
    return folder


def arguments(codec_dir: Path, output: Path, *flags) -> argparse.Namespace:
    fixed = ["--codec", codec_dir, "--output-dir", output, "--window", 2, "--min-window", 0.5]
    return tokenizer.get_parser().parse_args([str(flag) for flag in [*fixed, *flags]])


def all_cuts(output: Path) -> dict[str, list]:
    return {path.name.split("_")[1].split(".")[0]: list(load_cuts(path))
            for path in sorted(output.glob("cuts_*.jsonl.gz"))}  # fmt: skip


def contents(output: Path) -> dict:
    """What a user gets, comparable between runs."""
    cuts = {
        split: [(c.id, c.start, c.duration, c.recording.id, cut_codes(c).tolist()) for c in cuts]
        for split, cuts in all_cuts(output).items()
    }
    tokens = {path.name: np.load(path).tolist() for path in (output / "tokens").iterdir()}
    return {"cuts": cuts, "tokens": tokens}


def test_recordings_become_cuts_of_the_codecs_tokens(recordings, codec_dir, tmp_path, capsys):
    output = tmp_path / "tokenized"
    assert tokenizer.run(arguments(codec_dir, output, "--src-dir", recordings)) == 0
    assert "recordings kept            6" in capsys.readouterr().out
    codec = Codec.from_pretrained(codec_dir)
    splits = all_cuts(output)
    assert set(splits) == {"train", "validation", "test"}
    every = [cut for cuts in splits.values() for cut in cuts]
    assert codec_of(every) == codec.info
    for path in sorted(p for p in recordings.rglob("*") if p.is_file()):
        own = [cut for cut in every if Path(cut.recording.sources[0].source) == path]
        codes, _ = codec.encode(path)
        info = soundfile.info(path)
        num_frames = int(info.frames / info.samplerate * codec.frame_rate + 0.5)
        joined = np.concatenate([cut_codes(cut) for cut in own])
        np.testing.assert_array_equal(joined, codes[0, :num_frames])
        assert sum(cut.duration for cut in own) == pytest.approx(info.duration, abs=0.0101)
        assert [reaches_end(cut, 0.02) for cut in own] == [False] * (len(own) - 1) + [True]
        assert all(0.5 <= cut.duration <= 2 + 1e-6 for cut in own)
        assert (own[0].recording.sampling_rate, own[0].recording.num_samples) == (
            info.samplerate,
            info.frames,
        )
    CutSet.from_cuts(every).describe()  # lhotse's own tools read them
    stored = np.load(output / "tokens" / "some_composer__00000.npy")
    assert (stored.dtype, stored.shape) == (np.int16, (315, QUANTIZERS))
    _, problems = validator.validate(output)
    assert problems == []


def test_a_second_run_encodes_nothing_and_a_changed_file_again(
    recordings, codec_dir, tmp_path, monkeypatch
):
    output = tmp_path / "tokenized"
    args = arguments(codec_dir, output, "--src-dir", recordings)
    tokenizer.run(args)
    before = contents(output)
    encoded = count_encodes(monkeypatch)
    tokenizer.run(args)
    assert contents(output) == before
    assert encoded == []
    soundfile.write(recordings / "some composer" / "00000.wav", noise(5.0, seed=9), RATE)
    (output / "tokens" / "some_composer__00004.npy").unlink()
    soundfile.write(recordings / "new.wav", noise(1.0), RATE)
    tokenizer.run(args)
    assert sorted(encoded) == [RATE * 1.0, RATE * 1.5, RATE * 5.0]
    assert contents(output)["tokens"].keys() == before["tokens"].keys() | {"new.npy"}


def count_encodes(monkeypatch) -> list[int]:
    encode, lengths = Codec.encode, []

    def counted(self, audio, sampling_rate=None):
        lengths.append(audio.shape[-1])
        return encode(self, audio, sampling_rate)

    monkeypatch.setattr(Codec, "encode", counted)
    return lengths


def test_useless_files_are_counted_and_skipped(recordings, codec_dir, tmp_path, capsys):
    (recordings / "text.flac").write_text("la la la")
    soundfile.write(recordings / "short.wav", noise(0.5), RATE)
    soundfile.write(recordings / "silent.wav", np.zeros(RATE * 3), RATE)
    soundfile.write(recordings / "empty.wav", np.zeros(0), RATE)
    args = arguments(codec_dir, tmp_path / "out", "--src-dir", recordings)
    for _ in range(2):  # a second run reports the same
        assert tokenizer.run(args) == 0
        printed = " ".join(capsys.readouterr().out.split())
        assert "recordings kept 6" in printed
        assert "skipped 4 damaged 1 empty 1 silent 1 too short 1" in printed
    loud = arguments(codec_dir, tmp_path / "all", "--src-dir", recordings, "--min-duration", 0.1)
    tokenizer.run(loud)
    assert "recordings kept 7" in " ".join(capsys.readouterr().out.split())


def test_nothing_kept_is_a_failure(codec_dir, tmp_path):
    folder = tmp_path / "recordings"
    folder.mkdir()
    (folder / "text.wav").write_text("la la la")
    output = tmp_path / "out"
    assert tokenizer.run(arguments(codec_dir, output, "--src-dir", folder)) == 1
    assert not list(output.glob("cuts_*"))


def test_one_folder_holds_the_work_of_one_codec_and_setting(recordings, codec_dir, tmp_path):
    output = tmp_path / "out"
    tokenizer.run(arguments(codec_dir, output, "--src-dir", recordings))
    with pytest.raises(ValueError, match=r"window_sec 2.0 then, 3.0 now"):
        tokenizer.run(arguments(codec_dir, output, "--src-dir", recordings, "--window", 3))
    with pytest.raises(ValueError, match=r"the tokens in .*num_quantizers 3 against 2"):
        tokenizer.run(arguments(codec_dir, output, "--src-dir", recordings, "--num-quantizers", 2))
    moved = tmp_path / "moved_codec"
    shutil.copytree(codec_dir, moved)
    assert tokenizer.run(arguments(moved, output, "--src-dir", recordings)) == 0


def test_impossible_windows_are_refused_before_the_work(recordings, codec_dir, tmp_path):
    args = arguments(codec_dir, tmp_path / "out", "--src-dir", recordings, "--min-window", 2.5)
    with pytest.raises(ValueError, match="windows of 100 frames with a minimum of 125"):
        tokenizer.run(args)
    assert not (tmp_path / "out").exists()


def test_foreign_manifests_are_not_overwritten(recordings, codec_dir, tmp_path):
    write_manifest(tmp_path / "out", [3.0])
    with pytest.raises(ValueError, match="did not make; choose another --output-dir"):
        tokenizer.run(arguments(codec_dir, tmp_path / "out", "--src-dir", recordings))


def test_splits_from_a_table(recordings, codec_dir, tmp_path, capsys):
    table = tmp_path / "ATEPP.csv"
    rows = ["midi_path,split", *(f"x/{i:05d}.mid,train" for i in range(3)), "00003.mid,test"]
    table.write_text("\n".join(rows))
    output = tmp_path / "out"
    flags = ("--src-dir", recordings, "--split-csv", table)
    assert tokenizer.run(arguments(codec_dir, output, *flags)) == 0
    splits = {s: {c.recording.id[-1] for c in cuts} for s, cuts in all_cuts(output).items()}
    assert splits == {"train": set("012"), "test": {"3"}}
    assert "not in the table of splits 2" in " ".join(capsys.readouterr().out.split())
    # drawn again without the table: nothing but the manifests changes
    assert tokenizer.run(arguments(codec_dir, output, "--src-dir", recordings)) == 0
    assert set(all_cuts(output)) == {"train", "validation", "test"}


def test_a_manifest_of_cuts_keeps_its_cuts_and_what_they_carry(recordings, codec_dir, tmp_path):
    path = recordings / "some composer" / "00000.wav"
    whole = Recording.from_file(path, recording_id="a/b").to_cut()
    part = whole.truncate(offset=1.234, duration=3.0, preserve_id=True).with_id("part")
    part.custom = {"style": "waltz"}
    late = whole.truncate(offset=6.0, preserve_id=True).with_id("late")
    late.duration = 9.0  # the manifest promises more than the file holds
    CutSet.from_cuts([part, late]).to_file(tmp_path / "cuts.jsonl.gz")
    output = tmp_path / "out"
    assert (
        tokenizer.run(arguments(codec_dir, output, "--manifest", tmp_path / "cuts.jsonl.gz")) == 0
    )
    cuts = {cut.id: cut for cut in load_cuts(output / "cuts_train.jsonl.gz")}
    assert set(cuts) == {"part-0000", "part-0001", "late-0000"}
    assert cuts["part-0001"].style == "waltz"
    assert cuts["part-0001"].end == pytest.approx(4.234)
    assert cuts["late-0000"].end == pytest.approx(6.3)
    codes = Codec.from_pretrained(codec_dir).encode(path)[0][0]
    np.testing.assert_array_equal(cut_codes(cuts["part-0001"]), codes[162:212])


def test_a_full_disk_leaves_nothing_half_and_says_what_to_do(
    recordings, codec_dir, tmp_path, monkeypatch
):
    output = tmp_path / "out"
    flags = ["tokenizer.py", "--codec", codec_dir, "--output-dir", output, "--src-dir", recordings]
    monkeypatch.setattr(sys, "argv", [str(flag) for flag in flags])
    save, calls = np.save, []

    def full(file, array, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            file.write(b"half")
            raise OSError(28, "No space left on device")
        save(file, array, **kwargs)

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(SystemExit, match=r"No space left on device.*run the same command again"):
        tokenizer.main()
    assert 2 <= len(list((output / "tokens").iterdir())) <= 5
    assert not list(output.rglob(".part-*"))
    with pytest.raises(SystemExit) as end:
        tokenizer.main()
    assert end.value.code == 0
    assert len(list((output / "tokens").iterdir())) == 6


def test_mistakes_end_in_one_line(codec_dir, tmp_path, monkeypatch):
    for flags, message in (
        (["--src-dir", tmp_path / "none"], "no folder of recordings"),
        (["--manifest", tmp_path / "none"], "no manifest"),
    ):
        monkeypatch.setattr(sys, "argv", ["tokenizer.py", *map(str, flags)])
        with pytest.raises(SystemExit, match=f"error: .*{message}"):
            tokenizer.main()


@pytest.mark.parametrize("in_order", [True, False])
def test_running_ahead_bounds_what_is_held(in_order):
    alive: list[int] = []

    def load(item: int) -> int:
        alive.append(item)
        time.sleep(0.01 if item % 3 else 0.001)
        return item * 10

    results = []
    for item, result in tokenizer_reading.run_ahead(load, range(12), 3, in_order):
        results.append((item, result))
        assert len(alive) - len(results) <= 3
    assert (results == [(i, i * 10) for i in range(12)]) == in_order
    assert sorted(results) == [(i, i * 10) for i in range(12)]


def test_what_a_thread_raises_is_raised_and_no_more_is_begun():
    begun: list[int] = []

    def load(item: int) -> None:
        begun.append(item)
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        list(tokenizer_reading.run_ahead(load, range(100), 3, in_order=False))
    assert len(begun) <= 4


def test_the_check_finds_what_is_wrong(tmp_path, monkeypatch, capsys):
    write_manifest(tmp_path, [4.0, 6.0, 5.0])
    write_manifest(tmp_path, [4.0], split="validation")
    leak = list(load_cuts(tmp_path / "cuts_train.jsonl.gz"))[1].with_id("leak")
    CutSet.from_cuts([leak]).to_file(tmp_path / "cuts_test.jsonl.gz")
    tokens = tmp_path / "tokens"
    np.save(tokens / "train-0.npy", np.full((200, 4), 64, dtype=np.int16))
    np.save(tokens / "train-2.npy", np.zeros((249, 4), dtype=np.int16))
    reports, problems = validator.validate(tmp_path)
    assert reports["train"].num_cuts == 3
    assert len(problems) == 3
    assert "train-0-0000 has codes from 64 to 64, expected 0 to 63" in problems[0]
    assert "train-2-0000 lasts 5.0 s, 250 frames, but has 249" in problems[1]
    assert "recording train-1 is in train and in test" in problems[2]
    monkeypatch.setattr(sys, "argv", ["validate", "--manifest-dir", str(tmp_path)])
    with pytest.raises(SystemExit, match="3 problems"):
        validator.main()
    assert "PROBLEM recording train-1" in capsys.readouterr().out


def test_the_check_counts_codes(tmp_path, monkeypatch, capsys):
    for split in ("train", "validation", "test"):
        write_manifest(tmp_path, [40.0, 20.0], split=split)
    reports, problems = validator.validate(tmp_path)
    assert problems == []
    counts = reports["train"].counts
    assert counts.sum(axis=1).tolist() == [3000] * 4
    assert validator.perplexity(np.array([5, 5, 0, 5, 5])) == pytest.approx(4)
    assert all(50 < validator.perplexity(row) <= 64 for row in counts)
    monkeypatch.setattr(sys, "argv", ["validate", "--manifest-dir", str(tmp_path)])
    validator.main()
    assert "no problems found" in capsys.readouterr().out


def test_the_check_tells_codecs_apart(tmp_path):
    write_manifest(tmp_path, [4.0])
    write_manifest(tmp_path, [4.0], "test", replace(CODEC, fingerprint="ff"))
    _, problems = validator.validate(tmp_path)
    assert len(problems) == 1
    assert "test: codec 'tiny' was expected" in problems[0]
    assert "fingerprint" in problems[0]


def shell(script: Path, *flags: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", str(script), *flags], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def script(tmp_path) -> Path:
    path = tmp_path / "recipe.sh"
    path.write_text(
        "set -eou pipefail\nstage=0\nsrc_dir=\nshuffle=true\n"
        f'. "{RECIPE}/shared/parse_options.sh"\n'
        'echo "$stage|$src_dir|$shuffle|$#|${1:-}"\n'
    )
    return path


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], "0||true|0|"),
        (["--stage", "2", "--src-dir", "my folder"], "2|my folder|true|0|"),
        (["--src-dir=a=b", "--shuffle", "false", "rest"], "0|a=b|false|1|rest"),
        (["--stage", "-1", "--", "--other"], "-1||true|1|--other"),
    ],
)
def test_options_become_variables(script, flags, expected):
    assert shell(script, *flags).stdout.strip() == expected


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--srcdir", "x"], "unknown option --srcdir"),
        (["--PATH", "x"], "unknown option --PATH"),
        (["--stage"], "--stage needs a value"),
        (["--shuffle", "maybe"], "--shuffle takes true or false, got 'maybe'"),
        (["-s", "1"], "unknown option -s"),
    ],
)
def test_options_that_are_refused(script, flags, message):
    result = shell(script, *flags)
    assert result.returncode == 2
    assert message in result.stderr


def test_exported_variables_are_no_options(script, monkeypatch):
    monkeypatch.setenv("http_proxy", "x")
    assert "unknown option --http-proxy" in shell(script, "--http-proxy", "y").stderr


def test_help_lists_the_options(script):
    result = shell(script, "--help")
    assert result.returncode == 0
    assert "--src-dir ''" in result.stdout
    assert "--shuffle 'true'" in result.stdout


def test_prepare_says_where_recordings_are_expected(tmp_path):
    result = shell(RECIPE / "prepare.sh", "--dl-dir", str(tmp_path), "--stop-stage", "0")
    assert result.returncode == 1
    assert f"There is no folder {tmp_path}/recordings" in result.stdout


def test_prepare_runs_whole_and_does_nothing_twice(recordings, codec_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHON", sys.executable)
    flags = ["--src-dir", str(recordings), "--output-dir", str(tmp_path / "out")]
    flags += ["--codec", str(codec_dir), "--window", "2", "--min-window", "0.5"]
    first = shell(RECIPE / "prepare.sh", *flags)
    assert first.returncode == 0, first.stderr
    assert "no problems found" in first.stdout
    assert (tmp_path / "out" / ".validate.done").exists()
    assert "done before" in shell(RECIPE / "prepare.sh", *flags, "--stop-stage", "1").stdout
    other = shell(RECIPE / "prepare.sh", *flags, "--stop-stage", "1", "--window", "3")
    assert other.returncode != 0
    assert "window_sec 2.0 then, 3.0 now" in other.stderr


def test_tokens_do_not_depend_on_the_number_of_threads(recordings, codec_dir, tmp_path):
    outputs = []
    for workers in (1, 4):
        output = tmp_path / str(workers)
        flags = ("--src-dir", recordings, "--num-workers", workers)
        tokenizer.run(arguments(codec_dir, output, *flags))
        outputs.append(contents(output)["tokens"])
    assert outputs[0] == outputs[1]
    used = torch.tensor([row for rows in outputs[0].values() for row in rows])
    assert used.unique().numel() == CODES
