"""Measures of what a model makes of a few validation cuts, cheap enough for every validation."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from continued_cuts import Continued, Load, continue_cuts, load_codes, prompt_sec

from valle.data import Codec
from valle.evaluation import Passage, fast_measures
from valle.evaluation.continuations import LOOP_SEC
from valle.evaluation.measures import REPETITION, STYLES
from valle.evaluation.passages import FAST
from valle.models import CodecLM

MIN_SEC = 2 * LOOP_SEC[1]  # of a continuation: the least that is measured


class Measured(NamedTuple):
    """By the names of `valle.evaluation.fast_measures`.

    Attributes:
      made: Of what the model made.
      true: Of what truly followed; the others compare with that, and would compare it with itself.
    """

    made: dict[str, float]
    true: dict[str, float]


class ContinuationMeter:
    """Continues the same cuts of different recordings each time, and measures how that sounds.

    Each continuation is made as long as what truly followed, whether or not the model would have
    ended it before, so that all models are measured over the same time. The true sound is decoded
    from the true codes, by as many quantizers as the model's.

    Args:
      cuts: Of validation; the first of each recording that is long enough is taken.
      codec: Turns codes into sound.
      prompt_ratio: Share of a cut that an AudioLM is given.
      num_cuts: How many are taken at most.
      num_levels: Quantizers that are decoded: 1 where the NAR half has not been trained.
      seed: Of the random numbers of all continuations.
      load: Reads cuts, with what a VALLE is told of them.
    """

    def __init__(
        self,
        cuts: Iterable[Any],
        codec: Codec,
        prompt_ratio: float,
        num_cuts: int,
        num_levels: int,
        seed: int,
        load: Load = load_codes,
    ) -> None:
        self._cuts, self._codec, self._prompt_ratio = cuts, codec, prompt_ratio
        self._num_cuts, self._num_levels, self._seed = num_cuts, num_levels, seed
        self._load = load
        self._chosen: list[Any] = []
        self._true: dict[str, float] = {}

    @property
    def num_cuts(self) -> int:
        """That were measured; known after the first time."""
        return len(self._chosen)

    def measure(self, model: CodecLM, progress: Callable[[int], None]) -> Measured:
        """Let the model continue the cuts, and measure that.

        Args:
          model: Its mode and weights are left as they are.
          progress: Called after every frame.

        Raises:
          ValueError: No cut is long enough, or what was made cannot be measured.
        """
        passages = self.passages(model, progress)
        if not self._true:
            true = self._measure([as_if_true_were_made(each) for each in passages])
            own = STYLES.keys() | REPETITION.keys()
            self._true = {name: value for name, value in true.items() if FAST.get(name) in own}
        return Measured(self._measure(passages), self._true)

    def passages(self, model: CodecLM, progress: Callable[[int], None]) -> list[Passage]:
        """What is measured; the arguments and errors are those of `measure`."""
        if not self._chosen:
            self._chosen = self._choose(model.config)
        continued = continue_cuts(
            model,
            self._chosen,
            self._prompt_ratio,
            self._seed,
            load=self._load,
            ignore_eos=True,
            progress=progress,
        )
        return list(self._cut_out(continued))

    def _measure(self, passages: list[Passage]) -> dict[str, float]:
        return fast_measures(passages, self._codec.sampling_rate, self._codec.info.frame_rate)

    def _choose(self, config: Any) -> list[Any]:
        chosen: dict[str, Any] = {}
        frame_sec = 1 / self._codec.info.frame_rate  # to which a prompt is rounded
        for cut in self._cuts:
            prompt = prompt_sec(config, cut.duration, self._prompt_ratio)
            if cut.duration - prompt >= MIN_SEC + frame_sec:
                chosen.setdefault(recording_of(cut), cut)
            if len(chosen) == self._num_cuts:
                break
        if not chosen:
            which = f", --prompt-ratio {self._prompt_ratio:g} of it" * (config.condition is None)
            raise ValueError(
                f"no validation cut has {MIN_SEC:g} s left after its prompt{which}: take longer "
                "cuts, or --measured-cuts 0"
            )
        return list(chosen.values())

    def _cut_out(self, continued: Continued) -> Iterator[Passage]:
        hop = self._codec.hop_length
        true, made = (
            self._codec.decode(codes[:, : int(continued.true_lens.max()), : self._num_levels], lens)
            for codes, lens in (
                (continued.true, continued.true_lens),
                (continued.made, continued.true_lens),  # a longer row has been made with others
            )
        )
        lens = zip(continued.prompt_lens.tolist(), continued.true_lens.tolist(), strict=True)
        for i, (begin, end) in enumerate(lens):
            yield Passage(
                name=self._chosen[i].id,
                recording=recording_of(self._chosen[i]),
                prompt=true[0][i, : begin * hop],
                true=true[0][i, begin * hop : end * hop],
                samples=(made[0][i, begin * hop : end * hop],),
                true_codes=continued.true[i, begin:end, 0],
                sample_codes=(continued.made[i, begin:end, 0],),
            )


def recording_of(cut: Any) -> str:
    """The name of what a cut is of; tokens from elsewhere may tell of none but the cut itself."""
    known = getattr(cut, "has_recording", False) or getattr(cut, "has_features", False)
    return (known and cut.recording_id) or cut.id


def as_if_true_were_made(passage: Passage) -> Passage:
    """What truly followed in the place of what a model made."""
    return replace(passage, samples=(passage.true,), sample_codes=(passage.true_codes,))
