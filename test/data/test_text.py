"""Texts as phones and characters, and the table of their ids."""
# ruff: noqa: RUF001 (phones look like letters)

import builtins
import logging
import subprocess
import sys
import threading
import unicodedata
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from valle.data import text as text_module
from valle.data.text import EXTRACTORS, MARKS, SymbolTable, symbols_of
from valle.utils.vocabulary import BOS, EOS

SENTENCE = 'Hello, world! The "quick" fox\n— it costs 1,500.5 (more or less).'


@pytest.fixture
def espeak():
    pytest.importorskip(
        "phonemizer", reason="phonemizer is not installed: pip install -e '.[text]'"
    )
    try:
        symbols_of("a")
    except ImportError as error:
        if find_spec("espeakng_loader"):
            raise
        pytest.skip(str(error))


def phones(text: str, language: str = "en-us") -> str:
    return " ".join(symbols_of(text, "espeak", language))


def without_package(monkeypatch, name: str) -> None:
    for module in [m for m in sys.modules if m.partition(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    found = builtins.__import__

    def load(module, *rest):
        if module.partition(".")[0] == name:
            raise ImportError(f"no {name} here")
        return found(module, *rest)

    monkeypatch.setattr(builtins, "__import__", load)


@pytest.mark.usefixtures("espeak")
class TestPhones:
    def test_phones_words_and_marks(self):
        assert phones("Hello, world!") == "h ə l oʊ , _ w ɜː l d !"

    def test_marks_stay_where_they_are(self):
        assert phones('"Hello" (world)') == '" h ə l oʊ " _ ( w ɜː l d )'
        assert phones("... no ... well,then") == ". . . _ n oʊ _ . . . _ w ɛ l , ð ɛ n"

    def test_points_within_numbers_are_spoken(self):
        assert phones("1.5.") == "w ʌ n _ p ɔɪ n t _ f aɪ v ."
        assert phones("1,500") == phones("1500")

    def test_stress_is_left_out(self):
        assert not set("ˈˌ") & set(phones("an unimportant photographer"))

    def test_boundaries_stand_singly_and_between_words(self):
        symbols = symbols_of("  one_two |  three - four  ")
        assert symbols.count("_") == 3
        assert "_" not in (symbols[0], symbols[-1])
        assert ("_", "_") not in pairwise(symbols)
        assert "|" not in symbols
        assert symbols_of("hello! -")[-1] == "!"

    @pytest.mark.parametrize(
        ("language", "text", "wanted"),
        [
            ("de", "Grüß Gott.", "ɡ ɾ yː s _ ɡ ɔ t ."),
            ("fr-fr", "Un bon vin", "œ̃ _ b ɔ̃ _ v ɛ̃"),  # a tilde stays with its vowel
            ("es", "¿Qué tal?", "¿ k e _ t a l ?"),
        ],
    )
    def test_languages(self, language, text, wanted):
        assert phones(text, language) == wanted

    def test_a_phone_with_a_dot_is_one_symbol(self):
        assert "s." in symbols_of("世", "espeak", "cmn")

    @pytest.mark.parametrize(("language", "text"), [("fr-fr", "le football"), ("de", "New York")])
    def test_foreign_words_leave_no_flags(self, language, text):
        assert not set("()") & set(phones(text, language))

    def test_composed_and_decomposed_letters_sound_alike(self):
        text = "Grüße über Köln"
        assert phones(unicodedata.normalize("NFD", text), "de") == phones(text, "de")

    def test_the_texts_before_change_nothing(self):
        first = phones(SENTENCE)
        for other, language in [
            ("Read what I read!", "en-us"),
            ("Straße 17", "de"),
            ("?", "en-us"),
        ]:
            if other != "?":
                phones(other, language)
        assert phones(SENTENCE) == first

    def test_another_process_says_the_same(self):
        command = [
            sys.executable,
            "-c",
            "import sys; from valle.data.text import symbols_of; "
            "print(ascii(symbols_of(sys.argv[1])))",
            SENTENCE,
        ]
        root = Path(__file__).parents[2]
        said = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root).stdout
        assert said.strip() == ascii(symbols_of(SENTENCE))

    def test_threads_do_not_disturb_each_other(self):
        texts = [f"sentence number {i}, read aloud" for i in range(60)]
        alone, together = [phones(text) for text in texts], [""] * len(texts)

        def speak(start: int) -> None:
            for i in range(start, len(texts), 4):
                together[i] = phones(texts[i])

        threads = [threading.Thread(target=speak, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert together == alone

    def test_the_backend_is_made_once(self):
        assert text_module._espeak("en-us") is text_module._espeak("en-us")

    def test_unknown_language(self):
        with pytest.raises(ValueError, match=r"does not speak 'xx'; it speaks .*en-us"):
            symbols_of("hello", "espeak", "xx")

    def test_letters_the_language_has_no_sound_for(self, monkeypatch):
        monkeypatch.setattr(text_module, "_spoken", lambda backend, chunk: [])
        with pytest.raises(ValueError, match="is it the language of the text"):
            symbols_of("hello, world")


class TestMissingPackages:
    @pytest.fixture(autouse=True)
    def _fresh_backends(self):
        text_module._espeak.cache_clear()
        yield
        text_module._espeak.cache_clear()

    def test_phonemizer(self, monkeypatch):
        without_package(monkeypatch, "phonemizer")
        with pytest.raises(ImportError, match=r"need phonemizer: .*pip install 'valle\[text\]'"):
            symbols_of("hello")

    def test_espeak(self, monkeypatch, espeak):
        from phonemizer.backend.espeak.wrapper import EspeakWrapper

        text_module._espeak.cache_clear()
        without_package(monkeypatch, "espeakng_loader")
        for name in ("_ESPEAK_LIBRARY", "_ESPEAK_DATA_PATH"):
            monkeypatch.setattr(EspeakWrapper, name, None)
        monkeypatch.setenv("PHONEMIZER_ESPEAK_LIBRARY", str(Path(__file__)))
        with pytest.raises(ImportError, match=r"need espeak-ng: .*pip install 'valle\[text\]'"):
            symbols_of("hello")

    def test_characters_need_neither(self, monkeypatch):
        without_package(monkeypatch, "phonemizer")
        without_package(monkeypatch, "espeakng_loader")
        assert symbols_of("Hi!", "characters") == ["h", "i", "!"]


class TestCharacters:
    def test_by_hand(self):
        assert "".join(symbols_of(" Ein  Öl_\n\tFass, 2 L! ", "characters")) == "ein_öl_fass,_2_l!"

    def test_lower_case_letters_are_composed(self):
        assert symbols_of("J\u030c", "characters") == ["\u01f0"]

    @given(st.text(max_size=30).map(lambda text: text + "x"))
    def test_any_text_becomes_symbols_that_a_table_takes(self, text):
        symbols = symbols_of(text, "characters")
        table = SymbolTable.of([symbols])
        assert table.ids(symbols)[1:-1] == [table.symbols.index(symbol) for symbol in symbols]
        composed = unicodedata.normalize("NFC", text)
        assert symbols_of(composed, "characters") == symbols


class TestRefusedTexts:
    @pytest.mark.parametrize("extractor", EXTRACTORS)
    @pytest.mark.parametrize("text", ["", " \n ", "...", "— _ |", "?!"])
    def test_nothing_to_say(self, text, extractor):
        with pytest.raises(ValueError, match="has nothing to say; give at least one letter"):
            symbols_of(text, extractor)

    def test_unknown_extractor(self):
        with pytest.raises(ValueError, match="unknown text extractor 'morse'; choose of espeak"):
            symbols_of("hello", "morse")


class TestSymbolTable:
    def test_specials_come_first_then_the_rest_sorted(self):
        table = SymbolTable.of([["h", "ə", "_"], ["_", "a"]])
        assert table.symbols == ["<pad>", "<bos>", "<eos>", "_", "a", "h", "ə"]
        assert len(table) == 7

    def test_ids_of_a_text(self):
        table = SymbolTable.of([["a", "b"]])
        assert table.ids(["b", "a", "b"]) == [BOS, 4, 3, 4, EOS]

    @given(st.lists(st.lists(st.text(min_size=1, max_size=3).filter(lambda s: s.split() == [s]))))
    def test_what_is_written_is_read(self, tmp_path_factory, texts):
        path = tmp_path_factory.mktemp("table") / "symbols.k2symbols"
        table = SymbolTable.of(texts)
        table.write(path)
        assert SymbolTable.read(path).symbols == table.symbols
        assert SymbolTable(table.symbols).symbols == table.symbols
        assert SymbolTable.of(reversed(texts)).symbols == table.symbols

    def test_the_file_is_what_k2_reads(self, tmp_path):
        SymbolTable.of([["ɐ", "!"]]).write(tmp_path / "a")
        written = (tmp_path / "a").read_text(encoding="utf-8")
        assert written == "<pad> 0\n<bos> 1\n<eos> 2\n! 3\nɐ 4\n"

    def test_lines_in_any_order_with_tabs(self, tmp_path):
        (tmp_path / "a").write_text("x\t3\n<eos> 2\n<bos> 1\n\n<pad> 0\n")
        assert SymbolTable.read(tmp_path / "a").symbols == ["<pad>", "<bos>", "<eos>", "x"]

    def test_unknown_symbols_are_left_out_and_named_once(self, caplog):
        table = SymbolTable.of([["a", "b"]])
        with caplog.at_level(logging.WARNING):
            assert table.ids(["a", "ø", "b"]) == [BOS, 3, 4, EOS]
            assert table.ids(["ø", "b", "þ"]) == [BOS, 4, EOS]
        assert [record.message.rpartition(": ")[2] for record in caplog.records] == ["ø", "þ"]

    def test_nothing_left_is_an_error(self):
        with pytest.raises(ValueError, match=r"none of the symbols \['x'\]; it holds \['a'\]"):
            SymbolTable.of([["a"]]).ids(["x"])

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("<eps> 0\na 1\nb 2\n", "a: a table of symbols begins with <pad>.*another program"),
            ("<pad> 0\n<bos> 1\n<eos> 2\nx\n", "line 4: expected a symbol, a space and an id"),
            ("<pad> 0\n<bos> 1\n<eos> 2\nx y 3\n", "line 4"),
            ("<pad> 0\n<bos> 1\n<eos> 2\nx 2\n", "line 4"),
            ("<pad> 0\n<bos> 1\n<eos> 2\nx -3\n", "line 4"),
            ("<pad> 0\n<bos> 1\n<eos> 2\nx 4\n", "ids must be 0 to 3"),
            ("<pad> 0\n<bos> 1\n<eos> 2\nx 3\nx 4\n", "'x' is in the table twice"),
        ],
    )
    def test_files_of_another_form(self, tmp_path, content, message):
        (tmp_path / "a").write_text(content)
        with pytest.raises(ValueError, match=message):
            SymbolTable.read(tmp_path / "a")

    @pytest.mark.parametrize("symbol", ["", "a b", "\n"])
    def test_symbols_with_white_space(self, symbol):
        with pytest.raises(ValueError, match="must not be empty or hold white space"):
            SymbolTable.of([[symbol]])


def test_every_mark_is_one_symbol():
    assert len(set(MARKS)) == len(MARKS)
    assert symbols_of(f"a{MARKS}", "characters") == ["a", *MARKS]
