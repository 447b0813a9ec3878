#!/usr/bin/env python3
"""Average the weights of several checkpoints of a run into one file, for inference.

Usage:

  python3 egs/atepp/bin/average_checkpoints.py --exp-dir exp/audio-lm --epoch 20 --avg 5
  python3 egs/atepp/bin/average_checkpoints.py --exp-dir exp/audio-lm --iter 40000 --avg 4
  python3 egs/atepp/bin/average_checkpoints.py --checkpoints a.pt b.pt --output-file mean.pt

The first takes epoch-16.pt to epoch-20.pt, the second checkpoint-40000.pt and the three before it.
With `--use-averaged-model true` (of a run with `--average-period`) not only the weights in the
files count, but those of all updates between the first and the last: for `--epoch 20 --avg 5`
between the end of epoch 15 and that of epoch 20. That is computed from two files alone, epoch-15.pt
and epoch-20.pt.

The file is a checkpoint without optimizer: `infer_audiolm.py` or `infer.py --checkpoint` and
`valle.models.load_model` take it, a run cannot go on from it.
"""

import argparse
import logging
from pathlib import Path
from typing import Any

from valle.data import CodecInfo
from valle.models import CodecLM
from valle.utils.averaging import average_checkpoints, average_checkpoints_with_averaged_model
from valle.utils.checkpoint import (
    RESERVED,
    checkpoint_number,
    find_checkpoints,
    load_weights,
    read_checkpoint,
    save_checkpoint,
)
from valle.utils.cli import str2bool


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--exp-dir", type=Path, default=Path("exp/audio-lm"), help="folder of the run")
    add("--epoch", type=int, help="the last epoch that counts")
    add("--iter", type=int, help="instead: the last checkpoint-N.pt that counts, as N")
    add("--avg", type=int, help="how many epochs, or checkpoints, up to that one")
    add("--checkpoints", type=Path, nargs="+", help="instead: these files, earliest first")
    add(
        "--use-averaged-model",
        type=str2bool,
        default=False,
        help="count every update in between, by the running means that the files hold",
    )
    add("--output-file", type=Path, help="default: averaged-epoch-N-avg-K.pt or the like, there")
    return parser


def main(argv: list[str] | None = None) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = get_parser()
    args = parser.parse_args(argv)
    try:
        average_files(args)
    except (ValueError, OSError) as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")


def average_files(args: argparse.Namespace) -> Path:
    """Write the average; returns the file."""
    check_arguments(args)
    files = choose_files(args)
    target = args.output_file or args.exp_dir / default_name(args)
    if target.resolve() in [file.resolve() for file in files]:
        raise ValueError(f"--output-file {target} is one of the files to average")
    params = common_parameters(files)
    if args.use_averaged_model:
        weights = average_checkpoints_with_averaged_model(*files)
    else:
        weights = average_checkpoints(files)
    model = CodecLM.kind_of(params["config"]).from_config(params["config"])
    load_weights(model, weights, "the average")
    names = [file.name for file in files]
    made_of = {"averaged_from": names, "use_averaged_model": args.use_averaged_model}
    save_checkpoint(target, model, params | made_of)
    what = "updates between" if args.use_averaged_model else "mean of"
    logging.info(f"{target}: {what} {', '.join(names)}")
    return target


def check_arguments(args: argparse.Namespace) -> None:
    """Exactly one way of naming files, whole.

    Raises:
      ValueError: flags that do not go together, or numbers that cannot be.
    """
    ways = [name for name in ("epoch", "iter", "checkpoints") if getattr(args, name) is not None]
    if len(ways) != 1:
        given = ", ".join(f"--{way}" for way in ways) or "none of them"
        raise ValueError(f"give one of --epoch N, --iter N and --checkpoints FILE..., got {given}")
    if args.checkpoints is None:
        for name in (ways[0], "avg"):
            if (getattr(args, name) or 0) < 1:
                raise ValueError(f"--{name} must be 1 or more, got {getattr(args, name)}")
        return
    if args.avg is not None:
        raise ValueError("--checkpoints names every file: leave --avg out")
    if args.output_file is None:
        raise ValueError("--checkpoints needs --output-file, the name of the average")
    if args.use_averaged_model and len(args.checkpoints) != 2:
        raise ValueError(
            "--use-averaged-model true takes two files, the one before the stretch and the one at "
            f"its end, got {len(args.checkpoints)}"
        )


