#!/usr/bin/env python3
"""Ways to store tokens, side by side; and what a manifest costs that grows.

Usage:

  python3 benchmarks/storage.py                                   # 100,000 cuts in each way
  python3 benchmarks/storage.py --num-cuts 5000 --skip manifests  # a quick look

Random codes of recordings of two to six minutes, with cuts of 5 to 15 s in them, are written as
egs/atepp/bin/tokenizer.py writes them, and then in the other ways. Codes are read as training reads
them, through `load_cuts` and `cut_codes`, and by lhotse's own readers where ours differ. "From the
disk" means that the system was asked to forget the files before; all else is in its memory, and
counted in processor time. Tables come as Markdown, and everything as JSON.
"""

import argparse
import json
import logging
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import load_data
import torch
from lhotse import CutSet
from load_data import open_data, proportional_memory, write_tokens
from measure import memory_now, peak_memory, reset_peak_memory
from report import MB, table
from run import Run, positive, show
from storage_formats import WAYS, WRITERS, read_by_lhotse, writable, write_dummy_manifest

from valle.data import cut_codes
from valle.data.summary import summary_path
from valle.utils.dist import choose_device

PARTS = ("ways", "start", "manifests")
LAYOUTS = ("manifest", "shards")
FROM_THE_FRONT = "Shar, read by lhotse"  # the one that has no random access
_SIZES = ("max-duration", "num-workers", "num-batches")


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--num-cuts", type=positive, default=100000, help="to be written in each way")
    add("--num-reads", type=positive, default=10000, help="cuts that are read in each order")
    add("--runs", type=positive, default=3, help="of each, the best of which counts")
    add("--max-duration", type=float, default=150.0, help="seconds a batch")
    add("--num-workers", type=int, default=8, help="of the loader whose memory is measured")
    add("--num-batches", type=positive, default=100, help="loaded before memory is measured")
    add("--manifest-cuts", type=positive, nargs="+", default=[10_000, 100_000, 1_000_000])
    add("--folder", type=Path, help="an empty one on the disk to measure; default: a temporary one")
    add("--skip", nargs="+", choices=PARTS, default=[])
    add("--probe-mb", type=positive, default=64, help="MiB to probe the memory's speed with")
    add("--output-file", type=Path, default=Path("storage.json"))
    add("--memory-of", help=argparse.SUPPRESS)  # this script calls itself with it
    add("--measured-folder", type=Path, help=argparse.SUPPRESS)
    parser.set_defaults(device="cpu")
    return parser


def main(argv: list[str] | None = None) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    warnings.filterwarnings("ignore", message="This DataLoader will create")  # more than cores
    parser = get_parser()
    args = parser.parse_args(argv)
    args.device = choose_device(args.device)
    try:
        if args.memory_of:
            measured = start_of_training if args.memory_of in WAYS else start_of_sampling
            print(json.dumps(measured(args)))
            return
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            Benchmark(args, Path(folder)).run()
    except (ValueError, ImportError, OSError) as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")


# Size and speed


@dataclass
class WayRow:
    """One way to store the codes, or to read what was so stored.

    Attributes:
      num_files, megabytes, disk_megabytes: Of the whole folder; its bytes, and its disk blocks.
      writing_sec: Wall time to write it, for the default from codes, for others from the default.
      in_order: Cuts a second of processor time, the files in the system's memory: entries of the
        manifest and their codes, from the start of the manifest on.
      at_random: The same of entries that were read before, from all over the manifest; None for a
        reader that has no random access.
      cold_in_order, cold_at_random: The same in wall time, from the disk; None where the system
        does not let itself be asked to forget files.
    """

    name: str
    num_files: int
    megabytes: float
    disk_megabytes: float
    writing_sec: float
    in_order: float
    at_random: float | None
    cold_in_order: float | None
    cold_at_random: float | None

    @classmethod
    def of(cls, name: str, folder: Path, writing_sec: float, args: argparse.Namespace) -> "WayRow":
        files = [path for path in folder.rglob("*") if path.is_file()]
        sizes = [path.stat() for path in files]
        reading, num_reads = WAYS[name][1], args.num_reads
        drawn = [] if name == FROM_THE_FRONT else draw(reading(folder), num_reads)

        def in_order() -> Iterator[Any]:
            return islice(reading(folder), num_reads)

        return cls(
            name=name,
            num_files=len(files),
            megabytes=sum(size.st_size for size in sizes) / MB,
            disk_megabytes=sum(512 * size.st_blocks for size in sizes) / MB,
            writing_sec=writing_sec,
            cold_in_order=cold_speed(in_order, files, args.runs),
            cold_at_random=cold_speed(lambda: iter(drawn), files, args.runs) if drawn else None,
            in_order=max(speed(in_order(), time.process_time) for _ in range(args.runs)),
            at_random=max(speed(drawn, time.process_time) for _ in range(args.runs))
            if drawn
            else None,
        )


