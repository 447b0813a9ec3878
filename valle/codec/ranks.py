"""Sums over all ranks inside a loss, so that N ranks compute what one would on the whole batch.

In a world of one every function here gives back what it was given.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from valle.utils.dist import get_rank, get_world_size


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # every rank has this loss, and the mean over ranks is taken of its gradients: the share
        # that lies here would count 1 / world_size otherwise
        return gradient * get_world_size()


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of what each rank passed; a gradient flows into one's own part. Collective.

    What is computed from the sum must be the same on all ranks.
    """
    if get_world_size() == 1:
        return values
    return _Sum.apply(values)


def mean_over_ranks(values: Tensor) -> Tensor:
    """The mean of what each rank passed, without gradient. Collective."""
    return sum_over_ranks(values.detach()) / get_world_size()


def variance_over_ranks(rows: Tensor) -> Tensor:
    """Unbiased variance of each column of rows (N, D), over the rows of all ranks: (D,)."""
    count = rows.shape[0] * get_world_size()
    mean = sum_over_ranks(rows.detach().sum(dim=0)) / count  # where it moves, nothing changes
    return sum_over_ranks((rows - mean).square().sum(dim=0)) / (count - 1)


def gather_rows(rows: Tensor) -> Tensor:
    """The rows (N, ...) of all ranks, in their order: (N * ranks, ...). Collective.

    Each must pass as many; without gradient.
    """
    if get_world_size() == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(get_world_size())]
    dist.all_gather(parts, rows.detach().contiguous())
    return torch.cat(parts)


def own_rows(rows: Tensor) -> Tensor:
    """This rank's part of rows (N * ranks, ...) that every rank has: (N, ...)."""
    return rows.chunk(get_world_size())[get_rank()]


def exchange_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace gradients by their mean over ranks. Collective.

    One exchange for all: a codec is small, and its losses want the whole backward pass anyway.
    """
    grads = [p.grad for p in parameters if p.grad is not None]
    if get_world_size() == 1 or not grads:
        return
    flat = torch.cat([grad.flatten() for grad in grads])
    dist.all_reduce(flat)
    flat /= get_world_size()
    for grad, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
        grad.copy_(part.view_as(grad))


@torch.no_grad()
def same_on_all_ranks(module: nn.Module) -> None:
    """Give every rank the weights and buffers of rank 0. Collective."""
    if get_world_size() > 1:
        for tensor in module.state_dict().values():
            dist.broadcast(tensor, src=0)
