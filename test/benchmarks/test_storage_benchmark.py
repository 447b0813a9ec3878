"""The storage benchmark at a tiny size: each way holds the same, and what is counted is there."""

import io
import json
from contextlib import redirect_stdout

import numpy as np
import pytest
import storage
from load_data import write_tokens
from storage_formats import WAYS, WRITERS, writable, write_dummy_manifest

from valle.data import cut_codes, load_cuts
from valle.data.manifest import manifest_path
from valle.data.summary import read_summary, summary_path

SIZES = {"cuts": 60, "reads": 20, "workers": 0, "batches": 1}
FLAGS = [
    "--probe-mb",
    "1",
    "--runs",
    "1",
    *(part for k, v in SIZES.items() for part in (f"--num-{k}", str(v))),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """All ways of storing 40 cuts."""
    folder = tmp_path_factory.mktemp("tokens")
    source = write_tokens(folder / "numpy", 40)
    for name in writable():
        WRITERS[name](source, folder / name)
    return folder


@pytest.mark.parametrize("name", list(WAYS))
def test_each_way_holds_the_same_cuts(folder, name):
    place, reading = WAYS[name]
    if place not in ("numpy", *writable()):
        pytest.skip("needs h5py")
    expected = list(load_cuts(folder / "numpy" / "cuts_train.jsonl.gz"))
    for ours, theirs in zip(expected, reading(folder / place), strict=True):
        assert (ours.id, ours.start, ours.duration) == (theirs.id, theirs.start, theirs.duration)
        np.testing.assert_array_equal(cut_codes(ours), cut_codes(theirs))


def test_speeds_and_sizes_in_a_table(tmp_path):
    file = tmp_path / "storage.json"
    flags = [*FLAGS, "--skip", "start", "manifests", "--output-file", str(file)]
    with redirect_stdout(io.StringIO()) as printed:
        storage.main(flags)
    rows = {row["name"]: row for row in json.loads(file.read_text())["ways"]}
    assert set(rows) == {
        name for name, (place, _) in WAYS.items() if place in ("numpy", *writable())
    }
    for name, row in rows.items():
        assert f"| {name} |" in printed.getvalue()
        assert min(row["in_order"], row["megabytes"], row["num_files"]) > 0
        assert (row["at_random"] is None) == (name == storage.FROM_THE_FRONT)
    assert rows["numpy, a file a cut"]["num_files"] >= 60 > rows["Shar"]["num_files"]


def test_cuts_are_drawn_from_all_over(folder):
    cuts = load_cuts(folder / "numpy" / "cuts_train.jsonl.gz")
    all_ids = [cut.id for cut in cuts]
    drawn = [cut.id for cut in storage.draw(cuts, 10)]
    assert sorted(drawn) == sorted(all_ids[::4])
    assert drawn != sorted(drawn, key=all_ids.index)


@pytest.mark.parametrize("layout", storage.LAYOUTS)
def test_a_start_is_measured_on_dummy_entries(tmp_path, layout, monkeypatch):
    monkeypatch.setattr("storage_formats.SHARD_SIZE", 30)
    write_dummy_manifest(tmp_path, 100, shards=layout == "shards")
    path = manifest_path(tmp_path, "train")
    assert path.is_dir() == (layout == "shards")
    cuts = list(load_cuts(path))
    assert len({cut.id for cut in cuts}) == len(cuts) == read_summary(path).num_cuts == 100
    flags = [*FLAGS, "--memory-of", layout, "--measured-folder", str(tmp_path)]
    for _ in range(2):  # with a summary and without
        with redirect_stdout(io.StringIO()) as printed:
            storage.main(flags)
        found = json.loads(printed.getvalue())
        assert min(found["survey_sec"], found["drawing_sec"]) > 0
        summary_path(path).unlink(missing_ok=True)


def test_the_first_batch_is_measured(folder):
    flags = [*FLAGS, "--memory-of", "Shar", "--measured-folder", str(folder / "shar")]
    with redirect_stdout(io.StringIO()) as printed:
        storage.main(flags)
    assert json.loads(printed.getvalue())["seconds"] > 0


def test_no_disk_is_no_traceback(tmp_path, capsys):
    with pytest.raises(SystemExit):
        storage.main([*FLAGS, "--folder", str(tmp_path / "missing")])
    assert "error:" in capsys.readouterr().err
