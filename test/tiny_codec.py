"""A codec of a few thousand weights, and sound to feed it."""

from pathlib import Path

import numpy as np
import torch
from transformers import EncodecConfig, EncodecModel

RATE, HOP, QUANTIZERS, CODES = 8000, 160, 3, 16
CONFIG = {
    "sampling_rate": RATE,
    "audio_channels": 1,
    "normalize": False,
    "hidden_size": 8,
    "num_filters": 2,
    "num_residual_layers": 1,
    "upsampling_ratios": [8, 5, 4],
    "use_causal_conv": False,
    "num_lstm_layers": 1,
    "codebook_size": CODES,
    "use_conv_shortcut": False,
    # 3 quantizers x 50 frames a second x 4 bits
    "target_bandwidths": [QUANTIZERS * 50 * 4 / 1000],
}


def make_encodec(**changes) -> EncodecModel:
    """A random EncodecModel whose codebooks lie where its latents do.

    As transformers makes it, all codebooks are zero and all sound becomes code 0.
    """
    torch.manual_seed(0)
    model = EncodecModel(EncodecConfig(**(CONFIG | changes))).eval()
    with torch.no_grad():
        latent = model.encoder(
            torch.from_numpy(noise(2.0))[None, None].repeat(1, model.config.audio_channels, 1)
        )[0].T  # (T, D)
        residual = latent
        for layer in model.quantizer.layers:
            chosen = torch.randperm(len(residual))[: layer.codebook.codebook_size]
            layer.codebook.embed.copy_(residual[chosen])
            residual = residual - layer.decode(layer.encode(residual.T[None]))[0].T
    return model


def save_codec(folder: Path, **changes) -> Path:
    """Save a tiny codec as a local folder."""
    make_encodec(**changes).save_pretrained(folder)
    return folder


def noise(seconds: float, rate: int = RATE, seed: int = 0) -> np.ndarray:
    """(N,) float32: a swelling tone in noise, so that all codes have a reason to occur."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    tone = np.sin(2 * np.pi * (200 + 50 * seed) * time * (1 + 0.1 * np.sin(3 * time)))
    swell = 0.5 + 0.5 * np.sin(2 * np.pi * time + seed)
    return (0.4 * swell * tone + 0.1 * rng.standard_normal(len(time))).astype(np.float32)
