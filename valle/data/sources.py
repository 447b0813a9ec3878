"""Finds the recordings to tokenise: a folder of sound files, or a lhotse manifest."""

import gzip
import hashlib
import json
import logging
import os
import re
import unicodedata
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lhotse import Recording, load_manifest_lazy
from lhotse.array import TemporalArray

from valle.data.audio import AUDIO_SUFFIXES

_LONGEST_KEY = 150  # bytes; file systems allow 255, and a suffix and a temporary mark are added


@dataclass(frozen=True)
class Source:
    """A recording to tokenise.

    Attributes:
      id: Of the recording.
      path: Its sound file.
      key: Name for its token file: the id with what a file name cannot hold replaced; unique.
      cuts: The cuts of a cut manifest that lie in it; empty where the whole recording is meant.
    """

    id: str
    path: str
    key: str
    cuts: list[Any] = field(default_factory=list, compare=False)


def find_recordings(folder: str | Path) -> list[Source]:
    """All sound files below a folder, sorted by path.

    An id is the path below the folder without its extension and with "__" between folders. A link
    to a file that is not there is listed, so that it can be counted; links to folders are not
    followed. A folder that may not be read is logged.

    Raises:
      FileNotFoundError: No such folder.
      ValueError: It holds no sound file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder of recordings at {folder}")
    files = sorted(
        Path(place, name)
        for place, _, names in os.walk(folder, onerror=_log_closed_folder)
        for name in names
        if Path(name).suffix.lower() in AUDIO_SUFFIXES
    )
    if not files:
        raise ValueError(f"no {', '.join(AUDIO_SUFFIXES)} file below {folder}")
    relative = [path.relative_to(folder) for path in files]
    keys = _unique_keys([path.as_posix() for path in relative], _key_of_path)
    return [
        Source(keys[r.as_posix()], str(p), keys[r.as_posix()])
        for r, p in zip(relative, files, strict=True)
    ]


def read_manifest(path: str | Path) -> list[Source]:
    """The recordings of a lhotse manifest of recordings or of cuts, sorted by id.

    Raises:
      FileNotFoundError: No such manifest.
      ValueError: Another kind of manifest, an empty or damaged one, a recording that is not a
        single sound file as it is, an id that stands for two recordings or two ids for one, or
        cuts of single channels.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no manifest at {path}")
    paths: dict[str, str] = {}
    ids: dict[str, str] = {}
    cuts: dict[str, list[Any]] = defaultdict(list)
    for item in _items(path):
        recording = item if isinstance(item, Recording) else getattr(item, "recording", None)
        if not isinstance(recording, Recording):
            raise ValueError(
                f"{path} holds a {type(item).__name__}, expected recordings, or cuts that keep "
                "their recording"
            )
        source = _single_file(recording, path)
        if paths.setdefault(recording.id, source) != source:
            raise ValueError(f"{path}: recording id {recording.id} stands for two files")
        if (first := ids.setdefault(os.path.abspath(source), recording.id)) != recording.id:
            raise ValueError(
                f"{path}: {source} is the file of recording {first} and of recording "
                f"{recording.id}, expected one id a file, as both would have the same tokens, in "
                "several splits perhaps: keep one of them, or save the other as a sound file"
            )
        if item is not recording:
            _check_channels(item, path)
            cuts[recording.id].append(item)
    if not paths:
        raise ValueError(f"{path} is empty")
    keys = _unique_keys(paths, lambda id_: _safe(id_))
    return [Source(id_, paths[id_], keys[id_], cuts.get(id_, [])) for id_ in sorted(paths)]


def _items(path: str | Path) -> Iterator[Any]:
    """What a manifest holds.

    Raises:
      ValueError: It cannot be read to its end.
    """
    try:
        yield from load_manifest_lazy(path) or ()
    except (
        EOFError,
        gzip.BadGzipFile,
        zlib.error,
        json.JSONDecodeError,
        UnicodeDecodeError,
    ) as error:
        raise ValueError(
            f"the manifest {path} is damaged: {error}. Expected lines of JSON to its end; was it "
            "copied in part? Copy or make it again"
        ) from error


def _check_channels(cut: Any, path: str | Path) -> None:
    """Refuse a cut of some channels, as tokens are those of the mix of all of them."""
    if isinstance((cut.custom or {}).get("audio_features"), TemporalArray):
        return  # tokens of the mix, by this very program: what it calls the channel is the mix
    channels = cut.channel if isinstance(cut.channel, list) else [cut.channel]
    if set(channels) != set(cut.recording.channel_ids):
        raise ValueError(
            f"{path}: cut {cut.id} takes channel {cut.channel} of recording {cut.recording.id}, "
            f"expected all, {cut.recording.channel_ids}, as the channels are mixed: make cuts of "
            "all channels (a MultiCut), or save that channel as a sound file"
        )


def _log_closed_folder(error: OSError) -> None:
    logging.warning(f"a folder cannot be searched, recordings in it are left out: {error}")


def _single_file(recording: Any, path: str | Path) -> str:
    sources = recording.sources
    if len(sources) != 1 or sources[0].type != "file":
        kinds = ", ".join(source.type for source in sources)
        raise ValueError(
            f"{path}: recording {recording.id} comes from {len(sources)} sources ({kinds}), "
            "expected one file; save it as a sound file first"
        )
    if recording.transforms:
        kinds = ", ".join(
            str(t["name"] if isinstance(t, dict) else type(t).__name__)
            for t in recording.transforms
        )
        raise ValueError(
            f"{path}: recording {recording.id} is its file changed by {kinds}, expected the file "
            "as it is, of which tokens are made: save the changed sound as a sound file first"
        )
    return str(sources[0].source)


def file_key(name: str) -> str:
    """A name for a file after an id; with a hash where that holds what a file name cannot."""
    safe = _safe(name)
    return safe if safe == name else f"{safe}-{_short_hash(name)}"


def _key_of_path(path: str) -> str:
    return _safe("__".join(Path(path).with_suffix("").parts))


def _safe(name: str) -> str:
    """Letters and digits of any script, dot, dash and underscore; not hidden, not too long."""
    name = re.sub(r"[^\w.\-]+", "_", name).lstrip(".") or "recording"
    return name.encode()[:_LONGEST_KEY].decode(errors="ignore")


def _unique_keys(names: Iterable[str], key: Callable[[str], str]) -> dict[str, str]:
    """A key for each name; those that would share one, in any case, get a hash of the name."""
    by_key: dict[str, list[str]] = defaultdict(list)
    for name in names:
        by_key[_alike(key(name))].append(name)
    return {
        name: key(name) + (f"-{_short_hash(name)}" if len(sharing) > 1 else "")
        for sharing in by_key.values()
        for name in sharing
    }


def _alike(key: str) -> str:
    """The same for names that a file system may take for one: for case, or how accents are put."""
    return unicodedata.normalize("NFC", key).casefold()


def _short_hash(name: str) -> str:
    return hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:8]
