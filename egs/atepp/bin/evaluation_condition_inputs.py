"""What a VALL-E is told of held-out cuts: their own text or notes, or those of another recording.

S symbols or events, BOS and EOS among them; P prompt frames, T frames of a cut, Q quantizers.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from evaluation_gaps import next_others
from evaluation_subject import Subject
from generation_rows import num_of_prompts

from valle.data import collate_codes
from valle.data.conditions import midi_events, text_symbols
from valle.data.midi import VELOCITY, cut_notes, events_of, join_notes, notes_of
from valle.models import VALLE, Given
from valle.utils.vocabulary import BOS, EOS, MASK, TICKS_PER_SEC

_HELD_SEC = 1 / TICKS_PER_SEC  # by how much before an excerpt its held notes are said to begin


def true_and_shuffled(
    subject: Subject, cuts: Sequence[Any], seconds: Sequence[float], prompt_sec: float
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The cuts' own conditions; and those of other recordings in their place.

    Of MIDI the prompt's notes stay, and what follows is that of the other cut, at its own times. A
    text is another one from its beginning.

    Args:
      subject: Whose model it is.
      cuts: That carry their conditions.
      seconds: Of each cut from its start, how much is told of.
      prompt_sec: How much of that is prompt; 0 for none.

    Returns:
      Of each cut (S,) ids of text or (S, 6) events, twice; the second list is empty where
      all cuts are of one recording.

    Raises:
      ValueError: A cut without the condition; the message names it.
    """
    nexts = next_others([cut.recording_id for cut in cuts])
    if subject.model.config.condition == "text":
        texts = [text_ids(subject, cut) for cut in cuts]
        return texts, [texts[i] for i in nexts]
    notes = [_notes(midi_events(cut)) for cut in cuts]
    own = [_events(cut_notes(mine, 0, end)) for mine, end in zip(notes, seconds, strict=True)]
    mixed = [
        _events(_followed_by(notes[i], notes[j], prompt_sec, seconds[i]))
        for i, j in enumerate(nexts)
    ]
    return own, mixed


def text_ids(subject: Subject, cut: Any) -> np.ndarray:
    """(S,) by the table that the model was trained with.

    Raises:
      ValueError: The checkpoint holds no table, or the cut no text.
    """
    if subject.symbols is None:
        raise ValueError(f"{subject.path} holds no text_symbols: was it written by trainer.py?")
    return np.array(subject.symbols.ids(text_symbols(cut)))


def _notes(events: np.ndarray) -> np.ndarray:
    """Notes (N, 4) of events, those held over the start with an onset before it, as they had."""
    is_held = events[:, VELOCITY] == MASK
    is_end = (events == BOS).all(axis=1) | (events == EOS).all(axis=1)
    held, struck = (notes_of(events[is_end | mask]) for mask in (is_held, ~is_held))
    held[:, 0] -= _HELD_SEC
    held[:, 1] += _HELD_SEC
    return np.concatenate([held, struck])


def _followed_by(
    own: np.ndarray, other: np.ndarray, prompt_sec: float, end_sec: float
) -> np.ndarray:
    """Notes of a prompt, then what the other has after as long."""
    rest = cut_notes(other, prompt_sec, end_sec)
    if not prompt_sec:
        return rest
    return join_notes(cut_notes(own, 0, prompt_sec), rest, prompt_sec)


def _events(notes: np.ndarray) -> np.ndarray:
    return events_of(notes)[0].astype(np.int64)


def given_of(model: VALLE, told: Sequence[np.ndarray], num_prompt: int, device: Any) -> Given:
    """For `frame_costs`, where prompts have `num_prompt` frames.

    Raises:
      ValueError: Tokens that the model does not have.
    """
    x, x_lens = (part.to(device) for part in collate_codes(told))
    lens = torch.full_like(x_lens, num_prompt)
    return model.given(x, x_lens, num_of_prompts(model, x, x_lens, lens))
