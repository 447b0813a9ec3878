"""The discriminator and the balancer."""

import pytest
import torch
from codec_runs import seeded

from valle.codec.balancer import Balancer
from valle.codec.discriminator import (
    StftDiscriminator,
    Verdict,
    adversarial_loss,
    discriminator_loss,
    feature_loss,
)


def tones(batch: int, generator: torch.Generator) -> torch.Tensor:
    frequency = 100 + 900 * torch.rand(batch, 1, generator=generator)
    return 0.3 * torch.sin(2 * torch.pi * frequency * torch.arange(2000) / 8000)


def noises(batch: int, generator: torch.Generator) -> torch.Tensor:
    return 0.2 * torch.randn(batch, 2000, generator=generator)


def small_discriminator() -> StftDiscriminator:
    torch.manual_seed(0)
    return StftDiscriminator(windows=(512, 128), channels=4)


def test_the_discriminator_learns_to_tell_noise_from_sound():
    model, generator = small_discriminator(), seeded()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss = discriminator_loss(model(tones(4, generator)), model(noises(4, generator)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.5  # 2 where nothing is known
    real, made = model(tones(8, generator)), model(noises(8, generator))
    for r, m in zip(real, made, strict=True):
        assert r.scores.mean(dim=(1, 2, 3)).min() > 0 > m.scores.mean(dim=(1, 2, 3)).max()
    assert adversarial_loss(made) > 1 > adversarial_loss(real)


def test_every_scale_has_its_say_and_gradients_reach_the_sound():
    model, sound = small_discriminator(), tones(2, seeded()).requires_grad_()
    real = model(tones(2, seeded(1)))
    for scale in range(2):
        made = model(sound)
        loss = adversarial_loss(made[scale : scale + 1])
        loss = loss + feature_loss(real[scale : scale + 1], made[scale : scale + 1])
        (gradient,) = torch.autograd.grad(loss, sound)
        assert gradient.norm() > 0
    assert len(made[0].features) == 4


def test_windows_longer_than_the_sound_are_left_out():
    assert len(small_discriminator()(torch.zeros(1, 200))) == 1


def verdict(score: float, feature: float = 1.0) -> list[Verdict]:
    return [Verdict(torch.full((1, 1, 2, 2), score), [torch.full((1, 3, 2, 2), feature)])]


def test_hinges_end_where_the_verdict_is_sure():
    assert discriminator_loss(verdict(1.5), verdict(-2.0)) == 0
    assert discriminator_loss(verdict(0.0), verdict(0.0)) == 2
    assert discriminator_loss(verdict(-1.0), verdict(1.0)) == 4
    assert adversarial_loss(verdict(1.5)) == 0
    assert adversarial_loss(verdict(-1.0)) == 2


def test_distance_of_features_is_relative_to_the_recordings():
    assert feature_loss(verdict(0, 2.0), verdict(0, 3.0)) == pytest.approx(0.5)
    assert feature_loss(verdict(0, 20.0), verdict(0, 30.0)) == pytest.approx(0.5)
    assert feature_loss(verdict(0, 2.0), verdict(0, 2.0)) == 0


def test_features_move_towards_the_recording_and_not_the_other_way():
    real, made = torch.full((1, 3, 2, 2), 2.0, requires_grad=True), torch.ones(1, 3, 2, 2)
    made.requires_grad_()
    scores = torch.zeros(1, 1, 2, 2)
    feature_loss([Verdict(scores, [real])], [Verdict(scores, [made])]).backward()
    assert real.grad is None
    assert (made.grad < 0).all()


# --- balancer -------------------------------------------------------------------------------------


def losses_of(output, *scales):
    """Losses whose gradients have sizes of their own, and lie in different directions."""
    directions = torch.eye(3)[:, None, :].expand(3, *output.shape)
    return {
        name: scale * (output * direction).sum() / output.shape[0]
        for name, scale, direction in zip("abc", scales, directions, strict=True)
    }


@pytest.mark.parametrize("scales", [(1.0, 1.0, 1.0), (1e3, 1e-3, 7.0)])
def test_shares_of_the_gradient_are_those_of_the_weights(scales):
    balancer = Balancer({"a": 1.0, "b": 3.0, "c": 0.0}, norm=2.0)
    output = torch.randn(4, 3, requires_grad=True)
    gradient = balancer.gradient(losses_of(output, *scales), output)
    # one sound's shares are 2 x (1, 3, 0) / 4, and the gradient is of the mean over 4 sounds
    expected = torch.tensor([0.5, 1.5, 0.0]) / 4
    torch.testing.assert_close(gradient, expected.expand(4, 3))


def test_sizes_of_gradients_are_averaged_over_steps():
    balancer = Balancer({"a": 1.0}, decay=0.5)
    output = torch.randn(1, 3, requires_grad=True)
    for scale, usual in (
        (1.0, 1.0),
        (4.0, (0.5 * 1 + 4) / 1.5),
        (4.0, (0.25 * 1 + 0.5 * 4 + 4) / 1.75),
    ):
        gradient = balancer.gradient({"a": scale * output[0, 0]}, output)
        assert gradient[0, 0] == pytest.approx(scale / usual, rel=1e-5)


def test_a_gradient_that_is_not_finite_is_no_part_of_the_average():
    balancer = Balancer({"a": 1.0})
    output = torch.randn(1, 3, requires_grad=True)
    balancer.gradient({"a": output.sum()}, output)
    before = balancer.state_dict()
    assert not balancer.gradient({"a": output.sum() * torch.nan}, output).isfinite().any()
    assert torch.equal(balancer.state_dict()["a"], before["a"])


def test_a_balancer_goes_on_from_its_state():
    output = torch.randn(2, 3, requires_grad=True)
    first = Balancer({"a": 1.0, "b": 1.0}, decay=0.9)
    for scale in (1.0, 5.0):
        first.gradient(losses_of(output, scale, 2.0, 0.0), output)
    second = Balancer({"a": 1.0, "b": 1.0}, decay=0.9)
    second.load_state_dict(first.state_dict(), torch.device("cpu"))
    losses = losses_of(output, 3.0, 1.0, 0.0)
    assert torch.equal(first.gradient(losses, output), second.gradient(losses, output))
