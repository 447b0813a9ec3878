#!/usr/bin/env python3
"""How fast batches come from the disk, and how much of them is padding.

Usage:

  python3 benchmarks/load_data.py                                  # writes its own token cuts
  python3 benchmarks/load_data.py --step-frames-per-second 300000  # beside what a step takes
  python3 benchmarks/load_data.py --manifest-dir data/tokenized    # on your cuts and your disk

Without `--manifest-dir`, random codes of recordings of two to six minutes are written as
egs/atepp/bin/tokenizer.py writes them, with cuts of 5 to 15 s in them, all lengths alike; and the
same in HDF5, a dataset for each cut, as VALL-E wrote them. What was just written is in the system's
memory: these figures are the processor's work, those of a disk need your own files. All goes
through `TokenDataModule` with its default flags. Tables come as Markdown, and everything as JSON.
"""

import argparse
import importlib.util
import json
import logging
import multiprocessing
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lhotse import Features, NumpyHdf5Writer
from lhotse.utils import fastcopy
from measure import memory_now
from report import MB, table
from run import Run, positive, show

from valle.data import CodecInfo, TokenDataModule, consumed_state
from valle.data.datamodule import DurationFilter
from valle.data.manifest import frame_shift_of
from valle.data.sampler import load_sampler_state
from valle.data.storage import (
    cut_windows,
    make_recording,
    stored_frames,
    whole_cut,
    write_codes,
    write_cuts,
)
from valle.utils.dist import choose_device

CODEC = CodecInfo("random codes", 32000, 50.0, 4, 2048, "0" * 16)
CUT_SEC = (5.0, 15.0)
RECORDING_SEC = (120.0, 360.0)
STORAGES = ("numpy", "hdf5")
PARTS = ("loader", "first-batch", "sampler", "padding", "resume")
_SIZES = ("max-duration",)  # flags that the process which measures the first batch takes over


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--manifest-dir", type=Path, help="token manifests to measure; default: some are written")
    # more than the sampler's buffer holds, so that it reads on while batches are drawn
    add("--num-cuts", type=positive, default=50000, help="to be written")
    add("--storages", nargs="+", choices=STORAGES, help="to be written; default: all that can be")
    add("--max-duration", type=float, default=150.0, help="seconds a batch")
    add("--num-workers", type=int, nargs="+", default=[0, 1, 2, 4])
    add("--num-batches", type=positive, default=100, help="that are timed")
    add("--world-sizes", type=positive, nargs="+", default=[1, 8, 64], help="of the sampler alone")
    add("--num-buckets", type=positive, nargs="+", default=[1, 10, 20, 30, 50], help="of padding")
    add("--max-durations", type=float, nargs="+", default=[40.0, 150.0], help="of padding")
    add("--resume-batches", type=positive, nargs="+", default=[100, 1000], help="trained before")
    add("--step-frames-per-second", type=float, help="that training takes; see train_step.py")
    add("--skip", nargs="+", choices=PARTS, default=[])
    add("--probe-mb", type=positive, default=64, help="MiB to probe the memory's speed with")
    add("--output-file", type=Path, default=Path("load_data.json"))
    add("--memory-of", help=argparse.SUPPRESS)  # this script calls itself with it
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
            print(json.dumps(first_batch(args.manifest_dir, args.num_workers[0], args)))
        elif args.manifest_dir:
            Benchmark(args, {"yours": args.manifest_dir}).run()
        else:
            with tempfile.TemporaryDirectory() as folder:
                Benchmark(args, write_all(Path(folder), args)).run()
    except (ValueError, ImportError, OSError) as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")


# What is measured on


def write_all(folder: Path, args: argparse.Namespace) -> dict[str, Path]:
    """Write the same cuts in each storage. Returns a folder of manifests for each."""
    has_hdf5 = importlib.util.find_spec("h5py") is not None
    storages = args.storages or STORAGES[: 1 + has_hdf5]
    if "hdf5" in storages and not has_hdf5:
        raise ImportError("--storages hdf5 needs h5py: pip install 'valle[hdf5]'")
    for storage in storages:
        write_tokens(folder / storage, args.num_cuts, in_hdf5=storage == "hdf5")
    return {storage: folder / storage for storage in storages}


