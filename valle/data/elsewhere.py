"""Codes from elsewhere in a cut's recording, as a prompt that says nothing of the cut itself.

Letters: P prompt frames, N frames of the recording, Q quantizers.
"""

import hashlib
from typing import Any

import numpy as np
from lhotse.array import TemporalArray, seconds_to_frames
from lhotse.features.io import get_reader

from valle.data.readers import WHOLE_FILES


def codes_elsewhere(cut: Any, seconds: float) -> np.ndarray:
    """Codes of the cut's recording that lie outside the cut; which of them, its id decides.

    So a batch depends on its cuts alone, in any process and any epoch. Where neither before nor
    after the cut there is room for so much, the larger of the two is given whole.

    Args:
      cut: With tokens stored by recording, as `--format numpy` has them.
      seconds: How much is wanted.

    Returns:
      (P, Q) int64; P is 0 where the recording has nothing but the cut.

    Raises:
      ValueError: The storage holds the cut's codes alone.
    """
    tokens = (getattr(cut, "custom", None) or {}).get("audio_features")
    if not isinstance(tokens, TemporalArray) or tokens.array.storage_type not in WHOLE_FILES:
        raise ValueError(
            f"cut {cut.id} does not lie among the tokens of its whole recording, so that no prompt "
            "can be taken from elsewhere in it: tokenise with --format numpy, or take another "
            "--prefix-mode"
        )
    start, stop = _span_elsewhere(cut, tokens, seconds)
    reader = get_reader(tokens.array.storage_type)(tokens.array.storage_path)
    codes = reader.read(
        tokens.array.storage_key, left_offset_frames=start, right_offset_frames=stop
    )
    return codes.astype(np.int64)


def _span_elsewhere(cut: Any, tokens: TemporalArray, seconds: float) -> tuple[int, int]:
    shift = tokens.frame_shift
    first = seconds_to_frames(cut.start - tokens.start, shift)
    last = first + seconds_to_frames(cut.duration, shift)
    return _choose(cut.id, first, last, tokens.array.shape[0], round(seconds / shift))


def _choose(name: str, first: int, last: int, length: int, wanted: int) -> tuple[int, int]:
    """A span of `wanted` frames of [0, length) outside [first, last); a shorter one if need be."""
    spans = ((0, first), (min(last, length), length))
    before, after = (max(high - low - wanted + 1, 0) for low, high in spans)  # possible starts
    if before + after == 0:
        return max(spans, key=lambda span: span[1] - span[0])
    drawn = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % (before + after)
    start = drawn if drawn < before else spans[1][0] + drawn - before
    return start, start + wanted
