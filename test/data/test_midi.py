"""MIDI files, excerpts of notes, events; and the excerpt's notes against the excerpt's sound."""

import logging
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from valle.codec.harmony import harmony_scores
from valle.data.midi import check_notes, cut_notes, events_of, join_notes, notes_of, read_notes
from valle.utils.vocabulary import BOS, EOS, MASK, MIDI_FIELDS, MIDI_SEC, TICKS_PER_SEC

mido = pytest.importorskip("mido")

from compose import compose  # noqa: E402
from piano import Note, render  # noqa: E402

HALF_TICK = 0.5 / TICKS_PER_SEC + 1e-9
SUSTAIN = 64


def on(pitch: int, at: int, velocity: int = 80, channel: int = 0):
    return at, mido.Message("note_on", note=pitch, velocity=velocity, channel=channel)


def off(pitch: int, at: int, channel: int = 0):
    return at, mido.Message("note_off", note=pitch, channel=channel)


def control(number: int, value: int, at: int, channel: int = 0):
    return at, mido.Message("control_change", control=number, value=value, channel=channel)


def tempo(microseconds: int, at: int):
    return at, mido.MetaMessage("set_tempo", tempo=microseconds)


def end(at: int):
    return at, mido.MetaMessage("end_of_track")


@pytest.fixture
def written(tmp_path):
    """Writes tracks of (tick, message); a tick is a millisecond until a tempo says otherwise."""

    def write(*tracks, ticks_per_beat=500, kind=1):
        path = tmp_path / "piece.mid"
        file = mido.MidiFile(type=kind, ticks_per_beat=ticks_per_beat)
        for messages in tracks:
            now, track = 0, mido.MidiTrack()
            for at, message in sorted(messages, key=lambda entry: entry[0]):
                track.append(message.copy(time=at - now))
                now = at
            file.tracks.append(track)
        file.save(path)
        return path

    return write


def rows(*notes) -> np.ndarray:
    return np.array(notes, dtype=np.float64).reshape(-1, 4)


