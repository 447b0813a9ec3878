"""Whether a joint can be heard: how abruptly the spectrum changes there, beside true music.

N samples, M mel bands, T frames of a spectrum.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from valle.codec.spectra import log_floor, magnitudes, mel_filterbank

WINDOW_SEC = 0.032  # a power of two near it is taken
NUM_BANDS = 64
WINDOW_HOPS = 4  # spectra are a quarter of a window apart


def spectral_flux(sound: Tensor, sampling_rate: int) -> Tensor:
    """How much the spectrum changes at every place: (N,) to (T,).

    The mean over mel bands of the absolute difference, in log10, between the window that begins at
    a place and the one that ends there. A joint that does not fit changes many bands at once, be it
    louder or softer afterwards.
    """
    window = torch.hann_window(_window(sampling_rate))
    bank = mel_filterbank(sampling_rate, len(window), NUM_BANDS).T
    levels = log_floor(bank @ magnitudes(sound[None], window)[0])  # (M, T)
    change = (levels[:, WINDOW_HOPS:] - levels[:, :-WINDOW_HOPS]).abs().mean(dim=0)
    return torch.nn.functional.pad(change, (WINDOW_HOPS // 2, WINDOW_HOPS // 2))


def flux_near(sound: Tensor, sampling_rate: int) -> Tensor:
    """The strongest `spectral_flux` within a window's length of every place, (T,)."""
    flux = spectral_flux(sound, sampling_rate)
    return torch.nn.functional.max_pool1d(
        flux[None], 2 * WINDOW_HOPS + 1, stride=1, padding=WINDOW_HOPS
    )[0]


def seam_ranks(
    sounds: Sequence[Tensor],
    joints: Sequence[int],
    references: Sequence[Tensor],
    sampling_rate: int,
) -> list[float]:
    """Where the change at each joint stands among the changes at all places of true music.

    Args:
      sounds: (N,) each, with a joint.
      joints: the sample of each at which what comes after it begins.
      references: (N,) each, of true music.
      sampling_rate: Hz.

    Returns:
      The share of places in true music that change less, for each joint: evenly spread over 0 to 1
      if joints are places like any other, near 1 if they are clicks or cuts.

    Raises:
      ValueError: a joint that is not within its sound.
    """
    usual = (
        torch.cat([_inner(flux_near(sound, sampling_rate)) for sound in references]).sort().values
    )
    ranks = []
    for sound, joint in zip(sounds, joints, strict=True):
        if not 0 < joint < len(sound):
            raise ValueError(f"a joint at sample {joint} of {len(sound)}: expected one within it")
        here = flux_near(sound, sampling_rate)[joint * WINDOW_HOPS // _window(sampling_rate)]
        ranks.append(float(torch.searchsorted(usual, here)) / len(usual))
    return ranks


def _window(sampling_rate: int) -> int:
    return 2 ** round(math.log2(WINDOW_SEC * sampling_rate))


def _inner(values: Tensor) -> Tensor:
    """Without the edges, where there is no window on one side."""
    return values[2 * WINDOW_HOPS : -2 * WINDOW_HOPS]
