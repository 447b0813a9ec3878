import numpy as np
import pytest
import soundfile
import torch
from lhotse.testing.dummies import dummy_cut

from valle.codec.crops import PEAK_LIMIT, CropDataset, StepSampler
from valle.codec.pieces import Piece, PieceReader, cut_clips, survey_pieces
from valle.data.sources import Source

RATE = 8000


def write(path, samples, rate=RATE) -> Piece:
    soundfile.write(path, np.asarray(samples, dtype=np.float32), rate, subtype="FLOAT")
    return Piece(str(path), len(samples), rate)


def wave(seconds: float, rate: int = RATE, frequency: float = 300.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)


@pytest.mark.parametrize("memory_mib", [0, 64])
def test_crops_never_cross_from_one_piece_into_the_next(tmp_path, memory_mib):
    pieces = [
        write(tmp_path / f"{i}.wav", np.full(size, value))
        for i, (size, value) in enumerate(((150, 0.1), (50, 0.0), (100, 0.3), (300, 0.6)))
    ]
    crops = CropDataset(PieceReader(pieces, RATE, memory_mib), 100, seed=0, stream=0)
    drawn = torch.stack([crops[n] for n in range(200)])
    assert drawn.shape == (200, 1, 100)
    torch.testing.assert_close(drawn.amin(dim=2), drawn.amax(dim=2))
    assert drawn.max() <= PEAK_LIMIT + 1e-6
    assert len({round(float(level), 4) for level in drawn[:, 0, 0]}) > 100  # gains of their own


@pytest.mark.parametrize("rate", [8000, 11025, 44100])
def test_a_crop_is_the_same_from_memory_and_from_the_file(tmp_path, rate):
    piece = write(tmp_path / "a.wav", wave(3.0, rate) * np.linspace(0.2, 1, 3 * rate), rate)
    readers = [PieceReader([piece], RATE, memory_mib) for memory_mib in (64, 0)]
    assert len(readers[0]._kept) == 1
    assert len(readers[1]._kept) == 0
    for start in (0, 1, 7001, 24000 - 800):
        kept, read = (reader.read(0, start, 800) for reader in readers)
        assert kept.shape == read.shape == (800,)
        torch.testing.assert_close(kept, read, atol=1e-4, rtol=0)


def test_memory_is_for_as_many_recordings_as_fit(tmp_path):
    pieces = [write(tmp_path / f"{i}.wav", wave(10.0)) for i in range(3)]
    reader = PieceReader(pieces, RATE, memory_mib=2 * 2 * 80000 / 2**20)  # two of them
    assert sorted(reader._kept) == [0, 1]


def test_a_crop_depends_on_seed_stream_and_number_alone(tmp_path):
    rng = np.random.default_rng(0)
    piece = write(tmp_path / "a.wav", 0.3 * rng.standard_normal(20000))

    def crop(number, seed=0, stream=0):
        return CropDataset(PieceReader([piece], RATE), 100, seed, stream)[number]

    assert torch.equal(crop(5), crop(5))
    for other in (crop(6), crop(5, seed=1), crop(5, stream=1)):
        assert not torch.equal(crop(5), other)


def test_audible_crops_are_preferred_but_for_one_in_sixteen(tmp_path):
    silent, loud = np.zeros(20000), np.full(20000, 0.3)
    pieces = [write(tmp_path / "s.wav", silent), write(tmp_path / "l.wav", loud)]
    crops = CropDataset(PieceReader(pieces, RATE), 100, seed=0, stream=0)
    share = np.mean([bool(crops[n].abs().max() > 0) for n in range(600)])
    assert 0.94 < share < 0.99  # 1 - 1/32 of them
    only = CropDataset(PieceReader(pieces[:1], RATE), 100, seed=0, stream=0)
    assert (only[0] == 0).all()


def test_too_short_pieces_are_refused(tmp_path):
    reader = PieceReader([write(tmp_path / "a.wav", wave(0.01))], RATE)
    with pytest.raises(ValueError, match="all 1 recordings are shorter than a crop of 100 samples"):
        CropDataset(reader, 100, 0, 0)


def test_a_file_that_went_is_named(tmp_path):
    piece = write(tmp_path / "a.wav", wave(1.0))
    reader = PieceReader([piece], RATE)
    (tmp_path / "a.wav").unlink()
    with pytest.raises(ValueError, match=r"cannot read .*a\.wav from sample 10 on"):
        reader.read(0, 10, 100)


