"""Learning rate as a function of the steps and epochs done.

A scheduler sets the rate when it is built, when an epoch starts (``step_epoch``) and after every
update (``step_batch``). Its state is two counters; the base rate stays with the command line, so a
resumed run may change it.
"""

import math
from typing import Any

from torch.optim import Optimizer


class _Scheduler:
    """The counters; a subclass says by what factor the base rate is multiplied.

    Args:
        optimizer: Its groups' ``lr`` at this moment (or ``initial_lr``, if a scheduler left one)
            are the base rates.
    """

    def __init__(self, optimizer: Optimizer):
        self.optimizer = optimizer
        self.base_lrs: list[float] = [
            group.setdefault("initial_lr", group["lr"]) for group in optimizer.param_groups
        ]
        self.epoch = 0
        self.batch = 0
        self._apply()

    def factor(self) -> float:
        raise NotImplementedError

    def step_batch(self, batch: int | None = None) -> None:
        """Say that ``batch`` updates are done in all (None: one more than before)."""
        self.batch = self.batch + 1 if batch is None else batch
        self._apply()

    def step_epoch(self, epoch: int | None = None) -> None:
        """Say that ``epoch`` epochs are done (None: one more than before)."""
        self.epoch = self.epoch + 1 if epoch is None else epoch
        self._apply()

    def get_last_lr(self) -> list[float]:
        """The rate of each group, as set last."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "batch": self.batch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the counters and set the rate accordingly.

        Raises:
            ValueError: A counter is missing.
        """
        missing = {"epoch", "batch"} - set(state_dict)
        if missing:
            raise ValueError(
                f"the scheduler state has {sorted(state_dict)}, without {sorted(missing)}"
            )
        self.epoch, self.batch = int(state_dict["epoch"]), int(state_dict["batch"])
        self._apply()

    def _apply(self) -> None:
        factor = self.factor()
        for group, base_lr in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = base_lr * factor


class Eden(_Scheduler):
    """icefall's schedule: flat at first, then falling as the root of both batches and epochs.

    With b updates and e epochs done, the factor on the base rate is
    ``((b^2 + B^2) / B^2)^-1/4 * ((e^2 + E^2) / E^2)^-1/4 * w``, where w rises from 0.5 to 1 over
    the warm-up.

    Args:
        optimizer: Its groups' ``lr`` are the base rates.
        lr_batches: B, the number of updates from which batches matter.
        lr_epochs: E, the number of epochs from which epochs matter.
        warmup_batches: Updates until w is 1; 0: no warm-up.

    Raises:
        ValueError: A setting is out of range.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        lr_batches: float = 5000.0,
        lr_epochs: float = 4.0,
        warmup_batches: int = 200,
    ):
        if lr_batches <= 0 or lr_epochs <= 0:
            raise ValueError(
                f"lr_batches and lr_epochs must be positive, got {lr_batches} and {lr_epochs}"
            )
        self.lr_batches = lr_batches
        self.lr_epochs = lr_epochs
        self.warmup_batches = _checked_warmup(warmup_batches)
        super().__init__(optimizer)

    def factor(self) -> float:
        by_batch = (1 + (self.batch / self.lr_batches) ** 2) ** -0.25
        by_epoch = (1 + (self.epoch / self.lr_epochs) ** 2) ** -0.25
        return by_batch * by_epoch * self._warmup()

    def _warmup(self) -> float:
        if self.batch >= self.warmup_batches:
            return 1.0
        return 0.5 + 0.5 * self.batch / self.warmup_batches


class Cosine(_Scheduler):
    """Linear warm-up, then half a cosine down to a floor at ``total_steps``, then that floor.

    Args:
        optimizer: Its groups' ``lr`` are the base rates.
        total_steps: Updates of the whole run.
        warmup_steps: Updates with a rising rate: update n of them has n / warmup_steps of it.
        floor: Where the rate ends, as a fraction of the base rate.

    Raises:
        ValueError: A setting is out of range.
    """

    def __init__(
        self, optimizer: Optimizer, total_steps: int, warmup_steps: int = 200, floor: float = 0.1
    ):
        self.warmup_steps = _checked_warmup(warmup_steps)
        if total_steps <= warmup_steps:
            raise ValueError(
                f"total_steps ({total_steps}) must exceed warmup_steps ({warmup_steps}); shorten "
                "the warm-up or train longer"
            )
        if not 0 <= floor <= 1:
            raise ValueError(f"floor must lie in [0, 1], got {floor}")
        self.total_steps = total_steps
        self.floor = floor
        super().__init__(optimizer)

    def factor(self) -> float:
        update = self.batch + 1  # the one that comes next
        if update <= self.warmup_steps:
            return update / self.warmup_steps
        progress = (update - self.warmup_steps) / (self.total_steps - self.warmup_steps)
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


Scheduler = Eden | Cosine


def make_scheduler(
    name: str,
    optimizer: Optimizer,
    warmup_steps: int = 200,
    total_steps: int | None = None,
) -> Scheduler:
    """Build a schedule.

    Args:
        name: "Eden" or "Cosine".
        optimizer: Its groups' ``lr`` are the base rates.
        warmup_steps: Updates of the warm-up.
        total_steps: Updates of the whole run; Cosine needs it, Eden does not look at it.

    Raises:
        ValueError: The name is unknown, or Cosine was given no ``total_steps``.
    """
    if name == "Eden":
        return Eden(optimizer, warmup_batches=warmup_steps)
    if name == "Cosine":
        if total_steps is None:
            raise ValueError("Cosine must know its total_steps: epochs times updates per epoch")
        return Cosine(optimizer, total_steps, warmup_steps)
    raise ValueError(f"unknown scheduler {name!r}; choose one of Eden, Cosine")


def _checked_warmup(steps: int) -> int:
    if steps < 0:
        raise ValueError(f"the warm-up must have at least 0 steps, got {steps}")
    return steps
