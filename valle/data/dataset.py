"""Cuts -> a batch of codes. Letters: B batch, T frames, Q quantizers."""

from typing import Any

import numpy as np
import torch
from lhotse import CutSet

from valle.data.collation import check_codes, collate_codes
from valle.data.manifest import cut_codes, frame_shift_of, reaches_end


class TokenDataset(torch.utils.data.Dataset):
    """Maps a batch of cuts, as lhotse's samplers yield it, to tensors.

    It holds no open files and no random state: workers may be forked, spawned or kept, and a batch
    depends on its cuts alone.

    Each item is a dict::

        {
            "utt_id": list[str] of length B, the ids of the cuts,
            "audio_features": (B, T, Q) int64 codes, 0 beyond each row's length,
            "audio_features_lens": (B,) int64 frames of each row,
            "reaches_end": (B,) bool, True where the cut ends at its recording's end,
        }

    Args:
      num_quantizers: Expected Q; None accepts any that all cuts of a batch share.
      codebook_size: Codes must be below it; None accepts any that are not negative.
    """

    def __init__(self, num_quantizers: int | None = None, codebook_size: int | None = None) -> None:
        self.num_quantizers = num_quantizers
        self.codebook_size = codebook_size

    def __getitem__(self, cuts: CutSet) -> dict[str, Any]:
        """Load, check and pad; the fields of the result are those in the class description.

        Raises:
          ValueError: Tokens of another Q, range or length than expected; names the cut.
        """
        batch = list(cuts)
        sequences = [cut_codes(cut) for cut in batch]
        num_quantizers = self.num_quantizers or sequences[0].shape[1]
        for cut, sequence in zip(batch, sequences, strict=True):
            check_codes(sequence, f"cut {cut.id}", num_quantizers, self.codebook_size)
            _check_length(cut, sequence)
        codes, lens = collate_codes(sequences)
        ends = [reaches_end(cut, frame_shift_of(cut) or 0.0) for cut in batch]
        return {
            "utt_id": [cut.id for cut in batch],
            "audio_features": codes,
            "audio_features_lens": lens,
            "reaches_end": torch.tensor(ends),
        }


def _check_length(cut: Any, codes: np.ndarray) -> None:
    """Tokens and cut must tell of the same span, within a frame (codecs round up, lhotse to
    nearest).
    """
    shift = frame_shift_of(cut)
    expected = cut.duration / shift if shift else len(codes)
    if abs(len(codes) - expected) > 1.0 + 1e-6:
        raise ValueError(
            f"cut {cut.id} lasts {cut.duration} s, {expected:.1f} frames, but {len(codes)} frames "
            "of tokens were found: the stored tokens are cut off or belong to another recording"
        )
