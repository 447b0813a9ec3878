"""Token manifests -> samplers and loaders, with their command-line group."""

import argparse
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lhotse import CutSet
from torch.utils.data import DataLoader

from valle.data.codec import CodecInfo
from valle.data.dataset import TokenDataset
from valle.data.manifest import (
    TokenManifest,
    codec_of,
    load_cuts,
    manifest_path,
    warn_of_missing_codec,
)
from valle.data.sampler import EveryNth, load_sampler_state, make_sampler
from valle.data.summary import TOLERANCE_SEC
from valle.data.text import SymbolTable
from valle.utils.cli import str2bool
from valle.utils.signals import ignore_stop_signals

TEXT_TABLE = "unique_text_tokens.k2symbols"  # of the training split, beside the manifests


class DurationFilter:
    """Keeps cuts of `min_sec` to `max_sec` seconds, both included."""

    def __init__(self, min_sec: float, max_sec: float) -> None:
        self.min_sec = min_sec
        self.max_sec = max_sec

    def __call__(self, cut: Any) -> bool:
        low, high = self.min_sec - TOLERANCE_SEC, self.max_sec + TOLERANCE_SEC
        return bool(low <= cut.duration <= high)


@dataclass
class Survey:
    """What a manifest holds.

    Attributes:
      cuts: Those that are kept, lazy.
      num_cuts: How many these are, of `num_seen`; `seconds` they last in all.
      codec: What made their tokens, None where that is not recorded.
    """

    cuts: CutSet
    num_cuts: int = 0
    num_seen: int = 0
    seconds: float = 0.0
    codec: CodecInfo | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """In plain types, for the record of a run."""
        facts: dict[str, Any] = {"cuts": self.num_cuts, "hours": self.seconds / 3600}
        if self.codec is not None:
            facts["frames"] = round(self.seconds * self.codec.frame_rate)
            facts["codec"] = self.codec.to_dict()
        return facts

    def counted(self, cuts: Iterable[Any], keeps: Callable[[Any], bool]) -> Iterator[Any]:
        """Pass all cuts on, and note how many there are and how long those last that are kept."""
        for cut in cuts:
            self.num_seen += 1
            if keeps(cut):
                self.num_cuts += 1
                self.seconds += cut.duration
            yield cut


