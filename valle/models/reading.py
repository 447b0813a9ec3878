"""Text and MIDI events as vectors: what makes a VALL-E of two halves.

Each half has a reader of its own. An AudioLM has none.

B batch, S ids or events, D model width.
"""

import torch
from torch import Tensor, nn

from valle.utils.vocabulary import (
    BAR,
    MIDI_FIELDS,
    MIDI_SEC,
    NUM_SPECIALS,
    POSITION,
    TICKS_PER_BAR,
    TICKS_PER_SEC,
)


class TextReader(nn.Module):
    """A vector for each symbol.

    Time has no part in a text, so its places are counted from 0, as those of the frames are.
    """

    def __init__(self, num_tokens: int, d_model: int):
        super().__init__()
        self.table = nn.Embedding(num_tokens, d_model)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, S) ids to (B, S, D)."""
        return self.table(tokens)

    def places(self, tokens: Tensor) -> Tensor:
        """(B, S) where in time the vectors stand, in frames."""
        order = torch.arange(tokens.shape[1], device=tokens.device)
        return order.float().expand(tokens.shape)

    def later(self, tokens: Tensor, num_frames: Tensor) -> Tensor:
        """The same text, so many frames (B,) later: as it has no times, no other."""
        return tokens


class MidiReader(nn.Module):
    """A vector for each event, of those of its six fields (MIDI-VALLE, arXiv 2507.08530).

    A note's place in time is known, its bar and position tell it. So it is put there: to the
    attention a note is as near to the frames in which it is struck as these are to each other.

    Args:
      d_model: D.
      frame_rate: frames a second of the codes that the events belong to.
    """

    WIDTHS = (32, 32, 256, 128, 64, 32)  # of the fields, as in MIDI-VALLE

    def __init__(self, d_model: int, frame_rate: float):
        super().__init__()
        self.frames_per_tick = frame_rate / TICKS_PER_SEC
        self.tables = nn.ModuleList(
            nn.Embedding(field.num_ids, width)
            for field, width in zip(MIDI_FIELDS, self.WIDTHS, strict=True)
        )
        self.project = nn.Linear(sum(self.WIDTHS), d_model)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, S, 6) events to (B, S, D)."""
        fields = [table(tokens[:, :, i]) for i, table in enumerate(self.tables)]
        return self.project(torch.cat(fields, dim=-1))

    def places(self, tokens: Tensor) -> Tensor:
        """(B, S) frames at which the notes are struck; BOS is at 0, EOS with the last note."""
        is_note = tokens[:, :, BAR] >= NUM_SPECIALS
        ticks = _onsets(tokens).where(is_note, 0).cummax(dim=1).values
        return ticks * self.frames_per_tick

    def later(self, tokens: Tensor, num_frames: Tensor) -> Tensor:
        """The same notes, so many frames (B,) later, or at the very end of what events can tell."""
        ticks = (num_frames / self.frames_per_tick).round().long()
        last = round(MIDI_SEC * TICKS_PER_SEC) - 1
        onsets = (_onsets(tokens) + ticks[:, None]).clamp(max=last)
        is_note = tokens[:, :, BAR] >= NUM_SPECIALS
        moved = tokens.clone()
        moved[:, :, POSITION] = onsets % TICKS_PER_BAR + NUM_SPECIALS
        moved[:, :, BAR] = onsets.div(TICKS_PER_BAR, rounding_mode="floor") + NUM_SPECIALS
        return moved.where(is_note[:, :, None], tokens)


def _onsets(tokens: Tensor) -> Tensor:
    """(B, S) ticks at which the notes are struck; of special rows without meaning."""
    bar, position = (tokens[:, :, i] - NUM_SPECIALS for i in (BAR, POSITION))
    return bar * TICKS_PER_BAR + position


Reader = TextReader | MidiReader


def make_reader(condition: str, num_text_tokens: int, frame_rate: float, d_model: int) -> Reader:
    """The reader of a condition in `CONDITIONS`."""
    if condition == "text":
        return TextReader(num_text_tokens, d_model)
    return MidiReader(d_model, frame_rate)


def num_ids(condition: str, num_text_tokens: int) -> Tensor:
    """How many ids there are: of a text (), of MIDI (6,) one a field."""
    if condition == "text":
        return torch.tensor(num_text_tokens)
    return torch.tensor([field.num_ids for field in MIDI_FIELDS])