class TestReading:
    def test_notes_come_sorted_with_seconds_pitch_and_velocity(self, written):
        path = written([on(64, 0, 50), on(60, 0, 70), off(60, 500), off(64, 1500)])
        assert read_notes(path) == pytest.approx(rows((0, 0.5, 60, 70), (0, 1.5, 64, 50)))

    def test_note_on_of_velocity_0_releases(self, written):
        assert read_notes(written([on(60, 0), on(60, 250, 0), end(900)]))[0, 1] == 0.25

    def test_tempo_of_one_track_rules_all_from_its_tick_on(self, written):
        conductor = [tempo(1_000_000, 0), tempo(250_000, 1000), tempo(500_000, 2000)]
        notes = read_notes(
            written(conductor, [on(60, 500), off(60, 1500), on(62, 2500), end(3000)])
        )
        # 500 ticks of 2 ms, then 500 to 1000 of 2 ms and 500 of 0.5 ms; then 1 ms a tick
        assert notes[:, 0] == pytest.approx([1.0, 2.0 + 0.5 + 0.5])
        assert notes[:, 1] == pytest.approx([1.25, 0.5])

    def test_seconds_do_not_drift(self, written):
        """The 3000th of notes a third of a second apart is where it should be."""
        notes = [m for i in range(3000) for m in (on(60, i), off(60, i + 1))]
        read = read_notes(written([tempo(1_000_000, 0)], notes, ticks_per_beat=3))
        assert read[-1, 0] == 2999 / 3

    def test_hands_that_share_a_channel_do_not_end_each_others_notes(self, written):
        left = [on(60, 0), off(60, 100)]
        right = [on(72, 0), off(72, 50), on(60, 200), off(60, 900)]
        notes = read_notes(written(left, right))
        assert notes[notes[:, 2] == 60, 1] == pytest.approx([0.1, 0.7])

    def test_a_key_two_hands_hold_ends_where_the_second_strikes_it(self, written):
        notes = read_notes(written([on(60, 0), off(60, 400)], [on(60, 300), off(60, 1000)]))
        assert notes[:, :2] == pytest.approx(np.array([[0, 0.3], [0.3, 0.7]]))

    def test_a_key_struck_at_once_by_two_hands_is_one_note(self, written):
        notes = read_notes(written([on(60, 0, 30), off(60, 400)], [on(60, 0, 90), off(60, 300)]))
        assert notes == pytest.approx(rows((0, 0.4, 60, 90)))

    def test_a_key_struck_again_while_down_ends_the_earlier_note(self, written):
        notes = read_notes(written([on(60, 0), on(60, 300), off(60, 800), off(60, 900)]))
        assert notes[:, :2] == pytest.approx(np.array([[0, 0.3], [0.3, 0.5]]))

    def test_unclosed_notes_end_with_the_file_and_are_counted(self, written, caplog):
        with caplog.at_level(logging.WARNING):
            notes = read_notes(written([on(60, 0), on(64, 100), off(64, 200), end(2000)]))
        assert notes[0, 1] == 2.0
        assert "1 notes are never released" in caplog.text

    def test_all_notes_off_lets_go_of_the_keys_of_its_channel(self, written):
        path = written([on(60, 0), on(62, 0, channel=1), control(123, 0, 500), off(62, 900, 1)])
        assert read_notes(path)[:, 1] == pytest.approx([0.5, 0.9])

    def test_all_sound_off_ends_what_rings_under_the_pedal(self, written):
        events = [control(64, 127, 0), on(60, 0), off(60, 200), control(120, 0, 500), end(4000)]
        assert read_notes(written(events))[:, 1] == pytest.approx([0.5])
        events[3] = control(123, 0, 500)  # all notes off: the pedal holds on
        assert read_notes(written(events))[:, 1] == pytest.approx([4.0])

    def test_a_reset_of_controllers_lifts_the_pedal(self, written):
        events = [control(64, 127, 0), on(60, 0), off(60, 200), control(121, 0, 500), end(4000)]
        assert read_notes(written(events))[:, 1] == pytest.approx([0.5])

    def test_drums_are_left_out(self, written):
        path = written([on(36, 0, channel=9), off(36, 100, 9), on(60, 0), off(60, 100)])
        assert read_notes(path)[:, 2].tolist() == [60]

    def test_running_status(self, tmp_path):
        """Bytes by hand: mido writes no running status."""
        track = bytes.fromhex("00 90 3c 50  81 00 3c 00  00 40 50  60 40 00  00 ff 2f 00")
        header = b"MThd" + bytes.fromhex("00000006 0000 0001 01f4")  # 500 ticks a beat
        (tmp_path / "a.mid").write_bytes(header + b"MTrk" + len(track).to_bytes(4, "big") + track)
        notes = read_notes(tmp_path / "a.mid")
        assert notes == pytest.approx(rows((0, 0.128, 60, 80), (0.128, 0.096, 64, 80)))


class TestPedal:
    def test_released_notes_sound_until_the_pedal_rises(self, written):
        path = written(
            [control(SUSTAIN, 64, 0), on(60, 0), off(60, 100), control(SUSTAIN, 63, 800)]
        )
        assert read_notes(path)[0, 1] == 0.8

    def test_or_until_the_key_is_struck_again(self, written):
        path = written(
            [
                control(SUSTAIN, 127, 0),
                on(60, 0),
                off(60, 100),
                on(60, 500),
                off(60, 600),
                control(SUSTAIN, 0, 900),
            ]
        )
        assert read_notes(path)[:, 1] == pytest.approx([0.5, 0.4])

    def test_a_key_still_down_when_the_pedal_rises_sounds_on(self, written):
        path = written(
            [control(SUSTAIN, 127, 0), on(60, 0), control(SUSTAIN, 0, 300), off(60, 700)]
        )
        assert read_notes(path)[0, 1] == 0.7

    def test_a_note_released_before_the_pedal_falls_ends(self, written):
        path = written(
            [on(60, 0), off(60, 100), control(SUSTAIN, 127, 101), control(SUSTAIN, 0, 900)]
        )
        assert read_notes(path)[0, 1] == pytest.approx(0.1)

    def test_a_pedal_that_never_rises_ends_with_the_file_without_a_warning(self, written, caplog):
        notes = read_notes(written([control(SUSTAIN, 127, 0), on(60, 0), off(60, 100), end(900)]))
        assert notes[0, 1] == 0.9
        assert not caplog.records

    def test_each_channel_has_its_pedal_whichever_track_holds_it(self, written):
        pedal = [control(SUSTAIN, 127, 0, channel=1), control(SUSTAIN, 0, 900, channel=1)]
        path = written(pedal, [on(60, 0), on(62, 0, channel=1), off(60, 100), off(62, 100, 1)])
        assert read_notes(path)[:, 1] == pytest.approx([0.1, 0.9])

    def test_a_pedal_that_rises_ends_the_notes_of_its_channel_alone(self, written):
        down = [control(SUSTAIN, 127, 0, channel) for channel in (0, 1)]
        up = [control(SUSTAIN, 0, 300, 0), control(SUSTAIN, 0, 800, 1)]
        notes = [on(60, 0), on(62, 0, channel=1), off(60, 100), off(62, 100, 1)]
        assert read_notes(written(down + notes + up))[:, 1] == pytest.approx([0.3, 0.8])


