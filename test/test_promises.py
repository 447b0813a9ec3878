"""The README's code runs as it stands there: the surface that users were promised."""

import re
import shlex
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tiny_codec
import torch
import trainer_audiolm
from conftest import make_model
from transformers import EncodecConfig, EncodecModel

from valle.data import Codec, codec, load_audio
from valle.models import AudioLM
from valle.utils.checkpoint import save_checkpoint

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


PAGES = [page for page in sorted((ROOT / "docs").glob("*.md")) if "```python" in page.read_text()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_of_the_docs_runs(page, token_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/tokenized").symlink_to(token_dir)
    for block in blocks("python", page.read_text()):
        exec(block, {})


@pytest.fixture
def full_size_codec(tmp_path) -> Codec:
    """Quantizers, codes and rates of facebook/encodec_32khz, in a small untrained network."""
    sizes = {"sampling_rate": 32000, "upsampling_ratios": [8, 5, 4, 4], "codebook_size": 2048}
    config = EncodecConfig(**(tiny_codec.CONFIG | sizes | {"target_bandwidths": [2.2]}))
    EncodecModel(config).save_pretrained(tmp_path / "codec")
    return Codec.from_pretrained(tmp_path / "codec")


def test_python_blocks_run_at_full_size(tmp_path, monkeypatch, capsys, full_size_codec):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(codec, "_kept_codec", lambda name: full_size_codec)  # no hub in a test
    soundfile.write("prompt.wav", np.random.default_rng(0).uniform(-0.5, 0.5, 4 * 32000), 32000)
    torch.manual_seed(0)
    trained = AudioLM()
    params = {"config": asdict(trained.config)}
    save_checkpoint("exp/audio-lm/best-valid-loss.pt", trained, params)
    del trained
    setup, streaming, training_step = blocks("python")
    names: dict = {}
    exec(setup, names)
    generated, prompt = names["generated"], names["prompt_tokens"]
    assert prompt.shape == (1, 150, 4)
    assert 150 < generated.shape[1] <= 650
    assert torch.equal(generated[:, :150], prompt)
    capsys.readouterr()
    exec(streaming, names)
    assert "torch.Size([1, 24, 4])" in capsys.readouterr().out
    y = generated[:, 150:200]
    names |= {"x": prompt, "x_lens": names["prompt_lens"], "y": y, "y_lens": torch.tensor([50])}
    exec(training_step, names)
    assert names["loss"].isfinite()
    assert names["predictions"].shape == y.shape


def test_shorthand_calls():
    model = make_model(num_quantizers=4)
    prompt = torch.randint(0, 20, (1, 15, 4))
    assert model.inference(prompt, max_new_tokens=1000).shape[1] <= 1015
    assert model.inference(prompt, temperature=0.9).shape[1] <= 515


def test_load_audio_gives_prompt_tokens(tmp_path, full_size_codec):
    soundfile.write(tmp_path / "a.wav", np.zeros(44100) + 0.1, 44100)
    assert load_audio(tmp_path / "a.wav", full_size_codec).shape == (1, 50, 4)


def test_training_command_runs_at_reduced_size(token_dir, tmp_path, monkeypatch):
    """The long command of the README, word for word, then what makes it small."""
    (command,) = (b for b in blocks("bash") if "--model-name audio-lm" in b)
    script, *flags = shlex.split(command.replace("\\\n", " "))[1:]
    assert (ROOT / script).is_file()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/tokenized").symlink_to(token_dir)
    small = "--decoder-dim 16 --nhead 2 --num-decoder-layers 1 --num-epochs 1 --num-workers 1 "
    small += "--num-quantizers 3 --filter-min-duration 0.5"  # the test's codec and cuts
    trainer_audiolm.main([*flags, *small.split()])
    assert (tmp_path / "exp/audio-lm/best-valid-loss.pt").is_file()


@pytest.mark.parametrize("package", ["valle", "valle.models", "valle.modules.optim"])
def test_models_need_torch_alone(package):
    heavy = "lhotse, transformers, tensorboard, soundfile, matplotlib"
    code = (
        f"import sys, {package}\n"
        f"loaded = set('{heavy}'.split(', ')) & set(sys.modules)\n"
        "sys.exit(f'imported {loaded}' if loaded else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_links_of_the_readme_lead_somewhere():
    targets = [t for t in re.findall(r"\]\(([^)]+)\)", README) if "://" not in t]
    assert targets
    assert [t for t in targets if not (ROOT / t).exists()] == []
