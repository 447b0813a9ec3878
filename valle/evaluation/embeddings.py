"""Named embeddings of sounds: (N,) sound -> (n, D) vectors, one for each window.

"mel" and "chroma" are computed here; "codec:NAME" (the latents of a codec that is not the
generator's) and "clap:NAME" (CLAP, through transformers) need weights, from a folder or the hub.
The name of the embedding is part of the name of every number that rests on it.

N samples, n windows, W samples of a window, D dimensions, F frequency bins, M mel bands, T frames.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from valle.codec.harmony import chroma_map, pitch_spectrum
from valle.codec.spectra import FLOOR, log_floor, magnitudes, mel_filterbank
from valle.data.audio import resample

WINDOW_SEC, HOP_SEC = 1.0, 0.5
# Few enough that a covariance from some hundred windows means something: 2 x 16 = 32 dimensions.
MEL_BANDS = 16
MEL_WINDOW_SEC = 0.064

OFFLINE = ("mel", "chroma")


@dataclass(frozen=True)
class Embedding:
    """A way to turn windows of sound into vectors.

    Attributes:
      name: as it was asked for.
      sampling_rate: Hz of the sounds that it takes.
      embed: (n, W) windows of a second -> (n, D) float32.
    """

    name: str
    sampling_rate: int
    embed: Callable[[Tensor], Tensor]

    def __call__(self, sound: Tensor) -> Tensor:
        """(N,) -> (n, D); a sound shorter than a window is filled up with silence."""
        with torch.no_grad():
            return self.embed(windows(sound, self.sampling_rate)).float().cpu()


def windows(sound: Tensor, sampling_rate: int) -> Tensor:
    """(N,) -> (n, W), whole windows of WINDOW_SEC every HOP_SEC; one at least, silence after it."""
    size, hop = round(WINDOW_SEC * sampling_rate), round(HOP_SEC * sampling_rate)
    missing = max(0, size - sound.shape[0])
    return torch.nn.functional.pad(sound, (0, missing)).unfold(0, size, hop)


def get_embedding(name: str, sampling_rate: int, generator_codec: str | None = None) -> Embedding:
    """An embedding by its name.

    Args:
      name: "mel", "chroma", "codec:NAME" or "clap:NAME"; NAME is a folder or a hub name.
      sampling_rate: Hz of the sounds.
      generator_codec: the fingerprint of the codec that the generator speaks, if known.

    Raises:
      ImportError: transformers is not installed.
      ValueError: no such embedding, weights that cannot be had, or the generator's own codec.
    """
    kind, _, weights = name.partition(":")
    if name in OFFLINE:
        make = {"mel": mel_statistics, "chroma": chroma_profile}[name]
        return Embedding(name, sampling_rate, make(sampling_rate))
    if kind == "codec" and weights:
        return _with_rate(name, sampling_rate, *codec_latents(weights, generator_codec))
    if kind == "clap" and weights:
        return _with_rate(name, sampling_rate, *clap_vectors(weights))
    raise ValueError(
        f"unknown embedding {name!r}: give mel, chroma, codec:NAME or clap:NAME, where NAME is a "
        "folder or a name on the hub"
    )


def _with_rate(name: str, given: int, wanted: int, embed: Callable[[Tensor], Tensor]) -> Embedding:
    """An embedding of sounds at the given rate through a model that wants another."""
    size = round(WINDOW_SEC * wanted)

    def resampled(parts: Tensor) -> Tensor:
        return embed(torch.stack([resample(part, given, wanted)[:size] for part in parts]))

    return Embedding(name, given, embed if given == wanted else resampled)


def mel_statistics(sampling_rate: int) -> Callable[[Tensor], Tensor]:
    """Mean and standard deviation over the window of each of M log mel bands, 2 M dimensions."""
    size = 2 ** round(math.log2(MEL_WINDOW_SEC * sampling_rate))
    bank, window = mel_filterbank(sampling_rate, size, MEL_BANDS).T, torch.hann_window(size)

    def embed(parts: Tensor) -> Tensor:
        bands = log_floor(bank @ magnitudes(parts, window))  # (n, M, T)
        return torch.cat([bands.mean(dim=2), bands.std(dim=2)], dim=1)

    return embed


def chroma_profile(sampling_rate: int) -> Callable[[Tensor], Tensor]:
    """Shares of the twelve pitch classes in the window; one below FLOOR has all of them alike."""
    classes = chroma_map(sampling_rate)

    def embed(parts: Tensor) -> Tensor:
        chroma = (classes @ pitch_spectrum(parts, sampling_rate)).mean(dim=2) + FLOOR  # (n, 12)
        return chroma / chroma.sum(dim=1, keepdim=True)

    return embed


def codec_latents(name: str, generator_codec: str | None) -> tuple[int, Callable[[Tensor], Tensor]]:
    """What an EnCodec's encoder makes of a window before it is quantized, averaged over time.

    Raises:
      ValueError: the codec is the generator's, whose own tokens would judge it; or no EnCodec.
    """
    from valle.data.codec import Codec
    from valle.data.codec_loading import load_codec_model

    model = load_codec_model(name)
    info = Codec(model, name).info
    if info.fingerprint == generator_codec:
        raise ValueError(
            f"codec:{name} is the codec that the generator speaks (fingerprint "
            f"{info.fingerprint}); what it cannot hear, it could not count: give another codec"
        )
    if model.config.model_type != "encodec":
        raise ValueError(f"codec:{name} is of type {model.config.model_type}, expected an EnCodec")

    def embed(parts: Tensor) -> Tensor:
        return model.encoder(parts[:, None]).mean(dim=2)  # (n, D, T) -> (n, D)

    return info.sampling_rate, embed


def clap_vectors(name: str) -> tuple[int, Callable[[Tensor], Tensor]]:
    """The audio half of a CLAP model.

    Raises:
      ImportError: transformers is not installed.
      ValueError: the weights cannot be had.
    """
    model, extractor = _load_clap(name)
    rate = int(extractor.sampling_rate)

    def embed(parts: Tensor) -> Tensor:
        inputs = extractor(list(parts.numpy()), sampling_rate=rate, return_tensors="pt")
        made = model.get_audio_features(**inputs)
        # a tensor up to transformers 4, an output with the vectors in its pooler since
        return made if isinstance(made, Tensor) else made.pooler_output

    return rate, embed


def _load_clap(name: str) -> tuple[Any, Any]:
    try:
        from transformers import ClapFeatureExtractor, ClapModel
    except ImportError as error:
        raise ImportError("CLAP needs transformers: pip install 'transformers>=5'") from error
    try:
        model: Any = ClapModel.from_pretrained(name)
        return model.eval(), ClapFeatureExtractor.from_pretrained(name)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"cannot load clap:{name}: {reason}. Give a folder that ClapModel and "
            "ClapFeatureExtractor were saved to, or a hub name where there is a network"
        ) from error
