"""Two processes on the CPU find each other and agree on their sums."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from valle.utils.dist import (
    choose_device,
    cleanup_dist,
    get_rank,
    get_world_size,
    is_main,
    job_store,
    launch,
    setup_dist,
)

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
import json, os, sys
import torch
import torch.distributed as dist
from valle.utils.dist import cleanup_dist, get_rank, get_world_size, is_main, launch, setup_dist
from valle.utils.dist import job_store
from valle.utils.metrics import MetricsTracker

def run(rank, world_size, port, out):
    device = setup_dist(rank, world_size, port, timeout_sec=60)
    store = job_store()
    found = store.check([f"note-{rank}"])  # from an earlier start of this job
    store.set(f"note-{rank}", f"from {rank}")
    notes = [found, job_store().get(f"note-{1 - rank}").decode()]
    if os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0":
        dist.barrier()
        sys.exit(3)
    metrics = {"loss": (torch.tensor(2.0 + rank), 1 + rank), "frames": 10}
    if rank == 1:
        metrics["only_here"] = (torch.tensor(3.0), 2)
    means = MetricsTracker(metrics).reduce(device).means()
    nothing = MetricsTracker({"frames": 1} if rank else None).reduce(device).means()
    facts = [get_rank(), get_world_size(), is_main(), means, nothing, notes]
    with open(f"{out}/{rank}.json", "w") as file:
        json.dump(facts, file)
    cleanup_dist()

if __name__ == "__main__":
    launch(run, int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
"""


def free_port():
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


@pytest.mark.parametrize("launcher", ["spawn", "torchrun"])
def test_two_processes_share_their_sums(tmp_path, launcher):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = [sys.executable]
    if launcher == "torchrun":
        command += ["-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=localhost"]
        command += [f"--master-port={free_port()}", "--max-restarts=1"]
    world_size = "2" if launcher == "spawn" else "1"
    command += [str(program), world_size, str(free_port()), str(tmp_path)]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    env["CUDA_VISIBLE_DEVICES"] = ""
    done = subprocess.run(command, env=env, timeout=120, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    means = {"loss": 5 / 3, "frames": 20.0, "nonfinite": 0.0, "only_here": 1.5}
    for rank in (0, 1):
        facts = json.loads((tmp_path / f"{rank}.json").read_text())
        assert facts[:3] == [rank, 2, rank == 0]
        assert facts[3] == pytest.approx(means)
        assert facts[4] == {"frames": 1.0, "nonfinite": 0.0}
        assert facts[5] == [False, f"from {1 - rank}"]


def test_there_is_no_store_before_the_others_are_joined():
    with pytest.raises(RuntimeError, match=r"has not joined others; call setup_dist with"):
        job_store()


def test_one_process_needs_no_meeting():
    seen = []
    launch(lambda rank, world_size, word: seen.append((rank, world_size, word)), 1, "x")
    assert seen == [(0, 1, "x")]
    setup_dist()
    assert (get_rank(), get_world_size(), is_main()) == (0, 1, True)
    cleanup_dist()


def test_others_that_do_not_come_are_an_error():
    with pytest.raises(RuntimeError, match=r"process 0 of 2 could not join .* within 1 s"):
        setup_dist(0, 2, free_port(), timeout_sec=1)


def test_world_size_is_checked(monkeypatch):
    with pytest.raises(ValueError, match="at least 1, got 0"):
        launch(print, 0)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(ValueError, match="--world-size 4 needs as many GPUs; here are 2"):
        launch(print, 4)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="torchrun started 2 processes"):
        launch(print, 4)


def test_device_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto").type == "cpu"
    with pytest.raises(ValueError, match="cuda asked for, but torch sees no GPU"):
        choose_device("cuda")
    with pytest.raises(ValueError, match="--device nonsense is no device"):
        choose_device("nonsense")
