"""How far a rebuilt sound is from the true one, and what a latent costs, as training minimises it.

Letters: B batch, N samples, F frequency bins, M mel bands, D latent width, T frames.
All sounds are (B, N) float32 between -1 and 1. Sums run over the batches of all ranks.
"""

import random
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from valle.codec.ranks import sum_over_ranks, variance_over_ranks
from valle.codec.spectra import FLOOR, MEL_BANDS, magnitudes, mel_filterbank

TERMS = ("mel", "linear", "waveform", "fine")


def relative_waveform(estimate: Tensor, target: Tensor) -> Tensor:
    """Half L1, half L2 distance of waveforms, each over that of silence to the target.

    Sums run over the batch: relative to its own energy, one silent crop would outweigh all.
    """
    difference = estimate - target
    sums = [difference.abs().sum(), target.abs().sum()]
    sums += [difference.square().sum(), target.square().sum()]
    missed, loudness, missed_energy, energy = sum_over_ranks(torch.stack(sums))
    square = missed_energy / energy.clamp_min(1e-5)
    return 0.5 * missed / loudness.clamp_min(1e-3) + 0.5 * (square + 1e-8).sqrt()


def rate_in_bits(latents: Tensor) -> Tensor:
    """Bits a frame that fit through unit Gaussian noise added to latents (B, D, T), at most."""
    variance = variance_over_ranks(latents.transpose(1, 2).flatten(0, 1))
    return 0.5 * torch.log2(1 + variance).sum()


class ReconstructionLoss(nn.Module):
    """Distance of two sounds: log-mel, linear magnitude, waveform, and fine log-magnitude.

    Each call measures spectra at a few of the five FFT sizes, drawn by a generator of its own on
    the host, so that choosing them never waits for the device.

    Args:
      sampling_rate: Hz.
      weights: What each of `TERMS` counts; those of weight 0 or none are not computed. ``fine``
        is a log-magnitude term below 8 kHz, for the last phase.
      num_scales: FFT sizes a call.
      seed: Of the draw of FFT sizes.
      floor: Added to magnitudes before the logarithms of ``mel`` and ``fine``, so that what lies
        far below hardly counts; 1 is a full-scale sine.

    Attributes:
      random: The generator; a checkpoint keeps its state.
    """

    def __init__(
        self,
        sampling_rate: int,
        weights: Mapping[str, float],
        num_scales: int = 3,
        seed: int = 0,
        floor: float = FLOOR,
    ) -> None:
        super().__init__()
        self.names = {name for name in TERMS if weights.get(name, 0) > 0}
        self.num_scales, self.floor = num_scales, floor
        self.random = random.Random(seed)
        self.fine_share = min(1.0, 8000 / (sampling_rate / 2))
        for size, bands in MEL_BANDS.items():
            bank = mel_filterbank(sampling_rate, size, bands).T.contiguous()
            self.register_buffer(f"bank{size}", bank, persistent=False)
            self.register_buffer(f"window{size}", torch.hann_window(size), persistent=False)

    def forward(self, estimate: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Terms by name, each 0-dimensional and not weighted yet.

        Args:
          estimate: (B, N), what the codec made.
          target: (B, N), what went in.
        """
        sizes = [size for size in MEL_BANDS if size // 2 < target.shape[1]]
        sizes = self.random.sample(sizes, min(self.num_scales, len(sizes)))
        terms: dict[str, Tensor] = {}
        for size in sizes:
            for name, value in self._compare_spectra(estimate, target, size).items():
                terms[name] = terms.get(name, 0) + value / len(sizes)
        if "waveform" in self.names:
            terms["waveform"] = relative_waveform(estimate, target)
        return terms

    def _compare_spectra(self, estimate: Tensor, target: Tensor, size: int) -> dict[str, Tensor]:
        window, bank = getattr(self, f"window{size}"), getattr(self, f"bank{size}")
        with torch.no_grad():
            wanted = magnitudes(target, window)  # (B, F, T)
        made = magnitudes(estimate, window)
        terms = {}
        if "mel" in self.names:
            terms["mel"] = self._log_distance(bank @ made, bank @ wanted)
        if "linear" in self.names:
            sums = torch.stack([(made - wanted).abs().sum(), wanted.sum()])
            missed, total = sum_over_ranks(sums)
            terms["linear"] = missed / total.clamp_min(1e-3)
        if "fine" in self.names:
            low = int(made.shape[1] * self.fine_share)
            terms["fine"] = self._log_distance(made[:, :low], wanted[:, :low])
        return terms

    def _log_distance(self, made: Tensor, wanted: Tensor) -> Tensor:
        # not clamped: what is missing altogether needs a gradient
        return ((made + self.floor).log10() - (wanted + self.floor).log10()).abs().mean()
