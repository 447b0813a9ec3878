"""Averages of weights equal those of the snapshots they stand for."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from valle.utils.averaging import (
    AveragingRule,
    average_checkpoints,
    average_checkpoints_with_averaged_model,
    make_averaged_weights,
    update_averaged_weights,
)
from valle.utils.checkpoint import save_checkpoint


class Tied(nn.Module):
    """Two names for one tensor, and a buffer of whole numbers."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def disturb(self, seed):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            self.head.weight.copy_(torch.randn(5, 3, generator=generator))
            self.steps.add_(10)


def averaged(rule, count):
    """The average of `count` snapshots, and the snapshots."""
    model = Tied()
    average, snapshots = make_averaged_weights(model), []
    for i in range(1, count + 1):
        model.disturb(i)
        update_averaged_weights(model, average, rule, rule.first_batch + i * rule.period)
        snapshots.append(model.head.weight.detach().double().clone())
    return average, torch.stack(snapshots)


def write_files(folder, count=6, **params):
    """Checkpoints as a trainer leaves them; returns the snapshots behind their averages."""
    params = {"average_period": 10, "ema_decay": 0.0, "first_batch": 0} | params
    rule, model, snapshots = AveragingRule.of(params), Tied(), []
    average = make_averaged_weights(model)
    for i in range(1, count + 1):
        model.disturb(i)
        snapshots.append(model.head.weight.detach().double().clone())
        step = rule.first_batch + i * rule.period
        update_averaged_weights(model, average, rule, step)
        checkpoint = {"model": model.state_dict(), "model_avg": average} | params
        torch.save(checkpoint | {"batch_idx_train": step + 3}, folder / f"checkpoint-{i}.pt")
    return torch.stack(snapshots)


def stretch(folder, start, end):
    files = (folder / f"checkpoint-{i}.pt" for i in (start, end))
    return average_checkpoints_with_averaged_model(*files)


def test_running_mean_is_the_mean_of_the_snapshots():
    average, snapshots = averaged(AveragingRule(10), 6)
    torch.testing.assert_close(average["head.weight"], snapshots.mean(0), rtol=1e-12, atol=1e-12)
    assert average["head.weight"].dtype == torch.float64
    assert average["head.weight"] is average["embedding.weight"]  # and was moved once an update
    assert average["steps"].dtype == torch.int64
    assert int(average["steps"]) == 60


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.9999])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_exponential_average_weighs_snapshots_by_age_and_forgets_the_start(decay, count):
    average, snapshots = averaged(AveragingRule(10, decay), count)
    shares = decay ** torch.arange(count - 1, -1, -1, dtype=torch.float64)
    expected = (shares[:, None, None] * snapshots).sum(0) / shares.sum()
    torch.testing.assert_close(average["head.weight"], expected, rtol=1e-11, atol=1e-11)
    assert int(average["steps"]) == 10 * count


def test_a_stage_after_another_averages_its_own_weights_alone():
    average, snapshots = averaged(AveragingRule(10, first_batch=1005), 4)
    torch.testing.assert_close(average["head.weight"], snapshots.mean(0), rtol=1e-12, atol=1e-12)


def test_the_average_is_a_copy_that_leaves_the_model_alone():
    model = Tied()
    before = model.head.weight.detach().clone()
    average = make_averaged_weights(nn.DataParallel(model))  # wrapped: bare names all the same
    assert list(average) == list(model.state_dict())
    assert not average["head.weight"].requires_grad
    average["head.weight"].add_(1)
    average["steps"].add_(1)
    assert torch.equal(model.head.weight, before)
    assert int(model.steps) == 0


@pytest.fixture
def lone_process():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available(), reason="torch was built without torch.distributed")
@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_sharded_weights_are_averaged_as_they_lie(lone_process, decay):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    rule, model = AveragingRule(5, decay), nn.Linear(4, 3)
    sharded = nn.Linear(4, 3)
    sharded.load_state_dict(model.state_dict())
    fully_shard(sharded, mesh=init_device_mesh("cpu", (1,)))
    averages = make_averaged_weights(model), make_averaged_weights(sharded)
    assert isinstance(averages[1]["weight"], DTensor)
    for step in (5, 10, 15):
        for net, average in zip((model, sharded), averages, strict=True):
            with torch.no_grad():
                net.weight.mul_(1 + step)
            update_averaged_weights(net, average, rule, step)
    for name in averages[0]:
        assert torch.equal(averages[1][name].full_tensor(), averages[0][name])
        assert averages[1][name].dtype == torch.float64


