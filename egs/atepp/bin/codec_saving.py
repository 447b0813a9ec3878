"""Checkpoints of a run that trains a codec, and the folder that everybody opens."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from codec_passes import use_optimizer
from codec_run import PHASES, CodecRun, codec_folder
from codec_step import review

from valle.codec.files import SAVE_DTYPES, save_codec
from valle.codec.rvq import codebooks_of
from valle.utils.checkpoint import (
    find_checkpoints,
    load_checkpoint,
    read_checkpoint,
    remove_checkpoints,
    save_checkpoint,
)
from valle.utils.dist import from_main, is_main
from valle.utils.rng import restore_rng, rng_state
from valle.utils.sharding import on_main

COUNTERS = (
    "phase",
    "phase_step",
    "step",
    "num_skipped",
    "skipped_in_row",
    "elapsed_sec",
    "phase_sec",
)


def save(run: CodecRun) -> None:
    """Write checkpoint-N.pt and the codec as it is now; all ranks call it."""
    run.begins("saving", waits=True)
    review(run, all_of_them=True)  # its counters go into the file
    params = run.params
    path = params.exp_dir / f"checkpoint-{params.step}.pt"
    state = params | own_state(run)

    def write() -> None:
        save_checkpoint(path, run.parts, state, run.optimizers["codec"])
        remove_checkpoints(params.exp_dir, params.keep_last_k, last=params.step)
        write_codec(run)

    once(run, write)


def once(run: CodecRun, write: Callable[[], None]) -> None:
    """Let rank 0 write while the others wait for how it ends."""
    if run.params.world_size > 1:
        on_main(write, run.device)
    else:
        write()


def write_codec(run: CodecRun) -> None:
    """The averaged codec as a folder of transformers, from when its codebooks are filled on."""
    params, folder = run.params, codec_folder(run.params)
    if PHASES[params.phase] == "noise":
        return
    if PHASES[params.phase] == "joint":
        keep_quotients(run)
    exact = params.train == "decoder"
    num_bytes = save_codec(run.average, folder, SAVE_DTYPES[params.save_dtype], exact)
    logging.info(f"codec of step {params.step} in {folder}, {num_bytes} bytes")


@torch.no_grad()
def keep_quotients(run: CodecRun) -> None:
    """What the averaged codebooks keep for further training, fitted to their averaged codes."""
    for kept, newest in zip(codebooks_of(run.average), codebooks_of(run.model), strict=True):
        kept.cluster_size.copy_(newest.cluster_size)
        kept.embed_avg.copy_(kept.embed * newest.cluster_size.unsqueeze(1))


def own_state(run: CodecRun) -> dict[str, Any]:
    """All that is in neither weights, counters nor the codec's optimizer."""
    state: dict[str, Any] = {
        "rng": rng_state(run.device, {"codec": run.generator}),
        "quantizer": run.quantizer.state_dict(),
        "balancer_norms": run.balancer.state_dict(),
        "latent_variance": run.latent_variance,
        "loss_random": {name: loss.random.getstate() for name, loss in run.losses.items()},
        "metrics": run.metrics.to_plain(),
    }
    if run.discriminator is not None:
        state["discriminator_optimizer"] = run.optimizers["discriminator"].state_dict()
    return state


def resume(run: CodecRun) -> bool:
    """Go on from the newest checkpoint that is whole; False if there is none.

    Raises:
      ValueError: It was made with other settings.
    """
    path = from_main(newest_checkpoint(run.params.exp_dir) if is_main() else None)
    if path is None:
        logging.info(f"--resume auto: no checkpoint in {run.params.exp_dir} yet")
        return False
    checkpoint = read_checkpoint(path)
    check_same_run(run, checkpoint, path)
    run.params.update({name: checkpoint[name] for name in COUNTERS})
    use_optimizer(run, PHASES[run.params.phase])
    load_checkpoint(path, run.parts, run.optimizers["codec"])
    restore_rng(checkpoint["rng"], run.device, {"codec": run.generator})
    run.quantizer.load_state_dict(checkpoint["quantizer"])
    run.balancer.load_state_dict(checkpoint["balancer_norms"], run.device)
    run.latent_variance = checkpoint["latent_variance"].to(run.device)
    run.metrics = type(run.metrics).from_plain(checkpoint["metrics"])
    for name, (version, words, gauss) in checkpoint["loss_random"].items():
        run.losses[name].random.setstate((version, tuple(words), gauss))
    if run.discriminator is not None:
        run.optimizers["discriminator"].load_state_dict(checkpoint["discriminator_optimizer"])
    logging.info(f"Going on from {path}, step {run.params.step}")
    return True


def check_fresh(folder: Path) -> None:
    """Refuse to begin where another run has been: its checkpoints would be gone on from later.

    Raises:
      ValueError: There are checkpoints.
    """
    if found := list(find_checkpoints(folder)):
        raise ValueError(
            f"{folder} holds {found[0].name} of another run: give --resume auto to go on with it, "
            "or another --exp-dir"
        )


def newest_checkpoint(folder: Path) -> Path | None:
    for path in find_checkpoints(folder):
        try:
            read_checkpoint(path)
        except ValueError as error:
            logging.warning(f"--resume auto leaves out a damaged file: {error}")
            continue
        return path
    return None


def check_same_run(run: CodecRun, checkpoint: dict[str, Any], path: Path) -> None:
    """Refuse to go on under flags that decide what a step is."""
    names: tuple[str, ...] = ("init_from", "config", "train", "adversarial", "batch_size")
    names += ("segment_sec", "train_seed", "balancer", "dtype", "floor_db", "quantizer_drop")
    differing = [
        f"--{name.replace('_', '-')} {checkpoint.get(name)} there, {run.params[name]} here"
        for name in names
        if str(checkpoint.get(name)) != str(run.params[name])
    ]
    if differing:
        raise ValueError(
            f"{path} was made with other settings ({'; '.join(differing)}): give the same flags, "
            "or another --exp-dir"
        )
