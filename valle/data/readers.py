"""Reads the codes of one cut, and no more, out of a file that holds those of many.

lhotse's reader of numpy files loads the whole recording to return a window of it. And its reader
of Shar goes through a shard from front to back, codes and all, in the process that draws batches.
These two fetch the rows that are asked for, in whatever process asks: a loader's worker. They read
the same files; a manifest on the disk names lhotse's own storage types.

A Shar folder holds shards: `cuts.000000.jsonl.gz`, and beside it `audio_features.000000.tar` with
the arrays of these cuts in the same order. `valle.data.shar` notes in each cut at which byte of the
tar its array lies, in fields that lhotse leaves empty and does not look at.
"""

import os
from dataclasses import replace
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
from lhotse.array import Array, TemporalArray
from lhotse.features.io import FeaturesReader, register_reader

FIELD = "audio_features"
PLACEHOLDER = "shar"  # lhotse's storage type for an array that lies in the tar of its shard
_OWN_FILE = "numpy_files"  # the one for a file of its own
_OPEN_SHARDS = 128  # of a process; systems allow 1,024 and more


def shards_of(folder: Path) -> list[Path]:
    """The cuts of the shards of a folder, in order."""
    return sorted(folder.glob("cuts.*.jsonl.gz"))


def place_in_shard(tar_name: str, offset: int, num_bytes: int) -> dict[str, str]:
    """Fields of a placeholder `Array` that say where its bytes are."""
    return {"storage_path": tar_name, "storage_key": f"{offset}:{num_bytes}"}


def is_placed(cut: Any) -> bool:
    """Whether a resolved cut's codes come out of a shard; not so where lhotse wrote the shard."""
    tokens = (getattr(cut, "custom", None) or {}).get(FIELD)
    return isinstance(tokens, TemporalArray) and tokens.array.storage_type == ShardReader.name


def with_rows_read(array: Array, folder: str) -> Array:
    """An array of a cut, whose storage path is known, to be read by the readers below.

    Args:
      array: As the manifest has it.
      folder: Of the shard, for one that lies in one.
    """
    if array.storage_type == _OWN_FILE:
        return replace(array, storage_type=RowsReader.name)
    if array.storage_type == PLACEHOLDER and array.storage_path:
        return _in_shard(array, folder)
    return array


def _in_shard(array: Array, folder: str) -> Array:
    path = os.path.join(folder, array.storage_path)
    return replace(array, storage_type=ShardReader.name, storage_path=path)


@register_reader
class RowsReader(FeaturesReader):
    """Reads rows of an array that has a file of its own, for lhotse.

    Args:
      storage_path: The folder of such files.
    """

    name = "valle_rows"

    def __init__(self, storage_path: str, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self.folder = storage_path

    def read(
        self, key: str, left_offset_frames: int = 0, right_offset_frames: int | None = None
    ) -> np.ndarray:
        """Rows [left_offset_frames, right_offset_frames) of the file `key`.

        Raises:
          OSError: There is no such file, or it cannot be read.
          ValueError: It holds no array.
        """
        path = os.path.join(self.folder, key)
        with open(path, "rb", buffering=0) as file:
            return _rows(file, path, left_offset_frames, right_offset_frames)


WHOLE_FILES = (RowsReader.name, _OWN_FILE)  # storage types with a file for each array


@register_reader
class ShardReader(FeaturesReader):
    """Reads rows of one array of a tar, for lhotse.

    Args:
      storage_path: The tar.
    """

    name = "valle_shard"

    def __init__(self, storage_path: str, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self.path = storage_path

    def read(
        self, key: str, left_offset_frames: int = 0, right_offset_frames: int | None = None
    ) -> np.ndarray:
        """Rows of the array.

        Args:
          key: First byte and number of bytes, "1536:4128".
          left_offset_frames, right_offset_frames: Which rows.

        Raises:
          OSError: There is no such tar, or it cannot be read.
          ValueError: It ends early or holds something else there.
        """
        offset, num_bytes = map(int, key.split(":"))
        content = BytesIO(os.pread(_open(self.path).number, num_bytes, offset))
        where = f"{self.path}, {num_bytes} bytes from {offset} on,"
        return _rows(content, where, left_offset_frames, right_offset_frames)


def _rows(file: IO[bytes], where: str, start: int, stop: int | None) -> np.ndarray:
    """Rows [start, stop) of an array in numpy's format, the others unread."""
    try:
        version = np.lib.format.read_magic(file)
        shape, by_columns, dtype = np.lib.format.read_array_header_1_0(file)
        if version != (1, 0) or by_columns or dtype.hasobject:
            raise ValueError(f"version {version}, columns first: {by_columns}, {dtype}")
        start, stop, _ = slice(start, stop).indices(shape[0])
        row = int(np.prod(shape[1:])) * dtype.itemsize
        file.seek(start * row, os.SEEK_CUR)
        num_rows = max(stop - start, 0)
        content = file.read(num_rows * row)
        return np.frombuffer(content, dtype).reshape(num_rows, *shape[1:])
    except ValueError as error:
        raise ValueError(
            f"{where} holds no whole array ({error}): it is cut off, or not the file that "
            "belongs to this manifest; copy it again, or tokenise again"
        ) from error


class _OpenFile:
    """A file that is closed when nobody holds it; threads and forks may share it, by `pread`."""

    def __init__(self, path: str) -> None:
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


_open = lru_cache(maxsize=_OPEN_SHARDS)(_OpenFile)
