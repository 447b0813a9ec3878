#!/usr/bin/env python3
"""How fast recordings become tokens, beside the bare codec on tensors that are ready.

Usage:

  python3 benchmarks/make_tokens.py                                       # the bundled codec
  python3 benchmarks/make_tokens.py --codec random-32khz --minutes 3      # as large as the real one
  python3 benchmarks/make_tokens.py --codec facebook/encodec_32khz --src-dir my/recordings

Without `--src-dir` recordings of one to four minutes at 44.1 kHz are written, flac and wav in turn,
stereo and mono in turn. They, or yours, pass through the whole of egs/atepp/bin/tokenizer.py, from
the search of the folder to the manifests, the codec's loading included. In the same rounds the
codec alone encodes the same sound, read and resampled before: one recording after another with all
cores each, as `Codec.encode` does by itself, and side by side with one core each, as the tokenizer
does on a CPU. What was just written is in the system's memory: a disk is not measured.
"""

import argparse
import io
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import recipe  # noqa: F401, the way to the tokenizer
import tokenizer
import torch
from measure import Timing, interleave, seconds_of
from report import table
from run import Run, positive, show
from tokenizer_encoding import one_core_a_thread
from tokenizer_reading import Loaded, load_source
from torch import Tensor

from valle.data.codec import Codec
from valle.data.codec_families import family_of
from valle.data.codec_loading import load_codec_model
from valle.data.sources import find_recordings
from valle.utils.dist import choose_device

ROOT = Path(__file__).resolve().parents[1]
RATE = 44100
RECORDING_SEC = (60.0, 240.0)
RANDOM = "random-32khz"
PARTS = ("speed", "alone", "precision")
WHOLE, ALONE, BESIDE, READING = (
    "tokenizer",
    "codec, one after another",
    "codec, side by side",
    "reading and resampling",
)


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--codec", default=str(ROOT / "egs/minipiano/codec"), help=f"hub name, folder or {RANDOM}")
    add("--src-dir", type=Path, help="recordings to measure with; default: some are written")
    add("--minutes", type=float, default=20.0, help="of sound to write")
    add("--rounds", type=positive, default=5, help="how often each is timed")
    add("--num-workers", type=positive, help="threads; default: one for each core")
    add("--device", default="auto", help="auto, cpu, cuda, ...")
    add(
        "--skip",
        nargs="+",
        choices=PARTS,
        default=[],
        help="alone: the codec with all cores for each recording, very slow where others use them",
    )
    add("--probe-mb", type=positive, default=64, help="MiB to probe the memory's speed with")
    add("--output-file", type=Path, default=Path("make_tokens.json"))
    return parser


def main(argv: list[str] | None = None) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    warnings.filterwarnings("ignore", category=FutureWarning)
    parser = get_parser()
    args = parser.parse_args(argv)
    args.device = choose_device(args.device)
    args.num_workers = args.num_workers or torch.get_num_threads()
    try:
        with tempfile.TemporaryDirectory() as folder:
            args.codec = write_random_codec(Path(folder)) if args.codec == RANDOM else args.codec
            if args.src_dir is None:
                args.src_dir = write_recordings(Path(folder) / "recordings", args.minutes)
            Benchmark(args, Path(folder)).run()
    except (ValueError, ImportError, OSError) as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")


# What is measured on


