"""Cuts of a manifest that have text: kept whole, with the symbols of it."""

import json
import shutil
from pathlib import Path

import pytest
import soundfile
import tokenizer
from lhotse import CutSet, Recording, SupervisionSegment
from midi_corpus import write_pair
from tiny_codec import RATE, noise
from to_shar import to_shar
from tokenizer_merging import SETTINGS
from tokenizer_runs import arguments, contents
from validate_manifests import rare_symbols, validate

from valle.data.conditions import text_symbols
from valle.data.datamodule import TEXT_TABLE
from valle.data.manifest import SPLITS, condition_of, cut_codes, load_cuts, manifest_path
from valle.data.text import SymbolTable, symbols_of

TEXTS = ["One day.", "The cat sat!", "A dog ran", "He had fun", "We ate it", "Zoë?", "...", None]
CHARACTERS = ("--text-extractor", "characters", "--valid-fraction", 0.4, "--test-fraction", 0)


def said(id_: str, text: str | None, seconds: float) -> SupervisionSegment:
    return SupervisionSegment(id_, id_, 0.0, seconds, text=text, speaker="LJ")


@pytest.fixture(scope="module")
def spoken(tmp_path_factory) -> Path:
    """A manifest of sentences, each in a file of its own, most longer than --window."""
    folder = tmp_path_factory.mktemp("spoken")
    cuts = []
    for index, text in enumerate(TEXTS):
        id_, seconds = f"LJ/{index}", 2.5 + 0.3 * index
        soundfile.write(folder / f"{index}.wav", noise(seconds, seed=index), RATE)
        cut = Recording.from_file(folder / f"{index}.wav", recording_id=id_).to_cut()
        cut.supervisions = [said(id_, text, seconds)]
        cuts.append(cut.with_id(id_))
    CutSet.from_cuts(cuts).to_file(folder / "cuts.jsonl.gz")
    return folder / "cuts.jsonl.gz"


