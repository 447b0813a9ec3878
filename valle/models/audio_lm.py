"""AudioLM: continues audio, from the codes of a prompt to the codes that follow.

It adapts VALL-E (arXiv 2301.02111), without its text: the frames of the prompt are all that the two
halves read before those that they predict.

B batch, S prompt frames, T target frames, A frames after a gap, Q quantizers, V codebook size,
D model width.
"""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from valle.models.ar import ARDecoder
from valle.models.checks import check_codes, check_infills, check_rows
from valle.models.codec_lm import AudioLMOutput, CodecLM, TrainStage
from valle.models.condition import Ahead, Condition
from valle.models.config import AudioLMConfig
from valle.models.engine import Engine
from valle.models.nar import NARDecoder

__all__ = ["AudioLM", "AudioLMOutput", "TrainStage"]


class AudioLM(CodecLM):
    """An audio continuation model over the codes of a codec.

    The arguments are those of `AudioLMConfig`, which says what they mean and checks them.
    """

    config_class = AudioLMConfig

    def ar_settings(self) -> dict[str, Any]:
        return {"ahead_frames": self.config.ahead_frames}

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
        x, x_lens = check_codes("x", x, x_lens, self.config, self.config.shortest_prompt)
        y, y_lens = check_codes("y", y, y_lens, self.config, min_len=1)
        check_rows(x=x, y=y, y_ends=y_ends, after=after)
        ahead = self.what_follows(x, x_lens, y_lens, after, after_lens, longest)

        def read(half: ARDecoder | NARDecoder) -> Condition:
            condition, _ = half.read(x, x_lens)
            return condition._replace(ahead=None if ahead is None else half.look_ahead(ahead))

        prompts = (x[:, :, 0], x_lens) if score_prompts else None
        return self.score_halves(
            TrainStage(train_stage),
            reduction,
            y,
            lambda: self.score_ar(read(self.ar), y, y_lens, y_ends, prompts),
            lambda: self.score_nar(read(self.nar), y, y_lens, all_stages),
        )

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
