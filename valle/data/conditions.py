"""What a cut carries beside its tokens: MIDI events that were played, or a text that was said.

Events lie in `custom["midi_tokens"]`, an array of the whole excerpt. As a cut that is cut again
would keep all of it, `custom["midi_span"]` says of which span of the recording they are. Symbols of
a text lie where VALL-E's manifests have them, in `supervisions[0].custom["tokens"]["text"]`.
Letters: S events or symbols, special ones included.
"""

from typing import Any

import numpy as np
from lhotse.array import Array

from valle.utils.vocabulary import BOS, EOS, MIDI_FIELDS, NUM_SPECIALS

MIDI = "midi_tokens"
MIDI_SPAN = "midi_span"

_SAME_SEC = 1e-6  # manifests hold times rounded to 8 digits
_SIZES = np.array([field.num_ids for field in MIDI_FIELDS])
_AGAIN = "run egs/atepp/bin/tokenizer.py again"


def condition_of(cut: Any) -> str | None:
    """What a cut carries for a model to read: "midi", "text", or None."""
    if (getattr(cut, "custom", None) or {}).get(MIDI) is not None:
        return "midi"
    return "text" if _recorded_symbols(cut) is not None else None


def check_condition(cut: Any, condition: str) -> None:
    """Refuse a cut that does not carry what is asked for.

    Raises:
      ValueError: It carries something else, or nothing.
    """
    found = condition_of(cut)
    if found != condition:
        flag = "--midi-dir" if condition == "midi" else "--manifest, of cuts with text"
        raise ValueError(
            f"cut {cut.id} carries {found or 'no condition'}, expected {condition}: take manifests "
            f"that egs/atepp/bin/tokenizer.py wrote with {flag}, or another --condition"
        )


def midi_events(cut: Any) -> np.ndarray:
    """Read a cut's MIDI events.

    Returns:
      (S, 6) int64 ids, BOS first and EOS last.

    Raises:
      ValueError: No MIDI, that of another span, or no events; the message names the cut.
      OSError: They cannot be read.
    """
    check_condition(cut, "midi")
    array = cut.custom[MIDI]
    if not isinstance(array, Array):
        raise ValueError(
            f"cut {cut.id}: {MIDI} is a {type(array).__name__}, expected an array of the whole "
            f"excerpt: {_AGAIN}"
        )
    _check_span(cut)
    events = array.load()
    if events.shape != tuple(array.shape):
        raise ValueError(
            f"cut {cut.id} has MIDI events of shape {events.shape}, by its manifest "
            f"{tuple(array.shape)}: another file took their place; {_AGAIN}"
        )
    check_events(events, f"cut {cut.id}")
    return events.astype(np.int64)


def _check_span(cut: Any) -> None:
    span = cut.custom.get(MIDI_SPAN)
    if span is None or len(span) != 2:
        raise ValueError(
            f"cut {cut.id} has MIDI events, and {MIDI_SPAN} {span}, expected [start, duration] of "
            f"the excerpt that they are of: {_AGAIN}"
        )
    if any(abs(a - b) > _SAME_SEC for a, b in zip(span, (cut.start, cut.duration), strict=True)):
        raise ValueError(
            f"cut {cut.id} begins at {cut.start:g} s and lasts {cut.duration:g} s, its MIDI events "
            f"begin at {span[0]:g} s and last {span[1]:g} s: it was cut again after they were "
            "made. Tokenise with the --window that is wanted, or leave the cuts as they are"
        )


def check_events(events: np.ndarray, where: str) -> None:
    """Refuse MIDI events that a model cannot embed.

    Args:
      events: (S, 6) integers.
      where: Names them in the message, e.g. "cut piece-7".

    Raises:
      ValueError: Another shape, no whole numbers, no row of BOS or EOS, or an id out of range.
    """
    if events.ndim != 2 or events.shape[1] != len(MIDI_FIELDS) or len(events) < 2:
        raise ValueError(
            f"{where} has MIDI events of shape {events.shape}, expected (S, {len(MIDI_FIELDS)}) "
            f"with at least a row of BOS and one of EOS: {_AGAIN}"
        )
    if not np.issubdtype(events.dtype, np.integer):
        raise ValueError(f"{where} has MIDI events of {events.dtype}, expected integers: {_AGAIN}")
    if (events[0] != BOS).any() or (events[-1] != EOS).any():
        raise ValueError(
            f"{where} has MIDI events from {events[0].tolist()} to {events[-1].tolist()}, expected "
            f"rows of {BOS} (BOS) and {EOS} (EOS) there: {_AGAIN}"
        )
    wrong = (events < 0) | (events >= _SIZES)
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        field = MIDI_FIELDS[column]
        raise ValueError(
            f"{where} has id {events[row, column]} for the {field.name} of event {row}, expected 0 "
            f"to {field.num_ids - 1} ({NUM_SPECIALS} special ones): these events have another "
            f"vocabulary, or are damaged; {_AGAIN}"
        )


def text_symbols(cut: Any) -> list[str]:
    """The symbols of a cut's text.

    Raises:
      ValueError: It carries none; the message names the cut.
    """
    check_condition(cut, "text")
    symbols = _recorded_symbols(cut)
    if not isinstance(symbols, list) or not symbols or not all(type(s) is str for s in symbols):
        raise ValueError(
            f"cut {cut.id} has {str(symbols)[:60]} for the symbols of its text, expected a list of "
            f"one string or more: {_AGAIN}"
        )
    return symbols


def _recorded_symbols(cut: Any) -> Any:
    """Whatever stands where the symbols of a text belong; None for nothing at all."""
    supervisions = getattr(cut, "supervisions", None)
    if not supervisions:
        return None
    tokens = (supervisions[0].custom or {}).get("tokens")
    return tokens.get("text") if isinstance(tokens, dict) else None
