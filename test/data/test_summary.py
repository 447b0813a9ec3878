import gzip
import json
import shutil
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lhotse import CutSet, MonoCut
from tiny_cuts import CODEC, write_manifest

from valle.data.datamodule import DurationFilter
from valle.data.jsonl import write_jsonl
from valle.data.manifest import load_cuts
from valle.data.storage import write_cuts
from valle.data.summary import Summary, fingerprint, promised_cuts, read_summary, summary_path


@pytest.fixture
def manifest(tmp_path):
    return write_manifest(tmp_path, [31.237, 10.005, 3.0, 15.0], window_sec=7, minimum_sec=2)


def test_the_same_lines_make_the_same_bytes_whenever_and_wherever(tmp_path, monkeypatch):
    items = [{"id": "ä", "n": n} for n in range(100)]
    for name, now in (("a/x.jsonl.gz", 1e9), ("b/y.jsonl.gz", 1.5e9), ("c/z.jsonl", 1e9)):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        assert write_jsonl(tmp_path / name, items) == 100
    first, second = ((tmp_path / name).read_bytes() for name in ("a/x.jsonl.gz", "b/y.jsonl.gz"))
    assert first == second
    plain = (tmp_path / "c/z.jsonl").read_bytes()
    assert gzip.decompress(first) == plain
    assert [json.loads(line) for line in plain.decode().splitlines()] == items


def test_manifests_and_summaries_have_the_same_bytes_again(tmp_path):
    first, second = (write_manifest(tmp_path / name, [5.0, 31.237]) for name in "ab")
    assert first.read_bytes() == second.read_bytes()
    assert summary_path(first).read_bytes() == summary_path(second).read_bytes()


def of_lengths(seconds: list[float]) -> Summary:
    summary = Summary()
    cuts = [MonoCut(str(i), start=0, duration=sec, channel=0) for i, sec in enumerate(seconds)]
    assert list(summary.counted(cuts)) == cuts
    return summary


lengths = st.one_of(
    st.floats(0.01, 30), st.integers(1, 3000).map(lambda n: n / 100), st.just(15.00000001)
)
bounds = st.one_of(st.floats(0, 30), st.integers(0, 300).map(lambda n: n / 10))


@settings(max_examples=300, deadline=None)
@given(st.lists(lengths, min_size=1, max_size=40), bounds, bounds)
def test_what_a_summary_tells_is_exact(seconds, low, high):
    keeps = DurationFilter(low, high)
    kept = [sec for sec in seconds if keeps(MonoCut("x", 0, sec, 0))]
    told = of_lengths(seconds).between(low, high)
    if told is not None:
        assert told == (len(kept), pytest.approx(sum(kept)))
    if 100 * low == round(100 * low) and 100 * high == round(100 * high):
        assert told is not None, "bounds of whole hundredths never need the manifest"


def test_a_bound_within_a_bin_cannot_be_told():
    summary = of_lengths([5.001, 5.009, 7.0])
    assert summary.between(5.0, 8) == (3, pytest.approx(17.01))
    assert summary.between(5.005, 8) is None
    assert summary.between(5.01, 8) == (1, 7.0)


def test_a_bound_of_whole_hundredths_can_always_be_told():
    summary = of_lengths([15.0, 15.00000001, 15.004, 14.996])
    assert summary.between(5, 15) == (3, pytest.approx(44.996))
    assert summary.between(15, 20) == (3, pytest.approx(45.004))


def test_size_does_not_grow_with_the_hours():
    few, many = (of_lengths([n % 1500 / 100 for n in range(count)]) for count in (1500, 6000))
    assert len(few.bins) == len(many.bins)
    assert many.num_cuts == 6000


def test_a_summary_is_read_back_and_follows_a_copy(manifest, tmp_path):
    summary = read_summary(manifest)
    cuts = list(load_cuts(manifest))
    assert summary.num_cuts == len(cuts) == len(load_cuts(manifest))
    assert summary.between(0, 100)[1] == pytest.approx(sum(cut.duration for cut in cuts))
    assert summary.codec_info() == CODEC
    copied = tmp_path / "copy" / manifest.name
    copied.parent.mkdir()
    shutil.copyfile(manifest, copied)
    assert read_summary(copied) is None
    shutil.copyfile(summary_path(manifest), summary_path(copied))
    assert read_summary(copied) == summary


def test_a_summary_of_another_manifest_is_not_believed(manifest):
    assert read_summary(manifest) is not None
    fewer = list(load_cuts(manifest))[1:]
    CutSet.from_cuts(fewer).to_file(manifest)  # by lhotse, which knows nothing of summaries
    assert read_summary(manifest) is None
    assert len(load_cuts(manifest)) == len(fewer)
    assert promised_cuts(manifest) == len(fewer) + 1


def test_the_same_size_with_other_content_is_noticed(tmp_path):
    path = tmp_path / "cuts_train.jsonl.gz"
    found = set()
    for content in (b"abcd" * 20, b"abce" * 20):
        path.write_bytes(gzip.compress(content, mtime=0))
        found.add((path.stat().st_size, fingerprint(path)))
    (size, one), (other_size, other) = found
    assert size == other_size
    assert one != other


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"version": 0}', "\udc80"])
def test_what_is_no_summary_is_passed_over(manifest, content):
    summary_path(manifest).write_text(content, errors="surrogateescape")
    assert read_summary(manifest) is None
    assert promised_cuts(manifest) is None
    summary_path(manifest).unlink()
    assert promised_cuts(manifest) is None


def test_mixed_codecs_and_empty_manifests_leave_no_summary(tmp_path, manifest):
    other = write_manifest(tmp_path / "other", [3.0], codec=replace(CODEC, fingerprint="ff"))
    write_cuts(manifest, [*load_cuts(manifest), *load_cuts(other)])
    assert not summary_path(manifest).exists()
    write_cuts(manifest, load_cuts(other))
    assert summary_path(manifest).exists()
    write_cuts(manifest, [])
    assert not summary_path(manifest).exists()
