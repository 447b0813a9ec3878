"""Reads a codec model through transformers, judges it, and fingerprints it."""

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from valle.data.codec_families import CodecFamily, family_class, family_of

BUNDLED_CODEC = "egs/minipiano/codec"


def load_codec_model(name: str) -> Any:
    """Load a codec model of any family from a folder or from the hub, in float32.

    Raises:
      ImportError: `transformers` is not installed.
      ValueError: It cannot be had, is of another kind, or not whole.
    """
    try:
        import transformers
        from safetensors import SafetensorError
    except ImportError as error:
        raise ImportError("the codec needs transformers: pip install 'transformers>=5'") from error
    try:
        with _quiet_transformers():
            kind = transformers.AutoConfig.from_pretrained(name).model_type
            family = family_class(kind, name)
            loaded: Any = getattr(transformers, family.class_name).from_pretrained(
                name, dtype=torch.float32, output_loading_info=True
            )
            model, report = loaded
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        place = "a folder" if os.path.isdir(name) else "no folder here"
        raise ValueError(
            f"cannot load the codec {name!r} ({place}): {reason}. Give a local folder with "
            "config.json and model.safetensors (download it where there is a network, or use the "
            f"small one bundled in {BUNDLED_CODEC}); tokens and models belong to one codec, so "
            "no other is put in its place"
        ) from error
    _check_report(report, name, family)
    family_of(model, name).fill_missing(report["missing_keys"])
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


def _check_report(
    report: Mapping[str, Iterable[Any]], name: str, family: type[CodecFamily]
) -> None:
    missing = [key for key in report["missing_keys"] if not key.endswith(family.spare_weights)]
    problems = {
        "missing": sorted(missing),
        "unexpected": sorted(report["unexpected_keys"]),
        "of another shape": sorted(str(key) for key in report["mismatched_keys"]),
    }
    found = [f"{len(keys)} {kind} (first {keys[0]})" for kind, keys in problems.items() if keys]
    if found:
        raise ValueError(
            f"{name} is not a whole {family.class_name}, its weights are {', '.join(found)}: "
            "config.json and model.safetensors do not belong together"
        )


def fingerprint(family: CodecFamily) -> str:
    """Hash of what decides the tokens: encoder weights and codebooks, read as float32.

    Independent of tensor names and of the decoder, which may be fine-tuned without touching a
    single token.
    """
    digests = sorted(_tensor_digest(tensor) for tensor in family.token_tensors())
    return hashlib.sha256(b"".join(digests)).hexdigest()[:16]


def _tensor_digest(tensor: Tensor) -> bytes:
    array = tensor.detach().cpu().numpy().astype("<f4")
    digest = hashlib.sha256(str(array.shape).encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.digest()
