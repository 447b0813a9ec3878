import dataclasses
import logging
from pathlib import Path

import infer_audiolm
import numpy as np
import pytest
import soundfile
import torch
from conftest import make_model

from valle.data import Codec
from valle.models import AudioLM
from valle.modules.fused_step import why_not_fused
from valle.utils.checkpoint import save_checkpoint


@pytest.fixture
def sounds(tmp_path) -> list[Path]:
    """Two recordings of 1 and 1.5 s, at a rate and channel count unlike the codec's."""
    paths = [tmp_path / "a.wav", tmp_path / "b.flac"]
    rng = np.random.default_rng(0)
    for path, seconds in zip(paths, (1.0, 1.5), strict=True):
        soundfile.write(path, rng.uniform(-0.5, 0.5, (int(1600 * seconds), 2)), 1600)
    return paths


@pytest.fixture
def checkpoint(tmp_path, codec_info) -> Path:
    return write_checkpoint(tmp_path / "model.pt", codec_info.to_dict())


def write_checkpoint(path: Path, codec: dict | None, **changes: object) -> Path:
    model = make_model(num_audio_tokens=16, **changes)
    save_checkpoint(path, model, {"config": dataclasses.asdict(model.config), "codec": codec})
    return path


def infer(checkpoint: Path, output_dir: Path, *flags: object) -> dict[str, np.ndarray]:
    """Run the script; return the sounds by file name."""
    common = ["--checkpoint", checkpoint, "--output-dir", output_dir, "--max-duration", "0.4"]
    infer_audiolm.main([str(f) for f in (*common, "--ignore-eos", "true", *flags)])
    return {path.name: soundfile.read(path)[0] for path in output_dir.glob("*")}


def test_each_prompt_is_continued(checkpoint, sounds, tmp_path, codec_dir):
    found = infer(checkpoint, tmp_path / "out", "--audio-prompts", *sounds)
    assert found.keys() == {
        "a_full.wav", "a_continuation.wav", "b_full.wav", "b_continuation.wav"
    }  # fmt: skip
    assert len(found["a_full.wav"]) == 8000 * 1.4
    assert len(found["b_full.wav"]) == 8000 * 1.9
    assert len(found["a_continuation.wav"]) == 8000 * 0.4
    # decoded together: the continuation is the end of the whole, not a decode of its own
    assert np.array_equal(found["a_continuation.wav"], found["a_full.wav"][8000:])
    codec = Codec.from_pretrained(codec_dir)
    prompt_alone = codec.decode(codec.encode(sounds[0])[0])[0][0]
    early = slice(0, 4000)
    np.testing.assert_allclose(found["a_full.wav"][early], prompt_alone[early], atol=1e-3)


def test_a_batch_equals_its_files_one_by_one(checkpoint, sounds, tmp_path):
    together = infer(checkpoint, tmp_path / "all", "--audio-prompts", *sounds, "--temperature", 0)
    for path in sounds:
        alone = infer(checkpoint, tmp_path / path.stem, "--audio-prompts", path, "--temperature", 0)
        name = f"{path.stem}_full.wav"
        np.testing.assert_allclose(alone[name], together[name], atol=1e-4)


def test_seed_repeats_and_prompt_duration_cuts(checkpoint, sounds, tmp_path):
    flags = ("--audio-prompts", sounds[1], "--prompt-duration", 0.5)
    one = infer(checkpoint, tmp_path / "1", *flags, "--seed", 1)
    again = infer(checkpoint, tmp_path / "2", *flags, "--seed", 1)
    other = infer(checkpoint, tmp_path / "3", *flags, "--seed", 2)
    assert len(one["b_full.wav"]) == 8000 * 0.9
    assert np.array_equal(one["b_full.wav"], again["b_full.wav"])
    assert not np.array_equal(one["b_full.wav"], other["b_full.wav"])


