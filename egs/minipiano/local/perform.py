"""From paper to keys: tempo, loudness, pedal and the unevenness of hands.

Only `Generator.random` and `integers` are drawn from, and times are rounded to 0.1 ms, so that a
seed means the same performance on every machine.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from piano import Note
from styles import BARS_PER_PHRASE, Style


class Written(NamedTuple):
    """A note on paper: times in beats, `accent` in velocity steps around the piece's dynamics."""

    beat: float
    length: float
    pitch: int
    accent: float
    melody: bool


class Chord(NamedTuple):
    """`length` beats of the triad on step `root`; the minor dominant has its leading tone."""

    beat: float
    length: float
    root: int
    scale: tuple[int, ...]


class Score(NamedTuple):
    """A finished composition: `form` has a letter a phrase, and begins after `intro_beats`."""

    notes: list[Written]
    chords: list[Chord]
    form: str
    intro_beats: float
    final_beat: float


GRID = 4  # points of the tempo curve in a beat


class Performer:
    """Turns paper into time and loudness: the part that makes it sound played."""

    def __init__(self, rng: np.random.Generator, style: Style, tempo: int, score: Score) -> None:
        self.rng = rng
        self.style = style
        self.tempo = tempo
        self.intro = score.intro_beats
        self.final_beat = score.final_beat
        self.phrase_beats = BARS_PER_PHRASE * self.style.beats
        self.pedal_ends = [c.beat + c.length for c in score.chords]
        self.lead_in_sec = 0.15 + 0.2 * self.rng.random()
        self.level = 58 + 12 * self.rng.random()
        letters = {letter: 10 * (2 * self.rng.random() - 1) for letter in "ABC"}
        self.sections = [letters[letter] for letter in score.form]
        self.sections[-1] += (-10.0, -6.0, 6.0)[int(self.rng.integers(3))]
        self.seconds = self._tempo_curve()

    def _phrase_place(self, beat: float) -> tuple[int, float]:
        """(index of the phrase, place within it in [0, 1)) of a beat."""
        into = max(0.0, beat - self.intro) / self.phrase_beats
        index = min(len(self.sections) - 1, int(into))
        return index, min(1.0, into - index)

    def _tempo_curve(self) -> list[float]:
        """Seconds at every grid point: faster inside a phrase, broader at its end and the last."""
        num = int((self.final_beat + 32) * GRID)
        seconds, drift = [self.lead_in_sec], 0.0
        for i in range(num):
            beat = i / GRID
            if i % (self.style.beats * GRID) == 0:
                drift = 0.7 * drift + 0.3 * (2 * self.rng.random() - 1) * self.style.rubato
            _, place = self._phrase_place(beat)
            stretch = 1 - 0.6 * self.style.rubato * math.sin(math.pi * place) + drift
            stretch += 1.5 * self.style.rubato * max(0.0, (place - 0.8) / 0.2) ** 2
            left = (self.final_beat - beat) / self.style.beats
            if 0 < left < 1.5:
                stretch += (0.25 + 2 * self.style.rubato) * (1 - left / 1.5) ** 1.5
            elif left <= 0:
                stretch = 1.0  # the hold of the final chord is written in seconds
            seconds.append(seconds[-1] + stretch * 60 / self.tempo / GRID)
        return seconds

    def at(self, beat: float) -> float:
        """Seconds at a beat."""
        index = min(int(beat * GRID), len(self.seconds) - 2)
        part = beat * GRID - index
        return self.seconds[index] * (1 - part) + self.seconds[index + 1] * part

    def velocity(self, note: Written) -> int:
        """Section, phrase arch, accent, and a finger's unevenness."""
        index, place = self._phrase_place(note.beat)
        arch = 9 * math.sin(math.pi * min(1.0, place * 0.85 + 0.05)) - 5
        hand = 12.0 if note.melody else -9.0
        height = 0.25 * (note.pitch - 72) if note.melody else 0.0
        uneven = 3.5 * (2 * self.rng.random() - 1)
        loud = self.level + self.sections[index] + arch + hand + height + note.accent + uneven
        return int(min(116, max(18, round(loud))))

    def _end(self, note: Written) -> float:
        """Seconds at which the damper falls."""
        written = self.at(note.beat + note.length)
        if note.beat >= self.final_beat:
            return written
        if note.melody:  # legato by the fingers, so that a scale in the melody stays clear
            return written + (0.05 if self.style.pedal else -0.02)
        end = self.at(note.beat + note.length * self.style.touch)
        if self.style.pedal:
            # the foot comes up just after the new harmony has begun
            change = next((b for b in self.pedal_ends if b > note.beat + 1e-6), note.beat)
            end = max(end, self.at(change) + 0.06)
        return end

    def perform(self, note: Written) -> Note:
        # the two draws make a triangular spread of +-12 ms; a melody leads its accompaniment
        uneven = 0.012 * (self.rng.random() + self.rng.random() - 1) - 0.012 * note.melody
        onset = max(0.0, self.at(note.beat) + uneven)
        duration = max(0.06, self._end(note) - onset)
        return Note(round(onset, 4), round(duration, 4), note.pitch, self.velocity(note))


def perform(rng: np.random.Generator, style: Style, tempo: int, score: Score) -> tuple[Note, ...]:
    """Play a score: notes in order of onset, then pitch; no key is struck while it is down."""
    performer = Performer(rng, style, tempo, score)
    return tuple(_separate([performer.perform(note) for note in score.notes]))


def _separate(notes: Sequence[Note]) -> list[Note]:
    """One key at a time: a key struck again ends its earlier note, doubled strokes become one."""
    by_pitch: dict[int, list[Note]] = {}
    for note in sorted(notes, key=lambda n: (n.onset_sec, n.pitch, -n.velocity)):
        row = by_pitch.setdefault(note.pitch, [])
        if row and note.onset_sec - row[-1].onset_sec < 0.05:
            louder = max(row[-1], note, key=lambda n: n.velocity)
            longer = max(row[-1], note, key=lambda n: n.duration_sec)
            row[-1] = Note(row[-1].onset_sec, longer.duration_sec, note.pitch, louder.velocity)
        else:
            row.append(note)
    apart = []
    for row in by_pitch.values():
        for note, following in pairwise(row):
            room = round(following.onset_sec - note.onset_sec - 0.01, 4)
            apart.append(
                Note(note.onset_sec, min(note.duration_sec, room), note.pitch, note.velocity)
            )
        apart.append(row[-1])
    return sorted(apart, key=lambda n: (n.onset_sec, n.pitch))
