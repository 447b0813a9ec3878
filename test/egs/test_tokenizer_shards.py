"""Several processes that share the work of the tokenizer."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import tokenizer
import torch
from lhotse import Recording, RecordingSet
from tiny_codec import RATE, noise
from tokenizer_runs import WINDOWS, arguments, contents, write_recordings
from tokenizer_work import Shard, deal, find_shard, own_device

from valle.data.codec import Codec
from valle.data.worklog import read_log

ROOT = Path(__file__).parents[2]
COUNT = 12


@pytest.fixture(scope="module")
def recordings(tmp_path_factory) -> Path:
    return write_recordings(tmp_path_factory.mktemp("shards") / "recordings", COUNT)


@pytest.fixture(scope="module")
def whole(recordings, codec_dir, tmp_path_factory) -> dict[str, str]:
    """What one process gives."""
    output = tmp_path_factory.mktemp("whole")
    assert tokenizer.run(arguments(codec_dir, output, "--src-dir", recordings)) == 0
    return contents(output)


@pytest.fixture
def encoded(monkeypatch) -> list[int]:
    """The samples of each recording that was encoded."""
    encode, lengths = Codec.encode, []

    def counted(self, audio, sampling_rate=None):
        rows = audio if isinstance(audio, list) else [audio]
        lengths.extend(row.shape[-1] for row in rows)
        return encode(self, audio, sampling_rate)

    monkeypatch.setattr(Codec, "encode", counted)
    return lengths


# Who does what


def test_shards_take_equally_long_and_nothing_is_lost_or_done_twice():
    draw = random.Random(0)
    sizes = {f"r{i}": int(draw.lognormvariate(15, 1)) for i in range(500)}
    sizes |= {"gone": -1, "empty": 0}
    for count in (1, 2, 7, 64):
        shards = deal(sizes, count)
        assert shards.keys() == sizes.keys()
        loads = [0] * count
        for id_, shard in shards.items():
            loads[shard] += max(sizes[id_], 0)
        assert max(loads) - min(loads) <= max(sizes.values())
    shuffled = list(sizes.items())
    draw.shuffle(shuffled)
    assert deal(dict(shuffled), 7) == deal(sizes, 7)


def test_one_long_recording_weighs_as_much_as_many_short_ones():
    sizes = {"long": 100_000} | {f"r{i}": 1000 for i in range(100)}
    shards = deal(sizes, 2)
    assert list(shards.values()).count(shards["long"]) == 1


def test_equal_sizes_are_dealt_evenly():
    shards = deal({f"r{i}": 0 for i in range(10)}, 4)
    assert sorted(list(shards.values()).count(shard) for shard in range(4)) == [2, 2, 3, 3]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--shard", 0], "--num-shards is None and --shard is 0: give both"),
        (["--num-shards", 2], "--num-shards is 2 and --shard is None: give both"),
        (["--num-shards", 2, "--shard", 2], "--shard is 2, expected 0 to 1"),
        (["--num-shards", 2, "--shard", -1], "--shard is -1, expected 0 to 1"),
    ],
)
def test_shards_that_cannot_be(codec_dir, tmp_path, flags, message):
    with pytest.raises(ValueError, match=message):
        find_shard(arguments(codec_dir, tmp_path, "--src-dir", tmp_path, *flags))


def test_torchrun_numbers_its_processes(codec_dir, tmp_path, monkeypatch):
    args = arguments(codec_dir, tmp_path, "--src-dir", tmp_path)
    assert find_shard(args) == Shard(0, 1)
    for name, value in (("RANK", "5"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert find_shard(args) == Shard(5, 8)
    assert own_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert own_device("auto") == own_device("cuda") == torch.device("cuda:1")
    assert own_device("cuda:3") == torch.device("cuda:3")
    assert own_device("cpu") == torch.device("cpu")
    flags = ("--num-shards", 8, "--shard", 5)
    with pytest.raises(ValueError, match="torchrun numbers its processes itself"):
        find_shard(arguments(codec_dir, tmp_path, "--src-dir", tmp_path, *flags))


# What comes of it


@pytest.mark.parametrize("count", [2, 3, 20])
def test_shards_one_after_another_give_the_bytes_of_one_process(
    recordings, whole, codec_dir, tmp_path, count, caplog
):
    caplog.set_level("INFO")
    for shard in reversed(range(count)):
        flags = ("--src-dir", recordings, "--num-shards", count, "--shard", shard)
        args = arguments(codec_dir, tmp_path, *flags)
        assert not (tmp_path / "recordings.jsonl").exists()
        caplog.clear()
        assert tokenizer.run(args) == 0
        if shard:
            assert "not finished yet: shard 0 (" in caplog.text
    assert contents(tmp_path) == whole


def test_torchrun_gives_the_bytes_of_one_process(recordings, whole, codec_dir, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", tokenizer.__file__, "--src-dir", recordings]
    command += ["--codec", codec_dir, "--output-dir", tmp_path, *map(str, WINDOWS)]
    subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
                          "RES_OPTIONS": "timeout:1 attempts:1"},
        check=True,
        timeout=120,
    )  # fmt: skip
    assert contents(tmp_path) == whole
    logs = sorted(path.name for path in tmp_path.glob("work*"))
    assert logs == ["work-0-of-2.jsonl", "work-1-of-2.jsonl"]


def test_groups_give_the_bytes_of_one_by_one(recordings, whole, codec_dir, tmp_path, encoded):
    flags = ("--src-dir", recordings, "--group-sec", 5, "--num-workers", 3)
    assert tokenizer.run(arguments(codec_dir, tmp_path, *flags)) == 0
    assert len(encoded) == COUNT
    assert contents(tmp_path) == whole


def test_the_number_of_shards_may_change(recordings, whole, codec_dir, tmp_path, encoded):
    flags = ("--src-dir", recordings, "--num-shards", 3, "--shard", 1)
    tokenizer.run(arguments(codec_dir, tmp_path, *flags))
    assert 2 <= len(encoded) <= 6
    flags = ("--src-dir", recordings, "--num-shards", 2, "--shard", 0)
    tokenizer.run(arguments(codec_dir, tmp_path, *flags))
    assert len(encoded) < COUNT
    assert tokenizer.run(arguments(codec_dir, tmp_path, "--src-dir", recordings)) == 0
    assert len(encoded) == COUNT
    assert contents(tmp_path) == whole


def test_when_all_is_done_the_first_shard_alone_writes_again(
    recordings, codec_dir, tmp_path, encoded, caplog
):
    """It takes other splits and limits; the others have nothing to do."""
    caplog.set_level("INFO")
    args = [
        arguments(codec_dir, tmp_path, "--src-dir", recordings, "--num-shards", 2, "--shard", i)
        for i in range(2)
    ]
    for arg in args:
        assert tokenizer.run(arg) == 0
    before = contents(tmp_path)
    for arg in args:
        arg.seed = 7
    assert tokenizer.run(args[1]) == 0
    assert "the manifests are written" in caplog.text
    assert contents(tmp_path) == before
    assert tokenizer.run(args[0]) == 0
    assert contents(tmp_path).keys() == before.keys()
    assert contents(tmp_path)["recordings.jsonl"] != before["recordings.jsonl"]
    (tmp_path / "recordings.jsonl").unlink()  # as a kill in the midst of the manifests leaves it
    args[1].seed = 42
    assert tokenizer.run(args[1]) == 0
    assert contents(tmp_path) == before
    assert len(encoded) == COUNT


def test_a_changed_file_is_done_again_by_its_shard(recordings, codec_dir, tmp_path, encoded):
    folder, output = tmp_path / "in", tmp_path / "out"
    write_recordings(folder, 4)
    args = [
        arguments(codec_dir, output, "--src-dir", folder, "--num-shards", 2, "--shard", i)
        for i in range(2)
    ]
    for arg in args:
        tokenizer.run(arg)
    assert len(encoded) == 4
    soundfile.write(folder / "001.wav", noise(2.5, seed=9), RATE)
    for arg in args:
        tokenizer.run(arg)
    assert encoded[4:] == [2.5 * RATE]
    fresh = tmp_path / "fresh"
    tokenizer.run(arguments(codec_dir, fresh, "--src-dir", folder))
    assert contents(output) == contents(fresh)


def test_a_skip_by_one_run_does_not_hide_the_tokens_of_another(recordings, codec_dir, tmp_path):
    """The same file could not be read by shard 1 of 2, and could be by a single process."""
    tokenizer.run(arguments(codec_dir, tmp_path, "--src-dir", recordings))
    before = contents(tmp_path)
    entry = next(e for e in read_log(tmp_path / "work-0-of-1.jsonl") if e["id"] == "003")
    skipped = {key: entry[key] for key in ("id", "key", "bytes")} | {"skipped": "unreadable"}
    for name in ("work-1-of-2.jsonl", "work-0-of-0.jsonl"):
        (tmp_path / name).write_text(str(skipped).replace("'", '"') + "\n")
    assert tokenizer.run(arguments(codec_dir, tmp_path, "--src-dir", recordings)) == 0
    assert contents(tmp_path) == before


def test_tokens_outlive_their_sound(codec_dir, tmp_path, encoded):
    folder, output = write_recordings(tmp_path / "in", 3), tmp_path / "out"
    items = [Recording.from_file(folder / f"{i:03d}.wav") for i in range(3)]
    RecordingSet.from_recordings(items).to_file(tmp_path / "recordings.jsonl")
    args = arguments(codec_dir, output, "--manifest", tmp_path / "recordings.jsonl")
    assert tokenizer.run(args) == 0
    before = contents(output)
    for path in folder.iterdir():
        path.unlink()
    assert tokenizer.run(args) == 0
    assert contents(output) == before


def test_a_log_without_levels_counts_as_not_done(recordings, whole, codec_dir, tmp_path, encoded):
    """As versions before this one wrote it, under the name of that time."""
    tokenizer.run(arguments(codec_dir, tmp_path, "--src-dir", recordings))
    lines = (tmp_path / "work-0-of-1.jsonl").read_text().splitlines()
    (tmp_path / "work-0-of-1.jsonl").unlink()
    older = [line.replace("peak_db", "something") for line in lines[:5]] + lines[5:8]
    (tmp_path / "work.jsonl").write_text("\n".join(older) + "\n")
    kept = sum("peak_db" in line for line in older)
    assert 0 < kept < 8
    encoded.clear()
    assert tokenizer.run(arguments(codec_dir, tmp_path, "--src-dir", recordings)) == 0
    assert len(encoded) == COUNT - kept
    assert contents(tmp_path) == whole
