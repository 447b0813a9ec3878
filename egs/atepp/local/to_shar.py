#!/usr/bin/env python3
"""Copy token manifests of any layout, with their tokens, into lhotse's Shar format.

Usage:

  python3 egs/atepp/local/to_shar.py --manifest-dir data/tokenized --output-dir data/shar
  python3 egs/atepp/bin/trainer_audiolm.py --manifest-dir data/shar
"""

import argparse
import logging
import sys
from pathlib import Path

from tqdm import tqdm

from valle.data.datamodule import TEXT_TABLE
from valle.data.manifest import SPLITS, load_cuts, manifest_path
from valle.data.shar import SHARD_SIZE, write_shards
from valle.utils.files import copy_whole

# which the statistics page and training read, if they are there; the last tells training how texts
# became symbols
_BESIDE = ("recordings.jsonl", TEXT_TABLE, "tokenizer.json")


def get_parser() -> argparse.ArgumentParser:
    """All that can be set."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--manifest-dir", type=Path, default=Path("data/tokenized"), help="what to copy")
    add("--output-dir", type=Path, required=True, help="another folder")
    add("--shard-size", type=int, default=SHARD_SIZE, help="cuts in a file")
    return parser


def to_shar(manifest_dir: Path, output_dir: Path, shard_size: int) -> dict[str, int]:
    """Copy every split that is there.

    Returns:
      Cuts by split.

    Raises:
      FileNotFoundError: There is no training manifest.
      OSError: Something cannot be read or written.
      ValueError: The folders are the same; or see `write_shards`.
    """
    if manifest_dir.resolve() == output_dir.resolve():
        raise ValueError(f"{output_dir} holds the manifests to copy: choose another --output-dir")
    counts = {}
    for split in SPLITS:
        try:
            path = manifest_path(manifest_dir, split)
        except FileNotFoundError:
            if split == "train":
                raise
            logging.warning(f"no {split} manifest in {manifest_dir}")
            continue
        cuts = tqdm(load_cuts(path), desc=split, unit="cut", disable=None)
        counts[split] = write_shards(output_dir / f"cuts_{split}", cuts, shard_size)
    for name in _BESIDE:
        if (manifest_dir / name).is_file():
            copy_whole(manifest_dir / name, output_dir / name)
    return counts


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    args = get_parser().parse_args(argv)
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.WARNING)
    try:
        counts = to_shar(args.manifest_dir, args.output_dir, args.shard_size)
    except (ValueError, ImportError, OSError) as error:
        sys.exit(f"error: {error}")
    for split, count in counts.items():
        print(f"{split:<12}{count:>9} cuts in {args.output_dir / f'cuts_{split}'}")


if __name__ == "__main__":
    main()
