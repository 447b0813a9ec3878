"""torch.compile for the layers, where it works; as written where it does not."""

import logging
from collections.abc import Iterable

import torch
from torch import nn

from valle.modules.attention import AttentionSpan
from valle.modules.transformer import DecoderLayer


def compile_layers(layers: Iterable[nn.Module], device: torch.device, dtype: torch.dtype) -> bool:
    """Compile each layer for itself: alike ones share the work, and no name of a weight changes.

    Lengths stay open (`dynamic`), as each batch has its own. A small layer is tried first.

    Args:
      layers: `DecoderLayer`s.
      device: where they will run.
      dtype: that of autocast; float32 is none.

    Returns:
      Whether they are compiled; a warning in the log says why not.
    """
    try:
        _try_a_small_one(device, dtype)
    except Exception as error:  # compilers fail in many ways, of which none should end a run
        reason = next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__)
        logging.warning(f"torch.compile does not work here, training goes on without: {reason}")
        return False
    for layer in layers:
        layer.compile(dynamic=True)
    return True


def _try_a_small_one(device: torch.device, dtype: torch.dtype) -> None:
    layer = DecoderLayer(16, 2, norm_first=True, adaptive=False, dropout=0.1).to(device)
    layer.compile(dynamic=True)
    x = torch.ones(1, 4, 16, device=device)
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        layer(x, AttentionSpan(is_causal=True), None, None).sum().backward()
