#!/usr/bin/env python3
"""From one GPU to a thousand, on paper: what a step costs, and what breaks first.

Usage:

  python3 benchmarks/scaling.py
  python3 benchmarks/scaling.py --network-bandwidth 12.5e9 --num-gpus 1 16 --hours 740

Nothing here runs on a GPU. The model is counted as it is, on no device; reading a manifest and
drawing batches are measured on this machine, on cuts that are written for it; the rest are the
formulas of docs/scaling.md over the flags, of which some are assumptions: `--help` says which.
Replace them by what your machines do. Tables come as Markdown, and everything as JSON in a file.
"""

import argparse
import json
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from load_data import CODEC, SamplerRow, write_tokens
from report import table
from run import positive, show
from train_contenders import TrainBatch, two_halves_flops

from valle.data import load_cuts
from valle.models import AudioLM, AudioLMConfig, TrainStage
from valle.utils.files import written_whole

FLOAT32 = 4  # bytes
CODE_BYTES = 2  # of a code on disk
MOMENTS = 2  # that the optimizer keeps of each parameter
BACKWARD_SHARE = 2 / 3  # of a step's operations
GATHERED_LAYERS = 2  # with FSDP: the one at work, and the next one under way


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument_group("model").add_argument
    add("--d-model", type=positive, default=1024)
    add("--num-layers", type=positive, default=12)
    add("--nhead", type=positive, default=16)
    add = parser.add_argument_group("run").add_argument
    add("--num-gpus", type=positive, nargs="+", default=[1, 8, 64, 1024])
    add("--hours", type=float, nargs="+", default=[740.0, 1e6], help="of sound; ATEPP has 740")
    add("--max-duration", type=float, default=150.0, help="seconds of a batch on each GPU")
    add("--accumulate-grad-steps", type=positive, default=1, help="batches a step")
    add("--cut-sec", type=float, default=10.0, help="seconds of a cut, on average")
    add("--save-every-n", type=positive, default=10000, help="steps between checkpoints")
    add = parser.add_argument_group("machines (rates a second)").add_argument
    add("--dense-flops", type=float, default=790e12, help="bf16 products; that of one H200")
    add("--gpu-memory", type=float, default=141e9, help="bytes; those of one H200")
    add("--utilisation", type=float, default=0.4, help="assumption: share of it that a step gets")
    add("--gpus-per-node", type=positive, default=8)
    add("--link-bandwidth", type=float, default=450e9, help="assumption: bytes, GPU to GPU")
    add(
        "--network-bandwidth",
        type=float,
        default=[400e9, 12.5e9],
        nargs="+",
        help="assumption: bytes between a node and the others; 8 cards of 400 Gbit/s, 1 of 100",
    )
    add("--file-reads", type=float, default=5000.0, help="assumption: small files, of all nodes")
    add("--checkpoint-bandwidth", type=float, default=1e9, help="assumption: bytes, of one writer")
    add = parser.add_argument_group("measured here").add_argument
    add("--num-cuts", type=positive, default=50000, help="to write, read and draw batches from")
    add("--output-file", type=Path, default=Path("scaling.json"))
    return parser


def main(argv: list[str] | None = None) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    warnings.filterwarnings("ignore", message="This DataLoader will create")  # none is used
    parser = get_parser()
    args = parser.parse_args(argv)
    try:
        check(args)
        report(args)
    except (ValueError, OSError) as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")


def check(args: argparse.Namespace) -> None:
    """Refuse what no machine has."""
    rates = ("dense_flops", "link_bandwidth", "file_reads", "checkpoint_bandwidth", "cut_sec")
    numbers = {name: [getattr(args, name)] for name in rates}
    numbers |= {"network_bandwidth": args.network_bandwidth, "hours": args.hours}
    for name, values in numbers.items():
        if min(values) <= 0:
            flag = "--" + name.replace("_", "-")
            raise ValueError(f"{flag} must be above 0, got {min(values):g}")
    if not 0 < args.utilisation <= 1:
        raise ValueError(f"--utilisation is a share above 0 up to 1, got {args.utilisation:g}")
    if args.max_duration < args.cut_sec:
        raise ValueError(
            f"--max-duration {args.max_duration:g} holds no cut of --cut-sec {args.cut_sec:g}"
        )


# The model and the manifest


