"""Ends a job of several processes whose ranks wait for one that does not come, and names it.

A rank that is stuck (a dead disk, a stopped process) leaves all others inside an exchange, where
nothing can interrupt them. So each rank writes into the job's key-value store how far it has got,
and reads how far the others have; when one has not got on for too long, each says who holds up
whom, and ends.
"""

import faulthandler
import json
import logging
import os
import threading
import time
from collections.abc import Hashable
from dataclasses import asdict, replace
from types import TracebackType

import torch.distributed as dist

from valle.utils.dist import DEFAULT_TIMEOUT_SEC, get_rank, get_world_size, job_store
from valle.utils.watchdog_message import Progress, describe, gone_ranks

STUCK_STATUS = 75  # of a process that its watchdog ended: "try again" among Unix's exit statuses

MAX_INTERVAL_SEC = 5.0
LOOKS_PER_TIMEOUT = 10
SILENT_LOOKS = 4  # a rank that has written nothing new for so many looks is stopped or dead
LAST_LOOKS = 3  # between the verdict and the end: the others read it before connections break
STDERR = 2  # the descriptor itself: whatever sys.stderr is by now, it may hold a lock

_log = logging.getLogger(__name__)


class Watchdog:
    """Watches whether all ranks get on; one in every rank of a job, after ``setup_dist``.

    ::

        with Watchdog(timeout_sec) as watchdog:
            for step, batch in ...:
                watchdog.beat(step, "computing")
                ...
                watchdog.beat(step, "exchanging gradients", waits=True)

    When some rank has not got on for `timeout_sec`, a message that names the cause goes to the log,
    the stacks of all threads to stderr, and every process ends with `STUCK_STATUS`. What takes
    long by right (validation, a checkpoint) has to fit in that time too. Time for which a whole
    process was stopped, as a scheduler does to a job, does not count in it.

    An exception that leaves the ``with`` block because an exchange broke is held back until the
    log has named the rank that it broke on: for some looks at most, then it goes on its way.
    """

    def __init__(self, timeout_sec: float = DEFAULT_TIMEOUT_SEC) -> None:
        """Start watching; in a world of one, do nothing.

        Args:
            timeout_sec: How long a rank may take from one beat to the next; give it what
                ``setup_dist`` was given.

        Raises:
            ValueError: The time is not above 0.
            RuntimeError: The job's store does not answer.
        """
        if not timeout_sec > 0:
            raise ValueError(f"--dist-timeout must be above 0 s, got {timeout_sec:g}")
        self._timeout_sec = timeout_sec
        self._interval_sec = min(MAX_INTERVAL_SEC, timeout_sec / LOOKS_PER_TIMEOUT)
        self._rank, self._keys = get_rank(), [f"rank-{r}" for r in range(get_world_size())]
        self._beat = (0, "starting", False, 0)
        self._idle = (0, 0.0)  # a beat's number, and its age when the watching thread looked last
        self._ranks = {self._rank: Progress()}  # as the watching thread saw them last
        self._left, self._is_victim = "", False
        self._verdict = ""
        self._entries: dict[int, bytes] = {}  # as the store held them last
        self._num_answers, self._broken = 0, False  # of the store
        self._closed = threading.Event()
        self._threads: list[threading.Thread] = []
        if len(self._keys) > 1:
            self._store = job_store()
            # two threads, as a call to the store may never come back
            for work in (self._watch, self._report):
                self._threads.append(threading.Thread(target=work, daemon=True))
                self._threads[-1].start()

    def beat(self, step: int, what: str, waits: bool = False) -> None:
        """Tell that this rank has got here; costs next to nothing.

        Args:
            step: Counts up, alike on all ranks.
            what: What begins now, as in "loading a batch".
            waits: Whether that needs all ranks, so that another one may hold up this one in it.
        """
        self._beat = (step, what, waits, self._beat[-1] + 1)  # the count tells beats apart

    def close(self, why: str = "finished") -> None:
        """Stop watching and tell the others so; before ``cleanup_dist``, which takes the store."""
        self._left = why
        self._closed.set()
        if self._threads:
            watch, report = self._threads
            watch.join()  # at once, or never: it may be ending this process
            report.join(self._interval_sec)  # it may hang in the store

    def __enter__(self) -> "Watchdog":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            return self.close()
        self._is_victim = _is_broken_exchange(error)
        if self._threads and self._is_victim:
            self._name_the_broken()
        reason = (str(error).splitlines() or [""])[0]
        self.close(f"{type(error).__name__}: {reason[:200]}")

    def _watch(self) -> None:
        """Look at all ranks every so often; no input or output here that could hang."""
        clock, before, seen = 0.0, time.monotonic(), Sightings()
        while not self._closed.wait(self._interval_sec):
            now = time.monotonic()
            # more than that between two looks: this process was stopped meanwhile
            clock += min(now - before, 2 * self._interval_sec)
            before = now
            self._ranks = self._look(seen, clock)
            store_silent_sec = seen.age("store", self._num_answers, clock)
            self._verdict = self._verdict_of_others() or self._judge(store_silent_sec)
            if self._verdict and not self._is_victim:  # a victim is about to end anyway
                self._end()

    def _look(self, seen: "Sightings", clock: float) -> dict[int, Progress]:
        ranks = {}
        for rank in range(len(self._keys)):
            raw = self._entries.get(rank)
            silent_sec = seen.age(rank, raw, clock)
            known = Progress(**json.loads(raw)["progress"]) if raw else Progress()
            idle_sec = known.idle_sec + silent_sec
            ranks[rank] = replace(known, idle_sec=idle_sec, silent_sec=silent_sec)
        number = self._beat[-1]
        self._idle = (number, seen.age("beat", number, clock))
        ranks[self._rank] = self._own_progress()
        return ranks

    def _own_progress(self) -> Progress:
        step, what, waits, number = self._beat
        looked_at, idle_sec = self._idle
        return Progress(step, what, waits, idle_sec if looked_at == number else 0.0)

    def _verdict_of_others(self) -> str:
        verdicts = (json.loads(raw)["verdict"] for raw in self._entries.values())
        return next(filter(None, verdicts), "")

    def _judge(self, store_silent_sec: float) -> str:
        idle_sec = max(p.idle_sec for p in self._ranks.values() if not p.left)
        if max(idle_sec, store_silent_sec) < self._timeout_sec:
            return ""
        return self._describe(store_silent_sec)

    def _describe(self, store_silent_sec: float) -> str:
        silence_sec = SILENT_LOOKS * self._interval_sec
        return describe(self._ranks, self._timeout_sec, silence_sec, store_silent_sec)

    def _report(self) -> None:
        """Write about this rank and read of the others, every so often and when closed."""
        look, last = 0, False
        while not last:
            last = self._closed.wait(self._interval_sec if look else 0)
            look += 1  # tells entries apart
            own = replace(self._own_progress(), left=self._left, is_victim=self._is_victim)
            entry = {"look": look, "progress": asdict(own), "verdict": self._verdict}
            try:
                self._store.set(self._keys[self._rank], json.dumps(entry))
                self._read()
            except RuntimeError:  # a connection that is lost stays lost: its host has gone
                self._broken = True
                return
            self._num_answers += 1

    def _read(self) -> None:
        has = self._store.check  # keys that are not there yet must not be waited for
        known = [r for r, key in enumerate(self._keys) if r in self._entries or has([key])]
        values = self._store.multi_get([self._keys[r] for r in known])
        self._entries = dict(zip(known, values, strict=True))

    def _end(self) -> None:
        """Say why and end the process, as a thread inside an exchange cannot be interrupted."""
        # the log may hang on the very disk that the rank hangs on: it gets a thread of its own
        log = threading.Thread(target=_log.critical, args=(self._verdict,), daemon=True)
        log.start()
        log.join(self._interval_sec)
        if log.is_alive():
            os.write(STDERR, f"{self._verdict}\n".encode())
        faulthandler.dump_traceback(STDERR, all_threads=True)
        time.sleep(LAST_LOOKS * self._interval_sec)
        os._exit(STUCK_STATUS)

    def _name_the_broken(self) -> None:
        """Wait until it shows which rank an exchange broke on, and log that."""
        silence_sec = SILENT_LOOKS * self._interval_sec
        for _ in range(SILENT_LOOKS + 2):
            time.sleep(self._interval_sec)
            gone = gone_ranks(self._ranks, silence_sec)
            if self._broken or not all(self._ranks[rank].is_victim for rank in gone):
                why = self._describe(silence_sec if self._broken else 0.0)
                _log.error(f"An exchange with the other ranks broke: {why}")
                if self._rank == 0:  # its end is that of the store, which others still look into
                    time.sleep(LAST_LOOKS * self._interval_sec)
                return


class Sightings:
    """For how long something has been seen unchanged, by the clock of who looks."""

    def __init__(self) -> None:
        self._since: dict[Hashable, tuple[object, float]] = {}

    def age(self, name: Hashable, value: object, clock: float) -> float:
        """Note what `name` is now; returns the seconds since it was first seen so."""
        before = self._since.get(name)
        if before is None or before[0] != value:
            self._since[name] = before = (value, clock)
        return clock - before[1]


def _is_broken_exchange(error: BaseException) -> bool:
    """Gloo's and NCCL's errors; the former are known by their words alone."""
    words = str(error).lower()
    named = any(word in words for word in ("gloo", "nccl", "connection"))
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and named)
