"""One new frame through a decoder and its head, in a single call of compiled code (CPU).

At batch 1 a frame should take as long as reading the weights once; a step of many small operations
takes two to three times that. `fused_step.cpp` does it all in one parallel region, and
`fused_build.py` compiles it at first use. Where that cannot be, `why_not_fused` says why, and
callers use the decoder itself.

B batch, D model width, H heads, K = D / H, V outputs of the head.
"""

import ctypes
import os

import torch
from torch import Tensor, nn

from valle.modules.attention import Rotation
from valle.modules.fused_build import Frame, Layer, Linear, Norm, compiled_library
from valle.modules.quantization import QuantizedLinear
from valle.modules.transformer import AdaptiveLayerNorm, Decoder, DecoderLayer

_SWITCH = "VALLE_FUSED"
_FORMATS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2, torch.uint8: 3}
_FLOATS = (torch.float32, torch.bfloat16)
_LINEARS = ("attention.qkv", "attention.out", "feed_forward.0", "feed_forward.2")


def why_not_fused(decoder: Decoder) -> str | None:
    """Why this machine or this decoder has no fused step, in words; None where it has one.

    The first call may compile, which takes seconds.
    """
    return _switched_off() or _unfit(decoder) or compiled_library().failure


class FusedStep:
    """One new frame through a decoder and its head.

    Weights are read where they lie, so that they take no memory twice; biases and norms are copied
    where they are not float32. Build a new step after the weights were changed. Activations are
    float32, whatever the weights are. A row's logits are the same to the last bit whatever the
    other rows are, and whatever the number of threads.
    """

    def __init__(self, decoder: Decoder, head: "nn.Linear | QuantizedLinear"):
        """Take over the weights.

        Raises:
          ValueError: `why_not_fused` has a reason, or the head is of another kind than the layers
            may be.
        """
        if (reason := why_not_fused(decoder) or _unfit_linear("the head", head)) is not None:
            raise ValueError(f"no fused step: {reason}; use the decoder itself")
        function = compiled_library().function
        assert function is not None
        self._function = function
        self._kept: list[Tensor] = []  # what the addresses below point to
        first = _layers(decoder)[0]
        self._D, self._H = first.attention.qkv.in_features, first.attention.nhead
        self._layers = (Layer * len(decoder.layers))(*self._describe(decoder))
        last_norm = decoder.norm if first.norm_first else _layers(decoder)[-1].norm2
        self._frame = Frame(
            D=self._D,
            H=self._H,
            F=self._layers[0].up.outputs,
            V=head.out_features,
            num_layers=len(decoder.layers),
            residual_is_normed=not first.norm_first,
            layers=self._layers,
            before_head=self._norm(last_norm),
            head=self._linear(head),
        )

    @torch.no_grad()
    def __call__(
        self, x: Tensor, positions: Tensor, cache: Tensor, rotation: Rotation | None = None
    ) -> Tensor:
        """Read one frame a row, write its keys and values, return its logits.

        Args:
          x: (B, D) float32 or bfloat16, embedded.
          positions: (B,) int64, where this frame goes in the cache. It sees cache[..., : position]
            and itself.
          cache: (num_layers, 2, B, H, max_len, K), keys and values, float32 or bfloat16,
            contiguous; written in place.
          rotation: of the frame of each row, (B, 1, K / 2); None where x tells their places.

        Returns:
          (B, V) float32 logits.

        Raises:
          ValueError: a shape, dtype, device or position does not fit.
        """
        self._check(x, positions, cache)
        x, positions = x.float().contiguous(), positions.contiguous()
        logits = torch.empty(len(x), self._frame.V)
        frame = Frame.from_buffer_copy(self._frame)  # a step may be called from several threads
        frame.B, frame.max_len = len(x), cache.shape[4]
        frame.num_threads = torch.get_num_threads()
        frame.cache_is_bfloat16 = cache.dtype == torch.bfloat16
        frame.x, frame.positions = x.data_ptr(), positions.data_ptr()
        frame.cache, frame.logits = cache.data_ptr(), logits.data_ptr()
        angles = [] if rotation is None else [self._angles(part, len(x)) for part in rotation]
        if angles:
            frame.cosines, frame.sines = (part.data_ptr() for part in angles)
        if self._function(ctypes.byref(frame)) != 0:
            raise MemoryError(f"not enough memory for a frame of {len(x)} rows: take fewer at once")
        return logits

    def _angles(self, part: Tensor, num_rows: int) -> Tensor:
        half = self._D // self._H // 2
        if part.shape != (num_rows, 1, half) or not part.is_cpu:
            raise ValueError(
                f"rotation is {_words(part)}; expected ({num_rows}, 1, {half}) on the CPU"
            )
        return part.float().contiguous()

    def _check(self, x: Tensor, positions: Tensor, cache: Tensor) -> None:
        B, D, H = len(x), self._D, self._H
        if x.shape != (B, D) or B == 0 or x.dtype not in _FLOATS or not x.is_cpu:
            raise ValueError(f"x is {_words(x)}; expected (B, {D}) float32 or bfloat16 on the CPU")
        expected = (len(self._layers), 2, B, H, cache.shape[4] if cache.dim() == 6 else 0, D // H)
        if cache.shape != expected or cache.dtype not in _FLOATS or not cache.is_cpu:
            raise ValueError(
                f"cache is {_words(cache)}; expected (num_layers, 2, B, H, max_len, K) = "
                f"{expected[:4]} + (max_len, {D // H}), float32 or bfloat16 on the CPU"
            )
        if not cache.is_contiguous():
            raise ValueError("cache is not contiguous, and is written in place: allocate it whole")
        if positions.shape != (B,) or positions.dtype != torch.int64 or not positions.is_cpu:
            raise ValueError(f"positions is {_words(positions)}; expected ({B},) int64 on the CPU")
        places = positions.tolist()
        if min(places) < 0 or max(places) >= cache.shape[4]:
            raise ValueError(
                f"positions lie in [{min(places)}, {max(places)}]; the cache has {cache.shape[4]} "
                "frames: allocate a longer one"
            )

    def _describe(self, decoder: Decoder) -> list[Layer]:
        """The layers; `before_attention` of layers that normalise last is the norm before them."""
        described, before = [], None
        for layer in _layers(decoder):
            norms = (layer.norm1, layer.norm2) if layer.norm_first else (before, layer.norm1)
            qkv, out, up, down = (self._linear(layer.get_submodule(name)) for name in _LINEARS)
            attention_norm, feed_forward_norm = (self._norm(norm) for norm in norms)
            described.append(Layer(attention_norm, qkv, out, feed_forward_norm, up, down))
            before = layer.norm2
        return described

    def _norm(self, norm: AdaptiveLayerNorm | None) -> Norm:
        if norm is None:
            return Norm()
        inner = norm.norm
        return Norm(self._floats(inner.weight), self._floats(inner.bias), inner.eps)

    def _linear(self, linear: nn.Module) -> Linear:
        assert isinstance(linear, nn.Linear | QuantizedLinear)
        weight = self._keep(linear.weight)
        scales: Tensor | None = None
        if isinstance(linear, QuantizedLinear):
            scales = linear.scales.to(torch.float32 if linear.bits == 8 else torch.bfloat16)
        return Linear(
            weight=weight.data_ptr(),
            scales=None if scales is None else self._keep(scales).data_ptr(),
            bias=None if linear.bias is None else self._floats(linear.bias),
            inputs=linear.in_features,
            outputs=linear.out_features,
            row_bytes=weight.stride(0) * weight.element_size(),
            format=_FORMATS[weight.dtype],
        )

    def _floats(self, tensor: Tensor) -> int:
        return self._keep(tensor.float()).data_ptr()

    def _keep(self, tensor: Tensor) -> Tensor:
        self._kept.append(tensor.detach().contiguous())
        return self._kept[-1]


def _layers(decoder: Decoder) -> list[DecoderLayer]:
    return list(decoder.layers)  # type: ignore[arg-type]


def _switched_off() -> str | None:
    return f"{_SWITCH}=0 switches it off" if os.environ.get(_SWITCH) == "0" else None


def _unfit(decoder: Decoder) -> str | None:
    if decoder.training:
        return "the decoder is in training mode (call eval())"
    if len(decoder.layers) == 0:
        return "the decoder has no layers"
    for i, layer in enumerate(_layers(decoder)):
        if layer.norm1.gain_and_shift is not None:
            return "the decoder's norms are adaptive"
        for name in _LINEARS:
            if (
                why := _unfit_linear(f"{name} of layer {i}", layer.get_submodule(name))
            ) is not None:
                return why
    return None


def _unfit_linear(name: str, linear: nn.Module) -> str | None:
    if not isinstance(linear, nn.Linear | QuantizedLinear):
        return f"{name} is a {type(linear).__name__}, not a Linear or a QuantizedLinear"
    weight = linear.weight
    if not weight.is_cpu:
        return f"the weights of {name} are on {weight.device}, not on the CPU"
    if weight.dtype not in _FORMATS:
        return f"the weights of {name} are {weight.dtype}, not float32 or bfloat16"
    if not weight.is_contiguous():
        return f"the weights of {name} are not contiguous"
    return None


def _words(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {tensor.dtype} on {tensor.device}"
