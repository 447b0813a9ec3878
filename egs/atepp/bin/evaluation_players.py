"""Rows of players with spectrograms: what a page lets the reader hear of a passage.

N samples.
"""

import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import soundfile
from torch import Tensor

from valle.utils.html import data_uri
from valle.utils.plot import import_pyplot, log_spectrograms

STYLE = """
.row { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: .8rem;
  margin-bottom: 1.6rem; }
.row figure { margin: 0; min-width: 0; } .row figcaption { font-weight: 600; }
.row img { display: block; width: 100%; } .row audio { width: 100%; height: 2.4rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f5f5f5; padding: .6rem; }
dl { columns: 2 24rem; column-gap: 2rem; } dl div { break-inside: avoid; }
dt { font-weight: 600; } dd { margin: 0 0 .5rem 1rem; }
"""

# one sound at a time: whoever starts a player wants to hear that one
SCRIPT = """
document.addEventListener("play", (event) => {
  for (const other of document.querySelectorAll("audio"))
    if (other !== event.target) other.pause();
}, true);
"""

_TOP_KHZ = 6.0  # up to there piano and voice have their say


@dataclass
class Player:
    """A sound (N,) with its title, and the seconds at which its spectrogram has marks."""

    title: str
    sound: Tensor
    marks_sec: Sequence[float] = ()


@dataclass
class Row:
    """The players of one passage."""

    title: str
    players: Sequence[Player]


def listening(rows: Sequence[Row], sampling_rate: int, with_pictures: bool) -> str:
    """HTML of all rows."""
    return "\n".join(_row(row, sampling_rate, with_pictures) for row in rows)


def _row(row: Row, sampling_rate: int, with_pictures: bool) -> str:
    pictures = draw_row(row.players, sampling_rate) if with_pictures else {}
    title = html.escape(row.title)
    figures = (_figure(player, row.title, sampling_rate, pictures) for player in row.players)
    return f'<h3>{title}</h3>\n<div class="row">\n' + "\n".join(figures) + "\n</div>"


def _figure(player: Player, where: str, sampling_rate: int, pictures: Mapping[str, bytes]) -> str:
    name = html.escape(f"{player.title}, {where}")
    parts = [f"<figcaption>{html.escape(player.title)}</figcaption>"]
    if player.title in pictures:
        source = data_uri(pictures[player.title], "image/png")
        parts.append(f'<img alt="Spectrogram: {name}" src="{source}">')
    sound = data_uri(as_flac(player.sound, sampling_rate), "audio/flac")
    parts.append(f'<audio controls preload="metadata" aria-label="{name}" src="{sound}"></audio>')
    return f"<figure>{''.join(parts)}</figure>"


def as_flac(sound: Tensor, sampling_rate: int) -> bytes:
    """A sound (N,) in 16 bits; every browser plays it, and it takes half of a WAV file."""
    content = io.BytesIO()
    samples = sound.clamp(-1, 1).numpy()
    soundfile.write(content, samples, sampling_rate, format="FLAC", subtype="PCM_16")
    return content.getvalue()


def draw_row(players: Sequence[Player], sampling_rate: int) -> dict[str, bytes]:
    """By title a PNG; all with the same scale of time and of level, so that they compare."""
    images = log_spectrograms([player.sound.float() for player in players])
    longest_sec = max(len(player.sound) for player in players) / sampling_rate
    return {
        player.title: _draw(player, image.numpy(), sampling_rate, longest_sec)
        for player, image in zip(players, images, strict=True)
    }


def _draw(player: Player, image: np.ndarray, sampling_rate: int, longest_sec: float) -> bytes:
    pyplot = import_pyplot()
    figure, axis = pyplot.subplots(figsize=(3, 1.45))
    top = sampling_rate / 2000
    extent = (0, len(player.sound) / sampling_rate, 0, top)
    axis.imshow(
        image, origin="lower", aspect="auto", extent=extent, cmap="bone_r", vmin=-65, vmax=0
    )
    for mark in player.marks_sec:
        axis.axvline(mark, color="#d0342c", linewidth=1.2)
    axis.set(xlim=(0, longest_sec), ylim=(0, min(_TOP_KHZ, top)))
    axis.set_xlabel("s", fontsize=7, labelpad=1)
    axis.set_ylabel("kHz", fontsize=7, labelpad=1)
    axis.tick_params(labelsize=7, length=2)
    axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout(pad=0.3)
    return as_png(figure)


def as_png(figure: Any) -> bytes:
    """A figure as a PNG; the figure is closed."""
    content = io.BytesIO()
    # no versions in it: the same sounds, the same bytes
    figure.savefig(content, format="png", dpi=120, metadata={"Software": None})
    import_pyplot().close(figure)
    return content.getvalue()
