"""Losses of codec training, in plain torch.

Letters: B batch, N samples, F frequency bins, M mel bands, T frames.
All sounds are (B, N) float32 between -1 and 1.
"""

import math
import random
from dataclasses import dataclass

import torch
from torch import Tensor, nn

MEL_BANDS = {256: 24, 512: 40, 1024: 64, 2048: 96, 4096: 128}  # FFT size: mel bands
TRAINING_FLOOR = 2e-4  # -74 dB of full scale; a lower floor makes the codec learn noise
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


def relative_waveform(estimate: Tensor, target: Tensor) -> Tensor:
    """Half L1, half L2 distance of waveforms, each over that of silence to the target.

    Sums run over the batch: relative to its own energy, one silent crop would outweigh all.
    """
    difference = estimate - target
    absolute = difference.abs().sum() / target.abs().sum().clamp_min(1e-3)
    square = difference.square().sum() / target.square().sum().clamp_min(1e-5)
    return 0.5 * absolute + 0.5 * (square + 1e-8).sqrt()


def rate_in_bits(latents: Tensor) -> Tensor:
    """Bits a frame that fit through unit Gaussian noise added to latents (B, D, T), at most."""
    variance = latents.transpose(0, 1).flatten(1).var(dim=1)
    return 0.5 * torch.log2(1 + variance).sum()


@dataclass(frozen=True)
class LossWeights:
    """What each term counts; ``fine`` is a log-magnitude term below 8 kHz for the last phase."""

    mel: float = 1.0
    linear: float = 1.0
    waveform: float = 1.0
    fine: float = 0.0


class ReconstructionLoss(nn.Module):
    """Distance of two sounds: log-mel, linear magnitude and waveform.

    Each call measures spectra at a few of the five FFT sizes, drawn by a generator of its own on
    the host, so that choosing them never waits for the device.

    Args:
        sampling_rate: Hz.
        weights: What each term counts; terms of weight 0 are not computed.
        num_scales: FFT sizes a call.
        seed: Of the draw of FFT sizes.
    """

    def __init__(
        self, sampling_rate: int, weights: LossWeights, num_scales: int = 3, seed: int = 0
    ) -> None:
        super().__init__()
        self.weights = weights
        self.num_scales = num_scales
        self.random = random.Random(seed)
        self.fine_share = min(1.0, 8000 / (sampling_rate / 2))
        for size, bands in MEL_BANDS.items():
            bank = mel_filterbank(sampling_rate, size, bands).T.contiguous()
            self.register_buffer(f"bank{size}", bank, persistent=False)
            self.register_buffer(f"window{size}", torch.hann_window(size), persistent=False)

    def forward(self, estimate: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Weighted terms by name, each 0-dimensional; their sum is the loss.

        Args:
            estimate: (B, N), what the codec made.
            target: (B, N), what went in.
        """
        sizes = [size for size in MEL_BANDS if size // 2 < target.shape[1]]
        sizes = self.random.sample(sizes, min(self.num_scales, len(sizes)))
        terms: dict[str, Tensor] = {}
        for size in sizes:
            for name, value in self._compare_spectra(estimate, target, size).items():
                terms[name] = terms.get(name, 0) + value * (
                    getattr(self.weights, name) / len(sizes)
                )
        terms["waveform"] = self.weights.waveform * relative_waveform(estimate, target)
        return terms

    def _compare_spectra(self, estimate: Tensor, target: Tensor, size: int) -> dict[str, Tensor]:
        window, bank = getattr(self, f"window{size}"), getattr(self, f"bank{size}")
        with torch.no_grad():
            wanted = magnitudes(target, window)  # (B, F, T)
            wanted_mel = log_floor(bank @ wanted)  # (B, M, T)
        made = magnitudes(estimate, window)
        terms = {
            "mel": (log_floor(bank @ made) - wanted_mel).abs().mean(),
            "linear": (made - wanted).abs().sum() / wanted.sum().clamp_min(1e-3),
        }
        if self.weights.fine > 0:
            low = int(made.shape[1] * self.fine_share)
            distance = log_floor(made[:, :low]) - log_floor(wanted[:, :low])
            terms["fine"] = distance.abs().mean()
        return terms


def log_floor(magnitude: Tensor, floor: float = TRAINING_FLOOR) -> Tensor:
    """Common logarithm with everything below the floor raised to it."""
    return magnitude.clamp_min(floor).log10()