def write_recordings(folder: Path, minutes: float) -> Path:
    """Write recordings of piano-like notes, so many minutes in all."""
    import soundfile

    folder.mkdir(parents=True)
    rng, left, index = np.random.default_rng(0), minutes * 60, 0
    notes = [strike(rng, pitch) for pitch in range(33, 96)]
    while left > 0:
        seconds = min(rng.uniform(*RECORDING_SEC), max(left, 2.0))
        sound = play(rng, notes, seconds)  # (N, 2)
        suffix = ("flac", "wav")[index % 2]
        path = folder / f"{index:04d}.{suffix}"
        soundfile.write(path, sound if index // 2 % 2 else sound[:, 0], RATE)
        left, index = left - seconds, index + 1
    return folder


def strike(rng: np.random.Generator, pitch: int) -> np.ndarray:
    """(N,) a decaying note with five partials."""
    time = np.arange(2 * RATE) / RATE
    frequency = 440 * 2 ** ((pitch - 69) / 12)
    partials = [
        np.sin(2 * np.pi * n * frequency * time + rng.uniform(0, 6)) * np.exp(-2 * n * time) / n
        for n in range(1, 6)
    ]
    return np.sum(partials, axis=0)


def play(rng: np.random.Generator, notes: list[np.ndarray], seconds: float) -> np.ndarray:
    """(N, 2) six notes a second, and the noise of a room."""
    num_samples = round(seconds * RATE)
    sound = 0.0005 * rng.standard_normal((num_samples + 3 * RATE, 2))
    for start in rng.integers(num_samples, size=round(6 * seconds)):
        note = notes[rng.integers(len(notes))]
        sound[start : start + len(note)] += note[:, None] * rng.uniform(0.02, 0.15, 2)
    return sound[:num_samples].clip(-1, 1)


def write_random_codec(folder: Path) -> str:
    """The architecture of facebook/encodec_32khz with random weights: as slow as the real one."""
    from transformers import EncodecConfig, EncodecModel

    config = EncodecConfig(
        sampling_rate=32000,
        audio_channels=1,
        normalize=False,
        codebook_size=2048,
        num_filters=64,
        num_residual_layers=1,
        num_lstm_layers=2,
        upsampling_ratios=[8, 5, 4, 4],
        use_causal_conv=False,
        use_conv_shortcut=False,
        target_bandwidths=[2.2],
    )
    EncodecModel(config).save_pretrained(folder / RANDOM)
    return str(folder / RANDOM)


# What is measured


@dataclass
class SpeedRow:
    """One way through the same sound.

    Attributes:
      hours_an_hour: of sound, in the fastest round.
      seconds: that round's.
      processor_sec: of all cores together, in the round that took the fewest.
      share: the tokenizer's speed over this one's; median of the ratios within rounds.
      share_best: the same of the fastest rounds of both.
      share_processor: the same by processor_sec; what a busy machine says best.
    """

    name: str
    hours_an_hour: float
    seconds: float
    processor_sec: float
    share: float
    share_best: float
    share_processor: float

    @classmethod
    def of(cls, way: "Way", whole: "Way", sound_sec: float) -> "SpeedRow":
        best = min(way.timing.seconds)
        return cls(
            name=way.name,
            hours_an_hour=sound_sec / best,
            seconds=best,
            processor_sec=min(way.processor_sec),
            share=way.timing.ratio_to(whole.timing),
            share_best=best / min(whole.timing.seconds),
            share_processor=min(way.processor_sec) / min(whole.processor_sec),
        )


@dataclass
class Way:
    """A way through all of the sound, and how long it took."""

    name: str
    run: Callable[[], object]
    timing: Timing = field(default_factory=Timing)
    processor_sec: list[float] = field(default_factory=list)

    def __call__(self) -> None:
        start = time.process_time()
        self.run()
        self.processor_sec.append(time.process_time() - start)


@dataclass
class PrecisionRow:
    """The encoder in another type of numbers, on 30 s of each of a few recordings.

    Attributes:
      same: share of all codes that are those of float32.
      same_first: the same of the first quantizer's.
      same_frames: share of the frames of which all codes are.
      times_as_fast: as float32.
    """

    dtype: str
    same: float
    same_first: float
    same_frames: float
    times_as_fast: float


class Benchmark(Run):
    """Runs what is not skipped, prints tables as they come, and saves everything.

    Args:
      args: of `get_parser`, nothing left open.
      folder: for what the tokenizer writes.
    """

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        super().__init__(args, __file__, ())
        self.folder = folder
        flags = ["--src-dir", args.src_dir, "--codec", args.codec, "--device", args.device]
        flags += ["--num-workers", args.num_workers]
        self.flags = list(map(str, flags))
        self.codec = Codec.from_pretrained(args.codec, args.device)
        self.sources = find_recordings(args.src_dir)
        # at its best also where nothing is read beside it: the longest first, as the tokenizer has
        self.sounds = sorted(self.load(), key=len, reverse=True)
        self.sound_sec = sum(map(len, self.sounds)) / self.codec.sampling_rate

    def run(self) -> None:
        minutes = f"{self.sound_sec / 60:.1f} in {len(self.sounds)} recordings"
        self.introduce(
            codec=self.args.codec, minutes_of_sound=minutes, threads=self.args.num_workers
        )
        if "speed" not in self.args.skip:
            self.speed()
        if "precision" not in self.args.skip:
            self.precision()
        self.close()

    def speed(self) -> None:
        ways = [Way(WHOLE, self.tokenise), Way(READING, self.load)]
        if self.args.device.type == "cpu":
            ways.append(Way(BESIDE, self.encode_side_by_side))
        if "alone" not in self.args.skip:
            ways.append(Way(ALONE, self.encode_one_after_another))
        for way in ways:
            way.run()  # so that all is warm
        timings = interleave(ways, self.args.rounds, 1, self.probe)
        for way, timing in zip(ways, timings, strict=True):
            way.timing = timing
        rows = [SpeedRow.of(way, ways[0], self.sound_sec) for way in ways]
        self.keep("speed", rows)
        header = ("", "hours an hour", "tokenizer's share", "of the fastest", "by processor time")
        show("Speed", table(header, [speed_cells(row) for row in rows]))

    def precision(self) -> None:
        half_minutes = [sound[: 30 * self.codec.sampling_rate] for sound in self.sounds[:4]]
        expected, slow = self.encode_as(torch.float32, half_minutes)
        rows = []
        for dtype in (torch.bfloat16, torch.float16):
            codes, seconds = self.encode_as(dtype, half_minutes)
            same = codes == expected  # (T, Q)
            rows.append(
                PrecisionRow(
                    dtype=str(dtype).removeprefix("torch."),
                    same=float(same.float().mean()),
                    same_first=float(same[:, 0].float().mean()),
                    same_frames=float(same.all(1).float().mean()),
                    times_as_fast=slow / seconds,
                )
            )
        self.keep("precision", rows)
        header = ("", "same codes", "of the first quantizer", "same frames", "x as fast")
        show("Encoding in half precision", table(header, [precision_cells(row) for row in rows]))

    def tokenise(self) -> None:
        with tempfile.TemporaryDirectory(dir=self.folder) as output, redirect_stdout(io.StringIO()):
            flags = [*self.flags, "--output-dir", output]
            tokenizer.run(tokenizer.get_parser().parse_args(flags))

    def load(self) -> list[Tensor]:
        args = tokenizer.get_parser().parse_args(self.flags)
        read = partial(load_source, sampling_rate=self.codec.sampling_rate, args=args)
        with one_core_a_thread(), ThreadPoolExecutor(self.args.num_workers) as pool:
            loaded = list(pool.map(read, self.sources))
        return [recording.samples for recording in loaded if isinstance(recording, Loaded)]

    def encode_one_after_another(self) -> None:
        for sound in self.sounds:
            self.codec.encode(sound)

    def encode_side_by_side(self) -> None:
        with one_core_a_thread(), ThreadPoolExecutor(self.args.num_workers) as pool:
            list(pool.map(self.codec.encode, self.sounds))

    def encode_as(self, dtype: torch.dtype, sounds: list[Tensor]) -> tuple[Tensor, float]:
        """Codes (T, Q) of all sounds, one after another, and the seconds it took."""
        model = load_codec_model(self.args.codec).to(self.args.device, dtype).eval()
        family = family_of(model, self.args.codec)
        codes: list[Tensor] = []

        def encode() -> None:
            codes.clear()
            for sound in sounds:
                waveform = sound[None, None].to(self.args.device, dtype)
                codes.append(family.encode(waveform)[0].T.cpu())

        with torch.no_grad():
            encode()
            seconds = seconds_of(encode, self.args.device)
        return torch.cat(codes), seconds


def speed_cells(row: SpeedRow) -> tuple[str, ...]:
    shares = (row.share, row.share_best, row.share_processor)
    return (row.name, f"{row.hours_an_hour:.1f}", *(f"{share:.1%}" for share in shares))


def precision_cells(row: PrecisionRow) -> tuple[str, ...]:
    shares = (f"{row.same:.2%}", f"{row.same_first:.2%}", f"{row.same_frames:.2%}")
    return (row.dtype, *shares, f"{row.times_as_fast:.2f}")


if __name__ == "__main__":
    main()
