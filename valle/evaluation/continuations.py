"""Held-out passages, what a model made of them, and what it might have made: the rows of a table.

N samples, T frames, K continuations of one prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

TRUE, GENERATED = "true", "generated"
ANOTHER, NOISE, LOOP = "another piece", "noise", "frozen loop"
CONTROLS = (ANOTHER, NOISE, LOOP)

# A frozen loop comes round so fast: a chord or two, as a stuck model repeats them.
LOOP_SEC = (0.2, 0.5)
NUM_CONTROLS = 2  # continuations a control has for one prompt: two, so that they can differ


@dataclass(frozen=True)
class Passage:
    """A held-out prompt with what truly followed and what a model made of it.

    All sounds are decoded from codes, the true ones too, so that the codec's loss counts against
    nobody.

    Attributes:
      name: of the cut.
      recording: which piece it is of; "another piece" is taken from another recording.
      prompt: (N,) float32 sound.
      true: (N,) float32, what followed.
      samples: (N,) float32 each, what a model made of it, one or several.
      true_codes: (T,) int64, quantizer 1 of the true continuation.
      sample_codes: (T,) int64 each, quantizer 1 of the samples.
    """

    name: str
    recording: str
    prompt: Tensor
    true: Tensor
    samples: tuple[Tensor, ...]
    true_codes: Tensor
    sample_codes: tuple[Tensor, ...]


class Continuation(NamedTuple):
    """One continuation of a prompt: sound (N,) and the codes (T,) of its quantizer 1."""

    sound: Tensor
    codes: Tensor


Row = list[tuple[Continuation, ...]]  # for each passage its K continuations, one or several


def check_passages(passages: Sequence[Passage], frame_rate: float) -> None:
    """Refuse what cannot be measured.

    Raises:
      ValueError: passages of fewer than two recordings, of unequal numbers of sounds and codes,
        with a true continuation too short to hold two rounds of a loop, or with a sound that is
        not finite.
    """
    recordings = {passage.recording for passage in passages}
    if len(recordings) < 2:
        raise ValueError(
            f"got {len(passages)} passages of {len(recordings)} recordings; a measure is judged by "
            "what another piece scores: give passages of two recordings or more"
        )
    shortest = round(2 * LOOP_SEC[1] * frame_rate)
    for passage in passages:
        if len(passage.samples) != len(passage.sample_codes):
            raise ValueError(
                f"passage {passage.name} has {len(passage.samples)} samples, but codes of "
                f"{len(passage.sample_codes)}; give both for each"
            )
        if len(passage.true_codes) < shortest:
            raise ValueError(
                f"the true continuation of {passage.name} has {len(passage.true_codes)} frames; "
                f"at least {shortest} are needed, {2 * LOOP_SEC[1]:g} s: leave it out"
            )
        _check_finite(passage)


def _check_finite(passage: Passage) -> None:
    sounds = {"the prompt": passage.prompt, "the true continuation": passage.true}
    sounds |= {f"sample {i + 1}": sound for i, sound in enumerate(passage.samples)}
    for what, sound in sounds.items():
        if not bool(sound.isfinite().all()):
            raise ValueError(
                f"{what} of passage {passage.name} holds infinity or NaN: look at the model and "
                "the codec that it was made with"
            )


def true_row(passages: Sequence[Passage]) -> Row:
    return [(Continuation(p.true, p.true_codes),) for p in passages]


def generated_row(passages: Sequence[Passage]) -> Row:
    """The samples, none longer than the true continuation: many measures depend on the length."""
    return [
        tuple(
            Continuation(sound[: len(p.true)], codes[: len(p.true_codes)])
            for sound, codes in zip(p.samples, p.sample_codes, strict=True)
        )
        for p in passages
    ]


def control_rows(
    passages: Sequence[Passage], sampling_rate: int, frame_rate: float, seed: int
) -> dict[str, Row]:
    """What should score badly: NUM_CONTROLS continuations of each prompt, for each of CONTROLS."""
    rng = np.random.default_rng(seed)
    pool = torch.cat([p.true_codes for p in passages]).numpy()
    rows: dict[str, Row] = {ANOTHER: [], NOISE: [], LOOP: []}
    for index, passage in enumerate(passages):
        rows[ANOTHER].append(_others(passages, index, rng))
        rows[NOISE].append(tuple(_noise(passage, pool, rng) for _ in range(NUM_CONTROLS)))
        rows[LOOP].append(
            tuple(
                _loop(passage, sampling_rate / frame_rate, frame_rate, rng)
                for _ in range(NUM_CONTROLS)
            )
        )
    return rows


def _others(
    passages: Sequence[Passage], index: int, rng: np.random.Generator
) -> tuple[Continuation, ...]:
    """True continuations of other recordings, cut to the length of this one's; long ones first."""
    here = passages[index]
    others = [p for p in passages if p.recording != here.recording]
    long = [p for p in others if len(p.true) >= len(here.true)] or others
    chosen = rng.choice(len(long), size=min(NUM_CONTROLS, len(long)), replace=False)
    num_samples, num_frames = len(here.true), len(here.true_codes)
    return tuple(
        Continuation(long[i].true[:num_samples], long[i].true_codes[:num_frames]) for i in chosen
    )


def _noise(passage: Passage, pool: np.ndarray, rng: np.random.Generator) -> Continuation:
    """White noise at the true level; its codes are drawn from all true ones, in no order."""
    level = float(passage.true.square().mean().sqrt())
    sound = level * rng.standard_normal(len(passage.true)).astype(np.float32)
    codes = pool[rng.integers(len(pool), size=len(passage.true_codes))]
    return Continuation(torch.from_numpy(sound), torch.from_numpy(codes))


def _loop(
    passage: Passage, samples_per_frame: float, frame_rate: float, rng: np.random.Generator
) -> Continuation:
    """The first frames of the true continuation, over and over; a whole number of them."""
    period = round(float(rng.uniform(*LOOP_SEC)) * frame_rate)
    return Continuation(
        _repeated(passage.true, round(period * samples_per_frame)),
        _repeated(passage.true_codes, period),
    )


def _repeated(values: Tensor, period: int) -> Tensor:
    return values[torch.arange(len(values)) % period]
