"""What the true content of a gap costs a model, by what it knows of what follows.

B batch, T frames, Q quantizers.
"""

import torch
from torch import Tensor

from valle.data.prompt import GapSplit, middle_gaps, split_gaps, take_rows
from valle.evaluation.likelihood import FrameCosts, frame_costs
from valle.models import AudioLM

BOTH_SIDES, WRONG_AFTER, BEFORE_ALONE = "both sides", "another piece after", "before alone"


def gap_costs(
    model: AudioLM,
    codes: Tensor,
    lens: Tensor,
    others: Tensor | None = None,
    other_lens: Tensor | None = None,
) -> dict[str, FrameCosts]:
    """Score the same frames, the middle of each row, in three ways.

    A model that uses what follows a gap finds its content likeliest if that is shown, and less
    likely if another piece follows. What it costs to know the frames before alone is what a
    continuation costs.

    Args:
      model: one that fills gaps, in eval mode.
      codes: (B, T, Q) with `lens` (B,).
      others: (B, T', Q) of another piece each, with `other_lens` (B,); what lies there at the place
        of a row's `after` is shown in its stead, as many frames as there are of both. None: there
        is no other piece.

    Returns:
      `BOTH_SIDES`, `WRONG_AFTER` (with `others`) and `BEFORE_ALONE`, each with the costs of all
      gaps.
    """
    split = split_gaps(codes, lens, *middle_gaps(lens))
    contexts = {BOTH_SIDES: split}
    if others is not None and other_lens is not None:
        contexts[WRONG_AFTER] = _followed_by(split, others, other_lens)
    contexts[BEFORE_ALONE] = split._replace(after_lens=torch.zeros_like(lens))
    return {name: frame_costs(model, *context) for name, context in contexts.items()}


def _followed_by(split: GapSplit, others: Tensor, other_lens: Tensor) -> GapSplit:
    """The same gaps before what lies in other rows where `after` lies in these."""
    start = torch.minimum(split.x_lens + split.y_lens, other_lens - 1)
    num = torch.minimum(split.after_lens, other_lens - start)
    return split._replace(after=take_rows(others, start, num), after_lens=num)