class TokenDataModule:
    """Opens the manifests of a folder and makes loaders over them.

    Args:
      args: Parsed command line with the flags of `add_arguments`.
      num_quantizers: Q that the model expects; None accepts what the manifest holds.
      codebook_size: Number of codes that the model embeds; None leaves the range unchecked.
      condition: "text" or "midi", to be in the batches; None for the codes alone.
      elsewhere_sec: Seconds of a prompt from elsewhere in the recording; 0 for none.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        num_quantizers: int | None = None,
        codebook_size: int | None = None,
        condition: str | None = None,
        elsewhere_sec: float = 0.0,
    ) -> None:
        self.args = args
        self.num_quantizers = num_quantizers
        self.codebook_size = codebook_size
        self.condition = condition
        self.elsewhere_sec = elsewhere_sec

    @cached_property
    def symbols(self) -> SymbolTable:
        """The table of the texts' symbols: `--text-tokens`, or the one beside the manifests.

        Raises:
          FileNotFoundError: There is none.
          ValueError: It is no such table.
        """
        path = self.args.text_tokens or self.args.manifest_dir / TEXT_TABLE
        if not path.is_file():
            raise FileNotFoundError(
                f"no table of text symbols at {path}: egs/atepp/bin/tokenizer.py writes it beside "
                "manifests of cuts with text; one elsewhere: --text-tokens"
            )
        return SymbolTable.read(path)

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Add the data flags, named as the recipes of this family name them."""
        group = parser.add_argument_group("data", "where token cuts lie and how they are batched")
        add = group.add_argument
        add("--manifest-dir", type=Path, default=Path("data/tokenized"), help="token manifests")
        add(
            "--max-duration",
            type=float,
            default=40.0,
            help="about so many seconds a batch, padding included",
        )
        add("--bucketing-sampler", type=str2bool, default=True, help="batch cuts of like length")
        # 30: a batch of 150 s has 1.6 % padding where cuts last 5 to 15 s, with 10 it has 4.6 %
        add("--num-buckets", type=int, default=30, help="how finely lengths are told apart")
        add("--shuffle", type=str2bool, default=True, help="another order each epoch")
        add("--buffer-size", type=int, default=40000, help="cuts to choose from, with buckets")
        add("--shuffle-buffer-size", type=int, default=100000, help="the same, without buckets")
        add("--drop-last", type=str2bool, default=False, help="leave out batches not full")
        add("--num-workers", type=int, default=8, help="processes that load batches")
        add(
            "--text-tokens",
            type=Path,
            help=f"table of text symbols; default: {TEXT_TABLE} in --manifest-dir",
        )

    def train_cuts(self) -> CutSet:
        """Lazy cuts of `cuts_train.jsonl.gz`, or of the shards in `cuts_train`."""
        return self._cuts("train")

    def valid_cuts(self) -> CutSet:
        """Lazy cuts of `cuts_validation.jsonl.gz`, `cuts_dev.jsonl.gz`, or shards so named."""
        return self._cuts("validation")

    def test_cuts(self) -> CutSet:
        """Lazy cuts of `cuts_test.jsonl.gz`, or of the shards in `cuts_test`."""
        return self._cuts("test")

    def _cuts(self, split: str) -> CutSet:
        path = manifest_path(self.args.manifest_dir, split)
        logging.info(f"{split} cuts: {path}")
        return load_cuts(path)

    def survey(self, cuts: CutSet, min_sec: float, max_sec: float) -> Survey:
        """Keep cuts of `min_sec` to `max_sec` seconds, and tell what they are.

        The summary beside a manifest tells this at once, however many cuts there are. Without one,
        or where a bound lies within one of its bins, the manifest is read whole. The number of cuts
        kept is logged.

        Raises:
          ValueError: Nothing is left, or the tokens are of several codecs.
        """
        survey = _from_summary(cuts, min_sec, max_sec) or _by_reading(cuts, min_sec, max_sec)
        kept, total = survey.num_cuts, survey.num_seen
        logging.info(f"kept {kept} of {total} cuts between {min_sec:g} and {max_sec:g} s")
        if kept == 0:
            raise ValueError(
                f"none of {total} cuts lasts between {min_sec:g} and {max_sec:g} s: change "
                "--filter-min-duration and --filter-max-duration, or tokenise with another --window"
            )
        return survey

    def train_dataloader(
        self,
        cuts: CutSet,
        seed: int,
        world_size: int = 1,
        rank: int = 0,
        sampler_state: dict[str, Any] | None = None,
    ) -> DataLoader:
        """Batches for training; call `loader.sampler.set_epoch(epoch)` before each epoch.

        Args:
          cuts: Training cuts.
          seed: Of the order; the same on every rank.
          world_size: Ranks that share an epoch; each gets equally many batches.
          rank: This one.
          sampler_state: From `consumed_state`: the first epoch drawn goes on where it was taken.

        Raises:
          ValueError: A state of another setup.
        """
        sampler = self._sampler(
            cuts,
            shuffle=self.args.shuffle,
            drop_last=self.args.drop_last,
            seed=seed,
            world_size=world_size,
            rank=rank,
        )
        if sampler_state is not None:
            load_sampler_state(sampler, sampler_state)
        return self._loader(sampler, for_training=True)

    def valid_dataloader(self, cuts: CutSet, world_size: int = 1, rank: int = 0) -> DataLoader:
        """Batches for validation or test: every cut once, in the same order each time.

        Ranks share the batches, and some may get one more than others: do not run a collective
        operation (a DistributedDataParallel forward) per batch, sum up and reduce at the end.
        """
        sampler = self._sampler(cuts, shuffle=False, drop_last=False, seed=0, world_size=1, rank=0)
        return self._loader(EveryNth(sampler, rank, world_size), for_training=False)

    def _sampler(self, cuts: CutSet, **settings: Any) -> Any:
        return make_sampler(
            cuts,
            max_duration=self.args.max_duration,
            num_buckets=self.args.num_buckets if self.args.bucketing_sampler else 1,
            buffer_size=self.args.buffer_size,
            shuffle_buffer_size=self.args.shuffle_buffer_size,
            **settings,
        )

    def _loader(self, sampler: Any, for_training: bool) -> DataLoader:
        workers = self.args.num_workers
        dataset = TokenDataset(
            self.num_quantizers,
            self.codebook_size,
            self.condition,
            self.symbols if self.condition == "text" else None,
            self.elsewhere_sec,
            refuse_unknown=for_training,
        )
        return DataLoader(
            dataset,
            sampler=sampler,
            batch_size=None,  # the sampler yields whole batches
            num_workers=workers,
            persistent_workers=for_training and workers > 0,
            worker_init_fn=ignore_stop_signals,
            # its own: an iterator's start would else move the global one, which draws dropout
            generator=torch.Generator(),
        )


def _from_summary(cuts: CutSet, min_sec: float, max_sec: float) -> Survey | None:
    """A survey without reading, where the cuts are a whole manifest and its summary suffices."""
    summary = cuts.data.summary() if isinstance(cuts.data, TokenManifest) else None
    counts = None if summary is None else summary.between(min_sec, max_sec)
    if summary is None or counts is None:
        return None
    codec = summary.codec_info()
    if codec is None:
        warn_of_missing_codec()
    num_cuts, seconds = counts
    kept = _filtered(cuts, DurationFilter(min_sec, max_sec))
    return Survey(kept, num_cuts, summary.num_cuts, seconds, codec)


def _by_reading(cuts: CutSet, min_sec: float, max_sec: float) -> Survey:
    keeps = DurationFilter(min_sec, max_sec)
    survey = Survey(_filtered(cuts, keeps))
    survey.codec = codec_of(survey.counted(cuts, keeps))
    return survey


def _filtered(cuts: CutSet, keeps: Callable[[Any], bool]) -> CutSet:
    """Cuts that are wanted, lazy; of a manifest a manifest still, whose shards can be shuffled."""
    if isinstance(cuts.data, TokenManifest):
        return CutSet(cuts.data.filtered(keeps))
    return cuts.filter(keeps)
