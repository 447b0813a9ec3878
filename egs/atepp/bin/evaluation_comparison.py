"""Several experiment folders side by side: how they differ, and how good they became."""

import csv
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation_tables import measure_table
from experiment_folder import GENERATED, TRUE, Experiment, read_experiment
from experiment_mismatches import differing_settings, mismatches
from run_settings import as_text

from valle.evaluation import Interval, measures_for
from valle.evaluation.bootstrap import NOTHING as NO_INTERVAL
from valle.evaluation.measures import FRECHET
from valle.utils.files import written_whole
from valle.utils.plot import import_pyplot
from valle.utils.tables import Table, as_markdown

NOTHING = "-"  # stands in a table where a folder does not tell


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Attributes:
      experiments: One a folder.
      settings: Names of those that differ.
      warnings: Why some figures do not compare, a sentence each.
    """

    experiments: tuple[Experiment, ...]
    settings: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def num_quantizers(self) -> int:
        """Of the folder that has most."""
        return max(each.num_quantizers for each in self.experiments)


def compare(exp_dirs: Sequence[Path]) -> Comparison:
    """Read experiment folders; what one does not tell stays empty.

    Raises:
      ValueError: No folder, one that is not there, that nobody trained in, or that is given twice;
        a damaged file.
    """
    if not exp_dirs:
        raise ValueError("no experiment folder was given, expected one or several")
    real = [path.resolve() for path in exp_dirs]
    twice = [path for path in exp_dirs if real.count(path.resolve()) > 1]
    if twice:
        raise ValueError(f"{twice[0]} is given twice: a comparison needs different folders")
    short = [path.name for path in real]
    names = short if len(set(short)) == len(short) else [str(path) for path in exp_dirs]
    experiments = tuple(map(read_experiment, exp_dirs, names))
    return Comparison(experiments, differing_settings(experiments), tuple(mismatches(experiments)))


# Tables


def as_table(comparison: Comparison) -> str:
    """Markdown: settings and validation, then what was evaluated, then what does not compare."""
    parts = [as_markdown(validation_table(comparison))]
    if any(each.likelihood for each in comparison.experiments):
        parts += ["Likelihood of held-out cuts:", as_markdown(likelihood_table(comparison))]
    if sounds := sound_table(comparison):
        parts += ["Generated sound, with 95 % intervals over recordings:", as_markdown(sounds)]
    parts += [f"Warning: {warning}." for warning in comparison.warnings]
    return "\n\n".join(parts) + "\n"


def validation_table(comparison: Comparison) -> Table:
    """A row a folder: what was set otherwise than elsewhere, and the least validation loss."""
    levels = range(1, comparison.num_quantizers + 1)
    head = ["experiment", *comparison.settings, "steps", "best at", "validation loss"]
    rows = []
    for each in comparison.experiments:
        facts = [each.settings.get(name) for name in comparison.settings]
        cells = [each.name, *map(as_cell, [*facts, each.steps, each.best_step])]
        losses = [each.losses.get(name) for name in ("loss", *(f"loss_q{q}" for q in levels))]
        rows.append(cells + [_number(loss, "{:.3f}") for loss in losses])
    return Table([*head, *(f"q{q}" for q in levels)], rows)


def likelihood_table(comparison: Comparison) -> Table:
    """A row a folder: nats of all quantizers and of each, and how often the likeliest was true."""
    levels = range(comparison.num_quantizers)
    head = ["experiment", "nats a frame", *(f"q{q + 1}" for q in levels)]
    rows = []
    for each in comparison.experiments:
        nats, top1 = (each.likelihood.get(name, []) for name in ("nats", "top1"))
        whole = sum(nats) if nats else None
        numbers = [whole, *(_at(nats, q) for q in levels)]
        shares = [_at(top1, q) for q in levels]
        cells = [_number(number, "{:.3f}") for number in numbers]
        rows.append([each.name, *cells, *(_number(share, "{:.1%}") for share in shares)])
    return Table([*head, *(f"top-1 q{q + 1}" for q in levels)], rows)


def sound_table(comparison: Comparison) -> Table | None:
    """A row a measure, and a column a folder; the last is of what truly followed, by the first.

    None where no folder was evaluated by its sound.
    """
    rows = {e.name: e.sounds[GENERATED] for e in comparison.experiments if GENERATED in e.sounds}
    true = next((e.sounds[TRUE] for e in comparison.experiments if TRUE in e.sounds), None)
    if true is not None:
        rows["true music"] = true
    found = dict.fromkeys(key for row in rows.values() for key in row)
    embeddings = [key.removeprefix(FRECHET) for key in found if key.startswith(FRECHET)]
    measures = {key: m for key, m in measures_for(embeddings).items() if key in found}
    cells = {name: {key: _interval(row.get(key)) for key in measures} for name, row in rows.items()}
    return measure_table(cells, measures) if measures else None


def _interval(values: Sequence[float | None] | None) -> Interval:
    """Of mean, low, high and number, as a file has them; of nothing, one that counts nothing."""
    mean, low, high, num = values or (None, None, None, None)
    if mean is None:
        return NO_INTERVAL
    if low is None or high is None:
        low = high = math.nan
    return Interval(mean, low, high, int(num or 0))


def as_cell(value: Any) -> str:
    """As on the command line, and not so as to end a cell of Markdown."""
    return NOTHING if value is None else as_text(value).replace("|", r"\|")


def _at(values: Sequence[float], index: int) -> float | None:
    return values[index] if index < len(values) else None


def _number(value: float | None, form: str) -> str:
    return NOTHING if value is None else form.format(value)


# Files


def write_comparison(comparison: Comparison, output_dir: Path) -> list[Path]:
    """Write `comparison.json`, `comparison.csv`, and `comparison.png` where matplotlib is there.

    Raises:
      OSError: A file could not be written.
    """
    rows = [_flat(comparison, each) for each in comparison.experiments]
    content = {
        "experiments": rows,
        "settings_that_differ": comparison.settings,
        "data": {each.name: each.data for each in comparison.experiments},
        "warnings": comparison.warnings,
    }
    paths = [output_dir / "comparison.json", output_dir / "comparison.csv"]
    with written_whole(paths[0]) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    with written_whole(paths[1]) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, dict.fromkeys(key for row in rows for key in row))
        writer.writeheader()
        writer.writerows(rows)
    return paths + _draw(comparison, output_dir / "comparison.png")


def _flat(comparison: Comparison, each: Experiment) -> dict[str, Any]:
    """All figures of a folder under names of their own."""
    row: dict[str, Any] = {"experiment": each.name}
    row |= {name: each.settings.get(name) for name in comparison.settings}
    row |= {"steps": each.steps, "best_step": each.best_step} | each.losses
    for what in ("nats", "top1"):
        row |= {f"{what}_q{q + 1}": v for q, v in enumerate(each.likelihood.get(what, []))}
    for name, values in each.sounds.get(GENERATED, {}).items():
        row |= dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=False))
    return row


def _draw(comparison: Comparison, path: Path) -> list[Path]:
    """The validation losses over steps in one picture; the files written, at most one."""
    curves = [each for each in comparison.experiments if each.curve]
    try:
        pyplot = import_pyplot()
    except ImportError as error:
        logging.info(f"No picture of the losses: {error}")
        return []
    if not curves:
        return []
    figure, axis = pyplot.subplots(figsize=(9, 4.5))
    for each in curves:
        steps, losses = zip(*each.curve, strict=True)
        axis.plot(steps, losses, marker=".", label=each.name)
    axis.set(xlabel="steps", ylabel="validation loss (nats a frame)")
    axis.legend(fontsize="small")
    figure.tight_layout()
    with written_whole(path) as temporary:
        figure.savefig(temporary, format="png", dpi=80)
    pyplot.close(figure)
    return [path]
