"""The measures: what each is called, and how it is computed for one passage or for all.

P passages, K continuations of a prompt.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, product
from typing import Literal

import numpy as np
import torch

from valle.evaluation.bootstrap import NOTHING, Interval, bootstrap_mean
from valle.evaluation.continuations import ANOTHER, LOOP, NOISE, TRUE
from valle.evaluation.frechet import Moments, moments_of, split_distance
from valle.evaluation.pitch import profile_correlation, register_distance
from valle.evaluation.rhythm import rate_distance, tempo_distance
from valle.evaluation.traits import Traits, vector_distance

FRECHET, DIVERSITY = "frechet_", "diversity_"  # the name of the embedding follows


@dataclass(frozen=True)
class Measure:
    """What a number is.

    Attributes:
      title: heading of its column.
      unit: of the number; empty for shares (the format makes them percent) and plain numbers.
      format: of a number, for str.format.
      better: whether low or high numbers are better, or those near the row "true".
      about: a sentence for who reads the table.
      separates: controls that it was shown to tell from true music (docs have the numbers); empty
        for an embedding with which that was not tried.
    """

    title: str
    unit: str
    format: str
    better: Literal["low", "high", "near true"]
    about: str
    separates: tuple[str, ...] = ()


_TO_TRUE = "The row true compares with other passages of the same recording."
_KEPT = "Share of random other pieces that lie further from the prompt than it; 50 % is chance."
_DIVERSE = (
    "Distance between the samples of one prompt, over that between passages of different "
    "recordings; the row true has passages of one recording for samples."
)
_SET = (
    "Distance of continuations of one half of the recordings to the true ones of the other half; "
    "the row true is the floor. The first sample of each prompt counts, so that all rows are of "
    "one size."
)

# Of two passages, how alike (high) or far apart (low) they are.
SIMILARITIES: dict[str, tuple[Measure, Callable[[Traits, Traits], float]]] = {
    "chroma_similarity": (
        Measure(
            "chroma similarity",
            "",
            "{:.2f}",
            "high",
            f"Correlation of the shares of the pitch classes with the true ones. {_TO_TRUE}",
            (ANOTHER, NOISE),
        ),
        lambda made, true: profile_correlation(made.chroma, true.chroma),
    ),
    "rhythm_similarity": (
        Measure(
            "onset similarity",
            "",
            "{:.2f}",
            "high",
            "Correlation of how the onsets recur (autocorrelation of the onset strength, 0.1 to "
            f"2 s) with the true passage. {_TO_TRUE}",
            (ANOTHER, NOISE, LOOP),
        ),
        lambda made, true: profile_correlation(made.rhythm, true.rhythm),
    ),
    "onset_rate_distance": (
        Measure(
            "onset rate distance",
            "octaves",
            "{:.2f}",
            "low",
            f"Octaves between the onsets a second and the true ones. {_TO_TRUE}",
            (LOOP,),
        ),
        lambda made, true: rate_distance(made.onset_rate, true.onset_rate),
    ),
    "register_distance": (
        Measure(
            "register distance",
            "semitones",
            "{:.1f}",
            "low",
            f"How far the notes lie off the true ones (earth mover's distance). {_TO_TRUE}",
            (ANOTHER, NOISE),
        ),
        lambda made, true: register_distance(made.pitches, true.pitches),
    ),
}

# Of a passage and a prompt, how far apart they are: the style is kept where another piece is
# further away.
STYLES: dict[str, tuple[Measure, Callable[[Traits, Traits], float]]] = {
    "tempo_kept": (
        Measure("tempo kept", "", "{:.0%}", "high", f"By tempo: {_KEPT}", (ANOTHER, NOISE, LOOP)),
        lambda made, prompt: tempo_distance(made.tempo, prompt.tempo),
    ),
    "rhythm_kept": (
        Measure(
            "rhythm kept",
            "",
            "{:.0%}",
            "high",
            f"By how the onsets recur: {_KEPT}",
            (ANOTHER, NOISE, LOOP),
        ),
        lambda made, prompt: -profile_correlation(made.rhythm, prompt.rhythm),
    ),
    "register_kept": (
        Measure("register kept", "", "{:.0%}", "high", f"By register: {_KEPT}", (ANOTHER, NOISE)),
        lambda made, prompt: register_distance(made.pitches, prompt.pitches),
    ),
    "key_kept": (
        Measure("key kept", "", "{:.0%}", "high", f"By pitch classes: {_KEPT}", (ANOTHER, NOISE)),
        lambda made, prompt: -profile_correlation(made.chroma, prompt.chroma),
    ),
    "loudness_kept": (
        Measure("loudness kept", "", "{:.0%}", "high", f"By level: {_KEPT}", (ANOTHER,)),
        lambda made, prompt: abs(made.level_db - prompt.level_db),
    ),
}

# Of the codes of quantizer 1; `repetition.measure` computes them.
REPETITION: dict[str, Measure] = {
    "repeated_4grams": Measure(
        "repeated 4-grams",
        "",
        "{:.1%}",
        "near true",
        "Share of rows of four codes that were there within the 10 s before.",
        (LOOP,),
    ),
    "entropy": Measure(
        "entropy of codes",
        "nats",
        "{:.2f}",
        "near true",
        "Of the frequencies of the codes: low where few codes make up the passage.",
        (NOISE, LOOP),
    ),
    "longest_loop_sec": Measure(
        "longest loop",
        "s",
        "{:.2f}",
        "near true",
        "Longest stretch of codes that comes round every 2 s or faster.",
        (NOISE, LOOP),
    ),
    "in_loops": Measure(
        "in loops",
        "",
        "{:.1%}",
        "low",
        "Share of frames in loops of a second or more.",
        (LOOP,),
    ),
}

_SET_SEPARATES = {"mel": (NOISE, LOOP), "chroma": (NOISE,)}
_DIVERSITY_SEPARATES = {"mel": (NOISE,), "chroma": (ANOTHER, NOISE, LOOP)}


def measures_for(embeddings: Sequence[str]) -> dict[str, Measure]:
    """Every measure, in the order of the tables, with those that rest on the named embeddings."""
    sets = {
        FRECHET + name: Measure(
            f"Fréchet distance, {name}", "", "{:.3g}", "low", _SET, _SET_SEPARATES.get(name, ())
        )
        for name in embeddings
    }
    diversity = {
        DIVERSITY + name: Measure(
            f"diversity, {name}",
            "",
            "{:.2f}",
            "near true",
            _DIVERSE,
            _DIVERSITY_SEPARATES.get(name, ()),
        )
        for name in embeddings
    }
    pairs = {key: measure for key, (measure, _) in (SIMILARITIES | STYLES).items()}
    return {**sets, **pairs, **REPETITION, **diversity}


TraitRow = list[list[Traits]]  # for each passage those of its K continuations


@dataclass(frozen=True)
class Comparison:
    """All traits that the measures of a table compare.

    Attributes:
      recordings: (P,) which recording each passage is of.
      prompts: (P,) traits of the prompts.
      rows: for each row of the table, "true" among them, the traits of P x K continuations.
    """

    recordings: list[str]
    prompts: list[Traits]
    rows: dict[str, TraitRow]

    @cached_property
    def true(self) -> list[Traits]:
        return [passage[0] for passage in self.rows[TRUE]]

    def values(self, key: str, row: str) -> list[float]:
        """A measure of a row, for each passage; nan where a passage has nothing to measure."""
        return [self._value(key, row, index) for index in range(len(self.recordings))]

    def _value(self, key: str, row: str, index: int) -> float:
        if key in SIMILARITIES:
            return self._similarity(key, row, index)
        if key in STYLES:
            return self._kept(key, row, index)
        if key in REPETITION:
            return _mean([x.repetition.get(key, math.nan) for x in self.rows[row][index]])
        return self._diversity(key.removeprefix(DIVERSITY), row, index)

    def _elsewhere(self, index: int) -> list[Traits]:
        """The true continuations of the recording's other passages: no copy could be nearer."""
        return [
            traits
            for i, traits in enumerate(self.true)
            if i != index and self.recordings[i] == self.recordings[index]
        ]

    def _similarity(self, key: str, row: str, index: int) -> float:
        compare = SIMILARITIES[key][1]
        made = self._elsewhere(index) if row == TRUE else self.rows[row][index]
        return _mean([compare(traits, self.true[index]) for traits in made])

    def _kept(self, key: str, row: str, index: int) -> float:
        """Share of (continuation, other piece) in which the continuation is nearer to the prompt.

        Every other recording counts the same; a tie counts half.
        """
        far = STYLES[key][1]
        others = self._distances_of_others[key][index]
        made = [far(traits, self.prompts[index]) for traits in self.rows[row][index]]
        return _mean([_mean([_wins(x, passages) for passages in others]) for x in made])

    @cached_property
    def _distances_of_others(self) -> dict[str, list[list[np.ndarray]]]:
        """By style measure and prompt, distances of the true passages of each other recording."""
        indices = range(len(self.recordings))
        return {key: [self._others_of(key, index) for index in indices] for key in STYLES}

    def _others_of(self, key: str, index: int) -> list[np.ndarray]:
        far, prompt = STYLES[key][1], self.prompts[index]
        distances: dict[str, list[float]] = {}
        for recording, traits in zip(self.recordings, self.true, strict=True):
            if recording != self.recordings[index]:
                distances.setdefault(recording, []).append(far(traits, prompt))
        return [np.array(values) for values in distances.values()]

    def _diversity(self, embedding: str, row: str, index: int) -> float:
        made = self.rows[row][index]
        if row == TRUE:
            made = [*made, *self._elsewhere(index)]
        distances = [vector_distance(a, b, embedding) for a, b in combinations(made, 2)]
        return _mean(distances) / self._usual_distance(embedding)

    def _usual_distance(self, embedding: str) -> float:
        """Mean distance between true passages of different recordings."""
        means = torch.stack([traits.vectors[embedding].mean(0) for traits in self.true])
        names = np.array(self.recordings)
        differ = torch.from_numpy(names[:, None] != names)
        return float(torch.cdist(means, means)[differ].mean())

    def moments(self, embedding: str, row: str) -> Moments:
        """Of each recording the vectors of the first continuation of each of its prompts."""
        empty = self.true[0].vectors[embedding][:0]
        sets = {name: [empty] for name in sorted(set(self.recordings))}
        for recording, made in zip(self.recordings, self.rows[row], strict=True):
            sets[recording] += [traits.vectors[embedding] for traits in made[:1]]
        return moments_of([torch.cat(parts) for parts in sets.values()])

    def frechet(self, embedding: str, row: str, seed: int, num_resamples: int) -> Interval:
        """As `split_distance`; nothing for another piece: as a set it is the true one, reordered.

        Besides, it would hold pieces of the other half.
        """
        if row == ANOTHER:
            return NOTHING
        true = self.moments(embedding, TRUE)
        made = self.moments(embedding, row)
        return split_distance(made, true, seed, num_resamples)

    def interval(self, key: str, row: str, seed: int, num_resamples: int) -> Interval:
        """A cell of the table."""
        if key.startswith(FRECHET):
            return self.frechet(key.removeprefix(FRECHET), row, seed, num_resamples)
        return bootstrap_mean(self.values(key, row), self.recordings, num_resamples, seed)


def _wins(distance: float, others: np.ndarray) -> float:
    return float(np.mean((distance < others) + 0.5 * (distance == others)))


def _mean(values: Sequence[float]) -> float:
    """Mean of the values that are there, nan where none is."""
    kept = [value for value in values if not math.isnan(value)]
    return float(np.mean(kept)) if kept else math.nan


def area_under_curve(true: Sequence[float], control: Sequence[float], better: str) -> float:
    """How surely a measure tells true from control: 1 always, 0.5 not at all.

    The share of pairs of passages in which the true one is better, ties half; where near true is
    better, it may lie to either side, and the better of the two counts.
    """
    pairs = [(a, b) for a, b in product(true, control) if not (math.isnan(a) or math.isnan(b))]
    if not pairs:
        return math.nan
    above = _mean([(a > b) + 0.5 * (a == b) for a, b in pairs])
    return {"high": above, "low": 1 - above, "near true": max(above, 1 - above)}[better]
