"""The same cuts in each way of storing them, and manifests of dummy entries."""

import importlib.util
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from lhotse import CutSet, NumpyHdf5Writer
from lhotse.array import Array, TemporalArray
from lhotse.lazy import LazyManifestIterator
from load_data import CODEC, CUT_SEC

from valle.data import cut_codes, load_cuts
from valle.data.jsonl import write_jsonl
from valle.data.readers import PLACEHOLDER, place_in_shard
from valle.data.shar import SHARD_SIZE, write_shards
from valle.data.storage import TOKEN_DTYPE, make_recording, whole_cut, write_cuts
from valle.data.summary import Summary, write_summary

MANIFEST = "cuts_train.jsonl.gz"
SHARDS = "cuts_train"
_CUTS_A_RECORDING = 24


def write_file_a_cut(source: Path, folder: Path) -> None:
    """A numpy file for each cut, in subfolders of a thousand."""

    def written() -> Iterator[Any]:
        for index, cut in enumerate(load_cuts(source)):
            name = f"{index // 1000}/{cut.id}.npy"
            path = folder / "tokens" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            codes = cut_codes(cut).astype(TOKEN_DTYPE)
            np.save(path, codes, allow_pickle=False)
            yield pointing(cut, "numpy_files", "tokens", name, codes.shape, cut.start)

    write_cuts(folder / MANIFEST, written())


def write_hdf5_a_cut(source: Path, folder: Path) -> None:
    """One HDF5 file with a dataset for each cut, as VALL-E has it, though in int16."""
    folder.mkdir(parents=True)
    with NumpyHdf5Writer(str(folder / "tokens.h5")) as writer:

        def written() -> Iterator[Any]:
            for cut in load_cuts(source):
                codes = cut_codes(cut).astype(TOKEN_DTYPE)
                key = writer.write(cut.id, codes)
                yield pointing(cut, writer.name, "tokens.h5", key, codes.shape, cut.start)

        write_cuts(folder / MANIFEST, written())


def write_hdf5_a_recording(source: Path, folder: Path) -> None:
    """One HDF5 file with a dataset for each recording; lhotse reads windows out of it."""
    folder.mkdir(parents=True)
    with NumpyHdf5Writer(str(folder / "tokens.h5")) as writer:

        def written() -> Iterator[Any]:
            done = ""
            for cut in load_cuts(source):
                tokens = cut.audio_features
                if cut.recording_id != done:
                    done = cut.recording_id
                    whole = np.load(Path(tokens.array.storage_path) / tokens.array.storage_key)
                    writer.write(done, whole)
                yield pointing(cut, writer.name, "tokens.h5", done, tokens.shape, 0.0)

        write_cuts(folder / MANIFEST, written())


def write_shar(source: Path, folder: Path) -> None:
    """Lhotse's Shar, as `valle.data.shar` writes it."""
    write_shards(folder / SHARDS, load_cuts(source))


def pointing(
    cut: Any, kind: str, path: str, key: str, shape: tuple[int, ...], start_sec: float
) -> Any:
    """The cut with its codes elsewhere, beginning at `start_sec` of the recording."""
    array = Array(kind, storage_path=path, storage_key=key, shape=list(shape))
    tokens = TemporalArray(array, temporal_dim=0, frame_shift=1 / CODEC.frame_rate, start=start_sec)
    return cut.with_custom("audio_features", tokens)


# The reading


def read_by_us(folder: Path) -> CutSet:
    """As training opens a folder."""
    shards = folder / SHARDS
    return load_cuts(shards if shards.is_dir() else folder / MANIFEST)


def read_by_lhotse(folder: Path) -> CutSet:
    """By lhotse's readers alone: whole files, or shards from front to back."""
    if (folder / SHARDS).is_dir():
        return CutSet.from_shar(in_dir=folder / SHARDS)
    return CutSet(LazyManifestIterator(folder / MANIFEST)).map(InFolder(folder))


class InFolder:
    """Points cuts to the folder of their manifest, and changes nothing else."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, cut: Any) -> Any:
        tokens = cut.audio_features
        path = os.path.join(self.folder, tokens.array.storage_path)
        array = replace(tokens.array, storage_path=path)
        return cut.with_custom("audio_features", replace(tokens, array=array))


Reading = Callable[[Path], CutSet]

# Of each row of the table: the folder and who reads it.
WAYS: dict[str, tuple[str, Reading]] = {
    "numpy, a file a recording": ("numpy", read_by_us),
    "the same, read by lhotse": ("numpy", read_by_lhotse),
    "numpy, a file a cut": ("file-a-cut", read_by_us),
    "HDF5, a dataset a cut": ("hdf5", read_by_us),
    "HDF5, a dataset a recording": ("hdf5-recordings", read_by_us),
    "Shar": ("shar", read_by_us),
    "Shar, read by lhotse": ("shar", read_by_lhotse),
}
WRITERS: dict[str, Callable[[Path, Path], None]] = {
    "file-a-cut": write_file_a_cut,
    "hdf5": write_hdf5_a_cut,
    "hdf5-recordings": write_hdf5_a_recording,
    "shar": write_shar,
}


def writable() -> list[str]:
    """The folders that can be written here: HDF5 needs h5py."""
    has_hdf5 = importlib.util.find_spec("h5py") is not None
    return [name for name in WRITERS if has_hdf5 or not name.startswith("hdf5")]


# Manifests without tokens


def write_dummy_manifest(folder: Path, num_cuts: int, shards: bool) -> None:
    """A manifest, or a folder of shards, whose tokens do not exist, and its summary."""
    summary, path = Summary(), folder / (SHARDS if shards else MANIFEST)
    cuts = dummy_cuts(summary, num_cuts, shards)
    if not shards:
        write_jsonl(path, cuts)
    for number in range(-(-num_cuts // SHARD_SIZE) if shards else 0):
        size = min(SHARD_SIZE, num_cuts - number * SHARD_SIZE)
        write_jsonl(path / f"cuts.{number:06d}.jsonl.gz", (next(cuts) for _ in range(size)))
    write_summary(path, summary)


def dummy_cuts(summary: Summary, num_cuts: int, shards: bool) -> Iterator[dict[str, Any]]:
    """Lines of a manifest as a tokenizer writes them, of cuts of drawn lengths."""
    rng = np.random.default_rng(0)
    shortest, longest = CUT_SEC
    seconds = rng.uniform(shortest, longest, num_cuts).round(2).tolist()
    template: dict[str, Any] = {}
    for index, duration in enumerate(seconds):
        number, part = divmod(index, _CUTS_A_RECORDING)
        if part == 0:
            template = dummy_recording(f"artist__album__recording-{number}")
        cut = json.loads(json.dumps(template)) if shards else dict(template)
        cut |= {"id": f"{template['id']}-{part:04d}", "start": 15.0 * part, "duration": duration}
        if shards:
            place = place_in_shard(f"audio_features.{index // SHARD_SIZE:06d}.tar", 6144, 4128)
            tokens = cut["custom"]["audio_features"]
            tokens["array"] |= place | {"storage_type": PLACEHOLDER}
            tokens["start"] = cut["start"]
        summary.add(duration, template["custom"]["codec"])
        yield cut


def dummy_recording(id_: str) -> dict[str, Any]:
    """A line of the whole of a recording of six minutes."""
    recording = make_recording(id_, f"{id_}.flac", 360 * 44100, 44100, 2)
    return whole_cut(recording, "tokens", id_, 18000, CODEC).to_dict()
