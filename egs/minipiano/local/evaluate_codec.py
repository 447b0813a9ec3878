#!/usr/bin/env python3
"""Score any EnCodec folder on one split of a corpus.

python egs/minipiano/local/evaluate_codec.py --codec egs/minipiano/codec \
    --corpus egs/minipiano/download/minipiano --split test
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from codec_card import score_table, usage_table, write_examples
from codec_data import cut_clips, list_pieces, load_pieces
from codec_files import load_codec
from codec_metrics import score_codec

from valle.utils.dist import choose_device


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--codec", type=Path, required=True, help="folder with config.json and model.safetensors")
    add("--corpus", type=Path, required=True, help="folder with pieces.csv and its sound files")
    add("--split", default="test", help="split whose pieces are scored")
    add("--num-clips", type=int, default=32, help="clips, spread over the pieces")
    add("--clip-seconds", type=float, default=8.0, help="length of a clip")
    add("--batch-size", type=int, default=8, help="clips coded at once")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--report-dir", type=Path, help="folder for pictures and sound pairs; none if left out")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = get_parser().parse_args(argv)
    device = choose_device(args.device)
    model = load_codec(args.codec, device)
    rate = model.config.sampling_rate
    pieces = load_pieces(list_pieces(args.corpus, (args.split,)), rate, os.cpu_count() or 1)
    clips = cut_clips(pieces, round(args.clip_seconds * rate), args.num_clips).to(device)
    scores = score_codec(model, clips, args.batch_size)
    print(f"{scores.num_clips} clips of {scores.clip_sec:g} s, {scores.num_frames} frames")
    print(score_table(scores), usage_table(scores), sep="\n\n")
    if args.report_dir:
        write_examples(args.report_dir, model, clips)


if __name__ == "__main__":
    main()
