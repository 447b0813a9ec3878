"""The SLURM example without SLURM: its tools are played by scripts, torchrun is the real one."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "egs/atepp/slurm.sh"

# Starts the command on each "machine" and passes USR1 on to its first process there, as SLURM does,
# and to the others of its session, as it may.
SRUN = """#!/usr/bin/env bash
while [[ "$1" == --* ]]; do shift; done
pids=()
for ((i = 0; i < SLURM_NNODES; i++)); do
  SLURM_NODEID=$i setsid "$@" &
  pids+=($!)
done
trap 'for pid in "${pids[@]}"; do kill -USR1 -- "-$pid"; done' USR1
status=0
for pid in "${pids[@]}"; do
  own=0
  wait "$pid" || own=$?
  while kill -0 "$pid" 2> /dev/null; do own=0; wait "$pid" || own=$?; done
  ((own > status)) && status=$own
done
exit "$status"
"""

SCONTROL = """#!/usr/bin/env bash
if [ "$1" = show ]; then
  for ((i = 0; i < SLURM_NNODES; i++)); do echo localhost; done
else
  echo "$*" >> "$TRACES/scontrol"
fi
"""

# Waits for the signal, unless it is to fail; leaves what it saw.
TRAINER = """
import json, os, signal, sys, time
from pathlib import Path

traces, rank = Path(os.environ["TRACES"]), os.environ["RANK"]
if "--fail" in sys.argv:
    sys.exit(3)
seen = []
signal.signal(signal.SIGUSR1, lambda *_: seen.append("USR1"))
names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "GROUP_RANK")
facts = {name: os.environ[name] for name in names} | {"flags": sys.argv[1:]}
ready = traces / f"ready-{rank}"
ready.with_suffix(".part").write_text(json.dumps(facts))
ready.with_suffix(".part").rename(ready)
end = time.monotonic() + 60
while not seen and time.monotonic() < end:
    time.sleep(0.05)
(traces / f"ended-{rank}").write_text(" ".join(seen))
"""


@pytest.fixture
def job(tmp_path):
    """Starts the script as a job on so many machines; a list of the processes is ended after."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    trainer = tmp_path / "trainer.py"
    trainer.write_text(TRAINER)
    started = []

    def start(num_nodes: int, *flags: str) -> subprocess.Popen:
        path = os.pathsep.join([str(tools), str(Path(sys.executable).parent), os.environ["PATH"]])
        slurm = {
            "SLURM_JOB_ID": str(40_000 + os.getpid() % 9_000),
            "SLURM_JOB_NODELIST": "localhost",
            "SLURM_NNODES": str(num_nodes),
            "SLURM_SUBMIT_DIR": str(ROOT),
        }
        env = os.environ | slurm | {"PATH": path, "TRACES": str(tmp_path)}
        copied = tmp_path / "slurm_script"  # SLURM runs a copy from a folder of its own
        copied.write_text(SCRIPT.read_text())
        command = ["bash", str(copied), "--trainer", str(trainer), "--nproc-per-node", "2", *flags]
        output = (tmp_path / "output").open("w")
        process = subprocess.Popen(
            command, env=env, cwd=tmp_path, stdout=output, stderr=output, start_new_session=True
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def wait_until(condition, process, output: Path, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, output.read_text()
        assert process.poll() is None, output.read_text()
        time.sleep(0.1)


def test_the_end_of_the_time_reaches_every_trainer_and_the_job_is_queued_again(job, tmp_path):
    process = job(2, "--num-epochs", "7", "--", "--fsdp", "true")
    output = tmp_path / "output"
    wait_until(lambda: len(list(tmp_path.glob("ready-?"))) == 4, process, output)
    process.send_signal(signal.SIGUSR1)  # to the script alone, as B: in the #SBATCH line asks
    assert process.wait(timeout=90) == 0, output.read_text()
    facts = [json.loads((tmp_path / f"ready-{rank}").read_text()) for rank in range(4)]
    assert [fact["RANK"] for fact in facts] == ["0", "1", "2", "3"]
    assert {fact["WORLD_SIZE"] for fact in facts} == {"4"}
    assert [fact["LOCAL_RANK"] for fact in facts] == ["0", "1", "0", "1"]
    flags = " ".join(facts[0]["flags"])
    assert "--num-epochs 7 --resume auto --fsdp true" in flags
    for rank in range(4):
        assert (tmp_path / f"ended-{rank}").read_text() == "USR1"
    assert (tmp_path / "scontrol").read_text().split()[0] == "requeue"


def test_a_trainer_that_fails_ends_the_job_for_good(job, tmp_path):
    process = job(1, "--", "--fail")
    assert process.wait(timeout=90) != 0
    assert not (tmp_path / "scontrol").exists()
    assert "Training ended with status" in (tmp_path / "output").read_text()


@pytest.mark.parametrize(
    ("folder", "flags", "status", "message"),
    [
        (".", ["--help"], 0, "--nproc-per-node 'gpu'"),
        (".", [], 2, "this is no SLURM job"),
        (".", ["--num-gpus", "8"], 2, "unknown option --num-gpus"),
        ("docs", [], 2, "is not the repository"),
    ],
)
def test_outside_of_a_job(folder, flags, status, message):
    env = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    command = ["bash", str(SCRIPT), *flags]
    done = subprocess.run(command, env=env, cwd=ROOT / folder, capture_output=True, text=True)
    assert done.returncode == status
    assert message in done.stdout + done.stderr


def test_sbatch_reads_its_lines_before_the_first_command():
    lines = SCRIPT.read_text().splitlines()
    first_command = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    settings = [line for line in lines[:first_command] if line.startswith("#SBATCH")]
    assert "#SBATCH --signal=B:USR1@120" in settings
    assert "#SBATCH --requeue" in settings
    assert not any(line.startswith("#SBATCH") for line in lines[first_command:])
