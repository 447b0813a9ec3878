"""Notes of a piece, of an excerpt, and as the events a model reads.

An event is a note in the six fields of ``valle.utils.vocabulary``. Times are on a grid of 192
ticks a second: an event's duration, the interval since the onset before it, and the place of its
onset (bar, and position in the bar).

N notes, S events (BOS and EOS among them).
"""

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from valle.data.midi_reading import Notes, read_notes
from valle.utils.vocabulary import (
    BAR,
    BOS,
    DURATION,
    EOS,
    INTERVAL,
    LOWEST_PITCH,
    MASK,
    MIDI_FIELDS,
    MIDI_SEC,
    NUM_SPECIALS,
    PAD,
    PITCH,
    POSITION,
    TICKS_PER_BAR,
    TICKS_PER_SEC,
    VELOCITY,
)

__all__ = ["Notes", "check_notes", "cut_notes", "events_of", "join_notes", "notes_of", "read_notes"]

Events = NDArray[np.int16]
"""(S, 6) ids, in the order of MIDI_FIELDS."""
Integers = NDArray[np.int64]

_SIZES = [entry.num_values for entry in MIDI_FIELDS]
_HELD_VELOCITY = 64  # of a note whose stroke lies before the excerpt: the middle
_SAME_SEC = 1e-3  # two halves of a note that was cut know its onset as well as that


def check_notes(notes: Notes) -> None:
    """Refuse what are no notes.

    Raises:
        ValueError: A wrong shape, a number that is not finite or out of range, or a wrong order.
    """
    if notes.ndim != 2 or notes.shape[1] != 4:
        raise ValueError(
            "notes must be (N, 4): onset_sec, duration_sec, pitch, velocity; got the shape "
            f"{tuple(notes.shape)}"
        )
    onset, duration, pitch, velocity = notes.T
    is_good = np.isfinite(notes).all(axis=1) & (duration >= 0)
    is_good &= (pitch >= 0) & (pitch <= 127) & (velocity >= 1) & (velocity <= 127)
    if not is_good.all():
        index = int(np.argmin(is_good))
        raise ValueError(
            "a note needs finite times, a duration of 0 s or more, a pitch of 0 to 127 and a "
            f"velocity of 1 to 127; note {index} is {notes[index].tolist()}"
        )
    if (np.diff(onset) < 0).any():
        raise ValueError("notes must be sorted by onset; sort them first")


def _sorted(notes: Notes) -> Notes:
    return notes[np.lexsort((notes[:, 2], notes[:, 0]))]


def cut_notes(notes: Notes, start_sec: float, end_sec: float) -> Notes:
    """The notes that sound in an excerpt, in the excerpt's time.

    Args:
        notes: (N, 4) of the whole.
        start_sec: Of the excerpt; becomes 0.
        end_sec: Of the excerpt; no note sounds beyond it.

    Returns:
        (M, 4). A note struck before the start that sounds into the excerpt keeps its true onset,
        which is negative.

    Raises:
        ValueError: The excerpt is empty, or the notes are none.
    """
    check_notes(notes)
    if not start_sec < end_sec:
        raise ValueError(f"an excerpt must end after it starts, got {start_sec} s to {end_sec} s")
    onset, end = notes[:, 0], notes[:, 0] + notes[:, 1]
    excerpt = _ended(notes[(onset >= start_sec) | (end > start_sec)], end_sec)
    excerpt[:, 0] -= start_sec
    return _sorted(excerpt)  # the difference may make two onsets the same


def _ended(notes: Notes, end_sec: float) -> Notes:
    """A copy of the notes in which none sounds beyond a time."""
    notes = notes[notes[:, 0] < end_sec]
    notes[:, 1] = np.minimum(notes[:, 1], end_sec - notes[:, 0])
    return notes


def join_notes(first: Notes, second: Notes, boundary_sec: float) -> Notes:
    """Put one excerpt behind another, as a prompt and what follows it are described together.

    A note that was cut at the boundary becomes one again. A note held into the second excerpt
    that the first does not hold, as where the two come from different pieces, is struck at the
    boundary.

    Args:
        first: (N, 4) of the first excerpt.
        second: (M, 4) of the second, in its own time.
        boundary_sec: The length of the first excerpt, where the second begins.

    Returns:
        Up to (N + M, 4), in the first excerpt's time.

    Raises:
        ValueError: The boundary is not above 0 s, or the notes are none.
    """
    if not boundary_sec > 0:
        raise ValueError(f"the first excerpt must be longer than 0 s, got {boundary_sec}")
    check_notes(first)
    check_notes(second)
    joined, added = _ended(first, boundary_sec), second.copy()
    added[:, 0] += boundary_sec
    is_new = np.ones(len(added), dtype=bool)
    for index in np.flatnonzero(second[:, 0] < 0):
        onset, duration, pitch, _ = added[index]
        same = (joined[:, 2] == pitch) & (np.abs(joined[:, 0] - onset) < _SAME_SEC)
        joined[same, 1] = duration
        is_new[index] = not same.any()
        added[index, :2] = boundary_sec, onset + duration - boundary_sec
    return _sorted(np.concatenate([joined, added[is_new]]))


