"""Sound files -> samples at the codec's rate, measured and judged. All of it runs in threads.

Letters: N samples.
"""

import argparse
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from torch import Tensor

from valle.data.audio import AudioError, Sound, check_samples, read_mono, resample
from valle.data.levels import measure_levels, peak_of, sounding_range, to_db
from valle.data.sources import Source

# Float files may go beyond full scale, integers that were never scaled down by 90 dB. What is
# louder yet is damaged, and its squares or what a filter makes of it may be no numbers any more.
_HIGHEST_DB = 100.0

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Loaded:
    """A recording that was read.

    Attributes:
      facts: What is remembered of it: number of samples, sampling rate and channels of the file,
        its levels, and where sound begins and ends if silence is to be trimmed.
      samples: (N,) float32, mono, at the codec's rate.
    """

    facts: dict[str, Any]
    samples: Tensor


def add_use_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that `load_source` reads: which recordings are of use, and what of them."""
    add = parser.add_argument_group("what is used").add_argument
    add("--min-duration", type=float, default=1.0, help="skip recordings shorter than so many s")
    add(
        "--silence-db",
        type=float,
        default=-80.0,
        help="skip recordings whose peak is below; blocks whose rms is below count as silence",
    )
    add(
        "--trim-silence",
        type=float,
        metavar="DB",
        help="take no excerpts of the silence before and after the sound, blocks of 20 ms whose "
        "rms is below so many dB, -60 say; default: excerpts of the whole",
    )


def load_source(
    source: Source, sampling_rate: int, args: argparse.Namespace
) -> Loaded | AudioError:
    """Read, measure and judge one recording. Decoding and resampling free Python's lock.

    Args:
      source: The recording.
      sampling_rate: Of the codec.
      args: The command line.

    Returns:
      The recording, or why it cannot be used.
    """
    try:
        check_name(source.path)
        sound = read_mono(source.path)
        facts = check_use(sound, source.path, args)
        samples = resample(sound.samples, sound.sampling_rate, sampling_rate)
        check_samples(samples, f"{source.path}, resampled,")
    except AudioError as error:
        return error
    except FileNotFoundError:
        return AudioError("missing", f"{source.path} was there, and is there no more")
    except OSError as error:
        return AudioError("unreadable", f"cannot read {source.path}: {error}")
    return Loaded(facts, samples)


def check_name(path: str) -> None:
    """Refuse a name that no manifest can hold.

    Raises:
      AudioError: It has bytes that are not UTF-8.
    """
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise AudioError(
            "name not UTF-8", f"{path!a} is no name in UTF-8, as manifests are: rename the file"
        ) from error


def check_use(sound: Sound, path: str, args: argparse.Namespace) -> dict[str, Any]:
    """Measure a recording, and refuse what is intact but of no use.

    Returns:
      The facts of `Loaded`.

    Raises:
      AudioError: Too short, silent, or louder than any sound.
    """
    check_duration(sound.duration_sec, path, args.min_duration)
    check_peak(sound, path, args.silence_db)
    levels = measure_levels(sound.samples, sound.sampling_rate, args.silence_db, sound.extremes)
    facts: dict[str, Any] = {
        "num_samples": sound.samples.shape[0],
        "sampling_rate": sound.sampling_rate,
        "num_channels": sound.num_channels,
        **levels.to_dict(),
    }
    if args.trim_silence is not None:
        start, stop = sounding_range(sound.samples, sound.sampling_rate, args.trim_silence)
        if stop == 0:
            raise AudioError("silent", f"{path} is nowhere louder than {args.trim_silence:g} dB")
        sounding_sec = (stop - start) / sound.sampling_rate
        check_duration(sounding_sec, f"the sound in {path}", args.min_duration)
        facts["sounding"] = [start, stop]
    return facts


def check_peak(sound: Sound, path: str, silence_db: float) -> None:
    """Refuse silence, and what is no sound; channels that cancel each other are silent too.

    Raises:
      AudioError: It is.
    """
    peak_db = to_db(sound.extremes.peak)
    if peak_db > _HIGHEST_DB:
        raise AudioError(
            "too loud",
            f"{path} has a peak of {peak_db:.0f} dB of full scale, expected {_HIGHEST_DB:g} at "
            "most: it is damaged, or not scaled to [-1, 1]",
        )
    if to_db(peak_of(sound.samples)) < silence_db:
        raise AudioError("silent", f"{path} is silent: its peak is below {silence_db:g} dB")


def check_duration(seconds: float, what: str, least: float) -> None:
    """Refuse what is too short.

    Raises:
      AudioError: It is.
    """
    if seconds < least:
        raise AudioError("too short", f"{what} lasts {seconds:.3g} s, less than {least:g} s")


def run_ahead(
    run: Callable[[Item], Result], items: Iterable[Item], num_threads: int, in_order: bool
) -> Iterator[tuple[Item, Result]]:
    """Call a function for items in threads; one call more than threads is under way at a time.

    Args:
      run: The function. What it raises is raised here.
      items: Its arguments.
      num_threads: At least one is used.
      in_order: Yield the results in the order of the items, rather than as they come.

    Yields:
      Items, each with its result.
    """
    num_threads = max(num_threads, 1)
    pool = ThreadPoolExecutor(num_threads)
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    rest, patient = iter(items), True
    try:
        while True:
            for item in islice(rest, num_threads + 1 - len(waiting)):
                waiting.append((item, pool.submit(run, item)))
            if not waiting:
                break
            if not in_order:
                wait([future for _, future in waiting], return_when=FIRST_COMPLETED)
                waiting.rotate(-next(i for i, (_, f) in enumerate(waiting) if f.done()))
            item, future = waiting.popleft()
            yield item, future.result()
    except KeyboardInterrupt:  # who stops this does not want to wait for what is under way
        patient = False
        raise
    finally:
        pool.shutdown(wait=patient, cancel_futures=True)
