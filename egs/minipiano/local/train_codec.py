#!/usr/bin/env python3
"""Train a small EnCodec (32 kHz, 50 frames a second, 4 quantizers) from scratch.

python egs/minipiano/local/train_codec.py --corpus egs/minipiano/download/minipiano \
        --out-dir egs/minipiano/codec

The corpus is a folder with ``pieces.csv`` as make_corpus.py writes it: splits train and codec are
learned from, validation is watched, test is scored at the end, on the files as they were written.
"""

import argparse
import dataclasses
import io
import os
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from codec_card import write_card, write_examples
from codec_data import cut_clips, list_pieces, load_pieces
from codec_files import SIZE_LIMIT_BYTES, build_config, load_codec, save_codec
from codec_metrics import score_codec
from codec_phases import CodecTrainer, TrainingOptions
from torch import Tensor
from transformers import EncodecModel

from valle.utils.dist import choose_device


def get_parser() -> argparse.ArgumentParser:
    """Defaults are the CPU recipe; a GPU wants larger batches and has time for more steps."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--corpus", type=Path, required=True, help="folder with pieces.csv and its sound files")
    add("--out-dir", type=Path, default=Path("egs/minipiano/codec"), help="folder of the codec")
    add(
        "--report-dir",
        type=Path,
        default=Path("egs/minipiano/exp/codec"),
        help="folder for pictures and sound pairs",
    )
    add("--state-file", type=Path, help="keeps the autoencoder of the noise phase; read if there")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--num-threads", type=int, default=0, help="CPU threads of torch; 0 leaves its choice")
    add("--seed", type=int, default=0, help="of weights, crops, noise and k-means")
    _add_model_arguments(parser.add_argument_group("model"))
    _add_training_arguments(parser.add_argument_group("training"))
    scoring = parser.add_argument_group("scoring")
    scoring.add_argument("--num-clips", type=int, default=32, help="test clips scored at the end")
    scoring.add_argument("--clip-seconds", type=float, default=8.0, help="length of such a clip")
    return parser


def _add_model_arguments(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--codebook-size", type=int, default=1024, help="codes a quantizer, a power of two")
    add("--hidden-size", type=int, default=64, help="width of the latents and of the codes")
    add("--num-filters", type=int, default=16, help="channels of the first convolution")
    add("--num-residual-layers", type=int, default=0, help="residual blocks a stage")
    add("--num-lstm-layers", type=int, default=1, help="LSTM layers of encoder and decoder")


def _add_training_arguments(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--steps-noise", type=int, default=6000, help="autoencoder with noise on the latents")
    add("--steps-joint", type=int, default=8000, help="encoder, codebooks and decoder")
    add("--steps-decoder", type=int, default=1700, help="decoder alone, on final tokens")
    add(
        "--max-minutes",
        type=float,
        default=60.0,
        help="for everything, loading and scoring included; steps are cut to fit, schedules end",
    )
    add("--batch-size", type=int, default=5, help="crops a step (decoder phase: half as many)")
    add("--segment-sec", type=float, default=0.5, help="crop length (decoder phase: twice)")
    add("--lr", type=float, default=8e-4, help="learning rate of the noise and joint phases")
    add("--lr-decoder", type=float, default=4e-4, help="learning rate of the decoder phase")
    add("--precision", choices=["float32", "bfloat16"], default="bfloat16", help="of convolutions")
    add("--weight-average", type=float, default=0.999, help="decay of the averaged weights")
    add("--quantizer-drop", type=float, default=0.15, help="share of crops using fewer levels")
    add("--rate-bits", type=float, default=48.0, help="bits a frame let through the noise")
    add("--commitment-weight", type=float, default=0.1, help="pull of latents to their codes")
    add("--kmeans-latents", type=int, default=40000, help="frames for k-means of the codebooks")
    add("--log-every", type=int, default=200, help="steps between lines")
    add("--eval-every", type=int, default=2000, help="steps between held-out scores")


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse what cannot work before the corpus is read.

    Raises:
        ValueError: With the flag, its value and what is allowed.
    """
    positive = ("max_minutes", "batch_size", "segment_sec", "lr", "lr_decoder", "log_every")
    for name in (*positive, "eval_every", "clip_seconds"):
        if getattr(args, name) <= 0:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(args, name)}, must be > 0")
    if args.steps_joint < 0 or args.steps_noise < 0 or args.steps_decoder < 0:
        raise ValueError("--steps-noise, --steps-joint and --steps-decoder must not be negative")
    if args.kmeans_latents < args.codebook_size:
        raise ValueError(
            f"--kmeans-latents {args.kmeans_latents} for {args.codebook_size} codes: "
            f"give at least 20 frames a code, {20 * args.codebook_size}"
        )


