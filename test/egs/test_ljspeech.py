"""The LJSpeech recipe on a miniature of the corpus: sentences that espeak-ng reads aloud."""

import logging
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import soundfile
from espeak_voice import speak
from lhotse import load_manifest_lazy
from trainer_runs import run_here, train

from valle.data.manifest import SPLITS, cut_codes, load_cuts, manifest_path
from valle.data.text import SymbolTable, symbols_of

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "egs" / "ljspeech"
sys.path.insert(0, str(RECIPE / "local"))

import held_out  # noqa: E402
import infer  # noqa: E402
import make_manifest  # noqa: E402
from make_manifest import get_parser  # noqa: E402

# id, text as printed, text in words; the third line's is missing, as the corpus may have it
SENTENCES = [
    ("LJ001-0001", "Printing is one of the arts.", "Printing is one of the arts."),
    ("LJ001-0002", 'called "black letter"', 'called "black letter"'),
    ("LJ001-0003", "It has never been surpassed.", ""),
    ("LJ001-0004", '"It was made in 1455,', '"It was made in fourteen fifty-five,'),
    ("LJ001-0005", "by Dr. Fust (of Mainz);", "by Doctor Fust (of Mainz);"),
    ("LJ002-0001", "and the letters, as in café;", "and the letters, as in café;"),
    ("LJ002-0002", "four hundred copies", "four hundred copies"),
    ("LJ002-0003", "Who would not be glad of one?", "Who would not be glad of one?"),
    ("LJ002-0004", "They were sold as manuscripts!", "They were sold as manuscripts!"),
    ("LJ002-0005", "and nothing is left: nothing.", "and nothing is left: nothing."),
]
MISSING, BROKEN = "LJ003-0001", "LJ003-0002"
ODD_LINES = [
    "LJ003-0003 without any separator",
    "LJ003-0004||",
    "../LJ003-0005|out of|the folder",
    "LJ003-0006|one|two|three",
]


