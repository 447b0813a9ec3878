"""The loader's benchmark at a tiny size: what it writes is what it says, and what it counts."""

import io
import json
from contextlib import redirect_stdout
from pathlib import Path

import load_data
import numpy as np
import pytest

from valle.data import cut_codes, load_cuts

TINY = "--num-cuts 150 --num-batches 2 --max-duration 60 --num-workers 0 --world-sizes 1 4"
TINY += " --num-buckets 1 6 --max-durations 60 --resume-batches 3 --probe-mb 1"


def run_benchmark(file, *flags) -> dict:
    load_data.main([*TINY.split(), "--output-file", str(file), *map(str, flags)])
    return json.loads(file.read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens")
    load_data.write_tokens(folder / "numpy", 60)
    load_data.write_tokens(folder / "hdf5", 60, in_hdf5=True)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The JSON and the printed text of a run, the first batch apart."""
    file = tmp_path_factory.mktemp("load") / "load_data.json"
    with redirect_stdout(io.StringIO()) as printed:
        found = run_benchmark(file, "--step-frames-per-second", 1000, "--skip", "first-batch")
    return found, printed.getvalue()


def test_both_storages_hold_the_same_cuts(folder):
    cuts = list(load_cuts(folder / "numpy" / "cuts_train.jsonl.gz"))
    older = list(load_cuts(folder / "hdf5" / "cuts_train.jsonl.gz"))
    assert len(cuts) == 60
    assert [cut.id for cut in cuts] == [cut.id for cut in older]
    assert older[0].has_features
    assert not older[0].custom
    for ours, theirs in zip(cuts, older, strict=True):
        np.testing.assert_array_equal(cut_codes(ours), cut_codes(theirs))
    assert len({cut.recording_id for cut in cuts}) < len(cuts) / 10


def test_lengths_are_even_and_codes_use_the_whole_book(folder):
    cuts = list(load_cuts(folder / "numpy" / "cuts_train.jsonl.gz"))
    lengths = np.array([cut.duration for cut in cuts])
    assert 5 <= lengths.min() < 6
    assert 14 < lengths.max() <= 15
    assert abs(lengths.mean() - 10) < 1.5
    codes = np.concatenate([cut_codes(cut) for cut in cuts])
    assert codes.shape[1] == 4
    assert (codes.min(), codes.max()) == (0, 2047)


def test_the_loader_is_measured_in_both_storages_beside_the_step(run):
    rows = run[0]["loader"]
    assert [row["storage"] for row in rows] == ["numpy", "hdf5"]
    for row in rows:
        assert row["times_the_step"] == row["frames_per_sec"] / 1000
        assert row["cuts_per_sec"] > row["batches_per_sec"] > 0
        assert 250 <= row["frames_per_sec"] / row["cuts_per_sec"] <= 750


def test_every_rank_draws_the_batches_of_all(run):
    one, four = run[0]["sampler"]
    assert (one["world_size"], four["world_size"]) == (1, 4)
    for row in (one, four):
        assert row["batches_per_sec"] == pytest.approx(1e3 * row["world_size"] / row["ms"])


def test_drawing_goes_on_where_it_was(folder, monkeypatch):
    """Calling `iter` on lhotse's sampler again would begin the epoch, and time its start."""
    seen = []
    original = load_data.TokenDataModule.train_dataloader

    def watched(self, *args, **kwargs):
        loader = original(self, *args, **kwargs)
        seen.append(loader.sampler)
        return loader

    monkeypatch.setattr(load_data.TokenDataModule, "train_dataloader", watched)
    args = load_data.get_parser().parse_args(["--max-duration", "60", "--num-batches", "4"])
    load_data.SamplerRow.of(folder / "numpy", 1, args)
    assert seen[0].diagnostics.current_epoch_stats.kept_batches == 5


def test_padding_is_that_of_the_batches(run):
    without, with_buckets = run[0]["padding"]
    assert (without["num_buckets"], with_buckets["num_buckets"]) == (1, 6)
    assert 0 < with_buckets["padding"] < without["padding"] / 2
    seconds = {
        round(r["mean_sec"] * r["num_batches"] * (1 - r["padding"])) for r in run[0]["padding"]
    }
    assert len(seconds) == 1, "both hold every cut once"
    assert all(row["mean_sec"] <= row["largest_sec"] < 90 for row in run[0]["padding"])


def test_tables_come_in_markdown(run):
    for title in ("The loader", "The sampler alone", "Padding", "Going on inside an epoch"):
        assert f"## {title}" in run[1]
    assert "| 60 | 6 |" in run[1]
    assert run[0]["resume"][0]["num_batches"] == 3


def test_own_manifests_and_the_first_batch_in_its_own_process(folder, tmp_path, capfd):
    flags = ["--manifest-dir", folder / "numpy", "--skip", "padding", "sampler", "resume"]
    found = run_benchmark(tmp_path / "x.json", *flags, "--num-workers", 1)
    assert {row["storage"] for row in found["loader"]} == {"yours"}
    assert found["loader"][0]["times_the_step"] is None
    (started,) = found["first_batch"]
    assert min(started["seconds"], started["megabytes"]) > 0
    if Path("/proc/self/smaps_rollup").exists():
        assert started["worker_megabytes"] > 10
    assert "s to the first batch" in capfd.readouterr().out


def test_an_epoch_too_short_to_go_on_in(folder, tmp_path, capsys):
    flags = ["--manifest-dir", folder / "numpy", "--skip", "padding", "sampler", "loader"]
    with pytest.raises(SystemExit):
        run_benchmark(tmp_path / "x.json", *flags, "first-batch", "--resume-batches", 500)
    assert "an epoch has fewer than 500 batches" in capsys.readouterr().err


def test_hdf5_asked_for_without_h5py(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(load_data.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        run_benchmark(tmp_path / "x.json", "--storages", "hdf5")
    assert "--storages hdf5 needs h5py: pip install 'valle[hdf5]'" in capsys.readouterr().err
    args = load_data.get_parser().parse_args(["--num-cuts", "3"])
    assert list(load_data.write_all(tmp_path, args)) == ["numpy"]