def events_of(notes: Notes) -> tuple[Events, Counter[str]]:
    """Notes of an excerpt as events.

    Times go to the nearest tick. What has no place in the vocabulary is brought into it, or left
    out, by these rules, and counted under these names:

    - "pitch off the keyboard": moved by octaves onto it;
    - "short duration": of less than half a tick, becomes one tick;
    - "long duration": above 6 s, becomes 6 s;
    - "long interval": of 4 s and more since the onset before, becomes the largest there is;
    - "too late": the onset lies 32 s or more after the start; left out;
    - "already over": ended before the start, or within half a tick of it; left out.

    A note held over the start (a negative onset) stands at the start with what is left of its
    duration and the velocity MASK; such notes come first. The first interval counts from the start.

    Args:
        notes: (N, 4), in the excerpt's time.

    Returns:
        (S, 6) int16, a row of BOS, the events by onset and pitch, a row of EOS; and the counts.

    Raises:
        ValueError: The notes are none.
    """
    check_notes(notes)
    counts: Counter[str] = Counter()
    onset = _ticks(notes[:, 0])
    is_held = onset < 0
    duration = _ticks(notes[:, 1] + np.where(is_held, notes[:, 0], 0))
    is_over, is_late = is_held & (duration < 1), onset >= MIDI_SEC * TICKS_PER_SEC
    _count(counts, {"already over": is_over, "too late": is_late})
    kept = np.lexsort((notes[:, 2], onset.clip(0), ~is_held))
    kept = kept[~(is_over | is_late)[kept]]
    fields = _fields(notes[kept], onset[kept], duration[kept], counts)
    rows = np.concatenate([np.full((1, 6), BOS), fields, np.full((1, 6), EOS)])
    return rows.astype(np.int16), counts


def _ticks(seconds: NDArray[np.float64]) -> Integers:
    return np.rint(seconds * TICKS_PER_SEC).astype(np.int64)


def _count(counts: Counter[str], found: dict[str, NDArray[np.bool_]]) -> None:
    counts.update({name: int(where.sum()) for name, where in found.items() if where.any()})


def _fields(notes: Notes, onset: Integers, duration: Integers, counts: Counter[str]) -> Integers:
    """Ids (N, 6) of notes that are all inside; the onset of a held one is negative."""
    start = onset.clip(0)
    pitch = notes[:, 2].astype(np.int64) - LOWEST_PITCH
    interval = np.diff(start, prepend=0)
    _count(
        counts,
        {
            "pitch off the keyboard": (pitch < 0) | (pitch >= _SIZES[PITCH]),
            "short duration": duration < 1,
            "long duration": duration > _SIZES[DURATION],
            "long interval": interval >= _SIZES[INTERVAL],
        },
    )
    values = np.empty((len(notes), 6), np.int64)
    values[:, PITCH] = _onto_keyboard(pitch)
    values[:, VELOCITY] = (notes[:, 3].astype(np.int64) - 1) // 2
    values[:, DURATION] = duration.clip(1, _SIZES[DURATION]) - 1
    values[:, INTERVAL] = interval.clip(max=_SIZES[INTERVAL] - 1)
    values[:, POSITION] = start % TICKS_PER_BAR
    values[:, BAR] = start // TICKS_PER_BAR
    ids = values + NUM_SPECIALS
    ids[onset < 0, VELOCITY] = MASK
    return ids


def _onto_keyboard(key: Integers) -> Integers:
    """Keys counted from the lowest; those outside move by octaves to the nearest one inside."""
    top = _SIZES[PITCH] - 1
    below, above = np.maximum(-key, 0), np.maximum(key - top, 0)
    return key + 12 * -(-below // 12) - 12 * -(-above // 12)


def notes_of(events: NDArray[np.integer]) -> Notes:
    """The notes that events stand for; undoes ``events_of`` up to the grid.

    A held note comes back at onset 0 with velocity 64; of the two velocities that share an id,
    the lower comes back.

    Args:
        events: (S, 6) ids, BOS first and EOS last; rows of PAD behind them do not count.

    Returns:
        (N, 4) notes.

    Raises:
        ValueError: A wrong shape, frame of special rows, or id.
    """
    rows = np.asarray(events, dtype=np.int64)
    if rows.ndim != 2 or rows.shape[1] != len(_SIZES):
        raise ValueError(f"events must be (S, {len(_SIZES)}), got the shape {tuple(rows.shape)}")
    rows = rows[(rows != PAD).any(axis=1)]
    if len(rows) < 2 or (rows[0] != BOS).any() or (rows[-1] != EOS).any():
        raise ValueError(
            f"events must begin with a row of BOS ({BOS}) and end with one of EOS ({EOS}), got "
            f"{rows[:1].tolist()} ... {rows[-1:].tolist()}"
        )
    values = rows[1:-1] - NUM_SPECIALS
    is_held = rows[1:-1, VELOCITY] == MASK
    values[is_held, VELOCITY] = 0
    is_good = ((values >= 0) & (values < np.array(_SIZES))).all(axis=1)
    if not is_good.all():
        index = int(np.argmin(is_good)) + 1
        limits = [NUM_SPECIALS + size - 1 for size in _SIZES]
        raise ValueError(
            f"ids of a note lie in {NUM_SPECIALS} to {limits} by field; row {index} is "
            f"{rows[index].tolist()}"
        )
    notes = np.empty((len(values), 4))
    notes[:, 0] = values[:, BAR] * TICKS_PER_BAR + values[:, POSITION]
    notes[:, 1] = values[:, DURATION] + 1
    notes[:, :2] /= TICKS_PER_SEC
    notes[:, 2] = values[:, PITCH] + LOWEST_PITCH
    notes[:, 3] = np.where(is_held, _HELD_VELOCITY, 2 * values[:, VELOCITY] + 1)
    return _sorted(notes)
