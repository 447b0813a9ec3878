"""Token cuts on disk: reading them, whatever wrote them.

Three layouts are read. Ours: `audio_features`, a TemporalArray of int16 (T, Q), and the codec in
`custom["codec"]`; the same in shards (lhotse's Shar); and the older one of VALL-E: tokens as lhotse
`features`, mostly in HDF5.
Letters: T frames, Q quantizers.
"""

import copy
import importlib.util
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from lhotse import CutSet, MonoCut
from lhotse.array import Array, TemporalArray
from lhotse.features.io import is_in_memory
from lhotse.lazy import LazyManifestIterator, count_newlines_fast
from lhotse.utils import LOG_EPSILON

from valle.data.codec import CodecInfo
from valle.data.conditions import MIDI
from valle.data.conditions import condition_of as condition_of  # this module reads cuts
from valle.data.readers import PLACEHOLDER, is_placed, shards_of, with_rows_read
from valle.data.summary import Summary, read_summary

# VALL-E called its validation set "dev".
_NAMES = {
    "train": ("cuts_train",),
    "validation": ("cuts_validation", "cuts_dev"),
    "test": ("cuts_test",),
}
SPLITS = tuple(_NAMES)
MANIFEST_SUFFIX = ".jsonl.gz"
# Where the sound of a recording ends, if silence behind it was trimmed; in the cuts' `custom`.
SOUND_END = "sound_end_sec"


def manifest_path(folder: str | Path, split: str) -> Path:
    """The manifest of a split, under today's or VALL-E's name, or its folder of shards.

    Raises:
      FileNotFoundError: None is there; the message says what is.
      ValueError: There are both.
    """
    folder = Path(folder)
    for name in _NAMES[split]:
        file, shards = folder / f"{name}{MANIFEST_SUFFIX}", folder / name
        if file.is_file() and shards.is_dir():
            raise ValueError(
                f"{folder} holds both {file.name} and shards in {name}: which of them is meant? "
                "Move one of them away"
            )
        for path in (file, shards):
            if path.is_file() or path.is_dir():
                return path
    wanted = " or ".join(f"{name}{MANIFEST_SUFFIX}" for name in _NAMES[split])
    there = sorted(path.name for path in folder.glob("cuts_*")) if folder.is_dir() else []
    raise FileNotFoundError(
        f"no {wanted} in {folder} (found {', '.join(there) or 'none'}); "
        "make token manifests with egs/atepp/prepare.sh, or say where they are: --manifest-dir"
    )


def load_cuts(path: str | Path) -> CutSet:
    """Open a token manifest lazily.

    Storage paths of the tokens are relative to the manifest's folder and are resolved here, so a
    folder of tokens may be moved, and used from any working directory.

    Args:
      path: A `.jsonl.gz` or `.jsonl` of cuts, or a folder of shards.

    Returns:
      A lazy CutSet; each cut can `load_audio_features()` or, in the older layout,
      `load_features()`. `cut_codes` reads either.

    Raises:
      FileNotFoundError: There is no such file or folder.
      ValueError: It holds no cuts.
    """
    manifest = TokenManifest(Path(os.path.abspath(path)))  # it is opened again for each pass
    first = next(iter(manifest), None)
    if first is None:
        raise ValueError(f"{path} holds no cuts: prepare the data again, or take another split")
    if manifest.path.is_dir() and not is_placed(first):
        return CutSet.from_shar(in_dir=manifest.path)  # lhotse wrote it: codes come with the cuts
    return CutSet(manifest)


