from dataclasses import replace

import numpy as np
import pytest
from lhotse import CutSet, MonoCut, MultiCut, Recording, RecordingSet
from lhotse.audio import AudioSource
from lhotse.cut import Cut

from valle.data.sources import find_recordings, read_manifest
from valle.data.storage import make_recording, whole_cut


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def recording(id_: str, path: str, **changes) -> Recording:
    source = AudioSource(type=changes.get("type", "file"), channels=[0], source=path)
    return Recording(id=id_, sources=[source], sampling_rate=8000, num_samples=80000, duration=10)


def test_a_folder_is_searched_deep_in_order(tmp_path):
    touch(tmp_path, "b/x.WAV", "a.flac", "b/c d/y.mp3", "notes.txt", "z.ogg")
    sources = find_recordings(tmp_path)
    assert [s.id for s in sources] == ["a", "b__c_d__y", "b__x", "z"]
    assert [s.path for s in sources] == sorted(s.path for s in sources)


def test_ids_are_unique_and_stay_when_the_listing_order_changes(tmp_path):
    touch(
        tmp_path, "a/b.wav", "a__b.wav", "x.wav", "x.flac", "X.ogg", "plain.wav", "l" * 240 + ".wav"
    )
    keys = [s.key for s in find_recordings(tmp_path)]
    assert len({key.casefold() for key in keys}) == 7
    assert "plain" in keys
    assert all("/" not in key and len(key.encode()) < 200 for key in keys)


def test_folders_without_recordings(tmp_path):
    with pytest.raises(ValueError, match=r"no \.wav, \.flac, \.ogg, \.mp3 file below"):
        find_recordings(tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder of recordings"):
        find_recordings(tmp_path / "none")


def test_a_manifest_of_recordings(tmp_path):
    path = tmp_path / "recordings.jsonl.gz"
    RecordingSet.from_recordings([recording("b/2", "x/b.wav"), recording("a", "a.wav")]).to_file(
        path
    )
    sources = read_manifest(path)
    assert [(s.id, s.path, s.key, s.cuts) for s in sources] == [
        ("a", "a.wav", "a", []),
        ("b/2", "x/b.wav", "b_2", []),
    ]


def test_a_manifest_of_cuts_is_gathered_by_recording(tmp_path):
    path = tmp_path / "cuts.jsonl"
    cut = recording("a", "a.wav").to_cut()
    parts = [cut.truncate(offset=o, duration=2, preserve_id=True).with_id(f"a{o}") for o in (0, 5)]
    CutSet.from_cuts(parts).to_file(path)
    (source,) = read_manifest(path)
    assert [(c.id, c.start) for c in source.cuts] == [("a0", 0), ("a5", 5)]


def test_manifests_that_cannot_be_used(tmp_path):
    path = tmp_path / "recordings.jsonl"
    with pytest.raises(FileNotFoundError, match="no manifest"):
        read_manifest(path)
    RecordingSet.from_recordings([recording("a", "cat x |", type="command")]).to_file(path)
    with pytest.raises(ValueError, match=r"1 sources \(command\), expected one file"):
        read_manifest(path)
    path.write_text("")
    with pytest.raises(ValueError, match="is empty"):
        read_manifest(path)
    lines = [CutSet.from_cuts([recording("a", p).to_cut().with_id(p)]) for p in ("1.wav", "2.wav")]
    (lines[0] + lines[1]).to_file(path)
    with pytest.raises(ValueError, match="id a stands for two files"):
        read_manifest(path)
    CutSet.from_cuts([MonoCut(id="a", start=0, duration=1, channel=0)]).to_file(path)
    with pytest.raises(ValueError, match="keep their recording"):
        read_manifest(path)


def test_a_changed_recording_is_refused_as_its_file_is_not(tmp_path):
    """What lhotse changes while it reads would else have the tokens of what it was before."""
    path = tmp_path / "recordings.jsonl"
    original = recording("a", "a.wav")
    for changed in (original.perturb_speed(1.1), original.perturb_volume(0.5)):
        RecordingSet.from_recordings([changed]).to_file(path)
        with pytest.raises(ValueError, match=r"changed by (Speed|Volume), .* as a sound file"):
            read_manifest(path)
        CutSet.from_cuts([changed.to_cut()]).to_file(path)
        with pytest.raises(ValueError, match=r"recording a_\S+ is its file changed by"):
            read_manifest(path)


@pytest.mark.parametrize("other", ["x/a.wav", "./x/a.wav", "y/../x/a.wav"])
def test_one_file_has_one_id(tmp_path, other):
    path = tmp_path / "recordings.jsonl"
    RecordingSet.from_recordings([recording("a", "x/a.wav"), recording("b", other)]).to_file(path)
    with pytest.raises(ValueError, match="is the file of recording a and of recording b, expected"):
        read_manifest(path)


def stereo_cut(channel: int | list[int]) -> Cut:
    kind = MultiCut if isinstance(channel, list) else MonoCut
    whole = make_recording("a", "a.wav", 80000, 8000, 2)
    return kind(id="a", start=0, duration=10, channel=channel, recording=whole)


def test_cuts_take_all_channels(tmp_path, codec_info):
    path = tmp_path / "cuts.jsonl"
    for channel in (0, 1, [1]):
        CutSet.from_cuts([stereo_cut(channel)]).to_file(path)
        with pytest.raises(ValueError, match=r"cut a takes channel .* expected all, \[0, 1\]"):
            read_manifest(path)
    # those of this tokenizer mean the mix, and may be tokenised again
    tokens = whole_cut(stereo_cut(0).recording, "tokens", "a", 500, codec_info)
    for cut in (stereo_cut([0, 1]), tokens):
        CutSet.from_cuts([cut]).to_file(path)
        assert [len(source.cuts) for source in read_manifest(path)] == [1]


@pytest.mark.parametrize("name", ["cuts.jsonl.gz", "cuts.jsonl"])
def test_a_damaged_manifest_is_named(tmp_path, name):
    path = tmp_path / name
    recordings = [replace(recording(f"r{i}", f"{i}.wav")) for i in range(2000)]
    RecordingSet.from_recordings(recordings).to_file(path)
    content = path.read_bytes()
    assert len(read_manifest(path)) == 2000
    noise = np.random.default_rng(0).bytes(1000)
    damaged = [content[: len(content) // 2 - 3], content[:-2000] + noise + content[-1000:]]
    for bytes_ in damaged:
        path.write_bytes(bytes_)
        with pytest.raises(ValueError, match=rf"the manifest .*{name} is damaged: .* make it"):
            read_manifest(path)
