"""What a model makes of validation cuts: for the ear, and for the measures.

Letters: B cuts, T frames of the longest cut, P prompt frames, L frames of the longest row made,
S symbols or events, Q quantizers.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from generation_rows import num_of_prompts
from torch import Tensor

from valle.data import TokenDataset, split_prompt
from valle.models import VALLE, AudioLM, CodecLM
from valle.models.config import PREFIX_SEC
from valle.models.generation import UNKNOWN
from valle.modules.masks import close_gap, length_mask

TOP_K = 50
LARGEST_SHARE = 0.5  # of a cut that a VALLE is given as its prompt


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


Load = Callable[[Iterable[Any]], dict[str, Any]]
"""Cuts to a batch, as `TokenDataset` makes it."""


def load_codes(cuts: Iterable[Any]) -> dict[str, Any]:
    """A batch of codes alone."""
    return TokenDataset()[cuts]


def prompt_sec(config: Any, seconds: float, prompt_ratio: float) -> float:
    """How much of a cut a model is given: a VALLE hears 3 s at most, as it is told what comes."""
    if config.condition is None:
        return seconds * prompt_ratio
    return min(seconds * LARGEST_SHARE, PREFIX_SEC)


def first_parts(
    config: Any, codes: Tensor, lens: Tensor, prompt_ratio: float
) -> tuple[Tensor, Tensor]:
    """Prompts (B, P, Q) of cuts (B, T, Q), and their lengths (B,)."""
    if config.condition is None:
        prompts, prompt_lens, _, _ = split_prompt(codes, lens, prompt_ratio)
        return prompts, prompt_lens
    most = config.longest_prefix
    prompt_lens = (lens * LARGEST_SHARE).long().clamp(max=most)
    return codes[:, : int(prompt_lens.max())], prompt_lens


@torch.no_grad()
def continue_cuts(
    model: CodecLM,
    cuts: Iterable[Any],
    prompt_ratio: float,
    seed: int,
    *,
    load: Load = load_codes,
    ignore_eos: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Continued:
    """Continue the first part of each cut, with the same random numbers each time.

    Args:
      model: On whatever device; its mode is left as it is. A VALLE is told of the whole cut, by the
        text or the events that the cut carries.
      cuts: With tokens.
      prompt_ratio: Share of a cut that an AudioLM is given.
      seed: Of the random numbers.
      load: Reads the cuts, with their condition where the model has one.
      ignore_eos: Make every row as long as its cut at least; else a row may end where the model
        ends it.
      progress: Called after every frame.

    Raises:
      ValueError: No cuts, a cut of fewer than two frames, tokens that cannot be.
    """
    batch = load(cuts)
    true, true_lens = batch["audio_features"], batch["audio_features_lens"]
    prompts, prompt_lens = first_parts(model.config, true, true_lens, prompt_ratio)
    device = next(model.parameters()).device
    options: dict[str, Any] = {
        "max_new_tokens": int((true_lens - prompt_lens).max()),
        "ignore_eos": ignore_eos,
        "top_k": TOP_K,
        "generator": torch.Generator(device).manual_seed(seed),
        "progress": progress,
        "return_lens": True,
    }
    given = prompts.to(device), prompt_lens.to(device)
    if isinstance(model, VALLE):
        made, made_lens = continue_conditioned(model, batch, *given, options)
    else:
        assert isinstance(model, AudioLM)
        made, made_lens = model.inference(*given, **options)
    return Continued(prompt_lens, true, true_lens, made.cpu(), made_lens.cpu())


def continue_conditioned(
    model: VALLE, batch: dict[str, Any], prompts: Tensor, lens: Tensor, options: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """Prompts and what a VALLE makes after them, (B, L, Q) and (B,), told of both by the cuts."""
    x, x_lens = (
        batch[f"{model.config.condition}_tokens{what}"].to(lens.device) for what in ("", "_lens")
    )
    enrolled = num_of_prompts(model, x, x_lens, lens)
    new, new_lens = model.inference(x, x_lens, prompts, enrolled, y_lens=lens, **options)
    made, made_lens = close_gap(prompts, lens, new, new_lens), lens + new_lens
    made = made[:, : int(made_lens.max())]
    return made.where(length_mask(made_lens, made.shape[1])[:, :, None], UNKNOWN), made_lens
