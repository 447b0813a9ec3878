"""What true audio costs a VALL-E that is told its condition, and one that is told another's.

B batch, T frames, Q quantizers.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from evaluation_condition_inputs import given_of, true_and_shuffled
from evaluation_likelihood import Scores, bin_frames, score_ngrams, sent_to
from evaluation_subject import Subject
from tqdm import tqdm

from valle.data import PromptSplit, collate_codes, cut_codes
from valle.data.prompt import take_rows
from valle.evaluation import LikelihoodMeter, frame_costs
from valle.models import VALLE

TRUE, SHUFFLED = "its own condition", "another recording's"


def score_conditioned(
    subject: Subject, bin_sec: float, prompt_sec: float, batch_sec: float
) -> Scores:
    """Score the model with true and with shuffled conditions, and n-grams, on the same frames.

    Args:
      subject: Whose model, on whose held-out cuts.
      bin_sec: Seconds of a bin of the table by position.
      prompt_sec: Of each cut, given as a prompt where its notes can be told from the others; a text
        does not say what of it the prompt is, so that all frames are scored. Shorter cuts are left
        out.
      batch_sec: Of the cuts that are scored at a time, padding included.

    Raises:
      ValueError, OSError: Tokens or conditions that cannot be used, or no cut that is long enough.
    """
    data, config = subject.data, subject.model.config
    survey = data.survey(subject.held_out(), *subject.limits)
    subject.check_codec(survey.codec)
    rate = config.frame_rate
    num_prompt = round(prompt_sec * rate) if config.condition == "midi" else 0
    cuts = [cut for cut in survey.cuts if round(cut.duration * rate) > num_prompt]
    if not cuts:
        raise ValueError(
            f"none of {survey.num_cuts} {subject.split} cuts outlast a prompt of {prompt_sec:g} s: "
            "give a shorter --prompt-duration"
        )
    rows = [cut_codes(cut) for cut in cuts]
    parts = batches_of([len(row) for row in rows], round(batch_sec * rate))
    told = true_and_shuffled(subject, cuts, [cut.duration for cut in cuts], num_prompt / rate)
    meters = {
        name: score_told(subject, rows, tokens, parts, num_prompt, bin_frames(bin_sec, rate))
        for name, tokens in zip((TRUE, SHUFFLED), told, strict=True)
        if tokens
    }
    train = data.survey(data.train_cuts(), *subject.limits)
    ngrams = score_ngrams(subject, train.cuts, rows, [num_prompt] * len(rows))
    scores = Scores(meters[TRUE].overall(), ngrams, rate, model="VALL-E")
    scores.by_condition = {name: meter.overall() for name, meter in meters.items()}
    bins = enumerate(meters[TRUE].by_position())
    scores.by_position = {k * meters[TRUE].bin_frames / rate: found for k, found in bins}
    scores.facts = _facts(cuts, survey.num_seen, train.num_cuts)
    return scores


def batches_of(lens: Sequence[int], most_frames: int) -> list[slice]:
    """Neighbours whose frames, padding included, are no more than that; a longer row is alone."""
    return list(_batches_of(lens, most_frames))


def _batches_of(lens: Sequence[int], most_frames: int) -> Iterator[slice]:
    start = 0
    for stop in range(1, len(lens) + 1):
        is_last = stop == len(lens)
        if is_last or max(lens[start : stop + 1]) * (stop + 1 - start) > most_frames:
            yield slice(start, stop)
            start = stop


def score_told(
    subject: Subject,
    rows: Sequence[np.ndarray],
    told: Sequence[np.ndarray],
    parts: Sequence[slice],
    num_prompt: int,
    num_bin_frames: int,
) -> LikelihoodMeter:
    """Costs of codes (T, Q) after their first `num_prompt` frames, as the model is told of them."""
    model, meter = subject.model, LikelihoodMeter(num_bin_frames)
    assert isinstance(model, VALLE), type(model)
    for part in tqdm(parts, desc="likelihood", unit="batch", disable=None):
        codes, lens = collate_codes(rows[part])
        begins = torch.full_like(lens, num_prompt)
        target = take_rows(codes, begins, lens - begins)
        split = PromptSplit(codes[:, :num_prompt], begins, target, lens - begins)
        given = given_of(model, told[part], num_prompt, subject.device)
        x, x_lens, y, y_lens = sent_to(subject.device, split)
        meter.add(frame_costs(model, x, x_lens, y, y_lens, given=given))
    return meter


def _facts(cuts: Sequence[Any], num_seen: int, num_training: int) -> dict[str, Any]:
    hours = sum(cut.duration for cut in cuts) / 3600
    return {
        "cuts": len(cuts),
        "cuts_in_split": num_seen,
        "hours": hours,
        "training_cuts": num_training,
    }
