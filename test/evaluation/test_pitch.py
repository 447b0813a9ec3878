import pytest
import torch
from little_pieces import RATE, pulse, tones

from valle.evaluation.pitch import (
    audible_spectrum,
    mean_pitch,
    pitch_classes,
    pitch_distribution,
    profile_correlation,
    register_distance,
)


def distribution(pitches: tuple[int, ...], rate: int = RATE):
    sound = tones(pulse(120, pitches, 4), 4, rate)
    return pitch_distribution(audible_spectrum(sound, rate), rate)


@pytest.mark.parametrize("rate", [8000, 22050])
@pytest.mark.parametrize("pitch", [48, 60, 72, 84])
def test_the_register_of_a_known_pitch(pitch, rate):
    found = distribution((pitch,), rate)
    assert found.sum() == pytest.approx(1)
    assert mean_pitch(found) == pytest.approx(pitch, abs=1.0)


def test_the_register_of_a_melody_is_the_mean_of_its_notes():
    assert mean_pitch(distribution((60, 67, 74, 79))) == pytest.approx(70, abs=1.0)


@pytest.mark.parametrize("interval", [1, 5, 12])
def test_a_transposed_melody_lies_as_far_off_as_it_is_transposed(interval):
    here = distribution((60, 64, 67))
    there = distribution((60 + interval, 64 + interval, 67 + interval))
    assert register_distance(here, there) == pytest.approx(interval, abs=0.7)
    assert register_distance(here, here) == 0


def test_two_lines_apart_are_not_one_line_between_them():
    apart, between = distribution((54, 78)), distribution((66, 66))
    assert abs(mean_pitch(apart) - mean_pitch(between)) < 1.5
    assert register_distance(apart, between) > 10


def test_pitch_classes_of_a_chord():
    sound = tones([(0, 2.0, pitch) for pitch in (60, 64, 67)], 2)
    shares = pitch_classes(audible_spectrum(sound, RATE), RATE)
    assert shares.sum() == pytest.approx(1)
    assert set(shares.topk(3).indices.tolist()) == {0, 4, 7}


def test_silence_has_all_pitches_alike():
    spectrum = audible_spectrum(torch.zeros(RATE), RATE)
    classes, pitches = pitch_classes(spectrum, RATE), pitch_distribution(spectrum, RATE)
    assert classes.tolist() == pytest.approx([1 / 12] * 12)
    assert pitches.sum() == pytest.approx(1)
    assert pitches.max() == pitches.min()


def test_correlation_of_profiles():
    one = torch.tensor([1.0, 2.0, 4.0])
    assert profile_correlation(one, 3 * one + 1) == pytest.approx(1)
    assert profile_correlation(one, -one) == pytest.approx(-1)
    assert profile_correlation(one, torch.ones(3)) == 0
