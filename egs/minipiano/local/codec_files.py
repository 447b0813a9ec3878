"""The small codec as a model and as files: configuration, first weights, saving and loading.

Letters: B batch, N samples.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import EncodecConfig, EncodecModel

from valle.utils.files import written_whole

UPSAMPLING_RATIOS = (8, 5, 4, 4)  # 640 samples a frame
NUM_QUANTIZERS = 4
SIZE_LIMIT_BYTES = 6_000_000


def build_config(
    sampling_rate: int = 32000,
    codebook_size: int = 1024,
    hidden_size: int = 64,
    num_filters: int = 16,
    num_residual_layers: int = 0,
    num_lstm_layers: int = 1,
) -> EncodecConfig:
    """Describe an EnCodec of the shape of facebook/encodec_32khz, only smaller.

    Raises:
        ValueError: If codebook_size is no power of two, or the sizes do not give four quantizers.
    """
    bits = math.log2(codebook_size) if codebook_size > 0 else 0.5
    if not bits.is_integer():
        raise ValueError(f"codebook_size {codebook_size} must be a power of two, such as 1024")
    frame_rate = math.ceil(sampling_rate / math.prod(UPSAMPLING_RATIOS))
    config = EncodecConfig(
        target_bandwidths=[NUM_QUANTIZERS * frame_rate * int(bits) / 1000],  # kbit/s
        sampling_rate=sampling_rate,
        audio_channels=1,
        normalize=False,
        hidden_size=hidden_size,
        num_filters=num_filters,
        num_residual_layers=num_residual_layers,
        upsampling_ratios=list(UPSAMPLING_RATIOS),
        norm_type="weight_norm",
        use_causal_conv=False,
        pad_mode="reflect",
        num_lstm_layers=num_lstm_layers,
        codebook_size=codebook_size,
        use_conv_shortcut=False,
    )
    if config.num_quantizers != NUM_QUANTIZERS:  # the configuration derives it by rounding down
        raise ValueError(
            f"codebook_size {codebook_size} at {frame_rate} frames a second gives "
            f"{config.num_quantizers} quantizers, not {NUM_QUANTIZERS}: take another codebook_size"
        )
    return config


def keep_paddings_on_host(model: nn.Module) -> None:
    """Hold the paddings of the convolutions in host memory.

    transformers keeps them as buffers and turns them into numbers in every forward: on a GPU each
    convolution would wait until the device has caught up.
    """
    for module in model.modules():
        for name in ("stride", "kernel_size", "padding_total"):
            value = getattr(module, name, None)
            if isinstance(value, Tensor):
                setattr(module, name, value.cpu())


@torch.no_grad()
def normalize_first_weights(model: Any, audio: Tensor) -> None:
    """Scale every convolution so that its output on this batch has mean 0 and deviation 1.

    With torch's own first weights hardly any of a sound's motion reaches the latents, and a
    quantizer then learns loudness alone. The last layer is scaled to the level of the sound.

    Args:
        model: EncodecModel; changed in place.
        audio: (B, 1, N) float32.
    """
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv1d | nn.ConvTranspose1d)]
    level = audio.std().item()
    last = model.decoder.layers[-1].conv
    hooks = [
        conv.register_forward_hook(_normalizer(level if conv is last else 1.0))
        for conv in convolutions
    ]
    try:
        model.decoder(model.encoder(audio))
    finally:
        for hook in hooks:
            hook.remove()


def _normalizer(deviation: float) -> Any:
    """Make a forward hook that rescales weight and bias and returns what they would have given."""

    def rescale(conv: Any, _inputs: Any, output: Tensor) -> Tensor:
        mean = output.mean(dim=(0, 2))
        scale = deviation / output.std(dim=(0, 2)).clamp_min(1e-6)
        shape = (1, -1, 1) if isinstance(conv, nn.ConvTranspose1d) else (-1, 1, 1)
        conv.weight = conv.weight * scale.view(shape)  # the parametrization splits it again
        conv.bias.copy_((conv.bias - mean) * scale)
        return (output - mean.view(1, -1, 1)) * scale.view(1, -1, 1)

    return rescale


def shipped_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Weights as they are stored: float16, and in 8 bits what only further training would read.

    Left out altogether, embed_avg and cluster_size would make from_pretrained report them as
    missing; in 8 bits they keep it silent and the file small.
    """
    weights = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    tensors = {}
    for name, value in weights.items():
        if name.endswith("embed_avg"):
            tensors[name] = weights[name.replace("embed_avg", "embed")].to(torch.float8_e4m3fn)
        elif name.endswith("cluster_size"):
            tensors[name] = torch.ones_like(value).half()
        else:
            tensors[name] = value.half().contiguous()
    return tensors


def save_codec(model: Any, folder: Path) -> int:
    """Write config.json and model.safetensors, each under a temporary name first.

    The configuration names float32, so that from_pretrained computes in it whatever is stored.

    Returns:
        Bytes of the weights.

    Raises:
        ValueError: If a weight is not finite in float16.
    """
    tensors = shipped_tensors(model)
    for name, value in tensors.items():
        if not value.float().isfinite().all():
            raise ValueError(f"weight {name} is not finite in float16: training has diverged")
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / "model.safetensors"
    with written_whole(weights) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    fields = model.config.to_diff_dict()
    fields.pop("_name_or_path", None)
    fields.update(architectures=["EncodecModel"], dtype="float32")
    write_text(folder / "config.json", json.dumps(fields, indent=2, sort_keys=True) + "\n")
    return weights.stat().st_size


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def load_codec(folder: Path, device: torch.device) -> Any:
    """Load a codec folder in float32, ready to encode and decode.

    Raises:
        ValueError: If the folder lacks config.json or model.safetensors.
    """
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise ValueError(f"no {name} in {folder}: give the folder that train_codec.py wrote")
    model: Any = EncodecModel.from_pretrained(folder, dtype=torch.float32)
    return model.to(device).eval()
