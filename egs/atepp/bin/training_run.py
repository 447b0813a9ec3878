"""The state of a training run: how it is built, saved, and taken up again."""

import argparse
import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lhotse import CutSet
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter

from valle.data import Codec, CodecInfo, TokenDataModule, codec_of, consumed_state
from valle.data.sampler import load_sampler_state
from valle.models import AudioLM, AudioLMConfig, TrainStage, get_model
from valle.modules.optim import make_optimizer
from valle.modules.scheduler import Scheduler, make_scheduler
from valle.utils.averaging import make_averaged_model
from valle.utils.checkpoint import (
    checkpoint_number,
    copy_checkpoint,
    find_checkpoints,
    load_checkpoint,
    load_weights,
    read_checkpoint,
    save_checkpoint,
)
from valle.utils.cli import AttributeDict
from valle.utils.dist import setup_dist
from valle.utils.env import get_env_info
from valle.utils.files import remove_leftovers, written_whole
from valle.utils.log import setup_logger
from valle.utils.plot import import_pyplot


@dataclass
class Run:
    """All that a training run works with.

    `params` holds the command line and the counters; it is what checkpoints store flat.
    """

    params: AttributeDict
    device: torch.device
    stage: TrainStage
    model: AudioLM
    wrapped: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    train_dl: DataLoader
    valid_dl: DataLoader
    num_train_cuts: int
    valid_cuts: CutSet
    scheduler: Scheduler
    model_avg: nn.Module | None
    writer: SummaryWriter | None
    codec: Codec | None
    rank: int
    fresh_sampler: Callable[[], Any]

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def learning_parameters(self) -> list[nn.Parameter]:
        return list(self.model.half_parameters(self.stage))


# Building


def build_run(rank: int, world_size: int, args: argparse.Namespace) -> Run:
    device = setup_dist(rank, world_size, args.master_port)
    setup_logger(args.exp_dir / "log" / "log-train", rank, world_size)
    params = AttributeDict(vars(args) | fresh_counters(args), world_size=world_size)
    stage = TrainStage(params.train_stage)
    logging.info(f"Training started: stage {stage.value} ({stage.name}), device {device}")
    data = TokenDataModule(args)
    train_cuts, valid_cuts = (
        data.filter_by_duration(cuts, params.filter_min_duration, params.filter_max_duration)
        for cuts in (data.train_cuts(), data.valid_cuts())
    )
    settle_codec(params, codec_of(train_cuts))
    valid_codec = codec_of(valid_cuts)
    if params.codec and valid_codec:
        CodecInfo.from_dict(params.codec).check_same(valid_codec, "the validation cuts")
    data.num_quantizers, data.codebook_size = params.num_quantizers, params.num_audio_tokens

    start = find_start(params)
    if rank == 0:
        remove_leftovers(params.exp_dir)
        keep_best_of_other_stage(params)
    model = build_model(params, device)
    if start is not None:
        load_start_weights(model, start, params)

    def fresh_loader() -> DataLoader:
        return data.train_dataloader(train_cuts, params.seed, world_size, rank)

    optimizer = make_optimizer(
        params.optimizer_name, model.half_parameters(stage), base_lr=params.base_lr
    )
    run = Run(
        params=params,
        device=device,
        stage=stage,
        model=model,
        wrapped=wrap(model, stage, device, world_size),
        optimizer=optimizer,
        scheduler=build_scheduler(params, optimizer, fresh_loader().sampler),
        scaler=torch.amp.GradScaler(device.type, enabled=params.dtype == "float16"),
        train_dl=fresh_loader(),
        valid_dl=data.valid_dataloader(valid_cuts, world_size, rank),
        num_train_cuts=sum(1 for _ in train_cuts),
        valid_cuts=valid_cuts,
        model_avg=make_averaged_model(model) if params.average_period else None,
        writer=open_writer(params, stage) if rank == 0 and params.tensorboard else None,
        codec=open_codec(params) if rank == 0 and params.tensorboard else None,
        rank=rank,
        fresh_sampler=lambda: fresh_loader().sampler,
    )
    seed_ranks(run, rank)
    if start is not None and not start.is_other_stage:
        resume(run, start)
    logging.info(f"params: {params}")
    write_model_text(run)
    return run


def fresh_counters(args: argparse.Namespace) -> dict[str, Any]:
    """Counters of a run that begins: updates so far, and loader batches of the epoch so far."""
    return {
        "batch_idx_train": 0,
        "batch_idx_epoch": 0,
        "first_batch": 0,
        "first_epoch": args.start_epoch,
        "cur_epoch": args.start_epoch,
        "train_loss": math.inf,
        "best_train_loss": math.inf,
        "best_valid_loss": math.inf,
        "best_train_epoch": -1,
        "best_valid_epoch": -1,
        "env_info": get_env_info(),
    }


