"""The tokenizer run again, after files changed or vanished, or while another process works."""

import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tokenizer
from tiny_codec import RATE, noise
from tokenizer_runs import arguments, contents, write_recordings

from valle.data.worklog import read_log


def fresh_contents(codec_dir: Path, folder: Path, output: Path) -> dict[str, str]:
    """What a run that knows of no other gives."""
    assert tokenizer.run(arguments(codec_dir, output, "--src-dir", folder)) == 0
    return contents(output)


@pytest.mark.parametrize("counts", [(1, 1, 1), (1, 2, 3), (3, 2, 1)])
def test_a_file_that_changes_and_changes_back(codec_dir, tmp_path, counts):
    """The log of the first run tells the truth about the file, but its tokens are gone."""
    folder, output = write_recordings(tmp_path / "in", 4), tmp_path / "out"
    original = (folder / "001.wav").read_bytes()
    for run, count in enumerate(counts):
        if run == 1:
            soundfile.write(folder / "001.wav", noise(2.5, seed=9), RATE)
        else:
            (folder / "001.wav").write_bytes(original)
        for shard in range(count):
            flags = ("--src-dir", folder, "--num-shards", count, "--shard", shard)
            assert tokenizer.run(arguments(codec_dir, output, *flags)) == 0
        assert contents(output) == fresh_contents(codec_dir, folder, tmp_path / f"fresh-{run}")


def test_a_log_without_times_is_older_than_one_with(codec_dir, tmp_path, caplog):
    caplog.set_level("INFO")
    folder, output = write_recordings(tmp_path / "in", 4), tmp_path / "out"
    args = arguments(codec_dir, output, "--src-dir", folder)
    tokenizer.run(args)
    (entry,) = (e for e in read_log(output / "work-0-of-1.jsonl") if e["id"] == "001")
    del entry["time"]
    late = str(entry | {"bytes": 1, "num_frames": 1}).replace("'", '"') + "\n"
    (output / "work-1-of-2.jsonl").write_text(late)
    assert tokenizer.run(args) == 0
    assert "6 recordings were done before" in caplog.text
    assert contents(output) == fresh_contents(codec_dir, folder, tmp_path / "fresh")


def test_tokens_that_are_gone_cannot_be_made_again_without_their_sound(codec_dir, tmp_path, capsys):
    folder, output = write_recordings(tmp_path / "in", 4), tmp_path / "out"
    manifest = manifest_of(folder, tmp_path / "recordings.jsonl", 4)
    args = arguments(codec_dir, output, "--manifest", manifest)
    assert tokenizer.run(args) == 0
    (folder / "001.wav").unlink()
    (output / "tokens" / "001.npy").unlink()
    capsys.readouterr()
    assert tokenizer.run(args) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "recordings kept 3" in printed
    assert "recordings skipped 1 missing 1" in printed


def manifest_of(folder: Path, path: Path, count: int) -> Path:
    from lhotse import Recording, RecordingSet

    items = [Recording.from_file(folder / f"{i:03d}.wav") for i in range(count)]
    RecordingSet.from_recordings(items).to_file(path)
    return path


def test_a_shard_knows_what_another_has_to_do_again(codec_dir, tmp_path, caplog):
    caplog.set_level("INFO")
    folder, output = write_recordings(tmp_path / "in", 4), tmp_path / "out"
    args = [
        arguments(codec_dir, output, "--src-dir", folder, "--num-shards", 2, "--shard", i)
        for i in range(2)
    ]
    for arg in args:
        tokenizer.run(arg)
    before = contents(output)
    first = next(e for e in read_log(output / "work-1-of-2.jsonl") if "skipped" not in e)
    (output / "tokens" / f"{first['key']}.npy").unlink()
    caplog.clear()
    assert tokenizer.run(args[0]) == 0
    assert "not finished yet: shard 1 (1 recordings)" in caplog.text
    assert tokenizer.run(args[1]) == 0
    assert contents(output) == before


def test_a_merge_waits_for_who_tries_a_file_again(codec_dir, tmp_path, monkeypatch, caplog):
    """It would else clear away what that process is writing."""
    caplog.set_level("INFO")
    folder, output = write_recordings(tmp_path / "in", 4), tmp_path / "out"
    args = [
        arguments(codec_dir, output, "--src-dir", folder, "--num-shards", 2, "--shard", i)
        for i in range(2)
    ]
    for arg in reversed(args):
        tokenizer.run(arg)
    before = contents(output)
    log = output / "work-1-of-2.jsonl"
    entry = next(e for e in read_log(log) if "skipped" not in e)
    skipped = {key: entry[key] for key in ("id", "key", "bytes", "time")}
    lines = [str(skipped | {"skipped": "unreadable"}).replace("'", '"')]
    lines += [line for line in log.read_text().splitlines() if f'"{entry["id"]}"' not in line]
    log.write_text("\n".join(lines) + "\n")
    save, mergers = np.save, []

    def save_meanwhile(file, *rest, **kwargs):
        mergers.append(threading.Thread(target=tokenizer.run, args=(args[0],)))
        mergers[0].start()
        mergers[0].join(1.0)
        assert mergers[0].is_alive()
        assert Path(file.name).exists()
        save(file, *rest, **kwargs)

    monkeypatch.setattr(np, "save", save_meanwhile)
    caplog.clear()
    assert tokenizer.run(args[1]) == 0
    mergers[0].join(60)
    assert not mergers[0].is_alive()
    assert "waiting for a process that is still at work" in caplog.text
    assert contents(output) == before


@pytest.mark.parametrize("format_", ["numpy", "shar"])
def test_manifests_of_before_do_not_outlive_what_they_held(codec_dir, tmp_path, format_, capsys):
    folder, output = write_recordings(tmp_path / "in", 4), tmp_path / "out"
    args = arguments(codec_dir, output, "--src-dir", folder, "--format", format_)
    assert tokenizer.run(args) == 0
    assert list(output.glob("cuts_*"))
    args.max_silence = -1.0
    assert tokenizer.run(args) == 1
    assert not list(output.glob("cuts_*"))
    assert "mostly silent 4" in " ".join(capsys.readouterr().out.split())
    args.max_silence = None
    assert tokenizer.run(args) == 0
    assert list(output.glob("cuts_*"))
