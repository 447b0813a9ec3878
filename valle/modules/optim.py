"""Optimizers by name, each with the learning rate that suits it."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from valle.modules.scaled_adam import ScaledAdam

# 0.05 is sane only where steps are relative to the size of the weights.
DEFAULT_LR = {"ScaledAdam": 0.05, "AdamW": 3e-4}


def make_optimizer(
    name: str,
    params: Iterable[Tensor],
    base_lr: float | None = None,
    betas: tuple[float, float] = (0.9, 0.95),
    clipping_scale: float | None = 2.0,
    clipping_update_period: int = 1000,
    weight_decay: float = 0.01,
) -> torch.optim.Optimizer:
    """Build an optimizer.

    Args:
        name: "ScaledAdam" (clips its own gradients) or "AdamW" (clip before its step).
        params: The tensors to train.
        base_lr: Learning rate; None takes 0.05 for ScaledAdam and 3e-4 for AdamW.
        betas: Decay rates of the two moving averages.
        clipping_scale: ScaledAdam: threshold over the median gradient norm, None for no clipping.
        clipping_update_period: ScaledAdam: steps between updates of that threshold.
        weight_decay: AdamW: applied to tensors of two or more dimensions, not to biases, norms and
            scalars.

    Raises:
        ValueError: The name is unknown or there is nothing to train.
    """
    if name not in DEFAULT_LR:
        raise ValueError(f"unknown optimizer {name!r}; choose one of {', '.join(DEFAULT_LR)}")
    tensors = list(params)
    if not tensors:
        raise ValueError(f"{name} got no parameters; is every part of the model frozen?")
    lr = DEFAULT_LR[name] if base_lr is None else base_lr
    if name == "ScaledAdam":
        return ScaledAdam(
            tensors,
            lr=lr,
            betas=betas,
            clipping_scale=clipping_scale,
            clipping_update_period=clipping_update_period,
        )
    groups = _decay_groups(tensors, weight_decay)
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=_can_fuse(tensors))


def _decay_groups(params: list[Tensor], weight_decay: float) -> list[dict[str, Any]]:
    """Matrices with weight decay, all else without; a group without tensors is left out."""
    groups = [
        {"params": [p for p in params if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in params if p.dim() < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _can_fuse(params: list[Tensor]) -> bool:
    """Whether the fused kernel takes all of them."""
    return all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in params)
