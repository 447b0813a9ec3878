"""Token manifests whose cuts carry MIDI events or text, without any sound."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from lhotse import SupervisionSegment
from tiny_cuts import CODEC, tiny_codes

from valle.data.codec_info import CodecInfo
from valle.data.conditions import MIDI, MIDI_SPAN
from valle.data.datamodule import TEXT_TABLE
from valle.data.midi import Notes, cut_notes, events_of
from valle.data.midi_files import store_events
from valle.data.storage import (
    cut_windows,
    make_recording,
    stored_frames,
    whole_cut,
    write_codes,
    write_cuts,
)
from valle.data.text import SymbolTable, symbols_of

WORDS = "a quick brown fox jumps over the lazy dog"


def tiny_notes(seed: int, seconds: float) -> Notes:
    """Four notes a second, some of which are held."""
    rng = np.random.default_rng(seed)
    onsets = np.arange(0, seconds - 0.1, 0.25)
    durations = np.minimum(rng.uniform(0.1, 0.6, len(onsets)), seconds - onsets)
    pitches, velocities = rng.integers(30, 90, len(onsets)), rng.integers(20, 110, len(onsets))
    return np.stack([onsets, durations, pitches, velocities], axis=1)


def write_conditioned(
    folder: Path,
    condition: str,
    split: str = "train",
    seconds: tuple[float, ...] = (4.4, 4.4, 3.6),
    window_sec: float = 2.2,
    codec: CodecInfo = CODEC,
) -> None:
    """Recordings cut into windows, each with its notes, or with some words."""
    (folder / "tokens").mkdir(parents=True, exist_ok=True)
    cuts: list[Any] = []
    for index, length in enumerate(seconds):
        id_ = f"{split}-{index}"
        recording = make_recording(id_, f"{id_}.flac", round(length * 8000), 8000, 1)
        num_frames = stored_frames(recording.duration, codec)
        write_codes(folder / "tokens", id_, tiny_codes(index, num_frames, codec))
        whole = whole_cut(recording, "tokens", id_, num_frames, codec)
        notes = tiny_notes(index, length)
        for cut in cut_windows(whole, codec, round(window_sec * codec.frame_rate), 10):
            carry = with_notes if condition == "midi" else with_words
            cuts.append(carry(folder, cut, notes))
    write_cuts(folder / f"cuts_{split}.jsonl.gz", cuts)
    if condition == "text":
        SymbolTable.of([symbols_of(WORDS, "characters")]).write(folder / TEXT_TABLE)
        settings = {"text": {"extractor": "characters"}}
        (folder / "tokenizer.json").write_text(json.dumps(settings))


def with_notes(folder: Path, cut: Any, notes: Notes) -> Any:
    array = store_events(folder, cut.id, events_of(cut_notes(notes, cut.start, cut.end))[0])
    return cut.with_custom(MIDI, array).with_custom(MIDI_SPAN, [cut.start, cut.duration])


def with_words(folder: Path, cut: Any, _: Notes) -> Any:
    words = WORDS.split()
    text = " ".join(words[sum(map(ord, cut.id)) % 5 :])
    spoken = SupervisionSegment(cut.id, cut.recording_id, 0.0, cut.duration, text=text)
    spoken.custom = {"tokens": {"text": symbols_of(text, "characters")}}
    cut.supervisions = [spoken]
    return cut
