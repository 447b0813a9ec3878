import itertools
import logging
import os
import tarfile

import numpy as np
import pytest
import torch
from lhotse import CutSet, Features, MonoCut
from tiny_cuts import CODEC, tiny_codes, write_manifest
from token_loaders import contents, data_module, ids, train_loader

from valle.data import consumed_state, cut_codes, load_cuts
from valle.data.manifest import manifest_path, reaches_end
from valle.data.readers import ShardReader, shards_of
from valle.data.sampler import batches_an_epoch
from valle.data.shar import write_shards
from valle.data.storage import make_recording, write_cuts
from valle.data.summary import read_summary, summary_path

LENGTHS = list(np.random.default_rng(0).uniform(2, 18, 60).round(2))


@pytest.fixture(scope="module")
def numpy_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("numpy")
    write_manifest(folder, LENGTHS, window_sec=11, minimum_sec=3)
    write_manifest(folder, LENGTHS[:9], split="validation")
    return folder


@pytest.fixture(scope="module")
def shar_dir(numpy_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shar")
    for split in ("train", "validation"):
        write_shards(folder / f"cuts_{split}", load_cuts(manifest_path(numpy_dir, split)), 7)
    return folder


def both(numpy_dir, shar_dir):
    """Each cut of the one beside the same of the other."""
    pairs = zip(load_cuts(numpy_dir / "cuts_train.jsonl.gz"), train_cuts(shar_dir), strict=True)
    return list(pairs)


def train_cuts(folder):
    return load_cuts(manifest_path(folder, "train"))


def test_shards_hold_the_same_cuts_and_codes(numpy_dir, shar_dir):
    pairs = both(numpy_dir, shar_dir)
    assert len(shards_of(shar_dir / "cuts_train")) == -(-len(pairs) // 7) > 5
    for ours, sharded in pairs:
        fields = ("id", "start", "duration", "recording", "supervisions")
        assert all(getattr(ours, name) == getattr(sharded, name) for name in fields)
        assert ours.custom["codec"] == sharded.custom["codec"]
        np.testing.assert_array_equal(cut_codes(ours), cut_codes(sharded))
        assert sharded.load_audio_features().dtype == np.int16
        assert reaches_end(ours, 0.02) == reaches_end(sharded, 0.02)
    assert any(reaches_end(cut, 0.02) and cut.start > 0 for _, cut in pairs)


def test_a_part_of_a_sharded_cut_is_a_part_of_its_codes(numpy_dir, shar_dir):
    for ours, sharded in both(numpy_dir, shar_dir)[:12]:
        part = sharded.truncate(offset=0.5, duration=1.2)
        np.testing.assert_array_equal(cut_codes(part), cut_codes(ours)[25:85])


def test_lhotse_alone_reads_the_shards(numpy_dir, shar_dir):
    theirs = CutSet.from_shar(in_dir=shar_dir / "cuts_train")
    ours = load_cuts(numpy_dir / "cuts_train.jsonl.gz")
    for cut, expected in zip(theirs, ours, strict=True):
        np.testing.assert_array_equal(cut.load_audio_features(), cut_codes(expected))
        assert reaches_end(cut, 0.02) == reaches_end(expected, 0.02)


def test_shards_that_lhotse_wrote_are_read(numpy_dir, tmp_path):
    expected = {cut.id: cut_codes(cut) for cut in load_cuts(numpy_dir / "cuts_train.jsonl.gz")}
    folder = tmp_path / "cuts_train"
    folder.mkdir()
    fields = {"audio_features": "numpy"}
    source = load_cuts(numpy_dir / "cuts_train.jsonl.gz")
    source.to_shar(folder, fields=fields, shard_size=9, warn_unused_fields=False)
    loader = train_loader(train_cuts(tmp_path))
    found = contents(loader)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[id_], expected[id_]) for id_ in found)


def test_the_same_cuts_make_the_same_bytes(numpy_dir, shar_dir, tmp_path):
    write_shards(tmp_path / "cuts_train", load_cuts(numpy_dir / "cuts_train.jsonl.gz"), 7)
    first, second = (sorted((d / "cuts_train").iterdir()) for d in (shar_dir, tmp_path))
    assert [path.name for path in first] == [path.name for path in second]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(first, second, strict=True))


def test_the_summary_of_shards(shar_dir, numpy_dir, tmp_path):
    summary = read_summary(shar_dir / "cuts_train")
    assert summary == read_summary(numpy_dir / "cuts_train.jsonl.gz")
    assert len(train_cuts(shar_dir)) == summary.num_cuts
    path = tmp_path / "cuts_train"
    write_shards(path, train_cuts(shar_dir), 7)
    os.remove(shards_of(path)[-1])
    assert read_summary(path) is None


# What training draws


