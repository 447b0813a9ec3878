"""Several processes that train one model: how they find each other, and who is who.

Two ways to start them: ``torchrun`` sets RANK, WORLD_SIZE and LOCAL_RANK for processes that it
starts itself; without it, ``launch`` starts as many as ``--world-size`` says on this machine.
"""

import datetime
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

DEFAULT_PORT = 12354


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
        mp.spawn(run, args=(world_size, *args), nprocs=world_size, join=True)


def setup_dist(
    rank: int = 0,
    world_size: int = 1,
    master_port: int = DEFAULT_PORT,
    timeout_sec: float = 1800.0,
) -> torch.device:
    """Join the other processes (none, if the world is one) and take a device.

    Args:
        rank: This process; under torchrun its own numbers count instead.
        world_size: Processes in all.
        master_port: Port on this machine where they meet, without torchrun.
        timeout_sec: How long to wait for the others, here and in every exchange.

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
        _join(rank, world_size, "nccl" if device.type == "cuda" else "gloo", timeout_sec)
    return device


def cleanup_dist() -> None:
    """Leave the others; does nothing in a world of one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def get_rank() -> int:
    """This process's number in the job, 0 if there is no other."""
    return dist.get_rank() if dist.is_initialized() else 0


def get_world_size() -> int:
    """Processes in the job."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the process that logs and writes files."""
    return get_rank() == 0


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


def _join(rank: int, world_size: int, backend: str, timeout_sec: float) -> None:
    try:
        dist.init_process_group(
            backend,
            rank=rank,
            world_size=world_size,
            timeout=datetime.timedelta(seconds=timeout_sec),
        )
    except RuntimeError as error:
        meeting = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise RuntimeError(
            f"process {rank} of {world_size} could not join the others at {meeting} within "
            f"{timeout_sec:g} s. See whether another process failed first, and whether the port "
            f"is free (--master-port). ({(str(error).splitlines() or [''])[0]})"
        ) from error


def _check_world_size(world_size: int) -> None:
    if world_size < 1:
        raise ValueError(f"--world-size must be at least 1, got {world_size}")
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else world_size
    if world_size > gpus:
        raise ValueError(f"--world-size {world_size} needs as many GPUs; here are {gpus}")
