"""Synthesis of MIDI and of text as a command, with tiny models."""

import dataclasses
import logging
from itertools import pairwise
from pathlib import Path

import average_checkpoints
import infer
import infer_audiolm
import infer_pieces
import infill_audiolm
import numpy as np
import pytest
import soundfile
import torch
from conftest import TINY, make_model
from generation_rows import different_names, num_of_prompts
from make_corpus import write_midi
from piano import Note
from tiny_codec import HOP, RATE

from valle.data import Codec, load_audio
from valle.data.midi import notes_of
from valle.data.text import SymbolTable, symbols_of
from valle.models import VALLE, AudioLM, Engine
from valle.utils.checkpoint import read_checkpoint, save_checkpoint

pytest.importorskip("mido")

SYMBOLS = SymbolTable.of([symbols_of("what does the quick brown fox say", "characters")]).symbols


def make_valle(condition: str, **changes: object) -> VALLE:
    torch.manual_seed(0)
    settings = TINY | {"num_audio_tokens": 16, "condition": condition, "num_text_tokens": 30}
    return VALLE(**(settings | changes)).eval()


def write_checkpoint(path: Path, model: object, codec_info, **known: object) -> Path:
    described = {"config": dataclasses.asdict(model.config), "codec": codec_info.to_dict()}
    save_checkpoint(path, model, described | known)
    return path


@pytest.fixture(scope="module")
def midi_model(tmp_path_factory, codec_info) -> Path:
    """Of MIDI, trained on cuts of 2 s at most."""
    path = tmp_path_factory.mktemp("midi") / "model.pt"
    return write_checkpoint(path, make_valle("midi"), codec_info, filter_max_duration=2.0)


@pytest.fixture(scope="module")
def text_model(tmp_path_factory, codec_info) -> Path:
    known = {"text_symbols": SYMBOLS, "text_extractor": "characters", "filter_max_duration": 2.0}
    path = tmp_path_factory.mktemp("text") / "model.pt"
    return write_checkpoint(path, make_valle("text"), codec_info, **known)


def scale(*onsets: float, first: int = 60) -> list[Note]:
    """A note of 0.2 s at each time, each a step higher."""
    return [Note(onset, 0.2, first + i, 80) for i, onset in enumerate(onsets)]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """A prompt of 1 s, as sound and as notes; pieces of 0.7 s and of 3.2 s."""
    folder = tmp_path_factory.mktemp("files")
    sound = np.random.default_rng(0).uniform(-0.5, 0.5, RATE)
    soundfile.write(folder / "prompt.wav", sound, RATE)
    write_midi(folder / "prompt.mid", scale(0.0, 0.3, 0.9, first=40))
    write_midi(folder / "short.mid", scale(0.0, 0.5))
    write_midi(folder / "long.mid", [*scale(*np.arange(0, 2, 0.5)), Note(2.2, 1.0, 90, 80)])
    return {path.name: path for path in folder.iterdir()}


def run(checkpoint: Path, output_dir: Path, *flags: object) -> dict[str, np.ndarray]:
    """Run the script; return the sounds by file name."""
    common = ["--checkpoint", checkpoint, "--output-dir", output_dir, "--dtype", "float32"]
    infer.main([str(flag) for flag in (*common, *flags)])
    return {path.name: soundfile.read(path)[0] for path in output_dir.glob("*")}


def prompted(files: dict[str, Path], *names: str) -> tuple[object, ...]:
    return (
        "--midi", *(files[name] for name in names), "--audio-prompts", files["prompt.wav"],
        "--midi-prompts", files["prompt.mid"],
    )  # fmt: skip


def test_midi_becomes_as_much_sound(midi_model, files, tmp_path):
    flags = ("--midi", files["short.mid"], files["long.mid"], "--tail", 0)
    found = run(midi_model, tmp_path, *flags)
    assert {name: len(sound) for name, sound in found.items()} == {
        "short.wav": 0.7 * RATE,
        "long.wav": 3.2 * RATE,
    }


