"""Checkpoints: what goes in comes out, and what cannot is refused by name."""

import os
import resource
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from valle.modules.optim import make_optimizer
from valle.modules.scheduler import make_scheduler
from valle.utils.averaging import make_averaged_weights
from valle.utils.checkpoint import (
    copy_checkpoint,
    find_checkpoints,
    load_checkpoint,
    load_weights,
    read_checkpoint,
    remove_checkpoints,
    save_checkpoint,
)


def small_model(seed=0, width=3):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.Linear(width, 2))


def train(model, optimizer, scheduler, steps, start=0):
    for step in range(start, start + steps):
        torch.manual_seed(step)
        optimizer.zero_grad()
        model(torch.randn(8, 4)).square().sum().backward()
        optimizer.step()
        scheduler.step_batch(step + 1)


def parts(name, seed=0):
    model = small_model(seed)
    optimizer = make_optimizer(name, model.parameters())
    schedule = {"ScaledAdam": "Eden", "AdamW": "Cosine"}[name]
    return model, optimizer, make_scheduler(schedule, optimizer, 5, total_steps=30)


def assert_same_weights(a, b):
    for (name, x), y in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        assert torch.equal(x, y), name


@pytest.mark.parametrize("name", ["ScaledAdam", "AdamW"])
def test_resumed_run_equals_unbroken_run(tmp_path, name):
    whole = parts(name)
    train(*whole, steps=20)
    first = parts(name)
    train(*first, steps=11)
    save_checkpoint(
        tmp_path / "exp" / "epoch-1.pt", first[0], {"cur_epoch": 1}, *first[1:],
        sampler_state={"kept": 5},
    )  # fmt: skip
    second = parts(name, seed=9)
    rest = load_checkpoint(tmp_path / "exp" / "epoch-1.pt", *second)
    assert rest == {"cur_epoch": 1, "sampler": {"kept": 5}}
    train(*second, steps=9, start=11)
    assert_same_weights(whole[0], second[0])


def test_layout_is_the_known_one(tmp_path):
    model, optimizer, scheduler = parts("ScaledAdam")
    model_avg = make_averaged_weights(model)
    file = tmp_path / "a.pt"
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    save_checkpoint(
        file, model, {"base_lr": 0.05, "nhead": 16}, optimizer, scheduler, scaler,
        model_avg=model_avg,
    )  # fmt: skip
    checkpoint = torch.load(file)  # with its default, weights_only=True
    assert list(checkpoint) == [
        "model", "optimizer", "scheduler", "grad_scaler", "sampler", "model_avg",
        "base_lr", "nhead",
    ]  # fmt: skip
    assert checkpoint["sampler"] is None
    assert checkpoint["grad_scaler"] == {}
    assert checkpoint["model_avg"]["0.weight"].dtype == torch.float64
    assert list(tmp_path.iterdir()) == [file]


def test_gradient_scaler_goes_on_and_may_start_afresh(tmp_path):
    file, scaler = tmp_path / "a.pt", torch.amp.GradScaler("cpu", init_scale=4.0)
    save_checkpoint(file, small_model(), {}, scaler=scaler)
    resumed = torch.amp.GradScaler("cpu", init_scale=64.0)
    load_checkpoint(file, small_model(), scaler=resumed)
    assert resumed.get_scale() == 4.0
    save_checkpoint(file, small_model(), {}, scaler=torch.amp.GradScaler("cpu", enabled=False))
    fresh = torch.amp.GradScaler("cpu", init_scale=64.0)
    load_checkpoint(file, small_model(), scaler=fresh)
    assert fresh.get_scale() == 64.0


def test_parameters_become_plain(tmp_path):
    params = {
        "exp_dir": Path("exp/a"),
        "best_valid_loss": np.float64(0.1),
        "count": np.int64(3),
        "flag": np.bool_(True),
        "betas": (0.9, 0.95),
        "device": torch.device("cpu"),
        "nested": {"paths": [Path("b")], 3: None},
        "infinite": float("inf"),
    }
    save_checkpoint(tmp_path / "a.pt", small_model(), params)
    loaded = read_checkpoint(tmp_path / "a.pt")
    expected = {
        "exp_dir": "exp/a",
        "best_valid_loss": 0.1,
        "count": 3,
        "flag": True,
        "betas": [0.9, 0.95],
        "device": "cpu",
        "nested": {"paths": ["b"], 3: None},
        "infinite": float("inf"),
    }
    assert {name: loaded[name] for name in params} == expected
    assert all(type(loaded[name]) is type(expected[name]) for name in params)


