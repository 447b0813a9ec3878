"""One update of the weights: taken, skipped because a number went wrong, or split and retried."""

import logging
import math
import resource
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel as DDP
from training_inputs import forward_options, halves
from training_run import DTYPES, Prepared, Run

from valle.models import AudioLMOutput
from valle.utils.checkpoint import first_line
from valle.utils.files import written_whole
from valle.utils.metrics import MetricsTracker
from valle.utils.sharding import is_sharded

MAX_NORM = 1.0  # of AdamW's gradients; ScaledAdam finds its own
# float16 scales the loss down as long as gradients overflow; below this nothing is left of them
MIN_GRAD_SCALE = 1e-5


def compute_loss(run: Run, batch: Prepared) -> tuple[AudioLMOutput, MetricsTracker]:
    """Forward pass of a batch, for training and validation alike; the loss is a sum."""
    dtype = DTYPES[run.params.dtype]
    model = run.wrapped if run.model.training else run.model
    with torch.autocast(run.device.type, dtype, enabled=dtype != torch.float32):
        output = model(**batch.inputs, reduction="sum", **forward_options(run, batch))
    metrics = {
        "frames": batch.num_frames,
        "loss": (output.loss, batch.num_frames),
        "padding": (batch.num_padded, batch.num_cells),
    }
    return output, MetricsTracker(metrics | output.metrics)


def train_step(run: Run, batches: list[Prepared]) -> tuple[MetricsTracker, Tensor]:
    """One update from one or several batches on all ranks, as if they were a single batch.

    Returns the metrics and the gradient norm. A loss or gradient that is not finite, on any rank,
    changes no weight on any rank; `run.outcomes` tells of it.
    """
    scale, stop = exchange_counts(run, batches)
    info, loss = with_less_at_once(run, batches, lambda parts: accumulate(run, parts, scale))
    if run.exchanges_by_hand:
        exchange_gradients(run)
    run.scaler.unscale_(run.optimizer)
    params = [p for p in run.learning_parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in params if p.grad is not None])
    norm = norm.full_tensor() if is_sharded(norm) else norm
    bad_here = ~loss.isfinite()  # a gradient is the same on all ranks by now
    bad, bad_loss = anywhere(run, torch.stack([bad_here | ~norm.isfinite(), bad_here]))
    # fused optimizers take it as a GradScaler would give it, and no host has to know
    run.optimizer.found_inf = bad.float()
    if run.params.optimizer_name == "AdamW":  # ScaledAdam clips by itself
        torch.nn.utils.clip_grads_with_norm_(params, MAX_NORM, norm)
    run.optimizer.step()
    run.scaler.update()
    run.optimizer.zero_grad(set_to_none=True)
    counts = bad_loss if run.scaler.is_enabled() else bad  # overflows are part of float16's way
    run.outcomes.put(torch.stack([stop, bad.double(), counts.double(), bad_here.double()]), batches)
    return info, norm


def exchange_counts(run: Run, batches: list[Prepared]) -> tuple[Tensor, Tensor]:
    """Tell the other ranks of this step's frames, and whether somebody has asked to stop.

    Returns:
      What turns sums of this rank into its share of the mean over the frames of all ranks, and how
      many ranks were asked to stop.
    """
    num_frames = sum(batch.num_frames for batch in batches)
    counts = [float(num_frames), float(bool(run.stop.received))]
    totals = torch.tensor(counts, dtype=torch.float64).to(run.device, non_blocking=True)
    if run.params.world_size > 1:
        run.begins("counting frames", waits=True)
        dist.all_reduce(totals)
    # DDP and FSDP take the mean over ranks
    return (run.params.world_size / totals[0]).float(), totals[1]


def anywhere(run: Run, flags: Tensor) -> Tensor:
    """Which flags (n,) are up on some rank."""
    if run.params.world_size == 1:
        return flags
    numbers = flags.float()
    dist.all_reduce(numbers, dist.ReduceOp.MAX)
    return numbers > 0


def accumulate(run: Run, batches: list[Prepared], scale: Tensor) -> tuple[MetricsTracker, Tensor]:
    """Forward and backward over all batches; returns the metrics and the summed loss."""
    info, total = MetricsTracker(), torch.zeros((), device=run.device)
    for i, batch in enumerate(batches):
        is_last = i + 1 == len(batches)
        with syncing(run, is_last and not run.exchanges_by_hand):
            run.begins("computing the loss", waits=run.params.fsdp)
            output, batch_info = compute_loss(run, batch)
            run.begins("computing and exchanging gradients", waits=True)
            run.scaler.scale(output.loss * scale).backward()
        info = info + batch_info
        total = total + output.loss.detach()
    return info, total


def syncing(run: Run, exchanges: bool) -> AbstractContextManager:
    """Ranks exchange gradients once a step, at its last batch."""
    if isinstance(run.wrapped, DDP) and not exchanges:
        return run.wrapped.no_sync()
    return nullcontext()  # FSDP exchanges each time: to wait it would keep whole gradients


