"""Means of weights: over a run while it trains, and over the files it left."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from valle.utils.checkpoint import read_checkpoint, unwrap

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class AveragingRule:
    """How a run averages its weights.

    Every ``period`` updates a snapshot of the weights joins the average. Without a decay all
    snapshots count alike (the running mean of icefall). With one, snapshot i of n weighs
    ``ema_decay ** (n - i)``, and the weights are divided by their sum: the correction that Adam
    (arXiv 1412.6980, section 3) makes for an average that has just begun. So the random weights
    before training never count, and the first averages are as good as later ones.

    Attributes:
        period: Updates from one snapshot to the next.
        ema_decay: 0 for the running mean, else below 1.
        first_batch: Updates that were made before the run began, by the stage before it.
    """

    period: int
    ema_decay: float = 0.0
    first_batch: int = 0

    def __post_init__(self) -> None:
        if not self.period > 0:
            raise ValueError(
                f"there is an average with --average-period above 0 only, got {self.period}"
            )
        if not 0 <= self.ema_decay < 1:
            raise ValueError(
                f"--ema-decay must be 0 (running mean) or between 0 and 1, got {self.ema_decay}"
            )

    @classmethod
    def of(cls, params: Mapping[str, Any]) -> "AveragingRule":
        """The rule in the parameters of a run, or in its checkpoint, where they stand flat."""
        period = params.get("average_period") or 0
        if "ema_decay" not in params:  # an older trainer, which counted the stages before as well
            return cls(period)
        return cls(period, params["ema_decay"], params.get("first_batch", 0))

    def num_snapshots(self, batch_idx_train: int) -> int:
        """How many snapshots an average is made of after so many updates."""
        return batch_idx_train // self.period - self.first_batch // self.period

    def share_of_newest(self, num_snapshots: int) -> float:
        """What the newest of so many snapshots counts in the average; all together count 1."""
        if self.ema_decay == 0:
            return 1 / num_snapshots
        return (1 - self.ema_decay) / (1 - self.ema_decay**num_snapshots)


def make_averaged_weights(model: nn.Module) -> Weights:
    """A copy of the weights to average in: float64, so that small shares are not rounded away.

    Weights sharded over ranks stay so. Tied weights stay one tensor, integers what they are.
    """
    copies: dict[int, Tensor] = {}
    average = {}
    for name, value in unwrap(model).state_dict(keep_vars=True).items():
        if id(value) not in copies:
            dtype = torch.float64 if value.is_floating_point() else value.dtype
            copies[id(value)] = value.detach().to(dtype, copy=True)
        average[name] = copies[id(value)]
    return average


@torch.no_grad()
def update_averaged_weights(
    model: nn.Module, average: Weights, rule: AveragingRule, batch_idx_train: int
) -> None:
    """Let the weights of now join the average; call it every ``rule.period`` updates.

    Args:
        model: The weights of now.
        average: From ``make_averaged_weights``; changed in place. Integers are copied.
        rule: The same in all calls.
        batch_idx_train: Updates so far.

    Raises:
        ValueError: Fewer updates than one period, or the average is of another model.
    """
    num_snapshots = rule.num_snapshots(batch_idx_train)
    if num_snapshots < 1:
        raise ValueError(
            f"the average is updated every {rule.period} updates from {rule.first_batch} on, so "
            f"not after {batch_idx_train}"
        )
    weights = unwrap(model).state_dict()
    _check_alike(average, weights, "the average", "the model")
    share = rule.share_of_newest(num_snapshots)
    tensors = {id(average[name]): (average[name], value) for name, value in weights.items()}
    for mean, current in tensors.values():  # tied ones once
        if mean.is_floating_point():
            mean.lerp_(current.to(mean.dtype), share)
        else:
            mean.copy_(current)


def average_checkpoints(filenames: Iterable[str | Path]) -> Weights:
    """The plain mean of several checkpoints' weights, in the dtypes of the first.

    Sums are taken in float64, tensor by tensor out of the mapped files; integers are divided
    rounding down.

    Raises:
        ValueError: No file is given, or the files hold different weights.
    """
    paths = list(filenames)
    if not paths:
        raise ValueError("no checkpoints to average")
    files = [read_checkpoint(path)["model"] for path in paths]
    for path, weights in zip(paths[1:], files[1:], strict=True):
        _check_alike(files[0], weights, paths[0], path)
    means: dict[tuple, Tensor] = {}
    result = {}
    for name in files[0]:
        values = [weights[name] for weights in files]
        tie = tuple((v.data_ptr(), v.shape, v.stride()) for v in values)
        if tie not in means:  # tied weights are summed and kept once
            means[tie] = _mean(values)
        result[name] = means[tie]
    return result


def average_checkpoints_with_averaged_model(start: str | Path, end: str | Path) -> Weights:
    """The mean of the weights over the updates between two checkpoints of one run.

    Both hold the mean since the run's beginning, so that of the stretch between is
    (avg_end * n_end - avg_start * n_start) / (n_end - n_start); integers are those of the end.

    Args:
        start: Not counted itself; must hold ``model_avg``.
        end: Counted; a later checkpoint.

    Returns:
        Name -> mean, in the dtype of the end's weights.

    Raises:
        ValueError: One lacks ``model_avg`` or its counters or has an exponential average, they are
            not of one run, or the end is not after the start.
    """
    old, new = read_checkpoint(start), read_checkpoint(end)
    old_rule, new_rule = _running_mean_rule(old, start), _running_mean_rule(new, end)
    if old_rule.first_batch != new_rule.first_batch:
        raise ValueError(
            f"{start} and {end} are of two runs, which began at updates {old_rule.first_batch} "
            f"and {new_rule.first_batch}; take two checkpoints of one"
        )
    n_start, n_end = (
        rule.num_snapshots(_updates(file, path)) * rule.period
        for rule, file, path in ((old_rule, old, start), (new_rule, new, end))
    )
    if n_end <= n_start:
        raise ValueError(f"{end} (mean of {n_end} updates) is not after {start} ({n_start})")
    old_mean, new_mean = _average_in(old, start), _average_in(new, end)
    _check_alike(old_mean, new_mean, start, end)
    _check_alike(new["model"], new_mean, f"'model' of {end}", f"'model_avg' of {end}")
    return {
        name: _stretch(old_mean[name], value, n_start, n_end).to(new["model"][name].dtype)
        for name, value in new_mean.items()
    }


def _stretch(old: Tensor, new: Tensor, n_old: int, n_new: int) -> Tensor:
    if not new.is_floating_point():
        return new
    return (new.double() * n_new - old.double() * n_old) / (n_new - n_old)


def _mean(values: Sequence[Tensor]) -> Tensor:
    total = _wide(values[0])
    for value in values[1:]:
        total = total + _wide(value)
    mean = total / len(values) if total.is_floating_point() else total // len(values)
    return mean.to(values[0].dtype)


def _wide(value: Tensor) -> Tensor:
    return value.to(torch.float64 if value.is_floating_point() else torch.int64)


def _check_alike(
    a: Mapping[str, Tensor], b: Mapping[str, Tensor], name_a: str | Path, name_b: str | Path
) -> None:
    names = set(a) ^ set(b) or {k for k in a if a[k].shape != b[k].shape}
    if names:
        some = ", ".join(sorted(names)[:4])
        raise ValueError(f"{name_a} and {name_b} hold different weights: {len(names)}, as {some}")


def _running_mean_rule(checkpoint: Mapping[str, Any], file: str | Path) -> AveragingRule:
    period, decay = checkpoint.get("average_period"), checkpoint.get("ema_decay")
    if not isinstance(period, int) or period < 1:
        raise ValueError(
            f"{file} has average_period = {period}; it must come from a run with --average-period "
            "above 0"
        )
    if decay:
        raise ValueError(
            f"{file} holds an exponential average (--ema-decay {decay}), of which no stretch can "
            "be taken; average 'model' of several checkpoints, or take 'model_avg' as it is"
        )
    return AveragingRule.of(checkpoint)


def _updates(checkpoint: Mapping[str, Any], file: str | Path) -> int:
    value = checkpoint.get("batch_idx_train")
    if not isinstance(value, int):
        raise ValueError(f"{file} has batch_idx_train = {value}, expected its number of updates")
    return value


def _average_in(checkpoint: Mapping[str, Any], file: str | Path) -> Weights:
    if "model_avg" not in checkpoint:
        raise ValueError(f"{file} holds no model_avg; train with --average-period above 0")
    return checkpoint["model_avg"]
