"""The generated corpus: the piano, the composer, and the program that writes the files."""

import csv
import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

ROOT = Path(__file__).parents[2]
LOCAL = ROOT / "egs/minipiano/local"
sys.path.insert(0, str(LOCAL))

import make_corpus as corpus  # noqa: E402
from compose import Composer, compose  # noqa: E402
from piano import TIMBRES, Note, Piano, partial_frequencies, render  # noqa: E402
from styles import KEY_NAMES, SCALES, STYLES  # noqa: E402

RATE = 16000
LOW = 8000  # for whole corpora, which need only be the right ones


def cents_off(sound: np.ndarray, rate: int, pitch: int) -> float:
    """Distance of the strongest component near the pitch from the pitch, in cents."""
    wanted = 440 * 2 ** ((pitch - 69) / 12)
    size = 2**20
    spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound)), size))
    frequencies = np.fft.rfftfreq(size, 1 / rate)
    near = (frequencies > wanted * 0.94) & (frequencies < wanted * 1.06)
    return 1200 * np.log2(frequencies[near][spectrum[near].argmax()] / wanted)


def centroid_hz(sound: np.ndarray, rate: int) -> float:
    power = np.abs(np.fft.rfft(sound)) ** 2
    return float((power * np.fft.rfftfreq(len(sound), 1 / rate)).sum() / power.sum())


def write_corpus(folder: Path, **changed: object) -> list[dict[str, object]]:
    settings = {"minutes": 0.1, "sampling_rate": LOW, "num_jobs": 1, **changed}
    return corpus.make_corpus(folder, **settings)  # type: ignore[arg-type]


