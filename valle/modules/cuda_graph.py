"""A function of static tensors, launched on a GPU as one."""

from collections.abc import Callable

import torch


class GraphedCall:
    """Calls a function; on a CUDA device, after a few calls, by replaying a graph of its kernels.

    A frame of a small model is many short kernels, and launching them one by one takes longer than
    running them. The function must take and return nothing, and read and write the same memory
    every time, with no decision of the host in between. Elsewhere it is simply called.

    Args:
      function: what to call.
      device: where its tensors are.
    """

    # libraries set themselves up in the first calls, which a graph must not record
    WARM_UP_CALLS = 3

    def __init__(self, function: Callable[[], None], device: torch.device) -> None:
        self._function, self._device = function, device
        self._num_calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        if self._device.type != "cuda":
            self._function()
            return
        with torch.cuda.device(self._device):
            if self._num_calls < self.WARM_UP_CALLS:
                self._warm_up()
            else:
                self._replay()
        self._num_calls += 1

    def _replay(self) -> None:
        if self._graph is None:
            self._graph = torch.cuda.CUDAGraph()
            # records the calls, runs none of them; other threads may go on allocating meanwhile
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                self._function()
        self._graph.replay()

    def _warm_up(self) -> None:
        """A real call, on a stream of its own as capturing asks for."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self._function()
        torch.cuda.current_stream().wait_stream(side)
