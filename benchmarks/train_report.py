"""Rows and tables of the training benchmark.

B rows of a batch, L frames, D model width.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from measure import Timing, seconds_of
from report import table
from train_contenders import MusicGenTraining, PlainTraining, TrainContender, TrainFacts


class MatrixProduct:
    """Products as in a feed-forward block: (B L, D) with (D, 4 D).

    Args:
      rows: B L.
      width: D.
      dtype: "float32" or "bfloat16".
      device: where.
    """

    def __init__(self, rows: int, width: int, dtype: str, device: torch.device) -> None:
        kind = getattr(torch, dtype)
        self._a = torch.randn(rows, width, device=device).to(kind)
        self._b = torch.randn(4 * width, width, device=device).to(kind).T
        self._out = torch.empty(rows, 4 * width, device=device, dtype=kind)
        once = 2 * rows * width * 4 * width
        self._repeats = max(1, min(64, int(2e11 / once))) if device.type == "cuda" else 4
        self.flops = float(once * self._repeats)

    def __call__(self) -> None:
        for _ in range(self._repeats):
            torch.mm(self._a, self._b, out=self._out)


@dataclass
class TrainRow:
    """The step of one contender.

    Attributes:
      num_parameters: that learn.
      ms: of a step, median of the rounds.
      frames_per_sec: real frames of all rows.
      matrix_gflop, attention_gflop, head_gflop: of a step; see `StepFlops`.
      gflop_per_sec: the three together over the time.
      matrix_gflop_per_sec: of the probe in this type, median of the rounds.
      share_of_limit: the first over the second; median within the rounds.
      faster_than_plain: times the frames a second of the plain model, same type and optimizer.
      faster_than_plain_float32: times those of the plain model in float32.
      faster_than_musicgen: as MusicGen, each times its number of parameters.
    """

    name: str
    dtype: str
    optimizer: str
    num_parameters: int
    ms: float
    frames_per_sec: float
    matrix_gflop: float
    attention_gflop: float
    head_gflop: float
    gflop_per_sec: float
    matrix_gflop_per_sec: float
    share_of_limit: float
    faster_than_plain: float | None = None
    faster_than_plain_float32: float | None = None
    faster_than_musicgen: float | None = None

    @classmethod
    def of(
        cls, facts: TrainFacts, timing: Timing, product: MatrixProduct, probed: Timing
    ) -> "TrainRow":
        flops = facts.flops
        return cls(
            name=facts.name,
            dtype=facts.dtype,
            optimizer=facts.optimizer,
            num_parameters=facts.num_parameters,
            ms=1000 * timing.median,
            frames_per_sec=facts.num_frames / timing.median,
            matrix_gflop=flops.matrices / 1e9,
            attention_gflop=flops.attention / 1e9,
            head_gflop=flops.heads / 1e9,
            gflop_per_sec=flops.total / timing.median / 1e9,
            matrix_gflop_per_sec=product.flops / probed.median / 1e9,
            share_of_limit=flops.total / product.flops * probed.ratio_to(timing),
        )


@dataclass
class SplitRow:
    """Where our step spends its time, in milliseconds."""

    dtype: str
    optimizer: str
    forward: float
    backward: float
    update: float

    @classmethod
    def of(cls, facts: TrainFacts, measured: list[Sequence[float]]) -> "SplitRow":
        """Medians of what `split_step` gave, round by round."""
        medians = [1000 * statistics.median(part) for part in zip(*measured, strict=True)]
        return cls(facts.dtype, facts.optimizer, *medians)


def split_step(contender: TrainContender, device: torch.device) -> tuple[float, float, float]:
    """Seconds of forward, of backward, and of clipping with the optimizer's step."""
    losses: list[torch.Tensor] = []
    forward = seconds_of(lambda: losses.append(contender.loss()), device)
    backward = seconds_of(losses[0].backward, device)
    return forward, backward, seconds_of(contender.update, device)


