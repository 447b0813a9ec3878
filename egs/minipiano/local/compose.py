"""A seeded composer of short piano pieces: `compose(seed)` gives the notes a pianist would play.

A piece is a row of four-bar phrases in song form (AABA, ABAC, ...). A phrase has a chord
progression with an open or closed cadence, a melody grown from one motif, and the accompaniment
of the piece's style (styles.py holds the tables). What happens in time and loudness is laid over
it last (perform.py). A seed means the same piece on every machine.

Pitches are MIDI numbers; a *step* counts notes of the scale from the tonic (7 steps an octave);
chords are the steps of their roots (0 tonic, 4 dominant); times are in beats.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from perform import Chord, Score, Written, perform
from piano import HIGHEST_PITCH, LOWEST_PITCH, Note
from styles import (
    ARCHES,
    BARS_PER_PHRASE,
    CLOSED_CADENCES,
    DIMINISHED,
    FORMS,
    KEY_NAMES,
    MELODY_TOP,
    OPEN_CADENCES,
    OPENINGS,
    SCALES,
    STYLES,
)

T = TypeVar("T")


@dataclass(frozen=True)
class Piece:
    """A finished performance.

    Attributes:
        notes: In order of onset, then pitch.
        style: A name in STYLES.
        tempo: Basic speed in beats a minute.
        key: Like "E♭ minor".
        title: For people.
        seed: What `compose` was called with.
    """

    notes: tuple[Note, ...]
    style: str
    tempo: int
    key: str
    title: str
    seed: int

    @property
    def end_sec(self) -> float:
        """When the last damper falls."""
        return max(n.onset_sec + n.duration_sec for n in self.notes)


def _pick(rng: np.random.Generator, items: Sequence[T]) -> T:
    return items[int(rng.integers(len(items)))]


class Composer:
    """Everything fixed for one piece: style, key, tempo, form, and the seeds of its sections."""

    def __init__(self, seed: int, style: str) -> None:
        rng = np.random.default_rng([seed, sorted(STYLES).index(style)])
        self.rng = rng
        self.seed = seed
        self.style_name = style
        self.style = STYLES[style]
        self.mode = _pick(rng, self.style.modes)
        self.tonic = int(rng.integers(12))
        self.tempo = int(rng.integers(self.style.tempo[0], self.style.tempo[1] + 1))
        self.pattern = _pick(rng, self.style.patterns).split()
        self.form = self._choose_form()
        self.intro_beats = self.style.beats * int(rng.integers(1, 3)) * (rng.random() < 0.5)
        self.lower = self._nearest_step(self.style.ceiling + 2)
        self.upper = self._nearest_step(MELODY_TOP)

    def _choose_form(self) -> str:
        phrase_sec = BARS_PER_PHRASE * self.style.beats * 60 / self.tempo
        wanted_sec = 32 + 24 * self.rng.random()
        num = min(12, max(3, round(wanted_sec / phrase_sec)))
        if num == 3:
            return "ABA"
        return (_pick(self.rng, FORMS) * 3)[: num - 1] + "A"

    # -- pitches ---------------------------------------------------------------------------------

    def _pitch(self, step: int, scale: tuple[int, ...]) -> int:
        return 60 + self.tonic + 12 * (step // 7) + scale[step % 7]

    def _nearest_step(self, pitch: int) -> int:
        return min(range(-21, 28), key=lambda s: abs(self._pitch(s, SCALES[self.mode]) - pitch))

    def _nearest_chord_step(self, step: float, root: int, avoid: int | None = None) -> int:
        tones = [s for s in range(self.lower, self.upper + 1) if (s - root) % 7 in (0, 2, 4)]
        return min((s for s in tones if s != avoid), key=lambda s: (abs(s - step), s))

    def _scale(self, root: int) -> tuple[int, ...]:
        """The minor dominant borrows the raised seventh; all else is diatonic."""
        scale = SCALES[self.mode]
        return (*scale[:6], 11) if self.mode == "minor" and root == 4 else scale

    # -- one phrase ------------------------------------------------------------------------------

    def phrase(self, letter: str, closed: bool) -> tuple[list[Chord], list[Written]]:
        """The phrase of that letter, from beat 0; both of its endings share their beginning."""
        rng = np.random.default_rng([self.seed, 1000 + ord(letter)])
        chords = self._chords(rng, closed)
        return chords, self._melody(rng, chords, closed)

    def _chords(self, rng: np.random.Generator, closed: bool) -> list[Chord]:
        opening = _pick(rng, OPENINGS[self.mode])
        half = _pick(rng, OPEN_CADENCES[self.mode])
        full = _pick(rng, CLOSED_CADENCES[self.mode])
        roots = (*opening, *(full if closed else half))
        beats = self.style.beats
        if self.style.chords_per_bar == 1:
            return [Chord(i * beats, beats, r, self._scale(r)) for i, r in enumerate(roots)]
        chords = []
        for i, (root, following) in enumerate(zip(roots, (*roots[1:], 0), strict=True)):
            last = i == BARS_PER_PHRASE - 1
            # the second half of a bar leads on: a fifth above the next root, or the same harmony
            second = root if last or rng.random() < 0.3 else (following + 4) % 7
            if (self.mode, second) in DIMINISHED:
                second = 4
            for j, r in enumerate((root, second)):
                chords.append(Chord(i * beats + j * beats / 2, beats / 2, r, self._scale(r)))
        return chords

    def _melody(self, rng: np.random.Generator, chords: list[Chord], closed: bool) -> list[Written]:
        """Motif, its sequence, a new turn or the motif again, cadence."""
        style = self.style
        motif = _pick(rng, style.rhythms)
        turn = _pick(rng, style.rhythms)
        moves = [self._moves(rng), self._moves(rng)]
        plan = [(motif, 0), (motif, 0), (turn, 1) if rng.random() < 0.6 else (motif, 0)]
        centre = self._nearest_step(style.melody) + int(rng.integers(-1, 2))
        arch = _pick(rng, ARCHES)
        here = centre
        cadence = _pick(rng, style.cadences)
        written: list[Written] = []
        for bar, (rhythm, which) in enumerate(plan):
            target = round((here + 2 * (centre + arch[bar])) / 3)
            here = self._bar(written, bar * style.beats, rhythm, moves[which], target, chords)
        target = round((here + centre + arch[3]) / 2)
        self._cadence_bar(written, cadence, target, chords, closed)
        return written

    def _moves(self, rng: np.random.Generator) -> list[int]:
        """Steps from note to note: mostly by second, now and then a leap that turns back."""
        moves: list[int] = []
        while len(moves) < 8:
            move = _pick(rng, (-1, -1, -1, 1, 1, 1, 2, -2, 3))
            if moves and abs(moves[-1]) > 1:
                move = -1 if moves[-1] > 0 else 1
            # a motif that has gone four steps away turns round
            moves.append(-move if abs(sum(moves) + move) > 4 else move)
        return moves

    def _bar(
        self,
        written: list[Written],
        start: float,
        rhythm: Sequence[float],
        moves: Sequence[int],
        here: int,
        chords: list[Chord],
    ) -> int:
        """Append one bar of melody that begins near step `here`; returns its last step."""
        at = start
        for i, length in enumerate(rhythm):
            chord = _chord_at(chords, at)
            if length > 0:
                wanted = here + (moves[i - 1] if i else 0)
                strong = i == 0 or length > 1 or (at % 2 == 0 and length >= 1)
                if not self.lower <= wanted <= self.upper:
                    wanted = here - moves[i - 1] if i else here
                avoid = here if i else None
                here = self._nearest_chord_step(wanted, chord.root, avoid) if strong else wanted
                here = min(self.upper, max(self.lower, here))
                if written and abs(written[-1].pitch - self._pitch(here, chord.scale)) == 6:
                    here += 1 if written[-1].pitch > self._pitch(here, chord.scale) else -1
                self._write(written, at, length, here, chord)
            at += abs(length)
        return here

    def _write(
        self, written: list[Written], at: float, length: float, step: int, chord: Chord
    ) -> None:
        accent = 4.0 if at % self.style.beats == 0 else (0.0 if at % 1 == 0 else -4.0)
        written.append(Written(at, length, self._pitch(step, chord.scale), accent, True))

    def _cadence_bar(
        self,
        written: list[Written],
        cadence: Sequence[float],
        here: int,
        chords: list[Chord],
        closed: bool,
    ) -> None:
        """Walk to a tone of the last chord; a closed phrase ends on the tonic."""
        start = (BARS_PER_PHRASE - 1) * self.style.beats
        root = chords[-1].root
        tones = [s for s in range(self.lower, self.upper + 1) if (s - root) % 7 in (0, 2, 4)]
        if closed:
            tones = [s for s in tones if s % 7 == 0]
        goal = min(tones, key=lambda s: (abs(s - here), s))
        sounding = sum(1 for length in cadence if length > 0)
        at, side = float(start), 1 if here > goal else -1
        for length in cadence:
            if length > 0:
                sounding -= 1
                step = min(self.upper, max(self.lower, goal + side * sounding))
                self._write(written, at, length, step, _chord_at(chords, at))
            at += abs(length)

    # -- the whole -------------------------------------------------------------------------------

    def write(self) -> Score:
        """Intro, phrases and final chord, with their accompaniment."""
        phrase_beats = BARS_PER_PHRASE * self.style.beats
        written: list[Written] = []
        chords: list[Chord] = []
        if self.intro_beats:
            first = self.phrase(self.form[0], False)[0][0]
            chords.append(Chord(0.0, self.intro_beats, first.root, first.scale))
        start = float(self.intro_beats)
        for i, letter in enumerate(self.form):
            last = i == len(self.form) - 1
            closed = last or self.form[i + 1] != letter
            some_chords, melody = self.phrase(letter, closed)
            melody = self._repeat_varied(melody, some_chords, self.form[:i].count(letter))
            written += [n._replace(beat=n.beat + start) for n in melody]
            chords += [c._replace(beat=c.beat + start) for c in some_chords]
            start += phrase_beats
        written += self._accompany(chords)
        written += self._final_chord(start)
        return Score(written, chords, self.form, self.intro_beats, start)

    def _repeat_varied(
        self, melody: list[Written], chords: list[Chord], times_heard: int
    ) -> list[Written]:
        """A phrase heard again may be doubled in thirds or sixths."""
        if times_heard == 0 or self.rng.random() > 2 * self.style.thirds:
            return melody
        below = []
        for note in melody:
            scale = _chord_at(chords, note.beat).scale
            step = next(s for s in range(-21, 28) if self._pitch(s, scale) >= note.pitch)
            chord_root = _chord_at(chords, note.beat).root
            down = 2 if (step - 2 - chord_root) % 7 in (0, 2, 4) else 5
            if note.length >= 1 and self._pitch(step - down, scale) > self.style.ceiling:
                below.append(note._replace(pitch=self._pitch(step - down, scale), accent=-10.0))
        return melody + below

    def _accompany(self, chords: list[Chord]) -> list[Written]:
        voicing: list[int] | None = None
        bass = self.style.bass
        written = []
        for chord in chords:
            classes = [(self.tonic + chord.scale[(chord.root + k) % 7]) % 12 for k in (0, 2, 4)]
            bass = _closest(classes[0], (bass + self.style.bass) / 2)
            voicing = _lead_voices(classes, voicing, self.style.voicing, self.style.ceiling)
            written += self._play_pattern(chord, classes, bass, voicing)
        return written

    def _play_pattern(
        self, chord: Chord, classes: list[int], bass: int, voicing: list[int]
    ) -> list[Written]:
        """The style's pattern over one chord; a chord of half a bar takes half of it."""
        slot = self.style.beats / len(self.pattern)
        voices = {
            "b": [bass],
            "B": [bass, bass - 12] if bass - 12 >= 28 else [bass],
            "f": [bass + (classes[2] - classes[0]) % 12],
            "o": [bass + 12],
            "t": [bass + 12 + (classes[1] - classes[0]) % 12],
            **{str(i + 1): [pitch] for i, pitch in enumerate(voicing)},
        }
        written = []
        for i in range(round(chord.length / slot)):
            at = chord.beat + i * slot
            symbols = self.pattern[round((at % self.style.beats) / slot) % len(self.pattern)]
            rests = 1  # a slot sounds through the rests behind it
            following = [self.pattern[(i + k) % len(self.pattern)] for k in range(1, 4)]
            rests += next((k for k, s in enumerate(following) if s != "."), 0)
            pitches = sorted(p for s in symbols if s != "." for p in voices[s])
            for pitch in pitches:
                accent = (2.0 if i == 0 else -2.0) - 2.0 * (len(pitches) > 2)
                written.append(Written(at, slot * rests, pitch, accent, False))
        return written

    def _final_chord(self, beat: float) -> list[Written]:
        """The tonic over three octaves, rolled upwards, held until it has died away."""
        scale = SCALES[self.mode]
        if self.mode == "minor" and self.rng.random() < 0.25:
            scale = SCALES["major"]  # the old habit of ending in major
        bass = _closest(self.tonic, self.style.bass - 3)
        fifth = _closest((self.tonic + 7) % 12, bass + 9)
        upper = [_closest((self.tonic + scale[k]) % 12, 61) for k in (0, 2, 4)]
        top = _closest(self.tonic, self.style.melody - 1)
        pitches = sorted({bass, fifth, *upper, top})
        hold = (2.6 + 1.4 * self.rng.random()) * self.tempo / 60
        roll = 0.03 * self.tempo / 60
        return [
            Written(beat + i * roll, hold - i * roll, p, 2.0 if p == top else -6.0, p == top)
            for i, p in enumerate(pitches)
        ]


