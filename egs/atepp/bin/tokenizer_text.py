"""Cuts that carry the symbols of their text; each is kept whole, as its text is."""

import argparse
import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from lhotse.utils import fastcopy
from tokenizer_excerpts import Unconditioned

from valle.data.codec_info import CodecInfo
from valle.data.conditions import text_symbols
from valle.data.datamodule import TEXT_TABLE
from valle.data.sources import Source
from valle.data.text import SymbolTable, symbols_of

NO_TEXT = "no_text"


def has_text(cut: Any) -> bool:
    """Whether a cut comes with what is said in it."""
    return any(supervision.text for supervision in cut.supervisions)


class TextCondition(Unconditioned):
    """Symbols in `supervisions[0].custom["tokens"]["text"]`, as VALL-E's manifests have them.

    Args:
      args: The command line.
      sources: All recordings, with their cuts.

    Raises:
      ImportError: phonemizer or espeak-ng is missing.
      ValueError: A cut of several texts, or an unknown language.
    """

    def __init__(self, args: argparse.Namespace, sources: list[Source]) -> None:
        super().__init__()
        for cut in (cut for source in sources for cut in source.cuts):
            if has_text(cut) and len(cut.supervisions) != 1:
                raise ValueError(
                    f"cut {cut.id} has {len(cut.supervisions)} supervisions, expected one, whose "
                    "text is what is said in it: make a cut for each (trim_to_supervisions of "
                    "lhotse), or pass over the text: --text-extractor none"
                )
        self._extractor, self._language = args.text_extractor, args.language
        self._symbols("a")  # what is missing shows before hours of work
        self._table = args.output_dir / TEXT_TABLE
        self._seen: set[str] = set()
        self._num_without = 0
        is_spelt = self._extractor == "characters"  # which have no language
        language = {} if is_spelt else {"language": self._language}
        self.settings = {"text": {"extractor": self._extractor, **language}}

    def part(self, source: Source, duration_sec: float) -> Source | str:
        """The recording with those of its cuts that have text, and their symbols."""
        cuts = [spoken for cut in source.cuts if (spoken := self._spoken(cut)) is not None]
        self._num_without += len(source.cuts) - len(cuts)
        return replace(source, cuts=cuts) if cuts else NO_TEXT

    def _spoken(self, cut: Any) -> Any:
        """A cut with the symbols of its text; None where it has none."""
        if not has_text(cut):
            logging.warning(f"skipped ({NO_TEXT}): cut {cut.id} has no text")
            return None
        supervision = cut.supervisions[0]
        try:
            symbols = self._symbols(supervision.text)
        except ValueError as error:
            logging.warning(f"skipped ({NO_TEXT}): cut {cut.id}: {error}")
            return None
        custom = {**(supervision.custom or {}), "tokens": {"text": symbols}}
        return fastcopy(cut, supervisions=[fastcopy(supervision, custom=custom)])

    def _symbols(self, text: str) -> list[str]:
        return symbols_of(text, self._extractor, self._language)

    def excerpts(
        self, source: Source, cut: Any, codec: CodecInfo, window: int, minimum: int
    ) -> Iterator[Any]:
        """The cut itself: a part of it would not fit its text."""
        self._seen.update(text_symbols(cut))
        yield cut

    def wrote(self, split: str) -> None:
        """Write the table of the training split's symbols; it comes first of the splits."""
        if split != "train":
            return
        if self._seen:
            SymbolTable.of([self._seen]).write(self._table)
        else:
            self._table.unlink(missing_ok=True)

    def lines(self) -> list[tuple[str, int]]:
        """How many cuts were left out."""
        return [("cuts without text", self._num_without)] if self._num_without else []
