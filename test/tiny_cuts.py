"""Token manifests without any sound: random codes of recordings that need not exist."""

from pathlib import Path

import numpy as np

from valle.data.codec_info import CodecInfo
from valle.data.storage import (
    cut_windows,
    make_recording,
    stored_frames,
    whole_cut,
    write_codes,
    write_cuts,
)

CODEC = CodecInfo("tiny", 32000, 50.0, 4, 64, "0123456789abcdef")


def tiny_codes(seed: int, num_frames: int, codec: CodecInfo = CODEC) -> np.ndarray:
    """(T, Q) int64."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, codec.codebook_size, (num_frames, codec.num_quantizers))


def write_manifest(
    folder: Path,
    seconds: list[float],
    split: str = "train",
    codec: CodecInfo = CODEC,
    window_sec: float = 1000.0,
    minimum_sec: float = 0.0,
) -> Path:
    """Recordings `{split}-{i}` of the given lengths, cut into windows, with random tokens."""
    (folder / "tokens").mkdir(parents=True, exist_ok=True)
    window, minimum = (round(sec * codec.frame_rate) for sec in (window_sec, minimum_sec))
    cuts = []
    for index, length in enumerate(seconds):
        id_ = f"{split}-{index}"
        recording = make_recording(id_, f"{id_}.flac", round(length * 44100), 44100, 2)
        num_frames = stored_frames(recording.duration, codec)
        write_codes(folder / "tokens", id_, tiny_codes(index, num_frames, codec))
        whole = whole_cut(recording, "tokens", id_, num_frames, codec)
        cuts += cut_windows(whole, codec, window, minimum)
    path = folder / f"cuts_{split}.jsonl.gz"
    write_cuts(path, cuts)
    return path
