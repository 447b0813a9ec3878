"""What a long job has finished, line by line, so that a killed job goes on where it was."""

import json
from pathlib import Path
from types import TracebackType
from typing import IO, Any


class WorkLog:
    """A plain `.jsonl` file with one finished item per line, flushed at once.

    It survives a kill at any moment: a last line that was written in part is cut off when the file
    is opened again, and its item counts as not done. A later line of an item replaces an earlier.

    Args:
      path: Of the file; made if it is not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: dict[str, dict[str, Any]] = {}
        self._file: IO[str] | None = None

    def __enter__(self) -> "WorkLog":
        whole = self._whole_lines()
        for line in whole.decode("utf-8").splitlines():
            entry = json.loads(line)
            self.entries[entry["id"]] = entry
        if self.path.exists() and self.path.stat().st_size != len(whole):
            with open(self.path, "r+b") as file:
                file.truncate(len(whole))
        self._file = open(self.path, "a", encoding="utf-8", newline="\n")
        return self

    def _whole_lines(self) -> bytes:
        content = self.path.read_bytes() if self.path.exists() else b""
        return content[: content.rfind(b"\n") + 1]

    def add(self, entry: dict[str, Any]) -> None:
        """Record a finished item; `entry["id"]` names it."""
        assert self._file is not None, "use the log in a with block"
        self._file.write(json.dumps(entry, ensure_ascii=False) + "\n")
        self._file.flush()
        self.entries[entry["id"]] = entry

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._file is not None
        self._file.close()
