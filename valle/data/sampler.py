"""Which cuts come together in a batch, and where an interrupted epoch goes on."""

import logging
import random
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from lhotse import CutSet
from lhotse.dataset import DynamicBucketingSampler, DynamicCutSampler
from lhotse.dataset.sampling.base import CutSampler
from torch.utils.data import Sampler

from valle.data.manifest import TokenManifest

# What a batch depends on, besides the cuts and the epoch; lhotse would silently take these over
# from a loaded state.
_SETTINGS = ("seed", "world_size", "shuffle", "drop_last", "max_duration")

_BUCKETS = "num_buckets"

# A bucket may leave a batch that is not full at an epoch's end; it should not be one of few.
_BATCHES_OF_A_BUCKET = 4

_FEWEST_DRAWN = 20  # of a rank, from which the length of an epoch is estimated


def make_sampler(
    cuts: CutSet,
    *,
    max_duration: float,
    num_buckets: int,
    shuffle: bool,
    drop_last: bool,
    buffer_size: int,
    shuffle_buffer_size: int,
    seed: int = 0,
    world_size: int = 1,
    rank: int = 0,
) -> CutSampler:
    """A sampler of batches of about `max_duration` seconds, padding counted.

    Args:
      cuts: What to draw from, lazy or not. Shards of a manifest are shuffled as well, so that cuts
        meet others than their neighbours on the disk.
      max_duration: Seconds: number of cuts times the longest of them. lhotse closes a batch when
        one more cut like its longest would be too much; a batch whose last cut is its longest may
        exceed the limit by that difference, which buckets keep small. A single longer cut makes a
        batch of its own. There is no quadratic penalty: 150 means 150.
      num_buckets: Cuts of similar duration come together; fewer buckets are made of a small set,
        one bucket means none: cuts are then taken as they come.
      shuffle: Another order each epoch (`set_epoch`).
      drop_last: Leave out the batches that could not be filled at an epoch's end.
      buffer_size: Cuts held ready to choose from by the bucketing sampler.
      shuffle_buffer_size: The same for the sampler without buckets.
      seed: Of the order; the same on every rank.
      world_size: Ranks that share the epoch; each gets equally many batches, for which lhotse may
        repeat a cut at the very end.
      rank: This one.
    """
    common = {
        "max_duration": max_duration,
        "shuffle": shuffle,
        "drop_last": drop_last,
        "seed": seed,
        "world_size": world_size,
        "rank": rank,
    }
    num_batches = max(world_size, _BATCHES_OF_A_BUCKET)
    buckets = _affordable_buckets(cuts, num_buckets, num_batches * max_duration)
    shuffled = ShuffledShards(cuts.data) if shuffle and _has_shards(cuts) else None
    cuts = cuts if shuffled is None else CutSet(shuffled)
    if buckets < 2:
        sampler = DynamicCutSampler(cuts, shuffle_buffer_size=shuffle_buffer_size, **common)
    else:
        sampler = DynamicBucketingSampler(
            cuts, num_buckets=buckets, buffer_size=buffer_size, **common
        )
    if shuffled is not None:
        shuffled.sampler = sampler
    return sampler


def _has_shards(cuts: CutSet) -> bool:
    return isinstance(cuts.data, TokenManifest) and len(cuts.data.files) > 1


class ShuffledShards:
    """The cuts of a manifest with its shards in an order that seed and epoch alone decide.

    Attributes:
      manifest: With several shards.
      sampler: Whose seed and epoch count; until there is one, the shards come as they lie there.
    """

    def __init__(self, manifest: TokenManifest) -> None:
        self.manifest = manifest
        self.sampler: CutSampler | None = None

    def __iter__(self) -> Iterator[Any]:
        files = list(self.manifest.files)
        if self.sampler is not None:
            random.Random(f"{self.sampler.seed} {self.sampler.epoch}").shuffle(files)
        return self.manifest.in_order(files)


