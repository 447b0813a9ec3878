"""Numbers read late, and the state of random numbers."""

import random

import numpy as np
import pytest
import torch

from valle.utils.late import LateReader
from valle.utils.rng import restore_rng, rng_state, seed_all

CPU = torch.device("cpu")


def test_a_cpu_gives_all_at_once_and_in_order():
    reader: LateReader[str] = LateReader()
    values = torch.tensor([1.0, 2.0])
    reader.put(values, "first")
    values += 5  # what was put stays as it was
    reader.put(values, "second")
    assert list(reader.ready()) == [([1.0, 2.0], "first"), ([6.0, 7.0], "second")]
    assert list(reader.all()) == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_keeps_the_newest_back():
    reader: LateReader[int] = LateReader()
    for i in range(3):
        reader.put(torch.full((1,), float(i), device="cuda"), i)
    assert [about for _, about in reader.ready()] == [0, 1]
    assert list(reader.all()) == [([2.0], 2)]


def draws(generator: torch.Generator) -> list[float]:
    return [
        torch.rand(()).item(),
        torch.randn(()).item(),
        random.random(),
        random.gauss(0, 1),
        float(np.random.rand()),  # noqa: NPY002
        float(np.random.randn()),  # noqa: NPY002
        torch.rand((), generator=generator).item(),
    ]


def test_all_random_numbers_go_on(tmp_path):
    own = torch.Generator()
    seed_all(3, {"own": own})
    draws(own)  # each has drawn one of the pair that a normal distribution gives
    torch.save(rng_state(CPU, {"own": own}), tmp_path / "state.pt")
    expected = draws(own) + draws(own)
    seed_all(4, {"own": own})
    assert draws(own) != expected[:7]
    restore_rng(torch.load(tmp_path / "state.pt"), CPU, {"own": own})
    assert draws(own) + draws(own) == expected
