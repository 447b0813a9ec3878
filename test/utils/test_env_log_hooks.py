"""What a run says about itself: environment, log file, first number that is not finite."""

import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from valle.utils.env import _git_info, get_env_info
from valle.utils.hooks import register_inf_check_hooks
from valle.utils.log import setup_logger

ROOT = Path(__file__).resolve().parents[2]


def git(folder, *arguments):
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True)


def test_environment_is_plain_and_names_the_versions():
    info = get_env_info()
    assert info["torch-version"] == str(torch.__version__)
    assert info["python-version"] == sys.version.split()[0]
    assert all(value is None or type(value) in (str, bool) for value in info.values())


def test_environment_names_neither_the_machine_nor_an_address(monkeypatch):
    for function in ("platform.node", "socket.gethostname", "socket.getfqdn"):
        monkeypatch.setattr(function, lambda *_: "engine7.example.org")
    text = repr(get_env_info())
    assert "engine7" not in text
    assert not re.search(r"\b\d{1,3}(\.\d{1,3}){3}\b", text)


def test_revision_is_that_of_the_file(tmp_path):
    file = tmp_path / "a.py"
    file.write_text("a = 1\n")
    assert set(_git_info(file).values()) == {None}  # no repository
    git(tmp_path, "init", "-b", "trunk")
    assert set(_git_info(file).values()) == {None}  # a repository, but not the file's
    git(tmp_path, "add", "a.py")
    git(tmp_path, "commit", "-m", "first")
    info = _git_info(file)
    assert re.fullmatch("[0-9a-f]{40}", info["git-sha1"])
    assert (info["git-branch"], info["git-dirty"]) == ("trunk", False)
    file.write_text("a = 2\n")
    assert _git_info(file)["git-dirty"] is True


def test_nothing_heavy_is_imported():
    names = [f"valle.utils.{file.stem}" for file in (ROOT / "valle/utils").glob("[a-z]*.py")]
    heavy = ("lhotse", "transformers", "tensorboard")
    program = (
        f"import sys, {', '.join(names)}, valle.modules.optim, valle.modules.scheduler\n"
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.fixture
def restored_logging():
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    for handler in [h for h in root.handlers if h not in handlers]:
        root.removeHandler(handler)
        handler.close()
    root.setLevel(level)


def test_log_has_icefalls_name_and_form(tmp_path, capsys, restored_logging):
    file = setup_logger(tmp_path / "log" / "log-train")
    logging.info("Epoch 1, batch 100")
    logging.debug("not shown")
    assert re.fullmatch(r"log-train-\d{4}(-\d\d){5}", file.name)
    stamp = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}"
    line = rf"{stamp} INFO \[test_env_log_hooks\.py:\d+\] Epoch 1, batch 100\n"
    assert re.fullmatch(line, file.read_text())
    assert re.fullmatch(line, capsys.readouterr().err)


def test_log_of_several_ranks_says_which(tmp_path, capsys, restored_logging):
    file = setup_logger(tmp_path / "log-train", rank=1, world_size=2)
    logging.info("quiet")
    logging.warning("loud")
    assert file.name.endswith("-1")
    assert "] (1/2) quiet\n" in file.read_text()
    assert "quiet" not in (shown := capsys.readouterr().err)
    assert "(1/2) loud" in shown


def test_second_setup_replaces_the_first(tmp_path, capsys, restored_logging):
    first = setup_logger(tmp_path / "a")
    second = setup_logger(tmp_path / "b")
    logging.info("once")
    assert first.read_text() == ""
    assert second.read_text().count("once") == 1
    assert capsys.readouterr().err.count("once") == 1


def test_messages_do_not_break_a_progress_bar(tmp_path, capsys, restored_logging):
    tqdm = pytest.importorskip("tqdm")
    setup_logger(tmp_path / "a")
    with tqdm.tqdm(total=3, ascii=True, mininterval=0) as bar:
        bar.update(1)
        logging.info("a message")
    shown = capsys.readouterr().err
    # the bar is wiped before the message, which thus begins its own line
    assert re.search(r"\r *\r\d{4}-\d\d-\d\d .* a message\n", shown)


class Log(nn.Module):
    def forward(self, x):
        return x.log()


def test_first_module_that_is_not_finite_is_named(caplog):
    model = nn.Sequential(nn.Linear(2, 2), Log(), nn.Linear(2, 2))
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.fill_(-1.0)
    check = register_inf_check_hooks(model)
    model(torch.ones(1, 2))
    assert check.found[0] == "the output of 1 is not finite, its inputs are"
    assert not any("output of 2" in line for line in check.found)
    assert "the output of 1 is not finite" in caplog.text


class Root(nn.Module):
    def forward(self, x):
        return x.sqrt()


def test_gradient_that_is_not_finite_is_named_where_it_begins():
    model = nn.Sequential(nn.Linear(2, 2), Root(), nn.Linear(2, 1))
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.zero_()  # the root of 0 is finite, its slope is not
    check = register_inf_check_hooks(model)
    model(torch.ones(1, 2, requires_grad=True)).sum().backward()
    assert check.found[0] == "the gradient leaving 1 is not finite, the one arriving is"
    assert "the gradient of 0.bias is not finite" in check.found
    assert not any("leaving 2" in line for line in check.found)


def test_healthy_model_is_silent_and_the_watch_can_be_ended():
    model = nn.Sequential(nn.Linear(2, 2), Log())
    check = register_inf_check_hooks(model)
    model[0](torch.ones(1, 2, requires_grad=True)).sum().backward()
    assert check.found == []
    check.remove()
    model(torch.full((1, 2), float("nan")))
    model[1](torch.zeros(1, 2))
    assert check.found == []
