"""Numbers that come off the device without anybody waiting for them."""

from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class LateReader(Generic[T]):
    """Gives small tensors to the host once they have been computed, in the order they were put.

    A GPU works behind the host. Reading what the last step gave would make the host wait for it,
    and the GPU then wait for the host; what the step before gave has long been there. On a CPU
    there is nothing to wait for and all is read at once.
    """

    def __init__(self) -> None:
        self._pending: deque[tuple[Tensor, torch.cuda.Event | None, T]] = deque()

    def put(self, values: Tensor, about: T) -> None:
        """Begin to copy `values` (n,); `about` comes back with them."""
        if values.device.type != "cuda":
            self._pending.append((values.detach().clone(), None, about))
            return
        copy = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        copy.copy_(values.detach(), non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._pending.append((copy, event, about))

    def ready(self) -> Iterator[tuple[list[float], T]]:
        """What can be read without waiting: all but the newest on a GPU, all elsewhere."""
        newest = 1 if self._pending and self._pending[-1][1] is not None else 0
        yield from self._take(len(self._pending) - newest)

    def all(self) -> Iterator[tuple[list[float], T]]:
        """Everything that was put; this waits for the device."""
        yield from self._take(len(self._pending))

    def _take(self, number: int) -> Iterator[tuple[list[float], T]]:
        for _ in range(number):
            values, event, about = self._pending.popleft()
            if event is not None:
                event.synchronize()
            yield values.tolist(), about
