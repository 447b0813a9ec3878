"""EnCodec at 24 kHz, DAC and Mimi through the door that EnCodec at 32 kHz goes through."""

import json

import pytest
import torch
from tiny_codec import make_encodec, noise
from tiny_families import MAKERS, make_dac, make_mimi, save_family

from valle.data import codec as codec_module
from valle.data.codec import Codec, load_audio
from valle.data.codec_families import family_of
from valle.data.codec_loading import fingerprint

FACTS = {  # sampling rate, hop, quantizers, codes
    "encodec_24khz": (24000, 320, 16, 16),
    "dac": (8000, 160, 4, 16),
    "mimi": (8000, 320, 3, 16),
}
KINDS = list(FACTS)


@pytest.fixture(scope="module")
def codecs(tmp_path_factory):
    return {
        kind: Codec.from_pretrained(save_family(tmp_path_factory.mktemp(kind), kind))
        for kind in KINDS
    }


@pytest.fixture(params=KINDS)
def codec(codecs, request):
    return codecs[request.param]


def sound(codec: Codec, seconds: float, seed: int = 0):
    return noise(seconds, codec.sampling_rate, seed)


@pytest.mark.parametrize("kind", KINDS)
def test_facts_come_from_the_model(codecs, kind):
    codec = codecs[kind]
    facts = (codec.sampling_rate, codec.hop_length, codec.num_quantizers, codec.codebook_size)
    assert facts == FACTS[kind]
    assert codec.info.frame_rate == FACTS[kind][0] / FACTS[kind][1]
    # Mimi's attention looks back 8 frames of 50 a second
    assert codec._family.left_context_sec == (0.16 if kind == "mimi" else 2.0)


