"""evaluate.py on a tiny untrained model: its figures, its page, and what it refuses."""

import base64
import dataclasses
import hashlib
import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import evaluate
import numpy as np
import pytest
import soundfile
import torch
from conftest import make_model, write_token_cuts
from evaluation_curves import loss_curves
from evaluation_gaps import next_others
from evaluation_passages import spread_evenly
from evaluation_tables import as_cell
from lhotse import MonoCut
from tiny_codec import save_codec
from torch.utils.tensorboard import SummaryWriter

from valle.data import Codec, cut_codes, load_cuts
from valle.evaluation import Interval

# 10 and 50 frames; the measures want a second at least
SIZES = ("--prompt-duration", 0.2, "--max-duration", 1)


@pytest.fixture(scope="session")
def tokens(tmp_path_factory, codec_info) -> Path:
    """Token manifests with five test cuts."""
    folder = tmp_path_factory.mktemp("tokens")
    for split, num_cuts in (("train", 12), ("validation", 4), ("test", 5)):
        write_token_cuts(folder, split, num_cuts, codec_info)
    return folder


@pytest.fixture
def checkpoint(tmp_path, codec_info) -> Path:
    return write_checkpoint(tmp_path / "model.pt", codec=codec_info.to_dict())


def write_checkpoint(path: Path, ahead_frames: int = 0, **sections: object) -> Path:
    model = make_model(num_audio_tokens=16, ahead_frames=ahead_frames)
    known = {"model": model.state_dict(), "config": dataclasses.asdict(model.config)}
    known |= {"filter_min_duration": 0.0, "filter_max_duration": 20.0, "prompt_ratio": 0.4}
    torch.save(known | sections, path)
    return path


def run(checkpoint: Path, tokens: Path, *flags: object) -> dict:
    """Run the program; return what is in evaluation.json."""
    output = checkpoint.parent / "evaluation"
    common = ["--checkpoint", checkpoint, "--manifest-dir", tokens, "--output-dir", output]
    evaluate.main([str(flag) for flag in (*common, *flags)])
    return json.loads((output / "evaluation.json").read_text())


def read_page(checkpoint: Path) -> str:
    return (checkpoint.parent / "evaluation/report.html").read_text(encoding="utf-8")


# Likelihood


@pytest.fixture
def average() -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    weights = make_model(num_audio_tokens=16).state_dict()
    return {name: torch.randn_like(value) for name, value in weights.items()}


def scores(checkpoint: Path, token_dir: Path, *flags: object) -> dict:
    common = ("--parts", "likelihood", "--split", "validation", "--prompt-seconds")
    return run(checkpoint, token_dir, *common, *(flags or ()))["likelihood"]


def test_averaged_weights_are_scored_on_request(tmp_path, token_dir, average):
    wide = {name: value.double() for name, value in average.items()}
    both = write_checkpoint(tmp_path / "both.pt", model_avg=wide)
    alone = write_checkpoint(tmp_path / "alone.pt", model=average)
    plain = scores(both, token_dir)
    asked = scores(both, token_dir, "--averaged", "true")
    assert asked == scores(alone, token_dir)
    assert asked["overall"] != plain["overall"]
    assert asked["ngrams"] == plain["ngrams"]


def test_an_average_that_is_not_there_is_missed(tmp_path, token_dir, capsys):
    checkpoint = write_checkpoint(tmp_path / "model.pt")
    with pytest.raises(SystemExit):
        scores(checkpoint, token_dir, "--averaged", "true")
    assert "model.pt holds no averaged weights" in capsys.readouterr().err


def test_costs_by_position_and_by_prompt(checkpoint, token_dir, capsys):
    found = scores(checkpoint, token_dir, 0.1, 0.5, "--bin-sec", 0.5)
    bins, prompts = found["by_position"], found["by_prompt"]
    assert list(bins)[:2] == ["0", "0.5"]
    counts = [part["num_frames"] for part in bins.values()]
    assert counts == sorted(counts, reverse=True)  # ever fewer cuts are so long
    whole = sum(part["num_frames"] * part["nats"][0] for part in bins.values()) / sum(counts)
    assert whole == pytest.approx(found["overall"]["nats"][0])
    assert list(prompts) == ["0.1", "0.5"]
    short, long = prompts.values()
    assert short["num_frames"] == long["num_frames"] > 0  # the same frames
    assert short["nats"] != long["nats"]
    printed = capsys.readouterr().out
    assert "| continuation | frames | q1 |" in printed
    assert "| from 0.5 s |" in printed
    assert "| prompt | frames | q1 |" in printed
    assert "| AudioLM |" in printed
    assert "Where in the continuation" in read_page(checkpoint)


