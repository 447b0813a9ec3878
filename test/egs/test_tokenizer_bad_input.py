"""Whatever lies in a folder of recordings: tokens, or a counted skip with its reason."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tokenizer
import tokenizer_reading
from tiny_codec import RATE, noise
from tokenizer_runs import arguments

from valle.data.audio import AudioError, read_mono
from valle.data.codec import Codec
from valle.data.manifest import cut_codes, load_cuts
from valle.data.sources import Source
from valle.data.storage import stored_frames

SECONDS = 2.345


def save(path: Path, sound: np.ndarray | None = None, rate: int = RATE, **how) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, noise(SECONDS, rate) if sound is None else sound, rate, **how)


def cut_short(path: Path, rate: int = RATE) -> None:
    """A file of which the second half never arrived."""
    save(path, noise(20, rate), rate)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def only_header(path: Path) -> None:
    save(path)
    path.write_bytes(path.read_bytes()[:44])


def with_nan(path: Path) -> None:
    sound = noise(SECONDS)
    sound[777] = np.nan
    save(path, sound, subtype="FLOAT")


def with_infinity(path: Path) -> None:
    sound = noise(SECONDS)
    sound[777] = -np.inf
    save(path, sound, subtype="DOUBLE")


def with_largest_samples(path: Path) -> None:
    """All is finite, until a filter adds some of them up."""
    sound = noise(SECONDS, 44100)
    sound[1000:1100] = np.finfo("f4").max
    sound[1050:1100] *= -1
    save(path, sound, 44100, subtype="FLOAT")


def with_rate_in_header(path: Path, rate: int) -> None:
    save(path)
    content = bytearray(path.read_bytes())
    content[24:28] = rate.to_bytes(4, "little")
    path.write_bytes(content)


def of_unknown_length(path: Path) -> None:
    """A flac that was written into a pipe: its header says 0 samples."""
    save(path)
    content = bytearray(path.read_bytes())
    assert content[:4] == b"fLaC"
    content[21] &= 0xF0  # the last 36 bits of bytes 18 to 25
    content[22:26] = bytes(4)
    path.write_bytes(content)


def piped_wav(path: Path) -> None:
    """A wav that was written into a pipe: its header says 4 GB."""
    save(path)
    content = bytearray(path.read_bytes())
    content[4:8] = content[40:44] = b"\xff" * 4
    path.write_bytes(content)


TOKENS = {
    "8 bits.wav": lambda path: save(path, subtype="PCM_U8"),
    "24 bits.wav": lambda path: save(path, subtype="PCM_24"),
    "24 bits.flac": lambda path: save(path, subtype="PCM_24"),
    "32 bits.wav": lambda path: save(path, subtype="PCM_32"),
    "float.wav": lambda path: save(path, subtype="FLOAT"),
    "double.wav": lambda path: save(path, subtype="DOUBLE"),
    "beyond full scale.wav": lambda path: save(path, noise(SECONDS) * 9, subtype="FLOAT"),
    "5.1.wav": lambda path: save(path, np.stack([noise(SECONDS, seed=s) for s in range(6)], 1)),
    "5.1.flac": lambda path: save(path, np.stack([noise(SECONDS, seed=s) for s in range(6)], 1)),
    "upper case.WAV": save,
    "Étude № 3 — 練習曲 🎹.wav": save,
    "a\nb\tc\\d\"e'.wav": save,
    "-x $HOME; `y` %s {}.wav": save,
    ".hidden.wav": save,
    f"{'é' * 125}a.wav": save,  # 255 bytes
    "half.ogg": cut_short,  # nothing in it tells how long it was
    "piped.wav": piped_wav,
    "piped.flac": of_unknown_length,
    "deep/er/and/deeper/x.ogg": save,
    **{
        f"{rate}.{kind}": lambda path, rate=rate: save(path, rate=rate)
        for rate in (8000, 11025, 16000, 22050, 32000, 44100, 48000, 88200, 96000, 176400, 192000)
        for kind in ("wav", "flac")
    },
}
SKIPPED = {
    "empty.wav": ("damaged", lambda path: path.touch()),
    "empty.flac": ("damaged", lambda path: path.touch()),
    "empty.ogg": ("damaged", lambda path: path.touch()),
    "empty.mp3": ("damaged", lambda path: path.touch()),
    "half.wav": ("cut off", cut_short),
    "half.flac": ("damaged", cut_short),
    "half.mp3": ("cut off", lambda path: cut_short(path, 16000)),
    "header.wav": ("empty", only_header),
    "no samples.flac": ("damaged", lambda path: save(path, np.zeros(0))),
    "text.wav": ("damaged", lambda path: path.write_text("la la la\n" * 1000)),
    "text.mp3": ("damaged", lambda path: path.write_text("la la la\n" * 1000)),
    "zeros.flac": ("damaged", lambda path: path.write_bytes(bytes(10_000))),
    "nan.wav": ("not finite", with_nan),
    "infinity.wav": ("not finite", with_infinity),
    "too loud to resample.wav": ("too loud", with_largest_samples),
    "too loud to square.wav": (
        "too loud",
        lambda path: save(path, noise(SECONDS) * 1e25, subtype="FLOAT"),
    ),
    "cancelled.wav": (
        "silent",
        lambda path: save(path, np.stack([noise(SECONDS), -noise(SECONDS)], 1)),
    ),
    "silence.wav": ("silent", lambda path: save(path, np.zeros(RATE * 2))),
    "short.wav": ("too short", lambda path: save(path, noise(0.9))),
    "44101.wav": ("odd rate", lambda path: save(path, rate=44101)),
    "1 Hz.wav": ("odd rate", lambda path: with_rate_in_header(path, 1)),
    "gone.wav": ("missing", lambda path: path.symlink_to("nowhere.wav")),
    "loop.wav": ("missing", lambda path: path.symlink_to("loop.wav")),
    os.fsdecode(b"\xff\xfe.wav"): ("name not UTF-8", lambda path: path.write_bytes(b"RIFF")),
}


def lines_of(output: Path) -> dict[str, dict]:
    """`recordings.jsonl`, by the last part of the paths."""
    lines = map(json.loads, (output / "recordings.jsonl").read_text("utf-8").splitlines())
    return {Path(line["path"]).name: line for line in lines}


@pytest.fixture(scope="module")
def everything(tmp_path_factory, codec_dir) -> tuple[Path, Path]:
    """All of it in one folder, and what the tokenizer made of it."""
    folder, output = tmp_path_factory.mktemp("everything"), tmp_path_factory.mktemp("output")
    for name, write in TOKENS.items():
        write(folder / name)
    for name, (_, write) in SKIPPED.items():
        write(folder / name)
    (folder / "folder.wav").mkdir()
    flags = ("--src-dir", folder, "--num-workers", 2)
    assert tokenizer.run(arguments(codec_dir, output, *flags)) == 0
    return folder, output


@pytest.fixture(scope="module")
def codec(codec_dir) -> Codec:
    return Codec.from_pretrained(codec_dir)


@pytest.mark.parametrize("name", TOKENS, ids=ascii)
def test_it_becomes_tokens_of_its_true_length(everything, codec, name):
    folder, output = everything
    line = lines_of(output)[Path(name).name]
    sound = read_mono(folder / name)
    if name != "half.ogg":
        assert sound.duration_sec == pytest.approx(SECONDS, abs=0.01)
    assert line["num_frames"] == stored_frames(sound.duration_sec, codec.info)
    assert (line["num_samples"], line["sampling_rate"]) == (len(sound.samples), sound.sampling_rate)
    cuts = [
        cut
        for path in output.glob("cuts_*.jsonl.gz")
        for cut in load_cuts(path)
        if cut.recording.id == line["id"]
    ]
    codes = np.concatenate([cut_codes(cut) for cut in cuts])
    assert len(codes) == line["num_frames"]
    assert len(np.load(output / "tokens" / f"{line['id']}.npy")) == line["num_frames"]
    np.testing.assert_array_equal(codes, codec.encode(folder / name)[0][0, : len(codes)])
    assert sum(cut.duration for cut in cuts) == pytest.approx(sound.duration_sec, abs=0.011)


@pytest.mark.parametrize("name", SKIPPED, ids=ascii)
def test_it_is_skipped_and_counted(everything, name):
    _, output = everything
    printable = name.encode(errors="backslashreplace").decode()
    assert lines_of(output)[printable].keys() == {"id", "path", "skipped"}
    assert lines_of(output)[printable]["skipped"] == SKIPPED[name][0]


def test_whatever_is_measured_is_plain_json(everything):
    """Infinity, which Python writes, is not."""
    _, output = everything

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    for path in [output / "recordings.jsonl", *output.glob("work-*.jsonl")]:
        for line in path.read_text("utf-8").splitlines():
            json.loads(line, parse_constant=refuse)


@pytest.mark.parametrize("group_sec", [0, 100])
def test_what_the_codec_refuses_is_skipped_alone(codec_dir, tmp_path, monkeypatch, group_sec):
    for name, seconds in (("a", 1.5), ("b", 2.5), ("c", 1.7)):
        save(tmp_path / "in" / f"{name}.wav", noise(seconds))
    encode = Codec.encode

    def choosy(self, audio, sampling_rate=None):
        rows = audio if isinstance(audio, list) else [audio]
        if any(row.shape[-1] == 2.5 * RATE for row in rows):
            raise AudioError("not finite", "a recording holds NaN")
        return encode(self, audio, sampling_rate)

    monkeypatch.setattr(Codec, "encode", choosy)
    flags = ("--src-dir", tmp_path / "in", "--group-sec", group_sec)
    assert tokenizer.run(arguments(codec_dir, tmp_path / "out", *flags)) == 0
    lines = lines_of(tmp_path / "out")
    assert lines["b.wav"]["skipped"] == "not finite"
    assert [lines[name]["num_frames"] for name in ("a.wav", "c.wav")] == [75, 85]


def test_an_error_of_resampling_names_the_file(tmp_path, codec_dir, monkeypatch):
    path = tmp_path / "in" / "a.wav"
    save(path)
    monkeypatch.setattr(tokenizer_reading, "resample", lambda samples, *_: samples * np.inf)
    args = arguments(codec_dir, tmp_path / "out", "--src-dir", path.parent)
    error = tokenizer_reading.load_source(Source("a", str(path), "a"), RATE, args)
    assert isinstance(error, AudioError)
    assert str(error).startswith(f"{path}, resampled, holds")


def test_nothing_is_lost_from_the_list(everything):
    _, output = everything
    lines = lines_of(output)
    assert len(lines) == len(TOKENS) + len(SKIPPED)
    ids = [line["id"] for line in lines.values()]
    assert ids == sorted(ids)


def test_names_that_are_alike_stay_apart(codec_dir, tmp_path):
    """In folders, in other cases, with other suffixes, with the separator of folders in them."""
    names = [
        "a/x.wav",
        "b/x.wav",
        "a__x.wav",
        "A/X.WAV",
        "a/x.flac",
        "a/X.wav",
        "\xe9.wav",
        "e\u0301.wav",
    ]
    for seed, name in enumerate(names):
        save(tmp_path / "in" / name, noise(1.5, seed=seed))
    output = tmp_path / "out"
    assert tokenizer.run(arguments(codec_dir, output, "--src-dir", tmp_path / "in")) == 0
    stored = [np.load(path) for path in (output / "tokens").iterdir()]
    assert len(stored) == len(names) == len({codes.tobytes() for codes in stored})
    assert len({path.name.casefold() for path in (output / "tokens").iterdir()}) == len(names)


def test_a_file_that_vanishes_midway(codec_dir, tmp_path, monkeypatch):
    for name in ("a", "b", "c"):
        save(tmp_path / "in" / f"{name}.wav", noise(1.5))
    begin = tokenizer.Tokeniser

    def vanish(*args):
        (tmp_path / "in/b.wav").unlink()
        return begin(*args)

    monkeypatch.setattr(tokenizer, "Tokeniser", vanish)
    args = arguments(codec_dir, tmp_path / "out", "--src-dir", tmp_path / "in")
    assert tokenizer.run(args) == 0
    assert lines_of(tmp_path / "out")["b.wav"]["skipped"] == "missing"
    assert len(list((tmp_path / "out/tokens").iterdir())) == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_tried_again(codec_dir, tmp_path):
    for name in ("a", "b"):
        save(tmp_path / "in" / f"{name}.wav", noise(1.5))
    (tmp_path / "in/b.wav").chmod(0)
    args = arguments(codec_dir, tmp_path / "out", "--src-dir", tmp_path / "in")
    assert tokenizer.run(args) == 0
    assert lines_of(tmp_path / "out")["b.wav"]["skipped"] == "unreadable"
    (tmp_path / "in/b.wav").chmod(0o644)
    assert tokenizer.run(args) == 0
    assert lines_of(tmp_path / "out")["b.wav"]["num_frames"] == 75


def test_a_file_that_fails_to_be_read_is_tried_again(codec_dir, tmp_path, monkeypatch):
    for name in ("a", "b"):
        save(tmp_path / "in" / f"{name}.wav", noise(1.5))
    read = soundfile.SoundFile.read

    def fail(file, *args, **kwargs):
        if file.name.endswith("b.wav"):
            raise soundfile.LibsndfileError(2)
        return read(file, *args, **kwargs)

    args = arguments(codec_dir, tmp_path / "out", "--src-dir", tmp_path / "in")
    with monkeypatch.context() as broken:
        broken.setattr(soundfile.SoundFile, "read", fail)
        assert tokenizer.run(args) == 0
        assert lines_of(tmp_path / "out")["b.wav"]["skipped"] == "unreadable"
    assert tokenizer.run(args) == 0
    assert lines_of(tmp_path / "out")["b.wav"]["num_frames"] == 75
