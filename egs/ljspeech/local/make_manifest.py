"""A corpus of read sentences in LJSpeech's form -> a lhotse manifest of cuts with their texts.

    python egs/ljspeech/local/make_manifest.py --corpus-dir download/LJSpeech-1.1

The corpus is a folder with `metadata.csv` and `wavs/`. Each line of the table is
`id|text|text in words`, without a header, and quotation marks mean themselves; the sound is
`wavs/<id>.wav`. A cut is a whole sentence, its supervision's text the one in words (numbers and
abbreviations spelled out), or the other where that is missing. Splits are the tokenizer's affair.
"""

import argparse
import logging
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import soundfile
from lhotse import MonoCut, SupervisionSegment

from valle.data.jsonl import write_jsonl
from valle.data.storage import make_recording

TABLE, SOUNDS = "metadata.csv", "wavs"


class Sentence(NamedTuple):
    """A line of the table."""

    id: str
    text: str


def read_table(path: Path, left_out: Counter[str]) -> list[Sentence]:
    """The sentences of a table, sorted by id.

    Args:
      path: Of the table; UTF-8.
      left_out: Counts the lines that cannot be used, which are also logged.

    Raises:
      FileNotFoundError: There is no such table.
      ValueError: It is not UTF-8, or not a line of it is of LJSpeech's form.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"no table {path}; --corpus-dir is the unpacked corpus, with {TABLE} and {SOUNDS}"
        )
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}); save it so") from error
    sentences: dict[str, Sentence] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        sentence = _parse(line)
        if sentence is None:
            _leave_out(left_out, "odd lines", f"{path}, line {number}: {line.strip()[:80]}")
        elif sentence.id in sentences:
            _leave_out(left_out, "repeated ids", f"{path}, line {number}: {sentence.id}")
        else:
            sentences[sentence.id] = sentence
    if not sentences:
        raise ValueError(f"{path} has no line of the form id|text|text in words")
    return [sentences[id_] for id_ in sorted(sentences)]


def _parse(line: str) -> Sentence | None:
    """None for a line that is of another form, or without a text."""
    id_, *texts = (part.strip() for part in line.split("|"))
    if not id_ or Path(id_).name != id_ or not 1 <= len(texts) <= 2 or not any(texts):
        return None
    return Sentence(id_, texts[-1] or texts[0])


def _leave_out(left_out: Counter[str], kind: str, what: str) -> None:
    left_out[kind] += 1
    logging.warning(f"left out ({kind}): {what}")


def make_cuts(
    corpus: Path,
    sentences: Iterable[Sentence],
    speaker: str,
    language: str,
    left_out: Counter[str],
) -> Iterator[MonoCut]:
    """A cut of each sentence whose sound is there; others are logged and counted."""
    for sentence in sentences:
        path = corpus / SOUNDS / f"{sentence.id}.wav"
        if not path.is_file():
            _leave_out(left_out, "missing sounds", str(path))
            continue
        try:
            found = soundfile.info(path)
        except soundfile.LibsndfileError as error:
            _leave_out(left_out, "unreadable sounds", f"{path} ({error})")
            continue
        yield _cut(sentence, path, found, speaker, language)


def _cut(sentence: Sentence, path: Path, found: object, speaker: str, language: str) -> MonoCut:
    samples, rate, channels = (getattr(found, n) for n in ("frames", "samplerate", "channels"))
    recording = make_recording(sentence.id, str(path), samples, rate, channels)
    spoken = SupervisionSegment(
        id=sentence.id,
        recording_id=sentence.id,
        start=0,
        duration=recording.duration,
        text=sentence.text,
        speaker=speaker,
        language=language,
    )
    return MonoCut(sentence.id, 0, recording.duration, 0, [spoken], recording=recording)


def make_manifest(args: argparse.Namespace) -> None:
    """Write the manifest and say what it holds.

    Raises:
      FileNotFoundError, ValueError: No corpus there, or nothing in it to use.
      OSError: The manifest cannot be written.
    """
    left_out: Counter[str] = Counter()
    sentences = read_table(args.corpus_dir / TABLE, left_out)
    cuts = list(make_cuts(args.corpus_dir, sentences, args.speaker, args.language, left_out))
    if not cuts:
        raise ValueError(
            f"none of the {len(sentences)} sentences of {args.corpus_dir / TABLE} has its sound in "
            f"{args.corpus_dir / SOUNDS}; was the corpus unpacked to its end?"
        )
    write_jsonl(args.output, (cut.to_dict() for cut in cuts))
    hours = sum(cut.duration for cut in cuts) / 3600
    logging.info(f"{len(cuts)} sentences, {hours:.2f} hours, in {args.output}")
    if left_out:
        logging.warning(f"left out: {', '.join(f'{n} {kind}' for kind, n in left_out.items())}")


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--corpus-dir", type=Path, default=Path("download/LJSpeech-1.1"))
    add("--output", type=Path, default=Path("data/ljspeech/sentences.jsonl.gz"), help="manifest")
    add("--speaker", default="LJ", help="recorded with each sentence")
    add("--language", default="en-us", help="the same; as espeak-ng calls it")
    return parser


def main() -> None:
    """Command line."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    try:
        make_manifest(get_parser().parse_args())
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
