"""Averages of a run's files: the right files, their mean, a checkpoint that loads."""

import dataclasses
from pathlib import Path

import average_checkpoints
import pytest
import torch
from conftest import make_model

from valle.models import AudioLM
from valle.utils.averaging import AveragingRule, make_averaged_weights, update_averaged_weights
from valle.utils.checkpoint import read_checkpoint, save_checkpoint

NAME = "nar.decoder.layers.0.feed_forward.0.weight"


def average(*flags: object) -> None:
    average_checkpoints.main([str(flag) for flag in flags])


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path)["model"]


def write_run(folder: Path, codec: dict | None, count: int = 4, **changes: object) -> Path:
    """A run of 10 updates an epoch, weights moving all the while, with a running mean.

    epoch-N.pt has a twin checkpoint-(10 N).pt.
    """
    model = make_model()
    params = {"average_period": 5, "ema_decay": 0.0, "first_batch": 0, "train_stage": 0}
    params |= {"config": dataclasses.asdict(model.config), "codec": codec}
    params |= {"filter_max_duration": 15.0} | changes
    params["ranks"] = [{"rng": {"torch": torch.get_rng_state()}}]
    mean = make_averaged_weights(model)
    for step in range(1, 10 * count + 1):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        if step % 5 == 0:
            update_averaged_weights(model, mean, AveragingRule(5), step)
        if step % 10 == 0:
            saved = {"model": model.state_dict(), "model_avg": mean, "batch_idx_train": step}
            for name in (f"epoch-{step // 10}.pt", f"checkpoint-{step}.pt"):
                torch.save(saved | params | {"optimizer": {"state": 1}}, folder / name)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory, codec_info) -> Path:
    return write_run(tmp_path_factory.mktemp("run"), codec_info.to_dict())


@pytest.mark.parametrize(
    ("flags", "files"),
    [
        (("--epoch", 4, "--avg", 3), ("epoch-2.pt", "epoch-3.pt", "epoch-4.pt")),
        (("--epoch", 3, "--avg", 3), ("epoch-1.pt", "epoch-2.pt", "epoch-3.pt")),
        (("--iter", 30, "--avg", 2), ("checkpoint-20.pt", "checkpoint-30.pt")),
        (("--iter", 20, "--avg", 1), ("checkpoint-20.pt",)),
    ],
)
def test_mean_of_the_right_files(run, tmp_path, flags, files):
    average("--exp-dir", run, *flags, "--output-file", tmp_path / "mean.pt")
    theirs = [weights_of(run / file) for file in files]
    for name, value in weights_of(tmp_path / "mean.pt").items():
        expected = torch.stack([weights[name].double() for weights in theirs]).mean(0)
        torch.testing.assert_close(value, expected.float())
        assert value.dtype == torch.float32
    assert read_checkpoint(tmp_path / "mean.pt")["averaged_from"] == list(files)


@pytest.mark.parametrize("last", [("--epoch", 4), ("--iter", 40)])
def test_stretch_of_the_running_mean(run, tmp_path, last):
    """Equals the mean of the 4 snapshots in the last 20 updates, known from the means at 20, 40."""
    flags = ("--exp-dir", run, *last, "--avg", 2, "--use-averaged-model", "true")
    average(*flags, "--output-file", tmp_path / "mean.pt")
    old, new = (torch.load(run / f"epoch-{i}.pt")["model_avg"] for i in (2, 4))
    for name, value in weights_of(tmp_path / "mean.pt").items():
        torch.testing.assert_close(value, (2 * new[name] - old[name]).float())
    checkpoint = read_checkpoint(tmp_path / "mean.pt")
    assert checkpoint["use_averaged_model"] is True
    prefix = "epoch-{}.pt" if last[0] == "--epoch" else "checkpoint-{}0.pt"
    assert checkpoint["averaged_from"] == [prefix.format(2), prefix.format(4)]


def test_file_is_a_checkpoint_that_builds_the_model(run, tmp_path, codec_info):
    path = tmp_path / "mean.pt"
    average("--exp-dir", run, "--epoch", 4, "--avg", 2, "--output-file", path)
    model = AudioLM.from_checkpoint(path)
    assert model.config == make_model().config
    rebuilt = make_model()
    rebuilt.load_state_dict(torch.load(path)["model"])
    assert torch.equal(model.state_dict()[NAME], rebuilt.state_dict()[NAME])
    checkpoint = read_checkpoint(path)
    assert checkpoint["codec"] == codec_info.to_dict()
    assert checkpoint["filter_max_duration"] == 15.0
    assert checkpoint["batch_idx_train"] == 40
    assert not {"ranks", "model_avg"} & checkpoint.keys()
    assert not checkpoint["optimizer"]


