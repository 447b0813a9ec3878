"""The state of a training run, and how it is built."""

import argparse
import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from lhotse import CutSet
from run_settings import events_folder
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader
from training_data import open_cuts
from training_measures import ContinuationMeter
from training_start import Start, find_start, keep_best_of_other_stage, load_start_weights

from valle.data import Codec, CodecInfo, TokenDataModule
from valle.data.sampler import batches_an_epoch
from valle.models import CodecLM, TrainStage, get_model
from valle.modules.compiling import compile_layers
from valle.modules.optim import make_optimizer
from valle.modules.scheduler import Scheduler, make_scheduler
from valle.utils.averaging import Weights, make_averaged_weights
from valle.utils.cli import AttributeDict
from valle.utils.dist import get_world_size
from valle.utils.env import get_env_info
from valle.utils.events import EventWriter
from valle.utils.files import remove_leftovers, written_whole
from valle.utils.late import LateReader
from valle.utils.metrics import MetricsTracker
from valle.utils.plot import can_draw
from valle.utils.rng import seed_all
from valle.utils.run_record import write_run_record
from valle.utils.sharding import shard
from valle.utils.signals import StopRequest
from valle.utils.watchdog import Watchdog

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

Batch = dict[str, Any]


@dataclass
class Prepared:
    """A batch on the device.

    Attributes:
      inputs: arguments of the model's `forward`, each (B, ...).
      lens: (B,) frames of each row, all its parts together; on the CPU.
      num_frames: target frames.
    """

    inputs: dict[str, Tensor]
    lens: Tensor
    num_frames: int
    cut_ids: list[str]

    @property
    def longest(self) -> int:
        """Frames of the longest row."""
        return int(self.lens.max())

    @property
    def num_cells(self) -> int:
        """Rows times the longest one."""
        return len(self.lens) * self.longest

    @property
    def num_padded(self) -> int:
        """How many of the cells are padding."""
        return self.num_cells - int(self.lens.sum())


@dataclass
class Run:
    """All that a training run works with.

    `params` holds the command line and the counters; it is what checkpoints store flat.

    Attributes:
      wrapped: what is called in training: the model, in DDP where there are several ranks.
      exchanges_by_hand: gradients are exchanged after the backward pass, not by DDP during it.
      meter: measures continuations at each validation; on rank 0, where there is a codec.
      num_unmeasured: how often that failed.
      draws_samples: after epochs, sounds with their spectrograms are written.
      gap_generator: draws which cuts of a batch have gaps, and where.
      outcomes: skipped or not, of each step; of the steps not yet reviewed also the batches.
      whole: metrics of the epoch so far; `tot` those that forget.
      must_stop: all ranks know that one of them was asked to stop.
    """

    params: AttributeDict
    device: torch.device
    stage: TrainStage
    model: CodecLM
    wrapped: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    train_dl: DataLoader
    valid_dl: DataLoader
    num_train_cuts: int
    valid_cuts: CutSet
    scheduler: Scheduler
    average: Weights | None
    writer: EventWriter | None
    codec: Codec | None
    rank: int
    fresh_sampler: Callable[[], Any]
    stop: StopRequest
    watchdog: Watchdog
    gap_generator: torch.Generator = field(default_factory=torch.Generator)
    outcomes: LateReader[list[Prepared]] = field(default_factory=LateReader)
    whole: MetricsTracker = field(default_factory=MetricsTracker)
    tot: MetricsTracker = field(default_factory=MetricsTracker)
    must_stop: bool = False
    meter: ContinuationMeter | None = None
    num_unmeasured: int = 0
    draws_samples: bool = False

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def num_levels(self) -> int:
        """Quantizers to hear: an untrained NAR half makes noise, the first alone is music."""
        return 1 if self.stage == TrainStage.AR else self.model.config.num_quantizers

    @property
    def exchanges_by_hand(self) -> bool:
        return self.params.world_size > 1 and self.params.on_oom == "split"

    @property
    def generators(self) -> dict[str, torch.Generator]:
        """Those of the run's own, beside the global ones."""
        return {"nar_stage": self.model.stage_generator, "gaps": self.gap_generator}

    def begins(self, what: str, waits: bool = False) -> None:
        """Tell the other ranks where this one is; `waits` if it needs them there."""
        self.watchdog.beat(self.params.batch_idx_train + 1, what, waits)

    def load(self, cuts: Iterable[Any]) -> Batch:
        """A batch of cuts, as validation has it."""
        return self.valid_dl.dataset[CutSet.from_cuts(cuts)]

    def learning_parameters(self) -> list[nn.Parameter]:
        return list(self.model.half_parameters(self.stage))


# Building


