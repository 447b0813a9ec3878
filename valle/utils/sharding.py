"""Models that are too large for one device: every rank holds a part of each tensor (FSDP2).

A tensor that is shared out so is a ``DTensor``, here called sharded: it is cut along its first
dimension into parts of one length, of which the last may be shorter or empty. Rank r holds part r.
``shape`` and ``numel`` of a sharded tensor are those of the whole.

What is said to be collective must be called on every rank, in the same order, or all of them wait.
"""

import copy
import math
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from valle.utils.dist import get_world_size, is_main

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor
    from typing_extensions import TypeIs

# What optimizers keep for each element of a tensor: AdamW's two means, and ScaledAdam's.
PER_ELEMENT_STATE = frozenset({"exp_avg", "exp_avg_sq", "moment", "second_moment"})

_MESSAGE_BYTES = 1024
_KINDS = (OSError, ValueError, RuntimeError)  # of errors that one rank can tell the others of


def shard(model: nn.Module, layers: Iterable[nn.Module], device: torch.device) -> None:
    """Leave each rank a part of every weight, from here on. Collective.

    Before a layer runs, its weights are gathered from all ranks, and let go afterwards; the rest
    of the model (root) is gathered while the model runs. Gradients are summed into the parts and
    divided by the number of ranks, as DDP does. The type of the weights does not change: run the
    model under autocast.

    The model is changed in place. Its weights move to ``device`` a layer at a time, so that a
    model which was built on the CPU never needs room for all of them there. Build the optimizer
    afterwards, from the parameters the model has then. In a step, a parameter must have a gradient
    on every rank or on none.

    Args:
        model: Has the same weights on every rank, and is called by its forward alone.
        layers: Those parts of it that hold most of the weights, and whose weights nobody reads but
            their own forward.
        device: Where this rank computes.

    Raises:
        ValueError: This process is not one of a job, or a layer is no part of the model.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    layers = list(layers)
    if not dist.is_initialized():
        raise ValueError(
            "weights are shared out among the processes of a job, but this process is alone; "
            "start several (torchrun), or leave --fsdp out"
        )
    strangers = {id(layer) for layer in layers} - {id(module) for module in model.modules()}
    if strangers:
        raise ValueError(f"{len(strangers)} of {len(layers)} layers are no part of the model")
    mesh = init_device_mesh(device.type, (get_world_size(),))
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    model.register_forward_hook(_let_go)


def is_sharded(value: object) -> "TypeIs[DTensor]":
    """Whether it is a tensor of which this rank holds a part."""
    # there are none before their package was imported, which takes a good part of a second
    package = sys.modules.get("torch.distributed.tensor")
    return package is not None and isinstance(value, package.DTensor)


def holds_shards(model: nn.Module) -> bool:
    """Whether the model was sharded."""
    return any(is_sharded(p) for p in model.parameters())


# Parts


def local_part(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor, sharing its memory; all of it if it is not sharded."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def max_part_numel(tensor: Tensor) -> int:
    """Elements of the largest part that a rank holds; the same number on every rank."""
    if not is_sharded(tensor):
        return tensor.numel()
    length, num_ranks = tensor.shape[0], tensor.device_mesh.size()
    return math.ceil(length / num_ranks) * (tensor.numel() // max(length, 1))


def part_of(whole: Tensor, like: "DTensor") -> Tensor:
    """This rank's part of a whole tensor, as a copy on the device of ``like``.

    Only the part is read, so a tensor mapped from a file costs no more than that.

    Args:
        whole: Of the shape of ``like``, on every rank alike.
        like: The sharded tensor that the part is meant for.

    Raises:
        ValueError: The shapes differ.
    """
    if whole.shape != like.shape:
        raise ValueError(
            f"a tensor of shape {tuple(whole.shape)} cannot be shared out like one of "
            f"{tuple(like.shape)}; take the file of a model with the same settings"
        )
    check_layout(like)
    length = math.ceil(whole.shape[0] / like.device_mesh.size())
    start = min(like.device_mesh.get_local_rank() * length, whole.shape[0])
    return whole[start : start + length].to(like.device, copy=True)


def from_part(part: Tensor, like: "DTensor") -> "DTensor":
    """The sharded tensor of which every rank holds ``part``; shaped like another one."""
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        part, like.device_mesh, like.placements, shape=like.shape, stride=like.stride()
    )


def shard_like(whole: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, sharded as ``like`` is; as it came if that is not sharded, or it is itself.

    Raises:
        ValueError: The shapes differ.
    """
    if not is_sharded(like) or is_sharded(whole):
        return whole
    return from_part(part_of(whole, like), like)


