"""evaluate.py on tiny untrained models that read MIDI or text."""

import dataclasses
import json
import re
from pathlib import Path

import evaluate
import evaluation_condition_likelihood
import numpy as np
import pytest
import soundfile
import torch
from conftest import make_model, make_valle
from evaluation_condition import ROWS, make_batch, prepare_condition
from evaluation_condition_inputs import given_of, true_and_shuffled
from evaluation_condition_likelihood import SHUFFLED as ANOTHERS
from evaluation_condition_likelihood import TRUE, batches_of
from evaluation_subject import open_subject
from generation_rows import row_batches
from lhotse import SupervisionSegment
from tiny_codec import noise

from valle.data import cut_codes
from valle.data.conditions import MIDI, MIDI_SPAN, midi_events
from valle.data.midi import cut_notes, events_of, notes_of
from valle.data.midi_files import store_events
from valle.data.storage import make_recording, whole_cut, write_codes, write_cuts
from valle.data.text import SymbolTable
from valle.evaluation import frame_costs
from valle.models import VALLE, load_model
from valle.utils.vocabulary import MASK

SECONDS = 2.4
SIZES = ("--prompt-duration", 1, "--max-duration", 1.4, "--num-samples", 1)
SYMBOLS = SymbolTable.of(["abcdefgh"])


def make_notes(seed: int) -> np.ndarray:
    """(N, 4) notes of a quarter second each, and one that was struck before they begin."""
    rng = np.random.default_rng(seed)
    onset = np.arange(0, SECONDS, 0.2)
    pitch, velocity = rng.integers(40, 80, len(onset)), rng.integers(20, 120, len(onset))
    struck = np.stack([onset, np.full(len(onset), 0.25), pitch, velocity], axis=1)
    notes = np.concatenate([[[-0.4, 1.0, 36, 64]], struck])
    return cut_notes(notes, 0, SECONDS)


@pytest.fixture(scope="session", params=["midi", "text"])
def condition(request) -> str:
    return request.param


@pytest.fixture(scope="session")
def folders(tmp_path_factory, codec_info) -> dict[str, Path]:
    """By condition token manifests whose recordings are there: two cuts of one, one of the rest."""
    return {
        condition: write_tokens(tmp_path_factory.mktemp(condition), condition, codec_info)
        for condition in ("midi", "text")
    }


def write_tokens(folder: Path, condition: str, codec_info) -> Path:
    (folder / "tokens").mkdir()
    num_frames = round(SECONDS * 50)
    for split in ("train", "validation", "test"):
        cuts = []
        for i in range(4):
            name = f"{split}-{i}"
            rng = np.random.default_rng(i)
            write_codes(folder / "tokens", name, rng.integers(16, size=(num_frames, 3)))
            path = folder / f"{name}.wav"
            soundfile.write(path, noise(SECONDS, 8000, i), 8000)
            recording = make_recording(name, str(path), num_frames * 160, 8000, 1)
            cut = whole_cut(recording, "tokens", name, num_frames, codec_info)
            cuts.append(with_condition(cut, condition, folder, i))
        cuts[1].recording = dataclasses.replace(cuts[0].recording, id=cuts[0].recording.id)
        write_cuts(folder / f"cuts_{split}.jsonl.gz", cuts)
    return folder


def with_condition(cut, condition: str, folder: Path, seed: int):
    if condition == "midi":
        cut.custom[MIDI] = store_events(folder, cut.id, events_of(make_notes(seed))[0])
        cut.custom[MIDI_SPAN] = [cut.start, cut.duration]
    else:
        symbols = list("abcdefgh"[seed : seed + 4])
        custom = {"tokens": {"text": symbols}}
        text = "".join(symbols)
        segment = SupervisionSegment(cut.id, cut.recording_id, 0, cut.duration, text=text)
        segment.custom = custom
        cut.supervisions = [segment]
    return cut


def write_checkpoint(path: Path, condition: str, codec_info, **changes) -> Path:
    sizes = {"num_audio_tokens": 16, "num_text_tokens": len(SYMBOLS)}
    model = make_valle(condition, **(sizes | changes))
    with torch.no_grad():  # so that it minds what it is told, untrained as it is
        for name, weights in model.named_parameters():
            if ".reader." in name:
                weights.mul_(20)
    sections = {"model": model.state_dict(), "config": dataclasses.asdict(model.config)}
    sections |= {"filter_min_duration": 0.0, "filter_max_duration": 20.0}
    sections |= {"codec": codec_info.to_dict(), "condition": condition}
    if condition == "text":
        sections["text_symbols"] = SYMBOLS.symbols
    torch.save(sections, path)
    return path


