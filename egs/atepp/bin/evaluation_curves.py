"""Curves of an evaluation. matplotlib is an extra and imported where it draws."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from valle.evaluation import Likelihood
from valle.utils.events import Point, read_scalars
from valle.utils.plot import import_pyplot

VALIDATION, TRAINING = "train/valid_loss_q", "train/tot_loss_q"


def loss_curves(folder: Path) -> dict[str, list[Point]]:
    """Losses of each quantizer in a folder of tensorboard's events; nothing where there is none."""
    scalars = read_scalars(folder)
    return {tag: scalars[tag] for tag in sorted(scalars) if tag.startswith((VALIDATION, TRAINING))}


def draw_training(curves: Mapping[str, Sequence[Point]]) -> Any:
    """Validation loss of each quantizer over steps, and training loss as a dotted line."""
    figure, axis = _new_axis()
    for tag, points in curves.items():
        is_validation = tag.startswith(VALIDATION)
        q = int(tag.removeprefix(VALIDATION if is_validation else TRAINING))
        steps, values = zip(*points, strict=True)
        if is_validation:
            axis.plot(steps, values, ".-", color=f"C{q}", label=f"q{q}")
        else:
            axis.plot(steps, values, ":", color=f"C{q}", linewidth=1)
    axis.set(xlabel="steps", ylabel="nats a frame")
    return _finished(figure, axis)


def draw_likelihood(found: Mapping[float, Likelihood], xlabel: str) -> Any:
    """Nats a frame of each quantizer, over what the keys say in seconds."""
    figure, axis = _new_axis()
    seconds = list(found)
    for q in range(len(found[seconds[0]].nats)):
        nats = [likelihood.nats[q] for likelihood in found.values()]
        axis.plot(seconds, nats, ".-", color=f"C{q + 1}", label=f"q{q + 1}")
    axis.set(xlabel=xlabel, ylabel="nats a frame")
    return _finished(figure, axis)


def _new_axis() -> tuple[Any, Any]:
    """Small enough that its words can be read on a telephone."""
    return import_pyplot().subplots(figsize=(6.6, 3.2))


def _finished(figure: Any, axis: Any) -> Any:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color="#eee")
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=8, frameon=False)
    figure.tight_layout()
    return figure
