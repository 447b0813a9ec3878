"""What the composer knows before it begins: scales, chord progressions, forms, and the styles.

Pitches are MIDI numbers; chords are the scale steps of their roots (0 tonic, 4 dominant); lengths
are in beats.
"""

from dataclasses import dataclass

BARS_PER_PHRASE = 4
KEY_NAMES = ("C", "D♭", "D", "E♭", "E", "F", "F♯", "G", "A♭", "A", "B♭", "B")
SCALES = {
    "major": (0, 2, 4, 5, 7, 9, 11),
    "minor": (0, 2, 3, 5, 7, 8, 10),
    "dorian": (0, 2, 3, 5, 7, 9, 10),
}
# two bars to open a phrase, two bars to close it: half cadence or full cadence
OPENINGS = {
    "major": ((0, 5), (0, 3), (0, 4), (0, 2), (5, 3), (3, 0)),
    "minor": ((0, 5), (0, 3), (0, 6), (5, 2), (3, 0), (0, 4)),
    "dorian": ((0, 3), (0, 6), (0, 2), (3, 0)),
}
DIMINISHED = {("major", 6), ("minor", 1), ("dorian", 5)}  # triads that carry no weight
OPEN_CADENCES = {
    "major": ((3, 4), (1, 4), (5, 4)),
    "minor": ((3, 4), (5, 4), (0, 4)),
    "dorian": ((2, 6), (0, 3), (2, 3)),
}
CLOSED_CADENCES = {
    "major": ((4, 0), (1, 0), (3, 0)),
    "minor": ((4, 0), (3, 0)),
    "dorian": ((6, 0), (3, 0)),
}
FORMS = ("AABA", "ABAC", "ABCA", "ABBA")
MELODY_TOP = 85
# height in steps of the four bars of a phrase, about its centre
ARCHES = ((0, 1, 3, 0), (-1, 1, 2, 0), (1, 0, 2, -1), (0, 2, 1, -1), (2, 1, 0, -1))


@dataclass(frozen=True)
class Style:
    """A manner of playing.

    Attributes:
        beats: In a bar.
        tempo: Slowest and fastest, in beats a minute.
        modes: Scales to choose from.
        patterns: Accompaniments of one bar, one chosen a piece. Slots of equal length; in a slot
            b is the bass, B the bass doubled an octave below, f o t the fifth, octave and tenth
            above the bass, 1 2 3 the voices of the chord upwards, . a rest.
        rhythms: Melody bars, as note lengths in beats; a negative length is a rest.
        cadences: The same for the last bar of a phrase.
        chords_per_bar: How often the harmony moves.
        pedal: Whether the pedal holds everything until the harmony moves.
        touch: Sounding part of a written length where no pedal is held.
        rubato: Largest share by which the tempo bends within a phrase.
        voicing: Pitch around which the chords are laid.
        bass: Pitch around which the bass moves.
        melody: Pitch around which the melody moves.
        thirds: Chance that a melody phrase is doubled in thirds or sixths.
    """

    beats: int
    tempo: tuple[int, int]
    modes: tuple[str, ...]
    patterns: tuple[str, ...]
    rhythms: tuple[tuple[float, ...], ...]
    cadences: tuple[tuple[float, ...], ...]
    chords_per_bar: int = 1
    pedal: bool = True
    touch: float = 0.9
    rubato: float = 0.06
    voicing: int = 57
    bass: int = 43
    melody: int = 74
    thirds: float = 0.15

    @property
    def ceiling(self) -> int:
        """Highest pitch of the chords; the melody stays above."""
        return self.voicing + 7


STYLES = {
    "alberti": Style(
        beats=4,
        tempo=(108, 138),
        modes=("major", "major", "minor"),
        patterns=("b 3 2 3 b 3 2 3", "b 3 2 3 1 3 2 3"),
        rhythms=(
            (1, 1, 1, 1),
            (2, 1, 1),
            (1, 0.5, 0.5, 1, 1),
            (1.5, 0.5, 1, 1),
            (0.5, 0.5, 0.5, 0.5, 1, 1),
        ),
        cadences=((2, -2), (1, 1, 2)),
        pedal=False,
        rubato=0.03,
        bass=49,
        thirds=0.25,
    ),
    "waltz": Style(
        beats=3,
        tempo=(132, 172),
        modes=("major", "minor"),
        patterns=("b 123 123", "B 123 123", "b 12 3"),
        rhythms=((2, 1), (1, 1, 1), (3,), (1.5, 0.5, 1), (1, 2), (0.5, 0.5, 0.5, 0.5, 1)),
        cadences=((3,), (2, -1)),
        rubato=0.08,
    ),
    "nocturne": Style(
        beats=4,
        tempo=(60, 76),
        modes=("major", "minor", "minor"),
        patterns=("b f o t o f b f o t o f", "b f o t o t o f", "b f o t 3 t o f"),
        rhythms=((2, 1, 1), (3, 1), (1.5, 0.5, 1, 1), (2, 0.5, 0.5, 1), (1, 1, 2)),
        cadences=((4,), (3, -1)),
        rubato=0.12,
        melody=75,
        bass=40,
    ),
    "rag": Style(
        beats=4,
        tempo=(152, 188),
        modes=("major",),
        patterns=("B 123 f 123", "b 123 f 123"),
        rhythms=(
            (0.5, 1, 0.5, 1, 1),
            (0.5, 1, 0.5, 0.5, 1, 0.5),
            (1, 0.5, 1, 0.5, 1),
            (0.5, 1, 1, 1, 0.5),
        ),
        cadences=((1, 1, 2), (2, -2)),
        pedal=False,
        touch=0.7,
        rubato=0.01,
        thirds=0.3,
    ),
    "chorale": Style(
        beats=4,
        tempo=(66, 84),
        modes=("major", "minor", "dorian"),
        patterns=("b123 . b123 .", "b123 123 b123 123"),
        rhythms=((1, 1, 1, 1), (2, 1, 1), (1, 1, 2), (1.5, 0.5, 2)),
        cadences=((2, 2), (4,)),
        chords_per_bar=2,
        touch=1.0,
        rubato=0.06,
        voicing=57,
        bass=44,
        melody=72,
        thirds=0.0,
    ),
    "ostinato": Style(
        beats=4,
        tempo=(112, 136),
        modes=("dorian", "minor", "major"),
        patterns=("b1 3 2 3 1 3 2 3", "b 1 2 3 b 1 2 3", "b 2 3 2 1 2 3 2"),
        rhythms=((4,), (3, 1), (2, 2), (-2, 2), (1, 1, 2)),
        cadences=((4,), (-4,)),
        rubato=0.01,
        bass=41,
        voicing=59,
        melody=76,
        thirds=0.1,
    ),
}
