"""Music of known tempo, key and register, in a few lines: what the measures are tried on.

A piece is a bass note on each beat, a chord tone on each half beat, and a melody that wanders
through the scale; all of it seeded.
"""

import numpy as np
import torch
from torch import Tensor

from valle.evaluation import Passage

RATE, FRAME_RATE = 8000, 50.0
MAJOR = (0, 2, 4, 5, 7, 9, 11)
PROMPT_SEC, TRUE_SEC = 3.0, 5.0


def tones(notes: list[tuple[float, float, int]], seconds: float, rate: int = RATE) -> Tensor:
    """(N,) sound of notes (onset and length in seconds, MIDI pitch): five partials, dying away."""
    sound = np.zeros(round(seconds * rate), dtype=np.float32)
    for onset, length, pitch in notes:
        time = np.arange(round(length * rate)) / rate
        frequency = 440 * 2 ** ((pitch - 69) / 12)
        partials = [
            0.6**k * np.sin(2 * np.pi * k * frequency * time)
            for k in range(1, 6)
            if k * frequency < rate / 2
        ]
        swell = np.minimum(1, np.minimum(time / 0.005, (length - time) / 0.1))
        tone = 0.1 * np.sum(partials, axis=0) * swell * np.exp(-3 * time)
        start = round(onset * rate)
        sound[start : start + len(tone)] += tone[: max(0, len(sound) - start)]
    return torch.from_numpy(sound)


def pulse(tempo: float, pitches: tuple[int, ...], seconds: float) -> list[tuple[float, float, int]]:
    """Notes on each beat, the pitches in turn."""
    beat = 60 / tempo
    return [
        (i * beat, 0.9 * beat, pitches[i % len(pitches)]) for i in range(int(seconds / beat) + 1)
    ]


def piece(tempo: float, tonic: int, seconds: float, seed: int) -> Tensor:
    """A piece in the major key of a tonic (MIDI), which also sets its register."""
    rng = np.random.default_rng(seed)
    beat, notes, step = 60 / tempo, [], 7
    for i in range(int(seconds / beat) + 1):
        degree = int(rng.choice((0, 3, 4)))
        chord = [tonic + 12 * ((degree + k) // 7) + MAJOR[(degree + k) % 7] for k in (0, 2, 4)]
        notes += [(i * beat, 0.9 * beat, chord[0]), ((i + 0.5) * beat, 0.4 * beat, chord[1])]
        step = int(np.clip(step + rng.integers(-2, 3), 5, 12))
        notes.append((i * beat, 0.9 * beat, tonic + 12 * (step // 7) + MAJOR[step % 7]))
    return tones(notes, seconds)


def codes_of(num_frames: int, seed: int) -> Tensor:
    """Codes (T,) of a piece's own vocabulary, held for some frames, as those of notes are."""
    rng = np.random.default_rng(seed)
    vocabulary = rng.integers(1024, size=60)
    held = np.repeat(vocabulary[rng.integers(60, size=num_frames)], 4)[:num_frames]
    return torch.from_numpy(held)


def make_passages(num_recordings: int = 8, num_cuts: int = 2) -> list[Passage]:
    """Cuts of recordings, no two of one tempo, key and register; without samples."""
    passages = []
    for r in range(num_recordings):
        tempo, tonic = 70 * 2 ** ((r * 0.37) % 1), 45 + (r * 7) % 24
        for c in range(num_cuts):
            sound = piece(tempo, tonic, PROMPT_SEC + TRUE_SEC, seed=100 * r + c)
            cut, codes = round(PROMPT_SEC * RATE), codes_of(round(TRUE_SEC * FRAME_RATE), r)
            passages.append(
                Passage(f"{r}-{c}", f"{r}", sound[:cut], sound[cut:], (), codes.roll(7 * c), ())
            )
    return passages
