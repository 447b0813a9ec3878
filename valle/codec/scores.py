"""What codecs of any family score on the same clips, and tables of it.

Letters: C clips, N samples, Q quantizers, K codebook size, T frames.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from valle.codec.measures import MEASURES, compare
from valle.codec.rvq import perplexity
from valle.data.audio import resample
from valle.data.codec import Codec


@dataclass(frozen=True)
class CodecScores:
    """What a codec scored on some clips; the measures are those of MEASURES.

    Attributes:
      measures: With all quantizers.
      by_levels: Number of quantizers decoded -> measures; empty unless asked for.
      used_codes: For each quantizer.
      perplexity: For each quantizer, of its codes alone, whatever came before.
      bit_rate: kbit/s, log2(codebook size) for each code.
      entropy_rate: kbit/s that an ideal coder needs that knows how often each code occurs here.
      num_frames: In all, from which use and entropy were counted.
    """

    measures: dict[str, float]
    by_levels: dict[int, dict[str, float]]
    used_codes: list[int]
    perplexity: list[float]
    codebook_size: int
    frame_rate: float
    sampling_rate: int
    bit_rate: float
    entropy_rate: float
    num_frames: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def resample_clips(clips: Tensor, source_rate: int, target_rate: int) -> Tensor:
    """(C, N) at another rate."""
    if source_rate == target_rate:
        return clips
    return torch.stack([resample(clip.cpu(), source_rate, target_rate) for clip in clips])


def through_codec(codec: Codec, codes: Tensor, sampling_rate: int, num_samples: int) -> Tensor:
    """Sound (C, num_samples) of codes (C, T, Q), at the rate of the measurements."""
    sound = resample_clips(codec.decode(codes)[0], codec.sampling_rate, sampling_rate)
    return torch.nn.functional.pad(sound, (0, num_samples - sound.shape[1]))


def encode_clips(codec: Codec, clips: Tensor, sampling_rate: int) -> Tensor:
    """Codes (C, T, Q) of clips (C, N)."""
    return codec.encode(list(resample_clips(clips, sampling_rate, codec.sampling_rate)))[0]


def score_codec(
    codec: Codec, clips: Tensor, sampling_rate: int, every_level: bool = False
) -> tuple[CodecScores, Tensor]:
    """Send clips (C, N) through a codec and measure what comes back.

    Args:
      codec: Any; where it works at another rate, clips are resampled there and back.
      clips: Equally long.
      sampling_rate: Of the clips; all is measured at it.
      every_level: Measure with the first quantizer alone, the first two, and so on, too.

    Returns:
      The scores, and the sounds (C, N) with all quantizers.
    """
    codes = encode_clips(codec, clips, sampling_rate)
    Q = codes.shape[2]
    by_levels, sound = {}, torch.empty(0)
    for level in range(1 if every_level else Q, Q + 1):
        sound = through_codec(codec, codes[..., :level], sampling_rate, clips.shape[1])
        by_levels[level] = compare(sound, clips, sampling_rate)
    counts = count_codes(codes, codec.codebook_size)
    spread = perplexity(counts)
    bits = Q * math.log2(codec.codebook_size)
    scores = CodecScores(
        measures=by_levels[Q],
        by_levels=by_levels if every_level else {},
        used_codes=(counts > 0).sum(dim=1).tolist(),
        perplexity=spread.tolist(),
        codebook_size=codec.codebook_size,
        frame_rate=codec.frame_rate,
        sampling_rate=codec.sampling_rate,
        bit_rate=codec.frame_rate * bits / 1000,
        entropy_rate=codec.frame_rate * float(spread.log2().sum()) / 1000,
        num_frames=codes.shape[0] * codes.shape[1],
    )
    return scores, sound


def count_codes(codes: Tensor, codebook_size: int) -> Tensor:
    """How often each code (C, T, Q) occurs: (Q, K) float."""
    levels = codes.flatten(0, 1).unbind(1)
    return torch.stack([torch.bincount(x, minlength=codebook_size) for x in levels]).float()


def chance_scores(clips: Tensor, sampling_rate: int) -> dict[str, float]:
    """What each clip (C, N) scores against the next one: the bottom of every scale.

    Raises:
      ValueError: A single clip has no next one.
    """
    if clips.shape[0] < 2:
        raise ValueError(
            f"{clips.shape[0]} clip, at least 2 are needed: ask for more or shorter ones"
        )
    return compare(clips.roll(1, 0), clips, sampling_rate)


def measures_table(columns: Mapping[str, Mapping[str, float]]) -> str:
    """Markdown: a row a measure, a column for each name."""
    lines = [_row(["measure", *columns]), "|---" * (len(columns) + 1) + "|"]
    for key, label in MEASURES.items():
        lines.append(_row([label, *(f"{values[key]:.3f}" for values in columns.values())]))
    return "\n".join(lines)


def rates_table(scores: Mapping[str, CodecScores]) -> str:
    """Markdown: what each codec is, and the bits it takes."""
    heads = ["codec", "Hz", "frames/s", "quantizers x codes", "kbit/s", "kbit/s, entropy-coded"]
    lines = [_row(heads), "|---" * len(heads) + "|"]
    for name, s in scores.items():
        size = f"{len(s.used_codes)} x {s.codebook_size}"
        rates = [f"{s.bit_rate:.2f}", f"{s.entropy_rate:.2f}"]
        lines.append(_row([name, str(s.sampling_rate), f"{s.frame_rate:g}", size, *rates]))
    return "\n".join(lines)


def usage_table(scores: CodecScores) -> str:
    """Markdown: codes used and perplexity of every quantizer."""
    lines = ["| quantizer | codes used | perplexity |", "|---|---|---|"]
    for number, (used, spread) in enumerate(
        zip(scores.used_codes, scores.perplexity, strict=True), 1
    ):
        lines.append(f"| {number} | {used} of {scores.codebook_size} | {spread:.0f} |")
    return "\n".join(lines)


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
