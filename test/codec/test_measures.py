import math

import pytest
import torch
from codec_runs import seeded

from valle.codec import harmony, measures

RATE = 32000


def tone(pitch: int, seconds: float = 1.0, rate: int = RATE) -> torch.Tensor:
    """A pitched sound with decaying harmonics."""
    root = 440 * 2 ** ((pitch - 69) / 12)
    time = torch.arange(round(seconds * rate)) / rate
    return sum(0.3 / n**2 * torch.sin(2 * torch.pi * root * n * time) for n in range(1, 6))


def test_measures_of_a_perfect_and_of_a_wrong_sound():
    target = torch.stack([tone(60), tone(72)])
    same = measures.compare(target, target, RATE)
    assert set(same) == set(measures.MEASURES)
    assert same["mel_log10"] == same["mel_db"] == same["lsd_db"] == same["stft"] == 0
    assert same["chroma"] == pytest.approx(1, abs=1e-4)
    assert same["top_pitch"] == same["top_pitch_in_3"] == 1
    wrong = measures.compare(torch.stack([tone(63), tone(66)]), target, RATE)
    assert wrong["top_pitch"] < 0.1
    assert wrong["chroma"] < 0.3
    assert wrong["si_sdr_db"] < -10
    assert wrong["stft"] > 1


def test_si_sdr_is_the_ratio_to_noise_and_ignores_the_level():
    target = tone(60).unsqueeze(0)
    noise = torch.randn(1, RATE, generator=seeded())
    noise *= target.norm() / noise.norm() * 10 ** (-12 / 20)
    assert measures.si_sdr(target + noise, target) == pytest.approx(12, abs=0.3)
    torch.testing.assert_close(
        measures.si_sdr(3 * (target + noise), target), measures.si_sdr(target + noise, target)
    )


def test_measures_of_level_know_a_change_of_level():
    target = torch.randn(1, RATE, generator=seeded()) * 0.1
    mel, lines = measures.decibel_distances(target * 0.5, target, RATE)
    assert mel == pytest.approx(6.02, abs=0.05)
    assert lines == pytest.approx(6.02, abs=0.05)
    # half the magnitude: relative error 1/2, and log 2
    found = measures.stft_distance(target * 0.5, target)
    assert found == pytest.approx(0.5 + math.log(2), abs=0.01)


@pytest.mark.parametrize("rate", [16000, 24000, 32000, 44100])
@pytest.mark.parametrize("pitch", [45, 60, 69, 84])
def test_top_pitch_and_chroma_name_the_note(pitch, rate):
    sound = tone(pitch, rate=rate).unsqueeze(0)
    salience = harmony.harmonic_map(rate) @ harmony.pitch_spectrum(sound, rate)
    middle = salience.shape[2] // 2
    assert salience[0, :, middle].argmax() + harmony.LOWEST_PITCH == pitch
    assert harmony.chromagram(sound, rate)[0, :, middle].argmax() == pitch % 12


def test_measures_refuse_shapes_that_cannot_be_compared():
    with pytest.raises(ValueError, match=r"\(1, 9000\) and target \(1, 9001\) must both"):
        measures.compare(torch.zeros(1, 9000), torch.zeros(1, 9001), RATE)
    with pytest.raises(ValueError, match=r"clips of 100 samples; at least 8192 .* 0\.26 s"):
        measures.compare(torch.zeros(1, 100), torch.zeros(1, 100), RATE)