def write_tokens(folder: Path, num_cuts: int, in_hdf5: bool = False) -> Path:
    """Write so many cuts of random codes, and their manifest.

    Returns:
      The manifest's path.
    """
    cuts = islice(draw_cuts(folder, np.random.default_rng(0)), num_cuts)
    path = folder / "cuts_train.jsonl.gz"
    if in_hdf5:
        folder.mkdir(parents=True)
        with NumpyHdf5Writer(str(folder / "tokens.h5")) as writer:
            write_cuts(path, (in_older_layout(cut, writer) for cut in cuts))
    else:
        write_cuts(path, cuts)
    return path


def draw_cuts(folder: Path, rng: np.random.Generator) -> Iterator[Any]:
    """Recordings without end, their codes written, each covered by cuts of drawn lengths."""
    shortest, longest = (round(sec * CODEC.frame_rate) for sec in CUT_SEC)
    for index in count():
        id_ = f"recording-{index}"
        num_samples = round(rng.uniform(*RECORDING_SEC) * 44100)
        recording = make_recording(id_, f"{id_}.flac", num_samples, 44100, 2)
        num_frames = stored_frames(recording.duration, CODEC)
        shape = (num_frames, CODEC.num_quantizers)
        write_codes(folder / "tokens", id_, rng.integers(CODEC.codebook_size, size=shape))
        whole = whole_cut(recording, "tokens", id_, num_frames, CODEC)
        start = 0
        while num_frames - start > longest:
            length = int(rng.integers(shortest, longest, endpoint=True))
            offset, seconds = start / CODEC.frame_rate, length / CODEC.frame_rate
            part = whole.truncate(offset=offset, duration=seconds).with_id(f"{id_}-{start:06d}")
            yield from cut_windows(part, CODEC, longest, 0)
            start += length


def in_older_layout(cut: Any, writer: NumpyHdf5Writer) -> Any:
    """The cut with its codes as lhotse features of its own, int64, as VALL-E stored them."""
    path = Path(writer.storage_path)
    codes = np.load(path.parent / "tokens" / cut.audio_features.array.storage_key)
    start = round(cut.start * CODEC.frame_rate)
    own = codes[start : start + stored_frames(cut.duration, CODEC)].astype(np.int64)
    features = Features(
        type="encodec",
        num_frames=len(own),
        num_features=CODEC.num_quantizers,
        frame_shift=1 / CODEC.frame_rate,
        sampling_rate=CODEC.sampling_rate,
        start=cut.start,
        duration=cut.duration,
        storage_type=writer.name,
        storage_path=path.name,
        storage_key=writer.write(cut.id, own),
        channels=0,
    )
    return fastcopy(cut, features=features, custom=None)


def open_data(folder: Path, **flags: object) -> tuple[TokenDataModule, Any]:
    """The data module with its default flags but for the given ones, and cuts as training has."""
    parser = argparse.ArgumentParser()
    TokenDataModule.add_arguments(parser)
    given = [("--" + name.replace("_", "-"), str(value)) for name, value in flags.items()]
    args = parser.parse_args(
        [f"--manifest-dir={folder}", *(part for pair in given for part in pair)]
    )
    data = TokenDataModule(args)
    return data, data.train_cuts().filter(DurationFilter(0.0, 20.0))


# What is measured


@dataclass
class LoaderRow:
    """The whole loader, after its first batches.

    Attributes:
      frames_per_sec: real ones.
      times_the_step: frames a second over those that training takes.
    """

    storage: str
    num_workers: int
    batches_per_sec: float
    cuts_per_sec: float
    frames_per_sec: float
    times_the_step: float | None

    @classmethod
    def of(
        cls, storage: str, folder: Path, num_workers: int, args: argparse.Namespace
    ) -> "LoaderRow":
        data, cuts = open_data(folder, max_duration=args.max_duration, num_workers=num_workers)
        iterator = endless(data.train_dataloader(cuts, seed=0))
        for _ in range(1 + 4 * num_workers):  # what workers had time to make ready
            next(iterator)
        start, num_cuts, num_frames = time.perf_counter(), 0, 0
        for batch in islice(iterator, args.num_batches):
            num_cuts += len(batch["utt_id"])
            num_frames += int(batch["audio_features_lens"].sum())
        seconds, step = time.perf_counter() - start, args.step_frames_per_second
        return cls(
            storage=storage,
            num_workers=num_workers,
            batches_per_sec=args.num_batches / seconds,
            cuts_per_sec=num_cuts / seconds,
            frames_per_sec=num_frames / seconds,
            times_the_step=num_frames / seconds / step if step else None,
        )


