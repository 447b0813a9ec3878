"""AudioLM: continues audio, from the codes of a prompt to the codes that follow.

Two transformers share the work as in VALL-E (arXiv 2301.02111), without its text: `ar` predicts
quantizer 1 frame by frame, `nar` predicts quantizers 2 to Q, a pass a quantizer.

B batch, S prompt frames, T target frames, A frames after a gap, Q quantizers, V codebook size,
D model width.
"""

from collections.abc import Iterator, Mapping
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from valle.models.ar import ARDecoder
from valle.models.checks import check_codes, check_infills
from valle.models.condition import Ahead
from valle.models.config import AudioLMConfig
from valle.models.engine import Engine
from valle.models.generation import UNKNOWN
from valle.models.nar import NARDecoder
from valle.modules.losses import FrameScores, Summed, frame_scores, masked_cross_entropy
from valle.modules.masks import length_mask
from valle.utils.checkpoint import read_checkpoint


class TrainStage(IntEnum):
    """Which half learns."""

    BOTH = 0
    AR = 1
    NAR = 2


class AudioLMOutput(NamedTuple):
    """What `AudioLM.forward` returns.

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


class AudioLM(nn.Module):
    """An audio continuation model over the codes of a codec.

    The arguments are those of `AudioLMConfig`, which says what they mean and checks them.
    """

    def __init__(
        self,
        d_model: int = 1024,
        nhead: int = 16,
        num_layers: int = 12,
        norm_first: bool = True,
        add_prenet: bool = False,
        num_quantizers: int = 4,
        nar_scale_factor: float = 1.0,
        prepend_bos: bool = False,
        num_audio_tokens: int = 2048,
        dropout: float = 0.1,
        ahead_frames: int = 0,
        positions: str = "rotary",
    ):
        super().__init__()
        config = AudioLMConfig(
            d_model=d_model,
            nhead=nhead,
            num_layers=num_layers,
            norm_first=norm_first,
            add_prenet=add_prenet,
            num_quantizers=num_quantizers,
            nar_scale_factor=nar_scale_factor,
            prepend_bos=prepend_bos,
            num_audio_tokens=num_audio_tokens,
            dropout=dropout,
            ahead_frames=ahead_frames,
            positions=positions,
        )
        self.config = config
        self.stage_generator = torch.Generator().manual_seed(0)
        """Draws the NAR stages of training rows; its state belongs into checkpoints."""
        self.ar = ARDecoder(
            d_model=config.d_model,
            nhead=config.nhead,
            num_layers=config.num_layers,
            num_quantizers=config.num_quantizers,
            codebook_size=config.num_audio_tokens,
            norm_first=config.norm_first,
            add_prenet=config.add_prenet,
            prepend_bos=config.prepend_bos,
            dropout=config.dropout,
            ahead_frames=config.ahead_frames,
            positions=config.positions,
        )
        self.nar = NARDecoder(
            d_model=config.nar_d_model,
            nhead=config.nar_nhead,
            num_layers=config.nar_num_layers,
            num_quantizers=config.num_quantizers,
            codebook_size=config.num_audio_tokens,
            norm_first=config.norm_first,
            add_prenet=config.add_prenet,
            dropout=config.dropout,
            positions=config.positions,
        )

    @classmethod
    def from_checkpoint(
        cls, path: str | Path, device: str | torch.device = "cpu", averaged: bool = False
    ) -> "AudioLM":
        """Rebuild the model that a training checkpoint holds, in eval mode.

        Args:
          path: a file of the trainer, or of average_checkpoints.py.
          device: where the model goes.
          averaged: take the average of the weights that the run kept (`--average-period`).

        Raises:
          ValueError: the file is no checkpoint of an AudioLM, is damaged, or holds no average.
        """
        checkpoint = read_checkpoint(path)
        if "config" not in checkpoint:
            raise ValueError(f"{path} holds no AudioLM config; was it written by this trainer?")
        section = "model_avg" if averaged else "model"
        if section not in checkpoint:
            raise ValueError(
                f"{path} holds no averaged weights: only a run with --average-period above 0 keeps "
                "them; take the weights as they are (averaged=False)"
            )
        model = cls.from_config(checkpoint["config"])
        model.load_state_dict(checkpoint[section])  # the average is float64, parameters stay theirs
        return model.to(device).eval()

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "AudioLM":
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

    def forward(
        self,
        x: Tensor,
        x_lens: Tensor,
        y: Tensor,
        y_lens: Tensor,
        reduction: str = "sum",
        train_stage: int = 0,
        y_ends: Tensor | None = None,
        after: Tensor | None = None,
        after_lens: Tensor | None = None,
        longest: int | None = None,
        score_prompts: bool = False,
        all_stages: bool = False,
    ) -> AudioLMOutput:
        """Loss of continuing prompts by their targets, or of filling gaps with them.

        In training each row's NAR stage is drawn, unless `all_stages`; in eval mode every stage is
        scored on every row.

        Args:
          x: (B, S, Q) prompt codes; `x_lens` (B,) how many frames are real.
          y: (B, T, Q) target codes; `y_lens` (B,).
          reduction: "sum" over target frames, or "mean".
          train_stage: 0 both halves (the mean of their losses), 1 AR alone, 2 NAR alone.
          y_ends: (B,) bool, True where the target reaches the end of its recording. EOS is a
            target there and nowhere else; None means nowhere.
          after: (B, A, Q) codes that follow the targets, which then are gaps between `x` and these,
            for a model that fills gaps; `after_lens` (B,), 0 where a row is a continuation.
          longest: no row has more frames, `x`, `y` and `after` together; saves padding on a GPU,
            and is found out on a CPU.
          score_prompts: the AR half learns to predict the prompts' frames as well. A row's loss is
            then the mean over these and its targets, times the number of targets; metrics are of
            the targets alone.

        Raises:
          ValueError: shapes, lengths or codes that cannot be; the message says which. Values are
            checked where that is free, on the CPU; on a GPU the loader's check must do.
        """
        stage = TrainStage(train_stage)
        if reduction not in ("sum", "mean"):
            raise ValueError(f'reduction must be "sum" or "mean", got "{reduction}"')
        x, x_lens = check_codes("x", x, x_lens, self.config, self.config.shortest_prompt)
        y, y_lens = check_codes("y", y, y_lens, self.config, min_len=1)
        ahead = self.what_follows(x, x_lens, y_lens, after, after_lens, longest)
        predictions = [torch.full_like(y[:, :, :1], UNKNOWN), torch.full_like(y[:, :, 1:], UNKNOWN)]
        scores = []
        if stage != TrainStage.NAR:
            scores.append(self._score_ar(x, x_lens, y, y_lens, y_ends, ahead, score_prompts))
            predictions[0] = scores[-1].predictions
        if stage != TrainStage.AR:
            scores.append(self._score_nar(x, x_lens, y, y_lens, ahead, all_stages))
            predictions[1] = scores[-1].predictions
        losses = [s.loss.total if reduction == "sum" else s.loss.mean() for s in scores]
        metrics = {name: value for s in scores for name, value in s.metrics.items()}
        return AudioLMOutput(torch.cat(predictions, dim=2), torch.stack(losses).mean(), metrics)

    def what_follows(
        self,
        x: Tensor,
        x_lens: Tensor,
        y_lens: Tensor,
        after: Tensor | None,
        after_lens: Tensor | None,
        longest: int | None = None,
    ) -> Ahead | None:
        """Codes after the targets, as in `forward`, checked; None for a model that reads none."""
        if after is None and not self.config.infills:
            return None
        check_infills(self.config)
        # where nothing follows its mark takes part all the same: ranks exchange its gradient, zero
        after = x[:, :0] if after is None else after
        after, after_lens = check_codes("after", after, after_lens, self.config, min_len=0)
        if after.device.type == "cpu":  # where looking at lengths costs no wait
            longest = int((x_lens + y_lens + after_lens).max())
        return Ahead(after, after_lens, x_lens + y_lens, longest)

    def _score_ar(
        self,
        x: Tensor,
        x_lens: Tensor,
        y: Tensor,
        y_lens: Tensor,
        y_ends: Tensor | None,
        ahead: Ahead | None,
        score_prompts: bool,
    ) -> "_HalfScore":
        """Score quantizer 1, and EOS where a target ends its recording."""
        B, T, _ = y.shape
        codes, own = y[:, :, 0], None
        read = self.ar.embedding(x), x_lens, codes, y_lens
        ahead = None if ahead is None else self.ar.look_ahead(ahead)
        if score_prompts:
            logits, own = self.ar.forward_whole(*read, ahead)
        else:
            logits = self.ar(*read, ahead)
        logits = logits.float()
        frames = length_mask(y_lens, T + 1)
        targets = F.pad(codes, (0, 1)).where(frames, self.eos_id)
        num_targets = y_lens if y_ends is None else y_lens + y_ends.to(y_lens)
        scores = frame_scores(logits, targets, length_mask(num_targets, T + 1))
        predictions = logits.detach().argmax(-1).where(frames, UNKNOWN)[:, :T, None]
        metrics = _quantizer_metrics(1, scores, torch.ones_like(x_lens, dtype=torch.bool))
        metrics["ArTop10Accuracy"] = scores.top10_accuracy.sum()
        loss = scores.loss
        if own is not None:
            loss = _with_prompts(loss, own, x[:, 1:, 0], x_lens - 1)
        return _HalfScore(loss.sum(), predictions, metrics)

    def _score_nar(
        self,
        x: Tensor,
        x_lens: Tensor,
        y: Tensor,
        y_lens: Tensor,
        ahead: Ahead | None,
        all_stages: bool,
    ) -> "_HalfScore":
        """Score quantizers 2 to Q: one drawn for each row in training, else all."""
        B, T, Q = y.shape
        prompt, frames = self.nar.embedding(x), length_mask(y_lens, T)
        ahead = None if ahead is None else self.nar.look_ahead(ahead)
        predictions = torch.full_like(y, UNKNOWN)
        rows = torch.arange(B, device=y.device)
        if self.training and not all_stages:
            passes = [self.nar.draw_stages(B, self.stage_generator)]
        else:
            passes = [torch.full((B,), stage) for stage in self.nar.stages]
        metrics: dict[str, Summed] = {}
        totals, top10 = [], []
        for stages in passes:
            logits = self.nar(prompt, x_lens, y, y_lens, stages, ahead).float()
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
        return _HalfScore(loss, predictions[:, :, 1:], metrics)

    # Generation

    def inference(
        self, x: Tensor, x_lens: Tensor | None = None, **options: Any
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Continue prompts.

        A row ends at EOS, or after `max_new_tokens` frames. It depends on its own prompt and
        random numbers alone, whatever other rows are in the batch.

        Args:
          x: (P, S, Q) prompt codes; `x_lens` (P,), left out where all rows are full. A model with
            `prepend_bos` also takes empty prompts, (P, 0, Q).
          options: `max_new_tokens`, `temperature`, `top_k` and the other fields of
            `GenerationOptions`, which says what they mean; and these:
            generator: where random numbers come from: one, which gives each row a seed in turn, or
              a list of one a row, on the CPU. Default is torch's own.
            progress: called after every frame of quantizer 1 with the number of new frames.
            return_lens: also return the rows' lengths.

        Returns:
          (B, L, Q) int64: each row's prompt untouched, then its new frames. L is the longest row;
          shorter ones are filled up with -1, which is no code. B is P, or P x `num_samples` with
          the samples of a prompt side by side. With `return_lens` also (B,).

        Raises:
          ValueError: arguments that cannot be; the message says which.
        """
        return Engine(self).inference(x, x_lens, **options)

    def infill(
        self,
        before: Tensor,
        before_lens: Tensor | None,
        after: Tensor,
        after_lens: Tensor | None,
        gap_lens: Tensor | int,
        **options: Any,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Fill the gaps between two passages each.

        A gap gets exactly the frames that it lacks, EOS cannot come. The model must have been
        trained for it (`config.infills`). A row depends on its own passages and random numbers
        alone.

        Args:
          before: (P, S, Q) codes before the gaps; `before_lens` (P,), None where all rows are full.
          after: (P, A, Q) codes after the gaps, A may be 0; `after_lens` (P,), likewise.
          gap_lens: (P,) frames of each gap, or one number for all.
          options: `temperature`, `top_k` and the other fields of `GenerationOptions` that bear on
            sampling, `num_samples`; `generator`, `progress`, `return_lens` as for `inference`; and
            window: read no more of both sides than fits into so many frames with the gap (the
              length of the training's cuts is a good choice), the nearest; 0: everything.

        Returns:
          (B, L, Q) int64: before, what fills the gap, and after, joined; the given frames
          untouched. Shorter rows are filled up with -1. B is P, or P x `num_samples` with the
          samples of a gap side by side. With `return_lens` also (B,).

        Raises:
          ValueError: arguments that cannot be, or a model that only continues.
        """
        return Engine(self).infill(before, before_lens, after, after_lens, gap_lens, **options)

    def stream(self, x: Tensor, x_lens: Tensor | None = None, **options: Any) -> Iterator[Tensor]:
        """Continue prompts, giving out new frames while more are made.

        The chunks joined are what `inference` returns after the prompt if it is given the same
        options; `stream` chooses a short `chunk` with `lookahead` and `nar_context` where these are
        not given (`STREAM_OPTIONS`). The first chunk comes after `chunk + lookahead` frames.

        Args:
          x, x_lens, options: those of `inference`, but for `return_lens`.

        Yields:
          (B, C, Q) int64, the next frames of each row, -1 past a row's end.
        """
        return Engine(self).stream(x, x_lens, **options)


class _HalfScore(NamedTuple):
    """Loss (with gradient), predictions (B, T, its quantizers) and metrics of one half."""

    loss: Summed
    predictions: Tensor
    metrics: dict[str, Summed]


def _with_prompts(targets: Summed, logits: Tensor, codes: Tensor, lens: Tensor) -> Summed:
    """A row's mean over targets and its prompt's own codes (B, S - 1), as a sum over targets."""
    prompts = masked_cross_entropy(logits, codes, length_mask(lens, codes.shape[1]))
    share = targets.num_frames / (targets.num_frames + prompts.num_frames)
    return Summed((targets.total + prompts.total) * share, targets.num_frames)


def _quantizer_metrics(quantizer: int, scores: FrameScores, rows: Tensor) -> dict[str, Summed]:
    """Scores of one quantizer (counted from 1) over the rows (B,) bool that belong to it."""
    loss, accuracy, _ = scores.detached_sums(rows)
    return {f"loss_q{quantizer}": loss, f"accuracy_q{quantizer}": accuracy}
