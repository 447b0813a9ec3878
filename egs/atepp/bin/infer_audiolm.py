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
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from infer_output import GrowingFiles, Meter, Sink, StreamedPiece, write_sounds
from torch import Tensor

from valle.data import Codec, CodecInfo, RawPCM, ReaderGone, collate_codes, load_audio
from valle.models import AudioLM, Engine, GenerationOptions
from valle.models.engine import DTYPES, STREAM_OPTIONS
from valle.modules.sampling import row_generators
from valle.utils.checkpoint import read_checkpoint
from valle.utils.cli import str2bool
from valle.utils.dist import choose_device, choose_dtype


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
    add("--audio-prompts", type=Path, nargs="*", default=[], help="sound files to continue")
    add("--num-unconditional", type=int, default=0, help="pieces out of nothing (--prepend-bos)")
    add("--prompt-duration", type=float, help="take this many seconds of each file; default: all")
    add("--num-samples", type=int, default=1, help="continuations of each prompt")
    add("--output-dir", type=Path, default=Path("infer/demo"))
    add("--batch-size", type=int, default=8, help="prompts at a time; changes no sample on a CPU")
    add("--seed", type=int, default=42)
    add("--codec", help="folder or hub name; default: the one that the checkpoint names")
    add("--device", default="auto", help="cpu, cuda, or auto: cuda where there is one")
    add(
        "--dtype",
        default="auto",
        choices=["auto", *DTYPES],
        help="of the weights; auto: bfloat16 where the device computes in it, else float32",
    )
    add_length_arguments(parser)
    add_sampling_arguments(parser)
    return parser


def add_length_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("length, in seconds").add_argument
    add("--max-duration", type=float, default=10.0, help="seconds to add at most")
    add("--min-duration", type=float, default=0.0, help="seconds to add at least")
    add("--ignore-eos", type=str2bool, default=False, help="do not stop where a piece would end")
    add(
        "--window",
        type=float,
        help="what the AR half reads at most; default: the longest cut that the model may have "
        "been trained on; 0: everything",
    )
    add("--stride", type=float, default=0.0, help="how far a full window moves; default: half")
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
    model = AudioLM.from_checkpoint(args.checkpoint, device, args.averaged)
    codec = load_codec(args.codec, checkpoint, args.checkpoint, device, model.config.num_quantizers)
    prompts = read_prompts(args, codec, model.config.num_quantizers)
    options = generation_options(args, codec.frame_rate, prompts, checkpoint)
    num_batches = -(-len(prompts.names) // args.batch_size)
    engine = Engine(model, dtype=choose_dtype(args.dtype, device))
    del model  # an engine of another type has weights of its own
    make = stream_batch if args.stream else finish_batch
    with Meter(options["max_new_tokens"] * num_batches, codec.frame_rate, device) as meter:
        for batch, generators in batches(prompts, args):
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
            flag = "--" + name.replace("_", "-")
            raise ValueError(f"{flag} must be 1 or more, got {getattr(args, name)}")
    if args.stream == "pcm" and num_prompts * args.num_samples != 1:
        raise ValueError(
            f"--stream pcm plays one piece, got {num_prompts} prompts x {args.num_samples} samples"
        )


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


def read_prompts(args: argparse.Namespace, codec: Codec, num_quantizers: int) -> Prompts:
    codes = [load_audio(path, codec, args.prompt_duration)[0] for path in args.audio_prompts]
    codes += [torch.zeros(0, num_quantizers, dtype=torch.long)] * args.num_unconditional
    stems = [path.stem for path in args.audio_prompts]
    stems += [f"unconditional-{i + 1}" for i in range(args.num_unconditional)]
    return Prompts(different_names(stems), codes)


def different_names(stems: list[str]) -> list[str]:
    """Numbers where names would be the same, so that no file is written over another."""
    names = [s if stems.count(s) == 1 else f"{s}-{i + 1}" for i, s in enumerate(stems)]
    return names if len(set(names)) == len(names) else different_names(names)


def generation_options(
    args: argparse.Namespace, frame_rate: float, prompts: Prompts, checkpoint: dict[str, Any]
) -> dict[str, Any]:
    """The flags as `GenerationOptions` has them: lengths in frames."""

    def frames(seconds: float) -> int:
        return round(seconds * frame_rate)

    options = {
        "max_new_tokens": frames(args.max_duration),
        "min_new_tokens": frames(args.min_duration),
        "ignore_eos": args.ignore_eos,
        "temperature": args.temperature,
        "top_k": args.top_k,
        "top_p": args.top_p,
        "min_p": args.min_p,
        "repetition_window": args.repetition_window * args.repetition_aware_sampling,
        "repetition_threshold": args.repetition_threshold,
        "nar_temperature": args.nar_temperature,
        "num_samples": args.num_samples,
    }
    for name in ("chunk", "lookahead", "nar_context"):
        if getattr(args, name) is not None:
            options[name] = frames(getattr(args, name))
    window = args.window
    if window is None:
        window = checkpoint.get("filter_max_duration") or 0.0
    longest = max(len(codes) for codes in prompts.codes) + options["max_new_tokens"]
    if frames(window) and frames(window) < longest:
        logging.info(f"{longest / frame_rate:g} s are made in windows of {window:g} s")
        options |= {"window": frames(window), "stride": frames(args.stride)}
        options.setdefault("lookahead", STREAM_OPTIONS["lookahead"])
    GenerationOptions(**options)  # checks itself, before any time is spent
    return options


def batches(
    prompts: Prompts, args: argparse.Namespace
) -> Iterator[tuple[Prompts, list[torch.Generator]]]:
    """A few prompts at a time, with generators that do not depend on how many these are."""
    seed = torch.Generator().manual_seed(args.seed)
    n = args.num_samples
    generators = row_generators(len(prompts.names) * n, seed)
    for i in range(0, len(prompts.names), args.batch_size):
        stop = i + args.batch_size
        yield (
            Prompts(prompts.names[i:stop], prompts.codes[i:stop]),
            generators[i * n : stop * n],
        )


def sample_names(names: list[str], num_samples: int) -> list[str]:
    """A name for each row, the samples of a prompt side by side."""
    if num_samples == 1:
        return names
    return [f"{name}_sample{i + 1}" for name in names for i in range(num_samples)]


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
