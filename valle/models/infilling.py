"""A gap between two passages, filled: quantizer 1 frame by frame, then the other quantizers.

P prompts, B rows (the samples of a prompt side by side), S frames before the gap, A after it,
G frames of the longest gap, Q quantizers.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from valle.models.ar import ARDecoder
from valle.models.condition import Ahead, Condition, Known
from valle.models.continuation import recent_codes
from valle.models.generation import NUM_REDRAWS, ARRows, generate_ar, generate_nar
from valle.models.nar import NARDecoder
from valle.models.options import GenerationOptions
from valle.modules.fused_step import FusedStep
from valle.modules.sampling import RowDraws


class Gap(NamedTuple):
    """What is known of a piece: codes (S, Q) and (A, Q), and how many frames between them are not.

    `after` may be empty: then it is a continuation of a given length.
    """

    before: Tensor
    num_frames: int
    after: Tensor

    def within(self, window: int, shortest_before: int) -> "Gap":
        """The same gap with no more around it than fits into a window of so many frames.

        Each side has half of the room, and what the other one leaves of its half.

        Raises:
          ValueError: the gap leaves no room.
        """
        room = window - self.num_frames
        if room < max(shortest_before, 1):
            raise ValueError(
                f"a gap of {self.num_frames} frames leaves nothing else to read in a window of "
                f"{window}: fill a shorter one, or allow a longer window (0: everything)"
            )
        num_before = min(len(self.before), max(room // 2, room - len(self.after), shortest_before))
        after = self.after[: room - num_before]
        return Gap(self.before[len(self.before) - num_before :], self.num_frames, after)


def fill_gaps(
    ar: ARDecoder,
    nar: NARDecoder,
    gaps: Sequence[Gap],
    generators: Sequence[torch.Generator],
    options: GenerationOptions,
    fused: FusedStep | None = None,
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """The missing frames of P gaps. A row depends on its own gap and generator alone.

    Args:
      ar: the autoregressive half, and `nar` the other one, in eval mode.
      gaps: P, none of them longer than `options.max_new_tokens`.
      generators: on the CPU, for each of the B = P x `options.num_samples` rows.
      options: what is asked; rows end where their gap does.
      fused: reads a frame in one call, in the place of the layers.
      progress: called after every frame of quantizer 1 with the number of new frames.

    Returns:
      (B, G, Q) codes, `UNKNOWN` past the end of a row's gap.
    """
    each = [gap for gap in gaps for _ in range(options.num_samples)]
    num_quantizers, device = gaps[0].before.shape[1], gaps[0].before.device
    most_known = max(len(gap.before) + min(len(gap.after), ar.ahead_frames) for gap in gaps)
    rows = ARRows(
        ar,
        *_read(ar, gaps),
        recent_codes([gap.before for gap in each], options.repetition_window),
        options.length,
        options.ar_sampling,
        RowDraws(generators, NUM_REDRAWS + num_quantizers, device),
        buffer_frames=options.max_new_tokens,
        max_len=most_known + options.max_new_tokens + ar.num_bos,
        fused=fused,
    )
    generate_ar(rows, options.max_new_tokens, progress)
    return generate_nar(
        nar,
        *_read(nar, each),
        rows.codes,
        rows.lens,
        options.nar_sampling,
        rows.uniforms[:, :, NUM_REDRAWS:],
    )


def _read(half: ARDecoder | NARDecoder, gaps: Sequence[Gap]) -> tuple[Condition, Known]:
    before, before_lens = _padded([gap.before for gap in gaps])
    after, after_lens = _padded([gap.after for gap in gaps])
    gap_lens = torch.tensor([gap.num_frames for gap in gaps], device=before.device)
    ahead = half.look_ahead(Ahead(after, after_lens, before_lens + gap_lens))
    condition, known = half.read(before, before_lens)
    return condition._replace(ahead=ahead), known


def _padded(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    lens = torch.tensor([len(row) for row in rows], device=rows[0].device)
    return pad_sequence(list(rows), batch_first=True), lens
