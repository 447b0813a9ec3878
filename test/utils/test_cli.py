"""Switches and parameters of the command line."""

import argparse
import json
from pathlib import Path

import pytest
import torch

from valle.utils.cli import AttributeDict, str2bool


@pytest.mark.parametrize("word", ["true", "True", " YES ", "1", "t", "y", "on"])
def test_words_for_true(word):
    assert str2bool(word) is True


@pytest.mark.parametrize("word", ["false", "FALSE", "no", "0", "f", "n", "off"])
def test_words_for_false(word):
    assert str2bool(word) is False


def test_other_words_are_an_error_that_names_the_flag(capsys):
    parser = argparse.ArgumentParser()
    parser.add_argument("--oom-check", type=str2bool, default=True)
    assert parser.parse_args([]).oom_check is True
    assert parser.parse_args(["--oom-check", "false"]).oom_check is False
    with pytest.raises(SystemExit):
        parser.parse_args(["--oom-check", "maybe"])
    assert "argument --oom-check: expected true or false, got 'maybe'" in capsys.readouterr().err


def test_entries_are_attributes():
    params = AttributeDict(base_lr=0.05)
    params.seed = 42
    assert params == {"base_lr": 0.05, "seed": 42}
    assert params.base_lr == params["base_lr"]
    del params.seed
    assert "seed" not in params
    with pytest.raises(AttributeError, match="the entries are: base_lr"):
        _ = params.base_rate
    with pytest.raises(AttributeError, match="no entry 'seed' to delete"):
        del params.seed


def test_shown_as_sorted_json():
    params = AttributeDict(b=Path("exp/a"), a=torch.device("cpu"), c=torch.float16)
    assert json.loads(str(params)) == {"a": "cpu", "b": "exp/a", "c": "torch.float16"}
    assert str(params).index('"a"') < str(params).index('"b"')
    with pytest.raises(TypeError, match="cannot show a set"):
        str(AttributeDict(a={1}))
