import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from little_pieces import RATE, piece, tones

from valle.evaluation.onsets import (
    Agreement,
    Onsets,
    compare_notes,
    compare_onsets,
    first_of_each_chord,
    num_matches,
    onsets_of_notes,
    onsets_of_sound,
)

NOTES = [(0.5, 0.6, 60), (1.0, 0.5, 64), (1.5, 0.9, 55), (1.5, 0.9, 72), (2.6, 0.6, 65)]


def as_array(notes) -> np.ndarray:
    return np.array([(onset, length, pitch, 64) for onset, length, pitch in notes], dtype=float)


def most_pairs(one, other, tolerance) -> int:
    """By trying every way to pair them."""
    if len(one) > len(other):
        one, other = other, one
    ways = itertools.permutations(other, len(one))
    pairs = (zip(one, way, strict=True) for way in ways)
    return max(sum(abs(a - b) <= tolerance for a, b in way) for way in pairs)


times = st.lists(st.integers(0, 20), max_size=6).map(sorted)


@settings(max_examples=200, deadline=None)
@given(times, times, st.integers(0, 5))
def test_as_many_are_paired_as_can_be(one, other, tolerance):
    assert num_matches(one, other, tolerance) == most_pairs(one, other, tolerance)
    assert num_matches(one, other, tolerance) == num_matches(other, one, tolerance)


def test_precision_recall_and_f1():
    found = Agreement(num_matched=3, num_made=4, num_true=6)
    assert (found.precision, found.recall, found.f1) == (0.75, 0.5, pytest.approx(0.6))
    silent = Agreement(0, 0, 6)
    assert math.isnan(silent.precision)
    assert (silent.recall, silent.f1) == (0, 0)
    assert math.isnan(Agreement(0, 0, 0).f1)
    assert math.isnan(Agreement(0, 3, 0).recall)


def test_what_begins_within_a_chord_is_one_onset_with_all_its_classes():
    assert first_of_each_chord([0, 0.03, 0.06, 0.2]) == [0, 0.06, 0.2]
    found = onsets_of_notes(as_array([(-0.2, 1, 50), (0.5, 1, 60), (0.52, 1, 64), (1, 1, 72)]))
    assert found == Onsets([0.5, 1.0], [frozenset({0, 4}), frozenset({0})])
    assert onsets_of_notes(np.empty((0, 4))) == Onsets([], [])


def test_notes_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"notes must be \(M, 4\).*got the shape \(3, 6\)"):
        onsets_of_notes(np.zeros((3, 6)))


@pytest.mark.parametrize("rate", [8000, 22050])
def test_a_sound_has_the_onsets_and_the_classes_of_its_notes(rate):
    heard = onsets_of_sound(tones(NOTES, 3.5, rate), rate)
    written = onsets_of_notes(as_array(NOTES))
    assert compare_onsets(heard, written) == Agreement(4, 4, 4)
    assert compare_notes(heard, written).recall == 1
    assert compare_notes(heard, written).precision >= 5 / 6


def test_other_notes_at_the_same_times_agree_in_their_times_alone():
    one = onsets_of_sound(tones(NOTES, 3.5), RATE)
    moved = [(onset, length, pitch + 3) for onset, length, pitch in NOTES]
    other = onsets_of_sound(tones(moved, 3.5), RATE)
    assert compare_onsets(one, other).f1 == 1
    assert compare_notes(one, other).f1 < 0.3


def test_the_same_notes_later_agree_in_nothing():
    one = onsets_of_sound(tones(NOTES, 3.5), RATE)
    later = [(onset + 0.2, length, pitch) for onset, length, pitch in NOTES]
    other = onsets_of_sound(tones(later, 3.5), RATE)
    assert compare_onsets(one, other).f1 == compare_notes(one, other).f1 == 0


def test_a_louder_copy_agrees_and_another_piece_does_not():
    sounds = [piece(tempo, tonic, 6, tonic) for tempo, tonic in ((96, 48), (80, 51))]
    one, other = (onsets_of_sound(sound, RATE) for sound in sounds)
    louder = onsets_of_sound(3 * sounds[0], RATE)
    assert louder.times == one.times
    assert compare_notes(louder, one).f1 > 0.99
    assert compare_notes(other, one).f1 < 0.35


def test_a_note_that_sounds_on_does_not_begin_again():
    time = torch.arange(3 * RATE) / RATE
    held = 0.2 * torch.sin(2 * torch.pi * 261.6 * time)  # C
    heard = onsets_of_sound(held + tones([(1.0, 0.8, 67)], 3), RATE)
    assert heard.of_class(7) == [pytest.approx(1.0, abs=0.05)]
    assert not any(abs(begin - 1.0) < 0.1 for begin in heard.of_class(0))


def test_silence_has_no_onsets():
    assert onsets_of_sound(torch.zeros(2 * RATE), RATE) == Onsets([], [])