def test_rule_of_a_run_and_of_an_older_one():
    new = {"average_period": 10, "ema_decay": 0.5, "first_batch": 30}
    assert AveragingRule.of(new) == AveragingRule(10, 0.5, 30)
    # its average counted the 30 updates of the stage before, with the weights it began with
    assert AveragingRule.of({"average_period": 10, "first_batch": 30}) == AveragingRule(10)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"average_period": 0}, "--average-period above 0 only, got 0"),
        ({}, "--average-period above 0 only, got 0"),
        ({"average_period": 5, "ema_decay": 1.0}, "between 0 and 1, got 1.0"),
        ({"average_period": 5, "ema_decay": -0.1}, "between 0 and 1, got -0.1"),
    ],
)
def test_rules_that_cannot_be(params, message):
    with pytest.raises(ValueError, match=message):
        AveragingRule.of(params)


def test_mean_of_files(tmp_path):
    snapshots = write_files(tmp_path, count=3)
    mean = average_checkpoints([tmp_path / f"checkpoint-{i}.pt" for i in (1, 2, 3)])
    for name in ("head.weight", "embedding.weight"):
        assert torch.equal(mean[name], snapshots.mean(0).float())
    assert mean["head.weight"] is mean["embedding.weight"]
    assert int(mean["steps"]) == 20
    Tied().load_state_dict(mean)


def test_tensors_tied_in_one_file_alone_have_means_of_their_own(tmp_path):
    write_files(tmp_path, count=1)
    apart = {k: v.clone() for k, v in Tied().state_dict().items()}
    apart["head.weight"] += 100
    torch.save({"model": apart}, tmp_path / "apart.pt")
    mean = average_checkpoints([tmp_path / "checkpoint-1.pt", tmp_path / "apart.pt"])
    difference = mean["head.weight"] - mean["embedding.weight"]
    torch.testing.assert_close(difference, torch.full((5, 3), 50.0))


@pytest.mark.parametrize("first_batch", [0, 1005])
def test_mean_over_a_stretch_of_the_run(tmp_path, first_batch):
    snapshots = write_files(tmp_path, first_batch=first_batch)
    mean = stretch(tmp_path, 2, 6)
    torch.testing.assert_close(mean["head.weight"], snapshots[2:].mean(0).float())
    assert mean["head.weight"].dtype == torch.float32  # the weights' own, not the mean's
    assert int(mean["steps"]) == 60


def test_stretches_of_what_is_no_running_mean_are_refused(tmp_path):
    write_files(tmp_path, count=2, ema_decay=0.9)
    with pytest.raises(ValueError, match=r"exponential average \(--ema-decay 0.9\), of which no"):
        stretch(tmp_path, 1, 2)


def test_stretches_of_two_runs_are_refused(tmp_path):
    (tmp_path / "a").mkdir()
    write_files(tmp_path / "a", first_batch=30)
    write_files(tmp_path, count=2)
    start, end = tmp_path / "checkpoint-1.pt", tmp_path / "a" / "checkpoint-6.pt"
    with pytest.raises(ValueError, match="of two runs, which began at updates 0 and 30"):
        average_checkpoints_with_averaged_model(start, end)


def test_what_cannot_be_averaged_is_refused(tmp_path):
    write_files(tmp_path, count=2)
    first, second = tmp_path / "checkpoint-1.pt", tmp_path / "checkpoint-2.pt"
    with pytest.raises(ValueError, match="is not after"):
        average_checkpoints_with_averaged_model(second, first)
    save_checkpoint(tmp_path / "plain.pt", Tied(), {})
    with pytest.raises(ValueError, match="average_period = None"):
        average_checkpoints_with_averaged_model(tmp_path / "plain.pt", second)
    save_checkpoint(tmp_path / "uncounted.pt", Tied(), {"average_period": 10})
    with pytest.raises(ValueError, match="batch_idx_train = None, expected its number"):
        average_checkpoints_with_averaged_model(tmp_path / "uncounted.pt", second)
    counters = {"average_period": 10, "batch_idx_train": 90}
    save_checkpoint(tmp_path / "no_mean.pt", Tied(), counters)
    with pytest.raises(ValueError, match="holds no model_avg"):
        average_checkpoints_with_averaged_model(first, tmp_path / "no_mean.pt")
    with pytest.raises(ValueError, match="no checkpoints to average"):
        average_checkpoints([])
    save_checkpoint(tmp_path / "other.pt", nn.Linear(2, 2), {})
    with pytest.raises(ValueError, match="hold different weights"):
        average_checkpoints([first, tmp_path / "other.pt"])


def test_updates_that_cannot_be_are_refused():
    average = make_averaged_weights(Tied())
    with pytest.raises(ValueError, match="every 10 updates from 20 on, so not after 23"):
        update_averaged_weights(Tied(), average, AveragingRule(10, first_batch=20), 23)
    with pytest.raises(ValueError, match="the average and the model hold different weights"):
        update_averaged_weights(nn.Linear(2, 2), average, AveragingRule(10), 10)
