"""Cuts -> a batch of codes, and of what they are conditioned on.

Letters: B batch, T frames, Q quantizers, S events or symbols, P prompt frames.
"""

from typing import Any

import numpy as np
import torch
from lhotse import CutSet
from torch import Tensor

from valle.data.collation import check_codes, collate_codes
from valle.data.conditions import midi_events, text_symbols
from valle.data.elsewhere import codes_elsewhere
from valle.data.manifest import cut_codes, frame_shift_of, reaches_end
from valle.data.text import SymbolTable
from valle.utils.vocabulary import CONDITIONS


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
            # with condition "midi"
            "midi_tokens": (B, S, 6) int64 events, BOS first and EOS last, 0 beyond,
            "midi_tokens_lens": (B,) int64 events of each row,
            # with condition "text"
            "text_tokens": (B, S) int64 ids, <bos> first and <eos> last, 0 beyond,
            "text_tokens_lens": (B,) int64 ids of each row,
            # with elsewhere_sec
            "prompts": (B, P, Q) int64 codes from elsewhere in each cut's recording, 0 beyond,
            "prompts_lens": (B,) int64 frames of each row, 0 where there is nothing else,
        }

    Args:
      num_quantizers: Expected Q; None accepts any that all cuts of a batch share.
      codebook_size: Codes must be below it; None accepts any that are not negative.
      condition: "text" or "midi", that every cut must carry; None passes over what they carry.
      symbols: The table of ids, for "text".
      elsewhere_sec: Length of the prompts from elsewhere; 0 for none.
      refuse_unknown: Whether a symbol that the table does not have is an error, as in training,
        whose own texts made the table; else it is left out, and the log names it.

    Raises:
      ValueError: An unknown condition, or text without a table.
    """

    def __init__(
        self,
        num_quantizers: int | None = None,
        codebook_size: int | None = None,
        condition: str | None = None,
        symbols: SymbolTable | None = None,
        elsewhere_sec: float = 0.0,
        refuse_unknown: bool = True,
    ) -> None:
        if condition not in (None, *CONDITIONS):
            raise ValueError(f"condition is {condition!r}, expected one of {CONDITIONS}, or None")
        if condition == "text" and symbols is None:
            raise ValueError("batches of text need a table of symbols: give symbols")
        self.num_quantizers = num_quantizers
        self.codebook_size = codebook_size
        self.condition = condition
        self.symbols = symbols
        self.elsewhere_sec = elsewhere_sec
        self.refuse_unknown = refuse_unknown

    def __getitem__(self, cuts: CutSet) -> dict[str, Any]:
        """Load, check and pad; the fields of the result are those in the class description.

        Raises:
          ValueError: Tokens of another Q, range or length than expected, a cut without the
            condition, or with one that cannot be embedded; names the cut.
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
            **self._conditions(batch),
            **self._prompts(batch, num_quantizers),
        }

    def _conditions(self, batch: list[Any]) -> dict[str, Tensor]:
        if self.condition is None:
            return {}
        read = midi_events if self.condition == "midi" else self._text_ids
        ids, lens = collate_codes([read(cut) for cut in batch])
        return {f"{self.condition}_tokens": ids, f"{self.condition}_tokens_lens": lens}

    def _text_ids(self, cut: Any) -> np.ndarray:
        assert self.symbols is not None
        symbols = text_symbols(cut)
        if self.refuse_unknown:
            unknown = sorted(set(symbols).difference(self.symbols.symbols))
            if unknown:
                raise ValueError(
                    f"cut {cut.id} has symbols that the table of {len(self.symbols)} does not "
                    f"have: {' '.join(unknown)}. Give the table that was written with these cuts "
                    "(--text-tokens), or tokenise again"
                )
        return np.array(self.symbols.ids(symbols))

    def _prompts(self, batch: list[Any], num_quantizers: int) -> dict[str, Tensor]:
        if self.elsewhere_sec <= 0:
            return {}
        prompts = [codes_elsewhere(cut, self.elsewhere_sec) for cut in batch]
        for cut, prompt in zip(batch, prompts, strict=True):
            if len(prompt):
                where = f"the recording of cut {cut.id}"
                check_codes(prompt, where, num_quantizers, self.codebook_size)
        codes, lens = collate_codes(prompts)
        return {"prompts": codes, "prompts_lens": lens}


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
