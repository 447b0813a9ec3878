import pytest
from lhotse import CutSet, MonoCut, Recording, RecordingSet
from lhotse.audio import AudioSource

from valle.data.sources import find_recordings, read_manifest


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
