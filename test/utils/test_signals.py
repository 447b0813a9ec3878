"""Signals that ask a run to end."""

import os
import signal
import threading

import pytest

from valle.utils.signals import (
    STOP_SIGNALS,
    StopRequest,
    forwarded_to,
    handled,
    ignore_stop_signals,
)


@pytest.fixture
def handlers():
    """Those before the test come back after it."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield before
    for number, handler in before.items():
        signal.signal(number, handler)


def test_the_first_signal_is_noted_and_handlers_come_back(handlers):
    stop = StopRequest()
    with handled(stop.note):
        assert stop.received == ""
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received == "SIGUSR1"
    assert {number: signal.getsignal(number) for number in STOP_SIGNALS} == handlers


def test_signals_go_on_to_other_processes(handlers):

    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:  # says that it is ready, and waits for the signal's default: to end
        os.write(writer, b"r")
        signal.pause()
    os.read(reader, 1)
    with forwarded_to([child]):
        os.kill(os.getpid(), signal.SIGTERM)
        _, status = os.waitpid(child, 0)
        os.kill(os.getpid(), signal.SIGTERM)  # nobody is there any more
    assert os.WTERMSIG(status) == signal.SIGTERM


def test_workers_ignore_them(handlers):
    ignore_stop_signals(3)
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGUSR1)


def test_other_threads_change_nothing(handlers):
    def enter():
        with handled(StopRequest().note):
            pass

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert {number: signal.getsignal(number) for number in STOP_SIGNALS} == handlers
