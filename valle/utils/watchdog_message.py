"""Which rank of a job holds the others up, in a sentence."""

from dataclasses import dataclass

MAX_GROUPS = 8  # of ranks in one message


@dataclass(frozen=True)
class Progress:
    """How far a rank has got, as it or another one knows.

    Attributes:
        step: Of its last beat.
        what: What it began then, as in "loading a batch".
        waits: Whether that needs the other ranks: an exchange.
        idle_sec: Time since that beat.
        silent_sec: Time since the rank last wrote about itself; part of `idle_sec`.
        left: Why its watchdog was closed; empty while it runs.
        is_victim: Whether it left because an exchange broke, which others caused.
    """

    step: int = 0
    what: str = "starting"
    waits: bool = False
    idle_sec: float = 0.0
    silent_sec: float = 0.0
    left: str = ""
    is_victim: bool = False

    @property
    def place(self) -> str:
        return f"in step {self.step}, {self.what}"


def describe(
    ranks: dict[int, Progress],
    timeout_sec: float,
    silence_sec: float,
    store_silent_sec: float = 0.0,
) -> str:
    """Say in one line which ranks hold the others up.

    Args:
        ranks: All ranks of the job.
        timeout_sec: What they had time for.
        silence_sec: A rank that wrote nothing for so long no longer runs.
        store_silent_sec: For how long the store has not answered.
    """
    advice = (
        "What takes long by right (a slow disk, a long validation) needs a larger --dist-timeout "
        f"than {timeout_sec:g} s"
    )
    if store_silent_sec >= silence_sec:
        return (
            f"the job's key-value store has not answered for {store_silent_sec:.0f} s: rank 0, "
            "which runs it (under torchrun: the agent of the first node), is stopped, killed or "
            f"cut off. Last known: {_places(ranks, 'in an exchange')}"
        )
    culprits = find_culprits(ranks, silence_sec)
    if not culprits:
        return (
            f"no rank has got on for {min(p.idle_sec for p in ranks.values()):.0f} s, as all wait "
            "for each other: in different exchanges, or the network between them fails. "
            f"{_places(ranks, 'waiting')}. See the stacks that every rank writes. {advice}"
        )
    causes = "; ".join(
        _cause(members, ranks[members[0]], timeout_sec, silence_sec)
        for members in _grouped({rank: ranks[rank] for rank in culprits})
    )
    others = {rank: p for rank, p in ranks.items() if rank not in culprits}
    waiting = f"waiting for {'it' if len(culprits) == 1 else 'them'}"
    rest = f"; {_places(others, waiting)}" if others else ""
    see = f"{causes}{rest}. See the log of {_names(culprits)}"
    if set(culprits) <= set(gone_ranks(ranks, silence_sec)):
        return see
    return f"{see}, and the stacks that every rank writes. {advice}"


def find_culprits(ranks: dict[int, Progress], silence_sec: float) -> list[int]:
    """The ranks that the others wait for; none if all wait for each other.

    A rank inside an exchange is held up by those that are not there yet. So the cause is whoever
    no longer runs; else whoever has come least far, where to have begun an exchange is farther
    than all else in a step; or, if all are in the same exchange, whoever has left the job.
    """
    gone = gone_ranks(ranks, silence_sec)
    gone = [rank for rank in gone if not ranks[rank].is_victim] or gone
    silent = [rank for rank in gone if not ranks[rank].left]
    here = {rank: (p.step, p.waits) for rank, p in ranks.items() if not _is_gone(p, silence_sec)}
    if silent or not here:
        return silent or gone
    behind = min(here.values())
    if set(here.values()) == {(behind[0], True)}:
        return gone
    return [rank for rank, reached in here.items() if reached == behind]


def gone_ranks(ranks: dict[int, Progress], silence_sec: float) -> list[int]:
    """Those that have left the job or no longer run."""
    return [rank for rank, p in ranks.items() if _is_gone(p, silence_sec)]


def _is_gone(p: Progress, silence_sec: float) -> bool:
    return bool(p.left) or p.silent_sec >= silence_sec


def _cause(members: list[int], p: Progress, timeout_sec: float, silence_sec: float) -> str:
    is_one = len(members) == 1
    it, has, were = ("it", "has", "was") if is_one else ("they", "have", "were")
    who, are = _names(members), "is" if is_one else "are"
    if p.left:
        return f"{who} {has} left the job {p.place} ({p.left})"
    if p.silent_sec >= silence_sec:
        return (
            f"{who} {has} not been heard from for {p.silent_sec:.0f} s (stopped, killed or cut "
            f"off): {it} {were} last known {p.place}"
        )
    if p.idle_sec >= timeout_sec / 2:
        return f"{who} {has} not got on for {p.idle_sec:.0f} s: {it} {are} {p.place}"
    return f"{who} {are} behind the others: {it} {are} {p.place}, begun {p.idle_sec:.0f} s ago"


def _places(ranks: dict[int, Progress], waiting: str) -> str:
    """Who is where, as in "ranks 0, 2 are waiting in step 12, exchanging gradients"."""
    groups = _grouped(ranks)
    parts = []
    for members in groups[:MAX_GROUPS]:
        p, are = ranks[members[0]], "is" if len(members) == 1 else "are"
        state = f"gone ({p.left})" if p.left else waiting if p.waits else ""
        parts.append(" ".join(filter(None, [_names(members), are, state, p.place])))
    if len(groups) > MAX_GROUPS:
        parts.append(f"{sum(map(len, groups[MAX_GROUPS:]))} ranks are elsewhere")
    return "; ".join(parts)


def _grouped(ranks: dict[int, Progress]) -> list[list[int]]:
    """Ranks that are at the same place together; in each group the one idle longest first."""
    groups: dict[tuple[str, bool, str], list[int]] = {}
    for rank in sorted(ranks, key=lambda rank: -ranks[rank].idle_sec):
        p = ranks[rank]
        groups.setdefault((p.place, p.waits, p.left), []).append(rank)
    return list(groups.values())


def _names(members: list[int]) -> str:
    """As in "rank 3" or "ranks 0-2, 7"."""
    runs: list[list[int]] = []
    for rank in sorted(members):
        if runs and rank == runs[-1][-1] + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    parts = [f"{run[0]}" if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    return f"rank{'s' if len(members) > 1 else ''} {', '.join(parts)}"
