"""A MIDI file becomes notes in seconds, as one piano would play it.

N notes.
"""

import logging
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Notes = NDArray[np.float64]
"""(N, 4): onset_sec, duration_sec, pitch (MIDI number), velocity (1..127); by onset, then pitch."""

DRUMS = 9  # the tenth channel
SUSTAIN, SUSTAIN_DOWN = 64, 64  # the controller, and the least value of a pedal that is down
ALL_SOUND_OFF, RESET, ALL_NOTES_OFF = 120, 121, 123  # controllers
VERSION = 1  # to be raised when the same file begins to mean other notes; kept ones are of one
DEFAULT_TEMPO = 500_000  # microseconds a beat, until a file says otherwise


def read_notes(path: str | Path) -> Notes:
    """The notes of a MIDI file; the file is only read.

    All tracks and channels are played on one keyboard, at the tempo any track sets; drums
    (channel 10) are left out. The sustain pedal is folded into the durations: a note released
    while the pedal of its channel is down sounds until the pedal rises, its key is struck again,
    or the file ends. So no two notes of one pitch overlap; of two struck at the same moment one
    remains, as loud and as long as the more so of both. A note that is never released ends with
    the file, and the log counts such notes. Sostenuto and soft pedal change nothing.

    Args:
        path: A Standard MIDI File of type 0 or 1, timed in ticks a beat.

    Returns:
        (N, 4) notes, N at least 1.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, no MIDI file, of another type or timing, or without notes.
        ImportError: mido is missing; the message names the pip line.
    """
    path = Path(path)
    file = _parse(path)
    keyboard = _Keyboard()
    now = 0.0
    for now, track, message in _timed(file):
        keyboard.hear(now, track, message)
    unclosed = keyboard.close(now)
    if unclosed:
        logging.warning(f"{path}: {unclosed} notes are never released; they end with the file")
    if not keyboard.strokes:
        raise ValueError(
            f"{path} holds no notes (drums do not count); leave it out, or give the file with "
            "the piano's part"
        )
    return _one_keyboard(keyboard.strokes)


def _import_mido() -> ModuleType:
    try:
        import mido
    except ImportError as error:
        raise ImportError("reading MIDI files needs mido: run pip install 'valle[midi]'") from error
    return mido


def _parse(path: Path) -> Any:
    mido = _import_mido()
    if not path.is_file():
        raise FileNotFoundError(f"no MIDI file {path}")
    # what mido raises on damaged files; its own key signature error is a bare Exception
    errors = (OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, struct.error)
    try:
        file = mido.MidiFile(path)
    except (*errors, mido.KeySignatureError) as error:
        raise ValueError(
            f"{path} cannot be read as a MIDI file ({type(error).__name__}: {error}); it may be "
            "cut off or of another format: fetch it again, save it anew with a music program, or "
            "leave it out"
        ) from error
    if file.type not in (0, 1):
        raise ValueError(
            f"{path} is a MIDI file of type {file.type}, whose tracks are separate pieces; "
            "expected type 0 or 1: save each track as a file of its own"
        )
    if file.ticks_per_beat <= 0:
        raise ValueError(
            f"{path} counts time in SMPTE frames (division {file.ticks_per_beat}); expected ticks "
            "a beat: save it so with a music program"
        )
    return file


def _timed(file: Any) -> Iterator[tuple[float, int, Any]]:
    """(seconds, track, message) of all tracks in order of time.

    Seconds are counted from the last change of tempo, so that no rounding error adds up.
    """
    messages = []
    for number, track in enumerate(file.tracks):
        tick = 0
        for message in track:
            tick += message.time
            messages.append((tick, number, message))
    messages.sort(key=lambda entry: entry[0])  # stable: a track's own order stays
    tempo, since_tick, since_sec = DEFAULT_TEMPO, 0, 0.0
    for tick, number, message in messages:
        now = since_sec + (tick - since_tick) * tempo / (1e6 * file.ticks_per_beat)
        if message.type == "set_tempo":
            tempo, since_tick, since_sec = message.tempo, tick, now
        yield now, number, message