def test_files_that_cannot_be_read_are_left_out(tmp_path, caplog):
    write(tmp_path / "a.wav", wave(1.0))
    (tmp_path / "b.wav").write_text("no sound")
    write(tmp_path / "c.wav", [])
    sources = [Source(n, str(tmp_path / f"{n}.wav"), n) for n in "abc"]
    assert [piece.num_samples for piece in survey_pieces(sources)] == [RATE]
    assert "2 of 3 recordings cannot be read" in caplog.text
    with pytest.raises(ValueError, match="none of 2 recordings can be read"):
        survey_pieces(sources[1:])


def test_of_a_recording_with_cuts_the_cuts_alone_are_heard(tmp_path):
    """Tokens of a recording may lie in several splits, if a manifest from elsewhere says so."""
    level = np.repeat([0.1, 0.2, 0.3, 0.4], RATE)
    write(tmp_path / "a.wav", level)
    cuts = [dummy_cut(0, start=1.0, duration=1.0), dummy_cut(1, start=3.0, duration=9.0)]
    pieces = survey_pieces([Source("a", str(tmp_path / "a.wav"), "a", cuts)])
    assert [piece.seconds for piece in pieces] == [1.0, 1.0]  # the second ends with its recording
    for memory_mib in (0, 64):
        reader = PieceReader(pieces, RATE, memory_mib)
        heard = [reader.read(index, 0, RATE) for index in range(2)]
        torch.testing.assert_close(heard[0], torch.full((RATE,), 0.2), atol=1e-4, rtol=0)
        torch.testing.assert_close(heard[1], torch.full((RATE,), 0.4), atol=1e-4, rtol=0)


def test_cuts_behind_the_end_of_their_recording_are_said(tmp_path, caplog):
    write(tmp_path / "a.wav", wave(1.0))
    write(tmp_path / "b.wav", wave(1.0))
    late = [dummy_cut(0, start=2.0, duration=1.0)]
    sources = [Source("a", str(tmp_path / "a.wav"), "a", late)]
    sources.append(Source("b", str(tmp_path / "b.wav"), "b"))
    assert len(survey_pieces(sources)) == 1
    assert "a.wav: its cuts begin behind its end, at 1.00 s" in caplog.text


@pytest.mark.parametrize("memory_mib", [0, 64])
def test_what_is_not_finite_is_silence(tmp_path, memory_mib):
    samples = np.full(RATE, 0.5)
    samples[[10, 20, 30]] = [np.nan, np.inf, -np.inf]
    heard = PieceReader([write(tmp_path / "a.wav", samples)], RATE, memory_mib).read(0, 0, 40)
    assert (heard == 0).nonzero().flatten().tolist() == [10, 20, 30]
    assert heard.max() == pytest.approx(0.5, abs=1e-4)


def test_a_recording_found_damaged_when_it_is_kept_is_left_out(tmp_path, caplog):
    pieces = [write(tmp_path / f"{i}.wav", np.full(RATE, 0.1 * (i + 1))) for i in range(3)]
    (tmp_path / "1.wav").write_bytes(b"now something else")
    reader = PieceReader(pieces, RATE, 64)
    assert len(reader.pieces) == len(reader._kept) == 2
    assert float(reader.read(1, 0, 10)[0]) == pytest.approx(0.3, abs=1e-4)
    assert "left out: cannot read" in caplog.text
    assert "1.wav" in caplog.text


def test_ranks_share_out_the_crops_of_a_step_and_later_steps_go_on():
    whole = list(StepSampler(0, 5, 6))
    assert sorted(number for step in whole for number in step) == list(range(30))
    parts = [list(StepSampler(0, 5, 6, rank, 2)) for rank in range(2)]
    assert [a + b for a, b in zip(*parts, strict=True)] == whole
    assert list(StepSampler(3, 5, 6)) == whole[3:]


def test_clips_are_audible_and_the_same_every_time(tmp_path):
    rng = np.random.default_rng(0)
    pieces = [
        write(tmp_path / "s.wav", np.zeros(500)),
        write(tmp_path / "l.wav", 0.3 * rng.standard_normal(900)),
    ]
    clips = cut_clips(PieceReader(pieces, RATE), 200, 4)
    assert clips.shape == (2, 1, 200)  # two places a piece, the silent piece gives none
    assert torch.equal(clips, cut_clips(PieceReader(pieces, RATE), 200, 4))
    with pytest.raises(ValueError, match="none of 2 recordings holds an audible clip of 1000"):
        cut_clips(PieceReader(pieces, RATE), 1000, 4)
