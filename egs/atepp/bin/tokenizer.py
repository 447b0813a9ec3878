#!/usr/bin/env python3
"""Turn recordings into codec tokens: a folder of sound files, or a lhotse manifest, to token cuts.

Writes into --output-dir:

    cuts_train.jsonl.gz  cuts_validation.jsonl.gz  cuts_test.jsonl.gz
    tokens/                 one int16 array (T, Q) for each recording, whole
    midi_tokens/            with --midi-dir: one int16 array (S, 6) of events for each excerpt
    unique_text_tokens.k2symbols    with text: the symbols of the training split
    recordings.jsonl        what was measured of each recording, or why it was skipped
    tokenizer.json          codec and settings; another codec may not write into the same folder
    work-<i>-of-<n>.jsonl   recordings that process i has done so far

Kill it at any moment and run the same command again: it goes on where it was. Several processes
share the work, on several GPUs or nodes too, if they see the same folders:

    torchrun --nproc-per-node 4 egs/atepp/bin/tokenizer.py --src-dir ...
"""

import argparse
import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

from tokenizer_conditions import (
    CONDITION_SETTINGS,
    add_condition_arguments,
    choose_condition,
)
from tokenizer_encoding import Tokeniser, add_encoding_arguments
from tokenizer_excerpts import Unconditioned
from tokenizer_manifests import TOKEN_FOLDER, add_format_arguments, window_frames
from tokenizer_merging import SETTINGS, add_limit_arguments, merge
from tokenizer_reading import add_use_arguments
from tokenizer_splits import add_split_arguments, assign_splits
from tokenizer_work import Work, add_shard_arguments, find_shard, own_device
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from valle.data.audio import RESAMPLER, AudioError
from valle.data.codec import DEFAULT_CODEC, Codec, CodecInfo
from valle.data.sources import find_recordings, read_manifest
from valle.data.worklog import WorkLog, take_lock
from valle.utils.files import written_whole