@pytest.fixture(scope="module")
def download(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("download")
    corpus = folder / "LJSpeech-1.1"
    (corpus / "wavs").mkdir(parents=True)
    for id_, printed, words in SENTENCES:
        soundfile.write(corpus / "wavs" / f"{id_}.wav", *speak(words or printed))
    (corpus / "wavs" / f"{BROKEN}.wav").write_bytes(b"RIFF, or nearly")
    lines = ["|".join(sentence) for sentence in SENTENCES]
    lines += [f"{id_}|some text|some text" for id_ in (MISSING, BROKEN, SENTENCES[0][0])]
    table = "\r\n".join(lines + ODD_LINES) + "\r\n"
    (corpus / "metadata.csv").write_bytes(table.encode())
    return folder


def prepare(download: Path, codec: Path, output: Path, *flags: object) -> tuple[int, str]:
    """Runs prepare.sh with the tiny codec; gives its exit status and output."""
    fixed = ("--codec", codec, "--num-quantizers", "", "--dl-dir", download)
    shares = ("--valid-fraction", 0.2, "--test-fraction", 0.2, "--output-dir", output)
    result = subprocess.run(
        ["bash", *map(str, (RECIPE / "prepare.sh", *fixed, *shares, *flags))],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=download,
        env=os.environ | {"PYTHON": sys.executable},
        check=False,
    )
    return result.returncode, result.stdout


@pytest.fixture(scope="module")
def prepared(download, codec_dir, tmp_path_factory) -> tuple[Path, str]:
    """The folder of a run of prepare.sh, and what it said."""
    pytest.importorskip("phonemizer", reason="no phones without it: pip install -e '.[text]'")
    output = tmp_path_factory.mktemp("data") / "ljspeech"
    status, said = prepare(download, codec_dir, output)
    assert status == 0, said
    return output, said


def cuts_of(folder: Path) -> dict[str, list]:
    return {split: list(load_cuts(manifest_path(folder, split))) for split in SPLITS}


class TestManifest:
    @pytest.fixture
    def make(self, download, tmp_path, caplog):
        """Runs make_manifest.py; gives the cuts and the log."""

        def run_it(*flags: object, corpus: Path = download / "LJSpeech-1.1"):
            out = tmp_path / "m.jsonl.gz"
            command = ["--corpus-dir", corpus, "--output", out, *flags]
            with caplog.at_level(logging.INFO):
                make_manifest.make_manifest(get_parser().parse_args(list(map(str, command))))
            return list(load_manifest_lazy(out)), caplog.text

        return run_it

    def test_sentences_with_texts_speaker_and_language(self, make):
        cuts, _ = make("--language", "en-gb", "--speaker", "somebody")
        assert [cut.id for cut in cuts] == [id_ for id_, _, _ in SENTENCES]
        for cut, (_, printed, words) in zip(cuts, SENTENCES, strict=True):
            (spoken,) = cut.supervisions
            assert spoken.text == (words or printed)
            assert (spoken.speaker, spoken.language) == ("somebody", "en-gb")
            assert (spoken.start, spoken.duration) == (0, cut.duration)
            assert cut.recording.sampling_rate == 22050
            assert cut.load_audio().shape[1] == cut.num_samples

    def test_what_is_left_out_is_counted_and_named(self, make):
        _, said = make()
        assert (
            "left out: 1 repeated ids, 4 odd lines, 1 missing sounds, 1 unreadable sounds" in said
        )
        for name in (f"{MISSING}.wav", f"{BROKEN}.wav", "line 13", "line 14", "line 17"):
            assert name in said

    def test_the_same_corpus_makes_the_same_bytes(self, make, tmp_path):
        make()
        first = (tmp_path / "m.jsonl.gz").read_bytes()
        make()
        assert (tmp_path / "m.jsonl.gz").read_bytes() == first

    def test_no_table(self, make, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"no table .*unpacked corpus"):
            make(corpus=tmp_path)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", r"has no line of the form id\|text\|text in words"),
            (b"a b c\n", "has no line of the form"),
            ("LJ1|Caf\u00e9|caf\u00e9\n".encode("latin-1"), "is not UTF-8"),
            (b"LJ1|text|text\n", "none of the 1 sentences"),
        ],
    )
    def test_tables_of_no_use(self, make, tmp_path, content, message):
        (tmp_path / "metadata.csv").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            make(corpus=tmp_path)
        assert not (tmp_path / "m.jsonl.gz").exists()


class TestPrepare:
    def test_every_sentence_is_whole_and_in_one_split(self, prepared):
        cuts = cuts_of(prepared[0])
        assert {split: len(some) for split, some in cuts.items()} == {
            "train": 6,
            "validation": 2,
            "test": 2,
        }
        ids = Counter(cut.id for some in cuts.values() for cut in some)
        assert len(ids) == len(SENTENCES)
        for cut in (cut for some in cuts.values() for cut in some):
            sentence = soundfile.info(cut.recording.sources[0].source)
            assert cut.start == 0
            assert cut.duration == pytest.approx(sentence.duration, abs=0.02)
            assert len(cut_codes(cut)) == pytest.approx(sentence.duration * 50, abs=1)

    def test_texts_and_phones_belong_to_their_sounds(self, prepared):
        words = {id_: words or printed for id_, printed, words in SENTENCES}
        for cut in (cut for some in cuts_of(prepared[0]).values() for cut in some):
            (spoken,) = cut.supervisions
            assert spoken.text == words[cut.recording.id]
            assert spoken.custom["tokens"]["text"] == symbols_of(spoken.text)

    def test_the_table_holds_the_symbols_of_the_training_split(self, prepared):
        table = SymbolTable.read(prepared[0] / "unique_text_tokens.k2symbols")
        train = cuts_of(prepared[0])["train"]
        texts = [cut.supervisions[0].custom["tokens"]["text"] for cut in train]
        assert table.symbols == SymbolTable.of(texts).symbols

    def test_again_changes_nothing(self, prepared, download, codec_dir):
        folder, _ = prepared
        names = [manifest_path(folder, split) for split in SPLITS]
        names.append(folder / "unique_text_tokens.k2symbols")
        before = [name.read_bytes() for name in names]
        status, said = prepare(download, codec_dir, folder, "--stage", 1, "--stop-stage", 1)
        assert status == 0, said
        assert [name.read_bytes() for name in names] == before

    def test_characters_need_no_phonemizer(self, download, codec_dir, tmp_path):
        flags = ("--text-extractor", "characters", "--stop-stage", 1)
        status, said = prepare(download, codec_dir, tmp_path / "out", *flags)
        assert status == 0, said
        for cut in (cut for some in cuts_of(tmp_path / "out").values() for cut in some):
            spoken = cut.supervisions[0]
            assert spoken.custom["tokens"]["text"] == symbols_of(spoken.text, "characters")

    def test_no_corpus_says_where_it_goes(self, codec_dir, tmp_path):
        status, said = prepare(tmp_path, codec_dir, tmp_path / "out")
        assert status == 1
        assert "There is no" in said
        assert "egs/ljspeech/README.md" in said