class TestRefusedFiles:
    def test_damaged_or_foreign_files_say_what_to_do_and_stay(self, tmp_path, written):
        whole = written([on(60, 0), off(60, 500)]).read_bytes()
        damaged = {
            "empty": b"",
            "foreign": b"RIFF" + bytes(60),
            "cut": whole[:-9],
            "no track": whole[:14],
            "data byte": whole.replace(bytes([60, 80]), bytes([60, 200])),
            "key signature": whole.replace(b"\x00\x90", b"\x00\xff\x59\x02\x50\x00\x00\x90"),
        }
        for name, content in damaged.items():
            path = tmp_path / f"{name}.mid"
            path.write_bytes(content)
            with pytest.raises(ValueError, match=rf"{name}\.mid .*leave it out"):
                read_notes(path)
            assert path.read_bytes() == content

    def test_without_notes(self, written):
        with pytest.raises(ValueError, match="holds no notes"):
            read_notes(written([on(36, 0, channel=9), off(36, 100, 9)]))

    def test_separate_pieces(self, written):
        with pytest.raises(ValueError, match=r"type 2, .* save each track"):
            read_notes(written([on(60, 0), off(60, 9)], kind=2))

    def test_smpte_time(self, written):
        with pytest.raises(ValueError, match=r"SMPTE frames .* expected ticks a beat"):
            read_notes(written([on(60, 0), off(60, 9)], ticks_per_beat=-7640))

    def test_missing_file(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"no MIDI file .*nowhere\.mid"):
            read_notes(tmp_path / "nowhere.mid")

    def test_without_mido_the_error_names_the_pip_line(self, monkeypatch, tmp_path):
        monkeypatch.setitem(sys.modules, "mido", None)
        with pytest.raises(ImportError, match=r"pip install 'valle\[midi\]'"):
            read_notes(tmp_path / "a.mid")


ANY_PITCH = st.integers(0, 127)


@st.composite
def pieces(draw, longest: float = 40.0, pitches=ANY_PITCH) -> np.ndarray:
    note = st.tuples(st.floats(0, longest), st.floats(0, 9), pitches, st.integers(1, 127))
    notes = rows(*draw(st.lists(note, max_size=25)))
    return notes[np.lexsort((notes[:, 2], notes[:, 0]))]


def unclipped(draw_notes: np.ndarray) -> np.ndarray:
    """The same notes where nothing needs clipping: on the keyboard, 1 tick to 6 s."""
    notes = draw_notes.copy()
    notes[:, 1] = notes[:, 1].clip(1 / TICKS_PER_SEC, 6)
    return notes


