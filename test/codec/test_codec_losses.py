import pytest
import torch
from codec_runs import seeded

from valle.codec import losses as codec_losses
from valle.codec.losses import ReconstructionLoss
from valle.codec.spectra import MEL_BANDS, magnitudes, mel_filterbank

RATE = 32000
ALL = {"mel": 1.0, "linear": 1.0, "waveform": 1.0, "fine": 0.5}


def sine(frequency: float, seconds: float = 1.0, amplitude: float = 0.5) -> torch.Tensor:
    time = torch.arange(round(seconds * RATE)) / RATE
    return amplitude * torch.sin(2 * torch.pi * frequency * time)


@pytest.mark.parametrize("rate", [8000, 32000, 44100])
@pytest.mark.parametrize(("size", "bands"), MEL_BANDS.items())
def test_no_mel_band_is_empty_and_bands_rise(size, bands, rate):
    bank = mel_filterbank(rate, size, bands)
    assert bank.shape == (size // 2 + 1, bands)
    assert (bank.amax(dim=0) > 0.4).all()
    assert (bank.argmax(dim=0).diff() >= 0).all()


@pytest.mark.parametrize("size", MEL_BANDS)
def test_sine_of_amplitude_one_peaks_at_one_in_its_bin(size):
    frequency = RATE / size * (size // 16)
    found = magnitudes(sine(frequency, amplitude=1.0).unsqueeze(0), torch.hann_window(size))
    middle = found[0, :, found.shape[2] // 2]
    assert middle.argmax() == size // 16
    assert middle.max() == pytest.approx(1, abs=1e-3)


def test_loss_is_zero_for_the_same_sound_and_grows_with_distance():
    loss = ReconstructionLoss(RATE, ALL, num_scales=5)
    target = torch.stack([sine(300), sine(440)])
    totals = [sum(loss(target + step * sine(150), target).values()) for step in (0.0, 0.1, 0.5)]
    assert totals[0] == pytest.approx(0, abs=1e-3)
    assert totals[0] < totals[1] < totals[2]
    assert set(loss(target, target)) == set(ALL)


def test_what_lies_far_below_the_floor_hardly_counts():
    soft = sine(300, amplitude=1e-5).unsqueeze(0)  # -100 dB
    found = {}
    for floor in (1e-2, 1e-6):
        terms = ReconstructionLoss(RATE, ALL, num_scales=5, floor=floor)(0 * soft, soft)
        found[floor] = terms["mel"].item(), terms["fine"].item()
    for shallow, deep in zip(found[1e-2], found[1e-6], strict=True):
        assert shallow < 1e-4
        assert deep > 100 * shallow


def test_what_is_missing_altogether_is_asked_for():
    """A clamp at the floor would leave no gradient where there is nothing yet."""
    loss = ReconstructionLoss(RATE, {"mel": 1.0}, num_scales=5)
    estimate = sine(3000, amplitude=1e-5).unsqueeze(0).requires_grad_()  # far below the floor
    loss(estimate, sine(3000).unsqueeze(0))["mel"].backward()
    assert (estimate.grad * estimate.detach()).sum() < -1e-4  # louder would be better


def test_terms_without_weight_are_not_computed():
    target = sine(300).unsqueeze(0)
    terms = ReconstructionLoss(RATE, ALL | {"fine": 0.0, "linear": 0.0})(target, target)
    assert set(terms) == {"mel", "waveform"}


def test_loss_and_gradient_stay_finite_on_silence():
    loss = ReconstructionLoss(RATE, ALL)
    for target in (torch.zeros(2, 16000), torch.stack([sine(300, 0.5), torch.zeros(16000)])):
        estimate = torch.zeros(2, 16000, requires_grad=True)
        sum(loss(estimate, target).values()).backward()
        assert estimate.grad.isfinite().all()


def test_relative_waveform_does_not_depend_on_the_level():
    near, target = sine(400).unsqueeze(0) + 0.05 * sine(300), sine(400).unsqueeze(0)
    loud = codec_losses.relative_waveform(near, target)
    soft = codec_losses.relative_waveform(near / 5, target / 5)
    assert loud == pytest.approx(soft.item(), rel=1e-3)
    assert codec_losses.relative_waveform(torch.zeros_like(target), target) == pytest.approx(1)


def test_rate_counts_half_a_bit_for_each_latent_as_strong_as_the_noise():
    latents = torch.randn(8, 10, 4000, generator=seeded())
    assert codec_losses.rate_in_bits(latents) == pytest.approx(5, abs=0.05)
    assert codec_losses.rate_in_bits(latents + 7) == pytest.approx(5, abs=0.05)  # means are free
