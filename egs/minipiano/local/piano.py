"""A small piano in numpy: notes in, mono waveform out; no samples, no sound font.

Every string is a sum of decaying sinusoids (modes). Partial n of a stiff string lies at
n f0 sqrt(1 + B n^2), is weighted by the place the hammer strikes, and dies the faster the higher
it is; two or three slightly detuned strings to a note give the beating and the two-stage decay of
a real piano. The partials are kept in octave groups, so that a note of any velocity is a weighted
sum of a few waveforms computed once per pitch.

Letters: P modes, G groups, N samples.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

LOWEST_PITCH, HIGHEST_PITCH = 21, 108  # the 88 keys, as MIDI numbers
NUM_GROUPS = 6  # partials 1, 2-3, 4-7, 8-15, 16-31, 32 and up
MAX_PARTIALS = 56
MAX_NOTE_SEC = 7.0
UNDAMPED_FROM = 90  # the top strings of a piano have no dampers
TAIL_DB = -66.0  # a recording ends once it stays this far below its peak


@dataclass(frozen=True)
class Note:
    """One key stroke.

    Attributes:
        onset_sec: When the hammer hits, from the start of the recording.
        duration_sec: Until the damper falls (the pedal is already in it).
        pitch: MIDI number, 21 (A0) to 108 (C8).
        velocity: 1 (barely audible) to 127.
    """

    onset_sec: float
    duration_sec: float
    pitch: int
    velocity: int

    def __post_init__(self) -> None:
        if not LOWEST_PITCH <= self.pitch <= HIGHEST_PITCH:
            raise ValueError(
                f"pitch must be a piano key, {LOWEST_PITCH} to {HIGHEST_PITCH}, got {self.pitch}"
            )
        if not 1 <= self.velocity <= 127:
            raise ValueError(f"velocity must be 1 to 127, got {self.velocity}")
        if not (0 <= self.onset_sec < math.inf and 0 < self.duration_sec < math.inf):
            raise ValueError(
                "a note needs an onset of 0 s or later and a duration above 0 s, "
                f"got onset {self.onset_sec} and duration {self.duration_sec}"
            )


@dataclass(frozen=True)
class Timbre:
    """What makes one instrument, in one room, sound different from another.

    Attributes:
        name: How the corpus calls it.
        cutoff_hz: Where the spectrum of a full blow begins to fall exponentially.
        softening_db: Loss per octave above 300 Hz (or the first partial) of the softest blow.
        inharmonicity: Factor on the stiffness of a concert grand's strings.
        decay: Factor on the decay times of a concert grand.
        detune_cents: Distance of the outer strings from the middle one.
        strike: Place of the hammer as a fraction of the string's length.
        hammer_db: Level of the knock against the peak of the tone.
        attack_ms: Length of the rise.
        room_db: Energy of the reverberation against the direct sound.
        room_sec: Time in which the reverberation falls by 60 dB.
    """

    name: str
    cutoff_hz: float
    softening_db: float
    inharmonicity: float
    decay: float
    detune_cents: float
    strike: float
    hammer_db: float
    attack_ms: float
    room_db: float
    room_sec: float

    def varied(self, rng: np.random.Generator) -> "Timbre":
        """A neighbour of this timbre, for audio that should cover more than the fixed set."""

        def around(value: float, spread: float) -> float:
            return value * spread ** (2 * rng.random() - 1)

        return replace(
            self,
            name=f"{self.name}-varied",
            cutoff_hz=around(self.cutoff_hz, 1.3),
            inharmonicity=around(self.inharmonicity, 1.5),
            decay=around(self.decay, 1.3),
            detune_cents=around(self.detune_cents, 2.0),
            room_db=self.room_db + 4 * (2 * rng.random() - 1),
            room_sec=around(self.room_sec, 1.4),
        )


TIMBRES = {
    t.name: t
    for t in (
        Timbre("concert", 2600, 5.0, 1.0, 1.0, 0.5, 1 / 8, -26, 1.5, -17, 0.55),
        Timbre("mellow", 1500, 6.5, 0.8, 1.1, 0.4, 1 / 7.3, -32, 2.5, -15, 0.70),
        Timbre("bright", 4200, 4.0, 1.2, 0.9, 0.7, 1 / 9, -24, 1.0, -20, 0.40),
        Timbre("upright", 2200, 5.0, 2.2, 0.65, 1.4, 1 / 7.7, -21, 1.5, -23, 0.25),
        Timbre("felt", 950, 5.0, 1.0, 0.8, 0.3, 1 / 6.6, -22, 4.0, -19, 0.45),
    )
}


def get_timbre(name: str) -> Timbre:
    """The timbre of that name, or a ValueError that lists the names."""
    if name not in TIMBRES:
        raise ValueError(f"unknown timbre {name!r}; choose one of {', '.join(TIMBRES)}")
    return TIMBRES[name]


def stiffness(pitch: int) -> float:
    """Inharmonicity B of a grand: least near C3, growing to both ends of the keyboard."""
    return math.exp(0.0926 * pitch - 13.64) + math.exp(-0.0847 * pitch - 5.82)


def partial_frequencies(pitch: int, inharmonicity: float, sampling_rate: int) -> NDArray:
    """Frequencies (P,) in Hz of a stiff string whose first partial is in tune."""
    fundamental = 440.0 * 2.0 ** ((pitch - 69) / 12)
    n = np.arange(1, MAX_PARTIALS + 1)
    b = stiffness(pitch) * inharmonicity
    frequencies = fundamental * n * np.sqrt((1 + b * n**2) / (1 + b))
    return frequencies[frequencies < min(0.45 * sampling_rate, 11_000)]


def _decay_time(pitch: int, timbre: Timbre) -> float:
    """Seconds in which the first partial falls by 60 dB: 18 s at C2, 8 s at C4, 1.5 s at C8."""
    return timbre.decay * 8.0 * 2.0 ** (-(pitch - 60) / 20.0)


def _sum_modes(
    frequencies: NDArray, rates: NDArray, amplitudes: NDArray, num: int, sampling_rate: int
) -> Floats:
    """Sum of amplitude exp(-rate t) sin(2 pi f t) over the modes, (N,).

    The sample at k M + j is the imaginary part of sum_p (a z^(k M))_p (z^j)_p, a matrix product:
    P (K + M) exponentials and one BLAS call in place of P N sines.
    """
    z = (2j * math.pi * frequencies - rates) / sampling_rate  # log of the modes' per-sample factor
    m = max(1, math.isqrt(num))
    k = -(-num // m)
    outer = amplitudes * np.exp(np.outer(np.arange(k) * m, z))  # (K, P)
    inner = np.exp(np.outer(z, np.arange(m)))  # (P, M)
    left = np.concatenate([outer.real, outer.imag], axis=1).astype(np.float32)
    right = np.concatenate([inner.imag, inner.real], axis=0).astype(np.float32)
    return (left @ right).reshape(-1)[:num]


def _strings(timbre: Timbre, pitch: int) -> tuple[tuple[float, float, float], ...]:
    """(share of amplitude, detuning in cents, factor on the decay rate) of each string."""
    cents = timbre.detune_cents
    if pitch < 33:
        return ((1.0, 0.0, 1.0),)
    if pitch < 48:
        return ((0.65, 0.0, 1.6), (0.35, cents, 0.7))
    return ((0.5, 0.0, 2.0), (0.25, cents, 1.2), (0.25, -0.8 * cents, 0.6))


class Piano:
    """One timbre at one sampling rate; keeps the group waveforms of the pitches it played."""

    def __init__(self, timbre: Timbre, sampling_rate: int) -> None:
        if sampling_rate < 4000:
            raise ValueError(f"sampling_rate must be at least 4000 Hz, got {sampling_rate}")
        self.timbre = timbre
        self.sampling_rate = sampling_rate
        self._tones: dict[int, Floats] = {}
        self._tilts: dict[int, NDArray] = {}

    def strike(self, note: Note) -> Floats:
        """The sound (N,) of one note, from its onset to the end of its release."""
        tone = self._tone(note.pitch)
        loudness = note.velocity / 127
        num = tone.shape[1]
        if note.pitch < UNDAMPED_FROM:
            release_sec = 0.085 * 2.0 ** (-(note.pitch - 48) / 30)
            num = min(num, int((note.duration_sec + 8 * release_sec) * self.sampling_rate))
        # 1.7: fortissimo to pianissimo spans some 30 dB, as on a real instrument
        gains = loudness**1.7 * 10 ** (self._tilts[note.pitch] * (1 - loudness) / 20)
        sound = gains.astype(np.float32) @ tone[:, :num]
        if note.pitch < UNDAMPED_FROM:
            hold = int(note.duration_sec * self.sampling_rate)
            past = np.arange(max(0, num - hold), dtype=np.float32)
            sound[hold:] *= np.exp(-past / np.float32(release_sec * self.sampling_rate))
        return sound

    def _tone(self, pitch: int) -> Floats:
        """Waveforms (G + 1, N) of the groups of partials and of the hammer at full velocity."""
        if pitch not in self._tones:
            self._tones[pitch] = self._make_tone(pitch)
        return self._tones[pitch]

    def _make_tone(self, pitch: int) -> Floats:
        timbre, rate = self.timbre, self.sampling_rate
        frequencies = partial_frequencies(pitch, timbre.inharmonicity, rate)
        n = np.arange(1, len(frequencies) + 1)
        amplitudes = self._amplitudes(frequencies, n)
        decay_sec = _decay_time(pitch, timbre)
        num = int(min(MAX_NOTE_SEC, 1.2 * decay_sec) * rate)
        # 6.9 = ln(1000): 60 dB; air and the string's own friction take the high partials first
        rates = 6.9 / decay_sec * (1 + 0.1 * (n - 1)) + (frequencies / 2600) ** 2
        tone = np.zeros((NUM_GROUPS + 1, num), np.float32)
        tilts = np.zeros(NUM_GROUPS + 1)
        groups = np.minimum(np.log2(n).astype(int), NUM_GROUPS - 1)
        for group in np.unique(groups):
            chosen = groups == group
            tone[group] = self._group(
                frequencies[chosen], rates[chosen], amplitudes[chosen], pitch, num
            )
            octaves = math.log2(max(1.0, frequencies[chosen].mean() / max(300.0, frequencies[0])))
            tilts[group] = -timbre.softening_db * octaves
        self._shape(tone)
        knock = self._hammer(pitch)[:num]
        tone[NUM_GROUPS, : len(knock)] = knock
        tilts[NUM_GROUPS] = -6.0
        self._tilts[pitch] = tilts
        return tone

    def _amplitudes(self, frequencies: NDArray, n: NDArray) -> NDArray:
        """Amplitudes (P,) of a full blow, with unit energy in all."""
        comb = 0.08 + np.abs(np.sin(math.pi * n * self.timbre.strike))
        board = 1 / (1 + (60 / frequencies) ** 2)  # the sound board hardly moves below 60 Hz
        amplitudes = comb * board * n**-0.8 * np.exp(-frequencies / self.timbre.cutoff_hz)
        return amplitudes / np.sqrt((amplitudes**2).sum())

    def _group(
        self, frequencies: NDArray, rates: NDArray, amplitudes: NDArray, pitch: int, num: int
    ) -> Floats:
        parts = _strings(self.timbre, pitch)
        # scattered phases: partials that all start at zero add up to a spike
        phases = np.random.default_rng([pitch, len(frequencies)]).random(len(frequencies))
        amplitudes = amplitudes * np.exp(2j * math.pi * phases)
        return _sum_modes(
            np.concatenate([frequencies * 2 ** (cents / 1200) for _, cents, _ in parts]),
            np.concatenate([rates * factor for _, _, factor in parts]),
            np.concatenate([amplitudes * share for share, _, _ in parts]),
            num,
            self.sampling_rate,
        )

    def _shape(self, tone: Floats) -> None:
        """Rise and end without a step, in place."""
        rise = max(2, int(self.timbre.attack_ms / 1000 * self.sampling_rate))
        tone[:, :rise] *= (0.5 - 0.5 * np.cos(np.pi * np.arange(rise) / rise)).astype(np.float32)
        fall = min(tone.shape[1], self.sampling_rate // 4)
        tone[:, -fall:] *= np.linspace(1, 0, fall, dtype=np.float32) ** 2

    def _hammer(self, pitch: int) -> Floats:
        """The knock: 60 ms of noise whose colour follows the register."""
        rate = self.sampling_rate
        num = int(0.06 * rate)
        noise = np.random.default_rng([pitch, 88]).random(num) * 2 - 1
        spectrum = np.fft.rfft(noise)
        f = np.fft.rfftfreq(num, 1 / rate)
        centre = 250.0 * 2.0 ** ((pitch - 60) / 30)
        spectrum *= (f / centre) / (1 + (f / centre) ** 2) ** 1.5
        t = np.arange(num) / rate
        knock = np.fft.irfft(spectrum, num) * np.exp(-t / 0.011) * np.minimum(1, t / 0.0008)
        knock *= 10 ** (self.timbre.hammer_db / 20) / max(1e-9, np.abs(knock).max())
        return knock.astype(np.float32)


@lru_cache(maxsize=1)  # a warm piano holds some 100 MB
def _piano(timbre: Timbre, sampling_rate: int) -> Piano:
    return Piano(timbre, sampling_rate)


@lru_cache(maxsize=4)
def _room(timbre: Timbre, sampling_rate: int) -> Floats:
    """Impulse response (N,): the direct sound, then noise that darkens and fades."""
    num = int(1.2 * timbre.room_sec * sampling_rate)
    rng = np.random.default_rng([1, num])
    tail = rng.random(num) * 2 - 1
    spectrum = np.fft.rfft(tail)
    spectrum /= 1 + np.fft.rfftfreq(num, 1 / sampling_rate) / 1500
    tail = np.fft.irfft(spectrum, num)
    t = np.arange(num) / sampling_rate
    tail *= np.exp(-6.9 * t / timbre.room_sec) * np.minimum(1, t / 0.02)
    tail *= 10 ** (timbre.room_db / 20) / np.sqrt((tail**2).sum())
    tail[0] = 1.0
    return tail.astype(np.float32)


def _fast_length(num: int) -> int:
    """The next length of the form 2^a, 3 2^a or 5 2^a, quick to transform."""
    return min(f * 2 ** max(0, math.ceil(math.log2(num / f))) for f in (1, 3, 5))


def _add_room(sound: Floats, timbre: Timbre, sampling_rate: int) -> Floats:
    """Convolve with the room and take away what lies below hearing."""
    response = _room(timbre, sampling_rate)
    num = len(sound) + len(response)
    size = _fast_length(num)
    spectrum = np.fft.rfft(sound, size) * np.fft.rfft(response, size)
    # two RC high-passes at 15 Hz: causal, so that nothing sounds before its onset
    f = 1j * np.fft.rfftfreq(size, 1 / sampling_rate) / 15.0
    spectrum *= (f / (1 + f)) ** 2
    return np.fft.irfft(spectrum, size)[:num].astype(np.float32)


def _trim_end(sound: Floats, sampling_rate: int) -> Floats:
    """Cut once the sound stays below TAIL_DB, leaving a quarter of a second that fades."""
    block = sampling_rate // 100
    blocks = np.abs(sound[: len(sound) // block * block].reshape(-1, block)).max(axis=1)
    loud = np.flatnonzero(blocks > blocks.max(initial=0) * 10 ** (TAIL_DB / 20))
    last = (int(loud[-1]) + 1) * block if len(loud) else len(sound)
    fade = sampling_rate // 4
    sound = np.pad(sound, (0, fade))[: last + fade]
    sound[-fade:] *= np.linspace(1, 0, fade, dtype=np.float32)
    return sound


def render(
    notes: Iterable[Note],
    sampling_rate: int = 32000,
    timbre: Timbre | str = "concert",
    peak: float = 0.8,
) -> Floats:
    """Play the notes.

    Args:
        notes: In any order.
        sampling_rate: Of the result, in Hz.
        timbre: A name in TIMBRES, or a Timbre.
        peak: Largest absolute sample of the result, in (0, 1].

    Returns:
        (N,) float32 mono, from time 0 until the last note has died away.

    Raises:
        ValueError: No notes, an unknown timbre, or a peak out of range.
    """
    played: Sequence[Note] = list(notes)
    if not played:
        raise ValueError("render got no notes; give at least one")
    if not 0 < peak <= 1:
        raise ValueError(f"peak must lie in (0, 1], got {peak}")
    timbre = get_timbre(timbre) if isinstance(timbre, str) else timbre
    piano = _piano(timbre, sampling_rate)
    end_sec = max(n.onset_sec + min(MAX_NOTE_SEC, n.duration_sec + 8.0) for n in played)
    sound = np.zeros(int((end_sec + 1) * sampling_rate), np.float32)
    for note in played:
        start = round(note.onset_sec * sampling_rate)
        tone = piano.strike(note)[: len(sound) - start]
        sound[start : start + len(tone)] += tone
    sound = _trim_end(_add_room(sound, timbre, sampling_rate), sampling_rate)
    return sound * np.float32(peak / max(1e-9, float(np.abs(sound).max())))
