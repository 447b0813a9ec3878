"""Runs of the tokenizer on sound that is made here: in this process, or in others to be killed."""

import argparse
import hashlib
import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import soundfile
import tokenizer
import torch
from tiny_codec import RATE, noise

from valle.data.worklog import WorkLog

WINDOWS = ("--window", 2, "--min-window", 0.5)


def arguments(codec_dir: Path, output: Path, *flags: object) -> argparse.Namespace:
    fixed = ("--codec", codec_dir, "--output-dir", output, *WINDOWS)
    return tokenizer.get_parser().parse_args([str(flag) for flag in (*fixed, *flags)])


def write_recordings(folder: Path, count: int) -> Path:
    """So many wav files of 1 to 3 s, a text and a silent file among them."""
    folder.mkdir(parents=True)
    for i in range(count):
        soundfile.write(folder / f"{i:03d}.wav", noise(1 + i % 3, seed=i), RATE)
    (folder / "text.wav").write_text("la la la")
    soundfile.write(folder / "silent.wav", noise(1.5) * 0, RATE)
    return folder


def contents(folder: Path) -> dict[str, str]:
    """A digest of each file that a user gets; logs tell how it came about, and may differ."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith("work")
    }


def start_tokenizer(
    args: argparse.Namespace, before: Callable[[], Any] | None = None
) -> ForkServerProcess:
    """Start it in a process of its own, which has all modules already and may be killed.

    `before` is called there first.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tokenizer", "transformers.models.encodec.modeling_encodec"])
    process = context.Process(target=_run, args=(args, before))
    process.start()
    return process


def _run(args: argparse.Namespace, before: Callable[[], Any] | None) -> None:
    torch.set_num_threads(1)
    if before is not None:
        before()
    raise SystemExit(tokenizer.run(args))


class KilledAtReplace:
    """This process is killed when it gives a file its final name for the nth time: before that, or
    after it. Every file of the output comes by its name in this way."""

    def __init__(self, nth: int, after: bool) -> None:
        self.nth, self.after, self.calls = nth, after, 0

    def __call__(self) -> None:
        self.replace = os.replace
        os.replace = self._replace

    def _replace(self, *names: Any) -> None:
        self.calls += 1
        if self.calls == self.nth and self.after:
            self.replace(*names)
        if self.calls == self.nth:
            os.kill(os.getpid(), signal.SIGKILL)
        self.replace(*names)


class KilledInLine:
    """This process is killed when it has written a half of the nth line of its log."""

    def __init__(self, nth: int) -> None:
        self.nth, self.calls = nth, 0

    def __call__(self) -> None:
        self.add = WorkLog.add
        WorkLog.add = lambda log, entry: self._add(log, entry)

    def _add(self, log: WorkLog, entry: dict[str, Any]) -> None:
        self.calls += 1
        if self.calls == self.nth:
            os.write(log._file.fileno(), b'{"id": "half of')
            os.kill(os.getpid(), signal.SIGKILL)
        self.add(log, entry)
