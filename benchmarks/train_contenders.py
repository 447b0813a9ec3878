"""What a training step is measured on: our model, one built as the VALL-E family does, MusicGen.

B rows of a batch, S prompt frames, T target frames, L = S + T frames in all, Q quantizers,
V codebook size, D model width, H heads, N layers.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from peers import musicgen_decoder
from torch import Tensor, nn

from valle.models import AudioLM, TrainStage
from valle.models.config import AudioLMConfig
from valle.modules.compiling import compile_layers
from valle.modules.embedding import CodeEmbedding, SinePositions
from valle.modules.masks import length_mask
from valle.modules.optim import make_optimizer
from valle.modules.scaled_adam import ScaledAdam

MAX_NORM = 1.0  # of AdamW's gradients, as the trainer clips them; ScaledAdam clips by itself


@dataclass(frozen=True)
class TrainBatch:
    """Random codes in the form of `AudioLM.forward`.

    Attributes:
      x: (B, S, Q) prompts; `x_lens` (B,) how many frames are real.
      y: (B, T, Q) targets; `y_lens` (B,).
    """

    x: Tensor
    x_lens: Tensor
    y: Tensor
    y_lens: Tensor

    @property
    def num_frames(self) -> int:
        """Real ones, of prompts and targets: padding is no work done."""
        return int(self.x_lens.sum() + self.y_lens.sum())

    @property
    def num_targets(self) -> int:
        return int(self.y_lens.sum())

    @classmethod
    def random(
        cls,
        config: AudioLMConfig,
        batch_size: int,
        num_frames: int,
        prompt_share: float,
        shortest: float,
        device: torch.device,
    ) -> "TrainBatch":
        """Rows whose lengths go evenly from `shortest` x `num_frames` up to `num_frames`.

        Raises:
          ValueError: a part would have no frame.
        """
        num_prompt = round(num_frames * prompt_share)
        if not 0 < num_prompt < num_frames or not 0 < shortest <= 1:
            raise ValueError(
                f"{num_frames} frames, a prompt share of {prompt_share} and a shortest row of "
                f"{shortest} leave a prompt or a target without a frame: take more frames, and "
                "shares above 0, the first below 1, the second at most 1"
            )
        shares = torch.linspace(1, shortest, batch_size, device=device)
        parts = []
        for num in (num_prompt, num_frames - num_prompt):
            lens = (shares * num).round().long().clamp(min=1)
            shape = (batch_size, num, config.num_quantizers)
            codes = torch.randint(config.num_audio_tokens, shape).to(device)
            parts.append((codes * length_mask(lens, num)[:, :, None], lens))
        return cls(*parts[0], *parts[1])


@dataclass(frozen=True)
class StepFlops:
    """Floating-point operations of one step, a multiplication and an addition being two.

    Counted is what the formulas need, not what an implementation makes of them: with m input
    positions, width D, N layers, forward:

    - `matrices`: 24 m D^2 N; a layer has 12 D^2 weights (queries, keys and values 3, output 1,
      feed-forward 4 + 4). The adaptive norms of our NAR half add 4 B D^2 (2 N + 1), and our last
      feed-forward block is needed for positions with logits alone, which saves 16 D^2 for others.
    - `attention`: 4 B L^2 D N for scores and weighted values; half of it where causal.
    - `heads`: 2 D x vocabulary, for each position that has logits.

    A step costs three times that, as the backward pass makes two products of each. Embeddings,
    norms, softmax and the optimizer are left out: they read much and compute little.
    """

    matrices: float
    attention: float
    heads: float

    @property
    def total(self) -> float:
        return self.matrices + self.attention + self.heads

    def __add__(self, other: "StepFlops") -> "StepFlops":
        return StepFlops(
            self.matrices + other.matrices,
            self.attention + other.attention,
            self.heads + other.heads,
        )


def stack_flops(
    batch: TrainBatch,
    width: int,
    num_layers: int,
    causal: bool,
    logits: int,
    adaptive: bool = False,
    num_read: int | None = None,
) -> StepFlops:
    """One stack of layers with its head, over B padded rows of L frames; see `StepFlops`.

    Args:
      batch: gives B, S and T.
      width: D.
      num_layers: N.
      causal: whether half of the attention is needed.
      logits: how many of them over the whole batch: positions x vocabulary.
      adaptive: whether norms take gain and shift from a condition.
      num_read: frames of a row that the last feed-forward block is needed for; None: all.
    """
    B, L = len(batch.x), batch.x.shape[1] + batch.y.shape[1]
    norms = 4 * B * width**2 * (2 * num_layers + 1) if adaptive else 0
    matrices = 24 * B * L * width**2 * num_layers + norms
    matrices -= 0 if num_read is None else 16 * B * (L - num_read) * width**2
    attention = 4 * B * L**2 * width * num_layers * (0.5 if causal else 1.0)
    return StepFlops(3.0 * matrices, 3.0 * attention, 3.0 * 2 * width * logits)


def two_halves_flops(
    config: AudioLMConfig, batch: TrainBatch, stage: TrainStage, ours: bool
) -> StepFlops:
    """The halves that learn in a stage; logits are for the targets alone, and one for EOS.

    Args:
      ours: with the adaptive norms of our NAR half, and last blocks for targets alone.
    """
    B, T, _ = batch.y.shape
    V, flops = config.num_audio_tokens, StepFlops(0, 0, 0)
    if stage != TrainStage.NAR:
        logits, read = B * (T + 1) * (V + 1), T + 1 if ours else None
        width, depth = config.d_model, config.num_layers
        flops += stack_flops(batch, width, depth, True, logits, num_read=read)
    if stage != TrainStage.AR:
        width, depth = config.nar_d_model, config.nar_num_layers
        read = T if ours else None
        flops += stack_flops(batch, width, depth, False, B * T * V, ours, read)
    return flops


@dataclass(frozen=True)
class TrainFacts:
    """What is known of a contender before it has taken a step.

    Attributes:
      name, dtype, optimizer: the row of the tables.
      num_parameters: that learn.
      num_frames: real ones of a step.
      flops: that a step needs.
    """

    name: str
    dtype: str
    optimizer: str
    num_parameters: int
    num_frames: int
    flops: StepFlops

    @classmethod
    def of(cls, fields: dict[str, Any]) -> "TrainFacts":
        """From what `asdict` made of them in another process."""
        return cls(**fields | {"flops": StepFlops(**fields["flops"])})


class TrainContender(ABC):
    """One way to train: a model in train mode, its optimizer, and a type to compute in.

    Args:
      model: weights in float32, on the device of the batch.
      learning: its parameters that the optimizer moves.
      batch: the same in every step.
      dtype: "float32" or "bfloat16" (autocast).
      optimizer: "ScaledAdam" or "AdamW".

    Attributes:
      name: in the tables.
    """

    name: str

    def __init__(
        self,
        model: nn.Module,
        learning: Iterable[Tensor],
        batch: TrainBatch,
        dtype: str,
        optimizer: str,
    ) -> None:
        self.model, self.batch, self.dtype = model.train(), batch, dtype
        self.optimizer_name = optimizer
        self.learning = list(learning)
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        for tensor in self.learning:
            tensor.requires_grad_(True)
        self.optimizer = self.make_optimizer()

    @property
    def num_parameters(self) -> int:
        """Those that learn."""
        return sum(tensor.numel() for tensor in self.learning)

    @abstractmethod
    def summed_loss(self) -> Tensor:
        """The loss of the batch in nats, summed; under autocast already."""

    @abstractmethod
    def flops(self) -> StepFlops:
        """What one step needs."""

    def facts(self) -> TrainFacts:
        return TrainFacts(
            self.name,
            self.dtype,
            self.optimizer_name,
            self.num_parameters,
            self.batch.num_frames,
            self.flops(),
        )

    def make_optimizer(self) -> Any:
        return make_optimizer(self.optimizer_name, self.learning)

    def loss(self) -> Tensor:
        """Forward; the mean over target frames, as the trainer scales its sum."""
        on, device = self.dtype != "float32", self.batch.x.device.type
        with torch.autocast(device, torch.bfloat16, enabled=on):
            total = self.summed_loss()
        return total / self.batch.num_targets

    def update(self) -> None:
        """Clip as the trainer does, move the weights, forget the gradients."""
        grads = [tensor.grad for tensor in self.learning if tensor.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads)  # the trainer reports it whatever clips
        if self.optimizer_name == "AdamW":
            torch.nn.utils.clip_grads_with_norm_(self.learning, MAX_NORM, norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def step(self) -> None:
        self.loss().backward()
        self.update()


class OurTraining(TrainContender):
    """`AudioLM` as the recipe trains it."""

    name = "ours"

    def __init__(
        self, config: AudioLMConfig, batch: TrainBatch, stage: TrainStage, dtype: str, optim: str
    ) -> None:
        model = AudioLM(**asdict(config)).to(batch.x.device)
        super().__init__(model, model.half_parameters(stage), batch, dtype, optim)
        self.config, self.stage = config, stage

    def summed_loss(self) -> Tensor:
        b = self.batch
        stage = int(self.stage)
        return self.model(b.x, b.x_lens, b.y, b.y_lens, reduction="sum", train_stage=stage).loss

    def flops(self) -> StepFlops:
        return two_halves_flops(self.config, self.batch, self.stage, ours=True)


class OurCompiledTraining(OurTraining):
    """The same with `--compile true`, its layers compiled for lengths that may change."""

    name = "ours, compiled"

    def __init__(
        self, config: AudioLMConfig, batch: TrainBatch, stage: TrainStage, dtype: str, optim: str
    ) -> None:
        super().__init__(config, batch, stage, dtype, optim)
        assert isinstance(self.model, AudioLM)
        halves = (self.model.ar, self.model.nar)
        layers = [layer for half in halves for layer in half.decoder.layers]
        if not compile_layers(layers, batch.x.device, getattr(torch, dtype)):
            raise ValueError("torch.compile does not work here: leave it out (--skip compiled)")


class PlainTraining(TrainContender):
    """The reference: `PlainModel`, and an optimizer that goes through the tensors one by one."""

    name = "plain PyTorch"

    def __init__(
        self, config: AudioLMConfig, batch: TrainBatch, stage: TrainStage, dtype: str, optim: str
    ) -> None:
        model = PlainModel(config, stage).to(batch.x.device)
        super().__init__(model, model.parameters(), batch, dtype, optim)
        self.config, self.stage = config, stage

    def make_optimizer(self) -> Any:
        if self.optimizer_name == "AdamW":
            return torch.optim.AdamW(self.learning, lr=3e-4, foreach=False, fused=False)
        return OneByOne(self.learning)

    def summed_loss(self) -> Tensor:
        return self.model(self.batch)

    def flops(self) -> StepFlops:
        return two_halves_flops(self.config, self.batch, self.stage, ours=False)


class OneByOne:
    """A ScaledAdam for each tensor, stepping in turn: the same rule without stacking."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._optimizers = [ScaledAdam([tensor]) for tensor in tensors]

    def step(self) -> None:
        for optimizer in self._optimizers:
            optimizer.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=set_to_none)


