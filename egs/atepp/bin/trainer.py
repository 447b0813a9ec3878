#!/usr/bin/env python3
"""Train a model on token cuts: an AudioLM, or a VALL-E of text or MIDI.

Usage, from the repository root:

  python3 egs/atepp/bin/trainer.py --model-name audio-lm --manifest-dir data/tokenized \
      --decoder-dim 1024 --nhead 16 --num-decoder-layers 12 --num-epochs 20 --max-duration 150

With `--model-name valle` the model makes audio of what the cuts carry, MIDI events or text. What it
hears of a recording is set by `--prefix-mode`.

`--train-stage 0` trains both halves together, `1` the AR half alone, `2` the NAR half on an AR half
trained before. Several GPUs: `torchrun --nproc-per-node N` before the script, or `--world-size N`.
"""

import argparse
import logging
import math
import multiprocessing
import signal
import threading
import time
from collections.abc import Iterator
from itertools import islice

import torch
from lhotse.dataset import find_pessimistic_batches
from torch import Tensor
from tqdm import tqdm
from training_flags import check_arguments, make_parser, settle_arguments
from training_inputs import prepare
from training_run import Batch, Run, build_run
from training_samples import write_samples
from training_saving import resume, save
from training_step import (
    accumulate,
    check_grad_scale,
    is_out_of_memory,
    keep_batches,
    memory_mib,
    outside_of_a_step,
    review,
    train_step,
    with_less_at_once,
)
from training_validation import validate

from valle.utils.averaging import AveragingRule, update_averaged_weights
from valle.utils.checkpoint import remove_checkpoints
from valle.utils.dist import cleanup_dist, launch, setup_dist, wait_for_all
from valle.utils.hooks import register_inf_check_hooks
from valle.utils.log import setup_logger
from valle.utils.metrics import MetricsTracker
from valle.utils.rng import restore_rng, rng_state
from valle.utils.signals import StopRequest, handled
from valle.utils.watchdog import Watchdog


