#!/usr/bin/env python3
"""How fast and in how much memory a training step runs, beside other ways to train.

Usage:

  python3 benchmarks/train_step.py                               # d_model 512, 8 layers, 4 x 500
  python3 benchmarks/train_step.py --train-stage 1 --optimizers AdamW --skip memory
  python3 benchmarks/train_step.py --shortest 0.5                # rows of unequal length

A step is forward, backward, clipping as the trainer does it, and the optimizer, on random codes.
All are measured in one process, in turns, on random weights: the speed of a shared machine drifts,
so trust the ratios within a run more than figures of different runs. Frames are those of prompts
and targets, without padding. The limit is the rate at which this process multiplies matrices of
the feed-forward block's shapes, measured in the same rounds; a step's share of it is the time that
its counted operations would take at that rate over the time it took. Memory is measured in a
process of its own each. Tables come as Markdown, and everything as JSON in a file.
"""

import argparse
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from measure import interleave
from peers import import_musicgen
from run import Run, memory_of, positive, show
from train_contenders import (
    MusicGenTraining,
    OurCompiledTraining,
    OurTraining,
    PlainTraining,
    TrainBatch,
    TrainContender,
)
from train_report import (
    PLAIN_FLOAT32,
    MatrixProduct,
    SplitRow,
    TrainMemoryRow,
    TrainRow,
    compare,
    flops_table,
    memory_table,
    split_table,
    steps_table,
)

from valle.models import TrainStage
from valle.models.audio_lm import AudioLMConfig
from valle.modules.optim import DEFAULT_LR
from valle.utils.dist import choose_device

