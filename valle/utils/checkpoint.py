"""Checkpoints in the layout that icefall recipes know.

One file holds a flat dict: ``model, optimizer, scheduler, grad_scaler, sampler``, perhaps
``model_avg``, and beside them every parameter of the run under its own name, so that the model can
be built anew from the file alone. Everything in it is a tensor or of a plain type, which is what
``torch.load`` takes by default (``weights_only=True``); nothing is ever unpickled.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from valle.utils.files import copy_whole, written_whole

RESERVED = ("model", "optimizer", "scheduler", "grad_scaler", "sampler", "model_avg")
_WRAPPERS = ("module.", "_orig_mod.")  # put before every name by DDP and by torch.compile


class Stateful(Protocol):
    """What an optimizer, a scheduler and a gradient scaler have in common."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any: ...


def save_checkpoint(
    filename: str | Path,
    model: nn.Module,
    params: Mapping[str, Any],
    optimizer: Stateful | None = None,
    scheduler: Stateful | None = None,
    scaler: Stateful | None = None,
    sampler_state: Mapping[str, Any] | None = None,
    model_avg: nn.Module | None = None,
) -> None:
    """Write the state of a run, whole or not at all. Call it on one rank only.

    Args:
        filename: Where to; folders are made.
        model: Saved without the wrappers of DDP and torch.compile.
        params: Everything else worth keeping, of plain types. Paths, dtypes and devices are
            stored as text, tuples as lists, numpy scalars as numbers.
        optimizer: Its state, as the next ones'.
        scheduler: Learning-rate schedule.
        scaler: Gradient scaler.
        sampler_state: Position in the data.
        model_avg: Running mean of the weights; stored as float32, left as it is.

    Raises:
        ValueError: A parameter has the name of a section, or is of a type that could not be
            loaded again.
        OSError: The file could not be written; nothing is left of it.
    """
    taken = sorted(set(RESERVED) & set(params))
    if taken:
        raise ValueError(f"parameters may not be called {', '.join(taken)}: sections are")
    states = {"optimizer": optimizer, "scheduler": scheduler, "grad_scaler": scaler}
    checkpoint: dict[str, Any] = {"model": _weights(model)}
    checkpoint |= {
        name: None if o is None else _plain(o.state_dict(), name) for name, o in states.items()
    }
    checkpoint["sampler"] = _plain(sampler_state, "sampler")
    if model_avg is not None:
        checkpoint["model_avg"] = {k: _as_float32(v) for k, v in _weights(model_avg).items()}
    checkpoint |= {str(key): _plain(value, str(key)) for key, value in params.items()}
    with written_whole(filename) as temporary:
        _write(checkpoint, temporary)


def load_checkpoint(
    filename: str | Path,
    model: nn.Module,
    optimizer: Stateful | None = None,
    scheduler: Stateful | None = None,
    scaler: Stateful | None = None,
    model_avg: nn.Module | None = None,
) -> dict[str, Any]:
    """Load a checkpoint strictly into what is given; what is not given is not looked at.

    Args:
        filename: A file of ``save_checkpoint`` (or of another trainer of this family, if it holds
            plain types only).
        model: Must have exactly the weights of the file.
        optimizer: Gets its state, as the next ones.
        scheduler: Learning-rate schedule.
        scaler: Gradient scaler; one that is disabled takes nothing, one whose state the file lacks
            (it was not needed there) starts afresh.
        model_avg: Running mean of the weights.

    Returns:
        All parameters, and ``sampler``: its state or None.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no checkpoint, or does not fit what is given.
    """
    checkpoint = read_checkpoint(filename)
    load_weights(model, checkpoint["model"], filename)
    if model_avg is not None:
        if "model_avg" not in checkpoint:
            raise ValueError(f"{filename} holds no model_avg; resume with --average-period 0")
        load_weights(model_avg, checkpoint["model_avg"], filename)
    for name, target in (("optimizer", optimizer), ("scheduler", scheduler)):
        if target is None:
            continue
        if not checkpoint.get(name):
            raise ValueError(f"{filename} holds no {name} state, so the run cannot go on from it")
        target.load_state_dict(checkpoint[name])
    if scaler is not None and checkpoint.get("grad_scaler"):
        scaler.load_state_dict(checkpoint["grad_scaler"])
    leftovers = {key: value for key, value in checkpoint.items() if key not in RESERVED}
    return leftovers | {"sampler": checkpoint.get("sampler")}


