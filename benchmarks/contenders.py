"""What is measured: something that makes frames, and can say how many bytes it must read for one.

B rows of a batch, S prompt frames, Q quantizers.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from measure import synchronise
from torch import Tensor, nn

from valle.models import AudioLM
from valle.models.ar import ARState
from valle.models.engine import Engine
from valle.modules.cuda_graph import GraphedCall
from valle.modules.sampling import Sampling

WARM_UP_FRAMES = GraphedCall.WARM_UP_CALLS + 2  # one records the graph, one replays it


class Phases(NamedTuple):
    """Seconds of one generation.

    Attributes:
      prefill: to the first new frame.
      ar: the other frames; of quantizer 1, or of all quantizers where one half makes them all.
      nar: the other quantizers.
      num_lengths: where the time was not taken whole but summed from the cost of a frame at so many
        lengths; 0 where it was taken whole.
    """

    prefill: float
    ar: float
    nar: float
    num_lengths: int = 0

    @property
    def total(self) -> float:
        return self.prefill + self.ar + self.nar


class Contender(ABC):
    """One way to continue prompts.

    Attributes:
      name: in the tables.
      dtype: of its weights, in words.
      repeatable: whether it is fast enough to be timed more than once.
    """

    name: str
    dtype: str
    repeatable = True

    @abstractmethod
    def generate(self, prompt: Tensor, num_frames: int) -> Phases:
        """Continue (B, S, Q) codes by exactly `num_frames` frames."""


class Cached(Contender):
    """One that keeps what it has computed of the context, so that a frame is a step."""

    @abstractmethod
    def frame_step(self, batch_size: int, context: int, num_frames: int) -> Callable[[], None]:
        """What makes one frame, ready to be called `num_frames` times.

        Over these calls the context grows, and is `context` frames on average.
        """

    @abstractmethod
    def bytes_per_frame(self, batch_size: int, context: int) -> int:
        """Weights once, and what is kept of the context: what no implementation can avoid."""

    @abstractmethod
    def cache_bytes(self, batch_size: int, context: int) -> int:
        """What is kept of the context."""


class Ours(Cached):
    """`Engine`, as a user would have it, or with the layers called one by one.

    Args:
      model: random weights do; in eval mode.
      dtype: of `Engine`.
      fused: of `Engine`.
      sampling: how quantizer 1 is drawn.
    """

    def __init__(self, model: AudioLM, dtype: str, fused: bool | None, sampling: Sampling) -> None:
        self.engine = Engine(model, dtype, fused)
        self.dtype, self.sampling = dtype, sampling
        self.name = "ours, layer by layer" if fused is False else "ours"
        ar = self.engine.ar
        self._weight_bytes = num_bytes((ar.decoder, ar.head))
        self._frame_bytes = ar.decoder.new_cache(1, 1).data.nbytes
        self._device = ar.head.bias.device

    def frame_step(self, batch_size: int, context: int, num_frames: int) -> Callable[[], None]:
        first = first_context(context, num_frames)
        ar, device = self.engine.ar, self._device
        cache = ar.decoder.new_cache(batch_size, first + num_frames)
        cache.data.normal_()  # as if so many frames had been read
        lens = torch.full((batch_size,), first, device=device)
        longest = first if device.type == "cpu" else None
        state = ARState(cache, lens, longest, self.engine.fused)
        codes = torch.zeros(batch_size, dtype=torch.long, device=device)

        def step() -> None:
            ar.decode_one_frame(codes, state)

        return GraphedCall(step, device)

    def bytes_per_frame(self, batch_size: int, context: int) -> int:
        return self._weight_bytes + self.cache_bytes(batch_size, context)

    def cache_bytes(self, batch_size: int, context: int) -> int:
        return batch_size * context * self._frame_bytes

    def generate(self, prompt: Tensor, num_frames: int) -> Phases:
        clock = Clock(prompt.device, num_frames)
        out = self.engine.inference(
            prompt,
            max_new_tokens=num_frames,
            ignore_eos=True,
            temperature=self.sampling.temperature,
            top_k=self.sampling.top_k,
            progress=clock.frame_done,
        )
        assert isinstance(out, Tensor)
        assert out.shape[1] == prompt.shape[1] + num_frames, tuple(out.shape)
        return clock.phases()


class Clock:
    """Divides a generation into phases; starts when it is made.

    Args:
      device: is waited for at the borders, and at no other frame.
      num_frames: how many there will be.
    """

    def __init__(self, device: torch.device, num_frames: int) -> None:
        self._device, self._num_frames = device, num_frames
        self._marks = [self._now()]

    def frame_done(self, count: int) -> None:
        """To be called after every frame with the number of frames so far."""
        if count == 1:
            self._marks.append(self._now())
        if count == self._num_frames:
            self._marks.append(self._now())

    def phases(self) -> Phases:
        """To be called at the end."""
        start, first, last = self._marks
        return Phases(first - start, last - first, self._now() - last)

    def _now(self) -> float:
        synchronise(self._device)
        return time.perf_counter()


def first_context(context: int, num_frames: int) -> int:
    """Where to start, so that the context is `context` on average over so many frames."""
    return max(context - num_frames // 2, 1)


def num_bytes(modules: Iterable[nn.Module]) -> int:
    """All weights of some modules, quantisation scales included."""
    tensors: list[Tensor] = []
    for module in modules:
        tensors += [*module.parameters(), *module.buffers()]
    return sum(tensor.nbytes for tensor in tensors)


def lengths_between(first: int, last: int, num: int) -> Sequence[int]:
    """Up to `num` lengths from first to last, both included, evenly spread."""
    if num < 2 or last <= first:
        return sorted({first, last})
    return sorted({round(first + (last - first) * i / (num - 1)) for i in range(num)})
