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
import resource
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lhotse.dataset import find_pessimistic_batches
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel as DDP
from tqdm import tqdm
from training_run import Run, build_run, restore_rng, rng_state, save
from training_samples import write_samples

from valle.data import TokenDataModule, split_prompt
from valle.models import add_model_arguments
from valle.models.audio_lm import AudioLMOutput
from valle.modules.optim import DEFAULT_LR
from valle.utils.averaging import update_averaged_model
from valle.utils.checkpoint import copy_checkpoint, remove_checkpoints
from valle.utils.cli import str2bool
from valle.utils.dist import cleanup_dist, launch
from valle.utils.files import written_whole
from valle.utils.hooks import register_inf_check_hooks
from valle.utils.metrics import MetricsTracker

Batch = dict[str, Any]

MAX_NORM = 1.0  # of AdamW's gradients; ScaledAdam finds its own
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


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
    add("--ar-checkpoint", type=Path, help="stage 2: where the trained AR half is read from")
    add("--prompt-ratio", type=float, default=0.4, help="share of a cut that is its prompt")
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
    add = parser.add_argument_group("logging and checkpoints").add_argument
    add("--tensorboard", type=str2bool, default=True)
    add("--log-interval", type=int, default=100, help="steps between log lines")
    add("--reset-interval", type=int, default=200, help="how many batches tot_loss looks back")
    add("--valid-interval", type=int, default=10000, help="steps between validations in an epoch")
    add("--save-every-n", type=int, default=10000, help="steps between checkpoint-N.pt")
    add("--keep-last-k", type=int, default=20, help="how many checkpoint-N.pt are kept")
    add("--sample-epochs", type=int, default=1, help="epochs between audio samples; 0: none")
    add("--num-samples", type=int, default=2, help="validation cuts that are continued to hear")
    add("--sample-codec", help="codec of the audio samples; default: as in the manifest")
    add("--inf-check", type=str2bool, default=False, help="log the first non-finite module output")
    add("--oom-check", type=str2bool, default=True, help="on CUDA, try the largest batches first")
    add = parser.add_argument_group("several processes").add_argument
    add("--world-size", type=int, default=1, help="processes; torchrun's settings win")
    add("--master-port", type=int, default=12354)
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


# One step


@dataclass
class Prepared:
    """A batch on the device, split into prompts and targets: arguments of `AudioLM.forward`."""

    inputs: dict[str, Tensor]
    num_frames: int
    cut_ids: list[str]


def prepare(run: Run, batch: Batch) -> Prepared:
    # split on the CPU, where asking for lengths does not make the host wait for the device
    prompt = split_prompt(
        batch["audio_features"], batch["audio_features_lens"], run.params.prompt_ratio
    )
    inputs = prompt._asdict() | {"y_ends": batch["reaches_end"]}
    inputs = {name: tensor.to(run.device, non_blocking=True) for name, tensor in inputs.items()}
    return Prepared(inputs, int(prompt.y_lens.sum()), batch["utt_id"])


def compute_loss(run: Run, batch: Prepared) -> tuple[AudioLMOutput, MetricsTracker]:
    """Forward pass of a batch, for training and validation alike; the loss is a sum."""
    dtype = DTYPES[run.params.dtype]
    model = run.wrapped if run.model.training else run.model
    with torch.autocast(run.device.type, dtype, enabled=dtype != torch.float32):
        output = model(**batch.inputs, reduction="sum", train_stage=int(run.stage))
    metrics = {"frames": batch.num_frames, "loss": (output.loss, batch.num_frames)}
    return output, MetricsTracker(metrics | output.metrics)


def train_step(run: Run, batches: list[Prepared]) -> tuple[MetricsTracker, Tensor]:
    """One update from one or several batches on all ranks, as if they were a single batch.

    Returns the metrics and the gradient norm. A gradient that is not finite changes no weight.
    """
    info = MetricsTracker()
    scale = loss_scale(run, sum(batch.num_frames for batch in batches))
    for i, batch in enumerate(batches):
        is_last = i + 1 == len(batches)
        with nullcontext() if is_last else without_sync(run):
            output, batch_info = compute_loss(run, batch)
            run.scaler.scale(output.loss * scale).backward()
        info = info + batch_info
    run.scaler.unscale_(run.optimizer)
    norm = torch.nn.utils.get_total_norm(
        [p.grad for p in run.learning_parameters() if p.grad is not None]
    )
    if run.params.optimizer_name == "ScaledAdam":  # clips by itself, and skips what is not finite
        run.scaler.step(run.optimizer)
    elif norm.isfinite():
        torch.nn.utils.clip_grads_with_norm_(run.learning_parameters(), MAX_NORM, norm)
        run.scaler.step(run.optimizer)
    run.scaler.update()
    run.optimizer.zero_grad(set_to_none=True)
    return info, norm


def without_sync(run: Run) -> AbstractContextManager:
    """Ranks exchange gradients once a step, at its last batch."""
    return run.wrapped.no_sync() if isinstance(run.wrapped, DDP) else nullcontext()


