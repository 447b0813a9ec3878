"""Contenders in processes of their own, each at work only when it is told to.

A process that trains one model finds its memory as the step before left it. Several in one process
give theirs back and ask for fresh pages all the time, which costs some more than others.
"""

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any


class Apart:
    """A process that answers orders, one at a time; it ends with the context.

    Args:
      name: for errors.
      command: starts a program that calls `obey`.
    """

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self.name = name
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, order: str) -> Any:
        """Wait for the answer to an order.

        Raises:
          OSError: the process has ended.
        """
        orders, answers = self._process.stdin, self._process.stdout
        assert orders is not None
        assert answers is not None
        with contextlib.suppress(BrokenPipeError):  # the missing answer tells
            orders.write(f"{order}\n")
            orders.flush()
        answer = answers.readline()
        if not answer:
            raise OSError(f"the process of {self.name} ended: it says why above")
        return json.loads(answer)

    def __enter__(self) -> "Apart":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()  # closes its orders, which ends it


def obey(orders: Mapping[str, Callable[[], Any]]) -> None:
    """Answer the orders that come, in JSON, until there are no more."""
    answers = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # a library that prints would answer for us
        for order in sys.stdin:
            print(json.dumps(orders[order.strip()]()), file=answers, flush=True)
