#!/usr/bin/env python3
"""Prints test recordings that are there with their MIDI: what to play, and in whose sound.

    python3 egs/atepp/local/held_out_midi.py --manifest-dir data/midi \
        --midi-dir download/ATEPP-1.2 --audio-dir download/recordings

Two lines for each recording: its MIDI file, then its sound file.
"""

import argparse
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from valle.data.manifest import load_cuts, manifest_path
from valle.data.midi_files import MidiFolder


def pairs(manifest_dir: Path, midi_dir: Path, audio_dir: Path) -> Iterator[tuple[Path, Path]]:
    """The MIDI and the sound of each recording of the test split, where both are there.

    Raises:
      FileNotFoundError: There is no test split, or no such folder.
      ValueError: The folder holds no MIDI, or recordings are not below `audio_dir`.
    """
    files = MidiFolder(midi_dir, audio_dir)
    cuts = load_cuts(manifest_path(manifest_dir, "test"))
    paths = dict.fromkeys(str(cut.recording.sources[0].source) for cut in cuts)
    for path in map(Path, paths):
        midi = files.find(path)
        if midi is not None and path.is_file():
            yield midi, path


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--manifest-dir", type=Path, default=Path("data/midi"), help="token manifests")
    add("--midi-dir", type=Path, required=True, help="as it was for prepare.sh")
    add("--audio-dir", type=Path, required=True, help="as it was for prepare.sh")
    add("--num-pieces", type=int, default=3, help="how many at most")
    args = parser.parse_args()
    try:
        found = pairs(args.manifest_dir, args.midi_dir, args.audio_dir)
        chosen = list(islice(found, args.num_pieces))
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    if not chosen:
        sys.exit(
            "error: no test recording is there with its MIDI: bring them back, or name files of "
            "your own to egs/atepp/bin/infer.py"
        )
    for pair in chosen:
        print(*pair, sep="\n")


if __name__ == "__main__":
    main()
