"""prepare.sh on miniatures of the corpora that users bring: their tables, folders and sound files.

Each runs the real scripts with a tiny codec.
"""

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from tiny_codec import noise

from valle.data.manifest import SPLITS, cut_codes, load_cuts, manifest_path

ROOT = Path(__file__).parents[2]
ATEPP = ROOT / "egs" / "atepp" / "prepare.sh"
MAESTRO = ROOT / "egs" / "maestro" / "prepare.sh"

ATEPP_HEADER = (
    "artist,artist_id,track,track_duration,composer,composition_id,score_path,midi_path,"
    "youtube_links,quality,perf_id,album,album_date,repetition,split"
)
PRELUDES = "Sergei_Rachmaninoff/13_Preludes,_Op._32"
# composition_id, midi_path, split, and what the user's file is: ending, rate, channels
ATEPP_ROWS = [
    (4, f"{PRELUDES}/No._2_in_B-Flat_Minor/00005.mid", "train", ("wav", 44100, 2)),
    (4, f"{PRELUDES}/No._2_in_B-Flat_Minor/00006.mid", "train", ("mp3", 44100, 2)),
    (4, f"{PRELUDES}/No._2_in_B-Flat_Minor/00007.mid", "test", ("flac", 22050, 1)),
    (5, f"{PRELUDES}/No._1_in_C_Major:_Allegro_vivace/00013.mid", "test", ("flac", 48000, 2)),
    (0, "Sergei_Rachmaninoff/Four_Pieces/3._Mélodie/00001.mid", "validation", ("wav", 48000, 1)),
    (1, "Sergei_Rachmaninoff/Four_Pieces/4._Gavotte/00002.mid", "train", ("mp3", 48000, 1)),
    (2, "Sergei_Rachmaninoff/Four_Pieces/2._Prelude/00003.mid", "train", None),  # not found
]
MAESTRO_HEADER = (
    "canonical_composer,canonical_title,split,year,midi_filename,audio_filename,duration"
)
MAESTRO_ROWS = [
    ("Claude Debussy", 'Etude "Pour les accords"', "test", 2009, "R1_2009_04_WAV", 44100),
    ("Claude Debussy", "L'Isle Joyeuse", "train", 2011, "R1-D6_10_Track10_wav", 44100),
    ("Claude Debussy", "L'isle joyeuse", "train", 2017, "PIANO071_MID--AUDIO_1-04_wav--4", 48000),
    ("César Franck", "Prelude, Fugue et Variation", "validation", 2018, "Recital1_wav--2", 48000),
]


