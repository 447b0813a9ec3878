"""The loss on cuts that training never sees, how its continuations sound, and the best weights."""

import logging
import math
import time
from collections.abc import Iterator, Mapping

import torch
from run_settings import settings_of
from training_inputs import empty_batch, prepare, prepare_gaps
from training_run import Batch, Run
from training_saving import save
from training_step import compute_loss, is_out_of_memory, memory_mib

from valle.evaluation.passages import FAST
from valle.utils.checkpoint import first_line
from valle.utils.dist import gather_objects
from valle.utils.metrics import MetricsTracker
from valle.utils.rng import restore_rng, rng_state

SOUNDS = "valid_sounds/"  # of tensorboard's tags
BEST = "best/"


def validate(run: Run) -> None:
    """Score all validation cuts; keep the weights if they are the best so far."""
    params = run.params
    logging.info("Computing validation loss")
    info = compute_validation_loss(run)
    logging.info(f"Epoch {params.cur_epoch}, validation: {info}")
    logging.info(f"Maximum memory allocated so far is {memory_mib(run.device):.0f}MB")
    is_best = keep_if_best(run, info.means())
    if run.writer is not None:
        info.write_summary(run.writer, "train/valid_", params.batch_idx_train)
        write_figures(run, likelihood_figures(run, info), is_best)


def keep_if_best(run: Run, values: Mapping[str, float]) -> bool:
    """Save the weights if none had a lower loss, and tell whether that is so."""
    params = run.params
    if values.get("nonfinite"):
        logging.warning("Validation met a loss that is not finite: these weights are no best ones")
        return False
    if not values["loss"] < params.best_valid_loss:
        return False
    before = params.best_valid_loss, params.best_valid_epoch
    params.best_valid_loss, params.best_valid_epoch = values["loss"], params.cur_epoch
    if save(run, "best-valid-loss.pt"):
        return True
    params.best_valid_loss, params.best_valid_epoch = before  # the file is still that of before
    return False


def likelihood_figures(run: Run, info: MetricsTracker) -> dict[str, float]:
    """Loss in nats a frame, that of each quantizer, and bits a second of those that are scored."""
    means = info.means()
    levels = {name: value for name, value in means.items() if name.startswith("loss_q")}
    figures = {"loss": means["loss"], **levels} if "loss" in means else {}
    if run.params.codec is not None and levels:
        bits_a_frame = sum(levels.values()) / math.log(2)
        figures["bits_a_second"] = bits_a_frame * run.params.codec["frame_rate"]
    return figures


def write_figures(run: Run, figures: dict[str, float], is_best: bool) -> None:
    """Measure continuations, and write what was measured; those of the best weights once more.

    All ranks have saved by now: what fails here, or takes its time, costs no weights.
    """
    assert run.writer is not None
    step = run.params.batch_idx_train
    if "bits_a_second" in figures:
        run.writer.add_scalar("train/valid_bits_a_second", figures["bits_a_second"], step)
    figures = {**figures, **measure_continuations(run), "step": step}
    listed = dict.fromkeys([*figures, *(FAST if run.meter is not None else ())])
    run.writer.add_hparams(settings_of(run.params), [BEST + name for name in listed])
    for name, value in figures.items() if is_best else ():
        run.writer.add_scalar(BEST + name, value, step)
    run.writer.flush()  # a run that is killed has them too


def measure_continuations(run: Run) -> dict[str, float]:
    """Let the model continue a few validation cuts, write measures of that, and return them.

    Training goes on as if nothing had been drawn in between. What cannot be measured is logged and
    counted.
    """
    if run.meter is None or run.writer is None:
        return {}
    step, begin = run.params.batch_idx_train, time.monotonic()
    before = rng_state(run.device, run.generators)
    run.begins("measuring continuations")
    try:
        measured = run.meter.measure(
            run.model, progress=lambda _: run.begins("measuring continuations")
        )
    except (ValueError, OSError, ImportError, MemoryError, RuntimeError) as error:
        expected = not isinstance(error, RuntimeError) or is_out_of_memory(error)
        if not expected and not isinstance(error, torch.linalg.LinAlgError):
            raise
        tell_of_failure(run, error)
        return {}
    finally:
        restore_rng(before, run.device, run.generators)
    for name, value in measured.made.items():
        run.writer.add_scalar(SOUNDS + name, value, step)
    for name, value in measured.true.items():
        run.writer.add_scalar(f"{SOUNDS}{name}/true", value, step)
    listed = ", ".join(f"{name}={value:.4g}" for name, value in measured.made.items())
    seconds = time.monotonic() - begin
    logging.info(f"Measured {run.meter.num_cuts} continuations in {seconds:.1f} s: {listed}")
    return measured.made


def tell_of_failure(run: Run, error: BaseException) -> None:
    assert run.writer is not None
    run.num_unmeasured += 1
    run.writer.add_scalar(SOUNDS + "failures", run.num_unmeasured, run.params.batch_idx_train)
    logging.warning(
        f"Continuations could not be measured ({type(error).__name__}: {first_line(error)}); "
        f"training goes on. That was the {run.num_unmeasured}. time in this run; without measures "
        "it is silent: --measured-cuts 0"
    )


@torch.no_grad()
def compute_validation_loss(run: Run) -> MetricsTracker:
    """The mean over all cuts and all quantizers, without dropout: the same number each time."""
    run.begins("validating")
    run.wrapped.eval()
    total = MetricsTracker()
    for batch in run.valid_dl if not run.params.fsdp else in_step_with_others(run):
        info = score_batch(run, batch or empty_batch(run))
        total = total + info if batch else total
        run.begins("validating", waits=run.params.fsdp)
    run.wrapped.train()
    run.begins("adding up the validation loss", waits=True)
    return total.reduce(run.device)


def score_batch(run: Run, batch: Batch) -> MetricsTracker:
    """Of continuations; and, in a run with gaps, what gaps cost in the middle of the same cuts."""
    info = compute_loss(run, prepare(run, batch))[1]
    if run.params.infill_prob == 0:
        return info
    gaps = compute_loss(run, prepare_gaps(run, batch))[0].metrics
    costs = {f"gap_{name}": cost for name, cost in gaps.items() if name.startswith("loss_q")}
    return info + MetricsTracker(costs)


def in_step_with_others(run: Run) -> Iterator[Batch | None]:
    """This rank's batches, and None while other ranks still have some.

    Each forward pass of a sharded model needs all ranks.
    """
    batches = iter(run.valid_dl)
    while True:
        batch = next(batches, None)
        if not any(gather_objects(batch is not None)):
            return
        yield batch
