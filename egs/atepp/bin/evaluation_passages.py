"""Held-out passages and what the model makes of them, as codes and as sound.

N samples, P prompt frames, T true frames after it, Q quantizers.
"""

import argparse
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from evaluation_subject import Subject
from generation_flags import sampling_options, window_options
from generation_rows import row_batches
from infer_output import Meter
from torch import Tensor

from valle.data import Codec, check_codes, cut_codes
from valle.evaluation import Passage
from valle.models import GenerationOptions

Sizes = tuple[int, int]
"""Frames of a prompt and of what follows it."""


class HeldOut(NamedTuple):
    """Cuts that hold a prompt and what follows it: their first frames.

    Attributes:
      names: Of the cuts, and `recordings` that they are of.
      codes: (P + T, Q) each.
      cuts: That these are the first frames of.
      num_long: Cuts that were long enough, of `num_cuts` in the split.
    """

    names: list[str]
    recordings: list[str]
    codes: list[Tensor]
    cuts: list[Any]
    num_long: int
    num_cuts: int

    @property
    def facts(self) -> dict[str, int]:
        return {
            "passages": len(self.names),
            "long_enough": self.num_long,
            "cuts_in_split": self.num_cuts,
            "recordings": len(set(self.recordings)),
        }


@dataclass
class Made:
    """A passage, with the sounds as they are played: prompt and continuation decoded together.

    Attributes:
      passage: For the measures.
      true: (N,) prompt and what truly followed.
      samples: (N,) prompt and continuation.
      infilled: (N,) the passage with its middle made anew; where the model can, and was asked.
    """

    passage: Passage
    true: Tensor
    samples: list[Tensor]
    infilled: list[Tensor] = field(default_factory=list)


def choose_passages(subject: Subject, sizes: Sizes, num_prompts: int, frame_rate: float) -> HeldOut:
    """The first cuts of each recording, then their second ones, and so on, that are long enough.

    Raises:
      ValueError: None is, or all are of one recording, or their codes are not what the model was
        trained on.
    """
    cuts = list(subject.held_out())
    num_frames = sum(sizes)
    long = [cut for cut in cuts if round(cut.duration * frame_rate) >= num_frames]
    if not long:
        longest = max(cut.duration for cut in cuts)
        raise ValueError(
            f"none of {len(cuts)} {subject.split} cuts lasts {num_frames / frame_rate:g} s, the "
            f"longest {longest:g} s: give a shorter --prompt-duration or --max-duration"
        )
    config, chosen = subject.model.config, spread_evenly(long)[:num_prompts]
    if len({cut.recording_id for cut in chosen}) < 2:
        raise ValueError(
            f"{len(chosen)} passages of one recording were chosen ({len(long)} are long enough), "
            "and a measure is judged by what another piece scores: give more --num-prompts, "
            "shorter passages, or --parts likelihood"
        )
    codes = []
    for cut in chosen:
        row = cut_codes(cut)[:num_frames]
        check_codes(row, cut.id, config.num_quantizers, config.num_audio_tokens)
        codes.append(torch.from_numpy(row))
    names, recordings = [cut.id for cut in chosen], [cut.recording_id for cut in chosen]
    return HeldOut(names, recordings, codes, chosen, len(long), len(cuts))


def spread_evenly(cuts: Iterable[Any]) -> list[Any]:
    """One cut of each recording, then another of each that has more, in the order of the cuts."""
    seen: dict[str, int] = {}
    rounds = []
    for cut in cuts:
        rounds.append(seen.setdefault(cut.recording_id, 0))
        seen[cut.recording_id] += 1
    pairs = zip(rounds, cuts, strict=True)
    return [cut for _, cut in sorted(pairs, key=lambda pair: pair[0])]


def make_options(
    args: argparse.Namespace, subject: Subject, sizes: Sizes, frame_rate: float
) -> dict[str, Any]:
    """What is asked of a generation: as many frames as truly followed, from the flags.

    The true passage has not ended there either, so that EOS is none of its codes.

    Raises:
      ValueError: A flag that cannot be, before any time is spent.
    """
    options = sampling_options(args) | {"max_new_tokens": sizes[1], "ignore_eos": True}
    options |= window_options(args, frame_rate, sum(sizes), subject.checkpoint)
    GenerationOptions(**options)
    return options


