#!/usr/bin/env python3
"""Turn recordings into codec tokens: a folder of sound files, or a lhotse manifest, to token cuts.

Writes into --output-dir:

    cuts_train.jsonl.gz  cuts_validation.jsonl.gz  cuts_test.jsonl.gz
    tokens/              one int16 array (T, Q) for each recording, whole
    tokenizer.json       codec and settings; another codec may not write into the same folder
    work.jsonl           recordings done so far

Kill it at any moment and run the same command again: it goes on where it was.
"""

import argparse
import json
import logging
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tokenizer_manifests import TOKEN_FOLDER, window_frames, write_manifests
from tokenizer_splits import add_split_arguments, assign_splits
from torch import Tensor
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from valle.data.audio import RESAMPLER, AudioError, Sound, read_mono, resample
from valle.data.codec import DEFAULT_CODEC, Codec, CodecInfo
from valle.data.manifest import SPLITS
from valle.data.sources import Source, find_recordings, read_manifest
from valle.data.storage import make_recording, stored_frames, write_codes
from valle.data.worklog import WorkLog
from valle.utils.dist import choose_device
from valle.utils.files import remove_leftovers, written_whole

Item = TypeVar("Item")
Result = TypeVar("Result")


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
    add("--min-duration", type=float, default=1.0, help="skip recordings shorter than so many s")
    add("--silence-db", type=float, default=-80.0, help="skip recordings whose peak is below")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    add("--num-workers", type=int, default=2, help="threads that read ahead")
    add_split_arguments(parser)
    return parser


@dataclass(frozen=True)
class Loaded:
    """A recording that was read.

    Attributes:
      facts: Number of samples, sampling rate and channels of the file.
      samples: (N,) float32, mono, at the codec's rate.
    """

    facts: dict[str, int]
    samples: Tensor


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
        sys.exit("stopped; run the same command again to go on")
    sys.exit(status)


def run(args: argparse.Namespace) -> int:
    """Tokenise everything, then write the manifests.

    Returns:
      0, or 1 when not a single recording was kept.

    Raises:
      ValueError, OSError: Nothing more can be done; finished recordings stay finished.
    """
    sources = find_recordings(args.src_dir) if args.src_dir else read_manifest(args.manifest)
    listed = assign_splits(sources, args)  # before hours of work: a wrong column shows at once
    wanted = [source for source in sources if source.id in listed]
    codec = Codec.from_pretrained(args.codec, choose_device(args.device), args.num_quantizers)
    window_frames(args, codec.info)  # refused now rather than when the manifests are written
    folder = args.output_dir / TOKEN_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    claim_folder(args.output_dir, settings_of(args, codec.info))
    for place in (folder, args.output_dir):
        remove_leftovers(place)
    with WorkLog(args.output_dir / "work.jsonl") as log:
        tokenise(wanted, codec, folder, log, args)
        kept = [source for source in wanted if "skipped" not in log.entries[source.id]]
        counts: Counter[str] = Counter()
        if kept:
            splits = assign_splits(kept, args)
            counts = write_manifests(kept, log.entries, splits, codec.info, args)
        report(sources, wanted, log, counts)
    return 0 if kept else 1


def settings_of(args: argparse.Namespace, codec: CodecInfo) -> dict[str, Any]:
    """What the tokens and their cuts depend on."""
    return {
        "codec": codec.to_dict(),
        "resampler": RESAMPLER,
        "window_sec": args.window,
        "min_window_sec": args.min_window,
        "min_duration_sec": args.min_duration,
        "silence_db": args.silence_db,
    }


def claim_folder(folder: Path, settings: dict[str, Any]) -> None:
    """Make sure that a folder holds the work of one codec and one set of settings.

    Raises:
      ValueError: It holds other work.
    """
    path = folder / "tokenizer.json"
    if not path.exists():
        if any(folder.glob("cuts_*.jsonl.gz")):
            raise ValueError(
                f"{folder} holds manifests that this program did not make; choose another "
                "--output-dir, so that they are not overwritten"
            )
        with written_whole(path) as temporary:
            temporary.write_text(json.dumps(settings, indent=2) + "\n")
        return
    before = json.loads(path.read_text())
    own, found = CodecInfo.from_dict(before["codec"]), CodecInfo.from_dict(settings["codec"])
    own.check_same(found, where=f"the tokens in {folder}")
    differing = [
        f"{key} {before.get(key)} then, {value} now"
        for key, value in settings.items()
        if key != "codec" and before.get(key) != value
    ]
    if differing:
        raise ValueError(
            f"{folder} was begun with other settings: {'; '.join(differing)}. Go on with those of "
            "before, or choose another --output-dir"
        )


