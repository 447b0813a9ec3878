"""What each family of codec models calls the things that `Codec` needs: EnCodec, DAC, Mimi.

All facts come from the model. Adding a family is one class here and one line in `FAMILIES`.
Letters: B batch, T frames, Q quantizers, K codebook size, D latent width, N samples.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from valle.data.codec_stream import DecoderParts


class CodecFamily(ABC):
    """A codec model of `transformers` behind names that all families share.

    Args:
      model: Of the class `class_name`; mono.

    Attributes:
      class_name: The model's class in `transformers`.
      spare_weights: Endings of weights that a file may leave out.
    """

    class_name: ClassVar[str]
    spare_weights: ClassVar[tuple[str, ...]] = ()

    def __init__(self, model: Any) -> None:
        self.model = model
        self.config = model.config

    @staticmethod
    @abstractmethod
    def refusals(config: Any) -> dict[str, bool]:
        """What this project cannot use -> whether a configuration asks for it."""

    @property
    @abstractmethod
    def hop_length(self) -> int:
        """Samples a frame."""

    @property
    @abstractmethod
    def num_quantizers(self) -> int:
        """Q of the whole model."""

    @property
    def left_context_sec(self) -> float:
        """How much of the past a piece of a long recording is given."""
        return 2.0

    @abstractmethod
    def encode(self, waveforms: Tensor) -> Tensor:
        """(B, 1, N), N a multiple of the hop -> codes (B, Q, T) of all quantizers."""

    @abstractmethod
    def decode(self, codes: Tensor) -> Tensor:
        """Codes (B, Q, T), of the first quantizers alone if there are fewer -> (B, T * hop)."""

    @abstractmethod
    def codebooks(self) -> Tensor:
        """What each code adds to the latent that the decoder reads: (Q, K, D), a copy."""

    @abstractmethod
    def token_tensors(self) -> list[Tensor]:
        """Everything that decides which codes a sound becomes, and nothing else."""

    def decoder_parts(self) -> DecoderParts | None:
        """The decoder taken apart for streaming; None where that would not be exact."""
        return None

    def fill_missing(self, names: Iterable[str]) -> None:
        """Give `spare_weights` that a file left out a value that fits the others."""
        return None  # as the model was made


class EncodecFamily(CodecFamily):
    """EnCodec: convolutions around an LSTM, codebooks of the latents themselves."""

    class_name = "EncodecModel"
    # what only the training of a codec needs
    spare_weights = (".codebook.embed_avg", ".codebook.cluster_size", ".codebook.inited")

    @staticmethod
    def refusals(config: Any) -> dict[str, bool]:
        return {
            f"{config.audio_channels} audio channels": config.audio_channels != 1,
            "loudness normalisation": config.normalize,
            "fixed overlapping chunks": config.chunk_length_s is not None,
            "normalisation over time": config.norm_type != "weight_norm",
        }

    @property
    def hop_length(self) -> int:
        return math.prod(self.config.upsampling_ratios)

    @property
    def num_quantizers(self) -> int:
        return len(self.model.quantizer.layers)

    def encode(self, waveforms: Tensor) -> Tensor:
        bandwidth = max(self.config.target_bandwidths)
        return self.model.encode(waveforms, bandwidth=bandwidth).audio_codes[0]

    def decode(self, codes: Tensor) -> Tensor:
        return self.model.decode(codes[None], [None]).audio_values[:, 0]

    def codebooks(self) -> Tensor:
        return torch.stack([layer.codebook.embed.clone() for layer in self.model.quantizer.layers])

    def token_tensors(self) -> list[Tensor]:
        books = [layer.codebook.embed for layer in self.model.quantizer.layers]
        return [*self.model.encoder.state_dict().values(), *books]

    def decoder_parts(self) -> DecoderParts:
        layers = list(self.model.decoder.layers)
        where = [isinstance(getattr(layer, "lstm", None), nn.LSTM) for layer in layers].index(True)
        return DecoderParts(
            embed=lambda codes: self.model.quantizer.decode(codes.transpose(0, 1)),
            before=nn.Sequential(*layers[:where]),
            lstm=layers[where].lstm,
            after=nn.Sequential(*layers[where + 1 :]),
            width=self.config.hidden_size,
            hop_length=self.hop_length,
        )

    def fill_missing(self, names: Iterable[str]) -> None:
        """As if each code had been seen once: embed = embed_avg / cluster_size holds."""
        for name in names:
            codebook = self.model.get_submodule(name.rpartition(".")[0])
            if name.endswith("embed_avg"):
                codebook.embed_avg.copy_(codebook.embed)
            elif name.endswith("cluster_size"):
                codebook.cluster_size.fill_(1.0)


class DacFamily(CodecFamily):
    """DAC: convolutions alone; codes are chosen in a narrow space, projected back for the sum."""

    class_name = "DacModel"

    @staticmethod
    def refusals(config: Any) -> dict[str, bool]:
        return {}  # the class knows mono alone

    @property
    def hop_length(self) -> int:
        return math.prod(self.config.downsampling_ratios)

    @property
    def num_quantizers(self) -> int:
        return len(self.model.quantizer.quantizers)

    def encode(self, waveforms: Tensor) -> Tensor:
        return self.model.encode(waveforms).audio_codes

    def decode(self, codes: Tensor) -> Tensor:
        sound = self.model.decode(audio_codes=codes).audio_values
        return _to_length(sound, codes.shape[2] * self.hop_length)

    def codebooks(self) -> Tensor:
        levels = self.model.quantizer.quantizers
        return torch.stack([q.out_proj(q.codebook.weight.T[None])[0].T for q in levels])

    def token_tensors(self) -> list[Tensor]:
        # the projection back is among them: what it gives is taken off before the next level
        return [
            *self.model.encoder.state_dict().values(),
            *self.model.quantizer.state_dict().values(),
        ]

    def decoder_parts(self) -> DecoderParts:
        return DecoderParts(
            embed=lambda codes: self.model.quantizer.from_codes(codes)[0],
            before=nn.Identity(),
            lstm=None,
            after=_WholeFrames(self.model.decoder, self.hop_length),
            width=self.config.hidden_size,
            hop_length=self.hop_length,
        )


class MimiFamily(CodecFamily):
    """Mimi: causal convolutions around transformers that look back a window of frames.

    Stacked, the layers look back further than the window, so pieces of long recordings are an
    approximation, as they are with the LSTM of EnCodec; a stream would be one too and is refused.
    """

    class_name = "MimiModel"
    spare_weights = (".codebook.initialized",)

    @staticmethod
    def refusals(config: Any) -> dict[str, bool]:
        return {f"{config.audio_channels} audio channels": config.audio_channels != 1}

    @property
    def hop_length(self) -> int:
        return round(self.config.sampling_rate / self.config.frame_rate)

    @property
    def num_quantizers(self) -> int:
        return int(self.config.num_quantizers)

    @property
    def left_context_sec(self) -> float:
        rate = self.config.sampling_rate / math.prod(self.config.upsampling_ratios)
        return self.config.sliding_window / rate

    def encode(self, waveforms: Tensor) -> Tensor:
        return self.model.encode(waveforms).audio_codes

    def decode(self, codes: Tensor) -> Tensor:
        sound = self.model.decode(codes).audio_values[:, 0]
        return _to_length(sound, codes.shape[2] * self.hop_length)

    def codebooks(self) -> Tensor:
        projected = []
        for residual in self._residuals():
            project = residual.output_proj or nn.Identity()
            projected += [project(layer.codebook.embed.T[None])[0].T for layer in residual.layers]
        return torch.stack([table.clone() for table in projected])

    def token_tensors(self) -> list[Tensor]:
        names = self.model.state_dict()
        # not the raw sums of the codebooks: their quotients alone decide
        tensors = [v for n, v in names.items() if n.startswith(("encoder", "downsample"))]
        for residual in self._residuals():
            tensors += [layer.codebook.embed for layer in residual.layers]
            if residual.input_proj is not None:
                tensors.append(residual.input_proj.weight)
        return tensors

    def _residuals(self) -> list[Any]:
        quantizer = self.model.quantizer
        return [
            quantizer.semantic_residual_vector_quantizer,
            quantizer.acoustic_residual_vector_quantizer,
        ]


# by the `model_type` of config.json
FAMILIES: dict[str, type[CodecFamily]] = {
    "encodec": EncodecFamily,
    "dac": DacFamily,
    "mimi": MimiFamily,
}


def family_class(model_type: str, name: str) -> type[CodecFamily]:
    """The family of a `model_type`.

    Raises:
      ValueError: It is none of ours; the message gives both.
    """
    if model_type not in FAMILIES:
        raise ValueError(
            f"the codec {name!r} is of kind {model_type!r}, expected one of "
            f"{', '.join(FAMILIES)}: take a codec of these kinds"
        )
    return FAMILIES[model_type]


def family_of(model: Any, name: str) -> CodecFamily:
    """The model behind the shared names.

    Raises:
      ValueError: A model of another kind (stereo, normalising, chunking), with the reasons.
    """
    family = family_class(model.config.model_type, name)
    found = [reason for reason, is_so in family.refusals(model.config).items() if is_so]
    if found:
        raise ValueError(
            f"the codec {name!r} works with {', '.join(found)}; only mono codecs of the kind of "
            "encodec_32khz and encodec_24khz, and mono DAC and Mimi models, are supported"
        )
    return family(model)


class _WholeFrames(nn.Module):
    """A decoder whose sound is filled up to whole frames."""

    def __init__(self, decoder: nn.Module, hop_length: int) -> None:
        super().__init__()
        self.decoder, self.hop_length = decoder, hop_length

    def forward(self, latents: Tensor) -> Tensor:
        return _to_length(self.decoder(latents), latents.shape[2] * self.hop_length)


def _to_length(sound: Tensor, num_samples: int) -> Tensor:
    """Zeros behind a sound, or a cut, to `num_samples` along the last dimension.

    An upsampling by an odd factor may end a few samples early, a causal one late.
    """
    return nn.functional.pad(sound, (0, num_samples - sound.shape[-1]))
