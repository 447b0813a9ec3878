#!/usr/bin/env python3
"""Continue sound files with a trained AudioLM.

Usage:

  python3 egs/atepp/bin/infer_audiolm.py --checkpoint exp/audio-lm/best-valid-loss.pt \
      --audio-prompts a.wav b.flac --prompt-duration 3 --max-duration 10 --output-dir infer

For each prompt two files appear: `NAME_full.wav`, prompt and continuation decoded together, so that
there is no seam, and `NAME_continuation.wav`, the same from the end of the prompt on. With
`--stream` the files grow while the music is made; `--stream pcm` sends it to a player instead:

  python3 egs/atepp/bin/infer_audiolm.py --checkpoint exp/audio-lm/best-valid-loss.pt \
      --audio-prompts a.wav --max-duration 300 --stream pcm | aplay -f S16_LE -r 32000

A piece longer than the cuts that the model was trained on is made in windows of that length, so
that memory and time a frame stay the same however long it becomes.
"""

import argparse
import logging
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from generation_flags import (
    add_sampling_arguments,
    add_subject_arguments,
    add_window_arguments,
    check_seconds,
    load_codec,
    refuse_other_model,
    sampling_options,
    window_options,
)
from generation_rows import different_names, row_batches, sample_names
from infer_output import GrowingFiles, Meter, Sink, StreamedPiece, write_sounds
from torch import Tensor

from valle.data import Codec, RawPCM, ReaderGone, collate_codes, load_audio
from valle.models import AudioLM, Engine, GenerationOptions
from valle.utils.checkpoint import read_checkpoint
from valle.utils.cli import flag_of, str2bool
from valle.utils.dist import choose_device, choose_dtype


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add_subject_arguments(add)
    add("--audio-prompts", type=Path, nargs="*", default=[], help="sound files to continue")
    add("--num-unconditional", type=int, default=0, help="pieces out of nothing (--prepend-bos)")
    add("--prompt-duration", type=float, help="take this many seconds of each file; default: all")
    add("--num-samples", type=int, default=1, help="continuations of each prompt")
    add("--output-dir", type=Path, default=Path("infer/demo"))
    add("--batch-size", type=int, default=8, help="prompts at a time; changes no sample on a CPU")
    add_length_arguments(parser)
    add_sampling_arguments(parser)
    return parser


def add_length_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("length, in seconds").add_argument
    add("--max-duration", type=float, default=10.0, help="seconds to add at most")
    add("--min-duration", type=float, default=0.0, help="seconds to add at least")
    add("--ignore-eos", type=str2bool, default=False, help="do not stop where a piece would end")
    add_window_arguments(add)
    add(
        "--stream",
        nargs="?",
        const="wav",
        choices=["wav", "pcm"],
        help="wav: files that grow; pcm: 16-bit samples to standard output",
    )
    add("--chunk", type=float, help="what is completed at a time; default with --stream: short")
    add(
        "--lookahead", type=float, help="what the NAR half hears after a chunk before completing it"
    )
    add("--nar-context", type=float, help="what it hears before a chunk")


def main(argv: list[str] | None = None) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = get_parser()
    args = parser.parse_args(argv)
    try:
        continue_files(args)
    except ReaderGone:
        logging.info("the player has closed the pipe")
    except KeyboardInterrupt:
        parser.exit(130, "stopped\n")
    except (ValueError, OSError, ImportError) as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")


class Prompts(NamedTuple):
    """What is to be continued: a name and codes (S, Q) each."""

    names: list[str]
    codes: list[Tensor]