def settle_codec(params: AttributeDict, info: CodecInfo | None) -> None:
    """Take quantizers and codebook size from the manifest's codec, the flags agreeing.

    Raises:
      ValueError: A flag says something else than the manifest.
    """
    defaults = AudioLMConfig()
    facts = {
        "num_quantizers": info.num_quantizers if info else defaults.num_quantizers,
        "num_audio_tokens": info.codebook_size if info else defaults.num_audio_tokens,
    }
    for name, value in facts.items():
        given = params[name]
        if info is not None and given is not None and given != value:
            flag = "--" + name.replace("_", "-")
            raise ValueError(
                f"{flag} {given}, but the tokens in {params.manifest_dir} were made by "
                f"{info.name} with {value}: leave the flag out, or take other tokens"
            )
        params[name] = value if given is None else given
    params.codec = None if info is None else info.to_dict()


def build_model(params: AttributeDict, device: torch.device) -> AudioLM:
    """The model at its random (and codebook-informed) start, equal on all ranks."""
    torch.manual_seed(params.seed)
    model = get_model(params)
    if params.init_embeddings_from_codec:
        codec = load_codec(
            params, params.init_embeddings_from_codec, "--init-embeddings-from-codec"
        )
        model.init_embeddings(codec.codebooks())
        logging.info(f"Embeddings and heads start from the codebooks of {codec.info.name}")
    learning = {id(p) for p in model.half_parameters(TrainStage(params.train_stage))}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in learning)
    return model.to(device)


def load_codec(params: AttributeDict, name: str, flag: str) -> Codec:
    """Load a codec, which must be the one that made the tokens."""
    codec = Codec.from_pretrained(name, num_quantizers=params.num_quantizers)
    if params.codec is not None:
        CodecInfo.from_dict(params.codec).check_same(codec.info, flag)
    return codec


def wrap(model: AudioLM, stage: TrainStage, device: torch.device, world_size: int) -> nn.Module:
    if world_size == 1:
        return model
    devices = [device] if device.type == "cuda" else None
    # a step need not draw every NAR stage, whose heads then have no gradient
    return DDP(model, device_ids=devices, find_unused_parameters=stage != TrainStage.AR)


def build_scheduler(
    params: AttributeDict, optimizer: torch.optim.Optimizer, sampler: Iterable
) -> Scheduler:
    name = params.scheduler_name or ("Cosine" if params.optimizer_name == "AdamW" else "Eden")
    total_steps = None
    if name == "Cosine":
        steps = math.ceil(sum(1 for _ in sampler) / params.accumulate_grad_steps)
        total_steps = steps * (params.num_epochs - params.first_epoch + 1)
        logging.info(f"Cosine over {total_steps} steps, about {steps} an epoch")
    return make_scheduler(name, optimizer, params.warmup_steps, total_steps)


def open_writer(params: AttributeDict, stage: TrainStage) -> SummaryWriter:
    name = "tensorboard" if stage == TrainStage.BOTH else f"tensorboard_stage{stage.value}"
    return SummaryWriter(str(params.exp_dir / name))


def open_codec(params: AttributeDict) -> Codec | None:
    """The codec for audio samples; a run does not need it, so it may be missing."""
    name = params.sample_codec or (params.codec or {}).get("name")
    if not params.sample_epochs or params.num_samples < 1:
        return None
    try:
        if name is None:
            raise ValueError("the manifest names no codec; give --sample-codec")
        codec = load_codec(params, name, "--sample-codec")
        import_pyplot()
    except (ValueError, OSError, ImportError) as error:
        logging.warning(f"No audio samples in tensorboard: {error}")
        return None
    return codec


def seed_ranks(run: Run, offset: int) -> None:
    """Dropout and NAR stages of its own for each rank."""
    torch.manual_seed(run.params.seed + offset)
    run.model.stage_generator.manual_seed(run.params.seed + offset)


def write_model_text(run: Run) -> None:
    num_parameters = sum(p.numel() for p in run.model.parameters())
    num_learning = sum(p.numel() for p in run.learning_parameters())
    logging.info(f"Number of model parameters: {num_parameters}, learning: {num_learning}")
    if run.is_main:
        with written_whole(run.params.exp_dir / "model.txt") as temporary:
            temporary.write_text(f"{run.model}\n")


# Saving


def save(run: Run, name: str) -> None:
    """Write all that a run needs to go on, and all that inference needs."""
    save_checkpoint(
        run.params.exp_dir / name,
        run.model,
        run.params | {"config": asdict(run.model.config), "rng": rng_state(run)},
        run.optimizer,
        run.scheduler,
        run.scaler,
        consumed_state(run.train_dl.sampler, run.params.batch_idx_epoch),
        run.model_avg,
    )


def rng_state(run: Run) -> dict[str, Any]:
    state = {"torch": torch.get_rng_state(), "nar_stage": run.model.stage_generator.get_state()}
    if run.device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(run.device)
    return state


def restore_rng(run: Run, state: dict[str, Tensor]) -> None:
    torch.set_rng_state(state["torch"])
    run.model.stage_generator.set_state(state["nar_stage"])
    if "cuda" in state and run.device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], run.device)


# Taking up


@dataclass
class Start:
    """A checkpoint that a run starts from.

    Attributes:
      is_other_stage: it is of another training stage: its weights are taken, and nothing else.
    """

    path: Path
    checkpoint: dict[str, Any]
    is_other_stage: bool


