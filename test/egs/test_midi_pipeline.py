"""Recordings with their MIDI, through prepare.sh, to cuts that carry the notes of each excerpt."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import held_out_midi
import midi_corpus
import numpy as np
import pytest
import soundfile
import tokenizer
import tokenizer_midi
from lhotse import CutSet, Recording, RecordingSet
from tiny_codec import noise
from to_shar import to_shar
from tokenizer_runs import KilledAtReplace, arguments, contents, start_tokenizer
from validate_manifests import validate

from valle.data.conditions import midi_events
from valle.data.manifest import SPLITS, condition_of, cut_codes, load_cuts, manifest_path
from valle.data.midi import notes_of
from valle.utils.vocabulary import TICKS_PER_SEC

ROOT = Path(__file__).parents[2]
TRIM = ("--trim-silence", -50)


@pytest.fixture(scope="module")
def download(tmp_path_factory) -> Path:
    return midi_corpus.write_corpus(tmp_path_factory.mktemp("atepp") / "download")


@pytest.fixture(scope="module")
def prepared(download, codec_dir, tmp_path_factory) -> tuple[Path, str]:
    """What prepare.sh wrote, and what it said."""
    output = tmp_path_factory.mktemp("prepared") / "tokenized"
    flags = ["--dl-dir", download, "--midi-dir", download / "ATEPP-1.2", "--output-dir", output]
    flags += ["--codec", codec_dir, "--window", 2, "--min-window", 0.5, "--device", "cpu", *TRIM]
    result = subprocess.run(
        ["bash", ROOT / "egs" / "atepp" / "prepare.sh", *map(str, flags)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHON": sys.executable},
        check=False,
    )
    assert result.returncode == 0, result.stdout
    return output, result.stdout


def flags_of(download: Path, *flags: object) -> tuple[object, ...]:
    """Those with which prepare.sh calls the tokenizer."""
    table = ("--split-csv", download / "ATEPP-1.2-clean.csv", "--csv-file-column", "midi_path")
    places = ("--src-dir", download / "recordings", "--midi-dir", download / "ATEPP-1.2")
    return (*places, *table, "--csv-group-column", "composition_id", *TRIM, *flags)


def all_cuts(folder: Path) -> dict[str, object]:
    return {c.id: c for split in SPLITS for c in load_cuts(manifest_path(folder, split))}


def sounding(midi: Path, start: float, end: float) -> list[tuple[float, float, int]]:
    """(onset, duration, pitch) of the notes in an excerpt, as they are heard there."""
    heard = [
        (max(onset, start) - start, min(off, end) - max(onset, start), pitch)
        for onset, off, pitch in midi_corpus.strokes(midi)
        if onset < end and off - start >= 0.5 / TICKS_PER_SEC
    ]
    return sorted(heard, key=lambda note: (round(note[0] * TICKS_PER_SEC), note[2]))


def midi_of(download: Path, cut) -> Path:
    path = Path(cut.recording.sources[0].source).relative_to(download / "recordings")
    return next((download / "ATEPP-1.2").glob(f"{path.with_suffix('')}.[mM]*"))


def test_every_excerpt_carries_the_notes_that_sound_in_it(prepared, download):
    cuts = all_cuts(prepared[0])
    assert len(cuts) > 2 * len(midi_corpus.GOOD)
    num_held = 0
    for cut in cuts.values():
        events = cut.load_midi_tokens()
        assert events.dtype == np.int16
        expected = sounding(midi_of(download, cut), cut.start, cut.end)
        found = [tuple(note[:3]) for note in notes_of(events)]
        assert len(found) == len(expected)
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1.01 / TICKS_PER_SEC)
        held = [o for o, _, _ in midi_corpus.strokes(midi_of(download, cut)) if o < cut.start]
        num_held += bool(held) and found[0][0] == 0
        assert (midi_events(cut) == events).all()
        assert condition_of(cut) == "midi"
        assert len(cut_codes(cut)) == round(cut.duration * 50)
    assert num_held > 2
    assert all(cut.start > 0.3 for cut in cuts.values())  # silence is trimmed, times are true


def test_what_has_no_midi_is_left_out_counted_and_untouched(prepared, download):
    folder, out = prepared
    lines = map(json.loads, (folder / "recordings.jsonl").read_text().splitlines())
    skipped = {Path(line["path"]).stem: line.get("skipped") for line in lines}
    reasons = {"00005": "no_midi", "00006": "bad_midi"}
    assert skipped == {Path(path).stem: None for _, path, _ in midi_corpus.ROWS} | reasons
    printed = " ".join(out.split())
    assert "bad_midi 1 no_midi 1" in printed
    assert "midi_length 1" in printed
    assert "are they of one performance" in out
    assert not (folder / "tokens" / "Bach__Chorale__00005.npy").exists()  # not encoded in vain
    fresh = midi_corpus.write_corpus(folder.parent / "fresh")
    assert digests(fresh) == digests(download)
    assert "training may start" in out
    assert "pieces in several splits: 1 of" in out
    assert "notes/second" in out


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*.[mM]*")
    }


def test_a_cut_that_is_cut_again_is_refused(prepared):
    cut = next(iter(all_cuts(prepared[0]).values()))
    for part in (cut.truncate(duration=1.0), cut.truncate(offset=0.5)):
        with pytest.raises(ValueError, match=rf"cut {part.id} begins at .* it was cut again"):
            midi_events(part)


def test_settings_tell_of_midi_and_a_folder_keeps_to_them(prepared, download, codec_dir):
    folder, _ = prepared
    settings = json.loads((folder / "tokenizer.json").read_text())
    assert settings["midi"]["pitch"] == 88
    without = ("--src-dir", download / "recordings", *TRIM)
    with pytest.raises(ValueError, match=r"midi \{.*\} then, None now"):
        tokenizer.run(arguments(codec_dir, folder, *without))


def test_without_midi_nothing_of_it_is_written(download, codec_dir, tmp_path):
    args = arguments(codec_dir, tmp_path, "--src-dir", download / "recordings")
    assert tokenizer.run(args) == 0
    assert set(json.loads((tmp_path / "tokenizer.json").read_text())) == {
        *("codec", "resampler", "window_sec", "min_window_sec"),
        *("min_duration_sec", "silence_db", "trim_silence_db"),
    }
    assert not {"notes", "midi_tokens"} & {path.name for path in tmp_path.iterdir()}
    for cut in all_cuts(tmp_path).values():
        assert set(cut.custom) == {"audio_features", "codec"}


def test_shards_carry_the_same_events(prepared, download, codec_dir, tmp_path):
    flags = flags_of(download, "--format", "shar", "--shard-size", 3)
    assert tokenizer.run(arguments(codec_dir, tmp_path / "at once", *flags)) == 0
    assert not (tmp_path / "at once" / "midi_tokens").exists()
    to_shar(prepared[0], tmp_path / "copied", 3)
    expected = all_cuts(prepared[0])
    for folder in (tmp_path / "at once", tmp_path / "copied"):
        sharded = all_cuts(folder)
        assert sharded.keys() == expected.keys()
        for id_, cut in sharded.items():
            np.testing.assert_array_equal(midi_events(cut), midi_events(expected[id_]))
            np.testing.assert_array_equal(cut_codes(cut), cut_codes(expected[id_]))
        assert validate(folder)[1] == []
    for cut in CutSet.from_shar(in_dir=tmp_path / "copied" / "cuts_train"):  # lhotse alone
        np.testing.assert_array_equal(cut.load_midi_tokens(), expected[cut.id].load_midi_tokens())
    alike = contents(tmp_path / "at once" / "cuts_train")
    assert alike == contents(tmp_path / "copied" / "cuts_train")


def test_a_shard_holds_cuts_of_one_kind(prepared, tmp_path):
    from valle.data.shar import write_shards

    first, second, *_ = all_cuts(prepared[0]).values()
    del second.custom["midi_tokens"]
    with pytest.raises(ValueError, match=r"carries no MIDI events, the first cut of its shard"):
        write_shards(tmp_path / "cuts_train", [first, second])


@pytest.mark.parametrize("nth", [3, 8, 14])
def test_killed_and_run_again_it_gives_the_same_bytes(prepared, download, codec_dir, tmp_path, nth):
    args = arguments(codec_dir, tmp_path, *flags_of(download))
    run = start_tokenizer(args, KilledAtReplace(nth, after=nth % 2 == 0))
    run.join(120)
    assert run.exitcode == -9
    assert tokenizer.run(args) == 0
    assert contents(tmp_path) == written_by_tokenizer(prepared[0])


def test_two_shards_give_the_same_bytes(prepared, download, codec_dir, tmp_path):
    for shard in range(2):
        flags = flags_of(download, "--num-shards", 2, "--shard", shard)
        assert tokenizer.run(arguments(codec_dir, tmp_path, *flags)) == 0
    assert contents(tmp_path) == written_by_tokenizer(prepared[0])


def written_by_tokenizer(folder: Path) -> dict[str, str]:
    others = (".done", ".html")
    return {name: x for name, x in contents(folder).items() if not name.endswith(others)}


def test_a_midi_that_was_changed_is_read_again(download, codec_dir, tmp_path):
    own = shutil.copytree(download, tmp_path / "download")
    flags = flags_of(own)
    assert tokenizer.run(arguments(codec_dir, tmp_path / "out", *flags)) == 0
    before = {id_: cut.load_midi_tokens() for id_, cut in all_cuts(tmp_path / "out").items()}
    path = own / "ATEPP-1.2" / f"{midi_corpus.GOOD[0]}.mid"
    path.write_bytes((own / "ATEPP-1.2" / f"{midi_corpus.GOOD[1]}.mid").read_bytes())
    assert tokenizer.run(arguments(codec_dir, tmp_path / "out", *flags)) == 0
    after = {id_: cut.load_midi_tokens() for id_, cut in all_cuts(tmp_path / "out").items()}
    changed = {id_ for id_ in before if not np.array_equal(before[id_], after[id_])}
    assert changed
    assert all("Op._1__00001" in id_ for id_ in changed)


def test_validation_finds_what_is_wrong_with_events(prepared, tmp_path):
    folder = shutil.copytree(prepared[0], tmp_path / "copy")
    assert validate(folder)[1] == []
    first, second, third, *_ = sorted((folder / "midi_tokens").iterdir())
    events = np.load(first)
    events[1, 0] = 500
    np.save(first, events)
    np.save(second, np.load(second)[1:])
    third.unlink()
    problems = validate(folder)[1]
    assert len(problems) == 3
    text = "\n".join(problems)
    assert f"cut {first.stem} has id 500 for the pitch of event 1, expected 0 to 91" in text
    assert f"cut {second.stem} has MIDI events of shape" in text
    assert f"No such file or directory: '{third}'" in text


# Which file belongs to which recording, and what is refused at the door


def test_events_tell_of_half_a_minute(download, codec_dir, tmp_path):
    args = arguments(codec_dir, tmp_path, *flags_of(download, "--window", 32.02))
    with pytest.raises(ValueError, match=r"--window is 32\.02 s, expected 32 at most"):
        tokenizer.run(args)


def test_errors_at_the_door(download, codec_dir, tmp_path, monkeypatch):
    def run(*flags: object) -> None:
        fixed = ("--src-dir", download / "recordings", *flags)
        tokenizer.run(arguments(codec_dir, tmp_path / "out", *fixed))

    with pytest.raises(FileNotFoundError, match="no folder of MIDI files at nowhere"):
        run("--midi-dir", "nowhere")
    (tmp_path / "midi").mkdir()
    with pytest.raises(ValueError, match=r"no \.mid or \.midi file below"):
        run("--midi-dir", tmp_path / "midi")
    (tmp_path / "midi" / "a.mid").write_bytes(b"")
    with pytest.raises(ValueError, match=r"none of 7 recordings has its MIDI below"):
        run("--midi-dir", tmp_path / "midi")
    (tmp_path / "midi" / "a.MIDI").write_bytes(b"")
    with pytest.raises(ValueError, match="differ by their ending alone"):
        run("--midi-dir", tmp_path / "midi")
    monkeypatch.setattr(tokenizer_midi.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'valle\[midi\]'"):
        run("--midi-dir", download / "ATEPP-1.2")


def test_recordings_of_a_manifest_find_their_midi_by_the_end_of_the_path(
    download, codec_dir, tmp_path
):
    paths = [download / "recordings" / f"{path}.flac" for path in midi_corpus.GOOD[:3]]
    recordings = [Recording.from_file(p, recording_id=f"id/{i}") for i, p in enumerate(paths)]
    RecordingSet.from_recordings(recordings).to_file(tmp_path / "recordings.jsonl.gz")
    flags = ("--manifest", tmp_path / "recordings.jsonl.gz", "--midi-dir", download / "ATEPP-1.2")
    assert tokenizer.run(arguments(codec_dir, tmp_path / "out", *flags)) == 0
    cuts = [c for path in (tmp_path / "out").glob("cuts_*.gz") for c in load_cuts(path)]
    assert {cut.recording.id for cut in cuts} == {"id/0", "id/1", "id/2"}
    assert all(path.is_file() for path in (tmp_path / "out" / "midi_tokens").iterdir())
    for cut in cuts:
        expected = sounding(midi_of(download, cut), cut.start, cut.end)
        assert len(notes_of(midi_events(cut))) == len(expected)


def test_a_piece_in_a_folder_is_no_piece_above_it(tmp_path):
    from valle.data.midi_files import MidiFolder
    from valle.data.sources import find_recordings

    for name in ("1.wav", "a/1.wav"):
        (tmp_path / "sound" / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(tmp_path / "sound" / name, noise(0.1), 8000)
    (tmp_path / "midi").mkdir()
    (tmp_path / "midi" / "1.mid").write_bytes(b"")
    sources = find_recordings(tmp_path / "sound")
    files = MidiFolder(tmp_path / "midi", tmp_path / "sound")
    found = {source.id: files.find(source.path) for source in sources}
    assert found == {"1": tmp_path / "midi" / "1.mid", "a__1": None}


def test_notes_that_were_kept_in_part_are_read_again(download, tmp_path):
    from valle.data.midi_files import NotesCache

    path = download / "ATEPP-1.2" / f"{midi_corpus.GOOD[0]}.mid"
    cache = NotesCache(tmp_path)
    notes = cache.notes(path)
    (kept,) = tmp_path.iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(whole[:200])
    np.testing.assert_array_equal(cache.notes(path), notes)
    assert kept.read_bytes() == whole
    with pytest.raises(ValueError, match=r"cannot read .*none\.mid .* expected a MIDI file"):
        cache.notes(tmp_path / "none.mid")


def test_test_recordings_with_their_midi_are_found_to_be_played(prepared, download, tmp_path):
    places = (download / "ATEPP-1.2", download / "recordings")
    name = midi_corpus.ROWS[1][1]
    expected = (places[0] / f"{name}.mid", places[1] / f"{name}.flac")
    assert list(held_out_midi.pairs(prepared[0], *places)) == [expected]
    own = shutil.copytree(places[0], tmp_path / "midi")
    (own / f"{name}.mid").unlink()
    assert list(held_out_midi.pairs(prepared[0], own, places[1])) == []