def flags_of(checkpoint: Path, tokens: Path, *flags: object) -> list[str]:
    output = checkpoint.parent / "evaluation"
    common = ["--checkpoint", checkpoint, "--manifest-dir", tokens, "--output-dir", output]
    sizes = () if torch.load(checkpoint).get("condition") == "text" else SIZES
    return [str(flag) for flag in (*common, *sizes, *flags)]


def run(checkpoint: Path, tokens: Path, *flags: object) -> dict:
    evaluate.main(flags_of(checkpoint, tokens, *flags))
    return json.loads((checkpoint.parent / "evaluation/evaluation.json").read_text())


@pytest.fixture
def checkpoint(tmp_path, codec_info):
    return write_checkpoint(tmp_path / "model.pt", "midi", codec_info)


def refused(capsys, *arguments) -> str:
    with pytest.raises(SystemExit):
        run(*arguments)
    return capsys.readouterr().err


# What the model is told


def subject_of(checkpoint: Path, tokens: Path):
    args = evaluate.get_parser().parse_args(flags_of(checkpoint, tokens))
    return open_subject(args)


def test_a_passage_is_told_its_own_events_and_nothing_is_lost(checkpoint, folders):
    subject = subject_of(checkpoint, folders["midi"])
    cuts = list(subject.held_out())
    own, _ = true_and_shuffled(subject, cuts, [SECONDS] * 4, 1.0)
    for cut, told in zip(cuts, own, strict=True):
        assert np.array_equal(told, midi_events(cut))
        assert (told[1] == MASK).any()  # the held note


def test_other_notes_begin_after_the_prompt_and_are_of_another_recording(checkpoint, folders):
    subject = subject_of(checkpoint, folders["midi"])
    cuts = list(subject.held_out())
    own, mixed = true_and_shuffled(subject, cuts, [SECONDS] * 4, 1.0)
    begun = [notes_of(told) for told in own]
    for i, told in enumerate(mixed):
        other = 2 if i < 2 else (3, 0)[i - 2]  # the first two are of one recording
        notes = notes_of(told)
        kept, new = notes[notes[:, 0] < 1], notes[notes[:, 0] > 1]
        true = begun[i][begun[i][:, 0] < 1]
        assert np.array_equal(kept[:, [0, 2, 3]], true[:, [0, 2, 3]])
        assert np.array_equal(new, begun[other][begun[other][:, 0] > 1])


# Figures and page


def test_sound_of_notes_is_measured_beside_its_bounds(checkpoint, folders, capsys):
    content = run(checkpoint, folders["midi"], "--parts", "condition")
    rows = content["condition"]
    assert set(rows) == set(ROWS)
    assert rows["true recording"]["note_f1"] == [None, None, None, 0]
    assert rows["true recording"]["midi_note_f1"][3] == 3  # recordings
    assert rows["codec round trip"]["chroma"][0] is not None
    assert rows["generated"]["chroma"] != rows["other notes"]["chroma"]
    assert content["facts"]["true_sound"] == "recordings"
    assert content["settings"]["parts"] == ["condition"]
    printed = capsys.readouterr().out
    assert re.search(r"\| notes begin as in the true sound, F1 \| high \| - \| \d", printed)
    page = (checkpoint.parent / "evaluation/report.html").read_text()
    assert page.count("<audio") == 4 * 4
    assert page.count("Notes and spectrograms") == 4
    assert "| sampling | temperature 1" in printed


def test_the_condition_changes_what_is_made_and_the_prompt_stays(checkpoint, folders):
    flags = flags_of(checkpoint, folders["midi"], "--top-k", 0, "--num-samples", 2)
    args = evaluate.get_parser().parse_args(flags)
    subject = open_subject(args)
    stage = prepare_condition(subject, args)
    made = []
    for told in (stage.own, stage.own, stage.mixed):
        ((rows, generators),) = row_batches(4, 2, 4, seed=1)
        made.append(make_batch(subject, stage, rows, told, args, generators, None))
    own, again, other = made
    assert own.shape == (8, 50 + 70, 3)
    prompts = torch.stack(stage.held.codes)[:, :50].repeat_interleave(2, dim=0)
    for codes in made:
        assert torch.equal(codes[:, :50], prompts)
    assert torch.equal(own, again)
    assert (own != other).any()  # untrained, it minds its notes here and there


