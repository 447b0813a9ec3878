"""What cuts carry beside their tokens, and the batches of it."""

import numpy as np
import pytest
import torch
from lhotse import SupervisionSegment
from lhotse.array import Array
from tiny_cuts import CODEC, tiny_codes, write_manifest
from token_loaders import data_module

from valle.data import TokenDataModule, TokenDataset, consumed_state, load_cuts
from valle.data.conditions import check_events, condition_of, midi_events, text_symbols
from valle.data.datamodule import TEXT_TABLE
from valle.data.elsewhere import codes_elsewhere
from valle.data.manifest import cut_codes, manifest_path
from valle.data.midi import events_of
from valle.data.midi_files import store_events
from valle.data.shar import write_shards
from valle.data.storage import write_cuts
from valle.data.text import SymbolTable
from valle.utils.vocabulary import BOS, EOS, MIDI_FIELDS, PAD

LENGTHS = [4.0, 9.0, 6.5, 5.0, 12.0, 7.7]
SENTENCE = "it was a dark and stormy night"


def tiny_events(seed: int, seconds: float) -> np.ndarray:
    """(S, 6) int16 of random notes, more of them in a longer excerpt."""
    rng = np.random.default_rng(seed)
    onset = np.sort(rng.uniform(0, seconds, int(2 * seconds) + seed % 3))
    rows = [onset, rng.uniform(0.1, 1, len(onset)), *rng.integers(21, 100, (2, len(onset)))]
    return events_of(np.stack(rows, axis=1))[0]


def with_midi(folder, cut, index):
    events = tiny_events(index, cut.duration)
    cut = cut.with_custom("midi_tokens", store_events(folder, cut.id, events))
    return cut.with_custom("midi_span", [cut.start, cut.duration])


def with_text(cut, symbols):
    said = SupervisionSegment(cut.id, cut.recording.id, 0, cut.duration, text="".join(symbols))
    said.custom = {"tokens": {"text": symbols}}
    cut.supervisions = [said]
    return cut


@pytest.fixture(scope="module")
def plain_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    for split in ("train", "validation"):
        write_manifest(folder, LENGTHS, split, window_sec=5, minimum_sec=1)
    return folder


@pytest.fixture(scope="module")
def midi_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("midi")
    for split in ("train", "validation"):
        path = write_manifest(folder, LENGTHS, split, window_sec=5, minimum_sec=1)
        cuts = [with_midi(folder, cut, i) for i, cut in enumerate(list(load_cuts(path)))]
        write_cuts(path, relative(cuts))
    return folder


def relative(cuts):
    """As a tokenizer writes them: tokens in a folder beside the manifest."""
    for cut in cuts:
        cut.custom["audio_features"].array.storage_path = "tokens"
        cut.custom["audio_features"].array.storage_type = "numpy_files"
        yield cut


@pytest.fixture(scope="module")
def text_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    texts = {"train": SENTENCE, "validation": "queen"}  # with letters that training never has
    for split, text in texts.items():
        path = write_manifest(folder, LENGTHS, split)
        cuts = list(load_cuts(path))
        symbols = [list(text.replace(" ", "_"))[: 5 + 3 * i] for i in range(len(cuts))]
        symbols[-1] = list(text.replace(" ", "_"))
        cuts = [with_text(cut, own) for cut, own in zip(cuts, symbols, strict=True)]
        write_cuts(path, relative(cuts))
        if split == "train":
            SymbolTable.of(symbols).write(folder / TEXT_TABLE)
    return folder


def cuts_of(folder, split="train"):
    return load_cuts(manifest_path(folder, split))


def module_of(folder, condition, *flags, elsewhere_sec=0.0) -> TokenDataModule:
    args = data_module("--manifest-dir", folder, "--max-duration", 20, *flags).args
    return TokenDataModule(
        args, CODEC.num_quantizers, CODEC.codebook_size, condition, elsewhere_sec
    )


def test_the_condition_of_a_cut(plain_dir, midi_dir, text_dir):
    found = [condition_of(next(iter(cuts_of(f)))) for f in (plain_dir, midi_dir, text_dir)]
    assert found == [None, "midi", "text"]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_of_midi_are_padded_behind_the_events(midi_dir, num_workers):
    module = module_of(midi_dir, "midi", "--num-workers", num_workers)
    expected = {cut.id: midi_events(cut) for cut in module.train_cuts()}
    loader = module.train_dataloader(module.train_cuts(), 1)
    seen, ragged = set(), 0
    for batch in loader:
        events, lens = batch["midi_tokens"], batch["midi_tokens_lens"]
        assert events.dtype == lens.dtype == torch.int64
        assert events.shape == (len(batch["utt_id"]), int(lens.max()), len(MIDI_FIELDS))
        ragged += len(set(lens.tolist())) > 1
        for id_, row, length in zip(batch["utt_id"], events, lens, strict=True):
            np.testing.assert_array_equal(row[:length], expected[id_])
            assert (row[length:] == PAD).all()
            seen.add(id_)
    assert seen == set(expected)
    assert ragged