def _affordable_buckets(cuts: Iterable[Any], wanted: int, bucket_sec: float) -> int:
    """At most `wanted` buckets, each with so many seconds; reads no more cuts than that takes."""
    if wanted < 2:
        return 1
    num_cuts, total_sec = 0, 0.0
    for cut in cuts:
        num_cuts += 1
        total_sec += cut.duration
        if num_cuts >= 2 * wanted and total_sec >= wanted * bucket_sec:
            return wanted
    # two cuts a bucket, as lhotse cannot place a boundary otherwise
    buckets = max(1, min(wanted, num_cuts // 2, int(total_sec / bucket_sec)))
    logging.info(
        f"{num_cuts} cuts of {total_sec:.0f} s in all fill {buckets} buckets, not {wanted}"
    )
    return buckets


def batches_an_epoch(sampler: CutSampler, seconds: float, most_drawn: int = 2000) -> int:
    """How many batches a rank gets in an epoch, without drawing them all where they are many.

    Args:
      sampler: Fresh; it is used up.
      seconds: Of all its cuts.
      most_drawn: Batches of all ranks together that are drawn.

    Returns:
      Their exact number in this epoch where so many suffice; else what follows from the seconds of
      those drawn. That is a few too low, as an epoch ends with batches that are not full.
    """
    limit = max(_FEWEST_DRAWN, most_drawn // sampler.world_size)
    drawn = [sum(cut.duration for cut in batch) for batch in islice(sampler, limit)]
    if len(drawn) < limit:
        return len(drawn)
    return round(seconds * limit / (sum(drawn) * sampler.world_size))


def consumed_state(sampler: CutSampler, num_consumed_batches: int) -> dict[str, Any]:
    """The state from which an epoch goes on after the batches that were trained on.

    Loader workers draw batches ahead, so that the sampler's own count runs before the training;
    a state with that count would skip the batches in between.

    Args:
      sampler: Of a train loader, mid-epoch.
      num_consumed_batches: Batches of the current epoch that this rank has trained on.

    Returns:
      lhotse's state and the number of buckets, plain types only. Load it into a fresh sampler over
      the same cuts on any rank and do not iterate that sampler before training does.
    """
    state = _own_state(sampler)
    epoch = sampler.epoch
    counts = {
        "epoch": epoch,
        "kept_batches": num_consumed_batches,
        "discarded_batches": 0,
        "kept_cuts": 0,
        "discarded_cuts": 0,
    }
    state["diagnostics"] = {"current_epoch": epoch, "stats_per_epoch": {epoch: counts}}
    return state


def load_sampler_state(sampler: CutSampler, state: dict[str, Any]) -> None:
    """Bring a fresh sampler to where `consumed_state` was taken, by drawing as many batches.

    Raises:
      ValueError: The sampler was set up differently, so that its batches are not those of before.
    """
    own = _own_state(sampler)
    differing = [
        f"{key} {state.get(key)} then, {own[key]} now"
        for key in _SETTINGS
        if state.get(key) != own[key]
    ]
    if set(state) - {_BUCKETS} != set(own) - {_BUCKETS}:
        differing.append("with and without buckets")
    elif state.get(_BUCKETS, own[_BUCKETS]) != own[_BUCKETS]:
        differing.append(f"{state[_BUCKETS]} buckets then, {own[_BUCKETS]} now")
    if differing:
        raise ValueError(
            f"cannot go on inside the epoch: {'; '.join(differing)}. Resume with the settings of "
            "before, or from the end of an epoch (--start-epoch)"
        )
    sampler.load_state_dict(_copy(state))


def _own_state(sampler: CutSampler) -> dict[str, Any]:
    """Lhotse's state, which does not tell the number of buckets, and that."""
    return {**sampler.state_dict(), _BUCKETS: getattr(sampler, "num_buckets", 1)}


def _copy(state: dict[str, Any]) -> dict[str, Any]:
    """Make a copy that lhotse can load: it empties what it loads, two levels deep."""
    stats = state["diagnostics"]["stats_per_epoch"]
    diagnostics = {
        **state["diagnostics"],
        "stats_per_epoch": {epoch: dict(counts) for epoch, counts in stats.items()},
    }
    plain = {key: value for key, value in state.items() if key != _BUCKETS}
    return {**plain, "diagnostics": diagnostics}


class EveryNth(Sampler):
    """A rank's share of a sampler's batches: none lost, none twice, and not equally many.

    lhotse's own sharing evens the counts out by repeating cuts, which would count them twice in a
    validation loss.

    Args:
      sampler: Drawn by every rank alike, in the same order each time.
      rank: Takes batches rank, rank + world_size, ...
      world_size: Number of ranks.
    """

    def __init__(self, sampler: Iterable[CutSet], rank: int, world_size: int) -> None:
        self.sampler = sampler
        self.rank = rank
        self.world_size = world_size

    def __iter__(self) -> Iterator[CutSet]:
        return islice(iter(self.sampler), self.rank, None, self.world_size)