def shard_state(state_dict: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Whole state of an optimizer, as a file holds it, sharded like the optimizer's parameters.

    A state of other groups of parameters comes back as it is, for the optimizer to refuse.

    Raises:
        ValueError: A tensor has not the shape of its parameter.
    """
    saved_groups, groups = state_dict["param_groups"], optimizer.param_groups
    if [len(g["params"]) for g in saved_groups] != [len(g["params"]) for g in groups]:
        return state_dict
    ids = [i for group in saved_groups for i in group["params"]]
    params = [p for group in groups for p in group["params"]]
    state = dict(state_dict["state"])
    for i, p in zip(ids, params, strict=True):
        if i in state and is_sharded(p):
            state[i] = {
                name: shard_like(value, p) if name in PER_ELEMENT_STATE else value
                for name, value in state[i].items()
            }
    return state_dict | {"state": state}


def check_layout(tensor: "DTensor") -> None:
    """Raise ValueError unless it is cut as ``shard`` cuts."""
    placements = tensor.placements
    if len(placements) != 1 or not placements[0].is_shard(dim=0):
        raise ValueError(
            f"tensors must be cut along their first dimension, among all ranks; got one laid out "
            f"as {placements} over {tensor.device_mesh}: use valle.utils.sharding.shard"
        )


# Exchanges


def sum_over_ranks(values: Tensor, like: "DTensor") -> Tensor:
    """Replace values by their sums over the ranks that share ``like``, and return them. Collective.

    The host does not wait for the device.
    """
    dist.all_reduce(values, group=like.device_mesh.get_group())
    return values


def whole_tensors(values: Any, keep: bool) -> Any:
    """Gather every sharded tensor in nested dicts and lists, one at a time. Collective.

    Args:
        values: The same on every rank, but for what the tensors hold.
        keep: Whether this rank wants them. A rank that does not needs room for one of them only.

    Returns:
        A copy of the dicts and lists with whole tensors on the CPU in the place of sharded ones;
        None in their place if they are not kept.

    Raises:
        RuntimeError, MemoryError: This rank has no room for them, said after the last exchange.
    """
    gatherer = _Gatherer(keep)
    result = gatherer.gather(values)
    gatherer.check()
    return result


def on_main_with_whole(values: Any, action: Callable[[Any], None], device: torch.device) -> None:
    """Gather sharded tensors for rank 0, which does something with the whole ones. Collective.

    Args:
        values: As in ``whole_tensors``.
        action: Gets them, as in ``on_main``.
        device: Where this rank computes.

    Raises:
        Exception: As in ``on_main``, also where rank 0 has no room for the whole tensors.
    """
    gatherer = _Gatherer(keep=is_main())
    whole = gatherer.gather(values)

    def act() -> None:
        gatherer.check()
        action(whole)

    on_main(act, device)


class _Gatherer:
    """Goes on with its part in the exchanges when it cannot keep what comes."""

    def __init__(self, keep: bool):
        self.keep = keep
        self.error: Exception | None = None

    def check(self) -> None:
        """Raise what hindered it."""
        if self.error is not None:
            raise self.error

    def gather(self, value: Any) -> Any:
        """The value with whole tensors, or None for each that is not kept."""
        if is_sharded(value):
            return self._gather_one(value)
        if isinstance(value, dict):
            result = copy.copy(value)  # with the versions that a model's state carries
            for key, inner in value.items():
                result[key] = self.gather(inner)
            return result
        return [self.gather(inner) for inner in value] if isinstance(value, list) else value

    def _gather_one(self, tensor: "DTensor") -> Tensor | None:
        whole = tensor.full_tensor().detach()
        if not self.keep or self.error is not None:
            return None
        try:
            return whole.cpu()
        except (RuntimeError, MemoryError) as error:
            self.error = error
            return None


def on_main(action: Callable[[], None], device: torch.device) -> None:
    """Do something on rank 0 while the others wait; all learn how it ended. Collective.

    Args:
        action: Must not exchange anything with the others.
        device: Where this rank computes.

    Raises:
        Exception: What it raised, on rank 0; on the others an OSError, ValueError or
            RuntimeError with the same message.
    """
    error: Exception | None = None
    if is_main():
        try:
            action()
        except Exception as caught:
            error = caught
    told = torch.tensor(list(_encode(error)), dtype=torch.uint8).to(device)
    dist.broadcast(told, src=0)
    if error is not None:
        raise error
    if (there := _decode(bytes(told.tolist()))) is not None:
        raise there


def _encode(error: Exception | None) -> bytes:
    """A message of fixed length: one byte for the kind of error, counted from 1, then its text."""
    if error is None:
        return bytes(_MESSAGE_BYTES)
    kinds = [i for i, kind in enumerate(_KINDS, start=1) if isinstance(error, kind)]
    text = f"{error or type(error).__name__}".encode()[: _MESSAGE_BYTES - 1]
    return (bytes([kinds[0] if kinds else len(_KINDS)]) + text).ljust(_MESSAGE_BYTES, b"\0")


def _decode(message: bytes) -> Exception | None:
    if not message[0]:
        return None
    text = message[1:].rstrip(b"\0").decode(errors="replace")
    return _KINDS[message[0] - 1](f"on rank 0: {text}")


def _let_go(model: nn.Module, *_: object) -> None:
    """Part with the root's weights after a forward that no backward follows, as a validation's.

    A forward keeps them for its backward. They would stay, in the place of the sharded ones.
    """
    if not torch.is_grad_enabled():
        cast("FSDPModule", model).reshard()
