"""Tensors that ScaledAdam moves together, and what sharded ones come to as wholes.

Letters: t steps that a tensor has taken, n tensors stacked in one bucket.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from valle.utils.sharding import is_sharded, local_part, sum_over_ranks


@dataclass
class RankSums:
    """What sharded tensors come to as wholes, each (n,), the same on every rank.

    Attributes:
        grad_norms: Norms of the gradients as they came.
        scale_grads: Dot products of tensor and gradient as it came; not of one-element tensors.
        mean_squares: Of the weights, in the steps that need them.
    """

    grad_norms: Tensor
    scale_grads: Tensor
    mean_squares: Tensor


@dataclass
class Bucket:
    """Tensors of one device, dtype, shape and step count, whose state is kept stacked.

    Attributes:
        params: The n tensors, each of which has a part (*shape) here: all of it, if not sharded.
        rows: State by name, row i for tensor i; ``optimizer.state[p]`` holds views of these rows.
        step: t of all of them.
        sums: Of the step under way, if the tensors are sharded.
    """

    params: list[Tensor]
    rows: dict[str, Tensor]
    step: int
    sums: RankSums | None = None

    @property
    def holds_scalars(self) -> bool:
        return self.params[0].numel() == 1

    @property
    def weights(self) -> list[Tensor]:
        """The n parts that lie here; their memory is the tensors' own."""
        return [local_part(p) for p in self.params]

    @property
    def grads(self) -> list[Tensor]:
        """The n parts of the gradients."""
        return [local_part(p.grad) for p in self.params if p.grad is not None]

    def per_row(self, values: Tensor) -> Tensor:
        """(n,) -> (n, 1, ..., 1), to be multiplied with stacked tensors."""
        return values.view(-1, *[1] * self.params[0].dim())


def refreshes_sizes(group: dict[str, Any], bucket: Bucket) -> bool:
    """Whether this step measures the sizes of the bucket's tensors and lets them grow."""
    period = group["size_update_period"]
    return not bucket.holds_scalars and bucket.step % period == period - 1


def sum_sharded(filled: list[tuple[dict[str, Any], list[Bucket]]]) -> None:
    """Set the ``sums`` of all buckets of sharded tensors, by one exchange for all groups."""
    sharded = [
        (bucket, refreshes_sizes(group, bucket))
        for group, buckets in filled
        for bucket in buckets
        if is_sharded(bucket.params[0])
    ]
    if not sharded:
        return
    parts = torch.cat([_sums_of_parts(*each) for each in sharded], dim=1)
    like = sharded[0][0].params[0]
    assert is_sharded(like)
    totals = sum_over_ranks(parts, like)
    sizes = [len(bucket.params) for bucket, _ in sharded]
    for (bucket, _), sums in zip(sharded, totals.split(sizes, dim=1), strict=True):
        squares, scale_grads, squared_weights = sums
        dtype = bucket.params[0].dtype
        bucket.sums = RankSums(
            grad_norms=squares.sqrt().to(dtype),
            scale_grads=scale_grads.to(dtype),
            mean_squares=(squared_weights / bucket.params[0].numel()).to(dtype),
        )


def _sums_of_parts(bucket: Bucket, with_sizes: bool) -> Tensor:
    """What this rank adds to the sums over whole tensors.

    Returns:
        (3, n) float64: squared norms of the gradients, dot products of weights and gradients, and
        squared norms of the weights (0 where these are not asked for).
    """
    grads = bucket.grads
    norms = torch.stack(torch._foreach_norm(grads)).double()
    # in float64, where the squares of float32 numbers neither vanish nor overflow
    sums = torch.stack([norms.square(), torch.zeros_like(norms), torch.zeros_like(norms)])
    if not bucket.holds_scalars:
        weights = torch.stack(bucket.weights)
        sums[1] = torch.stack(grads).mul_(weights).flatten(1).sum(1)
        if with_sizes:
            sums[2] = weights.square_().flatten(1).sum(1)
    return sums