def test_batches_of_text_have_the_ids_of_the_table(text_dir):
    module = module_of(text_dir, "text")
    table = SymbolTable.read(text_dir / TEXT_TABLE)
    texts = {cut.id: text_symbols(cut) for cut in module.train_cuts()}
    seen = set()
    for batch in module.train_dataloader(module.train_cuts(), 1):
        for id_, row, length in zip(
            batch["utt_id"], batch["text_tokens"], batch["text_tokens_lens"], strict=True
        ):
            assert row[:length].tolist() == table.ids(texts[id_])
            assert (row[0], row[length - 1]) == (BOS, EOS)
            assert (row[length:] == PAD).all()
            seen.add(id_)
    assert seen == set(texts)


def test_a_batch_without_condition_is_as_it_was(midi_dir, plain_dir):
    loaders = [
        module_of(folder, None).train_dataloader(cuts_of(folder), 1)
        for folder in (plain_dir, midi_dir)
    ]
    for plain, batch in zip(*loaders, strict=True):
        assert list(plain) == ["utt_id", "audio_features", "audio_features_lens", "reaches_end"]
        assert list(batch) == list(plain)
        assert all(torch.equal(batch[k], plain[k]) for k in list(plain)[1:])


def test_a_run_with_midi_goes_on_as_the_unbroken_one(midi_dir):
    module = module_of(midi_dir, "midi")
    loader = module.train_dataloader(module.train_cuts(), 3)
    loader.sampler.set_epoch(1)
    whole, state = [], None
    for index, batch in enumerate(loader):
        whole.append(batch)
        if index == 1:
            state = consumed_state(loader.sampler, index + 1)
    again = module.train_dataloader(module.train_cuts(), 3, sampler_state=state)
    rest = list(again)
    assert len(rest) == len(whole) - 2 > 0
    for ours, theirs in zip(rest, whole[2:], strict=True):
        assert ours["utt_id"] == theirs["utt_id"]
        assert torch.equal(ours["midi_tokens"], theirs["midi_tokens"])


def test_a_symbol_that_training_never_had(text_dir):
    module = module_of(text_dir, "text")
    with pytest.raises(ValueError, match=r"cut validation-\S+ has symbols .*: e q u\. Give"):
        list(module.train_dataloader(module.valid_cuts(), 1))
    (batch,) = module.valid_dataloader(module.valid_cuts().subset(first=1))
    assert batch["text_tokens_lens"].tolist() == [1 + 2]  # n alone is known


def test_the_table_may_lie_elsewhere_or_nowhere(text_dir, midi_dir, tmp_path):
    (tmp_path / "table").write_text((text_dir / TEXT_TABLE).read_text())
    module = module_of(midi_dir, "text", "--text-tokens", tmp_path / "table")
    assert module.symbols.symbols == SymbolTable.read(text_dir / TEXT_TABLE).symbols
    with pytest.raises(FileNotFoundError, match=r"no table of text symbols at .*--text-tokens"):
        _ = module_of(midi_dir, "text").symbols


@pytest.mark.parametrize(
    ("folder", "condition", "match"),
    [
        (
            "plain_dir",
            "midi",
            r"cut train-0-0000 carries no condition, expected midi: .*--midi-dir",
        ),
        ("midi_dir", "text", r"carries midi, expected text: .* or another --condition"),
        ("text_dir", "midi", r"carries text, expected midi"),
    ],
)
def test_a_cut_without_the_condition_is_named(folder, condition, match, text_dir, request):
    table = SymbolTable.read(text_dir / TEXT_TABLE)
    dataset = TokenDataset(condition=condition, symbols=table)
    with pytest.raises(ValueError, match=match):
        dataset[cuts_of(request.getfixturevalue(folder)).subset(first=1)]


def test_a_dataset_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="condition is 'sound', expected one of"):
        TokenDataset(condition="sound")
    with pytest.raises(ValueError, match="need a table of symbols"):
        TokenDataset(condition="text")


