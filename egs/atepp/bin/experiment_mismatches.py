"""Which settings of several experiments differ, and which of their figures do not compare."""

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from experiment_folder import Experiment
from run_settings import as_text

from valle.models import model_class


def differing_settings(experiments: Sequence[Experiment]) -> tuple[str, ...]:
    """Names of the settings that are not the same everywhere.

    A setting that an older program did not have yet, or a newer one has no more, is no difference.
    """
    values: dict[str, set[Any]] = {}
    for experiment in experiments:
        for name, value in experiment.settings.items():
            values.setdefault(name, set()).add(value)
    return tuple(name for name, different in values.items() if len(different) > 1)


def mismatches(experiments: Sequence[Experiment]) -> Iterator[str]:
    """Why some figures do not compare, a sentence each."""
    for split in ("train", "validation"):
        what = f"the {split} tokens were made by different codecs, so nats do not compare"
        yield from _warning(experiments, partial(_codec, split), what)
    yield from _warning(experiments, partial(_cuts, "train"), "trained on different cuts")
    what = "validated on different cuts, so validation losses compare roughly at best"
    yield from _warning(experiments, partial(_cuts, "validation"), what)
    for name in ("model-name", "condition", "prefix-mode", "train-stage", "prompt-ratio"):
        what = f"validated with another --{name}, so validation losses do not compare"
        yield from _warning(experiments, partial(_setting, name), what)
    what = "the likelihoods are of different held-out frames, so their nats do not compare"
    yield from _warning(experiments, _scored_frames, what)
    what = "the evaluations are of different passages, so their figures of sound do not compare"
    yield from _warning(experiments, _passages, what, told=False)


def _warning(
    experiments: Sequence[Experiment],
    fact: Callable[[Experiment], str | None],
    what: str,
    told: bool = True,
) -> Iterator[str]:
    """A sentence if a fact differs among those folders that know it, with all values if `told`."""
    groups: dict[str, list[str]] = {}
    for experiment in experiments:
        if value := fact(experiment):
            groups.setdefault(value, []).append(experiment.name)
    if len(groups) > 1:
        parts = [(f"{v} in " if told else "") + ", ".join(names) for v, names in groups.items()]
        yield f"{what}: {'; '.join(parts)}"


def _codec(split: str, experiment: Experiment) -> str | None:
    codec = experiment.data.get(split, {}).get("codec")
    return codec and f"{codec.get('name')} ({codec.get('fingerprint')})"


def _cuts(split: str, experiment: Experiment) -> str | None:
    facts = experiment.data.get(split, {})
    return f"{facts['cuts']} ({facts.get('frames', 'unknown')} frames)" if "cuts" in facts else None


def _setting(name: str, experiment: Experiment) -> str | None:
    value = experiment.settings.get(name)
    if name == "model-name" and value is not None:  # VALL-E and valle are one model
        return model_class(str(value)).__name__
    return None if value is None else as_text(value)


def _scored_frames(experiment: Experiment) -> str | None:
    num_frames = experiment.likelihood.get("num_frames")
    return None if num_frames is None else f"{num_frames} frames"


def _passages(experiment: Experiment) -> str | None:
    return json.dumps(experiment.passages, sort_keys=True) if experiment.passages else None
