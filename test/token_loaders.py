"""Loaders over token manifests, as training makes them, and what comes out of them."""

import argparse
from typing import Any

import numpy as np
from lhotse import CutSet

from valle.data import TokenDataModule


def data_module(*flags: object) -> TokenDataModule:
    """With the default flags but for these, batches of 40 s and no workers."""
    parser = argparse.ArgumentParser()
    TokenDataModule.add_arguments(parser)
    args = ["--num-workers", "0", "--max-duration", "40", *map(str, flags)]
    return TokenDataModule(parser.parse_args(args))


def train_loader(cuts: CutSet, *flags: object, seed: int = 7, epoch: int = 0, **kwargs: Any) -> Any:
    """A loader for training."""
    loader = data_module(*flags).train_dataloader(cuts, seed, **kwargs)
    loader.sampler.set_epoch(epoch)
    return loader


def ids(loader: Any) -> list[list[str]]:
    """Of the cuts of each batch."""
    return [batch["utt_id"] for batch in loader]


def contents(loader: Any) -> dict[str, np.ndarray]:
    """The codes of every cut that a loader yields; each comes once."""
    found: dict[str, np.ndarray] = {}
    for batch in loader:
        columns = (batch[key] for key in ("utt_id", "audio_features", "audio_features_lens"))
        for id_, codes, length in zip(*columns, strict=True):
            assert id_ not in found, f"{id_} came twice"
            found[id_] = codes[:length].numpy()
    return found
