"""Prompts as the rows of batches, each with its own random numbers and its own name."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from valle.modules.sampling import row_generators


def row_batches(
    num_prompts: int, num_samples: int, batch_size: int, seed: int
) -> Iterator[tuple[slice, list[torch.Generator]]]:
    """A few prompts at a time, with generators that do not depend on how many these are.

    Yields:
      The prompts' slice, and a generator for each of their rows, a prompt's samples side by side.
    """
    n = num_samples
    generators = row_generators(num_prompts * n, torch.Generator().manual_seed(seed))
    for start in range(0, num_prompts, batch_size):
        stop = min(start + batch_size, num_prompts)
        yield slice(start, stop), generators[start * n : stop * n]


def different_names(stems: list[str], endings: Sequence[str] = ("",)) -> list[str]:
    """Numbers where files would be the same, so that none is written over another.

    Args:
      stems: The names that are wanted.
      endings: What is put to a name: each of them makes a file.
    """
    count = Counter(stem + ending for stem in stems for ending in endings)
    is_alone = [all(count[stem + ending] == 1 for ending in endings) for stem in stems]
    if all(is_alone):
        return stems
    both = enumerate(zip(stems, is_alone, strict=True), start=1)
    return different_names([s if alone else f"{s}-{i}" for i, (s, alone) in both], endings)


def sample_names(names: list[str], num_samples: int) -> list[str]:
    """A name for each row, the samples of a prompt side by side."""
    if num_samples == 1:
        return names
    return [f"{name}_sample{i + 1}" for name in names for i in range(num_samples)]


def num_of_prompts(model: Any, x: Tensor, x_lens: Tensor, prompt_lens: Tensor) -> Tensor | None:
    """How many of the MIDI events that tell of prompts and targets are of the prompts.

    Args:
      model: A VALLE, or an `Engine` of one.
      x: (B, S, 6) events; `x_lens` (B,).
      prompt_lens: (B,) frames of each prompt.

    Returns:
      (B,) `enroll_x_lens` of `VALLE.inference`, which counts a BOS and an EOS; None for text, which
      does not tell when its symbols are spoken.
    """
    if model.config.condition != "midi":
        return None
    notes = torch.arange(x.shape[1] - 1, device=x.device) < x_lens[:, None] - 2
    half_a_tick = model.ar.reader.frames_per_tick / 2  # to which onsets are rounded
    struck = model.ar.reader.places(x)[:, 1:] < prompt_lens[:, None] - half_a_tick
    return (struck & notes).sum(1) + 2
