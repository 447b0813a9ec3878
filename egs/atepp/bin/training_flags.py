"""The command line of the trainer: its flags, and what of them cannot be."""

import argparse
from pathlib import Path

from training_run import DTYPES

from valle.data import TokenDataModule
from valle.models import VALLE, add_model_arguments, model_class
from valle.modules.optim import DEFAULT_LR
from valle.utils.averaging import AveragingRule
from valle.utils.cli import flag_of, str2bool
from valle.utils.dist import DEFAULT_PORT, DEFAULT_TIMEOUT_SEC


def make_parser(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument_group("training").add_argument
    add("--exp-dir", type=Path, help="where all output goes; default: exp/audio-lm, exp/valle")
    add("--train-stage", type=int, default=0, choices=[0, 1, 2], help="0 both halves, 1 AR, 2 NAR")
    add("--num-epochs", type=int, default=20, help="the last epoch, counted from 1")
    add("--start-epoch", type=int, default=1, help="above 1: go on from epoch-(N-1).pt")
    add("--start-batch", type=int, default=0, help="above 0: go on from checkpoint-N.pt")
    add("--resume", default="none", choices=["none", "auto"], help="auto: from the newest that is")
    add("--init-from", type=Path, help="checkpoint whose weights alone a new run starts from")
    add("--init-partial", type=str2bool, default=False, help="take those that fit, if not all do")
    add("--ar-checkpoint", type=Path, help="stage 2: where the trained AR half is read from")
    add(
        "--prompt-ratio",
        type=float,
        default=0.4,
        help="of audio-lm: share of a cut that is its prompt",
    )
    add(
        "--score-prompts",
        type=str2bool,
        default=False,
        help="of audio-lm: the AR half learns to predict the prompts' frames, too; validation is "
        "of targets",
    )
    add(
        "--all-nar-stages",
        type=str2bool,
        default=False,
        help="the NAR half learns all quantizers of each cut in a step, not one that is drawn",
    )
    add("--filter-min-duration", type=float, default=0.0, help="shorter cuts are left out (s)")
    add("--filter-max-duration", type=float, default=20.0, help="longer cuts are left out (s)")
    add("--seed", type=int, default=42)
    add("--dtype", default="float32", choices=list(DTYPES), help="of activations (autocast)")
    add(
        "--init-embeddings-from-codec",
        metavar="CODEC",
        help="hub name or folder of the codec whose codebooks the embeddings start from",
    )
    add = parser.add_argument_group("optimization").add_argument
    add("--optimizer-name", default="ScaledAdam", choices=list(DEFAULT_LR))
    add("--scheduler-name", choices=["Eden", "Cosine"], help="default: Eden; with AdamW Cosine")
    add("--base-lr", type=float, help=f"default: {DEFAULT_LR}")
    add("--warmup-steps", type=int, default=200)
    add("--accumulate-grad-steps", type=int, default=1, help="batches a step")
    add("--average-period", type=int, default=0, help="steps between updates of model_avg; 0: none")
    add(
        "--ema-decay", type=float, default=0.0, help="above 0: model_avg forgets; by this an update"
    )
    add("--max-skipped-steps", type=int, default=10, help="not finite, in a row, before it stops")
    add("--compile", type=str2bool, default=False, help="torch.compile, where it works")
    add("--on-oom", default="stop", choices=["stop", "split"], help="split: retry in halves")
    add = parser.add_argument_group("logging and checkpoints").add_argument
    add("--tensorboard", type=str2bool, default=True)
    add("--log-interval", type=int, default=100, help="steps between log lines")
    add("--reset-interval", type=int, default=200, help="how many steps tot_loss looks back")
    add("--valid-interval", type=int, default=10000, help="steps between validations in an epoch")
    add("--save-every-n", type=int, default=10000, help="steps between checkpoint-N.pt")
    add("--keep-last-k", type=int, default=20, help="how many checkpoint-N.pt are kept")
    add("--on-save-error", default="stop", choices=["stop", "continue"], help="as on a full disk")
    add("--sample-epochs", type=int, default=1, help="epochs between audio samples; 0: none")
    add("--num-samples", type=int, default=2, help="validation cuts that are continued to hear")
    add(
        "--measured-cuts",
        type=int,
        default=8,
        help="validation cuts that are continued and measured at each validation; 0: none",
    )
    add("--sample-codec", help="codec of the audio samples; default: as in the manifest")
    add("--inf-check", type=str2bool, default=False, help="log the first non-finite module output")
    add("--oom-check", type=str2bool, default=True, help="on CUDA, try the largest batches first")
    add = parser.add_argument_group("several processes").add_argument
    add("--world-size", type=int, default=1, help="processes; torchrun's settings win")
    add("--master-port", type=int, default=DEFAULT_PORT)
    add("--fsdp", type=str2bool, default=False, help="each process holds a share of the weights")
    add(
        "--dist-timeout",
        type=float,
        default=DEFAULT_TIMEOUT_SEC,
        help="seconds that a process may keep the others waiting",
    )
    add_model_arguments(parser)
    TokenDataModule.add_arguments(parser)
    return parser


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse numbers that cannot be, and flags of the other model, before anything is read."""
    check_model_flags(args)
    if not 0 <= args.prompt_ratio < 1 or (args.prompt_ratio == 0 and not args.prepend_bos):
        raise ValueError(
            f"--prompt-ratio {args.prompt_ratio} must be above 0 and below 1; 0, empty prompts, "
            "needs --prepend-bos true"
        )
    if not 0 <= args.infill_prob <= 1:
        raise ValueError(
            f"--infill-prob {args.infill_prob} is a share of the cuts: expected 0 to 1, say 0.3"
        )
    if args.infill_prob > 0 and args.ahead_frames < 1:
        raise ValueError(
            f"--ahead-frames {args.ahead_frames} lets nothing be read of what follows a gap: with "
            "--infill-prob above 0 it must be 1 or more (default: 1000)"
        )
    names = ("log_interval", "reset_interval", "valid_interval", "save_every_n", "keep_last_k")
    for name in (*names, "accumulate_grad_steps", "start_epoch", "max_skipped_steps"):
        if getattr(args, name) < 1:
            raise ValueError(f"{flag_of(name)} must be 1 or more, got {getattr(args, name)}")
    goes_on = args.start_batch > 0 or args.start_epoch > 1
    if goes_on and args.init_from is not None:
        raise ValueError(
            "--init-from begins a new run, --start-epoch and --start-batch go on with one: give one"
        )
    if args.ema_decay and not args.average_period:
        raise ValueError(f"--ema-decay {args.ema_decay} needs --average-period, say 1")
    if args.average_period:
        AveragingRule.of(vars(args))
    check_processes(args)
    if args.num_epochs < args.start_epoch:
        raise ValueError(
            f"--num-epochs {args.num_epochs} is the number of the last epoch, and lies before "
            f"--start-epoch {args.start_epoch}: nothing to do"
        )


# What only one of the models has a use for, and why the other has none.
OF_AUDIO_LM = {
    "prompt_ratio": "a valle is told how to sound by --prefix-mode",
    "infill_prob": "a valle fills no gaps",
    "ahead_frames": "a valle fills no gaps",
    "score_prompts": "the AR half of a valle predicts all frames anyway",
}
OF_VALLE = {
    "condition": "an audio-lm reads audio alone",
    "prefix_mode": "the NAR half of an audio-lm reads the prompt that --prompt-ratio sets",
    "text_tokens": "an audio-lm reads no text",
}


def check_model_flags(args: argparse.Namespace) -> None:
    """Refuse flags that the model would pass over in silence."""
    is_valle = model_class(args.model_name) is VALLE
    other, defaults = ("audio-lm", "valle")[not is_valle], make_parser(None)
    for name, reason in (OF_AUDIO_LM if is_valle else OF_VALLE).items():
        value = getattr(args, name)
        if value != defaults.get_default(name):
            raise ValueError(
                f"{flag_of(name)} {value} is for --model-name {other}, got {args.model_name}: "
                f"{reason}; "
                "leave it out"
            )


def settle_arguments(args: argparse.Namespace) -> None:
    """Give flags whose default depends on others their value."""
    if args.exp_dir is None:
        args.exp_dir = Path(
            "exp/valle" if model_class(args.model_name) is VALLE else "exp/audio-lm"
        )


def check_processes(args: argparse.Namespace) -> None:
    if not args.fsdp:
        return
    if args.dtype == "float16":
        raise ValueError("--fsdp true has no gradient scale for float16: take --dtype bfloat16")
    if args.compile:
        raise ValueError("--fsdp true and --compile true have not been made to work together")
    if args.on_oom == "split":
        raise ValueError("--fsdp true cannot retry a batch on one rank alone: leave --on-oom out")