def test_a_prompt_comes_before_what_is_made(midi_model, files, tmp_path, codec_dir):
    """Decoded together; and the tail is what it may be at most."""
    flags = (*prompted(files, "short.mid"), "--prompt-duration", 0.8, "--tail", 0.3)
    found = run(midi_model, tmp_path, *flags)
    assert found.keys() == {"short.wav", "short_full.wav"}
    whole, new = found["short_full.wav"], found["short.wav"]
    assert len(whole) - len(new) == 0.8 * RATE
    assert 0.7 * RATE <= len(new) <= 1.0 * RATE
    assert np.array_equal(whole[-len(new) :], new)
    codec = Codec.from_pretrained(codec_dir)
    alone = codec.decode(load_audio(files["prompt.wav"], codec, 0.8))[0][0]
    np.testing.assert_allclose(whole[:4000], alone[:4000], atol=1e-3)


def asked_of(monkeypatch) -> list[dict]:
    """What the engine is asked for, part by part, and what it gives."""
    calls, inference = [], Engine.inference

    def noted(self, x, x_lens, y, enrolled, **options):
        new, lens = inference(self, x, x_lens, y, enrolled, **options)
        named = {"x": x, "y": y, "enrolled": enrolled, "new": new, "lens": lens}
        calls.append(named | options)
        return new, lens

    monkeypatch.setattr(Engine, "inference", noted)
    return calls


@pytest.mark.parametrize("has_prompt", [True, False])
def test_segments_join_to_the_frame(midi_model, files, tmp_path, monkeypatch, has_prompt):
    """Each hears the end of the sound before it, and is told of that time's notes and its own."""
    calls = asked_of(monkeypatch)
    given = prompted(files, "long.mid") if has_prompt else ("--midi", files["long.mid"])
    flags = (*given, "--prompt-duration", 1.0, "--tail", 0.2, "--num-samples", 2)
    found = run(midi_model, tmp_path, *flags)
    assert len(calls) == 4
    rate, heard = 50, 50 * has_prompt
    for before, call in pairwise(calls):
        made = torch.cat([before["y"], before["new"]], dim=1)
        assert torch.equal(call["y"], made[:, -min(50, made.shape[1]) :])
        assert not torch.equal(call["y"][0], call["y"][1])  # samples go their own ways
    for call, length in zip(calls[:-1], (42, 43, 42), strict=True):
        assert call["min_new_tokens"] == call["max_new_tokens"] == call["new"].shape[1] == length
    # the tail of 10 frames is of the last one's length, so that none is longer than the cuts were
    assert (calls[-1]["min_new_tokens"], calls[-1]["max_new_tokens"]) == (33, 43)
    struck = []
    for call, length in zip(calls, (42, 43, 42, 33), strict=True):
        num_before = call["y"].shape[1]
        notes = notes_of(call["x"][0].numpy())
        assert torch.equal(call["x"][0], call["x"][1])
        assert (notes[:, 0] + notes[:, 1]).max() <= (num_before + length) / rate + 0.01
        own = notes[call["enrolled"][0] - 2 :]
        assert (own[:, 0] >= num_before / rate - 0.003).all()
        own[:, 0] += (heard - num_before) / rate - has_prompt
        struck += own[:, [0, 2]].tolist()
        heard += length
    wanted = [(0.0, 60), (0.5, 61), (1.0, 62), (1.5, 63), (2.2, 90)]
    assert np.array(struck) == pytest.approx(np.array(wanted), abs=0.006)
    lens = calls[-1]["lens"] - 33
    for i, name in enumerate(("long_sample1", "long_sample2")):
        assert len(found[f"{name}.wav"]) == 160 * HOP + int(lens[i]) * HOP