def test_averaged_weights_are_taken_on_request(tmp_path, codec_info, sounds):
    path, average_path = tmp_path / "model.pt", tmp_path / "average.pt"
    model, average = make_model(num_audio_tokens=16), make_model(num_audio_tokens=16)
    for parameter in average.parameters():
        torch.nn.init.normal_(parameter)
    known = {"config": dataclasses.asdict(model.config), "codec": codec_info.to_dict()}
    wide = {name: value.double() for name, value in average.state_dict().items()}
    torch.save({"model": model.state_dict(), "model_avg": wide} | known, path)
    torch.save({"model": average.state_dict()} | known, average_path)
    flags = ("--audio-prompts", sounds[0], "--dtype", "float32")
    plain = infer(path, tmp_path / "1", *flags)["a_full.wav"]
    asked = infer(path, tmp_path / "2", *flags, "--averaged", "true")["a_full.wav"]
    expected = infer(average_path, tmp_path / "3", *flags)["a_full.wav"]
    assert np.array_equal(asked, expected)
    assert not np.array_equal(asked, plain)
    loaded = AudioLM.from_checkpoint(path, averaged=True)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}


def test_numbered_names_do_not_meet_others():
    assert infer_audiolm.different_names(["a", "a", "b"]) == ["a-1", "a-2", "b"]
    assert len(set(infer_audiolm.different_names(["a", "a", "a-1"]))) == 3


def test_files_of_one_name_stay_apart(checkpoint, sounds, tmp_path):
    found = infer(checkpoint, tmp_path / "out", "--audio-prompts", sounds[0], sounds[0])
    assert {"a-1_full.wav", "a-2_full.wav"} <= found.keys()


@pytest.mark.parametrize("max_duration", [0.4, 3])
def test_a_stream_writes_what_is_written_as_a_whole(
    checkpoint, sounds, tmp_path, max_duration, caplog
):
    """Also beyond the window, which is 1 s here."""
    caplog.set_level(logging.INFO)
    flags = ("--audio-prompts", *sounds, "--max-duration", max_duration, "--window", 1)
    flags += ("--chunk", 0.1, "--lookahead", 0.06, "--nar-context", 0.5, "--dtype", "float32")
    whole = infer(checkpoint, tmp_path / "whole", *flags)
    assert "first new sound" not in caplog.text
    stream = infer(checkpoint, tmp_path / "stream", *flags, "--stream")
    assert "first new sound after" in caplog.text
    assert whole.keys() == stream.keys()
    assert len(stream["b_full.wav"]) == 8000 * (1.5 + max_duration)
    for name, sound in whole.items():
        np.testing.assert_allclose(stream[name], sound, atol=2 / 32768)


