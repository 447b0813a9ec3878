#!/usr/bin/env python3
"""Judge codecs side by side on the same held-out recordings.

Usage, from the repository root:

  python3 egs/atepp/bin/eval_codec.py --codecs egs/minipiano/codec exp/codec/codec \
      --src-dir recordings --output-dir exp/eval-codec

Writes scores.md (tables), scores.json, spectrograms.png, and the sound files: clipN_original.wav
and clipN_NAME.wav for each codec. A codec is a folder or hub name, of any family; FOLDER:4 takes
its first 4 quantizers alone. Codecs of several sampling rates are measured at the highest of them.
"""

import argparse
import json
import logging
from dataclasses import dataclass
from pathlib import Path

import soundfile
import torch
from codec_sources import add_source_arguments, held_out, open_splits
from torch import Tensor

from valle.codec.files import write_text
from valle.codec.pictures import draw_clips
from valle.codec.pieces import PieceReader, cut_clips, survey_pieces
from valle.codec.scores import (
    CodecScores,
    chance_scores,
    measures_table,
    rates_table,
    score_codec,
    usage_table,
)
from valle.data.codec import Codec
from valle.data.manifest import SPLITS
from valle.utils.cli import str2bool
from valle.utils.dist import choose_device
from valle.utils.files import written_whole

CHANCE = "another recording"


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--codecs", nargs="+", required=True, help="folders or hub names; NAME:Q for Q quantizers")
    add_source_arguments(parser)
    add("--split", default="test", choices=SPLITS, help="whose recordings are heard")
    add("--num-clips", type=int, default=32, help="spread over the recordings")
    add("--clip-sec", type=float, default=8.0, help="length of a clip")
    add("--sampling-rate", type=int, help="to measure at; default: the highest of the codecs'")
    add(
        "--every-level", type=str2bool, default=False, help="measure the first quantizers alone too"
    )
    add("--output-dir", type=Path, default=Path("exp/eval-codec"), help="tables, picture, sounds")
    add("--num-sounds", type=int, default=3, help="clips that are written and drawn; 0: none")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    return parser


@dataclass
class Judged:
    """A codec's scores and what it made of the clips, (C, N)."""

    scores: CodecScores
    sound: Tensor


def open_codecs(names: list[str], device: torch.device) -> dict[str, Codec]:
    """Title -> codec; titles are short and differ.

    Raises:
      ValueError: A codec that cannot be had, or one given twice.
    """
    codecs: dict[str, Codec] = {}
    for name in names:
        path, num_quantizers = split_name(name)
        title = title_of(name, names)
        if title in codecs:
            raise ValueError(f"--codecs names {name!r} twice")
        codecs[title] = Codec.from_pretrained(path, device, num_quantizers)
    return codecs


def split_name(name: str) -> tuple[str, int | None]:
    """NAME:Q -> NAME and Q; a NAME alone means all its quantizers."""
    path, colon, number = name.rpartition(":")
    return (path, int(number)) if colon and number.isdecimal() else (name, None)


def title_of(name: str, names: list[str]) -> str:
    """The last parts of a name, as few as tell it from the others."""
    parts = Path(name).parts
    others = [Path(other).parts for other in names if other != name]
    for length in range(1, len(parts) + 1):
        if all(other[-length:] != parts[-length:] for other in others):
            break
    return "/".join(parts[-length:])


def run(args: argparse.Namespace) -> None:
    """Score, and write everything down."""
    codecs = open_codecs(args.codecs, choose_device(args.device))
    rate = args.sampling_rate or max(codec.sampling_rate for codec in codecs.values())
    pieces = survey_pieces(held_out(open_splits(args), (args.split,)))
    clips = cut_clips(PieceReader(pieces, rate), round(args.clip_sec * rate), args.num_clips)[:, 0]
    chance = chance_scores(clips, rate)
    judged = {}
    for title, codec in codecs.items():
        logging.info(f"{title}: {len(clips)} clips of {args.clip_sec:g} s")
        judged[title] = Judged(*score_codec(codec, clips, rate, args.every_level))
    scores = {title: item.scores for title, item in judged.items()}
    text = report(scores, chance, clips, rate, args)
    print(text)
    write_text(args.output_dir / "scores.md", text + "\n")
    facts = {"clips": len(clips), "clip_sec": args.clip_sec, "sampling_rate": rate}
    numbers = {title: s.to_dict() for title, s in scores.items()}
    document = facts | {"split": args.split, "codecs": numbers, CHANCE: chance}
    write_text(args.output_dir / "scores.json", json.dumps(document, indent=2) + "\n")
    if args.num_sounds > 0:
        write_sounds(args.output_dir, clips, judged, rate, args.num_sounds)


def report(
    scores: dict[str, CodecScores],
    chance: dict[str, float],
    clips: Tensor,
    rate: int,
    args: argparse.Namespace,
) -> str:
    """All tables, in Markdown."""
    columns = {title: s.measures for title, s in scores.items()} | {CHANCE: chance}
    parts = [
        f"{len(clips)} clips of {args.clip_sec:g} s of the {args.split} recordings, measured at "
        f"{rate} Hz. The last column is what each clip scores against another one.",
        measures_table(columns),
        rates_table(scores),
    ]
    for title, s in scores.items():
        parts += [f"{title}, {s.num_frames} frames:", usage_table(s)]
        if s.by_levels:
            levels = {f"{k} quantizer{'s' * (k > 1)}": v for k, v in s.by_levels.items()}
            parts.append(measures_table(levels))
    return "\n\n".join(parts)


def write_sounds(
    folder: Path, clips: Tensor, judged: dict[str, Judged], rate: int, num_sounds: int
) -> None:
    """Sound files of the first clips, and one picture of them."""
    sounds = {"original": clips} | {title: item.sound for title, item in judged.items()}
    sounds = {title: sound[:num_sounds] for title, sound in sounds.items()}
    for title, batch in sounds.items():
        name = title.replace("/", "_").replace(":", "_")
        for number, sound in enumerate(batch, 1):
            with written_whole(folder / f"clip{number}_{name}.wav") as temporary:
                samples = sound.clamp(-1, 1).cpu().numpy()
                soundfile.write(temporary, samples, rate, format="WAV", subtype="PCM_16")
    try:
        draw_clips(folder / "spectrograms.png", sounds, rate)
    except ImportError as error:
        logging.warning(f"no picture: {error}")
    logging.info(f"tables, picture and sounds are in {folder}")


def check_arguments(args: argparse.Namespace) -> None:
    for name in ("num_clips", "clip_sec"):
        if getattr(args, name) <= 0:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(args, name)}, must be > 0")


def main(argv: list[str] | None = None) -> None:
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    parser = get_parser()
    args = parser.parse_args(argv)
    try:
        check_arguments(args)
        run(args)
    except (ValueError, OSError, ImportError) as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")


if __name__ == "__main__":
    main()
