"""When notes begin: onset strength, onsets a second, how the onsets recur, tempo.

N samples, T frames of a spectrum, L lags.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from valle.codec.spectra import log_floor, magnitudes, mel_filterbank

WINDOW_SEC = 0.032  # notes 30 ms apart are one onset; a power of two near it is taken
NUM_BANDS = 40
RANGE = 1e-3  # 60 dB below the loudest band is silence, so that a codec's hiss has no onsets
# An onset is the highest of its surroundings, and so much above their mean, in log10 summed over
# the bands; chosen on pieces of known notes.
PEAK_SEC, MEAN_SEC, THRESHOLD = 0.04, 0.5, 1.5
LAGS_SEC = (0.1, 2.0)  # from sixteenths of a fast piece to a bar
TEMPI = (40.0, 220.0)  # beats a minute that a tempo is looked for in
FEW_ONSETS = 0.2  # a second; added to rates that are divided, as a passage may have no onset
USUAL_TEMPO = 120.0  # among tempi that explain the onsets alike, the one nearest to it is taken


class OnsetStrength(NamedTuple):
    """Spectral flux (T,), and how many of its frames make a second."""

    values: Tensor
    frames_per_sec: float


def onset_strength(sound: Tensor, sampling_rate: int) -> OnsetStrength:
    """How much louder each band (log mel) has become within two frames, summed over the bands."""
    size = 2 ** round(math.log2(WINDOW_SEC * sampling_rate))
    bank = mel_filterbank(sampling_rate, size, NUM_BANDS).T
    bands = bank @ magnitudes(sound[None], torch.hann_window(size))[0]  # (M, T)
    levels = log_floor(bands, max(float(bands.max()) * RANGE, 1e-6))
    rise = (levels[:, 2:] - levels[:, :-2]).clamp_min(0).sum(dim=0)
    return OnsetStrength(rise, sampling_rate / (size // 4))


def onset_times(strength: OnsetStrength) -> Tensor:
    """Frames (n,) at which a note or a chord begins: peaks that stand above their surroundings."""
    values, rate = strength
    near, far = (2 * round(sec * rate / 2) + 1 for sec in (2 * PEAK_SEC, 2 * MEAN_SEC))
    highest = torch.nn.functional.max_pool1d(values[None], near, 1, near // 2)[0]
    mean = torch.nn.functional.avg_pool1d(values[None], far, 1, far // 2, count_include_pad=False)[
        0
    ]
    return torch.nonzero((values == highest) & (values > mean + THRESHOLD))[:, 0]


def onset_rate(strength: OnsetStrength) -> float:
    """Onsets a second."""
    return len(onset_times(strength)) * strength.frames_per_sec / len(strength.values)


def rhythm_profile(strength: OnsetStrength) -> Tensor:
    """How the onsets recur: autocorrelation of the onset strength over LAGS_SEC, (L,).

    1 where every onset meets another at that distance; about 0 by chance; zeros in silence.
    """
    values, rate = strength
    first, last = (round(sec * rate) for sec in LAGS_SEC)
    centred = values - values.mean()
    size = 2 ** math.ceil(math.log2(len(values) + last + 1))
    power = torch.fft.rfft(centred, size).abs().square()
    products = torch.fft.irfft(power, size)[: last + 1]
    # each lag over the frames it has, so that long lags do not fade
    pairs = (len(values) - torch.arange(last + 1)).clamp_min(1) / len(values)
    return (products / pairs / products[0].clamp_min(1e-8))[first:]


def tempo(strength: OnsetStrength) -> float:
    """Beats a minute, nan in silence; half or double the written tempo is as good an answer.

    The beat is the distance at which, and at twice which, onsets recur most, weighed by how usual
    it is (a bell of an octave about USUAL_TEMPO).
    """
    profile = rhythm_profile(strength)
    if not bool(profile.any()):
        return math.nan
    rate = strength.frames_per_sec
    first = round(LAGS_SEC[0] * rate)
    beats = torch.arange(TEMPI[0], TEMPI[1] + 0.25, 0.5)
    lags = 60 * rate / beats - first  # index into the profile, fractional
    support = _at(profile, lags) + 0.5 * _at(profile, 2 * lags + first)
    usual = torch.exp(-0.5 * (beats / USUAL_TEMPO).log2().square())
    return float(beats[(support.clamp_min(0) * usual).argmax()])


def _at(values: Tensor, places: Tensor) -> Tensor:
    """Values between the frames, in a straight line; 0 beyond the last."""
    padded = torch.nn.functional.pad(values, (0, 2))
    low = places.long().clamp(0, len(values))
    part = places - low
    inside = places <= len(values) - 1
    return torch.where(inside, padded[low] * (1 - part) + padded[low + 1] * part, 0.0)


def tempo_distance(one: float, other: float) -> float:
    """Octaves between two tempi, half and double counting as equal: 0 to 0.5.

    Where one of them has no tempo (nan), they are as far apart as can be.
    """
    if math.isnan(one) or math.isnan(other):
        return 0.5
    octaves = abs(math.log2(one / other)) % 1
    return min(octaves, 1 - octaves)


def rate_distance(one: float, other: float) -> float:
    """Octaves between two numbers of onsets a second; 1 where one plays twice as much."""
    return abs(math.log2((one + FEW_ONSETS) / (other + FEW_ONSETS)))
