"""What a model is given of a batch: here, and nowhere else in training, AudioLM and VALLE differ.

An AudioLM continues cuts, so that each is split into a prompt and a target, or into a gap and what
lies around it. A VALLE makes whole cuts of the text or the MIDI events that they carry.

B batch, T frames, P frames of prompts from elsewhere, S symbols or events, Q quantizers.
"""

from typing import Any

import torch
from torch import Tensor
from training_run import Batch, Prepared, Run

from valle.data import GapSplit, PromptSplit, draw_gaps, middle_gaps, split_gaps, split_prompt
from valle.models.config import ELSEWHERE
from valle.utils.vocabulary import BOS, EOS, MIDI_FIELDS

# Inputs that are padded along their second dimension; each has its lengths under NAME_lens.
PADDED = ("x", "y", "after", "prompts")


def prepare(run: Run, batch: Batch) -> Prepared:
    """Bring a batch to the device, as the arguments of the model's `forward`."""
    if run.model.config.condition is None:
        return send(run, batch, continued(run, batch))
    return send(run, batch, conditioned(run, batch))


def prepare_gaps(run: Run, batch: Batch) -> Prepared:
    """The same of an AudioLM, each cut with a gap, which is where it was the last time."""
    codes, lens = codes_of(batch)
    return send(run, batch, with_ends(batch, split_gaps(codes, lens, *middle_gaps(lens))))


def continued(run: Run, batch: Batch) -> dict[str, Tensor]:
    """Prompts and targets; in training some cuts have gaps in the place of their targets."""
    codes, lens = codes_of(batch)
    prompt = split_prompt(codes, lens, run.params.prompt_ratio)
    if not run.model.training or run.params.infill_prob == 0:
        return with_ends(batch, prompt)
    gaps = draw_gaps(prompt, run.params.infill_prob, run.gap_generator)
    return with_ends(batch, split_gaps(codes, lens, *gaps))


def conditioned(run: Run, batch: Batch) -> dict[str, Tensor]:
    """Text or events as `x`, whole cuts as `y`; with prefix mode 4 prompts from elsewhere."""
    codes, lens = codes_of(batch)
    x, x_lens = tokens_of(batch, run.model.config.condition)
    inputs = {"x": x, "x_lens": x_lens, "y": codes, "y_lens": lens, "y_ends": batch["reaches_end"]}
    if run.model.config.prefix_mode == ELSEWHERE:
        inputs |= {name: batch[name] for name in ("prompts", "prompts_lens")}
    return inputs


def codes_of(batch: Batch) -> tuple[Tensor, Tensor]:
    """(B, T, Q) codes of whole cuts and (B,) their lengths."""
    return batch["audio_features"], batch["audio_features_lens"].long()


def tokens_of(batch: Batch, condition: str) -> tuple[Tensor, Tensor]:
    """(B, S) ids of text or (B, S, 6) events, and (B,) their lengths."""
    return batch[f"{condition}_tokens"], batch[f"{condition}_tokens_lens"]


def with_ends(batch: Batch, split: PromptSplit | GapSplit) -> dict[str, Tensor]:
    ends = batch["reaches_end"]
    if isinstance(split, GapSplit):
        ends = ends & (split.after_lens == 0)  # a gap goes on
    return split._asdict() | {"y_ends": ends}


def forward_options(run: Run, batch: Prepared) -> dict[str, Any]:
    """Arguments of `forward` beside the inputs."""
    options = {"train_stage": int(run.stage), "all_stages": run.params.all_nar_stages}
    if run.model.config.condition is None:
        options["longest"] = batch.longest
        options["score_prompts"] = run.params.score_prompts and run.model.training
    return options


def send(run: Run, batch: Batch, inputs: dict[str, Tensor]) -> Prepared:
    """Bring inputs to the device, for which nobody waits.

    They were made on the CPU, where asking for lengths does not make the host wait for the device.
    """
    num_frames = int(inputs["y_lens"].sum())
    if run.device.type == "cuda":  # else the copy would not go on beside the last step's work
        inputs = {name: tensor.pin_memory() for name, tensor in inputs.items()}
    inputs = {name: tensor.to(run.device, non_blocking=True) for name, tensor in inputs.items()}
    return Prepared(inputs, codes_of(batch)[1], num_frames, batch["utt_id"])


def halves(batch: Prepared) -> list[Prepared]:
    """The rows of a batch as two batches; one of a single row stays as it is."""
    num_rows = len(batch.cut_ids)
    if num_rows < 2:
        return [batch]
    return [rows_of(batch, slice(0, num_rows // 2)), rows_of(batch, slice(num_rows // 2, None))]


def rows_of(batch: Prepared, rows: slice) -> Prepared:
    """Some rows, without the padding that they all share."""
    inputs = {name: tensor[rows] for name, tensor in batch.inputs.items()}
    for name in PADDED:
        if name in inputs:
            inputs[name] = inputs[name][:, : int(inputs[f"{name}_lens"].max())]
    num_frames = int(inputs["y_lens"].sum())
    return Prepared(inputs, batch.lens[rows], num_frames, batch.cut_ids[rows])


def empty_batch(run: Run) -> Batch:
    """The least that the model takes; its loss counts nowhere."""
    codes = torch.zeros(1, 4, run.params.num_quantizers, dtype=torch.int64)
    ids = torch.tensor([[BOS, EOS]])
    events = ids[:, :, None].expand(-1, -1, len(MIDI_FIELDS))
    return {
        "utt_id": ["none"],
        "audio_features": codes,
        "audio_features_lens": torch.tensor([4]),
        "reaches_end": torch.tensor([False]),
        "text_tokens": ids,
        "text_tokens_lens": torch.tensor([2]),
        "midi_tokens": events,
        "midi_tokens_lens": torch.tensor([2]),
        "prompts": codes[:, :0],
        "prompts_lens": torch.tensor([0]),
    }
