"""A miniature of ATEPP: pieces of a few seconds, rendered here, with their MIDI, and a table."""

import csv
from pathlib import Path

import mido
import numpy as np
import soundfile
from compose import compose
from make_corpus import write_midi
from piano import Note, render

RATE = 8000
SILENCE_SEC = 0.53  # before the first note: excerpts of the trimmed sound begin on no round time
STYLES = ("waltz", "nocturne", "rag", "chorale")
# composition_id, path below the folders without its ending, split
ROWS = [
    (1, "Clara_Schumann/Waltz,_Op._1/00001", "train"),
    (1, "Clara_Schumann/Waltz,_Op._1/00002", "test"),
    (2, "Frédéric_Chopin/Nocturne/00003", "train"),
    (3, "Scott_Joplin/A_Rag/00004", "validation"),
    (4, "Bach/Chorale/00005", "train"),  # no MIDI
    (5, "Bach/Chorale/00006", "train"),  # a broken one
    (6, "Bach/Chorale/00007", "train"),  # one of another piece, far longer
]
NO_MIDI, BAD_MIDI, OTHER_MIDI = (path for _, path, _ in ROWS[4:])
GOOD = [path for _, path, _ in ROWS if path not in (NO_MIDI, BAD_MIDI)]


def play(seed: int, seconds: float) -> list[Note]:
    """The beginning of a piece, after a silence."""
    notes = compose(seed, STYLES[seed % len(STYLES)]).notes
    return [
        Note(n.onset_sec + SILENCE_SEC, n.duration_sec, n.pitch, n.velocity)
        for n in notes
        if n.onset_sec < seconds
    ]


def write_pair(audio: Path, midi: Path, seed: int, seconds: float) -> None:
    """The sound of a piece, and its MIDI."""
    for path in (audio, midi):
        path.parent.mkdir(parents=True, exist_ok=True)
    notes = play(seed, seconds)
    sound = render(notes, RATE)
    end = max(n.onset_sec + n.duration_sec for n in notes) + 0.3
    soundfile.write(audio, sound[: round(end * RATE)].astype(np.float32), RATE)
    write_midi(midi, notes)


def write_corpus(folder: Path) -> Path:
    """`download/` as egs/atepp/prepare.sh draws it."""
    rows = []
    for seed, (piece, path, split) in enumerate(ROWS):
        audio = folder / "recordings" / f"{path}.flac"
        midi = folder / "ATEPP-1.2" / f"{path}.{'MIDI' if seed == 2 else 'mid'}"
        write_pair(audio, midi, seed, 4.0 + 0.7 * seed)
        rows.append([piece, f"{path}.mid", split])
    (folder / "ATEPP-1.2" / f"{NO_MIDI}.mid").unlink()
    broken = folder / "ATEPP-1.2" / f"{BAD_MIDI}.mid"
    broken.write_bytes(broken.read_bytes()[:60])
    write_midi(folder / "ATEPP-1.2" / f"{OTHER_MIDI}.mid", play(9, 40.0))
    with open(folder / "ATEPP-1.2-clean.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["composition_id", "midi_path", "split"])
        writer.writerows(rows)
    return folder


def strokes(path: Path) -> list[tuple[float, float, int]]:
    """(onset, end, pitch) of every note of a MIDI file of ours, read without our reader."""
    now, down, found = 0.0, {}, []
    for message in mido.MidiFile(path):
        now += message.time
        if message.type not in ("note_on", "note_off"):
            continue
        if message.type == "note_on" and message.velocity:
            down[message.note] = now
        else:
            found.append((down.pop(message.note), now, message.note))
    return found
