"""Several processes that train one model: how they find each other, and who is who.

Two ways to start them: ``torchrun`` sets RANK, WORLD_SIZE and LOCAL_RANK for processes that it
starts itself; without it, ``launch`` starts as many as ``--world-size`` says on this machine.

They meet at a key-value store (a TCP server in rank 0, or in torchrun's agent on the first node),
which stays open for them to leave each other notes: ``job_store``.
"""

import os
import secrets
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from valle.utils.signals import forwarded_to

DEFAULT_PORT = 12354
DEFAULT_TIMEOUT_SEC = 1800.0

T = TypeVar("T")

_job_name: str | None = None  # agreed on by all ranks of this job; None in a world of one


def started_by_torchrun() -> bool:
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def launch(run: Callable[..., Any], world_size: int, *args: Any) -> None:
    """Call ``run(rank, world_size, *args)`` in every process of the job and wait for them.

    Args:
        run: A function of a module (it must pickle).
        world_size: Processes to start here; under torchrun, which has started them, 1 or the
            number that torchrun was given.
        args: Further arguments.

    Raises:
        ValueError: There are fewer GPUs than processes, or torchrun has another number.
    """
    if started_by_torchrun():
        running = int(os.environ["WORLD_SIZE"])
        if world_size not in (1, running):
            raise ValueError(
                f"--world-size {world_size}, but torchrun started {running} processes; leave "
                "--world-size out under torchrun"
            )
        run(int(os.environ["RANK"]), running, *args)
    elif world_size == 1:
        run(0, 1, *args)
    else:
        _check_world_size(world_size)
        processes = mp.spawn(run, args=(world_size, *args), nprocs=world_size, join=False)
        with forwarded_to(processes.pids()):
            while not processes.join():
                pass


def setup_dist(
    rank: int = 0,
    world_size: int = 1,
    master_port: int = DEFAULT_PORT,
    timeout_sec: float = DEFAULT_TIMEOUT_SEC,
) -> torch.device:
    """Join the other processes (none, if the world is one) and take a device.

    Args:
        rank: This process; under torchrun its own numbers count instead.
        world_size: Processes in all.
        master_port: Port on this machine where they meet, without torchrun.
        timeout_sec: How long to wait for the others here, and how long a rank may take to get on
            before ``Watchdog``, which is given the same number, ends the job. An exchange fails
            by itself after ``exchange_timeout(timeout_sec)``, which is later.

    Returns:
        The GPU of this process if there is one (backend nccl), else the CPU (backend gloo).

    Raises:
        RuntimeError: The others did not come in time, or the port is taken.
    """
    if started_by_torchrun():
        rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    elif world_size > 1:
        os.environ["MASTER_ADDR"] = "localhost"
        os.environ["MASTER_PORT"] = str(master_port)
    device = _take_device(rank)
    if world_size > 1:
        _join(rank, world_size, device, timeout_sec)
    return device


def exchange_timeout(timeout_sec: float) -> timedelta:
    """When an exchange among ranks fails by itself, for a job whose ranks get ``timeout_sec``.

    Gloo and NCCL then say that time is up, but not whose fault it is, so ``Watchdog`` has to speak
    first. Twice the time, as a GPU's exchange begins to count when it is queued, up to a whole step
    before its rank is seen to stand still; 30 s more for the watchdog to look, speak and end.
    """
    return timedelta(seconds=2 * timeout_sec + 30)


def job_store(timeout_sec: float = 60.0) -> dist.Store:
    """A new connection to the job's key-value store, under a prefix of this job's own.

    It is a connection of its own because one connection serves one caller at a time: a thread that
    shared that of the process group would wait wherever the group waits. The store is gone once
    its host has left the job, so close what uses it before ``cleanup_dist``.

    Args:
        timeout_sec: How long connecting, and waiting for a key, may take.

    Raises:
        RuntimeError: ``setup_dist`` did not join other processes, or the store does not answer.
    """
    if _job_name is None:
        raise RuntimeError(
            "there is no store: this process has not joined others; call setup_dist with a "
            "world_size above 1 first"
        )
    store = dist.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=False,
        timeout=timedelta(seconds=timeout_sec),
        wait_for_workers=False,
    )
    return dist.PrefixStore(_job_name, store)


