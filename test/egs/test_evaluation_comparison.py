"""Experiment folders side by side: tiny real runs, and what an evaluation left beside them."""

import csv
import json
import shutil
from pathlib import Path

import pytest
from evaluation_comparison import as_table, compare, write_comparison
from experiment_folder import newest_record
from tiny_cuts import write_manifest
from trainer_runs import train

from valle.utils.checkpoint import read_checkpoint
from valle.utils.events import read_scalars

FLAGS = ("--sample-epochs", 0, "--measured-cuts", 0, "--num-epochs", 1)
NATS, TOP1 = [1.0, 2.0, 3.5], [0.5, 0.25, 0.125]


@pytest.fixture(scope="module")
def runs(token_dir, tmp_path_factory) -> dict[str, Path]:
    """Three folders: a small model, a wider one, and one without tensorboard."""
    folder = tmp_path_factory.mktemp("exp")
    flags = {
        "small": ("--num-epochs", 2),
        "wide": ("--decoder-dim", 32, "--base-lr", 0.01),
        "silent": ("--tensorboard", "false"),
    }
    for name, own in flags.items():
        train(token_dir, folder / name, *FLAGS, *own)
    return {name: folder / name for name in flags}


def copied(source: Path, folder: Path) -> Path:
    return Path(shutil.copytree(source, folder / source.name))


def add_evaluation(exp_dir: Path, true_entropy: float = 4.0, **changes: object) -> None:
    """What an evaluation leaves; `changes` of its passages."""
    where = {"prompt_duration": 4.0, "max_duration": 6.0, "names": ["a", "b"]} | changes
    content = {
        "facts": {"passages": {"names": where.pop("names")}},
        "settings": where,
        "likelihood": {"overall": {"num_frames": 9, "nats": NATS, "top1": TOP1}},
        "sounds": {
            "true": {"entropy": [true_entropy, 3.5, 4.5, 5]},
            "generated": {
                "entropy": [3.0, 2.75, 3.25, 5],
                "in_loops": [0.25, None, None, 1],
                "frechet_codec:other": [20.0, 19.0, 21.0, 5],
                "diversity_mel": [None, None, None, 0],
            },
        },
    }
    (exp_dir / "evaluation").mkdir()
    (exp_dir / "evaluation/evaluation.json").write_text(json.dumps(content))


def cells(table: str, name: str) -> list[dict[str, str]]:
    """The lines of that name in all tables, by their columns."""
    found, header = [], []
    for line in table.splitlines():
        values = [cell.strip() for cell in line.strip("|").split("|")]
        if values[0] in ("experiment", "measure"):
            header = values
        elif values[0].startswith(name):
            found.append(dict(zip(header, values, strict=True)))
    return found


def test_runs_are_told_apart_by_what_was_set_otherwise(runs):
    comparison = compare([runs["small"], runs["wide"]])
    assert set(comparison.settings) == {"decoder-dim", "base-lr", "num-epochs"}
    assert comparison.warnings == ()
    table = as_table(comparison)
    (small,), (wide,) = cells(table, "small"), cells(table, "wide")
    assert (small["decoder-dim"], wide["decoder-dim"]) == ("16", "32")
    assert (small["base-lr"], wide["base-lr"]) == ("-", "0.01")
    for row, exp_dir in ((small, runs["small"]), (wide, runs["wide"])):
        best = read_checkpoint(exp_dir / "best-valid-loss.pt")
        last = max(exp_dir.glob("epoch-*.pt"))
        assert row["validation loss"] == f"{best['best_valid_loss']:.3f}"
        assert row["best at"] == str(best["batch_idx_train"])
        assert row["steps"] == str(read_checkpoint(last)["batch_idx_train"])


def test_losses_are_those_of_the_best_step(runs):
    (small,) = compare([runs["small"]]).experiments
    assert small.losses.keys() == {"loss", "loss_q1", "loss_q2", "loss_q3"}
    assert small.losses["loss"] == min(point.value for point in small.curve)
    scalars = read_scalars(runs["small"] / "tensorboard")
    for name, value in small.losses.items():
        assert (small.best_step, value) in scalars[f"train/valid_{name}"]


