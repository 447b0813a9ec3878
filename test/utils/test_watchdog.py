"""Jobs of real processes, one rank of which goes wrong: the others end, and name it."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from valle.utils.dist import exchange_timeout
from valle.utils.watchdog import (
    LAST_LOOKS,
    STUCK_STATUS,
    Sightings,
    Watchdog,
)
from valle.utils.watchdog_message import Progress, describe, find_culprits

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_SEC = 3.0

# One program runs all jobs at once, each rank forked from it: torch is imported only once.
PROGRAM = """
import contextlib, json, logging, multiprocessing, os, random, signal, socket, sys, threading
import time
import torch
import torch.distributed as dist
from valle.utils.dist import cleanup_dist, setup_dist
from valle.utils.watchdog import Watchdog

OUT, TIMEOUT_SEC = sys.argv[1], float(sys.argv[2])
JOBS = {  # name: ranks, and the one that goes wrong in step 3
    "sleeps": (3, 1), "hangs_with_its_log": (2, 1), "is_stopped": (3, 1), "host_is_stopped": (2, 0),
    "is_killed": (3, 1), "host_is_killed": (2, 0), "raises": (3, 2), "validates_for_ever": (3, 2),
    "leaves": (2, 1), "slow": (2, 1), "suspended": (2, 1),
}
NEVER_END = {("is_stopped", 1), ("host_is_stopped", 0), ("leaves", 1)}

def go_wrong(job, watchdog):
    time.sleep(1)  # the others have read where it is
    if "stopped" in job:
        os.kill(os.getpid(), signal.SIGSTOP)
    elif "killed" in job:
        os.kill(os.getpid(), signal.SIGKILL)
    elif job == "raises":
        raise ValueError("a bad batch")
    elif job == "validates_for_ever":
        while True:
            watchdog.beat(3, "validating")
            time.sleep(0.1)
    elif job in ("sleeps", "hangs_with_its_log"):
        time.sleep(100)

def steps(job, rank, bad, watchdog):
    for step in range(1, 4):
        watchdog.beat(step, "loading a batch")
        if job == "slow":
            time.sleep(TIMEOUT_SEC * (0.4 if rank == bad else 0.1))
        if job == "suspended":
            open(f"{OUT}/{job}-{rank}-begun", "w").close()
            time.sleep(1)
        if rank == bad and step == 3:
            if job == "leaves":
                return
            go_wrong(job, watchdog)
        watchdog.beat(step, "exchanging gradients", waits=True)
        dist.all_reduce(torch.ones(1))

def run(job, rank, world_size, bad, port):
    os.dup2(os.open(f"{OUT}/{job}-{rank}", os.O_CREAT | os.O_WRONLY), 2)
    logging.basicConfig(format="%(levelname)s %(message)s", force=True)
    if job == "hangs_with_its_log":
        logging.getLogger().handlers[0].emit = lambda record: threading.Event().wait()
    setup_dist(rank, world_size, port)
    with Watchdog(TIMEOUT_SEC) as watchdog:
        steps(job, rank, bad, watchdog)
    if job == "leaves" and rank == bad:
        time.sleep(100)  # its connections stay open
    cleanup_dist()

def free_ports():  # below those that clients get by themselves, which may be taken any moment
    for port in random.sample(range(20000, 30000), 1000):
        with contextlib.suppress(OSError):
            with socket.socket() as s:
                s.bind(("localhost", port))
            yield port

if __name__ == "__main__":
    context = multiprocessing.get_context("fork")
    ranks, ports = {}, free_ports()
    for job, (world_size, bad) in JOBS.items():
        port = next(ports)
        for rank in range(world_size):
            args = (job, rank, world_size, bad, port)
            ranks[job, rank] = context.Process(target=run, args=args)
            ranks[job, rank].start()
    while not all(os.path.exists(f"{OUT}/suspended-{rank}-begun") for rank in (0, 1)):
        time.sleep(0.1)
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for rank in (0, 1):
            os.kill(ranks["suspended", rank].pid, number)
        time.sleep(1.5 * TIMEOUT_SEC)
    started = time.monotonic()
    while time.monotonic() - started < 20:  # no exchange fails by itself as early
        alive = {key for key, process in ranks.items() if process.is_alive()}
        if alive <= NEVER_END:
            break
        time.sleep(0.1)
    statuses = {f"{job}-{rank}": process.exitcode for (job, rank), process in ranks.items()}
    for process in ranks.values():
        process.kill()
        process.join()
    with open(f"{OUT}/statuses.json", "w") as file:
        json.dump(statuses, file)
