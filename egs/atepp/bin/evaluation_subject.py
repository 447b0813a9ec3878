"""What evaluate.py judges: a trained model, and the held-out tokens that it is judged on."""

import argparse
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lhotse import CutSet

from valle.data import CodecInfo, TokenDataModule
from valle.data.text import SymbolTable
from valle.models import CodecLM, Engine, load_model
from valle.utils.checkpoint import read_checkpoint
from valle.utils.dist import choose_device, choose_dtype


@dataclass
class Subject:
    """A checkpoint made ready.

    Attributes:
      path: Of the checkpoint.
      checkpoint: All that it holds.
      model: With its halves in the type of number asked for; on `device`, in eval mode.
      engine: The same halves, ready to generate.
      data: Opens the manifests.
      split: Which of them is held out.
    """

    path: Path
    checkpoint: dict[str, Any]
    model: CodecLM
    engine: Engine
    data: TokenDataModule
    split: str
    device: torch.device

    @property
    def limits(self) -> tuple[float, float]:
        """Seconds of the shortest and the longest cut that training took."""
        return self.checkpoint["filter_min_duration"], self.checkpoint["filter_max_duration"]

    @property
    def symbols(self) -> SymbolTable | None:
        """Of the texts that the model was trained on, if it reads text."""
        symbols = self.checkpoint.get("text_symbols")
        return SymbolTable(symbols) if symbols else None

    def held_out(self) -> CutSet:
        return self.data.valid_cuts() if self.split == "validation" else self.data.test_cuts()

    def check_codec(self, codec: CodecInfo | None) -> None:
        """Refuse tokens of another codec than the one that the model was trained on."""
        recorded = self.checkpoint.get("codec")
        if codec is not None and recorded:
            where = f"tokens in {self.data.args.manifest_dir}"
            CodecInfo.from_dict(recorded).check_same(codec, where)


def open_subject(args: argparse.Namespace) -> Subject:
    """Load what the flags name.

    Raises:
      ValueError, OSError: A checkpoint that cannot be used, or weights that are not finite.
    """
    device = choose_device(args.device)
    checkpoint = read_checkpoint(args.checkpoint)
    model = load_model(args.checkpoint, device, args.averaged)
    engine = Engine(model, choose_dtype(args.dtype, device))
    model.ar, model.nar = engine.ar, engine.nar
    check_finite(model, args.checkpoint)
    data = TokenDataModule(
        _data_flags(args.manifest_dir, args.batch_duration),
        model.config.num_quantizers,
        model.config.num_audio_tokens,
    )
    return Subject(args.checkpoint, checkpoint, model, engine, data, args.split, device)


def check_finite(model: CodecLM, path: Path) -> None:
    """Refuse weights with which every figure would be NaN.

    Raises:
      ValueError: It names the first parameter that holds infinity or NaN.
    """
    for name, weights in model.named_parameters():
        if not bool(weights.isfinite().all()):
            raise ValueError(
                f"{name} of {path} holds infinity or NaN as {weights.dtype}: give an earlier "
                "checkpoint or, if that is the fault of the type of number, --dtype float32"
            )


def _data_flags(manifest_dir: Path, batch_sec: float) -> argparse.Namespace:
    """The trainer's flags of data, as nobody shuffles; its --max-duration has another meaning."""
    parser = argparse.ArgumentParser()
    TokenDataModule.add_arguments(parser)
    flags = ["--manifest-dir", manifest_dir, "--max-duration", batch_sec, "--num-workers", 0]
    return parser.parse_args([str(flag) for flag in flags])


def sha256(path: Path) -> str:
    """Of a file, in hexadecimal: equal only where every byte is."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
