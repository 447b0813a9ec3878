"""The tiny model and the tiny batch that most tests use."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from valle.models import AudioLM

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
    """A real EncodecModel, tiny and untrained: 3 quantizers of 16 codes, 50 frames a second."""
    from transformers import EncodecConfig, EncodecModel

    torch.manual_seed(0)
    config = EncodecConfig(
        sampling_rate=800,
        upsampling_ratios=[4, 4],
        target_bandwidths=[0.6],
        codebook_size=16,
        hidden_size=8,
        codebook_dim=8,
        num_filters=2,
        num_residual_layers=0,
        num_lstm_layers=1,
        use_causal_conv=False,
        use_conv_shortcut=False,
    )
    model = EncodecModel(config)
    for layer in model.quantizer.layers:  # untrained ones are all zeros: every code would be 0
        layer.codebook.embed.normal_()
    folder = tmp_path_factory.mktemp("codec")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def token_dir(tmp_path_factory, codec_dir) -> Path:
    """Token manifests of that codec: 12 training and 4 validation cuts of 1 to 2 seconds."""
    from valle.data import Codec

    folder = tmp_path_factory.mktemp("tokenized")
    codec_info = Codec.from_pretrained(codec_dir).info.to_dict()
    for split, num_cuts in (("train", 12), ("validation", 4), ("test", 2)):
        write_token_cuts(folder, split, num_cuts, codec_info)
    return folder


def write_token_cuts(folder: Path, split: str, num_cuts: int, codec: dict | None) -> None:
    """Cuts whose codes count upwards, so that a model can learn them; every other is an excerpt."""
    from lhotse import CutSet, MonoCut, NumpyFilesWriter, Recording

    rng = np.random.default_rng(num_cuts)
    cuts = []
    with NumpyFilesWriter(folder / split) as writer:
        for i in range(num_cuts):
            num_frames = int(rng.integers(50, 100))
            codes = (rng.integers(16) + np.arange(num_frames * 3).reshape(-1, 3)) % 16
            duration = num_frames / 50
            recording = Recording(
                f"{split}-{i}", [], 800, num_frames * 16 + 800 * (i % 2), duration + i % 2
            )
            cut = MonoCut(f"{split}-{i}", 0, duration, 0, recording=recording)
            cut.audio_features = writer.store_array(
                cut.id, codes.astype(np.int16), frame_shift=0.02, temporal_dim=0, start=0
            )
            array = cut.audio_features.array
            array.storage_path = str(Path(array.storage_path).relative_to(folder))
            if codec is not None:
                cut.codec = codec
            cuts.append(cut)
    CutSet.from_cuts(cuts).to_file(folder / f"cuts_{split}.jsonl.gz")
