"""The table of docs/conditions.md, line by line: what the three models take, read and give.

Each line of the table has a test of its name here, and each test a line there.
"""

import re
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import make_model, make_pairs, make_valle

from valle.models import VALLE, AudioLM, AudioLMConfig, VALLEConfig
from valle.models.reading import MidiReader, TextReader

ROOT = Path(__file__).parent.parent
TITLES = ["VALL-E, text", "VALL-E, MIDI", "AudioLM"]
LINES = {}


def line(title):
    """Names the line of the table that a test stands for."""

    def note(test):
        LINES[title] = test
        return test

    return note


def table() -> dict[str, list[str]]:
    """The lines of the table: title to its three cells."""
    text = (ROOT / "docs/conditions.md").read_text()
    rows = [
        [cell.strip() for cell in row.strip("|").split("|")]
        for row in re.findall(r"^\|.*\|$", text, flags=re.MULTILINE)
    ]
    start = rows.index(["", *TITLES])
    lines = {}
    for title, *cells in rows[start + 2 :]:
        if len(cells) != 3 or title.startswith("`--"):
            break
        lines[title] = cells
    return lines


def test_each_line_has_a_test():
    assert list(table()) == list(LINES)


@pytest.mark.parametrize("title", list(table()))
def test_line(title):
    LINES[title](*table()[title])


def three() -> list[torch.nn.Module]:
    return [make_valle("text"), make_valle("midi"), make_model(ahead_frames=3)]


def inputs() -> list[dict]:
    """Arguments of `forward` of the three."""
    audio = make_pairs()
    x, x_lens = audio.y[:, :4], torch.tensor([4, 2, 3])
    return [
        make_pairs("text")._asdict(),
        make_pairs("midi")._asdict(),
        {"x": x, "x_lens": x_lens, "y": audio.y[:, 4:], "y_lens": audio.y_lens - 4},
    ]


@line("made by")
def made_by(*cells):
    sizes = {"d_model": 16, "nhead": 2, "num_layers": 1}
    kinds = {kind.__name__: partial(kind, **sizes) for kind in (VALLE, AudioLM)}
    for cell, model in zip(cells, three(), strict=True):
        made = eval(cell.strip("`"), kinds)
        assert type(made) is type(model)
        assert made.config.condition == model.config.condition


@line("input `x`")
def input_x(*cells):
    shapes = ["(B, S)", "(B, S, 6)", "(B, S, Q)"]
    for cell, shape, model, given in zip(cells, shapes, three(), inputs(), strict=True):
        assert cell.startswith(shape)
        sizes = {"B": 3, "S": given["x"].shape[1], "6": 6, "Q": 3}
        assert list(given["x"].shape) == [sizes[s] for s in shape.strip("()").split(", ")]
        assert model(**given).loss.isfinite()


@line("`x` tells of")
def x_tells_of(*cells):
    """What tells of the target matters to what is made of the prompt; a prompt has no more."""
    for model, given in zip(three()[:2], inputs()[:2], strict=True):
        changed = given["x"].clone()
        changed[0, -2] = changed[0, -3]
        prompt, lens = given["y"][:1, :2], torch.tensor([2])
        first = [
            model.ar.prefill(
                *model.ar.read(prompt, lens, model.given(x[:1])), model.ar.decoder.new_cache(1, 20)
            )[0]
            for x in (given["x"], changed)
        ]
        assert not torch.equal(*first)
    assert [cell.split(",")[0] for cell in cells] == ["prompt and target"] * 2 + ["the prompt"]
    assert "one time line" in cells[1]


@line("`y` of `forward`")
def y_of_forward(*cells):
    """Quantizer 1 is predicted in all frames of `y`, by each of the three."""
    assert all(cell.startswith("(B, T, Q)") for cell in cells)
    for model, given in zip(three(), inputs(), strict=True):
        out = model(**given)
        assert out.predictions.shape == given["y"].shape
        assert out.metrics["loss_q1"].num_frames == given["y_lens"].sum()


@line("audio prompt of `inference`")
def audio_prompt(*cells):
    text, midi, _ = inputs()
    for given, model in zip((text, midi), three(), strict=False):
        made = []
        for prompt in (None, given["y"][:, :3], (given["y"][:, :3] + 1) % 20):
            read, _ = model.nar.read(
                given["y"][:, :0] if prompt is None else prompt,
                torch.full((3,), 0 if prompt is None else 3),
                model.given(given["x"], given["x_lens"]),
            )
            made.append(read)
            options = {"max_new_tokens": 2, "ignore_eos": True}
            new = model.inference(given["x"], given["x_lens"], prompt, **options)
            assert new.shape == (3, 2, 3)
        assert (made[1].lens == made[0].lens + 3).all()
        assert not torch.equal(made[1].vectors, made[2].vectors)
    assert cells == ("`y` (B, P, Q), or none",) * 2 + ("`x`",)


