"""An EncodecModel made ready for training.

Letters: B batch, N samples.
"""

from typing import Any

import torch
from torch import Tensor, nn


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
