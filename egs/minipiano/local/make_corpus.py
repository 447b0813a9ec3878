"""Write the corpus of the minipiano recipe: composed piano pieces as FLAC, with a table of splits.

    python egs/minipiano/local/make_corpus.py --out-dir data/corpus --minutes 60

The table `pieces.csv` has a row a file: file, seed, style, tempo, key, timbre, seconds, split.
Pieces are split as wholes; `codec` marks files of random notes, meant for training a codec alone.
A file depends on (--seed, its number, --sampling-rate) alone. Files appear under their final name
when they are whole, so the program may be killed at any point and run again: what is there and
belongs to this corpus is kept.
"""

import argparse
import csv
import io
import logging
import os
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from types import ModuleType

import numpy as np
import soundfile
from compose import Piece, compose
from piano import HIGHEST_PITCH, LOWEST_PITCH, TIMBRES, Floats, Note, get_timbre, render
from styles import STYLES
from tqdm import tqdm

from valle.utils.files import remove_leftovers, written_whole

FIELDS = ("file", "seed", "style", "tempo", "key", "timbre", "seconds", "split")
GENERATION = 1  # count up whenever the same seed begins to mean other audio
CYCLE = 12  # of twelve pieces of a style ten are for training
RANDOM_FILE_SEC = 30.0
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Task:
    """One file to write.

    Attributes:
        kind: "piece" or "random".
        index: Number of the file, from 0 (names count from 1).
        seed: Of this file's own music.
        style: A style of the composer, or "random".
        timbre: A name in TIMBRES.
        sampling_rate: In Hz.
        split: train, validation, test or codec.
    """

    kind: str
    index: int
    seed: int
    style: str
    timbre: str
    sampling_rate: int
    split: str

    @property
    def name(self) -> str:
        number = f"{self.kind}-{self.index + 1:04d}"
        return f"{number}.flac" if self.kind == "random" else f"{number}-{self.style}.flac"

    @property
    def comment(self) -> str:
        """Stored in the file; tells on the next run whether the file is the wanted one."""
        return f"minipiano {GENERATION}: seed {self.seed}, style {self.style}, timbre {self.timbre}"


def split_of(index: int) -> str:
    """Split of a piece: 10/1/1 of any 12 in a row, each style in each split once in 72.

    It depends on the number alone, so that a longer corpus moves no piece to another split.
    """
    style, turn = index % len(STYLES), index // len(STYLES) % CYCLE
    if turn == 2 * ((style - 1) % len(STYLES)):
        return "validation"
    if turn == 2 * ((style + 2) % len(STYLES)) + 1:
        return "test"
    return "train"


def _draw(seed: int, index: int, kind: int) -> tuple[int, str]:
    """(seed of the file's own music, timbre) of file `index`."""
    words = np.random.SeedSequence([seed, index, kind]).generate_state(2)
    return int(words[0]), list(TIMBRES)[int(words[1]) % len(TIMBRES)]


def plan_pieces(minutes: float, seed: int, sampling_rate: int) -> list[Task]:
    """Tasks for at least `minutes` of pieces; the styles take turns."""
    tasks: list[Task] = []
    seconds = 0.0
    while seconds < 60 * minutes:
        index = len(tasks)
        style = list(STYLES)[index % len(STYLES)]
        piece_seed, timbre = _draw(seed, index, 0)
        tasks.append(
            Task("piece", index, piece_seed, style, timbre, sampling_rate, split_of(index))
        )
        seconds += compose(piece_seed, style).end_sec
    return tasks


def plan_random(minutes: float, seed: int, sampling_rate: int) -> list[Task]:
    """Tasks for at least `minutes` of random notes."""
    tasks = []
    for index in range(int(np.ceil(60 * minutes / RANDOM_FILE_SEC))):
        file_seed, timbre = _draw(seed, index, 1)
        tasks.append(Task("random", index, file_seed, "random", timbre, sampling_rate, "codec"))
    return tasks


def random_notes(rng: np.random.Generator, seconds: float) -> list[Note]:
    """Notes and chords all over the keyboard: everything a codec should have heard.

    Args:
        rng: Draws everything.
        seconds: The last onset lies before this.

    Returns:
        Notes in order of onset; about half of the strokes are single notes, velocities span
        15 to 125, durations 0.05 to 4 s, gaps 0.03 to 1.2 s.

    Raises:
        ValueError: `seconds` is not above 0.5.
    """
    if seconds <= 0.5:
        raise ValueError(f"seconds must be above 0.5, got {seconds}")
    notes: list[Note] = []
    at = 0.1
    while at < seconds - 0.3:
        centre = LOWEST_PITCH + (HIGHEST_PITCH - LOWEST_PITCH + 1) * rng.random()
        velocity = 15 + 110 * rng.random()
        duration = 0.05 * 80 ** rng.random()
        count = 1 if rng.random() < 0.5 else int(rng.integers(2, 7))
        pitches = {int(centre)} if count == 1 else _random_chord(rng, centre, count)
        for pitch in sorted(pitches):
            loud = int(min(125, max(15, velocity + 20 * (rng.random() - 0.5))))
            notes.append(Note(round(at + 0.02 * rng.random(), 4), round(duration, 4), pitch, loud))
        at += 0.03 * 40 ** rng.random()
    return sorted(notes, key=lambda n: (n.onset_sec, n.pitch))


