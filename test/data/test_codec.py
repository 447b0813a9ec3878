import sys

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file
from tiny_codec import CODES, HOP, QUANTIZERS, RATE, make_encodec, noise, save_codec

from valle.data import codec as codec_module
from valle.data.audio import AudioError, resample
from valle.data.codec import Codec, CodecInfo, load_audio
from valle.data.codec_families import EncodecFamily


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_codec(tmp_path_factory.mktemp("codec"))


@pytest.fixture(scope="module")
def codec(folder):
    return Codec.from_pretrained(folder)


def test_numbers_come_from_the_model(codec, folder):
    assert codec.info == CodecInfo(
        str(folder), RATE, RATE / HOP, QUANTIZERS, CODES, codec.info.fingerprint
    )
    assert (codec.hop_length, codec.frame_rate) == (HOP, 50.0)
    assert codec.codebooks().shape == (QUANTIZERS, CODES, 8)
    assert codec.codebooks().dtype == torch.float32


def test_info_survives_a_dict():
    info = CodecInfo("a", 8000, 50.0, 3, 16, "f00")
    assert CodecInfo.from_dict(info.to_dict()) == info
    with pytest.raises(ValueError, match="lacks frame_rate, fingerprint"):
        CodecInfo.from_dict(
            {"name": "a", "sampling_rate": 1, "num_quantizers": 1, "codebook_size": 2}
        )


def test_check_same_names_what_differs_and_lets_a_folder_move():
    info = CodecInfo("a", 8000, 50.0, 3, 16, "f00")
    info.check_same(CodecInfo("moved/a", 8000, 50.0, 3, 16, "f00"), where="here")
    other = CodecInfo("b", 8000, 50.0, 4, 16, "bad")
    with pytest.raises(ValueError, match=r"the checkpoint: .*num_quantizers 3 against 4; finger"):
        info.check_same(other, where="the checkpoint")


def test_ragged_batch_equals_one_by_one(codec):
    waves = [noise(sec, seed=i) for i, sec in enumerate((0.5, 1.237, 0.01, 1.237))]
    codes, lens = codec.encode(waves)
    assert codes.dtype == torch.int64
    assert lens.tolist() == [-(-len(wave) // HOP) for wave in waves]
    assert len(codes.unique()) > CODES // 2  # the comparison below would be empty with one code
    for wave, row, n in zip(waves, codes, lens, strict=True):
        alone, _ = codec.encode(wave)
        assert torch.equal(row[:n], alone[0])
        assert not row[n:].any()


def test_pieces_of_equal_length_may_share_a_pass(codec, monkeypatch):
    """What a GPU does: rows of one length go together."""
    monkeypatch.setattr(codec_module.Codec, "_batches", lambda self, pieces: iter([[0, 2], [1]]))
    waves = [noise(0.5, seed=0), noise(0.7, seed=1), noise(0.5, seed=2)]
    together, _ = codec.encode(waves)
    monkeypatch.undo()
    assert torch.equal(together, codec.encode(waves)[0])


def test_decode_of_a_ragged_batch_equals_one_by_one(codec):
    torch.manual_seed(0)
    codes = torch.randint(0, CODES, (3, 40, QUANTIZERS))
    codes[0, 13:] = -1  # beyond the length, hence never looked at
    lens = torch.tensor([13, 40, 0])
    waves, wave_lens = codec.decode(codes, lens)
    assert wave_lens.tolist() == [13 * HOP, 40 * HOP, 0]
    assert waves.shape == (3, 40 * HOP)
    assert torch.equal(waves[0, : 13 * HOP], codec.decode(codes[:1, :13])[0][0])
    assert torch.equal(waves[1], codec.decode(codes[1:2])[0][0])
    assert not waves[0, 13 * HOP :].any()
    assert not waves[2].any()


@pytest.mark.parametrize("causal", [False, True])
def test_long_recordings_in_pieces_equal_the_whole(tmp_path, monkeypatch, causal):
    codec = Codec.from_pretrained(save_codec(tmp_path, use_causal_conv=causal))
    wave = noise(11.3)
    whole, _ = codec.encode(wave)
    sound, _ = codec.decode(whole)
    monkeypatch.setattr(codec_module, "_CHUNK_SEC", 1.7)
    pieces, lens = codec.encode(wave)
    assert lens.item() == whole.shape[1]
    assert torch.equal(pieces, whole)
    torch.testing.assert_close(codec.decode(whole)[0], sound, atol=1e-5, rtol=0)
    monkeypatch.setattr(EncodecFamily, "left_context_sec", 0.0)
    monkeypatch.setattr(codec_module, "_RIGHT_CONTEXT_FRAMES", 0)
    assert not torch.equal(codec.encode(wave)[0], whole), "context makes no difference here"


def test_files_are_mixed_down_and_resampled(codec, tmp_path):
    left, right = noise(1.0, 44100, seed=1), noise(1.0, 44100, seed=2)
    path = tmp_path / "stereo.wav"
    soundfile.write(path, np.stack([left, right], axis=1), 44100, subtype="FLOAT")
    mono = torch.from_numpy((left + right) / 2)
    expected, _ = codec.encode(resample(mono, 44100, RATE))
    assert torch.equal(codec.encode(path)[0], expected)
    stereo = np.stack([left, right])
    assert torch.equal(codec.encode(stereo, sampling_rate=44100)[0], expected)
    assert torch.equal(codec.encode([str(path), torch.from_numpy(stereo)], 44100)[0][1:], expected)


def test_a_callers_autocast_changes_nothing(codec):
    wave = noise(2.0)
    expected, _ = codec.encode(wave)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        codes, _ = codec.encode(wave)
        sound, _ = codec.decode(codes)
    assert torch.equal(codes, expected)
    assert sound.dtype == torch.float32


def test_codes_may_enter_a_model_in_training(codec):
    codes, _ = codec.encode(noise(0.1))
    torch.nn.Embedding(CODES, 2)(codes).sum().backward()


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (np.zeros(0, np.float32), "recording 0 .* is empty"),
        (np.array([0.0, np.nan, np.inf], np.float32), "2 samples that are NaN or infinite"),
        (np.zeros(100, np.int16), "int16, expected floating point"),
        (np.zeros((2, 1, 100), np.float32), r"shape \(2, 1, 100\), expected \(N,\) or \(C, N\)"),
        (np.zeros((100, 2), np.float32), "transpose it"),
        ([], "list of recordings is empty"),
    ],
)
def test_sound_that_cannot_be_encoded(codec, audio, message):
    with pytest.raises(ValueError, match=message):
        codec.encode(audio)


