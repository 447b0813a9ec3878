"""Whether notes begin when they should: onsets of a sound beside those of another, or of notes.

N samples, F frequency bins, T frames, M notes.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from valle.codec.harmony import LOWEST_PITCH, harmonic_map, pitch_spectrum, pitch_window
from valle.evaluation.rhythm import onset_strength, onset_times

TOLERANCE_SEC = 0.05  # as in MIREX
CHORD_SEC = 0.05  # notes that begin so close to each other are one onset
# A pitch begins where it is more salient after an onset than before, so far from it, and so much
# of the largest rise. Chosen on pieces of known notes: so as many pitches are found as begin.
RISE_SEC, RISE_SHARE = 0.12, 0.5


class Onsets(NamedTuple):
    """When something begins, and what.

    Attributes:
      times: seconds, in order, `CHORD_SEC` apart or more.
      classes: of each, the pitch classes that begin there; C is 0.
    """

    times: list[float]
    classes: list[frozenset[int]]

    def of_class(self, pitch_class: int) -> list[float]:
        """When a pitch class begins."""
        pairs = zip(self.times, self.classes, strict=True)
        return [time for time, classes in pairs if pitch_class in classes]


class Agreement(NamedTuple):
    """How many of those that were made are true ones, `num_matched` in pairs."""

    num_matched: int
    num_made: int
    num_true: int

    @property
    def precision(self) -> float:
        """Share of what was made that is true; nan where nothing was made."""
        return self.num_matched / self.num_made if self.num_made else math.nan

    @property
    def recall(self) -> float:
        """Share of what is true that was made; nan where there is nothing to make."""
        return self.num_matched / self.num_true if self.num_true else math.nan

    @property
    def f1(self) -> float:
        """Between the two, nearer to the lower; nan where both are empty."""
        num = self.num_made + self.num_true
        return 2 * self.num_matched / num if num else math.nan


def onsets_of_sound(sound: Tensor, sampling_rate: int) -> Onsets:
    """Onsets that are heard in a sound (N,).

    Of the pitches one of each class counts: an octave above a note is heard where there is none.
    """
    strength = onset_strength(sound, sampling_rate)
    frames = onset_times(strength).tolist()
    times = first_of_each_chord([frame / strength.frames_per_sec for frame in frames])
    return Onsets(times, _classes_at(times, sound, sampling_rate))


def _classes_at(times: Sequence[float], sound: Tensor, sampling_rate: int) -> list[frozenset[int]]:
    """Which pitch classes begin at each onset: peaks of the rise of their pitches' salience."""
    if not times:
        return []
    salience = (
        harmonic_map(sampling_rate) @ pitch_spectrum(sound[None], sampling_rate)[0]
    )  # (73, T)
    frames_per_sec = sampling_rate / (pitch_window(sampling_rate) // 4)
    middle = torch.tensor(times)
    before, after = (
        ((middle + shift) * frames_per_sec).round().long().clamp(0, salience.shape[1] - 1)
        for shift in (-RISE_SEC, RISE_SEC)
    )
    rise = (salience[:, after] - salience[:, before]).clamp_min(0).T  # (onsets, 73)
    highest = torch.nn.functional.max_pool1d(rise[:, None], 3, 1, 1)[:, 0]
    begins = (rise == highest) & (rise > RISE_SHARE * rise.amax(dim=1, keepdim=True))
    return [frozenset(((torch.nonzero(row)[:, 0] + LOWEST_PITCH) % 12).tolist()) for row in begins]


def onsets_of_notes(notes: NDArray[np.float64]) -> Onsets:
    """Onsets that are written in notes (M, 4): onset and duration in s, MIDI pitch, velocity.

    Notes of before the start (a negative onset) do not begin here.

    Raises:
      ValueError: Another shape.
    """
    if notes.ndim != 2 or notes.shape[1] != 4:
        raise ValueError(
            "notes must be (M, 4): onset_sec, duration_sec, pitch, velocity; got the shape "
            f"{tuple(notes.shape)}"
        )
    begun = notes[notes[:, 0] >= 0]
    times = first_of_each_chord(sorted(begun[:, 0].tolist()))
    chord = np.searchsorted(times, begun[:, 0], side="right") - 1
    classes = [
        frozenset((begun[chord == i, 2].astype(int) % 12).tolist()) for i in range(len(times))
    ]
    return Onsets(times, classes)


def first_of_each_chord(times: Sequence[float]) -> list[float]:
    """Of times in order, those that begin `CHORD_SEC` or more after the last one kept."""
    kept: list[float] = []
    for time in times:
        if not kept or time - kept[-1] >= CHORD_SEC:
            kept.append(time)
    return kept


def compare_onsets(made: Onsets, true: Onsets) -> Agreement:
    """Do they begin at the same times, whatever begins?"""
    matched = num_matches(made.times, true.times)
    return Agreement(matched, len(made.times), len(true.times))


def compare_notes(made: Onsets, true: Onsets) -> Agreement:
    """Do the same pitch classes begin at the same times?"""
    matched = sum(num_matches(made.of_class(k), true.of_class(k)) for k in range(12))
    return Agreement(matched, sum(map(len, made.classes)), sum(map(len, true.classes)))


def num_matches(
    one: Sequence[float], other: Sequence[float], tolerance_sec: float = TOLERANCE_SEC
) -> int:
    """The most pairs of times at most `tolerance_sec` apart, each time in one pair at most.

    Both are in order. On a line it is enough to pair the earliest that can be: whoever pairs it
    later takes a partner from another.
    """
    i = j = count = 0
    while i < len(one) and j < len(other):
        distance = one[i] - other[j]
        is_near = abs(distance) <= tolerance_sec
        count += is_near
        i += is_near or distance < 0
        j += is_near or distance > 0
    return count
