"""Sound for codec training: a corpus held in memory, random crops cut where the model runs.

Letters: B batch, N samples of a crop.
"""

import csv
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor

QUIET_RMS = 0.01  # below it a crop teaches little but its noise
GAIN_RANGE_DB = (-10.0, 4.0)
PEAK_LIMIT = 0.99
_INT16_SCALE = 32768.0


def list_pieces(corpus: Path, splits: Sequence[str]) -> list[Path]:
    """Name the sound files of some splits, in the order of ``pieces.csv``.

    Args:
        corpus: Folder with ``pieces.csv`` (columns file and split, file relative to the folder).
        splits: Split names to take, such as ``("train", "codec")``.

    Raises:
        ValueError: If the table is missing, lacks a column, or has no piece of these splits.
    """
    table = corpus / "pieces.csv"
    if not table.is_file():
        raise ValueError(f"no pieces.csv in {corpus}: make the corpus first with make_corpus.py")
    with table.open(newline="") as lines:
        reader = csv.DictReader(lines)
        rows = list(reader)
        columns = reader.fieldnames or []
    missing = {"file", "split"} - set(columns)
    if missing:
        raise ValueError(f"{table} has columns {columns}, but {sorted(missing)} must be among them")
    pieces = [corpus / row["file"] for row in rows if row["split"] in splits]
    if not pieces:
        found = sorted({row["split"] for row in rows})
        raise ValueError(f"no piece of split {' or '.join(splits)} in {table}; it has {found}")
    return pieces


def load_piece(path: Path, sampling_rate: int) -> Tensor:
    """Read one file that soundfile knows, mixed down to (N,) int16.

    Raises:
        ValueError: If the file cannot be read or has another sampling rate than the codec.
    """
    try:
        samples, rate = soundfile.read(path, dtype="int16", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise ValueError(f"cannot read {path}: {error}; remove it from pieces.csv") from error
    if rate != sampling_rate:
        raise ValueError(
            f"{path} has {rate} Hz, the codec works at {sampling_rate} Hz: resample it first"
        )
    if samples.shape[1] == 1:
        return torch.from_numpy(samples[:, 0].copy())
    return torch.from_numpy(samples.mean(axis=1).astype(np.int16))


def load_pieces(paths: Iterable[Path], sampling_rate: int, workers: int = 4) -> list[Tensor]:
    """Read many files at once; decoding FLAC releases Python's lock, so threads are enough."""
    with ThreadPoolExecutor(max_workers=workers) as pool:
        return list(pool.map(lambda path: load_piece(path, sampling_rate), paths))


def to_float(samples: Tensor) -> Tensor:
    """Turn int16 samples into float32 between -1 and 1."""
    return samples.float() / _INT16_SCALE


def cut_clips(pieces: Sequence[Tensor], num_samples: int, num_clips: int) -> Tensor:
    """Cut equally long clips for scoring, always the same ones.

    The clips are spread over the pieces in turn; within a piece they are evenly spaced. Clips
    quieter than QUIET_RMS are left out, since ratios to their energy mean nothing.

    Returns:
        (clips, 1, num_samples) float32, at most num_clips of them.

    Raises:
        ValueError: If no piece holds a single clip.
    """
    per_piece = -(-num_clips // max(1, len(pieces)))
    clips = []
    for turn in range(per_piece):
        for piece in pieces:
            room = piece.numel() - num_samples
            start = round(room * (turn + 1) / (per_piece + 1))
            if room >= 0:
                clips.append(to_float(piece[start : start + num_samples]))
    clips = [clip for clip in clips if clip.square().mean().sqrt() >= QUIET_RMS][:num_clips]
    if not clips:
        raise ValueError(
            f"none of {len(pieces)} pieces holds an audible clip of {num_samples} samples: "
            "ask for shorter clips or add pieces"
        )
    return torch.stack(clips).unsqueeze(1)


class CropSampler:
    """Draws random crops from pieces that lie as one int16 tensor on the device.

    Nothing here waits for the device: starts, gains and the choice of crops are all drawn there.

    Args:
        pieces: Each (N,) int16; those shorter than a crop are left out.
        crop_samples: Length N of a crop.
        device: Where the crops are needed.
        generator: Random generator of that device.

    Raises:
        ValueError: If every piece is shorter than a crop.
    """

    def __init__(
        self,
        pieces: Sequence[Tensor],
        crop_samples: int,
        device: torch.device,
        generator: torch.Generator,
    ) -> None:
        usable = [piece for piece in pieces if piece.numel() >= crop_samples]
        if not usable:
            raise ValueError(f"all {len(pieces)} pieces are shorter than {crop_samples} samples")
        lengths = torch.tensor([piece.numel() for piece in usable])
        starts = lengths - crop_samples + 1
        self.num_starts = int(starts.sum())
        self.seconds_samples = int(lengths.sum())
        self.first_start = (starts.cumsum(0) - starts).to(device)
        self.offset = (lengths.cumsum(0) - lengths).to(device)
        self.samples = torch.cat(usable).to(device)
        self.steps = torch.arange(crop_samples, device=device)
        self.generator = generator

    def draw(self, batch_size: int) -> Tensor:
        """Cut (B, 1, N) float32 crops, most of them audible, each at a gain of its own."""
        device, generator = self.samples.device, self.generator
        wanted = batch_size + batch_size // 2  # half as many again to choose the audible ones from
        picks = torch.randint(self.num_starts, (wanted,), generator=generator, device=device)
        piece = torch.searchsorted(self.first_start, picks, right=True) - 1
        start = picks - self.first_start[piece] + self.offset[piece]
        audio = to_float(self.samples[start.unsqueeze(1) + self.steps])
        return self._vary_gain(_prefer_audible(audio, batch_size)).unsqueeze(1)

    def _vary_gain(self, audio: Tensor) -> Tensor:
        low, high = GAIN_RANGE_DB
        shape, device = (audio.shape[0], 1), audio.device
        level = torch.rand(shape, generator=self.generator, device=device) * (high - low) + low
        peak = audio.abs().amax(dim=1, keepdim=True).clamp_min(1e-4)
        return audio * torch.minimum(10 ** (level / 20), PEAK_LIMIT / peak)


def _prefer_audible(audio: Tensor, batch_size: int) -> Tensor:
    """Keep batch_size rows of audio, quiet ones last.

    One row in 16 is taken as it comes: a codec that never saw a pause hums in it.
    """
    quiet = audio.square().mean(dim=1).sqrt() < QUIET_RMS
    quiet[: batch_size // 16] = False
    order = torch.argsort(quiet.to(torch.int8), stable=True)
    return audio[order[:batch_size]]
