"""Writes sound while it is still being made: to a file that grows, or into a pipe.

Both writers take (N,) float32 samples in [-1, 1], mono, chunk by chunk, and hand each chunk on at
once. A sample x becomes the 16-bit integer nearest to 32768 x, clamped to [-32768, 32767], so that
a reader that divides by 32768 gets x back to half a step.

Letters: N samples of a chunk.
"""

import os
import wave
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from torch import Tensor

_BYTES_PER_SAMPLE = 2
# The sizes in a wav header have 32 bits, and the outer one counts 36 bytes of header as well.
_MOST_BYTES = 2**32 - 1 - 36


class ReaderGone(Exception):
    """The program at the other end of the pipe has closed it: there is nobody left to play to."""


class GrowingWav(AbstractContextManager["GrowingWav"]):
    """A 16-bit mono wav file that can be opened and played after every `write`.

    Other files of this project are written under a temporary name and renamed once they are whole.
    Not so this one: it is there to be read while it grows, under its own name. After each chunk the
    sizes in the header are brought up to date, which soundfile does on closing only. If the process
    is killed, every chunk whose `write` had returned is there and plays.

    Args:
      path: Its name; a file that has it is replaced, missing folders are made.
      sampling_rate: In Hz.

    Raises:
      OSError: It cannot be written.
    """

    def __init__(self, path: str | Path, sampling_rate: int) -> None:
        self.path, self.sampling_rate = Path(path), sampling_rate
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("wb")
        self._wav = wave.Wave_write(self._file)
        self._wav.setnchannels(1)
        self._wav.setsampwidth(_BYTES_PER_SAMPLE)
        self._wav.setframerate(sampling_rate)
        self.write(np.zeros(0, np.float32))  # a header without samples

    @property
    def num_samples(self) -> int:
        """Samples written so far, also after closing."""
        return self._wav.getnframes()

    def write(self, samples: Tensor | np.ndarray) -> None:
        """Append (N,) samples; they are in the file when this returns.

        Raises:
          ValueError: Samples of another shape or type or not finite, or more of them than a wav
            file can hold (4 GiB, 18 hours at 32 kHz).
          OSError: The disk is full, or the like.
        """
        data = to_pcm16(samples)
        size = self.num_samples * _BYTES_PER_SAMPLE + len(data)
        if size > _MOST_BYTES:
            raise ValueError(
                f"{self.path} would hold {size:,} bytes of sound, a wav file holds "
                f"{_MOST_BYTES:,} at most: go on in a second file"
            )
        self._wav.writeframes(data)  # updates the header too
        self._file.flush()

    def close(self) -> None:
        """Close the file; closing twice does no harm."""
        self._wav.close()
        self._file.close()

    def __exit__(self, *error: object) -> None:
        self.close()


class RawPCM(AbstractContextManager["RawPCM"]):
    """16-bit little-endian mono samples without a header, into a pipe to a player.

    Args:
      stream: Where to, such as `sys.stdout.buffer`. It is not closed here.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def write(self, samples: Tensor | np.ndarray) -> None:
        """Send (N,) samples and flush.

        Raises:
          ReaderGone: The reader has closed the pipe. A script ends here, without complaint.
          ValueError: Samples of another shape or type, or not finite.
        """
        data = to_pcm16(samples)
        try:
            self._stream.write(data)
            self._stream.flush()
        except BrokenPipeError as error:
            self._forget_pipe()
            raise ReaderGone("the reader of the sound has closed the pipe") from error

    def _forget_pipe(self) -> None:
        # The stream still holds bytes, and Python flushes its standard streams on exit: without
        # this it would end with a second BrokenPipeError, which nobody can catch.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)

    def close(self) -> None:
        """Nothing to do: every `write` has flushed, and the stream belongs to the caller."""

    def __exit__(self, *error: object) -> None:
        self.close()


def to_pcm16(samples: Tensor | np.ndarray) -> bytes:
    """(N,) float samples in [-1, 1] -> 2 N bytes, 16-bit little-endian.

    Raises:
      ValueError: Another shape, not floating point, or NaN and infinite samples.
    """
    array = samples.detach().cpu().numpy() if isinstance(samples, Tensor) else np.asarray(samples)
    if array.ndim != 1 or array.dtype.kind != "f":
        raise ValueError(
            f"samples are {array.dtype} {array.shape}, expected floating point (N,): "
            "write one row of a batch at a time"
        )
    num_bad = int(np.count_nonzero(~np.isfinite(array)))
    if num_bad:
        raise ValueError(f"{num_bad} samples are NaN or infinite, expected numbers in [-1, 1]")
    return np.rint(array * 32768.0).clip(-32768, 32767).astype("<i2").tobytes()
