"""Writes tokens and manifests, so that a reader never meets half a file.

Letters: T frames, Q quantizers.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from lhotse import MonoCut, Recording
from lhotse.array import Array, TemporalArray, seconds_to_frames
from lhotse.audio import AudioSource

from valle.data.codec_info import CodecInfo
from valle.data.jsonl import write_jsonl
from valle.data.summary import Summary, write_summary
from valle.data.windows import plan_windows
from valle.utils.files import written_whole

TOKEN_DTYPE = np.int16  # holds codebooks of up to 32768 entries; lhotse has no use for uint16


def write_codes(folder: Path, key: str, codes: np.ndarray) -> None:
    """Store (T, Q) codes of one recording as `key`.npy.

    Raises:
      OSError: The file cannot be written; nothing is left of it.
      ValueError: Codes that do not fit into TOKEN_DTYPE.
    """
    stored = as_stored(codes, key)
    with written_whole(folder / f"{key}.npy") as temporary, open(temporary, "wb") as file:
        np.save(file, stored, allow_pickle=False)


def as_stored(codes: np.ndarray, name: str) -> np.ndarray:
    """Codes (T, Q) in TOKEN_DTYPE.

    Raises:
      ValueError: They do not fit; the message has the name.
    """
    if codes.size and int(codes.max()) > np.iinfo(TOKEN_DTYPE).max:
        raise ValueError(f"code {int(codes.max())} of {name} does not fit into {TOKEN_DTYPE}")
    return codes.astype(TOKEN_DTYPE)


def make_recording(
    id_: str, path: str, num_samples: int, sampling_rate: int, num_channels: int
) -> Recording:
    """Describe a sound file as it was decoded, for the cuts of its tokens."""
    return Recording(
        id=id_,
        sources=[AudioSource(type="file", channels=list(range(num_channels)), source=path)],
        sampling_rate=sampling_rate,
        num_samples=num_samples,
        duration=num_samples / sampling_rate,
    )


def stored_frames(duration_sec: float, codec: CodecInfo) -> int:
    """Frames kept of a recording: what lhotse will load for its duration.

    A codec rounds up, lhotse to the nearest; the cut-off rest is less than half a frame of sound.
    """
    return seconds_to_frames(duration_sec, frame_shift=1 / codec.frame_rate)


def whole_cut(
    recording: Recording, folder: str, key: str, num_frames: int, codec: CodecInfo
) -> MonoCut:
    """A cut of a whole recording that carries its tokens.

    Args:
      recording: The sound; its file need not exist any more.
      folder: Where the tokens are, relative to the manifest.
      key: Their name there.
      num_frames: T as stored.
      codec: What made them.
    """
    array = Array(
        storage_type="numpy_files",
        storage_path=folder,
        storage_key=f"{key}.npy",
        shape=[num_frames, codec.num_quantizers],
    )
    tokens = TemporalArray(array, temporal_dim=0, frame_shift=1 / codec.frame_rate, start=0)
    return MonoCut(
        id=recording.id,
        start=0,
        duration=recording.duration,
        channel=0,
        recording=recording,
        custom={"audio_features": tokens, "codec": codec.to_dict()},
    )


def cut_windows(cut: Any, codec: CodecInfo, window: int, minimum: int) -> Iterator[Any]:
    """Cut a token cut into excerpts; see `plan_windows` for the arguments, in frames.

    Yields:
      Cuts named after the given one, "-0000" and so on appended, none longer than the window. The
      last one ends where the given one ends, within half a frame.
    """
    num_frames = stored_frames(cut.duration, codec)
    for index, (start, stop) in enumerate(plan_windows(num_frames, window, minimum)):
        offset = start / codec.frame_rate
        # at the end, half a frame may be missing of the last frame, or be left over behind it
        end = min(stop / codec.frame_rate, cut.duration)
        excerpt = cut.truncate(offset=offset, duration=end - offset, preserve_id=True)
        yield excerpt.with_id(f"{cut.id}-{index:04d}")


def write_cuts(path: Path, cuts: Iterable[Any]) -> int:
    """Write a manifest, whole or not at all, and its summary beside it.

    The same cuts make the same bytes.

    Returns:
      How many cuts it holds.
    """
    summary = Summary()
    count = write_jsonl(path, (cut.to_dict() for cut in summary.counted(cuts)))
    write_summary(path, summary)
    return count
