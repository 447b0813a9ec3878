#!/usr/bin/env python3
"""Train an EnCodec, or fine-tune one, on any recordings.

Usage, from the repository root, in one of three ways:

  # decoder alone: encoder and codebooks are frozen, tokens that exist stay valid
  python3 egs/atepp/bin/trainer_codec.py --src-dir recordings --exp-dir exp/codec \
      --init-from facebook/encodec_32khz --train decoder

  # all of it: better, but other tokens; tokenise again afterwards
  python3 egs/atepp/bin/trainer_codec.py --src-dir recordings --exp-dir exp/codec \
      --init-from facebook/encodec_32khz --train all

  # from scratch, of the sizes in a config.json
  python3 egs/atepp/bin/trainer_codec.py --src-dir recordings --exp-dir exp/codec \
      --config egs/minipiano/codec/config.json

The codec is written to EXP_DIR/codec, a folder that transformers opens. Several GPUs:
`torchrun --nproc-per-node N` before the script, or `--world-size N`.
"""

import argparse
import logging
import math
import time
from collections.abc import Iterator

import torch
from codec_options import get_parser, settle
from codec_passes import averaging, begin_phase, follow, use_optimizer
from codec_report import log_progress, report_held_out
from codec_run import PHASES, CodecRun, build_run
from codec_saving import check_fresh, once, resume, save, write_codec
from codec_step import review, train_step
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from valle.codec.crops import StepSampler
from valle.utils.dist import (
    cleanup_dist,
    launch,
    setup_dist,
    wait_for_all,
)
from valle.utils.log import setup_logger
from valle.utils.signals import StopRequest, handled, ignore_stop_signals
from valle.utils.watchdog import Watchdog

LAST_LR_SHARE = 0.03  # the cosine ends at this share of the learning rate
PHASE_COSTS = {"noise": 1.0, "joint": 1.2, "decoder": 0.9}  # time of a step, roughly

# The loop


class Progress:
    """Share of a phase that is done, by steps or by time, whichever is further.

    Schedules follow the share, so they complete even where the time limit cuts the steps.

    Args:
      steps: Planned ones.
      seconds: That the phase may take; infinite without a limit.
      before_sec: What it took before this process went on with it.
    """

    def __init__(self, steps: int, seconds: float, before_sec: float = 0.0) -> None:
        self.steps, self.seconds = steps, max(seconds, 1e-3)
        self.begin = time.monotonic() - before_sec

    @property
    def elapsed_sec(self) -> float:
        return time.monotonic() - self.begin

    def share(self, step: int) -> float:
        return max(step / self.steps, self.elapsed_sec / self.seconds)


def cosine(share: float) -> float:
    """Fall from 1 to LAST_LR_SHARE while share goes from 0 to 1."""
    low = LAST_LR_SHARE
    return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


def learning_rate(run: CodecRun, phase: str, share: float) -> float:
    """One cosine spans noise and joint, the decoder phase has its own; each warms up."""
    params = run.params
    warm = min(1.0, (params.phase_step + 1) / params.warmup_steps)
    if phase == "decoder":
        return params.lr_decoder * cosine(share) * warm
    turn = params.steps_noise / max(1, params.steps_noise + params.steps_joint)
    whole = share * turn if phase == "noise" else turn + share * (1 - turn)
    return params.lr * cosine(whole) * warm


class Stopped(Exception):
    """A signal asked the run to end, and all is saved."""


def train(run: CodecRun, goes_on: bool) -> None:
    """Phase after phase; a run that goes on does so inside one."""
    params = run.params
    begin = time.monotonic() - params.elapsed_sec
    for number in range(params.phase, len(PHASES)):
        phase = PHASES[number]
        if not goes_on:
            params.phase, params.phase_step, params.phase_sec = number, 0, 0.0
            begin_phase(run, phase)
            use_optimizer(run, phase)
            if phase == "decoder":
                once(run, lambda: write_codec(run))  # a first version, in case the rest fails
        goes_on = False
        train_phase(run, phase, begin)
    save(run)


