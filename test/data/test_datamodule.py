import argparse
import io
import logging
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from lhotse import CutSet, MonoCut
from tiny_cuts import CODEC, tiny_codes, write_manifest

from valle.data import TokenDataModule, TokenDataset, collate_codes, consumed_state, load_cuts


def arguments(*flags: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    TokenDataModule.add_arguments(parser)
    return parser.parse_args(["--num-workers", "0", "--max-duration", "40", *map(str, flags)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens")
    lengths = np.random.default_rng(0).uniform(2, 18, 90).round(2)
    write_manifest(folder, list(lengths))
    write_manifest(folder, list(lengths[:23]), split="validation")
    return folder


@pytest.fixture
def cuts(folder):
    return load_cuts(folder / "cuts_train.jsonl.gz")


def ids(loader) -> list[list[str]]:
    return [batch["utt_id"] for batch in loader]


def flat(batches) -> list[str]:
    return [id_ for batch in batches for id_ in batch]


def train_loader(cuts, *flags, seed=7, **kwargs):
    return TokenDataModule(arguments(*flags)).train_dataloader(cuts, seed, **kwargs)


BUCKETS = pytest.mark.parametrize("buckets", ["true", "false"])


def test_flags_have_the_names_and_defaults_of_the_family():
    parser = argparse.ArgumentParser()
    TokenDataModule.add_arguments(parser)
    assert {k: str(v) for k, v in vars(parser.parse_args([])).items()} == {
        "manifest_dir": "data/tokenized",
        "max_duration": "40.0",
        "bucketing_sampler": "True",
        "num_buckets": "30",
        "shuffle": "True",
        "buffer_size": "40000",
        "shuffle_buffer_size": "100000",
        "drop_last": "False",
        "num_workers": "8",
        "text_tokens": "None",
    }


def test_a_batch_holds_the_codes_of_its_cuts(folder):
    module = TokenDataModule(arguments("--manifest-dir", folder), 4, 64)
    cuts = {cut.id: cut for cut in module.train_cuts()}
    batch = next(iter(module.train_dataloader(module.train_cuts(), seed=0)))
    codes, lens = batch["audio_features"], batch["audio_features_lens"]
    assert (codes.dtype, lens.dtype, batch["reaches_end"].dtype) == (
        torch.int64,
        torch.int64,
        torch.bool,
    )
    assert codes.shape == (len(batch["utt_id"]), int(lens.max()), 4)
    for id_, row, n in zip(batch["utt_id"], codes, lens, strict=True):
        index = int(id_.split("-")[1])
        assert n == cuts[id_].audio_features.shape[0]
        np.testing.assert_array_equal(row[:n], tiny_codes(index, int(n)))
        assert not row[n:].any()
    assert batch["reaches_end"].all()


def test_ends_are_marked_where_a_recording_ends(tmp_path):
    path = write_manifest(tmp_path, [21.3, 5.0], window_sec=6, minimum_sec=2)
    loader = train_loader(load_cuts(path))
    ends = {
        id_: bool(end)
        for batch in loader
        for id_, end in zip(batch["utt_id"], batch["reaches_end"], strict=True)
    }
    assert [id_ for id_, end in sorted(ends.items()) if end] == ["train-0-0003", "train-1-0000"]


@pytest.mark.parametrize(("buckets", "excess"), [("true", 1.2), ("false", 1.5)])
def test_every_cut_once_and_batches_of_the_length_asked(cuts, buckets, excess):
    durations = {cut.id: cut.duration for cut in cuts}
    batches = ids(train_loader(cuts, "--bucketing-sampler", buckets, "--max-duration", 40))
    assert sorted(flat(batches)) == sorted(durations)
    padded = [len(batch) * max(durations[id_] for id_ in batch) for batch in batches]
    assert max(padded) <= 40 * excess  # a longer last cut may stretch a batch
    # 40 means 40: with a hidden quadratic penalty batches would be half empty
    assert np.mean(padded) > 0.75 * 40


@BUCKETS
def test_order_changes_with_epoch_and_seed_alone(cuts, buckets):
    loader = train_loader(cuts, "--bucketing-sampler", buckets)
    first, again = ids(loader), ids(loader)
    loader.sampler.set_epoch(1)
    assert first == again
    assert ids(loader) != first
    assert ids(train_loader(cuts, "--bucketing-sampler", buckets, seed=8)) != first
    unshuffled = train_loader(cuts, "--bucketing-sampler", buckets, "--shuffle", "false")
    before = ids(unshuffled)
    unshuffled.sampler.set_epoch(1)
    assert ids(unshuffled) == before


def test_buckets_bring_together_cuts_of_like_length(cuts):
    durations = {cut.id: cut.duration for cut in cuts}

    def spread(buckets: str) -> float:
        batches = ids(train_loader(cuts, "--bucketing-sampler", buckets))
        return float(np.mean([np.ptp([durations[id_] for id_ in batch]) for batch in batches]))

    assert spread("true") < spread("false") / 2


@pytest.mark.parametrize("max_duration", [40, 150])
@pytest.mark.parametrize("lengths", ["even", "mostly short", "whole windows"])
def test_padding_is_less_than_a_twentieth(max_duration, lengths):
    rng = np.random.default_rng(3)
    seconds = {
        "even": rng.uniform(5, 15, 4000),
        "mostly short": 5 + 10 * rng.beta(1, 4, 4000),
        "whole windows": np.where(rng.random(4000) < 0.9, 15, rng.uniform(5, 15, 4000)),
    }[lengths]
    cuts = CutSet(
        [
            MonoCut(id=str(i), start=0, duration=float(sec), channel=0)
            for i, sec in enumerate(seconds.round(2))
        ]
    )
    loader = train_loader(cuts, "--max-duration", max_duration)
    frames = [[round(50 * cut.duration) for cut in batch] for batch in loader.sampler]
    padded = sum(len(batch) * max(batch) for batch in frames)
    assert 1 - sum(map(sum, frames)) / padded < 0.05


def test_drop_last_leaves_out_what_is_not_full(cuts):
    kept = flat(ids(train_loader(cuts, "--drop-last", "true")))
    assert 0 < len(kept) < len(list(cuts))
    assert len(kept) == len(set(kept))


def test_buffers_reach_the_samplers(cuts):
    assert train_loader(cuts, "--buffer-size", 33).sampler.buffer_size == 33
    flags = ("--bucketing-sampler", "false", "--shuffle-buffer-size", 44)
    assert train_loader(cuts, *flags).sampler.shuffle_buffer_size == 44


@pytest.mark.parametrize("count", [1, 2, 5, 23])
def test_few_cuts_make_few_buckets(cuts, count, caplog):
    few = cuts.subset(first=count)
    with caplog.at_level(logging.INFO):
        batches = ids(train_loader(few, "--num-buckets", 50, "--max-duration", 20))
    assert sorted(flat(batches)) == sorted(cut.id for cut in few)
    assert f"{count} cuts of" in caplog.text
    assert "not 50" in caplog.text


@BUCKETS
def test_ranks_share_an_epoch(cuts, buckets):
    shares = [
        ids(train_loader(cuts, "--bucketing-sampler", buckets, world_size=2, rank=rank))
        for rank in (0, 1)
    ]
    assert len(shares[0]) == len(shares[1])
    assert not set(flat(shares[0])) & set(flat(shares[1]))
    # where the cuts of the last round do not suffice, lhotse repeats one of them under another id
    original = {id_.split("_dup")[0] for id_ in flat(flat(shares))}
    assert original == {cut.id for cut in cuts}


@BUCKETS
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world_size", [1, 2])
def test_an_interrupted_epoch_goes_on_with_the_next_batch(cuts, buckets, workers, world_size):
    flags = ("--bucketing-sampler", buckets, "--num-workers", workers)
    loader = train_loader(cuts, *flags, world_size=world_size)
    loader.sampler.set_epoch(3)
    whole = ids(train_loader_at(cuts, flags, world_size, epoch=3))
    consumed = []
    for batch in loader:
        consumed.append(batch["utt_id"])
        if len(consumed) == 4:
            break
    state = reload_plain(consumed_state(loader.sampler, 4))
    # the other rank may load the state too; it holds nothing of this one
    for rank in range(world_size):
        resumed = train_loader(cuts, *flags, world_size=world_size, rank=rank, sampler_state=state)
        expected = whole if rank == 0 else ids(train_loader_at(cuts, flags, 2, 3, rank=1))
        assert ids(resumed) == expected[4:]
    assert consumed == whole[:4]


def train_loader_at(cuts, flags, world_size, epoch, rank=0):
    loader = train_loader(cuts, *flags, world_size=world_size, rank=rank)
    loader.sampler.set_epoch(epoch)
    return loader


def reload_plain(state: dict) -> dict:
    """As a checkpoint does it: only plain types pass."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def test_a_resumed_epoch_can_be_interrupted_again_and_the_next_one_is_whole(cuts):
    whole = ids(train_loader(cuts))
    state = None
    for start in (0, 3, 5):
        loader = train_loader(cuts, sampler_state=state)
        iterator = iter(loader)
        stop = start + (3 if start == 0 else 2)
        assert [next(iterator)["utt_id"] for _ in range(stop - start)] == whole[start:stop]
        state = consumed_state(loader.sampler, stop)
    loader = train_loader(cuts, sampler_state=state)
    assert ids(loader) == whole[7:]
    loader.sampler.set_epoch(1)
    assert ids(loader) == ids(train_loader_at(cuts, (), 1, epoch=1))


def test_a_state_of_another_setup_is_refused(cuts):
    state = consumed_state(train_loader(cuts).sampler, 2)
    with pytest.raises(ValueError, match=r"max_duration 40.0 then, 30.0 now"):
        train_loader(cuts, "--max-duration", 30, sampler_state=state)
    with pytest.raises(ValueError, match="seed 7 then, 8 now"):
        train_loader(cuts, seed=8, sampler_state=state)
    with pytest.raises(ValueError, match=r"9 buckets then, \d now"):
        train_loader(cuts, sampler_state=state | {"num_buckets": 9})
    with pytest.raises(ValueError, match="with and without buckets"):
        train_loader(cuts, "--bucketing-sampler", "false", sampler_state=state)
    with pytest.raises(ValueError, match="world_size 1 then, 2 now"):
        train_loader(cuts, sampler_state=state, world_size=2)


@BUCKETS
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_validation_counts_every_cut_once_on_all_ranks_together(folder, buckets, world_size):
    module = TokenDataModule(
        arguments("--manifest-dir", folder, "--bucketing-sampler", buckets, "--drop-last", "true")
    )
    shares = []
    for rank in range(world_size):
        loader = module.valid_dataloader(module.valid_cuts(), world_size, rank)
        shares.append(ids(loader))
        assert ids(loader) == shares[-1], "a second validation sees the same batches"
    assert sorted(flat(flat(shares))) == sorted(cut.id for cut in module.valid_cuts())
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_survey_says_what_it_kept(cuts, caplog):
    module = TokenDataModule(arguments())
    total = len(list(cuts))
    expected = [cut for cut in cuts if 5 <= cut.duration <= 15]
    with caplog.at_level(logging.INFO):
        survey = module.survey(cuts, 5, 15)
    assert [cut.id for cut in survey.cuts] == [cut.id for cut in expected]
    assert f"kept {len(expected)} of {total} cuts between 5 and 15 s" in caplog.text
    assert (survey.num_cuts, survey.num_seen) == (len(expected), total)
    assert survey.seconds == pytest.approx(sum(cut.duration for cut in expected))
    assert survey.codec == CODEC
    assert survey.facts["hours"] == pytest.approx(survey.seconds / 3600)
    assert survey.facts["frames"] == round(50 * survey.seconds)
    with pytest.raises(ValueError, match=f"none of {total} cuts lasts between 50 and 60 s"):
        module.survey(cuts, 50, 60)


def test_the_bounds_of_the_filter_are_included(tmp_path):
    cuts = load_cuts(write_manifest(tmp_path, [5.0, 15.0, 45.0], window_sec=15))
    assert TokenDataModule(arguments()).survey(cuts, 5, 15).num_cuts == 5


def test_missing_test_set(tmp_path):
    write_manifest(tmp_path, [5.0])
    module = TokenDataModule(arguments("--manifest-dir", tmp_path))
    assert len(list(module.train_cuts())) == 1
    with pytest.raises(FileNotFoundError, match="no cuts_test"):
        module.test_cuts()


@pytest.mark.parametrize(
    ("num_quantizers", "codebook_size", "message"),
    [(8, 64, "4 quantizers, expected 8"), (4, 32, r"codes from 0 to 6\d, expected 0 to 31")],
)
def test_tokens_that_do_not_fit_the_model(cuts, num_quantizers, codebook_size, message):
    dataset = pickle.loads(pickle.dumps(TokenDataset(num_quantizers, codebook_size)))
    with pytest.raises(ValueError, match=rf"cut train-0-0000 has {message}"):
        dataset[cuts.subset(first=2).to_eager()]


def test_tokens_that_do_not_fit_their_cut(tmp_path):
    path = write_manifest(tmp_path, [4.0])
    np.save(tmp_path / "tokens" / "train-0.npy", tiny_codes(0, 150).astype(np.int16))
    with pytest.raises(ValueError, match=r"cut train-0-0000 lasts 4.0 s, 200.0 frames, but 150"):
        TokenDataset()[load_cuts(path).to_eager()]
    np.save(tmp_path / "tokens" / "train-0.npy", tiny_codes(0, 0).astype(np.int16))
    with pytest.raises(ValueError, match="cut train-0-0000 has no frames"):
        TokenDataset()[load_cuts(path).to_eager()]
    np.save(tmp_path / "tokens" / "train-0.npy", tiny_codes(0, 200).astype(np.int16) - 1)
    with pytest.raises(ValueError, match="codes from -1 to"):
        TokenDataset()[load_cuts(path).to_eager()]


def test_cuts_of_unlike_quantizers_do_not_mix(tmp_path):
    one = write_manifest(tmp_path / "1", [4.0])
    two = write_manifest(tmp_path / "2", [4.0], "test", replace(CODEC, num_quantizers=2))
    with pytest.raises(ValueError, match="cut test-0-0000 has 2 quantizers, expected 4"):
        TokenDataset()[load_cuts(one).to_eager() + load_cuts(two).to_eager()]


def test_nothing_to_collate():
    with pytest.raises(ValueError, match="empty batch"):
        collate_codes([])
