"""Writes token cuts as lhotse Shar: many cuts to a file, for network storage and many nodes.

What is written is plain Shar, `CutSet.from_shar(in_dir=...)` reads it; and more than lhotse's own
writer keeps: each cut's place in its recording, from which training knows where a recording ends,
and where in the tar its codes are (see `readers`). MIDI events, where cuts carry them, lie in the
same way in a second tar of each shard.
Letters: T frames, Q quantizers.
"""

import json
import shutil
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from io import BytesIO
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import numpy as np
from lhotse.array import Array, TemporalArray
from lhotse.utils import fastcopy

from valle.data.conditions import MIDI, condition_of, midi_events
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
    cuts = iter(cuts)
    first = next(cuts)
    with ExitStack() as stack:
        tars = {
            field: stack.enter_context(_tar_written_whole(folder / f"{field}.{number}.tar"))
            for field in ([FIELD, MIDI] if condition_of(first) == "midi" else [FIELD])
        }
        lines = (_put(tars, cut).to_dict() for cut in chain([first], cuts))
        write_jsonl(folder / f"cuts.{number}.jsonl.gz", lines)


class _Tar:
    """A tar that is being written.

    Args:
      file: The tar.
      name: That it will have.
    """

    def __init__(self, file: tarfile.TarFile, name: str) -> None:
        self._file, self._name = file, name

    def put(self, name: str, stored: np.ndarray, array: Array | TemporalArray) -> dict[str, str]:
        """Append an array, and its description, as Shar has them.

        Returns:
          Fields that say where it is.
        """
        content = BytesIO()
        np.save(content, stored, allow_pickle=False)
        offset = _append(self._file, f"{name}.npy", content.getvalue())
        _append(self._file, f"{name}.json", json.dumps(array.to_dict()).encode() + b"\n")
        return place_in_shard(self._name, offset, len(content.getvalue()))


@contextmanager
def _tar_written_whole(path: Path) -> Iterator[_Tar]:
    with written_whole(path) as temporary, tarfile.open(temporary, "w") as file:
        yield _Tar(file, path.name)


def _put(tars: Mapping[str, _Tar], cut: Any) -> Any:
    """Append a cut's codes, and its MIDI if cuts have it, to the tars.

    Returns:
      The cut with placeholders for them, as Shar has it, that say where they are.
    """
    if (condition_of(cut) == "midi") != (MIDI in tars):
        raise ValueError(
            f"cut {cut.id} carries {'no ' * (MIDI in tars)}MIDI events, the first cut of its shard "
            "is not like that: a shard holds cuts of one kind; tokenise them alike"
        )
    codes = as_stored(cut_codes(cut), f"cut {cut.id}")
    if not cut.has_recording:
        raise ValueError(
            f"cut {cut.id} names no recording, so that a shard could not tell where it ends: "
            "tokenise with egs/atepp/bin/tokenizer.py, or leave this manifest as it is"
        )
    shift = frame_shift_of(cut)
    assert shift, "cut_codes has found tokens"
    array = _placeholder(codes)
    tokens = TemporalArray(array, temporal_dim=0, frame_shift=shift, start=cut.start)
    placed = {
        FIELD: fastcopy(tokens, array=fastcopy(array, **tars[FIELD].put(cut.id, codes, tokens)))
    }
    if MIDI in tars:
        events = as_stored(midi_events(cut), f"cut {cut.id}")
        array = _placeholder(events)
        placed[MIDI] = fastcopy(array, **tars[MIDI].put(cut.id, events, array))
    return fastcopy(cut, features=None, custom={**(cut.custom or {}), **placed})


def _placeholder(stored: np.ndarray) -> Array:
    return Array(PLACEHOLDER, storage_path="", storage_key="", shape=list(stored.shape))


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
