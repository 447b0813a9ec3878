"""What infer.py is to make: pieces, each in parts that a model can be told of.

A long piece of MIDI is made in segments. Each goes on from the end of the sound before it, as from
a prompt, and is told of that end's notes with its own. So the codes join to the frame, and the
codec decodes them as one.

P prompt frames, S symbols or events, Q quantizers.
"""

import argparse
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from generation_rows import different_names
from torch import Tensor

from valle.data import Codec, load_audio
from valle.data.midi import Notes, cut_notes, events_of, join_notes, read_notes
from valle.data.text import WORD_BOUNDARY, SymbolTable, symbols_of
from valle.models.config import PREFIX_SEC
from valle.utils.vocabulary import MIDI_SEC

LONGEST_SEC = 20.0  # of training's cuts, where a checkpoint does not tell

T = TypeVar("T")


class Part(NamedTuple):
    """What a model makes in one go.

    Attributes:
      tokens: (S,) ids or (S, 6) events of the context and of what is to be made.
      num_enrolled: how many of them are the context's, as `VALLE.inference` counts them; None for
        events, whose times tell.
      context: frames before the part that the model hears.
      least: new frames at least; `most` at most.
    """

    tokens: Tensor
    num_enrolled: int | None
    context: int
    least: int
    most: int


class Piece(NamedTuple):
    """A name, (P, Q) codes of the prompt, P perhaps 0, and what is made after it."""

    name: str
    prompt: Tensor
    parts: list[Part]


def read_pieces(
    args: argparse.Namespace, codec: Codec, config: Any, checkpoint: dict[str, Any]
) -> list[Piece]:
    """The pieces that the command line asks for; what they are told of is read and checked.

    Raises:
      FileNotFoundError, ValueError: A file that cannot be read, or flags that do not go together.
      ImportError: A package is missing that reads MIDI or text.
    """
    longest = checkpoint.get("filter_max_duration") or LONGEST_SEC
    heard = None
    if config.condition == "midi":
        heard = args.prompt_duration or min(PREFIX_SEC, longest / 2)
    prompts = [load_audio(path, codec, heard)[0] for path in args.audio_prompts]
    prompts = prompts or [torch.zeros(0, config.num_quantizers, dtype=torch.long)]
    if heard is not None:
        pieces = midi_pieces(args, prompts, codec.frame_rate, longest, heard)
    else:
        pieces = text_pieces(args, prompts, codec.frame_rate, longest, checkpoint)
    endings = ("", "_full") if args.audio_prompts else ("",)  # as infer.py writes them
    names = different_names([piece.name for piece in pieces], endings)
    return [piece._replace(name=name) for piece, name in zip(pieces, names, strict=True)]


def for_each(prompts: Sequence[T], num_pieces: int) -> Sequence[T]:
    """As many prompts as there are pieces; one may do for all of them."""
    if len(prompts) not in (1, num_pieces):
        raise ValueError(
            f"{len(prompts)} prompts for {num_pieces} pieces: expected one for all, or one for each"
        )
    return list(prompts) * num_pieces if len(prompts) == 1 else prompts


# MIDI


