from pathlib import Path

import pytest
import torch
from tiny_codec import CODES, HOP, QUANTIZERS, save_codec
from torch import nn

from valle.data import Codec
from valle.data import codec as codec_module
from valle.data import codec_stream as stream_module
from valle.data.codec_stream import measure_reach

BUNDLED = Path(__file__).parents[2] / "egs" / "minipiano" / "codec"
KINDS = {
    "tiny": {},
    "causal": {"use_causal_conv": True},
    "deep": {"num_lstm_layers": 2, "num_residual_layers": 3, "use_conv_shortcut": True},
    "zero-padded": {"pad_mode": "constant"},
    "bundled": None,
}
# of the loudest sample; measured: 1e-6 at most
TOLERANCE = 5e-6


@pytest.fixture(scope="module")
def codecs(tmp_path_factory):
    """Every kind, made when first asked for."""
    made: dict[str, Codec] = {}

    def get(kind: str) -> Codec:
        if kind not in made:
            changes = KINDS[kind]
            folder = BUNDLED
            if changes is not None:
                folder = save_codec(tmp_path_factory.mktemp(kind), **changes)
            made[kind] = Codec.from_pretrained(folder)
            if changes is not None:
                strengthen_memory(made[kind])
        return made[kind]

    return get


@pytest.fixture
def codec(codecs):
    return codecs("tiny")


def strengthen_memory(codec: Codec) -> None:
    """An untrained LSTM forgets within a few frames, and its part of the sound is faint."""
    for parameter in codec._model.decoder.layers[1].lstm.parameters():
        parameter.mul_(4)


