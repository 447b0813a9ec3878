"""The state of all random number generators of a process, in types that a checkpoint takes."""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

State = dict[str, Any]


def seed_all(seed: int, generators: Mapping[str, torch.Generator]) -> None:
    """Seed torch, numpy, python and further generators."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (the global one is what libraries draw from)
    for generator in generators.values():
        generator.manual_seed(seed)


def rng_state(device: torch.device, generators: Mapping[str, torch.Generator]) -> State:
    """The states of torch, numpy, python, of the device if it is a GPU, and of further generators.

    Args:
        device: Whose generator is taken too.
        generators: Name -> generator.
    """
    version, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002
    state: State = {
        "torch": torch.get_rng_state(),
        "python": [version, torch.tensor(words, dtype=torch.int64), gauss],
        "numpy": [torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state | {name: generator.get_state() for name, generator in generators.items()}


def restore_rng(
    state: State, device: torch.device, generators: Mapping[str, torch.Generator]
) -> None:
    """Go on where ``rng_state`` was called; what a state does not hold stays as it is."""
    torch.set_rng_state(state["torch"])
    if "python" in state:
        version, words, gauss = state["python"]
        random.setstate((version, tuple(words.tolist()), gauss))
    if "numpy" in state:
        keys, *rest = state["numpy"]
        np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    if "cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
    for name, generator in generators.items():
        if name in state:
            generator.set_state(state[name])