def read_checkpoint(filename: str | Path) -> dict[str, Any]:
    """Read a checkpoint into main memory, without building anything.

    Raises:
        FileNotFoundError: There is no such file; the message names those that are there.
        ValueError: It is cut short, or no checkpoint, or holds Python objects.
    """
    path = Path(filename)
    if not path.is_file():
        names = ", ".join(sorted(p.name for p in path.parent.glob("*.pt"))) or "none"
        raise FileNotFoundError(f"no checkpoint {path}; checkpoints in its folder: {names}")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # torch.load lets through whatever its readers meet
        raise ValueError(_why_unreadable(path, error)) from error
    _check_sections(path, checkpoint)
    return checkpoint


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], source: str | Path) -> None:
    """Load weights strictly; the names may carry the prefixes of DDP or torch.compile.

    Args:
        model: Gets the weights.
        weights: Name -> tensor.
        source: Where they come from, for the message.

    Raises:
        ValueError: Names or shapes differ; the message lists them.
    """
    inner = unwrap(model)
    own = inner.state_dict()
    weights = _without_wrappers(weights, own)
    report = [
        _listing("missing in the file", sorted(set(own) - set(weights))),
        _listing("unknown to the model", sorted(set(weights) - set(own))),
        _listing(
            "of another shape",
            [
                f"{k} {tuple(weights[k].shape)} instead of {tuple(own[k].shape)}"
                for k in own
                if k in weights and weights[k].shape != own[k].shape
            ],
        ),
    ]
    if any(report):
        raise ValueError(
            f"the weights of {source} do not fit the model: {'; '.join(filter(None, report))}. "
            "Build the model with the settings that the checkpoint holds"
        )
    inner.load_state_dict(weights)


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside the wrappers of DDP and torch.compile."""
    if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
        return unwrap(model.module)
    inner = getattr(model, "_orig_mod", None)
    return unwrap(inner) if isinstance(inner, nn.Module) else model


def copy_checkpoint(source: str | Path, target: str | Path) -> None:
    """Give a checkpoint a second name (best-valid-loss.pt), at no cost where links exist."""
    copy_whole(source, target)


def find_checkpoints(folder: str | Path, iteration: int = 0) -> list[Path]:
    """The files ``checkpoint-N.pt`` of a folder, newest (largest N) first.

    Args:
        folder: Where to look; ``epoch-N.pt`` and others are not listed.
        iteration: Only N >= iteration; if it is negative, only N <= -iteration.
    """
    numbered = [
        (checkpoint_number(path), path)
        for path in Path(folder).glob("checkpoint-*.pt")
        if re.fullmatch(r"checkpoint-\d+\.pt", path.name)
    ]
    return [
        path
        for number, path in sorted(numbered, reverse=True)
        if (number >= iteration if iteration >= 0 else number <= -iteration)
    ]


def checkpoint_number(path: Path) -> int:
    """N of a file ``checkpoint-N.pt``."""
    return int(path.stem.removeprefix("checkpoint-"))


def remove_checkpoints(
    folder: str | Path, keep_last_k: int, first: int = 0, last: int | None = None
) -> list[Path]:
    """Delete all but the newest ``keep_last_k`` files ``checkpoint-N.pt``.

    Args:
        folder: Where to look.
        keep_last_k: How many stay.
        first: Only files with N from here on are counted and deleted,
        last: and up to here: others in the folder may be of another run.

    Returns:
        What was deleted.

    Raises:
        ValueError: keep_last_k is below 1.
    """
    if keep_last_k < 1:
        raise ValueError(f"keep_last_k must be at least 1, got {keep_last_k}")
    own = find_checkpoints(folder, first)
    if last is not None:
        own = [path for path in own if checkpoint_number(path) <= last]
    old = own[keep_last_k:]
    for path in old:
        path.unlink(missing_ok=True)
    return old


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Name -> tensor of the bare model."""
    weights = unwrap(model).state_dict()
    for name, value in weights.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"the model's state has a {type(value).__name__} at {name!r}")
    return weights


