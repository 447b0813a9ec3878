"""Checkpoints in the layout that icefall recipes know.

One file holds a flat dict: ``model, optimizer, scheduler, grad_scaler, sampler``, perhaps
``model_avg``, and beside them every parameter of the run under its own name, so that the model can
be built anew from the file alone. Everything in it is a tensor or of a plain type, which is what
``torch.load`` takes by default (``weights_only=True``); nothing is ever unpickled.

The tensors in a file are whole, whoever wrote it: a run whose weights are shared out among ranks
(``valle.utils.sharding``) gathers them for the file, and takes its parts from it.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from valle.utils.files import copy_whole, written_whole
from valle.utils.sharding import holds_shards, on_main_with_whole, shard_like, shard_state

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
    model_avg: Mapping[str, Tensor] | None = None,
) -> None:
    """Write the state of a run, whole or not at all.

    Call it on one rank only; of a sharded model on every rank, in the same order as other
    exchanges. Rank 0 alone then gathers and writes, while the others wait for how it ends: all
    return, or all raise. What is not of a sharded tensor is taken from rank 0.

    Args:
        filename: Where to; folders are made.
        model: Saved without the wrappers of DDP and torch.compile.
        params: Everything else worth keeping, of plain types. Paths, dtypes and devices are
            stored as text, tuples as lists, numpy scalars as numbers.
        optimizer: Its state, as the next ones'.
        scheduler: Learning-rate schedule.
        scaler: Gradient scaler.
        sampler_state: Position in the data.
        model_avg: Mean of the weights, by the names of ``model``; kept in its own type.

    Raises:
        ValueError: A parameter has the name of a section, or is of a type that could not be
            loaded again.
        OSError: The file could not be written; nothing is left of it.
    """
    objects = {"optimizer": optimizer, "scheduler": scheduler, "grad_scaler": scaler}
    states: dict[str, Any] = {"model": _weights(model)}
    states |= {name: None if o is None else o.state_dict() for name, o in objects.items()}
    states["sampler"] = sampler_state
    if model_avg is not None:
        states["model_avg"] = dict(model_avg)

    def write(whole: dict[str, Any]) -> None:
        _write_sections(filename, whole, params)

    if holds_shards(model):
        on_main_with_whole(states, write, next(model.parameters()).device)
    else:
        write(states)


def load_checkpoint(
    filename: str | Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    scheduler: Stateful | None = None,
    scaler: Stateful | None = None,
    model_avg: dict[str, Tensor] | None = None,
) -> dict[str, Any]:
    """Load a checkpoint strictly into what is given; what is not given is not looked at.

    Of a sharded model, call it on every rank: each reads its part of the file.

    Args:
        filename: A file of ``save_checkpoint`` (or of another trainer of this family, if it holds
            plain types only).
        model: Must have exactly the weights of the file.
        optimizer: Gets its state, as the next ones; that of a sharded model is sharded alike.
        scheduler: Learning-rate schedule.
        scaler: Gradient scaler; one that is disabled takes nothing, one whose state the file lacks
            (it was not needed there) starts afresh.
        model_avg: Mean of the weights; the tensors are written in place, in their own type.

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
        _load_average(model_avg, checkpoint["model_avg"], filename)
    if optimizer is not None:
        state = _section(checkpoint, "optimizer", filename)
        optimizer.load_state_dict(shard_state(state, optimizer))
    if scheduler is not None:
        scheduler.load_state_dict(_section(checkpoint, "scheduler", filename))
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
        model: Gets the weights; if it is sharded, each rank its part of them.
        weights: Name -> whole tensor.
        source: Where they come from, for the message.

    Raises:
        ValueError: Names or shapes differ; the message lists them.
    """
    inner = unwrap(model)
    own = inner.state_dict()
    fitting = _fitting(weights, own, source)
    inner.load_state_dict({name: shard_like(fitting[name], own[name]) for name in own})


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


@torch.no_grad()
def _load_average(average: dict[str, Tensor], saved: Mapping[str, Tensor], source: Any) -> None:
    """Copy a saved mean of weights into the tensors that keep it now."""
    for name, value in _fitting(saved, average, source).items():
        average[name].copy_(shard_like(value, average[name]))


def _fitting(
    weights: Mapping[str, Tensor], own: Mapping[str, Tensor], source: Any
) -> dict[str, Tensor]:
    """The weights under the names of our own; ValueError unless names and shapes are alike."""
    weights = without_wrappers(weights, own)
    report = [
        listing("missing in the file", sorted(set(own) - set(weights))),
        listing("unknown to the model", sorted(set(weights) - set(own))),
        listing(
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
    return weights


def _section(checkpoint: dict[str, Any], name: str, source: Any) -> dict[str, Any]:
    """The state of that name, which must be there."""
    if not checkpoint.get(name):
        raise ValueError(f"{source} holds no {name} state, so the run cannot go on from it")
    return checkpoint[name]


def _write_sections(
    filename: str | Path, states: dict[str, Any], params: Mapping[str, Any]
) -> None:
    """Write states, of which all tensors are whole, and parameters as one flat dict."""
    taken = sorted(set(RESERVED) & set(params))
    if taken:
        raise ValueError(f"parameters may not be called {', '.join(taken)}: sections are")
    plain = {name: _plain(state, name) for name, state in states.items() if name != "model"}
    checkpoint = {"model": states["model"]} | plain
    checkpoint |= {str(key): _plain(value, str(key)) for key, value in params.items()}
    with written_whole(filename) as temporary:
        _write(checkpoint, temporary)


def _write(checkpoint: dict[str, Any], path: Path) -> None:
    try:
        with open(path, "wb") as file:
            torch.save(checkpoint, file)
    except RuntimeError as error:
        raise OSError(first_line(_cause(error))) from error


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
        f"or is another kind of file. Take an earlier checkpoint. ({first_line(error)})"
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


def without_wrappers(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Any]:
    """Strip wrapper prefixes that all names have and the model's own names have not."""
    names = list(weights)
    for _ in _WRAPPERS:
        for prefix in _WRAPPERS:
            foreign = not any(name.startswith(prefix) for name in own)
            if foreign and all(name.startswith(prefix) for name in names):
                names = [name.removeprefix(prefix) for name in names]
    return dict(zip(names, weights.values(), strict=True))


def listing(what: str, names: list[str]) -> str:
    """How many names there are and the first of them, for a message; empty if there are none."""
    if not names:
        return ""
    shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
    return f"{len(names)} {what} ({shown})"


def first_line(error: BaseException) -> str:
    """What an error says in its first line, or its kind where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]
