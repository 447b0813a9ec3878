"""Generation by the two halves: vectors of a condition in, codes out.

B rows, S condition frames, T new frames, N frames that are buffered, Q quantizers, V codebook size,
D model width.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from valle.models.ar import ARDecoder, ARState
from valle.models.condition import Condition, Known
from valle.models.nar import NARDecoder
from valle.models.options import Length
from valle.modules.cuda_graph import GraphedCall
from valle.modules.fused_step import FusedStep
from valle.modules.masks import FrameRange
from valle.modules.sampling import RowDraws, Sampling, sample, sample_unlike
from valle.modules.transformer import KVCache

UNKNOWN = -1
"""Stands where no code is, past the end of a row; in no codebook, so it cannot pass as a code."""

# Asking a device whether all rows have ended makes the host wait for it; a CPU knows at once.
END_CHECK_INTERVAL = 16

# Share of a batch that must have ended before the others move to memory of their own, which takes
# about a frame's time on a CPU; on a GPU a graph must be recorded anew.
_SHARE_TO_DROP_ON_CPU, _SHARE_TO_DROP = 0.25, 0.5

# Numbers that chance needs a frame, beside one for each quantizer: a second draw of the first.
NUM_REDRAWS = 1


def row_groups(num_rows: int, device: torch.device) -> Iterator[slice]:
    """Rows that pass through a half together: all on a GPU, one by one on a CPU.

    A CPU is no slower with one row of many frames than with several, computes no padding for it,
    and rounds it as if it were alone: a row is then the same to the last bit in any batch.
    """
    step = 1 if device.type == "cpu" else max(num_rows, 1)
    return (slice(start, start + step) for start in range(0, num_rows, step))


def prefill(
    ar: ARDecoder, condition: Condition, known: Known, cache: KVCache
) -> tuple[Tensor, Tensor]:
    """Read conditions into a cache.

    Args:
      ar: the autoregressive half, in eval mode.
      condition: of P rows.
      known: codes (P, K) of quantizer 1 that follow.
      cache: for as many rows.

    Returns:
      (P, V + 1) logits of the next frame, and (P,) frames read.
    """
    logits, lens = [], []
    for rows in row_groups(len(condition.lens), condition.lens.device):
        one_logits, one_lens = ar.prefill(condition.rows(rows), known.rows(rows), cache.rows(rows))
        logits.append(one_logits)
        lens.append(one_lens)
    return torch.cat(logits), torch.cat(lens)


class ARRows:
    """The rows of a batch while quantizer 1 grows. All tensors are static and written in place.

    Rows that have ended leave the batch, some at a time, as those that stay move to new memory.

    Args:
      ar: the autoregressive half, in eval mode.
      condition: of P prompts, for each of which there are B / P rows, side by side.
      known: codes (P, K) of quantizer 1 that follow it and are no new ones.
      recent: (B, K) the prompts' last codes of quantizer 1, `UNKNOWN` where there is none;
        K = `sampling.repetition_window`.
      length: when rows end.
      sampling: how codes are drawn.
      draws: `NUM_REDRAWS + Q` numbers a frame.
      buffer_frames: N, the most new frames that are kept at a time.
      max_len: the most frames that a row reads, its condition included.
      fused: reads a frame in one call, in the place of the layers.
    """

    def __init__(
        self,
        ar: ARDecoder,
        condition: Condition,
        known: Known,
        recent: Tensor,
        length: Length,
        sampling: Sampling,
        draws: RowDraws,
        buffer_frames: int,
        max_len: int,
        fused: FusedStep | None = None,
    ) -> None:
        B, device = len(draws.generators), condition.lens.device
        self.ar, self.length, self.sampling, self.draws = ar, length, sampling, draws
        self.codes = torch.full((B, buffer_frames), UNKNOWN, device=device)
        """(B, N) codes of quantizer 1 that are not yet forgotten."""
        self.uniforms = draws.take(buffer_frames)
        """(B, N, `NUM_REDRAWS + Q`) the numbers of the same frames."""
        self.lens = torch.zeros(B, dtype=torch.long, device=device)
        """(B,) new frames of each row since the start."""
        self.num_frames = 0
        """Frames drawn since the start."""
        self._recent = recent
        self._live = torch.arange(B, device=device)  # the rows that have not ended
        self._is_alive = torch.ones(B, dtype=torch.bool, device=device)
        self._last = torch.zeros(B, dtype=torch.long, device=device)
        self._most = self._most_frames(condition)  # of each living row
        # the host's counts once more for the device: frames since the start, frames in the buffer
        self._frame = torch.zeros(1, dtype=torch.long, device=device)
        self._column = torch.zeros(1, dtype=torch.long, device=device)
        self._first_logits, self._state = self._prefill(condition, known, max_len, fused)
        self._next_frame = GraphedCall(self._decode_and_draw, device)

    @property
    def have_ended(self) -> bool:
        return self._live.numel() == 0 or self.num_frames >= self.length.max_new_frames

    def add_frame(self) -> None:
        """Draw a frame of every row that has not ended."""
        if self.num_frames == 0:
            self._draw(self._first_logits)
        else:
            self._next_frame()
        self.num_frames += 1
        on_cpu = self.codes.device.type == "cpu"
        if on_cpu or self.num_frames % END_CHECK_INTERVAL == 0:
            self._drop_ended(_SHARE_TO_DROP_ON_CPU if on_cpu else _SHARE_TO_DROP)

    def forget(self, num_frames: int) -> None:
        """Drop the first frames of the buffers, to make room for as many new ones."""
        fresh = torch.full_like(self.codes[:, :num_frames], UNKNOWN)
        self.codes.copy_(torch.cat([self.codes[:, num_frames:], fresh], dim=1))
        numbers = self.draws.take(num_frames)
        self.uniforms.copy_(torch.cat([self.uniforms[:, num_frames:], numbers], dim=1))
        self._column -= num_frames

    def frames_read(self) -> dict[int, int]:
        """How many frames each living row will hold in its cache when its last code is read."""
        self._drop_ended(0.0)  # a window moves for the living alone
        return dict(zip(self._live.tolist(), (self._state.lens + 1).tolist(), strict=True))

    def read_again(self, row: int, condition: Condition, codes: Tensor) -> None:
        """Let a living row forget what it has read, and read this instead.

        Args:
          row: its index in the batch.
          condition: of this row alone.
          codes: (1, T) of quantizer 1, up to the last one drawn; which is read with the next frame.
        """
        i = self._live.tolist().index(row)
        known = Known(codes[:, :-1], torch.tensor([codes.shape[1] - 1], device=codes.device))
        cache = self._state.cache.rows(slice(i, i + 1))
        _, read = self.ar.prefill(condition, known, cache)
        self._state.lens[i : i + 1] = read
        if self._state.longest is not None:
            self._state.longest = int(self._state.lens.max())

    def _most_frames(self, condition: Condition) -> Tensor:
        """(B,) new frames after which a row has all that it may have: where its gap ends."""
        if condition.ahead is None:
            return torch.full_like(self._live, self.length.max_new_frames)
        gaps = condition.ahead.starts - condition.lens
        return gaps.repeat_interleave(len(self._live) // len(gaps))

    def _prefill(
        self, condition: Condition, known: Known, max_len: int, fused: FusedStep | None
    ) -> tuple[Tensor, ARState]:
        """Read each condition once, then give every sample of it a row of its own."""
        num_prompts, device = len(condition.lens), condition.lens.device
        cache = self.ar.decoder.new_cache(num_prompts, max_len)
        logits, lens = prefill(self.ar, condition, known, cache)
        out_of_time = condition.num_out_of_time
        num_samples = len(self._live) // num_prompts
        if num_samples > 1:
            rows = self._live // num_samples
            cache, logits, lens = cache.take(rows), logits[rows], lens[rows]
            out_of_time = None if out_of_time is None else out_of_time[rows]
        # a device works through the same launches every frame; a host can count what is cached
        longest = int(lens.max()) if device.type == "cpu" else None
        return logits, ARState(cache, lens, longest, fused, out_of_time)

    def _decode_and_draw(self) -> None:
        self._draw(self.ar.decode_one_frame(self._last, self._state))

    def _draw(self, logits: Tensor) -> None:
        """Draw a code for each living row, and note it."""
        eos, window = self.ar.eos_id, self.sampling.repetition_window
        logits[:, eos].masked_fill_(self._frame < self.length.first_end, -torch.inf)
        uniforms = self.uniforms[self._live, self._column]
        if window > 0:
            drawn = sample_unlike(logits, self.sampling, uniforms[:, :2], self._recent)
            self._recent.index_copy_(1, self._frame.remainder(window), drawn[:, None])
        else:
            drawn = sample(logits, self.sampling, uniforms[:, 0])
        self._is_alive &= (drawn != eos) & (self._frame < self._most)
        self._last.copy_(drawn.where(self._is_alive, 0))
        self.codes[self._live, self._column] = drawn.where(self._is_alive, UNKNOWN)
        self.lens[self._live] += self._is_alive
        self._frame += 1
        self._column += 1

    def _drop_ended(self, share: float) -> None:
        """Take rows that have ended out of the batch, where at least this share of it has."""
        kept = self._is_alive.nonzero()[:, 0]
        num_ended = len(self._live) - len(kept)
        if num_ended == 0 or num_ended < share * len(self._live):
            return
        self._live, self._last, self._recent, self._most = (
            t[kept] for t in (self._live, self._last, self._recent, self._most)
        )
        self._is_alive = self._is_alive[kept]
        state = self._state
        longest = None
        if state.longest is not None and len(kept):
            longest = int(state.lens[kept].max())
        out_of_time = state.num_out_of_time
        out_of_time = None if out_of_time is None else out_of_time[kept]
        self._state = ARState(
            state.cache.take(kept), state.lens[kept], longest, state.fused, out_of_time
        )
        self._next_frame = GraphedCall(self._decode_and_draw, self.codes.device)


def generate_ar(
    rows: ARRows, num_frames: int, progress: Callable[[int], None] | None = None
) -> None:
    """Let quantizer 1 grow to `num_frames` new frames a row, or to the end of all rows.

    Args:
      rows: what to go on with.
      num_frames: counted from the start.
      progress: called after every frame with the number of new frames so far.
    """
    while rows.num_frames < num_frames and not rows.have_ended:
        rows.add_frame()
        if progress is not None:
            progress(rows.num_frames)


def generate_nar(
    nar: NARDecoder,
    condition: Condition,
    known: Known,
    first_codes: Tensor,
    code_lens: Tensor,
    sampling: Sampling,
    uniforms: Tensor,
) -> Tensor:
    """Quantizers 2 to Q of frames whose quantizer 1 is known, in Q - 1 passes.

    Args:
      nar: the non-autoregressive half, in eval mode.
      condition: of B rows, as `nar.read` gives it, and with it `known`: codes (B, K, Q) of frames
        before the new ones.
      first_codes: (B, T) codes of quantizer 1; `code_lens` (B,).
      sampling: how codes are drawn.
      uniforms: (B, T, Q) numbers in [0, 1), for each quantizer.

    Returns:
      (B, T, Q) codes, `UNKNOWN` past a row's end.
    """
    B, T = first_codes.shape
    codes = torch.full((B, T, nar.stages[-1] + 1), UNKNOWN, device=first_codes.device)
    for rows in row_groups(B, first_codes.device):
        longest = int(code_lens[rows].max())
        if longest > 0:
            new = Known(first_codes[rows, :longest], code_lens[rows])
            part = condition.rows(rows), known.rows(rows)
            codes[rows, :longest] = _in_passes(nar, *part, new, sampling, uniforms[rows, :longest])
    return codes


def _in_passes(
    nar: NARDecoder,
    condition: Condition,
    known: Known,
    new: Known,
    sampling: Sampling,
    uniforms: Tensor,
) -> Tensor:
    """Codes (B, T, Q) of new frames, of which `new` has quantizer 1, (B, T)."""
    new = Known(new.codes.where(new.mask, 0)[:, :, None], new.lens)
    for stage in nar.stages:
        frames = Known(known.codes[:, :, :stage], known.lens).then(*new)
        stages = torch.full((len(new.lens),), stage)
        logits = nar(condition, *frames, stages)
        logits = FrameRange(known.lens, new.codes.shape[1]).take_from(logits)
        drawn = sample(logits, sampling, uniforms[:, :, stage])
        new = Known(torch.cat([new.codes, drawn[:, :, None]], dim=2), new.lens)
    return new.codes.where(new.mask[:, :, None], UNKNOWN)