def _as_float32(value: Tensor) -> Tensor:
    return value.to(torch.float32) if value.is_floating_point() else value


def _write(checkpoint: dict[str, Any], path: Path) -> None:
    try:
        with open(path, "wb") as file:
            torch.save(checkpoint, file)
    except RuntimeError as error:
        raise OSError(_first_line(_cause(error))) from error


def _cause(error: BaseException) -> BaseException:
    """The OSError that torch's writer buries under an "unexpected pos" when a disk is full."""
    earlier = error.__context__
    if isinstance(error, OSError) or earlier is None:
        return error
    return _cause(earlier)


def _plain(value: Any, where: str) -> Any:
    """The same value in types that torch.load accepts by default; ``where`` names it in errors."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, (int, float)):  # of a subclass (np.float64 is one) the plain number
        return int(value) if isinstance(value, int) else float(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, (Path, torch.device, torch.dtype)):
        return str(value)
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, Mapping):
        return {_plain_key(k, where): _plain(v, f"{where}.{k}") for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v, f"{where}[{i}]") for i, v in enumerate(value)]
    if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():
        return value.item()
    raise ValueError(
        f"{where} is a {type(value).__module__}.{type(value).__qualname__}, which a checkpoint "
        "cannot hold; make it a number, text, tensor, list or dict"
    )


def _plain_key(key: Any, where: str) -> str | int:
    if isinstance(key, (str, int)):
        return key
    raise ValueError(f"{where} has the key {key!r}; keys must be text or whole numbers")


def _why_unreadable(path: Path, error: Exception) -> str:
    python_object = re.search(r"GLOBAL (\S+)", str(error))
    if python_object:
        return (
            f"{path} holds the Python object {python_object[1]} and is not opened, since that can "
            "run code. If it is a checkpoint of icefall or VALL-E that you trust, convert it "
            "once: load it there and save it anew with its Path objects as text"
        )
    return (
        f"{path} ({path.stat().st_size:,} bytes) cannot be read as a checkpoint: it was cut short "
        f"or is another kind of file. Take an earlier checkpoint. ({_first_line(error)})"
    )


def _check_sections(path: Path, checkpoint: Any) -> None:
    """Raise ValueError unless it is a dict with a model of tensors in it."""
    if not isinstance(checkpoint, dict):
        raise ValueError(f"{path} holds a {type(checkpoint).__name__}, expected a checkpoint dict")
    model = checkpoint.get("model")
    if not isinstance(model, dict) or not model:
        keys = ", ".join(map(str, list(checkpoint)[:5])) or "nothing"
        raise ValueError(
            f"{path} has no section 'model' with weights in it (it begins with: {keys}); bare "
            "weights go into one as {'model': weights}"
        )


def _without_wrappers(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Any]:
    """Strip wrapper prefixes that all names have and the model's own names have not."""
    names = list(weights)
    for _ in _WRAPPERS:
        for prefix in _WRAPPERS:
            foreign = not any(name.startswith(prefix) for name in own)
            if foreign and all(name.startswith(prefix) for name in names):
                names = [name.removeprefix(prefix) for name in names]
    return dict(zip(names, weights.values(), strict=True))


def _listing(what: str, names: list[str]) -> str:
    if not names:
        return ""
    shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
    return f"{len(names)} {what} ({shown})"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
