"""The one door to codecs: waveform <-> codes.

Codecs speak (B, Q, T), cuts and models (B, T, Q): the transposition happens here and nowhere else.
Letters: B batch, T frames, Q quantizers, N samples, C channels.
"""

import contextlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from valle.data.audio import read_mono, resample, to_mono
from valle.data.chunking import Chunk, plan_chunks
from valle.data.codec_families import family_of
from valle.data.codec_info import CodecInfo
from valle.data.codec_loading import fingerprint, load_codec_model
from valle.data.codec_stream import DecoderParts, StreamDecoder

DEFAULT_CODEC = "facebook/encodec_32khz"

Audio = str | Path | np.ndarray | Tensor

# Longer recordings go through the network in pieces of this length: a layer of the 32 kHz model
# holds 32000 x 64 channels x 4 bytes = 8 MB for each second, and several layers live at once.
_CHUNK_SEC = 30.0
# The network looks a few frames to the right; how far to the left, its family knows.
_RIGHT_CONTEXT_FRAMES = 16
# A GPU is fed several pieces at a time; on a CPU a batch is slower than its rows one by one.
_GPU_ROWS = 4


class Codec:
    """A codec model as this project uses it: mono, float32, evaluation mode, no gradients.

    EnCodec, DAC or Mimi; what the families call things differently is in `codec_families`.

    Results are on the CPU. Each row of a batch equals the row alone: rows of unequal length are
    never padded through the network, whose last frames depend on what follows them.

    Memory is bounded: what is longer than 30 s passes in pieces. Decoding carries the LSTM's state
    from piece to piece and so gives what one pass would. Encoding takes pieces with 2 s of context
    before and 16 frames after: the convolutions see everything they would see in the whole; the
    LSTM starts 2 s before the piece instead of at the recording's start, the one approximation.
    Mimi, whose transformers remember without an LSTM, passes both ways in pieces whose context is
    its attention's window.

    Args:
      model: A mono `transformers.EncodecModel`, `DacModel` or `MimiModel`.
      name: Where it came from.
      num_quantizers: How many of its quantizers to use, counted from the first; None is all of
        them. A codec with several bandwidths (encodec_24khz) is told here which one is meant.
      device: Where it runs.

    Raises:
      ValueError: A codec of another kind (stereo, normalising, chunking), or more quantizers asked
        than it has.
    """

    def __init__(
        self,
        model: Any,
        name: str,
        num_quantizers: int | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        self._family = family_of(model, name)
        available = self._family.num_quantizers
        if num_quantizers is not None and not 1 <= num_quantizers <= available:
            raise ValueError(
                f"num_quantizers {num_quantizers} asked of {name}, which has {available}"
            )
        self._model = model.to(device=device, dtype=torch.float32).eval().requires_grad_(False)
        self._name = name
        self.device = torch.device(device)
        self.num_quantizers = num_quantizers or available

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path = DEFAULT_CODEC,
        device: str | torch.device = "cpu",
        num_quantizers: int | None = None,
    ) -> "Codec":
        """Load a codec from a local folder or from the hub.

        Nothing is put in the place of a codec that cannot be had: tokens of another codec mean
        nothing.

        Raises:
          ImportError: `transformers` is not installed.
          ValueError: Neither a folder nor a hub name that can be fetched, or a file that is not a
            whole codec model.
        """
        model = load_codec_model(str(name_or_path))
        return cls(model, str(name_or_path), num_quantizers, device)

    @property
    def sampling_rate(self) -> int:
        return int(self._model.config.sampling_rate)

    @property
    def hop_length(self) -> int:
        """Samples a frame."""
        return self._family.hop_length

    @property
    def frame_rate(self) -> float:
        """Frames a second."""
        return self.sampling_rate / self.hop_length

    @property
    def codebook_size(self) -> int:
        return int(self._model.config.codebook_size)

    @cached_property
    def info(self) -> CodecInfo:
        """What to record beside tokens."""
        return CodecInfo(
            name=self._name,
            sampling_rate=self.sampling_rate,
            frame_rate=self.frame_rate,
            num_quantizers=self.num_quantizers,
            codebook_size=self.codebook_size,
            fingerprint=fingerprint(self._family),
        )

    def codebooks(self) -> Tensor:
        """The vectors behind the codes: what each adds to the latent that the decoder reads.

        Returns:
          (Q, codebook_size, dim) float32 on the CPU, a copy.
        """
        return self._family.codebooks()[: self.num_quantizers].detach().float().cpu()

    def encode(
        self, audio: Audio | Sequence[Audio], sampling_rate: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Turn sound into codes.

        Args:
          audio: A path or a waveform (N,) or (C, N), floating point; or a list of such.
          sampling_rate: Of the waveforms, None where they have the codec's. Files know their own.

        Returns:
          codes (B, T, Q) int64, zero beyond each row's length, and lens (B,) int64. A row of N
          samples at the codec's rate has ceil(N / hop_length) frames.

        Raises:
          FileNotFoundError, ValueError: A recording that cannot be read, is empty or not finite;
            a waveform of another shape or type.
        """
        recordings = [audio] if isinstance(audio, Audio) else list(audio)
        if not recordings:
            raise ValueError("nothing to encode: the list of recordings is empty")
        waveforms = [
            self._prepare(item, sampling_rate, index) for index, item in enumerate(recordings)
        ]
        rows = self._encode_in_pieces(waveforms)
        lens = torch.tensor([row.shape[0] for row in rows])
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), lens

    def _prepare(self, item: Audio, sampling_rate: int | None, index: int) -> Tensor:
        """Anything -> (N,) at the codec's rate, N a multiple of the hop."""
        if isinstance(item, str | Path):
            sound = read_mono(item)
            samples, rate = sound.samples, sound.sampling_rate
        else:
            samples = to_mono(item, where=f"recording {index} (from 0)")
            rate = sampling_rate or self.sampling_rate
        samples = resample(samples, rate, self.sampling_rate)
        # zeros up to the next whole frame; transformers mirrors the end there, which moves a few of
        # the last codes
        return torch.nn.functional.pad(samples, (0, -samples.shape[0] % self.hop_length))

    def _encode_in_pieces(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
        """(N,) waveforms of any lengths -> (T, Q) codes each, long ones in pieces with context."""
        hop = self.hop_length
        plans = [self._plan(waveform.shape[0] // hop) for waveform in waveforms]
        pieces = [
            waveform[c.context_start * hop : c.context_stop * hop]
            for waveform, plan in zip(waveforms, plans, strict=True)
            for c in plan
        ]
        results = iter(self._run(self._encode_batch, pieces))
        return [torch.cat([next(results)[c.kept()] for c in plan]) for plan in plans]

    def _plan(self, num_frames: int) -> list[Chunk]:
        left, chunk = self._frames(self._family.left_context_sec), self._frames(_CHUNK_SEC)
        return plan_chunks(num_frames, chunk, left, _RIGHT_CONTEXT_FRAMES)

    def _frames(self, seconds: float) -> int:
        return round(seconds * self.frame_rate)

    def _encode_batch(self, waveforms: Tensor) -> Tensor:
        """(B, N) of equal length -> (B, T, Q)."""
        codes = self._family.encode(waveforms[:, None])
        return codes[:, : self.num_quantizers].transpose(1, 2)

    def decode(self, codes: Tensor, lens: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Turn codes into sound.

        Args:
          codes: (B, T, Q) integers in [0, codebook_size); Q may be smaller than the codec's, the
            first quantizers alone give a coarser sound.
          lens: (B,) frames of each row; None where all rows are full. What lies beyond is ignored.

        Returns:
          waveforms (B, N) float32, zero beyond each row's length, and lens (B,) int64 in samples,
          hop_length for each frame.

        Raises:
          ValueError: Shapes that disagree, or a code out of range within a row's length.
        """
        lens = self._check_codes(codes, lens)
        codes = codes.detach().cpu().long()
        trimmed = [row[:n] for row, n in zip(codes, lens.tolist(), strict=True)]
        longest = self._frames(_CHUNK_SEC)
        short = iter(self._run(self._decode_batch, [r for r in trimmed if 0 < len(r) <= longest]))
        rows = [next(short) if 0 < len(r) <= longest else self._decode_long(r) for r in trimmed]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), lens * self.hop_length

    def stream_decoder(self, num_rows: int = 1) -> StreamDecoder:
        """Start turning codes into sound while they are still being made.

        Args:
          num_rows: B, sequences decoded side by side.

        Returns:
          A decoder to `feed` with chunks and to `finish`. What it gives, joined, is the sound of
          one pass over all codes, whatever their length: it needs no pieces with context.

        Raises:
          ValueError: `num_rows` below 1, or a codec whose decoder looks 32 frames ahead or more,
            or back without end, as Mimi's does.
        """
        if self._decoder_parts is None:
            raise ValueError(
                f"the codec {self._name!r} ({self._model.config.model_type}) cannot be streamed "
                "exactly: its decoder attends to a long past. Decode the whole sequence instead"
            )
        return StreamDecoder(self._decoder_parts, num_rows, self._check_codes, self._precisely)

    @cached_property
    def _decoder_parts(self) -> DecoderParts | None:
        return self._family.decoder_parts()

    def _check_codes(self, codes: Tensor, lens: Tensor | None) -> Tensor:
        if codes.ndim != 3 or codes.is_floating_point() or codes.shape[0] == 0:
            raise ValueError(
                f"codes are {codes.dtype} {tuple(codes.shape)}, expected integers (B, T, Q)"
            )
        B, T, Q = codes.shape
        if not 1 <= Q <= self.num_quantizers:
            raise ValueError(f"codes have {Q} quantizers, {self._name} has {self.num_quantizers}")
        lens = torch.full((B,), T) if lens is None else torch.as_tensor(lens).cpu().long()
        if lens.shape != (B,) or int(lens.min()) < 0 or int(lens.max()) > T:
            raise ValueError(f"lens are {lens.tolist()}, expected {B} numbers from 0 to {T}")
        real = torch.arange(T) < lens[:, None]  # (B, T)
        counted = codes.cpu()[real]
        limit = self.codebook_size - 1
        low, high = (int(counted.min()), int(counted.max())) if counted.numel() else (0, 0)
        if low < 0 or high > limit:
            raise ValueError(
                f"codes reach from {low} to {high}, expected 0 to {limit}: padding and special ids "
                "have no sound, give lens or cut them off"
            )
        return lens

    def _decode_long(self, codes: Tensor) -> Tensor:
        """(T, Q) -> (N,), at constant memory; T may be 0."""
        if self._decoder_parts is None:
            return self._decode_in_pieces(codes)
        decoder = self.stream_decoder()
        return torch.cat([decoder.feed(codes[None]), decoder.finish()], dim=1)[0]

    def _decode_in_pieces(self, codes: Tensor) -> Tensor:
        """(T, Q) -> (N,), for a decoder that cannot be streamed; T may be 0."""
        sounds = [torch.zeros(0)]
        for chunk in self._plan(codes.shape[0]):
            piece = codes[chunk.context_start : chunk.context_stop]
            kept, hop = chunk.kept(), self.hop_length
            (sound,) = self._run(self._decode_batch, [piece])
            sounds.append(sound[kept.start * hop : kept.stop * hop])
        return torch.cat(sounds)

    def _decode_batch(self, codes: Tensor) -> Tensor:
        """(B, T, Q) of equal length -> (B, N)."""
        return self._family.decode(codes.transpose(1, 2))

    def _run(self, network: Any, pieces: list[Tensor]) -> list[Tensor]:
        """Pass pieces of any lengths, equal ones together; results on the CPU."""
        results: dict[int, Tensor] = {}
        with self._precisely():
            for indices in self._batches(pieces):
                batch = torch.stack([pieces[i] for i in indices]).to(self.device)
                results.update(zip(indices, network(batch).cpu(), strict=True))
        return [results[i] for i in range(len(pieces))]

    @contextlib.contextmanager
    def _precisely(self) -> Iterator[None]:
        """Without gradients and in full precision.

        The caller may train in bfloat16: autocast is switched off here, since rounding changes
        codes. `no_grad` and not `inference_mode`, as the codes may enter an embedding in training.
        """
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False), exact_cuda():
            yield

    def _batches(self, pieces: Sequence[Tensor]) -> Iterator[list[int]]:
        rows = 1 if self.device.type == "cpu" else _GPU_ROWS
        by_length: dict[int, list[int]] = defaultdict(list)
        for index, piece in enumerate(pieces):
            by_length[piece.shape[0]].append(index)
        for indices in by_length.values():
            yield from (indices[i : i + rows] for i in range(0, len(indices), rows))


def load_audio(
    path: str | Path, codec: Codec | str | Path | None = None, max_seconds: float | None = None
) -> Tensor:
    """The codes of a sound file, ready for `model.inference`.

    Args:
      path: wav, flac, ogg or mp3, any sampling rate and number of channels.
      codec: A codec, its hub name or folder (loaded once and kept), or None for the default.
      max_seconds: Take no more than this from the start of the file.

    Returns:
      (1, T, Q) int64.

    Raises:
      FileNotFoundError, ValueError: A file that cannot be read, or is empty; `max_seconds` shorter
        than a frame; a codec that cannot be loaded.
    """
    if not isinstance(codec, Codec):
        codec = _kept_codec(str(DEFAULT_CODEC if codec is None else codec))
    num_frames = None if max_seconds is None else int(max_seconds * codec.frame_rate + 1e-6)
    if num_frames is not None and num_frames < 1:
        raise ValueError(
            f"max_seconds is {max_seconds}, shorter than one frame of {1 / codec.frame_rate:.3g} s"
        )
    # a second more than asked: the last frames depend on what follows them
    sound = read_mono(path, None if max_seconds is None else max_seconds + 1.0)
    codes, _ = codec.encode(sound.samples, sound.sampling_rate)
    return codes[:, :num_frames]


@lru_cache(maxsize=2)
def _kept_codec(name: str) -> Codec:
    return Codec.from_pretrained(name)


@contextlib.contextmanager
def exact_cuda() -> Iterator[None]:
    """Convolutions and LSTMs in true float32: TF32 would change some of the codes."""
    cudnn = torch.backends.cudnn
    if not torch.cuda.is_available():
        yield
        return
    with cudnn.flags(
        enabled=cudnn.enabled,
        benchmark=cudnn.benchmark,
        deterministic=cudnn.deterministic,
        allow_tf32=False,
    ):
        yield