def endless(loader: Any) -> Iterator[dict[str, Any]]:
    """Batches, epoch after epoch."""
    for epoch in count():
        loader.sampler.set_epoch(epoch)
        yield from loader


@dataclass
class FirstBatchRow:
    """A process that starts to train.

    Attributes:
      seconds: from the opening of the manifest to the first batch.
      megabytes: that the process has grown by.
      worker_megabytes: of its workers, what they share with others counted in part.
    """

    storage: str
    num_workers: int
    seconds: float
    megabytes: float
    worker_megabytes: float


def first_batch(folder: Path, num_workers: int, args: argparse.Namespace) -> dict[str, float]:
    """The figures of a `FirstBatchRow`, of this process."""
    before, start = memory_now(args.device), time.perf_counter()
    data, cuts = open_data(folder, max_duration=args.max_duration, num_workers=num_workers)
    iterator = iter(data.train_dataloader(cuts, seed=0))
    next(iterator)
    seconds = time.perf_counter() - start
    workers = sum(proportional_memory(child.pid) for child in multiprocessing.active_children())
    own = memory_now(args.device) - before
    return {"seconds": seconds, "megabytes": own / MB, "worker_megabytes": workers / MB}


def proportional_memory(pid: int | None) -> int:
    """Bytes of a process, a page that n of them share counting as an nth; 0 where unknown."""
    path = Path(f"/proc/{pid}/smaps_rollup")
    lines = path.read_text().splitlines() if path.exists() else []
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


@dataclass
class SamplerRow:
    """The sampler alone, in the process that trains; its processor time, as it waits for nothing.

    Attributes:
      world_size: ranks; each draws the batches of all and keeps its own.
      ms: of a rank for a step.
      batches_per_sec: drawn, for whatever rank.
    """

    world_size: int
    ms: float
    batches_per_sec: float

    @classmethod
    def of(cls, folder: Path, world_size: int, args: argparse.Namespace) -> "SamplerRow":
        data, cuts = open_data(folder, max_duration=args.max_duration)
        sampler = iter(data.train_dataloader(cuts, seed=0, world_size=world_size).sampler)
        next(sampler)
        start, steps = time.process_time(), 0
        while steps * world_size < args.num_batches and next(sampler, None) is not None:
            steps += 1  # a for loop would call iter, and so begin again
        seconds = (time.process_time() - start) / max(steps, 1)
        return cls(world_size, 1000 * seconds, world_size / seconds)


@dataclass
class PaddingRow:
    """All batches of an epoch.

    Attributes:
      padding: share of the frames that are none.
      mean_sec, largest_sec: of a batch, padding included.
    """

    max_duration: float
    num_buckets: int
    padding: float
    num_batches: int
    mean_sec: float
    largest_sec: float

    @classmethod
    def of(cls, folder: Path, max_duration: float, num_buckets: int) -> "PaddingRow":
        data, cuts = open_data(folder, max_duration=max_duration, num_buckets=num_buckets)
        real, padded = 0, []
        for batch in data.train_dataloader(cuts, seed=0).sampler:
            shift = frame_shift_of(batch[0]) or 1.0
            lengths = [round(cut.duration / shift) for cut in batch]
            real += sum(lengths)
            padded.append(len(lengths) * max(lengths))
        mean, largest = np.mean(padded) * shift, max(padded) * shift
        share = 1 - real / sum(padded)
        return cls(max_duration, num_buckets, share, len(padded), float(mean), largest)


