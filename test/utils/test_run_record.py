"""The record of a run: complete, kept, and silent about who and where."""

import getpass
import json
import math
import platform
import re
import shlex
import sys
from datetime import datetime
from pathlib import Path

import pytest
import torch

from valle.utils import run_record
from valle.utils.run_record import write_run_record

DATA = {"train": {"cuts": 12, "hours": 0.5, "frames": 90000}, "codec": {"name": "tiny"}}


@pytest.fixture
def somebody(monkeypatch):
    """Ada, whose home and machine bear names that can be searched for."""
    monkeypatch.setattr(getpass, "getuser", lambda: "ada")
    monkeypatch.setattr(platform, "node", lambda: "engine7.example.org")
    monkeypatch.setattr(Path, "home", lambda: Path("/home/ada"))


def record(folder, params=None, data=DATA, argv=("trainer.py",)):
    old, sys.argv = sys.argv, list(argv)
    try:
        return json.loads(write_run_record(folder, params or {}, data).read_text())
    finally:
        sys.argv = old


def test_record_holds_what_a_run_was_started_with(tmp_path):
    params = {"exp_dir": Path("exp/a"), "dtype": torch.float16, "betas": (0.9, 0.95), "seed": 3}
    params |= {"best_valid_loss": math.inf, "codec": None, "env_info": {"left": "out"}}
    argv = ("egs/trainer.py", "--exp-dir", "my exp", "--note", "it's")
    before = datetime.now().astimezone().replace(microsecond=0)
    found = record(tmp_path / "new", params, argv=argv)
    assert shlex.split(found["command"]) == list(argv)
    assert found["parameters"] == {
        "exp_dir": "exp/a", "dtype": "torch.float16", "betas": [0.9, 0.95], "seed": 3,
        "best_valid_loss": "inf", "codec": None,
    }  # fmt: skip
    assert found["data"] == DATA
    assert found["environment"]["torch-version"] == str(torch.__version__)
    assert {"git-sha1", "git-dirty"} <= found["environment"].keys()
    assert found["num_ranks"] == 1
    assert found["devices"]
    started = datetime.fromisoformat(found["started"])
    assert started.utcoffset() is not None
    assert before <= started <= datetime.now().astimezone()


def test_every_start_has_a_file_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(run_record, "time_stamp", lambda _: "2024-01-02-03-04-05")
    files = [write_run_record(tmp_path, {"start": i}, DATA) for i in range(3)]
    names = ["run-2024-01-02-03-04-05.json"]
    names += [f"run-2024-01-02-03-04-05-{i}.json" for i in (2, 3)]
    assert [file.name for file in files] == names
    assert [json.loads(f.read_text())["parameters"]["start"] for f in files] == [0, 1, 2]
    assert sorted(tmp_path.iterdir()) == sorted(files)


def test_name_has_the_time_as_log_files_have_it(tmp_path):
    file = write_run_record(tmp_path, {}, DATA)
    assert re.fullmatch(r"run-\d{4}(-\d\d){5}\.json", file.name)


def test_neither_person_nor_machine_is_named(tmp_path, somebody):
    places = {
        "exp_dir": Path("/home/ada/exp"),
        "scratch": "/scratch/ada_2/engine7/x",
        "master": "10.11.12.13:29500",
        "rendezvous": ["engine7.example.org:1", "Engine7", "fe80::1ff:fe23:4567:890a"],
        "nested": {"bracketed": "tcp://[2001:db8::1]:80"},
    }
    argv = ("/home/ada/bin/t.py", "--exp-dir=/home/ada/exp", "--adam", "ada@engine7", "--ada", "1")
    data = {"manifest": "/nfs/home/ada/data"}
    found = record(tmp_path, places, data, argv)
    assert found["command"] == "~/bin/t.py '--exp-dir=~/exp' --adam '<user>@<host>' --ada 1"
    assert found["parameters"] == {
        "exp_dir": "~/exp",
        "scratch": "/scratch/<user>_2/<host>/x",
        "master": "<address>:29500",
        "rendezvous": ["<host>:1", "<host>", "<address>"],
        "nested": {"bracketed": "tcp://[<address>]:80"},
    }
    assert found["data"] == {"manifest": "/nfs/home/<user>/data"}


def test_keys_that_are_paths_name_nobody_and_others_stay(tmp_path, somebody):
    data = {"ada": 1, "codec:/home/ada/codec": {"/scratch/ada": 2}}
    assert record(tmp_path, data=data)["data"] == {
        "ada": 1,
        "codec:~/codec": {"/scratch/<user>": 2},
    }


def test_no_text_in_the_whole_file_names_machine_or_address(tmp_path, somebody):
    where = {"here": "/scratch/engine7/x", "home": Path("/home/ada/x"), "at": "192.168.0.7"}
    text = write_run_record(tmp_path, where, DATA | {"also": "engine7.example.org"}).read_text()
    assert "engine7" not in text
    assert not re.search(r"\b\d{1,3}(\.\d{1,3}){3}\b", text)
    assert not re.search(r"\bada\b", text)


def test_what_only_looks_like_a_name_or_an_address_stays(tmp_path, somebody):
    params = {
        "optimizer": "adamw", "version": "2.13.0", "clock": "12:30:45", "ratio": "3:4",
        "sha": "0f1052b" * 5, "machine": "engine70", "adagrad": "ScaledAdam",
    }  # fmt: skip
    found = record(tmp_path, params)
    assert found["parameters"] == params
    assert found["command"] == "trainer.py"


def test_a_machine_that_knows_nobody_has_records_too(tmp_path, monkeypatch):
    def nobody(*_):
        raise KeyError("getpwuid(): uid not found: 4711")

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(getpass, "getuser", nobody)
    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.setattr(platform, "node", lambda: "")
    assert record(tmp_path, {"a": "b c"})["parameters"] == {"a": "b c"}


def test_what_json_has_no_form_for_is_refused(tmp_path):
    with pytest.raises(TypeError, match=r"cannot show a object .* as JSON"):
        write_run_record(tmp_path, {"strange": object()}, DATA)
    assert not list(tmp_path.iterdir())
