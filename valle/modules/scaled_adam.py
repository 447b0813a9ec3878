"""ScaledAdam: Adam whose steps are relative to the size of each tensor.

Written from the update rule of icefall's ``egs/librispeech/ASR/zipformer/optim.py`` and of the
paper "Zipformer" (arXiv 2310.11230, section 3.4); the code is our own. What it does that Adam does
not:

* the step of a tensor is multiplied by the root mean square (rms) of its entries, so a learning
  rate of 0.05 means "about 5 % of the tensor's size", whatever that size is;
* the size itself is learned: every few steps the tensor grows or shrinks along itself by Adam's
  rule applied to the logarithm of its scale;
* the gradient is clipped against the median of the recent gradient norms, so the threshold needs
  no tuning. The step does not depend on the scale of the loss, so a summed loss needs no division.

Of sharded tensors (``valle.utils.sharding``) each rank moves its part; what the rule asks of a
tensor is always that of the whole one.

Letters: t steps that this tensor has taken, n tensors stacked in one bucket.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from valle.modules.scaled_adam_buckets import Bucket, refreshes_sizes, sum_sharded
from valle.modules.scaled_adam_checks import check_group, check_state_dict
from valle.modules.scaled_adam_clipping import clipping_factor
from valle.utils.sharding import (
    PER_ELEMENT_STATE,
    from_part,
    is_sharded,
    local_part,
    max_part_numel,
    shard_state,
    sum_over_ranks,
)

# Larger buckets are split. A GPU wants few launches, but a step needs three copies of a bucket
# (64 Mi float32 = 256 MiB); on a CPU what fits its caches is fastest.
MAX_BUCKET_ELEMENTS = {"cuda": 2**26, "cpu": 2**20}


class ScaledAdam(torch.optim.Optimizer):
    """Adam with steps relative to each tensor's rms, learned scales and median clipping.

    Nothing in ``step`` waits for the device. A tensor without a gradient is left alone and its
    step count stands still. If the gradient norm of a group is not finite, neither the weights nor
    the moments of the group move in that step (icefall lets the momentum act) and the step is
    counted in ``clipping_stats``; ``p.grad`` itself is never changed.

    Two attributes may be set for a step, as ``torch.amp.GradScaler`` does: ``found_inf`` (one
    float), which if it is not 0 makes the step count as one of a norm that is not finite, and
    ``grad_scale`` (one float or None), by which the gradients are still to be divided.

    The tensors may be sharded. ``step`` is then collective, with one exchange (and one for each
    tensor before its first step): a tensor must have a gradient on every rank or on none, and
    ``found_inf`` must be the same on all.

    Args:
        params: float32 or float64 tensors, or groups of them.
        lr: Learning rate relative to the tensors' rms.
        betas: Decay of the moving averages of the step and of the squared gradient.
        clipping_scale: Threshold as a multiple of the median gradient norm; None: no clipping.
        clipping_update_period: Steps between updates of the threshold, and norms remembered.
        scalar_lr_scale: Factor on lr for the scale of a tensor and for one-element tensors.
        eps: Added to the denominators.
        param_min_rms: Smaller tensors move as if they had this rms.
        param_max_rms: No tensor is let to grow beyond this rms.
        scalar_max: One-element tensors stay within plus and minus this.
        size_update_period: Steps between updates of the tensors' scales.

    Raises:
        ValueError: A setting is out of range, or a tensor has another dtype or is cut otherwise
            than by ``valle.utils.sharding.shard``.
    """

    _step_supports_amp_scaling = True  # GradScaler then asks no device whether to step

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 0.05,
        betas: tuple[float, float] = (0.9, 0.95),
        clipping_scale: float | None = 2.0,
        clipping_update_period: int = 1000,
        scalar_lr_scale: float = 0.1,
        eps: float = 1e-8,
        param_min_rms: float = 1e-5,
        param_max_rms: float = 3.0,
        scalar_max: float = 10.0,
        size_update_period: int = 4,
    ):
        defaults = {
            "lr": lr,
            "betas": betas,
            "clipping_scale": clipping_scale,
            "clipping_update_period": clipping_update_period,
            "scalar_lr_scale": scalar_lr_scale,
            "eps": eps,
            "param_min_rms": param_min_rms,
            "param_max_rms": param_max_rms,
            "scalar_max": scalar_max,
            "size_update_period": size_update_period,
        }
        self._homes: dict[Tensor, Bucket] = {}
        super().__init__(params, defaults)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._homes = {}  # the rows were replaced: buckets are stacked anew from them

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add tensors with settings of their own; each group is clipped by itself."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            check_group(group)
        except ValueError:
            self.param_groups.pop()
            raise
        first = local_part(group["params"][0])
        group["clipping"] = {
            "step": 0,
            "norm": first.new_zeros(()),
            "norms": first.new_zeros(group["clipping_update_period"]),
            "threshold": first.new_full((), torch.inf),
            "num_clipped": first.new_zeros((), dtype=torch.int64),
            "num_nonfinite": first.new_zeros((), dtype=torch.int64),
        }

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step from the gradients that are there. Collective, if they are sharded.

        Args:
            closure: Evaluates the loss again, if given.

        Returns:
            What the closure returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        filled = [(group, self._buckets(group)) for group in self.param_groups]
        filled = [(group, buckets) for group, buckets in filled if buckets]
        sum_sharded(filled)
        scaling = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        for group, buckets in filled:
            clip, finite = clipping_factor(group, buckets, *scaling)
            for bucket in buckets:
                _step_bucket(group, bucket, clip, finite)
                self._count_step(bucket)
        return loss

    def clipping_stats(self) -> list[dict[str, float]]:
        """Per group: last relative gradient norm, threshold, and the counts since the start.

        This waits for the device: call it when logging, not in every step.
        """
        names = ("norm", "threshold", "num_clipped", "num_nonfinite")
        return [{n: float(group["clipping"][n]) for n in names} for group in self.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """All that a run needs to go on; the moments of sharded tensors are sharded alike."""
        packed = super().state_dict()
        params = [p for group in self.param_groups for p in group["params"]]
        for i, state in packed["state"].items():
            if is_sharded(p := params[i]):
                names = PER_ELEMENT_STATE & set(state)
                packed["state"][i] = state | {name: from_part(state[name], p) for name in names}
        return packed

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a saved state, bit for bit.

        Args:
            state_dict: What ``state_dict()`` gave for the same tensors in the same order. Moments
                of sharded tensors may be whole or sharded.

        Raises:
            ValueError: It belongs to another optimizer or to other tensors.
        """
        check_state_dict(state_dict, self.param_groups)
        super().load_state_dict(shard_state(state_dict, self))
        for p, tensor_state in self.state.items():
            if is_sharded(p):
                names = PER_ELEMENT_STATE & set(tensor_state)
                tensor_state.update({name: local_part(tensor_state[name]) for name in names})
        for group in self.param_groups:  # the base class moves only the state of single tensors
            device = group["params"][0].device
            state = group["clipping"]
            group["clipping"] = {
                k: v.to(device, copy=True) if isinstance(v, Tensor) else v for k, v in state.items()
            }

    def _buckets(self, group: dict[str, Any]) -> list[Bucket]:
        """All tensors of the group that have a gradient, in buckets."""
        alike: dict[tuple[Any, ...], list[Tensor]] = defaultdict(list)
        for p in group["params"]:
            if p.grad is None or p.numel() == 0:
                continue
            if p.grad.is_sparse:
                raise ValueError("ScaledAdam got a sparse gradient; use dense embeddings")
            if not self.state[p]:
                self.state[p] = _initial_state(p, group["size_update_period"])
            kind = (p.device, p.dtype, p.shape, is_sharded(p), self.state[p]["step"])
            alike[kind].append(p)
        buckets = []
        for params in alike.values():
            limit = MAX_BUCKET_ELEMENTS.get(params[0].device.type, 2**26)
            most = max(1, limit // max_part_numel(params[0]))
            pieces = (params[i : i + most] for i in range(0, len(params), most))
            buckets += [self._bucket_of(piece) for piece in pieces]
        return buckets

    def _bucket_of(self, params: list[Tensor]) -> Bucket:
        """The bucket of exactly these tensors; stacked anew only when the company has changed."""
        home = self._homes.get(params[0])
        complete = home is not None and len(home.params) == len(params)
        if home is not None and complete and all(self._homes.get(p) is home for p in params):
            return home
        states = [self.state[p] for p in params]
        names = [name for name in states[0] if name != "step"]
        rows = {name: torch.stack([state[name] for state in states]) for name in names}
        bucket = Bucket(list(params), rows, states[0]["step"])
        for i, p in enumerate(params):
            self.state[p].update({name: rows[name][i] for name in names})
            self._homes[p] = bucket
        return bucket

    def _count_step(self, bucket: Bucket) -> None:
        bucket.step += 1
        for p in bucket.params:
            self.state[p]["step"] = bucket.step


def _step_bucket(group: dict[str, Any], bucket: Bucket, clip: Tensor, finite: Tensor) -> None:
    """Move the tensors of one bucket.

    Args:
        group: The settings.
        bucket: n tensors with their state and, if they are sharded, the sums over ranks.
        clip: () factor on the gradients; 0 where the norm was not finite.
        finite: () bool; where False, weights and moments stay as they are.
    """
    beta1, beta2 = group["betas"]
    # grads of a finite norm are finite; the others are multiplied by 0, which needs them finite
    grad = _stacked(bucket.grads).nan_to_num(0.0, 0.0, 0.0).mul_(clip)
    keep = finite.to(grad.dtype)
    weights = None if bucket.holds_scalars else _stacked(bucket.weights)
    work = torch.empty_like(grad)  # one for all: fresh memory is slow on a CPU
    growth = None
    if weights is not None:
        if bucket.sums is None:
            scale_grads = torch.mul(weights, grad, out=work).flatten(1).sum(1)
        else:
            # what is not finite remains so when it is multiplied by 0
            scale_grads = (bucket.sums.scale_grads * clip).nan_to_num(0.0, 0.0, 0.0)
        growth = _growth(group, bucket, weights, scale_grads, keep)

    second = bucket.rows["second_moment"]
    second.lerp_(torch.mul(grad, grad, out=work), keep * (1 - beta2))
    correction = 1 - beta2 ** (bucket.step + 1)
    denominator = torch.sqrt(second, out=work)
    if correction < 0.99:
        denominator.div_(correction**0.5)
    delta = grad.div_(denominator.add_(group["eps"]))

    if weights is None:
        delta.mul_(-group["lr"] * group["scalar_lr_scale"])
    else:
        sizes = bucket.rows["rms"].clamp(min=group["param_min_rms"])
        delta.mul_(bucket.per_row(-group["lr"] * sizes))
        if growth is not None:
            delta.addcmul_(weights, bucket.per_row(growth))
    moment = bucket.rows["moment"]
    moment.lerp_(delta, keep * (1 - beta1))
    if len(bucket.weights) == 1:
        bucket.weights[0].addcmul_(moment[0], keep)
    else:
        torch._foreach_add_(bucket.weights, list(torch.mul(moment, keep, out=work).unbind()))
    if weights is None:
        torch._foreach_clamp_max_(bucket.weights, group["scalar_max"])
        torch._foreach_clamp_min_(bucket.weights, -group["scalar_max"])


def _stacked(tensors: list[Tensor]) -> Tensor:
    """(n, *shape), not to be changed: of a single tensor, as large ones are on a CPU, a view."""
    return tensors[0].detach()[None] if len(tensors) == 1 else torch.stack(tensors)


def _growth(
    group: dict[str, Any],
    bucket: Bucket,
    weights: Tensor,
    scale_grads: Tensor,
    keep: Tensor,
) -> Tensor | None:
    """By what fraction of itself each tensor grows (negative: shrinks), in the steps that say so.

    Args:
        group: The settings.
        bucket: n tensors with their state; notes the gradient of each tensor's scale.
        weights: (n, *shape).
        scale_grads: (n,) dot product of each tensor and its clipped gradient, which is d loss /
            d log(scale) of the tensor.
        keep: (), 0 in a step whose gradients are not finite, else 1.

    Returns:
        (n,), or None in all but every ``size_update_period``-th step.
    """
    period, step = group["size_update_period"], bucket.step
    recent = bucket.rows["scale_grads"]  # (n, period)
    recent[:, step % period] = scale_grads
    if not refreshes_sizes(group, bucket):
        return None
    if bucket.sums is None:
        mean_squares = weights.flatten(1).square().mean(1)
    else:
        mean_squares = bucket.sums.mean_squares
    rms = bucket.rows["rms"].copy_(mean_squares.sqrt())
    beta = group["betas"][1] ** period
    second = bucket.rows["scale_moment"].lerp_(recent.square().mean(1), keep * (1 - beta))
    correction = 1 - beta ** ((step + 1) / period)
    growth = recent.sum(1) / (second.sqrt() + group["eps"])
    growth = growth * (-group["scalar_lr_scale"] * group["lr"] * correction**0.5)
    growth = growth.masked_fill(rms < group["param_min_rms"], 0.0).clamp(-0.1, 0.1)
    return torch.minimum(growth, (group["param_max_rms"] - rms) / rms)


def _initial_state(p: Tensor, size_update_period: int) -> dict[str, Any]:
    """State of one tensor before its first step, t = 0."""
    part = local_part(p).detach()
    state: dict[str, Any] = {
        "step": 0,
        "moment": torch.zeros_like(part),
        "second_moment": torch.zeros_like(part),
    }
    if p.numel() != 1:
        if is_sharded(p):
            mean_square = sum_over_ranks(part.square().sum(), p) / p.numel()
        else:
            mean_square = part.square().mean()
        state["rms"] = mean_square.sqrt()
        state["scale_grads"] = part.new_zeros(size_update_period)
        state["scale_moment"] = part.new_zeros(())
    return state