@line("`inference` returns")
def inference_returns(*cells):
    options = {"max_new_tokens": 5, "ignore_eos": True}
    for cell, model, given in zip(cells, three(), inputs(), strict=True):
        if isinstance(model, VALLE):
            made = model.inference(given["x"], given["x_lens"], given["y"][:, :4], **options)
            assert (made.shape, cell) == ((3, 5, 3), "the new frames")
        else:
            made = model.inference(given["x"], **options)
            assert (made.shape, cell) == ((3, 4 + 5, 3), "prompt and new frames")
            assert torch.equal(made[:, :4], given["x"])


@line("the AR half reads")
def ar_reads(*cells):
    """Of a prompt quantizer 1 alone where there is a condition, else all; a condition both ways."""
    for cell, model in zip(cells, three(), strict=True):
        quantizers = len(model.ar.embedding.tables)
        assert ("both ways; quantizer 1 of" in cell) == (quantizers == 1)
        assert ("all quantizers" in cell) == (quantizers == 3)
        prompt, lens = torch.zeros(1, 2, 3, dtype=torch.long), torch.tensor([2])
        given = None
        if isinstance(model, VALLE):
            given = model.given(make_pairs(model.config.condition).x[:1])
        read, known = model.ar.read(prompt, lens, given)
        assert read.is_open == ("both ways" in cell)
        assert known.codes.shape == ((1, 2) if read.is_open else (1, 0))


@line("the NAR half reads")
def nar_reads(*cells):
    for cell, model in zip(cells, three(), strict=True):
        assert "the prompt, all quantizers" in cell
        assert len(model.nar.embedding.tables) == 3
        assert (model.nar.reader is None) == (cell == "the prompt, all quantizers")


@line("places in time")
def places(*cells):
    """Of both halves, in what a prompt of two frames has been read into."""
    text, midi, audio = three()
    prompt, lens = torch.zeros(1, 2, 3).long(), torch.tensor([2])
    ids = torch.tensor([[1, 3, 4, 2]])
    event = [40, 9, 9, 4, 4 + 96, 4]  # half a second
    events = torch.tensor([[[1] * 6, event, [2] * 6]])
    for name in ("ar", "nar"):
        read, known = getattr(text, name).read(prompt, lens, text.given(ids))
        assert read.places.own[0, :4].tolist() == [0, 1, 2, 3]
        assert int(read.places.next) == 2 - known.codes.shape[1]
        read, known = getattr(midi, name).read(prompt, lens, midi.given(events))
        assert read.places.own[0, :3].tolist() == pytest.approx([0.0, 25.0, 25.0])
        assert read.places.own[0, 3:].tolist() == ([] if name == "ar" else [0.0, 1.0])
        assert int(read.places.next) == 2 - known.codes.shape[1]
        assert getattr(audio, name).read(prompt, lens)[0].places is None
    assert "from 0" in cells[0]
    assert cells[1].startswith("notes where they are struck")
    assert cells[2] == "frames from 0"


@line("weights beside the halves'")
def weights(*cells):
    text, midi, audio = three()
    for model, kind in ((text, TextReader), (midi, MidiReader)):
        assert isinstance(model.ar.reader, kind)
        assert isinstance(model.nar.reader, kind)
        own = {n for n, _ in model.named_parameters() if ".reader." not in n}
        assert own <= {n for n, _ in audio.named_parameters()}
    assert len(midi.ar.reader.tables) == 6
    assert "six tables" in cells[1]
    assert cells[2] == "none"


@line("learns EOS from")
def learns_eos(*cells):
    assert len(set(cells)) == 1
    for model, given in zip(three(), inputs(), strict=True):
        ends = torch.tensor([True, False, False])
        without, with_end = (model(**given, y_ends=e).metrics["loss_q1"] for e in (None, ends))
        assert with_end.num_frames == without.num_frames + 1


@line("fills gaps")
def fills_gaps(*cells):
    assert [model.config.infills for model in three()] == [cell.startswith("yes") for cell in cells]


@line("default `num_quantizers`")
def default_quantizers(*cells):
    defaults = [VALLEConfig().num_quantizers] * 2 + [AudioLMConfig().num_quantizers]
    assert [int(cell) for cell in cells] == defaults


def program(name: str):
    """A program of the recipe, whose flags are to be looked at."""
    folder = str(ROOT / "egs/atepp/bin")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return __import__(name.removesuffix(".py"))


@line("training")
def training(*cells):
    for cell, (name, condition) in zip(
        cells, [("valle", "text"), ("valle", "midi"), ("audio-lm", None)], strict=True
    ):
        file, *flags = cell.strip("`").split()
        args = program(file).get_parser().parse_args(flags)
        assert (args.model_name, args.condition) == (name, condition)


@line("making sound")
def making_sound(*cells):
    for cell in cells:
        file, *flags = cell.strip("`").split()
        parser = program(file).get_parser()
        assert all(flag in parser._option_string_actions for flag in flags)


@line("recipe")
def recipe(*cells):
    for cell, title in zip(cells, ("trainer.py", "trainer.py", "trainer_audiolm.py"), strict=True):
        for name in cell.split(", "):
            text = (ROOT / name.strip("`")).read_text()
            assert f"bin/{title}" in text
            if title == "trainer.py":
                assert "--model-name valle" in text
