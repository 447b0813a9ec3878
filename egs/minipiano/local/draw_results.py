#!/usr/bin/env python3
"""One picture of a run: its loss curves, and spectrograms of continuations beside the truth."""

import argparse
from pathlib import Path
from typing import Any

import soundfile
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from valle.utils.files import written_whole
from valle.utils.plot import import_pyplot, spectrogram_figure


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--exp-dir", type=Path, required=True, help="of the training; pictures go there")
    add("--audio-prompts", type=Path, nargs="+", required=True, help="the whole true recordings")
    add("--infer-dir", type=Path, required=True, help="where NAME_full.wav are")
    add("--prompt-duration", type=float, required=True, help="seconds that were given")
    add("--beside", type=Path, nargs="*", default=[], help="other runs, to compare their curves")
    return parser


def draw_continuations(args: argparse.Namespace) -> Path:
    waveforms: dict[str, Tensor] = {}
    for path in args.audio_prompts:
        made, rate = soundfile.read(args.infer_dir / f"{path.stem}_full.wav", dtype="float32")
        true, true_rate = soundfile.read(path, frames=len(made), dtype="float32")
        assert rate == true_rate, (rate, true_rate)
        waveforms[f"{path.stem}: true"] = torch.from_numpy(true)
        waveforms[f"{path.stem}: continued"] = torch.from_numpy(made)
    marks = dict.fromkeys(waveforms, args.prompt_duration)
    figure = spectrogram_figure(waveforms, rate, marks)
    path = args.exp_dir / "continuations.png"
    with written_whole(path) as temporary:
        figure.savefig(temporary, format="png", dpi=80)
    return path


def draw_curves(exp_dir: Path, beside: list[Path]) -> Path:
    """Validation and training loss of each quantizer over steps, and those of other runs."""
    figure, axis = import_pyplot().subplots(figsize=(9, 4.5))
    add_curves(axis, exp_dir, "train/valid_loss_q", "-", "validation")
    add_curves(axis, exp_dir, "train/tot_loss_q", ":", "training")
    for other in beside:
        add_curves(axis, other, "train/valid_loss_q", "--", f"validation, {other.name}")
    axis.set(xlabel="steps", ylabel="nats a frame")
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small")
    figure.tight_layout()
    path = exp_dir / "losses.png"
    with written_whole(path) as temporary:
        figure.savefig(temporary, format="png", dpi=80)
    return path


def add_curves(axis: Any, exp_dir: Path, prefix: str, style: str, what: str) -> None:
    events = EventAccumulator(str(exp_dir / "tensorboard"))
    events.Reload()
    for tag in sorted(t for t in events.Tags()["scalars"] if t.startswith(prefix)):
        points, q = events.Scalars(tag), int(tag.removeprefix(prefix))
        steps, values = [p.step for p in points], [p.value for p in points]
        width = 0.7 if style == ":" else 1.5  # training is noisy: its means begin anew each epoch
        axis.plot(steps, values, style, color=f"C{q}", linewidth=width, label=f"q{q} {what}")


def main(argv: list[str] | None = None) -> None:
    args = get_parser().parse_args(argv)
    print(draw_curves(args.exp_dir, args.beside))
    print(draw_continuations(args))


if __name__ == "__main__":
    main()