def test_where_recordings_are_gone_their_codes_are_the_truth(
    checkpoint, tmp_path, codec_info, caplog
):
    (tmp_path / "tokens").mkdir()
    tokens = write_tokens(tmp_path / "tokens", "midi", codec_info)
    (tokens / "test-3.wav").unlink()
    content = run(checkpoint, tokens, "--parts", "condition", "--num-shown", 0)
    assert content["facts"]["true_sound"] == "decoded codes"
    assert content["condition"]["codec round trip"]["chroma"][0] == pytest.approx(1, abs=1e-3)
    assert "1 of 4 true recordings are not there" in caplog.text


@pytest.mark.parametrize("prefix_mode", [0, 1, 4])
def test_likelihood_of_true_and_of_shuffled_conditions(
    tmp_path, folders, codec_info, condition, prefix_mode, capsys
):
    path = write_checkpoint(tmp_path / "model.pt", condition, codec_info, prefix_mode=prefix_mode)
    found = run(path, folders[condition], "--parts", "likelihood")["likelihood"]
    own, other = found["by_condition"][TRUE], found["by_condition"][ANOTHERS]
    num_prompt = 50 if condition == "midi" else 0
    assert own["num_frames"] == other["num_frames"] == 4 * (120 - num_prompt)
    assert own == found["overall"]
    assert all(a != b for a, b in zip(own["nats"], other["nats"], strict=True))
    printed = capsys.readouterr().out
    assert "| told of | frames | q1 |" in printed
    assert "| VALL-E |" in printed
    assert "| sampling |" not in printed
    after_a_prompt = condition == "midi"
    assert ("What the true continuation of a prompt costs" in printed) == after_a_prompt
    assert ("What true audio, from its beginning, costs" in printed) != after_a_prompt
    assert ("By how far after the prompt a frame lies" in printed) == after_a_prompt
    assert ("By how far after the beginning a frame lies" in printed) != after_a_prompt
    assert ("## Where in the audio" in printed) != after_a_prompt
    assert ("| continuation | frames |" in printed) == after_a_prompt
    page = (tmp_path / "evaluation/report.html").read_text()
    assert ("seconds after the prompt" in page) <= after_a_prompt


def test_costs_are_those_of_the_models_own_forward(tmp_path, folders, codec_info):
    """Without a prompt, and with a NAR half that reads none, the loss of training is the cost."""
    path = write_checkpoint(tmp_path / "model.pt", "text", codec_info, prefix_mode=0)
    found = run(path, folders["text"], "--parts", "likelihood")["likelihood"]["overall"]
    subject = subject_of(path, folders["text"])
    assert isinstance(subject.model, VALLE)
    sums, num_frames = [0.0] * 3, 0
    for cut in subject.held_out():
        x = torch.tensor([subject.symbols.ids(cut.supervisions[0].custom["tokens"]["text"])])
        y = torch.from_numpy(cut_codes(cut))[None]
        lens = torch.tensor([y.shape[1]])
        with torch.no_grad():
            out = subject.model(x, torch.tensor([x.shape[1]]), y, lens, all_stages=True)
        num_frames += y.shape[1]
        for q in range(3):
            sums[q] += float(out.metrics[f"loss_q{q + 1}"].total)
    assert found["num_frames"] == num_frames
    assert found["nats"] == pytest.approx([total / num_frames for total in sums], rel=1e-4)


def test_after_a_prompt_the_rest_costs_what_it_costs_in_the_whole(tmp_path, folders, codec_info):
    """A model that reads no prompt whole knows the same of a frame either way."""
    path = write_checkpoint(tmp_path / "model.pt", "midi", codec_info, prefix_mode=0)
    found = run(path, folders["midi"], "--parts", "likelihood")["likelihood"]["overall"]
    model = load_model(path)
    columns = []
    for cut in subject_of(path, folders["midi"]).held_out():
        y = torch.from_numpy(cut_codes(cut))[None]
        lens, given = torch.tensor([120]), given_of(model, [midi_events(cut)], 0, "cpu")
        costs = frame_costs(model, y[:, :0], 0 * lens, y, lens, given=given)
        columns.append(costs.nats[0, 50:])
    assert found["nats"] == pytest.approx(torch.cat(columns).mean(dim=0).tolist(), rel=1e-4)


