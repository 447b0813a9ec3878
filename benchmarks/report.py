"""Measurements as rows of plain values, and rows as Markdown tables."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from contenders import Phases
from measure import BandwidthProbe, Timing

MB = 1e6


@dataclass
class Bandwidth:
    """What the probe saw, in gigabytes a second, over the whole run."""

    probe: str
    num_probes: int
    lowest: float
    median: float
    highest: float

    def __str__(self) -> str:
        return (
            f"Read bandwidth {self.lowest:.3g} to {self.highest:.3g} GB/s, median "
            f"{self.median:.3g} ({self.num_probes} probes by {self.probe})"
        )

    @classmethod
    def of(cls, probe: BandwidthProbe) -> "Bandwidth":
        seen = [speed / 1e9 for speed in probe.seen]
        return cls(probe.name, len(seen), min(seen), statistics.median(seen), max(seen))


@dataclass
class StepRow:
    """The frame step of one contender.

    Attributes:
      context: frames before the new one, on average.
      ms: the step of the whole batch, median of the rounds.
      frames_per_sec: frames of all rows.
      megabytes: must be read for a step.
      share_of_limit: the time that reading them would take over the time taken.
      cache_megabytes: of `megabytes`, what is kept of the context.
      ratio: ms over that of the same contender at the first context; median within the rounds.
    """

    name: str
    dtype: str
    batch_size: int
    context: int
    ms: float
    frames_per_sec: float
    megabytes: float
    share_of_limit: float
    cache_megabytes: float
    ratio: float = 1.0

    @classmethod
    def of(
        cls, name: str, dtype: str, batch: int, context: int, timing: Timing, total: int, cache: int
    ) -> "StepRow":
        """`total` and `cache` in bytes."""
        return cls(
            name=name,
            dtype=dtype,
            batch_size=batch,
            context=context,
            ms=1000 * timing.median,
            frames_per_sec=batch / timing.median,
            megabytes=total / MB,
            share_of_limit=timing.share_of_limit(total),
            cache_megabytes=cache / MB,
        )


@dataclass
class WholeRow:
    """A whole generation by one contender, with the median of the runs.

    Attributes:
      num_frames: new frames of all rows.
      seconds: for all of them, prompt included.
      frames_per_sec: num_frames / seconds.
      times_real_time: frames_per_sec over the codec's frames a second.
      prefill_sec, ar_sec, nar_sec: parts of `seconds`; see `Phases`.
      num_runs: how many the median is of.
      num_lengths: see `Phases`; 0 where the generation was timed whole.
      faster_than_no_cache: times as many frames a second as the float32 without a cache.
      faster_than_musicgen: times as many as MusicGen with its own cache, in the nearest type.
    """

    name: str
    dtype: str
    batch_size: int
    num_frames: int
    seconds: float
    frames_per_sec: float
    times_real_time: float
    prefill_sec: float
    ar_sec: float
    nar_sec: float
    num_runs: int
    num_lengths: int
    faster_than_no_cache: float | None = None
    faster_than_musicgen: float | None = None

    @classmethod
    def of(
        cls, name: str, dtype: str, batch: int, num_frames: int, runs: list[Phases], rate: float
    ) -> "WholeRow":
        """`num_frames` of one row; `rate` frames a second of the codec."""
        median = sorted(runs, key=lambda phases: phases.total)[len(runs) // 2]
        speed = batch * num_frames / median.total
        return cls(
            name=name,
            dtype=dtype,
            batch_size=batch,
            num_frames=batch * num_frames,
            seconds=median.total,
            frames_per_sec=speed,
            times_real_time=speed / rate,
            prefill_sec=median.prefill,
            ar_sec=median.ar,
            nar_sec=median.nar,
            num_runs=len(runs),
            num_lengths=median.num_lengths,
        )


@dataclass
class MemoryRow:
    """One contender in a process of its own, in megabytes above the process without a model.

    Attributes:
      loaded: ready to generate.
      peak: at most while generating.
    """

    name: str
    dtype: str
    batch_size: int
    loaded: float
    peak: float


def compare(rows: Sequence[WholeRow]) -> None:
    """Fill in how many times faster than the peers each row is, within its batch size."""
    speeds = {(row.name, row.dtype, row.batch_size): row.frames_per_sec for row in rows}
    for row in rows:
        slowest = speeds.get(("ours, no cache", "float32", row.batch_size))
        nearest = "float32" if row.dtype == "float32" else "bfloat16"
        theirs = speeds.get(("MusicGen", nearest, row.batch_size))
        row.faster_than_no_cache = row.frames_per_sec / slowest if slowest else None
        row.faster_than_musicgen = row.frames_per_sec / theirs if theirs else None


def steps_table(rows: Sequence[StepRow]) -> str:
    header = ("what", "weights", "batch", "ms", "frames/s", "MB to read", "share of the limit")
    return table(
        header,
        [
            (
                row.name,
                row.dtype,
                str(row.batch_size),
                f"{row.ms:.3g}",
                f"{row.frames_per_sec:.3g}",
                f"{row.megabytes:.0f}",
                f"{row.share_of_limit:.0%}",
            )
            for row in rows
        ],
    )


def wholes_table(rows: Sequence[WholeRow]) -> str:
    header = (
        *("what", "weights", "batch", "seconds", "frames/s", "x real time"),
        *("prompt s", "AR s", "NAR s", "x no cache", "x MusicGen"),
    )
    return table(
        header,
        [
            (
                row.name + (f" (from {row.num_lengths} lengths)" if row.num_lengths else ""),
                row.dtype,
                str(row.batch_size),
                f"{row.seconds:.3g}",
                f"{row.frames_per_sec:.3g}",
                f"{row.times_real_time:.2f}",
                f"{row.prefill_sec:.2g}",
                f"{row.ar_sec:.3g}",
                f"{row.nar_sec:.2g}" if row.nar_sec else "-",
                _times(row.faster_than_no_cache),
                _times(row.faster_than_musicgen),
            )
            for row in rows
        ],
    )


def contexts_table(rows: Sequence[StepRow]) -> str:
    header = ("weights", "context", "ms", "frames/s", "x first", "cache MB", "share of the limit")
    return table(
        header,
        [
            (
                row.dtype,
                str(row.context),
                f"{row.ms:.3g}",
                f"{row.frames_per_sec:.3g}",
                f"{row.ratio:.2f}",
                f"{row.cache_megabytes:.0f}",
                f"{row.share_of_limit:.0%}",
            )
            for row in rows
        ],
    )


def memory_table(rows: Sequence[MemoryRow]) -> str:
    header = ("what", "weights", "batch", "MB loaded", "MB at most while generating")
    return table(
        header,
        [
            (row.name, row.dtype, str(row.batch_size), f"{row.loaded:.0f}", f"{row.peak:.0f}")
            for row in rows
        ],
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown, texts to the left, figures to the right."""
    figures = [
        all(row[i][:1].isdigit() or row[i] == "-" for row in rows) for i in range(len(header))
    ]
    rule = ["---:" if is_figure else "---" for is_figure in figures]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *rows))


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.3g}"
