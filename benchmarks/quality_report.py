"""What was found, in a file that a later run goes on from, and as Markdown tables."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from valle.evaluation import Likelihood
from valle.utils.files import written_whole
from valle.utils.tables import Table, as_markdown

Sounds = dict[str, dict[str, list[float]]]


@dataclass
class Row:
    """A contender that has learned and was scored.

    Attributes:
      name: of the contender or variant.
      about: what it is.
      settings: all that its figures depend on, in plain types; another run with the same ones
        need not train it again.
      lr: base learning rate.
      optimizer: its name.
      parameters: "body" without tables and heads, "tables", "heads".
      steps: taken; `epochs`: passes over the training cuts, the last perhaps not whole.
      flops: of all steps, by formula (`StepFlops`).
      seconds: of all steps, loading included.
      digest: of the first batches that it learned from.
      num_frames: held-out target frames that were scored.
      nats, top1: a number for each quantizer; infinite and 0 where the loss stopped being finite.
      by_position: for each second of the continuation the nats a frame over all quantizers.
      sounds: row of the measures' table -> measure -> mean, low, high, recordings; None: not asked.
      heard: how the continuations were made, in plain types.
    """

    name: str
    about: str
    settings: dict[str, Any]
    lr: float
    optimizer: str
    parameters: dict[str, int]
    steps: int
    epochs: float
    flops: float
    seconds: float
    digest: str
    num_frames: int
    nats: list[float]
    top1: list[float]
    by_position: list[float] = field(default_factory=list)
    sounds: Sounds | None = None
    heard: dict[str, Any] | None = None

    @property
    def total_nats(self) -> float:
        """A frame's, all quantizers together."""
        return sum(self.nats)

    def score(self, overall: Likelihood, by_position: Sequence[Likelihood]) -> None:
        self.num_frames, self.nats, self.top1 = overall.num_frames, overall.nats, overall.top1
        self.by_position = [sum(part.nats) for part in by_position]


class Results:
    """The rows of a file, which is written anew whenever one comes in.

    Args:
      path: of the JSON; what it holds already is kept.

    Raises:
      ValueError: the file is there, but is no result of this benchmark.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, Row] = {}
        if path.exists():
            try:
                rows = json.loads(path.read_text())["rows"]
                self.rows = {key: Row(**row) for key, row in rows.items()}
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(
                    f"{path} holds no results of this benchmark ({error}): move it away, or name "
                    "another --output-file"
                ) from error

    def known(self, key: str, settings: dict[str, Any]) -> Row | None:
        """What was found under a key, if by the same settings."""
        row = self.rows.get(key)
        return row if row is not None and row.settings == plain(settings) else None

    def keep(self, key: str, row: Row, **others: Any) -> None:
        """Write the file with this row, and further facts of the run beside the rows."""
        row.settings = plain(row.settings)
        self.rows[key] = row
        content = others | {"rows": {key: asdict(row) for key, row in self.rows.items()}}
        with written_whole(self.path) as path:
            path.write_text(json.dumps(content, indent=2, default=str) + "\n")


def plain(settings: dict[str, Any]) -> dict[str, Any]:
    """As JSON gives them back."""
    return json.loads(json.dumps(settings, default=str))


def markdown(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return as_markdown(Table(heads, lines))


def costs_table(rows: Sequence[Row]) -> str:
    """What each was given: parameters, operations, time."""
    heads = ["contender", "what it is", "M parameters", "with tables and heads", "lr", "steps"]
    lines = []
    for row in rows:
        body, total = row.parameters["body"] / 1e6, sum(row.parameters.values()) / 1e6
        cells = [row.name, row.about, f"{body:.3f}", f"{total:.3f}", f"{row.lr:g}"]
        cells += [str(row.steps), f"{row.epochs:.2f}", f"{row.flops / 1e12:.3f}"]
        lines.append([*cells, f"{row.seconds:.0f}"])
    return markdown([*heads, "epochs", "TFLOP", "s"], lines)


def likelihood_table(rows: Sequence[Row], frame_rate: float) -> str:
    """What the true codes cost each, and how often its likeliest code was the true one."""
    quantizers = [f"q{q + 1}" for q in range(len(rows[0].nats))]
    heads = ["nats a frame", *quantizers, "all", "kbit/s", *(f"top-1 of {q}" for q in quantizers)]
    lines = []
    for row in rows:
        cells = [row.name, *(f"{nats:.3f}" for nats in row.nats), f"{row.total_nats:.3f}"]
        cells.append(f"{row.total_nats / math.log(2) * frame_rate / 1000:.2f}")
        lines.append([*cells, *(f"{share:.1%}" for share in row.top1), str(row.num_frames)])
    return markdown([*heads, "frames"], lines)


def position_table(rows: Sequence[Row]) -> str:
    """Nats a frame of all quantizers, by the second of the continuation."""
    num_bins = max(len(row.by_position) for row in rows)
    heads = ["nats, all quantizers", *(f"from {second} s" for second in range(num_bins))]
    lines = [[row.name, *(f"{nats:.3f}" for nats in row.by_position)] for row in rows]
    return markdown(heads, [line + [""] * (num_bins + 1 - len(line)) for line in lines])


def sweep_table(rows: dict[str, Row]) -> str:
    """The trials of learning rates."""
    lines = [
        [row.name, f"{row.lr:g}", f"{row.epochs:.2f}", f"{row.total_nats:.3f}"]
        for row in rows.values()
    ]
    return markdown(["contender", "lr", "epochs", "nats a frame, all quantizers"], lines)
