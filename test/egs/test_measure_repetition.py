import dataclasses
import json
from pathlib import Path

import measure_repetition
import numpy as np
import pytest
import torch
from conftest import make_model
from measure_repetition import TRUE_MUSIC, get_parser, get_settings, join_cuts
from repetition import (
    Loop,
    entropy,
    find_loops,
    longest_run,
    measure,
    repeated_ngrams,
    share_heard_often,
    share_in_loops,
)
from repetition_tables import (
    COLUMNS,
    Row,
    drift_table,
    group_segments,
    measure_row,
    whole_table,
    with_error,
)

from valle.data import CodecInfo, load_cuts
from valle.data.storage import cut_windows, make_recording, whole_cut, write_codes, write_cuts
from valle.modules.sampling import Sampling, sample_unlike
from valle.utils.checkpoint import save_checkpoint

RATE = 50.0


def random_codes(num_frames: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1024, size=num_frames)


def with_loop(num_frames: int, start: int, period: int, rounds: float) -> np.ndarray:
    """Codes that never return, but for one loop."""
    codes = np.arange(num_frames) + 1000
    length = round(period * rounds)
    codes[start : start + length] = np.arange(length) % period
    return codes


# n-grams


def test_ngrams_of_a_melody_heard_twice_are_repeated_once():
    melody = np.arange(20)
    codes = np.concatenate([melody, melody])
    # 17 4-grams within each melody and 3 across the seam
    assert repeated_ngrams(codes, 4, horizon=40) == 17 / 37
    assert repeated_ngrams(codes, 8, horizon=40) == 13 / 33


def test_an_ngram_is_forgotten_beyond_the_horizon():
    codes = np.concatenate([np.arange(20), np.arange(20)])
    assert repeated_ngrams(codes, 4, horizon=20) > 0
    assert repeated_ngrams(codes, 4, horizon=19) == 0


def test_the_horizon_counts_from_the_latest_time_it_was_heard():
    codes = np.concatenate([np.arange(10)] * 3)
    assert repeated_ngrams(codes, 4, horizon=10) == 17 / 27  # all but the first 10


def test_single_codes_in_another_order_repeat_no_ngram():
    codes = np.concatenate([np.arange(20), np.arange(20)[::-1]])
    assert repeated_ngrams(codes, 1, horizon=40) == 0.5
    assert repeated_ngrams(codes, 2, horizon=40) == 0


def test_ngrams_of_a_frozen_code():
    assert repeated_ngrams(np.full(100, 7), 4, horizon=1) == 96 / 97


def test_too_few_frames_for_an_ngram():
    assert repeated_ngrams(np.array([1, 1, 1]), 4, horizon=10) == 0


# Entropy


def test_entropy_is_that_of_the_frequencies_in_nats():
    assert entropy(np.array([3, 3, 3, 9])) == pytest.approx(
        -0.75 * np.log(0.75) - 0.25 * np.log(0.25)
    )
    assert entropy(np.arange(64).repeat(3)) == pytest.approx(np.log(64))
    assert entropy(np.full(10, 5)) == 0


# What repetition-aware sampling objects to


def test_a_code_is_heard_often_above_the_threshold_only():
    often_at = np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 8])
    assert share_heard_often(often_at, window=10, threshold=0.1) == 1.0  # 2 of 10
    assert share_heard_often(often_at, window=10, threshold=0.2) == 0.0
    once = np.array([8, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9])
    assert share_heard_often(once, window=10, threshold=0.1) == 0.0


def test_the_window_ends_before_the_frame():
    codes = np.array([5, 5, *range(10, 20), 5])
    assert share_heard_often(codes, window=10, threshold=0.0) == 0.0
    assert share_heard_often(codes, window=12, threshold=0.0) == 1.0
    assert share_heard_often(codes, window=13, threshold=0.0) == 0.0  # nothing left to judge


def test_it_is_the_rule_of_the_sampler():
    """A code is heard often where the sampler, bound to draw it, draws another."""
    codes = np.random.default_rng(0).integers(6, size=300)
    redrawn = 0
    for t in range(10, 300):
        logits = torch.zeros(1, 6)
        logits[0, codes[t]] = 100.0
        recent = torch.as_tensor(codes[None, t - 10 : t])
        drawn = sample_unlike(
            logits, Sampling(repetition_window=10), torch.full((1, 2), 0.5), recent
        )
        redrawn += int(drawn) != codes[t]
    assert share_heard_often(codes, 10, 0.1) == pytest.approx(redrawn / 290)


