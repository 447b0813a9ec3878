"""From sound to continuation with every kind of codec, and with one that was fine-tuned."""

import sys
from pathlib import Path

import infer_audiolm
import pytest
import soundfile
import tokenizer
import torch
from codec_runs import train_codec, write_recordings
from tiny_codec import noise, save_codec
from tiny_families import save_family
from trainer_runs import train

from valle.data import Codec, codec_of, load_cuts
from valle.models import AudioLM


def record(folder: Path, codec: Codec) -> Path:
    """Recordings at a codec's rate, for three splits."""
    folder.mkdir()
    for index in range(4):
        path = folder / f"{index}.wav"
        soundfile.write(path, noise(2.0, codec.sampling_rate, index), codec.sampling_rate)
    return folder


def tokenise(source: Path, codec: Path, output: Path, monkeypatch, *flags: object) -> Path:
    parts = ["tokenizer.py", "--src-dir", source, "--codec", codec, "--output-dir", output]
    monkeypatch.setattr(sys, "argv", [str(part) for part in (*parts, "--device", "cpu", *flags)])
    with pytest.raises(SystemExit) as stop:
        tokenizer.main()
    assert stop.value.code in (0, None)
    return output


def continue_piece(checkpoint: Path, output: Path, prompt: Path, *flags: object) -> Path:
    parts = ["--checkpoint", checkpoint, "--output-dir", output, "--audio-prompts", prompt]
    parts += ["--prompt-duration", 1, "--max-duration", 0.4, "--ignore-eos", "true"]
    infer_audiolm.main([str(part) for part in (*parts, "--device", "cpu", *flags)])
    return output / f"{prompt.stem}_full.wav"


@pytest.mark.parametrize("kind", ["encodec_24khz:8", "dac", "mimi"])
def test_the_recipe_runs_on_every_kind_of_codec(kind, tmp_path, monkeypatch):
    """The same commands; of EnCodec at 24 kHz 8 of its quantizers, as is usual."""
    name, _, number = kind.partition(":")
    folder = save_family(tmp_path / "codec", name)
    codec = Codec.from_pretrained(folder, num_quantizers=int(number) if number else None)
    source = record(tmp_path / "sound", codec)
    flags = ("--num-quantizers", number) if number else ()
    tokens = tokenise(source, folder, tmp_path / "tokens", monkeypatch, *flags)
    assert codec_of(load_cuts(tokens / "cuts_train.jsonl.gz")) == codec.info
    log = train(tokens, tmp_path / "exp", "--num-epochs", 1, "--num-samples", 1,
                "--filter-min-duration", 0.5, "--init-embeddings-from-codec", folder)  # fmt: skip
    assert "Embeddings and heads start from the codebooks" in log
    assert "No audio samples" not in log
    checkpoint = tmp_path / "exp/best-valid-loss.pt"
    assert AudioLM.from_checkpoint(checkpoint).config.num_quantizers == codec.num_quantizers
    sound = continue_piece(checkpoint, tmp_path / "out", source / "0.wav")
    info = soundfile.info(sound)
    frames = round(1.0 * codec.frame_rate) + int(0.4 * codec.frame_rate)
    assert info.samplerate == codec.sampling_rate
    assert abs(info.frames - frames * codec.hop_length) <= codec.hop_length


@pytest.fixture(scope="module")
def tuned(tmp_path_factory) -> dict[str, Path]:
    """A codec, the same with another decoder, and the same trained whole."""
    folder = tmp_path_factory.mktemp("tuned")
    source = write_recordings(folder / "sound")
    first = save_codec(folder / "first")
    steps = {"decoder": ("--steps-decoder", 2), "all": ("--steps-joint", 2, "--steps-decoder", 0)}
    for way, flags in steps.items():
        train_codec(source, folder / way, "--init-from", first, "--train", way, *flags)
    return {"first": first, "sound": source} | {way: folder / way / "codec" for way in steps}


def test_tokens_are_refused_by_a_codec_that_was_trained_whole(tuned, tmp_path, monkeypatch, capsys):
    """And taken by one of whose parts the decoder alone was trained."""
    old = tokenise(tuned["sound"], tuned["first"], tmp_path / "old", monkeypatch)
    new = tokenise(tuned["sound"], tuned["all"], tmp_path / "new", monkeypatch)
    advice = "tokenise again with the other one into another folder (egs/atepp/prepare.sh --codec"
    few = ("--num-epochs", 1, "--sample-epochs", 0, "--filter-min-duration", 0.5)

    # a codec beside tokens of another
    exp = tmp_path / "exp"
    log = train(old, exp, *few, "--init-embeddings-from-codec", tuned["all"], fails=True)
    assert "they differ in fingerprint" in log
    assert advice in log
    train(old, exp, *few, "--init-embeddings-from-codec", tuned["decoder"])

    # a model of old tokens and new ones
    log = train(new, exp, *few, "--num-epochs", 2, "--resume", "auto", fails=True)
    assert advice in log

    # a model of old tokens and a codec that makes new ones
    checkpoint, prompt = exp / "best-valid-loss.pt", tuned["sound"] / "0.wav"
    with pytest.raises(SystemExit):
        continue_piece(checkpoint, tmp_path / "out", prompt, "--codec", tuned["all"])
    assert advice in capsys.readouterr().err
    sounds = [
        soundfile.read(continue_piece(checkpoint, tmp_path / way, prompt, "--codec", tuned[way]))[0]
        for way in ("first", "decoder")
    ]
    assert len(sounds[0]) == len(sounds[1])
    assert (sounds[0] != sounds[1]).any()

    # as the advice says: other tokens, and a model of these
    train(new, tmp_path / "exp2", *few)
    continue_piece(tmp_path / "exp2/best-valid-loss.pt", tmp_path / "again", prompt)
    infos = [codec_of(load_cuts(folder / "cuts_train.jsonl.gz")) for folder in (old, new)]
    assert infos[0].fingerprint != infos[1].fingerprint


def test_tokens_of_a_codec_with_another_decoder_are_the_same(tuned):
    codecs = [Codec.from_pretrained(tuned[way]) for way in ("first", "decoder", "all")]
    first, decoder, other = (codec.encode(noise(1.0))[0] for codec in codecs)
    assert torch.equal(first, decoder)
    assert not torch.equal(first, other)
