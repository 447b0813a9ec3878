"""Token cuts -> excerpts that carry their tokens alone."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lhotse.utils import fastcopy

from valle.data.codec_info import CodecInfo
from valle.data.conditions import condition_of
from valle.data.sources import Source
from valle.data.storage import cut_windows


class Unconditioned:
    """Cuts that carry their tokens alone; and what the other conditions have in common.

    Attributes:
      settings: What of the condition the cuts depend on.
      folders: Where it writes.
    """

    def __init__(self) -> None:
        self.settings: dict[str, Any] = {}
        self.folders: tuple[Path, ...] = ()

    def lacking(self, sources: Iterable[Source]) -> dict[str, str]:
        """Recordings that need not be tokenised, by id, each with the reason."""
        return {}

    def read_ahead(self, sources: Iterable[Source]) -> None:
        """Do what takes time, for the recordings of this process."""

    def part(self, source: Source, duration_sec: float) -> Source | str:
        """What of a recording can be used, or why nothing can.

        Args:
          source: The recording.
          duration_sec: Of its sound.
        """
        return source

    def excerpts(
        self, source: Source, cut: Any, codec: CodecInfo, window: int, minimum: int
    ) -> Iterator[Any]:
        """The excerpts of a token cut, with what they are conditioned on; see `cut_windows`."""
        yield from cut_windows(without_symbols(cut), codec, window, minimum)

    def wrote(self, split: str) -> None:
        """Called when the manifest of a split is written."""

    def lines(self) -> list[tuple[str, int]]:
        """What was counted, for the summary."""
        return []


def without_symbols(cut: Any) -> Any:
    """A cut without the symbols that its text once had, as they would not fit a part of it."""
    if condition_of(cut) != "text":
        return cut
    first, *others = cut.supervisions
    custom = {key: value for key, value in first.custom.items() if key != "tokens"}
    return fastcopy(cut, supervisions=[fastcopy(first, custom=custom), *others])
