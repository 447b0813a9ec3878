import sys
from pathlib import Path

import pytest
import tiny_codec
import torch
from little_pieces import RATE, pulse, tones
from tiny_families import make_dac
from transformers import ClapConfig, ClapFeatureExtractor, ClapModel

from valle.data import Codec
from valle.evaluation.embeddings import MEL_BANDS, get_embedding, windows

SOUND = tones(pulse(120, (60, 64, 67), 3), 3)


@pytest.fixture(scope="module")
def clap_dir(tmp_path_factory) -> Path:
    """A random CLAP of a few thousand weights; inputs of a second at 16 kHz."""
    torch.manual_seed(0)
    audio = {
        "spec_size": 64,
        "num_mel_bins": 16,
        "patch_size": 4,
        "patch_stride": [4, 4],
        "window_size": 4,
        "depths": [1, 1],
        "num_attention_heads": [1, 1],
        "hidden_size": 32,
        "patch_embeds_hidden_size": 16,
        "projection_dim": 8,
        "num_classes": 4,
    }
    text = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 16,
        "vocab_size": 20,
    }
    folder = tmp_path_factory.mktemp("clap")
    config = ClapConfig(audio_config=audio, text_config=text, projection_dim=8)
    ClapModel(config).save_pretrained(folder)
    ClapFeatureExtractor(
        feature_size=16,
        sampling_rate=16000,
        hop_length=160,
        max_length_s=1,
        fft_window_size=512,
        truncation="rand_trunc",
    ).save_pretrained(folder)
    return folder


def test_windows_overlap_by_half_and_a_short_sound_is_filled_up():
    parts = windows(torch.arange(30.0), 10)  # 3 s at 10 Hz
    assert parts[:, 0].tolist() == [0, 5, 10, 15, 20]
    assert parts.shape == (5, 10)
    assert windows(torch.ones(3), 10).tolist() == [[1.0] * 3 + [0.0] * 7]
    assert windows(torch.ones(0), 10).shape == (1, 10)


def test_mel_is_the_mean_and_spread_of_log_levels():
    embed = get_embedding("mel", RATE)
    loud, soft = embed(100 * SOUND), embed(10 * SOUND)
    assert loud.shape == (5, 2 * MEL_BANDS)
    means, spreads = (loud - soft).split(MEL_BANDS, dim=1)
    low = slice(2, 5)  # bands where notes are, far above the floor
    torch.testing.assert_close(means[:, low], torch.ones(5, 3), atol=0.05, rtol=0)
    assert spreads[:, low].abs().max() < 0.15  # but for the frames between notes


def test_chroma_knows_pitch_classes_and_no_level():
    embed = get_embedding("chroma", RATE)
    assert embed(tones(pulse(120, (69,), 3), 3)).argmax(dim=1).tolist() == [9] * 5
    torch.testing.assert_close(embed(SOUND), embed(SOUND / 10), atol=0.05, rtol=0)
    torch.testing.assert_close(
        embed(torch.zeros(RATE)), torch.full((1, 12), 1 / 12), atol=0.01, rtol=0
    )


@pytest.mark.parametrize("name", ["mel", "chroma"])
def test_the_sampling_rate_is_no_part_of_the_music(name):
    notes = pulse(120, (60, 64, 67), 3)
    one, other = (get_embedding(name, r)(tones(notes, 3, r)) for r in (16000, 32000))
    assert one.shape == other.shape
    if name == "chroma":  # mel bands reach up to half the rate, and differ
        assert (one - other).abs().max() < 0.02


def test_a_codec_gives_its_latents_averaged_over_the_window(codec_dir):
    embed = get_embedding(f"codec:{codec_dir}", RATE)
    assert embed.name == f"codec:{codec_dir}"
    with torch.no_grad():
        expected = tiny_codec.make_encodec().encoder(SOUND[None, None, :RATE])[0].mean(1)
    torch.testing.assert_close(embed(SOUND)[0], expected)
    assert embed(SOUND).shape == (5, 8)


def test_sounds_of_another_rate_are_resampled_for_the_codec(codec_dir):
    notes = pulse(120, (60, 64, 67), 3)
    one, other = (get_embedding(f"codec:{codec_dir}", r)(tones(notes, 3, r)) for r in (RATE, 16000))
    assert one.shape == other.shape
    assert (one - other).norm() < 0.2 * one.norm()


def test_the_generators_own_codec_is_refused(codec_dir, codec_info, tmp_path):
    with pytest.raises(ValueError, match="is the codec that the generator speaks"):
        get_embedding(f"codec:{codec_dir}", RATE, codec_info.fingerprint)
    other = tiny_codec.save_codec(tmp_path, num_filters=3)
    assert Codec.from_pretrained(other).info.fingerprint != codec_info.fingerprint
    get_embedding(f"codec:{other}", RATE, codec_info.fingerprint)


def test_clap_embeds_windows_at_its_own_rate(clap_dir):
    embed = get_embedding(f"clap:{clap_dir}", RATE)
    vectors = embed(SOUND)
    assert vectors.shape == (5, 8)
    assert not torch.allclose(vectors, embed(SOUND.flip(0)))
    torch.testing.assert_close(vectors, embed(SOUND))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vgg", "unknown embedding 'vgg': give mel, chroma, codec:NAME or clap:NAME"),
        ("codec:", "unknown embedding 'codec:'"),
        ("mel:x", "unknown embedding 'mel:x'"),
        ("codec:/no/such/folder", "cannot load the codec '/no/such/folder'"),
        ("clap:/no/such/folder", "cannot load clap:/no/such/folder"),
    ],
)
def test_errors_name_their_cause(name, message):
    with pytest.raises(ValueError, match=message):
        get_embedding(name, RATE)


def test_only_an_encodec_has_these_latents(tmp_path):
    make_dac().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is of type dac, expected an EnCodec"):
        get_embedding(f"codec:{tmp_path}", RATE)


def test_without_transformers_clap_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match="pip install 'transformers"):
        get_embedding("clap:x", RATE)
