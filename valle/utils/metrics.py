"""Sums and counts of what is measured, kept on the device until somebody reads them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

from valle.utils.dist import gather_objects

Number: TypeAlias = Tensor | float
# names in the log line; all others (per quantizer and so on) go to tensorboard alone
LOGGED = ("loss", "ArTop10Accuracy", "NarTop10Accuracy")
FRAMES = "frames"
NONFINITE = "nonfinite"
_PLAIN_SUMS = (FRAMES, NONFINITE)


class SummaryWriter(Protocol):
    """The part of tensorboard's writer that is used here."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> Any: ...


class MetricsTracker:
    """Adds up measurements, each a total with the count it will be divided by.

    ``tot = tot * (1 - 1 / 200) + batch`` keeps a mean that forgets, ``tot += batch`` one that does
    not. Nothing waits for the device before the values are read. A measurement whose total is not
    finite is left out with its count, and counted under ``nonfinite``: one bad batch does not
    spoil the mean of the others, and does not go unseen.

    Args:
        metrics: Name -> (total, count), both 0-dim tensors or numbers. ``frames`` is a plain
            number: how much has been seen, said at the end of the log line.
    """

    def __init__(self, metrics: Mapping[str, Sequence[Number] | Number] | None = None):
        self._names: tuple[str, ...] = ()
        self._sums = torch.zeros(0, 2, dtype=torch.float64)  # (names, total and count)
        if metrics:
            self._take(metrics)

    def __add__(self, other: "MetricsTracker") -> "MetricsTracker":
        names = self._names + tuple(name for name in other._names if name not in self._names)
        device = other._sums.device if other._names else self._sums.device
        return _tracker(names, self._aligned(names, device) + other._aligned(names, device))

    def __mul__(self, factor: float) -> "MetricsTracker":
        return _tracker(self._names, self._sums * factor)

    def __getitem__(self, name: str) -> float:
        """One value, as in ``means``."""
        return self.means()[name]

    def means(self) -> dict[str, float]:
        """Name -> total / count (plain sums: the total). This waits for the device.

        A name whose count is 0 is left out: nothing was measured.
        """
        values = {}
        for name, (total, count) in zip(self._names, self._sums.tolist(), strict=True):
            if name in _PLAIN_SUMS:
                values[name] = total
            elif count > 0:
                values[name] = total / count
        return values

    def reduce(self, device: torch.device | str | None = None) -> "MetricsTracker":
        """The sums over all ranks; every rank must call it, their names may differ.

        Args:
            device: Where the exchange takes place; None: where the sums are. NCCL needs the GPU.
        """
        if not dist.is_initialized():
            return self
        everyones = gather_objects(self._names)
        names = tuple(dict.fromkeys(name for theirs in everyones for name in theirs))
        sums = self._aligned(names, torch.device(device or self._sums.device)).clone()
        dist.all_reduce(sums)
        return _tracker(names, sums)

    def to_plain(self) -> dict[str, Any]:
        """The sums as a checkpoint takes them."""
        return {"names": list(self._names), "sums": self._sums.cpu()}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "MetricsTracker":
        """What ``to_plain`` was called on."""
        return _tracker(tuple(plain["names"]), plain["sums"])

    def __str__(self) -> str:
        """As icefall: ``loss=2.5, ArTop10Accuracy=0.6, over 100.00 frames. ``."""
        values = self.means()
        parts = [f"{name}={values[name]:.4g}" for name in LOGGED if name in values]
        if values.get(NONFINITE):
            parts.append(f"{NONFINITE}={values[NONFINITE]:.4g}")
        parts.append(f"over {values.get(FRAMES, 0.0):.2f} frames. ")
        return ", ".join(parts)

    def write_summary(self, writer: SummaryWriter, prefix: str, step: int) -> None:
        """Write every value under ``prefix + name``; a ``loss_x`` in nats as ``perplexity_x`` too.

        Args:
            writer: tensorboard's.
            prefix: As in "train/current_".
            step: The x axis: updates so far.
        """
        for name, value in self.means().items():
            if name in _PLAIN_SUMS and not (name == NONFINITE and value):
                continue
            writer.add_scalar(prefix + name, value, step)
            if name.startswith("loss_"):
                tag = prefix + "perplexity_" + name.removeprefix("loss_")
                writer.add_scalar(tag, _exp(value), step)

    def _take(self, metrics: Mapping[str, Sequence[Number] | Number]) -> None:
        names = tuple(metrics)
        pairs = [_as_pair(name, value) for name, value in metrics.items()]
        device = next((n.device for p in pairs for n in p if isinstance(n, Tensor)), None)
        flat = [_as_scalar(number, device) for pair in pairs for number in pair]
        sums = torch.stack(flat).view(len(names), 2)
        finite = sums[:, :1].isfinite()
        dropped = (~finite).sum().to(sums)
        sums = torch.where(finite, sums, 0.0)
        self._names = (*names, NONFINITE)
        self._sums = torch.cat([sums, torch.stack([dropped, torch.zeros_like(dropped)])[None]])

    def _aligned(self, names: tuple[str, ...], device: torch.device) -> Tensor:
        """(names, 2): the sums in the order of ``names``, 0 for names not seen here."""
        sums = self._sums.to(device)
        if names == self._names:
            return sums
        rows = dict(zip(self._names, sums, strict=True))
        nothing = sums.new_zeros(2)
        return torch.stack([rows.get(name, nothing) for name in names])


def _tracker(names: tuple[str, ...], sums: Tensor) -> MetricsTracker:
    tracker = MetricsTracker()
    tracker._names, tracker._sums = names, sums
    return tracker


def _as_pair(name: str, value: Sequence[Number] | Number) -> tuple[Number, Number]:
    if name == FRAMES and isinstance(value, (int, float, Tensor)):
        return value, 0.0
    if isinstance(value, (tuple, list)) and len(value) == 2:
        return value[0], value[1]
    raise ValueError(f"metric {name!r} must be a (total, count), got {type(value).__name__}")


def _as_scalar(number: Number, device: torch.device | None) -> Tensor:
    """() float64 on the device, so that counts of many millions stay exact."""
    if isinstance(number, Tensor):
        return number.detach().to(torch.float64).reshape(())
    return torch.full((), float(number), dtype=torch.float64, device=device)


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
