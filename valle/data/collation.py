"""Code sequences of unequal length -> one padded batch.

Letters: B batch, T frames, Q quantizers.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

PAD_CODE = 0  # padding is known by lens alone, so any legal code will do; PAD of conditions


def collate_codes(sequences: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Pad at the end.

    Args:
      sequences: B arrays (T_i, Q) of integers; or of events (S_i, 6), or of symbols (S_i,).

    Returns:
      codes (B, max T_i, Q) int64, PAD_CODE beyond each row's length, and lens (B,) int64.

    Raises:
      ValueError: No sequences.
    """
    if not sequences:
        raise ValueError("cannot collate an empty batch")
    lens = torch.tensor([len(sequence) for sequence in sequences])
    shape = (len(sequences), int(lens.max()), *sequences[0].shape[1:])
    codes = torch.full(shape, PAD_CODE, dtype=torch.int64)
    for row, sequence in zip(codes, sequences, strict=True):
        row[: len(sequence)] = torch.from_numpy(sequence.astype(np.int64, copy=False))
    return codes, lens


def check_codes(
    codes: np.ndarray,
    where: str,
    num_quantizers: int | None = None,
    codebook_size: int | None = None,
) -> None:
    """Refuse tokens that a model cannot embed.

    Args:
      codes: (T, Q) integers.
      where: Names them in the message, e.g. "cut piece-7".
      num_quantizers: Expected Q; None accepts any.
      codebook_size: Codes must be below it; None accepts any that are not negative.

    Raises:
      ValueError: No frames, another Q, or a code out of range.
    """
    T, Q = codes.shape
    if T == 0:
        raise ValueError(f"{where} has no frames; filter it out (--filter-min-duration)")
    if num_quantizers is not None and num_quantizers != Q:
        raise ValueError(
            f"{where} has {Q} quantizers, expected {num_quantizers}: pass --num-quantizers {Q}, or "
            "tokenise with the codec that was meant"
        )
    low, high = int(codes.min()), int(codes.max())
    if low < 0 or (codebook_size is not None and high >= codebook_size):
        limit = "0 or more" if codebook_size is None else f"0 to {codebook_size - 1}"
        raise ValueError(
            f"{where} has codes from {low} to {high}, expected {limit}: these tokens come from "
            "another codec, or are damaged; run egs/atepp/local/validate_manifests.py"
        )
