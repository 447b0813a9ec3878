import dataclasses
import json
from pathlib import Path

import measure_repetition
import numpy as np
import pytest
from conftest import make_model
from measure_repetition import TRUE_MUSIC, get_parser, get_settings, join_cuts
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
from valle.evaluation.repetition import measure
from valle.utils.checkpoint import save_checkpoint

RATE = 50.0


def random_codes(num_frames: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1024, size=num_frames)


# Rows


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