@dataclass(frozen=True)
class Model:
    """What a size costs, whatever trains it.

    Attributes:
      num_parameters: of both halves.
      layer_parameters: of the largest layer, which FSDP gathers as one.
      other_parameters: of what is in no layer, which FSDP gathers as one and for the whole step.
      flops_a_frame: forward and backward of a real frame, cuts being of one length.
    """

    num_parameters: int
    layer_parameters: int
    other_parameters: int
    flops_a_frame: float

    @classmethod
    def of(cls, config: AudioLMConfig, batch_size: int, num_frames: int) -> "Model":
        with torch.device("meta"):
            model = AudioLM(**asdict(config))
        layers = [*model.ar.decoder.layers, *model.nar.decoder.layers]
        cpu = torch.device("cpu")
        batch = TrainBatch.random(config, batch_size, num_frames, 0.4, 1.0, cpu)
        flops = two_halves_flops(config, batch, TrainStage.BOTH, ours=True).total
        sizes, whole = [count_parameters(layer) for layer in layers], count_parameters(model)
        return cls(whole, max(sizes), whole - sum(sizes), flops / batch.num_frames)

    @property
    def gradient_bytes(self) -> int:
        return FLOAT32 * self.num_parameters

    @property
    def state_bytes(self) -> int:
        """Weights, gradients and moments: what FSDP shards."""
        return (2 + MOMENTS) * FLOAT32 * self.num_parameters

    @property
    def gathered_bytes(self) -> int:
        """Weights that FSDP holds whole at a time, beside its shard."""
        return FLOAT32 * (GATHERED_LAYERS * self.layer_parameters + self.other_parameters)

    def checkpoint_bytes(self, averaged: bool = False) -> int:
        """Weights and moments; `--average-period` adds a mean of the weights in float64."""
        return (1 + MOMENTS + 2 * averaged) * FLOAT32 * self.num_parameters


def count_parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@dataclass(frozen=True)
class Manifest:
    """What was measured on this machine, as processor time of one process.

    Attributes:
      bytes_a_cut: of the compressed manifest.
      read_us: microseconds to read a cut of it.
      draw_ms: milliseconds to draw a batch, its cuts' reading included.
    """

    bytes_a_cut: float
    read_us: float
    draw_ms: float

    @classmethod
    def measured(cls, num_cuts: int, max_duration: float) -> "Manifest":
        with tempfile.TemporaryDirectory() as folder:
            path = write_tokens(Path(folder) / "cuts", num_cuts)
            start = time.process_time()
            for _ in load_cuts(path):
                pass
            read = time.process_time() - start
            settings = argparse.Namespace(max_duration=max_duration, num_batches=200)
            draw = SamplerRow.of(path.parent, 1, settings).ms
            return cls(path.stat().st_size / num_cuts, 1e6 * read / num_cuts, draw)


# What follows


@dataclass(frozen=True)
class Scale:
    """A step on so many GPUs. Times in milliseconds, `--accumulate-grad-steps` counted in.

    Attributes:
      network_bandwidth: bytes a second between nodes.
      step_sec: seconds of sound that a step reads, on all GPUs.
      frames_per_sec: of all GPUs, if nothing but arithmetic took time.
      compute_ms: of it.
      reduce_bytes, reduce_ms: what each GPU sends of gradients with DDP, and for how long.
      reduce_exposed_ms: of that, what the last batch's backward pass cannot hide.
      shard_bytes, shard_ms, shard_exposed_ms: the same of FSDP, over forward and backward.
      draw_ms: that each rank draws batches for all ranks.
      files_per_sec: reads, one a cut.
      files_ms: that storage takes to answer them.
      ddp_bytes, fsdp_bytes: of weights, gradients and moments on a GPU, activations left out.
      slowest: what takes longest in a step with DDP.
    """

    num_gpus: int
    network_bandwidth: float
    step_sec: float
    frames_per_sec: float
    compute_ms: float
    reduce_bytes: float
    reduce_ms: float
    reduce_exposed_ms: float
    shard_bytes: float
    shard_ms: float
    shard_exposed_ms: float
    draw_ms: float
    files_per_sec: float
    files_ms: float
    ddp_bytes: float
    fsdp_bytes: float
    slowest: str

    @classmethod
    def of(
        cls,
        args: argparse.Namespace,
        model: Model,
        manifest: Manifest,
        num_gpus: int,
        network: float,
    ) -> "Scale":
        batches = args.accumulate_grad_steps
        frames = args.max_duration * CODEC.frame_rate  # of a batch
        batch_ms = 1e3 * frames * model.flops_a_frame / (args.utilisation * args.dense_flops)
        compute = batches * batch_ms
        others = (num_gpus - 1) / num_gpus
        on_one_node = num_gpus <= args.gpus_per_node
        speed = args.link_bandwidth if on_one_node else min(args.link_bandwidth, network)
        reduce = 2 * others * model.gradient_bytes
        reduce_ms = 1e3 * reduce / speed
        shard = batches * 3 * others * model.gradient_bytes
        shard_ms = 1e3 * shard / speed
        cuts = num_gpus * batches * args.max_duration / args.cut_sec  # of a step
        draw = num_gpus * batches * manifest.draw_ms
        files = 1e3 * cuts / args.file_reads
        times = {"arithmetic": compute, "drawing batches": draw, "reading files": files}
        times["all-reduce"] = reduce_ms
        gathered = model.gathered_bytes if num_gpus > 1 else 0
        return cls(
            num_gpus=num_gpus,
            network_bandwidth=network,
            step_sec=num_gpus * batches * args.max_duration,
            frames_per_sec=1e3 * num_gpus * frames / batch_ms,
            compute_ms=compute,
            reduce_bytes=reduce,
            reduce_ms=reduce_ms,
            reduce_exposed_ms=max(0.0, reduce_ms - BACKWARD_SHARE * batch_ms),
            shard_bytes=shard,
            shard_ms=shard_ms,
            shard_exposed_ms=max(0.0, shard_ms - compute),
            draw_ms=draw,
            files_per_sec=1e3 * cuts / compute,
            files_ms=files,
            ddp_bytes=float(model.state_bytes),
            fsdp_bytes=model.state_bytes / num_gpus + gathered,
            slowest=max(times, key=lambda name: times[name]),
        )


