"""How well the sound that is made of MIDI follows its notes: from the flags to the figures.

N samples, P prompt frames, T frames after them, Q quantizers.
"""

import argparse
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from evaluation_condition_inputs import true_and_shuffled
from evaluation_gaps import next_others
from evaluation_passages import HeldOut, Sizes, choose_passages, decode
from evaluation_sounds import NUM_RESAMPLES, open_codec
from evaluation_subject import Subject
from generation_flags import sampling_options
from generation_rows import num_of_prompts, row_batches
from infer_output import Meter
from torch import Tensor

from valle.codec.harmony import harmony_scores
from valle.data import Codec, collate_codes
from valle.data.audio import read_mono, resample
from valle.data.midi import notes_of
from valle.evaluation import Interval
from valle.evaluation.bootstrap import bootstrap_mean
from valle.evaluation.onsets import (
    Onsets,
    compare_notes,
    compare_onsets,
    onsets_of_notes,
    onsets_of_sound,
)
from valle.models import GenerationOptions

TRUE, CODEC, GENERATED = "true recording", "codec round trip", "generated"
SHUFFLED, ANOTHER = "other notes", "another recording"
ROWS = (TRUE, CODEC, GENERATED, SHUFFLED, ANOTHER)
MEASURES = {  # heading, how it is printed, which way is better
    "note_f1": ("notes begin as in the true sound, F1", "{:.2f}", "high"),
    "note_precision": ("of those, precision", "{:.2f}", "high"),
    "note_recall": ("of those, recall", "{:.2f}", "high"),
    "onset_f1": ("onsets whatever the pitch, F1", "{:.2f}", "high"),
    "chroma": ("chroma correlation over time", "{:.2f}", "high"),
    "midi_note_f1": ("notes begin as in the MIDI, F1", "{:.2f}", "high"),
    "midi_onset_f1": ("onsets as in the MIDI, F1", "{:.2f}", "high"),
}
SHORTEST_SEC = 1.0  # below it hardly a note begins


class Stage(NamedTuple):
    """What is ready before anything is generated.

    Attributes:
      own: What the model is told of each passage, and `mixed`: the same with other notes after the
        prompt.
      decoded: (N,) sounds of the passages' true codes.
      truths: (N,) sounds of the passages; of the recordings if `is_recorded`, else `decoded`.
    """

    codec: Codec
    held: HeldOut
    sizes: Sizes
    own: list[np.ndarray]
    mixed: list[np.ndarray]
    decoded: list[Tensor]
    truths: list[Tensor]
    is_recorded: bool


@dataclass
class Followed:
    """What was made, and how it measures.

    Attributes:
      stage: What it was made from.
      sounds: By row, of each passage what there is of it (N,): samples, or one sound.
      rows: By row, by measure.
      num_shown: Passages with players on the page.
    """

    stage: Stage
    sounds: dict[str, list[list[Tensor]]]
    rows: dict[str, dict[str, Interval]]
    num_shown: int


def prepare_condition(subject: Subject, args: argparse.Namespace) -> Stage:
    """Load the codec, choose the passages, read their notes and sounds, check the flags.

    Raises:
      ValueError, OSError: One of them cannot be had.
    """
    codec, sizes = open_codec(subject, args, SHORTEST_SEC)
    held = choose_passages(subject, sizes, args.num_prompts, codec.frame_rate)
    GenerationOptions(**_options(args, sizes))
    seconds = [sum(sizes) / codec.frame_rate] * len(held.cuts)
    prompt_sec = sizes[0] / codec.frame_rate
    own, mixed = true_and_shuffled(subject, held.cuts, seconds, prompt_sec)
    decoded = [decode(codec, codes[None])[0] for codes in held.codes]
    recorded = [recorded_sound(cut, codec, len(decoded[0])) for cut in held.cuts]
    missing = sum(sound is None for sound in recorded)
    if missing:
        logging.warning(
            f"{missing} of {len(recorded)} true recordings are not there: true sound is decoded "
            "from its codes, and the codec's own loss cannot be seen"
        )
    truths = decoded if missing else [sound for sound in recorded if sound is not None]
    return Stage(codec, held, sizes, own, mixed, decoded, truths, not missing)


def recorded_sound(cut: Any, codec: Codec, num_samples: int) -> Tensor | None:
    """(N,) the beginning of a cut from its recording, as the codec was given it; None if gone."""
    sources = cut.recording.sources
    path = Path(sources[0].source) if sources and sources[0].type == "file" else None
    if path is None or not path.is_file():
        return None
    sound = read_mono(path)
    first = round(cut.start * sound.sampling_rate)
    length = math.ceil(num_samples * sound.sampling_rate / codec.sampling_rate)
    part = resample(
        sound.samples[first : first + length], sound.sampling_rate, codec.sampling_rate
    )[:num_samples]
    return torch.nn.functional.pad(part, (0, num_samples - len(part)))


def _options(args: argparse.Namespace, sizes: Sizes) -> dict[str, Any]:
    """As many frames as truly followed: the true passage has not ended there either."""
    return sampling_options(args) | {"max_new_tokens": sizes[1], "ignore_eos": True}