class Stopwatch:
    """Frames per second between two looks at it."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.started, self.num_frames = time.perf_counter(), 0

    def frames_per_second(self) -> float:
        rate = self.num_frames / max(time.perf_counter() - self.started, 1e-9)
        self.restart()
        return rate


# One epoch


def train_one_epoch(run: Run) -> None:
    """Fetch, step, log, validate, save; `run.whole` gathers the metrics of the epoch.

    Raises:
      Stopped: A signal asked for it; all is saved.
    """
    params = run.params
    run.wrapped.train()
    stopwatch = Stopwatch()
    with tqdm(
        total=run.num_train_cuts,
        desc=f"epoch {params.cur_epoch}",
        unit="cut",
        disable=None if run.is_main else True,
        leave=False,
    ) as bar:
        for batches in batches_of_steps(run):
            prepared = [prepare(run, batch) for batch in batches]
            try:
                info, norm = train_step(run, prepared)
            except Exception:
                keep_batches(run, prepared)
                raise
            params.batch_idx_train += 1
            params.batch_idx_epoch += len(batches)
            run.scheduler.step_batch()
            run.whole, run.tot = run.whole + info, run.tot * (1 - 1 / params.reset_interval) + info
            review(run)
            num_cuts = sum(len(batch.cut_ids) for batch in prepared)
            stopwatch.num_frames += sum(batch.num_frames for batch in prepared)
            bar.update(num_cuts * params.world_size)
            if params.batch_idx_train % params.log_interval == 0:
                rate = stopwatch.frames_per_second()
                log_progress(run, info, norm, num_cuts, rate, bar)
            after_step(run)


def batches_of_steps(run: Run) -> Iterator[list[Batch]]:
    """Lists of --accumulate-grad-steps batches, the last of an epoch perhaps shorter."""
    batches = iter(run.train_dl)
    while True:
        run.begins("loading a batch")
        group = list(islice(batches, run.params.accumulate_grad_steps))
        if not group:
            return
        yield group


def log_progress(
    run: Run,
    info: MetricsTracker,
    norm: Tensor,
    num_cuts: int,
    rate: float,
    bar: tqdm,
) -> None:
    params = run.params
    lr = run.scheduler.get_last_lr()[0]
    line = (
        f"Epoch {params.cur_epoch}, batch {params.batch_idx_epoch}, train_loss[{info}], "
        f"tot_loss[{run.tot}], batch size: {num_cuts}, lr: {lr:.2e}"
    )
    if run.scaler.is_enabled():
        check_grad_scale(run.scaler.get_scale())
        line += f", grad_scale: {run.scaler.get_scale()}"
    logging.info(line)
    values = run.tot.means()
    bar.set_postfix_str(f"loss {values.get('loss', math.nan):.3f}, {rate:.0f} frames/s")
    if run.writer is None:
        return
    step = params.batch_idx_train
    info.write_summary(run.writer, "train/current_", step)
    run.tot.write_summary(run.writer, "train/tot_", step)
    scalars = {
        "epoch": params.cur_epoch,
        "learning_rate": lr,
        "grad_norm": float(norm),
        "frames_per_second": rate,
        "memory_mib": memory_mib(run.device),
        "skipped_steps": params.num_skipped,
    }
    if run.scaler.is_enabled():
        scalars["grad_scale"] = run.scaler.get_scale()
    for name, value in scalars.items():
        run.writer.add_scalar(f"train/{name}", value, step)


def after_step(run: Run) -> None:
    """What is due every so many steps, or because somebody asked."""
    params, step = run.params, run.params.batch_idx_train
    if run.average is not None and step % params.average_period == 0:
        update_averaged_weights(run.model, run.average, AveragingRule.of(params), step)
    must_stop = run.must_stop or (params.world_size == 1 and bool(run.stop.received))
    is_due = step % params.valid_interval == 0
    params.validation_due = is_due and must_stop  # there may be no time for it now
    if is_due and not must_stop:
        validate(run)
    if step % params.save_every_n == 0 or must_stop:
        written = save(run, f"checkpoint-{step}.pt")
        if written and run.is_main:
            remove_checkpoints(params.exp_dir, params.keep_last_k, params.first_batch + 1, step)
        if must_stop and not written:
            raise OSError(
                f"asked to stop at step {step}, but checkpoint-{step}.pt could not be written: "
                "--resume auto goes on from the one before"
            )
    if must_stop:
        raise Stopped


# The command


class Stopped(Exception):
    """A signal asked the run to end, and all is saved."""


def run(rank: int, world_size: int, args: argparse.Namespace) -> None:
    """What each process does."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    try:
        run_to_the_end(rank, world_size, args)
    except BaseException:
        end_workers()
        raise


