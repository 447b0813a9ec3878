"""What the reader of a codec wants to see: a card with its scores, pictures, pairs of sounds.

Letters: C clips, N samples, F frequency bins, T frames.
"""

from pathlib import Path
from typing import Any

import soundfile
import torch
from codec_files import write_text
from codec_losses import magnitudes
from codec_metrics import MEASURES, CodecScores, chromagram, decode_clips, encode_clips
from torch import Tensor

from valle.utils.files import written_whole

PITCH_CLASSES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")

CARD_HEAD = """# A small EnCodec for piano

An `EncodecModel` of transformers, {rate} Hz mono, {frames} frames a second, {quantizers} quantizers
of {codes} codes ({bitrate:.1f} kbit/s), trained from scratch on generated piano pieces, notes and
chords. It is made for trying things out without a download and knows no other sound. For
recordings use facebook/encodec_32khz, whose tokens have the same frame rate.

```python
from transformers import EncodecModel
codec = EncodecModel.from_pretrained("egs/minipiano/codec")
```

Weights are stored in float16 and computed with in float32 (config.json says so); `embed_avg`, which
only further training of the codebooks would read, is stored in 8 bits.
"""


def score_table(scores: CodecScores) -> str:
    """Markdown: a row a measure, a column a number of quantizers, chance at the end."""
    levels = sorted(scores.by_levels)
    head = ["measure", *(f"{k} quantizer{'s' if k > 1 else ''}" for k in levels), "another piece"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for key, label in MEASURES.items():
        values = [scores.by_levels[k][key] for k in levels] + [scores.chance[key]]
        lines.append(f"| {label} | " + " | ".join(f"{v:.3f}" for v in values) + " |")
    return "\n".join(lines)


def usage_table(scores: CodecScores) -> str:
    """Markdown: codes used and perplexity of every quantizer."""
    lines = ["| quantizer | codes used | perplexity |", "|---|---|---|"]
    for number, (used, spread) in enumerate(
        zip(scores.used_codes, scores.perplexity, strict=True), 1
    ):
        lines.append(f"| {number} | {used} of {scores.codebook_size} | {spread:.0f} |")
    return "\n".join(lines)


def card_text(model: Any, facts: dict[str, str], scores: CodecScores) -> str:
    """The whole card in Markdown; facts are lines on how the codec was made."""
    config = model.config
    head = CARD_HEAD.format(
        rate=config.sampling_rate,
        frames=config.frame_rate,
        quantizers=config.num_quantizers,
        codes=config.codebook_size,
        bitrate=config.target_bandwidths[-1],
    )
    made = "\n".join(f"- {name}: {value}" for name, value in facts.items())
    where = (
        f"Measured by `evaluate_codec.py` on the shipped files, on {scores.num_clips} clips of "
        f"{scores.clip_sec:g} s from test pieces ({scores.num_frames} frames). Columns: how many "
        "quantizers were decoded; the last one is what the original scores against another piece."
    )
    parts = [head, "## How it was made", made, "## What it scores", where]
    parts += [score_table(scores), usage_table(scores)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def write_card(path: Path, model: Any, facts: dict[str, str], scores: CodecScores) -> None:
    """Write the card ."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, card_text(model, facts, scores))


def write_examples(folder: Path, model: Any, clips: Tensor, num_pairs: int = 3) -> None:
    """Save pairs of sounds and a picture of the first clips (C, 1, N) and what became of them."""
    folder.mkdir(parents=True, exist_ok=True)
    clips = clips[:num_pairs]
    sound = decode_clips(model, encode_clips(model, clips), clips.shape[2])
    rate = model.config.sampling_rate
    for number, (before, after) in enumerate(zip(clips[:, 0], sound, strict=True), 1):
        write_wav(folder / f"clip{number}_original.wav", before, rate)
        write_wav(folder / f"clip{number}_codec.wav", after, rate)
    draw_pairs(folder / "spectrograms.png", clips[:, 0], sound, rate)
    print(f"sound pairs and spectrograms.png are in {folder}")


def write_wav(path: Path, samples: Tensor, sampling_rate: int) -> None:
    """Write (N,) samples as 16-bit WAV ."""
    audio = samples.clamp(-1, 1).cpu().numpy()
    with written_whole(path) as temporary:
        soundfile.write(temporary, audio, sampling_rate, format="WAV", subtype="PCM_16")


def draw_pairs(path: Path, originals: Tensor, sounds: Tensor, sampling_rate: int) -> None:
    """Draw log-spectrogram and chromagram of originals and sounds (C, N) side by side.

    Raises:
        ImportError: If matplotlib is missing; the message says how to install it.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install matplotlib") from error
    num = originals.shape[0]
    figure = Figure(figsize=(16, 5 * num), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2 * num, 2, squeeze=False)
    for row, pair in enumerate(zip(originals, sounds, strict=True)):
        for column, (title, audio) in enumerate(zip(("original", "codec"), pair, strict=True)):
            _draw_spectrogram(axes[2 * row][column], audio, sampling_rate, title)
            _draw_chromagram(axes[2 * row + 1][column], audio, sampling_rate)
    with written_whole(path) as temporary:
        figure.savefig(temporary, format="png", dpi=70)


def _draw_spectrogram(axis: Any, audio: Tensor, sampling_rate: int, title: str) -> None:
    window = torch.hann_window(2048, device=audio.device)
    level = 20 * magnitudes(audio.unsqueeze(0), window)[0].clamp_min(1e-5).log10()  # (F, T)
    extent = (0, audio.numel() / sampling_rate, 0, sampling_rate / 2000)
    level = level.cpu().numpy()
    axis.imshow(
        level, origin="lower", aspect="auto", extent=extent, vmin=-100, vmax=-20, cmap="magma"
    )
    axis.set(title=title, ylabel="kHz", ylim=(0, 8))


def _draw_chromagram(axis: Any, audio: Tensor, sampling_rate: int) -> None:
    chroma = chromagram(audio.unsqueeze(0), sampling_rate)[0]
    chroma = (chroma / chroma.amax(dim=0, keepdim=True).clamp_min(1e-6)).cpu().numpy()
    extent = (0, audio.numel() / sampling_rate, -0.5, 11.5)
    axis.imshow(chroma, origin="lower", aspect="auto", extent=extent, cmap="viridis")
    axis.set(ylabel="pitch class", xlabel="s")
    axis.set_yticks(range(12), list(PITCH_CLASSES))