def change(events, row, column, value):
    events = events.copy()
    events[row, column] = value
    return events


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda e: e[:, :5], r"shape \(\d+, 5\), expected \(S, 6\)"),
        (lambda e: e[0], r"shape \(6,\)"),
        (lambda e: e[:0], r"shape \(0, 6\)"),
        (lambda e: e.astype(float), "of float64, expected integers"),
        (lambda e: e[1:], r"expected rows of 1 \(BOS\) and 2 \(EOS\)"),
        (lambda e: e[:-1], r"expected rows of 1 \(BOS\)"),
        (lambda e: change(e, 1, 0, 92), "id 92 for the pitch of event 1, expected 0 to 91"),
        (lambda e: change(e, 2, 5, 20), "id 20 for the bar of event 2, expected 0 to 19"),
        (lambda e: change(e, 1, 3, -1), "id -1 for the interval of event 1"),
    ],
)
def test_events_that_cannot_be_embedded(make, match):
    check_events(tiny_events(0, 4.0), "x")
    with pytest.raises(ValueError, match=match):
        check_events(make(tiny_events(0, 4.0)), "x")


def test_events_that_do_not_belong_to_the_cut(midi_dir):
    cut = next(iter(cuts_of(midi_dir)))
    with pytest.raises(ValueError, match="midi_span None, expected"):
        midi_events(cut.with_custom("midi_span", None))
    with pytest.raises(ValueError, match=r"begins at 0\.5 s .* it was cut again"):
        midi_events(cut.truncate(offset=0.5))
    with pytest.raises(ValueError, match=r"midi_tokens is a list, expected an array"):
        midi_events(cut.with_custom("midi_tokens", [1, 2]))
    array = cut.custom["midi_tokens"]
    other = Array(array.storage_type, array.storage_path, array.storage_key, [3, 6])
    with pytest.raises(ValueError, match="another file took their place"):
        midi_events(cut.with_custom("midi_tokens", other))
    kept = cut.with_custom("midi_span", [cut.start + 1e-8, cut.duration - 1e-8])  # rounded
    assert len(midi_events(kept)) == len(midi_events(cut))


@pytest.mark.parametrize("symbols", ["abc", [], [1, 2]])
def test_symbols_that_are_none(text_dir, symbols):
    cut = next(iter(cuts_of(text_dir)))
    cut.supervisions[0].custom = {"tokens": {"text": symbols}}
    with pytest.raises(ValueError, match=r"for the symbols of its text, expected a list"):
        text_symbols(cut)


# Prompts from elsewhere in the recording


def test_a_prompt_comes_from_its_recording_and_not_from_the_cut(plain_dir):
    starts = set()
    for cut in cuts_of(plain_dir):
        index = int(cut.recording.id.split("-")[1])
        whole = tiny_codes(index, round(cut.recording.duration * 50))
        prompt = codes_elsewhere(cut, 3.0)
        first, last = round(cut.start * 50), round(cut.end * 50)
        outside = max(first, len(whole) - last)
        assert len(prompt) == min(150, outside)
        places = [
            start
            for start in range(len(whole) - len(prompt) + 1)
            if len(prompt) and np.array_equal(whole[start : start + len(prompt)], prompt)
        ]
        for start in places:
            assert start + len(prompt) <= first or start >= last
            starts.add(start)
        assert len(places) == (len(prompt) > 0)
        np.testing.assert_array_equal(prompt, codes_elsewhere(cut, 3.0))
    assert len(starts) > 4


def test_batches_have_prompts_where_there_is_something_else(plain_dir):
    module = module_of(plain_dir, None, elsewhere_sec=3.0)
    seen = {}
    for batch in module.train_dataloader(module.train_cuts(), 1):
        prompts, lens = batch["prompts"], batch["prompts_lens"]
        assert prompts.shape == (len(lens), int(lens.max()), CODEC.num_quantizers)
        for id_, row, length in zip(batch["utt_id"], prompts, lens.tolist(), strict=True):
            seen[id_] = length
            assert (row[length:] == 0).all()
    assert seen["train-0-0000"] == 0  # 4 s in one window of 5
    assert max(seen.values()) == 150
    assert any(0 < length < 150 for length in seen.values())


def test_a_shard_has_nothing_elsewhere(plain_dir, tmp_path):
    write_shards(tmp_path / "cuts_train", cuts_of(plain_dir))
    cut = next(iter(cuts_of(tmp_path)))
    assert len(cut_codes(cut)) == 200
    with pytest.raises(ValueError, match=r"no prompt can be taken .* --format numpy"):
        codes_elsewhere(cut, 1.5)
