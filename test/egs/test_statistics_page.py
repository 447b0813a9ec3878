"""The page of statistics: its numbers against corpora of which all is known."""

import argparse
import base64
import gzip
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import statistics_page
from manifest_report import read_folder
from manifest_tables import duration_table, never_used, quantizer_table, split_table
from recordings_report import level_table, read_recordings, skipped_table
from statistics_plots import draw_shares
from tiny_cuts import write_manifest

from valle.utils.html import Section, page
from valle.utils.plot import import_pyplot
from valle.utils.tables import as_text


@pytest.fixture
def folder(tmp_path) -> Path:
    """36 minutes in train, 12 in validation; codes 0 to 3 in turn, but for the last quantizer."""
    write_manifest(tmp_path, [1200.0, 960.0], window_sec=15, minimum_sec=5)
    write_manifest(tmp_path, [720.0], "validation", window_sec=15, minimum_sec=5)
    for path in (tmp_path / "tokens").iterdir():
        codes = np.arange(np.load(path).size).reshape(-1, 4) // 4 % 4
        codes[:, 3] = 7
        np.save(path, codes.astype(np.int16))
    return tmp_path


RECORDING = {
    "num_frames": 50,
    "num_samples": 44100,
    "sampling_rate": 44100,
    "num_channels": 2,
    "peak_db": -1.0,
    "rms_db": -20.0,
    "silence_share": 0.25,
    "clipped_share": 0.0,
    "trimmed_sec": 1.5,
}


