"""The three phases of codec training, and the loop they share.

1. noise: an autoencoder whose latents pass unit Gaussian noise; a quantizer that learned from the
   first step on would chase an encoder that moves faster than its codebooks.
2. joint: k-means fills the codebooks, then encoder, decoder and codebooks learn together.
3. decoder: k-means once more on the averaged encoder, which is frozen from here on; the decoder
   learns the tokens as they will be.

Letters: B batch, N samples, D latent width, T frames, Q quantizers, K codebook size.
"""

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from codec_data import CropSampler
from codec_files import keep_paddings_on_host, normalize_first_weights
from codec_losses import LossWeights, ReconstructionLoss, rate_in_bits
from codec_quantizer import (
    ResidualTrainer,
    codebooks_of,
    commitment,
    fit_codebooks,
    straight_through,
)
from codec_report import PhaseReport
from torch import Tensor, nn
from tqdm import tqdm

from valle.utils.files import written_whole

WARMUP_STEPS = 200
LAST_LR_SHARE = 0.03  # the cosine ends at this share of the learning rate
NOISE_RAMP = 0.15  # share of the noise phase in which the noise grows to full
RATE_WEIGHT = 0.02  # a bit above the allowed rate
PHASE_COSTS = {"noise": 1.0, "joint": 1.2, "decoder": 0.9}  # time of a step, roughly
RESERVED_SHARE, RESERVED_SEC_MAX = 0.1, 90.0  # of the time limit, for k-means and scoring


@dataclass(frozen=True)
class TrainingOptions:
    """What the command line of train_codec.py sets; its help texts say what each means."""

    steps_noise: int
    steps_joint: int
    steps_decoder: int
    max_minutes: float
    batch_size: int
    segment_sec: float
    lr: float
    lr_decoder: float
    precision: str
    weight_average: float
    quantizer_drop: float
    rate_bits: float
    commitment_weight: float
    kmeans_latents: int
    log_every: int
    eval_every: int
    seed: int
    state_file: Path | None = None

    def steps(self) -> dict[str, int]:
        return {
            "noise": self.steps_noise,
            "joint": self.steps_joint,
            "decoder": self.steps_decoder,
        }


@dataclass
class Phase:
    """One stretch of training."""

    name: str
    steps: int
    crops: CropSampler
    batch_size: int
    optimizer: torch.optim.Optimizer
    lr: Callable[[float], float]  # share of the phase that is done -> learning rate
    terms: Callable[[Tensor, float], dict[str, Tensor]]  # crops (B, 1, N), share -> loss terms


class Progress:
    """Share of a phase that is done, by steps or by time, whichever is further.

    Schedules follow the share, so they complete even where the time limit cuts the steps.
    """

    def __init__(self, steps: int, seconds: float) -> None:
        self.steps = steps
        self.seconds = max(seconds, 1e-3)
        self.begin = time.monotonic()

    def share(self, step: int) -> float:
        return max(step / self.steps, (time.monotonic() - self.begin) / self.seconds)


def cosine(share: float) -> float:
    """Fall from 1 to LAST_LR_SHARE while share goes from 0 to 1."""
    low = LAST_LR_SHARE
    return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


