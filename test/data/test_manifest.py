import importlib.util
import logging
from dataclasses import replace

import numpy as np
import pytest
from lhotse import CutSet, Features, MonoCut, NumpyFilesWriter
from lhotse.utils import LOG_EPSILON
from tiny_cuts import CODEC, tiny_codes, write_manifest

from valle.data.dataset import TokenDataset
from valle.data.manifest import (
    SOUND_END,
    codec_of,
    cut_codes,
    load_cuts,
    manifest_path,
    reaches_end,
)


@pytest.fixture
def manifest(tmp_path):
    return write_manifest(tmp_path / "made", [31.237, 10.005, 3.0], window_sec=7, minimum_sec=2)


def test_excerpts_hold_their_part_of_the_recording(manifest):
    cuts = list(load_cuts(manifest))
    for index, length in enumerate((31.237, 10.005, 3.0)):
        own = [cut for cut in cuts if cut.recording.id == f"train-{index}"]
        whole = tiny_codes(index, round(length * 50))
        np.testing.assert_array_equal(np.concatenate([cut_codes(cut) for cut in own]), whole)
        assert [reaches_end(cut, 0.02) for cut in own] == [False] * (len(own) - 1) + [True]
        assert own[-1].end == pytest.approx(own[-1].recording.duration, abs=0.0101)
        assert max(cut.duration for cut in own) <= 7
    assert all(cut_codes(cut).dtype == np.int64 for cut in cuts)
    assert all(np.array_equal(cut.load_audio_features(), cut_codes(cut)) for cut in cuts)
    assert load_cuts(manifest).is_lazy


def test_a_frame_rate_that_is_no_round_number_of_seconds(tmp_path):
    codec = replace(CODEC, sampling_rate=24000, frame_rate=75.0)
    manifest = write_manifest(tmp_path, [41.23], codec=codec, window_sec=15, minimum_sec=5)
    cuts = list(load_cuts(manifest))
    assert [len(cut_codes(cut)) for cut in cuts] == [1125, 1125, 842]
    joined = np.concatenate([cut_codes(cut) for cut in cuts])
    np.testing.assert_array_equal(joined, tiny_codes(0, 3092, codec))


def test_a_slice_of_a_cut_is_a_slice_of_its_codes(manifest):
    cut = next(iter(load_cuts(manifest)))
    part = cut.truncate(offset=1.34, duration=2.0)
    np.testing.assert_array_equal(cut_codes(part), cut_codes(cut)[67:167])


def test_a_folder_may_move_and_the_working_directory_change(manifest, tmp_path, monkeypatch):
    expected = [cut_codes(cut) for cut in load_cuts(manifest)]
    manifest.parent.rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path / "moved")
    cuts = load_cuts("cuts_train.jsonl.gz")
    monkeypatch.chdir("/")
    for cut, codes in zip(cuts, expected, strict=True):
        np.testing.assert_array_equal(cut_codes(cut), codes)


def test_tokens_of_another_corpus_do_not_stand_in(manifest, tmp_path, monkeypatch):
    write_manifest(tmp_path / "other", [50.0, 50.0, 50.0])
    monkeypatch.chdir(tmp_path / "other")  # it has `tokens/train-0.npy`, too
    (manifest.parent / "tokens").rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"made/tokens/train-0\.npy"):
        cut_codes(next(iter(load_cuts(manifest))))


def test_the_end_of_the_sound_is_the_end_where_silence_was_trimmed(tmp_path):
    path = write_manifest(tmp_path, [10.0])
    (cut,) = load_cuts(path)
    trimmed = cut.truncate(duration=8.0).with_custom(SOUND_END, 8.0)
    parts = [trimmed.truncate(duration=4.0), trimmed.truncate(offset=4.0)]
    CutSet.from_cuts(with_names([*parts, cut.truncate(duration=8.0), cut])).to_file(path)
    batch = TokenDataset()[load_cuts(path)]
    assert batch["reaches_end"].tolist() == [False, True, False, True]


def with_names(cuts: list[MonoCut]) -> list[MonoCut]:
    return [cut.with_id(str(index)) for index, cut in enumerate(cuts)]


def test_manifests_that_are_missing_or_empty(tmp_path):
    with pytest.raises(FileNotFoundError, match="no manifest at"):
        load_cuts(tmp_path / "cuts_train.jsonl.gz")
    with CutSet.open_writer(tmp_path / "cuts_train.jsonl.gz"):
        pass
    with pytest.raises(ValueError, match="holds no cuts"):
        load_cuts(tmp_path / "cuts_train.jsonl.gz")


