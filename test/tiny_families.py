"""A codec of each family, of a few thousand random weights, saved as a folder.

All work at 8 kHz; DAC and Mimi have 4 and 3 quantizers of 16 codes, hops of 160 and 320.
"""

from pathlib import Path
from typing import Any

import torch
from tiny_codec import make_encodec, noise
from transformers import DacConfig, DacModel, MimiConfig, MimiModel

ENCODEC_24KHZ = {
    "sampling_rate": 24000,
    "upsampling_ratios": [8, 5, 4, 2],  # 320 samples a frame, 75 frames a second
    "use_causal_conv": True,
    "use_conv_shortcut": True,
    "codebook_size": 16,
    # 2, 4, 8 and 16 quantizers of 4 bits
    "target_bandwidths": [0.6, 1.2, 2.4, 4.8],
}


def make_encodec_24khz() -> Any:
    """Rates and layers of facebook/encodec_24khz, but for its sizes."""
    return make_encodec(**ENCODEC_24KHZ)


def make_dac() -> Any:
    """A DAC with an odd factor among its own, whose sound ends a few samples early."""
    torch.manual_seed(0)
    config = DacConfig(
        encoder_hidden_size=4,
        downsampling_ratios=[4, 5, 8],
        decoder_hidden_size=32,
        n_codebooks=4,
        codebook_size=16,
        codebook_dim=4,
        sampling_rate=8000,
    )
    model = DacModel(config).eval()
    with torch.no_grad():
        # as transformers makes it, a DAC is nearly deaf: all weights are near zero
        for module in model.modules():
            if isinstance(module, torch.nn.Conv1d):
                module.weight.normal_(
                    std=0.6 * (module.in_channels * module.kernel_size[0]) ** -0.5
                )
        residual = model.encoder(torch.from_numpy(noise(2.0))[None, None])
        for level in model.quantizer.quantizers:
            latent = level.in_proj(residual)[0].T  # (T, D)
            level.codebook.weight.copy_(latent[torch.randperm(len(latent))[:16]])
            residual = residual - level(residual)[0]
    return model


def make_mimi() -> Any:
    """A Mimi whose attention looks back 8 frames of the 50 a second before the last halving."""
    torch.manual_seed(0)
    config = MimiConfig(
        sampling_rate=8000,
        hidden_size=16,
        num_filters=2,
        upsampling_ratios=[8, 5, 4],
        codebook_size=16,
        codebook_dim=8,
        vector_quantization_hidden_dimension=8,
        num_quantizers=3,
        upsample_groups=16,
        num_hidden_layers=2,
        intermediate_size=32,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=8,
        layer_scale_initial_scale=0.5,
    )
    model = MimiModel(config).eval()
    quantizer = model.quantizer
    with torch.no_grad():
        latents = model.encoder(torch.from_numpy(noise(4.0))[None, None]).latents
        for residual_quantizer in (
            quantizer.semantic_residual_vector_quantizer,
            quantizer.acoustic_residual_vector_quantizer,
        ):
            rest = residual_quantizer.input_proj(latents)
            for layer in residual_quantizer.layers:
                vectors = rest[0].T
                layer.codebook.embed_sum.copy_(vectors[torch.randperm(len(vectors))[:16]])
                layer.codebook._embed = None  # it was kept when it was zero
                rest = rest - layer.decode(layer.encode(rest))
    return model


MAKERS = {
    "encodec": make_encodec,
    "encodec_24khz": make_encodec_24khz,
    "dac": make_dac,
    "mimi": make_mimi,
}


def save_family(folder: Path, name: str) -> Path:
    """Save the tiny codec of that name."""
    MAKERS[name]().save_pretrained(folder)
    return folder