def test_a_run_without_tensorboard_has_what_its_checkpoint_tells(runs):
    comparison = compare([runs["silent"], runs["small"]])
    best = read_checkpoint(runs["silent"] / "best-valid-loss.pt")
    (row,) = cells(as_table(comparison), "silent")
    assert row["validation loss"] == f"{best['best_valid_loss']:.3f}"
    assert row["best at"] == str(best["batch_idx_train"])
    assert row["q1"] == "-"


def test_settings_come_from_a_checkpoint_where_there_is_no_record(runs, tmp_path):
    bare = copied(runs["wide"], tmp_path)
    for path in (*bare.glob("run-*.json"), bare / "best-valid-loss.pt"):
        path.unlink()
    (experiment,) = compare([bare]).experiments
    (recorded,) = compare([runs["wide"]]).experiments
    # that of the record is written with ~ for the home folder
    assert experiment.settings | {"manifest-dir": ""} == recorded.settings | {"manifest-dir": ""}
    assert experiment.data["train"]["codec"] == recorded.data["train"]["codec"]


def test_the_newest_record_counts(runs, tmp_path):
    again = copied(runs["wide"], tmp_path)
    (path,) = again.glob("run-*.json")
    record = json.loads(path.read_text())
    record["parameters"]["seed"] = 7
    path.with_name(path.stem + "-2.json").write_text(json.dumps(record))
    assert newest_record(again)["parameters"]["seed"] == 7
    path.with_name("run-0.json").write_text(json.dumps(record | {"started": "1999"}))
    assert newest_record(again)["started"] == record["started"]


def test_evaluations_are_shown_with_their_intervals(runs, tmp_path):
    judged = copied(runs["small"], tmp_path)
    add_evaluation(judged)
    table = as_table(compare([judged, runs["wide"]]))
    _, likelihood = cells(table, "small")
    assert likelihood["nats a frame"] == "6.500"
    assert (likelihood["q3"], likelihood["top-1 q3"]) == ("3.500", "12.5%")
    assert cells(table, "wide")[1]["q3"] == "-"
    (row,) = cells(table, "Fréchet distance, codec:other")
    assert (row["small"], row["true music"]) == ("20 (19 to 21)", "-")
    (alone,) = cells(table, "in loops")
    assert alone["small"] == "25.0%"
    assert "(2.75 to 3.25)" in table
    assert "Warning" not in table


def test_what_does_not_compare_is_said(runs, token_dir, tmp_path, codec_info):
    (tmp_path / "tokens").mkdir()
    foreign = type(codec_info)(**(codec_info.to_dict() | {"fingerprint": "another"}))
    for split in ("train", "validation"):
        write_manifest(tmp_path / "tokens", [2.0] * 6, split, foreign)
    other, shorter = tmp_path / "other", tmp_path / "shorter"
    train(tmp_path / "tokens", other, *FLAGS)
    train(token_dir, shorter, *FLAGS, "--prompt-ratio", 0.2, "--filter-max-duration", 1.8)
    judged = copied(runs["small"], tmp_path)
    add_evaluation(judged)
    add_evaluation(other, names=["a", "c"])
    warnings = compare([judged, other, shorter]).warnings
    name, mark = codec_info.name, codec_info.fingerprint
    for split in ("train", "validation"):
        assert (
            f"the {split} tokens were made by different codecs, so nats do not compare: "
            f"{name} ({mark}) in small, shorter; {name} (another) in other"
        ) in warnings
    whole = "\n".join(warnings)
    assert "trained on different cuts: 12 (" in whole
    assert "validated on different cuts" in whole
    assert "another --prompt-ratio, so validation losses do not compare: 0.4 in small" in whole
    assert "the evaluations are of different passages, so their figures of sound" in whole
    assert "--train-stage" not in whole
    assert f"Warning: {warnings[0]}." in as_table(compare([judged, other, shorter]))


