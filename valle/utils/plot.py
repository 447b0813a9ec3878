"""Pictures of sound. matplotlib is an extra and imported where it draws."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

_WINDOW = 2048  # 64 ms at 32 kHz: tells neighbouring piano keys apart from the fourth octave on
_FLOOR_DB = -80.0


def log_spectrogram(waveform: Tensor) -> Tensor:
    """Magnitudes in dB below the loudest of them.

    Args:
      waveform: (N,) float.

    Returns:
      (frequency bins, time) float, 0 to -80; four frames a window.
    """
    return log_spectrograms([waveform])[0]


def log_spectrograms(waveforms: Sequence[Tensor]) -> list[Tensor]:
    """The same of several sounds, in dB below the loudest magnitude of them all."""
    spectra = [_magnitudes(waveform) for waveform in waveforms]
    loudest = max(float(spectrum.max()) for spectrum in spectra)
    decibel = (20 * torch.log10(s.clamp(min=1e-10) / max(loudest, 1e-10)) for s in spectra)
    return [spectrum.clamp(min=_FLOOR_DB) for spectrum in decibel]


def _magnitudes(waveform: Tensor) -> Tensor:
    waveform = torch.nn.functional.pad(waveform, (0, max(0, _WINDOW - waveform.shape[0])))
    window = torch.hann_window(_WINDOW)
    return torch.stft(waveform, _WINDOW, _WINDOW // 4, window=window, return_complex=True).abs()


def spectrogram_figure(
    waveforms: Mapping[str, Tensor],
    sampling_rate: int,
    marks_sec: Mapping[str, float] | None = None,
) -> Any:
    """One log-spectrogram below the other, up to 6 kHz, where piano and voice have their say.

    Args:
      waveforms: Title -> (N,) float.
      sampling_rate: Of all of them.
      marks_sec: Title -> second at which to draw a line, where a continuation begins for instance.

    Returns:
      A matplotlib figure; the caller saves and closes it.

    Raises:
      ImportError: matplotlib is missing; the message says how to install it.
    """
    pyplot = import_pyplot()
    figure, axes = pyplot.subplots(
        len(waveforms), 1, figsize=(9, 2.2 * len(waveforms)), sharex=True, squeeze=False
    )
    longest_sec = max(w.shape[0] for w in waveforms.values()) / sampling_rate
    for axis, (title, waveform) in zip(axes[:, 0], waveforms.items(), strict=True):
        extent = (0, waveform.shape[0] / sampling_rate, 0, sampling_rate / 2000)
        image = log_spectrogram(waveform.float().cpu()).numpy()
        axis.imshow(image, origin="lower", aspect="auto", extent=extent, cmap="magma")
        axis.set(title=title, ylabel="kHz", xlim=(0, longest_sec))
        axis.set_ylim(0, min(6.0, sampling_rate / 2000))
        if marks_sec and title in marks_sec:
            axis.axvline(marks_sec[title], color="white", linestyle="--", linewidth=1)
    axes[-1, 0].set_xlabel("seconds")
    figure.tight_layout()
    return figure


def import_pyplot() -> Any:
    """matplotlib.pyplot on a backend that needs no screen."""
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError(
            "pictures need matplotlib, which is an extra: pip install 'valle[plot]' "
            "(in a clone: pip install -e '.[plot]')"
        ) from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def can_draw(what: str) -> bool:
    """Whether matplotlib is there; if not, a warning says what has no pictures, and how to help."""
    try:
        import_pyplot()
    except ImportError as error:
        logging.warning(f"{what} has no pictures: {error}")
        return False
    return True
