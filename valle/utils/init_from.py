"""Begin a run from the weights of another, perhaps of other people, with a report of what fitted.

Weights only: optimizer, schedule and counters of the new run are its own.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from valle.utils.checkpoint import listing, read_checkpoint, unwrap, without_wrappers
from valle.utils.sharding import shard_like


@dataclass(frozen=True)
class InitReport:
    """What of a file fitted a model. Names are the model's, without wrapper prefixes.

    Attributes:
        matched: Tensors of the same name and shape: those that are loaded.
        missing: Tensors of the model that the file lacks.
        unknown: Tensors of the file that the model lacks.
        reshaped: Tensors of one name and two shapes, as ``name (3, 4) instead of (5, 4)``.
        num_matched_parameters: Numbers in the matched tensors.
        num_parameters: Numbers in all tensors of the model.
    """

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unknown: tuple[str, ...]
    reshaped: tuple[str, ...]
    num_matched_parameters: int
    num_parameters: int

    @property
    def is_complete(self) -> bool:
        """Whether file and model hold exactly the same tensors."""
        return not (self.missing or self.unknown or self.reshaped)

    def __str__(self) -> str:
        num_tensors = len(self.matched) + len(self.missing) + len(self.reshaped)
        parts = [
            f"{len(self.matched)} of the model's {num_tensors} tensors "
            f"({self.num_matched_parameters:,} of {self.num_parameters:,} parameters) match",
            listing("missing in the file", list(self.missing)),
            listing("unknown to the model", list(self.unknown)),
            listing("of another shape", list(self.reshaped)),
        ]
        return "; ".join(filter(None, parts))


def init_from(model: nn.Module, path: str | Path, allow_partial: bool = False) -> InitReport:
    """Load the weights of a checkpoint's section ``model``, all of them or what fits.

    The file is read as data, never run: one that holds Python objects is refused.

    Args:
        model: Gets the weights; may be wrapped by DDP or torch.compile, as may those in the file.
            If it is sharded, each rank takes its part.
        path: A checkpoint of this or another trainer of the family.
        allow_partial: Load what fits in name and shape, and log what does not; the rest of the
            model stays as it was.

    Returns:
        The report, which is logged too.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no checkpoint; or something does not match, nothing if partial loading is
            allowed. The model is then as it was.
    """
    inner = unwrap(model)
    own = inner.state_dict()
    weights = without_wrappers(_tensors(read_checkpoint(path)["model"], path), own)
    report = compare_weights(own, weights)
    if not report.matched:
        raise ValueError(f"nothing in {path} fits the model: {report}")
    if not (report.is_complete or allow_partial):
        raise ValueError(
            f"{path} does not fit the model: {report}. Build the model with the settings that the "
            "checkpoint holds, or take what fits and leave the rest random (--init-partial true)"
        )
    fitting = {name: shard_like(weights[name], own[name]) for name in report.matched}
    inner.load_state_dict(fitting, strict=False)
    log = logging.info if report.is_complete else logging.warning
    log(f"Weights from {path}: {report}")
    return report


def compare_weights(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> InitReport:
    """Compare a model's tensors with those of a file by name and shape."""
    common = [name for name in own if name in weights]
    matched = [name for name in common if own[name].shape == weights[name].shape]
    return InitReport(
        matched=tuple(matched),
        missing=tuple(name for name in own if name not in weights),
        unknown=tuple(name for name in weights if name not in own),
        reshaped=tuple(
            f"{name} {tuple(weights[name].shape)} instead of {tuple(own[name].shape)}"
            for name in common
            if own[name].shape != weights[name].shape
        ),
        num_matched_parameters=sum(own[name].numel() for name in matched),
        num_parameters=sum(value.numel() for value in own.values()),
    )


def _tensors(section: Mapping[Any, Any], path: str | Path) -> dict[str, Tensor]:
    """The section, in which everything must be a dense tensor with a name and with values."""
    for name, value in section.items():
        if not (isinstance(name, str) and isinstance(value, Tensor)):
            what = type(value).__name__
            raise ValueError(f"{path} has a {what} at {name!r} among its weights, not a tensor")
        if value.layout != torch.strided or value.is_meta or value.is_quantized:
            raise ValueError(
                f"{path} has a tensor at {name!r} that is sparse, quantized or empty of values "
                f"({value.layout}, {value.device}); expected plain numbers"
            )
    return dict(section)
