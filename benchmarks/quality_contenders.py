"""Who learns: AudioLM in its variants, and MusicGen's decoder.

B rows of a batch, S prompt frames, T target frames, Q quantizers, V codebook size.
"""

from abc import abstractmethod
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from quality_batches import CodeBatch
from quality_musicgen import (
    Shape,
    continue_prompts,
    init_from_codebooks,
    make_decoder,
    musicgen_costs,
    nearest_shape,
    summed_loss,
)
from quality_variants import VARIANTS, Variant
from torch import Tensor, nn
from train_contenders import StepFlops, TrainBatch, TrainContender, stack_flops, two_halves_flops

from valle.evaluation import FrameCosts, frame_costs
from valle.models import AudioLM, AudioLMConfig, TrainStage
from valle.modules.masks import close_gap
from valle.modules.optim import DEFAULT_LR, make_optimizer
from valle.modules.sampling import Sampling
from valle.modules.scheduler import make_scheduler
from valle.utils.rng import seed_all

AUDIOLM, MUSICGEN = "audiolm", "musicgen"
SCHEDULERS = {"AdamW": "Cosine", "ScaledAdam": "Eden"}  # as the trainer pairs them


@dataclass(frozen=True)
class Setup:
    """What all contenders of a run share.

    Attributes:
      config: AudioLM's.
      codebooks: (Q, V, D_codec) of the codec.
      seed: of first weights and of whatever is drawn while learning.
      base_lr: AdamW's for each kind: "audiolm", "musicgen".
      prompt_ratio: share of a cut that is its prompt.
      warmup_steps: of the learning rate.
      dtype: "float32" or "bfloat16" (autocast).
      device: where it all happens.
    """

    config: AudioLMConfig
    codebooks: Tensor
    seed: int
    base_lr: dict[str, float]
    prompt_ratio: float
    warmup_steps: int
    dtype: str
    device: torch.device

    def with_lr(self, kind: str, lr: float) -> "Setup":
        return replace(self, base_lr=self.base_lr | {kind: lr})


class Parameters(NamedTuple):
    """How many a model has.

    Attributes:
      body: all but the next two: what computes.
      tables: of the codes' embeddings.
      heads: from the model's width to the codes.
    """

    body: int
    tables: int
    heads: int

    @property
    def total(self) -> int:
        return sum(self)

    @classmethod
    def of(cls, model: nn.Module) -> "Parameters":
        """A parameter that serves as table and head counts once, as a table."""
        counts = {"body": 0, "tables": 0, "heads": 0}
        for name, parameter in model.named_parameters():
            parts = set(name.split("."))
            is_head = parts & {"head", "heads", "lm_heads"}
            is_table = parts & {"tables", "embed_tokens"}
            kind = "tables" if is_table else "heads" if is_head else "body"
            counts[kind] += parameter.numel()
        return cls(**counts)


class Learner(TrainContender):
    """A contender that learns from one batch after the other.

    Args:
      setup: of the run.
      model: with its first weights.
      batch: any; the first one.
      optimizer: "AdamW" or "ScaledAdam".
      lr: its base rate.

    Attributes:
      parameters: how many it has.
      has_learned: whether it has taken a step.
    """

    def __init__(
        self, setup: Setup, model: nn.Module, batch: CodeBatch, optimizer: str, lr: float
    ) -> None:
        self.setup, self.lr = setup, lr
        super().__init__(model, list(model.parameters()), batch, setup.dtype, optimizer)
        self.parameters = Parameters.of(model)
        self.has_learned = False

    def make_optimizer(self) -> Any:
        return make_optimizer(self.optimizer_name, self.learning, base_lr=self.lr)

    def begin(self, num_steps: int) -> None:
        """Make ready for so many steps."""
        name = SCHEDULERS[self.optimizer_name]
        warmup = self.setup.warmup_steps
        self.scheduler = make_scheduler(name, self.optimizer, warmup, num_steps)
        seed_all(self.setup.seed, self.generators())

    def learn(self, batch: CodeBatch) -> Tensor:
        """One step, as the trainer takes it; the loss before it."""
        self.batch = batch
        self.scheduler.step_epoch(batch.epoch - 1)
        loss = self.loss()
        loss.backward()
        self.update()
        self.scheduler.step_batch()
        self.has_learned = True
        return loss.detach()

    def flops(self) -> StepFlops:
        return self.cost(self.batch)

    def generators(self) -> dict[str, torch.Generator]:
        """Its own, beside the global ones."""
        return {}

    @property
    @abstractmethod
    def about(self) -> str:
        """A few words for the table."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What it is, in plain types, beside what all share."""

    @abstractmethod
    def checkpoint(self) -> dict[str, Any]:
        """What rebuilds the model, beside its weights."""

    @abstractmethod
    def cost(self, batch: TrainBatch) -> StepFlops:
        """What a step on a batch of this shape needs."""

    @abstractmethod
    def frame_costs(self, batch: TrainBatch) -> FrameCosts:
        """What the true targets cost; the model in eval mode."""

    @abstractmethod
    def continued(
        self, prompts: Tensor, num_frames: int, first: Sampling, others: Sampling, seed: int
    ) -> Tensor:
        """(B, S, Q) prompts to (B, S + num_frames, Q)."""