def _random_chord(rng: np.random.Generator, centre: float, count: int) -> set[int]:
    spread = 6 + 24 * rng.random()
    pitches = (round(centre + spread * (rng.random() - 0.5)) for _ in range(count))
    return {min(HIGHEST_PITCH, max(LOWEST_PITCH, pitch)) for pitch in pitches}


def make_audio(task: Task) -> tuple[Floats, Piece | None]:
    """The sound (N,) of a task, and the piece where it is one."""
    rng = np.random.default_rng([task.seed, 7])
    peak = 10 ** (-(1 + 8 * rng.random()) / 20)  # -1 to -9 dB, as recordings differ
    timbre = get_timbre(task.timbre)
    if task.kind == "random":
        notes = random_notes(rng, RANDOM_FILE_SEC - 2)
        return render(notes, task.sampling_rate, timbre.varied(rng), peak), None
    piece = compose(task.seed, task.style)
    return render(piece.notes, task.sampling_rate, timbre, peak), piece


def is_complete(path: Path, task: Task) -> bool:
    """Whether the file is there, whole, and made for this task."""
    try:
        with soundfile.SoundFile(path) as file:
            if (file.samplerate, file.comment) != (task.sampling_rate, task.comment):
                return False
            # a truncated FLAC still promises all its frames: ask for the last ones
            wanted = min(file.frames, task.sampling_rate // 10)
            file.seek(file.frames - wanted)
            return 0 < wanted == len(file.read(wanted))
    except (OSError, soundfile.LibsndfileError):
        return False


def write_flac(path: Path, sound: Floats, task: Task) -> None:
    """16-bit FLAC, whole or not at all."""
    form = {"channels": 1, "format": "FLAC", "subtype": "PCM_16"}
    with (
        written_whole(path) as partial,
        soundfile.SoundFile(partial, "w", task.sampling_rate, **form) as file,
    ):
        file.comment = task.comment
        file.write(sound)


def _import_mido() -> ModuleType:
    try:
        import mido
    except ImportError as error:
        raise ImportError(
            "writing MIDI files needs mido: run pip install -e '.[midi]', or leave --midi false"
        ) from error
    return mido


def write_midi(path: Path, notes: Sequence[Note], title: str = "") -> None:
    """A MIDI file whose 120 beats a minute are seconds in disguise: 960 ticks are one second.

    Raises:
        ImportError: mido is missing; the message names the pip line.
    """
    mido = _import_mido()
    track = mido.MidiTrack([mido.MetaMessage("set_tempo", tempo=500_000, time=0)])
    if title:
        track.insert(0, mido.MetaMessage("track_name", name=title.translate(_ASCII), time=0))
    events = []
    for note in notes:
        start, end = (round(960 * t) for t in (note.onset_sec, note.onset_sec + note.duration_sec))
        events.append((start, 1, note.pitch, note.velocity))
        events.append((max(end, start + 1), 0, note.pitch, 0))
    now = 0
    for tick, _, pitch, velocity in sorted(events):
        message = "note_on" if velocity else "note_off"
        track.append(mido.Message(message, note=pitch, velocity=velocity, time=tick - now))
        now = tick
    with written_whole(path) as partial:
        mido.MidiFile(tracks=[track], ticks_per_beat=480).save(partial)


_ASCII = str.maketrans({"♭": "b", "♯": "#"})  # MIDI texts are Latin-1


def run_task(task: Task, out_dir: Path, midi: bool) -> dict[str, object]:
    """Make what is missing of one task; returns its row of the table."""
    path = out_dir / task.name
    piece = None
    if not is_complete(path, task):
        sound, piece = make_audio(task)
        write_flac(path, sound, task)
    if task.kind == "piece":
        piece = piece or compose(task.seed, task.style)
        if midi:
            write_midi(path.with_suffix(".mid"), piece.notes, piece.title)
    return {
        "file": task.name,
        "seed": task.seed,
        "style": task.style,
        "tempo": piece.tempo if piece else "",
        "key": piece.key if piece else "",
        "timbre": task.timbre,
        "seconds": f"{soundfile.info(path).duration:.3f}",
        "split": task.split,
    }


def write_table(path: Path, rows: Sequence[dict[str, object]]) -> None:
    """The csv, whole or not at all; one that is as it should be stays untouched."""
    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    content = text.getvalue().encode()
    if not path.exists() or path.read_bytes() != content:
        with written_whole(path) as partial:
            partial.write_bytes(content)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Processes spawned inside have one BLAS thread: nothing gained by more, and one rounding."""
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def _die_with_parent() -> None:
    """Run in each worker: one whose parent was killed would otherwise wait for work for ever."""
    parent = parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _run_all(
    tasks: Sequence[Task], out_dir: Path, midi: bool, num_jobs: int
) -> Iterator[dict[str, object]]:
    """Rows in the order in which their files are ready."""
    workers = min(num_jobs, len(tasks))
    with (
        _one_thread_each(),
        ProcessPoolExecutor(workers, get_context("spawn"), _die_with_parent) as pool,
    ):
        futures = [pool.submit(run_task, task, out_dir, midi) for task in tasks]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def make_corpus(
    out_dir: Path,
    minutes: float = 60.0,
    random_minutes: float = 0.0,
    seed: int = 0,
    sampling_rate: int = 32000,
    num_jobs: int = 1,
    midi: bool = False,
) -> list[dict[str, object]]:
    """Write the corpus into a folder.

    Args:
        out_dir: Made if missing; files of another corpus in it are left alone, with a warning.
        minutes: Least duration of the pieces together.
        random_minutes: Least duration of the files of random notes.
        seed: 0 or more.
        sampling_rate: In Hz.
        num_jobs: Processes, of one thread each.
        midi: Whether to write a .mid beside every piece.

    Returns:
        The rows of `pieces.csv`.

    Raises:
        ValueError: A number out of range.
        ImportError: `midi` without mido.
    """
    _check(minutes, random_minutes, seed, sampling_rate, num_jobs)
    if midi:
        _import_mido()
    out_dir.mkdir(parents=True, exist_ok=True)
    remove_leftovers(out_dir)
    tasks = plan_pieces(minutes, seed, sampling_rate)
    tasks += plan_random(random_minutes, seed, sampling_rate)
    rows = _run_all(tasks, out_dir, midi, num_jobs)
    progress = tqdm(rows, total=len(tasks), desc="corpus", unit="file", disable=None)
    by_name = {row["file"]: row for row in progress}
    table = [by_name[task.name] for task in tasks]
    write_table(out_dir / "pieces.csv", table)
    _warn_of_strangers(out_dir, set(by_name))
    return table


def _check(
    minutes: float, random_minutes: float, seed: int, sampling_rate: int, num_jobs: int
) -> None:
    if minutes < 0 or random_minutes < 0 or minutes + random_minutes <= 0:
        raise ValueError(
            "--minutes and --random-minutes must not be negative, and one of them above 0; "
            f"got {minutes} and {random_minutes}"
        )
    if seed < 0:
        raise ValueError(f"--seed must be 0 or more, got {seed}")
    if sampling_rate < 8000:
        raise ValueError(f"--sampling-rate must be at least 8000 Hz, got {sampling_rate}")
    if num_jobs < 1:
        raise ValueError(f"--num-jobs must be at least 1, got {num_jobs}")


def _warn_of_strangers(out_dir: Path, names: set[object]) -> None:
    strangers = sorted(p.name for p in out_dir.glob("*.flac") if p.name not in names)
    if strangers:
        logging.warning(
            "%d files in %s are not in pieces.csv (%s, ...), left as they are; delete them if "
            "they come from an earlier corpus",
            len(strangers),
            out_dir,
            strangers[0],
        )


def summary(table: Sequence[dict[str, object]]) -> str:
    """Minutes by split and by style, for people."""
    lines = []
    for field in ("split", "style"):
        minutes: dict[str, float] = defaultdict(float)
        for row in table:
            minutes[str(row[field])] += float(str(row["seconds"])) / 60
        parts = ", ".join(f"{name} {total:.1f}" for name, total in minutes.items())
        lines.append(f"minutes by {field}: {parts}")
    return "\n".join(lines)


def get_parser() -> argparse.ArgumentParser:
    from valle.utils.cli import str2bool  # here: it loads torch, which no worker needs

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out-dir", type=Path, default=Path("data/corpus"))
    parser.add_argument("--minutes", type=float, default=60.0, help="of composed pieces")
    parser.add_argument("--random-minutes", type=float, default=0.0, help="of random notes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sampling-rate", type=int, default=32000)
    parser.add_argument("--num-jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--midi", type=str2bool, default=False, help="write .mid files (mido)")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    args = get_parser().parse_args(arguments)
    table = make_corpus(**vars(args))
    logging.info("%d files in %s\n%s", len(table), args.out_dir, summary(table))


if __name__ == "__main__":
    main()