def test_errors_name_the_file(codec, tmp_path):
    bad = tmp_path / "bad.flac"
    bad.write_bytes(b"not a sound")
    empty = tmp_path / "empty.wav"
    soundfile.write(empty, np.zeros(0), RATE)
    with pytest.raises(AudioError, match=r"bad\.flac"):
        codec.encode([noise(0.1), bad])
    with pytest.raises(AudioError, match=r"empty\.wav is empty"):
        codec.encode(empty)
    with pytest.raises(FileNotFoundError, match=r"none\.wav"):
        codec.encode(tmp_path / "none.wav")


@pytest.mark.parametrize(
    ("codes", "lens", "message"),
    [
        (torch.full((1, 4, QUANTIZERS), CODES), None, f"from {CODES} to {CODES}, expected 0 to 15"),
        (torch.full((1, 4, QUANTIZERS), -1), [3], "from -1 to -1"),
        (torch.zeros(1, 4, QUANTIZERS + 1).long(), None, "4 quantizers"),
        (torch.zeros(1, 4, QUANTIZERS), None, "expected integer"),
        (torch.zeros(4, QUANTIZERS).long(), None, "expected integer"),
        (torch.zeros(1, 4, QUANTIZERS).long(), [5], r"lens are \[5\], expected 1 numbers from 0"),
        (torch.zeros(1, 4, QUANTIZERS).long(), [2, 2], "expected 1 numbers"),
    ],
)
def test_codes_that_cannot_be_decoded(codec, codes, lens, message):
    with pytest.raises(ValueError, match=message):
        codec.decode(codes, None if lens is None else torch.tensor(lens))


