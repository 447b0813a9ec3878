"""One picture of what codecs make of some clips. matplotlib is an extra, imported where it draws.

Letters: C clips, N samples, F frequency bins, T frames.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from valle.codec.harmony import chromagram
from valle.codec.spectra import magnitudes
from valle.utils.files import written_whole
from valle.utils.plot import import_pyplot

PITCH_CLASSES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
_TOP_HZ = 8000


def draw_clips(path: Path, sounds: Mapping[str, Tensor], sampling_rate: int) -> None:
    """Log-spectrogram and chromagram of every clip, a column for each of its versions.

    Args:
      path: The PNG file.
      sounds: Title -> (C, N), all of one shape; the original first.
      sampling_rate: Of all.

    Raises:
      ImportError: If matplotlib is missing; the message says how to install it.
    """
    pyplot = import_pyplot()
    num_clips = next(iter(sounds.values())).shape[0]
    size = (6 * len(sounds), 5 * num_clips)
    figure, axes = pyplot.subplots(
        2 * num_clips, len(sounds), figsize=size, squeeze=False, layout="constrained"
    )
    for column, (title, clips) in enumerate(sounds.items()):
        for row, clip in enumerate(clips.cpu()):
            _draw_spectrogram(axes[2 * row][column], clip, sampling_rate, title)
            _draw_chromagram(axes[2 * row + 1][column], clip, sampling_rate)
    with written_whole(path) as temporary:
        figure.savefig(temporary, format="png", dpi=70)
    pyplot.close(figure)


def _draw_spectrogram(axis: Any, audio: Tensor, sampling_rate: int, title: str) -> None:
    spectrum = magnitudes(audio[None], torch.hann_window(2048))[0]  # (F, T)
    level = 20 * spectrum.clamp_min(1e-5).log10().numpy()
    extent = (0, audio.numel() / sampling_rate, 0, sampling_rate / 2000)
    axis.imshow(
        level, origin="lower", aspect="auto", extent=extent, vmin=-100, vmax=-20, cmap="magma"
    )
    axis.set(title=title, ylabel="kHz", ylim=(0, min(_TOP_HZ, sampling_rate / 2) / 1000))


def _draw_chromagram(axis: Any, audio: Tensor, sampling_rate: int) -> None:
    chroma = chromagram(audio[None], sampling_rate)[0]
    strength = (chroma / chroma.amax(dim=0, keepdim=True).clamp_min(1e-6)).numpy()
    extent = (0, audio.numel() / sampling_rate, -0.5, 11.5)
    axis.imshow(strength, origin="lower", aspect="auto", extent=extent, cmap="viridis")
    axis.set(ylabel="pitch class", xlabel="s")
    axis.set_yticks(range(12), list(PITCH_CLASSES))
