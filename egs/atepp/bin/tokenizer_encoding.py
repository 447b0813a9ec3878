"""Sound files -> stored tokens, and what is to be remembered of each recording.

On a CPU recordings are encoded side by side, each by a thread that uses one core from the reading
of the file to the writing of its tokens. No core waits for another, and the tokens do not depend
on how many there are. For a GPU threads read ahead, and recordings are collected and encoded
together, so that pieces of equal length fill its batches.

Letters: N samples, T frames, Q quantizers.
"""

import argparse
import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizer_reading import Loaded, load_source, run_ahead
from torch import Tensor

from valle.data.audio import AudioError
from valle.data.codec import Codec
from valle.data.sources import Source
from valle.data.storage import make_recording, stored_frames, write_codes

Result = dict[str, Any] | AudioError

_MOST_READERS = 8
# Some 20 pieces of 30 s: batches fill, and what is held in memory stays small.
_GPU_GROUP_SEC = 600.0


def add_encoding_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that `Tokeniser` reads, beside those of `load_source`."""
    add = parser.add_argument_group("speed").add_argument
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...; auto prefers a GPU")
    add(
        "--num-workers",
        type=int,
        help="threads: on a CPU each works on a recording of its own (default: one for each core, "
        "or as OMP_NUM_THREADS says), for a GPU they read ahead (default: as many, 8 at most)",
    )
    add(
        "--group-sec",
        type=float,
        help="encode recordings together that last so long in all, in s; default: 600 on a GPU; 0 "
        "on a CPU, one by one, as it gains nothing from batches",
    )


class Tokeniser:
    """Reads, encodes and stores recordings.

    Args:
      codec: What encodes.
      folder: Of the token files.
      args: The command line.
    """

    def __init__(self, codec: Codec, folder: Path, args: argparse.Namespace) -> None:
        self._codec, self._folder, self._args = codec, folder, args
        on_gpu = codec.device.type != "cpu"
        num_cores = torch.get_num_threads()
        self._num_threads = args.num_workers or (
            min(num_cores, _MOST_READERS) if on_gpu else num_cores
        )
        self._group_sec = _GPU_GROUP_SEC * on_gpu if args.group_sec is None else args.group_sec

    def run(self, sources: Iterable[Source]) -> Iterator[tuple[Source, Result]]:
        """Tokenise recordings.

        Yields:
          Each recording, in any order, with what is to be remembered of it, or why it cannot be
          used. Its tokens are stored by then.

        Raises:
          OSError: Tokens cannot be written.
        """
        with one_core_a_thread():
            yield from self._in_groups(sources) if self._group_sec > 0 else self._alone(sources)

    def _alone(self, sources: Iterable[Source]) -> Iterator[tuple[Source, Result]]:
        def work(source: Source) -> Result:
            loaded = self._load(source)
            if isinstance(loaded, AudioError):
                return loaded
            return self._encode_one(source, loaded)

        yield from run_ahead(work, sources, self._num_threads, in_order=False)

    def _in_groups(self, sources: Iterable[Source]) -> Iterator[tuple[Source, Result]]:
        group: list[tuple[Source, Loaded]] = []
        for source, loaded in run_ahead(self._load, sources, self._num_threads, in_order=True):
            if isinstance(loaded, AudioError):
                yield source, loaded
                continue
            group.append((source, loaded))
            num_samples = sum(loaded.samples.shape[0] for _, loaded in group)
            if num_samples >= self._group_sec * self._codec.sampling_rate:
                yield from self._encode_group(group)
                group = []
        if group:
            yield from self._encode_group(group)

    def _encode_group(self, group: list[tuple[Source, Loaded]]) -> Iterator[tuple[Source, Result]]:
        try:
            codes, lens = self._codec.encode([loaded.samples for _, loaded in group])
        except AudioError:  # of one among them: the others are of use
            yield from ((source, self._encode_one(source, loaded)) for source, loaded in group)
            return
        for (source, loaded), row, num_frames in zip(group, codes, lens.tolist(), strict=True):
            yield source, self._store(source, loaded, row[:num_frames])

    def _encode_one(self, source: Source, loaded: Loaded) -> Result:
        try:
            codes, _ = self._codec.encode(loaded.samples)
        except AudioError as error:
            return AudioError(error.kind, f"{source.path}: {error}")
        return self._store(source, loaded, codes[0])

    def _load(self, source: Source) -> Loaded | AudioError:
        return load_source(source, self._codec.sampling_rate, self._args)

    def _store(self, source: Source, loaded: Loaded, codes: Tensor) -> Result:
        """Write the (T, Q) codes as long as lhotse will load them; say what is remembered."""
        facts = (loaded.facts[key] for key in ("num_samples", "sampling_rate", "num_channels"))
        recording = make_recording(source.id, source.path, *facts)
        num_frames = stored_frames(recording.duration, self._codec.info)
        assert len(codes) >= num_frames, (len(codes), num_frames)
        write_codes(self._folder, source.key, codes[:num_frames].numpy())
        return {"num_frames": num_frames, **loaded.facts}


@contextlib.contextmanager
def one_core_a_thread() -> Iterator[None]:
    """Threads that are started within compute alone, so that they do not fight for the cores.

    Besides, sums of floats depend on how many threads share them: so tokens are those of any
    machine with the same processor, whatever the number of its cores.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