def some_codes(codec: Codec, B: int, T: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(B * 1000 + T)
    shape = (B, T, codec.num_quantizers)
    return torch.randint(0, codec.codebook_size, shape, generator=generator)


def chunk_sizes(name: str, T: int) -> list[int]:
    if name == "whole":
        return [T]
    if name != "random":
        return [int(name)] * (T // int(name)) + [T % int(name)]
    generator = torch.Generator().manual_seed(T)
    sizes = torch.randint(0, 20, (T,), generator=generator).cumsum(0).clamp(max=T)
    return [0, *sizes.diff(prepend=torch.tensor([0])).tolist()]


def stream(codec: Codec, codes: torch.Tensor, sizes: list[int], lens=None) -> torch.Tensor:
    """Feed chunks of these sizes, `lens` being the rows' lengths in all; join what comes out."""
    B, T, Q = codes.shape
    decoder = codec.stream_decoder(B)
    left = torch.full((B,), T) if lens is None else torch.tensor(lens)
    sounds = []
    for chunk in codes.split(sizes, dim=1):
        here = left.clamp(max=chunk.shape[1])
        sounds.append(decoder.feed(chunk, here))
        left = left - here
    return torch.cat([*sounds, decoder.finish()], dim=1)


def assert_same_sound(joined: torch.Tensor, whole: torch.Tensor) -> None:
    assert joined.shape == whole.shape
    assert (joined - whole).abs().max() <= TOLERANCE * whole.abs().max()


@pytest.mark.parametrize("sizes", ["1", "7", "25", "random", "whole"])
@pytest.mark.parametrize("kind", KINDS)
def test_chunks_joined_are_the_sound_of_all_codes(codecs, kind, sizes):
    codec = codecs(kind)
    codes = some_codes(codec, 1, 60)
    whole, _ = codec.decode(codes)
    joined = stream(codec, codes, chunk_sizes(sizes, 60))
    assert_same_sound(joined, whole)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_carried_over_matters(codecs, kind):
    """Otherwise the equality above would hold for a decoder that forgets."""
    codec = codecs(kind)
    codes = some_codes(codec, 1, 60)
    whole, _ = codec.decode(codes)
    second, _ = codec.decode(codes[:, 20:])
    error = (second - whole[:, 20 * codec.hop_length :]).abs()
    assert error.max() > 1000 * TOLERANCE * whole.abs().max()
    beyond_convolutions = error[:, 9 * codec.hop_length :]
    assert beyond_convolutions.max() > 2 * TOLERANCE * whole.abs().max()


@pytest.mark.parametrize("num_frames", range(1, 13))
@pytest.mark.parametrize("kind", ["tiny", "causal", "deep"])
def test_pieces_shorter_than_the_padding(codecs, kind, num_frames):
    codec = codecs(kind)
    codes = some_codes(codec, 1, num_frames)
    whole, _ = codec.decode(codes)
    for sizes in ("1", "7", "whole"):
        joined = stream(codec, codes, chunk_sizes(sizes, num_frames))
        assert_same_sound(joined, whole)


@pytest.mark.parametrize("sizes", ["1", "7", "25", "random", "whole"])
@pytest.mark.parametrize("lens", [[13, 40], [40, 2, 25], [0, 40, 14], [3, 20, 20]])
@pytest.mark.parametrize("kind", ["tiny", "causal"])
def test_rows_that_end_apart(codecs, kind, lens, sizes):
    codec = codecs(kind)
    codes = some_codes(codec, len(lens), 40)
    whole, _ = codec.decode(codes, torch.tensor(lens))
    for row, n in zip(codes, lens, strict=True):
        row[n:] = -1  # never looked at
    joined = stream(codec, codes, chunk_sizes(sizes, 40), lens)
    assert_same_sound(joined, whole)
    for row, n in zip(joined, lens, strict=True):
        assert not row[n * HOP :].any()


def test_rows_of_the_bundled_codec_end_apart(codecs):
    codec = codecs("bundled")
    lens = [30, 11, 60]
    codes = some_codes(codec, 3, 60)
    whole, _ = codec.decode(codes, torch.tensor(lens))
    joined = stream(codec, codes, chunk_sizes("25", 60), lens)
    assert_same_sound(joined, whole)


def test_an_ending_row_does_not_wait_and_a_long_row_is_not_hurried(codec):
    codes = some_codes(codec, 2, 20)
    decoder = codec.stream_decoder(2)
    late = decoder.num_right_frames
    assert decoder.feed(codes[:, :10]).shape == (2, (10 - late) * HOP)
    assert decoder.feed(codes[:, 10:], torch.tensor([4, 10])).shape == (2, 10 * HOP)
    assert decoder.finish().shape == (2, late * HOP)


def test_sound_comes_once_all_rows_have_ended(codec):
    decoder = codec.stream_decoder(2)
    sound = decoder.feed(some_codes(codec, 2, 20), torch.tensor([4, 9]))
    assert sound.shape == (2, 9 * HOP)
    assert decoder.feed(some_codes(codec, 2, 5), torch.tensor([0, 0])).shape == (2, 0)
    assert decoder.finish().shape == (2, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_sound_is_as_late_as_it_must_be(codecs, kind):
    """The code `num_right_frames` ahead still changes a frame's sound, the next one does not."""
    codec = codecs(kind)
    decoder = codec.stream_decoder()
    late = decoder.num_right_frames
    codes = some_codes(codec, 1, 40)
    num_out = decoder.feed(codes[:, :20]).shape[1] // codec.hop_length
    assert num_out == 20 - late
    for num_changed, same in ((late, False), (late + 1, True)):
        other = codes.clone()
        other[:, num_out - 1 + num_changed :] += 1
        sounds = [codec.decode(c % codec.codebook_size)[0] for c in (codes, other)]
        last = [s[:, (num_out - 1) * codec.hop_length : num_out * codec.hop_length] for s in sounds]
        assert torch.equal(*last) == same


def test_nothing_grows_with_the_piece(codec):
    decoder = codec.stream_decoder()
    codes = some_codes(codec, 1, 300)
    held = []
    for chunk in codes.split(3, dim=1):
        assert decoder.feed(chunk).shape[1] in (0, 2 * HOP, 3 * HOP, 5 * HOP)
        held.append(num_bytes_held(decoder))
    decoder.feed(codes)
    held.append(num_bytes_held(decoder))
    assert len(set(held[5:])) == 1


def num_bytes_held(decoder) -> int:
    """What the decoder keeps between calls."""
    row = decoder._rows[0]
    tensors = [row._ready, row._before._held, row._after._held, *(row._state or ())]
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors if tensor is not None)


def test_decode_takes_long_pieces_through_a_stream(codec, monkeypatch):
    codes, lens = some_codes(codec, 3, 200), torch.tensor([200, 20, 0])
    whole, _ = codec.decode(codes, lens)
    monkeypatch.setattr(codec_module, "_CHUNK_SEC", 0.5)
    assert_same_sound(codec.decode(codes, lens)[0], whole)


def test_a_long_chunk_is_taken_in_pieces(codec, monkeypatch):
    codes = some_codes(codec, 2, 100)
    whole, _ = codec.decode(codes, torch.tensor([100, 31]))
    monkeypatch.setattr(stream_module, "_PIECE_FRAMES", 10)
    joined = stream(codec, codes, [60, 40], [100, 31])
    assert_same_sound(joined, whole)


def test_fewer_quantizers_and_a_callers_autocast(codec):
    codes = some_codes(codec, 1, 30)[..., :2]
    whole, _ = codec.decode(codes)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        joined = stream(codec, codes, [10, 20])
    assert joined.dtype == torch.float32
    assert not joined.requires_grad
    assert_same_sound(joined, whole)


def test_a_reach_is_seen_exactly():
    layers = nn.Sequential(
        nn.ConstantPad1d((2, 4), 0), nn.Conv1d(3, 5, 7), nn.ConvTranspose1d(5, 1, 4, stride=4)
    )
    assert measure_reach(layers, 3, 4) == (2, 4)
    assert measure_reach(nn.Conv1d(3, 5, 1), 3, 1) == (0, 0)


def test_a_decoder_that_looks_too_far():
    with pytest.raises(ValueError, match="looks 32 frames or more to one side"):
        measure_reach(nn.Conv1d(3, 5, 65, padding=32), 3, 1)


def test_a_stream_of_no_rows(codec):
    with pytest.raises(ValueError, match="num_rows is 0, expected 1 or more"):
        codec.stream_decoder(0)


@pytest.mark.parametrize(
    ("codes", "lens", "message"),
    [
        (torch.zeros(1, 4, QUANTIZERS).long(), None, "codes have 1 rows, expected 2"),
        (torch.zeros(2, 4, QUANTIZERS).long(), None, r"row 1 \(from 0\) ended .* 4 more frames"),
        (torch.zeros(2, 4, QUANTIZERS).long(), [4, 1], r"row 1 \(from 0\) ended .* 1 more frames"),
        (torch.full((2, 4, QUANTIZERS), CODES), [4, 0], f"from {CODES} to {CODES}"),
        (torch.zeros(2, 4, QUANTIZERS).long(), [5, 0], r"lens are \[5, 0\]"),
        (torch.zeros(4, QUANTIZERS).long(), None, r"expected integers \(B, T, Q\)"),
    ],
)
def test_chunks_that_are_refused_and_leave_the_stream_as_it_was(codec, codes, lens, message):
    good = some_codes(codec, 2, 30)
    decoder = codec.stream_decoder(2)
    sounds = [decoder.feed(good[:, :20], torch.tensor([20, 7]))]
    with pytest.raises(ValueError, match=message):
        decoder.feed(codes, None if lens is None else torch.tensor(lens))
    sounds += [decoder.feed(good[:, 20:], torch.tensor([10, 0])), decoder.finish()]
    whole, _ = codec.decode(good, torch.tensor([30, 7]))
    assert_same_sound(torch.cat(sounds, dim=1), whole)


def test_a_finished_stream(codec):
    decoder = codec.stream_decoder()
    assert decoder.finish().shape == (1, 0)
    with pytest.raises(ValueError, match="is finished"):
        decoder.feed(some_codes(codec, 1, 3))
    with pytest.raises(ValueError, match="is finished"):
        decoder.finish()