class AudioLMLearner(Learner):
    """AudioLM as the recipe trains it, but for what a variant changes."""

    name = "AudioLM"

    def __init__(self, setup: Setup, variant: Variant, batch: CodeBatch) -> None:
        self.variant, self.config = variant, variant.config_from(setup.config)
        torch.manual_seed(setup.seed)
        self.audio_lm = AudioLM(**asdict(self.config))
        if variant.init_from_codec:
            self.audio_lm.init_embeddings(setup.codebooks)
        if variant.prepare is not None:
            variant.prepare(self.audio_lm)
        self.audio_lm.to(setup.device)
        super().__init__(setup, self.audio_lm, batch, variant.optimizer, _lr(setup, variant))

    def summed_loss(self) -> Tensor:
        b = self.batch
        assert isinstance(b, CodeBatch)
        if self.variant.loss is not None:
            return self.variant.loss(self.audio_lm, b)
        batch = (b.x, b.x_lens, b.y, b.y_lens)
        return self.audio_lm(*batch, y_ends=b.y_ends, **self.variant.forward).loss

    def cost(self, batch: TrainBatch) -> StepFlops:
        if self.variant.cost is not None:
            return self.variant.cost(self.config, batch)
        return two_halves_flops(self.config, batch, TrainStage.BOTH, ours=True)

    def frame_costs(self, batch: TrainBatch) -> FrameCosts:
        return frame_costs(self.audio_lm, batch.x, batch.x_lens, batch.y, batch.y_lens)

    def generators(self) -> dict[str, torch.Generator]:
        return {"nar_stage": self.audio_lm.stage_generator}

    @property
    def about(self) -> str:
        return self.variant.about

    def settings(self) -> dict[str, Any]:
        return self.variant.settings() | {"config": asdict(self.config)}

    def checkpoint(self) -> dict[str, Any]:
        return {"config": asdict(self.config)}

    def continued(
        self, prompts: Tensor, num_frames: int, first: Sampling, others: Sampling, seed: int
    ) -> Tensor:
        codes = self.audio_lm.inference(
            prompts,
            max_new_tokens=num_frames,
            ignore_eos=True,
            temperature=first.temperature,
            top_k=first.top_k,
            nar_temperature=others.temperature,
            generator=torch.Generator().manual_seed(seed),
        )
        assert isinstance(codes, Tensor)
        return codes


@dataclass(frozen=True)
class MusicGenKind:
    """How MusicGen's decoder is trained.

    Attributes:
      about: a sentence for the table.
      scores_prompts: its loss is over the whole sequence, as MusicGen's own; else targets alone.
      init_from_codec: start tables and heads from the codec's codebooks, as AudioLM may.
    """

    about: str
    scores_prompts: bool = False
    init_from_codec: bool = False


MUSICGEN_KINDS = {
    MUSICGEN: MusicGenKind("MusicGen's decoder; loss over the targets"),
    "musicgen-whole": MusicGenKind("its loss over prompts and targets", scores_prompts=True),
    "musicgen-codec": MusicGenKind("tables and heads from the codebooks", init_from_codec=True),
    "musicgen-both": MusicGenKind("both", scores_prompts=True, init_from_codec=True),
}


