"""What codec training says while it runs: lines, tensorboard, and sounds to listen to.

Letters: C clips, N samples, Q quantizers.
"""

import logging
import math
import time
from typing import Any

import torch
from codec_run import CodecRun
from torch import Tensor

from valle.codec.measures import compare
from valle.codec.rvq import perplexity
from valle.utils.metrics import FRAMES, NONFINITE, MetricsTracker

NUM_SOUNDS = 4  # that are written to tensorboard


def log_progress(run: CodecRun, phase: str, num_steps: int, lr: float, ms_a_step: float) -> None:
    """A line with the means since the last one; collective."""
    params = run.params
    means = run.metrics.reduce(run.device).means()
    run.metrics = MetricsTracker()
    means = {k: v for k, v in means.items() if k not in (FRAMES, NONFINITE)}
    if not run.is_main:
        return
    listed = " ".join(f"{name} {mean:.4f}" for name, mean in means.items())
    place = f"{phase} step {params.phase_step}/{num_steps}"
    logging.info(f"{place}: {listed} lr {lr:.2e} {ms_a_step:.1f} ms/step")
    assert run.writer is not None
    scalars = {**means, "lr": lr, "ms_a_step": ms_a_step, "skipped_steps": params.num_skipped}
    for name, value in scalars.items():
        if math.isfinite(value):
            run.writer.add_scalar(f"train/{name}", value, params.step)
    if phase == "joint":
        log_usage(run)


def log_usage(run: CodecRun) -> None:
    """How many codes were used since the last line, and how evenly."""
    assert run.writer is not None
    counts = run.quantizer.read_usage()
    used, spread = (counts > 0).sum(dim=1).tolist(), perplexity(counts).tolist()
    numbers = "/".join(map(str, used)), "/".join(f"{p:.0f}" for p in spread)
    logging.info(f"codes used {numbers[0]} perplexity {numbers[1]}")
    for level, (num, even) in enumerate(zip(used, spread, strict=True), 1):
        run.writer.add_scalar(f"usage/q{level}", num, run.params.step)
        run.writer.add_scalar(f"perplexity/q{level}", even, run.params.step)


def report_held_out(run: CodecRun, phase: str) -> dict[str, float]:
    """Score the averaged codec on held-out clips, and let it be heard; on rank 0."""
    assert run.writer is not None
    begin, step, rate = time.monotonic(), run.params.step, run.model.config.sampling_rate
    sound = rebuild_clips(run.average, run.clips, through_codes=phase != "noise")
    scores = compare(sound, run.clips[:, 0], rate)
    listed = " ".join(f"{name} {value:.3f}" for name, value in scores.items())
    logging.info(f"{phase} step {step} held out: {listed} ({time.monotonic() - begin:.1f} s)")
    for name, value in scores.items():
        run.writer.add_scalar(f"valid/{name}", value, step)
    for number in range(min(NUM_SOUNDS, len(sound))):
        pair = {"original": run.clips[number], "codec": sound[number : number + 1]}
        for name, clip in pair.items():
            run.writer.add_audio(f"clip{number + 1}/{name}", clip.clamp(-1, 1).cpu(), step, rate)
    return scores


@torch.no_grad()
def rebuild_clips(model: Any, clips: Tensor, through_codes: bool) -> Tensor:
    """Sound (C, N) that a model makes of clips (C, 1, N), with or without its quantizer."""
    sounds = []
    for clip in clips.split(4):
        latents = model.encoder(clip)
        if through_codes:
            latents = model.quantizer.decode(model.quantizer.encode(latents))
        sounds.append(model.decoder(latents)[:, 0, : clips.shape[2]])
    return torch.cat(sounds)
