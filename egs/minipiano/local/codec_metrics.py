"""How near a codec's output is to its input: spectra, waveform, harmony, melody, use of codes.

Letters: C clips, N samples, F frequency bins, M mel bands, T frames, Q quantizers, K codebook size.
Sounds are (C, N) float32 between -1 and 1; every measure is the mean over the clips.
"""

from dataclasses import dataclass
from typing import Any

import torch
from codec_losses import MEL_BANDS, log_floor, magnitudes, mel_filterbank
from codec_quantizer import perplexity
from torch import Tensor

DYNAMIC_RANGE = 1e-4  # 80 dB below the loudest bin of the original counts as silence
PITCH_WINDOW = 8192  # 256 ms at 32 kHz: bins 3.9 Hz apart tell semitones apart from about A1 on
LOWEST_PITCH, HIGHEST_PITCH = 33, 105  # MIDI: A1, A7
# chosen on pieces of known notes: so the top pitch was a sounding key in 95 % of the frames
NUM_HARMONICS = 3
HARMONIC_DECAY = 0.6
AUDIBLE_SHARE = 1e-4  # frames 40 dB below the loudest one have no harmony to compare

MEASURES = {
    "mel_log10": "mel distance, log10 (five scales)",
    "mel_db": "mel distance, dB",
    "lsd_db": "log-spectral distance, dB",
    "si_sdr_db": "SI-SDR, dB",
    "chroma": "chroma correlation",
    "top_pitch": "top pitch, same semitone",
    "top_pitch_in_3": "top pitch, among three",
}


def si_sdr(estimate: Tensor, target: Tensor) -> Tensor:
    """Scale-invariant signal-to-distortion ratio in dB, (C,)."""
    target = target - target.mean(dim=1, keepdim=True)
    estimate = estimate - estimate.mean(dim=1, keepdim=True)
    energy = target.square().sum(dim=1, keepdim=True).clamp_min(1e-8)
    wanted = (estimate * target).sum(dim=1, keepdim=True) / energy * target
    rest = (estimate - wanted).square().sum(dim=1).clamp_min(1e-8)
    return 10 * (wanted.square().sum(dim=1).clamp_min(1e-8) / rest).log10()


def mel_distance(estimate: Tensor, target: Tensor, sampling_rate: int) -> Tensor:
    """Mean absolute difference of log10 mel spectra at the training floor, five scales, (C,)."""
    scales = []
    for size, bands in MEL_BANDS.items():
        window = torch.hann_window(size, device=target.device)
        bank = mel_filterbank(sampling_rate, size, bands).T.to(target.device)
        made, wanted = (log_floor(bank @ magnitudes(x, window)) for x in (estimate, target))
        scales.append((made - wanted).abs().mean(dim=(1, 2)))
    return torch.stack(scales).mean(dim=0)


def decibel_distances(
    estimate: Tensor, target: Tensor, sampling_rate: int
) -> tuple[Tensor, Tensor]:
    """Mel distance (mean absolute) and log-spectral distance (root mean square a frame), dB."""
    size = 2048
    window = torch.hann_window(size, device=target.device)
    bank = mel_filterbank(sampling_rate, size, 128).T.to(target.device)
    made, wanted = magnitudes(estimate, window), magnitudes(target, window)
    lines = _decibel_difference(made, wanted)  # (C, F, T)
    bands = _decibel_difference(bank @ made, bank @ wanted)  # (C, M, T)
    return bands.abs().mean(dim=(1, 2)), lines.square().mean(dim=1).sqrt().mean(dim=1)


def _decibel_difference(made: Tensor, wanted: Tensor) -> Tensor:
    floor = wanted.amax(dim=(1, 2), keepdim=True) * DYNAMIC_RANGE
    return 20 * (torch.maximum(made, floor) / torch.maximum(wanted, floor)).log10()


def pitch_spectrum(audio: Tensor) -> Tensor:
    """Magnitudes (C, F, T) with windows long enough to tell semitones apart."""
    return magnitudes(audio, torch.hann_window(PITCH_WINDOW, device=audio.device))


def audible_frames(spectrum: Tensor) -> Tensor:
    """Which frames of (C, F, T) magnitudes are worth comparing, (C, T) bool."""
    power = spectrum.square().sum(dim=1)
    return power > AUDIBLE_SHARE * power.amax(dim=1, keepdim=True)


