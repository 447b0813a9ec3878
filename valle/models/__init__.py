"""The models, by name, and their group of command-line flags."""

import argparse
from pathlib import Path
from typing import Any

import torch

from valle.models.audio_lm import AudioLM
from valle.models.codec_lm import AudioLMOutput, CodecLM, TrainStage
from valle.models.condition import Given
from valle.models.config import PREFIX_MODES, AudioLMConfig, VALLEConfig
from valle.models.engine import Engine
from valle.models.options import GenerationOptions
from valle.models.valle import VALLE
from valle.modules.embedding import POSITIONS
from valle.utils.cli import str2bool
from valle.utils.vocabulary import CONDITIONS

__all__ = [
    "VALLE",
    "AudioLM",
    "AudioLMConfig",
    "AudioLMOutput",
    "CodecLM",
    "Engine",
    "GenerationOptions",
    "Given",
    "TrainStage",
    "VALLEConfig",
    "add_model_arguments",
    "get_model",
    "load_model",
    "model_class",
]

MODELS: dict[str, type[CodecLM]] = {"audio-lm": AudioLM, "valle": VALLE, "vall-e": VALLE}
"""By the names that `--model-name` takes, in small letters; VALL-E's recipes have several."""


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that `get_model` reads, under the names the VALL-E recipes use."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model-name",
        type=str.lower,
        default="audio-lm",
        choices=list(MODELS),
        help="audio-lm continues audio, valle makes it of text or MIDI",
    )
    group.add_argument(
        "--condition", choices=CONDITIONS, help="of valle; default: what the training cuts carry"
    )
    group.add_argument(
        "--prefix-mode",
        type=int,
        default=VALLEConfig.prefix_mode,
        choices=PREFIX_MODES,
        help="of valle, what its NAR half is told whole of how it should sound: 0 nothing, 1 the "
        "beginning of the target, 4 a prompt from elsewhere in the recording",
    )
    group.add_argument("--decoder-dim", type=int, default=1024, help="width of the transformers")
    group.add_argument("--nhead", type=int, default=16, help="attention heads")
    group.add_argument("--num-decoder-layers", type=int, default=12, help="layers of each half")
    group.add_argument(
        "--scale-factor",
        type=float,
        default=1.0,
        help="width, heads and layers of the NAR half as a multiple of the AR half's",
    )
    group.add_argument(
        "--norm-first", type=str2bool, default=True, help="layer norms before the blocks, not after"
    )
    group.add_argument(
        "--add-prenet", type=str2bool, default=False, help="a bottleneck after the embeddings"
    )
    group.add_argument(
        "--prepend-bos",
        type=str2bool,
        default=False,
        help="a BOS frame before the target; allows generation without a prompt",
    )
    group.add_argument(
        "--num-quantizers", type=int, default=None, help="default: what the manifest's codec has"
    )
    group.add_argument(
        "--num-audio-tokens",
        type=int,
        default=None,
        help="codebook size; default: what the manifest's codec has",
    )
    group.add_argument(
        "--infill-prob",
        type=float,
        default=0.0,
        help="share of the training cuts that have a gap to fill, in the place of a continuation; "
        "above 0 the model can fill gaps",
    )
    group.add_argument(
        "--ahead-frames",
        type=int,
        default=1000,
        help="with --infill-prob: what the AR half reads at most of what follows a gap; with sine "
        "positions 25 serve a small model better",
    )
    group.add_argument(
        "--positions",
        default="rotary",
        choices=list(POSITIONS),
        help="rotary turns queries and keys; sine, as in VALL-E, is added to embeddings",
    )
    group.add_argument("--dropout", type=float, default=0.1, help="of embeddings and residuals")


def model_class(name: str) -> type[CodecLM]:
    """The class that `--model-name` stands for.

    Raises:
      ValueError: no model has that name.
    """
    if name.lower() not in MODELS:
        raise ValueError(f"--model-name must be one of {', '.join(MODELS)}, got {name}")
    return MODELS[name.lower()]


def load_model(
    path: str | Path, device: str | torch.device = "cpu", averaged: bool = False
) -> CodecLM:
    """The model of a checkpoint, whichever it is; see `CodecLM.from_checkpoint`."""
    return CodecLM.from_checkpoint(path, device, averaged)


def get_model(params: Any) -> CodecLM:
    """Build the model that the flags of `add_model_arguments` describe.

    Of what is no flag a VALLE takes `num_text_tokens` and `frame_rate` from `params`.
    """
    kind = model_class(params.model_name)
    if kind is VALLE:
        own = {name: getattr(params, name) for name in ("condition", "prefix_mode", "frame_rate")}
        if params.condition == "text":
            own["num_text_tokens"] = params.num_text_tokens
    else:
        own = {"ahead_frames": params.ahead_frames if params.infill_prob > 0 else 0}
    return kind(
        d_model=params.decoder_dim,
        nhead=params.nhead,
        num_layers=params.num_decoder_layers,
        norm_first=params.norm_first,
        add_prenet=params.add_prenet,
        num_quantizers=params.num_quantizers,
        nar_scale_factor=params.scale_factor,
        prepend_bos=params.prepend_bos,
        num_audio_tokens=params.num_audio_tokens,
        dropout=params.dropout,
        positions=params.positions,
        **own,
    )
