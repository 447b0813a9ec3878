"""Signals that ask a run to save and end: from a scheduler, a shutdown, or a user."""

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

# SLURM sends the second where a job asks for it (--signal=USR1@120)
STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)
)


@contextmanager
def handled(handle: Callable[[int], None]) -> Iterator[None]:
    """Answer the stop signals by a call, with their number, instead of dying of them.

    Outside the main thread, where Python takes no signals, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {n: signal.signal(n, lambda number, _: handle(number)) for n in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def forwarded_to(pids: Iterable[int]) -> Iterator[None]:
    """Pass stop signals on to other processes, which know better when to end."""
    pids = list(pids)

    def forward(number: int) -> None:
        for pid in pids:
            with suppress(ProcessLookupError):  # it has ended
                os.kill(pid, number)

    with handled(forward):
        yield


class StopRequest:
    """Notes stop signals until the loop looks.

    ::

        stop = StopRequest()
        with handled(stop.note):
            for batch in loader:
                ...
                if stop.received:
                    save_and_leave()

    Attributes:
        received: The name of the first one that came, or empty.
    """

    def __init__(self) -> None:
        self.received = ""

    def note(self, number: int) -> None:
        """Remember the signal of that number."""
        self.received = self.received or signal.Signals(number).name


def ignore_stop_signals(worker: int = 0) -> None:
    """For a process that works for another: the one it works for decides when both end.

    Signals often go to all processes of a job. A loader's worker that died of one would take the
    run with it before it has saved.

    Args:
        worker: Its number, which a loader passes; not used.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
