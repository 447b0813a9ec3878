"""Generated sound beside the true one, measured: from the flags to the figures."""

import argparse
import logging
from dataclasses import dataclass, field

from evaluation_gaps import measure_gaps
from evaluation_passages import (
    HeldOut,
    Made,
    Sizes,
    choose_passages,
    gap_of,
    make_options,
    make_passages,
)
from evaluation_subject import Subject
from generation_flags import load_codec

from valle.data import Codec
from valle.evaluation import Interval, Measure, evaluate_passages, measures_for, separation
from valle.evaluation.continuations import LOOP_SEC


@dataclass
class Stage:
    """What is ready before anything is generated."""

    codec: Codec
    held: HeldOut
    sizes: Sizes


@dataclass
class Sounds:
    """What was made, and how it measures.

    Attributes:
      stage: What it was made from.
      made: A passage after the other.
      measures: What the figures are, in the order of the tables.
      rows: By row ("true", "generated", the controls), by measure.
      separation: By measure, by control.
      num_shown: Passages with players on the page.
      gaps: Of in-filled gaps, likewise; empty where the model fills none.
    """

    stage: Stage
    made: list[Made]
    measures: dict[str, Measure]
    rows: dict[str, dict[str, Interval]]
    separation: dict[str, dict[str, float]]
    num_shown: int
    gaps: dict[str, dict[str, Interval]] = field(default_factory=dict)


def prepare_sounds(subject: Subject, args: argparse.Namespace) -> Stage:
    """Load the codec, choose the passages, check the flags.

    Raises:
      ValueError, OSError: One of them cannot be had.
    """
    num_quantizers = subject.model.config.num_quantizers
    codec = load_codec(args.codec, subject.checkpoint, subject.path, subject.device, num_quantizers)
    rate = codec.frame_rate
    sizes = round(args.prompt_duration * rate), round(args.max_duration * rate)
    if sizes[0] < 1:
        raise ValueError(f"--prompt-duration is shorter than a frame of {1 / rate:.3g} s")
    shortest = 2 * LOOP_SEC[1]  # the control "frozen loop" comes round twice
    if args.max_duration < shortest:
        raise ValueError(
            f"--max-duration is {args.max_duration:g} s: to be measured, sound must last "
            f"{shortest:g} s or more"
        )
    held = choose_passages(subject, sizes, args.num_prompts, rate)
    make_options(args, subject, sizes, rate)
    return Stage(codec, held, sizes)


def measure_sounds(subject: Subject, stage: Stage, args: argparse.Namespace) -> Sounds:
    """Make what is asked for, and measure it."""
    codec, held = stage.codec, stage.held
    logging.info(
        f"took {len(held.names)} of {held.num_long} passages that are long enough, "
        f"in {held.num_cuts} {subject.split} cuts, from {len(set(held.recordings))} recordings"
    )
    made = make_passages(subject, codec, held, stage.sizes, args)
    passages = [one.passage for one in made]
    rates = codec.sampling_rate, codec.frame_rate
    how = {"embeddings": args.embeddings, "seed": args.seed}
    how["generator_codec"] = codec.info.fingerprint
    sounds = Sounds(
        stage,
        made,
        measures_for(args.embeddings),
        evaluate_passages(passages, *rates, **how),
        separation(passages, *rates, **how),
        args.num_shown,
    )
    if subject.model.config.infills:
        gap = gap_of(sum(stage.sizes))
        sounds.gaps = measure_gaps(made, gap, codec.hop_length, codec.sampling_rate, args.seed)
    return sounds