def test_a_prompt_longer_than_all_cuts_is_explained(checkpoint, token_dir, capsys):
    with pytest.raises(SystemExit):
        scores(checkpoint, token_dir, 1, 100)
    told = capsys.readouterr().err
    assert "--prompt-seconds 100 cannot be scored: a prompt takes a frame of 0.02 s" in told
    with pytest.raises(SystemExit):
        scores(checkpoint, token_dir, 0.001)
    assert "--prompt-seconds 0.001 cannot be scored" in capsys.readouterr().err


def test_usual_prompts_that_no_cut_outlasts_are_left_out(checkpoint, token_dir, caplog):
    caplog.set_level("INFO")
    flags = ("--parts", "likelihood", "--split", "validation")
    found = run(checkpoint, token_dir, *flags)["likelihood"]
    assert list(found["by_prompt"]) == ["1"]
    assert "likelihood after prompts of 2, 4 s is left out" in caplog.text
    found = run(checkpoint, token_dir, *flags, "--prompt-duration", 100)["likelihood"]
    assert found["by_prompt"] == {}
    assert found["by_position"]


def test_the_curves_of_the_run_are_on_the_page(checkpoint, token_dir):
    scores(checkpoint, token_dir, 0.1)
    assert '<h2 id="training">' not in read_page(checkpoint)
    with SummaryWriter(checkpoint.parent / "tensorboard") as writer:
        for step in range(3):
            writer.add_scalar("train/valid_loss_q1", 3.0 - step, step)
            writer.add_scalar("train/tot_loss_q1", 2.0 - step, step)
            writer.add_scalar("train/lr", 1.0, step)
    scores(checkpoint, token_dir, 0.1)
    assert '<h2 id="training">' in read_page(checkpoint)
    curves = loss_curves(checkpoint.parent / "tensorboard")
    assert {tag: [point.value for point in points] for tag, points in curves.items()} == {
        "train/valid_loss_q1": [3.0, 2.0, 1.0],
        "train/tot_loss_q1": [2.0, 1.0, 0.0],
    }


def test_runs_are_laid_side_by_side(tmp_path, codec_info, token_dir, capsys):
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder, seconds in zip(folders, (10.0, 20.0), strict=True):
        folder.mkdir()
        known = {"codec": codec_info.to_dict(), "filter_max_duration": seconds}
        scores(write_checkpoint(folder / "best-valid-loss.pt", **known), token_dir, 0.1)
    capsys.readouterr()
    evaluate.main(["--exp-dirs", *map(str, folders)])
    printed = capsys.readouterr().out
    assert "| one |" in printed
    assert "| two |" in printed
    assert (tmp_path / "comparison/comparison.json").is_file()
    with pytest.raises(SystemExit):
        evaluate.main(["--exp-dirs", str(tmp_path / "none")])
    assert "there is no experiment folder" in capsys.readouterr().err


# Sounds