def test_both_formats_bring_the_same_codes_and_validation_the_same_batches(numpy_dir, shar_dir):
    first, second = (contents(train_loader(train_cuts(d))) for d in (numpy_dir, shar_dir))
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[id_], second[id_]) for id_ in first)
    modules = [data_module("--manifest-dir", folder) for folder in (numpy_dir, shar_dir)]
    for ours, sharded in zip(*(m.valid_dataloader(m.valid_cuts()) for m in modules), strict=True):
        assert ours["utt_id"] == sharded["utt_id"]
        for key in ("audio_features", "audio_features_lens", "reaches_end"):
            assert torch.equal(ours[key], sharded[key])


def test_a_single_shard_brings_the_very_batches_of_a_manifest(numpy_dir, tmp_path):
    write_shards(tmp_path / "cuts_train", train_cuts(numpy_dir), 10_000)
    assert len(shards_of(tmp_path / "cuts_train")) == 1
    assert ids(train_loader(train_cuts(tmp_path))) == ids(train_loader(train_cuts(numpy_dir)))


def surveyed(folder):
    return data_module().survey(train_cuts(folder), 3, 10).cuts


@pytest.mark.parametrize("buckets", ["true", "false"])
def test_seed_and_epoch_alone_decide_the_order_of_shards(shar_dir, buckets):
    cuts, in_order = surveyed(shar_dir), [cut.id for cut in surveyed(shar_dir)]

    def order(*flags, **kwargs):
        loader = train_loader(cuts, "--bucketing-sampler", buckets, *flags, **kwargs)
        return [cut.id for cut in loader.sampler.cuts[0]]

    first = order()
    assert sorted(first) == sorted(in_order)
    assert first == order()
    assert len({tuple(ids_) for ids_ in (in_order, first, order(epoch=1), order(seed=8))}) == 4
    # within a shard neighbours stay neighbours, which is what makes reading fast
    pairs = set(itertools.pairwise(in_order))
    num_apart = sum(pair not in pairs for pair in itertools.pairwise(first))
    assert num_apart < len(shards_of(shar_dir / "cuts_train"))
    assert order("--shuffle", "false", epoch=1) == in_order


@pytest.mark.parametrize("buckets", ["true", "false"])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world_size", [1, 2])
def test_an_interrupted_epoch_goes_on_exactly(shar_dir, buckets, workers, world_size):
    cuts = surveyed(shar_dir)
    flags = ("--bucketing-sampler", buckets, "--num-workers", workers, "--buffer-size", 40)
    whole = [
        ids(train_loader(cuts, *flags, epoch=3, world_size=world_size, rank=rank))
        for rank in range(world_size)
    ]
    loader = train_loader(cuts, *flags, epoch=3, world_size=world_size)
    consumed = [batch["utt_id"] for batch, _ in zip(loader, range(4), strict=False)]
    assert consumed == whole[0][:4]
    state = consumed_state(loader.sampler, 4)
    for rank, batches in enumerate(whole):
        place = {"world_size": world_size, "rank": rank}
        resumed = data_module(*flags).train_dataloader(cuts, 7, sampler_state=state, **place)
        assert ids(resumed) == batches[4:]


@pytest.mark.parametrize("buckets", ["true", "false"])
def test_ranks_share_the_shards(shar_dir, buckets):
    cuts, flags = surveyed(shar_dir), ("--bucketing-sampler", buckets)
    shares = [ids(train_loader(cuts, *flags, world_size=2, rank=rank)) for rank in (0, 1)]
    assert len(shares[0]) == len(shares[1])
    first, second = ({id_ for batch in share for id_ in batch} for share in shares)
    assert not first & second
    assert {id_.split("_dup")[0] for id_ in first | second} == {cut.id for cut in cuts}


def test_a_survey_needs_no_reading_and_filters_as_one_that_reads(shar_dir, numpy_dir, monkeypatch):
    for folder in (numpy_dir, shar_dir):
        cuts = train_cuts(folder)
        told = data_module().survey(cuts, 3, 10)
        read = data_module().survey(CutSet.from_cuts(cuts), 3, 10)
        assert (told.num_cuts, told.num_seen) == (read.num_cuts, read.num_seen)
        assert told.num_cuts < told.num_seen
        assert told.seconds == pytest.approx(read.seconds)
        assert told.codec == read.codec == CODEC
        assert [cut.id for cut in told.cuts] == [cut.id for cut in read.cuts]

        def unread(self):
            raise AssertionError("a cut was read")

        with monkeypatch.context() as patch:
            patch.setattr("valle.data.manifest.TokenManifest.__iter__", unread)
            assert data_module().survey(cuts, 3, 10).facts == told.facts


def test_a_survey_reads_where_a_summary_does_not_suffice(tmp_path, caplog):
    path = write_manifest(tmp_path, [5.0121, 5.0185, 7.0])
    assert data_module().survey(load_cuts(path), 5.015, 6).num_cuts == 1
    summary_path(path).unlink()
    assert data_module().survey(load_cuts(path), 5.0, 6).num_cuts == 2
    cuts = [cut.drop_custom("codec") for cut in load_cuts(path)]
    write_cuts(path, cuts)
    with caplog.at_level(logging.WARNING):
        assert data_module().survey(load_cuts(path), 0, 9).codec is None
    assert summary_path(path).exists()
    assert "does not record which codec" in caplog.text


