"""Several processes that train one model, over gloo on the CPU."""

import json
import re
from pathlib import Path

import pytest
from tiny_cuts import CODEC, write_manifest
from trainer_runs import (
    differences,
    log_of,
    losses,
    same,
    start_trainer,
    train,
    train_on_ranks,
    weights,
)

from valle.data import CodecInfo
from valle.models import AudioLM
from valle.utils.checkpoint import read_checkpoint

FAULTY = Path(__file__).parents[1] / "faulty_rank.py"
# The sizes of egs/minipiano. Two quantizers: the NAR half has one stage, so that nothing is drawn;
# nothing is shuffled: ranks 0 and 1 have what one process has as its first and second batch.
COMMON = ("--decoder-dim", 192, "--nhead", 4, "--num-decoder-layers", 2, "--dropout", 0,
          "--bucketing-sampler", "false", "--shuffle", "false", "--sample-epochs", 0,
          "--max-duration", 4, "--tensorboard", "false", "--warmup-steps", 1)  # fmt: skip


@pytest.fixture(scope="module")
def two_quantizers(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokenized")
    codec = CodecInfo(CODEC.name, CODEC.sampling_rate, CODEC.frame_rate, 2, 16, CODEC.fingerprint)
    seconds = [1.0, 1.5, 2.0, 1.2, 1.8, 1.6, 1.1, 1.3]
    for split in ("train", "validation"):
        write_manifest(folder, seconds, split, codec)
    return folder


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_run_that_fails_ends_although_its_loader_works(token_dir, tmp_path, world_size):
    """The loader's processes ignore the signal that is meant to end them."""
    flags = ("--num-workers", 2, "--base-lr", 1e30, "--num-epochs", 50, "--tensorboard", "false",
             "--max-skipped-steps", 2)  # fmt: skip
    ranks = ("--world-size", world_size, "--master-port", 12394, "--dist-timeout", 20)
    run = start_trainer(token_dir, tmp_path, *flags, *ranks)
    run.join(60)
    assert run.exitcode not in (0, None)
    assert "steps in a row" in log_of(tmp_path) or "Skipped a step" in log_of(tmp_path)


@pytest.fixture(scope="module", params=["ScaledAdam", "AdamW"])
def alone(two_quantizers, tmp_path_factory, request) -> tuple[Path, tuple]:
    """Two epochs in one process, in steps of two batches, and the flags of it."""
    flags = (*COMMON, "--optimizer-name", request.param, "--average-period", 1,
             "--scheduler-name", "Eden")  # fmt: skip
    exp_dir = tmp_path_factory.mktemp("alone")
    train(two_quantizers, exp_dir, *flags, "--accumulate-grad-steps", 2, "--num-epochs", 2)
    return exp_dir, flags


def assert_alike(a: Path, b: Path) -> None:
    """The same training, up to the order of sums."""
    one, two = read_checkpoint(a), read_checkpoint(b)
    assert one["batch_idx_train"] == two["batch_idx_train"] > 1
    for name in ("train_loss", "best_valid_loss"):
        assert two[name] == pytest.approx(one[name], rel=1e-4)
    for part in ("model", "model_avg"):
        assert_near(one[part], two[part])


def assert_near(a: dict, b: dict) -> None:
    """Tensor by tensor; an Adam turns single tiny gradients into whole steps."""
    for name, value in a.items():
        assert (b[name] - value).norm() <= 2e-3 * value.norm() + 1e-6, name


@pytest.mark.parametrize("fsdp", ["false", "true"])
def test_two_ranks_train_as_one_process(alone, two_quantizers, tmp_path, fsdp):
    exp_dir, flags = alone
    # with FSDP samples are left out; without, looking for this codec would take its time
    samples = ("--tensorboard", "true", "--sample-epochs", 1 if fsdp == "true" else 0)
    more = ("--fsdp", fsdp, "--num-epochs", 2, *samples)
    train_on_ranks(two_quantizers, tmp_path, 2, *flags, *more)
    assert_alike(exp_dir / "epoch-2.pt", tmp_path / "epoch-2.pt")
    AudioLM.from_checkpoint(tmp_path / "best-valid-loss.pt")
    (record,) = tmp_path.glob("run-*.json")
    assert json.loads(record.read_text())["num_ranks"] == 2
    assert len(list((tmp_path / "log").iterdir())) == 2


@pytest.mark.parametrize("alone", ["ScaledAdam"], indirect=True)
def test_any_number_of_ranks_goes_on_with_a_sharded_run(alone, two_quantizers, tmp_path):
    """Two ranks with FSDP save, one process loads, three ranks with FSDP load."""
    exp_dir, flags = alone
    train_on_ranks(two_quantizers, tmp_path, 2, *flags, "--fsdp", "true", "--num-epochs", 1)
    first = (tmp_path / "epoch-1.pt").read_bytes()
    flags = (*flags, "--resume", "auto")
    log = train(two_quantizers, tmp_path, *flags, "--accumulate-grad-steps", 2, "--num-epochs", 2)
    assert "epoch-1.pt, step" in log
    assert_alike(exp_dir / "epoch-2.pt", tmp_path / "epoch-2.pt")
    (tmp_path / "three").mkdir()
    (tmp_path / "three/epoch-1.pt").write_bytes(first)
    flags = (*flags, "--fsdp", "true", "--num-epochs", 2)
    log = train_on_ranks(two_quantizers, tmp_path / "three", 3, *flags)
    assert "epoch-1.pt, step" in log


@pytest.mark.parametrize("fsdp", ["false", "true"])
def test_ranks_taken_up_are_the_unbroken_ranks(token_dir, tmp_path, fsdp):
    """Each with its own random numbers: dropout and NAR stages."""
    flags = ("--tensorboard", "false", "--num-epochs", 2, "--save-every-n", 1, "--fsdp", fsdp,
             "--num-workers", 1)  # fmt: skip
    train_on_ranks(token_dir, tmp_path / "whole", 2, *flags)
    (tmp_path / "cut").mkdir()
    for name in ("checkpoint-1.pt",):
        (tmp_path / "cut" / name).write_bytes((tmp_path / "whole" / name).read_bytes())
    train_on_ranks(token_dir, tmp_path / "cut", 2, *flags, "--resume", "auto")
    assert losses(log_of(tmp_path / "cut")) == [
        line for line in losses(log_of(tmp_path / "whole")) if "Epoch 1, batch 1," not in line
    ]
    assert differences(tmp_path / "whole/epoch-2.pt", tmp_path / "cut/epoch-2.pt") == []


# Something goes wrong on one of them


def test_what_is_not_finite_on_one_rank_is_skipped_on_all(two_quantizers, tmp_path):
    flags = (*COMMON, "--save-every-n", 1, "--num-epochs", 2)
    log = train_on_ranks(two_quantizers, tmp_path, 2, *flags, script=(FAULTY, "infinite"))
    assert re.search(r"\(1/2\) Skipped a step: the loss of this rank was not finite; 1 sk", log)
    assert re.search(r"\(0/2\) Skipped a step: .* of another rank, was not finite; 1 sk", log)
    assert same(weights(tmp_path / "checkpoint-2.pt"), weights(tmp_path / "checkpoint-3.pt"))
    assert not same(weights(tmp_path / "checkpoint-3.pt"), weights(tmp_path / "checkpoint-4.pt"))


def test_one_rank_may_split_its_batch(two_quantizers, tmp_path):
    """Ranks then exchange gradients by hand, where else DistributedDataParallel does it."""
    flags = (*COMMON, "--train-stage", 0, "--num-epochs", 2)
    train_on_ranks(two_quantizers, tmp_path / "roomy", 2, *flags)
    log = train_on_ranks(
        two_quantizers,
        tmp_path / "tight",
        2,
        *(*flags, "--on-oom", "split"),
        script=(FAULTY, "no-memory"),
    )
    assert re.search(r"\(1/2\) out of memory in step 1 .* The batch is split in halves", log)
    assert_near(*(weights(tmp_path / name / "epoch-2.pt") for name in ("roomy", "tight")))


def test_a_rank_that_is_stuck_is_named(two_quantizers, tmp_path):
    flags = (*COMMON, "--num-epochs", 2, "--dist-timeout", 8)
    script = (FAULTY, "stuck")
    log = train_on_ranks(two_quantizers, tmp_path, 2, *flags, script=script, fails=True)
    assert re.search(r"rank 1 .* step 3", log)
