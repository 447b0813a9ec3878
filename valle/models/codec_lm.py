"""What AudioLM and VALL-E share: two halves over the codes of a codec, and their losses.

Two transformers share the work as in VALL-E (arXiv 2301.02111): `ar` predicts quantizer 1 frame by
frame, `nar` predicts quantizers 2 to Q, a pass a quantizer. The models differ in what the halves
read before the codes that they predict.

B batch, T target frames, Q quantizers, V codebook size.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from enum import IntEnum
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self

from valle.models.ar import ARDecoder
from valle.models.condition import Condition
from valle.models.config import CodecLMConfig
from valle.models.generation import UNKNOWN
from valle.models.nar import NARDecoder
from valle.models.reading import Reader
from valle.modules.losses import FrameScores, Summed, frame_scores, masked_cross_entropy
from valle.modules.masks import length_mask
from valle.utils.checkpoint import read_checkpoint


class TrainStage(IntEnum):
    """Which half learns."""

    BOTH = 0
    AR = 1
    NAR = 2


class AudioLMOutput(NamedTuple):
    """What a model's `forward` returns.

    Attributes:
      predictions: (B, T, Q) the likeliest code of each target frame given the true ones it may
        see; `UNKNOWN` where none was predicted (padding, a half at rest, stages not drawn).
      loss: the scalar to minimise.
      metrics: `Summed` per name: `loss_q1`.. and `accuracy_q1`.. per quantizer (counted from 1),
        `ArTop10Accuracy`, `NarTop10Accuracy`.
    """

    predictions: Tensor
    loss: Tensor
    metrics: dict[str, Summed]


class HalfScore(NamedTuple):
    """Loss (with gradient), predictions (B, T, its quantizers) and metrics of one half."""

    loss: Summed
    predictions: Tensor
    metrics: dict[str, Summed]


class CodecLM(nn.Module):
    """The two halves, how they are scored, and how they come out of a file.

    The arguments are those of `config_class`, which says what they mean and checks them.
    """

    config_class: ClassVar[type[CodecLMConfig]]

    def __init_subclass__(cls) -> None:
        cls.__signature__ = inspect.signature(cls.config_class)  # type: ignore[attr-defined]

    def __init__(self, *args: Any, **settings: Any):
        super().__init__()
        config = self.config_class(*args, **settings)
        self.config: Any = config
        self.stage_generator = torch.Generator().manual_seed(0)
        """Draws what training draws for each row: NAR stages, lengths of prefixes. Its state
        belongs into checkpoints."""
        shared: dict[str, Any] = {
            "num_quantizers": config.num_quantizers,
            "codebook_size": config.num_audio_tokens,
            "norm_first": config.norm_first,
            "add_prenet": config.add_prenet,
            "dropout": config.dropout,
            "positions": config.positions,
        }
        self.ar = ARDecoder(
            d_model=config.d_model,
            nhead=config.nhead,
            num_layers=config.num_layers,
            prepend_bos=config.prepend_bos,
            reader=self.make_reader(config.d_model),
            **shared,
            **self.ar_settings(),
        )
        self.nar = NARDecoder(
            d_model=config.nar_d_model,
            nhead=config.nar_nhead,
            num_layers=config.nar_num_layers,
            reader=self.make_reader(config.nar_d_model),
            **shared,
            **self.nar_settings(),
        )

    def make_reader(self, d_model: int) -> Reader | None:
        """What a half of this width reads a condition by; None where there is none."""
        return None

    def ar_settings(self) -> dict[str, Any]:
        """Arguments of the AR half that the other kind of model has no use for."""
        return {}

    def nar_settings(self) -> dict[str, Any]:
        """The same of the NAR half."""
        return {}

    @classmethod
    def from_checkpoint(
        cls, path: str | Path, device: str | torch.device = "cpu", averaged: bool = False
    ) -> Self:
        """Rebuild the model that a training checkpoint holds, in eval mode.

        Args:
          path: a file of the trainer, or of average_checkpoints.py.
          device: where the model goes.
          averaged: take the average of the weights that the run kept (`--average-period`).

        Raises:
          ValueError: the file is no checkpoint of such a model, is damaged, or holds no average.
        """
        checkpoint = read_checkpoint(path)
        if "config" not in checkpoint:
            raise ValueError(f"{path} holds no model config; was it written by this trainer?")
        section = "model_avg" if averaged else "model"
        if section not in checkpoint:
            raise ValueError(
                f"{path} holds no averaged weights: only a run with --average-period above 0 keeps "
                "them; take the weights as they are (averaged=False)"
            )
        kind = cls.kind_of(checkpoint["config"])
        kind = cls if issubclass(cls, kind) else kind  # a class that somebody derived from it
        if not issubclass(kind, cls):
            raise ValueError(
                f"{path} holds the weights of {kind.__name__}, expected {cls.__name__}: load it by "
                f"{kind.__name__}.from_checkpoint, or valle.models.load_model, which takes either"
            )
        model = kind.from_config(checkpoint["config"])
        model.load_state_dict(checkpoint[section])  # the average is float64, parameters stay theirs
        return model.to(device).eval()

    @staticmethod
    def kind_of(config: Mapping[str, Any]) -> "type[CodecLM]":
        """The class of model that a checkpoint's `config` is of, by the fields that it has.

        Older files have fewer fields than the class has now.
        """
        kinds = CodecLM.__subclasses__()
        known = {kind: {field.name for field in fields(kind.config_class)} for kind in kinds}
        for kind, own in known.items():
            if config.keys() <= own and ("condition" in config) == ("condition" in own):
                return kind
        unknown = sorted(config.keys() - set.union(*known.values()))
        raise ValueError(
            f"no model has the settings {', '.join(unknown or config)}: was the file written by a "
            "newer valle, or by another program?"
        )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """A model, with random weights, by the `config` of a checkpoint."""
        older = {"positions": "sine"}  # what files that do not say so were trained with
        return cls(**(older | dict(config)))

    @property
    def eos_id(self) -> int:
        """The id after the codes: the end of a recording. Only the AR half may emit it."""
        return self.config.num_audio_tokens

    def half_parameters(self, stage: TrainStage) -> Iterator[nn.Parameter]:
        """The parameters that learn in a stage."""
        if stage != TrainStage.NAR:
            yield from self.ar.parameters()
        if stage != TrainStage.AR:
            yield from self.nar.parameters()

    def init_embeddings(self, codebooks: Tensor) -> None:
        """Start all embeddings and output heads from the vectors behind the codes.

        The model then knows from the first step which codes are alike, which it would otherwise
        have to learn from how often they meet.

        Args:
          codebooks: (Q, V, D_codec) vectors of the codec.

        Raises:
          ValueError: another number of quantizers or codes.
        """
        expected = (self.config.num_quantizers, self.config.num_audio_tokens)
        if codebooks.dim() != 3 or codebooks.shape[:2] != expected:
            raise ValueError(
                f"codebooks must be {expected} vectors (num_quantizers, num_audio_tokens), "
                f"got {tuple(codebooks.shape)}"
            )
        self.ar.init_embeddings(codebooks)
        self.nar.init_embeddings(codebooks)

    # Training

    def score_halves(
        self,
        stage: TrainStage,
        reduction: str,
        y: Tensor,
        score_ar: Callable[[], HalfScore],
        score_nar: Callable[[], HalfScore],
    ) -> AudioLMOutput:
        """What `forward` returns, of the halves that a stage trains.

        Raises:
          ValueError: `reduction` is neither "sum" nor "mean".
        """
        if reduction not in ("sum", "mean"):
            raise ValueError(f'reduction must be "sum" or "mean", got "{reduction}"')
        predictions = [torch.full_like(y[:, :, :1], UNKNOWN), torch.full_like(y[:, :, 1:], UNKNOWN)]
        scores = []
        if stage != TrainStage.NAR:
            scores.append(score_ar())
            predictions[0] = scores[-1].predictions
        if stage != TrainStage.AR:
            scores.append(score_nar())
            predictions[1] = scores[-1].predictions
        losses = [s.loss.total if reduction == "sum" else s.loss.mean() for s in scores]
        metrics = {name: value for s in scores for name, value in s.metrics.items()}
        return AudioLMOutput(torch.cat(predictions, dim=2), torch.stack(losses).mean(), metrics)

    def score_ar(
        self,
        condition: Condition,
        y: Tensor,
        y_lens: Tensor,
        y_ends: Tensor | None,
        prompts: tuple[Tensor, Tensor] | None = None,
    ) -> HalfScore:
        """Score quantizer 1, and EOS where a target ends its recording.

        Args:
          condition: what the half reads before the targets.
          y: (B, T, Q) target codes; `y_lens` (B,).
          y_ends: (B,) bool; None: no target ends its recording.
          prompts: (B, S) codes of quantizer 1 of what the condition is made of, with lengths (B,),
            where the half learns to predict these, too.
        """
        T, codes, own = y.shape[1], y[:, :, 0], None
        if prompts is None:
            logits = self.ar(condition, codes, y_lens)
        else:
            logits, own = self.ar.forward_whole(condition, codes, y_lens)
        logits = logits.float()
        frames = length_mask(y_lens, T + 1)
        targets = F.pad(codes, (0, 1)).where(frames, self.eos_id)
        num_targets = y_lens if y_ends is None else y_lens + y_ends.to(y_lens)
        scores = frame_scores(logits, targets, length_mask(num_targets, T + 1))
        predictions = logits.detach().argmax(-1).where(frames, UNKNOWN)[:, :T, None]
        metrics = _quantizer_metrics(1, scores, torch.ones_like(y_lens, dtype=torch.bool))
        metrics["ArTop10Accuracy"] = scores.top10_accuracy.sum()
        loss = scores.loss
        if prompts is not None and own is not None:
            loss = _with_prompts(loss, own, prompts[0][:, 1:], prompts[1] - 1)
        return HalfScore(loss.sum(), predictions, metrics)

    def score_nar(
        self, condition: Condition, y: Tensor, y_lens: Tensor, all_stages: bool
    ) -> HalfScore:
        """Score quantizers 2 to Q: one drawn for each row in training, unless `all_stages`; else
        all.

        Args:
          condition: what the half reads beside the targets.
          y: (B, T, Q) target codes; `y_lens` (B,).
          all_stages: in training, too.
        """
        B, T, _ = y.shape
        frames = length_mask(y_lens, T)
        predictions = torch.full_like(y, UNKNOWN)
        rows = torch.arange(B, device=y.device)
        if self.training and not all_stages:
            passes = [self.nar.draw_stages(B, self.stage_generator)]
        else:
            passes = [torch.full((B,), stage) for stage in self.nar.stages]
        metrics: dict[str, Summed] = {}
        totals, top10 = [], []
        for stages in passes:
            logits = self.nar(condition, y, y_lens, stages).float()
            quantizers = stages.to(y.device, non_blocking=True)
            scores = frame_scores(logits, y[rows, :, quantizers], frames)
            predictions[rows, :, quantizers] = logits.detach().argmax(-1).where(frames, UNKNOWN)
            for q in stages.unique().tolist():
                metrics |= _quantizer_metrics(q + 1, scores, quantizers == q)
            totals.append(scores.loss.total.sum())
            top10.append(scores.top10_accuracy.sum())
        metrics["NarTop10Accuracy"] = Summed(
            torch.stack([s.total for s in top10]).sum(),
            torch.stack([s.num_frames for s in top10]).sum(),
        )
        # the mean over passes, so that the loss is one per frame, as in training
        loss = Summed(torch.stack(totals).mean(), frames.sum())
        return HalfScore(loss, predictions[:, :, 1:], metrics)


def _with_prompts(targets: Summed, logits: Tensor, codes: Tensor, lens: Tensor) -> Summed:
    """A row's mean over targets and its prompt's own codes (B, S - 1), as a sum over targets."""
    prompts = masked_cross_entropy(logits, codes, length_mask(lens, codes.shape[1]))
    share = targets.num_frames / (targets.num_frames + prompts.num_frames)
    return Summed((targets.total + prompts.total) * share, targets.num_frames)


def _quantizer_metrics(quantizer: int, scores: FrameScores, rows: Tensor) -> dict[str, Summed]:
    """Scores of one quantizer (counted from 1) over the rows (B,) bool that belong to it."""
    loss, accuracy, _ = scores.detached_sums(rows)
    return {f"loss_q{quantizer}": loss, f"accuracy_q{quantizer}": accuracy}
