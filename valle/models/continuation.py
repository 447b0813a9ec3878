"""A piece as it grows: quantizer 1 ahead, the other quantizers following a chunk at a time.

P prompts, B rows (the samples of a prompt side by side), S prompt frames, C chunk frames, T frames,
Q quantizers.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from valle.models.ar import ARDecoder
from valle.models.condition import Condition, Given, Known
from valle.models.generation import (
    NUM_REDRAWS,
    UNKNOWN,
    ARRows,
    generate_ar,
    generate_nar,
)
from valle.models.nar import NARDecoder
from valle.models.options import GenerationOptions
from valle.modules.fused_step import FusedStep
from valle.modules.sampling import RowDraws


class Continuation:
    """One generation, from its prompts to its end.

    A row depends on its own prompt and generator alone. Memory is bounded by
    `options.windows`, and by nothing where these have no bound.

    Args:
      ar: the autoregressive half, and `nar` the other one, in eval mode.
      prompts: P tensors (S, Q) of codes, which may be empty where something else is given.
      generators: on the CPU, for each of the B = P x `options.num_samples` rows.
      options: what is asked.
      fused: reads a frame in one call, in the place of the layers.
      progress: called after every frame of quantizer 1 with the number of new frames.
      given: text or events of the P prompts and what is to follow them.
    """

    def __init__(
        self,
        ar: ARDecoder,
        nar: NARDecoder,
        prompts: Sequence[Tensor],
        generators: Sequence[torch.Generator],
        options: GenerationOptions,
        fused: FusedStep | None = None,
        progress: Callable[[int], None] | None = None,
        given: Given | None = None,
    ) -> None:
        self.given = given
        self.ar, self.nar, self.options, self.progress = ar, nar, options, progress
        self.windows, self.max_new = options.windows, options.max_new_tokens
        self.chunk = self.windows.chunk_frames or self.max_new
        self._buffered = min(self.chunk + self.windows.lookahead, self.max_new)
        self._num_done = 0  # new frames that are complete
        kept = self.windows.kept
        self._complete = [
            p[-kept:] if kept else p for p in prompts for _ in range(options.num_samples)
        ]
        self._prompt_lens = [len(p) for p in prompts for _ in range(options.num_samples)]
        self._rows = self._read_prompts(prompts, generators, fused)

    def chunks(self) -> Iterator[Tensor]:
        """New frames as they are completed, (B, up to C, Q), `UNKNOWN` past a row's end."""
        while self._num_done < self.max_new:
            heard = self._num_done + self.chunk + self.windows.lookahead
            generate_ar(self._rows, min(heard, self.max_new), self.progress)
            if self._num_done >= int(self._rows.lens.max()):
                return
            codes = self._complete_chunk()
            if self._num_done < self.max_new:
                self._rows.forget(self.chunk)
                self._move_windows()
            yield codes

    def _read_prompts(
        self,
        prompts: Sequence[Tensor],
        generators: Sequence[torch.Generator],
        fused: FusedStep | None,
    ) -> ARRows:
        context = self.windows.window
        if context:
            room = context - self._buffered
            kept = context - self.windows.stride_frames
            prompts = [p if len(p) <= room else p[-kept:] for p in prompts]
        device = prompts[0].device
        lens = torch.tensor([len(p) for p in prompts], device=device)
        condition, known = self.ar.read(
            pad_sequence(list(prompts), batch_first=True), lens, self.given
        )
        longest = int((condition.lens + known.lens).max()) + self.max_new
        return ARRows(
            self.ar,
            condition,
            known,
            recent_codes(self._complete, self.options.repetition_window),
            self.options.length,
            self.options.ar_sampling,
            RowDraws(generators, NUM_REDRAWS + prompts[0].shape[1], device),
            buffer_frames=self._buffered,
            max_len=min(longest, context or longest) + self.ar.num_bos,
            fused=fused,
        )

    def _complete_chunk(self) -> Tensor:
        """Quantizers 2 to Q of the next chunk, (B, up to C, Q)."""
        num_heard = (self._rows.lens - self._num_done).clamp(0, self._buffered)
        counts = num_heard.tolist()
        rows = [b for b, count in enumerate(counts) if count > 0]
        index = torch.tensor(rows, device=num_heard.device)
        done = generate_nar(
            self.nar,
            *self._read_before(rows, index),
            self._rows.codes[index, : max(counts)],
            num_heard[index],
            self.options.nar_sampling,
            self._rows.uniforms[index, : max(counts), NUM_REDRAWS:],
        )[:, : self.chunk]
        for b, codes in zip(rows, done, strict=True):
            self._remember(b, codes[: counts[b]])
        self._num_done += self.chunk
        chunk = torch.full((len(counts), *done.shape[1:]), UNKNOWN, device=done.device)
        chunk[index] = done
        return chunk

    def _read_before(self, rows: Sequence[int], index: Tensor) -> tuple[Condition, Known]:
        """What the NAR half reads of complete frames; `index` (N,) is `rows` on the device."""
        before = [self._complete[b] for b in rows]
        if self.windows.nar_context:
            before = [codes[-self.windows.nar_context :] for codes in before]
        lens = torch.tensor([len(codes) for codes in before], device=index.device)
        frames = pad_sequence(before, batch_first=True)
        if self.given is None:
            return self.nar.read(frames, lens)
        ends = torch.tensor([self._prompt_lens[b] + self._num_done for b in rows])
        given = self.given.take(index // self.options.num_samples)
        return self.nar.read(frames, lens, given, ends.to(index.device))

    def _remember(self, row: int, codes: Tensor) -> None:
        """Keep complete frames for as long as a half may read them."""
        kept = self.windows.kept
        self._complete[row] = torch.cat([self._complete[row], codes])[-kept if kept else 0 :]

    def _move_windows(self) -> None:
        """Where another chunk would not fit into a row's context, drop the oldest of it."""
        context = self.windows.window
        if not context or self._rows.have_ended:
            return
        heard = self._rows.num_frames - self._num_done  # drawn, but not complete
        for row, num_read in self._rows.frames_read().items():
            if num_read - self.ar.num_bos + self.chunk <= context:
                continue
            codes, complete = self._rows.codes[row, :heard], self._complete[row]
            if heard == 0:  # the last code is read with the next frame
                codes, complete = complete[-1:, 0], complete[:-1]
            kept = context - self.windows.stride_frames - len(codes)
            lens = torch.tensor([min(kept, len(complete))], device=codes.device)
            condition, _ = self.ar.read(complete[None, -kept:], lens)
            self._rows.read_again(row, condition, codes[None])


def recent_codes(rows: Sequence[Tensor], window: int) -> Tensor:
    """The last codes (B, K) of quantizer 1 that repetition is measured against.

    Args:
      rows: B tensors (T, Q) of codes.
      window: K; a row of fewer frames has `UNKNOWN` first.
    """
    recent = torch.full((len(rows), window), UNKNOWN, device=rows[0].device)
    for row, codes in zip(recent, rows, strict=True):
        last = codes[max(len(codes) - window, 0) :, 0]
        row[window - len(last) :] = last  # new codes take the first places, where nothing is
    return recent
