"""What a model makes of validation cuts: for the ear, and for the measures.

Letters: B cuts, T frames of the longest cut, L frames of the longest row made, Q quantizers.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from valle.data import collate_codes, cut_codes, split_prompt
from valle.models import AudioLM

TOP_K = 50


class Continued(NamedTuple):
    """Cuts, and the same with their ends made by a model.

    Attributes:
      prompt_lens: (B,) frames of each cut that the model was given.
      true: (B, T, Q) codes of the whole cuts, `true_lens` (B,) frames each.
      made: (B, L, Q) prompts and what the model made of them, `made_lens` (B,) frames each; -1
        past a row's end.
    """

    prompt_lens: Tensor
    true: Tensor
    true_lens: Tensor
    made: Tensor
    made_lens: Tensor


@torch.no_grad()
def continue_cuts(
    model: AudioLM,
    cuts: Sequence[Any],
    prompt_ratio: float,
    seed: int,
    *,
    ignore_eos: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Continued:
    """Continue the first part of each cut, with the same random numbers each time.

    Args:
      model: On whatever device; its mode is left as it is.
      cuts: With tokens.
      prompt_ratio: Share of a cut that is given.
      seed: Of the random numbers.
      ignore_eos: Make every row as long as its cut at least; else a row may end where the model
        ends it.
      progress: Called after every frame.

    Raises:
      ValueError: No cuts, a cut of fewer than two frames, tokens that cannot be.
    """
    true, true_lens = collate_codes([cut_codes(cut) for cut in cuts])
    x, x_lens, _, y_lens = split_prompt(true, true_lens, prompt_ratio)
    device = next(model.parameters()).device
    made, made_lens = model.inference(
        x.to(device),
        x_lens.to(device),
        max_new_tokens=int(y_lens.max()),
        ignore_eos=ignore_eos,
        top_k=TOP_K,
        generator=torch.Generator(device).manual_seed(seed),
        progress=progress,
        return_lens=True,
    )
    return Continued(x_lens, true, true_lens, made.cpu(), made_lens.cpu())
