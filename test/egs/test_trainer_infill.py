"""Training with gaps (--infill-prob)."""

from pathlib import Path

import pytest
import torch
from trainer_runs import same, train, train_on_ranks, weights

from valle.data import collate_codes, cut_codes, load_cuts, middle_gaps, split_gaps
from valle.evaluation import frame_costs
from valle.models import AudioLM
from valle.utils.checkpoint import read_checkpoint
from valle.utils.events import read_scalars

GAPS = ("--infill-prob", 0.5, "--sample-epochs", 0)


@pytest.fixture(scope="module")
def unbroken(token_dir, tmp_path_factory) -> Path:
    """Two epochs with gaps, with a checkpoint after every step."""
    exp_dir = tmp_path_factory.mktemp("gaps")
    train(token_dir, exp_dir, "--num-epochs", 2, "--save-every-n", 1, *GAPS)
    return exp_dir


def test_the_model_can_fill_gaps(unbroken):
    model = AudioLM.from_checkpoint(unbroken / "epoch-2.pt")
    assert model.config.infills
    before = read_checkpoint(unbroken / "checkpoint-1.pt")["model"]["ar.ahead_mark"]
    moved = (model.ar.ahead_mark - before).norm() / before.norm()
    assert moved > 0.01  # by ScaledAdam, which moves a tensor in proportion to its size
    sides = torch.randint(16, (2, 5, 3))
    assert model.infill(sides, None, sides, None, 4).shape == (2, 14, 3)


def test_validation_tells_what_gaps_cost_beside_continuations(unbroken, token_dir):
    """The loss that chooses the best weights is that of continuations alone."""
    scalars = read_scalars(unbroken / "tensorboard")
    checkpoint = read_checkpoint(unbroken / "best-valid-loss.pt")
    best = min(point.value for point in scalars["train/valid_loss"])
    assert checkpoint["best_valid_loss"] == pytest.approx(best, rel=1e-5)
    model = AudioLM.from_checkpoint(unbroken / "epoch-2.pt")
    codes, lens = collate_codes(
        [cut_codes(cut) for cut in load_cuts(token_dir / "cuts_validation.jsonl.gz")]
    )
    costs = frame_costs(model, *split_gaps(codes, lens.long(), *middle_gaps(lens.long())))
    for q in range(3):
        expected = costs.nats[:, :, q][costs.frames].mean().item()
        last = scalars[f"train/valid_gap_loss_q{q + 1}"][-1].value
        assert last == pytest.approx(expected, rel=1e-5)
        assert last != pytest.approx(scalars[f"train/valid_loss_q{q + 1}"][-1].value, rel=1e-4)


def test_resuming_inside_an_epoch_equals_the_unbroken_run(unbroken, token_dir, tmp_path):
    checkpoints = sorted(unbroken.glob("checkpoint-*.pt"), key=lambda p: int(p.stem.split("-")[1]))
    middle = checkpoints[len(checkpoints) // 2 - 1]
    (tmp_path / middle.name).write_bytes(middle.read_bytes())
    step = middle.stem.split("-")[1]
    train(token_dir, tmp_path, "--num-epochs", 2, "--start-batch", step, *GAPS)
    assert same(weights(tmp_path / "epoch-2.pt"), weights(unbroken / "epoch-2.pt"))


def test_gaps_change_what_is_learned(unbroken, token_dir, tmp_path):
    """So that the test above is about something."""
    flags = ("--num-epochs", 2, *GAPS)
    train(token_dir, tmp_path, *flags, "--infill-prob", 0.1)
    assert not same(weights(tmp_path / "epoch-2.pt"), weights(unbroken / "epoch-2.pt"))


def test_a_checkpoint_of_a_run_without_gaps_can_be_built_upon(token_dir, tmp_path):
    plain, exp_dir = tmp_path / "plain", tmp_path / "gaps"
    train(token_dir, plain, "--num-epochs", 1, "--sample-epochs", 0)
    assert not AudioLM.from_checkpoint(plain / "epoch-1.pt").config.infills
    flags = ("--init-from", plain / "epoch-1.pt", "--num-epochs", 1, *GAPS)
    printed = train(token_dir, exp_dir, *flags, fails=True)
    assert "ahead" in printed
    train(token_dir, exp_dir, *flags, "--init-partial", "true")
    assert AudioLM.from_checkpoint(exp_dir / "epoch-1.pt").config.infills


def test_stage_2_goes_on_from_an_ar_half_that_fills_gaps(unbroken, token_dir, tmp_path):
    (tmp_path / "epoch-1.pt").write_bytes((unbroken / "epoch-1.pt").read_bytes())
    flags = ("--train-stage", 2, "--start-epoch", 2, "--num-epochs", 2, *GAPS)
    train(token_dir, tmp_path, *flags)
    before, after = (read_checkpoint(tmp_path / f"epoch-{i}.pt")["model"] for i in (1, 2))
    for name, value in after.items():
        assert torch.equal(value, before[name]) == name.startswith("ar.")


def test_ranks_exchange_gradients_where_one_of_them_has_no_gap(token_dir, tmp_path):
    """Few gaps: some batches of a rank hold none, and DDP would wait for the gradient of a mark."""
    flags = ("--num-epochs", 2, *GAPS, "--infill-prob", 0.3, "--max-duration", 3)
    train_on_ranks(token_dir, tmp_path, 2, *flags)
    first, last = (read_checkpoint(tmp_path / f"epoch-{i}.pt")["model"] for i in (1, 2))
    assert not torch.equal(first["ar.ahead_mark"], last["ar.ahead_mark"])


def test_gaps_of_which_nothing_after_is_read_are_refused(token_dir, tmp_path):
    printed = train(token_dir, tmp_path / "exp", *GAPS, "--ahead-frames", 0, fails=True)
    assert "--ahead-frames 0 lets nothing be read of what follows a gap" in printed
    assert not (tmp_path / "exp").exists()


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_a_share_that_is_none(token_dir, tmp_path, share):
    printed = train(token_dir, tmp_path, "--infill-prob", share, fails=True)
    assert f"--infill-prob {share} is a share of the cuts: expected 0 to 1" in printed
