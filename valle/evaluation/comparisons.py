"""Every measure of every row: computed for one passage, or for all as a set.

P passages, K continuations of a prompt.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, product

import numpy as np
import torch

from valle.evaluation.bootstrap import NOTHING, Interval, bootstrap_mean
from valle.evaluation.continuations import ANOTHER, CONTROLS, TRUE
from valle.evaluation.frechet import Moments, moments_of, split_distance
from valle.evaluation.measures import (
    DIVERSITY,
    FRECHET,
    REPETITION,
    SIMILARITIES,
    STYLES,
    Measure,
    measures_for,
)
from valle.evaluation.traits import Traits, vector_distance

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
        usual = self._usual_distance(embedding)
        return _mean(distances) / usual if usual else math.nan

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

    @property
    def measures(self) -> dict[str, Measure]:
        """All that can be asked for, in the order of the tables."""
        return measures_for(list(self.true[0].vectors))

    def intervals(self, seed: int, num_resamples: int) -> dict[str, dict[str, Interval]]:
        """All cells: row -> key of a measure -> interval."""
        return {
            row: {key: self.interval(key, row, seed, num_resamples) for key in self.measures}
            for row in self.rows
        }

    def separation(self, seed: int) -> dict[str, dict[str, float]]:
        """As `passages.separation`: key of a measure -> control -> number.

        Raises:
          ValueError: There are no rows of controls.
        """
        if not set(CONTROLS) <= self.rows.keys():
            raise ValueError(
                f"rows are {', '.join(self.rows)}: what tells true music from the controls is "
                f"known where {', '.join(CONTROLS)} are compared, too (controls=True)"
            )
        return {
            key: {control: self._separation(key, control, seed) for control in CONTROLS}
            for key in self.measures
        }

    def _separation(self, key: str, control: str, seed: int) -> float:
        if key.startswith(FRECHET):
            floor = self.interval(key, TRUE, seed, 0).mean
            return self.interval(key, control, seed, 0).mean / floor if floor else math.nan
        better = self.measures[key].better
        return area_under_curve(self.values(key, TRUE), self.values(key, control), better)


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