@pytest.fixture(scope="module")
def output(spoken, codec_dir, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("out")
    assert tokenizer.run(arguments(codec_dir, folder, "--manifest", spoken, *CHARACTERS)) == 0
    return folder


def all_cuts(folder: Path) -> dict[str, object]:
    paths = [manifest_path(folder, split) for split in SPLITS[:2]]
    return {cut.id: cut for path in paths for cut in load_cuts(path)}


def test_a_sentence_is_one_cut_with_its_symbols(output):
    cuts = all_cuts(output)
    assert sorted(cuts) == [f"LJ/{i}" for i in range(6)]
    for id_, cut in cuts.items():
        index = int(id_[-1])
        assert cut.supervisions[0].text == TEXTS[index]
        assert cut.supervisions[0].speaker == "LJ"
        assert text_symbols(cut) == symbols_of(TEXTS[index], "characters")
        assert condition_of(cut) == "text"
        assert cut.duration == pytest.approx(2.5 + 0.3 * index)  # longer than --window 2
        assert len(cut_codes(cut)) == round(cut.duration * 50)


def test_the_table_is_that_of_the_training_texts(output):
    cuts = load_cuts(manifest_path(output, "train"))
    symbols = [text_symbols(cut) for cut in cuts]
    table = SymbolTable.read(output / TEXT_TABLE)
    assert table.symbols == SymbolTable.of(symbols).symbols
    assert len(symbols) < 6
    reports, problems = validate(output)
    assert problems == []
    assert reports["train"].num_events == sum(map(len, symbols))
    settings = json.loads((output / "tokenizer.json").read_text())
    assert settings["text"] == {"extractor": "characters"}


def test_a_text_that_leaves_nothing_to_say_is_counted(spoken, codec_dir, tmp_path, capsys):
    args = arguments(codec_dir, tmp_path, "--manifest", spoken, *CHARACTERS)
    assert tokenizer.run(args) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "recordings skipped 2 no_text 2" in printed
    assert "cuts without text 2" in printed
    lines = map(json.loads, (tmp_path / "recordings.jsonl").read_text().splitlines())
    skipped = {line["id"]: line.get("skipped") for line in lines}
    assert skipped == {f"LJ/{i}": None if i < 6 else "no_text" for i in range(8)}


def test_again_it_gives_the_same_bytes(spoken, output, codec_dir, tmp_path):
    args = arguments(codec_dir, tmp_path, "--manifest", spoken, *CHARACTERS)
    for _ in range(2):
        assert tokenizer.run(args) == 0
        assert contents(tmp_path) == contents(output)


def test_shards_carry_text_and_table(output, tmp_path):
    to_shar(output, tmp_path, 2)
    expected = all_cuts(output)
    sharded = all_cuts(tmp_path)
    assert sharded.keys() == expected.keys()
    for id_, cut in sharded.items():
        assert text_symbols(cut) == text_symbols(expected[id_])
    for name in (TEXT_TABLE, SETTINGS):
        assert (tmp_path / name).read_bytes() == (output / name).read_bytes()
    assert validate(tmp_path)[1] == []


def test_without_its_text_a_manifest_is_cut_into_windows(spoken, output, codec_dir, tmp_path):
    flags = (
        "--manifest",
        spoken,
        "--text-extractor",
        "none",
        "--valid-fraction",
        0.4,
        "--test-fraction",
        0,
    )
    assert tokenizer.run(arguments(codec_dir, tmp_path, *flags)) == 0
    cuts = all_cuts(tmp_path)
    assert len(cuts) > 8
    assert {condition_of(cut) for cut in cuts.values()} == {None}
    assert not (tmp_path / TEXT_TABLE).exists()
    # symbols that a manifest brings would fit no part of a cut
    CutSet.from_cuts(all_cuts(output).values()).to_file(tmp_path / "again.jsonl.gz")
    flags = ("--manifest", tmp_path / "again.jsonl.gz", *flags[2:])
    assert tokenizer.run(arguments(codec_dir, tmp_path / "again", *flags)) == 0
    assert {condition_of(cut) for cut in all_cuts(tmp_path / "again").values()} == {None}


def test_settings_keep_a_folder_to_one_way_of_spelling(spoken, output, codec_dir, tmp_path):
    folder = shutil.copytree(output, tmp_path / "copy")
    flags = ("--manifest", spoken, "--text-extractor", "none")
    with pytest.raises(ValueError, match=r"text \{'extractor': 'characters'\} then, None now"):
        tokenizer.run(arguments(codec_dir, folder, *flags))


def test_errors_at_the_door(spoken, codec_dir, tmp_path):
    def run(manifest: Path, *flags: object) -> None:
        tokenizer.run(arguments(codec_dir, tmp_path / "out", "--manifest", manifest, *flags))

    cuts = list(CutSet.from_file(spoken))
    cuts[1].supervisions = [said("a", "two", 1.0), said("b", "of them", 1.0)]
    CutSet.from_cuts(cuts).to_file(tmp_path / "two.jsonl.gz")
    with pytest.raises(ValueError, match=r"cut LJ/1 has 2 supervisions, expected one"):
        run(tmp_path / "two.jsonl.gz", *CHARACTERS)
    write_pair(tmp_path / "0.wav", tmp_path / "midi" / "0.mid", 0, 2.0)
    with pytest.raises(ValueError, match=r"as a cut carries one condition"):
        run(spoken, *CHARACTERS, "--midi-dir", tmp_path / "midi")


def test_validation_finds_what_is_wrong_with_texts(output, tmp_path):
    folder = shutil.copytree(output, tmp_path / "copy")
    table = SymbolTable.read(folder / TEXT_TABLE)
    lost = table.symbols[-1]
    SymbolTable(table.symbols[:-1]).write(folder / TEXT_TABLE)
    assert f"lacks symbols of train: {lost}; prepare again" in " ".join(validate(folder)[1])
    (folder / TEXT_TABLE).write_text("no table")
    assert "expected a symbol, a space and an id" in " ".join(validate(folder)[1])
    (folder / TEXT_TABLE).unlink()
    assert "no table of text symbols" in " ".join(validate(folder)[1])
    reports = validate(output)[0]
    reports["validation"].symbols = {"ʒ"}
    assert any("train never has, and models leave out: ʒ" in line for line in rare_symbols(reports))


def test_validation_finds_mixed_conditions(output, spoken, codec_dir, tmp_path):
    flags = (
        "--manifest",
        spoken,
        "--text-extractor",
        "none",
        "--valid-fraction",
        0.4,
        "--test-fraction",
        0,
    )
    assert tokenizer.run(arguments(codec_dir, tmp_path / "plain", *flags)) == 0
    folder = shutil.copytree(output, tmp_path / "copy")
    shutil.copy(manifest_path(tmp_path / "plain", "validation"), folder)
    problems = " ".join(validate(folder)[1])
    assert "the cuts of validation carry no condition, those of train text" in problems
    train = list(load_cuts(manifest_path(output, "train")))
    train[1].supervisions = []
    CutSet.from_cuts(train).to_file(folder / "cuts_train.jsonl.gz")
    problems = " ".join(validate(folder)[1])
    assert "carries no condition, the first cut of the manifest text" in problems