"""


class Jobs:
    """Statuses (None: was still there at the end) and output of all ranks of all jobs."""

    def __init__(self, folder):
        self.folder = folder
        self._statuses = json.loads((folder / "statuses.json").read_text())

    def statuses(self, job):
        found = {k.split("-")[1]: v for k, v in self._statuses.items() if k.split("-")[0] == job}
        return [found[str(rank)] for rank in range(len(found))]

    def output(self, job, rank):
        return (self.folder / f"{job}-{rank}").read_text()


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("jobs")
    program = folder / "program.py"
    program.write_text(PROGRAM)
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    env["CUDA_VISIBLE_DEVICES"] = ""
    # torch asks for the name of each address that connects; a lost question would stall it for 5 s
    env["RES_OPTIONS"] = "timeout:1 attempts:1"
    command = [sys.executable, str(program), str(folder), str(TIMEOUT_SEC)]
    program = subprocess.Popen(command, env=env, start_new_session=True)
    try:
        assert program.wait(timeout=120) == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGKILL)  # its ranks, stopped ones too
    return Jobs(folder)


def test_every_rank_names_the_one_that_sleeps(jobs):
    assert jobs.statuses("sleeps") == [STUCK_STATUS] * 3
    for rank in range(3):
        output = jobs.output("sleeps", rank)
        assert re.search(
            r"CRITICAL rank 1 has not got on for \d s: it is in step 3, loading", output
        )
        assert "ranks 0, 2 are waiting for it in step 3, exchanging gradients" in output
        assert "larger --dist-timeout than 3 s" in output
        stuck_in = "in go_wrong" if rank == 1 else "in all_reduce"
        assert stuck_in in output.split("Current thread")[1]


def test_a_log_that_hangs_does_not_keep_the_message_back(jobs):
    assert jobs.statuses("hangs_with_its_log") == [STUCK_STATUS] * 2
    for rank in range(2):
        assert jobs.output("hangs_with_its_log", rank).startswith("rank 1 has not got on")


def test_others_name_a_stopped_rank(jobs):
    assert jobs.statuses("is_stopped") == [STUCK_STATUS, None, STUCK_STATUS]
    for rank in (0, 2):
        output = jobs.output("is_stopped", rank)
        assert "CRITICAL rank 1 has not been heard from for " in output
        assert "it was last known in step 3, loading a batch; ranks 0, 2 are waiting" in output


def test_others_name_the_stopped_host_of_the_store(jobs):
    assert jobs.statuses("host_is_stopped") == [None, STUCK_STATUS]
    output = jobs.output("host_is_stopped", 1)
    assert "CRITICAL the job's key-value store has not answered for " in output
    assert "rank 0, which runs it" in output
    assert "rank 0 is in step 3, loading a batch" in output


def test_others_name_a_killed_rank(jobs):
    assert jobs.statuses("is_killed") == [1, -9, 1]  # gloo's error ends the others
    for rank in (0, 2):
        output = jobs.output("is_killed", rank)
        assert "An exchange with the other ranks broke: rank 1 has not been heard from" in output
    assert jobs.statuses("host_is_killed") == [-9, 1]
    output = jobs.output("host_is_killed", 1)
    assert "An exchange with the other ranks broke: the job's key-value store has not" in output


def test_others_name_the_error_that_a_rank_left_with(jobs):
    assert jobs.statuses("raises") == [1, 1, 1]
    for rank in (0, 1):
        output = jobs.output("raises", rank)
        assert "broke: rank 2 has left the job in step 3, loading a batch (ValueError: a" in output


def test_a_rank_that_left_the_others_waiting_is_named(jobs):
    assert jobs.statuses("leaves") == [STUCK_STATUS, None]
    output = jobs.output("leaves", 0)
    assert "CRITICAL rank 1 has left the job in step 3, loading a batch (finished)" in output


def test_a_rank_that_gets_on_but_too_slowly_is_named(jobs):
    assert jobs.statuses("validates_for_ever") == [STUCK_STATUS] * 3
    for rank in range(3):
        output = jobs.output("validates_for_ever", rank)
        assert "CRITICAL rank 2 is behind the others: it is in step 3, validating" in output


@pytest.mark.parametrize("job", ["slow", "suspended"])
def test_healthy_jobs_are_left_alone(jobs, job):
    assert jobs.statuses(job) == [0, 0]
    assert "rank" not in jobs.output(job, 0) + jobs.output(job, 1)


def test_a_world_of_one_has_no_thread():
    before = threading.active_count()
    with Watchdog(0.01) as watchdog:
        watchdog.beat(1, "computing")
        assert threading.active_count() == before
    with pytest.raises(KeyError, match="its own"), Watchdog(0.01):
        raise KeyError("its own")


def test_a_timeout_that_cannot_be_met_is_refused():
    for timeout_sec in (0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="--dist-timeout must be above 0 s, got"):
            Watchdog(timeout_sec)


@pytest.mark.parametrize("timeout_sec", [0.1, 3.0, 60.0, 1800.0])
def test_the_watchdog_speaks_before_an_exchange_fails(timeout_sec):
    looks = 2 + LAST_LOOKS  # to notice, to read of the others, and to end
    last_words_sec = timeout_sec + looks * min(5.0, timeout_sec / 10)
    assert exchange_timeout(timeout_sec).total_seconds() > last_words_sec


def test_ages_count_from_the_last_change():
    seen = Sightings()
    assert seen.age("a", 1, 10.0) == 0.0
    assert seen.age("a", 1, 12.0) == 2.0
    assert seen.age("b", 1, 13.0) == 0.0
    assert seen.age("a", 2, 14.0) == 0.0
    assert seen.age("a", 2, 15.5) == 1.5


def loading(step, idle_sec=60.0, **more):
    return Progress(step, "loading a batch", False, idle_sec, **more)


def waiting(step, idle_sec=60.0, **more):
    return Progress(step, "exchanging gradients", True, idle_sec, **more)


CASES = {
    "in an exchange that one has not reached": ([waiting(5), loading(5), waiting(5)], [1]),
    "a step behind, though in an exchange": ([loading(6), waiting(5), loading(6)], [1]),
    "alone in a step, after the exchange": ([waiting(6), loading(6), waiting(6)], [1]),
    "several behind": ([loading(5), waiting(5), loading(5)], [0, 2]),
    "silent wherever it was": ([loading(5), waiting(5, silent_sec=9.0), loading(5)], [1]),
    "not silent for long": ([waiting(5, silent_sec=1.0), loading(5)], [1]),
    "left": ([waiting(5), loading(4, left="finished")], [1]),
    "left, but another is behind": ([loading(5), waiting(5), loading(9, left="finished")], [0]),
    "left because of another": (
        [waiting(5), waiting(5, left="broke", is_victim=True), loading(5, left="finished")],
        [2],
    ),
    "silent, and others left because of it": (
        [waiting(5, silent_sec=9.0), waiting(5, left="broke", is_victim=True), waiting(5)],
        [0],
    ),
    "all together in an exchange": ([waiting(5), waiting(5)], []),
    "all together outside": ([loading(5), loading(5)], [0, 1]),
}


@pytest.mark.parametrize("case", CASES)
def test_the_cause_is_who_is_waited_for(case):
    ranks, culprits = CASES[case]
    assert find_culprits(dict(enumerate(ranks)), silence_sec=4.0) == culprits


def message(*ranks, store_silent_sec=0.0):
    return describe(dict(enumerate(ranks)), 60.0, 4.0, store_silent_sec)


ADVICE = (
    "What takes long by right (a slow disk, a long validation) needs a larger --dist-timeout "
    "than 60 s"
)


def test_the_message_of_a_slow_disk():
    assert message(waiting(12), loading(12, 62.0), waiting(12)) == (
        "rank 1 has not got on for 62 s: it is in step 12, loading a batch; ranks 0, 2 are "
        "waiting for it in step 12, exchanging gradients. See the log of rank 1, and the stacks "
        "that every rank writes. " + ADVICE
    )


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [
        (
            [loading(12, 62.0), waiting(12), waiting(12), loading(12, 61.0)],
            "ranks 0, 3 have not got on for 62 s: they are in step 12, loading a batch; ranks 1-2 "
            "are waiting for them in step 12",
        ),
        (
            [waiting(12, 62.0, silent_sec=62.0), waiting(12)],
            "rank 0 has not been heard from for 62 s (stopped, killed or cut off): it was last "
            "known in step 12, exchanging gradients; rank 1 is waiting for it",
        ),
        (
            [waiting(12), loading(12, 2.0)],
            "rank 1 is behind the others: it is in step 12, loading a batch, begun 2 s ago; "
            "rank 0 is",
        ),
        (
            [waiting(12), loading(12, left="finished")],
            "rank 1 has left the job in step 12, loading a batch (finished); rank 0 is waiting",
        ),
        (
            [waiting(12), waiting(12, 61.0)],
            "no rank has got on for 60 s, as all wait for each other: in different exchanges, or "
            "the network between them fails. ranks 0-1 are waiting in step 12, exchanging",
        ),
        (
            [loading(12), loading(14), waiting(13), waiting(13, left="finished")],
            "batch; rank 1 is in step 14, loading a batch; rank 2 is waiting for it in step 13, "
            "exchanging gradients; rank 3 is gone (finished) in step 13",
        ),
    ],
)
def test_messages(ranks, expected):
    assert expected in message(*ranks)
    runs = not any(p.silent_sec or "finished" in p.left for p in ranks[:2])
    assert message(*ranks).endswith(ADVICE) == runs  # time does not help one that is gone


def test_the_message_of_a_store_that_is_gone():
    ranks = [loading(12, silent_sec=62.0), waiting(12)]
    assert message(*ranks, store_silent_sec=62.0) == (
        "the job's key-value store has not answered for 62 s: rank 0, which runs it (under "
        "torchrun: the agent of the first node), is stopped, killed or cut off. Last known: rank 0 "
        "is in step 12, loading a batch; rank 1 is in an exchange in step 12, exchanging gradients"
    )


def test_the_message_of_a_large_job_stays_short():
    ranks = [loading(1), *(waiting(step) for step in range(2, 1001))]
    assert len(message(*ranks)) < 1200
    assert "; 991 ranks are elsewhere." in message(*ranks)