def get_parser() -> argparse.ArgumentParser:
    """All that can be set."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--src-dir", type=Path, help="folder of wav, flac, ogg, mp3; searched deep")
    source.add_argument("--manifest", type=Path, help="lhotse recordings or cuts, .jsonl(.gz)")
    add("--output-dir", type=Path, default=Path("data/tokenized"), help="where all is written")
    add("--codec", default=DEFAULT_CODEC, help="hub name or local folder of an EnCodec model")
    add("--num-quantizers", type=int, help="use the first so many of the codec's; default: all")
    add("--window", type=float, default=15.0, help="seconds of an excerpt")
    add("--min-window", type=float, default=5.0, help="a shorter rest shares with its neighbour")
    add_condition_arguments(parser)
    add_use_arguments(parser)
    add_limit_arguments(parser)
    add_split_arguments(parser)
    add_format_arguments(parser)
    add_encoding_arguments(parser)
    add_shard_arguments(parser)
    return parser


def main() -> None:
    """Command line."""
    logging.basicConfig(
        format="%(asctime)s %(levelname)s [%(filename)s:%(lineno)d] %(message)s", level=logging.INFO
    )
    try:
        status = run(get_parser().parse_args())
    except (ValueError, FileNotFoundError, ImportError) as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(
            f"error: {error}. What was finished is kept: when the cause (a full disk?) is gone, "
            "run the same command again"
        )
    except KeyboardInterrupt:
        print("stopped; run the same command again to go on", file=sys.stderr, flush=True)
        # a normal exit would wait for the threads, for minutes where recordings are long
        os._exit(130)
    sys.exit(status)


def run(args: argparse.Namespace) -> int:
    """Tokenise everything, or this process's share of it; the last process writes the manifests.

    Returns:
      0, or 1 when not a single recording was kept.

    Raises:
      ValueError, OSError: Nothing more can be done; finished recordings stay finished.
    """
    shard = find_shard(args)
    sources = find_recordings(args.src_dir) if args.src_dir else read_manifest(args.manifest)
    sources.sort(key=lambda source: source.id)
    listed = assign_splits(sources, args)  # before hours of work: a wrong column shows at once
    wanted = [source for source in sources if source.id in listed]
    condition = choose_condition(args, wanted)
    lacking = condition.lacking(wanted)
    codec = Codec.from_pretrained(args.codec, own_device(args.device), args.num_quantizers)
    window_frames(args, codec.info)  # refused now rather than when the manifests are written
    (args.output_dir / TOKEN_FOLDER).mkdir(parents=True, exist_ok=True)
    claim_folder(args.output_dir, settings_of(args, codec.info) | condition.settings)
    work = Work(args.output_dir, [s for s in wanted if s.id not in lacking], shard)
    tokenise(work, codec, args)
    read_ahead(condition, work)
    return merge(work, sources, wanted, codec.info, condition, args)


def settings_of(args: argparse.Namespace, codec: CodecInfo) -> dict[str, Any]:
    """What the tokens and their cuts depend on."""
    return {
        "codec": codec.to_dict(),
        "resampler": RESAMPLER,
        "window_sec": args.window,
        "min_window_sec": args.min_window,
        "min_duration_sec": args.min_duration,
        "silence_db": args.silence_db,
        "trim_silence_db": args.trim_silence,
    }


def claim_folder(folder: Path, settings: dict[str, Any]) -> None:
    """Make sure that a folder holds the work of one codec and one set of settings.

    Raises:
      ValueError: It holds other work.
    """
    path = folder / SETTINGS
    if not path.exists():
        if any(folder.glob("cuts_*")):
            raise ValueError(
                f"{folder} holds manifests that this program did not make; choose another "
                "--output-dir, so that they are not overwritten"
            )
        with written_whole(path) as temporary:
            temporary.write_text(json.dumps(settings, indent=2) + "\n")
    before = json.loads(path.read_text())  # if two begin at once, the later finds the other's
    own, found = CodecInfo.from_dict(before["codec"]), CodecInfo.from_dict(settings["codec"])
    own.check_same(found, where=f"the tokens in {folder}")
    differing = [
        f"{key} {before.get(key)} then, {settings.get(key)} now"
        for key in dict.fromkeys((*settings, *CONDITION_SETTINGS))
        if key != "codec" and before.get(key) != settings.get(key)
    ]
    if differing:
        raise ValueError(
            f"{folder} was begun with other settings: {'; '.join(differing)}. Go on with those of "
            "before, or choose another --output-dir"
        )


def tokenise(work: Work, codec: Codec, args: argparse.Namespace) -> None:
    """Do this process's share; a recording that cannot be used is logged and passed over."""
    if work.num_done:
        logging.info(f"{work.shard}: {work.num_done} recordings were done before")
    if not work.todo:
        return
    tokeniser = Tokeniser(codec, args.output_dir / TOKEN_FOLDER, args)
    with (
        open(args.output_dir / SETTINGS, "rb+") as shared,
        WorkLog(work.log_path) as log,
        logging_redirect_tqdm(),
        progress_bar(work) as bar,
    ):
        take_lock(shared, wait=True, shared=True)  # nobody merges while tokens are written
        seconds = 0.0
        for source, result in tokeniser.run(work.todo):
            if isinstance(result, AudioError):
                logging.warning(f"skipped ({result.kind}): {result}")
                result = {"skipped": result.kind}
            size, now = work.sizes[source.id], round(time.time(), 3)
            log.add({"id": source.id, "key": source.key, "bytes": size, "time": now, **result})
            seconds += result.get("num_samples", 0) / result.get("sampling_rate", 1)
            bar.set_postfix_str(f"{seconds / 3600:.2f} h of sound", refresh=False)
            bar.update(max(size, 0))


def read_ahead(condition: Unconditioned, work: Work) -> None:
    """Do this process's share of what the condition needs; nobody merges meanwhile."""
    with open(work.folder / SETTINGS, "rb+") as shared:
        take_lock(shared, wait=True, shared=True)
        condition.read_ahead(work.own)


def progress_bar(work: Work) -> Any:
    """Counts bytes, as the hours of a file are known only when it was read. Shard 0 shows it."""
    return tqdm(
        initial=work.bytes_done,
        total=work.bytes_done + sum(max(work.sizes[source.id], 0) for source in work.todo),
        desc="tokenise" if work.shard.count == 1 else str(work.shard),
        unit="B",
        unit_scale=True,
        disable=None if work.shard.index == 0 else True,
        dynamic_ncols=True,
    )


if __name__ == "__main__":
    main()
