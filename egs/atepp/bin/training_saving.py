"""Checkpoints of a run: all that it needs to go on as if it had never stopped."""

import logging
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from training_run import Run, seed_ranks
from training_start import Start
from training_step import review

from valle.data import consumed_state
from valle.data.sampler import load_sampler_state
from valle.utils.checkpoint import copy_checkpoint, load_checkpoint, save_checkpoint
from valle.utils.dist import gather_objects, get_world_size
from valle.utils.metrics import MetricsTracker
from valle.utils.rng import restore_rng, rng_state
from valle.utils.sharding import on_main


def save(run: Run, name: str, copies: tuple[str, ...] = ()) -> bool:
    """Write a checkpoint, and give it further names; all ranks call it.

    Returns:
      Whether it was written. If it was not, the one before is still there.

    Raises:
      OSError: It could not be written, and --on-save-error says stop.
    """
    run.begins(f"saving {name}", waits=True)
    review(run, all_of_them=True)  # its counters go into the file
    params, folder = run.params, run.params.exp_dir
    state = params | {
        "config": asdict(run.model.config),
        "ranks": gather_objects(own_state(run)),
    }
    sampler = consumed_state(run.train_dl.sampler, params.batch_idx_epoch)
    parts = (run.optimizer, run.scheduler, run.scaler, sampler, run.average)

    def copy() -> None:
        for other in copies:
            copy_checkpoint(folder / name, folder / other)

    try:
        write_once(run, lambda: save_checkpoint(folder / name, run.model, state, *parts))
        on_main(copy, run.device) if get_world_size() > 1 else copy()
    except OSError as error:
        if params.on_save_error == "stop":
            raise
        logging.error(f"{error}. Training goes on (--on-save-error continue)")
        return False
    return True


def write_once(run: Run, write: Callable[[], None]) -> None:
    """Let rank 0 write while the others wait for how it ends; a sharded model's ranks all help."""
    if run.params.fsdp or get_world_size() == 1:
        write()
    else:
        on_main(write, run.device)


def resume(run: Run, start: Start) -> None:
    """Go on where the checkpoint was written: at an epoch's end, or inside the epoch."""
    params, checkpoint = run.params, start.checkpoint
    load_checkpoint(start.path, run.model, run.optimizer, run.scheduler, run.scaler, run.average)
    names = ["batch_idx_train", "first_batch", "first_epoch", "train_loss"]
    names += ["num_skipped", "skipped_in_row", "validation_due"]
    names += [f"best_{split}_{what}" for split in ("train", "valid") for what in ("loss", "epoch")]
    params.update({name: checkpoint[name] for name in names if name in checkpoint})
    restore_own_state(run, checkpoint["ranks"])
    if params.start_batch > 0:
        params.cur_epoch = checkpoint["cur_epoch"]
        params.batch_idx_epoch = checkpoint["batch_idx_epoch"]
        load_sampler_state(run.train_dl.sampler, checkpoint["sampler"])
    else:
        run.whole = MetricsTracker()  # of the epoch that ended
    logging.info(f"Going on from {start.path}, step {params.batch_idx_train}")


def own_state(run: Run) -> dict[str, Any]:
    """What differs from rank to rank: random numbers and measurements."""
    return {
        "rng": rng_state(run.device, run.generators),
        "whole": run.whole.to_plain(),
        "tot": run.tot.to_plain(),
    }


def restore_own_state(run: Run, states: list[dict[str, Any]]) -> None:
    """Each rank goes on with its own; of another number of ranks, the first has all they met."""
    if len(states) == run.params.world_size:
        mine = states[run.rank]
        restore_rng(mine["rng"], run.device, run.generators)
        run.whole, run.tot = (MetricsTracker.from_plain(mine[name]) for name in ("whole", "tot"))
        return
    # nobody must draw what somebody drew before
    seed_ranks(run, run.params.world_size + run.rank + run.params.batch_idx_train)
    for state in states if run.is_main else []:
        run.whole = run.whole + MetricsTracker.from_plain(state["whole"])