DTYPES = ("float32", "bfloat16")
KINDS = ("ours", "compiled", "plain", "musicgen")
PARTS = ("compiled", "plain", "musicgen", "split", "memory")
WARM_UP_STEPS = 1
MEMORY_STEPS = 2  # the first makes the optimizer's state, the second has it beside activations
# flags that the process which measures memory takes over
_SIZES = (
    *("d-model", "num-layers", "nhead", "batch-size", "num-frames", "prompt-share", "shortest"),
    *("train-stage", "device"),
)


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--d-model", type=positive, default=512)
    add("--num-layers", type=positive, default=8)
    add("--nhead", type=positive, default=8)
    add("--batch-size", type=positive, default=4)
    add("--num-frames", type=positive, default=500, help="of the longest row, prompt included")
    add("--prompt-share", type=float, default=0.4, help="of a row's frames")
    add("--shortest", type=float, default=1.0, help="row, as a share of the longest; 1: no padding")
    add("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES), help="bfloat16: autocast")
    add("--train-stage", type=int, choices=[0, 1, 2], default=0, help="0 both halves, 1 AR, 2 NAR")
    add("--optimizers", nargs="+", choices=list(DEFAULT_LR), default=["ScaledAdam"])
    add("--rounds", type=positive, default=5, help="medians are shown")
    add("--skip", nargs="+", choices=PARTS, default=[])
    add("--device", default="auto", help="cpu, cuda, or auto: cuda where there is one")
    add("--probe-mb", type=positive, default=128, help="MiB to probe the memory's speed with")
    add("--output-file", type=Path, default=Path("train_step.json"))
    add("--memory-of", help=argparse.SUPPRESS)  # this script calls itself with it
    return parser


def main(argv: list[str] | None = None) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    parser = get_parser()
    args = parser.parse_args(argv)
    try:
        args.device = choose_device(args.device)
        torch.manual_seed(0)
        if args.memory_of:
            print(json.dumps(memory_of_contender(args)))
        else:
            Benchmark(args).run()
    except (ValueError, ImportError, OSError) as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")


class Lineup:
    """The contenders by key, `kind/type/optimizer`, each made when it is asked for."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.stage = args, TrainStage(args.train_stage)
        self.config = AudioLMConfig(args.d_model, args.nhead, args.num_layers)
        self.batch = TrainBatch.random(
            self.config,
            args.batch_size,
            args.num_frames,
            args.prompt_share,
            args.shortest,
            args.device,
        )

    def participants(self) -> list[str]:
        kinds = [kind for kind in KINDS if kind not in self.args.skip]
        return [
            f"{kind}/{dtype}/{optimizer}"
            for optimizer in self.args.optimizers
            for dtype in self.args.dtypes
            for kind in kinds
        ]

    def make(self, key: str) -> TrainContender:
        kind, dtype, optimizer = key.split("/")
        if kind == "musicgen":
            return MusicGenTraining(self.config, self.batch, dtype, optimizer)
        make = {"ours": OurTraining, "compiled": OurCompiledTraining, "plain": PlainTraining}[kind]
        return make(self.config, self.batch, self.stage, dtype, optimizer)


class Benchmark(Run):
    """Runs what is not skipped, prints tables as they come, and saves everything.

    Args:
      args: of `get_parser`, with a device.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args, __file__, _SIZES)
        self.lineup = Lineup(args)
        self.contenders = {key: self.lineup.make(key) for key in self.lineup.participants()}

    def run(self) -> None:
        self.introduce(model=self.lineup.config, frames_a_step=self.lineup.batch.num_frames)
        self.keep("steps", self.steps())
        if "split" not in self.args.skip:
            self.keep("split", self.split())
        names = {key: (c.name, c.dtype, c.optimizer_name) for key, c in self.contenders.items()}
        self.contenders.clear()  # the processes to come need the memory
        if "memory" not in self.args.skip:
            self.keep("memory", self.memory(names))
        self.close()

    def steps(self) -> list[TrainRow]:
        """Time all steps and the matrix products side by side."""
        contenders = list(self.contenders.values())
        rows, width = self.args.batch_size * self.args.num_frames, self.args.d_model
        products = {d: MatrixProduct(rows, width, d, self.args.device) for d in self.args.dtypes}
        calls: list[Callable[[], None]] = [c.step for c in contenders]
        calls += products.values()
        for call in calls:
            for _ in range(WARM_UP_STEPS):
                call()
        timings = interleave(calls, self.args.rounds, 1, self.probe)
        probed = dict(zip(products, timings[len(contenders) :], strict=True))
        found = [
            TrainRow.of(c, timing, products[c.dtype], probed[c.dtype])
            for c, timing in zip(contenders, timings, strict=False)
        ]
        compare(found, timings[: len(found)])
        show("A training step", steps_table(found))
        show("What a step needs, and what the matrix products allow", flops_table(found))
        return found

    def split(self) -> list[SplitRow]:
        rounds, device = self.args.rounds, self.args.device
        ours = [c for key, c in self.contenders.items() if key.startswith("ours/")]
        rows = [SplitRow.of(contender, rounds, device) for contender in ours]
        show("Our step in parts", split_table(rows))
        return rows

    def memory(self, names: dict[str, tuple[str, str, str]]) -> list[TrainMemoryRow]:
        rows = []
        for key, (name, dtype, optimizer) in names.items():
            found = self.measure_elsewhere(key)
            rows.append(TrainMemoryRow(name, dtype, optimizer, found["loaded"], found["peak"]))
        plain = {r.optimizer: r.peak for r in rows if (r.name, r.dtype) == PLAIN_FLOAT32}
        for row in rows:
            peak = plain.get(row.optimizer)
            row.share_of_plain = row.peak / peak if peak else None
        show("Memory, each in a process of its own", memory_table(rows))
        return rows


def memory_of_contender(args: argparse.Namespace) -> dict[str, float]:
    """Megabytes of the contender `args.memory_of`, as `TrainMemoryRow` counts them."""
    lineup = Lineup(args)
    if args.memory_of.startswith("musicgen"):
        import_musicgen()  # code is no model

    def make() -> Callable[[], object]:
        contender = lineup.make(args.memory_of)
        return lambda: [contender.step() for _ in range(MEMORY_STEPS)]

    return memory_of(make, args.device)


if __name__ == "__main__":
    main()
