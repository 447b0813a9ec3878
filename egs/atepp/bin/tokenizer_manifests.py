"""Tokens that are stored -> the manifests of the splits."""

import argparse
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from lhotse.utils import fastcopy

from valle.data.codec_info import CodecInfo
from valle.data.manifest import SPLITS
from valle.data.sources import Source
from valle.data.storage import cut_windows, make_recording, whole_cut, write_cuts
from valle.data.windows import plan_windows

TOKEN_FOLDER = "tokens"  # beside the manifests


def write_manifests(
    sources: list[Source],
    entries: Mapping[str, dict[str, Any]],
    splits: Mapping[str, str],
    codec: CodecInfo,
    args: argparse.Namespace,
) -> Counter[str]:
    """Write the manifest of each split.

    Args:
      sources: The recordings that were kept.
      entries: What the log says of each, by id.
      splits: The split of each, by id.
      codec: What made the tokens.
      args: The command line.

    Returns:
      Cuts written, by split.
    """
    counts: Counter[str] = Counter()
    window, minimum = window_frames(args, codec)
    for split in SPLITS:
        cuts = (
            excerpt
            for source in sources
            if splits[source.id] == split
            for whole in token_cuts(source, entries[source.id], codec)
            for excerpt in cut_windows(whole, codec, window, minimum)
        )
        path = args.output_dir / f"cuts_{split}.jsonl.gz"
        counts[split] = write_cuts(path, cuts)
        if counts[split] == 0:
            path.unlink()
            logging.warning(f"no recording is in the split {split}: {path.name} is not written")
    return counts


def window_frames(args: argparse.Namespace, codec: CodecInfo) -> tuple[int, int]:
    """`--window` and `--min-window` in whole frames, rounded down: 15 s stay within 15 s.

    Raises:
      ValueError: They cannot be.
    """
    window, minimum = (int(sec * codec.frame_rate + 1e-6) for sec in (args.window, args.min_window))
    plan_windows(0, window, minimum)
    return window, minimum


def token_cuts(source: Source, entry: dict[str, Any], codec: CodecInfo) -> Iterator[Any]:
    """Cuts that carry tokens: the whole recording, or what a manifest's cuts take of it."""
    facts = {key: entry[key] for key in ("num_samples", "sampling_rate", "num_channels")}
    recording = make_recording(source.id, source.path, **facts)
    whole = whole_cut(recording, TOKEN_FOLDER, entry["key"], entry["num_frames"], codec)
    if not source.cuts:
        yield whole
    for cut in source.cuts:
        duration = min(cut.duration, recording.duration - cut.start)
        if duration * codec.frame_rate >= 1:
            custom = {**(cut.custom or {}), **whole.custom}
            yield fastcopy(
                cut, duration=duration, recording=recording, features=None, custom=custom
            )
