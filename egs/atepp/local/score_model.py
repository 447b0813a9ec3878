#!/usr/bin/env python3
"""What true continuations cost a trained AudioLM, beside n-grams on the same frames.

Usage:

  python3 egs/atepp/local/score_model.py --checkpoint exp/audio-lm/best-valid-loss.pt \
      --manifest-dir data/tokenized --split validation --output-file exp/audio-lm/scores.json

Tables: cost and accuracy of each quantizer; the same by how far into the continuation a frame lies;
and, with `--prompt-seconds 1 2 4`, of the same frames after prompts of these lengths.
"""

import argparse
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from ngrams import Bigram, Score, Trigram, Unigram, best_score

from valle.data import CodecInfo, TokenDataModule, cut_codes, split_prompt
from valle.evaluation import Likelihood, LikelihoodMeter, frame_costs, prompts_before
from valle.models import AudioLM, Engine
from valle.models.engine import DTYPES
from valle.utils.checkpoint import read_checkpoint
from valle.utils.cli import str2bool
from valle.utils.files import written_whole


@dataclass
class Scores:
    """All that is reported.

    Attributes:
      rows: By name of the model, a score a quantizer.
      overall: AudioLM's.
      by_position: By the second of the continuation at which a bin begins.
      by_prompt: By the length of the prompt in seconds.
      frame_rate: Of the codec; None where the tokens do not name it, and then there are no seconds.
    """

    rows: dict[str, list[Score]]
    overall: Likelihood
    frame_rate: float | None
    by_position: dict[float, Likelihood] = field(default_factory=dict)
    by_prompt: dict[float, Likelihood] = field(default_factory=dict)


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
    add("--bin-sec", type=float, default=1.0, help="of the table by position, in s")
    add(
        "--prompt-seconds",
        type=float,
        nargs="+",
        default=[],
        help="score what follows the longest of these prompts after each of them",
    )
    TokenDataModule.add_arguments(parser)
    return parser


def score_model(args: argparse.Namespace) -> Scores:
    """Score the model and the n-grams.

    Raises:
      ValueError, OSError: A checkpoint or tokens that cannot be used.
    """
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
    frame_rate = codec.frame_rate if codec is not None else None
    meter = LikelihoodMeter(bin_frames(args.bin_sec, frame_rate))
    held_out, starts = [], []
    batches = [(b["audio_features"], b["audio_features_lens"]) for b in data.valid_dataloader(cuts)]
    for codes, lens in batches:
        prompt = split_prompt(codes, lens, checkpoint["prompt_ratio"])
        meter.add(frame_costs(model, *prompt))
        held_out += [c[:n].numpy() for c, n in zip(codes, lens.tolist(), strict=True)]
        starts += prompt.x_lens.clamp(min=1).tolist()  # a bigram needs a code before the first
    train = [cut_codes(cut) for cut in data.survey(data.train_cuts(), *limits).cuts]
    quantizers = range(model.config.num_quantizers)
    overall = meter.overall()
    rows = {"AudioLM": list(map(Score, overall.nats, overall.top1))}
    for name, kind in (("unigram", Unigram), ("bigram", Bigram), ("trigram", Trigram)):
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
    scores = Scores(rows, overall, frame_rate)
    if frame_rate is not None:
        bins = enumerate(meter.by_position())
        scores.by_position = {k * meter.bin_frames / frame_rate: found for k, found in bins}
        scores.by_prompt = after_prompts(model, batches, args.prompt_seconds, frame_rate)
    return scores


def bin_frames(seconds: float, frame_rate: float | None) -> int:
    """Frames of a bin of positions; without a frame rate nobody looks at bins."""
    return max(1, round(seconds * frame_rate)) if frame_rate is not None else 1


def after_prompts(
    model: AudioLM,
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    seconds: list[float],
    frame_rate: float,
) -> dict[float, Likelihood]:
    """The same frames after prompts of several lengths.

    Raises:
      ValueError: A prompt shorter than a frame, or no cut longer than the longest.
    """
    lengths = {length: round(length * frame_rate) for length in sorted(seconds)}
    found = {}
    for length, num_frames in lengths.items():
        meter = LikelihoodMeter(1)
        for codes, lens in batches:
            split = prompts_before(codes, lens, max(lengths.values()), num_frames)
            if split is not None:
                meter.add(frame_costs(model, *split))
        found[length] = meter.overall()
    return found


def as_tables(scores: Scores) -> str:
    """Markdown: what `Scores` holds."""
    parts = [as_table(scores.rows)]
    if scores.frame_rate is not None:
        rate = scores.frame_rate
        begins = {f"from {start:g} s": found for start, found in scores.by_position.items()}
        parts.append(likelihood_table("continuation", begins | {"all": scores.overall}, rate))
        lengths = {f"{length:g} s": found for length, found in scores.by_prompt.items()}
        if lengths:
            parts.append(likelihood_table("prompt", lengths, rate))
    return "\n\n".join(parts)


def likelihood_table(what: str, rows: dict[str, Likelihood], frame_rate: float) -> str:
    """Markdown: nats a frame and perplexity of each quantizer, hits among ten, bits a second."""
    some = next(iter(rows.values()))
    heads = [f"q{q + 1}" for q in range(len(some.nats))]
    heads = [what, "frames", *heads, "perplexity of q1", "q1 among ten", "kbit/s"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name, row in rows.items():
        cells = [name, str(row.num_frames), *(f"{nats:.3f}" for nats in row.nats)]
        cells += [f"{row.perplexity[0]:.0f}", f"{row.top10[0]:.1%}"]
        cells.append(f"{row.bits_a_second(frame_rate) / 1000:.2f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def as_table(rows: dict[str, list[Score]]) -> str:
    """Markdown: nats a frame, and in brackets the accuracy."""
    num_quantizers = len(rows["AudioLM"])
    lines = ["| nats (accuracy) | " + " | ".join(f"q{q + 1}" for q in range(num_quantizers)) + " |"]
    lines.append("|---" * (num_quantizers + 1) + "|")
    for name, scores in rows.items():
        cells = (f"{score.loss:.3f} ({score.accuracy:.1%})" for score in scores)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def as_json(scores: Scores) -> dict[str, Any]:
    """A list of scores for each model, and AudioLM's by position and by prompt."""
    content: dict[str, Any] = {
        name: [vars(score) for score in row] for name, row in scores.rows.items()
    }
    for name, table in (("by_position", scores.by_position), ("by_prompt", scores.by_prompt)):
        content[name] = {f"{key:g}": asdict(found) for key, found in table.items()}
    return content


def main(argv: list[str] | None = None) -> None:
    parser = get_parser()
    args = parser.parse_args(argv)
    try:
        scores = score_model(args)
    except (ValueError, OSError) as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")
    print(as_tables(scores))
    if args.output_file is not None:
        with written_whole(args.output_file) as temporary:
            temporary.write_text(json.dumps(as_json(scores), indent=2) + "\n")


if __name__ == "__main__":
    main()
