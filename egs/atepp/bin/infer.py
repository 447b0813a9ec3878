#!/usr/bin/env python3
"""Make audio of MIDI or of text with a trained VALL-E.

Usage:

  python3 egs/atepp/bin/infer.py --checkpoint exp/valle/best-valid-loss.pt --midi a.mid b.mid \
      --audio-prompts sound.wav --midi-prompts sound.mid --output-dir infer/demo
  python3 egs/atepp/bin/infer.py --checkpoint exp/valle/best-valid-loss.pt \
      --text "what is to be said" --audio-prompts voice.wav --text-prompts "what the voice says"

A prompt tells how it is to sound; what it plays or says must be told with it. Without a prompt the
model chooses a sound. For each piece `NAME.wav` appears, what was made, and where there is a prompt
`NAME_full.wav`, prompt and piece decoded together, so that there is no seam.

A piece of MIDI that is longer than the cuts that the model was trained on is made in segments, each
of which goes on from the last seconds of the sound before it. To continue sound without being told
of what comes there is `infer_audiolm.py`.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from generation_flags import (
    add_sampling_arguments,
    add_subject_arguments,
    check_seconds,
    load_codec,
    refuse_other_model,
    sampling_options,
)
from generation_rows import num_of_prompts, row_batches, sample_names
from infer_output import Meter, write_sounds
from infer_pieces import Piece, read_pieces
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from valle.data.text import EXTRACTORS
from valle.models import VALLE, Engine, GenerationOptions
from valle.utils.checkpoint import read_checkpoint
from valle.utils.cli import flag_of
from valle.utils.dist import choose_device, choose_dtype


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add_subject_arguments(add)
    add("--midi", type=Path, nargs="+", default=[], help="files to play")
    add("--text", nargs="+", default=[], help="texts to say")
    add("--text-file", type=Path, help="the same from a file, a text a line")
    add("--num-samples", type=int, default=1, help="versions of each piece")
    add("--output-dir", type=Path, default=Path("infer/demo"))
    add = parser.add_argument_group("prompts", "one for all pieces, or one for each").add_argument
    add("--audio-prompts", type=Path, nargs="+", default=[], help="sound files to sound like")
    add("--midi-prompts", type=Path, nargs="+", default=[], help="the notes played in them")
    add("--text-prompts", nargs="+", default=[], help="the words said in them")
    add(
        "--prompt-duration",
        type=float,
        help="of MIDI: how much is taken of each, and of a segment's sound for the next one, in "
        "seconds; default: 3, or half of the training's longest cut where that is less; a prompt "
        "that speaks is taken whole, as its words are",
    )
    add = parser.add_argument_group("length, in seconds").add_argument
    add(
        "--segment-duration",
        type=float,
        help="of MIDI made in one go; default: the longest cut that the model may have been "
        "trained on, less the prompt",
    )
    add(
        "--tail",
        type=float,
        help="how long MIDI may ring on after its last note; default: 1, or half of a segment, "
        "where that is less",
    )
    add("--max-duration", type=float, help="of a text; default: as for a segment")
    add = parser.add_argument_group("text").add_argument
    add("--text-extractor", choices=EXTRACTORS, help="default: that of the training's texts")
    add("--language", help="default: that of the training's texts")
    add_sampling_arguments(parser)
    return parser


def main(argv: list[str] | None = None) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = get_parser()
    args = parser.parse_args(argv)
    try:
        make_pieces(args)
    except KeyboardInterrupt:
        parser.exit(130, "stopped\n")
    except (ValueError, OSError, ImportError) as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")


def make_pieces(args: argparse.Namespace) -> None:
    check_arguments(args)
    device = choose_device(args.device)
    checkpoint = read_checkpoint(args.checkpoint)
    refuse_other_model(checkpoint, args.checkpoint, VALLE)
    model = VALLE.from_checkpoint(args.checkpoint, device, args.averaged)
    check_condition(args, model.config.condition)
    codec = load_codec(args.codec, checkpoint, args.checkpoint, device, model.config.num_quantizers)
    options = sampling_options(args) | {"num_samples": 1}  # a row for each sample
    GenerationOptions(**options)  # checks itself, before any time is spent
    pieces = read_pieces(args, codec, model.config, checkpoint)
    engine = Engine(model, dtype=choose_dtype(args.dtype, device))
    del model  # an engine of another type has weights of its own
    most_frames = sum(part.most for piece in pieces for part in piece.parts)
    with Meter(most_frames, codec.frame_rate, device) as meter:
        for (piece,), generators in one_by_one(pieces, args.num_samples, args.seed):
            rows = perform(engine, piece, generators, meter, device, options)
            write_piece(args, piece, rows, codec)
    logging.info(meter.summary())


def one_by_one(pieces: Sequence[Piece], num_samples: int, seed: int) -> Any:
    """Each piece with the generators of its samples; of unequal length, they share no batch."""
    for rows, generators in row_batches(len(pieces), num_samples, 1, seed):
        yield pieces[rows], generators


def perform(
    engine: Engine,
    piece: Piece,
    generators: Sequence[torch.Generator],
    meter: Meter,
    device: torch.device,
    options: dict[str, Any],
) -> list[Tensor]:
    """The codes (frames, Q) of each sample, prompt included; part after part."""
    n = len(generators)
    rows = [piece.prompt.to(device)] * n
    for part in piece.parts:
        tokens = part.tokens.to(device).expand(n, *part.tokens.shape)
        token_lens, context_lens = (
            torch.full((n,), num, device=device) for num in (len(part.tokens), part.context)
        )
        enrolled = num_of_prompts(engine, tokens, token_lens, context_lens)
        if part.num_enrolled is not None:
            enrolled = torch.full_like(token_lens, part.num_enrolled)
        new, lens = engine.inference(
            tokens,
            token_lens,
            torch.stack([row[len(row) - part.context :] for row in rows]),
            enrolled,
            max_new_tokens=part.most,
            min_new_tokens=part.least,
            generator=generators,
            progress=meter.progress(),
            return_lens=True,
            **options,
        )
        rows = [torch.cat([row, new[i, : lens[i]]]) for i, row in enumerate(rows)]
        meter.count(int(lens.sum()))
    return rows


def write_piece(args: argparse.Namespace, piece: Piece, rows: list[Tensor], codec: Any) -> None:
    """`NAME.wav`, and `NAME_full.wav` where there is a prompt."""
    lens = torch.tensor([len(row) for row in rows])
    prompt_lens = torch.full_like(lens, len(piece.prompt))
    endings = ("_full", "") if len(piece.prompt) else (None, "")
    names = sample_names([piece.name], args.num_samples)
    codes = pad_sequence(rows, batch_first=True)
    write_sounds(args.output_dir, names, codes, lens, prompt_lens, codec, endings)


# What cannot be


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse flags that do not go together, before anything is read."""
    given = [name for name in ("midi", "text", "text_file") if getattr(args, name)]
    if len(given) != 1:
        names = ", ".join(map(flag_of, given)) or "none of them"
        raise ValueError(f"give one of --midi, --text and --text-file, got {names}")
    if args.num_samples < 1:
        raise ValueError(f"--num-samples must be 1 or more, got {args.num_samples}")
    check_seconds(args, ("prompt_duration", "segment_duration", "max_duration"))
    check_seconds(args, ("tail",), least="0 s or more")
    check_files(args)


