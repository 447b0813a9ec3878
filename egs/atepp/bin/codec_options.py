"""The flags of trainer_codec.py, and what they mean together."""

import argparse
import os
from pathlib import Path

from codec_run import DTYPES, PHASES
from codec_sources import add_source_arguments
from codec_step import ADVERSARIAL_TERMS

from valle.codec.discriminator import WINDOWS
from valle.codec.files import SAVE_DTYPES
from valle.codec.losses import TERMS
from valle.utils.cli import str2bool
from valle.utils.dist import DEFAULT_PORT, DEFAULT_TIMEOUT_SEC, started_by_torchrun

LOSS_WEIGHTS = {
    "mel": 1.0,
    "linear": 1.0,
    "waveform": 1.0,
    "fine": 0.5,
    "adversarial": 3.0,  # EnCodec's
    "feature": 3.0,
}
# steps of each phase and learning rates, by what is trained
PLANS = {
    "scratch": {"steps_noise": 6000, "steps_joint": 8000, "steps_decoder": 1700,
                "lr": 8e-4, "lr_decoder": 4e-4},
    "all": {"steps_noise": 0, "steps_joint": 20000, "steps_decoder": 5000,
            "lr": 1e-4, "lr_decoder": 1e-4},
    "decoder": {"steps_noise": 0, "steps_joint": 0, "steps_decoder": 20000,
                "lr": 1e-4, "lr_decoder": 1e-4},
}  # fmt: skip


