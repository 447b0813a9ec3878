#!/usr/bin/env python3
"""How fast frames are made, beside other implementations and what the memory's speed allows.

Usage:

  python3 benchmarks/generate.py                                  # all of it
  python3 benchmarks/generate.py --skip memory contexts --runs 1  # the comparison alone
  python3 benchmarks/generate.py --d-model 256 --num-layers 4 --nhead 4 --new-frames 100

All is measured in one process, in turns, on random weights: the speed of a shared machine drifts,
so trust the ratios within a run more than figures of different runs. The limit of a frame is the
time that it takes to read its bytes once: all weights of the autoregressive half (with the scales
of int8 and int4), and the keys and values of the context; at the read bandwidth that a probe
measures right before and after. Tables come as Markdown, and everything as JSON in a file.
"""

import argparse
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import report
import torch
from contenders import WARM_UP_FRAMES, Cached, Phases
from lineup import FLOATS, Lineup
from measure import interleave
from peers import import_musicgen
from report import MemoryRow, StepRow, WholeRow
from run import Run, memory_of, positive, show

from valle.models.engine import DTYPES
from valle.utils.dist import choose_device

SECTIONS = ("frame-step", "end-to-end", "no-cache", "musicgen", "contexts", "memory")
FRAME_RATE = 50  # of encodec_32khz
# flags that the process which measures memory takes over
_SIZES = ("d-model", "num-layers", "nhead", "prompt-frames", "new-frames", "top-k", "device")


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--d-model", type=positive, default=1024)
    add("--num-layers", type=positive, default=12)
    add("--nhead", type=positive, default=16)
    add("--prompt-frames", type=positive, default=150)
    add("--new-frames", type=positive, default=500)
    add("--batch-sizes", type=positive, nargs="+", help="default: 1 8; on a GPU 1 8 64")
    add("--dtypes", nargs="+", choices=DTYPES, help="default: all; on a GPU float32 bfloat16")
    add("--step-context", type=positive, default=400, help="frames before those of the frame step")
    add("--contexts", type=positive, nargs="+", default=[100, 400, 1400, 3000, 6000])
    add("--top-k", type=positive, default=250, help="of the sampling, which all share")
    add("--rounds", type=positive, default=10, help="of the frame step; medians are shown")
    add("--round-frames", type=positive, help="of each contender; default: 8, on a GPU 16")
    add("--runs", type=positive, default=3, help="whole generations; medians are shown")
    add("--full-no-cache", action="store_true", help="make every frame without a cache: minutes")
    add("--skip", nargs="+", choices=SECTIONS, default=[])
    add("--device", default="auto", help="cpu, cuda, or auto: cuda where there is one")
    add("--probe-mb", type=positive, help="MiB to probe with; default: 512, on a GPU 4096")
    add("--output-file", type=Path, default=Path("generate.json"))
    add("--memory-of", help=argparse.SUPPRESS)  # this script calls itself with it
    return parser


def main(argv: list[str] | None = None) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    parser = get_parser()
    args = parser.parse_args(argv)
    try:
        fill_defaults(args)
        torch.manual_seed(0)
        with torch.no_grad():
            if args.memory_of:
                print(json.dumps(memory_of_contender(args)))
            else:
                Benchmark(args).run()
    except (ValueError, ImportError, OSError) as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")


def fill_defaults(args: argparse.Namespace) -> None:
    """Those that depend on the device."""
    args.device = choose_device(args.device)
    on_gpu = args.device.type == "cuda"
    args.batch_sizes = args.batch_sizes or ([1, 8, 64] if on_gpu else [1, 8])
    args.dtypes = args.dtypes or list(FLOATS if on_gpu else DTYPES)
    args.round_frames = args.round_frames or (16 if on_gpu else 8)
    args.probe_mb = args.probe_mb or (4096 if on_gpu else 512)


