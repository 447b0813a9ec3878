"""What a training run survives: its own end at any moment, a full disk, numbers gone wrong."""

import os
import random
import re
import resource
import signal

import pytest
import torch
from trainer_runs import (
    differences,
    log_of,
    losses,
    same,
    start_trainer,
    train,
    wait_for,
    weights,
)

from valle.models import AudioLM
from valle.utils.checkpoint import read_checkpoint

QUIET = ("--tensorboard", "false")


# Going on


@pytest.mark.parametrize(
    "flags",
    [
        ("--num-workers", 2, "--average-period", 2),
        ("--accumulate-grad-steps", 2, "--optimizer-name", "AdamW", "--base-lr", 0.01,
         "--average-period", 1, "--ema-decay", 0.9),
        ("--dtype", "float16", "--accumulate-grad-steps", 3),
        ("--dtype", "bfloat16", "--bucketing-sampler", "false", "--valid-interval", 3),
        ("--train-stage", 2, "--num-workers", 1, "--max-duration", 3),
    ],
)  # fmt: skip
def test_a_run_taken_up_is_the_unbroken_run(token_dir, tmp_path, flags):
    """From every checkpoint of it: the same losses, and in the end the same file, bit for bit."""
    torch.set_num_threads(1)
    flags = (*flags, *QUIET, "--num-epochs", 2, "--save-every-n", 1)
    whole = losses(train(token_dir, tmp_path / "whole", *flags))
    checkpoints = sorted((tmp_path / "whole").glob("checkpoint-*.pt"))
    assert len(checkpoints) == len(whole) > 2
    for path in checkpoints[:: len(checkpoints) // 3]:
        exp_dir = tmp_path / path.stem
        exp_dir.mkdir()
        (exp_dir / path.name).write_bytes(path.read_bytes())
        log = train(token_dir, exp_dir, *flags, "--resume", "auto")
        step = int(path.stem.split("-")[1])
        assert f"{path.name}, step {step}" in log
        assert losses(log) == whole[step:]
        assert differences(tmp_path / "whole/epoch-2.pt", exp_dir / "epoch-2.pt") == []


def test_resuming_takes_the_newest_whole_file(token_dir, tmp_path):
    flags = (*QUIET, "--save-every-n", 1, "--resume", "auto")
    log = train(token_dir, tmp_path, *flags, "--num-epochs", 1)
    assert f"no checkpoint of this stage in {tmp_path} yet" in log
    log = train(token_dir, tmp_path, *flags, "--num-epochs", 1)
    assert "epoch-1.pt" in log
    assert losses(log) == []
    newest, *_, before = sorted(tmp_path.glob("checkpoint-*.pt"), reverse=True)[:2]
    newest.write_bytes(newest.read_bytes()[:-100])
    (tmp_path / "epoch-1.pt").unlink()
    log = train(token_dir, tmp_path, *flags, "--num-epochs", 2)
    assert f"leaves out a damaged file: {newest}" in log
    assert f"goes on from {before}" in log
    train(token_dir, tmp_path / "whole", *QUIET, "--num-epochs", 2)
    assert same(weights(tmp_path / "epoch-2.pt"), weights(tmp_path / "whole/epoch-2.pt"))


# Ends


def kill_inside_a_checkpoint() -> None:
    """The next file but one is begun, and then this process is killed."""
    save, calls = torch.save, []

    def save_a_half(content, file):
        calls.append(file)
        if len(calls) < 2:
            return save(content, file)
        file.write(b"half of a file")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    torch.save = save_a_half


def test_killed_at_any_moment_it_goes_on(token_dir, tmp_path):
    """No file is ever half there, no more than --save-every-n steps are lost, and none is changed.

    Some runs are killed inside the writing of a checkpoint, the others whenever it comes.
    """
    flags = (*QUIET, "--num-epochs", 6, "--save-every-n", 2, "--resume", "auto", "--num-workers", 1)
    draw, exp_dir, reached = random.Random(1), tmp_path / "killed", 0
    for attempt in range(12):
        inside = attempt % 4 == 1
        run = start_trainer(
            token_dir, exp_dir, *flags, before=kill_inside_a_checkpoint if inside else None
        )
        run.join(None if inside else 0.5 + 1.5 * draw.random())
        run.kill()
        run.join()
        for path in exp_dir.glob("[!.]*.pt"):
            read_checkpoint(path)
        steps = re.findall(r"Going on from .*, step (\d+)", log_of(exp_dir))
        if steps:
            assert int(steps[-1]) >= reached - 2
        reached = max(reached, len(set(losses(log_of(exp_dir)))))
    last = start_trainer(token_dir, exp_dir, *flags)
    last.join(120)
    assert last.exitcode == 0
    assert steps, "it was killed too early each time"
    assert not list(exp_dir.glob(".part-*"))
    train(token_dir, tmp_path / "whole", *QUIET, "--num-epochs", 6)
    assert same(weights(exp_dir / "epoch-6.pt"), weights(tmp_path / "whole/epoch-6.pt"))


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_signal_saves_and_ends(token_dir, tmp_path, name, world_size):
    flags = (*QUIET, "--num-epochs", 500, "--num-workers", 1, "--world-size", world_size,
             "--master-port", 12390 + world_size)  # fmt: skip
    run = start_trainer(token_dir, tmp_path, *flags)
    wait_for(lambda: "batch 2," in log_of(tmp_path) if (tmp_path / "log").exists() else False)
    os.kill(run.pid, signal.Signals[name])
    run.join(60)
    assert run.exitcode == 0
    (path,) = tmp_path.glob("checkpoint-*.pt")
    log = log_of(tmp_path)
    assert f"Stopped after step {path.stem.split('-')[1]}, as {name} asked" in log
    assert read_checkpoint(path)["batch_idx_train"] == len(losses(log)) // world_size
    assert "Done!" not in log


# A full disk


def limit_files() -> None:
    """Checkpoints find no room from here on; the log does."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))


@pytest.mark.parametrize("answer", ["stop", "continue"])
def test_a_full_disk_costs_no_checkpoint(token_dir, tmp_path, answer):
    flags = (*QUIET, "--save-every-n", 1, "--on-save-error", answer, "--resume", "auto")
    train(token_dir, tmp_path, *flags, "--num-epochs", 1)
    before = {path: path.read_bytes() for path in tmp_path.glob("*.pt")}
    run = start_trainer(token_dir, tmp_path, *flags, "--num-epochs", 2, before=limit_files)
    run.join(60)
    assert run.exitcode == (1 if answer == "stop" else 0)
    assert {path: path.read_bytes() for path in tmp_path.glob("*.pt")} == before
    assert not list(tmp_path.glob(".part-*"))
    if answer == "continue":
        log = log_of(tmp_path)
        assert "could not write" in log
        assert "Training goes on" in log
        assert "Done!" in log.split("Going on from")[1]


# Numbers gone wrong


def spoil(monkeypatch, what: str, steps: set[int]) -> None:
    """Make the loss, or the gradient, infinite in these forward passes of training."""
    forward, count = AudioLM.forward, [0]

    def spoiled(self, *args, **kwargs):
        output = forward(self, *args, **kwargs)
        count[0] += self.training
        if not (self.training and count[0] in steps):
            return output
        if what == "loss":  # its gradient stays as it was
            return output._replace(loss=output.loss + torch.inf)
        return output._replace(loss=output.loss + (0 * self.ar.head.weight.sum()).sqrt())

    monkeypatch.setattr(AudioLM, "forward", spoiled)


@pytest.mark.parametrize("optimizer", ["ScaledAdam", "AdamW"])
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing(
    token_dir, tmp_path, monkeypatch, what, optimizer
):
    spoil(monkeypatch, what, {3})
    flags = (*QUIET, "--save-every-n", 1, "--num-epochs", 2, "--optimizer-name", optimizer)
    log = train(token_dir, tmp_path, *flags)
    assert re.search(r"1 skipped so far, 1 in a row\. Its cuts: \S+", log)
    steps = [read_checkpoint(tmp_path / f"checkpoint-{n}.pt") for n in (2, 3, 4)]
    assert same(steps[0]["model"], steps[1]["model"])
    assert not same(steps[1]["model"], steps[2]["model"])
    for key in ("exp_avg", "moment"):
        for i, state in steps[0]["optimizer"]["state"].items():
            if key in state:
                assert torch.equal(state[key], steps[1]["optimizer"]["state"][i][key])
    last = read_checkpoint(tmp_path / "epoch-2.pt")
    assert last["num_skipped"] == 1
    assert last["skipped_in_row"] == 0
    assert all(value.isfinite().all() for value in last["model"].values())


def test_too_many_of_them_end_the_run(token_dir, tmp_path, monkeypatch):
    spoil(monkeypatch, "gradient", set(range(3, 100)))
    flags = (*QUIET, "--save-every-n", 1, "--num-epochs", 9, "--max-skipped-steps", 3)
    log = train(token_dir, tmp_path, *flags, fails=True)
    assert "not finite in 3 steps in a row (--max-skipped-steps)" in log
    assert len(list(tmp_path.glob("checkpoint-*.pt"))) == 4
    (kept,) = tmp_path.glob("batch-*.pt")
    (batch,) = torch.load(kept)
    assert {"utt_id", "x", "x_lens", "y", "y_lens"} <= batch.keys()
    assert re.search(rf"its batch is in {kept}, cuts: \S+", log)


def test_float16_that_only_overflows_is_told_so(token_dir, tmp_path, monkeypatch):
    spoil(monkeypatch, "gradient", set(range(1, 1000)))
    flags = (*QUIET, "--dtype", "float16", "--num-epochs", 99)
    log = train(token_dir, tmp_path, *flags, fails=True)
    assert "the gradient scale of float16 fell to" in log
    assert "take --dtype bfloat16" in log


# Too little memory


def allow_rows(monkeypatch, most: int) -> list[int]:
    """A device that has no memory for more rows at once; notes how many rows came."""
    forward, seen = AudioLM.forward, []

    def limited(self, x, *args, **kwargs):
        seen.append(len(x))
        if self.training and len(x) > most:
            raise torch.OutOfMemoryError("no room for so many rows")
        return forward(self, x, *args, **kwargs)

    monkeypatch.setattr(AudioLM, "forward", limited)
    return seen


def test_a_batch_too_large_is_split(token_dir, tmp_path, monkeypatch):
    """Into halves of halves if need be; the step is that of the whole batch."""
    flags = (*QUIET, "--train-stage", 1, "--dropout", 0, "--num-epochs", 2, "--on-oom", "split")
    train(token_dir, tmp_path / "roomy", *flags)
    rows = allow_rows(monkeypatch, 1)
    log = train(token_dir, tmp_path / "tight", *flags)
    assert max(rows) > 2
    assert "The batch is split in halves" in log
    roomy, tight = (weights(tmp_path / name / "epoch-2.pt") for name in ("roomy", "tight"))
    for name, value in roomy.items():
        torch.testing.assert_close(tight[name], value, atol=1e-4, rtol=1e-3)


def test_a_batch_too_large_is_explained(token_dir, tmp_path, monkeypatch):
    allow_rows(monkeypatch, 0)
    for flags in ((), ("--on-oom", "split")):  # a single row cannot be split
        log = train(token_dir, tmp_path, *QUIET, *flags, fails=True)
        assert re.search(r"out of memory in step 1 with \d cuts?, \d+ frames with padding", log)
        assert "lower --max-duration (now 6) or --decoder-dim (now 16)" in log
        assert ("split in halves" in log) == bool(flags)