@dataclass(frozen=True)
class Corpus:
    """What a number of hours costs before and between steps.

    Attributes:
      token_bytes: of codes on disk.
      manifest_bytes: compressed.
      pass_hours: to read the manifest once, in one process.
      resume_hours: to draw again the batches of half an epoch, as every rank does.
    """

    hours: float
    num_cuts: float
    token_bytes: float
    manifest_bytes: float
    pass_hours: float
    resume_hours: float

    @classmethod
    def of(cls, args: argparse.Namespace, manifest: Manifest, hours: float) -> "Corpus":
        seconds = 3600 * hours
        num_cuts = seconds / args.cut_sec
        return cls(
            hours=hours,
            num_cuts=num_cuts,
            token_bytes=seconds * CODEC.frame_rate * CODEC.num_quantizers * CODE_BYTES,
            manifest_bytes=num_cuts * manifest.bytes_a_cut,
            pass_hours=num_cuts * manifest.read_us / 1e6 / 3600,
            resume_hours=seconds / args.max_duration / 2 * manifest.draw_ms / 1e3 / 3600,
        )


# Tables


def report(args: argparse.Namespace) -> None:
    config = AudioLMConfig(args.d_model, args.nhead, args.num_layers)
    batch_size = int(args.max_duration / args.cut_sec)
    model = Model.of(config, batch_size, round(args.cut_sec * CODEC.frame_rate))
    manifest = Manifest.measured(args.num_cuts, args.max_duration)
    scales = [
        Scale.of(args, model, manifest, n, network)
        for network in args.network_bandwidth
        for n in args.num_gpus
    ]
    corpora = [Corpus.of(args, manifest, hours) for hours in args.hours]
    once = scales[: len(args.num_gpus)]  # what does not depend on the network
    show("The model", model_table(model, args))
    show("Measured on this machine", manifest_table(manifest))
    show("A step", steps_table(once, args))
    show("Between the GPUs", exchange_table(scales))
    show("Memory of a GPU, activations left out", memory_table(once, args))
    show("Data", data_table(once))
    show("The corpus", corpus_table(corpora))
    keep(args, {"model": model, "manifest": manifest, "scales": scales, "corpora": corpora})


def keep(args: argparse.Namespace, found: dict[str, Any]) -> None:
    """Save what the tables show, with the arguments."""
    rows = {
        name: [asdict(row) for row in rows] if isinstance(rows, list) else asdict(rows)
        for name, rows in found.items()
    }
    with written_whole(args.output_file) as path:
        path.write_text(json.dumps({"arguments": vars(args), **rows}, indent=2, default=str) + "\n")
    print(f"Everything is in {args.output_file}")