@dataclass
class Strange:
    a: int = 1


def test_other_types_are_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"codec\.inner\[1\] is a .*Strange"):
        save_checkpoint(tmp_path / "a.pt", small_model(), {"codec": {"inner": [0, Strange()]}})
    with pytest.raises(ValueError, match=r"numpy\.ndarray"):
        save_checkpoint(tmp_path / "a.pt", small_model(), {"array": np.zeros(2)})
    with pytest.raises(ValueError, match=r"keys must be text"):
        save_checkpoint(tmp_path / "a.pt", small_model(), {"table": {(1, 2): 3}})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["model", "optimizer", "sampler", "model_avg"])
def test_parameter_may_not_shadow_a_section(tmp_path, name):
    with pytest.raises(ValueError, match=f"may not be called {name}"):
        save_checkpoint(tmp_path / "a.pt", small_model(), {name: 1})


def third_of(model):
    """Averages that float32 cannot hold."""
    average = make_averaged_weights(model)
    return {k: v / 3 if v.is_floating_point() else v for k, v in average.items()}


def test_average_comes_back_bit_for_bit_into_the_tensors_that_keep_it(tmp_path):
    saved, average = third_of(small_model(1)), third_of(small_model(3))
    kept = dict(average)
    save_checkpoint(tmp_path / "a.pt", small_model(), {}, model_avg=saved)
    load_checkpoint(tmp_path / "a.pt", small_model(2), model_avg=average)
    for name, value in saved.items():
        assert average[name] is kept[name]
        assert average[name].dtype == value.dtype
        assert torch.equal(average[name], value), name


def test_average_of_an_older_file_is_read_into_float64(tmp_path):
    older = {k: v.float() for k, v in third_of(small_model(1)).items() if v.is_floating_point()}
    average = {k: torch.zeros_like(v, dtype=torch.float64) for k, v in older.items()}
    save_checkpoint(tmp_path / "a.pt", small_model(), {}, model_avg=older)
    load_checkpoint(tmp_path / "a.pt", small_model(), model_avg=average)
    for name, value in older.items():
        assert average[name].dtype == torch.float64
        assert torch.equal(average[name], value.double())


def test_average_of_another_model_is_refused(tmp_path):
    average = make_averaged_weights(small_model())
    save_checkpoint(tmp_path / "a.pt", small_model(), {}, model_avg=average)
    with pytest.raises(ValueError, match=r"1 missing in the file \(more\)"):
        load_checkpoint(
            tmp_path / "a.pt", small_model(), model_avg=average | {"more": torch.ones(1)}
        )
    with pytest.raises(ValueError, match=r"1 of another shape \(0.bias \(3,\) instead of \(4,\)"):
        load_checkpoint(
            tmp_path / "a.pt", small_model(), model_avg=average | {"0.bias": torch.ones(4)}
        )


def test_wrapped_names_come_back():
    model = small_model()
    wrapped = {f"_orig_mod.module.{k}": v for k, v in model.state_dict().items()}
    third = small_model(4)
    load_weights(third, wrapped, "a file")
    assert_same_weights(third, model)


def test_wrappers_are_not_saved(tmp_path):
    model = small_model()
    save_checkpoint(tmp_path / "a.pt", nn.DataParallel(model), {})
    save_checkpoint(tmp_path / "b.pt", torch.compile(model), {})
    for file in ("a.pt", "b.pt"):
        assert list(read_checkpoint(tmp_path / file)["model"]) == list(model.state_dict())


def test_model_with_a_part_called_module_keeps_its_names(tmp_path):
    def model():
        return nn.ModuleDict({"module": nn.Linear(2, 2)})

    save_checkpoint(tmp_path / "a.pt", model(), {})
    load_checkpoint(tmp_path / "a.pt", model())


def test_weights_that_do_not_fit_are_listed(tmp_path):
    save_checkpoint(tmp_path / "a.pt", small_model(), {})
    with pytest.raises(ValueError, match=r"of another shape \(0.weight \(3, 4\) instead of \(5,"):
        load_checkpoint(tmp_path / "a.pt", small_model(width=5))
    with pytest.raises(ValueError, match=r"2 missing in the file \(3.bias, 3.weight\)"):
        load_checkpoint(tmp_path / "a.pt", small_model().append(nn.Linear(2, 2)))
    with pytest.raises(ValueError, match=r"7 unknown to the model .*, \.\.\."):
        load_checkpoint(tmp_path / "a.pt", small_model()[:1])


