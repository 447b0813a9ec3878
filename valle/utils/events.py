"""tensorboard's events, on a disk that may be full."""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

RETRY_SEC = 60.0


class EventWriter:
    """A `SummaryWriter` whose disk may fail without ending the run.

    Curves are worth less than the run that draws them. What cannot be written is left out, and a
    new file is tried after a minute; the log tells when that begins and when it ends.

    Args:
      folder: of the events.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)
        self._writer: SummaryWriter | None = _open(self._folder)
        self._retry_at, self._is_failing = 0.0, False

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        self._try(lambda writer: writer.add_scalar(tag, scalar_value, global_step))

    def add_audio(self, tag: str, sound: Any, global_step: int, sampling_rate: int) -> None:
        self._try(lambda writer: writer.add_audio(tag, sound, global_step, sampling_rate))

    def add_figure(self, tag: str, figure: Any, global_step: int) -> None:
        self._try(lambda writer: writer.add_figure(tag, figure, global_step))

    def flush(self) -> None:
        """Write what is waiting."""
        self._try(lambda writer: writer.flush())

    def close(self) -> None:
        if self._writer is not None:
            self._try(lambda writer: writer.close())

    def _try(self, write: Callable[["SummaryWriter"], object]) -> None:
        if self._writer is None and time.monotonic() < self._retry_at:
            return
        try:
            if self._writer is None:
                self._writer = _open(self._folder)
            write(self._writer)
        except OSError as error:
            self._fail(error)
        else:
            if self._is_failing:
                logging.warning("tensorboard works again; what came meanwhile is missing")
            self._is_failing = False

    def _fail(self, error: OSError) -> None:
        if not self._is_failing:
            logging.error(
                f"could not write to {self._folder}: {error}. Training goes on without tensorboard,"
                " which is tried again each minute"
            )
        self._is_failing = True
        self._writer, self._retry_at = None, time.monotonic() + RETRY_SEC


def _open(folder: str) -> "SummaryWriter":
    from torch.utils.tensorboard import SummaryWriter  # heavy, and of use to training alone

    return SummaryWriter(folder)
