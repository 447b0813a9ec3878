#!/usr/bin/env python3
"""How good a trained model is: tables, and a page to look at and to listen to.

Usage:

  python3 egs/atepp/bin/evaluate.py --checkpoint exp/audio-lm/best-valid-loss.pt \
      --manifest-dir data/tokenized --prompt-duration 4 --max-duration 6

Parts, chosen with `--parts`. likelihood: what true continuations of held-out cuts cost the
model, by quantizer, by how far into the continuation a frame lies, after prompts of several
lengths, and beside n-grams. sounds: continuations of held-out prompts, measured beside the true
ones, beside other pieces, noise and loops; a model trained for it fills gaps, too. condition, of a
VALL-E that plays MIDI: sound made of held-out notes after a prompt, measured beside the recording,
the codec's round trip, and sound made of other notes. Of a VALL-E likelihood also says what true
audio costs if the model is told another recording's text or notes.

The tables are printed. `--output-dir` gets `evaluation.json` with all figures and all that made
them, and `report.html`, one page with the tables, curves, spectrograms and players. It needs no
network and no other file. The same command gives the same figures.

Runs side by side, with what their evaluations found, where they have been evaluated:

  python3 egs/atepp/bin/evaluate.py --exp-dirs exp/a exp/b --output-dir exp/comparison
"""

import argparse
import json
import logging
import sys
import tempfile
from pathlib import Path

from evaluation_comparison import as_table, compare, write_comparison
from evaluation_condition import Followed, measure_condition, prepare_condition
from evaluation_condition_likelihood import score_conditioned
from evaluation_json import Evaluation, as_json
from evaluation_likelihood import Scores, score_likelihood
from evaluation_players import SCRIPT, STYLE
from evaluation_report import as_markdown, sections_of
from evaluation_sounds import Sounds, measure_sounds, prepare_sounds
from evaluation_subject import Subject, open_subject
from generation_flags import (
    add_sampling_arguments,
    add_window_arguments,
    check_seconds,
)

from valle.evaluation.embeddings import OFFLINE
from valle.models.engine import DTYPES
from valle.utils.cli import flag_of, str2bool
from valle.utils.files import MIB, written_whole
from valle.utils.html import page
from valle.utils.plot import can_draw

PARTS = ("likelihood", "sounds", "condition")
USUAL_PARTS = {  # by the condition of the model
    None: ("likelihood", "sounds"),
    "midi": ("likelihood", "condition"),
    "text": ("likelihood",),
}
PROMPT_SEC = {None: 4.0, "midi": 3.0, "text": 0.0}  # a text does not say what of it a prompt is


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    subject = parser.add_mutually_exclusive_group(required=True)
    subject.add_argument("--checkpoint", type=Path, help="of trainer.py or trainer_audiolm.py")
    subject.add_argument(
        "--exp-dirs", type=Path, nargs="+", help="folders of runs that are to be compared, instead"
    )
    add(
        "--averaged",
        type=str2bool,
        default=False,
        help="take the averaged weights, of a run with --average-period",
    )
    add("--manifest-dir", type=Path, default=Path("data/tokenized"), help="token manifests")
    add("--split", default="test", choices=["validation", "test"])
    add(
        "--parts",
        nargs="+",
        choices=PARTS,
        help="default: likelihood, and sounds or, for a VALL-E of MIDI, condition",
    )
    add(
        "--output-dir",
        type=Path,
        help="default: evaluation beside the checkpoint, or comparison beside the first folder",
    )
    add("--seed", type=int, default=42, help="of samples and of resamples")
    add("--device", default="auto", help="cpu, cuda, or auto: cuda where there is one")
    add(
        "--dtype",
        default="float32",
        choices=["auto", *DTYPES],
        help="of the weights; auto: bfloat16 where the device computes in it, else float32",
    )
    add_likelihood_arguments(parser)
    add_sound_arguments(parser)
    add_sampling_arguments(parser)
    return parser