@pytest.mark.parametrize("num_before", [0, 50])
@pytest.mark.parametrize("longest", [2, 7, 50])
def test_no_segment_is_longer_than_it_may_be(num_before, longest):
    """With the tail, however long that is; and each has something of the notes' time."""
    for num_frames in range(1, 120):
        for tail in {0, 1, longest // 2, longest - 1}:
            spans = list(infer_pieces.segments(num_before, num_frames, tail, longest, 9))
            assert spans[0].start == num_before
            assert spans[-1].stop == num_before + num_frames + tail
            assert all(a.stop == b.start for a, b in pairwise(spans))
            assert all(0 < span.stop - span.start <= longest for span in spans)
            assert spans[-1].start < num_before + num_frames


def test_by_default_a_tail_is_no_more_than_half_of_a_segment(midi_model, files, tmp_path, caplog):
    """And what is made in one go, prompt and tail, is no longer than the cuts of training."""
    caplog.set_level(logging.INFO)
    run(midi_model, tmp_path, *prompted(files, "long.mid"))  # segments of 1 s
    assert "long.mid: 3.2 s are made in 4 segments" in caplog.text


def test_a_held_note_is_one_note_across_segments(midi_model, files, tmp_path, monkeypatch):
    """The last note of 1 s, from 2.2 s, sounds on in the last segment."""
    calls = asked_of(monkeypatch)
    run(midi_model, tmp_path, "--midi", files["long.mid"], "--segment-duration", 0.4,
        "--prompt-duration", 0.2, "--tail", 0)  # fmt: skip
    held = notes_of(calls[-1]["x"][0].numpy())
    assert held[:, :3].tolist() == [[0.0, pytest.approx(0.6, abs=0.01), 90.0]]
    assert calls[-1]["enrolled"].tolist() == [3]


def test_events_of_a_prompt_are_counted_by_their_time():
    """A note that is struck with the target's first frame is the target's, wherever ticks fall."""
    model = make_valle("midi")
    for num_frames in range(1, 60):
        notes = np.array([[0.0, 0.1, 60, 80], [num_frames / 50, 0.1, 62, 80]])
        x = torch.from_numpy(infer_pieces.events_of(notes)[0]).long()[None]
        enrolled = num_of_prompts(model, x, torch.tensor([4]), torch.tensor([num_frames]))
        assert enrolled.tolist() == [3]


def test_text_is_said_after_what_the_prompt_says(text_model, files, tmp_path, monkeypatch):
    calls = asked_of(monkeypatch)
    flags = ("--text", "the fox", "what does it say", "--audio-prompts", files["prompt.wav"],
             "--text-prompts", "the quick")  # fmt: skip
    found = run(text_model, tmp_path, *flags)
    assert found.keys() == {f"text-{i}{end}.wav" for i in (1, 2) for end in ("", "_full")}
    spelt = [SYMBOLS[i] for i in calls[0]["x"][0]]
    assert spelt == ["<bos>", *"the_quick_the_fox", "<eos>"]
    assert [SYMBOLS[i] for i in calls[0]["x"][0, : calls[0]["enrolled"][0] - 1]] == spelt[:11]
    assert calls[0]["max_new_tokens"] == 50  # of the 2 s that the cuts last, the prompt has 1


def test_texts_come_from_a_file_as_well(text_model, tmp_path):
    lines = tmp_path / "lines.txt"
    lines.write_text("the fox\n\nwhat does it say\n")
    from_file = run(text_model, tmp_path / "a", "--text-file", lines, "--max-duration", 0.2)
    given = ("--text", "the fox", "what does it say", "--max-duration", 0.2)
    from_flags = run(text_model, tmp_path / "b", *given)
    assert from_file.keys() == {"lines-1.wav", "lines-2.wav"}
    assert len(from_file["lines-1.wav"]) <= 0.2 * RATE
    for i in (1, 2):
        assert np.array_equal(from_file[f"lines-{i}.wav"], from_flags[f"text-{i}.wav"])


def test_what_is_longer_than_the_training_knew_is_told(text_model, files, tmp_path, caplog):
    said = ("--text", "the fox", "--audio-prompts", files["prompt.wav"], "--text-prompts", "the")
    run(text_model, tmp_path, *said, "--max-duration", 1)
    assert "longest cuts" not in caplog.text
    run(text_model, tmp_path, *said, "--max-duration", 1.2)
    message = "text-1: a prompt of 1 s and up to 1.2 s after it are more than the 2 s of the"
    assert message in caplog.text


def test_a_prompt_whose_notes_are_not_heard_is_told(midi_model, files, tmp_path, caplog):
    run(midi_model, tmp_path / "a", *prompted(files, "short.mid"))
    assert "has no note" not in caplog.text
    late = tmp_path / "late.mid"
    write_midi(late, scale(0.6))
    flags = (*prompted(files, "short.mid")[:-1], late, "--prompt-duration", 0.5)
    run(midi_model, tmp_path / "b", *flags)
    assert "late.mid has no note in the 0.5 s of its sound that are heard" in caplog.text


def test_neither_seed_nor_neighbours_are_chance(midi_model, files, tmp_path):
    both = run(midi_model, tmp_path / "1", *prompted(files, "short.mid", "long.mid"))
    again = run(midi_model, tmp_path / "2", *prompted(files, "short.mid", "long.mid"))
    alone = run(midi_model, tmp_path / "3", *prompted(files, "short.mid"))
    other = run(midi_model, tmp_path / "4", *prompted(files, "short.mid"), "--seed", 1)
    assert all(np.array_equal(both[name], again[name]) for name in both)
    assert np.array_equal(both["short.wav"], alone["short.wav"])
    assert not np.array_equal(both["short.wav"], other["short.wav"])


def test_no_file_is_written_over_another(midi_model, files, tmp_path):
    """A piece called as another one's with its prompt."""
    (tmp_path / "short_full.mid").write_bytes(files["long.mid"].read_bytes())
    both = (*prompted(files, "short.mid"), "--tail", 0)
    flags = (*both[:2], tmp_path / "short_full.mid", *both[2:])
    found = run(midi_model, tmp_path / "out", *flags)
    names = [f"{name}{end}.wav" for name in ("short-1", "short_full-2") for end in ("", "_full")]
    assert sorted(found) == sorted(names)
    assert len(found["short_full-2.wav"]) == 3.2 * RATE
    alone = ("--midi", *flags[1:3], "--tail", 0)  # nothing is said of a prompt
    assert run(midi_model, tmp_path / "alone", *alone).keys() == {"short.wav", "short_full.wav"}


def test_names_differ_with_all_that_is_put_to_them():
    assert different_names(["a", "b", "a"]) == ["a-1", "b", "a-3"]
    assert different_names(["a", "a", "a-1"]) == ["a-1-1", "a-2", "a-1-3"]
    assert different_names(["a", "a_full", "b"], ("", "_full")) == ["a-1", "a_full-2", "b"]


def test_averages_of_checkpoints_are_played(midi_model, files, tmp_path, codec_info):
    other = make_valle("midi")
    for parameter in other.parameters():
        torch.nn.init.normal_(parameter)
    paths = [midi_model, write_checkpoint(tmp_path / "b.pt", other, codec_info)]
    mean = tmp_path / "mean.pt"
    average_checkpoints.main(["--checkpoints", *map(str, paths), "--output-file", str(mean)])
    weights = [read_checkpoint(path)["model"] for path in (*paths, mean)]
    for name, value in weights[2].items():
        torch.testing.assert_close(value, (weights[0][name] + weights[1][name]) / 2)
    assert "short.wav" in run(mean, tmp_path / "out", "--midi", files["short.mid"])


def test_averages_need_one_table_of_symbols(text_model, tmp_path, codec_info, capsys):
    known = {"text_symbols": [*SYMBOLS[:-1], "?"]}
    other = write_checkpoint(tmp_path / "other.pt", make_valle("text"), codec_info, **known)
    flags = ["--checkpoints", str(text_model), str(other), "--output-file", str(tmp_path / "m.pt")]
    with pytest.raises(SystemExit):
        average_checkpoints.main(flags)
    assert "were trained on different tables of text symbols" in capsys.readouterr().err


def test_each_program_names_the_other(midi_model, files, tmp_path, codec_info, capsys):
    audio_lm = make_model(num_audio_tokens=16)
    assert isinstance(audio_lm, AudioLM)
    path = write_checkpoint(tmp_path / "audiolm.pt", audio_lm, codec_info)
    with pytest.raises(SystemExit):
        run(path, tmp_path / "out", "--midi", files["short.mid"])
    message = "holds an AudioLM, which continues audio: give it to infer_audiolm.py"
    assert message in capsys.readouterr().err
    flags = ["--checkpoint", midi_model, "--audio-prompts", files["prompt.wav"]]
    gap = ["--checkpoint", midi_model, "--audio-files", files["prompt.wav"], "--gap", "0.2:0.4"]
    message = "holds a VALLE, which makes audio of midi: give it to infer.py"
    for program, given in ((infer_audiolm, flags), (infill_audiolm, gap)):
        with pytest.raises(SystemExit):
            program.main([str(flag) for flag in given])
        assert message in capsys.readouterr().err


def test_mistakes_are_explained(midi_model, text_model, files, tmp_path, codec_info, capsys):
    nameless = write_checkpoint(
        tmp_path / "nameless.pt", make_valle("text"), codec_info, text_symbols=SYMBOLS
    )
    known = {"text_symbols": SYMBOLS, "text_extractor": "characters", "filter_max_duration": 0.8}
    brief = write_checkpoint(tmp_path / "brief.pt", make_valle("text"), codec_info, **known)
    bare = write_checkpoint(tmp_path / "bare.pt", make_valle("text"), codec_info)
    empty = tmp_path / "empty.txt"
    empty.write_text("\n \n")
    midi = ("--midi", files["short.mid"])
    sound, notes = ("--audio-prompts", files["prompt.wav"]), ("--midi-prompts", files["prompt.mid"])
    text = ("--text", "the fox")
    foreign = tmp_path / "latin.txt"
    foreign.write_bytes("à la fin".encode("latin-1"))
    for model, flags, message in (
        (midi_model, (), "give one of --midi, --text and --text-file, got none of them"),
        (midi_model, (*midi, *text), "got --midi, --text"),
        (midi_model, text, "--text is for a model of text, and"),
        (midi_model, text, "makes audio of midi: give --midi"),
        (midi_model, ("--text-file", empty), "--text-file is for a model of text"),
        (text_model, midi, "--midi is for a model of MIDI, and"),
        (text_model, midi, "makes audio of text: give --text"),
        (midi_model, (*midi, "--text-prompts", "a"), "--text-prompts is for a model of text"),
        (midi_model, (*midi, "--max-duration", 3), "--max-duration is for a model of text"),
        (midi_model, (*midi, "--text-extractor", "espeak"), "--text-extractor is for a model of"),
        (midi_model, (*midi, "--language", "de"), "--language is for a model of text"),
        (text_model, (*text, *notes), "--midi-prompts is for a model of MIDI"),
        (text_model, (*text, "--segment-duration", 3), "--segment-duration is for a model of MIDI"),
        (text_model, (*text, "--tail", 0), "--tail is for a model of MIDI"),
        (midi_model, (*midi, *sound), "--audio-prompts has 1 and --midi-prompts 0: expected as"),
        (midi_model, (*midi, *notes), "--audio-prompts has 0 and --midi-prompts 1"),
        (midi_model, (*midi, *sound, files["prompt.wav"], *notes, files["prompt.mid"]),
         "2 prompts for 1 pieces: expected one for all"),
        (midi_model, (*midi, "--num-samples", 0), "--num-samples must be 1 or more, got 0"),
        (midi_model, (*midi, "--tail", -1),
         "--tail must be 0 s or more, and 1e+06 s at most, got -1"),
        (midi_model, (*midi, "--tail", "inf"), "--tail must be 0 s or more"),
        (midi_model, (*midi, "--tail", "nan"), "--tail must be 0 s or more"),
        (midi_model, (*midi, "--tail", 30),
         "--tail 30 leaves no room for notes in a segment of 1 s: give less, or longer segments"),
        (midi_model, (*midi, "--prompt-duration", "inf"), "--prompt-duration must be above 0 s"),
        (midi_model, (*midi, "--segment-duration", "nan"), "--segment-duration must be above 0 s"),
        (text_model, (*text, "--max-duration", "inf"), "--max-duration must be above 0 s"),
        (midi_model, (*midi, "--prompt-duration", 0), "--prompt-duration must be above 0 s, and"),
        (midi_model, (*midi, "--prompt-duration", 2),
         "--prompt-duration 2 leaves a segment no room in the 2 s"),
        (midi_model, (*midi, "--segment-duration", 0.005), "leaves a segment no room in"),
        (midi_model, (*midi, "--segment-duration", 30, "--prompt-duration", 3),
         "more than the 32 s that MIDI events can tell of"),
        (midi_model, ("--midi", tmp_path / "none.mid"), "none.mid is not there: name another file"),
        (midi_model, ("--midi", tmp_path), "is a folder: name files in it"),
        (midi_model, (*midi, "--audio-prompts", tmp_path / "none.wav", *notes),
         "none.wav is not there"),
        (midi_model, (*midi, *sound, "--midi-prompts", tmp_path), "is a folder: name files in it"),
        (text_model, ("--text-file", tmp_path / "none.txt"), "none.txt is not there"),
        (text_model, ("--text-file", foreign), "latin.txt is no text in UTF-8"),
        (midi_model, ("--midi", files["prompt.wav"]), "prompt.wav"),
        (text_model, ("--text-file", empty), "holds no text: expected a text a line"),
        (text_model, (*text, "--max-duration", 0), "--max-duration must be above 0 s"),
        (text_model, (*text, "--max-duration", 0.005),
         "--max-duration 0.005 is less than a frame of 0.02 s"),
        (brief, (*text, *sound, "--text-prompts", "the"),
         "a prompt of 1 s leaves no room in the 0.8 s of the training's longest cuts"),
        (text_model, (*text, "--text-extractor", "espeak"),
         "was trained on the symbols of characters"),
        (text_model, (*text, "--prompt-duration", 3), "it would cut a voice off in the midst of"),
        (text_model, ("--text", "?!"), "has nothing to say"),
        (nameless, text, "does not tell how its texts became symbols: say it with"),
        (bare, text, "holds no table of text symbols"),
        (text_model, (*text, "--top-p", 2), "top_p"),
    ):  # fmt: skip
        with pytest.raises(SystemExit):
            run(model, tmp_path / "out", *flags)
        assert message in capsys.readouterr().err


def test_the_extractor_can_be_said(codec_info, tmp_path):
    known = {"text_symbols": SYMBOLS, "text_extractor": None, "filter_max_duration": 1.0}
    model = write_checkpoint(tmp_path / "m.pt", make_valle("text"), codec_info, **known)
    said = ("--text-extractor", "characters", "--text", "the fox")
    assert run(model, tmp_path / "out", *said).keys() == {"text-1.wav"}


def test_the_log_tells_of_segments_and_of_notes_that_changed(midi_model, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    notes = [Note(0.0, 0.2, 60, 80), Note(2.5, 0.2, 21, 80)]
    write_midi(tmp_path / "low.mid", notes)
    lower = (tmp_path / "low.mid").read_bytes().replace(bytes([21, 80]), bytes([10, 80]))
    (tmp_path / "low.mid").write_bytes(lower.replace(bytes([0x80, 21]), bytes([0x80, 10])))
    run(midi_model, tmp_path / "out", "--midi", tmp_path / "low.mid", "--prompt-duration", 0.5)
    assert "low.mid: 2.7 s are made in 3 segments" in caplog.text
    assert "notes changed or left out, pitch off the keyboard: 1" in caplog.text
    assert "x real time" in caplog.text
