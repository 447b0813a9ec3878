"""Weights for losses that say what they mean: the loss balancer of EnCodec (section 3.4).

A weight on a loss says little where losses have gradients of other sizes, which moreover change
while training goes on. Here each loss is differentiated at the codec's output, its gradient brought
to a common size, and then weighted; the sum goes on backwards through the codec.

Letters: B batch, N samples.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from valle.codec.ranks import mean_over_ranks

_SMALLEST_NORM = 1e-12


class Balancer:
    """Scales the gradients of losses at the output to shares that the weights alone decide.

    Args:
      weights: Share of each loss, by name; they need not sum to 1.
      decay: Of the moving averages of gradient norms.
      norm: Length of the sum's gradient for one sound, were all losses of one opinion.
    """

    def __init__(self, weights: Mapping[str, float], decay: float = 0.999, norm: float = 1.0):
        self.weights, self.decay, self.norm = dict(weights), decay, norm
        self._sums: dict[str, Tensor] = {}  # moving sum of norms, and of ones: (2,)

    def gradient(self, losses: Mapping[str, Tensor], output: Tensor) -> Tensor:
        """The gradient to send backwards from the output.

        Args:
          losses: Means over the batch, each 0-dimensional; those of weight 0 are left out.
          output: (B, N), what the losses were computed from.

        Returns:
          (B, N): the mean over the sounds of a batch, so that its size does not grow with B.
        """
        used = {name: loss for name, loss in losses.items() if self.weights.get(name, 0) > 0}
        grads = [torch.autograd.grad(x, output, retain_graph=True)[0] for x in used.values()]
        norms = torch.stack([grad.flatten(1).norm(dim=1).mean() for grad in grads])
        usual = self._usual_norms(list(used), mean_over_ranks(norms))
        total = sum(self.weights[name] for name in used)
        shares = torch.tensor([self.weights[name] / total for name in used], device=output.device)
        scales = self.norm * shares / usual.clamp_min(_SMALLEST_NORM) / output.shape[0]
        return torch.stack([s * g for s, g in zip(scales, grads, strict=True)]).sum(dim=0)

    def _usual_norms(self, names: list[str], norms: Tensor) -> Tensor:
        """Moving averages that start at the first value; what is not finite is not taken in."""
        averages = []
        for name, norm in zip(names, norms, strict=True):
            before = self._sums.get(name, norm.new_zeros(2))
            after = self.decay * before + torch.stack([norm, torch.ones_like(norm)])
            self._sums[name] = torch.where(norm.isfinite(), after, before)
            averages.append(self._sums[name][0] / self._sums[name][1].clamp_min(1e-12))
        return torch.stack(averages)

    def state_dict(self) -> dict[str, Any]:
        return {name: sums.clone() for name, sums in self._sums.items()}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        self._sums = {name: sums.clone().to(device) for name, sums in state.items()}
