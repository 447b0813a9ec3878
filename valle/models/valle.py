"""VALL-E: text or MIDI to audio, from a few seconds of a voice or an instrument.

The paper (arXiv 2301.02111) reads phones; MIDI-VALLE (arXiv 2507.08530) reads the notes of a
performance in their place. Both halves are those of AudioLM. They read the condition first: the AR
half then the codes of quantizer 1, those of a prompt no other than those it predicts; the NAR half
then the prompt, whole.

B batch, S symbols or events, P prompt frames, T target frames, Q quantizers.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from valle.models.checks import check_codes, check_given, check_rows, check_tokens
from valle.models.codec_lm import AudioLMOutput, CodecLM, HalfScore, TrainStage
from valle.models.condition import Condition, Given
from valle.models.config import ELSEWHERE, OWN_BEGINNING, VALLEConfig
from valle.models.engine import Engine
from valle.models.generation import UNKNOWN
from valle.models.nar import NARDecoder
from valle.models.reading import Reader, make_reader
from valle.modules.losses import Summed
from valle.modules.masks import FrameRange

# A prefix of a target, in training: a quarter to half of it, 3 s at most, as in VALL-E's recipes.
PREFIX_SHARE = 0.25, 0.5
NO_PREFIX_PROB = 0.1  # so that a condition alone is enough, too


class VALLE(CodecLM):
    """A model of audio given text or MIDI.

    The arguments are those of `VALLEConfig`, which says what they mean and checks them.
    """

    config_class = VALLEConfig

    def make_reader(self, d_model: int) -> Reader | None:
        config = self.config
        return make_reader(config.condition, config.num_text_tokens, config.frame_rate, d_model)

    def nar_settings(self) -> dict[str, Any]:
        return {"reads_prompts": self.config.prefix_mode in (OWN_BEGINNING, ELSEWHERE)}

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
        prompts: Tensor | None = None,
        prompts_lens: Tensor | None = None,
        all_stages: bool = False,
    ) -> AudioLMOutput:
        """Loss of audio given its text or its notes.

        The AR half predicts all frames of the target. The NAR half predicts all of them with
        prefix mode 0 or 4, and with 1 those after a prefix, whose length is drawn in training and
        fixed in eval mode; its loss then is the mean over these, times the number of all.

        Args:
          x: (B, S) ids of symbols, or (B, S, 6) MIDI events, BOS first and EOS last; `x_lens` (B,).
          y: (B, T, Q) target codes, all that x tells of; `y_lens` (B,).
          reduction, train_stage, y_ends, all_stages: as in `AudioLM.forward`.
          prompts: (B, P, Q) codes from elsewhere in the same recordings, for prefix mode 4;
            `prompts_lens` (B,), 0 where there are none.

        Returns:
          What `AudioLM.forward` does; quantizers 2 to Q of a prefix are `UNKNOWN`.

        Raises:
          ValueError: shapes, lengths or ids that cannot be; the message says which.
        """
        x, x_lens = check_tokens(x, x_lens, self.config)
        y, y_lens = check_codes("y", y, y_lens, self.config, min_len=1)
        given = Given(x, x_lens)
        check_rows(x=x, y=y, y_ends=y_ends, prompts=prompts, prompts_lens=prompts_lens)
        takes_prompts = self.config.prefix_mode == ELSEWHERE
        if {prompts is not None, prompts_lens is not None} != {takes_prompts}:
            came = "none came" if prompts is None else "some came"
            raise ValueError(
                "prompts, with prompts_lens, are for prefix mode 4, which needs them: with "
                f"{self.config.prefix_mode} {came}"
            )
        if prompts is not None:
            prompts, prompts_lens = check_codes("prompts", prompts, prompts_lens, self.config, 0)

        def score_nar() -> HalfScore:
            if prompts is None or prompts_lens is None:
                return self._score_after_prefix(given, y, y_lens, all_stages)
            # as it will be when something is made: on one time line, the prompt first
            later = given._replace(tokens=reader_of(self.nar).later(x, prompts_lens))
            condition, _ = self.nar.read(prompts, prompts_lens, later)
            return self.score_nar(condition, y, y_lens, all_stages)

        return self.score_halves(
            TrainStage(train_stage),
            reduction,
            y,
            lambda: self.score_ar(self.ar.read(y[:, :0], 0 * y_lens, given)[0], y, y_lens, y_ends),
            score_nar,
        )

    def _score_after_prefix(
        self, given: Given, y: Tensor, y_lens: Tensor, all_stages: bool
    ) -> HalfScore:
        """Score what comes after a prefix; of no frames with prefix mode 0."""
        T = y.shape[1]
        lens = self._prefix_lens(y_lens)
        condition = self._after_prefix(given, y, lens)
        rest = FrameRange(lens, T).take_from(y)
        score = self.score_nar(condition, rest, y_lens - lens, all_stages)
        # back to where they are in the target
        order = torch.arange(T, device=y.device) - lens[:, None]
        index = order.clamp(min=0)[:, :, None].expand_as(score.predictions)
        predictions = score.predictions.gather(1, index).where(order[:, :, None] >= 0, UNKNOWN)
        num_frames = y_lens.sum()
        share = num_frames / score.loss.num_frames
        return HalfScore(Summed(score.loss.total * share, num_frames), predictions, score.metrics)

    def _after_prefix(self, given: Given, y: Tensor, lens: Tensor) -> Condition:
        longest = min(self.config.longest_prefix, y.shape[1])
        condition, _ = self.nar.read(y[:, : longest * self.nar.reads_prompts], lens, given)
        return condition._replace(longest=given.tokens.shape[1] + y.shape[1])

    def _prefix_lens(self, y_lens: Tensor) -> Tensor:
        """(B,) frames of each target that the NAR half reads whole; less than all."""
        if self.config.prefix_mode != OWN_BEGINNING:
            return torch.zeros_like(y_lens)
        low, high = PREFIX_SHARE
        share = torch.full(y_lens.shape, (low + high) / 2)
        if self.training:
            chosen, place = torch.rand(2, len(y_lens), generator=self.stage_generator)
            share = (low + place * (high - low)).where(chosen >= NO_PREFIX_PROB, 0)
        share = share.to(y_lens.device, non_blocking=True)
        return (y_lens * share).long().clamp(max=self.config.longest_prefix)

    # Generation

    def given(
        self, x: Tensor, x_lens: Tensor | None = None, enroll_x_lens: Tensor | None = None
    ) -> Given:
        """Text or events, checked, as `valle.evaluation.frame_costs` takes them.

        Arguments and errors as in `inference`.
        """
        return check_given(x, x_lens, None, None, enroll_x_lens, self.config)[0]

    def inference(
        self,
        x: Tensor,
        x_lens: Tensor | None = None,
        y: Tensor | None = None,
        enroll_x_lens: Tensor | None = None,
        **options: Any,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Make the audio of text or notes.

        With a prompt, x tells of it and of what is to come, one after the other. MIDI events are on
        one time line: those of the prompt, then those of the target, later by as long as the prompt
        lasts.

        Args:
          x: (P, S) ids of symbols, or (P, S, 6) MIDI events, BOS first and EOS last; `x_lens` (P,),
            None where all rows are full.
          y: (P, F, Q) codes of prompts, or None; their lengths are `y_lens` among the options, left
            out where all rows are full.
          enroll_x_lens: (P,) length of the prompt's own tokens with BOS and EOS of their own, as
            VALL-E's recipes count it; read with prefix mode 4 alone, where the NAR half is told of
            the target only.
          options: those of `AudioLM.inference`.

        Returns:
          (B, L, Q) int64: the new frames alone, as VALL-E has it (AudioLM's begin with the prompt),
          -1 past a row's end. B is P, or P x `num_samples` with the samples of a row side by side.
          With `return_lens` also (B,).

        Raises:
          ValueError: arguments that cannot be; the message says which.
        """
        return Engine(self).inference(x, x_lens, y, enroll_x_lens, **options)

    def stream(
        self,
        x: Tensor,
        x_lens: Tensor | None = None,
        y: Tensor | None = None,
        enroll_x_lens: Tensor | None = None,
        **options: Any,
    ) -> Iterator[Tensor]:
        """The same, giving out new frames while more are made; see `AudioLM.stream`."""
        return Engine(self).stream(x, x_lens, y, enroll_x_lens, **options)


def reader_of(half: NARDecoder) -> Reader:
    """The reader of a half of a VALLE, which has one."""
    assert half.reader is not None
    return half.reader
