"""What all processes have done -> the manifests, `recordings.jsonl` and the summary.

Nothing here depends on how the work was shared, or in which order it was done: the same recordings
and flags give the same bytes.
"""

import argparse
import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lhotse import MonoCut
from tokenizer_excerpts import Unconditioned
from tokenizer_manifests import TOKEN_FOLDER, has_cuts, write_manifests
from tokenizer_splits import assign_splits, pieces_summary
from tokenizer_work import Entry, Work, log_missing

from valle.data.codec_info import CodecInfo
from valle.data.jsonl import write_jsonl
from valle.data.manifest import SOUND_END, SPLITS
from valle.data.sources import Source
from valle.data.storage import make_recording
from valle.data.worklog import take_lock
from valle.utils.files import remove_leftovers

SETTINGS = "tokenizer.json"
RECORDINGS = "recordings.jsonl"  # beside the manifests
UNLISTED = "not in the table of splits"
WITHOUT_CUTS = "no cut left"
_TINY = 1e-6  # frames: 2.2 s at 50 frames a second are 110, and not a little more
MEASURED = (
    "num_frames",
    "num_samples",
    "sampling_rate",
    "num_channels",
    "peak_db",
    "rms_db",
    "silence_share",
    "clipped_share",
)


def add_limit_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that `reason_against` reads; none of them needs anything to be encoded again."""
    add = parser.add_argument_group(
        "limits", "recordings beyond them are left out of the manifests, their tokens are kept"
    ).add_argument
    add(
        "--max-clipped",
        type=float,
        metavar="SHARE",
        help="of a recording's samples, those at full scale in runs of 3 or more; 0.001 say",
    )
    add(
        "--max-silence",
        type=float,
        metavar="SHARE",
        help="of a recording's blocks of 20 ms, those below --silence-db; 0.5 say",
    )


def merge(
    work: Work,
    sources: list[Source],
    wanted: list[Source],
    codec: CodecInfo,
    condition: Unconditioned,
    args: argparse.Namespace,
) -> int:
    """Write the manifests if all recordings are done; if not, that is for the last one to finish.

    While another process is still at work, on a file that could not be read before say, this one
    waits: it would write the manifests again, and what it is writing must not be cleared away.

    Args:
      work: Of this process, which has nothing left to do.
      sources: All recordings, sorted by id.
      wanted: Those that the splits name, likewise.
      codec: What made the tokens.
      condition: What the cuts carry beside these.
      args: The command line.

    Returns:
      The exit status: 1 where not a single recording was kept.

    Raises:
      OSError: Something cannot be written.
      ValueError: Splits or windows that cannot be.
    """
    path = args.output_dir / RECORDINGS
    with open(args.output_dir / SETTINGS, "rb+") as file:
        if not take_lock(file):
            if log_missing(work.missing(work.entries())):
                return 0
            logging.info("all is done; waiting for a process that is still at work")
            take_lock(file, wait=True)
        entries = work.entries()
        if log_missing(work.missing(entries)):
            return 0
        again = work.shard.index == 0 and not work.todo  # splits or limits may be others now
        if not (again or work.changed_since(path)):
            logging.info("all is done, and the manifests are written")
            return 0
        path.unlink(missing_ok=True)  # it says that the manifests are whole
        for folder in (args.output_dir / TOKEN_FOLDER, *condition.folders, args.output_dir):
            remove_leftovers(folder)
        for id_, reason in condition.lacking(wanted).items():
            entries[id_] = {"skipped": reason}
        return write_all(path, sources, wanted, entries, codec, condition, args)


def write_all(
    path: Path,
    sources: list[Source],
    wanted: list[Source],
    entries: Mapping[str, Entry],
    codec: CodecInfo,
    condition: Unconditioned,
    args: argparse.Namespace,
) -> int:
    """Manifests, then `recordings.jsonl` at `path`, then the summary; see `merge`."""
    reasons = reasons_against(sources, wanted, entries, args)
    parts = []
    for source in wanted:
        if source.id not in reasons:
            part = usable_part(source, entries[source.id], codec, condition)
            if isinstance(part, str):
                reasons[source.id] = part
            else:
                parts.append(part)
    kept = [source for source in wanted if source.id not in reasons]
    splits = assign_splits(kept, args) if kept else {}
    # without a recording it deletes the manifests of before, that nobody trains on them
    counts = write_manifests(parts, entries, splits, codec, condition, args)
    shared = pieces_summary(kept, splits, args) if kept else None
    write_jsonl(path, recording_lines(sources, entries, reasons, splits, codec))
    report([entries[source.id] for source in kept], reasons, counts, codec)
    for name, count in condition.lines():
        print(f"{name:<30}{count:8d}")
    if shared is not None:
        print(f"pieces in several splits  {shared}")
    return 0 if kept else 1


def reasons_against(
    sources: list[Source],
    wanted: list[Source],
    entries: Mapping[str, Entry],
    args: argparse.Namespace,
) -> dict[str, str]:
    """Why recordings are left out, by id; those that are kept are not in it."""
    reasons = {source.id: UNLISTED for source in sources}
    for source in wanted:
        reason = reason_against(entries[source.id], args)
        if reason is None:
            del reasons[source.id]
        else:
            reasons[source.id] = reason
    return reasons


def reason_against(entry: Entry, args: argparse.Namespace) -> str | None:
    """Why a recording that was read is left out, None where it is kept."""
    if "skipped" in entry:
        return str(entry["skipped"])
    if args.max_clipped is not None and entry["clipped_share"] > args.max_clipped:
        return "clipped"
    if args.max_silence is not None and entry["silence_share"] > args.max_silence:
        return "mostly silent"
    return None


def usable_part(
    source: Source, entry: Entry, codec: CodecInfo, condition: Unconditioned
) -> Source | str:
    """The recording, or the cuts of it that can be used, or why nothing can."""
    part = sounding_part(source, entry, codec)
    if part is None or not has_cuts(part, entry, codec):
        return WITHOUT_CUTS
    return condition.part(part, entry["num_samples"] / entry["sampling_rate"])


def sounding_span(entry: Entry, codec: CodecInfo) -> tuple[float, float]:
    """Start and end of what is left after trimming, in seconds; outwards to whole frames."""
    rate, duration = entry["sampling_rate"], entry["num_samples"] / entry["sampling_rate"]
    if "sounding" not in entry:
        return 0.0, duration
    start, stop = (samples / rate * codec.frame_rate for samples in entry["sounding"])  # frames
    first, last = math.floor(start + _TINY), math.ceil(stop - _TINY)
    return first / codec.frame_rate, min(last / codec.frame_rate, duration)


def sounding_part(source: Source, entry: Entry, codec: CodecInfo) -> Source | None:
    """The recording with cuts that stay within its sound; itself where nothing is trimmed.

    The tokens stay those of the whole recording, so that the times of the cuts are true of it.

    Returns:
      None where it had cuts in a manifest, and all of them lie in the silence.
    """
    start, end = sounding_span(entry, codec)
    duration = entry["num_samples"] / entry["sampling_rate"]
    if start == 0 and end == duration:
        return source
    facts = (entry[key] for key in ("num_samples", "sampling_rate", "num_channels"))
    recording = make_recording(source.id, source.path, *facts)
    whole = MonoCut(source.id, start=0, duration=duration, channel=0, recording=recording)
    cuts = [
        within(cut, start, min(end, cut.end), is_end=end < min(cut.end, duration))
        for cut in source.cuts or [whole]
        if max(start, cut.start) < min(end, cut.end)
    ]
    return replace(source, cuts=cuts) if cuts else None


def within(cut: Any, start: float, end: float, is_end: bool) -> Any:
    """What of a cut lies between two times; with a note where the sound of its recording ends."""
    start = max(start, cut.start)
    part = cut.truncate(offset=start - cut.start, duration=end - start, preserve_id=True)
    return part.with_custom(SOUND_END, end) if is_end else part


def recording_lines(
    sources: list[Source],
    entries: Mapping[str, Entry],
    reasons: Mapping[str, str],
    splits: Mapping[str, str],
    codec: CodecInfo,
) -> Iterator[dict[str, Any]]:
    """A line for each recording: what was measured of it, or why it was skipped."""
    for source in sources:
        path = source.path.encode(errors="backslashreplace").decode()
        if source.id in reasons:
            yield {"id": source.id, "path": path, "skipped": reasons[source.id]}
            continue
        entry = entries[source.id]
        measured = {key: entry[key] for key in MEASURED}
        trimmed = {"trimmed_sec": round(trimmed_sec(entry, codec), 6)}
        yield {"id": source.id, "path": path, "split": splits[source.id], **measured, **trimmed}


def trimmed_sec(entry: Entry, codec: CodecInfo) -> float:
    """Seconds of silence before and after the sound that no excerpt is taken of."""
    start, end = sounding_span(entry, codec)
    return float(entry["num_samples"] / entry["sampling_rate"] - (end - start))


def report(
    kept: list[Entry], reasons: Mapping[str, str], counts: Counter[str], codec: CodecInfo
) -> None:
    """Print what was kept, and what was skipped and why."""
    hours = sum(entry["num_samples"] / entry["sampling_rate"] for entry in kept) / 3600
    print(f"\nrecordings kept     {len(kept):8d}  ({hours:.2f} h)")
    trimmed = [sec for entry in kept if (sec := trimmed_sec(entry, codec)) > 0]
    if trimmed:
        print(f"  silence trimmed   {len(trimmed):8d}  ({sum(trimmed) / 3600:.2f} h)")
    print(f"recordings skipped  {len(reasons):8d}")
    for reason, count in sorted(Counter(reasons.values()).items()):
        print(f"  {reason:<17} {count:8d}")
    for split in SPLITS:
        print(f"cuts in {split:<11} {counts[split]:8d}")
