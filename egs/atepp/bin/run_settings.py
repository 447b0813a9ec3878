"""Which of a run's parameters say how it was made: those that somebody chose."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from valle.utils.run_record import anonymous

# They count, tell where things lie or on what they ran; a record and a checkpoint hold them too.
NO_SETTINGS = frozenset(
    {
        "batch_idx_train",
        "batch_idx_epoch",
        "first_batch",
        "first_epoch",
        "cur_epoch",
        "train_loss",
        "best_train_loss",
        "best_valid_loss",
        "best_train_epoch",
        "best_valid_epoch",
        "num_skipped",
        "skipped_in_row",
        "validation_due",
        "env_info",
        "codec",
        "exp_dir",
        "master_port",
        "start_epoch",
        "start_batch",
        "resume",
    }
)


def settings_of(params: Mapping[str, Any]) -> dict[str, Any]:
    """The settings among the parameters of a run, of its record or of its checkpoint.

    Returns:
      Name, as on the command line without the first dashes -> number, text that names no home
      folder, truth value or None.
    """
    hide = anonymous()  # as in the record: tensorboard's files are passed on, too
    plain = {
        name: hide(str(value)) if isinstance(value, (str, Path)) else value
        for name, value in params.items()
    }
    return {
        name.replace("_", "-"): value
        for name, value in sorted(plain.items())
        if name not in NO_SETTINGS and (value is None or isinstance(value, (bool, int, float, str)))
    }


def as_text(value: bool | int | float | str) -> str:
    """A setting as it is written on the command line."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def events_folder(exp_dir: Path, train_stage: int) -> Path:
    """Where a run of that stage has its tensorboard."""
    return exp_dir / ("tensorboard" if train_stage == 0 else f"tensorboard_stage{train_stage}")
