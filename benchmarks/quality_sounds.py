"""What the contenders sound like: continuations of held-out prompts, measured.

N samples, S prompt frames, T new frames, L = S + T, Q quantizers.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from quality_batches import Excerpt
from quality_contenders import Learner
from quality_report import Row, Sounds, markdown
from torch import Tensor

from valle.data import Codec
from valle.evaluation.continuations import GENERATED, Passage
from valle.evaluation.passages import MEASURES, evaluate_passages
from valle.modules.sampling import Sampling


@dataclass(frozen=True)
class Listening:
    """What is continued, and how.

    Attributes:
      excerpts: of S + T frames each, the same for all contenders.
      num_prompt: S.
      num_samples: continuations of each prompt.
      first: how quantizer 1 is drawn.
      others: how the others are.
      seed: of the draws, and of the intervals.
    """

    excerpts: Sequence[Excerpt]
    num_prompt: int
    num_samples: int
    first: Sampling
    others: Sampling
    seed: int

    def settings(self) -> dict[str, Any]:
        """All that the measures depend on, beside the contender."""
        fields = {name: getattr(self, name) for name in ("num_prompt", "num_samples", "seed")}
        ways = {"first": asdict(self.first), "others": asdict(self.others)}
        cuts = [excerpt.name for excerpt in self.excerpts]
        return fields | ways | {"cuts": cuts, "num_frames": len(self.excerpts[0].codes)}

    def measure(self, learner: Learner, codec: Codec) -> Sounds:
        """Let a contender continue all prompts, and apply every measure; it stays in eval mode."""
        learner.model.eval()
        codes = torch.stack([excerpt.codes for excerpt in self.excerpts])  # (P, L, Q)
        made = [self._continued(learner, codes, i) for i in range(self.num_samples)]
        passages = [
            self._passage(codec, i, [of_all[i] for of_all in made])
            for i in range(len(self.excerpts))
        ]
        found = evaluate_passages(passages, codec.sampling_rate, codec.frame_rate, seed=self.seed)
        return {
            row: {name: [float(number) for number in interval] for name, interval in of_row.items()}
            for row, of_row in found.items()
        }

    def _continued(self, learner: Learner, codes: Tensor, index: int) -> Tensor:
        """(P, L, Q), on the CPU."""
        prompts = codes[:, : self.num_prompt].to(learner.setup.device)
        num_new = codes.shape[1] - self.num_prompt
        seed = self.seed + index
        return learner.continued(prompts, num_new, self.first, self.others, seed).cpu()

    def _passage(self, codec: Codec, index: int, samples: list[Tensor]) -> Passage:
        """Whole sequences are decoded, so that the joint sounds as it would."""
        excerpt, S = self.excerpts[index], self.num_prompt
        sounds, _ = codec.decode(torch.stack([excerpt.codes, *samples]))
        split = S * codec.hop_length
        return Passage(
            name=excerpt.name,
            recording=excerpt.recording,
            prompt=sounds[0, :split],
            true=sounds[0, split:],
            samples=tuple(sounds[1:, split:]),
            true_codes=excerpt.codes[S:, 0],
            sample_codes=tuple(sample[S:, 0] for sample in samples),
        )


def sounds_table(rows: Sequence[Row]) -> str:
    """A line for each measure; a column for each control, and for what each contender made."""
    heard = [row for row in rows if row.sounds is not None]
    if not heard:
        return "nobody has learned to the end: there is nothing to hear"
    columns = {}
    for name, measured in (heard[0].sounds or {}).items():
        if name != GENERATED:
            columns[name] = measured
    columns |= {row.name: (row.sounds or {})[GENERATED] for row in heard}
    lines = []
    for key, measure in MEASURES.items():
        cells = [_cell(measured.get(key), measure.format) for measured in columns.values()]
        lines.append([f"{measure.title} ({measure.unit or '1'}; {measure.better})", *cells])
    return markdown(["measure", *columns], lines)


def _cell(interval: list[float] | None, form: str) -> str:
    """The mean, and in brackets where it lies with 95 %."""
    if interval is None:
        return ""
    mean, low, high = (form.format(number) for number in interval[:3])
    return f"{mean} [{low}, {high}]"