class PlainModel(nn.Module):
    """Both halves in the way of the VALL-E family, of our width, depth and heads.

    Prompts and targets are joined with their padding, and a float mask (B x H, L, L) says who sees
    whom; so attention, which has dropout on its weights, takes no fused kernel on a CPU. In the AR
    half each padding frame is a target, EOS, and counts in the loss. In the NAR half one stage is
    drawn for the batch; padding is computed there too, and dropped at last. It lacks what would
    make it slower: accuracies, and the adaptive norms of the NAR half.
    """

    def __init__(self, config: AudioLMConfig, stage: TrainStage) -> None:
        super().__init__()
        V, Q = config.num_audio_tokens, config.num_quantizers
        self.ar = self.nar = None
        if stage != TrainStage.NAR:
            sizes = (config.d_model, config.nhead, config.num_layers)
            self.ar = PlainHalf(*sizes, Q, V, [V + 1], config.dropout)
        if stage != TrainStage.AR:
            sizes = (config.nar_d_model, config.nar_nhead, config.nar_num_layers)
            self.nar = PlainHalf(*sizes, Q, V, [V] * (Q - 1), config.dropout)

    def forward(self, batch: TrainBatch) -> Tensor:
        """The mean over the halves of their summed losses, as ours has it."""
        losses = []
        if self.ar is not None:
            losses.append(plain_ar_loss(self.ar, batch))
        if self.nar is not None:
            losses.append(plain_nar_loss(self.nar, batch))
        return torch.stack(losses).mean()