class Page(HTMLParser):
    """Tags that open and close in order, and every address and picture text."""

    VOID = ("meta", "img", "br", "link", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def addresses(self, tag: str) -> list[tuple[str, bytes]]:
        """Media type and content of each."""
        found = []
        for name, attributes in self.found:
            if name == tag:
                kind, content = attributes["src"].removeprefix("data:").split(";base64,")
                found.append((kind, base64.b64decode(content, validate=True)))
        return found


@pytest.fixture
def sound_flags() -> tuple[object, ...]:
    return ("--parts", "sounds", *SIZES, "--num-prompts", 3, "--nar-temperature", 1)


def test_the_page_is_whole_and_plays_what_was_made(
    tmp_path, codec_info, tokens, codec_dir, sound_flags, monkeypatch
):
    made = []
    measure = evaluate.measure_sounds
    monkeypatch.setattr(evaluate, "measure_sounds", lambda *a: made.append(measure(*a)) or made[0])
    checkpoint = write_checkpoint(tmp_path / "a&b<i>.pt", 4, codec=codec_info.to_dict())
    content = run(checkpoint, tokens, *sound_flags, "--num-shown", 2)
    text = read_page(checkpoint)
    assert not re.search(r"https?://", re.sub(r'"data:[^"]*"', '""', text))
    assert "a&amp;b&lt;i&gt;.pt" in text
    assert "<i>" not in text
    page = Page(text)
    for tag, attributes in page.found:
        assert attributes.keys().isdisjoint({"href"}) or attributes["href"].startswith("#")
        assert tag != "img" or attributes["alt"]
        assert tag != "audio" or attributes["aria-label"]
    sounds = page.addresses("audio")
    assert len(sounds) == 2 * (1 + 1 + 2 + 2)  # prompt, true, samples, in-filled; of two passages
    expected = [
        sound
        for one in made[0].made[:2]
        for sound in (one.passage.prompt, one.true, *one.samples, *one.infilled)
    ]
    for (kind, flac), sound in zip(sounds, expected, strict=True):
        assert kind == "audio/flac"
        decoded, rate = soundfile.read(io.BytesIO(flac))
        assert rate == 8000
        np.testing.assert_allclose(decoded, sound.clamp(-1, 1), atol=1.01 / 32768)
    pictures = page.addresses("img")
    assert [kind for kind, _ in pictures].count("image/png") == len(sounds)
    assert all(p.startswith(b"\x89PNG") or b"</svg>" in p for _, p in pictures)
    # what is played is what the tokens say
    cut = next(iter(load_cuts(tokens / "cuts_test.jsonl.gz")))
    codes = torch.from_numpy(cut_codes(cut)[:60])[None]
    whole = Codec.from_pretrained(codec_dir).decode(codes)[0][0]
    assert torch.equal(made[0].made[0].true, whole)
    assert torch.equal(made[0].made[0].passage.prompt, whole[: 10 * 160])
    # gaps: the middle third alone is new
    assert content["gaps"].keys() == {"in-filled", "true", "another piece"}
    assert content["gaps"]["true"]["chroma"][3] == 0  # nothing is compared with itself
    assert all(0 <= content["gaps"]["true"][key][0] <= 1 for key in ("abrupt_start", "abrupt_end"))
    before = slice(0, 10 * 160)
    for sound in made[0].made[0].infilled:
        assert not torch.equal(sound, whole)
        torch.testing.assert_close(sound[before], whole[before], atol=1e-3, rtol=0)


def test_the_same_command_gives_the_same_figures(checkpoint, tokens, sound_flags):
    flags = (*sound_flags, "--num-prompts", 3)
    first, page = run(checkpoint, tokens, *flags), read_page(checkpoint)
    assert run(checkpoint, tokens, *flags) == first
    assert read_page(checkpoint) == page
    in_ones = run(checkpoint, tokens, *flags, "--batch-size", 1)
    other = run(checkpoint, tokens, *flags, "--seed", 7)
    for key in ("sounds", "separation"):
        assert in_ones[key] == first[key]
    assert other["sounds"]["generated"] != first["sounds"]["generated"]
    assert other["sounds"]["true"].keys() == first["sounds"]["generated"].keys()
    assert "gaps" not in first  # this model was not trained for them


def test_what_was_evaluated_is_told(checkpoint, tokens, sound_flags, caplog):
    caplog.set_level("INFO")
    content = run(checkpoint, tokens, *sound_flags)
    assert content["checkpoint"]["sha256"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert content["facts"]["passages"]["passages"] == 3
    assert "took 3 of 4 passages that are long enough, in 5 test cuts" in caplog.text
    assert content["settings"]["max_duration"] == 1
    assert "likelihood" not in content
    for row in content["sounds"].values():
        for mean, low, high, num in row.values():
            # a Fréchet distance has no interval of fewer than three recordings
            assert num == 0 or (low is None and num < 3) or low <= mean <= high
    missing = "no Fréchet distance, mel: it needs more than 32 vectors, one for each dimension, "
    assert missing + "and half of the recordings has 1" in caplog.text


def test_a_home_folder_is_nowhere_to_be_read(
    checkpoint, tokens, tmp_path, sound_flags, monkeypatch, capsys
):
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    other = save_codec(tmp_path / "other", num_filters=3)
    content = run(checkpoint, tokens, *sound_flags, "--embeddings", "chroma", f"codec:{other}")
    assert "diversity_codec:~/other" in content["sounds"]["generated"]
    assert "diversity, codec:~/other" in read_page(checkpoint)
    text = json.dumps(content) + read_page(checkpoint) + capsys.readouterr().out.split("\nOpen")[0]
    assert str(tmp_path) not in text


def test_gaps_of_one_recording_have_no_wrong_sequel():
    assert next_others(["a", "b", "b", "a"]) == [1, 3, 3, 1]
    assert next_others(["a", "a"]) == []


def test_a_mean_without_an_interval_stands_alone():
    assert as_cell(Interval(2.0, math.nan, math.nan, 1), "{:.2f}") == "2.00"
    assert as_cell(Interval(2.0, 1.0, 3.0, 5), "{:.2f}") == "2.00 (1.00 to 3.00)"
    assert as_cell(Interval(math.nan, math.nan, math.nan, 0), "{:.2f}") == "-"


def test_nothing_is_generated_if_an_embedding_cannot_be_had(
    checkpoint, tokens, sound_flags, monkeypatch, capsys
):
    monkeypatch.setattr(evaluate, "measure_sounds", lambda *_: pytest.fail("was generated"))
    with pytest.raises(SystemExit):
        run(checkpoint, tokens, *sound_flags, "--embeddings", "vgg")
    assert "unknown embedding 'vgg'" in capsys.readouterr().err


def test_weights_that_are_not_finite_are_refused(tmp_path, tokens, codec_info, sound_flags, capsys):
    weights = make_model(num_audio_tokens=16).state_dict()
    broken = list(weights)[-1]
    weights[broken] = weights[broken] * math.nan
    checkpoint = write_checkpoint(tmp_path / "nan.pt", codec=codec_info.to_dict(), model=weights)
    with pytest.raises(SystemExit):
        run(checkpoint, tokens, *sound_flags)
    told = capsys.readouterr().err
    assert f"{broken} of {checkpoint} holds infinity or NaN as torch.float32" in told


def test_long_passages_are_made_in_windows(tmp_path, codec_info, tokens, sound_flags, caplog):
    caplog.set_level("INFO")
    short = {"codec": codec_info.to_dict(), "filter_max_duration": 1.0}
    run(write_checkpoint(tmp_path / "model.pt", **short), tokens, *sound_flags)
    assert "1.2 s are made in windows of 1 s" in caplog.text


def test_passages_are_spread_over_recordings():
    def cut(name: str, recording: str) -> MonoCut:
        class Named(MonoCut):
            recording_id = recording

        return Named(name, 0, 1.0, 0)

    cuts = [cut("a1", "a"), cut("a2", "a"), cut("a3", "a"), cut("b1", "b"), cut("b2", "b")]
    assert [cut.id for cut in spread_evenly(cuts)] == ["a1", "b1", "a2", "b2", "a3"]


def test_without_matplotlib_the_players_are_left(
    checkpoint, tokens, sound_flags, monkeypatch, caplog
):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    run(checkpoint, tokens, *sound_flags)
    page = Page(read_page(checkpoint))
    assert not page.addresses("img")
    assert page.addresses("audio")
    assert "pip install 'valle[plot]'" in caplog.text


def test_mistakes_are_explained(
    checkpoint, tokens, tmp_path, codec_info, codec_dir, sound_flags, capsys
):
    info = codec_info.to_dict()
    foreign = write_checkpoint(tmp_path / "foreign.pt", codec=info | {"fingerprint": "other"})
    nameless = write_checkpoint(tmp_path / "nameless.pt", codec=None)
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "tokens_of_another").mkdir()
    another = dataclasses.replace(codec_info, fingerprint="another")
    write_token_cuts(tmp_path / "tokens_of_another", "test", 5, another)
    foreign_tokens = ("--manifest-dir", tmp_path / "tokens_of_another")
    for model, flags, message in (
        (checkpoint, ("--max-duration", 60), r"none of 5 test cuts lasts 60.2 s, the longest 1\."),
        (checkpoint, ("--max-duration", 0), "--max-duration must be above 0 s, and .* got 0"),
        (checkpoint, ("--max-duration", "inf"), "--max-duration must be above 0 s, .* got inf"),
        (checkpoint, ("--prompt-duration", "nan"), "--prompt-duration must be .* got nan"),
        (checkpoint, ("--bin-sec", "inf"), "--bin-sec must be above 0 s, .* got inf"),
        (checkpoint, ("--batch-duration", -1), "--batch-duration must be above 0 s, .* got -1"),
        (checkpoint, ("--prompt-seconds", 1, -1), "--prompt-seconds must be .* got -1"),
        (checkpoint, ("--prompt-seconds", "nan"), "--prompt-seconds must be .* got nan"),
        (checkpoint, ("--seed", -1), "--seed must be 0 or more, got -1"),
        (checkpoint, ("--num-shown", -1), "--num-shown must be 0 or more, got -1"),
        (checkpoint, foreign_tokens, "tokens in .*of_another: .* they differ in fingerprint"),
        (nameless, (*foreign_tokens, "--codec", codec_dir), "differ in fingerprint"),
        (checkpoint, ("--prompt-duration", 0.001), "--prompt-duration is shorter than a frame"),
        (checkpoint, ("--max-duration", 0.9), "--max-duration is 0.9 s: to be measured, sound"),
        (checkpoint, ("--num-prompts", 1), "1 passages of one recording were chosen .4 are long"),
        (checkpoint, ("--num-samples", 0), "--num-samples must be 1 or more, got 0"),
        (checkpoint, ("--top-p", 2), "top_p"),
        (checkpoint, ("--codec", tmp_path / "none"), "cannot load the codec"),
        (checkpoint, ("--output-dir", tmp_path / "file"), "cannot write to --output-dir .*file"),
        (checkpoint, ("--manifest-dir", tmp_path), "no cuts_test.jsonl.gz"),
        (foreign, (), "they differ in fingerprint"),
        (foreign, ("--parts", "likelihood"), "tokens in .* they differ in fingerprint"),
        (nameless, (), "names no codec: give --codec"),
        (tmp_path / "none.pt", (), "no checkpoint"),
    ):
        with pytest.raises(SystemExit):
            run(model, tokens, *sound_flags, *flags)
        assert re.search(message, capsys.readouterr().err)