def measure_condition(subject: Subject, stage: Stage, args: argparse.Namespace) -> Followed:
    """Make every passage of its own notes and of others, and measure it all."""
    held = stage.held
    logging.info(
        f"took {len(held.names)} of {held.num_long} passages that are long enough, "
        f"in {held.num_cuts} {subject.split} cuts, from {len(set(held.recordings))} recordings"
    )
    nexts = next_others(held.recordings)
    sounds = {
        TRUE: [[sound] for sound in stage.truths],
        CODEC: [[sound] for sound in stage.decoded],
        **make_sounds(subject, stage, args),
        ANOTHER: [[stage.truths[i]] for i in nexts],
    }
    sounds = {name: sounds[name] for name in ROWS}
    return Followed(stage, sounds, measure_rows(stage, sounds, args.seed), args.num_shown)


def make_sounds(
    subject: Subject, stage: Stage, args: argparse.Namespace
) -> dict[str, list[list[Tensor]]]:
    """Prompt and what the model makes after it, of each passage's own notes and of others."""
    num, size = len(stage.held.names), args.batch_size
    made: dict[str, list[list[Tensor]]] = {GENERATED: [], SHUFFLED: []}
    most = 2 * -(-num // size) * stage.sizes[1]
    with Meter(most, stage.codec.frame_rate, subject.device) as meter:
        for name, told in ((GENERATED, stage.own), (SHUFFLED, stage.mixed)):
            for rows, generators in row_batches(num, args.num_samples, size, args.seed):
                codes = make_batch(
                    subject, stage, rows, told[rows], args, generators, meter.progress()
                )
                meter.count(len(codes) * stage.sizes[1])
                found = list(decode(stage.codec, codes))
                made[name] += [
                    found[i : i + args.num_samples] for i in range(0, len(found), args.num_samples)
                ]
    logging.info(meter.summary())
    return made


def make_batch(
    subject: Subject,
    stage: Stage,
    rows: slice,
    told: Sequence[np.ndarray],
    args: argparse.Namespace,
    generators: list[torch.Generator],
    progress: Any,
) -> Tensor:
    """Codes (B x samples, P + T, Q): the true prompt, and the model's frames after it."""
    prompts = torch.stack(stage.held.codes[rows])[:, : stage.sizes[0]]
    x, x_lens = (part.to(subject.device) for part in collate_codes(told))
    num_of_prompt = num_of_prompts(
        subject.model, x, x_lens, torch.full_like(x_lens, stage.sizes[0])
    )
    new = subject.engine.inference(
        x,
        x_lens,
        prompts.to(subject.device),
        num_of_prompt,
        generator=generators,
        progress=progress,
        **_options(args, stage.sizes),
    )
    assert isinstance(new, Tensor)  # no lengths were asked for
    return torch.cat([prompts.repeat_interleave(args.num_samples, dim=0), new.cpu()], dim=1)


# Measures


def measure_rows(
    stage: Stage, sounds: Mapping[str, Sequence[Sequence[Tensor]]], seed: int
) -> dict[str, dict[str, Interval]]:
    """Of what comes after the prompt: beside the true sound, and beside the passage's own notes.

    The true sound beside itself is nothing to measure.
    """
    rate, first = stage.codec.sampling_rate, stage.sizes[0] * stage.codec.hop_length
    truths = [sound[first:] for sound in stage.truths]
    heard = [onsets_of_sound(sound, rate) for sound in truths]
    written = [_written(told, stage) for told in stage.own]
    found = {}
    for name, passages in sounds.items():
        values: dict[str, list[float]] = {key: [] for key in MEASURES}
        recordings = []
        for i, samples in enumerate(passages):
            for sound in samples:
                recordings.append(stage.held.recordings[i])
                after = sound[first:]
                onsets = onsets_of_sound(after, rate)
                row = _beside_notes(onsets, written[i])
                if name != TRUE:
                    row |= _beside_sound(onsets, heard[i])
                    scores = harmony_scores(after[None], truths[i][None], rate)
                    row["chroma"] = float(scores["chroma"])
                for key in MEASURES:
                    values[key].append(row.get(key, math.nan))
        found[name] = {
            key: bootstrap_mean(column, recordings, NUM_RESAMPLES, seed)
            for key, column in values.items()
        }
    return found


def _written(told: np.ndarray, stage: Stage) -> Onsets:
    """Onsets of a passage's notes after the prompt."""
    return onsets_of_notes(notes_after(told, stage.sizes[0] / stage.codec.frame_rate))


def notes_after(events: np.ndarray, seconds: float) -> np.ndarray:
    """(M, 4) notes of events (S, 6), that many seconds earlier; a prompt's have onsets before 0."""
    notes = notes_of(events)
    notes[:, 0] -= seconds
    return notes


def _beside_sound(made: Onsets, true: Onsets) -> dict[str, float]:
    notes = compare_notes(made, true)
    return {
        "note_f1": notes.f1,
        "note_precision": notes.precision,
        "note_recall": notes.recall,
        "onset_f1": compare_onsets(made, true).f1,
    }


def _beside_notes(made: Onsets, true: Onsets) -> dict[str, float]:
    return {
        "midi_note_f1": compare_notes(made, true).f1,
        "midi_onset_f1": compare_onsets(made, true).f1,
    }
