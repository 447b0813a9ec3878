import dataclasses
import json
from pathlib import Path

import pytest
import score_model
import torch
from conftest import make_model


def write_checkpoint(path: Path, **sections: object) -> Path:
    model = make_model(num_audio_tokens=16)
    known = {"model": model.state_dict(), "config": dataclasses.asdict(model.config)}
    known |= {"filter_min_duration": 0.0, "filter_max_duration": 20.0, "prompt_ratio": 0.4}
    torch.save(known | sections, path)
    return path


def scores(checkpoint: Path, token_dir: Path, *flags: object) -> dict[str, list[dict]]:
    """Run the script; return its table."""
    output = checkpoint.with_suffix(".json")
    common = ["--checkpoint", checkpoint, "--manifest-dir", token_dir, "--output-file", output]
    common += ["--num-workers", 0, "--max-duration", 6]
    score_model.main([str(flag) for flag in (*common, *flags)])
    return json.loads(output.read_text())


@pytest.fixture
def average() -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    weights = make_model(num_audio_tokens=16).state_dict()
    return {name: torch.randn_like(value) for name, value in weights.items()}


def test_averaged_weights_are_scored_on_request(tmp_path, token_dir, average):
    wide = {name: value.double() for name, value in average.items()}
    both = write_checkpoint(tmp_path / "both.pt", model_avg=wide)
    alone = write_checkpoint(tmp_path / "alone.pt", model=average)
    plain = scores(both, token_dir)
    asked = scores(both, token_dir, "--averaged", "true")
    assert asked == scores(alone, token_dir)
    assert asked["AudioLM"] != plain["AudioLM"]
    assert asked["bigram"] == plain["bigram"]


def test_an_average_that_is_not_there_is_missed(tmp_path, token_dir, capsys):
    checkpoint = write_checkpoint(tmp_path / "model.pt")
    with pytest.raises(SystemExit):
        scores(checkpoint, token_dir, "--averaged", "true")
    assert "model.pt holds no averaged weights" in capsys.readouterr().err


def test_costs_by_position_and_by_prompt(tmp_path, token_dir, capsys):
    checkpoint = write_checkpoint(tmp_path / "model.pt")
    found = scores(checkpoint, token_dir, "--bin-sec", 0.5, "--prompt-seconds", 0.1, 0.5)
    bins, prompts = found["by_position"], found["by_prompt"]
    assert list(bins)[:2] == ["0", "0.5"]
    counts = [part["num_frames"] for part in bins.values()]
    assert counts == sorted(counts, reverse=True)  # ever fewer cuts are so long
    whole = sum(part["num_frames"] * part["nats"][0] for part in bins.values()) / sum(counts)
    assert whole == pytest.approx(found["AudioLM"][0]["loss"])
    assert list(prompts) == ["0.1", "0.5"]
    short, long = prompts.values()
    assert short["num_frames"] == long["num_frames"] > 0  # the same frames
    assert short["nats"] != long["nats"]
    printed = capsys.readouterr().out
    assert "| continuation | frames | q1 |" in printed
    assert "| from 0.5 s |" in printed
    assert "| prompt | frames | q1 |" in printed


def test_a_prompt_longer_than_all_cuts_is_explained(tmp_path, token_dir, capsys):
    checkpoint = write_checkpoint(tmp_path / "model.pt")
    with pytest.raises(SystemExit):
        scores(checkpoint, token_dir, "--prompt-seconds", 1, 100)
    assert "no frame was scored: were all cuts shorter" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        scores(checkpoint, token_dir, "--prompt-seconds", 0.001)
    assert "prompt_frames is 0, expected 1 to begin, 0" in capsys.readouterr().err
