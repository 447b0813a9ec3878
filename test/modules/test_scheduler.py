"""Schedules against tabulated values, and what a resumed run needs of them."""

from itertools import pairwise

import pytest
import torch

from valle.modules.scheduler import Cosine, Eden, make_scheduler


def optimizer(*lrs):
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in lrs]
    return torch.optim.SGD(groups, lr=0.0)


@pytest.mark.parametrize(
    ("epoch", "batch", "lr"),
    [(0, 0, 0.025), (0, 1, 0.0251), (0, 200, 0.05), (0, 5000, 0.0420), (3, 20000, 0.0220),
     (19, 200000, 0.0036)],
)  # fmt: skip
def test_eden_gives_the_known_values(epoch, batch, lr):
    scheduler = Eden(optimizer(0.05))
    scheduler.step_epoch(epoch)
    scheduler.step_batch(batch)
    assert scheduler.get_last_lr() == [pytest.approx(lr, abs=5e-5)]
    assert scheduler.optimizer.param_groups[0]["lr"] == scheduler.get_last_lr()[0]


def test_eden_counts_by_itself_when_not_told():
    told, counting = Eden(optimizer(0.05)), Eden(optimizer(0.05))
    told.step_epoch(1)
    told.step_batch(3)
    counting.step_epoch()
    for _ in range(3):
        counting.step_batch()
    assert told.get_last_lr() == counting.get_last_lr()


def test_warmup_can_be_left_out():
    assert Eden(optimizer(0.05), warmup_batches=0).get_last_lr() == [0.05]
    assert Cosine(optimizer(0.05), 10, warmup_steps=0, floor=1.0).get_last_lr() == [0.05]


def test_cosine_rises_falls_and_stays_on_the_floor():
    scheduler = Cosine(optimizer(1.0), total_steps=110, warmup_steps=10, floor=0.1)
    rates = scheduler.get_last_lr()
    for batch in range(1, 130):
        scheduler.step_batch(batch)
        rates += scheduler.get_last_lr()
    assert rates[:10] == pytest.approx([n / 10 for n in range(1, 11)])
    assert rates[59] == pytest.approx(0.55)  # half way down
    assert all(a > b for a, b in pairwise(rates[9:110]))
    assert rates[109:] == pytest.approx([0.1] * len(rates[109:]))


@pytest.mark.parametrize("name", ["Eden", "Cosine"])
def test_resumed_schedule_goes_on_even_after_the_optimizer_state_was_loaded(name):
    first_optimizer = optimizer(0.05, 0.01)
    first = make_scheduler(name, first_optimizer, warmup_steps=5, total_steps=50)
    first.step_epoch(2)
    first.step_batch(20)
    second_optimizer = optimizer(0.05, 0.01)
    second = make_scheduler(name, second_optimizer, warmup_steps=5, total_steps=50)
    second_optimizer.load_state_dict(first_optimizer.state_dict())
    second.load_state_dict(first.state_dict())
    assert second.get_last_lr() == first.get_last_lr()
    first.step_batch(21)
    second.step_batch(21)
    assert second.get_last_lr() == first.get_last_lr()
    assert first.get_last_lr()[0] == pytest.approx(5 * first.get_last_lr()[1])


def test_base_rate_may_change_on_resume():
    old_optimizer = optimizer(0.05)
    old = Eden(old_optimizer)
    old.step_batch(300)
    new_optimizer = optimizer(0.01)
    new = Eden(new_optimizer)
    new_optimizer.load_state_dict(old_optimizer.state_dict())
    new.load_state_dict(old.state_dict())
    assert new.get_last_lr()[0] == pytest.approx(old.get_last_lr()[0] / 5)


def test_state_is_two_counters_and_takes_the_older_form():
    scheduler = Eden(optimizer(0.05))
    scheduler.load_state_dict({"base_lrs": [0.05], "epoch": 3, "batch": 20000})
    assert scheduler.state_dict() == {"epoch": 3, "batch": 20000}
    with pytest.raises(ValueError, match=r"without \['batch'\]"):
        scheduler.load_state_dict({"epoch": 1})


def test_refuses_bad_settings():
    with pytest.raises(ValueError, match="choose one of Eden, Cosine"):
        make_scheduler("Noam", optimizer(0.05))
    with pytest.raises(ValueError, match="total_steps"):
        make_scheduler("Cosine", optimizer(0.05))
    with pytest.raises(ValueError, match="must exceed warmup_steps"):
        Cosine(optimizer(0.05), total_steps=10, warmup_steps=10)
    with pytest.raises(ValueError, match="floor"):
        Cosine(optimizer(0.05), total_steps=10, warmup_steps=1, floor=2.0)
    with pytest.raises(ValueError, match="at least 0 steps"):
        Eden(optimizer(0.05), warmup_batches=-1)
    with pytest.raises(ValueError, match="must be positive"):
        Eden(optimizer(0.05), lr_batches=0)
