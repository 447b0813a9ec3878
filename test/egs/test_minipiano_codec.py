"""The recipe of minipiano's codec from composing to the scores, at reduced size."""

import subprocess
from pathlib import Path

import pytest

from valle.data import Codec

ROOT = Path(__file__).parents[2]


@pytest.mark.recipe
def test_the_codec_recipe_runs_whole_and_is_gone_on_from(tmp_path):
    flags = [
        *("--minutes", "11", "--random-minutes", "1", "--num-clips", "2"),
        *("--steps-noise", "2", "--steps-joint", "2", "--steps-decoder", "2"),
        *("--corpus", tmp_path / "corpus", "--exp-dir", tmp_path / "exp"),
        "--options=--kmeans-latents 2000 --num-clips 2 --clip-sec 1 --master-port 12395",
    ]
    command = ["bash", ROOT / "egs/minipiano/train_codec.sh", *flags]
    first = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert first.returncode == 0, first.stderr[-3000:]
    assert "recordings: train " in first.stderr
    codec = Codec.from_pretrained(tmp_path / "exp/codec")
    assert (codec.num_quantizers, codec.frame_rate, codec.codebook_size) == (4, 50, 1024)
    scores = (tmp_path / "exp/scores/scores.md").read_text()
    assert "| measure | exp/codec | minipiano/codec | another recording |" in scores
    assert "| measure | 1 quantizer | 2 quantizers | 3 quantizers | 4 quantizers |" in scores
    stage = ["--stage", "1", "--stop-stage", "1"]
    again = subprocess.run([*command, *stage], cwd=tmp_path, capture_output=True, text=True,
                           timeout=300)  # fmt: skip
    assert again.returncode == 0, again.stderr[-3000:]
    assert "checkpoint-6.pt, step 6" in again.stderr
