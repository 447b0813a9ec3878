"""What is measured on one sound and its codes, once, for all measures that compare it.

N samples, T frames, n windows, D dimensions of an embedding, L lags.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from valle.evaluation.continuations import Continuation
from valle.evaluation.embeddings import WINDOW_SEC, Embedding
from valle.evaluation.pitch import audible_spectrum, pitch_classes, pitch_distribution
from valle.evaluation.repetition import measure
from valle.evaluation.rhythm import onset_rate, onset_strength, rhythm_profile, tempo

QUIETEST_DB = -100.0


@dataclass(frozen=True)
class Traits:
    """Statistics of a passage.

    Attributes:
      chroma: (12,) shares of the pitch classes.
      pitches: (73,) shares of the pitches.
      rhythm: (L,) how the onsets recur.
      tempo: beats a minute; nan in silence.
      onset_rate: onsets a second.
      level_db: root mean square in dB of full scale, QUIETEST_DB at least.
      vectors: for each embedding (n, D).
      repetition: of the codes, as `repetition.measure` names them; empty without codes.
    """

    chroma: Tensor
    pitches: Tensor
    rhythm: Tensor
    tempo: float
    onset_rate: float
    level_db: float
    vectors: dict[str, Tensor]
    repetition: dict[str, float]


@torch.no_grad()
def measure_traits(
    made: Continuation, sampling_rate: int, frame_rate: float, embeddings: Sequence[Embedding]
) -> Traits:
    """Measure a sound (N,) and its codes (T,).

    What is shorter than a window, as a sample that ended at once, is filled up with silence.
    """
    missing = max(0, round(WINDOW_SEC * sampling_rate) - len(made.sound))
    sound = torch.nn.functional.pad(made.sound.float().cpu(), (0, missing))
    spectrum = audible_spectrum(sound, sampling_rate)
    strength = onset_strength(sound, sampling_rate)
    codes = made.codes.cpu().numpy()
    return Traits(
        chroma=pitch_classes(spectrum, sampling_rate),
        pitches=pitch_distribution(spectrum, sampling_rate),
        rhythm=rhythm_profile(strength),
        tempo=tempo(strength),
        onset_rate=onset_rate(strength),
        level_db=_level_db(sound),
        vectors={embedding.name: embedding(sound) for embedding in embeddings},
        repetition=measure(codes, frame_rate) if len(codes) else {},
    )


def _level_db(sound: Tensor) -> float:
    return max(10 * math.log10(float(sound.square().mean()) + 1e-12), QUIETEST_DB)


def vector_distance(one: Traits, other: Traits, embedding: str) -> float:
    """Euclidean distance between the mean vectors of two passages."""
    return float((one.vectors[embedding].mean(0) - other.vectors[embedding].mean(0)).norm())