def test_codes_and_sound_have_whole_frames(codec):
    wave = sound(codec, 1.003)
    codes, lens = codec.encode(wave)
    assert lens.item() == codes.shape[1] == -(-len(wave) // codec.hop_length)
    assert len(codes.unique()) > codec.codebook_size // 2
    again, sample_lens = codec.decode(codes)
    assert again.shape == (1, codes.shape[1] * codec.hop_length)
    assert sample_lens.item() == again.shape[1]
    assert again.std() > 0


def test_ragged_batch_equals_one_by_one(codec):
    waves = [sound(codec, seconds, seed=i) for i, seconds in enumerate((0.5, 1.237, 0.1))]
    codes, lens = codec.encode(waves)
    for wave, row, n in zip(waves, codes, lens.tolist(), strict=True):
        assert torch.equal(row[:n], codec.encode(wave)[0][0])
    sounds, sample_lens = codec.decode(codes, lens)
    for row, n, frames in zip(sounds, sample_lens.tolist(), range(3), strict=True):
        alone = codec.decode(codes[frames : frames + 1, : lens[frames]])[0][0]
        assert torch.equal(row[:n], alone)


def test_fewer_quantizers_are_the_first_ones(codec, codecs, tmp_path):
    kind = next(name for name, other in codecs.items() if other is codec)
    coarse = Codec.from_pretrained(save_family(tmp_path, kind), num_quantizers=2)
    wave = sound(codec, 0.5)
    codes, _ = codec.encode(wave)
    assert torch.equal(coarse.encode(wave)[0], codes[..., :2])
    assert coarse.codebooks().shape[:2] == (2, 16)
    assert coarse.info.fingerprint == codec.info.fingerprint
    assert not torch.equal(codec.decode(codes[..., :2])[0], codec.decode(codes)[0])


def test_codebooks_sum_to_what_the_decoder_reads(codecs):
    """The latent of a frame is the sum of its codes' vectors, but for a constant."""
    for kind, latent_of in {
        "encodec_24khz": lambda m, c: m.quantizer.decode(c.transpose(0, 1)),
        "dac": lambda m, c: m.quantizer.from_codes(c)[0],
        "mimi": lambda m, c: m.quantizer.decode(c),
    }.items():
        codec = codecs[kind]
        codes = codec.encode(sound(codec, 0.5))[0]  # (1, T, Q)
        tables = codec.codebooks()
        summed = sum(tables[q][codes[0, :, q]] for q in range(codec.num_quantizers))
        expected = latent_of(codec._model, codes.transpose(1, 2))[0].T
        torch.testing.assert_close(summed, expected, atol=1e-5, rtol=1e-5)


def test_long_recordings_in_pieces_equal_the_whole(codec, monkeypatch):
    """Of Mimi the pieces look back a window, which stacked layers look beyond; here it is much."""
    wave = sound(codec, 6.0)
    whole, _ = codec.encode(wave)
    heard, _ = codec.decode(whole)
    monkeypatch.setattr(codec_module, "_CHUNK_SEC", 1.6)
    if codec._model.config.model_type == "mimi":
        monkeypatch.setattr(type(codec._family), "left_context_sec", 1.0)
    # random codebooks of 16 levels lie so close that rounding decides here and there
    assert (codec.encode(wave)[0] == whole).float().mean() > 0.99
    torch.testing.assert_close(codec.decode(whole)[0], heard, atol=2e-5, rtol=0)
    monkeypatch.setattr(type(codec._family), "left_context_sec", 0.0)
    monkeypatch.setattr(codec_module, "_RIGHT_CONTEXT_FRAMES", 0)
    assert (codec.encode(wave)[0] == whole).float().mean() < 0.99, "context makes no difference"


@pytest.mark.parametrize("kind", ["encodec_24khz", "dac"])
def test_a_stream_is_the_sound_of_all_codes(codecs, kind):
    codec = codecs[kind]
    codes, _ = codec.encode(sound(codec, 1.5))
    whole, _ = codec.decode(codes)
    decoder = codec.stream_decoder()
    parts = [decoder.feed(part) for part in codes.split(7, dim=1)]
    joined = torch.cat([*parts, decoder.finish()], dim=1)
    assert joined.shape == whole.shape
    assert (joined - whole).abs().max() <= 1e-5 * whole.abs().max()
    assert sum(part.shape[1] > 0 for part in parts) > 3


def test_mimi_is_not_streamed(codecs):
    with pytest.raises(ValueError, match=r"\(mimi\) cannot be streamed exactly.*whole sequence"):
        codecs["mimi"].stream_decoder()


def test_a_file_becomes_a_prompt(codec, tmp_path):
    import soundfile

    soundfile.write(tmp_path / "a.wav", sound(codec, 2.0), codec.sampling_rate)
    whole = load_audio(tmp_path / "a.wav", codec)
    assert whole.shape[1] == -(-int(2.0 * codec.sampling_rate) // codec.hop_length)
    some = load_audio(tmp_path / "a.wav", codec, max_seconds=0.8)
    assert some.shape[1] == int(0.8 * codec.frame_rate)
    assert torch.equal(some, whole[:, : some.shape[1]])


def changed(make, change) -> str:
    model = make()
    with torch.no_grad():
        change(model)
    for module in model.modules():
        if hasattr(module, "_embed"):
            module._embed = None  # Mimi keeps the quotient of its sums once it was asked for
    return fingerprint(family_of(model, "changed"))


def nudge(*names):
    """A change of all tensors whose names begin with one of these."""

    def change(model):
        hits = [v for n, v in model.state_dict().items() if n.startswith(names)]
        assert hits, names
        for tensor in hits:
            tensor.add_(0.1)

    return change


@pytest.mark.parametrize(
    ("make", "same", "other"),
    [
        (
            make_dac,
            ["decoder.conv1"],
            ["encoder.conv1", "quantizer.quantizers.0.codebook", "quantizer.quantizers.1.out_proj"],
        ),
        (
            make_mimi,
            ["decoder.", "quantizer.acoustic_residual_vector_quantizer.output_proj"],
            [
                "encoder.encoder_transformer",
                "encoder.downsample",
                "quantizer.semantic_residual_vector_quantizer.input_proj",
                "quantizer.acoustic_residual_vector_quantizer.layers.1.codebook.embed_sum",
                "quantizer.semantic_residual_vector_quantizer.layers.0.codebook.cluster_usage",
            ],
        ),
    ],
)
def test_fingerprint_follows_what_decides_the_tokens(make, same, other):
    own = changed(make, lambda model: None)
    for name in same:
        assert changed(make, nudge(name)) == own, name
    for name in other:
        assert changed(make, nudge(name)) != own, name


def test_families_have_fingerprints_of_their_own(codecs):
    assert len({codec.info.fingerprint for codec in codecs.values()}) == len(codecs)


def test_other_kinds_of_models_are_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match="of kind 'bert', expected one of encodec, dac, mimi"):
        Codec.from_pretrained(tmp_path)


def test_a_mimi_of_two_channels_is_refused():
    model = make_mimi()
    model.config.audio_channels = 2
    with pytest.raises(ValueError, match="works with 2 audio channels; only mono"):
        Codec(model, "stereo")


@pytest.mark.parametrize("kind", ["dac", "mimi"])
def test_a_file_that_lacks_weights_is_refused(kind, tmp_path):
    from safetensors.torch import load_file, save_file

    save_family(tmp_path, kind)
    weights = tmp_path / "model.safetensors"
    kept = dict(list(load_file(weights).items())[1:])
    save_file(kept, weights, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"not a whole (Dac|Mimi)Model, its weights are 1 miss"):
        Codec.from_pretrained(tmp_path)


def test_every_family_is_tried_here():
    assert set(MAKERS) == {"encodec", *KINDS}
    assert family_of(make_encodec(), "it").class_name == "EncodecModel"
