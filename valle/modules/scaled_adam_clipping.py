"""ScaledAdam's clipping: gradients against the median of the recent gradient norms."""

from typing import Any

import torch
from torch import Tensor

from valle.modules.scaled_adam_buckets import Bucket

# Steps at which a first, doubled threshold is set, as newer icefall does. VALL-E waits for a whole
# clipping_update_period: a short run would never clip, a long one not in its wildest steps.
EARLY_THRESHOLD_STEPS = (10, 20, 40)


def clipping_factor(
    group: dict[str, Any],
    buckets: list[Bucket],
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """One factor for all gradients of the group.

    Args:
        group: The settings and what clipping remembers.
        buckets: All tensors of the group that have a gradient.
        grad_scale: One float by which the gradients are yet to be divided, or None.
        found_inf: One float; if it is not 0, the norm counts as not finite.

    Returns:
        () factor and () bool, False (with factor 0) where the norm is not finite.
    """
    state = group["clipping"]
    norm = _relative_norm(group, buckets)
    if grad_scale is not None:
        grad_scale = grad_scale.to(norm, non_blocking=True).reshape(())
        norm = norm / grad_scale
    if found_inf is not None:
        found_inf = found_inf.to(norm.device, non_blocking=True).reshape(())
        norm = norm.masked_fill(found_inf != 0, torch.inf)
    finite = torch.isfinite(norm)
    if group["clipping_scale"] is not None and state["step"] > 0:
        _note_norm(group, norm)
    factor = (state["threshold"] / norm.clamp(min=1e-20)).clamp(max=1.0)
    factor = torch.where(finite, factor, torch.zeros_like(factor))
    state["norm"].copy_(norm)
    state["num_nonfinite"] += ~finite
    state["num_clipped"] += finite & (factor < 1)
    state["step"] += 1
    return factor if grad_scale is None else factor / grad_scale, finite


def _relative_norm(group: dict[str, Any], buckets: list[Bucket]) -> Tensor:
    """() norm of all gradients, each weighted with the size by which its tensor moves."""
    buckets = sorted(buckets, key=lambda bucket: bucket.sums is not None)
    grads = [grad for bucket in buckets if bucket.sums is None for grad in bucket.grads]
    norms = [torch.stack(torch._foreach_norm(grads))] if grads else []
    norms += [bucket.sums.grad_norms for bucket in buckets if bucket.sums is not None]
    sizes = [
        bucket.rows["moment"].new_full((len(bucket.params),), group["scalar_lr_scale"])
        if bucket.holds_scalars
        else bucket.rows["rms"]
        for bucket in buckets
    ]
    return torch.linalg.vector_norm(torch.cat(norms) * torch.cat(sizes))


def _note_norm(group: dict[str, Any], norm: Tensor) -> None:
    """Remember the norm and, in the steps that say so, set the threshold from those remembered."""
    state, period = group["clipping"], group["clipping_update_period"]
    step = state["step"]
    state["norms"][(step - 1) % period] = norm
    early = step in EARLY_THRESHOLD_STEPS and step < period
    if not early and step % period != 0:
        return
    known = min(step, period)
    # sort, not median: norms that are not finite go to the end and count as large
    median = state["norms"][:known].sort().values[(known - 1) // 2]
    threshold = median * (group["clipping_scale"] * (2.0 if early else 1.0))
    # a median of 0 would stop all learning; one that is not finite says nothing
    usable = torch.isfinite(threshold) & (threshold > 0)
    state["threshold"].copy_(torch.where(usable, threshold, torch.inf))
