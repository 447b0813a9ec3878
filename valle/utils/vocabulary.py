"""The ids of conditions: what the data writes and the models embed.

A MIDI event is a note in six fields, on a grid of 96 positions a beat, four beats a bar, 120 beats
a minute, whatever the music's own metre: so times are seconds in disguise, 192 ticks each. Fields,
grid and sizes are those of MIDI-VALLE (arXiv 2507.08530), whose files can be read.
"""

from typing import NamedTuple

CONDITIONS = ("text", "midi")
"""What a model may be told beside codes."""

PAD, BOS, EOS, MASK = range(4)
"""Ids that come first in every field. MASK stands for a velocity that belongs to the past: that of
a note struck before the excerpt begins."""
NUM_SPECIALS = 4

TICKS_PER_SEC = 192
TICKS_PER_BAR = 2 * TICKS_PER_SEC


class MidiField(NamedTuple):
    """One field of an event: its name, and how many values it has beside the special ids."""

    name: str
    num_values: int

    @property
    def num_ids(self) -> int:
        return self.num_values + NUM_SPECIALS


MIDI_FIELDS = (
    MidiField("pitch", 88),  # keys from A0, MIDI number 21
    MidiField("velocity", 64),  # two steps of MIDI each
    MidiField("duration", 6 * TICKS_PER_SEC),  # 1 tick to 6 s
    MidiField("interval", 4 * TICKS_PER_SEC),  # from the onset before, 0 to below 4 s
    MidiField("position", TICKS_PER_BAR),  # of the onset in its bar
    MidiField("bar", 16),  # 32 s in all
)
PITCH, VELOCITY, DURATION, INTERVAL, POSITION, BAR = range(len(MIDI_FIELDS))
LOWEST_PITCH = 21
MIDI_SEC = MIDI_FIELDS[-1].num_values * TICKS_PER_BAR / TICKS_PER_SEC
"""The longest excerpt that events can describe."""