def midi_pieces(
    args: argparse.Namespace,
    prompts: Sequence[Tensor],
    rate: float,
    longest: float,
    heard: float,
) -> list[Piece]:
    """A piece for each file of --midi.

    Args:
      args: The command line.
      prompts: (P, Q) codes, one for all or one for each.
      rate: Frames a second.
      longest: Seconds of the longest cut of training.
      heard: Seconds that a model hears of a prompt, or of the segment before.
    """
    played = [read_notes(path) for path in args.midi_prompts] or [np.zeros((0, 4))]
    context, longest = round(heard * rate), min(longest, MIDI_SEC)
    segment, counts = segment_frames(args, rate, longest, context), Counter[str]()
    tail = round(args.tail * rate) if args.tail is not None else min(round(rate), segment // 2)
    warn_of_silence(args.midi_prompts, prompts, played, rate)
    pieces = []
    files = args.midi
    both = zip(files, for_each(prompts, len(files)), for_each(played, len(files)), strict=True)
    for path, prompt, prompt_notes in both:
        notes = read_notes(path)
        num_frames = max(round(float((notes[:, 0] + notes[:, 1]).max()) * rate), 1)
        if len(prompt):
            notes = join_notes(prompt_notes, notes, len(prompt) / rate)
        whole = len(prompt) + num_frames + tail
        is_short = args.segment_duration is None and whole <= longest * rate
        if not is_short and tail >= segment:
            raise ValueError(
                f"--tail {tail / rate:g} leaves no room for notes in a segment of "
                f"{segment / rate:g} s: give less, or longer segments (--segment-duration)"
            )
        most = num_frames + tail if is_short else segment
        spans = list(segments(len(prompt), num_frames, tail, most, context))
        parts = [midi_part(notes, span, rate, counts) for span in spans]
        parts[-1] = parts[-1]._replace(least=parts[-1].most - tail)
        if len(parts) > 1:
            logging.info(f"{path}: {num_frames / rate:g} s are made in {len(parts)} segments")
        pieces.append(Piece(path.stem, prompt, parts))
    for name, count in sorted(counts.items()):
        logging.info(f"notes changed or left out, {name}: {count}")
    return pieces


def warn_of_silence(
    paths: Sequence[Path], prompts: Sequence[Tensor], played: Sequence[Notes], rate: float
) -> None:
    """Tell of prompts (P, Q) whose notes all lie after what is heard of them."""
    for path, prompt, notes in zip(paths, prompts, played, strict=False):
        seconds = len(prompt) / rate
        if len(prompt) and not len(cut_notes(notes, 0, seconds)):
            logging.warning(
                f"--midi-prompts {path} has no note in the {seconds:g} s of its sound that are "
                "heard, so the model is told of silence there: give the notes that are played, or "
                "a longer prompt (--prompt-duration)"
            )


def segment_frames(args: argparse.Namespace, rate: float, longest: float, context: int) -> int:
    """Frames that a segment has at most."""
    asked = args.segment_duration
    frames = round(asked * rate) if asked is not None else int(longest * rate) - context
    if frames < 1:
        raise ValueError(
            f"--prompt-duration {context / rate:g} leaves a segment no room in "
            f"the {longest:g} s of the training's longest cuts: give a shorter one, or say how "
            "long segments are (--segment-duration, from a frame)"
        )
    if frames + context > round(MIDI_SEC * rate):
        raise ValueError(
            f"segments of {frames / rate:g} s and the {context / rate:g} s before them are more "
            f"than the {MIDI_SEC:g} s that MIDI events can tell of: lower --segment-duration or "
            "--prompt-duration"
        )
    return frames


class Span(NamedTuple):
    """Frames [start, stop) to be made, and where [context, start) begins that is heard before."""

    context: int
    start: int
    stop: int


def segments(
    num_before: int, num_frames: int, tail: int, longest: int, context: int
) -> Iterator[Span]:
    """The spans that follow so many frames of a prompt; all of about one length.

    The tail belongs to the last of them, which has at least one of the `num_frames`, too: then
    it still is no longer than `longest`, as the tail is shorter than that.
    """
    num_segments = -(-(num_frames + tail) // longest)
    ends = [(num_frames + tail) * i // num_segments for i in range(num_segments)]
    ends = [*(min(end, num_frames - 1) for end in ends), num_frames + tail]
    for start, stop in pairwise(num_before + end for end in ends):
        yield Span(max(start - context, 0), start, stop)


def midi_part(notes: Notes, span: Span, rate: float, counts: Counter[str]) -> Part:
    """What a model is told of a span; notes are in the time that begins with the prompt."""
    events, changed = events_of(cut_notes(notes, span.context / rate, span.stop / rate))
    counts.update(changed)
    num_new = span.stop - span.start
    tokens = torch.from_numpy(events).long()
    return Part(tokens, None, span.start - span.context, least=num_new, most=num_new)


# Text


def text_pieces(
    args: argparse.Namespace,
    prompts: Sequence[Tensor],
    rate: float,
    longest: float,
    checkpoint: dict[str, Any],
) -> list[Piece]:
    """A piece for each text of --text, or each line of --text-file."""
    texts = args.text or lines_of(args.text_file)
    table, spell = table_of(args, checkpoint), speller(args, checkpoint)
    said = [[*spell(text), WORD_BOUNDARY] for text in args.text_prompts] or [[]]
    stem = "text" if args.text else args.text_file.stem
    pieces = []
    both = zip(texts, for_each(prompts, len(texts)), for_each(said, len(texts)), strict=True)
    for i, (text, prompt, before) in enumerate(both):
        name, most = f"{stem}-{i + 1}", text_frames(args, len(prompt), rate, longest)
        if len(prompt) + most > round(longest * rate):
            logging.warning(
                f"{name}: a prompt of {len(prompt) / rate:g} s and up to {most / rate:g} s after "
                f"it are more than the {longest:g} s of the training's longest cuts, and beyond "
                "them it may fail: give a shorter sentence as the prompt, or lower --max-duration"
            )
        ids = table.ids([*before, *spell(text)])
        num_enrolled = len(table.ids(before)) if before else 2
        part = Part(torch.tensor(ids), num_enrolled, len(prompt), 0, most)
        pieces.append(Piece(name, prompt, [part]))
    return pieces


def text_frames(args: argparse.Namespace, num_prompt: int, rate: float, longest: float) -> int:
    """Frames of a text at most, after so many of a prompt."""
    asked = args.max_duration
    frames = round(asked * rate) if asked is not None else round(longest * rate) - num_prompt
    if frames < 1 and asked is not None:
        raise ValueError(f"--max-duration {asked:g} is less than a frame of {1 / rate:g} s")
    if frames < 1:
        raise ValueError(
            f"a prompt of {num_prompt / rate:g} s leaves no room in the {longest:g} s of the "
            "training's longest cuts: give a shorter sentence as the prompt, or say --max-duration"
        )
    return frames


def lines_of(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"--text-file {path} is no text in UTF-8 ({error}): expected a text a line"
        ) from error
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"--text-file {path} holds no text: expected a text a line")
    return lines


def speller(args: argparse.Namespace, checkpoint: dict[str, Any]) -> Callable[[str], list[str]]:
    """What makes text into symbols as the training's texts were."""
    known = checkpoint.get("text_extractor")
    if known is not None and args.text_extractor not in (None, known):
        raise ValueError(
            f"--text-extractor {args.text_extractor}, but {args.checkpoint} was trained on the "
            f"symbols of {known}: leave it out"
        )
    extractor = args.text_extractor or known
    language = args.language or checkpoint.get("language") or "en-us"
    if extractor is None:
        raise ValueError(
            f"{args.checkpoint} does not tell how its texts became symbols: say it with "
            "--text-extractor espeak or characters, and --language"
        )
    return lambda text: symbols_of(text, extractor, language)


def table_of(args: argparse.Namespace, checkpoint: dict[str, Any]) -> SymbolTable:
    symbols = checkpoint.get("text_symbols")
    if symbols is None:
        raise ValueError(
            f"{args.checkpoint} holds no table of text symbols: was it written by this trainer?"
        )
    return SymbolTable(symbols)