# Loops


@pytest.mark.parametrize(("start", "period", "rounds"), [(0, 5, 4), (37, 12, 2), (20, 7, 6.5)])
def test_a_loop_is_found_where_it_is(start, period, rounds):
    codes = with_loop(100, start, period, rounds)
    loops = list(find_loops(codes, 50))
    assert Loop(start, start + round(period * rounds), period) in loops
    # multiples of the period say nothing else
    assert {(loop.start, loop.stop) for loop in loops} == {(start, start + round(period * rounds))}
    assert all(loop.period % period == 0 for loop in loops)


def test_a_loop_must_come_round_twice():
    assert not list(find_loops(with_loop(100, 30, 10, 1.9), 50))
    assert list(find_loops(with_loop(100, 30, 10, 2), 50)) == [Loop(30, 50, 10)]


def test_periods_beyond_the_longest_are_no_loops():
    codes = with_loop(100, 0, 20, 4)
    assert not list(find_loops(codes, 19))
    assert list(find_loops(codes, 20)) == [Loop(0, 80, 20)]


def test_a_wrong_code_ends_a_loop():
    codes = np.arange(60) % 5
    codes[30] = 99
    assert {(loop.start, loop.stop) for loop in find_loops(codes, 5)} == {(0, 30), (31, 60)}


def test_loops_in_random_codes_are_rare():
    codes = random_codes(3000)
    loops = list(find_loops(codes, 100))
    assert all(loop.period <= 2 for loop in loops)
    assert share_in_loops(loops, 3000, 50) == 0


def test_frames_in_two_loops_count_once():
    loops = [Loop(0, 50, 5), Loop(40, 100, 7), Loop(150, 160, 1)]
    assert share_in_loops(loops, 200, 50) == 0.5
    assert share_in_loops(loops, 200, 10) == 0.55
    assert share_in_loops([], 200, 10) == 0


def test_longest_run():
    assert longest_run(np.array([1, 1, 2, 2, 2, 1, 1])) == 3
    assert longest_run(np.array([2, 1, 1, 1, 1])) == 4
    assert longest_run(np.arange(5)) == 1
    assert longest_run(np.array([4])) == 1


# All of them


def test_measures_tell_a_frozen_code_a_loop_and_random_codes_apart():
    num_frames = 1000
    frozen = measure(np.full(num_frames, 3), RATE)
    looped = measure(np.arange(num_frames) % 40, RATE)
    fresh = measure(random_codes(num_frames), RATE)
    assert frozen.keys() == looped.keys() == fresh.keys() == COLUMNS.keys()
    assert frozen["longest_run_sec"] == frozen["longest_loop_sec"] == num_frames / RATE
    assert looped["longest_run_sec"] == 1 / RATE
    assert looped["longest_loop_sec"] == num_frames / RATE
    assert frozen["in_loops"] == looped["in_loops"] == 1
    assert (frozen["frozen"], looped["frozen"]) == (1, 0)
    assert frozen["often"] == 1
    assert looped["often"] == fresh["in_loops"] == fresh["repeated_8grams"] == 0
    assert frozen["entropy"] == 0
    assert looped["entropy"] == pytest.approx(np.log(40))
    assert looped["distinct"] == 40
    assert looped["repeated_4grams"] > 0.95 > 0.01 > fresh["repeated_4grams"]


def test_seconds_follow_the_frame_rate():
    codes = with_loop(1000, 100, 20, 3)
    assert measure(codes, 50.0)["longest_loop_sec"] == 60 / 50
    assert measure(codes, 100.0)["longest_loop_sec"] == 60 / 100
    assert measure(codes, 50.0)["in_loops"] == 60 / 1000
    assert measure(codes, 100.0)["in_loops"] == 0  # less than a second
    held = np.concatenate([random_codes(940), np.full(60, 7)])
    assert measure(held, 50.0)["frozen"] == 60 / 1000
    assert measure(held, 100.0)["frozen"] == 0
    slow = np.arange(1000) % 150
    assert measure(slow, 50.0)["in_loops"] == 0  # a round of 3 s
    assert measure(slow, 100.0)["in_loops"] == 1