def end_workers() -> None:
    """End the loader's processes, for a run that fails while it loads.

    They ignore the signal by which Python would end them, and for which it would then wait.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise another error
    for process in multiprocessing.active_children():
        process.kill()


def run_to_the_end(rank: int, world_size: int, args: argparse.Namespace) -> None:
    device = setup_dist(rank, world_size, args.master_port, args.dist_timeout)
    setup_logger(args.exp_dir / "log" / "log-train", rank, world_size)
    stop = StopRequest()
    with handled(stop.note), Watchdog(args.dist_timeout) as watchdog:
        this, start = build_run(args, rank, device, stop, watchdog)
        if start is not None and not start.is_other_stage:
            resume(this, start)
        logging.info(f"params: {this.params}")
        try:
            train(this)
            if this.writer is not None:
                this.writer.end_hparams()
            logging.info("Done!")
        except Stopped:
            step = this.params.batch_idx_train
            who = stop.received or "another rank"
            logging.info(f"Stopped after step {step}, as {who} asked; go on with --resume auto")
        this.begins("waiting for the end of the others", waits=True)
        wait_for_all()
    if this.writer is not None:
        this.writer.close()
    cleanup_dist()


def train(run: Run) -> None:
    """Epoch after epoch."""
    if run.params.inf_check:
        register_inf_check_hooks(run.model)
    # a run that goes on tried them when it began, and has its optimizer's state by now
    if run.params.oom_check and run.device.type == "cuda" and not run.optimizer.state:
        scan_pessimistic_batches(run)
    if run.params.validation_due:
        validate(run)
        run.params.validation_due = False
    for epoch in range(run.params.cur_epoch, run.params.num_epochs + 1):
        start_epoch(run, epoch)
        train_one_epoch(run)
        finish_epoch(run)


def start_epoch(run: Run, epoch: int) -> None:
    run.params.cur_epoch = epoch
    run.scheduler.step_epoch(epoch - run.params.first_epoch)
    run.train_dl.sampler.set_epoch(epoch)


def finish_epoch(run: Run) -> None:
    """Validate, save, and let the model be heard."""
    params = run.params
    if params.batch_idx_epoch == 0:
        raise ValueError(
            f"epoch {params.cur_epoch} had no batch: the training cuts do not fill one; lower "
            "--max-duration, or set --drop-last false"
        )
    review(run, all_of_them=True)
    # a run taken up at an epoch's very end has seen nothing of it, and no loss
    means = run.whole.reduce(run.device).means()
    params.train_loss = means.get("loss", params.train_loss)
    if "padding" in means:
        logging.info(f"Epoch {params.cur_epoch}, padding: {means['padding']:.1%} of frames")
    if params.batch_idx_train % params.valid_interval:
        validate(run)
    params.batch_idx_epoch, run.whole = 0, MetricsTracker()
    before = params.best_train_loss, params.best_train_epoch
    is_best = params.train_loss < params.best_train_loss
    if is_best:
        params.best_train_loss, params.best_train_epoch = params.train_loss, params.cur_epoch
    copies = ("best-train-loss.pt",) if is_best else ()
    if not save(run, f"epoch-{params.cur_epoch}.pt", copies):
        params.best_train_loss, params.best_train_epoch = before
    due = params.sample_epochs and params.cur_epoch % params.sample_epochs == 0
    if run.writer is not None and run.codec is not None and due and run.draws_samples:
        run.begins("writing audio samples")
        write_samples(run)


def scan_pessimistic_batches(run: Run) -> None:
    """Try the batches that need most memory, so that a run fails now and not at night."""
    run.begins("trying the largest batches")
    before = rng_state(run.device, run.generators)
    batches, _ = find_pessimistic_batches(run.fresh_sampler())  # iterating one consumes it
    run.model.train()
    # an optimizer makes two numbers for each weight in its first step
    reserve = [torch.empty_like(p) for p in run.learning_parameters() for _ in range(2)]
    scale = torch.ones((), device=run.device)
    for cuts in batches.values():
        prepared = prepare(run, run.train_dl.dataset[cuts])
        with_less_at_once(run, [prepared], lambda parts: accumulate(run, parts, scale))
    del reserve
    run.optimizer.zero_grad(set_to_none=True)
    restore_rng(before, run.device, run.generators)
    logging.info(f"Largest batches, forward and backward: {memory_mib(run.device):.0f} MiB")


def get_parser() -> argparse.ArgumentParser:
    return make_parser(__doc__)


def main(argv: list[str] | None = None) -> None:
    parser = get_parser()
    args = parser.parse_args(argv)
    try:
        check_arguments(args)
        settle_arguments(args)
        launch(run, args.world_size, args)
    except (ValueError, OSError, ImportError) as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        parser.exit(1, f"{parser.prog}: error: {outside_of_a_step(error)}\n")
    except KeyboardInterrupt:
        parser.exit(130, "stopped; go on with --resume auto\n")


if __name__ == "__main__":
    main()
