#!/usr/bin/env python3
"""Train an AudioLM on token cuts.

Usage, from the repository root:

  python3 egs/atepp/bin/trainer_audiolm.py --exp-dir exp/audio-lm --manifest-dir data/tokenized \
      --decoder-dim 1024 --nhead 16 --num-decoder-layers 12 --num-epochs 20 --max-duration 150

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
from pathlib import Path

import torch
from lhotse.dataset import find_pessimistic_batches
from torch import Tensor
from tqdm import tqdm
from training_run import DTYPES, Batch, Run, build_run
from training_samples import write_samples
from training_saving import resume, save
from training_step import (
    accumulate,
    check_grad_scale,
    is_out_of_memory,
    keep_batches,
    memory_mib,
    outside_of_a_step,
    prepare,
    review,
    train_step,
    with_less_at_once,
)
from training_validation import validate

from valle.data import TokenDataModule
from valle.models import add_model_arguments
from valle.modules.optim import DEFAULT_LR
from valle.utils.averaging import AveragingRule, update_averaged_weights
from valle.utils.checkpoint import remove_checkpoints
from valle.utils.cli import str2bool
from valle.utils.dist import (
    DEFAULT_PORT,
    DEFAULT_TIMEOUT_SEC,
    cleanup_dist,
    launch,
    setup_dist,
    wait_for_all,
)
from valle.utils.hooks import register_inf_check_hooks
from valle.utils.log import setup_logger
from valle.utils.metrics import MetricsTracker
from valle.utils.rng import restore_rng, rng_state
from valle.utils.signals import StopRequest, handled
from valle.utils.watchdog import Watchdog


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument_group("training").add_argument
    add("--exp-dir", type=Path, default=Path("exp/audio-lm"), help="where all output goes")
    add("--train-stage", type=int, default=0, choices=[0, 1, 2], help="0 both halves, 1 AR, 2 NAR")
    add("--num-epochs", type=int, default=20, help="the last epoch, counted from 1")
    add("--start-epoch", type=int, default=1, help="above 1: go on from epoch-(N-1).pt")
    add("--start-batch", type=int, default=0, help="above 0: go on from checkpoint-N.pt")
    add("--resume", default="none", choices=["none", "auto"], help="auto: from the newest that is")
    add("--init-from", type=Path, help="checkpoint whose weights alone a new run starts from")
    add("--init-partial", type=str2bool, default=False, help="take those that fit, if not all do")
    add("--ar-checkpoint", type=Path, help="stage 2: where the trained AR half is read from")
    add("--prompt-ratio", type=float, default=0.4, help="share of a cut that is its prompt")
    add(
        "--score-prompts",
        type=str2bool,
        default=False,
        help="the AR half learns to predict the prompts' frames, too; validation is of targets",
    )
    add(
        "--all-nar-stages",
        type=str2bool,
        default=False,
        help="the NAR half learns all quantizers of each cut in a step, not one that is drawn",
    )
    add("--filter-min-duration", type=float, default=0.0, help="shorter cuts are left out (s)")
    add("--filter-max-duration", type=float, default=20.0, help="longer cuts are left out (s)")
    add("--seed", type=int, default=42)
    add("--dtype", default="float32", choices=list(DTYPES), help="of activations (autocast)")
    add(
        "--init-embeddings-from-codec",
        metavar="CODEC",
        help="hub name or folder of the codec whose codebooks the embeddings start from",
    )
    add = parser.add_argument_group("optimization").add_argument
    add("--optimizer-name", default="ScaledAdam", choices=list(DEFAULT_LR))
    add("--scheduler-name", choices=["Eden", "Cosine"], help="default: Eden; with AdamW Cosine")
    add("--base-lr", type=float, help=f"default: {DEFAULT_LR}")
    add("--warmup-steps", type=int, default=200)
    add("--accumulate-grad-steps", type=int, default=1, help="batches a step")
    add("--average-period", type=int, default=0, help="steps between updates of model_avg; 0: none")
    add(
        "--ema-decay", type=float, default=0.0, help="above 0: model_avg forgets; by this an update"
    )
    add("--max-skipped-steps", type=int, default=10, help="not finite, in a row, before it stops")
    add("--compile", type=str2bool, default=False, help="torch.compile, where it works")
    add("--on-oom", default="stop", choices=["stop", "split"], help="split: retry in halves")
    add = parser.add_argument_group("logging and checkpoints").add_argument
    add("--tensorboard", type=str2bool, default=True)
    add("--log-interval", type=int, default=100, help="steps between log lines")
    add("--reset-interval", type=int, default=200, help="how many steps tot_loss looks back")
    add("--valid-interval", type=int, default=10000, help="steps between validations in an epoch")
    add("--save-every-n", type=int, default=10000, help="steps between checkpoint-N.pt")
    add("--keep-last-k", type=int, default=20, help="how many checkpoint-N.pt are kept")
    add("--on-save-error", default="stop", choices=["stop", "continue"], help="as on a full disk")
    add("--sample-epochs", type=int, default=1, help="epochs between audio samples; 0: none")
    add("--num-samples", type=int, default=2, help="validation cuts that are continued to hear")
    add(
        "--measured-cuts",
        type=int,
        default=8,
        help="validation cuts that are continued and measured at each validation; 0: none",
    )
    add("--sample-codec", help="codec of the audio samples; default: as in the manifest")
    add("--inf-check", type=str2bool, default=False, help="log the first non-finite module output")
    add("--oom-check", type=str2bool, default=True, help="on CUDA, try the largest batches first")
    add = parser.add_argument_group("several processes").add_argument
    add("--world-size", type=int, default=1, help="processes; torchrun's settings win")
    add("--master-port", type=int, default=DEFAULT_PORT)
    add("--fsdp", type=str2bool, default=False, help="each process holds a share of the weights")
    add(
        "--dist-timeout",
        type=float,
        default=DEFAULT_TIMEOUT_SEC,
        help="seconds that a process may keep the others waiting",
    )
    add_model_arguments(parser)
    TokenDataModule.add_arguments(parser)
    return parser


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


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse numbers that cannot be, before anything is read."""
    if not 0 <= args.prompt_ratio < 1 or (args.prompt_ratio == 0 and not args.prepend_bos):
        raise ValueError(
            f"--prompt-ratio {args.prompt_ratio} must be above 0 and below 1; 0, empty prompts, "
            "needs --prepend-bos true"
        )
    if not 0 <= args.infill_prob <= 1:
        raise ValueError(
            f"--infill-prob {args.infill_prob} is a share of the cuts: expected 0 to 1, say 0.3"
        )
    if args.infill_prob > 0 and args.ahead_frames < 1:
        raise ValueError(
            f"--ahead-frames {args.ahead_frames} lets nothing be read of what follows a gap: with "
            "--infill-prob above 0 it must be 1 or more (default: 1000)"
        )
    names = ("log_interval", "reset_interval", "valid_interval", "save_every_n", "keep_last_k")

    for name in (*names, "accumulate_grad_steps", "start_epoch", "max_skipped_steps"):
        if getattr(args, name) < 1:
            flag = "--" + name.replace("_", "-")
            raise ValueError(f"{flag} must be 1 or more, got {getattr(args, name)}")
    goes_on = args.start_batch > 0 or args.start_epoch > 1
    if goes_on and args.init_from is not None:
        raise ValueError(
            "--init-from begins a new run, --start-epoch and --start-batch go on with one: give one"
        )
    if args.ema_decay and not args.average_period:
        raise ValueError(f"--ema-decay {args.ema_decay} needs --average-period, say 1")
    if args.average_period:
        AveragingRule.of(vars(args))
    check_processes(args)
    if args.num_epochs < args.start_epoch:
        raise ValueError(
            f"--num-epochs {args.num_epochs} is the number of the last epoch, and lies before "
            f"--start-epoch {args.start_epoch}: nothing to do"
        )


def check_processes(args: argparse.Namespace) -> None:
    if not args.fsdp:
        return
    if args.dtype == "float16":
        raise ValueError("--fsdp true has no gradient scale for float16: take --dtype bfloat16")
    if args.compile:
        raise ValueError("--fsdp true and --compile true have not been made to work together")
    if args.on_oom == "split":
        raise ValueError("--fsdp true cannot retry a batch on one rank alone: leave --on-oom out")


def main(argv: list[str] | None = None) -> None:
    parser = get_parser()
    args = parser.parse_args(argv)
    try:
        check_arguments(args)
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
