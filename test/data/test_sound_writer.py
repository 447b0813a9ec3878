import io
import os
import signal
import subprocess
import sys
import wave

import numpy as np
import pytest
import soundfile
import torch

from valle.data import GrowingWav, RawPCM, ReaderGone
from valle.data import sound_writer as writer_module
from valle.data.sound_writer import to_pcm16

RATE = 8000


def sound(num_samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, num_samples).astype(np.float32)


def read_strictly(path) -> np.ndarray:
    """By the sizes in the header, which other readers may ignore."""
    with wave.open(str(path)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, RATE)
        data = file.readframes(file.getnframes())
    assert path.stat().st_size == 44 + len(data)
    return np.frombuffer(data, "<i2")


def test_samples_are_rounded_and_clamped():
    step = 1 / 32768
    samples = np.array([0, 0.6 * step, -0.6 * step, 0.4 * step, 0.5, 1, -1, 3, -3], np.float32)
    expected = [0, 1, -1, 0, 16384, 32767, -32768, 32767, -32768]
    assert np.frombuffer(to_pcm16(samples), "<i2").tolist() == expected
    assert to_pcm16(torch.from_numpy(samples)) == to_pcm16(samples)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros((1, 5), np.float32), r"float32 \(1, 5\), expected floating point \(N,\)"),
        (torch.zeros(5, dtype=torch.int16), "int16"),
        (np.array([0.0, np.nan, np.inf]), "2 samples are NaN or infinite"),
    ],
)
def test_samples_that_are_none(samples, message):
    with pytest.raises(ValueError, match=message):
        to_pcm16(samples)


def test_a_growing_file_is_whole_after_every_write(tmp_path):
    path = tmp_path / "new" / "piece.wav"
    written = np.zeros(0, np.float32)
    with GrowingWav(path, RATE) as wav:
        assert len(read_strictly(path)) == 0
        for seed, num_samples in enumerate((100, 1, 0, 20_000)):
            chunk = sound(num_samples, seed)
            wav.write(chunk)
            written = np.concatenate([written, chunk])
            assert wav.num_samples == len(written)
            assert read_strictly(path).tobytes() == to_pcm16(written)
    read, rate = soundfile.read(path, dtype="float32")
    assert rate == RATE
    assert np.abs(read - written).max() <= 1 / 32768
    wav.close()  # a second time


def test_a_growing_file_replaces_an_older_one(tmp_path):
    path = tmp_path / "piece.wav"
    path.write_bytes(b"x" * 10_000)
    with GrowingWav(path, RATE) as wav:
        wav.write(sound(10))
    assert len(read_strictly(path)) == 10


def test_an_error_in_the_middle_leaves_what_was_written(tmp_path):
    path = tmp_path / "piece.wav"

    def write_until_it_fails():
        with GrowingWav(path, RATE) as wav:
            wav.write(sound(10))
            wav.write(np.array([np.nan]))

    with pytest.raises(ValueError, match="NaN"):
        write_until_it_fails()
    assert len(read_strictly(path)) == 10


def test_a_wav_file_that_is_full(tmp_path, monkeypatch):
    monkeypatch.setattr(writer_module, "_MOST_BYTES", 200)
    path = tmp_path / "piece.wav"
    with GrowingWav(path, RATE) as wav:
        wav.write(sound(100))
        with pytest.raises(ValueError, match=r"would hold 202 bytes.*holds 200 at most"):
            wav.write(sound(1))
    assert len(read_strictly(path)) == 100


def test_the_largest_size_fits_the_header():
    assert writer_module._MOST_BYTES + 36 == 2**32 - 1


KILLED = """
import sys, time
import numpy as np
from valle.data import GrowingWav
wav = GrowingWav(sys.argv[1], 8000)
for _ in range(3):
    wav.write(np.full(1000, 0.25, np.float32))
print("written", flush=True)
time.sleep(60)
"""


def test_a_killed_process_leaves_a_readable_file(tmp_path):
    path = tmp_path / "piece.wav"
    command = [sys.executable, "-c", KILLED, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "written\n"
        process.send_signal(signal.SIGKILL)
    assert read_strictly(path).tolist() == [8192] * 3000


def test_raw_samples_go_out_at_once():
    reader, sender = os.pipe()
    with open(reader, "rb") as received, open(sender, "wb") as stream:
        with RawPCM(stream) as pcm:
            for seed in range(3):
                pcm.write(torch.from_numpy(sound(50, seed)))
                assert received.read(100) == to_pcm16(sound(50, seed))
        assert not stream.closed


def test_raw_samples_have_no_header():
    stream = io.BytesIO()
    RawPCM(stream).write(sound(20))
    assert stream.getvalue() == to_pcm16(sound(20))


PLAYS_TO_NOBODY = """
import sys
import numpy as np
from valle.data import RawPCM, ReaderGone
try:
    with RawPCM(sys.stdout.buffer) as pcm:
        for _ in range(1000):
            pcm.write(np.zeros(20000, np.float32))
except ReaderGone as gone:
    print(gone, file=sys.stderr)
"""


def test_a_reader_that_goes_away_ends_a_script_without_a_traceback():
    command = [sys.executable, "-c", PLAYS_TO_NOBODY]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as process:
        assert len(process.stdout.read(10)) == 10
        process.stdout.close()
        complaints = process.stderr.read().decode()
    assert complaints == "the reader of the sound has closed the pipe\n"
    assert process.returncode == 0


def test_a_reader_that_goes_away_is_an_error_of_its_own():
    reader, sender = os.pipe()
    os.close(reader)
    with open(sender, "wb") as stream, pytest.raises(ReaderGone, match="closed the pipe"):
        RawPCM(stream).write(sound(10))