class TestCutting:
    def test_an_excerpt_by_hand(self):
        notes = rows((0, 1, 60, 80), (0.5, 2, 62, 70), (1.0, 0.5, 64, 60), (2.0, 3, 65, 50))
        excerpt = cut_notes(notes, 1.0, 2.25)
        # 60 ends at the start; 62 is held over it; 65 is cut at the end
        assert excerpt == pytest.approx(
            rows((-0.5, 1.75 - 0.0, 62, 70), (0, 0.5, 64, 60), (1.0, 0.25, 65, 50)), abs=1e-9
        )

    @given(pieces(), st.floats(0, 30), st.floats(0.1, 20))
    def test_nothing_sounds_outside_and_all_that_sounds_is_there(self, notes, start, length):
        excerpt = cut_notes(notes, start, start + length)
        check_notes(excerpt)
        assert (excerpt[:, 0] + excerpt[:, 1] <= length + 1e-9).all()
        assert (excerpt[:, 0] + excerpt[:, 1] >= -1e-9).all()
        middle = start + length / 2
        sounding = notes[(notes[:, 0] < middle - 1e-6) & (middle + 1e-6 < notes[:, :2].sum(axis=1))]
        still = excerpt[(excerpt[:, 0] < length / 2) & (length / 2 < excerpt[:, :2].sum(axis=1))]
        assert not np.setdiff1d(sounding[:, 2], still[:, 2]).size

    @given(pieces(), st.integers(0, 20), st.integers(1, 20), st.integers(0, 10), st.integers(1, 12))
    def test_cutting_a_cut_is_cutting_the_whole(self, notes, start, length, inner, inner_length):
        notes[:, :2] = np.round(notes[:, :2] * 64) / 64  # so that sums of seconds are exact
        twice = cut_notes(cut_notes(notes, start, start + length), inner, inner + inner_length)
        end = min(start + length, start + inner + inner_length)
        if start + inner < end:
            assert np.array_equal(twice, cut_notes(notes, start + inner, end))
        else:
            assert len(twice) == 0

    @given(pieces(), st.integers(1, 20), st.integers(1, 20))
    def test_joining_undoes_a_cut(self, notes, length, more):
        notes[:, :2] = np.round(notes[:, :2] * 64) / 64
        # as on a keyboard: no pitch is struck twice at once, none sounds for no time at all
        notes = notes[np.unique(notes[:, [0, 2]], axis=0, return_index=True)[1]]
        notes[:, 1] += 1 / 64
        first, second = cut_notes(notes, 0, length), cut_notes(notes, length, length + more)
        assert np.array_equal(join_notes(first, second, length), cut_notes(notes, 0, length + more))

    def test_joining_other_music_strikes_a_held_note_at_the_boundary(self):
        joined = join_notes(rows((0, 9, 60, 80)), rows((-1, 3, 64, 70), (0.5, 1, 60, 20)), 2.0)
        assert joined == pytest.approx(rows((0, 2, 60, 80), (2, 2, 64, 70), (2.5, 1, 60, 20)))

    def test_onsets_that_become_the_same_are_sorted_by_pitch(self):
        notes = cut_notes(rows((1e-20, 1, 72, 80), (2e-20, 1, 60, 80)), -1, 5)
        assert notes[:, 2].tolist() == [60, 72]

    def test_the_arguments_stay_as_they_were(self):
        notes = rows((0, 5, 60, 80), (1, 5, 62, 80))
        before = notes.copy()
        cut_notes(notes, 0.5, 2)
        join_notes(notes, notes, 3)
        events_of(notes)
        assert np.array_equal(notes, before)

    @pytest.mark.parametrize(("start", "end"), [(2, 2), (3, 1), (float("nan"), 1)])
    def test_an_empty_excerpt_is_refused(self, start, end):
        with pytest.raises(ValueError, match="must end after it starts"):
            cut_notes(rows((0, 1, 60, 80)), start, end)

    def test_an_empty_prompt_is_refused(self):
        with pytest.raises(ValueError, match="longer than 0 s"):
            join_notes(rows(), rows(), 0)

    @pytest.mark.parametrize(
        ("notes", "message"),
        [
            (np.zeros((2, 3)), r"\(N, 4\).*\(2, 3\)"),
            (rows((0, -1, 60, 80)), "duration of 0 s or more"),
            (rows((0, 1, 128, 80)), "note 0 is"),
            (rows((0, 1, 60, 0)), "velocity of 1 to 127"),
            (rows((float("inf"), 1, 60, 80)), "finite times"),
            (rows((1, 1, 60, 80), (0, 1, 60, 80)), "sorted by onset"),
        ],
    )
    def test_what_are_no_notes(self, notes, message):
        for function in (check_notes, events_of, lambda n: cut_notes(n, 0, 1)):
            with pytest.raises(ValueError, match=message):
                function(notes)


