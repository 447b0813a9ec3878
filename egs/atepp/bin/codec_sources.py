"""Which recordings a codec learns from and which it is judged on, as the command line says.

The splits are those of tokenizer.py: the same flags, the same table, the same draw. So what a codec
and a language model never heard is the same.
"""

import argparse
import json
import logging
from pathlib import Path
from typing import Any

from tokenizer_splits import add_split_arguments, assign_splits

from valle.data.manifest import SPLITS, manifest_path
from valle.data.sources import Source, find_recordings, read_manifest

RECORDINGS = "recordings.jsonl"  # what tokenizer.py says of each recording


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that `open_splits` reads."""
    group = parser.add_argument_group("recordings")
    source = group.add_mutually_exclusive_group(required=True)
    add = source.add_argument
    add("--src-dir", type=Path, help="folder of wav, flac, ogg, mp3; searched deep")
    add("--manifest", type=Path, help="lhotse recordings or cuts, .jsonl(.gz)")
    add("--manifest-dir", type=Path, help="what tokenizer.py wrote: its recordings and splits")
    add_split_arguments(parser)


def open_splits(args: argparse.Namespace) -> dict[str, list[Source]]:
    """Split -> its recordings.

    Raises:
      FileNotFoundError, ValueError: There are no recordings, or the splits do not fit them.
    """
    if args.manifest_dir is not None:
        splits = _prepared_splits(args.manifest_dir)
    else:
        sources = find_recordings(args.src_dir) if args.src_dir else read_manifest(args.manifest)
        found = assign_splits(sources, args)
        splits = {name: [s for s in sources if found.get(s.id) == name] for name in SPLITS}
    sizes = ", ".join(f"{name} {len(sources)}" for name, sources in splits.items())
    logging.info(f"recordings: {sizes}")
    return splits


def _prepared_splits(folder: Path) -> dict[str, list[Source]]:
    path = folder / RECORDINGS
    if not path.is_file():
        return {name: _of_cuts(folder, name) for name in SPLITS}
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    return {
        name: [_source(row, folder) for row in rows if row.get("split") == name] for name in SPLITS
    }


def _source(row: dict[str, Any], folder: Path) -> Source:
    """A recording whose path is from here, or from the folder that tells of it."""
    path, beside = Path(row["path"]), folder / row["path"]
    found = beside if not path.is_file() and beside.is_file() else path
    return Source(row["id"], str(found), row["id"])


def _of_cuts(folder: Path, split: str) -> list[Source]:
    """The recordings of a split's token cuts, for manifests from elsewhere."""
    try:
        path = manifest_path(folder, split)
    except FileNotFoundError:
        if split == "train":
            raise
        return []
    return read_manifest(path)


def held_out(splits: dict[str, list[Source]], names: tuple[str, ...]) -> list[Source]:
    """The first of these splits that has recordings.

    Raises:
      ValueError: None has any.
    """
    for name in names:
        if splits[name]:
            return splits[name]
    raise ValueError(
        f"no recording in {' or '.join(names)}: a codec is judged on what it never heard; bring "
        "more recordings, or see --valid-fraction and --test-fraction"
    )
