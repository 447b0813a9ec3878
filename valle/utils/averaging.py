"""Means of weights: over a run while it trains, and over the files it left."""

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from valle.utils.checkpoint import read_checkpoint, unwrap


def make_averaged_model(model: nn.Module) -> nn.Module:
    """A float64 copy without gradients, in which the mean of the weights is kept."""
    return copy.deepcopy(unwrap(model)).to(torch.float64).requires_grad_(False).eval()


@torch.no_grad()
def update_averaged_model(
    model: nn.Module, model_avg: nn.Module, average_period: int, batch_idx_train: int
) -> None:
    """Move the mean towards the weights of now; call it every ``average_period`` updates.

    After n calls the mean is that of the n snapshots.

    Args:
        model: The weights of now.
        model_avg: From ``make_averaged_model``. Integer buffers are copied, not averaged.
        average_period: Updates between two calls.
        batch_idx_train: Updates so far.

    Raises:
        ValueError: Fewer updates than one period.
    """
    if not 0 < average_period <= batch_idx_train:
        raise ValueError(
            f"the mean is updated every {average_period} updates, so not after {batch_idx_train}"
        )
    weight = average_period / batch_idx_train
    for average, current in zip(_tensors(model_avg), _tensors(unwrap(model)), strict=True):
        if average.is_floating_point():
            average.lerp_(current.to(average), weight)
        else:
            average.copy_(current)


def average_checkpoints(filenames: Iterable[str | Path]) -> dict[str, Tensor]:
    """The plain mean of several checkpoints' weights, in their own dtypes.

    Sums are taken in float64; integer buffers are divided rounding down.

    Raises:
        ValueError: No file is given, or the files hold different weights.
    """
    paths = list(filenames)
    if not paths:
        raise ValueError("no checkpoints to average")
    first = read_checkpoint(paths[0])["model"]
    sums = {name: _wide(value) for name, value in first.items()}
    for path in paths[1:]:
        weights = read_checkpoint(path)["model"]
        _check_alike(first, weights, paths[0], path)
        for name in sums:
            sums[name] = sums[name] + _wide(weights[name])
    n = len(paths)
    means = {k: v / n if v.is_floating_point() else v // n for k, v in sums.items()}
    return {name: value.to(first[name].dtype) for name, value in means.items()}


def average_checkpoints_with_averaged_model(
    start: str | Path, end: str | Path
) -> dict[str, Tensor]:
    """The mean of the weights over the updates between two checkpoints of one run.

    Both hold the mean since the beginning, so that of the stretch between is
    (avg_end * n_end - avg_start * n_start) / (n_end - n_start); integer buffers are those of the
    end.

    Args:
        start: Not counted itself; must hold ``model_avg``.
        end: Counted; a later checkpoint.

    Raises:
        ValueError: One lacks ``model_avg`` or its counters, or the end is not after the start.
    """
    old, new = read_checkpoint(start), read_checkpoint(end)
    period = _counter(old, "average_period", start)
    n_start = _counter(old, "batch_idx_train", start) // period * period
    n_end = _counter(new, "batch_idx_train", end) // period * period
    if n_end <= n_start:
        raise ValueError(f"{end} (mean of {n_end} updates) is not after {start} ({n_start})")
    old_mean, new_mean = _mean_of(old, start), _mean_of(new, end)
    _check_alike(old_mean, new_mean, start, end)
    return {
        name: _stretch(old_mean[name], value, n_start, n_end) for name, value in new_mean.items()
    }


def _stretch(old: Tensor, new: Tensor, n_old: int, n_new: int) -> Tensor:
    if not new.is_floating_point():
        return new
    return ((new.double() * n_new - old.double() * n_old) / (n_new - n_old)).to(new.dtype)


def _tensors(model: nn.Module) -> list[Tensor]:
    """Parameters and buffers, those that are tied once."""
    return [*model.parameters(), *model.buffers()]


def _wide(value: Tensor) -> Tensor:
    return value.to(torch.float64 if value.is_floating_point() else torch.int64)


def _check_alike(
    a: dict[str, Tensor], b: dict[str, Tensor], file_a: str | Path, file_b: str | Path
) -> None:
    names = set(a) ^ set(b) or {k for k in a if a[k].shape != b[k].shape}
    if names:
        some = ", ".join(sorted(names)[:4])
        raise ValueError(f"{file_a} and {file_b} hold different weights: {len(names)}, as {some}")


def _counter(checkpoint: dict[str, Any], name: str, file: str | Path) -> int:
    value = checkpoint.get(name)
    if not isinstance(value, int) or value < 1:
        raise ValueError(
            f"{file} has {name} = {value}; it must come from a run with --average-period above 0"
        )
    return value


def _mean_of(checkpoint: dict[str, Any], file: str | Path) -> dict[str, Tensor]:
    if "model_avg" not in checkpoint:
        raise ValueError(f"{file} holds no model_avg; train with --average-period above 0")
    return checkpoint["model_avg"]