def test_validation_may_be_called_dev(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no cuts_validation.*or cuts_dev.*found none"):
        manifest_path(tmp_path, "validation")
    dev = write_manifest(tmp_path, [3.0], split="dev")
    assert manifest_path(tmp_path, "validation") == dev
    with pytest.raises(FileNotFoundError, match=r"found cuts_dev.jsonl.gz"):
        manifest_path(tmp_path, "train")
    new = write_manifest(tmp_path, [3.0], split="validation")
    assert manifest_path(tmp_path, "validation") == new


def older_cut(codes: np.ndarray, storage_path: str, key: str, kind: str, id_: str = "a") -> MonoCut:
    features = Features(
        type="encodec32",
        num_frames=len(codes),
        num_features=codes.shape[1],
        frame_shift=0.02,
        sampling_rate=32000,
        start=0,
        duration=len(codes) * 0.02,
        storage_type=kind,
        storage_path=storage_path,
        storage_key=key,
        channels=0,
        recording_id=id_,
    )
    return MonoCut(id=id_, start=0, duration=features.duration, channel=0, features=features)


def test_the_older_layout_in_hdf5(tmp_path, monkeypatch):
    h5py = pytest.importorskip("h5py")
    codes = tiny_codes(0, 120)
    with h5py.File(tmp_path / "atepp_encodec_train.h5", "w") as file:
        file["a"] = codes
    # written from another working directory, as `prepare.sh` of those recipes did
    cut = older_cut(codes, "data/tokenized/atepp_encodec_train.h5", "a", "numpy_hdf5")
    CutSet.from_cuts([cut]).to_file(tmp_path / "cuts_train.jsonl.gz")
    (loaded,) = load_cuts(tmp_path / "cuts_train.jsonl.gz")
    np.testing.assert_array_equal(cut_codes(loaded), codes)
    read_from_the_directory_of_its_making(tmp_path, codes, monkeypatch)
    assert cut_codes(loaded).dtype == np.int64
    part = loaded.truncate(offset=0.4, duration=1.0)
    np.testing.assert_array_equal(cut_codes(part), codes[20:70])
    assert (reaches_end(loaded, 0.02), reaches_end(part, 0.02)) == (True, False)

    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "h5py" else find_spec(name)
    )
    with pytest.raises(ImportError, match=r"pip install 'valle\[hdf5\]'"):
        cut_codes(loaded)


def read_from_the_directory_of_its_making(folder, codes, monkeypatch) -> None:
    """The manifest lies elsewhere, and its path is that from the working directory."""
    (folder / "data").mkdir()
    (folder / "atepp_encodec_train.h5").rename(folder / "data" / "atepp_encodec_train.h5")
    monkeypatch.chdir(folder)
    cut = older_cut(codes, "data/atepp_encodec_train.h5", "a", "numpy_hdf5")
    (folder / "manifests").mkdir()
    CutSet.from_cuts([cut]).to_file(folder / "manifests" / "cuts_train.jsonl.gz")
    (loaded,) = load_cuts(folder / "manifests" / "cuts_train.jsonl.gz")
    np.testing.assert_array_equal(cut_codes(loaded), codes)


def store(folder, array: np.ndarray) -> MonoCut:
    key = NumpyFilesWriter(folder).write("a", array)
    return older_cut(array, str(folder), key, "numpy_files")


def test_floats_with_log_padding_are_tokens_again(tmp_path):
    codes = tiny_codes(0, 30)
    padded = np.full((40, 4), LOG_EPSILON, dtype=np.float32)
    padded[:30] = codes
    np.testing.assert_array_equal(cut_codes(store(tmp_path, padded)), codes)


def test_what_is_no_tokens(tmp_path):
    with pytest.raises(ValueError, match="cut a: float32 values that are not whole numbers"):
        cut_codes(store(tmp_path, tiny_codes(0, 30).astype(np.float32) + 0.25))
    with pytest.raises(ValueError, match=r"cut a: tokens have shape \(4,\)"):
        cut_codes(one_dimensional(tmp_path))
    with pytest.raises(ValueError, match=r"cut b \(MonoCut\) carries no tokens"):
        cut_codes(MonoCut(id="b", start=0, duration=1, channel=0))


def one_dimensional(folder) -> MonoCut:
    cut = store(folder, tiny_codes(0, 4))
    np.save(folder / cut.features.storage_key, np.arange(4))
    return cut


def test_the_codec_of_a_manifest(manifest, tmp_path, caplog):
    assert codec_of(load_cuts(manifest)) == CODEC
    other = write_manifest(
        tmp_path / "other", [3.0], codec=replace(CODEC, fingerprint="ff"), split="test"
    )
    with pytest.raises(ValueError, match=r"cut test-0-0000.*fingerprint '0123456789abcdef'"):
        codec_of([*load_cuts(manifest), *load_cuts(other)])
    moved = replace(CODEC, name="elsewhere")
    same = write_manifest(tmp_path / "same", [3.0], codec=moved)
    assert codec_of([*load_cuts(manifest), *load_cuts(same)]) == CODEC
    with pytest.raises(ValueError, match="cut a records no codec, the cuts before it one"):
        codec_of([*load_cuts(manifest), store(tmp_path, tiny_codes(0, 3))])
    with caplog.at_level(logging.WARNING):
        assert codec_of([store(tmp_path, tiny_codes(0, 3))]) is None
    assert "does not record which codec" in caplog.text