def default_name(args: argparse.Namespace) -> str:
    """As `averaged-epoch-20-avg-5.pt`: no trainer deletes it or takes it for one of its own."""
    last = f"epoch-{args.epoch}" if args.epoch is not None else f"iter-{args.iter}"
    suffix = "-use-averaged-model" if args.use_averaged_model else ""
    return f"averaged-{last}-avg-{args.avg}{suffix}.pt"


def choose_files(args: argparse.Namespace) -> list[Path]:
    """The files to average, earliest first; of a stretch, the one before it and the last.

    Raises:
      FileNotFoundError: some are not there; the message names them.
      ValueError: there are not so many.
    """
    if args.checkpoints is not None:
        files = args.checkpoints
    elif args.epoch is not None:
        files = epoch_files(args)
    else:
        files = iteration_files(args)
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(files)} checkpoints are not there: {', '.join(missing)}"
        )
    return files


def epoch_files(args: argparse.Namespace) -> list[Path]:
    before = args.epoch - args.avg
    if before < 0 or (before == 0 and args.use_averaged_model):
        raise ValueError(
            f"--avg {args.avg} reaches back before epoch 1 from --epoch {args.epoch}; "
            + advice(args, most=args.epoch)
        )
    if args.use_averaged_model:
        epochs = [before, args.epoch]
    else:
        epochs = list(range(before + 1, args.epoch + 1))
    return [args.exp_dir / f"epoch-{epoch}.pt" for epoch in epochs]


def iteration_files(args: argparse.Namespace) -> list[Path]:
    last = args.exp_dir / f"checkpoint-{args.iter}.pt"
    if not last.is_file():
        numbers = ", ".join(str(checkpoint_number(f)) for f in find_checkpoints(args.exp_dir))
        raise FileNotFoundError(f"no {last}; --iter can be: {numbers or 'nothing, none is there'}")
    found = find_checkpoints(args.exp_dir, -args.iter)  # newest first
    wanted = args.avg + args.use_averaged_model
    if len(found) < wanted:
        raise ValueError(
            f"--avg {args.avg} needs {wanted} files up to {last.name}, {len(found)} are there: "
            f"{', '.join(f.name for f in reversed(found))}; " + advice(args, most=len(found))
        )
    files = found[:wanted][::-1]
    return [files[0], files[-1]] if args.use_averaged_model else files


def advice(args: argparse.Namespace, most: int) -> str:
    """What to do where `most` files are all there is."""
    if not args.use_averaged_model:
        return f"give --avg {most} or less"
    whole_run = "the average since the run began is in the last file itself: --averaged true there"
    return f"give --avg {most - 1} or less; {whole_run}" if most > 1 else whole_run


def common_parameters(files: list[Path]) -> dict[str, Any]:
    """The parameters of the last file, once all are seen to be of one model.

    Raises:
      ValueError: a file lacks what rebuilds its model, or differs from the first in it.
    """
    first = read_checkpoint(files[0])
    for file in files:
        checkpoint = read_checkpoint(file)
        if "config" not in checkpoint:
            raise ValueError(f"{file} holds no model config; was it written by this trainer?")
        for name in ("config", "train_stage"):
            ours, theirs = first.get(name), checkpoint.get(name)
            if ours != theirs:
                raise ValueError(
                    f"{files[0]} and {file} are of different models, whose mean is none: {name} is "
                    f"{ours} in the first and {theirs} in the other"
                )
        if first.get("text_symbols") != checkpoint.get("text_symbols"):
            raise ValueError(
                f"{files[0]} and {file} were trained on different tables of text symbols, so that "
                "the same id means two: average checkpoints of one run"
            )
        if first.get("codec") and checkpoint.get("codec"):
            codec = CodecInfo.from_dict(first["codec"])
            codec.check_same(CodecInfo.from_dict(checkpoint["codec"]), f"{files[0]} and {file}")
    left_out = (*RESERVED, "ranks")  # what only a run that goes on needs
    return {name: value for name, value in checkpoint.items() if name not in left_out}


if __name__ == "__main__":
    main()