class TokenManifest:
    """The cuts of a manifest, read anew in each pass, that know where their tokens are now.

    Args:
      path: A file, or a folder of shards.

    Raises:
      FileNotFoundError: There is no such file or folder, or it holds no shards.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = shards_of(path) if path.is_dir() else [path]
        if not self.files or not self.files[0].is_file():
            raise FileNotFoundError(
                f"no {'shards (cuts.000000.jsonl.gz, ...) in' if path.is_dir() else 'manifest at'} "
                f"{path}"
            )
        self._keeps: Callable[[Any], bool] | None = None
        self._resolve = ResolvePaths(str(self.files[0].parent))

    def __iter__(self) -> Iterator[Any]:
        return self.in_order(self.files)

    def in_order(self, files: Iterable[Path]) -> Iterator[Any]:
        """The cuts with the shards in another order."""
        for file in files:
            cuts = map(self._resolve, LazyManifestIterator(file))
            yield from cuts if self._keeps is None else filter(self._keeps, cuts)

    def __len__(self) -> int:
        if self._keeps is not None:
            raise TypeError("how many cuts a filter keeps is only known by reading them all")
        summary = self.summary()
        return summary.num_cuts if summary else sum(map(count_newlines_fast, self.files))

    def filtered(self, keeps: Callable[[Any], bool]) -> "TokenManifest":
        """The same without the cuts that are not wanted."""
        other = copy.copy(self)
        other._keeps = keeps
        return other

    def summary(self) -> Summary | None:
        """What the whole manifest holds, without reading it; None where that is not known."""
        return read_summary(self.path)


class ResolvePaths:
    """Points a cut's arrays at the folder of its manifest; a class, since workers pickle it.

    Args:
      folder: Of the manifest.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __call__(self, cut: Any) -> Any:
        custom = getattr(cut, "custom", None) or {}
        events, tokens = custom.get(MIDI), custom.get("audio_features")
        if isinstance(events, Array):
            cut = cut.with_custom(MIDI, self._resolved(events))
        if isinstance(tokens, TemporalArray):
            resolved = replace(tokens, array=self._resolved(tokens.array))
            return cut.with_custom("audio_features", resolved)
        if getattr(cut, "has_features", False):
            features = cut.features
            storage_path = _resolve(features.storage_path, self.folder, as_it_stands=True)
            return replace(cut, features=replace(features, storage_path=storage_path))
        return cut

    def _resolved(self, array: Array) -> Array:
        if array.storage_type != PLACEHOLDER and not is_in_memory(array.storage_type):
            path = _resolve(array.storage_path, self.folder, as_it_stands=False)
            array = replace(array, storage_path=path)
        return with_rows_read(array, self.folder)


@lru_cache(maxsize=4096)
def _resolve(storage_path: str, folder: str, as_it_stands: bool) -> str:
    """Where a stored path is now: beside the manifest; else as it stands; else its name beside.

    Only the older layout has paths that are relative to a working directory. For ours, what lies
    there under the same name is of another corpus.
    """
    candidates = [
        os.path.join(folder, storage_path),  # an absolute path stays itself
        *([storage_path] if as_it_stands else []),
        os.path.join(folder, os.path.basename(storage_path)),
    ]
    return next((path for path in candidates if os.path.exists(path)), candidates[0])


def cut_codes(cut: Any) -> np.ndarray:
    """Read a cut's tokens.

    Returns:
      (T, Q) int64.

    Raises:
      ImportError: The tokens are in HDF5 and h5py is not installed.
      ValueError: No tokens, not a matrix, or not whole numbers; the message names the cut.
    """
    codes = _load(cut)
    if codes.ndim != 2:
        raise ValueError(f"cut {cut.id}: tokens have shape {codes.shape}, expected (T, Q)")
    if np.issubdtype(codes.dtype, np.floating):
        codes = _without_log_padding(codes)
        if not np.array_equal(codes, np.rint(codes)):
            raise ValueError(
                f"cut {cut.id}: {codes.dtype} values that are not whole numbers, so not tokens; "
                "are these acoustic features, or was a lossy (lilcom) storage used?"
            )
    return codes.astype(np.int64)