def test_segments_are_measured_by_themselves():
    codes = np.concatenate([random_codes(100), np.full(100, 7), random_codes(130, seed=1)])
    row = measure_row([codes, codes[:250]], 150, 100, RATE)
    assert [len(segments) for segments in row.segments] == [2, 2]  # as long as all last
    assert [segment["distinct"] > 1 for segment in row.segments[0]] == [True, False]
    assert row.segments[0][1]["longest_run_sec"] == 100 / RATE
    assert row.whole[0]["longest_run_sec"] == 50 / RATE
    assert row.whole[0] == row.whole[1]


# Tables


def test_mean_and_standard_error():
    assert with_error([1.0, 2.0, 3.0], "{:.2f}") == "2.00 ± 0.58"
    assert with_error([0.5], "{:.0%}") == "50%"
    assert with_error([1.0, 3.0], "{:.1f}", sign="+") == "+2.0 ± 1.0"


def test_drift_is_late_less_early():
    def row(*values: float) -> Row:
        segments = [dict.fromkeys(COLUMNS, value) for value in values]
        return Row([segments[0]], [segments])

    rows = {TRUE_MUSIC: row(1.0, 2.0), "made": row(5.0, 4.0, 3.0, 2.0)}
    lines = drift_table(rows, "entropy", 10.0).splitlines()
    assert lines[0] == "| entropy (nats) | 0-10 s | 10-20 s | 20-30 s | 30-40 s | last - first |"
    assert lines[2] == f"| {TRUE_MUSIC} | 1.00 | 2.00 | - | - | +1.00 |"
    assert lines[3] == "| made | 5.00 | 4.00 | 3.00 | 2.00 | -3.00 |"
    assert len({line.count("|") for line in lines}) == 1
    lines = whole_table(rows).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    # many segments: averaged side by side, and true music stops within the first group
    rows["made"] = row(*range(13))
    lines = drift_table(rows, "entropy", 10.0).splitlines()
    assert lines[2].split(" | ")[1:] == ["-"] * 5 + ["- |"]
    assert lines[3].split(" | ")[1:] == ["1.00", "4.00", "7.00", "10.00", "12.00", "+11.00 |"]
    assert len({line.count("|") for line in lines}) == 1


@pytest.mark.parametrize("num_segments", [1, 5, 6, 7, 30, 31])
def test_groups_hold_each_segment_once(num_segments):
    groups = group_segments(num_segments)
    assert len(groups) <= 6
    assert [i for g in groups for i in range(g.start, g.stop)] == list(range(num_segments))


# The whole script


def settings_of(*flags: str) -> dict[str, dict]:
    return get_settings(get_parser().parse_args(["--checkpoint", "x.pt", *flags]), RATE)


def test_settings_are_all_combinations_and_greedy_is_there_once():
    settings = settings_of(
        *("--temperature", "0", "0.8", "--top-k", "0", "50", "--top-p", "0.9"),
        *("--repetition-window", "0", "10", "--stride", "2", "--window", "10"),
    )
    assert list(settings) == [
        "greedy",
        "greedy, repetition-aware 10",
        "temperature 0.8, top-p 0.9",
        "temperature 0.8, top-p 0.9, repetition-aware 10",
        "temperature 0.8, top-k 50, top-p 0.9",
        "temperature 0.8, top-k 50, top-p 0.9, repetition-aware 10",
    ]
    last = settings["temperature 0.8, top-k 50, top-p 0.9, repetition-aware 10"]
    assert {"temperature": 0.8, "top_k": 50, "top_p": 0.9, "repetition_window": 10}.items() < (
        last.items()
    )
    assert {"stride": 100, "window": 500, "max_new_tokens": 3000, "ignore_eos": True}.items() < (
        last.items()
    )
    assert len(settings_of("--temperature", "1", "--top-k", "0", "--stride", "2", "5")) == 4


def test_a_setting_that_cannot_be_is_refused_before_any_is_run():
    with pytest.raises(ValueError, match="stride 600 must be less than window 500"):
        settings_of("--stride", "2", "12")


@pytest.fixture(scope="module")
def tokens(tmp_path_factory, codec_info) -> tuple[Path, dict[str, np.ndarray]]:
    """Recordings of 5, 4 and 0.5 s, cut into 2 s; and their codes."""
    folder = tmp_path_factory.mktemp("long")
    (folder / "tokens").mkdir()
    rng = np.random.default_rng(0)
    codes, cuts = {}, []
    for name, num_frames in (("a", 250), ("b", 200), ("short", 25)):
        codes[name] = rng.integers(16, size=(num_frames, 3))
        write_codes(folder / "tokens", name, codes[name])
        recording = make_recording(name, f"{name}.wav", num_frames * 160, 8000, 1)
        whole = whole_cut(recording, "tokens", name, num_frames, codec_info)
        cuts += cut_windows(whole, codec_info, 100, 10)
    write_cuts(folder / "cuts_test.jsonl.gz", cuts[::-1])  # in no good order
    return folder, codes


