"""The log of a run: a file in icefall's form, and the terminal."""

import logging
import sys
from datetime import datetime
from pathlib import Path

_OURS = "_valle_handler"  # marks handlers that a second setup replaces


class ConsoleHandler(logging.Handler):
    """Writes to stderr; above a progress bar if one is running, instead of into it."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = self.format(record)
            bars = sys.modules.get("tqdm")  # nobody imported it: no bar can be running
            if bars is not None:
                bars.tqdm.write(message, file=sys.stderr)
            else:
                print(message, file=sys.stderr, flush=True)
        except Exception:
            self.handleError(record)


def setup_logger(
    log_filename: str | Path,
    rank: int = 0,
    world_size: int = 1,
    level: int = logging.INFO,
    console: bool = True,
) -> Path:
    """Send the root logger's messages to a file of this run and to the terminal.

    Args:
        log_filename: As ``exp/log/log-train``; date, time and, of several processes, the rank are
            added. Folders are made.
        rank: This process.
        world_size: Processes in all; if there are several, each line says which one speaks.
        level: Least level that is recorded.
        console: Whether the terminal shows the messages; of ranks other than 0 only warnings.

    Returns:
        The file.
    """
    who, suffix = (f"({rank}/{world_size}) ", f"-{rank}") if world_size > 1 else ("", "")
    file = Path(f"{log_filename}-{time_stamp(datetime.now())}{suffix}")
    file.parent.mkdir(parents=True, exist_ok=True)
    handlers: list[logging.Handler] = [logging.FileHandler(file, encoding="utf-8")]
    if console:
        handlers.append(ConsoleHandler(logging.NOTSET if rank == 0 else logging.WARNING))
    formatter = logging.Formatter(
        f"%(asctime)s %(levelname)s [%(filename)s:%(lineno)d] {who}%(message)s"
    )
    _install(handlers, formatter, level)
    return file


def time_stamp(moment: datetime) -> str:
    """Date and time as the names of a run's files have them."""
    return moment.strftime("%Y-%m-%d-%H-%M-%S")


def _install(handlers: list[logging.Handler], formatter: logging.Formatter, level: int) -> None:
    root = logging.getLogger()
    for old in [h for h in root.handlers if hasattr(h, _OURS)]:
        root.removeHandler(old)
        old.close()
    for handler in handlers:
        handler.setFormatter(formatter)
        setattr(handler, _OURS, True)
        root.addHandler(handler)
    root.setLevel(level)