def loss_scale(run: Run, num_frames: int) -> Tensor:
    """What turns sums of this rank into its share of the mean over the frames of all ranks."""
    total = torch.tensor(float(num_frames), device=run.device)
    if run.params.world_size > 1:
        dist.all_reduce(total)
    return run.params.world_size / total  # DDP takes the mean over ranks


# One epoch


def train_one_epoch(run: Run) -> MetricsTracker:
    """Fetch, step, log, validate, save. Returns the metrics of the whole epoch."""
    params = run.params
    run.wrapped.train()
    whole, tot, stopwatch = MetricsTracker(), MetricsTracker(), Stopwatch()
    with tqdm(
        total=run.num_train_cuts,
        desc=f"epoch {params.cur_epoch}",
        unit="cut",
        disable=None if run.is_main else True,
        leave=False,
    ) as bar:
        for batches in grouped(run.train_dl, params.accumulate_grad_steps):
            prepared = [prepare(run, batch) for batch in batches]
            try:
                info, norm = train_step(run, prepared)
                check_finite(run, info)
            except Exception:
                save_batches(run, batches)
                raise
            params.batch_idx_train += 1
            params.batch_idx_epoch += len(batches)
            run.scheduler.step_batch()
            whole, tot = whole + info, tot * (1 - 1 / params.reset_interval) + info
            num_cuts = sum(len(batch.cut_ids) for batch in prepared)
            stopwatch.num_frames += sum(batch.num_frames for batch in prepared)
            bar.update(num_cuts * params.world_size)
            if params.batch_idx_train % params.log_interval == 0:
                rate = stopwatch.frames_per_second()
                log_progress(run, info, tot, norm, num_cuts, rate, bar)
            after_step(run)
    return whole


