"""tensorboard's events, on a disk that may be full."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

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
        self._has_hparams = False

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        self._try(lambda writer: writer.add_scalar(tag, scalar_value, global_step))

    def add_audio(self, tag: str, sound: Any, global_step: int, sampling_rate: int) -> None:
        self._try(lambda writer: writer.add_audio(tag, sound, global_step, sampling_rate))

    def add_figure(self, tag: str, figure: Any, global_step: int) -> None:
        self._try(lambda writer: writer.add_figure(tag, figure, global_step))

    def add_hparams(self, settings: Mapping[str, Any], metrics: Sequence[str]) -> None:
        """Enter the run into the hparams tab; once, as tensorboard reads a folder's first entry.

        No value of a metric is written here: the tab shows what `add_scalar` wrote last under its
        tag, so that it is right at all times, also of a run that was killed.

        Args:
          settings: Name -> number, text or truth value, which is shown as on the command line
            ("true"); None is left out.
          metrics: Tags of scalars.
        """
        if self._has_hparams:
            return

        def write(writer: "SummaryWriter") -> None:
            for summary in _hparams(settings, metrics)[:2]:
                _add_summary(writer, summary)
            self._has_hparams = True

        self._try(write)

    def end_hparams(self) -> None:
        """Mark the run in the hparams tab as one that came to its end."""
        self._try(lambda writer: _add_summary(writer, _hparams({}, ())[2]))

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


def _add_summary(writer: "SummaryWriter", summary: Any) -> None:
    assert writer.file_writer is not None, "only close() takes it, after which nothing is added"
    writer.file_writer.add_summary(summary)


def _hparams(settings: Mapping[str, Any], metrics: Sequence[str]) -> tuple[Any, Any, Any]:
    """What the tab lists, what this run has of it, and that it ended.

    `SummaryWriter.add_hparams` would write them into a file of its own in a sub-folder, which
    tensorboard then shows as another run.
    """
    from torch.utils.tensorboard.summary import hparams

    words = {True: "true", False: "false"}
    plain = {n: words[v] if isinstance(v, bool) else v for n, v in settings.items()}
    return hparams(plain, dict.fromkeys(metrics, 0.0))


class Point(NamedTuple):
    """A value of a scalar."""

    step: int
    value: float


def read_scalars(folder: Path) -> dict[str, list[Point]]:
    """All scalars in a folder of events, by tag; nothing if there is no such folder.

    Where a later run went back to an earlier step, what it wrote replaces what was there from that
    step on: each tag's steps rise.

    Raises:
      ImportError: tensorboard is missing.
    """
    if not folder.is_dir():
        return {}
    from tensorboard.backend.event_processing import event_accumulator as reader

    kept = {reader.SCALARS: 0, reader.AUDIO: 1, reader.IMAGES: 1}  # 0: all of them
    events = reader.EventAccumulator(str(folder), size_guidance=kept).Reload()
    return {tag: _rising(events.Scalars(tag)) for tag in events.Tags()["scalars"]}


def _rising(events: Sequence[Any]) -> list[Point]:
    points: list[Point] = []
    for event in sorted(events, key=lambda event: event.wall_time):
        while points and points[-1].step >= event.step:
            points.pop()
        points.append(Point(event.step, event.value))
    return points