def check_files(args: argparse.Namespace) -> None:
    """Refuse names that are of no file."""
    for name in ("midi", "text_file", "audio_prompts", "midi_prompts"):
        given = getattr(args, name) or []
        for path in given if isinstance(given, list) else [given]:
            if path.is_dir():
                raise IsADirectoryError(f"{flag_of(name)} {path} is a folder: name files in it")
            if not path.exists():
                raise FileNotFoundError(f"{flag_of(name)} {path} is not there: name another file")


# What tells a model of one condition something, and what to do with the other.
OF_MIDI = {
    "midi": "give --text",
    "midi_prompts": "give --text-prompts",
    "prompt_duration": "it would cut a voice off in the midst of --text-prompts; leave it out, and "
    "give a shorter sound with its words",
    "segment_duration": "a text is made in one go; give --max-duration",
    "tail": "a text has no time of its own; give --max-duration",
}
OF_TEXT = {
    "text": "give --midi",
    "text_file": "give --midi",
    "text_prompts": "give --midi-prompts",
    "max_duration": "MIDI lasts as long as its notes; leave it out",
    "text_extractor": "leave it out",
    "language": "leave it out",
}


def check_condition(args: argparse.Namespace, condition: str) -> None:
    """Refuse what this model cannot be told, and prompts of which it is not told what they hold."""
    other, useless = ("text", OF_TEXT) if condition == "midi" else ("MIDI", OF_MIDI)
    for name, advice in useless.items():
        if getattr(args, name) not in (None, []):
            raise ValueError(
                f"{flag_of(name)} is for a model of {other}, and {args.checkpoint} makes audio of "
                f"{condition}: {advice}"
            )
    sounds, told = len(args.audio_prompts), len(getattr(args, f"{condition}_prompts"))
    if sounds != told:
        raise ValueError(
            f"--audio-prompts has {sounds} and --{condition}-prompts {told}: expected as many, as "
            "the model must be told what a prompt holds, else it takes what comes for that; or "
            "neither, and it chooses a sound"
        )


if __name__ == "__main__":
    main()