class PlainHalf(nn.Module):
    """Tables, torch's own layers, heads of the given vocabularies; vector 0 of `extra` is BOS."""

    def __init__(
        self,
        d_model: int,
        nhead: int,
        num_layers: int,
        num_quantizers: int,
        codebook_size: int,
        vocabularies: list[int],
        dropout: float,
    ) -> None:
        super().__init__()
        self.nhead, self.eos_id = nhead, codebook_size
        self.embedding = CodeEmbedding(num_quantizers, codebook_size, d_model)
        self.extra = nn.Embedding(len(vocabularies), d_model)
        self.positions = SinePositions(d_model, learned_scale=True)
        self.dropout = nn.Dropout(dropout)
        layer = nn.TransformerEncoderLayer(
            d_model, nhead, 4 * d_model, dropout, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(
            layer, num_layers, nn.LayerNorm(d_model), enable_nested_tensor=False
        )
        self.heads = nn.ModuleList(nn.Linear(d_model, size) for size in vocabularies)

    def hidden(self, x: Tensor, visible: Tensor) -> Tensor:
        """(B, L, D) vectors to (B, L, D), where (B, L, L) bool `visible` says who sees whom."""
        x = self.dropout(x + self.positions(torch.arange(x.shape[1], device=x.device)))
        hidden = visible.repeat_interleave(self.nhead, dim=0).logical_not()
        mask = torch.zeros(hidden.shape, device=x.device).masked_fill_(hidden, -torch.inf)
        return self.layers(x, mask=mask)


def plain_ar_loss(half: PlainHalf, batch: TrainBatch) -> Tensor:
    """Summed over B x (T + 1) positions; those past the end of a row expect EOS."""
    T = batch.y.shape[1]
    targets = F.pad(batch.y[:, :, 0], (0, 1))
    targets = targets.where(length_mask(batch.y_lens, T + 1), half.eos_id)
    logits = plain_ar_logits(half, batch).flatten(0, 1).float()
    return F.cross_entropy(logits, targets.flatten(), reduction="sum")


def plain_ar_logits(half: PlainHalf, batch: TrainBatch) -> Tensor:
    """(B, T + 1, V + 1); [:, t] predicts target frame t from those before it."""
    (B, T, _), S = batch.y.shape, batch.x.shape[1]
    bos = half.extra.weight[:1].expand(B, 1, -1)
    codes = half.embedding(batch.y[:, :, :1])
    x = torch.cat([half.embedding(batch.x), bos, codes], dim=1)
    causal = torch.ones(S + T + 1, S + T + 1, dtype=torch.bool, device=x.device).tril()
    causal[:S, :S] = True  # prompt frames see each other
    real = torch.cat([length_mask(batch.x_lens, S), length_mask(batch.y_lens + 1, T + 1)], dim=1)
    return half.heads[0](half.hidden(x, causal & real[:, None])[:, S:])


def plain_nar_loss(half: PlainHalf, batch: TrainBatch) -> Tensor:
    """Summed over real target frames, of one quantizer drawn for the whole batch."""
    B, T, Q = batch.y.shape
    S = batch.x.shape[1]
    stage = int(torch.randint(1, Q, ()))
    x = torch.cat([half.embedding(batch.x), half.embedding(batch.y[:, :, :stage])], dim=1)
    real = torch.cat([length_mask(batch.x_lens, S), length_mask(batch.y_lens, T)], dim=1)
    visible = real[:, None].expand(B, S + T, S + T)
    hidden = half.hidden(x + half.extra.weight[stage - 1], visible)
    logits = half.heads[stage - 1](hidden[:, S:])
    targets = batch.y[:, :, stage].masked_fill(~real[:, S:], -100)
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="sum")


