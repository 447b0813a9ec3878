"""What cuts carry beside their tokens, as the command line of tokenizer.py says."""

import argparse
from collections.abc import Iterable
from pathlib import Path

from tokenizer_excerpts import Unconditioned
from tokenizer_midi import MidiCondition
from tokenizer_text import TextCondition, has_text

from valle.data.sources import Source
from valle.data.text import EXTRACTORS

# A folder that was begun with one of them cannot go on without it.
CONDITION_SETTINGS = ("midi", "text")


def add_condition_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that `choose_condition` reads."""
    add = parser.add_argument_group(
        "conditions", "what cuts carry beside their tokens, for models that play or speak"
    ).add_argument
    add(
        "--midi-dir",
        type=Path,
        help="folder with the MIDI of the recordings, at the same paths as these; each excerpt "
        "then carries its notes. A recording without MIDI is left out",
    )
    add(
        "--text-extractor",
        choices=(*EXTRACTORS, "none"),
        default="espeak",
        help="how the text of a --manifest's cuts becomes symbols, where they have text; such cuts "
        "are kept whole. none: pass over the text",
    )
    add("--language", default="en-us", help="of the text, as espeak-ng names it")


def choose_condition(args: argparse.Namespace, sources: Iterable[Source]) -> Unconditioned:
    """The condition that the command line asks for, or the manifest brings.

    Raises:
      FileNotFoundError: There is no such folder of MIDI.
      ImportError: A package is missing that it needs.
      ValueError: Flags that do not go together, or do not fit the recordings.
    """
    sources = list(sources)
    speaks = args.text_extractor != "none" and any(has_text(c) for s in sources for c in s.cuts)
    if args.midi_dir is not None and speaks:
        raise ValueError(
            "--midi-dir, and a manifest whose cuts have text: expected one of them, as a cut "
            "carries one condition; to pass over the text: --text-extractor none"
        )
    if args.midi_dir is not None:
        return MidiCondition(args, sources)
    return TextCondition(args, sources) if speaks else Unconditioned()
