import pytest
import torch

from valle.evaluation.seams import flux_near, seam_ranks, spectral_flux

RATE = 16000


def notes(seed: int, seconds: float = 6.0) -> torch.Tensor:
    """Notes that fade, a new one every 0.2 to 0.5 s."""
    generator = torch.Generator().manual_seed(seed)
    num = int(seconds * RATE)
    sound, start = torch.zeros(num), 0
    while start < num:
        pitch = 220 * 2 ** (float(torch.randint(24, (1,), generator=generator)) / 12)
        time = torch.arange(num - start) / RATE
        fade = (-3 * time).exp() * (time / 0.01).clamp(max=1)
        sound[start:] += 0.2 * fade * (2 * torch.pi * pitch * time).sin()
        start += int(RATE * (0.2 + 0.3 * float(torch.rand(1, generator=generator))))
    return sound


def test_flux_is_where_the_spectrum_changes():
    time = torch.arange(2 * RATE) / RATE
    sound = torch.where(
        time < 1, (2 * torch.pi * 300 * time).sin(), (2 * torch.pi * 900 * time).sin()
    )
    flux = spectral_flux(sound, RATE)
    inner = flux[10:-10]  # a sound that ends in full swing changes there, too
    place = (int(inner.argmax()) + 10) / len(flux) * 2
    assert place == pytest.approx(1.0, abs=0.03)
    steady = torch.cat([flux[10:80], flux[-80:-10]])
    assert inner.max() > 20 * steady.max()


def test_places_of_true_music_are_evenly_spread():
    references = [notes(seed) for seed in range(8)]
    sounds = [notes(seed) for seed in range(20, 60)]
    joints = torch.linspace(RATE, 5 * RATE, 40).long().tolist()
    ranks = torch.tensor(seam_ranks(sounds, joints, references, RATE))
    assert 0.35 < ranks.mean() < 0.65
    assert (ranks < 0.4).sum() >= 8
    assert (ranks > 0.6).sum() >= 8


def test_a_cut_and_a_click_stand_out():
    references = [notes(seed) for seed in range(8)]
    joint = 3 * RATE
    cut = [torch.cat([notes(s)[:joint], 0.02 * notes(s + 50)[joint:]]) for s in range(20, 30)]
    click = [notes(seed) for seed in range(20, 30)]
    for sound in click:
        sound[joint] += 0.8
    for sounds in (cut, click):
        assert min(seam_ranks(sounds, [joint] * 10, references, RATE)) > 0.97


def test_flux_near_sees_a_window_to_each_side_and_no_further():
    sound = torch.zeros(RATE)
    sound[RATE // 2] = 1.0
    near = flux_near(sound, RATE)
    reached = torch.nonzero(near > 0)[:, 0] / len(near)
    assert reached.min() > 0.5 - 0.1
    assert reached.max() < 0.5 + 0.1


def test_a_joint_outside_its_sound():
    with pytest.raises(ValueError, match="a joint at sample 32000 of 32000: expected one within"):
        seam_ranks([notes(1, 2.0)], [2 * RATE], [notes(2)], RATE)
