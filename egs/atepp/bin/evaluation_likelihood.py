"""What true continuations cost a trained model, beside n-grams on the same frames.

Letters: B batch, T frames, Q quantizers.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from evaluation_gaps import score_gaps
from evaluation_subject import Subject
from tqdm import tqdm

from valle.data import PromptSplit, cut_codes, split_prompt
from valle.evaluation import Likelihood, LikelihoodMeter, frame_costs, prompts_before
from valle.evaluation.ngrams import Bigram, Score, Trigram, Unigram, best_score
from valle.models import CodecLM

NGRAMS = {"unigram": Unigram, "bigram": Bigram, "trigram": Trigram}


@dataclass
class Scores:
    """All that is reported.

    Attributes:
      overall: The model's.
      ngrams: By name, a score a quantizer.
      frame_rate: Of the codec; None where the tokens do not name it, and then there are no seconds.
      by_position: By the second of the continuation at which a bin begins.
      by_prompt: By the length of the prompt in seconds.
      gaps: By what is known of what is around a gap; empty where the model fills none.
      by_condition: Of a model with a condition, by whose it was told; empty for others.
      model: What it is called in tables.
      facts: How many cuts were scored of how many, and what the n-grams were counted on.
    """

    overall: Likelihood
    ngrams: dict[str, list[Score]]
    frame_rate: float | None
    by_position: dict[float, Likelihood] = field(default_factory=dict)
    by_prompt: dict[float, Likelihood] = field(default_factory=dict)
    gaps: dict[str, Likelihood] = field(default_factory=dict)
    by_condition: dict[str, Likelihood] = field(default_factory=dict)
    model: str = "AudioLM"
    facts: dict[str, Any] = field(default_factory=dict)


Batches = list[tuple[torch.Tensor, torch.Tensor]]
"""Codes (B, T, Q) with the lengths of their rows (B,)."""


def score_likelihood(
    subject: Subject, bin_sec: float, prompt_sec: Sequence[float], asked: bool
) -> Scores:
    """Score the model and the n-grams.

    Args:
      subject: Whose model, on whose held-out cuts.
      bin_sec: Seconds of a bin of the table by position.
      prompt_sec: Score what follows the longest of these prompts after each of them.
      asked: Whether somebody asked for these lengths; of others the fitting ones are taken.

    Raises:
      ValueError, OSError: Tokens that cannot be used, or a length asked for that does not fit.
    """
    data, model, ratio = subject.data, subject.model, subject.checkpoint["prompt_ratio"]
    survey = data.survey(subject.held_out(), *subject.limits)
    subject.check_codec(survey.codec)
    frame_rate = survey.codec.frame_rate if survey.codec is not None else None
    loader = data.valid_dataloader(survey.cuts)
    batches = [(b["audio_features"], b["audio_features_lens"]) for b in loader]
    prompts = fitting_prompts(prompt_sec, asked, batches, frame_rate)
    meter = LikelihoodMeter(bin_frames(bin_sec, frame_rate))
    for codes, lens in tqdm(batches, desc="likelihood", unit="batch", disable=None):
        split = split_prompt(codes, lens, ratio)
        meter.add(frame_costs(model, *sent_to(subject.device, split)))
    train = data.survey(data.train_cuts(), *subject.limits)
    rows = [row[:n].numpy() for codes, lens in batches for row, n in zip(codes, lens, strict=True)]
    starts = [
        n for codes, lens in batches for n in split_prompt(codes, lens, ratio).x_lens.tolist()
    ]
    ngrams = score_ngrams(subject, train.cuts, rows, starts)
    scores = Scores(meter.overall(), ngrams, frame_rate)
    scores.facts = {"cuts": survey.num_cuts, "cuts_in_split": survey.num_seen}
    scores.facts |= {"hours": survey.seconds / 3600, "training_cuts": train.num_cuts}
    if frame_rate is not None:
        bins = enumerate(meter.by_position())
        scores.by_position = {k * meter.bin_frames / frame_rate: found for k, found in bins}
        scores.by_prompt = after_prompts(model, batches, prompts, subject.device)
        if model.config.infills:
            scores.gaps = score_gaps(subject, frame_rate)
    return scores


def score_ngrams(
    subject: Subject,
    train_cuts: Iterable[Any],
    held_out: Sequence[np.ndarray],
    starts: Sequence[int],
) -> dict[str, list[Score]]:
    """N-grams of each quantizer, counted on the training cuts, on the frames that the model scored.

    Held-out codes (T, Q) are scored from the frames `starts` on. A bigram needs a code before the
    first, so that scoring begins at frame 1 at the earliest.
    """
    train = [cut_codes(cut) for cut in train_cuts]
    config = subject.model.config
    return {
        name: [
            best_score(
                kind,
                [codes[:, q] for codes in train],
                [codes[:, q] for codes in held_out],
                [max(start, 1) for start in starts],
                config.num_audio_tokens,
            )
            for q in range(config.num_quantizers)
        ]
        for name, kind in tqdm(NGRAMS.items(), desc="n-grams", disable=None)
    }


def bin_frames(seconds: float, frame_rate: float | None) -> int:
    """Frames of a bin of positions; without a frame rate nobody looks at bins."""
    return max(1, round(seconds * frame_rate)) if frame_rate is not None else 1


def fitting_prompts(
    seconds: Sequence[float], asked: bool, batches: Batches, frame_rate: float | None
) -> dict[float, int]:
    """Lengths of prompts in seconds and in frames, shortest first; none without a frame rate.

    Raises:
      ValueError: A length that was asked for is below a frame, or no cut outlasts it.
    """
    if frame_rate is None:
        return {}
    lengths = {length: round(length * frame_rate) for length in sorted(seconds)}
    longest = max(int(lens.max()) for _, lens in batches)
    unfit = [length for length, num_frames in lengths.items() if not 1 <= num_frames < longest]
    if unfit:
        told = ", ".join(f"{length:g}" for length in unfit)
        why = (
            f"a prompt takes a frame of {1 / frame_rate:.3g} s or more, and the longest cut must "
            f"outlast it, which has {longest / frame_rate:g} s"
        )
        if asked:
            raise ValueError(f"--prompt-seconds {told} cannot be scored: {why}")
        logging.info(f"likelihood after prompts of {told} s is left out: {why}")
    return {length: num for length, num in lengths.items() if length not in unfit}


def after_prompts(
    model: CodecLM, batches: Batches, lengths: Mapping[float, int], device: torch.device
) -> dict[float, Likelihood]:
    """The same frames after prompts of several lengths, as `fitting_prompts` gives them."""
    found = {}
    for length, num_frames in tqdm(lengths.items(), desc="prompt lengths", disable=None):
        meter = LikelihoodMeter(1)
        for codes, lens in batches:
            split = prompts_before(codes, lens, max(lengths.values()), num_frames)
            if split is not None:
                meter.add(frame_costs(model, *sent_to(device, split)))
        found[length] = meter.overall()
    return found


def sent_to(device: torch.device, split: PromptSplit) -> PromptSplit:
    """The same on a device."""
    return PromptSplit(*(part.to(device) for part in split))


def as_json(scores: Scores) -> dict[str, Any]:
    """What evaluation.json holds under "likelihood"."""
    tables = {"by_position": scores.by_position, "by_prompt": scores.by_prompt}
    content: dict[str, Any] = {
        "overall": asdict(scores.overall),
        "ngrams": {name: [vars(score) for score in row] for name, row in scores.ngrams.items()},
    }
    for name, table in tables.items():
        content[name] = {f"{key:g}": asdict(found) for key, found in table.items()}
    content["gaps"] = {name: asdict(found) for name, found in scores.gaps.items()}
    if scores.by_condition:
        told = {name: asdict(found) for name, found in scores.by_condition.items()}
        content["by_condition"] = told
    if scores.frame_rate is not None:
        content["bits_a_second"] = scores.overall.bits_a_second(scores.frame_rate)
    return content | {"frame_rate": scores.frame_rate, "facts": scores.facts}
