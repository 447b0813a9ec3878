"""Tables of an evaluation, as the terminal and the page show them."""

import math
from collections.abc import Mapping

from evaluation_likelihood import Scores

from valle.evaluation import Interval, Likelihood, Measure
from valle.evaluation.measures import FRECHET
from valle.evaluation.ngrams import Score
from valle.utils.tables import Table

Rows = Mapping[str, Mapping[str, Interval]]
"""By name of the row, by measure."""


def quantizer_table(scores: Scores) -> Table:
    """Nats a frame, and in brackets the accuracy, beside n-grams."""
    rows = {
        scores.model: list(map(Score, scores.overall.nats, scores.overall.top1))
    } | scores.ngrams
    heads = [f"q{q + 1}" for q in range(len(rows[scores.model]))]
    return Table(
        ["nats (accuracy)", *heads],
        [
            [name, *(f"{score.loss:.3f} ({score.accuracy:.1%})" for score in row)]
            for name, row in rows.items()
        ],
    )


def position_table(scores: Scores, what: str) -> Table:
    """By how far into `what`, a continuation or all of the audio, a frame lies."""
    begins = {f"from {start:g} s": found for start, found in scores.by_position.items()}
    return likelihood_table(what, begins | {"all": scores.overall}, scores.frame_rate)


def prompt_table(scores: Scores) -> Table:
    """By the length of the prompt."""
    lengths = {f"{length:g} s": found for length, found in scores.by_prompt.items()}
    return likelihood_table("prompt", lengths, scores.frame_rate)


def gap_costs_table(scores: Scores) -> Table:
    """By what is known of what is around a gap."""
    return likelihood_table("known", scores.gaps, scores.frame_rate)


def condition_costs_table(scores: Scores) -> Table:
    """By whose condition the model was told."""
    return likelihood_table("told of", scores.by_condition, scores.frame_rate)


def likelihood_table(what: str, rows: Mapping[str, Likelihood], frame_rate: float | None) -> Table:
    """Nats a frame and perplexity of each quantizer, hits among ten, bits a second."""
    if frame_rate is None:
        return Table([what], [])
    some = next(iter(rows.values()), None)
    heads = [f"q{q + 1}" for q in range(len(some.nats))] if some else []
    cells = []
    for name, row in rows.items():
        numbers = [str(row.num_frames), *(f"{nats:.3f}" for nats in row.nats)]
        numbers += [f"{row.perplexity[0]:.0f}", f"{row.top10[0]:.1%}"]
        cells.append([name, *numbers, f"{row.bits_a_second(frame_rate) / 1000:.2f}"])
    return Table([what, "frames", *heads, "perplexity of q1", "q1 among ten", "kbit/s"], cells)


def measure_table(sounds: Rows, measures: Mapping[str, Measure]) -> Table:
    """A row for each measure, a column for true and generated sound and each control."""
    return Table(
        ["measure", "better", *sounds],
        [
            [
                titled(measure),
                measure.better,
                *(as_cell(row[key], measure.format) for row in sounds.values()),
            ]
            for key, measure in measures.items()
        ],
    )


def titled(measure: Measure) -> str:
    """A measure's title, with its unit."""
    return f"{measure.title}, {measure.unit}" if measure.unit else measure.title


def as_cell(interval: Interval, form: str) -> str:
    """Mean, and in brackets where 95 % of the resampled means lie, if that is known."""
    if not interval.num:
        return "-"
    if math.isnan(interval.low):
        return form.format(interval.mean)
    mean, low, high = (form.format(value) for value in interval[:3])
    return f"{mean} ({low} to {high})"


def separation_table(
    separations: Mapping[str, Mapping[str, float]], measures: Mapping[str, Measure]
) -> Table:
    """A row for each measure, a column for each control."""
    controls = list(next(iter(separations.values()), {}))
    rows = []
    for key, row in separations.items():
        times = "x" if key.startswith(FRECHET) else ""
        cells = ("-" if math.isnan(row[name]) else f"{row[name]:.2f}{times}" for name in controls)
        rows.append([measures[key].title, *cells])
    return Table(["true sound against", *controls], rows)


def gap_table(gaps: Rows, measures: Mapping[str, tuple[str, str, str]]) -> Table:
    """A row for each measure, a column for in-filled gaps, the true ones and another piece's."""
    return Table(
        ["measure", "better", *gaps],
        [
            [title, better, *(as_cell(row[key], form) for row in gaps.values())]
            for key, (title, form, better) in measures.items()
        ],
    )
