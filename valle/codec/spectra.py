"""Spectra that losses and measures share, in plain torch.

Letters: B batch, N samples, F frequency bins, M mel bands, T frames.
"""

import math

import torch
from torch import Tensor

MEL_BANDS = {256: 24, 512: 40, 1024: 64, 2048: 96, 4096: 128}  # FFT size: mel bands
FLOOR = 2e-4  # -74 dB of full scale
_SMALLEST_POWER = 1e-12


def mel_filterbank(sampling_rate: int, fft_size: int, num_bands: int) -> Tensor:
    """Triangles of height 1 with corners evenly spaced on the mel scale 2595 log10(1 + f/700).

    A band is never narrower than one bin to each side, so that none is empty.

    Returns:
      (F, M) float32, F = fft_size / 2 + 1.
    """
    top = 2595 * math.log10(1 + sampling_rate / 2 / 700)
    corners = 700 * (10 ** (torch.linspace(0, top, num_bands + 2) / 2595) - 1)
    corners = corners * fft_size / sampling_rate  # in bins from here on
    centre = corners[1:-1]
    left = torch.minimum(corners[:-2], centre - 1)
    right = torch.maximum(corners[2:], centre + 1)
    bins = torch.arange(fft_size // 2 + 1).unsqueeze(1)
    rising = (bins - left) / (centre - left)
    falling = (right - bins) / (right - centre)
    return torch.minimum(rising, falling).clamp_min(0)


def magnitudes(audio: Tensor, window: Tensor) -> Tensor:
    """Short-time magnitude spectrum (B, F, T), hop a quarter of the window.

    A sine of amplitude 1 peaks at 1, whatever the window length.
    """
    size = window.numel()
    spectrum = torch.stft(audio, size, size // 4, window=window, return_complex=True)
    power = torch.view_as_real(spectrum).square().sum(-1)
    return power.clamp_min(_SMALLEST_POWER).sqrt() * (2 / window.sum())


def log_floor(magnitude: Tensor, floor: float = FLOOR) -> Tensor:
    """Common logarithm with everything below the floor raised to it."""
    return magnitude.clamp_min(floor).log10()
