"""AudioLM's names and numbers do not move: a checkpoint of today means tomorrow what it means now.

Weights and codes are waves and not random numbers, so that they are the same with any torch. The
numbers are those of the model as it was before VALL-E shared its halves.
"""

import pytest
import torch

from valle.models import AudioLM

GOLDEN = [
    ({}, [57.579, 55.081, 60.077, 3.497], [21, 12, 9, 10, 8, 9, 10, 8, 9]),
    ({"positions": "sine"}, [59.958, 55.081, 64.834, 3.646], [21, 4, 9, 10, 4, 4, 10, 4, 7]),
    (
        {"prepend_bos": True, "add_prenet": True},
        [58.069, 60.341, 55.797, 3.518],
        [18, 15, 21, 18, 15, 21, 18, 15, 21],
    ),
    ({"ahead_frames": 4}, [55.539, 54.081, 56.996, 3.372], [23, 8, 2, 23, 8, 2, 23, 8, 2]),
    ({"norm_first": False}, [53.943, 56.398, 51.487, 3.268], [12, 19, 0, 12, 19, 0, 12, 19, 0]),
]
LAYER = [
    f"{part}.{kind}"
    for part in (
        "attention.out", "attention.qkv", "feed_forward.0", "feed_forward.2", "norm1", "norm2",
    )
    for kind in ("bias", "weight")
]  # fmt: skip


def waves(*shape: int, rate: float) -> torch.Tensor:
    return torch.sin(torch.arange(torch.Size(shape).numel()) * rate).view(shape)


def codes(B: int, T: int) -> torch.Tensor:
    return (waves(B, T, 3, rate=2.3) * 1e4).long() % 24


def golden_model(**settings) -> AudioLM:
    model = AudioLM(
        d_model=32, nhead=2, num_layers=2, num_quantizers=3, num_audio_tokens=24, **settings
    ).eval()
    with torch.no_grad():
        for i, (_, parameter) in enumerate(sorted(model.named_parameters())):
            parameter.copy_(0.3 * waves(*parameter.shape, rate=1.0 + i / 7))
    return model


@pytest.mark.parametrize(("settings", "losses", "greedy"), GOLDEN)
@torch.no_grad()
def test_losses_and_greedy_codes(settings, losses, greedy):
    model = golden_model(**settings)
    x_lens, y_lens = torch.tensor([5, 4]), torch.tensor([7, 9])
    rows = {"x": codes(2, 5), "x_lens": x_lens, "y": codes(2, 9), "y_lens": y_lens}
    if "ahead_frames" in settings:
        rows |= {"after": codes(2, 4), "after_lens": torch.tensor([4, 0])}
    ends = torch.tensor([True, False])
    ways = ({}, {"train_stage": 1}, {"train_stage": 2}, {"reduction": "mean"})
    found = [float(model(**rows, **way, y_ends=ends).loss) for way in ways]
    assert found == pytest.approx(losses, abs=2e-3)
    made = model.inference(rows["x"], x_lens, max_new_tokens=3, temperature=0.0)
    assert made[0, 5:].flatten().tolist() == greedy


def test_names_of_parameters():
    plain = {
        "ar": LAYER,
        "nar": [
            name.replace(norm, f"{norm}.gain_and_shift")
            for norm in ("norm1", "norm2")
            for name in LAYER
            if norm in name
        ]
        + [name for name in LAYER if "norm" not in name],
    }
    plain["ar"] = [
        name.replace("norm1", "norm1.norm").replace("norm2", "norm2.norm") for name in LAYER
    ]
    expected = {
        f"{half}.decoder.layers.{i}.{name}"
        for half in plain
        for i in range(2)
        for name in plain[half]
    }
    expected |= {f"{half}.embedding.tables.{q}.weight" for half in plain for q in range(3)}
    expected |= {f"ar.decoder.norm.norm.{kind}" for kind in ("bias", "weight")}
    expected |= {f"nar.decoder.norm.gain_and_shift.{kind}" for kind in ("bias", "weight")}
    expected |= {f"ar.head.{kind}" for kind in ("bias", "weight")}
    expected |= {f"nar.heads.{i}.{kind}" for i in range(2) for kind in ("bias", "weight")}
    expected |= {"nar.stage_embedding.weight"}
    assert set(golden_model().state_dict()) == expected
