"""Means of weights equal the means of the snapshots they stand for."""

import pytest
import torch
from torch import nn

from valle.utils.averaging import (
    average_checkpoints,
    average_checkpoints_with_averaged_model,
    make_averaged_model,
    update_averaged_model,
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


def snapshots_and_files(folder, count=6, period=10):
    model = Tied()
    average, snapshots = make_averaged_model(model), []
    for i in range(1, count + 1):
        model.disturb(i)
        update_averaged_model(model, average, period, i * period)
        snapshots.append(model.head.weight.detach().double().clone())
        params = {"average_period": period, "batch_idx_train": i * period + 3}
        save_checkpoint(folder / f"checkpoint-{i}.pt", model, params, model_avg=average)
    return snapshots, average


def test_running_mean_is_the_mean_of_the_snapshots_and_stays_float64(tmp_path):
    snapshots, average = snapshots_and_files(tmp_path)
    torch.testing.assert_close(
        average.head.weight, torch.stack(snapshots).mean(0), rtol=1e-12, atol=1e-12
    )
    assert average.head.weight is average.embedding.weight
    assert int(average.steps) == 60
    assert not average.head.weight.requires_grad


def test_mean_of_files(tmp_path):
    snapshots, _ = snapshots_and_files(tmp_path, count=3)
    mean = average_checkpoints([tmp_path / f"checkpoint-{i}.pt" for i in (1, 2, 3)])
    for name in ("head.weight", "embedding.weight"):
        assert torch.equal(mean[name], torch.stack(snapshots).mean(0).float())
    assert int(mean["steps"]) == 20
    Tied().load_state_dict(mean)


def test_mean_over_a_stretch_of_the_run(tmp_path):
    snapshots, _ = snapshots_and_files(tmp_path)
    mean = average_checkpoints_with_averaged_model(
        tmp_path / "checkpoint-2.pt", tmp_path / "checkpoint-6.pt"
    )
    expected = torch.stack(snapshots[2:]).mean(0).float()
    torch.testing.assert_close(mean["head.weight"], expected, rtol=1e-5, atol=1e-6)
    assert int(mean["steps"]) == 60


def test_what_cannot_be_averaged_is_refused(tmp_path):
    snapshots_and_files(tmp_path, count=2)
    first, second = tmp_path / "checkpoint-1.pt", tmp_path / "checkpoint-2.pt"
    with pytest.raises(ValueError, match="is not after"):
        average_checkpoints_with_averaged_model(second, first)
    save_checkpoint(tmp_path / "plain.pt", Tied(), {})
    with pytest.raises(ValueError, match="average_period = None"):
        average_checkpoints_with_averaged_model(tmp_path / "plain.pt", second)
    counters = {"average_period": 10, "batch_idx_train": 90}
    save_checkpoint(tmp_path / "no_mean.pt", Tied(), counters)
    with pytest.raises(ValueError, match="holds no model_avg"):
        average_checkpoints_with_averaged_model(first, tmp_path / "no_mean.pt")
    with pytest.raises(ValueError, match="no checkpoints to average"):
        average_checkpoints([])
    save_checkpoint(tmp_path / "other.pt", nn.Linear(2, 2), {})
    with pytest.raises(ValueError, match="hold different weights"):
        average_checkpoints([first, tmp_path / "other.pt"])
    with pytest.raises(ValueError, match="so not after 3"):
        update_averaged_model(Tied(), Tied(), 10, 3)
