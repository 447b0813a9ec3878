#!/usr/bin/env python3
"""Loss and accuracy per quantizer of a trained AudioLM, beside those of n-grams on the same frames.

Usage:

  python3 egs/atepp/local/score_model.py --checkpoint exp/audio-lm/best-valid-loss.pt \
      --manifest-dir data/tokenized --split validation --output-file exp/audio-lm/scores.json
"""

import argparse
import json
from pathlib import Path

import torch
from ngrams import Bigram, Score, Unigram, best_score

from valle.data import CodecInfo, TokenDataModule, cut_codes, split_prompt
from valle.models import AudioLM, Engine
from valle.models.engine import DTYPES
from valle.utils.checkpoint import read_checkpoint
from valle.utils.cli import str2bool
from valle.utils.files import written_whole
from valle.utils.metrics import MetricsTracker


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, help="of trainer_audiolm.py")
    add(
        "--averaged",
        type=str2bool,
        default=False,
        help="take the averaged weights, of a run with --average-period",
    )
    add("--split", default="validation", choices=["validation", "test"])
    add("--output-file", type=Path, help="write the table as JSON, too")
    add("--dtype", choices=DTYPES, help="score the weights as generation uses them in this type")
    TokenDataModule.add_arguments(parser)
    return parser


def score_model(args: argparse.Namespace) -> dict[str, list[Score]]:
    """A row a quantizer for the model, the unigram and the bigram."""
    checkpoint = read_checkpoint(args.checkpoint)
    model = AudioLM.from_checkpoint(args.checkpoint, averaged=args.averaged)
    engine = Engine(model, args.dtype, fused=False)
    model.ar, model.nar = engine.ar, engine.nar
    data = TokenDataModule(args, model.config.num_quantizers, model.config.num_audio_tokens)
    cuts = data.valid_cuts() if args.split == "validation" else data.test_cuts()
    limits = checkpoint["filter_min_duration"], checkpoint["filter_max_duration"]
    survey = data.survey(cuts, *limits)
    cuts, codec = survey.cuts, survey.codec
    if codec is not None and checkpoint.get("codec"):
        trained_on = CodecInfo.from_dict(checkpoint["codec"])
        trained_on.check_same(codec, f"tokens in {args.manifest_dir}")
    total, held_out, starts = MetricsTracker(), [], []
    for batch in data.valid_dataloader(cuts):
        codes, lens = batch["audio_features"], batch["audio_features_lens"]
        prompt = split_prompt(codes, lens, checkpoint["prompt_ratio"])
        with torch.no_grad():
            total = total + MetricsTracker(model(**prompt._asdict()).metrics)
        held_out += [c[:n].numpy() for c, n in zip(codes, lens.tolist(), strict=True)]
        starts += prompt.x_lens.clamp(min=1).tolist()  # a bigram needs a code before the first
    train = [cut_codes(cut) for cut in data.survey(data.train_cuts(), *limits).cuts]
    quantizers = range(model.config.num_quantizers)
    rows = {
        "AudioLM": [Score(total[f"loss_q{q + 1}"], total[f"accuracy_q{q + 1}"]) for q in quantizers]
    }
    for name, kind in (("unigram", Unigram), ("bigram", Bigram)):
        rows[name] = [
            best_score(
                kind,
                [codes[:, q] for codes in train],
                [codes[:, q] for codes in held_out],
                starts,
                model.config.num_audio_tokens,
            )
            for q in quantizers
        ]
    return rows


def as_table(rows: dict[str, list[Score]]) -> str:
    """Markdown: nats a frame, and in brackets the accuracy."""
    num_quantizers = len(rows["AudioLM"])
    lines = ["| nats (accuracy) | " + " | ".join(f"q{q + 1}" for q in range(num_quantizers)) + " |"]
    lines.append("|---" * (num_quantizers + 1) + "|")
    for name, scores in rows.items():
        cells = (f"{score.loss:.3f} ({score.accuracy:.1%})" for score in scores)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = get_parser()
    args = parser.parse_args(argv)
    try:
        rows = score_model(args)
    except (ValueError, OSError) as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")
    print(as_table(rows))
    if args.output_file is not None:
        with written_whole(args.output_file) as temporary:
            content = {name: [vars(score) for score in scores] for name, scores in rows.items()}
            temporary.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