def write_sound(path: Path, rate: int, channels: int, seconds: float, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    sound = noise(seconds, rate, seed)
    soundfile.write(path, np.stack([sound] * channels, axis=1) if channels > 1 else sound, rate)


def write_rows(path: Path, header: str, rows: list[dict]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, header.split(","), restval="x, y")
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def atepp(tmp_path) -> Path:
    """`download/` as egs/atepp/README.md draws it, and a recording of which the table is silent."""
    folder = tmp_path / "download"
    rows = []
    for seed, (piece, midi, split, sound) in enumerate(ATEPP_ROWS):
        if sound is not None:
            audio = (folder / "recordings" / midi).with_suffix(f".{sound[0]}")
            write_sound(audio, sound[1], sound[2], 2.5 + 0.1 * seed, seed)
        rows.append({"composition_id": piece, "midi_path": midi, "split": split, "perf_id": seed})
    write_sound(folder / "recordings" / "notes" / "99999.wav", 44100, 1, 2.0, 9)
    write_rows(folder / "ATEPP-1.2-clean.csv", ATEPP_HEADER, rows)
    return folder


@pytest.fixture
def maestro(tmp_path) -> Path:
    """`download/` with the unpacked zip: years, a .midi beside each .wav, table, licence."""
    folder = tmp_path / "download"
    corpus = folder / "maestro-v3.0.0"
    rows = []
    for seed, (composer, title, split, year, name, rate) in enumerate(MAESTRO_ROWS):
        stem = f"{year}/MIDI-Unprocessed_{name}"
        write_sound(corpus / f"{stem}.wav", rate, 2, 3.0, seed)
        (corpus / f"{stem}.midi").write_bytes(b"MThd")
        cells = (composer, title, split, year, f"{stem}.midi", f"{stem}.wav", 3.0)
        rows.append(dict(zip(MAESTRO_HEADER.split(","), cells, strict=True)))
    write_rows(corpus / "maestro-v3.0.0.csv", MAESTRO_HEADER, rows)
    (corpus / "LICENSE").write_text("by-nc-sa")
    return folder


@pytest.fixture
def prepare(codec_dir, tmp_path):
    """Runs a script into `tmp_path/out` with the tiny codec; gives its exit status and output."""

    def run(script: Path, *flags: object, **variables: str) -> tuple[int, str]:
        fixed = ["--output-dir", tmp_path / "out", "--codec", codec_dir]
        fixed += ["--window", 2, "--min-window", 0.5]
        result = subprocess.run(
            ["bash", *map(str, (script, *fixed, *flags))],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=tmp_path,
            env=os.environ | {"PYTHON": sys.executable} | variables,
            check=False,
        )
        return result.returncode, result.stdout

    return run


def splits_in(output: Path) -> dict[str, list[str]]:
    """The names of the sound files in each split, and on the way a look at every token."""
    files = {}
    for split in SPLITS:
        cuts = list(load_cuts(manifest_path(output, split)))
        assert all(len(cut_codes(cut)) == round(cut.duration * 50) for cut in cuts)
        names = {Path(cut.recording.sources[0].source).name for cut in cuts}
        files[split] = sorted(names)
    return files


def test_atepp_as_users_have_it(atepp, prepare, tmp_path):
    status, out = prepare(ATEPP, "--dl-dir", atepp)
    assert status == 0, out
    assert splits_in(tmp_path / "out") == {
        "train": ["00002.mp3", "00005.wav", "00006.mp3"],
        "validation": ["00001.wav"],
        "test": ["00007.flac", "00013.flac"],
    }
    assert "not in the table" in out
    assert "pieces in several splits: 1 of 4 (train+test 1)" in out
    assert "WARNING pieces in several splits: 1 of 4" in out
    assert "training may start: no problems found" in out
    page = tmp_path / "out" / "statistics.html"
    assert f"pictures: {page}" in out
    assert page.read_text().count("<img") == 4

    status, out = prepare(ATEPP, "--dl-dir", atepp)  # a second run does nothing twice
    assert (status, out.count("done before")) == (0, 3)

    tokens = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "tokens").iterdir()}
    flags = ("--split-by", "composition", "--stop-stage", 1)
    status, out = prepare(ATEPP, "--dl-dir", atepp, *flags)
    assert status == 0, out
    assert splits_in(tmp_path / "out") == {
        "train": ["00002.mp3", "00005.wav", "00006.mp3", "00007.flac"],
        "validation": ["00001.wav"],
        "test": ["00013.flac"],
    }
    assert "pieces in several splits: 0 of 4" in out
    assert {path: path.stat().st_mtime_ns for path in tokens} == tokens  # nothing encoded again


def test_maestro_as_it_is_unpacked(maestro, prepare, tmp_path):
    status, out = prepare(MAESTRO, "--dl-dir", maestro, "--stop-stage", 2)
    assert status == 0, out
    assert splits_in(tmp_path / "out") == {
        "train": [
            "MIDI-Unprocessed_PIANO071_MID--AUDIO_1-04_wav--4.wav",
            "MIDI-Unprocessed_R1-D6_10_Track10_wav.wav",
        ],
        "validation": ["MIDI-Unprocessed_Recital1_wav--2.wav"],
        "test": ["MIDI-Unprocessed_R1_2009_04_WAV.wav"],
    }
    assert "pieces in several splits: 0 of 3" in out
    assert "training may start" in out


def test_any_other_folder_by_two_processes_into_shards(prepare, tmp_path):
    for i, (suffix, rate) in enumerate([("wav", 22050), ("flac", 48000), ("ogg", 44100)]):
        write_sound(tmp_path / "my music" / f"disc {i}" / f"take 1.{suffix}", rate, 2, 2.0, i)
    flags = ("--num-processes", 2, "--format", "shar", "--shard-size", 2, "--trim-silence", -60)
    status, out = prepare(ATEPP, "--audio-dir", "my music", *flags, "--stop-stage", 2)
    assert status == 0, out
    assert (tmp_path / "out" / "cuts_train" / "audio_features.000000.tar").is_file()
    assert "training may start" in out
    assert sum(map(len, splits_in(tmp_path / "out").values())) == 3


def test_maestro_says_where_its_recordings_are_expected(prepare, tmp_path):
    status, out = prepare(MAESTRO, "--dl-dir", tmp_path, "--stop-stage", 0)
    assert status == 1
    assert f"There is no folder {tmp_path}/maestro-v3.0.0. egs/maestro/README.md says" in out
    assert (ROOT / "egs/maestro/README.md").is_file()


def test_two_names_for_the_folder_must_agree(prepare):
    status, out = prepare(ATEPP, "--audio-dir", "a", "--src-dir", "b")
    assert (status, out.count("name two folders: give one of them")) == (2, 1)


