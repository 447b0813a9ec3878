"""Weights of other people: what fits is loaded, what does not is named, code is not run."""

import logging
import pickle

import pytest
import torch
from torch import nn

from valle.utils.checkpoint import read_checkpoint, save_checkpoint
from valle.utils.init_from import init_from


def small_model(seed=0, width=3):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.Linear(width, 2))


def copy_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_weights(model, expected):
    assert model.state_dict().keys() == expected.keys()
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "_orig_mod.module."])
def test_whole_weights_are_loaded_and_nothing_else(tmp_path, prefix, caplog):
    caplog.set_level(logging.INFO)
    source, model = small_model(1), small_model(2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.5)
    weights = {prefix + name: value for name, value in source.state_dict().items()}
    torch.save({"model": weights, "optimizer": {"lr": 9}, "batch_idx_train": 7}, tmp_path / "a.pt")
    report = init_from(model, tmp_path / "a.pt")
    assert_weights(model, source.state_dict())
    assert report.is_complete
    assert set(report.matched) == set(source.state_dict())
    # 4 x 3 + 3, then 3 weights, 3 biases, 3 means, 3 variances and 1 counter, then 3 x 2 + 2
    assert report.num_matched_parameters == report.num_parameters == 15 + 13 + 8
    assert "9 of the model's 9 tensors (36 of 36 parameters) match" in caplog.text
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert not optimizer.state


def test_a_wrapped_model_takes_bare_weights(tmp_path):
    save_checkpoint(tmp_path / "a.pt", small_model(1), {})
    model = small_model(2)
    init_from(nn.DataParallel(model), tmp_path / "a.pt")
    assert_weights(model, small_model(1).state_dict())


def test_what_does_not_match_is_named_and_refused(tmp_path):
    theirs = small_model(1).append(nn.Linear(2, 2))
    save_checkpoint(tmp_path / "a.pt", theirs, {})
    model = small_model(2, width=5)
    before = copy_of(model)
    with pytest.raises(ValueError, match=r"a.pt does not fit the model") as error:
        init_from(model, tmp_path / "a.pt")
    message = str(error.value)
    # alike: the last bias (2) and the counter of the batch norm (1); of 25 + 21 + 12
    assert "2 of the model's 9 tensors (3 of 58 parameters) match" in message
    assert "2 unknown to the model (3.weight, 3.bias)" in message
    assert "7 of another shape (0.weight (3, 4) instead of (5, 4)," in message
    assert "take what fits and leave the rest random (--init-partial true)" in message
    assert_weights(model, before)


def test_a_single_missing_tensor_is_enough_to_refuse(tmp_path):
    weights = copy_of(small_model(1))
    del weights["2.bias"]
    torch.save({"model": weights}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"match; 1 missing in the file \(2.bias\)\. Build"):
        init_from(small_model(), tmp_path / "a.pt")


def test_partial_start_takes_what_fits_and_says_so(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    weights = copy_of(small_model(1))
    del weights["2.bias"]
    weights["0.weight"] = torch.zeros(9, 4)
    weights["strange"] = torch.zeros(1)
    torch.save({"model": weights}, tmp_path / "a.pt")
    model = small_model(2)
    before = copy_of(model)
    report = init_from(model, tmp_path / "a.pt", allow_partial=True)
    kept = {name: before[name] for name in ("0.weight", "2.bias")}
    assert_weights(model, copy_of(small_model(1)) | kept)
    assert report.missing == ("2.bias",)
    assert report.unknown == ("strange",)
    assert report.reshaped == ("0.weight (9, 4) instead of (3, 4)",)
    assert report.num_matched_parameters == report.num_parameters - 12 - 2
    assert not report.is_complete
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert str(report) in caplog.text


def test_nothing_that_fits_is_refused_even_if_partial(tmp_path):
    save_checkpoint(tmp_path / "a.pt", nn.Conv1d(2, 2, 1), {})
    with pytest.raises(ValueError, match=r"nothing in .*a.pt fits the model: 0 of the model's 9"):
        init_from(small_model(), tmp_path / "a.pt", allow_partial=True)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3.0, "has a float at '0.weight' among its weights"),
        (torch.eye(4)[:3].to_sparse(), "sparse, quantized or empty"),
        (torch.empty(3, 4, device="meta"), "sparse, quantized or empty"),
    ],
)
def test_what_is_no_plain_tensor_is_refused(tmp_path, value, message):
    torch.save({"model": copy_of(small_model()) | {"0.weight": value}}, tmp_path / "a.pt")
    model = small_model(2)
    with pytest.raises(ValueError, match=message):
        init_from(model, tmp_path / "a.pt", allow_partial=True)
    assert_weights(model, small_model(2).state_dict())


class Burglar:
    """Writes a file when it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return exec, (f"open({str(self.trace)!r}, 'w').close()",)


def save_zip(content, path):
    torch.save(content, path)


def save_legacy(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


def save_pickle(content, path):
    path.write_bytes(pickle.dumps(content))


@pytest.mark.parametrize("save", [save_zip, save_legacy, save_pickle])
@pytest.mark.parametrize("reader", [read_checkpoint, lambda p: init_from(small_model(), p, True)])
def test_malicious_file_is_refused_and_not_run(tmp_path, save, reader):
    trace = tmp_path / "trace"
    content = {"model": copy_of(small_model()), "env_info": Burglar(trace)}
    save(content, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"is not opened|cannot be read as a checkpoint"):
        reader(tmp_path / "a.pt")
    assert not trace.exists()
    # the trap is real: whoever unpickles the file falls into it
    if save is save_pickle:
        pickle.loads((tmp_path / "a.pt").read_bytes())
    else:
        torch.load(tmp_path / "a.pt", weights_only=False)
    assert trace.exists()