class _Stroke(NamedTuple):
    onset_sec: float
    end_sec: float
    pitch: int
    velocity: int


class _Key(NamedTuple):
    """A key belongs to a track: the hands of a piece often share a channel, and at times a key."""

    channel: int
    track: int
    pitch: int


@dataclass
class _Keyboard:
    """Which keys are down, and which are up but sound on under the pedal."""

    strokes: list[_Stroke] = field(default_factory=list)
    down: dict[_Key, tuple[float, int]] = field(default_factory=dict)  # onset_sec, velocity
    ringing: list[tuple[_Key, tuple[float, int]]] = field(default_factory=list)
    pedals: set[int] = field(default_factory=set)  # channels

    def hear(self, now: float, track: int, message: Any) -> None:
        """Take one message; others than notes, pedal and silence say nothing to a keyboard."""
        if getattr(message, "channel", DRUMS) == DRUMS:
            return
        channel = message.channel
        if message.type in ("note_on", "note_off"):
            key = _Key(channel, track, message.note)
            self._release(now, key)  # struck again while down: the earlier note ends here
            if message.type == "note_on" and message.velocity:
                self.down[key] = (now, message.velocity)
        elif message.type == "control_change":
            self._control(now, channel, message.control, message.value)

    def _control(self, now: float, channel: int, control: int, value: int) -> None:
        if control == SUSTAIN:
            self._pedal(now, channel, value >= SUSTAIN_DOWN)
        elif control == RESET:
            self._pedal(now, channel, False)
        elif control in (ALL_SOUND_OFF, ALL_NOTES_OFF):
            for key in [key for key in self.down if key.channel == channel]:
                self._release(now, key)
        if control == ALL_SOUND_OFF:
            self._end_ringing(now, channel)

    def close(self, now: float) -> int:
        """End all that still sounds; returns how many keys were still down."""
        num_down = len(self.down)
        for channel in list(self.pedals):
            self._pedal(now, channel, False)
        for key in list(self.down):
            self._release(now, key)
        return num_down

    def _release(self, now: float, key: _Key) -> None:
        stroke = self.down.pop(key, None)
        if stroke is None:
            return
        if key.channel in self.pedals:
            self.ringing.append((key, stroke))
        else:
            self._end(now, key, stroke)

    def _pedal(self, now: float, channel: int, is_down: bool) -> None:
        if is_down:
            self.pedals.add(channel)
            return
        self.pedals.discard(channel)
        self._end_ringing(now, channel)

    def _end_ringing(self, now: float, channel: int) -> None:
        for key, stroke in self.ringing:
            if key.channel == channel:
                self._end(now, key, stroke)
        self.ringing = [entry for entry in self.ringing if entry[0].channel != channel]

    def _end(self, now: float, key: _Key, stroke: tuple[float, int]) -> None:
        onset_sec, velocity = stroke
        self.strokes.append(_Stroke(onset_sec, now, key.pitch, velocity))


def _one_keyboard(strokes: list[_Stroke]) -> Notes:
    """End each stroke where its pitch is struck again, and make one of doubled strokes."""
    rows: list[tuple[float, float, int, int]] = []
    later: dict[int, int] = {}  # pitch -> place in rows of its next stroke
    for stroke in sorted(strokes, reverse=True):
        place = later.get(stroke.pitch)
        if place is not None and rows[place][0] == stroke.onset_sec:
            onset, duration, pitch, velocity = rows[place]
            # sorted backwards: the longest of a doubled stroke came first
            rows[place] = (onset, duration, pitch, max(velocity, stroke.velocity))
            continue
        end = stroke.end_sec if place is None else min(stroke.end_sec, rows[place][0])
        later[stroke.pitch] = len(rows)
        rows.append((stroke.onset_sec, end - stroke.onset_sec, stroke.pitch, stroke.velocity))
    return np.array(sorted(rows, key=lambda row: (row[0], row[2])), dtype=np.float64)
