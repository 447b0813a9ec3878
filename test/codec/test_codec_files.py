import json

import pytest
import torch
from codec_runs import seeded, tiny_model, write_config
from safetensors import SafetensorError
from transformers import EncodecModel

from valle.codec.files import read_config, save_codec
from valle.codec.first_weights import keep_paddings_on_host, normalize_first_weights

BUNDLED = "egs/minipiano/codec/config.json"


def test_the_bundled_configuration_is_read_whole():
    config = read_config(BUNDLED)
    assert (config.num_quantizers, config.frame_rate, config.hop_length) == (4, 50, 640)
    assert config.dtype in (None, torch.float32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codebook_size": 1000}, "codebook_size 1000 must be a power of two"),
        ({"codebook_dim": 4}, "codebook_dim 4 must be hidden_size 8"),
        ({"target_bandwidths": [0.78]}, "are 3.90 quantizers of 0.2 kbit/s, of which the model "
         "makes 3: give 0.8"),
        ({"target_bandwidths": [0.1]}, "0.50 quantizers"),
        ({"model_type": "dac"}, "is of model_type 'dac', expected 'encodec'"),
    ],
)  # fmt: skip
def test_configurations_that_would_fail_later_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        read_config(write_config(tmp_path / "config.json", **changes))


def test_a_configuration_that_is_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="no configuration"):
        read_config(tmp_path / "config.json")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is no JSON"):
        read_config(tmp_path / "config.json")


def test_first_weights_bring_motion_through_every_layer():
    model = tiny_model(num_filters=8, hidden_size=16)
    audio = torch.randn(8, 1, 16000, generator=seeded()) * 0.1
    normalize_first_weights(model, audio)
    with torch.no_grad():
        latents = model.encoder(audio)
        sound = model.decoder(latents)
    assert latents.mean(dim=(0, 2)).abs().max() < 0.05
    torch.testing.assert_close(latents.std(dim=(0, 2)), torch.ones(16), atol=0.05, rtol=0)
    assert sound.std() == pytest.approx(audio.std().item(), rel=0.05)


def test_paddings_on_the_host_leave_the_output_alone():
    model, audio = tiny_model(), torch.randn(1, 1, 7000, generator=seeded())
    with torch.no_grad():
        before = model.encoder(audio)
        keep_paddings_on_host(model)
        assert torch.equal(model.encoder(audio), before)


def test_a_saved_codec_loads_whole_and_as_it_was(tmp_path):
    model = tiny_model()
    num_bytes = save_codec(model, tmp_path)
    assert num_bytes == (tmp_path / "model.safetensors").stat().st_size
    loaded, report = EncodecModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert not list(tmp_path.glob(".part-*"))


def test_half_precision_makes_small_files_that_load_in_float32(tmp_path):
    model = tiny_model()
    small, whole = save_codec(model, tmp_path, torch.float16), save_codec(model, tmp_path / "w")
    assert small < 0.7 * whole
    save_codec(model, tmp_path, torch.float16)
    loaded, report = EncodecModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert {value.dtype for value in loaded.state_dict().values()} == {torch.float32}
    for name, value in model.state_dict().items():
        if not name.endswith(("embed_avg", "cluster_size")):
            torch.testing.assert_close(loaded.state_dict()[name], value.half().float())


def test_half_precision_can_leave_the_tokens_alone(tmp_path):
    model = tiny_model()
    save_codec(model, tmp_path, torch.float16, exact=True)
    loaded = EncodecModel.from_pretrained(tmp_path).state_dict()
    for name, value in model.state_dict().items():
        if name.startswith("encoder") or name.endswith(".embed"):
            assert torch.equal(loaded[name], value), name
        elif name.startswith("decoder"):
            assert torch.equal(loaded[name], value.half().float()), name


def test_diverged_weights_are_not_saved(tmp_path):
    model = tiny_model()
    model.decoder.layers[0].conv.bias.data[0] = 1e6  # beyond float16
    with pytest.raises(
        ValueError, match=r"decoder\.layers\.0\.conv\.bias is not finite in float16.*lower --lr"
    ):
        save_codec(model, tmp_path, torch.float16)
    assert not list(tmp_path.iterdir())
    model.decoder.layers[0].conv.bias.data[0] = torch.nan
    with pytest.raises(ValueError, match="not finite in float32"):
        save_codec(model, tmp_path)


def test_the_written_configuration_is_the_one_that_was_read(tmp_path):
    given = write_config(tmp_path / "config.json")
    save_codec(EncodecModel(read_config(given)), tmp_path / "codec")
    written = json.loads((tmp_path / "codec/config.json").read_text())
    fields = json.loads(given.read_text())
    defaults = EncodecModel(read_config(given)).config.to_dict()
    assert {name: written.get(name, defaults[name]) for name in fields} == fields
    assert written["dtype"] == "float32"


def test_a_full_disk_is_an_error_that_is_understood(tmp_path, monkeypatch):
    """The library's own is of no kind that anybody would catch."""
    model = tiny_model()
    save_codec(model, tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()

    def full(*args, **options):
        raise SafetensorError("No space left on device")

    monkeypatch.setattr("safetensors.torch.serialize_file", full)
    with pytest.raises(OSError, match=r"No space left on device.*MiB are free"):
        save_codec(model, tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.glob(".*")] == []