def get_parser(description: str) -> argparse.ArgumentParser:
    """All that can be set."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument_group("codec").add_argument
    add("--init-from", help="folder or hub name of the EnCodec to start from")
    add("--config", type=Path, help="config.json of an EncodecConfig, for one from scratch")
    add("--train", default="all", choices=["all", "decoder"], help="decoder: tokens stay valid")
    add("--exp-dir", type=Path, default=Path("exp/codec"), help="checkpoints, log, tensorboard")
    add("--out-dir", type=Path, help="folder of the codec; default: EXP_DIR/codec")
    add("--save-dtype", default="float32", choices=list(SAVE_DTYPES), help="of the codec's file")
    add_source_arguments(parser)
    add_training_arguments(parser)
    add_loss_arguments(parser)
    add = parser.add_argument_group("logging and checkpoints").add_argument
    add("--log-interval", type=int, default=100, help="steps between lines")
    add("--eval-interval", type=int, default=1000, help="steps between held-out scores")
    add("--num-clips", type=int, default=8, help="held-out clips that are scored and heard")
    add("--clip-sec", type=float, default=5.0, help="length of such a clip")
    add("--save-every-n", type=int, default=2000, help="steps between checkpoint-N.pt")
    add("--keep-last-k", type=int, default=3, help="how many checkpoint-N.pt are kept")
    add("--resume", default="none", choices=["none", "auto"], help="auto: from the newest that is")
    add = parser.add_argument_group("several processes").add_argument
    add("--world-size", type=int, default=1, help="processes; torchrun's settings win")
    add("--master-port", type=int, default=DEFAULT_PORT)
    add("--dist-timeout", type=float, default=DEFAULT_TIMEOUT_SEC, help="s a process may be late")
    return parser


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("training").add_argument
    add("--steps-noise", type=int, help="autoencoder with noise on the latents; scratch alone")
    add("--steps-joint", type=int, help="encoder, codebooks and decoder")
    add("--steps-decoder", type=int, help="decoder alone, on final tokens")
    add("--max-minutes", type=float, default=0.0, help="above 0: steps are cut, schedules end")
    add("--batch-size", type=int, default=16, help="crops a step, of all processes together")
    add("--segment-sec", type=float, default=1.0, help="crop length; decoder phase: twice, for "
        "half as many crops, rounded up to the processes")  # fmt: skip
    add("--lr", type=float, help="of the noise and joint phases")
    add("--lr-decoder", type=float, help="of the decoder phase")
    add("--warmup-steps", type=int, default=200, help="at the begin of each phase")
    add("--dtype", default="float32", choices=list(DTYPES), help="of convolutions (autocast)")
    add("--weight-average", type=float, default=0.999, help="decay of the averaged weights")
    add("--quantizer-drop", type=float, default=0.15, help="share of crops using fewer levels")
    add("--rate-bits", type=float, help="let through the noise for each frame; default: a fifth "
        "more than its codes have")  # fmt: skip
    add("--kmeans-latents", type=int, default=200_000, help="frames for k-means of the codebooks")
    add("--max-skipped-steps", type=int, default=10, help="not finite, in a row, before it stops")
    add("--train-seed", type=int, default=0, help="of weights, crops, noise and k-means")
    add("--memory-mib", type=float, default=2048.0, help="for recordings that are kept in memory")
    add("--num-workers", type=int, default=0, help="processes that read crops")
    add("--num-threads", type=int, default=0, help="CPU threads of torch; 0 leaves its choice")
    add("--deterministic", type=str2bool, default=False, help="the same numbers twice on a GPU")


def add_loss_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("losses").add_argument
    add("--loss-weights", nargs="+", default=[], metavar="NAME=X", help=f"default: {LOSS_WEIGHTS}")
    add("--floor-db", type=float, default=-74.0, help="of full scale; what lies deeper hardly "
        "counts in the mel and fine losses")  # fmt: skip
    add("--commitment-weight", type=float, default=0.1, help="pull of latents to their codes")
    add("--adversarial", default="decoder", choices=["none", "joint", "decoder"],
        help="the first phase with a discriminator")  # fmt: skip
    add("--disc-windows", type=int, nargs="+", default=list(WINDOWS), help="samples, powers of 2")
    add("--disc-channels", type=int, default=32, help="width of the discriminator")
    add("--disc-warmup", type=int, default=200, help="steps in which it alone learns")
    add("--lr-disc", type=float, default=3e-4, help="learning rate of the discriminator")
    add("--balancer", default="auto", choices=["auto", "always", "never"],
        help="gradients of losses brought to one size; auto: with a discriminator")  # fmt: skip
    add("--balancer-decay", type=float, default=0.999, help="of the averages of their sizes")
    add("--balancer-norm", type=float, default=1.0, help="size of the sum of the gradients")


def settle(args: argparse.Namespace) -> None:
    """Check the flags against each other, and fill in those that depend on what is trained.

    Raises:
      ValueError: With the flag, what came and what is allowed.
    """
    if (args.init_from is None) == (args.config is None):
        raise ValueError("give either --init-from (fine-tune) or --config (from scratch)")
    if args.config is not None and args.train == "decoder":
        raise ValueError("--train decoder needs --init-from: a new codec has no tokens to keep")
    plan = "scratch" if args.config is not None else args.train
    for name, value in PLANS[plan].items():
        given = getattr(args, name)
        if plan != "scratch" and given and name == "steps_noise":
            raise ValueError(f"--steps-noise {given} is for --config: what was trained has codes")
        if plan == "decoder" and given and name == "steps_joint":
            raise ValueError(f"--steps-joint {given} changes tokens, which --train decoder keeps")
        setattr(args, name, value if given is None else given)
    args.steps = {name: getattr(args, f"steps_{name}") for name in PHASES}
    args.loss_weights = read_weights(args.loss_weights)
    check_numbers(args)
    check_ranks(args)


def read_weights(given: list[str]) -> dict[str, float]:
    """`mel=1 fine=0.5` over the defaults."""
    weights = dict(LOSS_WEIGHTS)
    for item in given:
        name, _, number = item.partition("=")
        try:
            weights[name], known = float(number), name in LOSS_WEIGHTS
        except ValueError:
            known = False
        if not known or weights[name] < 0:
            raise ValueError(
                f"--loss-weights {item}: expected NAME=X with X from 0 and NAME one of "
                f"{', '.join((*TERMS, *ADVERSARIAL_TERMS))}"
            )
    return weights


def check_numbers(args: argparse.Namespace) -> None:
    positive: tuple[str, ...] = (
        "batch_size",
        "segment_sec",
        "lr",
        "lr_decoder",
        "lr_disc",
        "log_interval",
    )
    positive += ("eval_interval", "clip_sec", "num_clips", "save_every_n", "keep_last_k")
    positive += (
        "kmeans_latents",
        "max_skipped_steps",
        "warmup_steps",
        "disc_channels",
        "balancer_norm",
    )
    for name in positive:
        if getattr(args, name) <= 0:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(args, name)}, must be > 0")
    for name in ("steps_noise", "steps_joint", "steps_decoder", "max_minutes", "disc_warmup"):
        if getattr(args, name) < 0:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(args, name)}, must be >= 0")
    for name in ("weight_average", "balancer_decay", "quantizer_drop"):
        if not 0 <= getattr(args, name) <= 1:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(args, name)}: 0 to 1 expected")
    if args.floor_db >= 0:
        raise ValueError(f"--floor-db is {args.floor_db:g}, must be < 0: 0 is a full-scale sine")
    if sum(args.steps.values()) == 0:
        raise ValueError("all of --steps-noise, --steps-joint and --steps-decoder are 0")


def check_ranks(args: argparse.Namespace) -> None:
    ranks = int(os.environ["WORLD_SIZE"]) if started_by_torchrun() else args.world_size
    if args.batch_size % ranks:
        raise ValueError(
            f"--batch-size {args.batch_size} is of all {ranks} processes together: give a "
            f"multiple of {ranks}"
        )
    if ranks > 1 and args.max_minutes:
        raise ValueError("--max-minutes is for one process, as clocks differ: give steps")
