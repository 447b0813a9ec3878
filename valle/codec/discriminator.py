"""The multi-scale STFT discriminator of EnCodec (section 3.4), and the losses it gives.

It sees complex spectra at several window lengths and says for each patch of time and frequency
whether a recording or a codec made it.

Letters: B batch, N samples, C channels, T frames, F frequency bins.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from valle.codec.ranks import mean_over_ranks

WINDOWS = (2048, 1024, 512, 256, 128)
_TIME_DILATIONS = (1, 2, 4)


class Verdict(NamedTuple):
    """What one scale says of a batch: scores (B, 1, T, F'), above 0 for a recording, and the maps
    of its hidden layers, each (B, C, T, F').
    """

    scores: Tensor
    features: list[Tensor]


class ScaleDiscriminator(nn.Module):
    """One window length: convolutions over time and frequency of the complex spectrum.

    Args:
      window_size: Samples; the hop is a quarter.
      channels: C.
    """

    window: Tensor

    def __init__(self, window_size: int, channels: int) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(window_size), persistent=False)
        # real and imaginary part are two channels; frequencies are halved, time is looked at wider
        layers = [nn.Conv2d(2, channels, (3, 9), padding=(1, 4))]
        layers += [
            nn.Conv2d(channels, channels, (3, 9), stride=(1, 2), dilation=(d, 1), padding=(d, 4))
            for d in _TIME_DILATIONS
        ]
        self.layers = nn.ModuleList(weight_norm(layer) for layer in layers)
        self.score = weight_norm(nn.Conv2d(channels, 1, (3, 3), padding=1))

    def forward(self, audio: Tensor) -> Verdict:
        """Judge (B, N) float32; convolutions follow the caller's autocast."""
        with torch.autocast(audio.device.type, enabled=False):
            hidden = self._spectrum(audio.float())
        features = []
        for layer in self.layers:
            hidden = nn.functional.leaky_relu(layer(hidden), 0.2)
            features.append(hidden.float())
        return Verdict(self.score(hidden).float(), features)

    def _spectrum(self, audio: Tensor) -> Tensor:
        """(B, 2, T, F), of the same power at every window length."""
        size = self.window.numel()
        spectrum = torch.stft(audio, size, size // 4, window=self.window, return_complex=True)
        parts = torch.view_as_real(spectrum) / self.window.norm()  # (B, F, T, 2)
        return parts.permute(0, 3, 2, 1).contiguous()


class StftDiscriminator(nn.Module):
    """Several window lengths side by side.

    Args:
      windows: Samples each; those that a sound is too short for are left out.
      channels: C of every scale.
    """

    def __init__(self, windows: Sequence[int] = WINDOWS, channels: int = 32) -> None:
        super().__init__()
        self.scales = nn.ModuleList(ScaleDiscriminator(size, channels) for size in windows)
        self.windows = list(windows)

    def forward(self, audio: Tensor) -> list[Verdict]:
        """Judge (B, N), scale by scale."""
        fitting = [
            scale
            for scale, size in zip(self.scales, self.windows, strict=True)
            if size // 2 < audio.shape[1]
        ]
        return [scale(audio) for scale in fitting]


def discriminator_loss(real: Sequence[Verdict], made: Sequence[Verdict]) -> Tensor:
    """Hinge: recordings should score above 1, what the codec made below -1; mean over scales."""
    terms = [
        (1 - r.scores).relu().mean() + (1 + m.scores).relu().mean()
        for r, m in zip(real, made, strict=True)
    ]
    return torch.stack(terms).mean()


def adversarial_loss(made: Sequence[Verdict]) -> Tensor:
    """Hinge: what the codec made should be taken for a recording; mean over scales."""
    return torch.stack([(1 - verdict.scores).relu().mean() for verdict in made]).mean()


def feature_loss(real: Sequence[Verdict], made: Sequence[Verdict]) -> Tensor:
    """Distance of hidden maps, relative to the size of the recording's; mean over layers."""
    pairs = [
        (r.detach(), m)
        for real_scale, made_scale in zip(real, made, strict=True)
        for r, m in zip(real_scale.features, made_scale.features, strict=True)
    ]
    sizes = mean_over_ranks(torch.stack([r.abs().mean() for r, _ in pairs]))
    distances = torch.stack([(r - m).abs().mean() for r, m in pairs])
    return (distances / sizes.clamp_min(1e-6)).mean()
