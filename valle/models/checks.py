"""The door of the models: codes that cannot be are refused here, and trusted behind it.

B batch, P prompts, T frames, S frames before a gap, A after it, Q quantizers, V codebook size.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from valle.modules.masks import length_mask

if TYPE_CHECKING:
    from valle.models.config import AudioLMConfig


def check_codes(
    name: str, codes: Tensor, lens: Tensor | None, config: "AudioLMConfig", min_len: int
) -> tuple[Tensor, Tensor]:
    """Refuse what cannot be, set padding to a legal code, fill in lengths left out.

    Values are checked on a CPU alone, where looking at them costs no wait.

    Args:
      name: of the codes, for messages.
      codes: (B, T, Q) integers; `lens` (B,), None where all rows are full.
      config: says Q and V.
      min_len: shortest length that a row may have.

    Returns:
      (B, T, Q) int64 and (B,), on the device of the codes.

    Raises:
      ValueError: shapes, lengths or codes that cannot be; the message says which.
    """
    Q, V = config.num_quantizers, config.num_audio_tokens
    if codes.dim() != 3 or codes.shape[2] != Q or codes.is_floating_point():
        raise ValueError(
            f"{name} must hold integer codes (batch, frames, {Q}), "
            f"got {codes.dtype} {tuple(codes.shape)}"
        )
    B, T, _ = codes.shape
    if lens is None:
        lens = torch.full((B,), T, device=codes.device)
    if lens.shape != (B,):
        raise ValueError(f"{name}_lens must be ({B},), got {tuple(lens.shape)}")
    codes, lens = codes.long(), lens.to(codes.device)
    codes = codes.masked_fill(~length_mask(lens, T)[:, :, None], 0)
    if codes.device.type == "cpu" and B:
        shortest, longest = int(lens.min()), int(lens.max())
        if shortest < min_len or longest > T:
            raise ValueError(
                f"{name}_lens must be in [{min_len}, {T}], got {shortest} to {longest}"
                + "; an empty prompt needs a model trained with prepend_bos"
                * (name in ("x", "before") and shortest == 0)
            )
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < V:
            raise ValueError(
                f"{name} must hold codes in [0, {V}), got {int(codes.min())} to {int(codes.max())}"
            )
    return codes, lens


def check_prompts(
    x: Tensor, x_lens: Tensor | None, config: "AudioLMConfig", name: str = "x"
) -> tuple[Tensor, Tensor]:
    """`check_codes` for the prompts of a generation, values included on any device."""
    if x.shape[0] == 0:
        raise ValueError(f"{name} holds no prompt: expected a row at least")
    min_len = config.shortest_prompt
    if x.device.type != "cpu":
        check_codes(name, x.cpu(), None if x_lens is None else x_lens.cpu(), config, min_len)
    return check_codes(name, x, x_lens, config, min_len)


def check_gaps(
    before: Tensor,
    before_lens: Tensor | None,
    after: Tensor,
    after_lens: Tensor | None,
    gap_lens: Tensor | int,
    config: "AudioLMConfig",
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`check_prompts` for what lies before and after gaps, and for the gaps.

    Returns:
      `before` (P, S, Q) with its lengths, `after` (P, A, Q) with its lengths, (P,) lengths of gaps.

    Raises:
      ValueError: arguments that cannot be, or a model that has not learned to fill gaps.
    """
    check_infills(config)
    before, before_lens = check_prompts(before, before_lens, config, "before")
    if len(after) != len(before):
        raise ValueError(
            f"before holds {len(before)} rows and after {len(after)}: expected as many, with "
            "after_lens 0 where nothing follows"
        )
    if after.device.type != "cpu":
        check_codes(
            "after", after.cpu(), None if after_lens is None else after_lens.cpu(), config, 0
        )
    after, after_lens = check_codes("after", after.to(before.device), after_lens, config, 0)
    gaps = torch.as_tensor(gap_lens, device=before.device)
    if gaps.dim() == 0:
        gaps = gaps.expand(len(before))
    is_count = not gaps.is_floating_point() and gaps.dtype != torch.bool
    if gaps.shape != (len(before),) or not is_count or int(gaps.min()) < 1:
        raise ValueError(
            f"gap_lens must be a number of frames from 1, or ({len(before)},) of them, "
            f"got {gap_lens}"
        )
    return before, before_lens, after, after_lens, gaps.long()


def check_infills(config: "AudioLMConfig") -> None:
    """Refuse a model that was never shown what comes after a gap.

    Raises:
      ValueError: the model was trained without in-filling.
    """
    if not config.infills:
        raise ValueError(
            "this model has not learned to fill gaps, it only continues (inference): train one "
            "with --infill-prob 0.3, or on from this one with --init-from and --init-partial true"
        )
