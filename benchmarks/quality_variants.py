"""AudioLM with one change each: the table of what is tried, as data.

To try something else, add an entry: what a change of the config, the optimizer or the training
flags can say stands in its fields; all else goes into `prepare`, which may change the model once it
is built, into `forward`, or into `loss`, which takes the place of `AudioLM.forward` (and for the
last two `cost` must say what a step needs, or the budget is not the others').

B rows of a batch, T target frames, Q quantizers, V codebook size.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from quality_batches import CodeBatch
from torch import Tensor
from train_contenders import StepFlops, TrainBatch, two_halves_flops

from valle.models import AudioLM, AudioLMConfig, TrainStage

Loss = Callable[[AudioLM, CodeBatch], Tensor]
Prepare = Callable[[AudioLM], None]
Counts = Callable[[AudioLMConfig, TrainBatch], StepFlops]
Reshape = Callable[[AudioLMConfig], Mapping[str, Any]]


@dataclass(frozen=True)
class Variant:
    """What differs from the recipe.

    Attributes:
      about: a sentence for the table.
      config: fields of `AudioLMConfig` -> values.
      reshape: the same where values follow from the recipe's config.
      optimizer: "AdamW" (with a cosine) or "ScaledAdam" (with Eden), as in the trainer.
      base_lr: None: what the run gives AdamW (`--base-lr`), or ScaledAdam's own default.
      lr_factor: multiplies it.
      init_from_codec: start embeddings and heads from the codec's codebooks.
      prompt_ratio: in training; held-out frames are always split by the run's. None: as the run.
      prepare: called with the model before it learns.
      forward: further arguments of `AudioLM.forward`.
      loss: summed over target frames, the mean of both halves; None: `AudioLM.forward`'s.
      cost: what a step of that needs; None: what `AudioLM.forward` needs.
    """

    about: str
    config: Mapping[str, Any] = field(default_factory=dict)
    reshape: Reshape | None = None
    optimizer: str = "AdamW"
    base_lr: float | None = None
    lr_factor: float = 1.0
    init_from_codec: bool = True
    prompt_ratio: float | None = None
    prepare: Prepare | None = None
    forward: Mapping[str, Any] = field(default_factory=dict)
    loss: Loss | None = None
    cost: Counts | None = None

    def config_from(self, base: AudioLMConfig) -> AudioLMConfig:
        """The recipe's config with the changes."""
        changes = {} if self.reshape is None else dict(self.reshape(base))
        return AudioLMConfig(**asdict(base) | dict(self.config) | changes)

    def settings(self) -> dict[str, Any]:
        """In plain types, for the record; functions by their names."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {
            name: value.__qualname__ if callable(value) else value
            for name, value in fields.items()
            if name != "about"
        }


def every_stage_cost(config: AudioLMConfig, batch: TrainBatch) -> StepFlops:
    """A pass of the NAR half for each stage."""
    cost = two_halves_flops(config, batch, TrainStage.AR, ours=True)
    for _ in range(1, config.num_quantizers):
        cost += two_halves_flops(config, batch, TrainStage.NAR, ours=True)
    return cost


def _deeper_ar(base: AudioLMConfig) -> dict[str, Any]:
    """Twice the layers in the AR half, as many as before in a NAR half of half the width."""
    return {"num_layers": 2 * base.num_layers, "nar_scale_factor": 0.5}


def scored_prompts_cost(config: AudioLMConfig, batch: TrainBatch) -> StepFlops:
    """The last feed-forward block and the head, for the prompts' frames, too."""
    num_prompt = len(batch.x) * (batch.x.shape[1] - 1)
    width = config.d_model
    more = StepFlops(
        matrices=3.0 * 16 * num_prompt * width**2,
        attention=0.0,
        heads=3.0 * 2 * width * num_prompt * (config.num_audio_tokens + 1),
    )
    return two_halves_flops(config, batch, TrainStage.BOTH, ours=True) + more


SMALL_NAR = {"nar_scale_factor": 0.5}

VARIANTS: dict[str, Variant] = {
    "base": Variant("as the recipe trains it"),
    "random-embeddings": Variant("embeddings and heads start at random", init_from_codec=False),
    "half-lr": Variant("half the learning rate", lr_factor=0.5),
    "double-lr": Variant("twice the learning rate", lr_factor=2.0),
    "dropout": Variant("a dropout of 0.1", config={"dropout": 0.1}),
    "scaled-adam": Variant("ScaledAdam at its default rate, with Eden", optimizer="ScaledAdam"),
    "long-prompt": Variant("prompts of 40 % in training", prompt_ratio=0.4),
    "small-nar": Variant("a NAR half of half the width, heads and layers", config=SMALL_NAR),
    "deep-ar": Variant(
        "twice the AR layers; a NAR half of half the width with its layers", reshape=_deeper_ar
    ),
    "every-stage": Variant(
        "each step trains all NAR stages on every row, not one drawn for it",
        forward={"all_stages": True},
        cost=every_stage_cost,
    ),
    "small-nar-every-stage": Variant(
        "a NAR half of half the size, all its stages in each step",
        config=SMALL_NAR,
        forward={"all_stages": True},
        cost=every_stage_cost,
    ),
    "sine": Variant("sine positions, added to embeddings", config={"positions": "sine"}),
    "post-norm": Variant("layer norms after the blocks", config={"norm_first": False}),
    "scored-prompts": Variant(
        "the AR half learns the prompts, too",
        forward={"score_prompts": True},
        cost=scored_prompts_cost,
    ),
}