class Benchmark(Run):
    """Runs the sections that are not skipped."""

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args, __file__, _SIZES)
        self.lineup = Lineup(args)
        self.contenders = {key: self.lineup.make(key) for key in self.lineup.participants()}

    def run(self) -> None:
        self.introduce(model=self.lineup.config)
        self._warn_if_not_fused()
        sections: dict[str, Callable[[], list[Any]]] = {
            "frame-step": self.frame_steps,
            "end-to-end": self.whole_generations,
            "contexts": self.contexts,
            "memory": self.memory,
        }
        for name, section in sections.items():
            if name not in self.args.skip:
                self.keep(name.replace("-", "_"), section())
        self.close()

    def frame_steps(self) -> list[StepRow]:
        context, rows = self.args.step_context, []
        cached = [c for c in self.contenders.values() if isinstance(c, Cached)]
        for batch in self.args.batch_sizes:
            rows += self._time_steps([(contender, batch, context) for contender in cached])
        show(f"The frame step, about frame {context}", report.steps_table(rows))
        return rows

    def whole_generations(self) -> list[WholeRow]:
        rows, num_new = [], self.args.new_frames
        for batch in self.args.batch_sizes:
            for key, phases in self._generate(batch).items():
                c = self.contenders[key]
                rows.append(WholeRow.of(c.name, c.dtype, batch, num_new, phases, FRAME_RATE))
        report.compare(rows)
        title = f"A prompt of {self.args.prompt_frames} frames and {num_new} new ones"
        show(title, report.wholes_table(rows))
        return rows

    def contexts(self) -> list[StepRow]:
        rows: list[StepRow] = []
        for key, contender in self.contenders.items():
            if key.startswith("ours/") and key != "ours/int4" and isinstance(contender, Cached):
                rows += self._time_steps([(contender, 1, n) for n in self.args.contexts])
        show("The frame step in longer and longer contexts", report.contexts_table(rows))
        return rows

    def memory(self) -> list[MemoryRow]:
        rows = []
        for batch in self.args.batch_sizes:
            for key, c in self.contenders.items():
                found = self.measure_elsewhere(key, batch_sizes=batch)
                rows.append(MemoryRow(c.name, c.dtype, batch, **found))
        show("Memory, each in a process of its own", report.memory_table(rows))
        return rows

    def _generate(self, batch_size: int) -> dict[str, list[Phases]]:
        """Whole generations by all contenders in turn, after short ones to warm up."""
        prompt, args = self.lineup.prompt(batch_size), self.args
        for contender in self.contenders.values():
            contender.generate(prompt, WARM_UP_FRAMES)
        done: dict[str, list[Phases]] = {key: [] for key in self.contenders}
        for i in range(args.runs):
            for key, contender in self.contenders.items():
                if i == 0 or contender.repeatable:
                    self.probe()
                    done[key].append(contender.generate(prompt, args.new_frames))
        return done

    def _time_steps(self, cases: list[tuple[Cached, int, int]]) -> list[StepRow]:
        """Time the steps of (contender, batch size, context) side by side."""
        rounds, round_frames = self.args.rounds, self.args.round_frames
        num_frames = WARM_UP_FRAMES + rounds * round_frames
        steps = [c.frame_step(batch, context, num_frames) for c, batch, context in cases]
        for step in steps:
            for _ in range(WARM_UP_FRAMES):
                step()
        timings = interleave(steps, rounds, round_frames, self.probe)
        rows = []
        for (c, batch, context), timing in zip(cases, timings, strict=True):
            total, cache = c.bytes_per_frame(batch, context), c.cache_bytes(batch, context)
            rows.append(StepRow.of(c.name, c.dtype, batch, context, timing, total, cache))
            rows[-1].ratio = timing.ratio_to(timings[0])
        return rows

    def _warn_if_not_fused(self) -> None:
        reason = self.lineup.why_not_fused()
        if reason is not None and self.args.device.type == "cpu":
            logging.warning(f"no fused step: {reason}")


def memory_of_contender(args: argparse.Namespace) -> dict[str, float]:
    """Megabytes of the contender `args.memory_of`, as `MemoryRow` counts them."""
    lineup = Lineup(args)
    prompt = lineup.prompt(args.batch_sizes[0])
    if args.memory_of.startswith("musicgen"):
        import_musicgen()  # code is no model

    def make() -> Callable[[], object]:
        contender = lineup.make(args.memory_of)
        lineup.forget_model()
        return lambda: contender.generate(prompt, args.new_frames)

    return memory_of(make, args.device)


if __name__ == "__main__":
    main()
