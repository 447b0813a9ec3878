import pytest
import torch
from torch import nn

from valle.modules.quantization import GROUP_SIZE, QuantizedLinear, quantize_linears


def make_linear(inputs=64, outputs=10, bias=True) -> nn.Linear:
    torch.manual_seed(0)
    linear = nn.Linear(inputs, outputs, bias)
    linear.weight.data *= torch.logspace(-3, 3, outputs)[:, None]  # rows of very different sizes
    return linear


def test_int8_is_off_by_half_a_step_of_its_own_row():
    linear = make_linear()
    error = (QuantizedLinear.from_linear(linear, 8).dequantized() - linear.weight).abs()
    step = linear.weight.abs().amax(1, keepdim=True) / 127
    assert (error <= 0.5001 * step).all()


def test_int4_is_off_by_no_more_than_plain_rounding_to_16_steps():
    linear = make_linear()
    groups = linear.weight.detach().unflatten(1, (-1, GROUP_SIZE))
    error = (QuantizedLinear.from_linear(linear, 4).dequantized() - linear.weight).square()
    scale = groups.abs().amax(2, keepdim=True) / 7
    plain = ((groups / scale).round() * scale - groups).square()
    assert error.sum() < plain.sum()
    per_group = error.unflatten(1, (-1, GROUP_SIZE)).mean(2, keepdim=True).sqrt()
    assert (per_group < 0.5 * scale).all()


@pytest.mark.parametrize("bits", [8, 4])
def test_weights_that_fit_the_steps_are_kept_exactly(bits):
    steps = torch.arange(-(2 ** (bits - 1)) + 1, 2 ** (bits - 1)).repeat(20)[: 5 * 32]
    linear = make_linear(32, 5)
    linear.weight.data = (torch.arange(160) % len(steps)).view(5, 32).float()
    linear.weight.data = steps[linear.weight.data.long()].float()
    linear.weight.data[:, 3] = 2 ** (bits - 1) - 1  # the largest step, in every group
    if bits == 4:
        linear.weight.data[:, 3] = -8
    torch.testing.assert_close(
        QuantizedLinear.from_linear(linear, bits).dequantized(), linear.weight.data
    )


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_forward_multiplies_with_the_dequantized_weights(bits, bias, dtype):
    linear = make_linear(bias=bias)
    quantized = QuantizedLinear.from_linear(linear, bits)
    linear.weight.data = quantized.dequantized()
    x = torch.randn(3, 2, 64).to(dtype)
    torch.testing.assert_close(quantized(x), linear.to(dtype)(x))
    assert quantized(x).dtype == dtype


@pytest.mark.parametrize("bits", [8, 4])
def test_zero_weights_stay_zero(bits):
    linear = make_linear()
    linear.weight.data[:3] = 0
    dequantized = QuantizedLinear.from_linear(linear, bits).dequantized()
    assert dequantized.isfinite().all()
    assert (dequantized[:3] == 0).all()


@pytest.mark.parametrize(("bits", "share"), [(8, 1 / 4), (4, 1 / 8 + 1 / 64)])
def test_takes_the_memory_that_was_promised(bits, share):
    linear = make_linear(512, 512, bias=False)
    buffers = QuantizedLinear.from_linear(linear, bits).buffers()
    size = sum(buffer.numel() * buffer.element_size() for buffer in buffers)
    assert size == pytest.approx(linear.weight.numel() * 4 * share, rel=0.01)


@pytest.mark.parametrize("bits", [8, 4])
def test_state_dict_restores_it(bits):
    first = QuantizedLinear.from_linear(make_linear(), bits)
    other = QuantizedLinear.from_linear(nn.Linear(64, 10), bits)
    other.load_state_dict(first.state_dict())
    assert torch.equal(other.dequantized(), first.dequantized())


def test_replaces_every_linear_inside_and_nothing_else():
    inside = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Sequential(nn.Linear(64, 3)))
    quantize_linears(inside, 8)
    assert [type(m).__name__ for m in inside.modules() if not list(m.children())] == [
        "QuantizedLinear",
        "ReLU",
        "QuantizedLinear",
    ]
    assert inside(torch.randn(2, 32)).shape == (2, 3)


def test_refuses_odd_widths_at_4_bits_by_name_and_changes_nothing():
    inside = nn.Sequential(nn.Linear(32, 20), nn.Linear(20, 3))
    with pytest.raises(ValueError, match="1 has 20 inputs; int4 needs a multiple of 32: use 8 bit"):
        quantize_linears(inside, 4)
    assert all(isinstance(module, nn.Linear) for module in inside)


def test_refuses_other_bits():
    with pytest.raises(ValueError, match="bits is 3; expected 8 or 4"):
        QuantizedLinear.from_linear(make_linear(), 3)