def test_batches_are_as_large_as_they_may_be():
    """Padding included; and they are all rows, in their order."""
    assert batches_of([3, 3, 3, 4, 9, 1, 1], 9) == [
        slice(0, 3), slice(3, 4), slice(4, 5), slice(5, 7)
    ]  # fmt: skip
    assert batches_of([20], 9) == [slice(0, 1)]


def test_how_many_are_scored_at_a_time_changes_nothing(
    tmp_path, folders, codec_info, condition, monkeypatch
):
    path = write_checkpoint(tmp_path / "model.pt", condition, codec_info)
    sizes, frames = [], evaluation_condition_likelihood.frame_costs

    def noted(model, x, *args, **kwargs):
        sizes.append(len(x))
        return frames(model, x, *args, **kwargs)

    monkeypatch.setattr(evaluation_condition_likelihood, "frame_costs", noted)
    flags = ("--parts", "likelihood", "--batch-duration")
    found = [run(path, folders[condition], *flags, seconds) for seconds in (3, 60)]
    assert sizes == [1] * 8 + [4] * 2
    one, all_ = (content["likelihood"]["overall"]["nats"] for content in found)
    assert one == pytest.approx(all_, rel=1e-5)


# What is refused


def test_a_model_has_its_own_parts(checkpoint, tmp_path, folders, codec_info, capsys):
    err = refused(capsys, checkpoint, folders["midi"], "--parts", "sounds")
    assert "--parts sounds is not for a VALL-E of midi" in err
    assert "take --parts likelihood condition" in err
    text = write_checkpoint(tmp_path / "text.pt", "text", codec_info)
    err = refused(capsys, text, folders["text"], "--parts", "condition")
    assert "--parts condition is not for a VALL-E of text" in err
    audio = tmp_path / "audio.pt"
    model = make_model(num_audio_tokens=16)
    torch.save({"model": model.state_dict(), "config": dataclasses.asdict(model.config)}, audio)
    err = refused(capsys, audio, folders["midi"], "--parts", "condition")
    assert "--parts condition is not for an AudioLM" in err


def test_cuts_must_carry_what_the_model_reads(checkpoint, folders, capsys):
    err = refused(capsys, checkpoint, folders["text"], "--parts", "likelihood")
    assert "carries text, expected midi" in err


def test_a_text_needs_the_table_of_the_training(tmp_path, folders, codec_info, capsys):
    path = write_checkpoint(tmp_path / "text.pt", "text", codec_info)
    sections = torch.load(path)
    del sections["text_symbols"]
    torch.save(sections, path)
    err = refused(capsys, path, folders["text"])
    assert "text.pt holds no text_symbols" in err


def test_of_text_no_sound_is_made(tmp_path, folders, codec_info, capsys):
    path = write_checkpoint(tmp_path / "text.pt", "text", codec_info)
    for name, value in (
        ("--prompt-duration", 1),
        ("--max-duration", 2),
        ("--num-samples", 1),
        ("--codec", "some"),
        ("--top-k", 5),
        ("--window", 5),
        ("--prompt-seconds", 1),
    ):
        err = refused(capsys, path, folders["text"], name, value)
        assert f"{name} is not for a VALL-E of text" in err


def test_flags_that_cannot_be(checkpoint, folders, capsys):
    err = refused(capsys, checkpoint, folders["midi"], "--prompt-seconds", 1)
    assert "--prompt-seconds is not for a VALL-E of midi: a VALL-E is scored after one" in err
    for name, value in (("--window", 5), ("--stride", 1), ("--embeddings", "mel")):
        err = refused(capsys, checkpoint, folders["midi"], name, value)
        assert f"{name} is not for a VALL-E of midi" in err
    err = refused(capsys, checkpoint, folders["midi"], "--max-duration", 0.5)
    assert "to be measured, sound must last 1 s or more" in err
    flags = ("--parts", "likelihood", "--prompt-duration", 3)
    err = refused(capsys, checkpoint, folders["midi"], *flags)
    assert "none of 4 test cuts outlast a prompt of 3 s" in err
