import math

import pytest
import torch
from little_pieces import RATE, pulse, tones

from valle.evaluation.rhythm import (
    onset_rate,
    onset_strength,
    onset_times,
    rate_distance,
    rhythm_profile,
    tempo,
    tempo_distance,
)


def strength_of(beats_a_minute: float, rate: int = RATE):
    return onset_strength(tones(pulse(beats_a_minute, (60, 64, 67), 8), 8, rate), rate)


@pytest.mark.parametrize("rate", [8000, 22050])
@pytest.mark.parametrize("known", [63.0, 88.0, 120.0, 150.0])
def test_a_known_tempo_is_found_but_for_its_octave(known, rate):
    assert tempo_distance(tempo(strength_of(known, rate)), known) < 0.03


@pytest.mark.parametrize("known", [80.0, 120.0, 150.0])
def test_near_the_usual_tempo_the_octave_is_right_too(known):
    assert tempo(strength_of(known)) == pytest.approx(known, rel=0.03)


@pytest.mark.parametrize("rate", [8000, 22050])
def test_onsets_are_counted_and_lie_where_notes_begin(rate):
    beats = [0.5, 1.0, 1.3, 2.2, 3.0, 3.25]
    strength = onset_strength(tones([(x, 0.6, 60 + i) for i, x in enumerate(beats)], 4, rate), rate)
    found = onset_times(strength) / strength.frames_per_sec
    assert found.tolist() == pytest.approx(beats, abs=0.05)
    assert onset_rate(strength) == pytest.approx(6 / 4, rel=0.02)


def test_loudness_changes_neither_onsets_nor_tempo():
    sound = tones(pulse(100, (60, 64), 6), 6)
    loud, soft = (onset_strength(gain * sound, RATE) for gain in (1.0, 0.1))
    assert onset_times(loud).tolist() == onset_times(soft).tolist()
    assert tempo(loud) == tempo(soft)


def test_a_profile_peaks_at_the_beat_and_not_between():
    strength = strength_of(60)
    profile, rate = rhythm_profile(strength), strength.frames_per_sec
    at = lambda seconds: float(profile[round((seconds - 0.1) * rate)])  # noqa: E731
    assert at(1.0) > 0.5 > 0.1 > at(0.5)


def test_silence_has_no_onsets_no_tempo_and_a_flat_profile():
    strength = onset_strength(torch.zeros(2 * RATE), RATE)
    assert onset_rate(strength) == 0
    assert math.isnan(tempo(strength))
    assert not rhythm_profile(strength).any()


def test_distances():
    assert tempo_distance(60, 120) == 0
    assert tempo_distance(100, 100 * 2**0.5) == pytest.approx(0.5)
    assert tempo_distance(100, 100 * 2**0.9) == pytest.approx(0.1)
    assert tempo_distance(math.nan, 100) == 0.5
    assert rate_distance(2.8, 1.3) == rate_distance(1.3, 2.8) == pytest.approx(1.0)
    assert rate_distance(0, 0) == 0
