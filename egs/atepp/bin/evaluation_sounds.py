"""Generated sound beside the true one, measured: from the flags to the figures."""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
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

from valle.data import Codec, codec_of
from valle.evaluation import Embedding, Interval, Measure, compare_passages, get_embedding
from valle.evaluation.continuations import LOOP_SEC
from valle.evaluation.embeddings import windows
from valle.evaluation.frechet import fewest_vectors
from valle.utils.run_record import anonymous

NUM_RESAMPLES = 1000


@dataclass
class Stage:
    """What is ready before anything is generated."""

    codec: Codec
    held: HeldOut
    sizes: Sizes
    embeddings: list[Embedding]


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
    """Load the codec and the embeddings, choose the passages, check the flags.

    Raises:
      ValueError, OSError: One of them cannot be had.
    """
    # the control "frozen loop" comes round twice
    codec, sizes = open_codec(subject, args, shortest_sec=2 * LOOP_SEC[1])
    rate = codec.frame_rate
    held = choose_passages(subject, sizes, args.num_prompts, rate)
    make_options(args, subject, sizes, rate)
    embeddings = load_embeddings(args.embeddings, codec)
    stage = Stage(codec, held, sizes, embeddings)
    for warning in few_vectors(stage, args.seed):
        logging.warning(warning)
    return stage


def open_codec(
    subject: Subject, args: argparse.Namespace, shortest_sec: float
) -> tuple[Codec, Sizes]:
    """The codec of model and tokens, and the frames of prompts and of what follows.

    Raises:
      ValueError, OSError: It cannot be had, is another one, or the flags name too short a time.
    """
    num_quantizers = subject.model.config.num_quantizers
    codec = load_codec(args.codec, subject.checkpoint, subject.path, subject.device, num_quantizers)
    rate = codec.frame_rate
    sizes = round(args.prompt_duration * rate), round(args.max_duration * rate)
    if sizes[0] < 1:
        raise ValueError(f"--prompt-duration is shorter than a frame of {1 / rate:.3g} s")
    if args.max_duration < shortest_sec:
        raise ValueError(
            f"--max-duration is {args.max_duration:g} s: to be measured, sound must last "
            f"{shortest_sec:g} s or more"
        )
    tokens_codec = codec_of(subject.held_out())
    if tokens_codec is not None:
        codec.info.check_same(tokens_codec, f"tokens in {args.manifest_dir}")
    return codec, sizes


def load_embeddings(names: Sequence[str], codec: Codec) -> list[Embedding]:
    """One of each name; a home folder in it becomes ~, as the name stands in what is given away.

    Raises:
      ValueError, ImportError: One of them cannot be had.
    """
    rate, fingerprint = codec.sampling_rate, codec.info.fingerprint
    found = [get_embedding(name, rate, fingerprint) for name in dict.fromkeys(names)]
    shown = anonymous()
    return [replace(embedding, name=shown(embedding.name)) for embedding in found]


def few_vectors(stage: Stage, seed: int) -> list[str]:
    """Which Fréchet distances there cannot be, as half of the recordings has too few vectors."""
    held, rate = stage.held, stage.codec.sampling_rate
    num_windows = len(windows(torch.zeros(stage.sizes[1] * stage.codec.hop_length), rate))
    names = sorted(set(held.recordings))
    counts = np.array([held.recordings.count(name) * num_windows for name in names])
    fewest = fewest_vectors(counts, seed)
    sizes = {each.name: each(torch.zeros(rate)).shape[1] for each in stage.embeddings}
    return [
        f"no Fréchet distance, {name}: it needs more than {size} vectors, one for each dimension, "
        f"and half of the recordings has {fewest:g}; give more --num-prompts (now "
        f"{len(held.names)} passages of {len(names)} recordings) or a longer --max-duration"
        for name, size in sizes.items()
        if fewest <= size
    ]


def measure_sounds(subject: Subject, stage: Stage, args: argparse.Namespace) -> Sounds:
    """Make what is asked for, and measure it."""
    codec, held = stage.codec, stage.held
    logging.info(
        f"took {len(held.names)} of {held.num_long} passages that are long enough, "
        f"in {held.num_cuts} {subject.split} cuts, from {len(set(held.recordings))} recordings"
    )
    made = make_passages(subject, codec, held, stage.sizes, args)
    comparison = compare_passages(
        [one.passage for one in made],
        codec.sampling_rate,
        codec.frame_rate,
        embeddings=stage.embeddings,
        seed=args.seed,
    )
    sounds = Sounds(
        stage,
        made,
        comparison.measures,
        comparison.intervals(args.seed, NUM_RESAMPLES),
        comparison.separation(args.seed),
        args.num_shown,
    )
    if subject.model.config.infills:
        gap = gap_of(sum(stage.sizes))
        sounds.gaps = measure_gaps(made, gap, codec.hop_length, codec.sampling_rate, args.seed)
    return sounds
