"""Dropout that costs little on a CPU too."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Dropout(nn.Dropout):
    """`nn.Dropout`, but that on a CPU one random byte decides over an entry.

    torch draws a float for each there, which takes three times as long as all the rest. With bytes
    the rate is a multiple of 1/256 (0.1 becomes 26/256); what stays is scaled by the true rate.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.p == 0 or input.device.type != "cpu":
            return F.dropout(input, self.p, self.training)
        return _Scaled.apply(input, _scaled_mask(input, self.p))


class _Scaled(torch.autograd.Function):
    """A product of which the mask alone is kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(mask)
        return x * mask

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0] * ctx.saved_tensors[0], None


@torch.compiler.disable  # the compiler's own random numbers are slow on a CPU
def _scaled_mask(x: Tensor, p: float) -> Tensor:
    """0 where an entry is dropped, elsewhere what makes up for it; shape and type of x."""
    num_kept = max(1, round((1 - p) * 256))  # of 256 bytes
    eights = torch.empty((x.numel() + 7) // 8, dtype=torch.int64)
    random = eights.random_(-(2**63), None).view(torch.uint8)[: x.numel()]
    return (random < num_kept).to(x.dtype).mul_(256 / num_kept).view(x.shape)
