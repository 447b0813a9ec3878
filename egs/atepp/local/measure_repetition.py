#!/usr/bin/env python3
"""Whether long continuations repeat themselves or drift: quantizer 1, beside that of true music.

Usage:

  python3 egs/atepp/local/measure_repetition.py --checkpoint exp/audio-lm/best-valid-loss.pt \
      --manifest-dir data/tokenized --prompt-duration 4 --max-duration 60 --window 10 \
      --temperature 0 0.8 --top-k 50 --repetition-window 0 10 --output-file repetition.json

Held-out recordings are continued from their first seconds, once for every combination of the
sampling flags, far beyond what the model reads at a time (--window), and may not end (ignore_eos).
Tables follow, means over the recordings with their standard errors. The first measures each
continuation over as many frames as the shortest true one has, since most measures depend on length;
the others measure segments of equal length by themselves, from the first to the last, which shows
drift. A loop of one code is as a rule silence: a piece that has come to its end and may not stop.

N recordings, T frames, S prompt frames, Q quantizers.
"""

import argparse
import json
import logging
from collections.abc import Iterator, Sequence
from itertools import pairwise, product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from repetition_tables import DRIFT_COLUMNS, Row, drift_table, measure_row, whole_table
from torch import Tensor
from tqdm import tqdm

from valle.data import CodecInfo, check_codes, codec_of, cut_codes, load_cuts
from valle.data.manifest import frame_shift_of, manifest_path
from valle.models import AudioLM, Engine, GenerationOptions
from valle.utils.checkpoint import read_checkpoint
from valle.utils.dist import choose_device
from valle.utils.files import written_whole

TRUE_MUSIC = "true music"


class Pieces(NamedTuple):
    """Held-out recordings: `ids`, codes (T, Q) of each, and their frame rate."""

    ids: list[str]
    codes: list[np.ndarray]
    frame_rate: float


def read_pieces(args: argparse.Namespace, model: AudioLM) -> Pieces:
    """The first recordings of a split that outlast the prompt by a segment, joined of their cuts.

    Raises:
      ValueError: there is none, or its codes are not what the model was trained on.
    """
    cuts = list(load_cuts(manifest_path(args.manifest_dir, args.split)))
    _check_codec(args, codec_of(cuts))
    shift = frame_shift_of(cuts[0])
    if shift is None:
        raise ValueError(f"cut {cuts[0].id} in {args.manifest_dir} carries no tokens")
    by_recording: dict[str, list[Any]] = {}
    for cut in cuts:
        by_recording.setdefault(cut.recording_id, []).append(cut)
    needed = round((args.prompt_duration + args.segment_duration) / shift)
    pieces: dict[str, np.ndarray] = {}
    for id_, parts in by_recording.items():
        if len(pieces) == args.num_prompts:
            break
        codes = join_cuts(parts)
        if len(codes) >= needed:
            check_codes(codes, id_, model.config.num_quantizers, model.config.num_audio_tokens)
            pieces[id_] = codes
    if not pieces:
        raise ValueError(
            f"none of {len(by_recording)} recordings holds {needed} frames on end, a prompt of "
            f"{args.prompt_duration:g} s and a segment of {args.segment_duration:g} s: give "
            "a shorter --prompt-duration or --segment-duration"
        )
    logging.info(f"took {len(pieces)} of {len(by_recording)} recordings: {', '.join(pieces)}")
    return Pieces(list(pieces), list(pieces.values()), 1 / shift)


def join_cuts(cuts: Sequence[Any]) -> np.ndarray:
    """Codes (T, Q) of a recording's cuts, from the earliest of them to the first gap."""
    ordered = sorted(cuts, key=lambda cut: cut.start)
    joined = [cut_codes(ordered[0])]
    for before, cut in pairwise(ordered):
        if abs(cut.start - before.end) > (frame_shift_of(cut) or 0.0):
            break
        joined.append(cut_codes(cut))
    return np.concatenate(joined)


def _check_codec(args: argparse.Namespace, codec: CodecInfo | None) -> None:
    recorded = read_checkpoint(args.checkpoint).get("codec")
    if codec is not None and recorded:
        CodecInfo.from_dict(recorded).check_same(codec, f"tokens in {args.manifest_dir}")


def get_settings(args: argparse.Namespace, frame_rate: float) -> dict[str, dict[str, Any]]:
    """Every combination of the sampling flags, as arguments of a generation, by its name.

    Raises:
      ValueError: one of them cannot be; before any time is spent on the others.
    """
    settings = {}
    for temperature, top_k, top_p, min_p, repetition_window, stride in product(
        args.temperature, args.top_k, args.top_p, args.min_p, args.repetition_window, args.stride
    ):
        how = {"temperature": temperature, "repetition_window": repetition_window}
        if temperature != 0:  # greedy draws nothing that could be filtered
            how |= {"top_k": top_k, "top_p": top_p, "min_p": min_p}
        name = name_of(how) + f", stride {stride:g} s" * (len(args.stride) > 1)
        settings[name] = how | {
            "stride": round(stride * frame_rate),
            "window": round(args.window * frame_rate),
            "max_new_tokens": round(args.max_duration * frame_rate),
            "nar_temperature": args.nar_temperature,
            "ignore_eos": True,
        }
        GenerationOptions(**settings[name])  # checks itself
    return settings


