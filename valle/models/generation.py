"""Generation by the two halves: vectors of a condition in, codes out.

B batch, S condition frames, T new frames, Q quantizers, V codebook size, D model width.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from valle.models.ar import ARDecoder
from valle.models.nar import NARDecoder
from valle.modules.masks import length_mask
from valle.modules.sampling import Sampling, sample

UNKNOWN = -1
"""Stands where no code is, past the end of a row; in no codebook, so it cannot pass as a code."""

# Asking the device whether all rows have ended makes the host wait for it.
END_CHECK_INTERVAL = 16


@dataclass(frozen=True)
class Length:
    """When a row ends: at EOS or after `max_new_frames`, whichever is first.

    Attributes:
      max_new_frames: no row grows longer.
      min_new_frames: EOS cannot be drawn before.
      ignore_eos: EOS cannot be drawn at all.
    """

    max_new_frames: int
    min_new_frames: int = 0
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.min_new_frames <= self.max_new_frames:
            raise ValueError(
                "expected 0 <= min_new_tokens <= max_new_tokens, got "
                f"{self.min_new_frames} and {self.max_new_frames}"
            )

    def may_end(self, num_frames: int) -> bool:
        return not self.ignore_eos and num_frames >= self.min_new_frames


def generate_ar(
    ar: ARDecoder,
    condition: Tensor,
    condition_lens: Tensor,
    length: Length,
    sampling: Sampling,
    generator: torch.Generator | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Quantizer 1 of the frames that follow each row's condition.

    Args:
      ar: the autoregressive half, in eval mode.
      condition: (B, S, D) vectors; `condition_lens` (B,).
      length: when rows end.
      sampling: how codes are drawn, with `generator`.
      progress: called after every frame with the number of new frames so far.

    Returns:
      (B, T) codes, `UNKNOWN` past a row's end, and the lengths (B,); T is the longest of them.
    """
    B, max_new = condition.shape[0], length.max_new_frames
    codes = torch.full((B, max_new), UNKNOWN, device=condition.device)
    lens = torch.zeros(B, dtype=torch.long, device=condition.device)
    is_alive = torch.ones(B, dtype=torch.bool, device=condition.device)
    if max_new == 0:
        return codes, lens
    logits, state = ar.prefill(condition, condition_lens, max_new)
    for t in range(max_new):
        if not length.may_end(t):
            logits[:, ar.eos_id] = -torch.inf
        drawn = sample(logits, sampling, generator)
        is_alive = is_alive & (drawn != ar.eos_id)
        codes[:, t] = torch.where(is_alive, drawn, UNKNOWN)
        lens = lens + is_alive
        if progress is not None:
            progress(t + 1)
        is_last = t + 1 == max_new
        if is_last or ((t + 1) % END_CHECK_INTERVAL == 0 and not is_alive.any()):
            break
        logits = ar.decode_one_frame(drawn.where(is_alive, 0), state)
    return codes[:, : int(lens.max())], lens


def generate_nar(
    nar: NARDecoder,
    condition: Tensor,
    condition_lens: Tensor,
    first_codes: Tensor,
    code_lens: Tensor,
    sampling: Sampling,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Quantizers 2 to Q of frames whose quantizer 1 is known, in Q - 1 passes.

    Args:
      nar: the non-autoregressive half, in eval mode.
      condition: (B, S, D) vectors; `condition_lens` (B,).
      first_codes: (B, T) codes of quantizer 1; `code_lens` (B,).
      sampling: how codes are drawn, with `generator`.

    Returns:
      (B, T, Q) codes, `UNKNOWN` past a row's end.
    """
    B, T = first_codes.shape
    mask = length_mask(code_lens, T)
    codes = first_codes.where(mask, 0)[:, :, None]
    for stage in nar.stages if T > 0 else ():
        stages = torch.full((B,), stage)
        logits = nar(condition, condition_lens, codes, code_lens, stages)
        codes = torch.cat([codes, sample(logits, sampling, generator)[:, :, None]], dim=2)
    if T == 0:
        codes = codes.expand(B, 0, nar.stages[-1] + 1)
    return codes.where(mask[:, :, None], UNKNOWN)
