#!/usr/bin/env python3
"""How fast and in how much memory a training step runs, beside other ways to train.

Usage:

  python3 benchmarks/train_step.py                               # d_model 512, 8 layers, 4 x 500
  python3 benchmarks/train_step.py --train-stage 1 --optimizers AdamW --skip memory
  python3 benchmarks/train_step.py --shortest 0.5                # rows of unequal length

A step is forward, backward, clipping as the trainer does it, and the optimizer, on random codes.
All are measured in turns, on random weights: the speed of a shared machine drifts, so trust the
ratios within a run more than figures of different runs. Each lives in a process of its own, as a
model in training does, and the memory of all together must suffice: leave some out (--skip,
--dtypes) where it does not. Frames are those of prompts and targets, without padding. The limit is
the rate of products of matrices of the feed-forward block's shapes, measured in the same rounds; a
step's share of it is the time that its counted operations would take at that rate over the time it
took. Tables come as Markdown, and everything as JSON in a file.
"""

import argparse
import logging
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from apart import Apart, obey
from measure import interleave, synchronise
from peers import import_musicgen
from run import Run, memory_of, positive, show
from train_contenders import (
    MusicGenTraining,
    OurCompiledTraining,
    OurTraining,
    PlainTraining,
    TrainBatch,
    TrainContender,
    TrainFacts,
)
from train_report import (
    MatrixProduct,
    SplitRow,
    TrainMemoryRow,
    TrainRow,
    compare,
    compare_memory,
    flops_table,
    memory_table,
    split_step,
    split_table,
    steps_table,
)

from valle.models import TrainStage
from valle.models.config import AudioLMConfig
from valle.modules.optim import DEFAULT_LR
from valle.utils.dist import choose_device

DTYPES = ("float32", "bfloat16")
KINDS = ("ours", "compiled", "plain", "musicgen")
PARTS = ("compiled", "plain", "musicgen", "split")
WARM_UP_STEPS = 4  # the optimizer's state is made in the first; an allocator needs some more
# flags that the processes of the contenders take over
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
    add("--contender", help=argparse.SUPPRESS)  # this script calls itself with it
    return parser


def main(argv: list[str] | None = None) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    parser = get_parser()
    args = parser.parse_args(argv)
    try:
        args.device = choose_device(args.device)
        torch.manual_seed(0)
        if args.contender:
            serve(args)
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

    def run(self) -> None:
        self.introduce(model=self.lineup.config, frames_a_step=self.lineup.batch.num_frames)
        with ExitStack() as processes:
            contenders = {}
            for key in self.lineup.participants():
                process = Apart(key, self.command(contender=key))
                contenders[key] = processes.enter_context(process)
            self.measure(contenders)
        self.close()

    def measure(self, contenders: dict[str, Apart]) -> None:
        facts: dict[str, TrainFacts] = {}
        memory: list[TrainMemoryRow] = []
        for key, contender in contenders.items():
            found = contender.ask("warm up")
            facts[key] = TrainFacts.of(contender.ask("facts"))
            memory.append(TrainMemoryRow.of(facts[key], **found))
        self.keep("steps", self.steps(contenders, facts))
        if "split" not in self.args.skip:
            self.keep("split", self.split(contenders, facts))
        compare_memory(memory)
        show("Memory", memory_table(memory))
        self.keep("memory", memory)

    def steps(self, contenders: dict[str, Apart], facts: dict[str, TrainFacts]) -> list[TrainRow]:
        """Time all steps and the matrix products side by side."""
        rows, width = self.args.batch_size * self.args.num_frames, self.args.d_model
        products = {d: MatrixProduct(rows, width, d, self.args.device) for d in self.args.dtypes}
        for product in products.values():
            product()
        steps: list[Callable[[], None]] = [partial(c.ask, "step") for c in contenders.values()]
        timings = interleave([*steps, *products.values()], self.args.rounds, 1, self.probe)
        probed = dict(zip(products, timings[len(steps) :], strict=True))
        found = [
            TrainRow.of(fact, timing, products[fact.dtype], probed[fact.dtype])
            for fact, timing in zip(facts.values(), timings, strict=False)
        ]
        compare(found, timings[: len(found)])
        show("A training step", steps_table(found))
        show("What a step needs, and what the matrix products allow", flops_table(found))
        return found

    def split(self, contenders: dict[str, Apart], facts: dict[str, TrainFacts]) -> list[SplitRow]:
        ours = [key for key in contenders if key.startswith("ours/")]
        rounds = range(self.args.rounds)
        rows = [SplitRow.of(facts[k], [contenders[k].ask("split") for _ in rounds]) for k in ours]
        show("Our step in parts", split_table(rows))
        return rows


def serve(args: argparse.Namespace) -> None:
    """Be the contender `args.contender`, and take steps when told to."""
    lineup = Lineup(args)
    if args.contender.startswith("musicgen"):
        import_musicgen()  # code is no model
    made: list[TrainContender] = []

    def make() -> Callable[[], object]:
        made.append(lineup.make(args.contender))
        return lambda: [made[0].step() for _ in range(WARM_UP_STEPS)]

    def step() -> None:
        made[0].step()
        synchronise(args.device)

    obey(
        {
            "warm up": lambda: memory_of(make, args.device),
            "facts": lambda: asdict(made[0].facts()),
            "step": step,
            "split": lambda: split_step(made[0], args.device),
        }
    )


if __name__ == "__main__":
    main()
