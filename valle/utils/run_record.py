"""The record of a run: what was started, with what, on what, in a file beside its checkpoints.

It can be given away with the checkpoints: where something in it would name the person, the home
folder or a machine, ``<user>``, ``~``, ``<host>`` or ``<address>`` stands instead.
"""

import getpass
import ipaddress
import json
import math
import platform
import re
import shlex
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from valle.utils.cli import AttributeDict
from valle.utils.dist import get_world_size
from valle.utils.env import get_env_info
from valle.utils.files import written_whole
from valle.utils.log import time_stamp

_NAMELESS = ("", "root", "localhost")  # say nothing about anybody
_MAYBE_ADDRESS = re.compile(r"(?<![\w.])[0-9A-Fa-f:.]*[0-9A-Fa-f](?![\w])")


def write_run_record(
    exp_dir: str | Path, params: Mapping[str, Any], data_summary: Mapping[str, Any]
) -> Path:
    """Write ``exp_dir/run-DATE-TIME.json``; call it at every start of a run, on one rank only.

    It holds the time, the command, all parameters, versions and revision of the code
    (``get_env_info``), devices, the number of ranks, and the data.

    Args:
        exp_dir: Folder of the run, made if missing.
        params: Of plain types, paths, dtypes and devices; an ``env_info`` in it is left out.
        data_summary: What the run learns from: cuts, hours and frames a split, codec.

    Returns:
        The file; an earlier one is never written over.

    Raises:
        TypeError: A value has no form in JSON.
        OSError: It could not be written; nothing is left of it.
    """
    now = datetime.now().astimezone()
    record = {
        "started": now.isoformat(timespec="seconds"),
        "command": list(sys.argv),
        "parameters": {name: value for name, value in params.items() if name != "env_info"},
        "environment": get_env_info(),
        "devices": _device_names(),
        "num_ranks": get_world_size(),
        "data": data_summary,
    }
    plain = shareable(record)
    file = _free_name(Path(exp_dir) / f"run-{time_stamp(now)}.json")
    with written_whole(file) as temporary:
        temporary.write_text(json.dumps(plain, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return file


def shareable(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record in plain types, as strict JSON has them, that names nobody.

    Args:
        record: With a ``command`` as a list of arguments; it becomes one line for a shell.

    Raises:
        TypeError: A value has no form in JSON.
    """
    plain = json.loads(str(AttributeDict(record)))  # paths as text, tuples as lists
    plain = _map_values(plain, anonymous())
    plain["command"] = " ".join(map(_quoted, plain["command"]))
    return plain


def _quoted(argument: str) -> str:
    """As a shell reads it; it knows the home folder only where the ``~`` is not quoted."""
    home, rest = ("~/", argument[2:]) if argument.startswith("~/") else ("", argument)
    return home + shlex.quote(rest)


def _device_names() -> list[str]:
    """The GPUs of this machine, or how many threads compute where there is none."""
    if torch.cuda.is_available():
        return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return [f"cpu ({platform.machine()}), {torch.get_num_threads()} threads"]


def _free_name(path: Path) -> Path:
    """The path itself, or with a number where another run began in the same second."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return free


def _map_values(value: Any, change: Callable[[str], str]) -> Any:
    """The same with changed texts; infinity and NaN, which JSON lacks, become text.

    A key is changed where it holds a path: others are names that programs look for.
    """
    if isinstance(value, dict):
        return {
            change(key) if "/" in key else key: _map_values(item, change)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_map_values(item, change) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return change(value) if isinstance(value, str) else value


def anonymous() -> Callable[[str], str]:
    """A function that takes home folder, user, host and addresses out of a text."""
    replacements = [(re.compile(rf"(?<![\w.-]){re.escape(home)}(?=/|$)"), "~") for home in _homes()]
    for names, sign in ((_hosts(), "<host>"), (_users(), "<user>")):
        # neither inside a longer word, nor as part of a flag: --train-stage of the user "train"
        words = r"|".join(re.escape(name) for name in names)
        pattern = rf"(?<![A-Za-z0-9])(?:{words})(?![A-Za-z0-9])"
        if words:
            replacements.append((re.compile(pattern, re.IGNORECASE), sign))

    def without_names(text: str) -> str:
        for pattern, sign in replacements:
            text = pattern.sub(sign, text)
        return _MAYBE_ADDRESS.sub(_address_sign, text)

    def change(text: str) -> str:
        flag = re.match(r"--?[\w-]+(?:=|$)", text)
        start = flag.end() if flag else 0
        return text[:start] + without_names(text[start:])

    return change


def _homes() -> list[str]:
    """The home folder by its name and, if that is a link, by where it lies."""
    with suppress(RuntimeError):  # nobody has this user id
        home = Path.home()
        return [name for name in dict.fromkeys((str(home), str(home.resolve()))) if name != "/"]
    return []


def _hosts() -> list[str]:
    """The machine's name in full, then short, so that the longer one is found first."""
    host = platform.node()
    return [name for name in dict.fromkeys((host, host.partition(".")[0])) if _tells(name)]


def _users() -> list[str]:
    with suppress(OSError, KeyError, ImportError):  # as getpass says it in one Python or another
        return [name for name in (getpass.getuser(),) if _tells(name)]
    return []


def _tells(name: str) -> bool:
    return name.lower() not in _NAMELESS


def _address_sign(found: re.Match[str]) -> str:
    text = found[0]
    host, _, port = text.rpartition(":")
    for candidate, rest in ((text, ""), (host, f":{port}")):
        with suppress(ValueError):
            ipaddress.ip_address(candidate)
            return "<address>" + rest
    return text
