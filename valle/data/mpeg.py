"""How long an mp3 file is, counted frame by frame.

A file of constant bit rate needs no length, and one of variable bit rate may lack it: then
libsndfile guesses from the first frames, and reads no further than its guess. The layout of frames
is that of ISO/IEC 11172-3 and 13818-3; of the tags, what their makers describe.
"""

import mmap
from pathlib import Path
from typing import NamedTuple

_KBITS = {  # by the bits of a header, MPEG 1 and the lower rates of MPEG 2 and 2.5
    True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
_LENGTH_TAGS = (b"Xing", b"Info", b"VBRI")
_HEADER = 4  # bytes
_TAG_WITHIN = 200  # bytes of the first frame, in which a tag begins


class MpegLength(NamedTuple):
    """What was found.

    Attributes:
      num_samples: Of all frames, for each channel; a decoder leaves out those at the beginning and
        end that the coder has added.
      frame_size: Samples of a frame.
      is_declared: Whether the file says how long it is.
    """

    num_samples: int
    frame_size: int
    is_declared: bool


class _Frame(NamedTuple):
    size: int  # bytes
    num_samples: int


def mpeg_length(path: str | Path) -> MpegLength | None:
    """Count the samples of an mp3 file.

    Returns:
      None where not a single frame of layer III with a bit rate is found.

    Raises:
      OSError: The system does not let it be read.
    """
    with open(path, "rb") as file:
        if not file.seek(0, 2):
            return None
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _count(data)


def _count(data: mmap.mmap) -> MpegLength | None:
    place = _next_frame(data, 0)
    first = _frame_at(data, place)
    if first is None:
        return None
    head = data[place : place + min(first.size, _TAG_WITHIN)]
    is_declared = any(tag in head for tag in _LENGTH_TAGS)
    count = -first.num_samples if is_declared else 0  # the frame of the tag is silent
    while (frame := _frame_at(data, place)) is not None:
        count += frame.num_samples
        place += frame.size
        if _frame_at(data, place) is None:
            place = _next_frame(data, place)
    return MpegLength(count, first.num_samples, is_declared)


def _next_frame(data: mmap.mmap, place: int) -> int:
    """Where the next frame begins that another one follows; the end if none does.

    Between frames there may be tags with titles and pictures, and bytes that look like a header.
    """
    while (place := data.find(b"\xff", place)) >= 0:
        frame = _frame_at(data, place)
        if frame is not None:
            behind = place + frame.size
            if behind >= len(data) or _frame_at(data, behind) is not None:
                return place
        place += 1
    return len(data)


def _frame_at(data: mmap.mmap, place: int) -> _Frame | None:
    """The frame whose header stands there, None if there is none."""
    header = int.from_bytes(data[place : place + _HEADER], "big")
    version, layer = header >> 19 & 3, header >> 17 & 3
    bits, rate, padding = header >> 12 & 15, header >> 10 & 3, header >> 9 & 1
    is_header = header >> 21 == 0x7FF and place + _HEADER <= len(data)
    if not is_header or version == 1 or layer != 1 or bits in (0, 15) or rate == 3:
        return None
    is_first = version == 3  # MPEG 1: frames of two granules
    num_samples = 1152 if is_first else 576
    size = num_samples // 8 * 1000 * _KBITS[is_first][bits] // _RATES[version][rate] + padding
    return _Frame(size, num_samples)
