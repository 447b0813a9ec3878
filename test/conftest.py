"""The tiny model and the tiny batch that most tests use."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import tiny_codec
import torch
from torch import Tensor

from valle.data import Codec, CodecInfo
from valle.data.storage import make_recording, whole_cut, write_codes, write_cuts
from valle.models import VALLE, AudioLM
from valle.utils.vocabulary import BOS, EOS, MIDI_FIELDS

TINY = {
    "d_model": 32,
    "nhead": 4,
    "num_layers": 2,
    "num_quantizers": 3,
    "num_audio_tokens": 20,
    "dropout": 0.0,
}


class Batch(NamedTuple):
    """Prompts and targets of unequal lengths: arguments of `AudioLM.forward`."""

    x: Tensor
    x_lens: Tensor
    y: Tensor
    y_lens: Tensor


def make_model(**changes) -> AudioLM:
    torch.manual_seed(0)
    return AudioLM(**(TINY | changes)).eval()


@pytest.fixture
def model() -> AudioLM:
    return make_model()


@pytest.fixture
def batch() -> Batch:
    generator = torch.Generator().manual_seed(1)
    V, Q = TINY["num_audio_tokens"], TINY["num_quantizers"]
    return Batch(
        x=torch.randint(0, V, (3, 7, Q), generator=generator),
        x_lens=torch.tensor([7, 3, 5]),
        y=torch.randint(0, V, (3, 11, Q), generator=generator),
        y_lens=torch.tensor([4, 11, 8]),
    )


@pytest.fixture(scope="session")
def codec_dir(tmp_path_factory) -> Path:
    """A real EncodecModel, tiny and untrained: 8 kHz, 50 frames a second, 3 quantizers of 16."""
    return tiny_codec.save_codec(tmp_path_factory.mktemp("codec"))


@pytest.fixture(scope="session")
def codec_info(codec_dir) -> CodecInfo:
    return Codec.from_pretrained(codec_dir).info


@pytest.fixture(scope="session")
def token_dir(tmp_path_factory, codec_info) -> Path:
    """Token manifests of that codec: 12 training and 4 validation cuts of 1 to 2 seconds."""
    folder = tmp_path_factory.mktemp("tokenized")
    for split, num_cuts in (("train", 12), ("validation", 4), ("test", 2)):
        write_token_cuts(folder, split, num_cuts, codec_info)
    return folder


def write_token_cuts(
    folder: Path, split: str, num_cuts: int, codec: CodecInfo, record: bool = True
) -> None:
    """Cuts whose codes count upwards, so that a model can learn them; every other is an excerpt.

    Without `record` they do not tell of their codec, like cuts from elsewhere.
    """
    rng = np.random.default_rng(num_cuts)
    (folder / "tokens").mkdir(exist_ok=True)
    cuts = []
    for i in range(num_cuts):
        num_frames = int(rng.integers(50, 100))
        ramp = rng.integers(16) + np.arange(num_frames * 3).reshape(-1, 3)
        name = f"{split}-{i}"
        write_codes(folder / "tokens", name, ramp % 16)
        recording = make_recording(name, f"{name}.wav", num_frames * 160, 8000, 1)
        cut = whole_cut(recording, "tokens", name, num_frames, codec)
        if not record:
            del cut.custom["codec"]
        cuts.append(cut.truncate(duration=cut.duration - 0.1) if i % 2 else cut)
    write_cuts(folder / f"cuts_{split}.jsonl.gz", cuts)


class Pairs(NamedTuple):
    """Conditions and targets of unequal lengths: arguments of `VALLE.forward`."""

    x: Tensor
    x_lens: Tensor
    y: Tensor
    y_lens: Tensor

    def row(self, b: int) -> "Pairs":
        """One row alone, without its padding."""
        n, m = self.x_lens[b], self.y_lens[b]
        return Pairs(self.x[b : b + 1, :n], n[None], self.y[b : b + 1, :m], m[None])


def make_valle(condition: str = "text", **changes) -> VALLE:
    torch.manual_seed(0)
    sizes = TINY | {"condition": condition, "num_text_tokens": 11, "frame_rate": 50.0}
    return VALLE(**(sizes | changes)).eval()


def make_pairs(condition: str = "text") -> Pairs:
    """Three rows of 9, 4 and 6 tokens, BOS and EOS included, and 16, 9 and 12 frames."""
    generator = torch.Generator().manual_seed(3)
    if condition == "text":
        x = torch.randint(3, 11, (3, 9), generator=generator)
    else:
        highs = torch.tensor([field.num_ids for field in MIDI_FIELDS])
        x = 4 + (torch.rand(3, 9, 6, generator=generator) * (highs - 4)).long()
        x[..., 5] = 4  # all in the first bar, in order
        x[..., 4] = x[..., 4].sort(dim=1).values
    x_lens = torch.tensor([9, 4, 6])
    x[:, 0] = BOS
    for b, n in enumerate(x_lens):
        x[b, n - 1] = EOS
    V, Q = TINY["num_audio_tokens"], TINY["num_quantizers"]
    y = torch.randint(0, V, (3, 16, Q), generator=generator)
    return Pairs(x, x_lens, y, torch.tensor([16, 9, 12]))
