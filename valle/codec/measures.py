"""How near one sound is to another: spectra and waveform.

Letters: C clips, N samples, F frequency bins, M mel bands, T frames.
Sounds are (C, N) float32 between -1 and 1; every measure gives a number a clip, (C,).
"""

import torch
from torch import Tensor

from valle.codec.harmony import harmony_scores, pitch_window
from valle.codec.spectra import MEL_BANDS, log_floor, magnitudes, mel_filterbank

DYNAMIC_RANGE = 1e-4  # 80 dB below the loudest bin of the original counts as silence
STFT_SIZES = (512, 1024, 2048)

MEASURES = {
    "mel_log10": "mel distance, log10 (five scales)",
    "mel_db": "mel distance, dB",
    "lsd_db": "log-spectral distance, dB",
    "stft": "multi-resolution STFT distance",
    "si_sdr_db": "SI-SDR, dB",
    "chroma": "chroma correlation",
    "top_pitch": "top pitch, same semitone",
    "top_pitch_in_3": "top pitch, among three",
}


def si_sdr(estimate: Tensor, target: Tensor) -> Tensor:
    """Scale-invariant signal-to-distortion ratio in dB."""
    target = target - target.mean(dim=1, keepdim=True)
    estimate = estimate - estimate.mean(dim=1, keepdim=True)
    energy = target.square().sum(dim=1, keepdim=True).clamp_min(1e-8)
    wanted = (estimate * target).sum(dim=1, keepdim=True) / energy * target
    rest = (estimate - wanted).square().sum(dim=1).clamp_min(1e-8)
    return 10 * (wanted.square().sum(dim=1).clamp_min(1e-8) / rest).log10()


def mel_distance(estimate: Tensor, target: Tensor, sampling_rate: int) -> Tensor:
    """Mean absolute difference of log10 mel spectra, down to -74 dB of full scale, five scales."""
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


def stft_distance(estimate: Tensor, target: Tensor) -> Tensor:
    """Multi-resolution STFT distance: spectral convergence plus mean absolute log difference.

    The mean over three window lengths of the relative error of the magnitudes (Frobenius norm),
    and of the difference of their natural logarithms, down to 80 dB below the loudest.
    """
    scales = []
    for size in STFT_SIZES:
        window = torch.hann_window(size, device=target.device)
        made, wanted = magnitudes(estimate, window), magnitudes(target, window)
        error = (made - wanted).flatten(1).norm(dim=1)
        convergence = error / wanted.flatten(1).norm(dim=1).clamp_min(1e-8)
        floor = wanted.amax(dim=(1, 2), keepdim=True) * DYNAMIC_RANGE
        logs = (torch.maximum(made, floor) / torch.maximum(wanted, floor)).log()
        scales.append(convergence + logs.abs().mean(dim=(1, 2)))
    return torch.stack(scales).mean(dim=0)


def check_length(num_samples: int, sampling_rate: int) -> None:
    """Refuse clips that are too short to be measured.

    Raises:
      ValueError: With both lengths.
    """
    shortest = max(pitch_window(sampling_rate), *MEL_BANDS)  # the longest window
    if num_samples < shortest:
        raise ValueError(
            f"clips of {num_samples} samples; at least {shortest} are needed, "
            f"{shortest / sampling_rate:.2f} s"
        )


@torch.no_grad()
def compare(estimate: Tensor, target: Tensor, sampling_rate: int) -> dict[str, float]:
    """Every measure of MEASURES, mean over the clips.

    Args:
      estimate: (C, N), what the codec made.
      target: (C, N), what went in.
      sampling_rate: Hz.

    Raises:
      ValueError: If the shapes differ or the clips are shorter than the longest window.
    """
    if estimate.shape != target.shape or target.ndim != 2:
        raise ValueError(
            f"estimate {tuple(estimate.shape)} and target {tuple(target.shape)} must both be "
            "(clips, samples)"
        )
    check_length(target.shape[1], sampling_rate)
    mel_db, lsd_db = decibel_distances(estimate, target, sampling_rate)
    scores = {
        "mel_log10": mel_distance(estimate, target, sampling_rate),
        "mel_db": mel_db,
        "lsd_db": lsd_db,
        "stft": stft_distance(estimate, target),
        "si_sdr_db": si_sdr(estimate, target),
        **harmony_scores(estimate, target, sampling_rate),
    }
    return {name: value.mean().item() for name, value in scores.items()}
