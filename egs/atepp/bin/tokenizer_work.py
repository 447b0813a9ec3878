"""Which process tokenises what, and what all of them have done so far.

Every process of a job deals the recordings out by the same rule, keeps a log of its own, and reads
the logs of all, those of earlier runs with another number of processes among them. So they need
not talk to each other: a shared folder is all they share.
"""

import argparse
import heapq
import logging
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizer_manifests import TOKEN_FOLDER

from valle.data.sources import Source
from valle.data.worklog import read_log
from valle.utils.dist import choose_device, started_by_torchrun

Entry = dict[str, Any]

# A file that could not be read once may be readable the next time: tried again in each run.
RETRIED = ("unreadable", "missing")


@dataclass(frozen=True)
class Shard:
    """One of the processes that share the work.

    Attributes:
      index: From 0.
      count: How many there are.
    """

    index: int = 0
    count: int = 1

    def __str__(self) -> str:
        return f"shard {self.index} of {self.count}"


def add_shard_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that `find_shard` reads."""
    add = parser.add_argument_group(
        "shards", "several processes share the work; torchrun starts and numbers them, or you do"
    ).add_argument
    add("--num-shards", type=int, help="how many processes; under torchrun leave it out")
    add("--shard", type=int, help="which of them this one is, from 0")


def find_shard(args: argparse.Namespace) -> Shard:
    """Which process this is: by the flags, by torchrun, or the only one.

    Raises:
      ValueError: One flag without the other, a number out of range, or both ways at once.
    """
    if (args.num_shards is None) != (args.shard is None):
        raise ValueError(
            f"--num-shards is {args.num_shards} and --shard is {args.shard}: give both, or "
            "neither, for a single process or under torchrun"
        )
    if args.num_shards is None:
        if not started_by_torchrun():
            return Shard()
        return Shard(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    if started_by_torchrun():
        raise ValueError(
            "torchrun numbers its processes itself: leave --num-shards and --shard out"
        )
    if not 0 <= args.shard < args.num_shards:
        raise ValueError(
            f"--shard is {args.shard}, expected 0 to {args.num_shards - 1} with --num-shards "
            f"{args.num_shards}: shards are counted from 0"
        )
    return Shard(args.shard, args.num_shards)


def own_device(name: str) -> torch.device:
    """The device of this process: under torchrun each takes a GPU of its own, if there is one.

    Raises:
      ValueError: There is no such device.
    """
    device = choose_device(name)
    if device.type == "cuda" and device.index is None and started_by_torchrun():
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        return torch.device("cuda", local_rank % torch.cuda.device_count())
    return device


def deal(sizes: Mapping[str, int], num_shards: int) -> dict[str, int]:
    """Give out the recordings so that all shards have about as many bytes.

    The largest goes first, each to the shard that has the fewest bytes so far. What comes out
    depends on the ids and sizes alone, so that all processes know the hand of each.

    Args:
      sizes: Bytes by id; negative where the file is gone.
      num_shards: How many there are.

    Returns:
      The shard of each id.
    """
    loads = [(0, shard) for shard in range(num_shards)]  # a heap
    shards = {}
    for id_ in sorted(sizes, key=lambda id_: (-sizes[id_], id_)):
        load, shard = loads[0]
        shards[id_] = shard
        heapq.heapreplace(loads, (load + max(sizes[id_], 0) + 1, shard))
    return shards


def size_of(path: str) -> int:
    """Bytes of a file, -1 if there is none that can be seen."""
    try:
        return Path(path).stat().st_size
    except (OSError, ValueError):  # ValueError: no file can have such a name
        return -1


class Work:
    """All recordings of a job, whose turn each is, and what is done.

    Args:
      folder: Of the output.
      sources: All recordings of all shards.
      shard: This process.

    Attributes:
      own: This shard's recordings.
      todo: This shard's recordings that are not done, the longest first, so that only short ones
        remain at the end, when some threads have nothing to do any more.
      num_done, bytes_done: This shard's recordings that were done before.
    """

    def __init__(self, folder: Path, sources: list[Source], shard: Shard) -> None:
        self.folder, self.shard = folder, shard
        self.log_path = folder / f"work-{shard.index}-of-{shard.count}.jsonl"
        self.sizes = {source.id: size_of(source.path) for source in sources}
        self._sources = {source.id: source for source in sources}
        self._shards = deal(self.sizes, shard.count)
        held = {id_ for id_, entry in self.entries().items() if entry.get("skipped") not in RETRIED}
        self.own = [source for source in sources if self._shards[source.id] == shard.index]
        self.todo = [source for source in self.own if source.id not in held]
        self.todo.sort(key=lambda source: (-self.sizes[source.id], source.id))
        self.num_done = len(self.own) - len(self.todo)
        self.bytes_done = sum(max(self.sizes[s.id], 0) for s in self.own if s.id in held)

    def entries(self) -> dict[str, Entry]:
        """What the logs say of each recording that is done, by id.

        Of what several runs made of a recording only the last counts, as its tokens took the place
        of those before. It is not lost where a later run could not read the file.
        """
        made: dict[str, Entry] = {}
        skipped: dict[str, Entry] = {}
        for path in self._logs():
            for entry in filter(self._is_asked_for, read_log(path)):
                last = skipped if "skipped" in entry else made
                if _time(entry) >= _time(last.get(entry["id"], {})):
                    last[entry["id"]] = entry
        stored = self._stored_tokens()
        true = {id_: entry for id_, entry in skipped.items() if self._is_of_this_file(entry)}
        for id_, entry in made.items():
            # versions before this one measured no levels
            if self._is_of_this_file(entry) and "peak_db" in entry and entry["key"] in stored:
                true[id_] = entry
        return true

    def missing(self, entries: Mapping[str, Entry]) -> Counter[int]:
        """How many recordings are not done, by the shard whose turn it is."""
        return Counter(shard for id_, shard in self._shards.items() if id_ not in entries)

    def changed_since(self, path: Path) -> bool:
        """Whether a log has grown since a file was written, or the file is not there."""
        if not path.exists():
            return True
        written = path.stat().st_mtime_ns
        return any(log.stat().st_mtime_ns >= written for log in self._logs())

    def _logs(self) -> list[Path]:
        return sorted(self.folder.glob("work*.jsonl"))

    def _stored_tokens(self) -> set[str]:
        """The keys that have tokens.

        One listing: on network storage it takes far longer to ask for each file alone.
        """
        folder = self.folder / TOKEN_FOLDER
        if not folder.is_dir():
            return set()
        with os.scandir(folder) as files:
            return {
                file.name.removesuffix(".npy")
                for file in files
                if file.name.endswith(".npy") and file.is_file()
            }

    def _is_asked_for(self, entry: Entry) -> bool:
        source = self._sources.get(entry["id"])
        return source is not None and entry["key"] == source.key

    def _is_of_this_file(self, entry: Entry) -> bool:
        """Whether the sound file is as it was; tokens may outlive it."""
        return self.sizes[entry["id"]] in (entry["bytes"], -1)


def _time(entry: Entry) -> float:
    """When it was logged; versions before this one left that out, and so it was earlier."""
    return float(entry.get("time", 0))


def log_missing(missing: Counter[int]) -> bool:
    """Say who has not finished.

    Returns:
      Whether anybody has not.
    """
    if not missing:
        return False
    parts = [f"{shard} ({count} recordings)" for shard, count in sorted(missing.items())]
    logging.info(
        f"not finished yet: shard {', '.join(parts)}. The last shard to finish writes the "
        "manifests; one that was stopped is to be started again by the same command"
    )
    return True
