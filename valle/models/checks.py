"""The door of the models: codes that cannot be are refused here, and trusted behind it.

B batch, P prompts, T frames, S frames before a gap, or symbols or events, A frames after a gap,
Q quantizers, V codebook size.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from valle.models.condition import Given
from valle.models.config import ELSEWHERE
from valle.models.reading import num_ids
from valle.modules.masks import length_mask

if TYPE_CHECKING:
    from valle.models.config import AudioLMConfig, CodecLMConfig, VALLEConfig


def check_codes(
    name: str, codes: Tensor, lens: Tensor | None, config: "CodecLMConfig", min_len: int
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


def check_rows(**inputs: Tensor | None) -> None:
    """Refuse inputs of unlike numbers of rows.

    Raises:
      ValueError: the message says what each holds.
    """
    rows = {name: len(tensor) for name, tensor in inputs.items() if tensor is not None}
    if len(set(rows.values())) > 1:
        held = ", ".join(f"{name} {num}" for name, num in rows.items())
        raise ValueError(f"expected as many rows in each of the inputs, got {held}")


def check_tokens(x: Tensor, x_lens: Tensor | None, config: "VALLEConfig") -> tuple[Tensor, Tensor]:
    """`check_codes` for the ids of a text, (B, S), or MIDI events, (B, S, 6).

    Raises:
      ValueError: shapes, lengths or ids that cannot be, or a condition that is empty or too long;
        the message says which.
    """
    limits = num_ids(config.condition, config.num_text_tokens)
    what = "ids of symbols (batch, symbols)"
    if config.condition == "midi":
        what = f"MIDI events (batch, events, {len(limits)})"
    shape_fits = x.dim() == 2 + limits.dim() and x.shape[2:] == limits.shape
    if not shape_fits or x.is_floating_point() or x.dtype == torch.bool:
        raise ValueError(f"x must hold {what}, got {x.dtype} {tuple(x.shape)}")
    B, S = x.shape[:2]
    x_lens = torch.full((B,), S) if x_lens is None else x_lens
    if x_lens.shape != (B,):
        raise ValueError(f"x_lens must be ({B},), got {tuple(x_lens.shape)}")
    x, x_lens = x.long(), x_lens.to(x.device).long()
    mask = length_mask(x_lens, S)
    x = x.masked_fill(~mask.view(B, S, *[1] * limits.dim()), 0)
    if config.longest_condition < S:
        raise ValueError(
            f"x has {S} {config.condition} tokens, and the model takes {config.longest_condition} "
            "at most: give a shorter excerpt, or train with a longer longest_condition"
        )
    if x.device.type == "cpu" and B:
        if int(x_lens.min()) < 1 or int(x_lens.max()) > S:
            raise ValueError(
                f"x_lens must be in [1, {S}], got {int(x_lens.min())} to {int(x_lens.max())}: even "
                "an empty text, or silence, has a BOS and an EOS"
            )
        if bool((x < 0).any() | (x >= limits).any()):
            raise ValueError(
                f"x must hold ids below {limits.tolist()}, and none below 0, got "
                f"{x.amin((0, 1)).tolist()} to {x.amax((0, 1)).tolist()}: of another table of "
                "symbols, or of events that were not made by valle.data.midi?"
            )
    return x, x_lens


def check_given(
    x: Tensor,
    x_lens: Tensor | None,
    y: Tensor | None,
    y_lens: Tensor | None,
    enroll_x_lens: Tensor | None,
    config: "VALLEConfig",
) -> tuple[Given, Tensor, Tensor]:
    """The arguments of `VALLE.inference`, values included on any device.

    Returns:
      What is given, and prompts (P, F, Q) with their lengths (P,), of no frames without `y`.

    Raises:
      ValueError: arguments that cannot be; the message says which.
    """
    if x.shape[0] == 0:
        raise ValueError("x holds no row: expected a text or events at least")
    if x.device.type != "cpu":
        check_tokens(x.cpu(), None if x_lens is None else x_lens.cpu(), config)
    x, x_lens = check_tokens(x, x_lens, config)
    if y is None and y_lens is not None:
        raise ValueError("y_lens came without y, the prompts whose lengths they are")
    if y is None:
        y = torch.zeros(len(x), 0, config.num_quantizers, dtype=torch.long, device=x.device)
    y, y_lens = check_prompts(y, y_lens, config, "y")
    if len(y) != len(x):
        raise ValueError(
            f"x holds {len(x)} rows and y {len(y)}: expected a prompt for each, or None"
        )
    enrolled = torch.full_like(x_lens, 2) if enroll_x_lens is None else enroll_x_lens.to(x_lens)
    if enrolled.shape != x_lens.shape or bool(((enrolled < 2) | (enrolled > x_lens)).any()):
        raise ValueError(
            f"enroll_x_lens must be ({len(x)},), each from 2 (BOS and EOS) to x_lens "
            f"{x_lens.tolist()}, got {enrolled.tolist()}"
        )
    num_of_prompt = enrolled - 2 if config.prefix_mode == ELSEWHERE else None
    return Given(x, x_lens, num_of_prompt), y.to(x.device), y_lens.to(x.device)


def check_prompts(
    x: Tensor, x_lens: Tensor | None, config: "AudioLMConfig | VALLEConfig", name: str = "x"
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


def check_infills(config: "AudioLMConfig | VALLEConfig") -> None:
    """Refuse a model that was never shown what comes after a gap.

    Raises:
      ValueError: the model was trained without in-filling.
    """
    if config.condition is not None:
        raise ValueError(
            f"this model makes audio of {config.condition} and fills no gaps: an AudioLM does"
        )
    if not config.infills:
        raise ValueError(
            "this model has not learned to fill gaps, it only continues (inference): train one "
            "with --infill-prob 0.3, or on from this one with --init-from and --init-partial true"
        )