def _load(cut: Any) -> np.ndarray:
    if (getattr(cut, "custom", None) or {}).get("audio_features") is not None:
        _check_readable(cut.custom["audio_features"].array.storage_type)
        return cut.load_custom("audio_features")
    if isinstance(cut, MonoCut) and cut.has_features:
        _check_readable(cut.features.storage_type)
        return cut.load_features()
    raise ValueError(
        f"cut {cut.id} ({type(cut).__name__}) carries no tokens: expected `audio_features`, or "
        "`features` in the older layout; tokenise with egs/atepp/bin/tokenizer.py"
    )


def _check_readable(storage_type: str) -> None:
    if "hdf5" in storage_type and importlib.util.find_spec("h5py") is None:
        raise ImportError("these tokens are stored in HDF5: pip install 'valle[hdf5]' (h5py)")


def _without_log_padding(codes: np.ndarray) -> np.ndarray:
    """Without the trailing frames that lhotse's `pad` filled with the log of a tiny number."""
    padded = np.isclose(codes, LOG_EPSILON).all(axis=1)
    real = np.flatnonzero(~padded)
    return codes[: real[-1] + 1] if real.size else codes[:0]


def reaches_end(cut: Any, tolerance_sec: float) -> bool:
    """Whether a cut ends where its recording ends, so that "stop here" is true of it.

    Where silence at the end was trimmed, the end is that of the sound before it.

    Args:
      cut: A MonoCut. Without a recording, the span of its features stands for it.
      tolerance_sec: One frame: a recording's last frame may be a part of one.
    """
    if cut.has_recording:
        end = cut.recording.duration
    elif cut.has_features:
        end = cut.features.end
    else:
        return False
    end = min(end, (cut.custom or {}).get(SOUND_END, end))
    return bool(cut.end >= end - tolerance_sec - 1e-6)


def frame_shift_of(cut: Any) -> float | None:
    """Seconds from one frame of a cut's tokens to the next; None where it carries none."""
    tokens = (getattr(cut, "custom", None) or {}).get("audio_features")
    if isinstance(tokens, TemporalArray):
        return float(tokens.frame_shift)
    return float(cut.features.frame_shift) if getattr(cut, "has_features", False) else None


def codec_of_cut(cut: Any) -> CodecInfo | None:
    """The codec that a cut records, None where it records none."""
    recorded = (getattr(cut, "custom", None) or {}).get("codec")
    return None if recorded is None else CodecInfo.from_dict(recorded)


def codec_of(cuts: Iterable[Any]) -> CodecInfo | None:
    """The codec that made the tokens of these cuts; reads the whole manifest.

    Returns:
      The recorded codec; None, with a warning, where no cut records one (a manifest from
      elsewhere): quantizers and code range are then checked while loading.

    Raises:
      ValueError: Two codecs are mixed, or some cuts record one and others none; the message names
        the cut.
    """
    expected: CodecInfo | None = None
    raw: Any = None
    for index, cut in enumerate(cuts):
        recorded = (getattr(cut, "custom", None) or {}).get("codec")
        if index == 0:
            raw, expected = recorded, codec_of_cut(cut)
        elif recorded != raw:
            _check_equal(expected, codec_of_cut(cut), cut.id)
    if expected is None:
        warn_of_missing_codec()
    return expected


def warn_of_missing_codec() -> None:
    """Say what can and what cannot be checked of tokens from elsewhere."""
    logging.warning(
        "the manifest does not record which codec made its tokens; it is accepted as it is, "
        "only the number of quantizers and the range of the codes can be checked"
    )


def _check_equal(expected: CodecInfo | None, found: CodecInfo | None, cut_id: str) -> None:
    if expected is None or found is None:
        raise ValueError(
            f"cut {cut_id} records {'a' if found else 'no'} codec, the cuts before it "
            f"{'one' if expected else 'none'}: two manifests were mixed, tokenise them alike"
        )
    expected.check_same(found, where=f"cut {cut_id}")