class TestTrainingAndSpeaking:
    def test_a_model_learns_the_corpus_and_speaks_held_out_sentences(self, prepared, tmp_path):
        folder, _ = prepared
        flags = (
            "--model-name",
            "valle",
            "--condition",
            "text",
            "--num-epochs",
            2,
            "--max-duration",
        )
        train(folder, tmp_path / "exp", *flags, 10)
        args = held_out.get_parser().parse_args(["--manifest-dir", str(folder)])
        (tmp_path / "sentences.txt").write_text("\n".join(held_out.lines(args)) + "\n")
        args.prompt = True
        sound, words = held_out.lines(args)
        command = ["--checkpoint", tmp_path / "exp" / "best-valid-loss.pt", "--max-duration", 0.5]
        command += ["--text-file", tmp_path / "sentences.txt", "--output-dir", tmp_path / "spoken"]
        command += ["--audio-prompts", sound, "--text-prompts", words]
        run_here(infer.main, [str(part) for part in command])
        # two sentences in the test split, each alone and behind its prompt
        names = sorted(path.name for path in (tmp_path / "spoken").glob("*.wav"))
        assert names == [f"sentences-{i}{end}.wav" for i in (1, 2) for end in ("", "_full")]

    def test_held_out_sentences_are_those_of_their_splits(self, prepared):
        folder, _ = prepared
        args = held_out.get_parser().parse_args(["--manifest-dir", str(folder)])
        cuts = cuts_of(folder)
        args.num_sentences = 1
        assert list(held_out.lines(args)) == [cuts["test"][0].supervisions[0].text]
        args.prompt = True
        sound, words = held_out.lines(args)
        chosen = min(cuts["validation"], key=lambda cut: abs(cut.duration - 3))
        assert Path(sound).stem == chosen.recording.id
        assert words == chosen.supervisions[0].text

    def test_a_prompt_needs_its_sound(self, prepared, monkeypatch):
        folder, _ = prepared
        monkeypatch.setattr(Path, "is_file", lambda path: path.suffix != ".wav")
        monkeypatch.setattr(sys, "argv", ["", "--manifest-dir", str(folder), "--prompt", "true"])
        with pytest.raises(SystemExit, match=r"no sentence .* has its sound any more"):
            held_out.main()

    def test_cuts_without_text_are_refused(self, token_dir):
        args = held_out.get_parser().parse_args(["--manifest-dir", str(token_dir)])
        with pytest.raises(ValueError, match="has no text; expected manifests of egs/ljspeech"):
            list(held_out.lines(args))