@pytest.fixture
def checkpoint(tmp_path, codec_info) -> Path:
    return write_checkpoint(tmp_path / "model.pt", codec_info)


def write_checkpoint(path: Path, codec: CodecInfo) -> Path:
    model = make_model(num_audio_tokens=16)
    save_checkpoint(
        path, model, {"config": dataclasses.asdict(model.config), "codec": codec.to_dict()}
    )
    return path


def run(checkpoint: Path, folder: Path, *flags: str) -> dict:
    """Run the script; return what it writes."""
    output = checkpoint.with_name("repetition.json")
    measure_repetition.main(
        [
            *("--checkpoint", str(checkpoint), "--manifest-dir", str(folder)),
            *("--prompt-duration", "1", "--max-duration", "4", "--segment-duration", "1"),
            *("--window", "2", "--top-k", "0", "--output-file", str(output), "--device", "cpu"),
            *flags,
        ]
    )
    return json.loads(output.read_text())


def test_the_cuts_of_a_recording_are_joined(tokens):
    folder, codes = tokens
    cuts = [cut for cut in load_cuts(folder / "cuts_test.jsonl.gz") if cut.recording_id == "a"]
    assert len(cuts) == 3
    np.testing.assert_array_equal(join_cuts(cuts), codes["a"])
    with_gap = [cut for cut in cuts if cut.start != 2.0]
    np.testing.assert_array_equal(join_cuts(with_gap), codes["a"][:100])


def test_true_music_is_what_follows_the_prompt(tokens, checkpoint):
    folder, codes = tokens
    rows = run(checkpoint, folder, "--temperature", "1", "--repetition-window", "0")
    assert list(rows) == [TRUE_MUSIC, "temperature 1"]
    # both prompts, the later recording first in the manifest; 3 s are left of the shorter one
    expected = [measure(codes[name][50:200, 0], RATE) for name in ("b", "a")]
    assert rows[TRUE_MUSIC]["whole"] == expected
    assert [len(rows[name]["segments"][0]) for name in rows] == [3, 4]
    assert len(rows["temperature 1"]["whole"]) == 2


def test_the_same_command_gives_the_same_numbers(tokens, checkpoint, capsys):
    flags = ("--temperature", "0.8", "--repetition-window", "0", "10", "--num-prompts", "1")
    rows = run(checkpoint, tokens[0], *flags)
    first = capsys.readouterr().out
    assert rows == run(checkpoint, tokens[0], *flags)
    assert first == capsys.readouterr().out
    assert "The first 3.0 s of each continuation" in first
    assert rows != run(checkpoint, tokens[0], *flags, "--seed", "7")
    often = [np.mean([values["often"] for values in row["whole"]]) for row in rows.values()]
    assert often[2] < often[1]  # what repetition-aware sampling is for


def fails(capsys, checkpoint: Path, folder: Path, *flags: str) -> str:
    with pytest.raises(SystemExit) as exit_info:
        run(checkpoint, folder, *flags)
    assert exit_info.value.code == 1
    assert not checkpoint.with_name("repetition.json").exists()
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--num-prompts", "0"), "--num-prompts must be 1 or more, got 0"),
        (("--prompt-duration", "0"), "--prompt-duration must be above 0 s, got 0"),
        (("--segment-duration", "-1"), "--segment-duration must be above 0 s, got -1"),
        (("--max-duration", "0.5"), "--max-duration 0.5 s is less than one segment of 1 s"),
        (("--prompt-duration", "4.5"), "none of 3 recordings holds 275 frames on end"),
        (("--temperature", "-1"), "temperature must be 0 (greedy) or more, got -1"),
        (("--split", "validation"), "cuts_validation.jsonl.gz"),
    ],
)
def test_errors_name_their_cause(tokens, checkpoint, capsys, flags, message):
    assert message in fails(capsys, checkpoint, tokens[0], *flags)


def test_tokens_of_another_codec_are_refused(tokens, tmp_path, codec_info, capsys):
    other = dataclasses.replace(codec_info, fingerprint="0" * 16)
    checkpoint = write_checkpoint(tmp_path / "other.pt", other)
    assert f"tokens in {tokens[0]}" in fails(capsys, checkpoint, tokens[0])
