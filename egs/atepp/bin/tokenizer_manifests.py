"""Tokens that are stored -> the manifests of the splits."""

import argparse
import logging
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lhotse.utils import fastcopy
from tokenizer_excerpts import Unconditioned

from valle.data.codec_info import CodecInfo
from valle.data.conditions import MIDI, MIDI_SPAN
from valle.data.manifest import MANIFEST_SUFFIX, SPLITS, ResolvePaths
from valle.data.shar import SHARD_SIZE, write_shards
from valle.data.sources import Source
from valle.data.storage import make_recording, stored_frames, whole_cut, write_cuts
from valle.data.windows import plan_windows

TOKEN_FOLDER = "tokens"  # beside the manifests


def add_format_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that `write_manifests` reads, beside those of windows."""
    add = parser.add_argument_group(
        "storage", "how the tokens of the splits are stored; training finds out which it is"
    ).add_argument
    add(
        "--format",
        choices=("numpy", "shar"),
        default="numpy",
        help="numpy: manifests that point to one file of tokens a recording; shar: lhotse's Shar, "
        "many cuts in one file, for network storage and many nodes",
    )
    add("--shard-size", type=_whole, default=SHARD_SIZE, help="cuts in a file, with --format shar")


def _whole(text: str) -> int:
    """For argparse, so that a wrong size shows before hours of work."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {text}")
    return int(text)


def write_manifests(
    sources: list[Source],
    entries: Mapping[str, dict[str, Any]],
    splits: Mapping[str, str],
    codec: CodecInfo,
    condition: Unconditioned,
    args: argparse.Namespace,
) -> Counter[str]:
    """Write the manifest of each split.

    Args:
      sources: The recordings that were kept.
      entries: What the log says of each, by id.
      splits: The split of each, by id.
      codec: What made the tokens.
      condition: What the cuts carry beside these.
      args: The command line.

    Returns:
      Cuts written, by split.

    Raises:
      OSError: Something cannot be written.
      ValueError: Windows or shards of a size that cannot be.
    """
    counts: Counter[str] = Counter()
    window, minimum = window_frames(args, codec)
    for split in SPLITS:
        cuts = (
            excerpt
            for source in sources
            if splits[source.id] == split
            for whole in token_cuts(source, entries[source.id], codec)
            for excerpt in condition.excerpts(source, whole, codec, window, minimum)
        )
        counts[split] = write_split(args, split, cuts)
        condition.wrote(split)
        if counts[split] == 0:
            logging.warning(f"no recording is in the split {split}: it gets no manifest")
    return counts


def write_split(args: argparse.Namespace, split: str, cuts: Iterable[Any]) -> int:
    """Write a split in the format asked for, and delete what it had in the other.

    Returns:
      How many cuts it has; without any, nothing stays.
    """
    shards: Path = args.output_dir / f"cuts_{split}"
    manifest = shards.with_name(shards.name + MANIFEST_SUFFIX)
    as_shards = args.format == "shar"
    if as_shards:
        readable = map(ResolvePaths(str(args.output_dir)), cuts)
        count = write_shards(shards, readable, args.shard_size)
    else:
        count = write_cuts(manifest, cuts)
        shutil.rmtree(shards, ignore_errors=True)
    if as_shards or count == 0:
        manifest.unlink(missing_ok=True)
    return count


def window_frames(args: argparse.Namespace, codec: CodecInfo) -> tuple[int, int]:
    """`--window` and `--min-window` in whole frames, rounded down: 15 s stay within 15 s.

    Raises:
      ValueError: They cannot be.
    """
    window, minimum = (int(sec * codec.frame_rate + 1e-6) for sec in (args.window, args.min_window))
    plan_windows(0, window, minimum)
    return window, minimum


def has_cuts(source: Source, entry: dict[str, Any], codec: CodecInfo) -> bool:
    """Whether a recording has a single cut of a frame or more."""
    if not source.cuts:
        return bool(entry["num_frames"] > 0)
    return any(True for _ in token_cuts(source, entry, codec))


def token_cuts(source: Source, entry: dict[str, Any], codec: CodecInfo) -> Iterator[Any]:
    """Cuts that carry tokens: the whole recording, or what a manifest's cuts take of it."""
    facts = {key: entry[key] for key in ("num_samples", "sampling_rate", "num_channels")}
    recording = make_recording(source.id, source.path, **facts)
    whole = whole_cut(recording, TOKEN_FOLDER, entry["key"], entry["num_frames"], codec)
    if not source.cuts:
        yield whole
    for cut in source.cuts:
        duration = min(cut.duration, recording.duration - cut.start)
        if duration <= 0:
            continue
        # off the grid of frames, start and duration may both be rounded up, to beyond the end
        last = stored_frames(cut.start, codec) + stored_frames(duration, codec)
        duration -= max(last - entry["num_frames"], 0) / codec.frame_rate
        if duration * codec.frame_rate >= 1:
            custom = {**(cut.custom or {}), **whole.custom}
            for key in (MIDI, MIDI_SPAN):  # of an earlier tokenisation, and of its excerpts
                custom.pop(key, None)
            yield fastcopy(
                cut, duration=duration, recording=recording, features=None, custom=custom
            )
