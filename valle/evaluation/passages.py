"""Generated audio against true continuations: every measure, with its interval, for every row.

A continuation is no copy: it is compared with the true one by statistics of the passage, never
frame by frame. What a good model should score is shown by the row "true", what a useless one
scores by three controls: another piece, noise, and a frozen loop.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

from valle.evaluation.bootstrap import Interval
from valle.evaluation.comparisons import Comparison
from valle.evaluation.continuations import (
    GENERATED,
    TRUE,
    Continuation,
    Passage,
    Row,
    check_passages,
    control_rows,
    generated_row,
    true_row,
)
from valle.evaluation.embeddings import OFFLINE, Embedding, get_embedding
from valle.evaluation.frechet import paired_distance
from valle.evaluation.measures import Measure, measures_for
from valle.evaluation.traits import Traits, measure_traits

__all__ = [
    "MEASURES",
    "Interval",
    "Measure",
    "Passage",
    "compare_passages",
    "evaluate_passages",
    "fast_measures",
    "measures_for",
    "separation",
]

MEASURES: dict[str, Measure] = measures_for(OFFLINE)

# What a validation can afford, by the short name it has there.
FAST = {
    "chroma_similarity": "chroma_similarity",
    "onset_similarity": "rhythm_similarity",
    "tempo_kept": "tempo_kept",
    "key_kept": "key_kept",
    "register_kept": "register_kept",
    "entropy": "entropy",
    "in_loops": "in_loops",
}


def evaluate_passages(
    passages: Sequence[Passage],
    sampling_rate: int,
    frame_rate: float,
    *,
    embeddings: Sequence[str] = OFFLINE,
    seed: int = 42,
    num_resamples: int = 1000,
    controls: bool = True,
    generator_codec: str | None = None,
) -> dict[str, dict[str, Interval]]:
    """Measure what a model made of held-out prompts, beside the truth and useless continuations.

    Args:
      passages: of two recordings or more; twenty recordings give intervals worth reading.
      sampling_rate: Hz of the sounds.
      frame_rate: frames of codes a second.
      embeddings: names, as `get_embedding` takes them.
      seed: of the controls, the splits and the intervals; the same call gives the same numbers.
      num_resamples: of the bootstrap.
      controls: whether to measure another piece, noise and a frozen loop, too.
      generator_codec: fingerprint of the codec behind the codes, which "codec:NAME" may not be.

    Returns:
      row -> key in `measures_for(embeddings)` -> interval. A cell with nothing to measure (the
      diversity of a single sample, a Fréchet distance of too few vectors) has `num` 0 and nan.

    Raises:
      ValueError: passages that cannot be measured, or an embedding that cannot be had.
    """
    comparison = compare_passages(
        passages,
        sampling_rate,
        frame_rate,
        embeddings=embeddings,
        seed=seed,
        controls=controls,
        generator_codec=generator_codec,
    )
    return comparison.intervals(seed, num_resamples)


def compare_passages(
    passages: Sequence[Passage],
    sampling_rate: int,
    frame_rate: float,
    *,
    embeddings: Sequence[str | Embedding] = OFFLINE,
    seed: int = 42,
    controls: bool = True,
    generator_codec: str | None = None,
) -> Comparison:
    """Measure every sound once, for both `evaluate_passages` and `separation`.

    Arguments and errors as in `evaluate_passages`; an embedding may be given that is ready, too.

    Returns:
      What has `intervals(seed, num_resamples)` and, with the controls, `separation(seed)`.
    """
    chosen = [
        get_embedding(each, sampling_rate, generator_codec) if isinstance(each, str) else each
        for each in embeddings
    ]
    check_passages(passages, frame_rate)
    rows: dict[str, Row] = {TRUE: true_row(passages), GENERATED: generated_row(passages)}
    if controls:
        rows |= control_rows(passages, sampling_rate, frame_rate, seed)
    return _compare(passages, rows, sampling_rate, frame_rate, chosen)


def separation(
    passages: Sequence[Passage],
    sampling_rate: int,
    frame_rate: float,
    *,
    embeddings: Sequence[str] = OFFLINE,
    seed: int = 42,
    generator_codec: str | None = None,
) -> dict[str, dict[str, float]]:
    """How well each measure tells true music from the controls; what a model made plays no part.

    Arguments and errors as in `evaluate_passages`.

    Returns:
      key -> control -> area under the curve (1: every true passage scores better than every
      control's, 0.5: none can tell); for Fréchet distances how many times the floor the control's
      distance is (nan for another piece, which is no other set).
    """
    without_samples = [replace(passage, samples=(), sample_codes=()) for passage in passages]
    comparison = compare_passages(
        without_samples,
        sampling_rate,
        frame_rate,
        embeddings=embeddings,
        seed=seed,
        generator_codec=generator_codec,
    )
    return comparison.separation(seed)


def fast_measures(
    passages: Sequence[Passage], sampling_rate: int, frame_rate: float
) -> dict[str, float]:
    """A few measures of what was generated, cheap enough for every validation.

    No intervals, no controls. "frechet_mel_paired" is the distance to the true continuations of
    the same prompts, since a few passages cannot be halved: follow it over time, but do not
    compare it with "frechet_mel".

    Returns:
      short name -> value; what could not be measured is left out.

    Raises:
      ValueError: passages that cannot be measured.
    """
    check_passages(passages, frame_rate)
    rows = {TRUE: true_row(passages), GENERATED: generated_row(passages)}
    mel = get_embedding("mel", sampling_rate)
    table = _compare(passages, rows, sampling_rate, frame_rate, [mel])
    made, true = (table.moments("mel", row) for row in (GENERATED, TRUE))
    values = {"frechet_mel_paired": paired_distance(made, true)}
    for name, key in FAST.items():
        values[name] = table.interval(key, GENERATED, seed=0, num_resamples=1).mean
    return {name: value for name, value in values.items() if not math.isnan(value)}


def _compare(
    passages: Sequence[Passage],
    rows: dict[str, Row],
    sampling_rate: int,
    frame_rate: float,
    embeddings: Sequence[Embedding],
) -> Comparison:
    def traits(row: Row, embeddings: Sequence[Embedding]) -> list[list[Traits]]:
        return [
            [measure_traits(made, sampling_rate, frame_rate, embeddings) for made in continuations]
            for continuations in row
        ]

    # no measure embeds a prompt
    prompts = traits([(Continuation(p.prompt, p.true_codes[:0]),) for p in passages], [])
    return Comparison(
        [passage.recording for passage in passages],
        [prompt for (prompt,) in prompts],
        {name: traits(row, embeddings) for name, row in rows.items()},
    )