def continue_files(args: argparse.Namespace) -> None:
    check_arguments(args)
    device = choose_device(args.device)
    checkpoint = read_checkpoint(args.checkpoint)
    refuse_other_model(checkpoint, args.checkpoint, AudioLM)
    model = AudioLM.from_checkpoint(args.checkpoint, device, args.averaged)
    codec = load_codec(args.codec, checkpoint, args.checkpoint, device, model.config.num_quantizers)
    prompts = read_prompts(args, codec, model.config.num_quantizers)
    options = generation_options(args, codec.frame_rate, prompts, checkpoint)
    num_batches = -(-len(prompts.names) // args.batch_size)
    engine = Engine(model, dtype=choose_dtype(args.dtype, device))
    del model  # an engine of another type has weights of its own
    make = stream_batch if args.stream else finish_batch
    with Meter(options["max_new_tokens"] * num_batches, codec.frame_rate, device) as meter:
        for rows, generators in row_batches(
            len(prompts.names), args.num_samples, args.batch_size, args.seed
        ):
            batch = Prompts(prompts.names[rows], prompts.codes[rows])
            make(
                args, engine, codec, batch, meter,
                generator=generators, progress=meter.progress(), **options,
            )  # fmt: skip
    logging.info(meter.summary())


def check_arguments(args: argparse.Namespace) -> None:
    num_prompts = len(args.audio_prompts) + args.num_unconditional
    if num_prompts < 1:
        raise ValueError("nothing to do: give --audio-prompts FILE..., or --num-unconditional N")
    for name in ("batch_size", "num_samples"):
        if getattr(args, name) < 1:
            raise ValueError(f"{flag_of(name)} must be 1 or more, got {getattr(args, name)}")
    check_seconds(args, ("prompt_duration",))
    check_seconds(args, ("max_duration", "min_duration"), least="0 s or more")
    if args.stream == "pcm" and num_prompts * args.num_samples != 1:
        raise ValueError(
            f"--stream pcm plays one piece, got {num_prompts} prompts x {args.num_samples} samples"
        )


def read_prompts(args: argparse.Namespace, codec: Codec, num_quantizers: int) -> Prompts:
    codes = [load_audio(path, codec, args.prompt_duration)[0] for path in args.audio_prompts]
    codes += [torch.zeros(0, num_quantizers, dtype=torch.long)] * args.num_unconditional
    stems = [path.stem for path in args.audio_prompts]
    stems += [f"unconditional-{i + 1}" for i in range(args.num_unconditional)]
    return Prompts(different_names(stems), codes)


def generation_options(
    args: argparse.Namespace, frame_rate: float, prompts: Prompts, checkpoint: dict[str, Any]
) -> dict[str, Any]:
    """The flags as `GenerationOptions` has them: lengths in frames."""

    def frames(seconds: float) -> int:
        return round(seconds * frame_rate)

    options = sampling_options(args) | {
        "max_new_tokens": frames(args.max_duration),
        "min_new_tokens": frames(args.min_duration),
        "ignore_eos": args.ignore_eos,
    }
    longest = max(len(codes) for codes in prompts.codes) + options["max_new_tokens"]
    options |= window_options(args, frame_rate, longest, checkpoint)
    for name in ("chunk", "lookahead", "nar_context"):
        if getattr(args, name) is not None:
            options[name] = frames(getattr(args, name))
    GenerationOptions(**options)  # checks itself, before any time is spent
    return options


def finish_batch(
    args: argparse.Namespace,
    engine: Engine,
    codec: Codec,
    prompts: Prompts,
    meter: Meter,
    **options: Any,
) -> None:
    """Make whole pieces, then write them."""
    x, x_lens = collate_codes([codes.numpy() for codes in prompts.codes])
    codes, lens = engine.inference(
        x.to(codec.device), x_lens.to(codec.device), return_lens=True, **options
    )
    prompt_lens = x_lens.repeat_interleave(args.num_samples)
    meter.count(int((lens.cpu() - prompt_lens).sum()))
    names = sample_names(prompts.names, args.num_samples)
    write_sounds(args.output_dir, names, codes, lens.cpu(), prompt_lens, codec)


def stream_batch(
    args: argparse.Namespace,
    engine: Engine,
    codec: Codec,
    prompts: Prompts,
    meter: Meter,
    **options: Any,
) -> None:
    """Give out sound while more of it is made."""
    x, x_lens = collate_codes([codes.numpy() for codes in prompts.codes])
    codes_of_rows = [codes for codes in prompts.codes for _ in range(args.num_samples)]
    with ExitStack() as stack:
        rows = [
            stack.enter_context(StreamedPiece(codec, codes, open_sink(args, name, codes, codec)))
            for name, codes in zip(
                sample_names(prompts.names, args.num_samples), codes_of_rows, strict=True
            )
        ]
        for chunk in engine.stream(x.to(codec.device), x_lens.to(codec.device), **options):
            meter.count(sum(row.feed(codes) for row, codes in zip(rows, chunk.cpu(), strict=True)))
            meter.note_sound()
        for row in rows:
            row.finish()


def open_sink(args: argparse.Namespace, name: str, prompt: Tensor, codec: Codec) -> Sink:
    if args.stream == "pcm":
        return RawPCM(sys.stdout.buffer)
    num_prompt_samples = len(prompt) * codec.hop_length
    return GrowingFiles(args.output_dir, name, num_prompt_samples, codec.sampling_rate)


if __name__ == "__main__":
    main()