def test_sections_that_are_not_there_are_missed(tmp_path):
    file = tmp_path / "a.pt"
    save_checkpoint(file, small_model(), {})
    with pytest.raises(ValueError, match="holds no optimizer state"):
        load_checkpoint(file, *parts("AdamW"))
    with pytest.raises(ValueError, match="holds no model_avg"):
        load_checkpoint(file, small_model(), model_avg={})


def test_missing_file_names_its_neighbours(tmp_path):
    save_checkpoint(tmp_path / "epoch-3.pt", small_model(), {})
    with pytest.raises(FileNotFoundError, match=r"epoch-4.pt; .* folder: epoch-3.pt"):
        read_checkpoint(tmp_path / "epoch-4.pt")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_file_cut_short_is_an_error(tmp_path, share):
    file = tmp_path / "a.pt"
    save_checkpoint(file, small_model(), {})
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    with pytest.raises(ValueError, match=r"a\.pt .* bytes\) cannot be read .* cut short"):
        read_checkpoint(file)


def test_other_kinds_of_file_are_an_error(tmp_path):
    file = tmp_path / "a.pt"
    file.write_text("hello, this is a log\n")
    with pytest.raises(ValueError, match="another kind of file"):
        read_checkpoint(file)
    torch.save([1, 2], file)
    with pytest.raises(ValueError, match="holds a list, expected a checkpoint dict"):
        read_checkpoint(file)
    torch.save(small_model().state_dict(), file)
    with pytest.raises(ValueError, match=r"no section 'model'.*begins with: 0.weight"):
        read_checkpoint(file)


def test_python_objects_are_not_unpickled(tmp_path):
    file = tmp_path / "a.pt"
    torch.save({"model": small_model().state_dict(), "exp_dir": Path("exp")}, file)
    with pytest.raises(ValueError, match=r"Python object pathlib\S* and is not opened"):
        read_checkpoint(file)


def test_full_disk_leaves_the_old_file_and_nothing_else(tmp_path):
    file = tmp_path / "a.pt"
    save_checkpoint(file, small_model(), {"mark": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        with pytest.raises(OSError, match=r"write .*a\.pt \(.*File too large\); .* MiB are free"):
            save_checkpoint(file, nn.Linear(300, 300), {"mark": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == [file]
    assert read_checkpoint(file)["mark"] == 1


def test_copy_survives_the_original(tmp_path):
    source, target = tmp_path / "checkpoint-1.pt", tmp_path / "best-valid-loss.pt"
    save_checkpoint(source, small_model(), {"mark": 1})
    copy_checkpoint(source, target)
    copy_checkpoint(source, target)  # again: both names are one file by now
    save_checkpoint(source, small_model(), {"mark": 2})
    assert read_checkpoint(target)["mark"] == 1
    source.unlink()
    assert read_checkpoint(target)["mark"] == 1
    assert list(tmp_path.iterdir()) == [target]
    with pytest.raises(FileNotFoundError, match=r"no file .*checkpoint-1\.pt to copy"):
        copy_checkpoint(source, target)


def test_copy_works_without_hard_links(tmp_path, monkeypatch):
    def no_links(*_):
        raise PermissionError("no links on this file system")

    monkeypatch.setattr(os, "link", no_links)
    save_checkpoint(tmp_path / "a.pt", small_model(), {"mark": 1})
    copy_checkpoint(tmp_path / "a.pt", tmp_path / "b.pt")
    assert read_checkpoint(tmp_path / "b.pt")["mark"] == 1


def test_find_and_remove_go_by_number(tmp_path):
    names = ["checkpoint-900.pt", "checkpoint-1000.pt", "checkpoint-20.pt"]
    others = ["epoch-1.pt", "best-valid-loss.pt", "checkpoint-x.pt", "checkpoint-5.pt.bak"]
    for name in names + others:
        (tmp_path / name).touch()

    def found(iteration=0):
        return [path.name for path in find_checkpoints(tmp_path, iteration)]

    assert found() == ["checkpoint-1000.pt", "checkpoint-900.pt", "checkpoint-20.pt"]
    assert found(900) == ["checkpoint-1000.pt", "checkpoint-900.pt"]
    assert found(-900) == ["checkpoint-900.pt", "checkpoint-20.pt"]
    removed = remove_checkpoints(tmp_path, keep_last_k=1)
    assert [path.name for path in removed] == ["checkpoint-900.pt", "checkpoint-20.pt"]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*others, "checkpoint-1000.pt"])
    with pytest.raises(ValueError, match="at least 1, got 0"):
        remove_checkpoints(tmp_path, 0)
