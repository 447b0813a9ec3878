"""Sound from codes that are still being made: the codec's decoder, fed chunk by chunk.

The decoder is three parts in a row: local layers (a convolution), an LSTM, and local layers again
(the upsampling ones); DAC's is local layers alone. The LSTM's state is carried from chunk to chunk.
Local layers see a few frames to either side and nothing beyond, so they get each chunk with these
frames around it, and what they make of the surroundings is dropped. Hence nothing is approximated:
the chunks, joined, are the sound of one pass over the whole sequence, up to the rounding of float32
sums.

Letters: B batch, C frames of a chunk, T frames, Q quantizers, D channels, N samples.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch import Tensor, nn

# No decoder of these kinds looks further to one side; published ones look at most 10 frames.
_FARTHEST_FRAMES = 32
# A longer chunk is taken in pieces, so that its length does not decide the memory.
_PIECE_FRAMES = 500


class Reach(NamedTuple):
    """How many frames local layers see besides the frame itself."""

    left: int
    right: int


class DecoderParts:
    """A decoder taken apart where its LSTM stands, if it has one. Weights are shared, not copied.

    Args:
      embed: Codes (B, Q, T) -> latents (B, D, T).
      before: Local layers before the LSTM; keep the number of frames.
      lstm: None for a decoder of local layers alone, which all stand in `after`.
      after: Local layers behind it, (B, any, T) -> (B, 1, T * hop_length).
      width: D.
      hop_length: Samples a frame.

    Raises:
      ValueError: The local layers look too far ahead or back.
    """

    def __init__(
        self,
        embed: Callable[[Tensor], Tensor],
        before: nn.Module,
        lstm: nn.LSTM | None,
        after: nn.Module,
        width: int,
        hop_length: int,
    ) -> None:
        self.embed, self.before, self.lstm, self.after = embed, before, lstm, after
        self.hop_length = hop_length
        self.device = next(after.parameters()).device
        width_after = width if lstm is None else lstm.hidden_size
        self.reach_before = measure_reach(before, width, 1, self.device)
        self.reach_after = measure_reach(after, width_after, hop_length, self.device)

    @property
    def num_right_frames(self) -> int:
        """How many later codes decide a frame's sound: so late it comes out of a stream."""
        return self.reach_before.right + self.reach_after.right


def measure_reach(
    layers: nn.Module, dim: int, units_out: int, device: torch.device | str = "cpu"
) -> Reach:
    """See how far local layers look: a NaN in one frame shows in every frame that looks at it.

    Args:
      layers: (1, D, T) -> (1, any, T * units_out).
      dim: D.
      units_out: Entries of the result a frame.
      device: Where the layers are.

    Raises:
      ValueError: They look further than 32 frames, or everywhere.
    """
    middle, T = _FARTHEST_FRAMES, 2 * _FARTHEST_FRAMES + 1
    probe = torch.zeros(1, dim, T, device=device)
    probe[:, :, middle] = torch.nan
    # without cuDNN, which may convolve by Fourier transforms: these spread a NaN everywhere
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=False):
        touched = layers(probe).isnan().reshape(-1, T, units_out).any(2).any(0)  # (T,)
    frames = touched.nonzero()[:, 0].tolist()
    if frames[0] == 0 or frames[-1] == T - 1:
        raise ValueError(
            f"this codec's decoder looks {middle} frames or more to one side, expected fewer: it "
            "cannot be streamed, decode the whole sequence instead"
        )
    return Reach(left=frames[-1] - middle, right=middle - frames[0])


class _Window:
    """Local layers fed piece by piece; the results, joined, equal one pass over everything.

    Both ends of the sequence meet the layers' own padding, as in one pass. Only as many frames are
    held as the layers look back and ahead.

    Args:
      layers: (1, D, T) -> (1, any, T * units_out).
      reach: How far they look.
      units_out: Entries of the result a frame.
    """

    def __init__(self, layers: nn.Module, reach: Reach, units_out: int) -> None:
        self._layers, self._reach, self._units = layers, reach, units_out
        self._held: Tensor | None = None
        self._num_done = 0  # held frames that have their result: they are left context now

    def feed(self, frames: Tensor | None, last: bool) -> Tensor | None:
        """Take (1, D, C), give (1, any, N); None stands for no frames."""
        parts = [part for part in (self._held, frames) if part is not None]
        held = torch.cat(parts, dim=2) if parts else None
        self._held = held
        done, stop = self._num_done, self._num_ready(0 if held is None else held.shape[2], last)
        if held is None or stop <= done:
            return None
        start = max(0, stop - self._reach.left)
        self._held, self._num_done = held[:, :, start:].clone(), stop - start
        return self._layers(held)[:, :, done * self._units : stop * self._units]

    def _num_ready(self, num_held: int, last: bool) -> int:
        # The padding on the left may mirror the first frames: these wait until the window is
        # longer than any mirror image. Later there is always as much left context.
        left, right = self._reach
        if last:
            return num_held
        return num_held - right if num_held > left + right else 0


