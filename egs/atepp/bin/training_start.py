"""What a run starts from: nothing, a checkpoint to go on from, or weights of another run."""

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from valle.data import CodecInfo
from valle.models import CodecLM, TrainStage, model_class
from valle.utils.checkpoint import (
    checkpoint_number,
    copy_checkpoint,
    find_checkpoints,
    load_weights,
    read_checkpoint,
)
from valle.utils.cli import AttributeDict
from valle.utils.dist import from_main, is_main
from valle.utils.init_from import init_from


@dataclass
class Start:
    """A checkpoint that a run starts from.

    Attributes:
      is_other_stage: it is of another training stage: its weights are taken, and nothing else.
    """

    path: Path
    checkpoint: dict[str, Any]
    is_other_stage: bool


def find_start(params: AttributeDict) -> Start | None:
    """The checkpoint that the flags ask for; None for a run from scratch.

    Raises:
      FileNotFoundError: It is not there.
      ValueError: It is of another model, was trained on tokens of another codec or with another
        prefix mode, or the new epochs would overwrite those of another stage.
    """
    if params.resume == "auto":
        aim_at_newest(params)
    stage, path = params.train_stage, start_file(params)
    if path is None:
        refuse_overwriting(params)
        if stage == TrainStage.NAR and params.init_from is None:
            logging.warning(
                "Stage 2 without an AR half trained before: give --start-epoch X (reads "
                "epoch-(X-1).pt) or --ar-checkpoint PATH, unless that is meant"
            )
        return None
    checkpoint = read_checkpoint(path)
    check_origin(checkpoint, path, params)
    is_other_stage = path == params.ar_checkpoint or checkpoint.get("train_stage") != stage
    if is_other_stage:
        refuse_overwriting(params)
        # counted on beyond any checkpoint-N.pt that is there, so that none is written over
        numbers = [checkpoint_number(path) for path in find_checkpoints(params.exp_dir)]
        first_batch = max([checkpoint.get("batch_idx_train", 0), *numbers])
        params.batch_idx_train = params.first_batch = first_batch
    else:
        check_prefix_mode(checkpoint, path, params)
        params.first_epoch = checkpoint["first_epoch"]  # a schedule counts from there
    return Start(path, checkpoint, is_other_stage)


def aim_at_newest(params: AttributeDict) -> None:
    """Set --start-batch or --start-epoch to the newest whole checkpoint of this stage, if any."""
    path = from_main(find_newest(params) if is_main() else None)
    if path is None:
        logging.info(f"--resume auto: no checkpoint of this stage in {params.exp_dir} yet")
        return
    logging.info(f"--resume auto: goes on from {path}")
    number = int(path.stem.split("-")[1])
    is_epoch = path.stem.startswith("epoch")
    params.start_batch = 0 if is_epoch else number
    if is_epoch:
        params.start_epoch = params.cur_epoch = number + 1


def find_newest(params: AttributeDict) -> Path | None:
    """The whole checkpoint of this stage after the most updates; logs which are damaged."""
    found = []
    epochs = [p for p in params.exp_dir.glob("epoch-*.pt") if re.fullmatch(r"epoch-\d+", p.stem)]
    for path in [*epochs, *find_checkpoints(params.exp_dir)]:
        try:
            checkpoint = read_checkpoint(path)
        except ValueError as error:
            logging.warning(f"--resume auto leaves out a damaged file: {error}")
            continue
        if checkpoint.get("train_stage") == params.train_stage:
            # of a checkpoint at an epoch's last step and that epoch, the epoch is further
            is_epoch = path.stem.startswith("epoch")
            found.append((checkpoint["batch_idx_train"], is_epoch, path))
    return max(found)[-1] if found else None


def check_origin(checkpoint: dict[str, Any], path: Path, params: AttributeDict) -> None:
    """Refuse weights of another model, or that know other symbols or codes than the tokens'."""
    check_model(checkpoint, path, params)
    check_codec(checkpoint, path, params)


