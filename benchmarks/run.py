"""What the benchmarks share as programs: a run that introduces itself, shows tables, saves all."""

import argparse
import json
import logging
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from measure import (
    BandwidthProbe,
    load_average,
    machine_facts,
    memory_now,
    peak_memory,
    reset_peak_memory,
)
from report import MB, Bandwidth

from valle.utils.files import written_whole

BUSY_LOAD = 0.5
_FOR_CHILDREN = ("memory_of", "contender")  # flags that no user gives


class Run:
    """One run: what was asked, and what was found so far.

    Args:
      args: the flags, `device`, `probe_mb` and `output_file` among them, none left open.
      script: the path of the program, which is called again to measure in other processes.
      sizes: flags, without dashes before them, that such a call takes over.
    """

    def __init__(self, args: argparse.Namespace, script: str, sizes: Sequence[str]) -> None:
        self.args = args
        self.facts = machine_facts(args.device)
        self.probe = BandwidthProbe(args.device, args.probe_mb * 2**20)
        self._script, self._sizes = script, sizes
        self._found: dict[str, list[Any]] = {}

    def introduce(self, **what: object) -> None:
        """Say on which machine this is, and what is measured; warn where others are at work."""
        for name, value in (self.facts | what).items():
            if value is not None:
                print(f"- {name.replace('_', ' ')}: {value}")
        print(flush=True)
        load = self.facts["load_average_at_start"]
        if isinstance(load, float) and load > BUSY_LOAD:
            logging.warning(
                f"this machine is busy (load average {load:.1f}): figures will be too low and "
                "ratios less sure; better wait until it is idle"
            )

    def keep(self, section: str, rows: Sequence[Any]) -> None:
        """Save the rows of a section with all that was found before."""
        self._found[section] = [asdict(row) for row in rows]
        everything = {
            "facts": self.facts | {"load_average_at_end": load_average()},
            "arguments": {k: v for k, v in vars(self.args).items() if k not in _FOR_CHILDREN},
            "bandwidth": asdict(Bandwidth.of(self.probe)),
            **self._found,
        }
        with written_whole(self.args.output_file) as path:
            path.write_text(json.dumps(everything, indent=2, default=str) + "\n")

    def close(self) -> None:
        print(f"{Bandwidth.of(self.probe)}\n\nEverything is in {self.args.output_file}")

    def command(self, **flags: object) -> list[str]:
        """This program at the sizes of this run, with other flags beside them."""
        sizes = {name: getattr(self.args, name.replace("-", "_")) for name in self._sizes}
        given = sizes | {name.replace("_", "-"): value for name, value in flags.items()}
        pairs = [(f"--{name}", str(value)) for name, value in given.items()]
        return [sys.executable, self._script, *(part for pair in pairs for part in pair)]

    def measure_elsewhere(self, key: str, **others: object) -> dict[str, float]:
        """`memory_of` in a new process, where no other contender has used memory."""
        command = self.command(memory_of=key, **others)
        child = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if child.returncode != 0:
            raise OSError(f"could not measure the memory of {key}: its process says why above")
        return json.loads(child.stdout.splitlines()[-1])


def show(title: str, table: str) -> None:
    print(f"## {title}\n\n{table}\n", flush=True)


def memory_of(make: Callable[[], Callable[[], object]], device: torch.device) -> dict[str, float]:
    """Megabytes that this process takes more for something: as loaded, and at most while it works.

    Args:
      make: makes it, and returns what it does.
      device: where.
    """
    before = memory_now(device)
    work = make()
    loaded = memory_now(device)
    reset_peak_memory(device)
    work()
    return {"loaded": (loaded - before) / MB, "peak": (peak_memory(device) - before) / MB}


def positive(text: str) -> int:
    """For argparse, which adds the name of the flag to the error."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {text}")
    return int(text)
