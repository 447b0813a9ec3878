"""The MIDI files of recordings, and the events of excerpts on the disk.

A recording and its MIDI have the same path below their folders, endings aside: recordings/a/1.flac
and midi/a/1.mid. No source file is ever written to.
"""

import hashlib
import os
import unicodedata
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path, PurePath

import numpy as np
from lhotse.array import Array

from valle.data.midi import Notes, check_notes, read_notes
from valle.data.midi_reading import VERSION
from valle.utils.files import written_whole

MIDI_SUFFIXES = (".mid", ".midi")
EVENT_FOLDER = "midi_tokens"  # beside the manifests: one file an excerpt


class MidiFolder:
    """Which MIDI file belongs to which recording.

    Args:
      folder: Of MIDI files; searched deep.
      src_dir: Of the recordings. None for those of a manifest, that may lie anywhere: there a MIDI
        file belongs to a recording whose path ends with the whole path of the file below `folder`,
        and where several do, the one with the longest.

    Raises:
      FileNotFoundError: No such folder.
      ValueError: It holds no MIDI file, or two for one name.
    """

    def __init__(self, folder: Path, src_dir: Path | None = None) -> None:
        if not folder.is_dir():
            raise FileNotFoundError(f"no folder of MIDI files at {folder}; see --midi-dir")
        self.folder, self._src_dir = folder, src_dir
        self._paths: dict[str, Path] = {}
        for path in _midi_below(folder):
            first = self._paths.setdefault(_key(path.relative_to(folder)), path)
            if first != path:
                raise ValueError(
                    f"{first} and {path} differ by their ending alone, expected one MIDI file for "
                    "a recording: move one of them away"
                )
        if not self._paths:
            raise ValueError(f"no {' or '.join(MIDI_SUFFIXES)} file below {folder}")

    def find(self, recording: str | PurePath) -> Path | None:
        """The MIDI file of the recording in a sound file, None where there is none.

        Raises:
          ValueError: The file does not lie below `src_dir`.
        """
        sound = PurePath(recording)
        if self._src_dir is not None:
            return self._paths.get(_key(sound.relative_to(self._src_dir)))
        tails = (PurePath(*sound.parts[start:]) for start in range(len(sound.parts)))
        return next(
            (self._paths[key] for tail in tails if (key := _key(tail)) in self._paths), None
        )


def _midi_below(folder: Path) -> Iterable[Path]:
    return sorted(
        Path(place, name)
        for place, _, names in os.walk(folder)
        for name in names
        if Path(name).suffix.lower() in MIDI_SUFFIXES
    )


def _key(path: PurePath) -> str:
    """The same for paths that differ by their ending, or by how accents are put."""
    return unicodedata.normalize("NFC", path.with_suffix("").as_posix())


class NotesCache:
    """The notes of MIDI files, read once: a parser in Python takes its time.

    A file's content decides the name under which its notes are kept, so that one that was changed
    is read again.

    Args:
      folder: Where they are kept; safe to delete.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def notes(self, path: Path) -> Notes:
        """The notes of a MIDI file, (N, 4); see `valle.data.midi.read_notes`.

        Raises:
          ValueError: It cannot be read, or is no MIDI file of use.
          OSError: Its notes cannot be kept.
          ImportError: mido is missing.
        """
        kept = self.folder / f"{_digest(path)}-{VERSION}.npy"
        if kept.is_file():
            try:
                notes = np.load(kept, allow_pickle=False)
                check_notes(notes)
                return notes
            except (ValueError, EOFError):
                pass  # damaged: made again
        notes = read_notes(path)
        _write_array(kept, notes)
        return notes


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:24]
    except OSError as error:
        raise ValueError(
            f"cannot read {path} ({error}), expected a MIDI file: give it back, or its permission"
        ) from error


def store_events(folder: Path, key: str, events: np.ndarray) -> Array:
    """Store the events (S, 6) of an excerpt as `midi_tokens/key.npy` in a folder of manifests.

    Returns:
      Their description for a cut of a manifest in that folder.

    Raises:
      OSError: The file cannot be written; nothing is left of it.
    """
    _write_array(folder / EVENT_FOLDER / f"{key}.npy", events)
    return Array("numpy_files", EVENT_FOLDER, f"{key}.npy", list(events.shape))


def events_in_memory(events: np.ndarray) -> Array:
    """The same without a file, for cuts that go into shards."""
    # lhotse's readers of memory take bytes for a key
    return Array("memory_npy", "", _as_npy(events), list(events.shape))


def _write_array(path: Path, array: np.ndarray) -> None:
    """Write an array, whole or not at all; a file that holds the same already is left alone."""
    content = _as_npy(array)
    if path.is_file() and path.read_bytes() == content:
        return
    with written_whole(path) as temporary:
        temporary.write_bytes(content)


def _as_npy(array: np.ndarray) -> bytes:
    content = BytesIO()
    np.save(content, array, allow_pickle=False)
    return content.getvalue()
