"""The measures of a table: what each is called and says, and how two passages compare by it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from valle.evaluation.continuations import ANOTHER, LOOP, NOISE
from valle.evaluation.pitch import profile_correlation, register_distance
from valle.evaluation.rhythm import rate_distance, tempo_distance
from valle.evaluation.traits import Traits

FRECHET, DIVERSITY = "frechet_", "diversity_"  # the name of the embedding follows


@dataclass(frozen=True)
class Measure:
    """What a number is.

    Attributes:
      title: heading of its column.
      unit: of the number; empty for shares (the format makes them percent) and plain numbers.
      format: of a number, for str.format.
      better: whether low or high numbers are better, or those near the row "true".
      about: a sentence for who reads the table.
      separates: controls that it was shown to tell from true music (docs have the numbers); empty
        for an embedding with which that was not tried.
    """

    title: str
    unit: str
    format: str
    better: Literal["low", "high", "near true"]
    about: str
    separates: tuple[str, ...] = ()


_TO_TRUE = "The row true compares with other passages of the same recording."
_KEPT = "Share of random other pieces that lie further from the prompt than it; 50 % is chance."
_DIVERSE = (
    "Distance between the samples of one prompt, over that between passages of different "
    "recordings; the row true has passages of one recording for samples."
)
_SET = (
    "Distance of continuations of one half of the recordings to the true ones of the other half; "
    "the row true is the floor. The first sample of each prompt counts, so that all rows are of "
    "one size."
)

# Of two passages, how alike (high) or far apart (low) they are.
SIMILARITIES: dict[str, tuple[Measure, Callable[[Traits, Traits], float]]] = {
    "chroma_similarity": (
        Measure(
            "chroma similarity",
            "",
            "{:.2f}",
            "high",
            f"Correlation of the shares of the pitch classes with the true ones. {_TO_TRUE}",
            (ANOTHER, NOISE),
        ),
        lambda made, true: profile_correlation(made.chroma, true.chroma),
    ),
    "rhythm_similarity": (
        Measure(
            "onset similarity",
            "",
            "{:.2f}",
            "high",
            "Correlation of how the onsets recur (autocorrelation of the onset strength, 0.1 to "
            f"2 s) with the true passage. {_TO_TRUE}",
            (ANOTHER, NOISE, LOOP),
        ),
        lambda made, true: profile_correlation(made.rhythm, true.rhythm),
    ),
    "onset_rate_distance": (
        Measure(
            "onset rate distance",
            "octaves",
            "{:.2f}",
            "low",
            f"Octaves between the onsets a second and the true ones. {_TO_TRUE}",
            (LOOP,),
        ),
        lambda made, true: rate_distance(made.onset_rate, true.onset_rate),
    ),
    "register_distance": (
        Measure(
            "register distance",
            "semitones",
            "{:.1f}",
            "low",
            f"How far the notes lie off the true ones (earth mover's distance). {_TO_TRUE}",
            (ANOTHER, NOISE),
        ),
        lambda made, true: register_distance(made.pitches, true.pitches),
    ),
}

# Of a passage and a prompt, how far apart they are: the style is kept where another piece is
# further away.
STYLES: dict[str, tuple[Measure, Callable[[Traits, Traits], float]]] = {
    "tempo_kept": (
        Measure("tempo kept", "", "{:.0%}", "high", f"By tempo: {_KEPT}", (ANOTHER, NOISE, LOOP)),
        lambda made, prompt: tempo_distance(made.tempo, prompt.tempo),
    ),
    "rhythm_kept": (
        Measure(
            "rhythm kept",
            "",
            "{:.0%}",
            "high",
            f"By how the onsets recur: {_KEPT}",
            (ANOTHER, NOISE, LOOP),
        ),
        lambda made, prompt: -profile_correlation(made.rhythm, prompt.rhythm),
    ),
    "register_kept": (
        Measure("register kept", "", "{:.0%}", "high", f"By register: {_KEPT}", (ANOTHER, NOISE)),
        lambda made, prompt: register_distance(made.pitches, prompt.pitches),
    ),
    "key_kept": (
        Measure("key kept", "", "{:.0%}", "high", f"By pitch classes: {_KEPT}", (ANOTHER, NOISE)),
        lambda made, prompt: -profile_correlation(made.chroma, prompt.chroma),
    ),
    "loudness_kept": (
        Measure("loudness kept", "", "{:.0%}", "high", f"By level: {_KEPT}", (ANOTHER,)),
        lambda made, prompt: abs(made.level_db - prompt.level_db),
    ),
}

# Of the codes of quantizer 1; `repetition.measure` computes them.
REPETITION: dict[str, Measure] = {
    "repeated_4grams": Measure(
        "repeated 4-grams",
        "",
        "{:.1%}",
        "near true",
        "Share of rows of four codes that were there within the 10 s before.",
        (LOOP,),
    ),
    "entropy": Measure(
        "entropy of codes",
        "nats",
        "{:.2f}",
        "near true",
        "Of the frequencies of the codes: low where few codes make up the passage.",
        (NOISE, LOOP),
    ),
    "longest_loop_sec": Measure(
        "longest loop",
        "s",
        "{:.2f}",
        "near true",
        "Longest stretch of codes that comes round every 2 s or faster.",
        (NOISE, LOOP),
    ),
    "in_loops": Measure(
        "in loops",
        "",
        "{:.1%}",
        "low",
        "Share of frames in loops of a second or more.",
        (LOOP,),
    ),
}

_SET_SEPARATES = {"mel": (NOISE, LOOP), "chroma": (NOISE,)}
_DIVERSITY_SEPARATES = {"mel": (NOISE,), "chroma": (ANOTHER, NOISE, LOOP)}


def measures_for(embeddings: Sequence[str]) -> dict[str, Measure]:
    """Every measure, in the order of the tables, with those that rest on the named embeddings."""
    sets = {
        FRECHET + name: Measure(
            f"Fréchet distance, {name}", "", "{:.3g}", "low", _SET, _SET_SEPARATES.get(name, ())
        )
        for name in embeddings
    }
    diversity = {
        DIVERSITY + name: Measure(
            f"diversity, {name}",
            "",
            "{:.2f}",
            "near true",
            _DIVERSE,
            _DIVERSITY_SEPARATES.get(name, ()),
        )
        for name in embeddings
    }
    pairs = {key: measure for key, (measure, _) in (SIMILARITIES | STYLES).items()}
    return {**sets, **pairs, **REPETITION, **diversity}
