"""Runs of the trainer as its users start it, on tiny token cuts: in this process or in others."""

import contextlib
import io
import multiprocessing
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch
import trainer

from valle.utils.checkpoint import read_checkpoint

ROOT = Path(__file__).parents[1]
TRAINER = ROOT / "egs/atepp/bin/trainer.py"
TINY = (
    "--decoder-dim 16 --nhead 2 --num-decoder-layers 1 --max-duration 6 --num-workers 0 "
    "--warmup-steps 2 --log-interval 1 --valid-interval 1000 --measured-cuts 0"
)


def arguments(token_dir: Path, exp_dir: Path, *flags: object) -> list[str]:
    """The command line of a tiny run; later flags win."""
    folders = ["--manifest-dir", token_dir, "--exp-dir", exp_dir]
    return [str(part) for part in (*folders, *TINY.split(), *flags)]


def train(token_dir: Path, exp_dir: Path, *flags: object, fails: bool = False) -> str:
    """Run the trainer here; return what it printed."""
    return run_here(trainer.main, arguments(token_dir, exp_dir, *flags), fails)


def run_here(main: Callable[[list[str]], Any], args: list[str], fails: bool = False) -> str:
    """Call a script's `main`, which is to fail or not; return what it printed."""
    printed, status = io.StringIO(), 0
    with contextlib.redirect_stderr(printed):
        try:
            main(args)
        except SystemExit as stop:
            status = stop.code
    assert (status != 0) == fails, printed.getvalue()
    return printed.getvalue()


def train_on_ranks(
    token_dir: Path,
    exp_dir: Path,
    world_size: int,
    *flags: object,
    script: tuple[object, ...] = (TRAINER,),
    fails: bool = False,
) -> str:
    """Run it, or another script that ends in it, under torchrun; return what it printed."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launcher += ["--nproc-per-node", str(world_size), *map(str, script)]
    done = subprocess.run(
        launcher + arguments(token_dir, exp_dir, *flags),
        cwd=ROOT,
        # a name server that is slow to answer would hold up the ranks' meeting
        env=os.environ | {"OMP_NUM_THREADS": "1", "RES_OPTIONS": "timeout:1 attempts:1"},
        timeout=120,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert (done.returncode != 0) == fails, done.stdout
    return done.stdout


def start_trainer(
    token_dir: Path, exp_dir: Path, *flags: object, before: Callable[[], Any] | None = None
) -> ForkServerProcess:
    """Start it in a process of its own, which has all modules already and may be killed.

    `before` is called there first; a function of a module.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["trainer"])
    command = arguments(token_dir, exp_dir, *flags)
    process = context.Process(target=_main, args=(command, before))
    process.start()
    return process


def _main(command: list[str], before: Callable[[], Any] | None) -> None:
    torch.set_num_threads(1)
    # for the loader's processes: children of a fork server would else want one of their own
    multiprocessing.set_start_method("fork", force=True)
    if before is not None:
        before()
    trainer.main(command)


def log_of(exp_dir: Path) -> str:
    """All that was logged into a folder, run after run."""
    return "".join(path.read_text() for path in sorted((exp_dir / "log").glob("log-train*")))


def wait_for(condition: Callable[[], Any], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that in time"
        time.sleep(0.01)


def losses(log: str) -> list[str]:
    """What each step logged: epoch, batch, metrics, rate."""
    return re.findall(r"(Epoch \d+, batch \d+, train_loss.*)", log)


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path)["model"]


def same(a: dict, b: dict, prefix: str = "") -> bool:
    return all(torch.equal(a[k], b[k]) for k in a if k.startswith(prefix))


# by nature of another run
_RUNS_OWN = {"exp_dir", "env_info", "start_batch", "start_epoch", "resume", "save_every_n"}


def differences(a: Path, b: Path) -> list[str]:
    """Where the contents of two checkpoints differ, as keys joined with dots."""
    return list(_differing("", read_checkpoint(a), read_checkpoint(b)))


def _differing(name: str, a: Any, b: Any) -> Any:
    if name.removeprefix(".") in _RUNS_OWN:
        return
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        for key in a:
            yield from _differing(f"{name}.{key}", a[key], b[key])
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            yield from _differing(f"{name}.{i}", x, y)
    elif isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        if not torch.equal(a, b):
            yield name
    elif type(a) is not type(b) or a != b:
        yield name