@dataclass
class ResumeRow:
    """Finding the place inside an epoch again, after so many batches; processor time."""

    num_batches: int
    seconds: float

    @classmethod
    def of(cls, folder: Path, num_batches: int, args: argparse.Namespace) -> "ResumeRow":
        data, cuts = open_data(folder, max_duration=args.max_duration)
        sampler = data.train_dataloader(cuts, seed=0).sampler
        state = consumed_state(sampler, num_batches)
        start = time.process_time()
        try:
            load_sampler_state(sampler, state)
        except StopIteration as error:
            raise ValueError(
                f"an epoch has fewer than {num_batches} batches: lower --resume-batches, or raise "
                "--num-cuts"
            ) from error
        return cls(num_batches, time.process_time() - start)


class Benchmark(Run):
    """Runs what is not skipped, prints tables as they come, and saves everything.

    Args:
      args: of `get_parser`.
      folders: of manifests, by the name of their storage; the sampler is measured on the first.
    """

    def __init__(self, args: argparse.Namespace, folders: dict[str, Path]) -> None:
        super().__init__(args, __file__, _SIZES)
        self.folders, self.folder = folders, next(iter(folders.values()))

    def run(self) -> None:
        torch.set_num_threads(1)  # as a loader's worker has it
        self.introduce(seconds_a_batch=self.args.max_duration)
        for part in PARTS:
            if part not in self.args.skip:
                getattr(self, part.replace("-", "_"))()
        self.close()

    def loader(self) -> None:
        places = [(s, f, n) for s, f in self.folders.items() for n in self.args.num_workers]
        rows = [LoaderRow.of(storage, folder, n, self.args) for storage, folder, n in places]
        self.keep("loader", rows)
        header = ("storage", "workers", "batches/s", "cuts/s", "frames/s", "x what a step takes")
        show("The loader", table(header, [loader_cells(row) for row in rows]))

    def first_batch(self) -> None:
        rows = []
        for storage, folder in self.folders.items():
            for n in self.args.num_workers:
                found = self.measure_elsewhere(storage, manifest_dir=folder, num_workers=n)
                rows.append(FirstBatchRow(storage, n, **found))
        self.keep("first_batch", rows)
        header = ("storage", "workers", "s to the first batch", "MB", "MB of all workers")
        show("Start, each in a process of its own", table(header, [start_cells(r) for r in rows]))

    def sampler(self) -> None:
        rows = [SamplerRow.of(self.folder, size, self.args) for size in self.args.world_sizes]
        self.keep("sampler", rows)
        header = ("ranks", "ms of each rank for a step", "batches/s drawn")
        cells = [(str(r.world_size), f"{r.ms:.3g}", f"{r.batches_per_sec:.0f}") for r in rows]
        show("The sampler alone", table(header, cells))

    def padding(self) -> None:
        limits, buckets = self.args.max_durations, self.args.num_buckets
        rows = [PaddingRow.of(self.folder, sec, n) for sec in limits for n in buckets]
        self.keep("padding", rows)
        header = ("max duration", "buckets", "padding", "batches", "mean s", "largest s")
        show("Padding", table(header, [padding_cells(row) for row in rows]))

    def resume(self) -> None:
        rows = [ResumeRow.of(self.folder, n, self.args) for n in self.args.resume_batches]
        self.keep("resume", rows)
        cells = [(str(row.num_batches), f"{row.seconds:.2f}") for row in rows]
        show("Going on inside an epoch", table(("batches trained on before", "s"), cells))


def loader_cells(row: LoaderRow) -> tuple[str, ...]:
    times = "-" if row.times_the_step is None else f"{row.times_the_step:.3g}"
    rates = (f"{row.batches_per_sec:.3g}", f"{row.cuts_per_sec:.0f}", f"{row.frames_per_sec:.0f}")
    return (row.storage, str(row.num_workers), *rates, times)


def start_cells(row: FirstBatchRow) -> tuple[str, ...]:
    megabytes = (f"{row.megabytes:.0f}", f"{row.worker_megabytes:.0f}")
    return (row.storage, str(row.num_workers), f"{row.seconds:.2f}", *megabytes)


def padding_cells(row: PaddingRow) -> tuple[str, ...]:
    share, batches = f"{row.padding:.1%}", str(row.num_batches)
    seconds = (f"{row.mean_sec:.1f}", f"{row.largest_sec:.1f}")
    return (f"{row.max_duration:g}", str(row.num_buckets), share, batches, *seconds)


if __name__ == "__main__":
    main()