def build_run(
    args: argparse.Namespace, rank: int, device: torch.device, stop: StopRequest, watchdog: Watchdog
) -> tuple[Run, Start | None]:
    """All parts of a run, and the checkpoint that it starts from, whose weights it has."""
    params = AttributeDict(vars(args) | fresh_counters(args), world_size=get_world_size())
    stage = TrainStage(params.train_stage)
    logging.info(f"Training started: stage {stage.value} ({stage.name}), device {device}")
    data = TokenDataModule(args)
    train, valid = open_cuts(data, params)
    start = find_start(params)
    if rank == 0:
        remove_leftovers(params.exp_dir)
        keep_best_of_other_stage(params)
    model = build_model(params)
    load_start_weights(model, start, params)
    if rank == 0:  # not of a run whose weights do not fit
        write_run_record(params.exp_dir, params, {"train": train.facts, "validation": valid.facts})
    wrapped = distribute(model, params, device)

    def fresh_loader() -> DataLoader:
        return data.train_dataloader(train.cuts, params.seed, params.world_size, rank)

    def count_batches() -> int:
        return batches_an_epoch(fresh_loader().sampler, train.seconds)

    optimizer = make_optimizer(
        params.optimizer_name, model.half_parameters(stage), base_lr=params.base_lr
    )
    run = Run(
        params=params,
        device=device,
        stage=stage,
        model=model,
        wrapped=wrapped,
        optimizer=optimizer,
        scheduler=build_scheduler(params, optimizer, count_batches),
        scaler=torch.amp.GradScaler(device.type, enabled=params.dtype == "float16"),
        train_dl=fresh_loader(),
        valid_dl=data.valid_dataloader(valid.cuts, params.world_size, rank),
        num_train_cuts=train.num_cuts,
        valid_cuts=valid.cuts,
        average=make_averaged_weights(model) if params.average_period else None,
        writer=open_writer(params, stage) if rank == 0 and params.tensorboard else None,
        codec=open_codec(params) if rank == 0 and params.tensorboard else None,
        rank=rank,
        fresh_sampler=lambda: fresh_loader().sampler,
        stop=stop,
        watchdog=watchdog,
    )
    run.meter = open_meter(run)
    wanted = run.codec is not None and wants_samples(params)
    run.draws_samples = wanted and can_draw("tensorboard's audio samples")
    seed_ranks(run, rank)
    write_model_text(run)
    return run, start


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
        "num_skipped": 0,
        "skipped_in_row": 0,
        "validation_due": False,
        "env_info": get_env_info(),
    }


def build_model(params: AttributeDict) -> CodecLM:
    """The model at its random (and codebook-informed) start, equal on all ranks; on the CPU."""
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
    return model


def load_codec(params: AttributeDict, name: str, flag: str) -> Codec:
    """Load a codec, which must be the one that made the tokens."""
    codec = Codec.from_pretrained(name, num_quantizers=params.num_quantizers)
    if params.codec is not None:
        CodecInfo.from_dict(params.codec).check_same(codec.info, flag)
    return codec


def distribute(model: CodecLM, params: AttributeDict, device: torch.device) -> nn.Module:
    """Bring the model to the device, or each rank's part of it; returns what training calls."""
    layers = [layer for half in (model.ar, model.nar) for layer in half.decoder.layers]
    if params.fsdp:
        shard(model, layers, device)
    model.to(device)
    if params.compile:
        compile_layers(layers, device, DTYPES[params.dtype])
    if params.fsdp or params.world_size == 1:
        return model
    devices = [device] if device.type == "cuda" else None
    return DDP(model, device_ids=devices, gradient_as_bucket_view=True)


def build_scheduler(
    params: AttributeDict, optimizer: torch.optim.Optimizer, count_batches: Callable[[], int]
) -> Scheduler:
    name = params.scheduler_name or ("Cosine" if params.optimizer_name == "AdamW" else "Eden")
    total_steps = None
    if name == "Cosine":
        steps = math.ceil(count_batches() / params.accumulate_grad_steps)
        total_steps = steps * (params.num_epochs - params.first_epoch + 1)
        logging.info(f"Cosine over {total_steps} steps, about {steps} an epoch")
    return make_scheduler(name, optimizer, params.warmup_steps, total_steps)


def open_writer(params: AttributeDict, stage: TrainStage) -> EventWriter:
    return EventWriter(events_folder(params.exp_dir, stage.value))


def open_codec(params: AttributeDict) -> Codec | None:
    """The codec to hear and measure by; a run does not need it, so it may be missing."""
    name = params.sample_codec or (params.codec or {}).get("name")
    if not wants_samples(params) and params.measured_cuts < 1:
        return None
    if params.fsdp:
        logging.info(
            "No audio samples and no measures of them in tensorboard: with --fsdp no process has "
            "the whole model"
        )
        return None
    try:
        if name is None:
            raise ValueError("the manifest names no codec; give --sample-codec")
        return load_codec(params, name, "--sample-codec")
    except (ValueError, OSError, ImportError) as error:
        logging.warning(f"No audio samples in tensorboard: {error} (so no measures of them either)")
        return None


def wants_samples(params: AttributeDict) -> bool:
    return params.sample_epochs > 0 and params.num_samples > 0


def open_meter(run: Run) -> ContinuationMeter | None:
    if run.codec is None or run.params.measured_cuts < 1:
        return None
    params, dataset = run.params, run.valid_dl.dataset
    return ContinuationMeter(
        run.valid_cuts,
        run.codec,
        params.prompt_ratio,
        params.measured_cuts,
        run.num_levels,
        params.seed,
        # no method of the run, which would hold itself and, at its end, its loaders' processes
        lambda cuts: dataset[CutSet.from_cuts(cuts)],
    )


def seed_ranks(run: Run, offset: int) -> None:
    """Dropout, NAR stages and the like of its own for each rank."""
    seed_all(run.params.seed + offset, run.generators)


def write_model_text(run: Run) -> None:
    num_parameters = sum(p.numel() for p in run.model.parameters())
    num_learning = sum(p.numel() for p in run.learning_parameters())
    logging.info(f"Number of model parameters: {num_parameters}, learning: {num_learning}")
    if run.is_main:
        with written_whole(run.params.exp_dir / "model.txt") as temporary:
            temporary.write_text(f"{run.model}\n")
