"""The cuts of a run, and what they settle of its model: codec, condition, symbols."""

import json
import logging
from collections.abc import Iterable
from itertools import islice
from typing import Any

from tokenizer_merging import SETTINGS

from valle.data import CodecInfo, Survey, TokenDataModule
from valle.data.elsewhere import codes_elsewhere
from valle.data.manifest import condition_of, frame_shift_of
from valle.models import VALLE, VALLEConfig, model_class
from valle.models.config import ELSEWHERE, PREFIX_SEC
from valle.utils.cli import AttributeDict, flag_of

LOOKED_AT = 50  # cuts


def open_cuts(data: TokenDataModule, params: AttributeDict) -> tuple[Survey, Survey]:
    """The cuts to train on and to validate on, tokens of one codec, which settles the model's."""
    lengths = (params.filter_min_duration, params.filter_max_duration)
    train, valid = (data.survey(cuts, *lengths) for cuts in (data.train_cuts(), data.valid_cuts()))
    settle_codec(params, train.codec)
    if train.codec and valid.codec:
        train.codec.check_same(valid.codec, "the validation cuts")
    data.num_quantizers, data.codebook_size = params.num_quantizers, params.num_audio_tokens
    if model_class(params.model_name) is VALLE:
        settle_condition(params, *(next(iter(survey.cuts)) for survey in (train, valid)))
        data.condition = params.condition
        if params.prefix_mode == ELSEWHERE:
            data.elsewhere_sec = PREFIX_SEC
            check_elsewhere(train.cuts)
        if params.condition == "text":
            settle_symbols(params, data)
    return train, valid


def settle_codec(params: AttributeDict, info: CodecInfo | None) -> None:
    """Take quantizers and codebook size from the manifest's codec, the flags agreeing.

    Raises:
      ValueError: A flag says something else than the manifest.
    """
    defaults = model_class(params.model_name).config_class()
    facts = {
        "num_quantizers": info.num_quantizers if info else defaults.num_quantizers,
        "num_audio_tokens": info.codebook_size if info else defaults.num_audio_tokens,
    }
    for name, value in facts.items():
        given = params[name]
        if info is not None and given is not None and given != value:
            raise ValueError(
                f"{flag_of(name)} {given}, but the tokens in {params.manifest_dir} were made by "
                f"{info.name} with {value}: leave the flag out, or take other tokens"
            )
        params[name] = value if given is None else given
    params.codec = None if info is None else info.to_dict()


def settle_condition(params: AttributeDict, train_cut: Any, valid_cut: Any) -> None:
    """Take the condition from what cuts carry, and the frame rate from their tokens.

    Raises:
      ValueError: They carry none, or not the one that --condition says, or not the same.
    """
    carried, where = condition_of(train_cut), params.manifest_dir
    if carried is None:
        raise ValueError(
            f"the cuts in {where} carry neither text nor MIDI, of which --model-name "
            f"{params.model_name} makes audio: tokenise with --midi-dir, or cuts with text"
        )
    if params.condition not in (None, carried):
        raise ValueError(
            f"--condition {params.condition}, but the cuts in {where} carry {carried}: leave the "
            "flag out, or take other manifests"
        )
    if condition_of(valid_cut) != carried:
        raise ValueError(
            f"the training cuts in {where} carry {carried}, the validation cuts "
            f"{condition_of(valid_cut) or 'nothing'}: tokenise them alike"
        )
    params.condition = carried
    shift = frame_shift_of(train_cut)
    rate = params.codec["frame_rate"] if params.codec else 1 / shift if shift else None
    params.frame_rate = rate or VALLEConfig.frame_rate


def check_elsewhere(cuts: Iterable[Any]) -> None:
    """Refuse recordings that are one excerpt each: no prompt can be taken from elsewhere in them.

    Raises:
      ValueError: None of the first cuts has anything else in its recording.
    """
    first = list(islice(cuts, LOOKED_AT))
    if not any(len(codes_elsewhere(cut, PREFIX_SEC)) for cut in first):
        raise ValueError(
            f"--prefix-mode 4 takes prompts from elsewhere in a cut's recording, but the first "
            f"{len(first)} training cuts are all that their recordings have: take --prefix-mode 1"
        )


def settle_symbols(params: AttributeDict, data: TokenDataModule) -> None:
    """Note what a text was made into symbols by, and their table: who reads the model needs both.

    Raises:
      FileNotFoundError: There is no table.
      ValueError: It is none.
    """
    params.text_symbols = data.symbols.symbols
    params.num_text_tokens = len(data.symbols)
    path = params.manifest_dir / SETTINGS
    made_by = json.loads(path.read_text()).get("text", {}) if path.is_file() else {}
    params.text_extractor, params.language = made_by.get("extractor"), made_by.get("language")
    if params.text_extractor is None:
        logging.warning(
            f"{path} does not tell how texts became symbols; infer.py will have to be told"
        )