def draw(cuts: CutSet, count: int) -> list[Any]:
    """Cuts from all over a manifest, without order."""
    every = max(1, sum(1 for _ in cuts) // count)
    picked = [cut for index, cut in enumerate(cuts) if index % every == 0]
    order = torch.randperm(len(picked), generator=torch.Generator().manual_seed(0))
    return [picked[i] for i in order.tolist()]


def speed(cuts: Iterable[Any], clock: Callable[[], float]) -> float:
    """Cuts a second whose codes are read."""
    start, count = clock(), 0
    for cut in cuts:
        cut_codes(cut)
        count += 1
    return count / (clock() - start)


def cold_speed(cuts: Callable[[], Iterator[Any]], files: list[Path], runs: int) -> float | None:
    """The best of some runs in wall time, before each of which the files are forgotten."""
    if not hasattr(os, "posix_fadvise"):
        return None
    best = 0.0
    for _ in range(runs):
        forget(files)
        best = max(best, speed(cuts(), time.perf_counter))
    return best


def forget(files: list[Path]) -> None:
    """Ask the system to drop files from its memory."""
    os.sync()  # what is not on the disk yet cannot be dropped
    for path in files:
        number = os.open(path, os.O_RDONLY)
        os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(number)


# Start and memory, each in a process of its own


@dataclass
class StartRow:
    """A process that starts to train.

    Attributes:
      seconds: From the opening of the manifest to the first batch; wall time.
      megabytes: That it has grown by after some batches.
      worker_megabytes: Of all its workers, what they share with others counted in part.
    """

    name: str
    seconds: float
    megabytes: float
    worker_megabytes: float


def start_of_training(args: argparse.Namespace) -> dict[str, float]:
    """The figures of a `StartRow`, of this process."""
    before, start = memory_now(args.device), time.perf_counter()
    flags = {"max_duration": args.max_duration, "num_workers": args.num_workers}
    data, _ = open_data(args.measured_folder, **flags)
    cuts = data.survey(data.train_cuts(), 0.0, 20.0).cuts
    if WAYS[args.memory_of][1] is read_by_lhotse:
        cuts = read_by_lhotse(args.measured_folder)
    batches = load_data.endless(data.train_dataloader(cuts, seed=0))
    next(batches)
    seconds = time.perf_counter() - start
    for _ in range(args.num_batches):
        next(batches)
    workers = sum(proportional_memory(child.pid) for child in multiprocessing.active_children())
    own = memory_now(args.device) - before
    return {"seconds": seconds, "megabytes": own / MB, "worker_megabytes": workers / MB}


@dataclass
class ManifestRow:
    """A manifest of dummy entries; processor time.

    Attributes:
      megabytes_on_disk: The manifest, or the cuts of all shards.
      survey_sec: To count cuts and hours and find the codec, as training does when it starts.
      reading_sec: The same without a summary beside the manifest.
      drawing_sec: From there to the first batch drawn, which is not loaded.
      megabytes: That the process has grown by at most, with the summary.
    """

    layout: str
    num_cuts: int
    megabytes_on_disk: float
    survey_sec: float
    reading_sec: float
    drawing_sec: float
    megabytes: float


def start_of_sampling(args: argparse.Namespace) -> dict[str, float]:
    """Survey and first batch of a folder of dummy entries, in this process."""
    before = memory_now(args.device)
    reset_peak_memory(args.device)
    start = time.process_time()
    data, _ = open_data(args.measured_folder, max_duration=args.max_duration, num_workers=0)
    survey = data.survey(data.train_cuts(), 0.0, 20.0)
    surveyed = time.process_time()
    next(iter(data.train_dataloader(survey.cuts, seed=0).sampler))
    end, most = time.process_time(), peak_memory(args.device)
    return {
        "survey_sec": surveyed - start,
        "drawing_sec": end - surveyed,
        "megabytes": (most - before) / MB,
    }


class Benchmark(Run):
    """Runs what is not skipped, prints tables as they come, and saves everything.

    Args:
      args: of `get_parser`.
      folder: an empty one.
    """

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        super().__init__(args, __file__, _SIZES)
        self.folder = folder

    def run(self) -> None:
        torch.set_num_threads(1)  # as a loader's worker has it
        self.introduce(cuts=self.args.num_cuts)
        if not {"ways", "start"} <= set(self.args.skip):
            self.ways()
        if "manifests" not in self.args.skip:
            self.manifests()
        self.close()

    def ways(self) -> None:
        rows, starts = [], []
        start = time.perf_counter()
        source = write_tokens(self.folder / "numpy", self.args.num_cuts)
        writing = {"numpy": time.perf_counter() - start}
        for name in writable():
            start = time.perf_counter()
            WRITERS[name](source, self.folder / name)
            writing[name] = time.perf_counter() - start
        for name, (place, _) in WAYS.items():
            if place not in writing:
                continue
            folder = self.folder / place
            if "ways" not in self.args.skip:
                rows.append(WayRow.of(name, folder, writing[place], self.args))
            if "start" not in self.args.skip:
                runs = range(self.args.runs)
                found = [self.measure_elsewhere(name, measured_folder=folder) for _ in runs]
                starts.append(StartRow(name, **min(found, key=lambda run: run["seconds"])))
        self.keep("ways", rows)
        self.keep("start", starts)
        show_ways(rows)
        show_starts(starts, self.args.num_workers)

    def manifests(self) -> None:
        rows = [
            self.manifest_row(layout, num_cuts)
            for layout in LAYOUTS
            for num_cuts in self.args.manifest_cuts
        ]
        self.keep("manifests", rows)
        show_manifests(rows)

    def manifest_row(self, layout: str, num_cuts: int) -> ManifestRow:
        folder = self.folder / f"{layout}-{num_cuts}"
        write_dummy_manifest(folder, num_cuts, shards=layout == "shards")
        files = list(folder.rglob("*.jsonl.gz"))
        found = self.measure_elsewhere(layout, measured_folder=folder)
        summary_path(folder / "cuts_train").unlink()
        reading = self.measure_elsewhere(layout, measured_folder=folder)["survey_sec"]
        size = sum(file.stat().st_size for file in files) / MB
        shutil.rmtree(folder)
        return ManifestRow(layout, num_cuts, size, reading_sec=reading, **found)


# Tables


def show_ways(rows: list[WayRow]) -> None:
    if not rows:
        return
    header = [
        *("way", "files", "MB", "MB on disk", "s to write", "in order", "at random"),
        *("in order, from the disk", "at random, from the disk"),
    ]
    cells = [
        (
            *(row.name, str(row.num_files), f"{row.megabytes:.0f}", f"{row.disk_megabytes:.0f}"),
            f"{row.writing_sec:.0f}",
            *map(rate, (row.in_order, row.at_random, row.cold_in_order, row.cold_at_random)),
        )
        for row in rows
    ]
    show("Size, and cuts a second", table(header, cells))


def rate(cuts_per_sec: float | None) -> str:
    return "-" if cuts_per_sec is None else f"{cuts_per_sec:.0f}"


def show_starts(rows: list[StartRow], num_workers: int) -> None:
    if not rows:
        return
    header = ("way", "s to the first batch", "MB", f"MB of all {num_workers} workers")
    cells = [
        (row.name, f"{row.seconds:.2f}", f"{row.megabytes:.0f}", f"{row.worker_megabytes:.0f}")
        for row in rows
    ]
    show("Start, each in a process of its own", table(header, cells))


def show_manifests(rows: list[ManifestRow]) -> None:
    header = [
        *("layout", "cuts", "MB on disk", "s to survey", "s without a summary"),
        *("s to the first batch", "MB at most"),
    ]
    cells = [
        (
            *(row.layout, str(row.num_cuts), f"{row.megabytes_on_disk:.2f}"),
            *(f"{row.survey_sec:.2f}", f"{row.reading_sec:.2f}", f"{row.drawing_sec:.2f}"),
            f"{row.megabytes:.0f}",
        )
        for row in rows
    ]
    show("Manifests of dummy entries", table(header, cells))


if __name__ == "__main__":
    main()
