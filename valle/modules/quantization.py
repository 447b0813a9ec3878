"""Linear layers whose weights are kept in 8 or 4 bits; activations stay as they are.

Decoding one frame is bound by reading the weights, so smaller weights are faster weights.

D_in inputs and D_out outputs of a layer, G = D_in / 32 groups of inputs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUP_SIZE = 32
_CLIPS = (1.1, 1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)  # shares of the extreme weight, for int4


class QuantizedLinear(nn.Module):
    """A linear layer with int8 or int4 weights, for inference alone.

    int8 keeps a float32 scale for each output: weight = int * scale. int4 keeps a bfloat16 scale
    for each group of 32 inputs, and two weights in a byte: byte j of a group's 16 holds input j in
    its low half and input j + 16 in its high half, each plus 8. An int4 scale may be negative.

    Attributes:
      bits: 8 or 4.
      weight: (D_out, D_in) int8, or (D_out, D_in / 2) uint8.
      scales: (D_out, 1) float32, or (D_out, G) bfloat16.
      bias: (D_out,) or None.
    """

    weight: Tensor
    scales: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, scales: Tensor, bias: Tensor | None, bits: int):
        super().__init__()
        self.bits = bits
        self.out_features = weight.shape[0]
        self.in_features = weight.shape[1] * (8 // bits)
        self.register_buffer("weight", weight)
        self.register_buffer("scales", scales)
        self.register_buffer("bias", bias)

    @classmethod
    def from_linear(cls, linear: nn.Linear, bits: int) -> "QuantizedLinear":
        """Quantise the weights of a layer to the nearest steps.

        Raises:
          ValueError: bits is not 8 or 4; or is 4 where D_in is no multiple of 32.
        """
        _check("the layer", linear, bits)
        weight = linear.weight.detach().float()
        bias = None if linear.bias is None else linear.bias.detach().clone()
        weight, scales = _to_int8(weight) if bits == 8 else _to_int4(weight)
        return cls(weight, scales, bias, bits)

    def dequantized(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weights (D_out, D_in) that the layer computes with."""
        if self.bits == 8:
            return (self.weight.float() * self.scales.float()).to(dtype)
        halves = torch.stack([self.weight & 15, self.weight >> 4])  # (2, D_out, D_in / 2)
        steps = halves.unflatten(-1, (-1, GROUP_SIZE // 2)).permute(1, 2, 0, 3)  # (D_out, G, 2, 16)
        groups = (steps.flatten(2).float() - 8) * self.scales.float()[..., None]
        return groups.flatten(1).to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D_in) to (..., D_out), in the dtype of x."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.dequantized(x.dtype), bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bits={self.bits}"


def quantize_linears(module: nn.Module, bits: int) -> None:
    """Replace every `nn.Linear` inside a module by a `QuantizedLinear`, in place.

    Raises:
      ValueError: see `QuantizedLinear.from_linear`; nothing was replaced then.
    """
    linears = {name: m for name, m in module.named_modules() if isinstance(m, nn.Linear)}
    for name, linear in linears.items():
        _check(name, linear, bits)
    for name, linear in linears.items():
        module.set_submodule(name, QuantizedLinear.from_linear(linear, bits))


def _check(name: str, linear: nn.Linear, bits: int) -> None:
    if bits not in (4, 8):
        raise ValueError(f"bits is {bits}; expected 8 or 4")
    if bits == 4 and linear.in_features % GROUP_SIZE:
        raise ValueError(
            f"{name} has {linear.in_features} inputs; int4 needs a multiple of {GROUP_SIZE}: "
            "use 8 bits"
        )


def _to_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(D_out, D_in) to int8 steps and (D_out, 1) scales: the largest weight of a row is 127."""
    scales = _nonzero(weight.abs().amax(1, keepdim=True) / 127)
    return (weight / scales).round().to(torch.int8), scales


def _to_int4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(D_out, D_in) to packed steps and (D_out, G) scales, of the clip with the least error.

    The extreme weight of a group lies at -8 rather than 7, so the sign of a scale is its own: one
    step more.
    """
    groups = weight.unflatten(1, (-1, GROUP_SIZE))  # (D_out, G, 32)
    extreme = groups.gather(2, groups.abs().argmax(2, keepdim=True))
    best, least = torch.zeros_like(extreme), torch.full_like(extreme, torch.inf)
    for clip in _CLIPS:
        scales = _nonzero((extreme * clip / -8).bfloat16().float())
        error = (_steps(groups, scales) * scales - groups).square_().sum(2, keepdim=True)
        best, least = torch.where(error < least, scales, best), torch.minimum(error, least)
    low, high = (_steps(groups, best) + 8).to(torch.uint8).chunk(2, dim=2)  # (D_out, G, 16)
    return (low | high << 4).flatten(1), best[..., 0].bfloat16()


def _steps(groups: Tensor, scales: Tensor) -> Tensor:
    return (groups / scales).round_().clamp_(-8, 7)


def _nonzero(scales: Tensor) -> Tensor:
    """All-zero weights have any scale."""
    return torch.where(scales == 0, 1.0, scales)
