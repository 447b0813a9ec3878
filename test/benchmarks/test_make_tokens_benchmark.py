"""The tokenizer's benchmark at a tiny size: what it writes, and what it says of it."""

import io
import json
from contextlib import redirect_stdout

import make_tokens
import pytest
import soundfile
from tiny_codec import RATE, noise

from valle.data.codec import Codec


@pytest.fixture(scope="module")
def run(codec_dir, tmp_path_factory):
    """The JSON and the printed text of a run on sound that it writes."""
    file = tmp_path_factory.mktemp("tokens") / "make_tokens.json"
    flags = f"--codec {codec_dir} --minutes 0.1 --rounds 2 --probe-mb 1 --output-file {file}"
    with redirect_stdout(io.StringIO()) as printed:
        make_tokens.main(flags.split())
    return json.loads(file.read_text()), printed.getvalue()


def test_the_sound_is_of_all_kinds_and_as_long_as_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(make_tokens, "RECORDING_SEC", (2.0, 4.0))
    infos = [soundfile.info(p) for p in make_tokens.write_recordings(tmp_path / "x", 0.3).iterdir()]
    assert {(info.format, info.channels) for info in infos} == {
        ("FLAC", 1), ("FLAC", 2), ("WAV", 1), ("WAV", 2)
    }  # fmt: skip
    assert {info.samplerate for info in infos} == {44100}
    assert 18 <= sum(info.duration for info in infos) <= 22


def test_every_way_is_compared_with_the_tokenizer(run):
    rows = {row["name"]: row for row in run[0]["speed"]}
    assert list(rows) == [
        make_tokens.WHOLE, make_tokens.READING, make_tokens.BESIDE, make_tokens.ALONE
    ]  # fmt: skip
    whole = rows[make_tokens.WHOLE]
    assert whole["share"] == whole["share_best"] == whole["share_processor"] == 1
    for row in rows.values():
        assert row["hours_an_hour"] == pytest.approx(6 / row["seconds"], rel=0.01)
        ratio = row["seconds"] / whole["seconds"]
        assert row["share_best"] == pytest.approx(ratio)
        ratio = row["processor_sec"] / whole["processor_sec"]
        assert row["share_processor"] == pytest.approx(ratio)
    assert "| tokenizer |" in run[1]


def test_half_precision_is_compared_with_the_codes_of_float32(run):
    rows = {row["dtype"]: row for row in run[0]["precision"]}
    for row in rows.values():
        assert 0 < row["same_frames"] <= min(row["same"], row["same_first"]) < 1
    assert rows["bfloat16"]["same"] < rows["float16"]["same"]


def test_all_recordings_are_encoded_each_time(codec_dir, tmp_path, monkeypatch):
    """On recordings of one's own."""
    for i in range(3):
        soundfile.write(tmp_path / f"{i}.wav", noise(2.0, seed=i), RATE)
    encode, encoded = Codec.encode, []

    def counted(self, audio, sampling_rate=None):
        encoded.append(audio.shape[-1])
        return encode(self, audio, sampling_rate)

    monkeypatch.setattr(Codec, "encode", counted)
    file = tmp_path / "found.json"
    flags = f"--codec {codec_dir} --src-dir {tmp_path} --rounds 2 --probe-mb 1"
    flags += " --skip alone precision"
    make_tokens.main([*flags.split(), "--output-file", str(file)])
    # two ways that encode, in two rounds and one before them
    assert encoded == [2 * RATE] * 3 * 2 * 3


def test_a_codec_that_is_not_there(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        make_tokens.main(["--codec", str(tmp_path), "--minutes", "0.01", "--probe-mb", "1"])
    assert end.value.code == 1
    assert "cannot load the codec" in capsys.readouterr().err


def test_the_random_codec_has_the_sizes_of_the_real_one(tmp_path):
    codec = Codec.from_pretrained(make_tokens.write_random_codec(tmp_path))
    assert (codec.sampling_rate, codec.hop_length, codec.num_quantizers) == (32000, 640, 4)
    assert codec.codebook_size == 2048