@pytest.mark.parametrize("world_size", [1, 3])
def test_batches_of_an_epoch_are_counted_or_close(world_size):
    lengths = np.random.default_rng(1).uniform(5, 15, 3000).round(2).tolist()
    cuts = CutSet([MonoCut(str(i), 0, seconds, 0) for i, seconds in enumerate(lengths)])

    def sampler():
        return train_loader(cuts, "--num-buckets", 5, world_size=world_size).sampler

    exact = sum(1 for _ in sampler())
    assert batches_an_epoch(sampler(), sum(lengths)) == exact
    estimate = batches_an_epoch(sampler(), sum(lengths), most_drawn=150)
    assert estimate != exact
    assert estimate == pytest.approx(exact, rel=0.04)


# What may go wrong


def test_a_manifest_and_shards_side_by_side(shar_dir, numpy_dir, tmp_path):
    path = write_manifest(tmp_path, [3.0])
    write_shards(tmp_path / "cuts_train", load_cuts(path))
    with pytest.raises(ValueError, match=r"both cuts_train.jsonl.gz and shards in cuts_train"):
        manifest_path(tmp_path, "train")
    path.unlink()
    assert manifest_path(tmp_path, "train") == tmp_path / "cuts_train"


def test_folders_without_shards(tmp_path):
    (tmp_path / "cuts_train").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no shards \(cuts.000000.jsonl.gz"):
        load_cuts(tmp_path / "cuts_train")
    assert write_shards(tmp_path / "cuts_train", []) == 0
    assert not list(tmp_path.iterdir())


def test_nothing_half_written_stays(shar_dir, tmp_path):
    before = train_cuts(shar_dir)
    write_shards(tmp_path / "cuts_train", before, 7)
    (tmp_path / ".half-cuts_train").mkdir()  # of a killed process

    def failing():
        yield from before
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_shards(tmp_path / "cuts_train", failing(), 7)
    assert {path.name for path in tmp_path.iterdir()} == {"cuts_train", "cuts_train.summary.json"}
    assert [cut.id for cut in train_cuts(tmp_path)] == [cut.id for cut in before]
    assert write_shards(tmp_path / "cuts_train", list(before)[:5]) == 5
    assert len(list(train_cuts(tmp_path))) == 5


def test_shards_that_cannot_be_written(shar_dir, tmp_path):
    with pytest.raises(ValueError, match="a shard of 0 cuts cannot be: give --shard-size 1"):
        write_shards(tmp_path / "x", train_cuts(shar_dir), 0)
    cut = next(iter(train_cuts(shar_dir)))
    cut.recording = None
    with pytest.raises(ValueError, match="names no recording"):
        write_shards(tmp_path / "x", [cut])


def test_a_shard_that_is_cut_off_or_another(shar_dir, tmp_path):
    write_shards(tmp_path / "cuts_train", train_cuts(shar_dir), 7)
    tar = tmp_path / "cuts_train" / "audio_features.000000.tar"
    cuts = list(train_cuts(tmp_path))
    expected = cut_codes(cuts[0])
    os.truncate(tar, 700)
    with pytest.raises(ValueError, match=r"000000.tar, \d+ bytes from 512 on, holds no"):
        ShardReader(str(tar)).read(cuts[0].audio_features.array.storage_key)
    assert len(expected)
    other = tmp_path / "other.tar"
    with tarfile.open(other, "w"):
        pass
    with pytest.raises(ValueError, match="holds no whole array"):
        ShardReader(str(other)).read("512:100")
    with pytest.raises(FileNotFoundError):
        ShardReader(str(tmp_path / "missing.tar")).read("512:100")


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="counts open files")
def test_shards_do_not_all_stay_open(shar_dir):
    before = len(os.listdir("/proc/self/fd"))
    tar = "audio_features.000000.tar"
    cut = next(iter(train_cuts(shar_dir)))
    key, codes = cut.audio_features.array.storage_key, cut_codes(cut)
    for index in range(300):  # one file by many names
        path = f"{shar_dir}/{'./' * index}cuts_train/{tar}"
        np.testing.assert_array_equal(ShardReader(path).read(key), codes)
    assert len(os.listdir("/proc/self/fd")) < before + 140


def test_the_older_layout_becomes_shards(tmp_path):
    codes = tiny_codes(0, 150).astype(np.int64)
    np.save(tmp_path / "a.npy", codes)
    features = Features(
        type="encodec",
        num_frames=150,
        num_features=4,
        frame_shift=0.02,
        sampling_rate=32000,
        start=0,
        duration=3.0,
        storage_type="numpy_files",
        storage_path=str(tmp_path),
        storage_key="a.npy",
        channels=0,
        recording_id="a",
    )
    recording = make_recording("a", "a.wav", 96000, 32000, 1)
    cut = MonoCut("a", start=0, duration=3.0, channel=0, features=features, recording=recording)
    write_shards(tmp_path / "cuts_train", [cut])
    (found,) = load_cuts(tmp_path / "cuts_train")
    np.testing.assert_array_equal(cut_codes(found), codes)
    assert reaches_end(found, 0.02)
