"""What an experiment folder tells of its run: how it was made, and how good it became."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from run_settings import events_folder, settings_of

from valle.utils.checkpoint import read_checkpoint
from valle.utils.events import Point, read_scalars

EVALUATION = Path("evaluation/evaluation.json")
BEST = "best-valid-loss.pt"
GENERATED, TRUE = "generated", "true"  # rows of an evaluation
_LOSS = "train/valid_loss"


@dataclass(frozen=True)
class Experiment:
    """A folder of `--exp-dir`; of several runs in it the newest.

    Attributes:
      name: For tables.
      settings: By `run_settings.settings_of`.
      data: Split -> what the run's record says of it: `cuts`, `frames`, `codec`.
      steps: Updates until its last validation.
      best_step: The one after which the loss was lowest.
      losses: At that step: `loss`, and where tensorboard's events are there `loss_q1` to Q.
      curve: The validation loss over steps.
      likelihood: Of `evaluation.json`, overall: `nats` and `top1`, a number for each quantizer, and
        `num_frames`.
      sounds: Of `evaluation.json`: row -> measure -> mean, low, high, number of recordings.
      passages: What these are of: names and seconds; empty where the file does not tell.
    """

    name: str
    settings: dict[str, Any]
    data: dict[str, Any]
    steps: int | None
    best_step: int | None
    losses: dict[str, float]
    curve: list[Point]
    likelihood: dict[str, list[float]]
    sounds: dict[str, dict[str, list[float | None]]]
    passages: dict[str, Any]

    @property
    def num_quantizers(self) -> int:
        """That some figure is known of."""
        losses = sum(name.startswith("loss_q") for name in self.losses)
        return max(losses, len(self.likelihood.get("nats", [])))


def read_experiment(folder: Path, name: str) -> Experiment:
    """Read all that is there; what is not stays empty.

    Raises:
      ValueError: No such folder, nothing of a run in it, or a file that is damaged.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no experiment folder {folder}")
    record, evaluation = newest_record(folder), read_json(folder / EVALUATION)
    file = best_checkpoint(folder)
    checkpoint = read_checkpoint(file) if file else {}
    params = record.get("parameters") or checkpoint
    settings = settings_of(params)
    scalars = read_scalars(events_folder(folder, settings.get("train-stage") or 0))
    if not (params or scalars or evaluation):
        raise ValueError(
            f"{folder} holds no run-*.json, no {BEST} or epoch-N.pt, no tensorboard and no "
            f"{EVALUATION}: give folders that trainer_audiolm.py had as --exp-dir"
        )
    codec = {"codec": checkpoint["codec"]} if checkpoint.get("codec") else {}
    best = best_of_events(scalars) or best_of_checkpoint(checkpoint, file)
    return Experiment(
        name=name,
        settings=settings,
        data=record.get("data") or {"train": codec, "validation": codec},
        steps=max((point.step for point in scalars.get(_LOSS, [])), default=best[0]),
        best_step=best[0],
        losses=best[1],
        curve=scalars.get(_LOSS, []),
        likelihood=likelihood_of(evaluation, folder / EVALUATION),
        sounds=evaluation.get("sounds", {}),
        passages=passages_of(evaluation),
    )


def likelihood_of(evaluation: Mapping[str, Any], path: Path) -> dict[str, list[float]]:
    """Of all frames.

    Raises:
      ValueError: Figures that are no numbers, as a model with NaN once had them.
    """
    overall = evaluation.get("likelihood", {}).get("overall", {})
    for name in ("nats", "top1"):
        if not all(isinstance(value, int | float) for value in overall.get(name, [])):
            raise ValueError(
                f"{path} has {name} of {overall[name]}, expected numbers: run evaluate.py again"
            )
    return overall


def passages_of(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """What the sounds are of, where they are known by name."""
    names = evaluation.get("facts", {}).get("passages", {}).get("names")
    settings = evaluation.get("settings", {})
    seconds = {name: settings.get(name) for name in ("prompt_duration", "max_duration")}
    return {"names": names} | seconds if names else {}


def newest_record(folder: Path) -> dict[str, Any]:
    """The newest `run-*.json`; empty if there is none."""
    found = [(read_json(path), len(path.name)) for path in folder.glob("run-*.json")]
    # of two starts in one second the later has a number behind its name
    newest = max(found, key=lambda pair: (pair[0].get("started", ""), pair[1]), default=({}, 0))
    return newest[0]


def best_checkpoint(folder: Path) -> Path | None:
    """The best checkpoint, or that of the last epoch, or none."""
    epochs = sorted(folder.glob("epoch-*.pt"), key=lambda path: (len(path.name), path.name))
    return next((path for path in (folder / BEST, *epochs[::-1]) if path.is_file()), None)


def read_json(path: Path) -> dict[str, Any]:
    """An object in a file; empty if there is no such file.

    Raises:
      ValueError: The file is damaged, or holds something else.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged, expected JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected a JSON object")
    return content


def best_of_events(
    scalars: Mapping[str, list[Point]],
) -> tuple[int | None, dict[str, float]] | None:
    """The step of the lowest validation loss, and the losses there."""
    finite = [point for point in scalars.get(_LOSS, []) if math.isfinite(point.value)]
    if not finite:
        return None
    step = min(finite, key=lambda point: point.value).step
    losses = {
        tag.removeprefix("train/valid_"): point.value
        for tag, points in sorted(scalars.items())
        for point in points
        if (tag == _LOSS or tag.startswith(f"{_LOSS}_q")) and point.step == step
    }
    return step, losses


def best_of_checkpoint(
    checkpoint: Mapping[str, Any], file: Path | None
) -> tuple[int | None, dict[str, float]]:
    """The same of a run without events; a checkpoint of an epoch does not know the step."""
    loss = checkpoint.get("best_valid_loss", math.inf)
    if not math.isfinite(loss):
        return None, {}
    is_best = file is not None and file.name == BEST
    return checkpoint.get("batch_idx_train") if is_best else None, {"loss": loss}
