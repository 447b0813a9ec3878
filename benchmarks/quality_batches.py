"""The same batches in the same order for whoever learns from them, and what they would cost.

B rows of a batch, S prompt frames, T target frames, L = S + T frames in all, Q quantizers.
"""

import argparse
import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from typing import Any, NamedTuple

import torch
from lhotse import CutSet
from torch import Tensor
from train_contenders import StepFlops, TrainBatch

from valle.data import CodecInfo, Survey, TokenDataModule, cut_codes, split_prompt

Cost = Callable[[TrainBatch], StepFlops]


@dataclass(frozen=True)
class CodeBatch(TrainBatch):
    """A batch of true codes, split into prompts and targets.

    Attributes:
      y_ends: (B,) bool, True where the target reaches the end of its recording.
      epoch: it belongs to, from 1.
      names: of its cuts.
    """

    y_ends: Tensor
    epoch: int
    names: tuple[str, ...]

    @classmethod
    def of(
        cls, item: dict[str, Any], ratio: float, device: torch.device, epoch: int = 1
    ) -> "CodeBatch":
        """Of what a loader gives, with this share of each row as its prompt."""
        split = split_prompt(item["audio_features"], item["audio_features_lens"], ratio)
        parts = (part.to(device) for part in (*split, item["reaches_end"]))
        return cls(*parts, epoch, tuple(item["utt_id"]))

    def digest(self) -> str:
        """Of cuts and codes: equal for equal batches, wherever the prompts end."""
        hashed = hashlib.sha256("\n".join(self.names).encode())
        lens = zip(self.x_lens.tolist(), self.y_lens.tolist(), strict=True)
        for x, y, (num_prompt, num_target) in zip(self.x, self.y, lens, strict=True):
            hashed.update(torch.cat([x[:num_prompt], y[:num_target]]).cpu().numpy().tobytes())
        return hashed.hexdigest()


def digest_of(batches: Iterable[CodeBatch]) -> str:
    """Of several, in their order."""
    return hashlib.sha256("".join(batch.digest() for batch in batches).encode()).hexdigest()


class Plan(NamedTuple):
    """How many steps use up a budget, and what they need: floating-point operations."""

    num_steps: int
    flops: float


class Excerpt(NamedTuple):
    """The beginning of a held-out cut.

    Attributes:
      name: of the cut; `recording`: that it is of.
      codes: (L, Q) int64.
    """

    name: str
    recording: str
    codes: Tensor


class Tokens:
    """Training and held-out cuts of a folder of manifests.

    Args:
      args: the flags of `TokenDataModule`, `filter_max_duration` (s), `seed`, `split`, and
        `limit_cuts` (0: all), the most cuts of each split.
      device: where batches go.

    Raises:
      ValueError: a split without cuts, or tokens that do not name their codec.
    """

    def __init__(self, args: argparse.Namespace, device: torch.device) -> None:
        self.args, self.device = args, device
        self.data = TokenDataModule(args)
        held_out = {"validation": self.data.valid_cuts}  # where rates are chosen
        if args.split == "test":
            held_out["test"] = self.data.test_cuts
        train = self._survey(self.data.train_cuts())
        if train.codec is None:
            raise ValueError(
                f"the tokens in {args.manifest_dir} do not name their codec, so nobody knows its "
                "codebooks: make them with egs/atepp/bin/tokenizer.py"
            )
        self.codec: CodecInfo = train.codec
        self._train = self._limited(train.cuts)
        self._held_out = {
            name: self._limited(self._survey(cuts()).cuts) for name, cuts in held_out.items()
        }
        self._lens: dict[int, list[Tensor]] = {}

    def training_batches(self, ratio: float) -> Iterator[CodeBatch]:
        """Epoch after epoch without end; a row's prompt is this share of it."""
        for epoch in count(1):
            for item in self._epoch(epoch):
                yield CodeBatch.of(item, ratio, self.device, epoch)

    def held_out(self, split: str, ratio: float) -> Iterator[CodeBatch]:
        """Every cut of "validation" or "test" once."""
        for item in self.data.valid_dataloader(self._held_out[split]):
            yield CodeBatch.of(item, ratio, self.device)

    @property
    def num_train_cuts(self) -> int:
        return sum(len(batch.x) for batch in self._shapes(1, self.args.prompt_ratio))

    def excerpts(self, split: str, num_frames: int, limit: int) -> list[Excerpt]:
        """The first frames of cuts that have so many, taken evenly from the whole split.

        Raises:
          ValueError: no cut is so long.
        """
        cuts = self._held_out[split]
        long = [(cut, codes) for cut in cuts if len(codes := cut_codes(cut)) >= num_frames]
        if not long:
            raise ValueError(
                f"no {split} cut has {num_frames} frames: lower --prompt-seconds or --new-seconds"
            )
        chosen = [long[i * len(long) // limit] for i in range(limit)] if limit < len(long) else long
        return [
            Excerpt(cut.id, cut.recording_id, torch.from_numpy(codes[:num_frames]).long())
            for cut, codes in chosen
        ]

    def digest(self, num_batches: int) -> str:
        """Of the first batches that everybody learns from."""
        batches = islice(self.training_batches(self.args.prompt_ratio), num_batches)
        return digest_of(batches)

    def budget(self, cost: Cost, ratio: float, num_epochs: int) -> Plan:
        """What so many epochs need."""
        batches = [b for epoch in range(1, num_epochs + 1) for b in self._shapes(epoch, ratio)]
        return Plan(len(batches), sum(cost(batch).total for batch in batches))

    def plan(self, cost: Cost, ratio: float, budget: float) -> Plan:
        """As many steps as come nearest to a budget of operations, one at least."""
        steps, spent = 0, 0.0
        for epoch in count(1):
            for batch in self._shapes(epoch, ratio):
                step = cost(batch).total
                if steps and spent + step / 2 > budget:
                    return Plan(steps, spent)
                steps, spent = steps + 1, spent + step
        raise AssertionError("epochs do not end")

    def _shapes(self, epoch: int, ratio: float) -> Iterator[TrainBatch]:
        """Batches of an epoch without their codes: enough to count what they cost."""
        if epoch not in self._lens:
            self._lens[epoch] = [item["audio_features_lens"] for item in self._epoch(epoch)]
        for lens in self._lens[epoch]:
            empty = torch.zeros(len(lens), int(lens.max()), 1, dtype=torch.long)
            yield TrainBatch(*split_prompt(empty, lens, ratio))

    def _epoch(self, epoch: int) -> Iterator[dict[str, Any]]:
        """What the trainer's loader gives in an epoch, from 1."""
        loader: Any = self.data.train_dataloader(self._train, self.args.seed)
        loader.sampler.set_epoch(epoch)
        items = iter(loader)
        first = next(items, None)
        if first is None:
            raise ValueError(
                "an epoch had no batch: the training cuts do not fill one; lower --max-duration, "
                "or set --drop-last false"
            )
        yield first
        yield from items

    def _survey(self, cuts: CutSet) -> Survey:
        return self.data.survey(cuts, 0.0, self.args.filter_max_duration)

    def _limited(self, cuts: CutSet) -> CutSet:
        limit = self.args.limit_cuts
        return CutSet.from_cuts(islice(cuts, limit)) if limit else cuts