class _Row:
    """One sequence on its way through the decoder, and the sound that waits to be taken.

    Args:
      parts: The decoder.
    """

    def __init__(self, parts: DecoderParts) -> None:
        self._parts = parts
        self._before = _Window(parts.before, parts.reach_before, 1)
        self._after = _Window(parts.after, parts.reach_after, parts.hop_length)
        self._state: tuple[Tensor, Tensor] | None = None
        self._ready = torch.zeros(0)
        self.ended = False

    @property
    def num_ready(self) -> int:
        """Samples that can be taken."""
        return self._ready.shape[0]

    def feed(self, codes: Tensor, last: bool) -> None:
        """Take (C, Q) codes; with `last` the sequence ends here, and all its sound is ready."""
        pieces = codes.split(_PIECE_FRAMES)  # a single empty piece where there are no codes
        sounds = [self._decode(p, last and i + 1 == len(pieces)) for i, p in enumerate(pieces)]
        self._ready = torch.cat([self._ready, *sounds])
        self.ended = last

    def take(self, num_samples: int) -> Tensor:
        """Hand out (num_samples,) of the sound, filled up with zeros where it has ended."""
        taken, self._ready = self._ready[:num_samples], self._ready[num_samples:].clone()
        return nn.functional.pad(taken, (0, num_samples - taken.shape[0]))

    def _decode(self, codes: Tensor, last: bool) -> Tensor:
        """(C, Q) -> (N,) on the CPU."""
        frames = None
        if codes.shape[0]:
            frames = self._parts.embed(codes.T[None].to(self._parts.device))  # (1, D, C)
        frames = self._before.feed(frames, last)
        frames = None if frames is None else self._remember(frames)
        sound = self._after.feed(frames, last)
        return torch.zeros(0) if sound is None else sound[0, 0].cpu()

    def _remember(self, frames: Tensor) -> Tensor:
        """The LSTM, if there is one, and the connection around it: (1, D, C) -> (1, D, C)."""
        if self._parts.lstm is None:
            return frames
        inputs = frames.permute(2, 0, 1)  # (C, 1, D)
        outputs, self._state = self._parts.lstm(inputs, self._state)
        return (outputs + inputs).permute(1, 2, 0)


class StreamDecoder:
    """Turns codes into sound while they are being made; `Codec.stream_decoder` makes one.

    All rows are on one clock: sample i of every row comes out in the same call, and what comes
    out, joined along N, is the sound of one pass over all codes, zeros behind rows that have ended
    included. So it is what `Codec.decode` gives for up to 30 s; beyond, `decode` approximates.

    The sound of a frame depends on a few codes after it, so it comes out `num_right_frames` late:
    a frame's sound is certain when these codes are there, or when the row has ended. (The first
    sound waits for a few codes more, until no padding at the start can depend on later ones.)
    Memory and time of a call depend on its chunk alone, never on what came before.

    Args:
      parts: The decoder.
      num_rows: B, sequences decoded side by side.
      check: Codes and their lengths as the caller gave them -> (B,) lengths, or ValueError.
      precisely: Opens the context in which the codec computes.

    Raises:
      ValueError: `num_rows` below 1.
    """

    def __init__(
        self,
        parts: DecoderParts,
        num_rows: int,
        check: Callable[[Tensor, Tensor | None], Tensor],
        precisely: Callable[[], AbstractContextManager[None]],
    ) -> None:
        if num_rows < 1:
            raise ValueError(f"num_rows is {num_rows}, expected 1 or more")
        self.num_right_frames = parts.num_right_frames
        self._rows = [_Row(parts) for _ in range(num_rows)]
        self._check, self._precisely = check, precisely
        self._finished = False

    def feed(self, codes: Tensor, lens: Tensor | None = None) -> Tensor:
        """Take the next codes of each row, give the sound that is certain by now.

        Args:
          codes: (B, C, Q) integers in [0, codebook_size); C may change from call to call and may
            be 0; Q may be smaller than the codec's.
          lens: (B,) frames of each row; None where all are full. A row with fewer than C frames
            ends with them; later it must have 0.

        Returns:
          (B, N) float32 on the CPU, zeros where a row has ended. N is a multiple of the hop length,
          0 at first.

        Raises:
          ValueError: Another number of rows; codes or lengths that `Codec.decode` refuses; frames
            for a row that has ended, or for a finished decoder.
        """
        self._check_open()
        if codes.ndim == 3 and codes.shape[0] != len(self._rows):
            raise ValueError(
                f"codes have {codes.shape[0]} rows, expected {len(self._rows)}: a stream decoder "
                "keeps its rows, one that has ended has 0 in lens"
            )
        counts = self._check(codes, lens).tolist()
        self._check_ended(counts)
        codes = codes.detach().cpu().long()
        with self._precisely():
            for row, frames, count in zip(self._rows, codes, counts, strict=True):
                if not row.ended:
                    row.feed(frames[:count], last=count < codes.shape[1])
        return self._take()

    def finish(self) -> Tensor:
        """End all rows and give the rest of the sound; nothing can be fed afterwards.

        Returns:
          (B, N) float32 on the CPU: what waited for later codes.

        Raises:
          ValueError: Finished before.
        """
        self._check_open()
        self._finished = True
        with self._precisely():
            for row in self._rows:
                if not row.ended:
                    row.feed(torch.zeros(0, 1, dtype=torch.long), last=True)
        return self._take()

    def _take(self) -> Tensor:
        """What every row has ready; rows that have ended hold no other row back."""
        going_on = [row.num_ready for row in self._rows if not row.ended]
        num_samples = min(going_on) if going_on else max(row.num_ready for row in self._rows)
        return torch.stack([row.take(num_samples) for row in self._rows])

    def _check_open(self) -> None:
        if self._finished:
            raise ValueError("this stream decoder is finished; take a new one for other codes")

    def _check_ended(self, counts: Sequence[int]) -> None:
        for index, (row, count) in enumerate(zip(self._rows, counts, strict=True)):
            if row.ended and count:
                raise ValueError(
                    f"row {index} (from 0) ended in an earlier chunk and got {count} more frames, "
                    "expected 0: a row ends with the first chunk that it does not fill, give lens"
                )