def test_a_stream_goes_down_a_pipe(checkpoint, sounds, tmp_path, capsysbinary):
    flags = ("--audio-prompts", sounds[0], "--chunk", 0.1)
    infer(checkpoint, tmp_path / "none", *flags, "--stream", "pcm")
    played = np.frombuffer(capsysbinary.readouterr().out, "<i2") / 32768
    wav = infer(checkpoint, tmp_path / "wav", *flags, "--stream", "wav")
    assert np.array_equal(played, wav["a_full.wav"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_neither_batches_nor_neighbours_change_a_sample(checkpoint, sounds, tmp_path, dtype):
    if dtype != "float32" and why_not_fused(make_model().ar.decoder) is not None:
        pytest.skip("layer by layer, rows equal themselves alone up to rounding")
    flags = ("--num-samples", 2, "--nar-temperature", 1, "--dtype", dtype)
    flags += ("--repetition-aware-sampling", "true")
    prompts = ("--audio-prompts", sounds[0], sounds[1])
    one_batch = infer(checkpoint, tmp_path / "1", *prompts, *flags)
    two_batches = infer(checkpoint, tmp_path / "2", *prompts, *flags, "--batch-size", 1)
    first_alone = infer(checkpoint, tmp_path / "3", *prompts[:2], *flags)
    assert len(one_batch) == 8
    for name, sound in one_batch.items():
        assert np.array_equal(sound, two_batches[name])
        if name.startswith("a_"):
            assert np.array_equal(sound, first_alone[name])
    full = "a_sample1_full.wav", "a_sample2_full.wav"
    assert not np.array_equal(one_batch[full[0]], one_batch[full[1]])


def test_the_window_is_what_the_model_was_trained_on(tmp_path, codec_info, sounds, caplog):
    model = make_model(num_audio_tokens=16)
    path = tmp_path / "model.pt"
    known = {"config": dataclasses.asdict(model.config), "codec": codec_info.to_dict()}
    save_checkpoint(path, model, known | {"filter_max_duration": 1.2})
    caplog.set_level(logging.INFO)
    infer(path, tmp_path / "out", "--audio-prompts", sounds[0])  # 1 + 0.4 s
    assert "1.4 s are made in windows of 1.2 s" in caplog.text
    caplog.clear()
    infer(path, tmp_path / "out", "--audio-prompts", sounds[0], "--window", 2)
    assert "windows" not in caplog.text
    assert "x real time" in caplog.text
    assert "peak memory" in caplog.text


def test_nothing_can_be_continued(tmp_path, codec_info):
    checkpoint = write_checkpoint(tmp_path / "bos.pt", codec_info.to_dict(), prepend_bos=True)
    found = infer(checkpoint, tmp_path / "out", "--num-unconditional", 2)
    assert len(found["unconditional-2_full.wav"]) == 8000 * 0.4


def test_mistakes_are_explained(checkpoint, sounds, tmp_path, codec_info, capsys):
    info = codec_info.to_dict()
    nameless = write_checkpoint(tmp_path / "nameless.pt", None)
    foreign = write_checkpoint(tmp_path / "foreign.pt", info | {"fingerprint": "other"})
    (tmp_path / "broken.wav").write_text("no sound")
    (tmp_path / "broken.pt").write_text("no checkpoint")
    prompts = ("--audio-prompts", sounds[0])
    for model, flags, message in (
        (checkpoint, (), "nothing to do: give --audio-prompts"),
        (checkpoint, ("--audio-prompts", tmp_path / "none.wav"), "none.wav"),
        (checkpoint, ("--audio-prompts", tmp_path / "broken.wav"), "broken.wav"),
        (checkpoint, ("--num-unconditional", 1), "prepend_bos"),
        (tmp_path / "none.pt", prompts, "no checkpoint"),
        (tmp_path / "broken.pt", prompts, "cannot be read as a checkpoint"),
        (nameless, prompts, "names no codec: give --codec"),
        (checkpoint, (*prompts, "--device", "nonsense"), "--device nonsense is no device"),
        (foreign, prompts, "they differ in fingerprint"),
        (checkpoint, (*prompts, "--averaged", "true"), "model.pt holds no averaged weights: only"),
        (checkpoint, (*prompts, "--batch-size", 0), "--batch-size must be 1 or more"),
        (checkpoint, (*prompts, "--num-samples", -1), "--num-samples must be 1 or more, got -1"),
        (
            checkpoint,
            (*prompts, "--max-duration", "inf"),
            "--max-duration must be 0 s or more, and",
        ),
        (
            checkpoint,
            (*prompts, "--min-duration", "nan"),
            "--min-duration must be 0 s or more, and",
        ),
        (checkpoint, (*prompts, "--prompt-duration", "inf"), "--prompt-duration must be above 0 s"),
        (checkpoint, (*prompts, "--window", -1), "window must be 0 or more frames"),
        (checkpoint, (*prompts, "--stream", "pcm", "--num-samples", 2), "plays one piece"),
        (checkpoint, (*prompts, "--window", 1, "--stride", 1), "must be less than window"),
    ):
        with pytest.raises(SystemExit):
            infer(model, tmp_path / "out", *flags)
        assert message in capsys.readouterr().err