def tokenise(
    sources: list[Source], codec: Codec, folder: Path, log: WorkLog, args: argparse.Namespace
) -> None:
    """Encode what is not done yet; a recording that cannot be used is logged and passed over."""

    def load(source: Source) -> Loaded | AudioError:
        return load_source(source, codec.sampling_rate, args.min_duration, args.silence_db)

    todo = [source for source in sources if not is_done(source, log, folder)]
    if len(todo) < len(sources):
        logging.info(f"{len(sources) - len(todo)} of {len(sources)} recordings were done before")
    bar = tqdm(
        read_ahead(load, todo, args.num_workers),
        initial=len(sources) - len(todo),
        total=len(sources),
        desc="tokenise",
        unit="rec",
        disable=None,
        dynamic_ncols=True,
    )
    with logging_redirect_tqdm():
        for source, loaded in bar:
            if isinstance(loaded, AudioError):
                logging.warning(f"skipped ({loaded.kind}): {loaded}")
                entry = {"skipped": loaded.kind}
            else:
                entry = encode(source, loaded, codec, folder)
            log.add({"id": source.id, "key": source.key, "bytes": size_of(source.path), **entry})


def encode(source: Source, loaded: Loaded, codec: Codec, folder: Path) -> dict[str, Any]:
    """Encode one recording, store its tokens, and say what is to be remembered of it."""
    codes, _ = codec.encode(loaded.samples)
    recording = make_recording(source.id, source.path, **loaded.facts)
    num_frames = stored_frames(recording.duration, codec.info)
    write_codes(folder, source.key, codes[0, :num_frames].numpy())
    return {"num_frames": num_frames, **loaded.facts}


def is_done(source: Source, log: WorkLog, folder: Path) -> bool:
    """Whether a recording was finished before, and its file is the one of then."""
    entry = log.entries.get(source.id)
    if entry is None or (entry["key"], entry["bytes"]) != (source.key, size_of(source.path)):
        return False
    return "skipped" in entry or (folder / f"{source.key}.npy").is_file()


def size_of(path: str) -> int:
    """Bytes of a file, -1 if there is none."""
    return Path(path).stat().st_size if Path(path).exists() else -1


def load_source(
    source: Source, sampling_rate: int, min_duration: float, silence_db: float
) -> Loaded | AudioError:
    """Read and judge one recording. Runs in a thread: decoding and resampling free the lock."""
    try:
        sound = read_mono(source.path)
        check_use(sound, source.path, min_duration, silence_db)
    except AudioError as error:
        return error
    except OSError as error:
        return AudioError("unreadable", f"cannot read {source.path}: {error}")
    facts = {
        "num_samples": sound.samples.shape[0],
        "sampling_rate": sound.sampling_rate,
        "num_channels": sound.num_channels,
    }
    return Loaded(facts, resample(sound.samples, sound.sampling_rate, sampling_rate))


def check_use(sound: Sound, path: str, min_duration: float, silence_db: float) -> None:
    """Refuse what is intact but of no use.

    Raises:
      AudioError: Too short or silent.
    """
    if sound.duration_sec < min_duration:
        raise AudioError(
            "too short", f"{path} lasts {sound.duration_sec:.3g} s, less than {min_duration:g} s"
        )
    if float(sound.samples.abs().max()) < 10 ** (silence_db / 20):
        raise AudioError("silent", f"{path} is silent: its peak is below {silence_db:g} dB")


def read_ahead(
    load: Callable[[Item], Result], items: Iterable[Item], num_threads: int
) -> Iterator[tuple[Item, Result]]:
    """Load items in threads and yield them in order; one more than threads are held at a time."""
    with ThreadPoolExecutor(max(num_threads, 1)) as pool:
        waiting: deque[tuple[Item, Future[Result]]] = deque()
        try:
            for item in items:
                waiting.append((item, pool.submit(load, item)))
                if len(waiting) > num_threads:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            for _, future in waiting:
                future.cancel()


def report(sources: list[Source], wanted: list[Source], log: WorkLog, counts: Counter[str]) -> None:
    """Print what was kept and what was skipped and why."""
    entries = [log.entries[source.id] for source in wanted]
    kept = [entry for entry in entries if "skipped" not in entry]
    reasons = Counter(entry["skipped"] for entry in entries if "skipped" in entry)
    if len(sources) > len(wanted):
        reasons["not in the table of splits"] = len(sources) - len(wanted)
    hours = sum(entry["num_samples"] / entry["sampling_rate"] for entry in kept) / 3600
    print(f"\nrecordings kept     {len(kept):8d}  ({hours:.2f} h)")
    print(f"recordings skipped  {sum(reasons.values()):8d}")
    for reason, count in sorted(reasons.items()):
        print(f"  {reason:<17} {count:8d}")
    for split in SPLITS:
        print(f"cuts in {split:<11} {counts[split]:8d}")


if __name__ == "__main__":
    main()
