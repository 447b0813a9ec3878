"""What ScaledAdam refuses: settings out of range, tensors it cannot move, foreign states."""

from typing import Any

import torch
from torch import Tensor

from valle.utils.sharding import check_layout, is_sharded

_STATE_OF_SCALARS = frozenset({"step", "moment", "second_moment"})
_STATE_OF_TENSORS = _STATE_OF_SCALARS | {"rms", "scale_grads", "scale_moment"}


def check_group(group: dict[str, Any]) -> None:
    """Raise ValueError for a setting or a tensor that ScaledAdam cannot use."""
    for name in ("lr", "eps", "param_min_rms", "param_max_rms", "scalar_max", "scalar_lr_scale"):
        if not group[name] >= 0:
            raise ValueError(f"{name} must be at least 0, got {group[name]}")
    if not all(0 <= beta < 1 for beta in group["betas"]):
        raise ValueError(f"betas must lie in [0, 1), got {group['betas']}")
    for name in ("clipping_update_period", "size_update_period"):
        if group[name] < 1:
            raise ValueError(f"{name} must be at least 1, got {group[name]}")
    if group["clipping_scale"] is not None and not group["clipping_scale"] > 0:
        raise ValueError(
            f"clipping_scale must be positive or None (no clipping), got {group['clipping_scale']}"
        )
    dtypes = {p.dtype for p in group["params"]} - {torch.float32, torch.float64}
    if dtypes:
        raise ValueError(
            f"ScaledAdam needs float32 or float64 weights, got {sorted(map(str, dtypes))}; for "
            "half precision keep float32 weights and run the model under autocast"
        )
    for p in group["params"]:
        if is_sharded(p):
            check_layout(p)


def check_state_dict(state_dict: dict[str, Any], groups: list[dict[str, Any]]) -> None:
    """Raise ValueError if the state is not ScaledAdam's, of tensors shaped like ours."""
    saved_groups = state_dict["param_groups"]
    if any("clipping" not in group for group in saved_groups):
        raise ValueError(
            "this optimizer state was not saved by ScaledAdam; resume with the optimizer that "
            "wrote it, or start without its state"
        )
    saved_sizes = [len(group["params"]) for group in saved_groups]
    sizes = [len(group["params"]) for group in groups]
    if saved_sizes != sizes:
        raise ValueError(
            f"the saved optimizer state has groups of {saved_sizes} tensors, this optimizer of "
            f"{sizes}; build the model as it was when saving"
        )
    saved_ids = [i for group in saved_groups for i in group["params"]]
    params = [p for group in groups for p in group["params"]]
    for i, p in zip(saved_ids, params, strict=True):
        _check_tensor_state(i, state_dict["state"].get(i), p)


def _check_tensor_state(index: int, state: dict[str, Any] | None, p: Tensor) -> None:
    if not state:  # it has had no gradient yet
        return
    expected = _STATE_OF_SCALARS if p.numel() == 1 else _STATE_OF_TENSORS
    if set(state) != expected:
        raise ValueError(
            f"the saved state of tensor {index} has {sorted(state)}, expected {sorted(expected)}"
        )
    if state["moment"].shape != p.shape:
        raise ValueError(
            f"the saved state of tensor {index} has shape {tuple(state['moment'].shape)}, the "
            f"tensor {tuple(p.shape)}; build the model as it was when saving"
        )