def write_recordings(folder: Path) -> None:
    lines = [
        RECORDING | {"id": "a", "path": "a.wav", "split": "train"},
        RECORDING | {"id": "b", "path": "b.wav", "split": "train", "rms_db": -30.0},
        RECORDING | {"id": "c", "path": "c.wav", "split": "train", "rms_db": -22.0},
        RECORDING | {"id": "d", "path": "d.wav", "split": "test", "peak_db": None},
        {"id": "e", "path": "e.wav", "skipped": "damaged"},
        {"id": "f", "path": "f.wav", "skipped": "silent"},
        {"id": "g", "path": "g.wav", "skipped": "silent"},
    ]
    (folder / "recordings.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def rows_of(table) -> list[list[str]]:
    return [list(row) for row in table.rows]


def test_tables_say_what_is_in_the_manifests(folder):
    reports = read_folder(folder)
    assert rows_of(split_table(reports)) == [
        ["train", "144", "0.600", "2", "15.00"],
        ["validation", "48", "0.200", "1", "15.00"],
    ]
    assert rows_of(duration_table(reports)) == [
        ["recordings", "train", "960.0", "1080.0", "1200.0"],
        ["recordings", "validation", "720.0", "720.0", "720.0"],
        ["cuts", "train", "15.0", "15.0", "15.0"],
        ["cuts", "validation", "15.0", "15.0", "15.0"],
    ]
    codes = rows_of(quantizer_table(reports))
    assert codes[0] == ["train", "1", "108000", "0-3", "4", "93.8%", "2.00", "4.0"]
    assert codes[3] == ["train", "4", "108000", "7-7", "1", "98.4%", "0.00", "1.0"]
    assert [row[:2] for row in codes[4:]] == [["validation", str(q)] for q in range(1, 5)]
    assert never_used(np.array([3, 0, 1]), 4) == 0.5


def test_levels_are_counted_by_split_and_skips_by_reason(folder):
    assert read_recordings(folder) is None
    write_recordings(folder)
    report = read_recordings(folder)
    levels = rows_of(level_table(report))
    assert ["peak, dB of full scale", "train", "-1.0", "-1.0", "-1.0"] in levels
    assert ["loudness (rms), dB of full scale", "train", "-30.0", "-22.0", "-20.0"] in levels
    assert ["share of silence", "test", "25.00%", "25.00%", "25.00%"] in levels
    assert not [row for row in levels if row[:2] == ["peak, dB of full scale", "test"]]
    assert rows_of(skipped_table(report)) == [["damaged", "1"], ["silent", "2"]]
    assert report.kinds == {(44100, 2): 4}
    assert report.trimmed_sec == 6.0


@pytest.mark.parametrize("line", ["half a li", '{"id": "a", "path": "a.wav"}', "[]"])
def test_a_list_of_recordings_that_is_none_is_named(folder, line):
    write_recordings(folder)
    with open(folder / "recordings.jsonl", "a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=r"recordings.jsonl, line 8: .*prepare again"):
        read_recordings(folder)


def make_page(folder: Path, monkeypatch, capsys, *flags: object) -> tuple[str, str]:
    """What the program prints, and the page that it writes."""
    arguments = ["statistics_page.py", "--manifest-dir", folder, *flags]
    monkeypatch.setattr(sys, "argv", [str(argument) for argument in arguments])
    statistics_page.main()
    return capsys.readouterr().out, (folder / "statistics.html").read_text(encoding="utf-8")


def table_flags(folder: Path) -> tuple[object, ...]:
    table = folder / "table.csv"
    table.write_text("file,piece\ntrain-0,A <b> & c\nvalidation-0,a <B>  & c\ntrain-1,other\n")
    return ("--split-csv", table, "--csv-file-column", "file", "--csv-group-column", "piece")


def test_the_page_is_whole_and_needs_nothing_else(folder, monkeypatch, capsys):
    write_recordings(folder)
    flags = table_flags(folder)
    out, html = make_page(folder, monkeypatch, capsys, *flags)
    assert f"{folder / 'statistics.html'}" in out
    pictures = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', html)
    assert len(pictures) == 4
    assert all(b"</svg>" in base64.b64decode(picture) for picture in pictures)
    assert not re.search(r"<script|<link|(src|href)=\"(?!data:)", html)
    for number in ("0.600", "93.8%", "-22.0", "44100 Hz", "damaged"):
        assert f"<td>{number}</td>" in html
        assert number in out
    assert "1 of 2 (train+validation 1)" in out
    assert "<td>a &lt;b&gt; &amp; c</td>" in html
    # the same corpus, the same page, byte for byte
    assert make_page(folder, monkeypatch, capsys, *flags)[1] == html


def test_a_damaged_manifest_hides_no_other(folder, monkeypatch, capsys):
    path = folder / "cuts_validation.jsonl.gz"
    lines = gzip.decompress(path.read_bytes()).splitlines()
    path.write_bytes(gzip.compress(b"\n".join([*lines[:3], b"null", *lines[3:]])))
    out, _ = make_page(folder, monkeypatch, capsys)
    assert "1 problems were met: see validate_manifests.py." in out
    assert re.search(r"^train +144 ", out, re.MULTILINE)
    assert re.search(r"^validation +3 ", out, re.MULTILINE)


def test_manifests_from_elsewhere_have_a_shorter_page(folder, monkeypatch, capsys):
    _, html = make_page(folder, monkeypatch, capsys)
    assert "there is no recordings.jsonl beside the manifests" in html
    assert html.count("<img") == 3
    assert "Pieces" not in html


def test_without_matplotlib_the_tables_are_left(folder, monkeypatch, capsys, caplog):
    write_recordings(folder)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    _, html = make_page(folder, monkeypatch, capsys)
    assert "<img" not in html
    assert "<td>0.600</td>" in html
    assert "pip install 'valle[plot]'" in caplog.text


def test_mistakes_end_in_one_line(folder, monkeypatch, capsys):
    with pytest.raises(SystemExit, match=r"error: no cuts_train.jsonl.gz"):
        make_page(folder / "tokens", monkeypatch, capsys)
    flags = (*table_flags(folder)[:-1], "opus")
    with pytest.raises(SystemExit, match=r"error: .* has no column opus"):
        make_page(folder, monkeypatch, capsys, *flags)
    (folder / "cuts_train.jsonl.gz").write_bytes(b"")
    args = argparse.Namespace(manifest_dir=folder)
    with pytest.raises(ValueError, match="holds no cuts that can be read"):
        statistics_page.describe_corpus(args)


def test_histograms_are_in_per_cent_of_each_split():
    _, axis = import_pyplot().subplots()
    draw_shares(axis, {"train": [1, 1, 1, 9], "test": [9]}, {"train": [2, 0, 0, 6], "test": [5]})
    shares = {tuple(patch.get_data().values[[0, -1]]) for patch in axis.patches}
    assert shares == {(25.0, 75.0), (0.0, 100.0)}


def test_text_stands_in_columns():
    table = split_table({})
    assert as_text(table).split() == ["split", "cuts", "hours", "recordings", "seconds/cut"]
    lines = as_text(table._replace(rows=[["train", "1", "22.5", "3", "4"]])).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[1].startswith("train  ")


def test_a_section_without_rows_has_no_table():
    empty = split_table({})
    assert "<table" not in page("t", [Section("s", "", [empty])])
    assert "cuts" not in statistics_page.section_text(Section("s", "note", [empty]))


def test_a_corpus_that_lost_its_tokens_is_shown_all_the_same(folder, monkeypatch, capsys):
    for path in (folder / "tokens").iterdir():
        path.unlink()
    out, html = make_page(folder, monkeypatch, capsys)
    assert "192 problems were met: see validate_manifests.py" in out
    assert html.count("<img") == 3