class MusicGenLearner(Learner):
    """MusicGen's decoder with its delays, without text or any part of its cross-attention.

    Its width and depth are those whose parameters, tables and heads left out, are nearest to
    AudioLM's. Of its operations the needed ones are counted, as of ours: no logits and no last
    feed-forward block where nothing is scored.
    """

    name = "MusicGen"

    def __init__(self, setup: Setup, kind: MusicGenKind, shape: Shape, batch: CodeBatch) -> None:
        self.kind, self.shape = kind, shape
        torch.manual_seed(setup.seed)
        self.decoder = make_decoder(setup.config, shape, setup.device)
        if kind.init_from_codec:
            init_from_codebooks(self.decoder, setup.codebooks)
        lr = setup.base_lr[MUSICGEN]
        super().__init__(setup, self.decoder, batch, "AdamW", lr)

    def summed_loss(self) -> Tensor:
        b = self.batch
        codes, lens = close_gap(b.x, b.x_lens, b.y, b.y_lens), b.x_lens + b.y_lens
        if not self.kind.scores_prompts:
            return summed_loss(self.decoder, codes, lens, b.x_lens)
        loss = summed_loss(self.decoder, codes, lens, torch.zeros_like(lens))
        return loss * (b.num_targets / b.num_frames)  # so that it is divided by all frames

    def cost(self, batch: TrainBatch) -> StepFlops:
        return musicgen_cost(self.setup.config, self.shape, batch, self.kind.scores_prompts)

    def frame_costs(self, batch: TrainBatch) -> FrameCosts:
        return musicgen_costs(self.decoder, batch.x, batch.x_lens, batch.y, batch.y_lens)

    @property
    def about(self) -> str:
        width, depth = self.shape.width, self.shape.num_layers
        return f"{self.kind.about}; {depth} layers, {width} wide"

    def settings(self) -> dict[str, Any]:
        return asdict(self.kind) | asdict(self.shape)

    def checkpoint(self) -> dict[str, Any]:
        return {"musicgen": asdict(self.shape) | {"nhead": self.setup.config.nhead}}

    def continued(
        self, prompts: Tensor, num_frames: int, first: Sampling, others: Sampling, seed: int
    ) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return continue_prompts(self.decoder, prompts, num_frames, first, others, generator)


def musicgen_cost(
    config: AudioLMConfig, shape: Shape, batch: TrainBatch, scores_prompts: bool
) -> StepFlops:
    """Of a step: Q - 1 columns more than frames, and a head for each quantizer."""
    (B, T, _), extra = batch.y.shape, config.num_quantizers - 1
    columns = replace(batch, y=F.pad(batch.y, (0, 0, 0, extra)))
    scored = T + batch.x.shape[1] if scores_prompts else T
    logits = B * scored * config.num_quantizers * config.num_audio_tokens
    width, depth, read = shape.width, shape.num_layers, scored + extra
    return stack_flops(columns, width, depth, True, logits, num_read=read)


def musicgen_shape(config: AudioLMConfig) -> Shape:
    """As many parameters as AudioLM has, tables and heads of both left out."""
    body = Parameters.of(AudioLM(**asdict(config))).body
    both = config.num_layers + config.nar_num_layers
    return nearest_shape(body, config.nhead, range(max(both - 1, 1), both + 2))


def make_learner(name: str, setup: Setup, shape: Shape, batch: CodeBatch) -> Learner:
    """The contender or variant of a name."""
    if name in MUSICGEN_KINDS:
        return MusicGenLearner(setup, MUSICGEN_KINDS[name], shape, batch)
    return AudioLMLearner(setup, VARIANTS["base" if name == AUDIOLM else name], batch)


def kind_of(name: str) -> str:
    """Whose learning rate a contender is given."""
    return MUSICGEN if name in MUSICGEN_KINDS else AUDIOLM


def prompt_ratio_of(name: str, setup: Setup) -> float:
    """In training."""
    variant = VARIANTS.get(name)
    if variant is None or variant.prompt_ratio is None:
        return setup.prompt_ratio
    return variant.prompt_ratio


def _lr(setup: Setup, variant: Variant) -> float:
    own = setup.base_lr[AUDIOLM] if variant.optimizer == "AdamW" else DEFAULT_LR[variant.optimizer]
    base = own if variant.base_lr is None else variant.base_lr
    return base * variant.lr_factor
