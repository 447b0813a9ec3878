"""Whether the notes are still the same: chroma and the most salient pitch, frame by frame.

A few lines of our own instead of librosa's chroma: what is wanted is that both sounds are measured
alike, at any sampling rate, on a GPU, without another package.

Letters: C clips, N samples, F frequency bins, T frames. Sounds are (C, N) float32.
"""

import math

import torch
from torch import Tensor

from valle.codec.spectra import magnitudes

# Bins 3.9 Hz apart tell semitones apart from about A1 on.
PITCH_WINDOW_SEC = 0.256
LOWEST_PITCH, HIGHEST_PITCH = 33, 105  # MIDI: A1, A7
# chosen on pieces of known notes: so the top pitch was a sounding key in 95 % of the frames
NUM_HARMONICS = 3
HARMONIC_DECAY = 0.6
AUDIBLE_SHARE = 1e-4  # frames 40 dB below the loudest one have no harmony to compare


def pitch_window(sampling_rate: int) -> int:
    """Samples of a window of PITCH_WINDOW_SEC or up to twice that, a power of two."""
    return 2 ** math.ceil(math.log2(PITCH_WINDOW_SEC * sampling_rate))


def pitch_spectrum(audio: Tensor, sampling_rate: int) -> Tensor:
    """Magnitudes (C, F, T) with windows long enough to tell semitones apart."""
    return magnitudes(audio, torch.hann_window(pitch_window(sampling_rate), device=audio.device))


def audible_frames(spectrum: Tensor) -> Tensor:
    """Which frames of (C, F, T) magnitudes are worth comparing, (C, T) bool."""
    power = spectrum.square().sum(dim=1)
    return power > AUDIBLE_SHARE * power.amax(dim=1, keepdim=True)


def _frequencies(sampling_rate: int) -> Tensor:
    size = pitch_window(sampling_rate)
    return torch.arange(size // 2 + 1) * (sampling_rate / size)  # (F,) in Hz


def chroma_map(sampling_rate: int) -> Tensor:
    """Which bin belongs to which of the twelve pitch classes, (12, F); C is row 0."""
    bins = _frequencies(sampling_rate)
    pitch = 69 + 12 * (bins.clamp_min(1) / 440).log2()
    heard = (bins > 100) & (bins < 5000)
    classes = torch.arange(12).unsqueeze(1)
    return ((pitch.round().long() % 12 == classes) & heard).float()


def chromagram(audio: Tensor, sampling_rate: int) -> Tensor:
    """Strength of the twelve pitch classes over time, (C, 12, T)."""
    return chroma_map(sampling_rate).to(audio.device) @ pitch_spectrum(audio, sampling_rate)


def harmonic_map(sampling_rate: int) -> Tensor:
    """Weight of every bin for every candidate pitch, (pitches, F).

    A pitch is as salient as its first harmonics are strong, the higher the less; a harmonic is
    looked for within a quarter tone.
    """
    bins = _frequencies(sampling_rate)
    pitches = torch.arange(LOWEST_PITCH, HIGHEST_PITCH + 1).unsqueeze(1)
    weights = torch.zeros(pitches.shape[0], bins.shape[0])
    for harmonic in range(1, NUM_HARMONICS + 1):
        frequency = 440 * 2 ** ((pitches - 69) / 12) * harmonic
        width = (frequency * 0.03).clamp_min(float(bins[1]))
        triangle = (1 - (bins - frequency).abs() / width).clamp_min(0)
        weights = torch.maximum(weights, triangle * HARMONIC_DECAY ** (harmonic - 1))
    return weights


def harmony_scores(estimate: Tensor, target: Tensor, sampling_rate: int) -> dict[str, Tensor]:
    """Chroma correlation and agreement of the most salient pitch, frame by frame, each (C,)."""
    made, wanted = (pitch_spectrum(x, sampling_rate) for x in (estimate, target))
    heard = audible_frames(wanted)  # (C, T)
    classes = chroma_map(sampling_rate).to(target.device)
    pitches = harmonic_map(sampling_rate).to(target.device)
    top = (pitches @ wanted).argmax(dim=1, keepdim=True)  # (C, 1, T)
    best = (pitches @ made).topk(3, dim=1).indices  # (C, 3, T)
    frames = {
        "chroma": correlation(classes @ made, classes @ wanted),
        "top_pitch": (best[:, :1] == top).any(dim=1).float(),
        "top_pitch_in_3": (best == top).any(dim=1).float(),
    }
    return {name: _masked_mean(value, heard) for name, value in frames.items()}


def correlation(left: Tensor, right: Tensor) -> Tensor:
    """Pearson correlation along dimension 1 of (C, X, T) tensors, (C, T)."""
    left = left - left.mean(dim=1, keepdim=True)
    right = right - right.mean(dim=1, keepdim=True)
    return torch.cosine_similarity(left, right, dim=1, eps=1e-8)


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).sum(dim=1) / mask.sum(dim=1).clamp_min(1)
