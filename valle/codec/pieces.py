"""Recordings as codec training reads them: spans at one rate, mono, from memory or from the file.

Letters: N samples of a clip.
"""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import ceil, gcd

import numpy as np
import soundfile
import torch
from torch import Tensor

from valle.data.audio import resample
from valle.data.sources import Source

QUIET_RMS = 0.01  # below it a sound teaches little but its noise
_MARGIN_SEC = 0.05  # read to both sides of a span that is resampled, for the filter
_INT16_SCALE = 32768.0


@dataclass(frozen=True)
class Piece:
    """A recording, or a span of one, that crops are cut from.

    Attributes:
      path: Its sound file.
      num_samples: At the file's own rate.
      sampling_rate: Of the file.
      start: Where in the file it begins, in samples.
    """

    path: str
    num_samples: int
    sampling_rate: int
    start: int = 0

    @property
    def seconds(self) -> float:
        return self.num_samples / self.sampling_rate


def survey_pieces(sources: Sequence[Source], num_threads: int = 4) -> list[Piece]:
    """Read the headers of recordings; those that cannot be read are left out, and said.

    Of a recording that has cuts in a manifest, each cut is a piece, and the rest is not heard.

    Raises:
      ValueError: Not one can be read.
    """
    with ThreadPoolExecutor(max_workers=num_threads) as pool:
        found = list(pool.map(_survey, sources))
    pieces = [piece for item in found if not isinstance(item, str) for piece in item]
    bad = [item for item in found if isinstance(item, str)]
    if bad:
        logging.warning(f"{len(bad)} of {len(found)} recordings cannot be read, first: {bad[0]}")
    if not pieces:
        first = bad[0] if bad else "there is none"
        raise ValueError(f"none of {len(found)} recordings can be read ({first})")
    return pieces


def _survey(source: Source) -> list[Piece] | str:
    try:
        info = soundfile.info(source.path)
    except (OSError, RuntimeError) as error:
        return f"{source.path}: {error}"
    if info.frames < 1:
        return f"{source.path}: it holds no samples"
    rate = info.samplerate
    if not source.cuts:
        return [Piece(source.path, info.frames, rate)]
    spans = [(round(cut.start * rate), round(cut.end * rate)) for cut in source.cuts]
    spans = [(first, min(end, info.frames)) for first, end in spans if first < info.frames]
    if not spans:
        return f"{source.path}: its cuts begin behind its end, at {info.frames / rate:.2f} s"
    return [Piece(source.path, end - first, rate, first) for first, end in spans]


class PieceReader:
    """Reads spans of recordings, mono at one rate; keeps as many as fit in memory, as int16.

    Args:
      pieces: What to read from. One that turns out damaged when it is to be kept is left out, and
        said.
      sampling_rate: To give all of it at.
      memory_mib: For recordings that are kept whole; others are read and resampled span by span.
    """

    def __init__(
        self, pieces: Sequence[Piece], sampling_rate: int, memory_mib: float = 0.0
    ) -> None:
        self.pieces, self.sampling_rate = list(pieces), sampling_rate
        wanted, room = [], memory_mib * 2**20
        for index in range(len(self.pieces)):
            room -= 2 * self.num_samples(index)
            if room < 0:
                break
            wanted.append(index)
        with ThreadPoolExecutor(max_workers=4) as pool:
            read = dict(zip(wanted, pool.map(self._read_whole, wanted), strict=True))
        damaged = {index for index, samples in read.items() if samples is None}
        intact = [index for index in range(len(self.pieces)) if index not in damaged]
        self.pieces = [self.pieces[index] for index in intact]
        found = ((new, read.get(old)) for new, old in enumerate(intact))
        self._kept = {index: samples for index, samples in found if samples is not None}

    def num_samples(self, index: int) -> int:
        """Of a piece at `sampling_rate`."""
        piece = self.pieces[index]
        return ceil(piece.num_samples * self.sampling_rate / piece.sampling_rate)

    def read(self, index: int, start: int, num_samples: int) -> Tensor:
        """(num_samples,) float32 from `start` on; zeros where a file turns out shorter."""
        if index in self._kept:
            part = self._kept[index][start : start + num_samples].float() / _INT16_SCALE
        else:
            part = self._read_span(self.pieces[index], start, num_samples)
        return torch.nn.functional.pad(part, (0, num_samples - part.shape[0]))

    def _read_whole(self, index: int) -> Tensor | None:
        """(N,) int16, None if it is damaged."""
        piece = self.pieces[index]
        try:
            samples = _read_samples(piece, 0, piece.num_samples)
            samples = resample(samples, piece.sampling_rate, self.sampling_rate)
        except ValueError as error:
            logging.warning(f"left out: {error}")
            return None
        return (samples * _INT16_SCALE).round().clamp(-32768, 32767).to(torch.int16)

    def _read_span(self, piece: Piece, start: int, num_samples: int) -> Tensor:
        if piece.sampling_rate == self.sampling_rate:
            return _read_samples(piece, start, start + num_samples)
        ratio = piece.sampling_rate / self.sampling_rate
        # from a whole number of samples of both rates, so that the filter meets the same phases
        margin = round(_MARGIN_SEC * self.sampling_rate)
        step = self.sampling_rate // gcd(piece.sampling_rate, self.sampling_rate)
        first = max(0, (start - margin) // step * step)
        stop = start + num_samples + margin
        samples = _read_samples(piece, round(first * ratio), ceil(stop * ratio))
        whole = resample(samples, piece.sampling_rate, self.sampling_rate)
        return whole[start - first : start - first + num_samples]


def _read_samples(piece: Piece, start: int, stop: int) -> Tensor:
    """(at most stop - start,) float32, the mean of the channels; what is not finite is silence.

    Raises:
      ValueError: The file cannot be read any more.
    """
    stop = min(stop, piece.num_samples)
    try:
        samples, _ = soundfile.read(
            piece.path,
            start=piece.start + start,
            stop=piece.start + stop,
            dtype="float32",
            always_2d=True,
        )
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"cannot read {piece.path} from sample {start} on: {error}. Was it changed or moved "
            "since the run began? Put it back, or begin again without it"
        ) from error
    mono = np.nan_to_num(samples, nan=0, posinf=0, neginf=0).mean(axis=1, dtype=np.float32)
    return torch.from_numpy(mono)


def cut_clips(reader: PieceReader, num_samples: int, num_clips: int) -> Tensor:
    """Cut equally long clips for scoring, always the same ones.

    The clips are spread over the pieces in turn; within a piece they are evenly spaced. Clips
    quieter than QUIET_RMS are left out, since ratios to their energy mean nothing.

    Returns:
      (clips, 1, num_samples) float32, at most num_clips of them.

    Raises:
      ValueError: If no piece holds a single clip.
    """
    clips: list[Tensor] = []
    per_piece = -(-num_clips // max(1, len(reader.pieces)))
    for turn in range(per_piece):
        for index in range(len(reader.pieces)):
            room = reader.num_samples(index) - num_samples
            if room < 0 or len(clips) == num_clips:
                continue
            clip = reader.read(index, round(room * (turn + 1) / (per_piece + 1)), num_samples)
            if clip.square().mean().sqrt() >= QUIET_RMS:
                clips.append(clip)
    if not clips:
        raise ValueError(
            f"none of {len(reader.pieces)} recordings holds an audible clip of {num_samples} "
            "samples: ask for shorter clips or add recordings"
        )
    return torch.stack(clips).unsqueeze(1)