def chroma_map(sampling_rate: int) -> Tensor:
    """Which bin belongs to which of the twelve pitch classes, (12, F); C is row 0."""
    bins = torch.arange(PITCH_WINDOW // 2 + 1) * (sampling_rate / PITCH_WINDOW)
    pitch = 69 + 12 * (bins.clamp_min(1) / 440).log2()
    heard = (bins > 100) & (bins < 5000)
    classes = torch.arange(12).unsqueeze(1)
    return ((pitch.round().long() % 12 == classes) & heard).float()


def chromagram(audio: Tensor, sampling_rate: int) -> Tensor:
    """Strength of the twelve pitch classes over time, (C, 12, T)."""
    return chroma_map(sampling_rate).to(audio.device) @ pitch_spectrum(audio)


def harmonic_map(sampling_rate: int) -> Tensor:
    """Weight of every bin for every candidate pitch, (pitches, F).

    A pitch is as salient as its first harmonics are strong, the higher the less; a harmonic is
    looked for within a quarter tone.
    """
    bins = torch.arange(PITCH_WINDOW // 2 + 1) * (sampling_rate / PITCH_WINDOW)
    pitches = torch.arange(LOWEST_PITCH, HIGHEST_PITCH + 1).unsqueeze(1)
    weights = torch.zeros(pitches.shape[0], bins.shape[0])
    for harmonic in range(1, NUM_HARMONICS + 1):
        frequency = 440 * 2 ** ((pitches - 69) / 12) * harmonic
        width = (frequency * 0.03).clamp_min(sampling_rate / PITCH_WINDOW)
        triangle = (1 - (bins - frequency).abs() / width).clamp_min(0)
        weights = torch.maximum(weights, triangle * HARMONIC_DECAY ** (harmonic - 1))
    return weights


def harmony_scores(estimate: Tensor, target: Tensor, sampling_rate: int) -> dict[str, Tensor]:
    """Chroma correlation and agreement of the most salient pitch, frame by frame, each (C,)."""
    made, wanted = pitch_spectrum(estimate), pitch_spectrum(target)
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


@torch.no_grad()
def compare(estimate: Tensor, target: Tensor, sampling_rate: int) -> dict[str, float]:
    """Every measure of MEASURES, mean over the clips.

    Args:
      estimate: (C, N), what the codec made.
      target: (C, N), what went in.
      sampling_rate: Hz.

    Raises:
      ValueError: If the shapes differ or the clips are shorter than the pitch window.
    """
    if estimate.shape != target.shape or target.ndim != 2:
        raise ValueError(
            f"estimate {tuple(estimate.shape)} and target {tuple(target.shape)} must both be "
            "(clips, samples)"
        )
    if target.shape[1] < PITCH_WINDOW:
        raise ValueError(f"clips of {target.shape[1]} samples; at least {PITCH_WINDOW} are needed")
    mel_db, lsd_db = decibel_distances(estimate, target, sampling_rate)
    scores = {
        "mel_log10": mel_distance(estimate, target, sampling_rate),
        "mel_db": mel_db,
        "lsd_db": lsd_db,
        "si_sdr_db": si_sdr(estimate, target),
        **harmony_scores(estimate, target, sampling_rate),
    }
    return {name: value.mean().item() for name, value in scores.items()}


@torch.no_grad()
def encode_clips(model: Any, clips: Tensor, batch_size: int = 8) -> Tensor:
    """Codes (C, Q, T) of equally long clips (C, 1, N) by a transformers.EncodecModel."""
    parts = [model.encode(part).audio_codes[0] for part in clips.split(batch_size)]
    return torch.cat(parts)


@torch.no_grad()
def decode_clips(model: Any, codes: Tensor, num_samples: int, batch_size: int = 8) -> Tensor:
    """Sound (C, N) of codes (C, Q, T); fewer than all levels Q are allowed."""
    parts = [
        model.decode(part.unsqueeze(0), [None]).audio_values for part in codes.split(batch_size)
    ]
    return torch.cat(parts)[:, 0, :num_samples]


@dataclass(frozen=True)
class CodecScores:
    """What a codec scored on some clips; the measures are those of MEASURES."""

    by_levels: dict[int, dict[str, float]]  # number of quantizers used: measures
    chance: dict[str, float]  # each clip against the next one, from another piece
    used_codes: list[int]  # a quantizer
    perplexity: list[float]  # a quantizer
    num_clips: int
    clip_sec: float
    num_frames: int
    codebook_size: int

    @property
    def best(self) -> dict[str, float]:
        """Measures with all quantizers."""
        return self.by_levels[max(self.by_levels)]


def score_codec(model: Any, clips: Tensor, batch_size: int = 8) -> CodecScores:
    """Send clips (C, 1, N) through a codec, at every number of quantizers, and measure.

    Raises:
      ValueError: If there are fewer than two clips: chance needs another one.
    """
    if clips.shape[0] < 2:
        raise ValueError(
            f"{clips.shape[0]} clip, at least 2 are needed: ask for more or shorter ones"
        )
    rate, size = model.config.sampling_rate, model.config.codebook_size
    target = clips[:, 0]
    codes = encode_clips(model, clips, batch_size)  # (C, Q, T)
    by_levels = {}
    for level in range(1, codes.shape[1] + 1):
        sound = decode_clips(model, codes[:, :level], clips.shape[2], batch_size)
        by_levels[level] = compare(sound, target, rate)
    counts = torch.stack(
        [torch.bincount(level.flatten(), minlength=size) for level in codes.unbind(1)]
    )
    return CodecScores(
        by_levels=by_levels,
        chance=compare(target.roll(1, 0), target, rate),
        used_codes=(counts > 0).sum(dim=1).tolist(),
        perplexity=perplexity(counts.float()).tolist(),
        num_clips=clips.shape[0],
        clip_sec=clips.shape[2] / rate,
        num_frames=codes.shape[0] * codes.shape[2],
        codebook_size=size,
    )
