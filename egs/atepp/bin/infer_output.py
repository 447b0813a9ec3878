"""What infer.py and infer_audiolm.py leave: sound files, whole or growing; and how fast it was.

C frames of a chunk, Q quantizers, N samples.
"""

import logging
import resource
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import soundfile
import torch
from torch import Tensor
from tqdm import tqdm

from valle.data import Codec, GrowingWav
from valle.models.generation import UNKNOWN
from valle.utils.files import written_whole


class Meter(AbstractContextManager["Meter"]):
    """A progress bar while at work, a summary afterwards.

    Args:
      most_frames: of all batches, the longest row of each.
      frame_rate: frames a second of sound.
      device: what is measured.
    """

    def __init__(self, most_frames: int, frame_rate: float, device: torch.device) -> None:
        self._frame_rate, self._device = frame_rate, device
        self._bar = tqdm(total=most_frames, unit="frame", disable=None)
        self._num_frames, self._started = 0, time.perf_counter()
        self._first_after: float | None = None

    def progress(self) -> Callable[[int], None]:
        """A callback for the frames of one batch."""
        start = self._bar.n

        def update(num_frames: int) -> None:
            self._bar.update(start + num_frames - self._bar.n)

        return update

    def count(self, num_frames: int) -> None:
        """Note frames, of all rows together, that are complete."""
        self._num_frames += num_frames

    def note_sound(self) -> None:
        """Note that sound has left for its listener."""
        if self._first_after is None:
            self._first_after = time.perf_counter() - self._started

    def summary(self) -> str:
        """Seconds, frames a second, real-time factor, memory."""
        seconds, sound = self._seconds, self._num_frames / self._frame_rate
        first = self._first_after
        return (
            f"{self._num_frames} frames ({sound:.1f} s of sound) in {seconds:.1f} s: "
            f"{self._num_frames / seconds:.0f} frames/s, {sound / seconds:.2f} x real time, "
            + (f"first new sound after {first:.2f} s, " if first is not None else "")
            + f"peak memory {self._memory()}"
        )

    def _memory(self) -> str:
        # bytes on macOS, KiB elsewhere
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
        if self._device.type != "cuda":
            return f"{peak:.0f} MiB"
        return f"{peak:.0f} MiB, on the GPU {torch.cuda.max_memory_allocated() / 2**20:.0f} MiB"

    def __exit__(self, *error: object) -> None:
        self._seconds = time.perf_counter() - self._started
        self._bar.close()


class Sink(Protocol):
    """Takes the sound of one piece, (N,) at a time."""

    def write(self, samples: Tensor) -> None: ...

    def close(self) -> None: ...


class GrowingFiles:
    """The two files of `write_sounds`, playable at any time while they grow."""

    def __init__(self, folder: Path, name: str, num_prompt_samples: int, rate: int) -> None:
        self._full = GrowingWav(folder / f"{name}_full.wav", rate)
        self._continuation = GrowingWav(folder / f"{name}_continuation.wav", rate)
        self._num_prompt_samples = num_prompt_samples

    def write(self, samples: Tensor) -> None:
        still_prompt = max(self._num_prompt_samples - self._full.num_samples, 0)
        self._full.write(samples)
        self._continuation.write(samples[still_prompt:])

    def close(self) -> None:
        for wav in (self._full, self._continuation):
            wav.close()
            logging.info(f"{wav.path}: {wav.num_samples / wav.sampling_rate:.2f} s")


class StreamedPiece(AbstractContextManager["StreamedPiece"]):
    """A prompt and its continuation on their way from codes to a sink.

    Args:
      codec: of the codes.
      prompt: (S, Q) codes, whose sound comes first.
      sink: where the sound goes; closed at the end.
    """

    def __init__(self, codec: Codec, prompt: Tensor, sink: Sink) -> None:
        self._decoder, self._prompt, self._sink = codec.stream_decoder(), prompt, sink
        self._has_ended = False

    def __enter__(self) -> "StreamedPiece":
        if len(self._prompt):
            self._sink.write(self._decoder.feed(self._prompt[None])[0])
        return self

    def feed(self, codes: Tensor) -> int:
        """Take (C, Q) codes, `UNKNOWN` past the end; return how many frames there were."""
        real = codes[codes[:, 0] != UNKNOWN]
        if len(real):
            self._sink.write(self._decoder.feed(real[None])[0])
        if len(real) < len(codes):
            self.finish()
        return len(real)

    def finish(self) -> None:
        """Send the last frames, which waited for later ones; once."""
        if not self._has_ended:
            self._has_ended = True
            self._sink.write(self._decoder.finish()[0])

    def __exit__(self, *error: object) -> None:
        self._sink.close()


def write_sounds(
    folder: Path,
    names: list[str],
    codes: Tensor,
    lens: Tensor,
    prompt_lens: Tensor,
    codec: Codec,
    endings: tuple[str | None, str] = ("_full", "_continuation"),
) -> None:
    """Write whole pieces: `NAME_full.wav`, and `NAME_continuation.wav` without the prompt.

    `endings` are put to the names of the two; with None the first is left out.
    """
    waveforms, _ = codec.decode(codes, lens)
    of_whole, of_new = endings
    for b, name in enumerate(names):
        start, stop = (int(n[b]) * codec.hop_length for n in (prompt_lens, lens))
        if start == stop:
            logging.warning(f"{name}: the model ended the piece at once, nothing was added")
        sounds = {of_whole: waveforms[b, :stop], of_new: waveforms[b, start:stop]}
        for ending, waveform in sounds.items():
            if ending is not None:
                write_sound(folder / f"{name}{ending}.wav", waveform, codec.sampling_rate)


def write_sound(path: Path, waveform: Tensor, rate: int) -> None:
    with written_whole(path) as temporary:
        soundfile.write(temporary, waveform.clamp(-1, 1).numpy(), rate, format="WAV")
    logging.info(f"{path}: {len(waveform) / rate:.2f} s")
