"""How well gaps are filled: what their true content costs, and how what was made in them fits.

B batch, T frames, Q quantizers.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from evaluation_passages import Gap, Made
from evaluation_subject import Subject
from torch import Tensor
from tqdm import tqdm

from valle.codec.harmony import harmony_scores
from valle.codec.measures import decibel_distances
from valle.data import collate_codes, cut_codes
from valle.evaluation import Likelihood, LikelihoodMeter
from valle.evaluation.bootstrap import Interval, bootstrap_mean
from valle.evaluation.gaps import gap_costs
from valle.evaluation.seams import seam_ranks
from valle.models import AudioLM

MEASURES = {  # heading, how it is printed, which way is better
    "chroma": ("chroma correlation with the true gap", "{:.3f}", "high"),
    "mel_db": ("mel distance to the true gap, dB", "{:.2f}", "low"),
    "abrupt_start": ("abrupt joints where it begins", "{:.0%}", "near true"),
    "abrupt_end": ("abrupt joints where it ends", "{:.0%}", "near true"),
}
INFILLED, TRUE, ANOTHER = "in-filled", "true", "another piece"
ABRUPT = 0.95  # a joint is, if the sound changes less at so large a share of places in true music
NUM_RESAMPLES = 1000
_BATCH_SIZE = 8
_END_SEC = 0.5  # the end of a gap is what knowing the rest should help most with


# What the true content of gaps costs


def score_gaps(subject: Subject, frame_rate: float) -> dict[str, Likelihood]:
    """Costs of the middle of held-out cuts, by what is known beside the frames before it.

    Returns:
      By the name of what is known, of all frames of the gaps; then of the last of each gap.
    """
    model = subject.model
    assert isinstance(model, AudioLM), type(model)  # no other fills gaps
    meters: dict[str, LikelihoodMeter] = {}
    num_last = round(_END_SEC * frame_rate)
    for batch in _with_others(subject):
        for name, costs in gap_costs(model, *batch).items():
            meters.setdefault(name, LikelihoodMeter(1)).add(costs)
            left = costs.frames.flip(1).cumsum(1).flip(1)  # frames to the end of the gap
            last = costs._replace(frames=costs.frames & (left <= num_last))
            meters.setdefault(f"{name}, last {_END_SEC:g} s", LikelihoodMeter(1)).add(last)
    return {name: meters[name].overall() for name in sorted(meters, key=lambda n: "last" in n)}


def _with_others(subject: Subject) -> Iterator[list[Tensor]]:
    """Batches of held-out cuts, codes and lengths; then the same of as many of other recordings.

    Where all cuts are of one recording there are no others, and a batch is of two.
    """
    cuts = list(subject.data.survey(subject.held_out(), *subject.limits).cuts)
    rows = [cut_codes(cut) for cut in cuts]
    nexts = next_others([cut.recording_id for cut in cuts])
    for start in tqdm(range(0, len(rows), _BATCH_SIZE), desc="gaps", unit="batch", disable=None):
        part = slice(start, start + _BATCH_SIZE)
        batch = [*collate_codes(rows[part])]
        if nexts:
            batch += collate_codes([rows[i] for i in nexts[part]])
        yield [tensor.to(subject.device) for tensor in batch]


def next_others(names: Sequence[str]) -> list[int]:
    """For each row the next one of another recording; empty if all are of one."""
    if len(set(names)) < 2:
        return []
    num = len(names)
    return [
        next(j % num for j in range(i + 1, i + num) if names[j % num] != names[i])
        for i in range(num)
    ]


# What was made in gaps


def measure_gaps(
    made: Sequence[Made], gap: Gap, hop_length: int, sampling_rate: int, seed: int
) -> dict[str, dict[str, Interval]]:
    """Of in-filled gaps, of the true ones, and of what lies there in another of two pieces or more.

    Where the true content is compared with itself there is nothing to measure.
    """
    start, stop = gap.start * hop_length, gap.stop * hop_length
    rows: dict[str, list[tuple[Tensor, Tensor, str]]] = {INFILLED: [], TRUE: [], ANOTHER: []}
    recordings = [one.passage.recording for one in made]
    for i, (one, nearest) in enumerate(zip(made, next_others(recordings), strict=True)):
        other = made[nearest].true[start:stop]
        spliced = torch.cat([one.true[:start], other, one.true[stop:]])
        rows[INFILLED] += [(sound, one.true, recordings[i]) for sound in one.infilled]
        rows[TRUE].append((one.true, one.true, recordings[i]))
        rows[ANOTHER].append((spliced, one.true, recordings[i]))
    found = {}
    for name, row in rows.items():
        values = {} if name == TRUE else _likeness(row, slice(start, stop), sampling_rate)
        values |= _abruptness(row, (start, stop), [one.true for one in made], sampling_rate)
        names = [recording for _, _, recording in row]
        nothing = [math.nan] * len(row)
        found[name] = {
            key: bootstrap_mean(values.get(key, nothing), names, NUM_RESAMPLES, seed)
            for key in MEASURES
        }
    return found


def _likeness(
    row: Sequence[tuple[Tensor, Tensor, str]], where: slice, sampling_rate: int
) -> dict[str, list[float]]:
    """Of gaps to the true ones, frame by frame."""
    values: dict[str, list[float]] = {"chroma": [], "mel_db": []}
    for sound, true, _ in row:
        made, truth = sound[None, where], true[None, where]
        values["chroma"].append(float(harmony_scores(made, truth, sampling_rate)["chroma"]))
        values["mel_db"].append(float(decibel_distances(made, truth, sampling_rate)[0]))
    return values


def _abruptness(
    row: Sequence[tuple[Tensor, Tensor, str]],
    joints: tuple[int, int],
    truths: Sequence[Tensor],
    sampling_rate: int,
) -> dict[str, list[float]]:
    """Whether each gap begins, and ends, more abruptly than true music does at most places."""
    values = {}
    for key, joint in zip(("abrupt_start", "abrupt_end"), joints, strict=True):
        ranks = seam_ranks(
            [sound for sound, _, _ in row], [joint] * len(row), truths, sampling_rate
        )
        values[key] = [float(rank > ABRUPT) for rank in ranks]
    return values