def find_start(params: AttributeDict) -> Start | None:
    """The checkpoint that the flags ask for; None for a run from scratch.

    Raises:
      FileNotFoundError: It is not there.
      ValueError: It was trained on tokens of another codec, or the new epochs would overwrite
        those of another stage.
    """
    stage, path = params.train_stage, start_file(params)
    if path is None:
        refuse_overwriting(params)
        if stage == TrainStage.NAR:
            logging.warning(
                "Stage 2 without an AR half trained before: give --start-epoch X (reads "
                "epoch-(X-1).pt) or --ar-checkpoint PATH, unless that is meant"
            )
        return None
    checkpoint = read_checkpoint(path)
    if checkpoint.get("codec") and params.codec:
        theirs, ours = (CodecInfo.from_dict(c) for c in (checkpoint["codec"], params.codec))
        theirs.check_same(ours, f"the tokens in {params.manifest_dir}, for {path}")
    is_other_stage = path == params.ar_checkpoint or checkpoint.get("train_stage") != stage
    if is_other_stage:
        refuse_overwriting(params)
        # counted on beyond any checkpoint-N.pt that is there, so that none is written over
        numbers = [checkpoint_number(path) for path in find_checkpoints(params.exp_dir)]
        first_batch = max([checkpoint.get("batch_idx_train", 0), *numbers])
        params.batch_idx_train = params.first_batch = first_batch
    else:
        params.first_epoch = checkpoint["first_epoch"]  # a schedule counts from there
    return Start(path, checkpoint, is_other_stage)


def start_file(params: AttributeDict) -> Path | None:
    """The file to start from. A NAR run under way goes on, whatever AR half it once began with."""
    path = None
    if params.start_batch > 0:
        path = params.exp_dir / f"checkpoint-{params.start_batch}.pt"
    elif params.start_epoch > 1:
        path = params.exp_dir / f"epoch-{params.start_epoch - 1}.pt"
    if params.ar_checkpoint is None:
        return path
    under_way = path if path is not None and path.exists() else None
    if under_way and read_checkpoint(under_way).get("train_stage") == TrainStage.NAR:
        logging.info(f"--ar-checkpoint is not read, as the run goes on from {path}")
        return path
    return params.ar_checkpoint


def refuse_overwriting(params: AttributeDict) -> None:
    """A stage that begins must not write over the epochs of another."""
    path = params.exp_dir / f"epoch-{params.start_epoch}.pt"
    if path.exists() and read_checkpoint(path).get("train_stage") != params.train_stage:
        raise ValueError(
            f"{path} belongs to another training stage and would be overwritten: begin after its "
            "last epoch (--start-epoch), or choose another --exp-dir"
        )


def keep_best_of_other_stage(params: AttributeDict) -> None:
    """Give best-*.pt of a stage before this one a name that this stage does not write to."""
    for name in ("best-valid-loss", "best-train-loss"):
        path = params.exp_dir / f"{name}.pt"
        if path.exists():
            stage = read_checkpoint(path).get("train_stage")
            if stage != params.train_stage:
                copy_checkpoint(path, params.exp_dir / f"{name}-stage{stage}.pt")


def load_start_weights(model: AudioLM, start: Start, params: AttributeDict) -> None:
    """Load the weights; of an AR run that the NAR half starts from, the AR half alone."""
    weights, what = start.checkpoint["model"], "Model"
    of_ar_run = start.checkpoint.get("train_stage") == TrainStage.AR
    if params.train_stage == TrainStage.NAR and (start.path == params.ar_checkpoint or of_ar_run):
        what = "AR half"
        ar = {k.removeprefix("ar."): v for k, v in weights.items() if k.startswith("ar.")}
        load_weights(model.ar, ar, start.path)
    else:
        load_weights(model, weights, start.path)
    logging.info(f"{what} loaded from {start.path}")


def resume(run: Run, start: Start) -> None:
    """Go on where the checkpoint was written: at an epoch's end, or inside the epoch."""
    params, checkpoint = run.params, start.checkpoint
    load_checkpoint(start.path, run.model, run.optimizer, run.scheduler, run.scaler, run.model_avg)
    names = ["batch_idx_train", "first_batch", "first_epoch", "train_loss"]
    names += [f"best_{split}_{what}" for split in ("train", "valid") for what in ("loss", "epoch")]
    params.update({name: checkpoint[name] for name in names if name in checkpoint})
    if run.is_main:
        restore_rng(run, checkpoint["rng"])
    else:  # the file knows rank 0 alone; others draw anew, and not what they drew before
        seed_ranks(run, params.world_size + run.rank + params.batch_idx_train)
    if params.start_batch > 0:
        params.cur_epoch = checkpoint["cur_epoch"]
        params.batch_idx_epoch = checkpoint["batch_idx_epoch"]
        load_sampler_state(run.train_dl.sampler, checkpoint["sampler"])
    logging.info(f"Going on from {start.path}, step {params.batch_idx_train}")
