"""What an evaluation found, and how evaluation.json holds it."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import evaluation_likelihood
from evaluation_condition import Followed
from evaluation_likelihood import Scores
from evaluation_sounds import Sounds
from evaluation_subject import Subject, sha256
from evaluation_tables import Rows

from valle.utils.env import get_env_info
from valle.utils.run_record import shareable


@dataclass
class Evaluation:
    """What was found; a part that was not asked for is None."""

    settings: dict[str, Any]
    subject: Subject
    scores: Scores | None
    sounds: Sounds | None
    followed: Followed | None = None


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """The content of evaluation.json, in plain types; it names no person and no machine."""
    subject, sounds = evaluation.subject, evaluation.sounds
    settings = dict(evaluation.settings)
    facts: dict[str, Any] = {"environment": get_env_info(), "device": subject.device.type}
    content: dict[str, Any] = {"command": settings.pop("command"), "settings": settings}
    content["checkpoint"] = describe_checkpoint(subject)
    if evaluation.scores is not None:
        content["likelihood"] = evaluation_likelihood.as_json(evaluation.scores)
    if sounds is not None:
        facts["passages"] = sounds.stage.held.facts | {"names": sounds.stage.held.names}
        content["sounds"] = _plain(sounds.rows)
        content["separation"] = {key: _without_nan(row) for key, row in sounds.separation.items()}
        if sounds.gaps:
            content["gaps"] = _plain(sounds.gaps)
    if evaluation.followed is not None:
        stage = evaluation.followed.stage
        facts["passages"] = stage.held.facts | {"names": stage.held.names}
        facts["true_sound"] = "recordings" if stage.is_recorded else "decoded codes"
        content["condition"] = _plain(evaluation.followed.rows)
    return shareable(content | {"facts": facts})


def describe_checkpoint(subject: Subject) -> dict[str, Any]:
    """Which weights these are."""
    checkpoint = subject.checkpoint
    return {
        "path": subject.path,
        "sha256": sha256(subject.path),
        "epoch": checkpoint.get("cur_epoch"),
        "step": checkpoint.get("batch_idx_train"),
        "num_parameters": sum(p.numel() for p in subject.model.parameters()),
        "config": asdict(subject.model.config),
        "codec": checkpoint.get("codec"),
    }


def _plain(rows: Rows) -> dict[str, dict[str, list[float | None]]]:
    """Intervals as lists; None where there was nothing to measure, as JSON has no NaN."""
    return {
        name: {
            key: list(_without_nan(interval._asdict()).values()) for key, interval in row.items()
        }
        for name, row in rows.items()
    }


def _without_nan(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in values.items()}
