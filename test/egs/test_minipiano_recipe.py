"""The minipiano recipe from composing to the closing page, at reduced size."""

import json
import subprocess
from pathlib import Path

import pytest
import soundfile
from lhotse import CutSet

from valle.data import load_cuts
from valle.data.midi import read_notes

ROOT = Path(__file__).parents[2]


@pytest.mark.recipe
def test_the_recipe_runs_whole_and_again(tmp_path):
    flags = [
        *("--minutes", "21", "--num-epochs", "1"),  # the second test piece is number 24
        *("--num-prompts", "1", "--max-duration", "1"),
        *("--data-dir", tmp_path / "data", "--exp-dir", tmp_path / "exp"),
    ]
    command = ["bash", ROOT / "egs/minipiano/run.sh", *flags]
    first = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=1500)
    assert first.returncode == 0, first.stderr[-3000:] + first.stdout[-3000:]
    recordings = {}
    for split in ("train", "validation", "test"):
        cuts = CutSet.from_file(tmp_path / f"data/tokenized/cuts_{split}.jsonl.gz")
        recordings[split] = {cut.recording_id for cut in cuts}
    assert sum(map(len, recordings.values())) == len(set().union(*recordings.values()))
    assert all(recordings.values())
    (full,) = (tmp_path / "exp/continuations").glob("*_full.wav")
    assert 4 < soundfile.info(full).duration <= 5
    content = json.loads((tmp_path / "exp/evaluation/evaluation.json").read_text())
    scores = content["likelihood"]
    assert len(scores["overall"]["nats"]) == 4
    assert [len(scores["ngrams"][name]) for name in ("unigram", "bigram", "trigram")] == [4] * 3
    assert scores["by_position"]
    assert {len(found["nats"]) for found in scores["by_position"].values()} == {4}
    assert "exp/evaluation/report.html" in first.stdout
    page = (tmp_path / "exp/evaluation/report.html").read_text(encoding="utf-8")
    assert page.count("<audio") >= 4
    assert page.count("image/svg+xml") == 3  # by position, by prompt, training
    assert "| AudioLM |" in first.stdout

    second = subprocess.run(
        [*command, "--stop-stage", "1"], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert second.returncode == 0, second.stderr[-3000:]
    assert "done before" in second.stdout


@pytest.mark.recipe
def test_the_midi_recipe_runs_whole(tmp_path):
    flags = [
        *("--minutes", "21", "--num-epochs", "1", "--num-pieces", "1", "--num-passages", "2"),
        *("--max-duration", "2"),
        *("--data-dir", tmp_path / "data", "--exp-dir", tmp_path / "exp"),
    ]
    command = ["bash", ROOT / "egs/minipiano/run_midi.sh", *flags]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
    cut = next(iter(load_cuts(tmp_path / "data/tokenized_midi/cuts_test.jsonl.gz")))
    assert cut.load_midi_tokens().shape[1] == 6
    (piece,) = set((tmp_path / "exp/played").glob("*.wav")) - set(
        (tmp_path / "exp/played").glob("*_full.wav")
    )
    notes = read_notes(tmp_path / f"data/corpus/{piece.stem}.mid")
    end = float((notes[:, 0] + notes[:, 1]).max())
    assert end - 0.05 <= soundfile.info(piece).duration <= end + 1.05  # it may ring on for 1 s
    content = json.loads((tmp_path / "exp/evaluation/evaluation.json").read_text())
    rows = content["condition"]
    assert {"codec round trip", "generated", "other notes"} <= rows.keys()
    assert rows["codec round trip"]["chroma"][0] > 0.8
    assert "exp/evaluation/report.html" in done.stdout
