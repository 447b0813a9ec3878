"""Time, read bandwidth and memory of this process, and what machine it runs on."""

import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from valle.utils.env import get_env_info

Reading = Callable[[Tensor], object]

_PASSES = 3  # a probe takes the fastest of so many: others on the machine can only slow it down
_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


def synchronise(device: torch.device) -> None:
    """Wait until a device has done what it was told; a CPU has, always."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(run: Callable[[], object], device: torch.device) -> float:
    """How long a call takes, to the end of its work."""
    synchronise(device)
    start = time.perf_counter()
    run()
    synchronise(device)
    return time.perf_counter() - start


class BandwidthProbe:
    """How many bytes a second this process reads at the moment, with all its threads.

    A large tensor is read in several ways: sums of its rows, maxima of its rows as integers, and on
    a GPU a copy, which counts twice as it reads and writes. Whichever is fastest on this machine at
    the start is used from then on, as a limit should be the highest one that can be had.

    Args:
      device: whose memory.
      num_bytes: how much to read; many times the processor's cache.

    Attributes:
      name: of the way of reading that was chosen.
      seen: bytes a second of every measurement so far.
    """

    def __init__(self, device: torch.device, num_bytes: int) -> None:
        self.device = device
        self._data = torch.ones(max(num_bytes // 4, 1024) // 1024, 1024, device=device)
        self.seen: list[float] = []
        readings = self._readings()
        speeds = {name: self._speed(*reading) for name, reading in readings.items()}
        self.name = max(speeds, key=lambda name: speeds[name])
        self._chosen = readings[self.name]
        self()

    def __call__(self) -> float:
        """Bytes a second, now."""
        self.seen.append(self._speed(*self._chosen))
        return self.seen[-1]

    def _readings(self) -> dict[str, tuple[Reading, int]]:
        """Ways to read, each with how often the bytes cross the bus."""
        readings: dict[str, tuple[Reading, int]] = {
            "sum of rows": (lambda data: data.sum(1), 1),
            "maximum of rows": (lambda data: data.view(torch.int32).amax(1), 1),
        }
        if self.device.type == "cuda":
            target = torch.empty_like(self._data)
            readings["copy"] = (target.copy_, 2)
        return readings

    def _speed(self, read: Reading, crossings: int) -> float:
        read(self._data)  # allocators and thread pools set themselves up in the first call
        fastest = min(seconds_of(lambda: read(self._data), self.device) for _ in range(_PASSES))
        return crossings * self._data.nbytes / fastest


@dataclass
class Timing:
    """One contender's rounds.

    Attributes:
      seconds: for one frame (of all rows of a batch), in each round.
      bytes_per_sec: the mean of the probes right before and after, in each round.
    """

    seconds: list[float] = field(default_factory=list)
    bytes_per_sec: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def share_of_limit(self, num_bytes: float) -> float:
        """Reading so many bytes at the bandwidth of the moment, over the time it took; median."""
        rounds = zip(self.seconds, self.bytes_per_sec, strict=True)
        return statistics.median(num_bytes / speed / seconds for seconds, speed in rounds)

    def ratio_to(self, other: "Timing") -> float:
        """Median over the rounds of this time over the other's in the same round."""
        rounds = zip(self.seconds, other.seconds, strict=True)
        return statistics.median(mine / theirs for mine, theirs in rounds)


def interleave(
    steps: Sequence[Callable[[], None]], rounds: int, num_frames: int, probe: BandwidthProbe
) -> list[Timing]:
    """Time every step in every round, with a bandwidth probe between any two.

    So a machine whose speed drifts slows all of them alike. The order moves on by one a round.

    Args:
      steps: what makes one frame, warmed up.
      rounds: how often each is timed.
      num_frames: calls in a round.
      probe: of the device they run on.

    Returns:
      One for each step.
    """
    timings = [Timing() for _ in steps]
    for first in range(rounds):
        before = probe()
        for i in range(first, first + len(steps)):
            timing, step = timings[i % len(steps)], steps[i % len(steps)]
            seconds = seconds_of(partial(_repeat, step, num_frames), probe.device)
            after = probe()
            timing.seconds.append(seconds / num_frames)
            timing.bytes_per_sec.append((before + after) / 2)
            before = after
    return timings


def _repeat(step: Callable[[], None], times: int) -> None:
    for _ in range(times):
        step()


def memory_now(device: torch.device) -> int:
    """Bytes that are allocated on a GPU, or resident for this process."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return _status("VmRSS")


def peak_memory(device: torch.device) -> int:
    """The most bytes since `reset_peak_memory`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _status("VmHWM")


def reset_peak_memory(device: torch.device) -> None:
    """Where the system lets no process do that, the peak is the one since its start."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _CLEAR_REFS.exists():
        _CLEAR_REFS.write_text("5")


def _status(name: str) -> int:
    """Bytes by Linux's book; elsewhere the peak since the start is all there is."""
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def load_average() -> float | None:
    """How many processes wanted to run in the last minute; None where nobody counts them."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def machine_facts(device: torch.device) -> dict[str, object]:
    """What the figures depend on, beside the arguments; no host name."""
    facts: dict[str, object] = dict(get_env_info())
    on_gpu = device.type == "cuda"
    return facts | {
        "device": torch.cuda.get_device_name(device) if on_gpu else _cpu_model(),
        "num_cores": os.cpu_count(),
        "num_threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "load_average_at_start": load_average(),
    }


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
