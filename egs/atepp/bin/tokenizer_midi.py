"""Excerpts that carry the MIDI events of their notes."""

import argparse
import importlib.util
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from tokenizer_excerpts import Unconditioned
from tqdm import tqdm

from valle.data.codec_info import CodecInfo
from valle.data.conditions import MIDI, MIDI_SPAN
from valle.data.midi import Notes, cut_notes, events_of
from valle.data.midi_files import (
    EVENT_FOLDER,
    MidiFolder,
    NotesCache,
    events_in_memory,
    store_events,
)
from valle.data.sources import Source, file_key
from valle.data.storage import cut_windows
from valle.utils.vocabulary import MIDI_FIELDS, MIDI_SEC, TICKS_PER_SEC

NOTE_FOLDER = "notes"  # of whole recordings, beside the manifests
NO_MIDI = "no_midi"
BAD_MIDI = "bad_midi"
MIDI_LENGTH = "midi_length"
# Of a MIDI that ends so much earlier or later than the sound, in seconds and of the sound's length,
# one may doubt that it is of the same performance.
_OTHER_SEC, _OTHER_SHARE = 5.0, 0.1


class MidiCondition(Unconditioned):
    """Notes of the recordings, cut at the times of the excerpts.

    Args:
      args: The command line.
      sources: All recordings.

    Raises:
      FileNotFoundError, ValueError: See `MidiFolder`; or no recording has MIDI, or excerpts are
        longer than events can tell.
      ImportError: mido is missing.
    """

    def __init__(self, args: argparse.Namespace, sources: list[Source]) -> None:
        super().__init__()
        if args.window > MIDI_SEC:
            raise ValueError(
                f"--window is {args.window:g} s, expected {MIDI_SEC:g} at most with --midi-dir: "
                "MIDI events can tell of no longer excerpt"
            )
        if importlib.util.find_spec("mido") is None:  # before hours of work
            raise ImportError("--midi-dir needs mido: run pip install 'valle[midi]'")
        files = MidiFolder(args.midi_dir, args.src_dir)
        self._paths = {s.id: path for s in sources if (path := files.find(s.path)) is not None}
        if not self._paths:
            raise ValueError(
                f"none of {len(sources)} recordings has its MIDI below {args.midi_dir}: expected "
                "the same path as the recording has, and .mid or .midi for the ending"
            )
        self._output, self._in_memory = args.output_dir, args.format == "shar"
        self._kept = NotesCache(args.output_dir / NOTE_FOLDER)
        self._last: tuple[str, Notes] | None = None
        self._counts: Counter[str] = Counter()
        self.folders = (args.output_dir / NOTE_FOLDER, args.output_dir / EVENT_FOLDER)
        sizes = {field.name: field.num_values for field in MIDI_FIELDS}
        self.settings = {"midi": {"ticks_per_sec": TICKS_PER_SEC, **sizes}}

    def lacking(self, sources: Iterable[Source]) -> dict[str, str]:
        """Recordings without MIDI."""
        return {source.id: NO_MIDI for source in sources if source.id not in self._paths}

    def read_ahead(self, sources: Iterable[Source]) -> None:
        """Read the MIDI of this process's recordings, so that the one that merges need not."""
        for source in tqdm(list(sources), desc="MIDI", unit="file", disable=None):
            try:
                self._kept.notes(self._paths[source.id])
            except ValueError:
                continue  # `part` will tell

    def part(self, source: Source, duration_sec: float) -> Source | str:
        """The recording itself, if its MIDI can be read."""
        try:
            notes = self._notes(source)
        except ValueError as error:
            logging.warning(f"skipped ({BAD_MIDI}): {error}")
            return BAD_MIDI
        end = float((notes[:, 0] + notes[:, 1]).max())
        if abs(end - duration_sec) > max(_OTHER_SEC, _OTHER_SHARE * duration_sec):
            self._counts[MIDI_LENGTH] += 1
            logging.warning(
                f"{self._paths[source.id]} ends after {end:.1f} s, {source.path} after "
                f"{duration_sec:.1f} s: are they of one performance? Both are used"
            )
        return source

    def excerpts(
        self, source: Source, cut: Any, codec: CodecInfo, window: int, minimum: int
    ) -> Iterator[Any]:
        """Excerpts with their events."""
        notes = self._notes(source)
        for excerpt in cut_windows(cut, codec, window, minimum):
            events, counts = events_of(cut_notes(notes, excerpt.start, excerpt.end))
            self._counts.update({f"notes: {name}": count for name, count in counts.items()})
            array = (
                events_in_memory(events)
                if self._in_memory
                else store_events(self._output, file_key(excerpt.id), events)
            )
            span = [excerpt.start, excerpt.duration]
            yield excerpt.with_custom(MIDI, array).with_custom(MIDI_SPAN, span)

    def lines(self) -> list[tuple[str, int]]:
        """What was brought into the vocabulary, and doubtful pairs."""
        return sorted(self._counts.items())

    def _notes(self, source: Source) -> Notes:
        if self._last is None or self._last[0] != source.id:  # its cuts follow each other
            self._last = source.id, self._kept.notes(self._paths[source.id])
        return self._last[1]
