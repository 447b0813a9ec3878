"""Sentences read aloud by espeak-ng, from the library that the wheel espeakng-loader brings."""

import ctypes
from functools import lru_cache

import numpy as np
import pytest

SYNCHRONOUS, FULL_UTF8 = 2, 1  # as speak_lib.h has them
_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)


@lru_cache(maxsize=1)
def _library() -> tuple[ctypes.CDLL, int]:
    """The library and its sampling rate; the test is skipped where there is none."""
    loader = pytest.importorskip(
        "espeakng_loader", reason="no espeak-ng to speak: pip install -e '.[text]'"
    )
    library = ctypes.CDLL(loader.get_library_path())
    rate = library.espeak_Initialize(SYNCHRONOUS, 0, loader.get_data_path().encode(), 0)
    if rate <= 0:
        pytest.skip(f"espeak-ng cannot be used here: espeak_Initialize gave {rate}")
    return library, rate


def speak(text: str, voice: str = "en-us") -> tuple[np.ndarray, int]:
    """A text as sound: (N,) int16 and its sampling rate, 22,050 Hz as LJSpeech's."""
    library, rate = _library()
    blocks: list[np.ndarray] = []

    def keep(samples, count, _events):
        if samples and count > 0:
            blocks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    callback = _CALLBACK(keep)
    library.espeak_SetSynthCallback(callback)
    library.espeak_SetVoiceByName(voice.encode())
    content = text.encode()
    library.espeak_Synth(content, len(content) + 1, 0, 1, 0, FULL_UTF8, None, None)
    return np.concatenate(blocks), rate