def test_losses_of_other_models_do_not_compare(runs, tmp_path):
    """Where a setting says so; a model has several names."""
    folders = []
    for name, changes in {
        "a": {"model_name": "valle", "condition": "midi", "prefix_mode": 1},
        "b": {"model_name": "VALL-E", "condition": "midi", "prefix_mode": 0},
        "c": {"model_name": "valle", "condition": "text", "prefix_mode": 1},
        "d": {"model_name": "audio-lm", "condition": None, "prefix_mode": 1},
    }.items():
        (tmp_path / name).mkdir()
        folders.append(copied(runs["small"], tmp_path / name))
        (path,) = folders[-1].glob("run-*.json")
        record = json.loads(path.read_text())
        record["parameters"] |= changes
        path.write_text(json.dumps(record))
    a, *others = folders
    for other, flag in zip(others, ("prefix-mode", "condition", "model-name"), strict=True):
        (warning,) = compare([a, other]).warnings
        assert warning.startswith(f"validated with another --{flag}, so validation losses do not")


def test_passages_are_the_same_by_name_and_length(runs, tmp_path):
    """Their figures differ by the seed as well, and by the embeddings that were asked for."""
    first, second, shorter = (copied(runs["small"], tmp_path / name) for name in "abc")
    add_evaluation(first)
    add_evaluation(second, true_entropy=4.1)
    add_evaluation(shorter, max_duration=5.0)
    assert not compare([first, second]).warnings
    (warning,) = compare([first, shorter]).warnings
    assert "different passages" in warning


def test_likelihoods_of_other_frames_do_not_compare(runs, tmp_path):
    folders = [copied(runs["small"], tmp_path / name) for name in "abc"]
    for folder, num_frames in zip(folders, (1000, 1000, 900), strict=True):
        add_evaluation(folder)
        path = folder / "evaluation/evaluation.json"
        content = json.loads(path.read_text())
        content["likelihood"]["overall"]["num_frames"] = num_frames
        path.write_text(json.dumps(content))
    assert not compare(folders[:2]).warnings
    (warning,) = compare(folders[1:]).warnings
    assert "different held-out frames" in warning
    assert "900 frames in " in warning


def test_files_hold_the_same(runs, tmp_path):
    judged = copied(runs["small"], tmp_path)
    add_evaluation(judged)
    comparison = compare([judged, runs["wide"]])
    paths = write_comparison(comparison, tmp_path / "out")
    assert [path.name for path in paths] == [
        "comparison.json",
        "comparison.csv",
        "comparison.png",
    ]
    content = json.loads(paths[0].read_text())
    rows = list(csv.DictReader(paths[1].open(newline="")))
    for plain, row in zip(content["experiments"], rows, strict=True):
        assert {key: str(value or "") for key, value in plain.items()} == {
            key: value for key, value in row.items() if key in plain
        }
    assert rows[0]["nats_q3"] == "3.5"
    assert (rows[0]["entropy"], rows[0]["entropy_low"], rows[0]["entropy_high"]) == (
        "3.0",
        "2.75",
        "3.25",
    )
    assert content["data"]["wide"]["train"]["cuts"] == 12
    assert paths[2].read_bytes().startswith(b"\x89PNG")


def test_folders_of_one_name_keep_their_paths(runs, tmp_path):
    other = copied(runs["wide"], tmp_path)
    names = [each.name for each in compare([runs["wide"], other]).experiments]
    assert names == [str(runs["wide"]), str(other)]


def test_mistakes_are_explained(runs, tmp_path):
    with pytest.raises(ValueError, match="no experiment folder was given"):
        compare([])
    with pytest.raises(ValueError, match=r"there is no experiment folder .*nowhere"):
        compare([tmp_path / "nowhere"])
    with pytest.raises(ValueError, match=r"holds no run-\*.json, no best-valid-loss.pt"):
        compare([tmp_path])
    with pytest.raises(ValueError, match="is given twice"):
        compare([runs["wide"], runs["small"], runs["small"].parent / "wide/../small"])
    judged = copied(runs["small"], tmp_path)
    add_evaluation(judged)
    file = judged / "evaluation/evaluation.json"
    file.write_text(file.read_text().replace("3.5]", '"nan"]', 1))
    with pytest.raises(ValueError, match=r"has nats of \[1.0, 2.0, 'nan'\], expected numbers"):
        compare([judged])
    broken = copied(runs["wide"], tmp_path)
    (record,) = broken.glob("run-*.json")
    record.write_text("{")
    with pytest.raises(ValueError, match=r"run-.*json is damaged, expected JSON"):
        compare([broken])
    record.write_text("[]")
    with pytest.raises(ValueError, match="holds a list, expected a JSON object"):
        compare([broken])