def exchange_gradients(run: Run) -> None:
    """The mean over ranks, after the backward pass: a rank may then have gone through it twice."""
    grads = [p.grad for p in run.learning_parameters() if p.grad is not None]
    for grad in grads:  # one by one: memory is short where this is asked for
        dist.all_reduce(grad)
        grad /= run.params.world_size


# Too little memory


def with_less_at_once(
    run: Run,
    batches: list[Prepared],
    work: Callable[[list[Prepared]], tuple[MetricsTracker, Tensor]],
) -> tuple[MetricsTracker, Tensor]:
    """Do the work of a step; where memory is short and `--on-oom split` says so, in halves."""
    try:
        return work(batches)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        advice = memory_advice(run, batches, error)
        if run.params.on_oom != "split" or all(len(batch.cut_ids) < 2 for batch in batches):
            raise ValueError(advice) from error
    # here, where the error no longer holds what the failed pass had in memory
    logging.warning(f"{advice}. The batch is split in halves (--on-oom split)")
    run.optimizer.zero_grad(set_to_none=True)
    if run.device.type == "cuda":
        torch.cuda.empty_cache()
    return with_less_at_once(run, [half for batch in batches for half in halves(batch)], work)


def is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return "DefaultCPUAllocator" in str(error)  # a plain RuntimeError on the CPU


def memory_advice(run: Run, batches: list[Prepared], error: BaseException) -> str:
    largest = max(batches, key=lambda batch: batch.num_cells)
    return (
        f"out of memory in step {run.params.batch_idx_train + 1} with {len(largest.cut_ids)} cuts, "
        f"{largest.num_cells} frames with padding at once ({first_line(error)}): lower "
        f"--max-duration (now {run.params.max_duration:g}) or "
        f"--decoder-dim (now {run.params.decoder_dim})"
    )


def outside_of_a_step(error: BaseException) -> str:
    """What to do when memory is short in an optimizer's step, in validation, or elsewhere."""
    return f"out of memory ({first_line(error)}): lower --max-duration or --decoder-dim"


def memory_mib(device: torch.device) -> float:
    """Peak: of the GPU's allocator, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


# What became of the steps


@dataclass(frozen=True)
class Numbers:
    """What all ranks agree on about a step, but for the last, which is of this rank."""

    stop: float
    skipped: float
    counts: float
    skipped_here: float


def review(run: Run, all_of_them: bool = False) -> None:
    """Count and log skipped steps, as far as it is known which they are.

    Raises:
      ValueError: Too many in a row were skipped; their last batch is kept.
    """
    for values, batches in run.outcomes.all() if all_of_them else run.outcomes.ready():
        numbers = Numbers(*values)
        run.must_stop = run.must_stop or numbers.stop > 0
        if not numbers.skipped:
            run.params.skipped_in_row = 0
            continue
        run.params.num_skipped += 1
        run.params.skipped_in_row += int(numbers.counts > 0)
        note_skipped(run, numbers, batches)
        if run.params.skipped_in_row >= run.params.max_skipped_steps:
            stop_learning(run, batches)


def note_skipped(run: Run, numbers: Numbers, batches: list[Prepared]) -> None:
    params = run.params
    what = "a gradient, or the loss of another rank,"
    what = "the loss of this rank" if numbers.skipped_here else what
    what = "a gradient" if params.world_size == 1 and not numbers.skipped_here else what
    ids = ", ".join(cut_id for batch in batches for cut_id in batch.cut_ids)
    logging.warning(
        f"Skipped a step: {what} was not finite; {params.num_skipped} skipped so far, "
        f"{params.skipped_in_row} in a row. Its cuts: {ids}"
    )


def stop_learning(run: Run, batches: list[Prepared]) -> None:
    path = keep_batches(run, batches) or "no file"
    raise ValueError(
        f"the loss or gradient was not finite in {run.params.skipped_in_row} steps in a row "
        f"(--max-skipped-steps); the weights are those from before. The last batch is in {path}. "
        "Lower --base-lr, raise --warmup-steps, or try --dtype float32; --inf-check true names "
        "the module where it begins"
    )


def keep_batches(run: Run, batches: list[Prepared]) -> Path | None:
    """Write what a step failed on to a file, to look at later; None where that fails as well."""
    path = run.params.exp_dir / f"batch-{uuid.uuid4()}.pt"
    try:
        content = [
            {"utt_id": b.cut_ids} | {name: t.cpu() for name, t in b.inputs.items()} for b in batches
        ]
        with written_whole(path) as temporary:
            torch.save(content, temporary)
    except (OSError, RuntimeError) as error:  # it must not hide what went wrong before
        logging.error(f"A step failed, and its batch could not be kept: {error}")
        return None
    ids = ", ".join(cut_id for batch in batches for cut_id in batch.cut_ids)
    logging.error(f"A step failed; its batch is in {path}, cuts: {ids}")
    return path


def check_grad_scale(scale: float) -> None:
    """Stop a float16 run that can no longer learn."""
    if scale < MIN_GRAD_SCALE or not math.isfinite(scale):
        raise ValueError(
            f"the gradient scale of float16 fell to {scale:g} (at least {MIN_GRAD_SCALE:g} is "
            "expected), as gradients keep overflowing: take --dtype bfloat16, which needs no "
            "scale, or lower --base-lr"
        )