@dataclass
class TrainMemoryRow:
    """What a contender takes, in megabytes above its process without a model.

    Attributes:
      loaded: weights, before the first step.
      peak: at most over its first steps, of which one makes the optimizer's state.
      share_of_plain: peak over that of the plain model in float32 with this optimizer.
    """

    name: str
    dtype: str
    optimizer: str
    loaded: float
    peak: float
    share_of_plain: float | None = None

    @classmethod
    def of(cls, facts: TrainFacts, loaded: float, peak: float) -> "TrainMemoryRow":
        return cls(facts.name, facts.dtype, facts.optimizer, loaded, peak)


PLAIN_FLOAT32 = (PlainTraining.name, "float32")


def compare(rows: list[TrainRow], timings: list[Timing]) -> None:
    """Fill in how many times faster than the peers each row is; medians within the rounds."""
    places = {(row.name, row.dtype, row.optimizer): i for i, row in enumerate(rows)}
    for row, mine in zip(rows, timings, strict=True):
        plain = places.get((PlainTraining.name, row.dtype, row.optimizer))
        slowest = places.get((*PLAIN_FLOAT32, row.optimizer))
        theirs = places.get((MusicGenTraining.name, row.dtype, row.optimizer))
        if plain is not None:
            row.faster_than_plain = timings[plain].ratio_to(mine)
        if slowest is not None:
            row.faster_than_plain_float32 = timings[slowest].ratio_to(mine)
        if theirs is not None:
            sizes = row.num_parameters / rows[theirs].num_parameters
            row.faster_than_musicgen = sizes * timings[theirs].ratio_to(mine)


def compare_memory(rows: list[TrainMemoryRow]) -> None:
    """Fill in what share of the plain model's each takes."""
    plain = {row.optimizer: row.peak for row in rows if (row.name, row.dtype) == PLAIN_FLOAT32}
    for row in rows:
        peak = plain.get(row.optimizer)
        row.share_of_plain = row.peak / peak if peak else None


def steps_table(rows: list[TrainRow]) -> str:
    header = (
        *("what", "type", "optimizer", "M parameters", "ms", "frames/s"),
        *("x plain", "x plain float32", "x MusicGen per parameter"),
    )
    return table(
        header,
        [
            (
                *(row.name, row.dtype, row.optimizer),
                f"{row.num_parameters / 1e6:.1f}",
                f"{row.ms:.0f}",
                f"{row.frames_per_sec:.0f}",
                _times(row.faster_than_plain),
                _times(row.faster_than_plain_float32),
                _times(row.faster_than_musicgen),
            )
            for row in rows
        ],
    )


def flops_table(rows: list[TrainRow]) -> str:
    header = (
        *("what", "type", "optimizer", "GFLOP in matrices", "attention", "heads"),
        *("GFLOP/s", "of matrix products", "share"),
    )
    return table(
        header,
        [
            (
                *(row.name, row.dtype, row.optimizer),
                *(f"{n:.3g}" for n in (row.matrix_gflop, row.attention_gflop, row.head_gflop)),
                f"{row.gflop_per_sec:.3g}",
                f"{row.matrix_gflop_per_sec:.3g}",
                f"{row.share_of_limit:.0%}",
            )
            for row in rows
        ],
    )


def split_table(rows: list[SplitRow]) -> str:
    header = ("type", "optimizer", "forward ms", "backward ms", "optimizer ms")
    return table(
        header,
        [
            (
                *(row.dtype, row.optimizer),
                *(f"{ms:.0f}" for ms in (row.forward, row.backward, row.update)),
            )
            for row in rows
        ],
    )


def memory_table(rows: list[TrainMemoryRow]) -> str:
    header = ("what", "type", "optimizer", "MB loaded", "MB at most", "of plain float32")
    return table(
        header,
        [
            (
                *(row.name, row.dtype, row.optimizer, f"{row.loaded:.0f}", f"{row.peak:.0f}"),
                "-" if row.share_of_plain is None else f"{row.share_of_plain:.2f}",
            )
            for row in rows
        ],
    )


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}"
