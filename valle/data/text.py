"""What is to be said, as symbols: phones or plain characters; and the table of their ids."""

import logging
import re
import threading
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from valle.utils.files import written_whole
from valle.utils.vocabulary import BOS, EOS

EXTRACTORS = ("espeak", "characters")
WORD_BOUNDARY = "_"
MARKS = ';:,.!?¡¿—…"«»“”(){}[]'  # punctuation that is kept, as a symbol each
SPECIAL_SYMBOLS = ("<pad>", "<bos>", "<eos>")

_PHONE_BOUNDARY = "|"
_POINTS = ",."  # between digits they belong to the number
_OTHERS = re.escape(MARKS.translate(dict.fromkeys(map(ord, _POINTS))))
_MARK = re.compile(rf"([{_OTHERS}]|(?<!\d)[{_POINTS}]|[{_POINTS}](?!\d))")
_ESPEAK = threading.Lock()  # espeak-ng keeps its state in global variables


def symbols_of(text: str, extractor: str = "espeak", language: str = "en-us") -> list[str]:
    """The symbols of a text; the same text always has the same ones.

    Args:
        text: As people write it.
        extractor: "espeak": phones without stress, by phonemizer and espeak-ng; punctuation marks
            are kept. "characters": lower-case letters and whatever else is written, in Unicode's
            composed form. Both have "_" between words.
        language: One of espeak-ng's, as en-us, de or fr-fr; characters have none.

    Returns:
        At least one symbol; none holds white space.

    Raises:
        ValueError: Nothing to say in the text, an unknown extractor or language.
        ImportError: phonemizer or espeak-ng is missing; the message names the pip line.
    """
    check_extractor(extractor)
    composed = unicodedata.normalize("NFC", text)  # espeak-ng takes a lone dieresis for nothing
    words = " ".join(composed.replace(WORD_BOUNDARY, " ").split())
    if not any(character.isalnum() for character in words):
        raise ValueError(f"the text {text!r} has nothing to say; give at least one letter or digit")
    symbols = _characters(words) if extractor == "characters" else _phones(words, language)
    if all(symbol in MARKS or symbol == WORD_BOUNDARY for symbol in symbols):
        raise ValueError(
            f"espeak-ng knows nothing to say for {text!r} in the language {language!r}; is it the "
            "language of the text?"
        )
    return symbols


def check_extractor(extractor: str) -> None:
    """Refuse an extractor that is not in EXTRACTORS, with a ValueError."""
    if extractor not in EXTRACTORS:
        raise ValueError(f"unknown text extractor {extractor!r}; choose of {', '.join(EXTRACTORS)}")


def _characters(words: str) -> list[str]:
    lower = unicodedata.normalize("NFC", words.lower())
    return [WORD_BOUNDARY if character == " " else character for character in lower]


def _phones(words: str, language: str) -> list[str]:
    backend = _espeak(language)
    symbols: list[str] = []
    for chunk in _MARK.split(words):  # text and marks in turn
        if len(chunk) == 1 and chunk in MARKS:
            symbols.append(chunk)
            continue
        symbols += [WORD_BOUNDARY] * chunk.startswith(" ")
        symbols += _spoken(backend, chunk)
        symbols += [WORD_BOUNDARY] * chunk.endswith(" ")
    return _single_boundaries(symbols)


def _spoken(backend: Any, chunk: str) -> list[str]:
    """Phones of text without marks; marks come not from espeak-ng, whose phones may hold a dot."""
    from phonemizer.separator import Separator

    separator = Separator(phone=_PHONE_BOUNDARY, word=WORD_BOUNDARY)
    with _ESPEAK:
        spoken = " ".join(backend.phonemize([chunk.strip()], separator=separator, strip=True))
    phones = re.split(rf"[\s{_PHONE_BOUNDARY}]+|({WORD_BOUNDARY})", spoken)
    return [phone for phone in phones if phone]


def _single_boundaries(symbols: list[str]) -> list[str]:
    """One boundary between words, none at the ends."""
    kept: list[str] = []
    for symbol in symbols:
        if symbol != WORD_BOUNDARY or (kept and kept[-1] != WORD_BOUNDARY):
            kept.append(symbol)
    return kept[:-1] if kept and kept[-1] == WORD_BOUNDARY else kept


@lru_cache(maxsize=8)
def _espeak(language: str) -> Any:
    """The backend of a language, made once: making one takes longer than many sentences."""
    try:
        from phonemizer.backend import EspeakBackend
        from phonemizer.backend.espeak.wrapper import EspeakWrapper
    except ImportError as error:
        raise ImportError(
            "phones need phonemizer: run pip install 'valle[text]', or use plain characters "
            "(--text-extractor characters)"
        ) from error
    _use_packaged_library(EspeakWrapper)
    quiet = logging.getLogger(f"{__name__}.phonemizer")
    quiet.setLevel(logging.ERROR)  # it tells of every foreign word
    with _ESPEAK:
        if not EspeakBackend.is_available():
            raise ImportError(
                "phones need espeak-ng: run pip install 'valle[text]', which brings it, or install "
                "espeak-ng on this computer, or use plain characters (--text-extractor characters)"
            )
        if not EspeakBackend.is_supported_language(language):
            known = ", ".join(sorted(EspeakBackend.supported_languages()))
            raise ValueError(f"espeak-ng does not speak {language!r}; it speaks {known}")
        return EspeakBackend(
            language,
            punctuation_marks=MARKS[0],  # of which it finds none: not the points in numbers
            language_switch="remove-flags",
            logger=quiet,
        )