class TestPiano:
    @pytest.mark.parametrize("timbre", TIMBRES)
    @pytest.mark.parametrize("pitch", [33, 48, 60, 72, 90, 100])
    def test_a_note_is_in_tune(self, timbre, pitch):
        sound = render([Note(0.0, 2.0, pitch, 80)], 32000, timbre)
        assert abs(cents_off(sound, 32000, pitch)) < 3

    def test_partials_are_stretched_as_a_stiff_string_stretches_them(self):
        f = partial_frequencies(48, 1.0, 32000)
        n = np.arange(1, len(f) + 1)
        assert np.all(np.diff(f / n) > 0)
        assert 1.0 < f[9] / (10 * f[0]) < 1.02

    @pytest.mark.parametrize("timbre", TIMBRES)
    @pytest.mark.parametrize("pitch", [36, 60, 84])
    def test_harder_is_louder_and_brighter(self, timbre, pitch):
        piano = Piano(TIMBRES[timbre], RATE)
        soft, middle, hard = (piano.strike(Note(0.0, 1.0, pitch, v))[:RATE] for v in (25, 64, 120))
        assert 4 * (soft**2).sum() < (middle**2).sum() < (hard**2).sum() / 4
        assert centroid_hz(soft, RATE) < centroid_hz(middle, RATE) < centroid_hz(hard, RATE)

    def test_high_partials_die_first_and_low_strings_ring_longer(self):
        piano = Piano(TIMBRES["concert"], RATE)
        low, high = (piano.strike(Note(0.0, 5.0, p, 90)) for p in (40, 88))
        assert centroid_hz(low[2 * RATE : 3 * RATE], RATE) < 0.8 * centroid_hz(low[:RATE], RATE)

        def kept(x: np.ndarray) -> float:
            return float((x[RATE : 2 * RATE] ** 2).sum() / (x[:RATE] ** 2).sum())

        assert kept(high) < 0.5 * kept(low)

    def test_the_damper_ends_a_note_but_not_in_the_top_octaves(self):
        piano = Piano(TIMBRES["concert"], RATE)

        def after(pitch: int, duration: float) -> float:
            sound = piano.strike(Note(0.0, duration, pitch, 90))[RATE // 2 :]
            return float((sound**2).sum())

        assert after(60, 0.1) < 0.01 * after(60, 2.0)
        assert after(100, 0.1) == pytest.approx(after(100, 2.0))

    def test_no_clipping_no_dc_no_step_and_a_silent_end(self):
        chord = [Note(0.1, 1.0, p, 127) for p in range(30, 90, 3)]
        sound = render(chord, RATE, "bright", peak=0.9)
        assert sound.dtype == np.float32
        assert np.abs(sound).max() == pytest.approx(0.9, abs=1e-4)
        assert abs(sound.mean()) < 1e-4
        onset = int(0.1 * RATE)
        assert np.abs(sound[: onset - 1]).max() < 1e-3
        bend = np.abs(np.diff(sound, 2))
        assert bend[onset + RATE // 4 :].max() < bend[onset : onset + RATE // 4].max()
        assert np.abs(sound[-RATE // 5 :]).max() < 1e-3

    def test_order_and_repetition_change_nothing(self):
        notes = [Note(0.0, 0.3, 60, 70), Note(0.1, 0.4, 67, 50), Note(0.2, 0.2, 40, 90)]
        first = render(notes, RATE)
        render(notes, RATE, "felt")  # another piano in between
        np.testing.assert_array_equal(first, render(notes, RATE))
        np.testing.assert_allclose(first, render(notes[::-1], RATE), atol=1e-6)

    def test_timbres_differ_and_vary(self):
        sounds = [render([Note(0.0, 0.5, 55, 80)], RATE, t)[: RATE // 2] for t in TIMBRES]
        for i, a in enumerate(sounds):
            for b in sounds[:i]:
                assert np.corrcoef(a, b)[0, 1] < 0.99
        varied = TIMBRES["felt"].varied(np.random.default_rng(1))
        assert varied != TIMBRES["felt"]
        assert varied == TIMBRES["felt"].varied(np.random.default_rng(1))

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ((0.0, 1.0, 20, 60), "21 to 108, got 20"),
            ((0.0, 1.0, 60, 0), "1 to 127, got 0"),
            ((0.0, 0.0, 60, 60), "duration above 0 s"),
            ((float("nan"), 1.0, 60, 60), "onset of 0 s or later"),
        ],
    )
    def test_impossible_notes_are_refused(self, values, message):
        with pytest.raises(ValueError, match=message):
            Note(*values)

    def test_impossible_renderings_are_refused(self):
        note = Note(0.0, 1.0, 60, 60)
        with pytest.raises(ValueError, match="no notes"):
            render([])
        with pytest.raises(ValueError, match="unknown timbre 'organ'; choose one of concert"):
            render([note], timbre="organ")
        with pytest.raises(ValueError, match=r"peak must lie in \(0, 1\], got 1.5"):
            render([note], peak=1.5)
        with pytest.raises(ValueError, match="at least 4000 Hz, got 100"):
            render([note], sampling_rate=100)


class TestComposer:
    # Changed on purpose? Then count up make_corpus.GENERATION, or folders written before keep
    # their old files among new ones.
    DIGEST = "a6f9ec743b5569b7"

    def test_a_seed_means_the_same_piece_everywhere(self):
        text = ";".join(
            f"{n.onset_sec:.3f},{n.duration_sec:.3f},{n.pitch},{n.velocity}"
            for style in STYLES
            for n in compose(7, style).notes
        )
        assert hashlib.sha256(text.encode()).hexdigest()[:16] == self.DIGEST

    def test_seeds_and_styles_differ(self):
        assert compose(1) == compose(1)
        pieces = {compose(seed, style).notes for seed in range(5) for style in STYLES}
        assert len(pieces) == 5 * len(STYLES)
        assert {compose(seed).style for seed in range(60)} == set(STYLES)

    @pytest.mark.parametrize("style", STYLES)
    def test_pieces_are_playable(self, style):
        for seed in range(6):
            piece = compose(seed, style)
            assert piece.style == style
            assert STYLES[style].tempo[0] <= piece.tempo <= STYLES[style].tempo[1]
            assert 28 <= piece.end_sec <= 78
            assert all(28 <= n.pitch <= 88 for n in piece.notes)
            onsets = [n.onset_sec for n in piece.notes]
            assert onsets == sorted(onsets)
            assert max(np.diff(onsets)) < 6
            last_off = {}
            for n in piece.notes:  # no key is struck while it is down
                assert n.onset_sec >= last_off.get(n.pitch, 0.0)
                last_off[n.pitch] = n.onset_sec + n.duration_sec

    @pytest.mark.parametrize("style", STYLES)
    def test_pieces_keep_to_their_key(self, style):
        for seed in range(6):
            piece = compose(seed, style)
            name, mode = piece.key.split()
            scale = {(KEY_NAMES.index(name) + s) % 12 for s in SCALES[mode]}
            strange = [n for n in piece.notes if n.pitch % 12 not in scale]
            # the leading tone of minor, and a minor piece's possible end in major
            assert len(strange) <= (0.15 * len(piece.notes) if mode == "minor" else 0)

    @pytest.mark.parametrize("style", STYLES)
    def test_the_last_chord_is_the_tonic_and_is_held(self, style):
        for seed in range(6):
            piece = compose(seed, style)
            tonic = KEY_NAMES.index(piece.key.split()[0])
            final = [n for n in piece.notes if n.onset_sec + n.duration_sec > piece.end_sec - 0.3]
            assert len(final) >= 4
            assert min(n.pitch for n in final) % 12 == max(n.pitch for n in final) % 12 == tonic
            assert all(n.duration_sec > 2 for n in final)

    def test_the_melody_lies_above_the_chords(self):
        for style in STYLES:
            composer = Composer(3, style)
            score = composer.write()
            body = [n for n in score.notes if n.beat < score.final_beat]
            melody = [n.pitch for n in body if n.melody]
            assert min(melody) > max(n.pitch for n in body if not n.melody)
            assert max(melody) <= 86

    def test_phrases_of_one_letter_begin_alike_and_end_as_told(self):
        composer = Composer(5, "waltz")
        (chords, half), (closing, full) = (composer.phrase("A", c) for c in (False, True))
        assert [n for n in half if n.beat < 6] == [n for n in full if n.beat < 6]
        assert chords[:2] == closing[:2]
        assert closing[-1].root == 0
        assert full[-1].pitch % 12 == composer.tonic
        assert composer.phrase("B", True)[1] != full

    def test_loudness_and_tempo_move(self):
        for style in STYLES:
            velocities = [n.velocity for n in compose(2, style).notes]
            assert max(velocities) - min(velocities) >= 25
        # the beats of a nocturne are not a metronome's: compare the first and last full bars
        piece = compose(2, "nocturne")
        bass = [n.onset_sec for n in piece.notes if n.pitch < 48]
        assert np.std(np.diff(bass)[1:-1]) > 0.02

    def test_impossible_pieces_are_refused(self):
        with pytest.raises(ValueError, match="unknown style 'polka'; choose one of alberti"):
            compose(1, "polka")
        with pytest.raises(ValueError, match="seed must be 0 or more, got -1"):
            compose(-1)


class TestSplits:
    def test_shares_and_styles(self):
        splits = [corpus.split_of(i) for i in range(72)]
        assert (splits.count("train"), splits.count("validation"), splits.count("test")) == (
            60,
            6,
            6,
        )
        for split in ("validation", "test"):
            styles = {i % len(STYLES) for i in range(72) if splits[i] == split}
            assert len(styles) == len(STYLES)
        assert set(splits[:12]) == {"train", "validation", "test"}

    def test_a_longer_corpus_only_adds(self):
        short, long = (corpus.plan_pieces(m, 0, RATE) for m in (3, 8))
        assert len(short) < len(long)
        assert long[: len(short)] == short
        assert len({t.seed for t in long}) == len(long)
        assert corpus.plan_pieces(3, 1, RATE)[0].seed != short[0].seed


class TestRandomNotes:
    def test_they_cover_the_keyboard(self):
        notes = corpus.random_notes(np.random.default_rng(0), 120)
        assert notes == corpus.random_notes(np.random.default_rng(0), 120)
        pitches = {n.pitch for n in notes}
        assert len(pitches) > 70
        assert {n.velocity // 32 for n in notes} == {0, 1, 2, 3}
        assert min(n.duration_sec for n in notes) < 0.1 < 2 < max(n.duration_sec for n in notes)
        assert max(n.onset_sec for n in notes) < 120

    def test_too_short_is_refused(self):
        with pytest.raises(ValueError, match=r"above 0\.5, got 0\.2"):
            corpus.random_notes(np.random.default_rng(0), 0.2)


class TestProgram:
    def test_files_table_and_independence_of_jobs(self, tmp_path):
        rows = write_corpus(tmp_path / "one", minutes=1.2, random_minutes=0.1)
        write_corpus(tmp_path / "two", minutes=1.2, random_minutes=0.1, num_jobs=2)
        names = sorted(p.name for p in (tmp_path / "one").iterdir())
        assert names == sorted([*(r["file"] for r in rows), "pieces.csv"])
        for name in names:
            one, two = ((tmp_path / n / name).read_bytes() for n in ("one", "two"))
            assert one == two, name
        with (tmp_path / "one/pieces.csv").open(encoding="utf-8") as file:
            table = list(csv.DictReader(file))
        assert tuple(table[0]) == corpus.FIELDS
        assert [r["split"] for r in table] == ["train", "validation", "codec"]
        for row in table:
            sound, rate = soundfile.read(tmp_path / "one" / row["file"], dtype="float32")
            assert (rate, sound.ndim) == (LOW, 1)
            assert abs(len(sound) / rate - float(row["seconds"])) < 1e-3
            assert 0.3 < np.abs(sound).max() < 0.95

    def test_whole_files_are_kept_and_broken_ones_made_again(self, tmp_path):
        rows = write_corpus(tmp_path, minutes=2.6)
        table = (tmp_path / "pieces.csv").read_bytes()
        paths = [tmp_path / str(r["file"]) for r in rows]
        contents = [p.read_bytes() for p in paths]
        os.utime(paths[0], (1, 1))
        paths[1].write_bytes(contents[1][: len(contents[1]) // 2])
        paths[2].unlink()
        (tmp_path / f".part-1-{paths[2].name}").write_bytes(contents[2][:100])
        (tmp_path / "pieces.csv").unlink()
        write_corpus(tmp_path, minutes=2.6)
        assert [p.read_bytes() for p in paths] == contents
        assert paths[0].stat().st_mtime == 1
        assert (tmp_path / "pieces.csv").read_bytes() == table
        assert not list(tmp_path.glob(".*"))

    def test_files_of_another_seed_or_rate_are_not_taken_for_ours(self, tmp_path):
        task = corpus.plan_pieces(0.1, 0, LOW)[0]
        write_corpus(tmp_path)
        assert corpus.is_complete(tmp_path / task.name, task)
        other_rate = corpus.plan_pieces(0.1, 0, 2 * LOW)[0]
        other_seed = corpus.plan_pieces(0.1, 1, LOW)[0]
        assert not corpus.is_complete(tmp_path / task.name, other_rate)
        assert not corpus.is_complete(tmp_path / task.name, other_seed)

    def test_strangers_are_named_and_left_alone(self, tmp_path, caplog):
        write_corpus(tmp_path, minutes=1.2)
        write_corpus(tmp_path, minutes=0.1)
        assert "1 files" in caplog.text
        assert "piece-0002" in caplog.text
        assert len(list(tmp_path.glob("*.flac"))) == 2

    def test_a_killed_run_leaves_whole_files_only_and_no_orphans(self, tmp_path):
        command = [sys.executable, str(LOCAL / "make_corpus.py"), "--out-dir", str(tmp_path)]
        command += ["--minutes", "60", "--num-jobs", "1", "--sampling-rate", str(LOW)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while len(list(tmp_path.glob("*.flac"))) < 2 and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        time.sleep(1.0)
        left = {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
        assert 2 <= len(list(tmp_path.glob("*.flac"))) < 60
        for path in tmp_path.glob("*.flac"):
            assert len(soundfile.read(path)[0]) == soundfile.info(path).frames
        time.sleep(0.5)  # a worker that outlived its parent would go on writing
        assert {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()} == left

    def test_midi_says_what_was_played(self, tmp_path):
        mido = pytest.importorskip("mido")
        (row,) = write_corpus(tmp_path, midi=True)
        piece = compose(int(str(row["seed"])), str(row["style"]))
        now, down, heard = 0.0, {}, []
        for message in mido.MidiFile(tmp_path / str(row["file"]).replace(".flac", ".mid")):
            now += message.time
            if message.type == "note_on" and message.velocity:
                assert message.note not in down
                down[message.note] = (now, message.velocity)
            elif message.type == "note_off":
                onset, velocity = down.pop(message.note)
                heard.append((onset, now - onset, message.note, velocity))
        assert not down
        heard.sort(key=lambda n: (n[2], n[0]))
        wanted = sorted(piece.notes, key=lambda n: (n.pitch, n.onset_sec))
        assert [n[2:] for n in heard] == [(n.pitch, n.velocity) for n in wanted]
        np.testing.assert_allclose(
            [n[:2] for n in heard], [(n.onset_sec, n.duration_sec) for n in wanted], atol=2e-3
        )

    def test_midi_without_mido_names_the_pip_line(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "mido", None)
        with pytest.raises(ImportError, match=r"pip install -e '\.\[midi\]'"):
            write_corpus(tmp_path, midi=True)
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"minutes": 0.0}, "one of them above 0; got 0.0 and 0.0"),
            ({"random_minutes": -1.0}, "must not be negative"),
            ({"seed": -3}, "--seed must be 0 or more, got -3"),
            ({"sampling_rate": 4}, "--sampling-rate must be at least 8000 Hz, got 4"),
            ({"num_jobs": 0}, "--num-jobs must be at least 1, got 0"),
        ],
    )
    def test_impossible_settings_are_refused(self, tmp_path, changed, message):
        with pytest.raises(ValueError, match=message):
            write_corpus(tmp_path, **changed)

    def test_switches_are_true_or_false(self, capsys):
        parser = corpus.get_parser()
        assert parser.parse_args(["--midi", "true"]).midi is True
        with pytest.raises(SystemExit):
            parser.parse_args(["--midi", "perhaps"])
        assert "write true or false" in capsys.readouterr().err

    def test_summary_counts_minutes(self):
        rows = [
            {"split": "train", "style": "rag", "seconds": "90.0"},
            {"split": "test", "style": "rag", "seconds": "30.0"},
        ]
        assert corpus.summary(rows).splitlines() == [
            "minutes by split: train 1.5, test 0.5",
            "minutes by style: rag 2.0",
        ]