class TestEvents:
    def test_ids_by_hand(self):
        events, counts = events_of(
            rows((0.25, 0.5, 60, 80), (2.5, 6.0, 21, 1), (2.5, 1 / 192, 108, 127))
        )
        assert events.dtype == np.int16
        assert events.tolist() == [
            [BOS] * 6,
            # all 4 more than: 60 - 21; (80 - 1) // 2; 96 ticks, of which one is value 0; ...
            [43, 43, 99, 52, 52, 4],
            [4, 4, 1155, 4 + 432, 4 + 96, 5],
            [91, 67, 4, 4, 4 + 96, 5],
            [EOS] * 6,
        ]
        assert not counts

    def test_no_notes_are_an_empty_excerpt(self):
        events, _ = events_of(rows())
        assert events.tolist() == [[BOS] * 6, [EOS] * 6]
        assert notes_of(events).shape == (0, 4)

    @given(pieces(longest=31.9, pitches=st.integers(21, 108)))
    def test_the_notes_come_back_up_to_the_grid(self, notes):
        notes = unclipped(notes)
        events, counts = events_of(notes)
        assert set(counts) <= {"long interval"}  # which loses nothing: bar and position say it too
        back = notes_of(events)
        assert len(back) == len(notes)
        # onsets within half a tick of each other may change places
        order = np.lexsort((notes[:, 2], np.rint(notes[:, 0] * TICKS_PER_SEC)))
        back = back[np.lexsort((back[:, 2], back[:, 0]))]
        assert np.abs(back[:, :2] - notes[order, :2]).max(initial=0) <= HALF_TICK
        assert np.array_equal(back[:, 2], notes[order, 2])
        assert np.abs(back[:, 3] - notes[order, 3]).max(initial=0) <= 1

    @given(pieces(longest=31.9, pitches=st.integers(21, 108)))
    def test_events_of_the_notes_of_events_are_the_events(self, notes):
        events, _ = events_of(notes)
        assert np.array_equal(events_of(notes_of(events))[0], events)

    @given(pieces(longest=60.0), st.floats(0, 5))
    def test_ids_are_in_range_and_every_change_is_counted(self, notes, start):
        notes[:, 0] -= start
        events, counts = events_of(notes)
        ids = events[1:-1].astype(int)
        assert (ids >= [4, 3, 4, 4, 4, 4]).all()
        assert (ids < [entry.num_ids for entry in MIDI_FIELDS]).all()
        tick = np.rint(notes[:, 0] * TICKS_PER_SEC)
        held = tick < 0
        left = np.rint((notes[:, 1] + np.where(held, notes[:, 0], 0)) * TICKS_PER_SEC)
        over, late = held & (left < 1), tick >= MIDI_SEC * TICKS_PER_SEC
        kept = ~over & ~late
        off_keyboard = (notes[:, 2] < 21) | (notes[:, 2] > 108)
        assert counts["too late"] == late.sum()
        assert counts["already over"] == over.sum()
        assert counts["pitch off the keyboard"] == (kept & off_keyboard).sum()
        assert counts["short duration"] == (kept & (left < 1)).sum()
        assert counts["long duration"] == (kept & (left > 6 * TICKS_PER_SEC)).sum()
        gaps = np.diff(np.sort(tick[kept].clip(0)), prepend=0)
        assert counts["long interval"] == (gaps >= 4 * TICKS_PER_SEC).sum()
        assert 0 not in counts.values()
        assert len(ids) == kept.sum()

    @given(pieces(longest=31.9))
    def test_clipped_values_are_the_nearest_there_are(self, notes):
        events, _ = events_of(notes)
        back = notes_of(events)
        assert np.array_equal(np.sort(back[:, 2] % 12), np.sort(notes[:, 2] % 12))  # by octaves
        assert back[:, 1].max(initial=0) <= 6
        assert back[:, 1].min(initial=1) >= 1 / TICKS_PER_SEC
        inside = notes[(notes[:, 2] >= 21) & (notes[:, 2] <= 108), 2]
        assert not np.setdiff1d(inside, back[:, 2]).size

    def test_pitches_move_to_the_nearest_octave_of_the_keyboard(self):
        notes = rows(*((i, 1, pitch, 80) for i, pitch in enumerate([0, 20, 21, 108, 109, 127])))
        assert notes_of(events_of(notes)[0])[:, 2].tolist() == [24, 32, 21, 108, 97, 103]

    def test_held_notes_come_first_with_a_velocity_of_the_past(self):
        events, _ = events_of(rows((-7, 7.5, 64, 90), (-0.5, 0.75, 60, 80), (0.0, 1, 40, 70)))
        assert events[1:-1, 0].tolist() == [60 - 17, 64 - 17, 40 - 17]
        assert events[1:-1, 1].tolist() == [MASK, MASK, 4 + 34]
        assert (events[1:-1, 3:] == 4).all()  # all at the start
        assert notes_of(events) == pytest.approx(
            rows((0, 1, 40, 69), (0, 0.25, 60, 64), (0, 0.5, 64, 64))
        )

    def test_a_stroke_within_half_a_tick_of_the_start_is_no_held_note(self):
        events, _ = events_of(rows((-0.002, 1, 60, 80)))
        assert events[1, 1] == 43

    def test_a_held_note_of_less_than_half_a_tick_is_over(self):
        events, counts = events_of(rows((-1, 1.002, 60, 80)))
        assert len(events) == 2
        assert counts == {"already over": 1}

    def test_the_largest_interval(self):
        ids = {ticks: events_of(rows((ticks / 192, 1, 60, 80))) for ticks in (767, 768)}
        assert [int(events[1, 3]) for events, _ in ids.values()] == [771, 771]
        assert [dict(counts) for _, counts in ids.values()] == [{}, {"long interval": 1}]

    def test_padding_behind_the_end_does_not_count(self):
        events, _ = events_of(rows((0, 1, 60, 80)))
        padded = np.concatenate([events, np.zeros((3, 6), np.int16)])
        assert np.array_equal(notes_of(padded), notes_of(events))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda e: e[:, :5], r"must be \(S, 6\), got the shape \(3, 5\)"),
            (lambda e: e[1:], "begin with a row of BOS"),
            (lambda e: e[:-1], "end with one of EOS"),
            (lambda e: e[:0], "begin with a row of BOS"),
            (lambda e: e + np.array([[0] * 6, [88, 0, 0, 0, 0, 0], [0] * 6]), "row 1 is"),
            (lambda e: np.where(e == e[1, 2], MASK, e), "ids of a note lie in 4 to"),
        ],
    )
    def test_what_are_no_events(self, change, message):
        events, _ = events_of(rows((0, 1, 60, 80)))
        with pytest.raises(ValueError, match=message):
            notes_of(change(events))


