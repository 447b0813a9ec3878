"""Small helpers of the command-line programs."""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

_TRUE_WORDS = frozenset({"true", "yes", "on", "y", "t", "1"})
_FALSE_WORDS = frozenset({"false", "no", "off", "n", "f", "0"})


def str2bool(value: str | bool) -> bool:
    """Read a switch as the recipes of this family write it: ``--oom-check true``.

    Meant as the ``type`` of an argparse argument; a bool passes through, so that a default may be
    one.

    Args:
        value: One of true/yes/on/y/t/1 or false/no/off/n/f/0, in either case.

    Returns:
        The truth value.

    Raises:
        argparse.ArgumentTypeError: If the word is none of these; argparse prints it with the name
            of the argument.
    """
    if isinstance(value, bool):
        return value
    word = value.strip().lower()
    if word in _TRUE_WORDS:
        return True
    if word in _FALSE_WORDS:
        return False
    raise argparse.ArgumentTypeError(f"expected true or false, got {value!r}; write true or false")


class AttributeDict(dict[str, Any]):
    """A dict whose entries are attributes too: ``params.base_lr`` is ``params["base_lr"]``.

    ``str()`` gives sorted, indented JSON, the form in which a run logs its parameters.
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            known = ", ".join(sorted(map(str, self))) or "none"
            raise AttributeError(f"no entry {name!r}; the entries are: {known}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __delattr__(self, name: str) -> None:
        if name not in self:
            raise AttributeError(f"no entry {name!r} to delete")
        del self[name]

    def __str__(self) -> str:
        return json.dumps(self, indent=2, sort_keys=True, default=_as_text)


def _as_text(value: Any) -> str:
    """What JSON has no form for; anything but these is a mistake better heard of."""
    if isinstance(value, (Path, torch.device, torch.dtype)):
        return str(value)
    raise TypeError(f"cannot show a {type(value).__name__} ({value!r}) as JSON")


def flag_of(name: str) -> str:
    """An argument's name as it is written on the command line."""
    return "--" + name.replace("_", "-")
