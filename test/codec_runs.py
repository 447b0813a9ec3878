"""Runs of the codec trainer as its users start it, on a tiny codec and a few seconds of sound."""

import json
import os
import subprocess
import sys
from pathlib import Path

import soundfile
import torch
import trainer_codec
from tiny_codec import CONFIG, RATE, make_encodec, noise
from trainer_runs import run_here
from transformers import EncodecModel

from valle.codec.rvq import codebooks_of

ROOT = Path(__file__).parents[1]
TRAINER = ROOT / "egs/atepp/bin/trainer_codec.py"
TINY = (
    "--batch-size 4 --segment-sec 0.3 --kmeans-latents 200 --log-interval 2 --eval-interval 1000 "
    "--clip-sec 1.1 --num-clips 2 --disc-channels 2 --disc-windows 512 128 --disc-warmup 1 "
    "--warmup-steps 2"
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def write_recordings(folder: Path, number: int = 5, seconds: float = 3.0) -> Path:
    """Sound files of which one each is for validation and test."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(number):
        soundfile.write(folder / f"{index}.wav", noise(seconds, seed=index), RATE)
    return folder


def write_config(path: Path, **changes: object) -> Path:
    """The config.json of the tiny codec."""
    fields = CONFIG | {"model_type": "encodec", "norm_type": "weight_norm"} | changes
    path.write_text(json.dumps(fields))
    return path


def tiny_model(seed: int = 0, **changes: object) -> EncodecModel:
    """A codec with random codebooks."""
    model = make_encodec(**changes)
    torch.manual_seed(seed)
    for book in codebooks_of(model):
        book.embed.normal_()
    return model


def arguments(source: Path, exp_dir: Path, *flags: object) -> list[str]:
    """The command line of a tiny run; later flags win."""
    parts = ["--src-dir", source, "--exp-dir", exp_dir, *TINY.split(), *flags]
    return [str(part) for part in parts]


def train_codec(source: Path, exp_dir: Path, *flags: object, fails: bool = False) -> str:
    """Run the trainer here; return what it printed."""
    return run_here(trainer_codec.main, arguments(source, exp_dir, *flags), fails)


def train_codec_on_ranks(source: Path, exp_dir: Path, world_size: int, *flags: object) -> str:
    """Run it under torchrun; return what it printed."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launcher += ["--nproc-per-node", str(world_size), str(TRAINER)]
    done = subprocess.run(
        launcher + arguments(source, exp_dir, *flags),
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "RES_OPTIONS": "timeout:1 attempts:1"},
        timeout=120,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout
