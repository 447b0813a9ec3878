"""The state of a run that trains a codec, and how it is built."""

import argparse
import copy
import logging
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from codec_sources import held_out, open_splits
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from valle.codec.balancer import Balancer
from valle.codec.crops import CropDataset
from valle.codec.discriminator import StftDiscriminator
from valle.codec.files import check_sizes, read_config
from valle.codec.first_weights import keep_paddings_on_host, normalize_first_weights
from valle.codec.losses import ReconstructionLoss
from valle.codec.measures import check_length
from valle.codec.pieces import PieceReader, cut_clips, survey_pieces
from valle.codec.ranks import same_on_all_ranks
from valle.codec.rvq import codebooks_of
from valle.codec.rvq_training import ResidualTrainer
from valle.data.codec_loading import load_codec_model
from valle.utils.cli import AttributeDict
from valle.utils.dist import get_world_size
from valle.utils.files import remove_leftovers
from valle.utils.late import LateReader
from valle.utils.metrics import MetricsTracker
from valle.utils.run_record import write_run_record
from valle.utils.signals import StopRequest
from valle.utils.watchdog import Watchdog

PHASES = ("noise", "joint", "decoder")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
FIRST_CROPS = 16  # that the first weights are fitted to
# streams of crops beside those of the phases, which are numbered from 0
FIRST_STREAM, KMEANS_STREAM = 100, 200


