"""Whether a cut's tokens are what cut and codec say of them, and whether all shards are there.

Letters: T frames, Q quantizers.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from lhotse.array import TemporalArray, seconds_to_frames

from valle.data.codec_info import CodecInfo
from valle.data.collation import check_codes
from valle.data.conditions import condition_of, midi_events, text_symbols
from valle.data.manifest import frame_shift_of
from valle.data.midi import notes_of
from valle.data.readers import WHOLE_FILES, shards_of
from valle.data.storage import TOKEN_DTYPE
from valle.data.summary import promised_cuts
from valle.data.text import SymbolTable


def check_cut(
    cut: Any, codes: np.ndarray, codec: CodecInfo | None, num_quantizers: int | None = None
) -> None:
    """Compare a cut's tokens with what cut and codec say of them.

    Args:
      cut: The cut.
      codes: (T, Q) int64, its tokens.
      codec: What made them, None where that is not recorded.
      num_quantizers: Q of the cuts before it; asked where there is no codec.

    Raises:
      ValueError: They disagree.
    """
    if codec is not None:
        num_quantizers = codec.num_quantizers
    check_codes(codes, f"cut {cut.id}", num_quantizers, codec.codebook_size if codec else None)
    shift = frame_shift_of(cut)
    if codec and shift and abs(shift * codec.frame_rate - 1) > 1e-6:
        raise ValueError(
            f"cut {cut.id} has a frame every {shift} s, its codec one every {1 / codec.frame_rate}"
        )
    expected = seconds_to_frames(cut.duration, frame_shift=shift) if shift else len(codes)
    if len(codes) != expected:
        raise ValueError(
            f"cut {cut.id} lasts {cut.duration} s, {expected} frames, but has {len(codes)}"
        )


def read_condition(cut: Any) -> tuple[int, set[str]]:
    """Read what a cut carries for a model to read.

    Returns:
      How many notes or symbols there are, and the symbols, of a text.

    Raises:
      ValueError: They cannot be embedded, or are of another span of the recording.
      OSError: They cannot be read.
    """
    condition = condition_of(cut)
    if condition == "midi":
        events = midi_events(cut)
        try:
            return len(notes_of(events)), set()
        except ValueError as error:
            raise ValueError(f"cut {cut.id}: {error}") from error
    if condition == "text":
        symbols = text_symbols(cut)
        return len(symbols), set(symbols)
    return 0, set()


def unknown_symbols(path: Path, symbols: Iterable[str]) -> list[str]:
    """Symbols that a table does not have, sorted.

    Raises:
      FileNotFoundError: There is no table.
      ValueError: It is no such table.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no table of text symbols at {path}: prepare again")
    return sorted(set(symbols).difference(SymbolTable.read(path).symbols))


class StoredArrays:
    """Compares token files with what cuts say of them; a file is opened once for all its cuts.

    Attributes:
      warnings: Sentences on files that can be read and are not as the tokenizer writes them.
    """

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self._last: Path | None = None  # the cuts of a recording follow each other
        self._dtypes: set[np.dtype] = {np.dtype(TOKEN_DTYPE)}

    def check(self, cut: Any) -> None:
        """Look at the file of a cut's tokens; other storages are passed over.

        Raises:
          ValueError: The file holds another shape than the cut says, or no integers.
          OSError, EOFError: It cannot be read.
        """
        tokens = (getattr(cut, "custom", None) or {}).get("audio_features")
        if not isinstance(tokens, TemporalArray) or tokens.array.storage_type not in WHOLE_FILES:
            return
        path = Path(tokens.array.storage_path) / tokens.array.storage_key
        if path == self._last:
            return
        stored = np.load(path, mmap_mode="r", allow_pickle=False)
        if stored.shape != tuple(tokens.array.shape):
            raise ValueError(
                f"cut {cut.id}: {path} holds an array {stored.shape}, its cut says "
                f"{tuple(tokens.array.shape)}: another file took its place, tokenise again"
            )
        self._check_dtype(cut, path, stored.dtype)
        self._last = path

    def _check_dtype(self, cut: Any, path: Path, dtype: np.dtype) -> None:
        if not np.issubdtype(dtype, np.integer):
            raise ValueError(
                f"cut {cut.id}: {path} holds {dtype}, expected {np.dtype(TOKEN_DTYPE)}: these are "
                "no tokens, or a lossy storage wrote them; tokenise the recording again"
            )
        if dtype not in self._dtypes:
            self._dtypes.add(dtype)
            self.warnings.append(
                f"{path} holds {dtype}, and others may: tokens fit into {np.dtype(TOKEN_DTYPE)}"
            )


def missing_shards(manifest: Path, num_cuts: int) -> list[str]:
    """What a folder of shards lacks; a manifest in one file cannot lack a part unseen.

    Args:
      manifest: A file or a folder.
      num_cuts: How many cuts were read.

    Returns:
      Sentences: numbers that are left out, and cuts fewer or more than its summary says.
    """
    if not manifest.is_dir():
        return []
    there = _numbers(shards_of(manifest))
    named = there | _numbers(manifest.glob("*.tar"))
    problems = [
        f"{manifest} has no cuts.{number:06d}.jsonl.gz: copy that shard again, or prepare again"
        for number in range(max(named, default=-1) + 1)
        if number not in there
    ]
    promised = promised_cuts(manifest)
    if promised is not None and promised != num_cuts:
        problems.append(
            f"{manifest} holds {num_cuts} cuts, {promised} by the summary beside it: shards are "
            "missing, or of another preparation; copy it again, or prepare again"
        )
    return problems


def _numbers(paths: Iterable[Path]) -> set[int]:
    """Of shards: 12 for cuts.000012.jsonl.gz."""
    return {int(part) for path in paths if (part := path.name.split(".")[1]).isdecimal()}
