"""How well a VALL-E follows its condition, as sections of the page.

N samples, M notes.
"""

import html
from typing import Any

import numpy as np
from evaluation_condition import (
    ANOTHER,
    CODEC,
    GENERATED,
    MEASURES,
    SHUFFLED,
    TRUE,
    Followed,
    notes_after,
)
from evaluation_players import Player, Row, as_png, listening
from evaluation_tables import gap_table
from torch import Tensor

from valle.utils.html import Section, data_uri
from valle.utils.plot import import_pyplot, log_spectrograms

__all__ = ["condition_sections"]

_TOP_KHZ = 6.0  # up to there a piano has its say
_SOUNDS = {
    CODEC: "the true codes, decoded: as near as the model could come",
    GENERATED: "the prompt's first seconds and the passage's notes, played by the model",
    SHUFFLED: "the same, told the notes of another recording after the prompt",
    ANOTHER: "what is true elsewhere: the agreement that comes by chance",
}


def condition_sections(followed: Followed, with_pictures: bool) -> list[Section]:
    """Measures; then notes, spectrograms and players of some passages."""
    kind = "the recordings" if followed.stage.is_recorded else "their codes, decoded"
    seconds = followed.stage.sizes[1] / followed.stage.codec.frame_rate
    rows = "; ".join(f"{name}: {about}" for name, about in _SOUNDS.items())
    note = (
        f"Beside true sound from {kind}, the {seconds:g} s after the prompt. {rows}. A note begins "
        "as in the other where an onset of the same pitch class lies at most 50 ms away; onsets "
        "and pitches are heard in the sound, with errors that the true recording has, too. Each "
        "cell: the mean, and in brackets where 95 % of the means lie if recordings are drawn anew."
    )
    sections = [
        Section("How well the notes are followed", note, [gap_table(followed.rows, MEASURES)])
    ]
    body = "\n".join(
        _passage(followed, i, with_pictures)
        for i in range(min(followed.num_shown, len(followed.stage.held.names)))
    )
    note = (
        "The notes that the model was told, and the sound. A line stands where the prompt ends. "
        "Spectrograms of a passage share one scale."
    )
    return [*sections, *([Section("Notes and sound", note, body=body)] if body else [])]


def _passage(followed: Followed, index: int, with_pictures: bool) -> str:
    """Players, and the picture above them, of one passage."""
    name, rate = followed.stage.held.names[index], followed.stage.codec.sampling_rate
    shown = {
        title: followed.sounds[title][index][0] for title in (TRUE, CODEC, GENERATED, SHUFFLED)
    }
    row = Row(name, [Player(title, sound) for title, sound in shown.items()])
    players = listening([row], rate, with_pictures=False)
    if not with_pictures:
        return players
    prompt_sec = followed.stage.sizes[0] / followed.stage.codec.frame_rate
    notes = notes_after(followed.stage.own[index], 0)
    drawn = {title: shown[title] for title in (TRUE, GENERATED, SHUFFLED)}
    figure = draw_passage(notes, drawn, rate, prompt_sec)
    picture = data_uri(as_png(figure), "image/png")
    alt = html.escape(f"Notes and spectrograms: {name}")
    return f'{players}\n<img alt="{alt}" src="{picture}">'


def draw_passage(
    notes: np.ndarray, sounds: dict[str, Tensor], sampling_rate: int, prompt_sec: float
) -> Any:
    """Notes (M, 4) as a piano roll, and sounds (N,) as spectrograms below, on one time axis."""
    pyplot = import_pyplot()
    figure, axes = pyplot.subplots(
        1 + len(sounds), 1, figsize=(9, 1.5 * (1 + len(sounds))), sharex=True
    )
    longest_sec = max(len(sound) for sound in sounds.values()) / sampling_rate
    _draw_roll(axes[0], notes)
    images = log_spectrograms([sound.float() for sound in sounds.values()])
    for axis, title, image in zip(axes[1:], sounds, images, strict=True):
        top = sampling_rate / 2000
        extent = (0, len(sounds[title]) / sampling_rate, 0, top)
        axis.imshow(
            image.numpy(), origin="lower", aspect="auto", extent=extent, cmap="bone_r", vmin=-65
        )
        axis.set(ylabel="kHz", ylim=(0, min(_TOP_KHZ, top)))
        axis.set_title(title, fontsize=9, loc="left", pad=2)
    for axis in axes:
        axis.axvline(prompt_sec, color="#d0342c", linewidth=1.2)
        axis.tick_params(labelsize=7, length=2)
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1].set(xlim=(0, longest_sec), xlabel="seconds")
    figure.tight_layout(pad=0.4)
    return figure


def _draw_roll(axis: Any, notes: np.ndarray) -> None:
    onset, duration, pitch, velocity = notes.T
    shades = [(0.11, 0.36, 0.6, 0.35 + 0.65 * loud / 127) for loud in velocity]
    axis.barh(pitch, duration, left=onset, height=0.9, color=shades)
    axis.set(ylabel="MIDI pitch")
    axis.set_title("notes", fontsize=9, loc="left", pad=2)
