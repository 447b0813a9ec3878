"""The loss on cuts that training never sees, and the best weights by it."""

import logging
from collections.abc import Iterator

import torch
from training_run import Batch, Run
from training_saving import save
from training_step import compute_loss, memory_mib, prepare

from valle.utils.dist import gather_objects
from valle.utils.metrics import MetricsTracker


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
        before = params.best_valid_loss, params.best_valid_epoch
        params.best_valid_loss, params.best_valid_epoch = values["loss"], params.cur_epoch
        if not save(run, "best-valid-loss.pt"):  # the file is still that of before
            params.best_valid_loss, params.best_valid_epoch = before


@torch.no_grad()
def compute_validation_loss(run: Run) -> MetricsTracker:
    """The mean over all cuts and all quantizers, without dropout: the same number each time."""
    run.begins("validating")
    run.wrapped.eval()
    total = MetricsTracker()
    for batch in run.valid_dl if not run.params.fsdp else in_step_with_others(run):
        info = compute_loss(run, prepare(run, batch or empty_batch(run)))[1]
        total = total + info if batch else total
        run.begins("validating", waits=run.params.fsdp)
    run.wrapped.train()
    run.begins("adding up the validation loss", waits=True)
    return total.reduce(run.device)


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


def empty_batch(run: Run) -> Batch:
    """The least that the model takes; its loss counts nowhere."""
    codes = torch.zeros(1, 4, run.params.num_quantizers, dtype=torch.int64)
    lens = torch.tensor([4])
    ends = torch.tensor([False])
    return {
        "utt_id": ["none"],
        "audio_features": codes,
        "audio_features_lens": lens,
        "reaches_end": ends,
    }
