"""Means over frames, however the frames were dealt out."""

import math

import pytest
import torch

from valle.utils.metrics import MetricsTracker


def batch(loss, frames, **more):
    metrics = {
        "loss": (torch.tensor(loss * frames), torch.tensor(frames)),
        "ArTop10Accuracy": (torch.tensor(0.5 * frames), torch.tensor(frames)),
        "loss_ar_q1": (torch.tensor(loss * frames), torch.tensor(frames)),
        "frames": frames,
    }
    return MetricsTracker(metrics | more)


def test_mean_is_over_frames_not_over_batches():
    total = MetricsTracker()
    total += batch(4.0, 30)
    total += batch(2.0, 10)
    assert total["loss"] == pytest.approx(3.5)
    assert total["frames"] == 40
    assert (batch(4.0, 30) + batch(2.0, 10)).means() == total.means()


def test_decay_forgets_slowly():
    total = MetricsTracker()
    for loss in [5.0] * 400 + [1.0] * 400:
        total = total * (1 - 1 / 200) + batch(loss, 20)
    weight = (1 - 1 / 200) ** 400
    assert total["loss"] == pytest.approx(1 + 4 * weight / (1 + weight), rel=1e-6)
    assert total["frames"] == pytest.approx(20 * 200 * (1 - weight**2))


def test_names_may_differ_from_batch_to_batch():
    total = batch(4.0, 30) + batch(2.0, 10, NarTop10Accuracy=(3.0, 10))
    assert total["NarTop10Accuracy"] == pytest.approx(0.3)
    assert total["loss"] == pytest.approx(3.5)


def test_log_line_is_icefalls():
    metrics = batch(2.5, 100) + MetricsTracker({"NarTop10Accuracy": (torch.tensor(1.0), 3)})
    expected = "loss=2.5, ArTop10Accuracy=0.5, NarTop10Accuracy=0.3333, over 100.00 frames. "
    assert str(metrics) == expected
    assert str(MetricsTracker()) == "over 0.00 frames. "


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_measurement_that_is_not_finite_is_left_out_and_counted(bad):
    total = batch(2.0, 10) + batch(bad, 30, other=(torch.tensor(3.0), torch.tensor(1)))
    assert total["loss"] == 2.0
    assert total["other"] == 3.0
    assert total["nonfinite"] == 2  # loss and loss_ar_q1
    assert "nonfinite=2" in str(total)
    assert "nonfinite" not in str(batch(2.0, 10))


def test_nothing_measured_is_no_number():
    tracker = MetricsTracker({"acc": (torch.tensor(0.0), torch.tensor(0))})
    assert "acc" not in tracker.means()


def test_many_frames_are_counted_exactly():
    total = MetricsTracker({"frames": 2**25})
    for _ in range(3):
        total += MetricsTracker({"frames": torch.tensor(1)})
    assert total["frames"] == 2**25 + 3


def test_gradients_are_not_kept():
    loss = torch.tensor(3.0, requires_grad=True)
    tracker = MetricsTracker({"loss": (loss, 1)})
    assert not tracker._sums.requires_grad


class Writer(dict):
    def add_scalar(self, tag, scalar_value, global_step):
        assert tag not in self, "written twice"
        self[tag] = (scalar_value, global_step)


def test_summary_has_every_value_and_perplexities():
    writer = Writer()
    batch(2.0, 10).write_summary(writer, "train/current_", 7)
    assert writer == {
        "train/current_loss": (2.0, 7),
        "train/current_ArTop10Accuracy": (0.5, 7),
        "train/current_loss_ar_q1": (2.0, 7),
        "train/current_perplexity_ar_q1": (pytest.approx(math.exp(2.0)), 7),
    }
    batch(1e4, 10).write_summary(writer, "huge_", 1)
    assert writer["huge_perplexity_ar_q1"][0] == math.inf


def test_metric_of_another_form_is_refused():
    with pytest.raises(ValueError, match=r"'loss' must be a \(total, count\), got float"):
        MetricsTracker({"loss": 1.0})


def test_reduce_alone_changes_nothing():
    assert batch(2.0, 10).reduce().means() == batch(2.0, 10).means()