def make_passages(
    subject: Subject, codec: Codec, held: HeldOut, sizes: Sizes, args: argparse.Namespace
) -> list[Made]:
    """Continue every prompt, fill every gap if the model can, and decode it all."""
    options = make_options(args, subject, sizes, codec.frame_rate)
    infill_options = sampling_options(args) | {"window": options.get("window", 0)}
    num_batches = -(-len(held.names) // args.batch_size)
    fills = subject.model.config.infills
    # a gap is a third of its passage
    most = (sizes[1] + fills * gap_of(sum(sizes)).num_frames) * num_batches
    made: list[Made] = []
    with Meter(most, codec.frame_rate, subject.device) as meter:
        for rows, generators in row_batches(
            len(held.names), args.num_samples, args.batch_size, args.seed
        ):
            whole = torch.stack(held.codes[rows])  # (B, P + T, Q)
            made += continue_batch(subject, codec, held, rows, sizes, meter, generators, options)
            if fills:
                filled = infill_batch(subject, whole, meter, generators, infill_options)
                sounds = by_prompt(decode(codec, filled), args.num_samples)
                for passage, sound in zip(made[rows], sounds, strict=True):
                    passage.infilled = sound
    logging.info(meter.summary())
    return made


def continue_batch(
    subject: Subject,
    codec: Codec,
    held: HeldOut,
    rows: slice,
    sizes: Sizes,
    meter: Meter,
    generators: list[torch.Generator],
    options: dict[str, Any],
) -> list[Made]:
    """Continue a few prompts."""
    whole, start = torch.stack(held.codes[rows]), sizes[0]
    made = subject.engine.inference(
        whole[:, :start].to(subject.device),
        generator=generators,
        progress=meter.progress(),
        **options,
    )
    assert isinstance(made, Tensor)  # no lengths were asked for
    made = made.cpu()
    meter.count(len(made) * sizes[1])
    samples = by_prompt(made, options["num_samples"])
    sounds = by_prompt(decode(codec, made), options["num_samples"])
    truths, cut = decode(codec, whole), start * codec.hop_length
    return [
        Made(
            Passage(
                name=held.names[rows][i],
                recording=held.recordings[rows][i],
                prompt=truths[i][:cut],
                true=truths[i][cut:],
                samples=tuple(sound[cut:] for sound in sounds[i]),
                true_codes=whole[i, start:, 0],
                sample_codes=tuple(codes[start:, 0] for codes in samples[i]),
            ),
            truths[i],
            sounds[i],
        )
        for i in range(len(whole))
    ]


class Gap(NamedTuple):
    """Frames [start, stop) of a passage that are made anew."""

    start: int
    stop: int

    @property
    def num_frames(self) -> int:
        return self.stop - self.start


def gap_of(num_frames: int) -> Gap:
    """The middle third."""
    return Gap(num_frames // 3, 2 * num_frames // 3)


def infill_batch(
    subject: Subject,
    whole: Tensor,
    meter: Meter,
    generators: list[torch.Generator],
    options: dict[str, Any],
) -> Tensor:
    """Make the middle of passages (B, P + T, Q) anew: (B x samples, P + T, Q)."""
    gap, whole = gap_of(whole.shape[1]), whole.to(subject.device)
    filled = subject.engine.infill(
        whole[:, : gap.start],
        None,
        whole[:, gap.stop :],
        None,
        gap.num_frames,
        generator=generators,
        progress=meter.progress(),
        **options,
    )
    assert isinstance(filled, Tensor)  # no lengths were asked for
    meter.count(len(filled) * gap.num_frames)
    return filled.cpu()


def by_prompt(rows: Sequence[Tensor] | Tensor, num_samples: int) -> list[list[Tensor]]:
    """Rows of a batch, the samples of a prompt together."""
    return [list(rows[i : i + num_samples]) for i in range(0, len(rows), num_samples)]


def decode(codec: Codec, codes: Tensor) -> Tensor:
    """Sound (B, N) of codes (B, T, Q)."""
    return codec.decode(codes)[0]