class MusicGenTraining(TrainContender):
    """MusicGen's decoder in transformers: one model of our width and depth for all quantizers.

    It is given our optimizer, no text to attend to, and no delay between codebooks. Its loss is
    that of all codebooks over the target frames, each given all frames before. It has no padding
    mask, which would cost it time: in short rows it sees padding behind the prompt.
    """

    name = "MusicGen"

    def __init__(self, config: AudioLMConfig, batch: TrainBatch, dtype: str, optim: str) -> None:
        musicgen_decoder.cache_clear()  # its weights are those of one contender alone
        model = musicgen_decoder(config, "float32", batch.x.device)
        musicgen_decoder.cache_clear()
        super().__init__(model, model.parameters(), batch, dtype, optim)
        self.config = config

    def summed_loss(self) -> Tensor:
        b, S = self.batch, self.batch.x.shape[1]
        B, T, Q = b.y.shape
        codes = torch.cat([b.x, b.y], dim=1).transpose(1, 2).flatten(0, 1)  # (B Q, L)
        logits = self.model(input_ids=codes, use_cache=False).logits  # (B Q, L, V)
        real = length_mask(b.y_lens, T)[:, None].expand(B, Q, T)
        targets = b.y.transpose(1, 2).masked_fill(~real, -100).flatten()
        scored = logits[:, S - 1 : -1].flatten(0, 1).float()
        return F.cross_entropy(scored, targets, reduction="sum") / Q

    def flops(self) -> StepFlops:
        c, L = self.config, self.batch.x.shape[1] + self.batch.y.shape[1]
        logits = len(self.batch.x) * L * c.num_quantizers * c.num_audio_tokens
        return stack_flops(self.batch, c.d_model, c.num_layers, True, logits)