@dataclass
class CodecRun:
    """All that a run works with; the ranks of a job differ in their crops alone.

    Attributes:
      params: The command line and the counters; checkpoints store it flat.
      model: The EncodecModel that learns.
      average: A moving average of its weights: what is scored and saved.
      discriminator: None where no phase has one.
      optimizers: "codec", made anew where other weights begin to learn, and "discriminator".
      generator: Of noise, of levels and of revived codes; in one state on all ranks.
      latent_variance: () of the latents when the codebooks were filled.
      clips: (C, 1, N) held-out sound.
      metrics: Of the steps since the last line.
      must_stop: All ranks know that one of them was asked to.
    """

    params: AttributeDict
    device: torch.device
    rank: int
    model: Any
    average: Any
    discriminator: StftDiscriminator | None
    optimizers: dict[str, torch.optim.Optimizer]
    generator: torch.Generator
    quantizer: ResidualTrainer
    balancer: Balancer
    losses: dict[str, ReconstructionLoss]
    reader: PieceReader
    clips: Tensor
    writer: SummaryWriter | None
    stop: StopRequest
    watchdog: Watchdog
    latent_variance: Tensor
    outcomes: LateReader[int] = field(default_factory=LateReader)
    metrics: MetricsTracker = field(default_factory=MetricsTracker)
    must_stop: bool = False

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def parts(self) -> nn.ModuleDict:
        """Everything that has weights, under the names of checkpoints."""
        parts = {"codec": self.model, "average": self.average}
        if self.discriminator is not None:
            parts["discriminator"] = self.discriminator
        return nn.ModuleDict(parts)

    def begins(self, what: str, waits: bool = False) -> None:
        """Tell the other ranks where this one is; `waits` if it needs them there."""
        self.watchdog.beat(self.params.step + 1, what, waits)

    def autocast(self) -> torch.autocast:
        """Half the bits for convolutions, where asked for; codes, spectra and losses keep all."""
        dtype = DTYPES[self.params.dtype]
        return torch.autocast(self.device.type, torch.bfloat16, enabled=dtype != torch.float32)

    def crops(self, phase: str, stream: int) -> CropDataset:
        """Crops for a phase; those of the decoder phase are twice as long."""
        times = 2 if phase == "decoder" else 1
        config = self.model.config
        frames = max(1, round(self.params.segment_sec * config.sampling_rate / config.hop_length))
        num_samples = frames * config.hop_length * times
        return CropDataset(self.reader, num_samples, self.params.train_seed, stream)

    def batch_size(self, phase: str) -> int:
        """Crops a step on all ranks; half as many of the twice as long ones."""
        whole, ranks = self.params.batch_size, get_world_size()
        return whole if phase != "decoder" else -(-whole // (2 * ranks)) * ranks

    def has_adversary(self, phase: str) -> bool:
        begin = self.params.adversarial
        return begin != "none" and PHASES.index(phase) >= PHASES.index(begin)


def build_run(
    args: argparse.Namespace, rank: int, device: torch.device, stop: StopRequest, watchdog: Watchdog
) -> CodecRun:
    """All parts of a run, at its start."""
    params = AttributeDict(vars(args) | fresh_counters(), world_size=get_world_size())
    splits = open_splits(args)
    torch.manual_seed(params.train_seed)
    model = open_model(params)
    check_latents(params, model.config.codebook_size)
    params.rate_bits = params.rate_bits or usual_rate(model.config)
    reader, clips, facts = open_sound(params, splits, model.config.sampling_rate)
    if rank == 0:
        for folder in (params.exp_dir, codec_folder(params)):
            remove_leftovers(folder)
        write_run_record(params.exp_dir, params, facts)
    model.to(device).train()  # cuDNN computes no gradient of an LSTM in eval mode
    generator = torch.Generator(device).manual_seed(params.train_seed)
    run = CodecRun(
        params=params,
        device=device,
        rank=rank,
        model=model,
        average=model,
        discriminator=None,
        optimizers={},
        generator=generator,
        quantizer=ResidualTrainer(codebooks_of(model), generator),
        balancer=Balancer(params.loss_weights, params.balancer_decay, params.balancer_norm),
        losses=build_losses(params, model.config.sampling_rate, device),
        reader=reader,
        clips=clips.to(device),
        writer=SummaryWriter(str(params.exp_dir / "tensorboard")) if rank == 0 else None,
        stop=stop,
        watchdog=watchdog,
        latent_variance=torch.ones((), device=device),
    )
    prepare_weights(run)
    return run


def fresh_counters() -> dict[str, Any]:
    """Of a run that begins: where it is, how long it took, what went wrong."""
    return {
        "phase": 0,
        "phase_step": 0,
        "step": 0,
        "num_skipped": 0,
        "skipped_in_row": 0,
        "elapsed_sec": 0.0,
        "phase_sec": 0.0,
    }


def open_model(params: AttributeDict) -> Any:
    """The EncodecModel to start from: of a folder or the hub, or new.

    Raises:
      ValueError: A codec of another family, or sizes that do not go together.
    """
    from transformers import EncodecModel

    from valle.data.codec_families import EncodecFamily, family_of

    if params.init_from is None:
        model: Any = EncodecModel(read_config(params.config))
        family_of(model, str(params.config))
        return model
    model = load_codec_model(str(params.init_from))
    if not isinstance(family_of(model, str(params.init_from)), EncodecFamily):
        raise ValueError(
            f"--init-from {params.init_from} is of kind {model.config.model_type!r}, expected "
            "'encodec': the other families can be used and judged here, not trained"
        )
    check_sizes(model.config, str(params.init_from))
    return model


def usual_rate(config: Any) -> float:
    """Bits a frame that the noise phase lets through: a fifth more than the codes will have."""
    return float(1.2 * config.num_quantizers * math.log2(config.codebook_size))


def check_latents(params: AttributeDict, codebook_size: int) -> None:
    """Refuse k-means on fewer latents than codes.

    Raises:
      ValueError: With both numbers.
    """
    if params.train == "all" and params.kmeans_latents < codebook_size:
        raise ValueError(
            f"--kmeans-latents {params.kmeans_latents} for {codebook_size} codes: give at least "
            f"20 a code, {20 * codebook_size}"
        )


def open_sound(
    params: AttributeDict, splits: dict[str, Any], sampling_rate: int
) -> tuple[PieceReader, Tensor, dict[str, Any]]:
    """What to learn from, clips to look at now and then, and how much there is of both."""
    pieces = survey_pieces(splits["train"])
    hours = sum(piece.seconds for piece in pieces) / 3600
    logging.info(f"{len(pieces)} recordings to learn from, {hours:.2f} h")
    reader = PieceReader(pieces, sampling_rate, params.memory_mib)
    others = PieceReader(survey_pieces(held_out(splits, ("validation", "test"))), sampling_rate)
    num_samples = round(params.clip_sec * sampling_rate)
    check_length(num_samples, sampling_rate)  # now rather than when the first are scored
    clips = cut_clips(others, num_samples, params.num_clips)
    facts = {"train": {"recordings": len(pieces), "hours": hours}, "held out clips": len(clips)}
    return reader, clips, facts


def build_losses(
    params: AttributeDict, sampling_rate: int, device: torch.device
) -> dict[str, ReconstructionLoss]:
    """One a phase; the fine term counts in the last alone."""
    losses = {}
    for phase in PHASES:
        weights = dict(params.loss_weights)
        if phase != "decoder":
            weights["fine"] = 0.0
        floor = 10 ** (params.floor_db / 20)
        loss = ReconstructionLoss(sampling_rate, weights, seed=params.train_seed, floor=floor)
        losses[phase] = loss.to(device)
    return losses


def prepare_weights(run: CodecRun) -> None:
    """First weights that let sound through, the average, and the discriminator."""
    model, params = run.model, run.params
    keep_paddings_on_host(model)
    if params.init_from is None:
        crops = run.crops("noise", FIRST_STREAM)
        audio = torch.stack([crops[n] for n in range(FIRST_CROPS)])
        normalize_first_weights(model, audio.to(run.device))
    if params.adversarial != "none":
        windows, channels = params.disc_windows, params.disc_channels
        run.discriminator = StftDiscriminator(windows, channels).to(run.device)
        run.optimizers["discriminator"] = make_optimizer(
            run.discriminator, params.lr_disc, betas=(0.5, 0.9)
        )
        same_on_all_ranks(run.discriminator)
    same_on_all_ranks(model)
    run.average = copy.deepcopy(model).requires_grad_(False).eval()
    for module in (*model.modules(), *run.average.modules()):
        if isinstance(module, nn.LSTM):
            module.flatten_parameters()  # cuDNN wants its weights in one piece
    size = sum(p.numel() for p in model.parameters())
    logging.info(f"{size} parameters of the codec, on {run.device}")


def make_optimizer(
    module: nn.Module, lr: float, betas: tuple[float, float] = (0.8, 0.99)
) -> torch.optim.Optimizer:
    return torch.optim.AdamW(module.parameters(), lr=lr, betas=betas, fused=True)


def codec_folder(params: AttributeDict) -> Path:
    """Where the finished codec is put."""
    return params.out_dir or params.exp_dir / "codec"