def load_corpus(args: argparse.Namespace, sampling_rate: int) -> tuple[list[Tensor], Tensor]:
    """Training pieces, each (N,) int16, and validation clips (C, 1, N) float32."""
    workers = os.cpu_count() or 1
    paths = list_pieces(args.corpus, ("train", "codec"))
    pieces = load_pieces(paths, sampling_rate, workers)
    held_out = load_pieces(list_pieces(args.corpus, ("validation",)), sampling_rate, workers)
    minutes = sum(piece.numel() for piece in pieces) / sampling_rate / 60
    print(f"{len(pieces)} pieces to learn from, {minutes:.1f} minutes")
    return pieces, cut_clips(held_out, round(5 * sampling_rate), 8)


def unseen_clips(args: argparse.Namespace, sampling_rate: int) -> Tensor:
    """Clips (C, 1, N) of pieces that training never saw."""
    pieces = load_pieces(list_pieces(args.corpus, ("test",)), sampling_rate, os.cpu_count() or 1)
    return cut_clips(pieces, round(args.clip_seconds * sampling_rate), args.num_clips)


def device_name(device: torch.device) -> str:
    """What to print on the card."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"


def training_options(args: argparse.Namespace) -> TrainingOptions:
    names = [field.name for field in dataclasses.fields(TrainingOptions)]
    return TrainingOptions(**{name: getattr(args, name) for name in names})


def train(args: argparse.Namespace, device: torch.device, begin: float) -> dict[str, Any]:
    """Train and write the codec; returns the lines of the card on how it was made."""
    torch.manual_seed(args.seed)
    torch.backends.cudnn.benchmark = True  # every crop of a phase has the same length
    config = build_config(
        codebook_size=args.codebook_size,
        hidden_size=args.hidden_size,
        num_filters=args.num_filters,
        num_residual_layers=args.num_residual_layers,
        num_lstm_layers=args.num_lstm_layers,
    )
    pieces, clips = load_corpus(args, config.sampling_rate)
    model: Any = EncodecModel(config)
    model.to(device)
    size = sum(p.numel() for p in model.parameters())
    print(f"{size} parameters on {device_name(device)}, torch {torch.__version__}")
    trainer = CodecTrainer(model, pieces, clips.to(device), training_options(args), begin)
    print(f"ready after {time.monotonic() - begin:.1f} s")
    trainer.run(after_codebooks=lambda average: save_codec(average, args.out_dir))
    num_bytes = save_codec(trainer.average, args.out_dir)
    if num_bytes > SIZE_LIMIT_BYTES:
        print(f"warning: {num_bytes} bytes, over the {SIZE_LIMIT_BYTES} that may be committed")
    minutes = sum(piece.numel() for piece in pieces) / config.sampling_rate / 60
    steps = ", ".join(f"{name} {number}" for name, number in trainer.steps_done.items())
    return {
        "Command": "`python " + shlex.join(sys.argv) + "`",
        "Seconds of training, loading included": f"{time.monotonic() - begin:.0f}",
        "Steps": steps,
        "Machine": f"{device_name(device)}, torch {torch.__version__}",
        "Data": f"{minutes:.1f} minutes generated by make_corpus.py, splits train and codec",
        "Parameters": f"{size}",
        "Bytes of model.safetensors": f"{num_bytes}",
    }


def main(argv: Sequence[str] | None = None) -> None:
    begin = time.monotonic()
    args = get_parser().parse_args(argv)
    check_arguments(args)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # a log that is piped is read while it grows
    device = choose_device(args.device)
    if args.num_threads > 0:
        torch.set_num_threads(args.num_threads)
    facts = train(args, device, begin)
    codec = load_codec(args.out_dir, device)
    clips = unseen_clips(args, codec.config.sampling_rate).to(device)
    scores = score_codec(codec, clips)
    write_card(args.out_dir / "README.md", codec, facts, scores)
    print((args.out_dir / "README.md").read_text(encoding="utf-8"))
    write_examples(args.report_dir, codec, clips)
    print(f"all done after {time.monotonic() - begin:.0f} s")


if __name__ == "__main__":
    main()