def _chord_at(chords: Sequence[Chord], beat: float) -> Chord:
    return next((c for c in reversed(chords) if c.beat <= beat), chords[0])


def _closest(pitch_class: int, target: float) -> int:
    """The pitch of that class nearest to target."""
    return min(
        range(LOWEST_PITCH, HIGHEST_PITCH + 1),
        key=lambda p: (p % 12 != pitch_class, abs(p - target), p),
    )


def _lead_voices(
    classes: list[int], previous: list[int] | None, centre: int, ceiling: int
) -> list[int]:
    """The close position that moves least from the last chord and stays near the centre."""
    positions = []
    for i in range(3):
        for low in range(centre - 10, centre + 4):
            middle = low + (classes[(i + 1) % 3] - low) % 12
            high = middle + (classes[(i + 2) % 3] - middle) % 12
            if low % 12 == classes[i] and high <= ceiling:
                positions.append([low, middle, high])

    def cost(position: list[int]) -> float:
        away = abs(sum(position) / 3 - centre)
        moved = sum(abs(a - b) for a, b in zip(position, previous or position, strict=True))
        return moved + 1.5 * away

    return min(positions, key=lambda position: (cost(position), position))


def compose(seed: int, style: str | None = None) -> Piece:
    """Compose and perform one piece of about 30 to 75 seconds.

    Args:
        seed: 0 or more; with the style it decides everything.
        style: A name in STYLES; drawn from the seed where None.

    Returns:
        The piece; the same one on every machine and in every process.

    Raises:
        ValueError: The style is unknown or the seed negative.
    """
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, got {seed}")
    if style is None:
        style = _pick(np.random.default_rng([seed, 99]), sorted(STYLES))
    if style not in STYLES:
        raise ValueError(f"unknown style {style!r}; choose one of {', '.join(STYLES)}")
    composer = Composer(seed, style)
    score = composer.write()
    notes = perform(composer.rng, composer.style, composer.tempo, score)
    key = f"{KEY_NAMES[composer.tonic]} {composer.mode}"
    title = f"{style.capitalize()} in {key}"
    return Piece(notes, style, composer.tempo, key, title, seed)
