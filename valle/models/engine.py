"""A model made ready to generate, once, for many prompts.

P prompts, B rows (the samples of a prompt side by side), S prompt frames, or symbols or events,
F prompt frames beside these, L frames, C chunk frames, Q quantizers.
"""

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from valle.models.ar import ARDecoder
from valle.models.checks import check_gaps, check_given, check_prompts
from valle.models.condition import Given
from valle.models.continuation import Continuation
from valle.models.generation import UNKNOWN
from valle.models.infilling import Gap, fill_gaps
from valle.models.options import GenerationOptions, Length, Windows
from valle.modules.fused_step import FusedStep, why_not_fused
from valle.modules.masks import close_gap, length_mask
from valle.modules.quantization import QuantizedLinear, quantize_linears
from valle.modules.sampling import row_generators

if TYPE_CHECKING:
    from valle.models.codec_lm import CodecLM

DTYPES = ("float32", "bfloat16", "int8", "int4")

_BITS = {"int8": 8, "int4": 4}

# Frames at a time for a stream, if not asked otherwise: sound comes soon, and the NAR half computes
# 132 frames for 24 that it completes.
STREAM_OPTIONS = {"chunk": 24, "lookahead": 12, "nar_context": 96}


class Engine:
    """A model that is kept warm: its weights in the type asked for, its frame step compiled.

    `inference` and `stream` of AudioLM and VALLE make one for each call; who serves many prompts
    makes one and keeps it, for one generation at a time.

    Args:
      model: the model, as it is now; make another engine after it has learned more. In another type
        than its own its weights are copied.
      dtype: "float32" or "bfloat16"; "int8" or "int4": the AR half's matrices in so few bits, the
        rest in bfloat16 (on a CPU, where reading them is what a frame costs; the NAR half, which
        computes more than it reads, stays in bfloat16). None: as the model is.
      fused: whether a frame goes through compiled code on a CPU; None: where that can be had.

    Raises:
      ValueError: no such type, or `fused` where that cannot be had; with the reason.
    """

    def __init__(
        self, model: "CodecLM", dtype: str | None = None, fused: bool | None = None
    ) -> None:
        self.config = model.config
        self.ar, self.nar = model.ar, model.nar
        if dtype is not None:
            self.ar, self.nar = _converted(model.ar, dtype), _converted(model.nar, dtype)
        self.fused = self._fuse(fused)

    @torch.no_grad()
    def inference(
        self,
        x: Tensor,
        x_lens: Tensor | None = None,
        y: Tensor | None = None,
        enroll_x_lens: Tensor | None = None,
        *,
        y_lens: Tensor | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        progress: Callable[[int], None] | None = None,
        return_lens: bool = False,
        **options: Any,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Continue prompts, or make the audio of text or events; see the models' `inference`."""
        asked = GenerationOptions(**options)
        given, y, y_lens = self._check(x, x_lens, y, y_lens, enroll_x_lens, asked)
        generators = row_generators(len(y) * asked.num_samples, generator)
        chunks = list(self._chunks(y, y_lens, given, asked, generators, progress))
        known, lens = (t.repeat_interleave(asked.num_samples, dim=0) for t in (y, y_lens))
        new = torch.cat(chunks, dim=1) if chunks else known[:, :0]
        new_lens = (new[:, :, 0] != UNKNOWN).sum(1)
        parts = [(known, lens), (new, new_lens)] if given is None else [(new, new_lens)]
        joined, lens = _joined(*parts)
        return (joined, lens) if return_lens else joined

    @torch.no_grad()
    def infill(
        self,
        before: Tensor,
        before_lens: Tensor | None,
        after: Tensor,
        after_lens: Tensor | None,
        gap_lens: Tensor | int,
        *,
        window: int = 0,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        progress: Callable[[int], None] | None = None,
        return_lens: bool = False,
        **options: Any,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Fill gaps; see `AudioLM.infill`."""
        checked = check_gaps(before, before_lens, after, after_lens, gap_lens, self.config)
        before, before_lens, after, after_lens, gap_lens = checked
        asked = infill_options(int(gap_lens.max()), options)
        lens = zip(before_lens.tolist(), gap_lens.tolist(), after_lens.tolist(), strict=True)
        gaps = [
            Gap(left[:num_left], num_new, right[:num_right])
            for left, right, (num_left, num_new, num_right) in zip(before, after, lens, strict=True)
        ]
        if window:
            gaps = [gap.within(window, self.config.shortest_prompt) for gap in gaps]
        generators = row_generators(len(gaps) * asked.num_samples, generator)
        with _evaluating(self.ar, self.nar):
            new = fill_gaps(self.ar, self.nar, gaps, generators, asked, self.fused, progress)
        known = (before, before_lens, gap_lens, after, after_lens)
        left, left_lens, new_lens, right, right_lens = (
            t.repeat_interleave(asked.num_samples, dim=0) for t in known
        )
        joined = _joined((left, left_lens), (new, new_lens), (right, right_lens))
        return joined if return_lens else joined[0]

    def stream(
        self,
        x: Tensor,
        x_lens: Tensor | None = None,
        y: Tensor | None = None,
        enroll_x_lens: Tensor | None = None,
        *,
        y_lens: Tensor | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        progress: Callable[[int], None] | None = None,
        **options: Any,
    ) -> Iterator[Tensor]:
        """The same, giving out new frames as they come; see `AudioLM.stream`."""
        asked = GenerationOptions(**(_stream_options(options) | options))
        given, y, y_lens = self._check(x, x_lens, y, y_lens, enroll_x_lens, asked)
        generators = row_generators(len(y) * asked.num_samples, generator)
        return self._chunks(y, y_lens, given, asked, generators, progress)

    def _check(
        self,
        x: Tensor,
        x_lens: Tensor | None,
        y: Tensor | None,
        y_lens: Tensor | None,
        enroll_x_lens: Tensor | None,
        options: GenerationOptions,
    ) -> tuple[Given | None, Tensor, Tensor]:
        """What is given beside codes, and prompts (P, S, Q) with their lengths (P,)."""
        if self.config.condition is None:
            if y is not None or y_lens is not None or enroll_x_lens is not None:
                raise ValueError("an AudioLM continues x, its prompt: y is for a VALLE")
            prompts, lens = check_prompts(x, x_lens, self.config)
            return None, prompts, lens
        if options.windows.window:
            raise ValueError(
                f"a window would part frames from their {self.config.condition}: leave it out, got "
                f"{options.windows.window}; infer.py makes long pieces of MIDI in segments"
            )
        return check_given(x, x_lens, y, y_lens, enroll_x_lens, self.config)

    @torch.no_grad()
    def _chunks(
        self,
        x: Tensor,
        x_lens: Tensor,
        given: Given | None,
        options: GenerationOptions,
        generators: Sequence[torch.Generator],
        progress: Callable[[int], None] | None,
    ) -> Iterator[Tensor]:
        prompts = [row[:n] for row, n in zip(x, x_lens.tolist(), strict=True)]
        with _evaluating(self.ar, self.nar):
            continuation = Continuation(
                self.ar, self.nar, prompts, generators, options, self.fused, progress, given
            )
            chunks = continuation.chunks()
        while True:
            # in eval mode while at work, in the caller's mode while the caller is
            with _evaluating(self.ar, self.nar):
                chunk = next(chunks, None)
            if chunk is None:
                return
            yield chunk

    def _fuse(self, wanted: bool | None) -> FusedStep | None:
        if wanted is False:
            return None
        with _evaluating(self.ar):
            reason = why_not_fused(self.ar.decoder)
            if reason is None:
                return FusedStep(self.ar.decoder, self.ar.head)
        if wanted:
            raise ValueError(f"no fused step: {reason}")
        if self.ar.head.bias.device.type == "cpu":
            _warn_once(f"frames are decoded layer by layer, which is slower: {reason}")
        return None


def _converted(half: nn.Module, dtype: str) -> Any:
    """A copy of a half for generation; the half itself where that would change nothing."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype}")
    target = torch.float32 if dtype == "float32" else torch.bfloat16
    parameters = list(half.parameters())
    is_quantized = dtype in _BITS and isinstance(half, ARDecoder)
    if is_quantized and parameters[0].device.type != "cpu":
        raise ValueError(f"{dtype} is for a CPU; on {parameters[0].device} take bfloat16")
    if not is_quantized and all(parameter.dtype == target for parameter in parameters):
        return half
    # converted one by one, so that no second copy in the old type is made
    copies = {id(p): nn.Parameter(p.detach().to(target), requires_grad=False) for p in parameters}
    converted = copy.deepcopy(half, copies).eval()
    if is_quantized:
        assert isinstance(converted, ARDecoder)
        quantize_linears(converted.decoder, _BITS[dtype])
        converted.set_submodule("head", QuantizedLinear.from_linear(converted.head, _BITS[dtype]))
    return converted


def infill_options(longest_gap: int, options: dict[str, Any]) -> GenerationOptions:
    """How gaps are filled: what bears on length and chunks is given by the gaps.

    Raises:
      ValueError: an option that has no meaning here, or a value that cannot be.
    """
    of_length = {f.name for f in fields(Length) + fields(Windows)} | {
        "max_new_tokens",
        "min_new_tokens",
    }
    misplaced = sorted(of_length & set(options))
    if misplaced:
        raise ValueError(
            f"{', '.join(misplaced)} cannot be asked of infill, which makes as many frames as "
            "gap_lens says, in one go: leave it out"
        )
    return GenerationOptions(max_new_tokens=longest_gap, ignore_eos=True, **options)


def _joined(*parts: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Padded parts with their lengths, one behind the other: (B, L, Q), `UNKNOWN` past an end."""
    codes, lens = parts[0]
    for part, part_lens in parts[1:]:
        codes, lens = close_gap(codes, lens, part, part_lens), lens + part_lens
    codes = codes[:, : int(lens.max())]
    return codes.where(length_mask(lens, codes.shape[1])[:, :, None], UNKNOWN), lens


def _stream_options(given: dict[str, Any]) -> dict[str, int]:
    """`STREAM_OPTIONS`, made to fit into the stride of a short window."""
    windows = Windows(given.get("window", 0), given.get("stride", 0))
    most = windows.stride_frames
    if not most or STREAM_OPTIONS["chunk"] + STREAM_OPTIONS["lookahead"] <= most:
        return STREAM_OPTIONS
    lookahead = most // 3
    return STREAM_OPTIONS | {"chunk": most - lookahead, "lookahead": lookahead}


@contextmanager
def _evaluating(*modules: nn.Module) -> Iterator[None]:
    """Eval mode inside; outside the mode that each of their parts had."""
    modes = {part: part.training for module in modules for part in module.modules()}
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for part, was_training in modes.items():
            part.training = was_training


@lru_cache
def _warn_once(message: str) -> None:
    logging.getLogger(__name__).warning(message)
