"""The tokenizer killed at any moment, alone and as several processes that share the work."""

import os
import random
import re
import resource
import subprocess
import sys
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
import tokenizer
from tokenizer_runs import (
    WINDOWS,
    KilledAtReplace,
    KilledInLine,
    arguments,
    contents,
    start_tokenizer,
    write_recordings,
)
from trainer_runs import wait_for

from valle.data.worklog import WorkLog, read_log

ROOT = Path(__file__).parents[2]
COUNT = 30


@pytest.fixture(scope="module")
def recordings(tmp_path_factory) -> Path:
    return write_recordings(tmp_path_factory.mktemp("killed") / "recordings", COUNT)


@pytest.fixture(scope="module")
def whole(recordings, codec_dir, tmp_path_factory) -> dict[str, str]:
    """What an unbroken run of one process gives."""
    output = tmp_path_factory.mktemp("whole")
    assert tokenizer.run(arguments(codec_dir, output, "--src-dir", recordings)) == 0
    return contents(output)


def flags_of(recordings: Path, num_shards: int, shard: int) -> tuple[object, ...]:
    sharing = ("--num-shards", num_shards, "--shard", shard) if num_shards > 1 else ()
    return ("--src-dir", recordings, "--num-workers", 2, *sharing)


def kill_at_work(run: ForkServerProcess, tokens: Path, draw: random.Random) -> None:
    """Kill a process a moment after there are a few files more."""
    enough = count_files(tokens) + draw.randint(1, 4)
    wait_for(lambda: not run.is_alive() or count_files(tokens) >= enough)
    time.sleep(0.01 * draw.random())
    run.kill()


def count_files(folder: Path) -> int:
    return len(list(folder.iterdir())) if folder.exists() else 0


def draw_end(draw: random.Random, attempt: int):
    """How a process is to end itself; None for one that is killed from outside."""
    nth = draw.randint(1, 4)
    kinds = [None, KilledAtReplace(nth, False), KilledInLine(nth), KilledAtReplace(nth, True)]
    return kinds[attempt % len(kinds)]


@pytest.mark.parametrize("num_shards", [1, 2])
def test_killed_at_random_and_run_again_it_gives_the_bytes_of_an_unbroken_run(
    recordings, whole, codec_dir, tmp_path, num_shards
):
    draw, kills = random.Random(num_shards), 0
    commands = [
        arguments(codec_dir, tmp_path, *flags_of(recordings, num_shards, shard))
        for shard in range(num_shards)
    ]
    for attempt in range(8):
        ends = [draw_end(draw, attempt + shard) for shard in range(num_shards)]
        runs = [start_tokenizer(*pair) for pair in zip(commands, ends, strict=True)]
        for run, end in zip(runs, ends, strict=True):
            if end is None:
                kill_at_work(run, tmp_path / "tokens", draw)
        for run in runs:
            run.join(60)
            kills += run.exitcode == -9
    for _ in range(2):  # the second time all is there, and the same is written again
        runs = [start_tokenizer(command) for command in commands]
        for run in runs:
            run.join(60)
            assert run.exitcode == 0
        assert contents(tmp_path) == whole
    assert kills >= 6, "it ended too early too often"


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("nth", range(1, 8))
def test_killed_while_it_writes_the_manifests(recordings, whole, codec_dir, tmp_path, nth, after):
    # a manifest and a summary for each split, and the list of recordings
    args = arguments(codec_dir, tmp_path, *flags_of(recordings, 1, 0))
    if nth == 1 and not after:
        assert len([name for name in whole if name.startswith(("cuts", "rec"))]) == 7
    run = start_tokenizer(args, KilledAtReplace(1 + COUNT + nth, after))
    run.join(60)
    assert run.exitcode == -9
    assert tokenizer.run(args) == 0
    assert contents(tmp_path) == whole


def test_killed_between_manifests_of_new_splits_any_shard_mends_it(recordings, codec_dir, tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    for seed, output in ((42, old), (7, new)):
        flags = ("--src-dir", recordings, "--seed", seed)
        assert tokenizer.run(arguments(codec_dir, output, *flags)) == 0
    assert contents(old) != contents(new)
    first, second = (
        arguments(codec_dir, old, *flags_of(recordings, 2, shard), "--seed", 7)
        for shard in range(2)
    )
    run = start_tokenizer(first, KilledAtReplace(3, True))
    run.join(60)
    assert run.exitcode == -9
    assert tokenizer.run(second) == 0
    assert contents(old) == contents(new)


# A full disk


def limit_files() -> None:
    """No file grows beyond this: its log has room for a few lines only."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))


def test_a_full_disk_ends_it_and_loses_nothing(recordings, whole, codec_dir, tmp_path):
    flags = [*WINDOWS, *flags_of(recordings, 1, 0), "--codec", codec_dir, "--output-dir", tmp_path]
    run = subprocess.run(
        [sys.executable, tokenizer.__file__, *map(str, flags)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        preexec_fn=limit_files,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert run.returncode == 1
    assert re.search(r"File too large.*What was finished is kept.*run the same", run.stderr)
    done = {line["id"] for path in tmp_path.glob("work-*") for line in read_log(path)}
    assert 2 < len(done) < COUNT
    assert not list(tmp_path.rglob(".part-*"))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "tokens").iterdir()}
    assert tokenizer.run(arguments(codec_dir, tmp_path, *flags_of(recordings, 1, 0))) == 0
    assert contents(tmp_path) == whole
    again = {path.stem for path, then in before.items() if path.stat().st_mtime_ns != then}
    assert not again & done


def test_two_processes_do_not_do_the_same_work(recordings, codec_dir, tmp_path):
    args = arguments(codec_dir, tmp_path, *flags_of(recordings, 1, 0))
    refused = pytest.raises(ValueError, match=r"another process writes .*work-0-of-1\.jsonl")
    with WorkLog(tmp_path / "work-0-of-1.jsonl"), refused:
        tokenizer.run(args)
    assert tokenizer.run(args) == 0