def model_table(model: Model, args: argparse.Namespace) -> str:
    sizes = (model.checkpoint_bytes(), model.checkpoint_bytes(averaged=True))
    rows = [
        ("M parameters", f"{model.num_parameters / 1e6:.1f}"),
        ("GFLOP a frame, forward and backward", f"{model.flops_a_frame / 1e9:.2f}"),
        ("GB of a checkpoint, and with `--average-period`", f"{gb(sizes[0])}, {gb(sizes[1])}"),
        ("s to write it", ", ".join(f"{size / args.checkpoint_bandwidth:.1f}" for size in sizes)),
    ]
    return table(("what", "value"), rows)


def manifest_table(manifest: Manifest) -> str:
    rows = [
        ("bytes of a cut in the manifest", f"{manifest.bytes_a_cut:.0f}"),
        ("µs to read it", f"{manifest.read_us:.0f}"),
        ("ms to draw a batch", f"{manifest.draw_ms:.2f}"),
    ]
    return table(("what", "value"), rows)


def steps_table(scales: Sequence[Scale], args: argparse.Namespace) -> str:
    """With DDP, the network aside."""
    epochs = [f"h an epoch of {hours:.0f} h" for hours in args.hours]
    steps = [f"its steps ({hours:.0f} h)" for hours in args.hours]
    header = ("GPUs", "s of sound a step", "ms of arithmetic", "M frames/s", *epochs, *steps)
    rows = []
    for s in scales:
        frames = [3600 * hours * CODEC.frame_rate for hours in args.hours]
        hours = (f"{n / s.frames_per_sec / 3600:.3g}" for n in frames)
        counts = (f"{3600 * n / s.step_sec:.0f}" for n in args.hours)
        rate = f"{s.frames_per_sec / 1e6:.3g}"
        cells = (str(s.num_gpus), f"{s.step_sec:.0f}", f"{s.compute_ms:.0f}", rate)
        rows.append((*cells, *hours, *counts))
    return table(header, rows)


def exchange_table(scales: Sequence[Scale]) -> str:
    header = (
        *("GPUs", "GB/s of a node", "GB all-reduced", "ms", "ms not hidden"),
        *("GB with FSDP", "FSDP ms", "FSDP ms not hidden"),
    )
    rows = [
        (
            *(str(s.num_gpus), f"{s.network_bandwidth / 1e9:g}"),
            *(gb(s.reduce_bytes), f"{s.reduce_ms:.1f}", f"{s.reduce_exposed_ms:.1f}"),
            *(gb(s.shard_bytes), f"{s.shard_ms:.1f}", f"{s.shard_exposed_ms:.1f}"),
        )
        for s in scales
    ]
    return table(header, rows)


def memory_table(scales: Sequence[Scale], args: argparse.Namespace) -> str:
    header = ("GPUs", "GB with DDP", "of the GPU", "GB with FSDP", "of it")
    rows = [
        (
            *(str(s.num_gpus), gb(s.ddp_bytes), f"{s.ddp_bytes / args.gpu_memory:.1%}"),
            *(gb(s.fsdp_bytes), f"{s.fsdp_bytes / args.gpu_memory:.1%}"),
        )
        for s in scales
    ]
    return table(header, rows)


def data_table(scales: Sequence[Scale]) -> str:
    """The first network's `slowest`."""
    header = (
        *("GPUs", "cuts/s", "MB/s of codes", "ms of storage a step", "ms of drawing a step"),
        *("ms of arithmetic", "slowest"),
    )
    rows = []
    for s in scales:
        rate = s.frames_per_sec * CODEC.num_quantizers * CODE_BYTES / 1e6
        times = (f"{s.files_ms:.0f}", f"{s.draw_ms:.0f}", f"{s.compute_ms:.0f}")
        rows.append((str(s.num_gpus), f"{s.files_per_sec:.0f}", f"{rate:.3g}", *times, s.slowest))
    return table(header, rows)


def corpus_table(corpora: Sequence[Corpus]) -> str:
    header = (
        *("hours", "M cuts", "GB of codes", "GB of manifest", "h to read it once"),
        "h to go on from mid-epoch",
    )
    rows = [
        (
            *(f"{c.hours:.0f}", f"{c.num_cuts / 1e6:.3g}", gb(c.token_bytes)),
            *(gb(c.manifest_bytes), f"{c.pass_hours:.2g}", f"{c.resume_hours:.2g}"),
        )
        for c in corpora
    ]
    return table(header, rows)


def gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.3g}"


if __name__ == "__main__":
    main()
