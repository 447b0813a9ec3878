"""Writes token cuts as lhotse Shar: many cuts to a file, for network storage and many nodes.

What is written is plain Shar, `CutSet.from_shar(in_dir=...)` reads it; and more than lhotse's own
writer keeps: each cut's place in its recording, from which training knows where a recording ends,
and where in the tar its codes are (see `readers`).
Letters: T frames, Q quantizers.
"""

import json
import shutil
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BytesIO
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import numpy as np
from lhotse.array import Array, TemporalArray
from lhotse.utils import fastcopy

from valle.data.jsonl import write_jsonl
from valle.data.manifest import cut_codes, frame_shift_of
from valle.data.readers import FIELD, PLACEHOLDER, place_in_shard
from valle.data.storage import as_stored
from valle.data.summary import Summary, write_summary
from valle.utils.files import written_whole

SHARD_SIZE = 2000  # cuts; about 12 MB of 10 s cuts with 4 quantizers at 50 Hz


def write_shards(folder: Path, cuts: Iterable[Any], shard_size: int = SHARD_SIZE) -> int:
    """Write cuts with their codes into a folder of shards, whole or not at all.

    The same cuts make the same bytes. A folder that was there before is replaced.

    Args:
      folder: Of a split; its summary is written beside it.
      cuts: With tokens that `cut_codes` can read.
      shard_size: Cuts of a shard.

    Returns:
      How many cuts were written; where there are none, no folder is.

    Raises:
      OSError: Something cannot be read or written.
      ValueError: A shard of less than one cut; a cut without tokens, or one that would no longer
        tell of its recording.
    """
    if shard_size < 1:
        raise ValueError(f"a shard of {shard_size} cuts cannot be: give --shard-size 1 or more")
    summary = Summary()
    with _folder_written_whole(folder) as temporary:
        for number, shard in enumerate(_groups(summary.counted(cuts), shard_size)):
            _write_shard(temporary, f"{number:06d}", shard)
    write_summary(folder, summary)
    return summary.num_cuts


def _groups(items: Iterable[Any], size: int) -> Iterator[Iterator[Any]]:
    """So many items at a time, none held back; each group must be used up before the next."""
    iterator = iter(items)
    for _ in count():
        first = next(iterator, None)
        if first is None:
            return
        yield chain([first], islice(iterator, size - 1))


def _write_shard(folder: Path, number: str, cuts: Iterable[Any]) -> None:
    path = folder / f"{FIELD}.{number}.tar"
    with written_whole(path) as temporary, tarfile.open(temporary, "w") as tar:
        lines = (_put(tar, path.name, cut).to_dict() for cut in cuts)
        write_jsonl(folder / f"cuts.{number}.jsonl.gz", lines)


def _put(tar: tarfile.TarFile, tar_name: str, cut: Any) -> Any:
    """Append a cut's codes to a tar.

    Returns:
      The cut with a placeholder for them, as Shar has it, that says where they are.
    """
    codes = as_stored(cut_codes(cut), f"cut {cut.id}")
    content = BytesIO()
    np.save(content, codes, allow_pickle=False)
    if not cut.has_recording:
        raise ValueError(
            f"cut {cut.id} names no recording, so that a shard could not tell where it ends: "
            "tokenise with egs/atepp/bin/tokenizer.py, or leave this manifest as it is"
        )
    shift = frame_shift_of(cut)
    assert shift, "cut_codes has found tokens"
    array = Array(PLACEHOLDER, storage_path="", storage_key="", shape=list(codes.shape))
    tokens = TemporalArray(array, temporal_dim=0, frame_shift=shift, start=cut.start)
    offset = _append(tar, f"{cut.id}.npy", content.getvalue())
    _append(tar, f"{cut.id}.json", json.dumps(tokens.to_dict()).encode() + b"\n")
    place = place_in_shard(tar_name, offset, len(content.getvalue()))
    placed = fastcopy(tokens, array=fastcopy(array, **place))
    return fastcopy(cut, features=None, custom={**(cut.custom or {}), FIELD: placed})


def _append(tar: tarfile.TarFile, name: str, content: bytes) -> int:
    """Append a file, without a date or an owner. Returns where in the tar its content begins."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, BytesIO(content))
    assert tar.fileobj is not None
    num_blocks = -(-len(content) // tarfile.BLOCKSIZE)
    return tar.fileobj.tell() - num_blocks * tarfile.BLOCKSIZE


@contextmanager
def _folder_written_whole(folder: Path) -> Iterator[Path]:
    """Fill a folder under a temporary name; it takes its own name once it is complete.

    What a killed process left under the temporary name is deleted first. No folder is left where
    nothing was put into it.
    """
    temporary, old = (folder.with_name(f".{kind}-{folder.name}") for kind in ("half", "old"))
    for leftover in (temporary, old):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if folder.exists():  # a folder cannot take the place of another in one step
            folder.rename(old)
        if any(temporary.iterdir()):
            temporary.rename(folder)
    finally:
        for leftover in (temporary, old):
            shutil.rmtree(leftover, ignore_errors=True)
