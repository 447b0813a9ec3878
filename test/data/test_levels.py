"""Loudness, silence and clipping of a recording."""

import math

import numpy as np
import pytest
import soundfile
import torch

from valle.data.audio import read_mono
from valle.data.levels import (
    FULL_SCALE,
    LOWEST_DB,
    Levels,
    PeakMeter,
    block_rms,
    measure_levels,
    sounding_range,
)

RATE = 1000  # a block has 20 samples


def sine(num_samples: int, amplitude: float = 1.0) -> torch.Tensor:
    """Twenty samples a period, so that each block holds one."""
    return amplitude * torch.sin(2 * math.pi * torch.arange(num_samples) / 20)


def measure(samples: torch.Tensor, silence_db: float = -60) -> Levels:
    """The levels of a recording of a single channel."""
    meter = PeakMeter()
    meter.add(samples[:, None].numpy())
    return measure_levels(samples, RATE, silence_db, meter.result())


def count_clipped(*pieces: np.ndarray) -> int:
    """Of a recording that is read in pieces (n, C), or (n,) of a single channel."""
    meter = PeakMeter()
    for piece in pieces:
        meter.add(np.asarray(piece).reshape(len(piece), -1))
    return meter.result().num_clipped


def test_levels_of_a_sine():
    levels = measure(sine(2000, 0.5))
    assert levels.peak_db == pytest.approx(20 * math.log10(0.5), abs=1e-4)
    assert levels.rms_db == pytest.approx(20 * math.log10(0.5 / math.sqrt(2)), abs=1e-4)
    assert (levels.silence_share, levels.clipped_share) == (0, 0)


def test_levels_of_nothing_are_plain_numbers():
    assert measure(torch.zeros(50)).to_dict() == {
        "peak_db": LOWEST_DB,
        "rms_db": LOWEST_DB,
        "silence_share": 1.0,
        "clipped_share": 0.0,
    }


@pytest.mark.parametrize("num_samples", [1, 19, 20, 21, 1003])
def test_the_rms_counts_every_sample_once(num_samples):
    samples = torch.from_numpy(np.random.default_rng(0).normal(size=num_samples).astype("f4"))
    expected = 10 * math.log10(float(samples.double().square().mean()))
    assert measure(samples).rms_db == pytest.approx(expected, abs=1e-3)


def test_the_last_block_is_judged_by_what_it_has():
    assert block_rms(torch.full((45,), 0.5), RATE).tolist() == pytest.approx([0.5, 0.5, 0.5])


def test_silence_is_a_share_of_blocks():
    samples = torch.cat([torch.zeros(60), sine(40, 0.1), torch.full((20,), 0.0009), sine(10, 0.1)])
    assert measure(samples).silence_share == pytest.approx(4 / 7)
    assert measure(samples, -61).silence_share == pytest.approx(3 / 7)
    assert measure(samples, 0).silence_share == 1


@pytest.mark.parametrize("amplitude", [1.0, -1.0, FULL_SCALE, -FULL_SCALE, 1.7])
def test_clipping_is_three_in_a_row(amplitude):
    for run, expected in ((1, 0), (2, 0), (3, 3), (4, 4), (9, 9)):
        samples = np.zeros(100)
        samples[50 : 50 + run] = amplitude
        assert count_clipped(samples) == expected
        assert count_clipped(samples[: 50 + run]) == count_clipped(samples[50:]) == expected
    assert count_clipped(np.full(5, amplitude) * 0.999) == (5 if amplitude == 1.7 else 0)


def test_runs_are_counted_apart():
    samples = torch.tensor([1.0, 1, 0, 1, 1, 1, 0, -1, 1, -1, 1, 0, 1])
    assert count_clipped(samples.numpy()) == 7
    assert measure(samples).clipped_share == pytest.approx(7 / 13)


def test_runs_go_on_from_piece_to_piece():
    rng = np.random.default_rng(0)
    for share in (0.3, 0.7, 0.95):
        samples = (rng.random(500) < share).astype("f4") * rng.choice([-1, 1], 500)
        runs = "".join("x" if sample else "." for sample in samples).split(".")
        expected = sum(len(run) for run in runs if len(run) >= 3)
        assert count_clipped(samples) == expected
        for _ in range(20):
            edges = np.sort(rng.choice(np.arange(1, 500), rng.integers(1, 200), replace=False))
            assert count_clipped(*np.split(samples, edges)) == expected


def test_each_channel_is_measured_by_itself():
    sound = np.zeros((100, 3), dtype="f4")
    sound[10:14, 1] = 1
    sound[20:25, 2] = -1
    sound[30:33] = [[1, 0, 0], [0, 1, 0], [0, 0, 1]]  # a run in no channel
    sound[40, 0] = 1.5
    meter = PeakMeter()
    for piece in np.split(sound, [12, 22, 31]):
        meter.add(piece)
    assert meter.result().num_clipped == 5
    assert meter.result().peak == 1.5


def test_clipped_sound_is_found_as_it_is_stored(tmp_path):
    loud = sine(2000, 1.5).clamp(-1, 1).numpy()
    kinds = {"8.wav": "PCM_U8", "16.wav": "PCM_16", "24.flac": "PCM_24", "f.wav": "FLOAT"}
    for name, subtype in kinds.items():
        sound = np.stack([loud, 0 * loud], 1)  # the mix has half of it, and is never loud
        soundfile.write(tmp_path / name, sound, RATE * 8, subtype=subtype)
        extremes = read_mono(tmp_path / name).extremes
        assert extremes.num_clipped / 2000 == pytest.approx(0.5, abs=0.05), name
        assert extremes.peak == pytest.approx(1, abs=0.01), name
        soundfile.write(tmp_path / name, sound * 0.98, RATE * 8, subtype=subtype)
        assert read_mono(tmp_path / name).extremes.num_clipped == 0, name


def test_where_sound_begins_and_ends():
    samples = torch.zeros(200)
    samples[45:48] = 0.5
    samples[130] = -0.5
    assert sounding_range(samples, RATE, -60) == (40, 140)
    assert sounding_range(samples[:135], RATE, -60) == (40, 135)
    assert sounding_range(samples, RATE, 0) == (0, 0)
    assert sounding_range(sine(100), RATE, -60) == (0, 100)


@pytest.mark.parametrize("samples", [torch.zeros(0), torch.zeros(2, 100)])
def test_what_cannot_be_measured(samples):
    with pytest.raises(ValueError, match=r"expected \(N,\), N at least 1"):
        measure_levels(samples, RATE, -60, PeakMeter().result())