def test_fewer_quantizers_are_the_first_ones(codec, folder):
    coarse = Codec.from_pretrained(folder, num_quantizers=2)
    wave = noise(1.0)
    assert coarse.info.num_quantizers == 2
    assert torch.equal(coarse.encode(wave)[0], codec.encode(wave)[0][..., :2])
    assert coarse.decode(coarse.encode(wave)[0])[1].item() == len(wave)
    with pytest.raises(ValueError, match="num_quantizers 4 asked"):
        Codec.from_pretrained(folder, num_quantizers=4)


def test_several_bandwidths_mean_the_highest(tmp_path):
    bandwidths = [1 * 50 * 4 / 1000, 2 * 50 * 4 / 1000, 4 * 50 * 4 / 1000]
    codec = Codec.from_pretrained(save_codec(tmp_path, target_bandwidths=bandwidths))
    assert codec.num_quantizers == 4
    assert codec.encode(noise(0.5))[0].shape[2] == 4


def test_a_trimmed_half_precision_file_loads_quietly(folder, tmp_path, capfd):
    make_encodec().half().save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    kept = {
        key: value
        for key, value in load_file(weights).items()
        if not key.endswith(("embed_avg", "cluster_size"))
    }
    full = Codec.from_pretrained(tmp_path).info
    save_file(kept, weights, metadata={"format": "pt"})
    capfd.readouterr()
    codec = Codec.from_pretrained(tmp_path)
    assert capfd.readouterr() == ("", "")
    assert codec.info == full
    assert codec.codebooks().dtype == torch.float32
    assert codec.codebooks().abs().sum() > 0
    book = codec._model.quantizer.layers[0].codebook
    torch.testing.assert_close(book.embed_avg / book.cluster_size[:, None], book.embed)
    assert len(codec.encode(noise(1.0))[0].unique()) > CODES // 2


def test_fingerprint_follows_the_encoder_and_the_codebooks_alone(codec):
    def fingerprint_after(change) -> str:
        model = make_encodec()
        change(model)
        return Codec(model, "changed").info.fingerprint

    own = codec.info.fingerprint
    assert fingerprint_after(lambda model: None) == own
    assert fingerprint_after(lambda model: model.decoder.layers[0].conv.bias.data.add_(1)) == own
    assert fingerprint_after(lambda model: model.encoder.layers[0].conv.bias.data.add_(1)) != own
    assert fingerprint_after(lambda m: m.quantizer.layers[1].codebook.embed[3].add_(1)) != own


def test_a_file_without_all_weights_is_refused(tmp_path):
    save_codec(tmp_path)
    weights = tmp_path / "model.safetensors"
    kept = {k: v for k, v in load_file(weights).items() if not k.endswith("lstm.bias_hh_l0")}
    save_file(kept, weights, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="not a whole EncodecModel, its weights are 2 missing"):
        Codec.from_pretrained(tmp_path)


def test_a_codec_that_cannot_be_had_is_not_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"no folder here.*local folder.*egs/minipiano/codec"):
        Codec.from_pretrained("somebody/no-such-codec")
    with pytest.raises(ValueError, match=r"\(a folder\)"):
        Codec.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "encodec"}')
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"cannot load the codec"):
        Codec.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"audio_channels": 2}, "2 audio channels"),
        ({"normalize": True}, "loudness normalisation"),
        ({"chunk_length_s": 1.0, "overlap": 0.01}, "overlapping chunks"),
        ({"norm_type": "time_group_norm"}, "normalisation over time"),
    ],
)
def test_codecs_of_another_kind_are_refused(changes, reason):
    with pytest.raises(ValueError, match=reason):
        Codec(make_encodec(**changes), "stereo48")


def test_missing_transformers_names_the_pip_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match="pip install 'transformers"):
        Codec.from_pretrained("anything")


def test_load_audio_gives_the_prompt_of_a_file(codec, folder, tmp_path):
    path = tmp_path / "piece.flac"
    soundfile.write(path, noise(3.0), RATE)
    whole = load_audio(path, codec)
    assert whole.shape == (1, 150, QUANTIZERS)
    assert torch.equal(load_audio(path, str(folder)), whole)
    # a prompt is what a training cut of the same span would hold: codes of the longer recording
    assert torch.equal(load_audio(path, codec, max_seconds=1.5), whole[:, :75])
    assert load_audio(path, codec, max_seconds=60).shape == whole.shape
    with pytest.raises(ValueError, match="shorter than one frame"):
        load_audio(path, codec, max_seconds=0.01)
