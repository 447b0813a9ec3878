"""Reads an EnCodec model through transformers, judges it, and fingerprints it."""

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

BUNDLED_CODEC = "egs/minipiano/codec"
# What only the training of a codec needs, so that a published file may leave it out.
_SPARE_BUFFERS = (".codebook.embed_avg", ".codebook.cluster_size", ".codebook.inited")


def load_encodec(name: str) -> Any:
    try:
        from safetensors import SafetensorError
        from transformers import EncodecModel
    except ImportError as error:
        raise ImportError("the codec needs transformers: pip install 'transformers>=5'") from error
    try:
        with _quiet_transformers():
            loaded: Any = EncodecModel.from_pretrained(
                name, dtype=torch.float32, output_loading_info=True
            )
            model, report = loaded
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        kind = "a folder" if os.path.isdir(name) else "no folder here"
        raise ValueError(
            f"cannot load the codec {name!r} ({kind}): {reason}. Give a local folder with "
            "config.json and model.safetensors (download it where there is a network, or use the "
            f"small one bundled in {BUNDLED_CODEC}); tokens and models belong to one codec, so "
            "no other is put in its place"
        ) from error
    _check_report(report, name)
    _fill_spare_buffers(model, report["missing_keys"])
    return model


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No progress bar, and no report of missing keys: `_check_report` judges those itself."""
    from transformers.utils import logging

    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


def _check_report(report: Mapping[str, Iterable[Any]], name: str) -> None:
    missing = [key for key in report["missing_keys"] if not key.endswith(_SPARE_BUFFERS)]
    problems = {
        "missing": sorted(missing),
        "unexpected": sorted(report["unexpected_keys"]),
        "of another shape": sorted(str(key) for key in report["mismatched_keys"]),
    }
    found = [f"{len(keys)} {kind} (first {keys[0]})" for kind, keys in problems.items() if keys]
    if found:
        raise ValueError(
            f"{name} is not a whole EnCodec model, its weights are {', '.join(found)}: "
            "config.json and model.safetensors do not belong together"
        )


def _fill_spare_buffers(model: Any, missing: Iterable[str]) -> None:
    """As if each code had been seen once: embed = embed_avg / cluster_size holds."""
    for key in missing:
        codebook = model.get_submodule(key.rpartition(".")[0])
        if key.endswith("embed_avg"):
            codebook.embed_avg.copy_(codebook.embed)
        elif key.endswith("cluster_size"):
            codebook.cluster_size.fill_(1.0)


def check_kind(config: Any, name: str) -> None:
    reasons = {
        f"{config.audio_channels} audio channels": config.audio_channels != 1,
        "loudness normalisation": config.normalize,
        "fixed overlapping chunks": config.chunk_length_s is not None,
        "normalisation over time": config.norm_type != "weight_norm",
    }
    found = [reason for reason, is_so in reasons.items() if is_so]
    if found:
        raise ValueError(
            f"the codec {name!r} works with {', '.join(found)}; only mono EnCodec models of the "
            "kind of encodec_32khz and encodec_24khz are supported"
        )


def fingerprint(model: Any) -> str:
    """Hash of what decides the tokens: encoder weights and codebooks, read as float32.

    Independent of tensor names and of the decoder, which may be fine-tuned without touching a
    single token.
    """
    tensors = [*model.encoder.state_dict().values()]
    tensors += [layer.codebook.embed for layer in model.quantizer.layers]
    digests = sorted(_tensor_digest(tensor) for tensor in tensors)
    return hashlib.sha256(b"".join(digests)).hexdigest()[:16]


def _tensor_digest(tensor: Tensor) -> bytes:
    array = tensor.detach().cpu().numpy().astype("<f4")
    digest = hashlib.sha256(str(array.shape).encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.digest()
