"""What a long job has finished, line by line, so that a killed job goes on where it was."""

import json
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any

_BLOCK = 2**16


class WorkLog:
    """A plain `.jsonl` file with one finished item per line, flushed at once.

    It survives a kill at any moment: a last line that was written in part is cut off when the file
    is opened again, and its item counts as not done. One process at a time may write a log; any
    number may read it meanwhile, see `read_log`.

    Args:
      path: Of the file; made if it is not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[bytes] | None = None

    def __enter__(self) -> "WorkLog":
        """Open it.

        Raises:
          ValueError: Another process has it open.
        """
        file = open(self.path, "a+b")
        if not take_lock(file):
            file.close()
            raise ValueError(
                f"another process writes {self.path}: this very work is being done; wait until it "
                "is finished, or stop that process"
            )
        file.truncate(_end_of_lines(file))
        self._file = file
        return self

    def add(self, entry: dict[str, Any]) -> None:
        """Record a finished item."""
        assert self._file is not None, "use the log in a with block"
        self._file.write(json.dumps(entry, ensure_ascii=False).encode() + b"\n")
        self._file.flush()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._file is not None
        self._file.close()


def read_log(path: Path) -> Iterator[dict[str, Any]]:
    """The finished items of a log, in order; a line that is not whole yet is none.

    A line that cannot be read, such as the zeros that a power cut may leave, is logged; its item
    counts as not done.
    """
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                continue
            entry = _parse(line)
            if entry is None:
                logging.warning(f"{path}, line {number} cannot be read: its item is done again")
            else:
                yield entry


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except ValueError:  # no JSON, or no UTF-8
        return None
    if not isinstance(entry, dict):
        return None
    # a million entries would else hold a million copies of each key
    return {sys.intern(key): value for key, value in entry.items()}


def take_lock(file: IO[bytes], wait: bool = False, shared: bool = False) -> bool:
    """Keep other processes from an open file until it is closed, or this process ends.

    Where locks are unknown (some network file systems, Windows), nobody is kept from anything.

    Args:
      file: That they would lock as well; open for writing, as network file systems demand.
      wait: Until another lets go of it.
      shared: Keep out only those who want it for themselves alone.

    Returns:
      Whether the file is ours: False where another process has the lock.
    """
    try:
        import fcntl
    except ImportError:
        return True
    try:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        fcntl.flock(file, kind | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:  # no locks here
        return True
    return True


def _end_of_lines(file: IO[bytes]) -> int:
    """Bytes up to the last line's end; read from the back, as a log may be long."""
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(end - _BLOCK, 0)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0