def add_likelihood_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("likelihood").add_argument
    add("--bin-sec", type=float, default=1.0, help="of the table by position, in s")
    add(
        "--prompt-seconds",
        type=float,
        nargs="*",
        help="score what follows the longest of these prompts after each of them; default: a "
        "quarter, half and all of --prompt-duration, as far as a cut outlasts them",
    )
    add("--batch-duration", type=float, default=60.0, help="seconds of cuts scored at a time")


def add_sound_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("sounds").add_argument
    add("--codec", help="folder or hub name; default: the one that the checkpoint names")
    add("--num-prompts", type=int, default=64, help="held-out passages, spread over recordings")
    add(
        "--prompt-duration",
        type=float,
        help="seconds of each that are given; default: 4, for a VALL-E of MIDI 3; one of text is "
        "scored without a prompt",
    )
    add("--max-duration", type=float, default=6.0, help="seconds to add, as many truly followed")
    add("--num-samples", type=int, default=2, help="continuations of each prompt")
    add("--num-shown", type=int, default=8, help="passages with players on the page")
    add("--batch-size", type=int, default=8, help="prompts at a time; changes no sample on a CPU")
    add(
        "--embeddings",
        nargs="+",
        default=list(OFFLINE),
        help='of Fréchet distance and diversity; others are "codec:NAME" and "clap:NAME"',
    )
    add_window_arguments(add)


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse what cannot be, before anything is read.

    Raises:
      ValueError, OSError: The message names the flag.
    """
    least = {"num_prompts": 1, "num_samples": 1, "batch_size": 1, "num_shown": 0, "seed": 0}
    for name, minimum in least.items():
        if getattr(args, name) < minimum:
            raise ValueError(
                f"{flag_of(name)} must be {minimum} or more, got {getattr(args, name)}"
            )
    seconds = ("prompt_duration", "max_duration", "bin_sec", "batch_duration", "prompt_seconds")
    check_seconds(args, seconds)
    check_output_dir(args)


def check_output_dir(args: argparse.Namespace) -> None:
    """Make the folder.

    Raises:
      OSError: It cannot be written to.
    """
    try:
        args.output_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=args.output_dir):
            pass
    except OSError as error:
        raise OSError(
            f"cannot write to --output-dir {args.output_dir} ({error}): name another folder"
        ) from error


def evaluate(args: argparse.Namespace) -> Evaluation:
    """All parts that are asked for; what can fail at once does so before any time is spent."""
    subject = open_subject(args)
    settle_parts(args, subject)
    if subject.model.config.condition is not None:
        return evaluate_conditioned(args, subject)
    stage = prepare_sounds(subject, args) if "sounds" in args.parts else None
    scores: Scores | None = None
    if "likelihood" in args.parts:
        asked = args.prompt_seconds is not None
        usual = [args.prompt_duration * share for share in (0.25, 0.5, 1)]
        lengths = args.prompt_seconds if asked else usual
        scores = score_likelihood(subject, args.bin_sec, lengths, asked)
    sounds: Sounds | None = None
    if stage is not None:
        sounds = measure_sounds(subject, stage, args)
    return Evaluation(vars(args), subject, scores, sounds)


def settle_parts(args: argparse.Namespace, subject: Subject) -> None:
    """Fill in what nobody asked for, by what the model reads.

    Raises:
      ValueError: A part that this model does not have, or a flag that it has no use for.
    """
    condition = subject.model.config.condition
    usual = USUAL_PARTS[condition]
    check_flags(args, condition)
    if args.prompt_duration is None:
        args.prompt_duration = PROMPT_SEC[condition]
    args.parts = list(usual) if args.parts is None else args.parts
    wrong = [part for part in args.parts if part not in usual]
    if wrong:
        kind = f"a VALL-E of {condition}" if condition else "an AudioLM"
        why = {
            "sounds": "sounds judges continuations of audio alone",
            "condition": "condition judges sound by the notes of MIDI; what text is worth to the "
            "model is part of likelihood",
        }
        raise ValueError(
            f"--parts {' '.join(wrong)} is not for {kind}: {why[wrong[0]]}; take --parts "
            f"{' '.join(usual)}"
        )


# What a VALL-E has no use for, and why.
OF_AUDIO_LM = {
    "prompt_seconds": "a VALL-E is scored after one prompt, or after none",
    "window": "a VALL-E makes no more than a passage at a time, and reads it whole",
    "stride": "a VALL-E makes no more than a passage at a time, and reads it whole",
    "embeddings": "what a VALL-E makes is judged by the notes of its MIDI",
}


def check_flags(args: argparse.Namespace, condition: str | None) -> None:
    """Refuse flags that the model's evaluation would pass over in silence.

    Raises:
      ValueError: The message names the first.
    """
    useless = {} if condition is None else dict(OF_AUDIO_LM)
    if condition == "text":
        of_sound = argparse.ArgumentParser()
        add_sound_arguments(of_sound)
        add_sampling_arguments(of_sound)
        reason = "it is scored without a prompt, and no sound is made"
        useless |= dict.fromkeys(vars(of_sound.parse_args([])), reason)
    defaults = get_parser()
    for name, reason in useless.items():
        if getattr(args, name) != defaults.get_default(name):
            raise ValueError(
                f"{flag_of(name)} is not for a VALL-E of {condition}: {reason}; leave it out"
            )


def evaluate_conditioned(args: argparse.Namespace, subject: Subject) -> Evaluation:
    """The parts that a VALL-E has."""
    if "condition" not in args.parts:
        logging.info("no sound is made: what a VALL-E makes is judged by the notes of its MIDI")
    stage = prepare_condition(subject, args) if "condition" in args.parts else None
    scores: Scores | None = None
    if "likelihood" in args.parts:
        scores = score_conditioned(subject, args.bin_sec, args.prompt_duration, args.batch_duration)
    followed: Followed | None = None
    if stage is not None:
        followed = measure_condition(subject, stage, args)
    return Evaluation(vars(args), subject, scores, None, followed)


def write(evaluation: Evaluation, output_dir: Path) -> Path:
    """Write figures and page; return where the page is."""
    content = as_json(evaluation)
    with written_whole(output_dir / "evaluation.json") as temporary:
        text = json.dumps(content, indent=2, allow_nan=False) + "\n"
        temporary.write_text(text, encoding="utf-8")
    with_pictures = can_draw("the page")
    sections = sections_of(evaluation, content, with_pictures)
    print(as_markdown(sections))
    title = f"Evaluation of {content['settings']['checkpoint']}"
    text = page(title, sections, with_pictures, STYLE, SCRIPT, with_contents=True)
    with written_whole(output_dir / "report.html") as temporary:
        temporary.write_text(text, encoding="utf-8")
    return output_dir / "report.html"


def report(args: argparse.Namespace) -> None:
    """Evaluate one checkpoint."""
    args.output_dir = args.output_dir or args.checkpoint.parent / "evaluation"
    check_arguments(args)
    path = write(evaluate(args), args.output_dir)
    size = path.stat().st_size / MIB
    print(
        f"\nOpen it in a browser: {path} ({size:.1f} MiB). All figures: evaluation.json beside it"
    )


def compare_runs(args: argparse.Namespace) -> None:
    """Lay several runs side by side."""
    comparison = compare(args.exp_dirs)
    print(as_table(comparison))
    output_dir = args.output_dir or args.exp_dirs[0].parent / "comparison"
    paths = write_comparison(comparison, output_dir)
    print(f"The same as files: {', '.join(map(str, paths))}")


def main(argv: list[str] | None = None) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("tensorboard").setLevel(logging.WARNING)  # it tells of each file it reads
    parser = get_parser()
    args = parser.parse_args(argv)
    args.command = [parser.prog, *(sys.argv[1:] if argv is None else argv)]
    try:
        compare_runs(args) if args.exp_dirs else report(args)
    except KeyboardInterrupt:
        parser.exit(130, "stopped\n")
    except (ValueError, OSError, ImportError) as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")


if __name__ == "__main__":
    main()