def _use_packaged_library(wrapper: Any) -> None:
    """Take the library of the wheel espeakng-loader; without it the system's is found."""
    try:
        import espeakng_loader
    except ImportError:
        return
    wrapper.set_library(espeakng_loader.get_library_path())
    wrapper.set_data_path(espeakng_loader.get_data_path())


class SymbolTable:
    """Which id a symbol has: "<pad>" 0, "<bos>" 1, "<eos>" 2, then the others in order.

    Args:
        symbols: All of them in the order of their ids, the special ones among them.

    Attributes:
        symbols: The same, as a list.

    Raises:
        ValueError: The special symbols are not the first, or a symbol is there twice, is empty or
            holds white space.
    """

    def __init__(self, symbols: Sequence[str]) -> None:
        self.symbols = list(symbols)
        if tuple(self.symbols[: len(SPECIAL_SYMBOLS)]) != SPECIAL_SYMBOLS:
            raise ValueError(
                f"a table of symbols begins with {', '.join(SPECIAL_SYMBOLS)}, got "
                f"{self.symbols[: len(SPECIAL_SYMBOLS)]}; was it written by another program?"
            )
        for symbol in self.symbols:
            if symbol.split() != [symbol]:
                raise ValueError(f"a symbol must not be empty or hold white space, got {symbol!r}")
        self._ids = {symbol: i for i, symbol in enumerate(self.symbols)}
        if len(self._ids) < len(self.symbols):
            twice = next(s for i, s in enumerate(self.symbols) if self._ids[s] != i)
            raise ValueError(f"the symbol {twice!r} is in the table twice; each has one id")
        self._told: set[str] = set()

    @classmethod
    def of(cls, texts: Iterable[Iterable[str]]) -> "SymbolTable":
        """The table of all symbols in some texts, sorted, so that their order is no matter."""
        found = {symbol for text in texts for symbol in text}
        return cls([*SPECIAL_SYMBOLS, *sorted(found.difference(SPECIAL_SYMBOLS))])

    @classmethod
    def read(cls, path: str | Path) -> "SymbolTable":
        """A table from a file of lines "symbol id", as k2 writes them, in any order.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: A line is of another form, or the ids are not 0, 1, 2, ...
        """
        by_id: dict[int, str] = {}
        lines = Path(path).read_text(encoding="utf-8").split("\n")
        for number, line in enumerate(lines, start=1):
            parts = line.split()
            if not parts:
                continue
            if len(parts) != 2 or not parts[1].isdecimal() or int(parts[1]) in by_id:
                raise ValueError(
                    f"{path}, line {number}: expected a symbol, a space and an id of its own, got "
                    f"{line!r}"
                )
            by_id[int(parts[1])] = parts[0]
        if sorted(by_id) != list(range(len(by_id))):
            raise ValueError(f"{path}: ids must be 0 to {len(by_id) - 1} without a gap")
        try:
            return cls([by_id[i] for i in range(len(by_id))])
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def write(self, path: str | Path) -> None:
        """Write the table as ``read`` reads it, whole or not at all."""
        lines = "".join(f"{symbol} {i}\n" for i, symbol in enumerate(self.symbols))
        with written_whole(path) as temporary:
            temporary.write_text(lines, encoding="utf-8")

    def __len__(self) -> int:
        """How many ids there are, the special ones among them."""
        return len(self.symbols)

    def ids(self, symbols: Iterable[str]) -> list[int]:
        """The ids of a text: <bos>, its symbols, <eos>.

        A symbol that is not in the table is left out, as a speaker passes over a sign without a
        sound, and the log names it the first time: one odd letter should not stop a long text.

        Raises:
            ValueError: No symbol is left.
        """
        symbols = list(symbols)
        known = [self._ids[symbol] for symbol in symbols if symbol in self._ids]
        if not known:
            raise ValueError(
                f"the table knows none of the symbols {symbols[:20]}; it holds "
                f"{self.symbols[len(SPECIAL_SYMBOLS) :][:40]}. Were the texts of training made "
                "with the same extractor and language?"
            )
        unknown = sorted(set(symbols).difference(self._ids, self._told))
        if unknown:
            self._told.update(unknown)
            logging.warning(f"symbols that training never had are left out: {' '.join(unknown)}")
        return [BOS, *known, EOS]