def cleanup_dist() -> None:
    """Leave the others; does nothing in a world of one."""
    global _job_name
    _job_name = None
    if dist.is_initialized():
        dist.destroy_process_group()


def wait_for_all() -> None:
    """Wait until every rank is here. Collective.

    Call it before the last reference to a DDP or FSDP model goes: gloo's thread may still have to
    let go of tensors of the exchange before, for which it needs Python's lock, and tearing the
    group down waits for that thread with the lock in hand (seen with torch 2.13).
    """
    if dist.is_initialized():
        dist.barrier()
        time.sleep(0.1)  # without the lock


def get_rank() -> int:
    """This process's number in the job, 0 if there is no other."""
    return dist.get_rank() if dist.is_initialized() else 0


def get_world_size() -> int:
    """Processes in the job."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the process that logs and writes files."""
    return get_rank() == 0


def from_main(value: T) -> T:
    """What the main process passed, on every rank. Collective."""
    values = [value]
    if dist.is_initialized():
        dist.broadcast_object_list(values, src=0)
    return values[0]


def gather_objects(value: T) -> list[T]:
    """What each rank passed, by rank. Collective."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def choose_device(name: str) -> torch.device:
    """Turn ``auto``, ``cpu``, ``cuda`` or ``cuda:1`` into a device; auto prefers a GPU.

    Raises:
        ValueError: There is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device {name} asked for, but torch sees no GPU: use --device cpu")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device {name} is no device: give cpu, cuda, cuda:1 or auto") from error


def choose_dtype(name: str, device: torch.device) -> str:
    """Turn ``auto`` into the type of weights that the device generates best with.

    It is ``bfloat16`` on a GPU, and on a CPU that multiplies matrices in it; else ``float32``.
    Other names stay as they are.
    """
    if name != "auto":
        return name
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text() if cpuinfo.exists() else ""
    has_units = device.type == "cuda" or "avx512_bf16" in flags or "amx_bf16" in flags
    return "bfloat16" if has_units else "float32"


def _take_device(rank: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", rank)))
    torch.cuda.set_device(device)
    return device


def _join(rank: int, world_size: int, device: torch.device, timeout_sec: float) -> None:
    global _job_name
    patience = exchange_timeout(timeout_sec)
    try:
        store, _, _ = next(
            dist.rendezvous("env://", rank, world_size, timeout=timedelta(seconds=timeout_sec))
        )
        store.set_timeout(patience)
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            # torchrun may start a job again on a store that holds what its first start wrote
            store=dist.PrefixStore(
                f"start-{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store
            ),
            rank=rank,
            world_size=world_size,
            timeout=patience,
        )
        _job_name = _agree_on_name(device)
    except RuntimeError as error:
        meeting = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise RuntimeError(
            f"process {rank} of {world_size} could not join the others at {meeting} within "
            f"{timeout_sec:g} s. See whether another process failed first, and whether the port "
            f"is free (--master-port). ({(str(error).splitlines() or [''])[0]})"
        ) from error


def _agree_on_name(device: torch.device) -> str:
    """A name no other job has had: torchrun restarts a job on a store that still holds its keys."""
    number = torch.tensor(secrets.randbits(62), device=device)
    dist.broadcast(number, src=0)
    return f"valle-{int(number):x}"


def _check_world_size(world_size: int) -> None:
    if world_size < 1:
        raise ValueError(f"--world-size must be at least 1, got {world_size}")
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else world_size
    if world_size > gpus:
        raise ValueError(f"--world-size {world_size} needs as many GPUs; here are {gpus}")