class TestAgainstSound:
    RATE = 16000

    def chroma_agreement(self, made: np.ndarray, wanted: np.ndarray) -> float:
        """Mean correlation of the twelve pitch classes over the audible frames."""
        length = min(len(made), len(wanted))
        sounds = (torch.from_numpy(sound[None, :length]) for sound in (made, wanted))
        return float(harmony_scores(*sounds, self.RATE)["chroma"])

    def sound(self, notes: np.ndarray, length_sec: float) -> np.ndarray:
        """Render an excerpt: from where its earliest held note is struck, then cut."""
        before = max(0.0, -notes[:, 0].min())
        played = [Note(o + before, max(d, 0.01), int(p), int(v)) for o, d, p, v in notes]
        whole = render(played, self.RATE)
        start = round(before * self.RATE)
        return whole[start : start + round(length_sec * self.RATE)]

    @pytest.mark.parametrize("style", ["nocturne", "chorale"])
    def test_cut_notes_sound_as_the_cut_sound_does(self, style, tmp_path):
        from make_corpus import write_midi

        piece = compose(5, style)
        write_midi(tmp_path / "piece.mid", piece.notes)
        notes = read_notes(tmp_path / "piece.mid")
        whole = render(piece.notes, self.RATE)
        spans = [(6.3, 12.3), (18.7, 24.7), (27.1, 33.1)]
        wanted = [whole[round(a * self.RATE) : round(b * self.RATE)] for a, b in spans]
        made = [self.sound(cut_notes(notes, a, b), b - a) for a, b in spans]
        assert any((cut_notes(notes, a, b)[:, 0] < -0.1).any() for a, b in spans)
        table = np.array([[self.chroma_agreement(m, w) for m in made] for w in wanted])
        assert np.diag(table).min() > 0.95
        assert table[~np.eye(3, dtype=bool)].max() < 0.7