def check_model(checkpoint: dict[str, Any], path: Path, params: AttributeDict) -> None:
    config = checkpoint.get("config")
    if config is None:  # of other people
        return
    theirs = described(CodecLM.kind_of(config), config.get("condition"))
    ours = described(model_class(params.model_name), params.condition)
    if theirs != ours:
        raise ValueError(
            f"{path} is of {theirs}, and this run trains {ours}: set --model-name and --condition "
            "as in the run before, or take what fits as the start of a new run (--init-from with "
            "--init-partial true)"
        )
    if checkpoint.get("text_symbols") != params.get("text_symbols"):
        raise ValueError(
            f"{path} was trained on another table of text symbols than that of "
            f"{params.manifest_dir}, so that its ids mean others: give the run's own table "
            "(--text-tokens)"
        )


def check_prefix_mode(checkpoint: dict[str, Any], path: Path, params: AttributeDict) -> None:
    """Refuse to go on with another prefix mode: the record would tell of that one alone."""
    config = checkpoint.get("config") or {}
    mode = config.get("prefix_mode")  # None of a model that has none
    if mode not in (None, params.prefix_mode):
        raise ValueError(
            f"{path} was trained with --prefix-mode {mode}, and this run goes on from it with "
            f"--prefix-mode {params.prefix_mode}: set it as in the run before, or take what fits "
            "as the start of a new run (--init-from with --init-partial true)"
        )


def described(kind: type[CodecLM], condition: str | None) -> str:
    return f"{kind.__name__} ({condition})" if condition else kind.__name__


def check_codec(checkpoint: dict[str, Any], path: Path, params: AttributeDict) -> None:
    """Refuse weights that know the codes of another codec than the tokens'."""
    if checkpoint.get("codec") and params.codec:
        theirs, ours = (CodecInfo.from_dict(c) for c in (checkpoint["codec"], params.codec))
        theirs.check_same(ours, f"the tokens in {params.manifest_dir}, for {path}")


def start_file(params: AttributeDict) -> Path | None:
    """The file to start from. A NAR run under way goes on, whatever AR half it once began with."""
    path = None
    if params.start_batch > 0:
        path = params.exp_dir / f"checkpoint-{params.start_batch}.pt"
    elif params.start_epoch > 1:
        path = params.exp_dir / f"epoch-{params.start_epoch - 1}.pt"
    if params.ar_checkpoint is None:
        return path
    under_way = path if path is not None and path.exists() else None
    if under_way and read_checkpoint(under_way).get("train_stage") == TrainStage.NAR:
        logging.info(f"--ar-checkpoint is not read, as the run goes on from {path}")
        return path
    return params.ar_checkpoint


def refuse_overwriting(params: AttributeDict) -> None:
    """A stage that begins must not write over the epochs of another."""
    path = params.exp_dir / f"epoch-{params.start_epoch}.pt"
    if path.exists() and read_checkpoint(path).get("train_stage") != params.train_stage:
        raise ValueError(
            f"{path} belongs to another training stage and would be overwritten: begin after its "
            "last epoch (--start-epoch), or choose another --exp-dir"
        )


def keep_best_of_other_stage(params: AttributeDict) -> None:
    """Give best-*.pt of a stage before this one a name that this stage does not write to."""
    for name in ("best-valid-loss", "best-train-loss"):
        path = params.exp_dir / f"{name}.pt"
        if path.exists():
            stage = read_checkpoint(path).get("train_stage")
            if stage != params.train_stage:
                copy_checkpoint(path, params.exp_dir / f"{name}-stage{stage}.pt")


def load_start_weights(model: CodecLM, start: Start | None, params: AttributeDict) -> None:
    """Load the weights; of an AR run that the NAR half starts from, the AR half alone."""
    if start is None:
        if params.init_from is not None:
            if not params.init_partial:
                check_origin(read_checkpoint(params.init_from), params.init_from, params)
            init_from(model, params.init_from, allow_partial=params.init_partial)
        return
    if not start.is_other_stage:  # `resume` loads it with all else
        return
    weights, what = start.checkpoint["model"], "Model"
    of_ar_run = start.checkpoint.get("train_stage") == TrainStage.AR
    if params.train_stage == TrainStage.NAR and (start.path == params.ar_checkpoint or of_ar_run):
        what = "AR half"
        ar = {k.removeprefix("ar."): v for k, v in weights.items() if k.startswith("ar.")}
        load_weights(model.ar, ar, start.path)
    else:
        load_weights(model, weights, start.path)
    logging.info(f"{what} loaded from {start.path}")
