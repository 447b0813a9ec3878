"""Flags that all programs share that make music, and the codec that turns it into sound."""

import argparse
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from valle.data import Codec, CodecInfo
from valle.models import VALLE, CodecLM
from valle.models.engine import DTYPES, STREAM_OPTIONS
from valle.utils.cli import flag_of, str2bool

MOST_SEC = 1e6  # eleven days: no recording is longer, and frames can still be counted


def check_seconds(args: argparse.Namespace, names: Iterable[str], least: str = "above 0 s") -> None:
    """Refuse lengths that are none, before anything is read.

    Args:
      args: The flags.
      names: Of those of seconds; each holds a number, several, or None where it is left out.
      least: "above 0 s", or "0 s or more" where there may be none of it.

    Raises:
      ValueError: The message names the flag.
    """
    for name in names:
        given = getattr(args, name)
        for value in given if isinstance(given, list) else [given]:
            if value is None or 0 < value <= MOST_SEC:  # not so of NaN either
                continue
            if value == 0 and least == "0 s or more":
                continue
            raise ValueError(
                f"{flag_of(name)} must be {least}, and {MOST_SEC:g} s at most, got {value:g}"
            )


def add_subject_arguments(add: Callable[..., Any]) -> None:
    """Which model makes music, by which codec, where, and with which random numbers."""
    add("--checkpoint", type=Path, required=True, help="of trainer.py")
    add(
        "--averaged",
        type=str2bool,
        default=False,
        help="take the averaged weights, of a run with --average-period",
    )
    add("--seed", type=int, default=42)
    add("--codec", help="folder or hub name; default: the one that the checkpoint names")
    add("--device", default="auto", help="cpu, cuda, or auto: cuda where there is one")
    add(
        "--dtype",
        default="auto",
        choices=["auto", *DTYPES],
        help="of the weights; auto: bfloat16 where the device computes in it, else float32",
    )


def add_window_arguments(add: Callable[..., Any]) -> None:
    """How much is read of what is longer than the training's cuts."""
    add(
        "--window",
        type=float,
        help="what the AR half reads at most; default: the longest cut that the model may have "
        "been trained on; 0: everything",
    )
    add("--stride", type=float, default=0.0, help="how far a full window moves; default: half")


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("sampling").add_argument
    add("--temperature", type=float, default=1.0, help="of quantizer 1; 0 is greedy")
    add("--top-k", type=int, default=50, help="draw among the k likeliest codes; 0: all")
    add("--top-p", type=float, default=1.0, help="draw among codes of this probability in all")
    add("--min-p", type=float, default=0.0, help="draw among codes not so many times less likely")
    add(
        "--repetition-aware-sampling",
        type=str2bool,
        default=False,
        help="draw another code where one is repeated too often (VALL-E 2)",
    )
    add("--repetition-window", type=int, default=10, help="frames in which repeats are counted")
    add("--repetition-threshold", type=float, default=0.1, help="share of them that is too often")
    add("--nar-temperature", type=float, default=0.0, help="of the other quantizers; 0 is greedy")


def sampling_options(args: argparse.Namespace) -> dict[str, Any]:
    """The flags of `add_sampling_arguments` and --num-samples, as `GenerationOptions` has them."""
    return {
        "temperature": args.temperature,
        "top_k": args.top_k,
        "top_p": args.top_p,
        "min_p": args.min_p,
        "repetition_window": args.repetition_window * args.repetition_aware_sampling,
        "repetition_threshold": args.repetition_threshold,
        "nar_temperature": args.nar_temperature,
        "num_samples": args.num_samples,
    }


def window_options(
    args: argparse.Namespace, frame_rate: float, longest: int, checkpoint: dict[str, Any]
) -> dict[str, int]:
    """The flags of `add_window_arguments` in frames; nothing where a window is not needed.

    Args:
      args: The flags.
      frame_rate: Of the codec.
      longest: Frames of the longest prompt and what is added to it.
      checkpoint: Tells how long the training's cuts were.
    """
    window = args.window
    if window is None:
        window = checkpoint.get("filter_max_duration") or 0.0
    num_frames = round(window * frame_rate)
    if not num_frames or num_frames >= longest:
        return {}
    logging.info(f"{longest / frame_rate:g} s are made in windows of {window:g} s")
    stride = round(args.stride * frame_rate)
    return {"window": num_frames, "stride": stride, "lookahead": STREAM_OPTIONS["lookahead"]}


def load_codec(
    name: str | None,
    checkpoint: dict[str, Any],
    path: Path,
    device: torch.device,
    num_quantizers: int,
) -> Codec:
    """The codec that the model was trained on, from where it was then or from `name`."""
    recorded = checkpoint.get("codec")
    name = name or (recorded or {}).get("name")
    if name is None:
        raise ValueError(f"{path} names no codec: give --codec FOLDER_OR_HUB_NAME")
    codec = Codec.from_pretrained(name, device, num_quantizers)
    if recorded is None:
        logging.warning(f"{path} names no codec; taking {name} on trust")
    else:
        CodecInfo.from_dict(recorded).check_same(codec.info, f"--codec for {path}")
    return codec


def refuse_other_model(checkpoint: dict[str, Any], path: Path, expected: type[CodecLM]) -> None:
    """Refuse the checkpoint of a model that another program is for.

    Raises:
      ValueError: It holds one; the message names the program.
    """
    config = checkpoint.get("config")
    if config is None:  # whoever builds the model tells of that
        return
    kind = CodecLM.kind_of(config)
    if kind is expected:
        return
    raise ValueError(
        f"{path} holds a VALLE, which makes audio of {config['condition']}: give it to infer.py"
        if kind is VALLE
        else f"{path} holds an AudioLM, which continues audio: give it to infer_audiolm.py"
    )