def make_optimizer(parameters: Sequence[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=lr, betas=(0.8, 0.99), fused=True)


class CodecTrainer:
    """Takes a fresh EncodecModel through the phases; ``average`` is the model to keep.

    Args:
      model: EncodecModel on its device; changed in place.
      pieces: Training sound, each (N,) int16.
      clips: (C, 1, N) float32, for a look at held-out scores now and then.
      options: What to do.
      begin: time.monotonic() from which options.max_minutes counts.
    """

    def __init__(
        self,
        model: Any,
        pieces: Sequence[Tensor],
        clips: Tensor,
        options: TrainingOptions,
        begin: float,
    ) -> None:
        self.model, self.clips, self.options = model, clips, options
        self.device = next(model.parameters()).device
        self.generator = torch.Generator(self.device).manual_seed(options.seed)
        self.crops = self._sampler(pieces, 1)
        self.long_crops = self._sampler(pieces, 2)
        model.train()  # cuDNN computes no gradient of an LSTM in eval mode
        keep_paddings_on_host(model)
        normalize_first_weights(model, self.crops.draw(16))
        self.average = copy.deepcopy(model).requires_grad_(False).eval()
        for module in (*model.modules(), *self.average.modules()):
            if isinstance(module, nn.LSTM):
                module.flatten_parameters()  # cuDNN wants its weights in one piece
        self.quantizer = ResidualTrainer(codebooks_of(model), self.generator)
        self.limit_sec = options.max_minutes * 60
        reserved = min(RESERVED_SEC_MAX, RESERVED_SHARE * self.limit_sec)
        self.deadline = begin + self.limit_sec - reserved
        self.latent_variance = torch.ones((), device=self.device)
        self.total_steps = 0
        self.steps_done: dict[str, int] = {}
        self._make_losses()

    def _sampler(self, pieces: Sequence[Tensor], times: int) -> CropSampler:
        frames = round(self.options.segment_sec * self.model.config.frame_rate)
        length = max(1, frames) * self.model.config.hop_length * times
        return CropSampler(pieces, length, self.device, self.generator)

    def _make_losses(self) -> None:
        rate, seed = self.model.config.sampling_rate, self.options.seed
        self.loss = ReconstructionLoss(rate, LossWeights(), seed=seed).to(self.device)
        fine = LossWeights(fine=0.5)
        self.fine_loss = ReconstructionLoss(rate, fine, seed=seed).to(self.device)

    def run(self, after_codebooks: Callable[[Any], None]) -> None:
        """Train; ``after_codebooks`` is given the averaged model once its tokens are final."""
        options = self.options
        both = max(1, options.steps_noise + options.steps_joint)
        turn = options.steps_noise / both  # one cosine spans noise and joint
        optimizer = make_optimizer(list(self.model.parameters()), options.lr)
        self._noise_phase(optimizer, lambda share: options.lr * cosine(share * turn))
        self.latent_variance = self._fit_codebooks(self.model, restart=True).var()
        self._follow(1.0)
        self._train(
            "joint", optimizer, lambda share: options.lr * cosine(turn + share * (1 - turn))
        )
        after_codebooks(self.average)  # a first version, in case that the rest fails
        self._fit_codebooks(self.average, restart=False)
        self.model.load_state_dict(self.average.state_dict())
        after_codebooks(self.average)
        optimizer = make_optimizer(list(self.model.decoder.parameters()), options.lr_decoder)
        self._train("decoder", optimizer, lambda share: options.lr_decoder * cosine(share))

    def _noise_phase(self, optimizer: torch.optim.Optimizer, lr: Callable[[float], float]) -> None:
        """Train the autoencoder, or take it as an earlier run left it."""
        path = self.options.state_file
        if path is not None and path.is_file():
            self.model.load_state_dict(torch.load(path, map_location=self.device))
            tqdm.write(f"the noise phase is done: {path}")
            self.steps_done["noise"] = self.options.steps_noise
            return
        self._train("noise", optimizer, lr)
        if path is not None:
            with written_whole(path) as temporary:
                torch.save(self.model.state_dict(), temporary)

    def _train(
        self, name: str, optimizer: torch.optim.Optimizer, lr: Callable[[float], float]
    ) -> None:
        """Run one phase within its share of the time that is left."""
        planned, names = self.options.steps(), list(PHASE_COSTS)
        costs = {key: planned[key] * PHASE_COSTS[key] for key in names[names.index(name) :]}
        if planned[name] == 0:
            return
        seconds = (self.deadline - time.monotonic()) * costs[name] / sum(costs.values())
        long = name == "decoder"
        phase = Phase(
            name=name,
            steps=planned[name],
            crops=self.long_crops if long else self.crops,
            batch_size=-(-self.options.batch_size // 2) if long else self.options.batch_size,
            optimizer=optimizer,
            lr=lr,
            terms={"noise": self._noise, "joint": self._joint, "decoder": self._decode}[name],
        )
        self._loop(phase, Progress(phase.steps, seconds))

    def _loop(self, phase: Phase, progress: Progress) -> None:
        """Fetch, loss, backward, clip, step, average, report, until the phase is done."""
        parameters = [p for group in phase.optimizer.param_groups for p in group["params"]]
        report = PhaseReport(phase.name, phase.steps, progress.seconds, self.options.log_every)
        step, share = 0, 0.0
        while share < 1:
            rate = phase.lr(share) * min(1.0, (step + 1) / WARMUP_STEPS)
            phase.optimizer.param_groups[0]["lr"] = rate
            terms = phase.terms(phase.crops.draw(phase.batch_size), share)
            phase.optimizer.zero_grad(set_to_none=True)
            torch.stack(list(terms.values())).sum().backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            phase.optimizer.step()
            step, self.total_steps = step + 1, self.total_steps + 1
            share = progress.share(step)
            self._follow(self._averaging())
            report.after_step(step, terms, rate, last=share >= 1)
            if share >= 1 or step % self.options.eval_every == 0:
                report.held_out(step, self.average, self.clips)
            if phase.name == "joint" and report.just_listed:
                report.usage(step, self.quantizer.read_usage())
        report.close()
        self.steps_done[phase.name] = step

    def _averaging(self) -> float:
        """Weight of the newest weights in the average; larger while there are few."""
        return max(1 - self.options.weight_average, 9 / (10 + self.total_steps))

    @torch.no_grad()
    def _follow(self, weight: float) -> None:
        """Move the averaged weights and codebooks towards the newest."""
        pairs = [
            (list(self.average.parameters()), list(self.model.parameters())),
            (
                [book.embed for book in codebooks_of(self.average)],
                [book.embed for book in codebooks_of(self.model)],
            ),
        ]
        for kept, newest in pairs:
            torch._foreach_lerp_(kept, newest, weight)

    def _autocast(self) -> torch.autocast:
        """Half the bits for encoder and decoder, where asked for; codes and losses keep all."""
        use = self.options.precision == "bfloat16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=use)

    def _encode(self, audio: Tensor) -> Tensor:
        with self._autocast():
            return self.model.encoder(audio).float()  # (B, D, T)

    def _rebuild(self, latents: Tensor) -> Tensor:
        with self._autocast():
            return self.model.decoder(latents).float()[:, 0]  # (B, N)

    def _noise(self, audio: Tensor, share: float) -> dict[str, Tensor]:
        """Terms of the noise phase: what gets through the noise is a rate, and it is limited."""
        latents = self._encode(audio)
        noise = torch.randn(latents.shape, generator=self.generator, device=self.device)
        sound = self._rebuild(latents + min(1.0, share / NOISE_RAMP) * noise)
        excess = (rate_in_bits(latents) - self.options.rate_bits).relu()
        return {**self.loss(sound, audio[:, 0]), "rate": RATE_WEIGHT * excess}

    def _joint(self, audio: Tensor, _share: float) -> dict[str, Tensor]:
        """Terms of the joint phase; the codebooks move in passing."""
        latents = self._encode(audio)
        levels = self.quantizer.draw_levels(audio.shape[0], self.options.quantizer_drop)
        found = self.quantizer.quantize(latents.detach(), levels)
        self.quantizer.update(found)
        terms = self.loss(self._rebuild(straight_through(latents, found.latents)), audio[:, 0])
        weight = self.options.commitment_weight
        pull = commitment(latents, found.latents, self.latent_variance)
        return {**terms, "commit": weight * pull}

    def _decode(self, audio: Tensor, _share: float) -> dict[str, Tensor]:
        """Terms of the decoder phase: tokens are given."""
        levels = self.quantizer.draw_levels(audio.shape[0], self.options.quantizer_drop)
        with torch.no_grad():
            found = self.quantizer.quantize(self._encode(audio), levels)
        return self.fine_loss(self._rebuild(found.latents), audio[:, 0])

    @torch.no_grad()
    def _fit_codebooks(self, model: Any, restart: bool) -> Tensor:
        """Fill the codebooks of a model by k-means over what its encoder makes of the corpus.

        Returns:
          Those latents, (V, D).
        """
        begin, wanted, latents = time.monotonic(), self.options.kmeans_latents, []
        while wanted > 0:
            found = model.encoder(self.crops.draw(self.options.batch_size))
            latents.append(found.transpose(1, 2).flatten(0, 1))
            wanted -= latents[-1].shape[0]
        rows = torch.cat(latents)
        tqdm.write(f"latents: variance {rows.var():.3g}, largest {rows.abs().max():.3g}")
        usable = rows.isfinite().all(dim=1)
        if not usable.all():
            # one such row would spread over all centres
            tqdm.write(f"k-means leaves out {int((~usable).sum())} latents that are not finite")
        fit_codebooks(codebooks_of(model), rows[usable], self.generator, restart=restart)
        tqdm.write(f"k-means of the codebooks: {time.monotonic() - begin:.1f} s")
        return rows[usable]
