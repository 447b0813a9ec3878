"""JSON lines whose bytes depend on what is written, and on nothing else."""

import gzip
import io
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from valle.utils.files import written_whole

_LEVEL = 6  # 9, which lhotse's own writer takes, makes manifests no smaller to speak of


def write_jsonl(path: Path, items: Iterable[dict[str, Any]]) -> int:
    """Write a line for each item, whole or not at all; gzip where the name ends in `.gz`.

    The same items make the same bytes: a gzip header has room for a file's name and the time,
    and both are left out.

    Returns:
      How many lines were written.

    Raises:
      OSError: The file cannot be written; see `written_whole`.
    """
    count = 0
    with written_whole(path) as temporary, _text_file(temporary) as file:
        for item in items:
            file.write(json.dumps(item, ensure_ascii=False) + "\n")
            count += 1
    return count


@contextmanager
def _text_file(path: Path) -> Iterator[TextIO]:
    if path.suffix != ".gz":
        with open(path, "w", encoding="utf-8", newline="\n") as file:
            yield file
        return
    with (
        open(path, "wb") as raw,
        gzip.GzipFile("", "wb", compresslevel=_LEVEL, fileobj=raw, mtime=0) as packed,
        io.TextIOWrapper(packed, encoding="utf-8", newline="\n") as file,
    ):
        yield file