def test_default_name_says_what_it_is_and_stays_clear_of_the_trainers(tmp_path):
    write_run(tmp_path, None, count=2)
    before = set(tmp_path.iterdir())
    average("--exp-dir", tmp_path, "--epoch", 2, "--avg", 2)
    average("--exp-dir", tmp_path, "--iter", 20, "--avg", 1, "--use-averaged-model", "yes")
    assert {path.name for path in set(tmp_path.iterdir()) - before} == {
        "averaged-epoch-2-avg-2.pt", "averaged-iter-20-avg-1-use-averaged-model.pt",
    }  # fmt: skip
    average("--exp-dir", tmp_path, "--iter", 20, "--avg", 2)  # which does not count the averages


def test_files_by_name(run, tmp_path):
    files = (run / "epoch-1.pt", run / "epoch-4.pt")
    average("--checkpoints", *files, "--output-file", tmp_path / "mean.pt")
    both = [weights_of(file)[NAME] for file in files]
    torch.testing.assert_close(weights_of(tmp_path / "mean.pt")[NAME], (both[0] + both[1]) / 2)


def test_mistakes_are_explained(run, tmp_path, codec_info, capsys):
    info = codec_info.to_dict()
    for name, changes in (
        ("stage", {"train_stage": 2}),
        ("config", {"config": dataclasses.asdict(make_model(nhead=2).config)}),
        ("codec", {"codec": info | {"fingerprint": "other"}}),
        ("ema", {"ema_decay": 0.9}),
    ):
        (tmp_path / name).mkdir()
        write_run(tmp_path / name, **({"codec": info, "count": 2} | changes))
    save_checkpoint(tmp_path / "bare.pt", make_model(), {})
    mine, out = run / "epoch-1.pt", ("--output-file", tmp_path / "out.pt")
    means = ("--use-averaged-model", "true")
    for flags, message in (
        ((), "give one of --epoch N, --iter N and --checkpoints FILE..., got none of them"),
        (("--epoch", 1, "--iter", 10), "got --epoch, --iter"),
        (("--epoch", 4), "--avg must be 1 or more, got None"),
        (("--epoch", 0, "--avg", 1), "--epoch must be 1 or more, got 0"),
        (("--iter", 10, "--avg", -1), "--avg must be 1 or more, got -1"),
        (("--epoch", 4, "--avg", 5), "reaches back before epoch 1 from --epoch 4; give --avg 4 or"),
        (("--epoch", 4, "--avg", 4, *means), "give --avg 3 or less; the average since the run"),
        (("--epoch", 1, "--avg", 1, *means), "from --epoch 1; the average since the run began"),
        (("--epoch", 6, "--avg", 3), "2 of 3 checkpoints are not there: "),
        (("--epoch", 6, "--avg", 3), f"{run / 'epoch-5.pt'}, {run / 'epoch-6.pt'}"),
        (("--iter", 35, "--avg", 1), "--iter can be: 40, 30, 20, 10"),
        (("--iter", 20, "--avg", 3), "needs 3 files up to checkpoint-20.pt, 2 are there: check"),
        (("--iter", 20, "--avg", 3), "checkpoint-10.pt, checkpoint-20.pt; give --avg 2 or less"),
        (("--iter", 20, "--avg", 2, *means), "give --avg 1 or less; the average since"),
        (("--checkpoints", mine), "--checkpoints needs --output-file"),
        (("--checkpoints", mine, "--avg", 1, *out), "leave --avg out"),
        (("--checkpoints", mine, *means, *out), "takes two files"),
        (("--checkpoints", mine, tmp_path / "none.pt", *out), "1 of 2 checkpoints are not there"),
        (("--checkpoints", mine, "--output-file", mine), "is one of the files to average"),
        (("--checkpoints", mine, tmp_path / "bare.pt", *out), "holds no model config"),
        (("--checkpoints", mine, tmp_path / "stage/epoch-1.pt", *out), "train_stage is 0 in the"),
        (("--checkpoints", mine, tmp_path / "config/epoch-1.pt", *out), "config is {'d_model': 32"),
        (("--checkpoints", mine, tmp_path / "codec/epoch-1.pt", *out), "differ in fingerprint"),
        (("--exp-dir", tmp_path / "ema", "--epoch", 2, "--avg", 1, *means), "(--ema-decay 0.9)"),
    ):
        with pytest.raises(SystemExit) as stop:
            average("--exp-dir", run, *flags)
        assert stop.value.code == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out.pt").exists()
    assert mine.is_file()
