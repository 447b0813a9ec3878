"""Which notes are heard: pitch classes, and the register they lie in.

N samples, F frequency bins, T frames.
"""

from functools import lru_cache

import torch
from torch import Tensor

from valle.codec.harmony import (
    LOWEST_PITCH,
    audible_frames,
    chroma_map,
    harmonic_map,
    pitch_spectrum,
)

SHARPNESS = 8  # a partial has up to 0.7 of a note's salience; 0.7 ** 8 = 0.06


@lru_cache(maxsize=4)
def _maps(sampling_rate: int) -> tuple[Tensor, Tensor]:
    return chroma_map(sampling_rate), harmonic_map(sampling_rate)


def audible_spectrum(sound: Tensor, sampling_rate: int) -> Tensor:
    """Magnitudes (F, T) of the frames within 40 dB of the loudest; T is 0 in silence."""
    spectrum = pitch_spectrum(sound[None], sampling_rate)
    return spectrum[0][:, audible_frames(spectrum)[0] & bool(sound.any())]


def pitch_classes(spectrum: Tensor, sampling_rate: int) -> Tensor:
    """Shares of the twelve pitch classes (12,), which sum to 1; C is the first.

    Every audible frame counts the same, however loud. Silence has all classes alike.
    """
    chroma = _maps(sampling_rate)[0] @ spectrum
    if chroma.shape[1] == 0:
        return torch.full((12,), 1 / 12)
    return (chroma / chroma.sum(dim=0).clamp_min(1e-8)).mean(dim=1)


def pitch_distribution(spectrum: Tensor, sampling_rate: int) -> Tensor:
    """How much of the time each pitch is heard, (73,) from LOWEST_PITCH up; sums to 1.

    A frame is shared out by a high power of the saliences, so that the notes that sound have nearly
    all of it, and their partials next to nothing. Silence has all pitches alike.
    """
    salience = _maps(sampling_rate)[1] @ spectrum  # (73, T)
    if salience.shape[1] == 0:
        return torch.full((len(salience),), 1 / len(salience))
    weights = (salience / salience.amax(dim=0).clamp_min(1e-12)).pow(SHARPNESS)
    return (weights / weights.sum(dim=0).clamp_min(1e-12)).mean(dim=1)


def mean_pitch(distribution: Tensor) -> float:
    """The register in one number, a MIDI pitch (60 is middle C)."""
    return float((distribution * torch.arange(len(distribution))).sum()) + LOWEST_PITCH


def register_distance(one: Tensor, other: Tensor) -> float:
    """Semitones by which the notes of one distribution lie off those of the other.

    The earth mover's distance: a piece and its transposition are as far apart as they are
    transposed, and so are a bass line and a melody, whose mean may be the same as that of both.
    """
    return float((one - other).cumsum(dim=0).abs().sum())


def profile_correlation(one: Tensor, other: Tensor) -> float:
    """Pearson correlation of two profiles; 0 where one of them is flat."""
    one, other = one - one.mean(), other - other.mean()
    scale = one.norm() * other.norm()
    return float(one @ other / scale) if scale > 1e-8 else 0.0
