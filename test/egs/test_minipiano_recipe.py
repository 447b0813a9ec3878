"""The minipiano recipe from composing to the closing table, at reduced size."""

import json
import subprocess
from pathlib import Path

import pytest
import soundfile
from lhotse import CutSet

ROOT = Path(__file__).parents[2]


@pytest.mark.recipe
def test_the_recipe_runs_whole_and_again(tmp_path):
    flags = [
        *("--minutes", "11", "--num-epochs", "2"),  # the first test piece is number 11
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
    for picture in ("losses.png", "continuations.png"):
        assert (tmp_path / "exp" / picture).stat().st_size > 10_000
    scores = json.loads((tmp_path / "exp/scores.json").read_text())
    for name in ("AudioLM", "unigram", "bigram", "trigram"):
        assert len(scores[name]) == 4
    assert scores["by_position"]
    assert {len(found["nats"]) for found in scores["by_position"].values()} == {4}
    assert "| AudioLM |" in first.stdout

    second = subprocess.run(
        [*command, "--stop-stage", "1"], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert second.returncode == 0, second.stderr[-3000:]
    assert "done before" in second.stdout