def train_phase(run: CodecRun, phase: str, begin: float) -> None:
    """Fetch, step, average, log, score, save, until the phase is done."""
    params, num_steps = run.params, run.params.steps[phase]
    if params.phase_step >= num_steps:
        return
    progress = Progress(num_steps, seconds_of(run, phase, begin), params.phase_sec)
    clock, since = time.monotonic(), params.step
    with tqdm(total=num_steps, initial=params.phase_step, desc=phase,
              disable=None if run.is_main else True, leave=False) as bar:  # fmt: skip
        for audio in batches(run, phase):
            share = progress.share(params.phase_step)
            if share >= 1:
                break
            lr = learning_rate(run, phase, share)
            for group in run.optimizers["codec"].param_groups:
                group["lr"] = lr
            train_step(run, phase, audio, share)
            params.phase_step, params.step = params.phase_step + 1, params.step + 1
            follow(run, averaging(run))
            review(run)
            bar.update(1)
            params.elapsed_sec, params.phase_sec = time.monotonic() - begin, progress.elapsed_sec
            if params.step % params.log_interval == 0:
                ms = 1000 * (time.monotonic() - clock) / (params.step - since)
                log_progress(run, phase, num_steps, lr, ms)
                clock, since = time.monotonic(), params.step
            after_step(run, phase)
    if run.is_main and params.step % params.eval_interval:
        report_held_out(run, phase)


def batches(run: CodecRun, phase: str) -> Iterator[Tensor]:
    """The crops (B, 1, N) of this rank, step after step, on the device."""
    params = run.params
    crops = run.crops(phase, PHASES.index(phase))
    sampler = StepSampler(
        params.phase_step, params.steps[phase], run.batch_size(phase), run.rank, params.world_size
    )
    loader = DataLoader(
        crops,
        batch_sampler=sampler,
        num_workers=params.num_workers,
        pin_memory=run.device.type == "cuda",
        generator=torch.Generator(),  # or it would draw from the one that weights come from
        worker_init_fn=ignore_stop_signals,
    )
    run.begins("loading a batch")
    for audio in loader:
        yield audio.to(run.device, non_blocking=True)
        run.begins("loading a batch")


def seconds_of(run: CodecRun, phase: str, begin: float) -> float:
    """The share of a phase in the time that is left, its own part that is over included."""
    params = run.params
    if not params.max_minutes:
        return math.inf
    costs = {name: params.steps[name] * PHASE_COSTS[name] for name in PHASES[params.phase :]}
    left = params.max_minutes * 60 - (time.monotonic() - begin) + params.phase_sec
    return left * costs[phase] / sum(costs.values())


def after_step(run: CodecRun, phase: str) -> None:
    """What is due every so many steps, or because somebody asked."""
    params = run.params
    if params.step % params.eval_interval == 0 and not run.must_stop and run.is_main:
        report_held_out(run, phase)
    if params.step % params.save_every_n == 0 or run.must_stop:
        save(run)
    if run.must_stop:
        raise Stopped


# The command


def run(rank: int, world_size: int, args: argparse.Namespace) -> None:
    """What each process does."""
    torch.backends.cudnn.allow_tf32 = True  # convolutions; codes are looked for in full precision
    torch.backends.cudnn.benchmark = not args.deterministic  # crops of a phase have one length
    torch.backends.cudnn.deterministic = args.deterministic
    if args.num_threads > 0:
        torch.set_num_threads(args.num_threads)
    device = setup_dist(rank, world_size, args.master_port, args.dist_timeout)
    setup_logger(args.exp_dir / "log" / "log-train", rank, world_size)
    if args.resume == "none":
        check_fresh(args.exp_dir)
    stop = StopRequest()
    with handled(stop.note), Watchdog(args.dist_timeout) as watchdog:
        this = build_run(args, rank, device, stop, watchdog)
        goes_on = args.resume == "auto" and resume(this)
        logging.info(f"params: {this.params}")
        try:
            train(this, goes_on)
            logging.info("Done!")
        except Stopped:
            who = stop.received or "another rank"
            logging.info(f"Stopped after step {this.params.step}, as {who} asked; go on with "
                         "--resume auto")  # fmt: skip
        this.begins("waiting for the end of the others", waits=True)
        wait_for_all()
    if this.writer is not None:
        this.writer.close()
    cleanup_dist()


def main(argv: list[str] | None = None) -> None:
    parser = get_parser(__doc__)
    args = parser.parse_args(argv)
    try:
        settle(args)
        launch(run, args.world_size, args)
    except (ValueError, OSError, ImportError) as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "stopped; go on with --resume auto\n")


if __name__ == "__main__":
    main()