def test_the_scripts_of_maestro_are_those_of_atepp_with_other_defaults(prepare):
    for name in ("prepare.sh", "run.sh"):
        result = subprocess.run(
            ["bash", ROOT / "egs" / "maestro" / name, "--help"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert "data/maestro" in result.stdout


def test_links_are_recordings_and_a_change_behind_them_is_seen(prepare, tmp_path):
    write_sound(tmp_path / "disk" / "1.wav", 44100, 1, 2.0, 1)
    for i in (2, 3):
        write_sound(tmp_path / "other disk" / f"{i}.wav", 44100, 1, 2.0, i)
        (tmp_path / "disk" / f"{i}.wav").symlink_to(tmp_path / "other disk" / f"{i}.wav")
    (tmp_path / "dl").mkdir()
    (tmp_path / "dl" / "recordings").symlink_to(tmp_path / "disk")
    flags = ("--dl-dir", "dl", "--stop-stage", 1)
    status, out = prepare(ATEPP, *flags)
    assert status == 0, out
    assert "3 recordings; table of splits: none" in out
    assert sum(map(len, splits_in(tmp_path / "out").values())) == 3
    assert "done before (" in prepare(ATEPP, *flags)[1]
    write_sound(tmp_path / "other disk" / "3.wav", 44100, 1, 2.5, 4)
    out = prepare(ATEPP, *flags, PYTHON="echo")[1]
    assert "tokenizer.py --src-dir dl/recordings" in out
    assert "done before (" not in out


KILLED_AFTER_TRAIN = """
import os, runpy, sys
del sys.argv[0]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
import tokenizer_manifests
write_split = tokenizer_manifests.write_split
tokenizer_manifests.write_split = lambda *args: (write_split(*args), os._exit(9))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_manifests_of_two_runs_are_never_called_checked(prepare, tmp_path):
    for i in range(5):
        write_sound(tmp_path / "music" / f"{i}.wav", 44100, 1, 2.0, i)
    flags = ("--audio-dir", "music", "--valid-fraction", 0.4, "--stop-stage", 1)
    status, out = prepare(ATEPP, *flags)
    assert status == 0, out
    whole = splits_in(tmp_path / "out")
    marker = tmp_path / "out" / ".tokenize.done"
    for later in (".validate.done", ".statistics.done"):
        shutil.copy(marker, marker.with_name(later))
    assert "done before (" in prepare(ATEPP, *flags, "--stop-stage", 2)[1]

    (tmp_path / "killed.py").write_text(KILLED_AFTER_TRAIN)
    killed = tmp_path / "python"
    killed.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{tmp_path}/killed.py" "$@"\n')
    killed.chmod(0o755)
    status, _ = prepare(ATEPP, *flags, "--seed", 7, PYTHON=str(killed))
    assert status == 9
    assert splits_in(tmp_path / "out") != whole
    assert not list((tmp_path / "out").glob(".*.done"))

    out = prepare(ATEPP, *flags, "--stop-stage", 2, PYTHON="echo")[1]
    assert "tokenizer.py --src-dir music" in out
    assert "done before (" not in out


def test_one_process_of_several_is_no_whole_run(prepare, tmp_path):
    for i in range(3):
        write_sound(tmp_path / "music" / f"{i}.wav", 44100, 1, 2.0, i)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "recordings.jsonl").write_text("of an earlier run\n")
    flags = ("--audio-dir", "music", "--stop-stage", 1)
    status, out = prepare(ATEPP, *flags, RANK="0", WORLD_SIZE="2")
    assert status == 1
    assert "not finished yet" in out
    assert "The tokenizer wrote no manifests into" in out
    assert not (tmp_path / "out" / ".tokenize.done").exists()


def test_the_tokenizer_chooses_its_threads_unless_told(prepare, tmp_path):
    write_sound(tmp_path / "music" / "a.wav", 44100, 1, 2.0, 0)
    flags = ("--audio-dir", "music", "--stop-stage", 1)
    _, out = prepare(ATEPP, *flags, PYTHON="echo")
    assert "--src-dir music" in out
    assert "--num-workers" not in out
    assert "--num-workers 3" in prepare(ATEPP, *flags, "--num-workers", 3, PYTHON="echo")[1]


def test_an_option_may_share_its_name_with_a_variable_of_the_environment(prepare):
    status, out = prepare(ATEPP, "--seed", 3, "--help", seed="1")
    assert status == 0, out
    assert "--seed '3'" in out
    status, out = prepare(ATEPP, "--http-proxy", "y", http_proxy="x")
    assert status == 2
    assert "unknown option --http-proxy (http_proxy is a variable of the environment)" in out