def name_of(how: dict[str, Any]) -> str:
    """Temperature, and what else differs from the defaults, in words."""
    words = {"top_k": "top-k", "top_p": "top-p", "min_p": "min-p"}
    words["repetition_window"] = "repetition-aware"
    names = [f"temperature {how['temperature']:g}" if how["temperature"] else "greedy"]
    names += [
        f"{word} {how[field]:g}"
        for field, word in words.items()
        if field in how and how[field] != getattr(GenerationOptions, field)
    ]
    return ", ".join(names)


def continue_pieces(
    engine: Engine, x: Tensor, settings: dict[str, dict[str, Any]], seed: int
) -> Iterator[tuple[str, np.ndarray]]:
    """The name of each setting with the new codes (N, T) of quantizer 1.

    The prompts x (N, S, Q) are one batch, and have the same seeds in every setting.
    """
    num_frames = sum(options["max_new_tokens"] for options in settings.values())
    with tqdm(total=num_frames, unit="frame", disable=None) as bar:
        for name, options in settings.items():
            bar.set_description(name)
            joined = engine.inference(
                x,
                generator=torch.Generator().manual_seed(seed),
                progress=lambda _: bar.update(),
                **options,
            )
            assert isinstance(joined, Tensor)  # no lengths were asked for
            yield name, joined[:, x.shape[1] :, 0].cpu().numpy()


def measure_repetition(args: argparse.Namespace) -> tuple[dict[str, Row], float]:
    """A row for true music and each setting; and the seconds of a whole."""
    device = choose_device(args.device)
    model = AudioLM.from_checkpoint(args.checkpoint, device)
    pieces = read_pieces(args, model)
    rate = pieces.frame_rate
    settings = get_settings(args, rate)
    num_prompt, num_new = round(args.prompt_duration * rate), round(args.max_duration * rate)
    truth = [codes[num_prompt : num_prompt + num_new, 0] for codes in pieces.codes]
    num_compared, segment = min(map(len, truth)), round(args.segment_duration * rate)
    rows = {TRUE_MUSIC: measure_row(truth, num_compared, segment, rate)}
    x = torch.as_tensor(np.stack([codes[:num_prompt] for codes in pieces.codes])).to(device)
    for name, codes in continue_pieces(Engine(model), x, settings, args.seed):
        rows[name] = measure_row(list(codes), num_compared, segment, rate)
    return rows, num_compared / rate


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, help="of trainer_audiolm.py")
    add("--manifest-dir", type=Path, default=Path("data/tokenized"), help="token manifests")
    add("--split", default="test", choices=["validation", "test"])
    add("--num-prompts", type=int, default=8, help="recordings to continue at most")
    add("--prompt-duration", type=float, default=4.0, help="seconds of each that are given")
    add("--max-duration", type=float, default=60.0, help="seconds to add")
    add("--segment-duration", type=float, default=10.0, help="seconds of a segment, for drift")
    add("--window", type=float, default=10.0, help="seconds that the model reads; 0: all")
    group = parser.add_argument_group("sampling", "several values each: all combinations are run")
    add = group.add_argument
    add("--stride", type=float, nargs="+", default=[0.0], help="seconds; 0: half the window")
    add("--temperature", type=float, nargs="+", default=[0.0, 0.8, 1.0], help="0 is greedy")
    add("--top-k", type=int, nargs="+", default=[0, 50], help="0: among all codes")
    add("--top-p", type=float, nargs="+", default=[1.0], help="1: among all codes")
    add("--min-p", type=float, nargs="+", default=[0.0], help="0: among all codes")
    add("--repetition-window", type=int, nargs="+", default=[0, 10], help="frames; 0: off")
    add("--nar-temperature", type=float, default=0.8, help="of quantizers 2 to Q, in all settings")
    add("--seed", type=int, default=42)
    parser.add_argument("--device", default="auto", help="cpu, cuda, or auto: cuda if there is one")
    parser.add_argument("--output-file", type=Path, help="write all values as JSON, too")
    return parser


def check_args(args: argparse.Namespace) -> None:
    """Refuse numbers that make no sense.

    Raises:
      ValueError: no prompts, or durations that cannot be; the message names the flag.
    """
    if args.num_prompts < 1:
        raise ValueError(f"--num-prompts must be 1 or more, got {args.num_prompts}")
    for flag in ("prompt_duration", "segment_duration"):
        if not getattr(args, flag) > 0:
            raise ValueError(
                f"--{flag.replace('_', '-')} must be above 0 s, got {getattr(args, flag):g}"
            )
    if args.max_duration < args.segment_duration:
        raise ValueError(
            f"--max-duration {args.max_duration:g} s is less than one segment of "
            f"{args.segment_duration:g} s: continue for longer, or give a --segment-duration"
        )


def main(argv: list[str] | None = None) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = get_parser()
    args = parser.parse_args(argv)
    try:
        check_args(args)
        rows, seconds = measure_repetition(args)
    except (ValueError, OSError) as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")
    if args.output_file is not None:
        with written_whole(args.output_file) as temporary:
            content = {name: row._asdict() for name, row in rows.items()}
            temporary.write_text(json.dumps(content, indent=2) + "\n")
    print(f"The first {seconds:.1f} s of each continuation:\n\n{whole_table(rows)}")
    for key in DRIFT_COLUMNS:
        print(f"\n{drift_table(rows, key, args.segment_duration)}")


if __name__ == "__main__":
    main()