def grouped(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Lists of `size` batches, the last perhaps shorter."""
    iterator = iter(batches)
    while group := list(islice(iterator, size)):
        yield group


def check_finite(run: Run, info: MetricsTracker) -> None:
    """Stop on a loss that is not finite; no weight has taken part in it."""
    if info.means().get("nonfinite"):
        raise ValueError(
            f"the loss is not finite in epoch {run.params.cur_epoch}, step "
            f"{run.params.batch_idx_train + 1}; the weights are those of the step before. Lower "
            "--base-lr, raise --warmup-steps, or try --dtype float32"
        )


def save_batches(run: Run, batches: list[Batch]) -> None:
    """Keep what a step failed on, to look at later."""
    path = run.params.exp_dir / f"batch-{uuid.uuid4()}.pt"
    with written_whole(path) as temporary:
        torch.save(batches, temporary)
    ids = [cut_id for batch in batches for cut_id in batch["utt_id"]]
    logging.error(f"the step failed; its batch is in {path}, cuts: {', '.join(ids)}")


def log_progress(
    run: Run,
    info: MetricsTracker,
    tot: MetricsTracker,
    norm: Tensor,
    num_cuts: int,
    rate: float,
    bar: tqdm,
) -> None:
    params = run.params
    lr = run.scheduler.get_last_lr()[0]
    line = (
        f"Epoch {params.cur_epoch}, batch {params.batch_idx_epoch}, train_loss[{info}], "
        f"tot_loss[{tot}], batch size: {num_cuts}, lr: {lr:.2e}"
    )
    if run.scaler.is_enabled():
        line += f", grad_scale: {run.scaler.get_scale()}"
    logging.info(line)
    bar.set_postfix_str(f"loss {tot['loss']:.3f}, {rate:.0f} frames/s")
    if run.writer is None:
        return
    step = params.batch_idx_train
    info.write_summary(run.writer, "train/current_", step)
    tot.write_summary(run.writer, "train/tot_", step)
    scalars = {
        "epoch": params.cur_epoch,
        "learning_rate": lr,
        "grad_norm": float(norm),
        "frames_per_second": rate,
        "memory_mib": memory_mib(run.device),
    }
    if run.scaler.is_enabled():
        scalars["grad_scale"] = run.scaler.get_scale()
    for name, value in scalars.items():
        run.writer.add_scalar(f"train/{name}", value, step)


def memory_mib(device: torch.device) -> float:
    """Peak: of the GPU's allocator, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def after_step(run: Run) -> None:
    """What is due every so many steps."""
    params, step = run.params, run.params.batch_idx_train
    if run.model_avg is not None and step % params.average_period == 0:
        update_averaged_model(run.model, run.model_avg, params.average_period, step)
    if step % params.save_every_n == 0 and run.is_main:
        save(run, f"checkpoint-{step}.pt")
        remove_checkpoints(params.exp_dir, params.keep_last_k, params.first_batch + 1, step)
    if step % params.valid_interval == 0:
        validate(run)


# Validation


def validate(run: Run) -> None:
    """Score all validation cuts; keep the weights if they are the best so far."""
    params = run.params
    logging.info("Computing validation loss")
    info = compute_validation_loss(run)
    logging.info(f"Epoch {params.cur_epoch}, validation: {info}")
    logging.info(f"Maximum memory allocated so far is {memory_mib(run.device):.0f}MB")
    if run.writer is not None:
        info.write_summary(run.writer, "train/valid_", params.batch_idx_train)
    values = info.means()
    if values.get("nonfinite"):
        logging.warning("Validation met a loss that is not finite: these weights are no best ones")
    elif values["loss"] < params.best_valid_loss:
        params.best_valid_loss, params.best_valid_epoch = values["loss"], params.cur_epoch
        if run.is_main:
            save(run, "best-valid-loss.pt")


@torch.no_grad()
def compute_validation_loss(run: Run) -> MetricsTracker:
    """The mean over all cuts and all quantizers, without dropout: the same number each time."""
    run.wrapped.eval()
    total = MetricsTracker()
    for batch in run.valid_dl:
        total = total + compute_loss(run, prepare(run, batch))[1]
    run.wrapped.train()
    return total.reduce(run.device)


# The command


def run(rank: int, world_size: int, args: argparse.Namespace) -> None:
    this = build_run(rank, world_size, args)
    if this.params.inf_check:
        register_inf_check_hooks(this.model)
    if this.params.oom_check and this.device.type == "cuda":
        scan_pessimistic_batches(this)
    for epoch in range(this.params.cur_epoch, this.params.num_epochs + 1):
        start_epoch(this, epoch)
        whole = train_one_epoch(this)
        finish_epoch(this, whole)
    logging.info("Done!")
    if this.writer is not None:
        this.writer.close()
    cleanup_dist()


def start_epoch(run: Run, epoch: int) -> None:
    run.params.cur_epoch = epoch
    run.scheduler.step_epoch(epoch - run.params.first_epoch)
    run.train_dl.sampler.set_epoch(epoch)


def finish_epoch(run: Run, whole: MetricsTracker) -> None:
    """Validate, save, and let the model be heard."""
    params = run.params
    if params.batch_idx_epoch == 0:
        raise ValueError(
            f"epoch {params.cur_epoch} had no batch: the training cuts do not fill one; lower "
            "--max-duration, or set --drop-last false"
        )
    # a run taken up at an epoch's very end has seen nothing of it, and no loss
    params.train_loss = whole.reduce(run.device).means().get("loss", params.train_loss)
    if params.batch_idx_train % params.valid_interval:
        validate(run)
    params.batch_idx_epoch = 0
    is_best = params.train_loss < params.best_train_loss
    if is_best:
        params.best_train_loss, params.best_train_epoch = params.train_loss, params.cur_epoch
    if run.is_main:
        name = f"epoch-{params.cur_epoch}.pt"
        save(run, name)
        if is_best:
            copy_checkpoint(params.exp_dir / name, params.exp_dir / "best-train-loss.pt")
    due = params.sample_epochs and params.cur_epoch % params.sample_epochs == 0
    if run.writer is not None and run.codec is not None and due:
        write_samples(run)


def scan_pessimistic_batches(run: Run) -> None:
    """Try the batches that need most memory, so that a run fails now and not at night."""
    before = rng_state(run)
    batches, _ = find_pessimistic_batches(run.fresh_sampler())  # iterating one consumes it
    run.model.train()
    for criterion, cuts in batches.items():
        try:
            prepared = prepare(run, run.train_dl.dataset[cuts])
            output, _ = compute_loss(run, prepared)
            (output.loss / prepared.num_frames).backward()
        except torch.cuda.OutOfMemoryError as error:
            raise ValueError(
                f"the largest batch by {criterion} ({len(cuts)} cuts) does not fit the GPU: lower "
                f"--max-duration (now {run.params.max_duration:g}) or --decoder-dim"
            ) from error
    run.optimizer.zero_grad(set_to_none=True)
    restore_rng(run, before)
    logging.info(f"Largest batches, forward and backward: {memory_mib(run.device):.0f} MiB")


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse numbers that cannot be, before anything is read."""
    if not 0 <= args.prompt_ratio < 1 or (args.prompt_ratio == 0 and not args.prepend_bos):
        raise ValueError(
            f"--prompt-ratio {args.prompt_ratio} must be above 0 and below 1; 0, empty prompts, "
            "needs --prepend-bos true"
        )
    names = ("log_interval", "reset_interval", "valid_interval", "save_every_n", "keep_last_k")
    for name in (*names, "accumulate_grad_steps", "start_epoch"):
        if getattr(args, name) < 1:
            flag = "--" + name.replace("_", "-")
            raise ValueError(f"{flag} must be 1 or more, got {getattr(args, name)}")
    if args.num_epochs < args.start_epoch:
        raise ValueError(
            f"--num-epochs {args.num_epochs} is the number of the last epoch, and lies before "
            f"--start-epoch {args.start_epoch}: nothing to do"
        )


def main(argv: list[str] | None = None) -> None:
    parser = get_parser()
    args = parser.parse_args(argv)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    try:
        check_arguments(args)
        launch(run, args.world_size, args)
    except (ValueError, OSError, ImportError) as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "stopped; go on with --start-epoch or --start-batch\n")


if __name__ == "__main__":
    main()
