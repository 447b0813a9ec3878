#!/usr/bin/env python3
"""How well codes are predicted at equal cost: AudioLM, its variants, and MusicGen's decoder.

Usage, from the repository root, once minipiano's tokens are made (egs/minipiano/run.sh):

  python3 benchmarks/quality.py --manifest-dir data/minipiano/tokenized \
      --codec egs/minipiano/codec                               # AudioLM against MusicGen
  python3 benchmarks/quality.py --contenders audiolm --variant dropout small-nar --sweep

All learn from the same batches in the same order. AudioLM takes `--epochs` passes; the others take
as many steps as need the same floating-point operations, counted by formula. MusicGen's decoder has
the width and depth whose parameters, tables and heads left out, come nearest to AudioLM's. Then all
target frames of the held-out cuts are scored, every quantizer of each once, with the same prompts
before them. Learning rates are tried first for each contender (`--sweep`), on the validation cuts,
which are those that are scored in the end unless `--split test`; variants take AudioLM's.

Everything lands in `--output-file`, after each contender; one that is there already with the same
settings is not trained again. Tables come as Markdown.
"""

import argparse
import logging
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from measure import machine_facts, synchronise
from quality_batches import CodeBatch, Plan, Tokens, digest_of
from quality_contenders import (
    AUDIOLM,
    MUSICGEN,
    MUSICGEN_KINDS,
    Learner,
    Setup,
    kind_of,
    make_learner,
    musicgen_shape,
    prompt_ratio_of,
)
from quality_report import (
    Results,
    Row,
    costs_table,
    likelihood_table,
    plain,
    position_table,
    sweep_table,
)
from quality_sounds import Listening, sounds_table
from quality_variants import VARIANTS
from run import positive, show
from train_contenders import StepFlops, TrainBatch, two_halves_flops

from valle.data import Codec, TokenDataModule
from valle.evaluation import LikelihoodMeter
from valle.models import AudioLMConfig, TrainStage
from valle.modules.sampling import Sampling
from valle.utils.checkpoint import load_weights, read_checkpoint, save_checkpoint
from valle.utils.cli import str2bool
from valle.utils.dist import choose_device, choose_dtype

HASHED_BATCHES = 10  # whose digest tells that two runs learned from the same
LOG_INTERVAL = 50  # steps; then it is also seen whether the loss is finite


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument_group("who takes part").add_argument
    everyone = [AUDIOLM, *MUSICGEN_KINDS]
    both = [AUDIOLM, MUSICGEN, f"{MUSICGEN}-codec"]  # both start from the codebooks, or neither
    add("--contenders", nargs="*", choices=everyone, default=both)
    add("--variant", nargs="+", choices=list(VARIANTS), default=[], help="AudioLM with a change")
    add("--d-model", type=positive, default=192)
    add("--num-layers", type=positive, default=2, help="of each half")
    add("--nhead", type=positive, default=4)
    add("--codec", type=Path, default=Path("egs/minipiano/codec"), help="that made the tokens")
    add = parser.add_argument_group("training, as egs/minipiano/run.sh does it").add_argument
    add("--epochs", type=positive, default=6, help="of AudioLM; the budget of all others")
    add("--prompt-ratio", type=float, default=0.2, help="share of a cut that is its prompt")
    add("--filter-max-duration", type=float, default=10.0, help="longer cuts are left out (s)")
    add("--limit-cuts", type=int, default=0, help="of each split, for a trial; 0: all")
    add("--base-lr", type=float, default=0.002, help="AdamW's, for AudioLM")
    add("--musicgen-lr", type=float, help="for MusicGen; default: --base-lr")
    add(
        "--sweep",
        type=float,
        nargs="*",
        default=[0.25, 0.5, 1.0],
        help="try these multiples of the rates first, for each contender; none: no trials",
    )
    add("--sweep-epochs", type=positive, default=2, help="budget of such a trial")
    add("--warmup-steps", type=int, default=50)
    add("--seed", type=int, default=42)
    add("--dtype", default="auto", choices=["auto", "float32", "bfloat16"], help="autocast")
    add("--device", default="auto", help="cpu, cuda, or auto: cuda where there is one")
    add = parser.add_argument_group("scoring").add_argument
    add("--split", default="validation", choices=["validation", "test"], help="that is scored")
    add("--sounds", type=str2bool, default=False, help="continue prompts and measure the sound")
    add("--num-prompts", type=positive, default=16, help="that are continued")
    add("--num-samples", type=positive, default=2, help="continuations of each")
    add("--prompt-seconds", type=float, default=2.0)
    add("--new-seconds", type=float, default=6.0)
    add("--temperature", type=float, default=0.8, help="of quantizer 1")
    add("--top-k", type=int, default=50, help="of quantizer 1")
    add("--nar-temperature", type=float, default=0.8, help="of the other quantizers")
    add = parser.add_argument_group("output").add_argument
    add("--output-file", type=Path, default=Path("quality.json"))
    add("--weights-dir", type=Path, help="where NAME.pt of each contender goes; default: nowhere")
    TokenDataModule.add_arguments(parser)
    data = Path("data/minipiano/tokenized")
    parser.set_defaults(manifest_dir=data, max_duration=20.0, num_workers=0)
    return parser


def main(argv: list[str] | None = None) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    parser = get_parser()
    args = parser.parse_args(argv)
    try:
        Benchmark(args).run()
    except (ValueError, ImportError, OSError) as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")


class Benchmark:
    """A run: trains and scores who takes part, prints tables, saves everything.

    Args:
      args: of `get_parser`.

    Raises:
      ValueError, OSError: tokens, codec or settings that cannot be used.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.results = args, Results(args.output_file)
        device = choose_device(args.device)
        self.tokens = Tokens(args, device)
        info = self.tokens.codec
        self.codec = Codec.from_pretrained(args.codec, num_quantizers=info.num_quantizers)
        info.check_same(self.codec.info, "--codec")
        self.setup = Setup(
            config=AudioLMConfig(
                args.d_model,
                args.nhead,
                args.num_layers,
                num_quantizers=info.num_quantizers,
                num_audio_tokens=info.codebook_size,
                dropout=0.0,
            ),
            codebooks=self.codec.codebooks(),
            seed=args.seed,
            base_lr={AUDIOLM: args.base_lr, MUSICGEN: args.musicgen_lr or args.base_lr},
            prompt_ratio=args.prompt_ratio,
            warmup_steps=args.warmup_steps,
            dtype=choose_dtype(args.dtype, device),
            device=device,
        )
        self.shape = musicgen_shape(self.setup.config)
        self.digest = self.tokens.digest(HASHED_BATCHES)
        self.facts = machine_facts(device)
        self.listening = self._listening() if args.sounds else None

    def run(self) -> None:
        """Try rates, train, score; a table after each part."""
        names = list(dict.fromkeys([*self.args.contenders, *self.args.variant]))
        if not names:
            raise ValueError("nobody takes part: name --contenders or --variant")
        for name in ("device", "num_threads", "torch-version"):
            print(f"- {name.replace('_', ' ')}: {self.facts[name]}")
        print(f"- dtype: {self.setup.dtype}\n- training cuts: {self.tokens.num_train_cuts}\n")
        setups = dict.fromkeys(names, self.setup)
        if self.args.sweep:
            setups = self.sweep(names)
        rows = [self.result(name, name, setups[name], self.args.epochs) for name in names]
        show("What each was given", costs_table(rows))
        show("What the true codes cost", likelihood_table(rows, self.codec.frame_rate))
        show("By position", position_table(rows))
        if self.listening is not None:
            show("What the continuations sound like", sounds_table(rows))
        print(f"Everything is in {self.args.output_file}")

    def sweep(self, names: list[str]) -> dict[str, Setup]:
        """The best rate for each contender; variants take AudioLM's.

        Rates are tried where AdamW is the optimizer, for all contenders the same multiples.
        """
        trials: dict[str, Row] = {}
        best: dict[str, Setup] = {}
        for name in (n for n in names if n not in VARIANTS):
            kind = kind_of(name)
            setups = [
                self.setup.with_lr(kind, self.setup.base_lr[kind] * factor)
                for factor in self.args.sweep
            ]
            keys = [f"{name}, rate {setup.base_lr[kind]:g}" for setup in setups]
            found = [
                self.result(key, name, setup, self.args.sweep_epochs, is_trial=True)
                for key, setup in zip(keys, setups, strict=True)
            ]
            trials |= dict(zip(keys, found, strict=True))
            best[name] = min(zip(found, setups, strict=True), key=lambda p: p[0].total_nats)[1]
            chosen = best[name].base_lr[kind]
            if chosen == max(setup.base_lr[kind] for setup in setups):
                logging.warning(f"{name}: {chosen:g} is the highest rate tried, and the best")
        if trials:
            show("Learning rates", sweep_table(trials))
        of_variants = best.get(AUDIOLM, self.setup)
        return {name: best.get(name, of_variants) for name in names}

    def result(
        self, key: str, name: str, setup: Setup, num_epochs: int, is_trial: bool = False
    ) -> Row:
        """A row, of the file if it has it, else of the contender trained and scored now."""
        batch = next(self.tokens.training_batches(prompt_ratio_of(name, setup)))
        learner = make_learner(name, setup, self.shape, batch)
        plan = self.plan(learner, prompt_ratio_of(name, setup), num_epochs)
        settings = self.settings(learner, num_epochs, plan.num_steps, is_trial)
        row = self.results.known(key, settings)
        if row is None:
            row = self.trained(name, learner, settings, plan)
            self.score(row, learner, "validation" if is_trial else self.args.split)
            if not is_trial:
                self.save_weights(learner, name, settings)
            self.keep(key, row)
        else:
            logging.info(f"{key}: is in {self.results.path}")
        listening = None if is_trial else self.listening
        if listening is not None and row.heard != plain(listening.settings()):
            self.listen(listening, row, learner, plan)
            self.keep(key, row)
        return row

    def keep(self, key: str, row: Row) -> None:
        self.results.keep(key, row, facts=self.facts, arguments=vars(self.args))

    def listen(self, listening: Listening, row: Row, learner: Learner, plan: Plan) -> None:
        """Let a row know how its continuations measure, unless learning broke off.

        A contender that was trained by an earlier run is trained again if it left no weights.
        """
        if math.isinf(row.total_nats):
            return
        if not learner.has_learned and not self.restore(learner, row.name, row.settings):
            self.trained(row.name, learner, row.settings, plan)
        row.sounds = listening.measure(learner, self.codec)
        row.heard = plain(listening.settings())

    def trained(self, name: str, learner: Learner, settings: dict[str, Any], plan: Plan) -> Row:
        """Let a contender learn until the budget is used up; a row without scores."""
        ratio = prompt_ratio_of(name, learner.setup)
        learner.begin(plan.num_steps)
        logging.info(f"{name}: {plan.num_steps} steps, {plan.flops / 1e12:.3f} TFLOP")
        synchronise(learner.setup.device)
        start = time.perf_counter()
        batches = islice(self.tokens.training_batches(ratio), plan.num_steps)
        num_cuts, is_finite, first = learn(learner, batches, name)
        synchronise(learner.setup.device)
        num_quantizers = learner.setup.config.num_quantizers
        return Row(
            name=name,
            about=learner.about,
            settings=settings,
            lr=learner.lr,
            optimizer=learner.optimizer_name,
            parameters=learner.parameters._asdict(),
            steps=plan.num_steps,
            epochs=num_cuts / self.tokens.num_train_cuts,
            flops=plan.flops,
            seconds=time.perf_counter() - start,
            digest=digest_of(first),
            num_frames=0,
            nats=[0.0 if is_finite else math.inf] * num_quantizers,
            top1=[0.0] * num_quantizers,
        )

    def plan(self, learner: Learner, ratio: float, num_epochs: int) -> Plan:
        """Steps that need what AudioLM needs for so many epochs."""

        def cost(batch: TrainBatch) -> StepFlops:
            return two_halves_flops(self.setup.config, batch, TrainStage.BOTH, ours=True)

        budget = self.tokens.budget(cost, self.setup.prompt_ratio, num_epochs)
        return self.tokens.plan(learner.cost, ratio, budget.flops)

    def score(self, row: Row, learner: Learner, split: str) -> None:
        """Let a row know what the true target frames of a split cost, unless learning broke off."""
        if math.isinf(row.total_nats):
            return
        learner.model.eval()
        meter = LikelihoodMeter(bin_frames=round(self.codec.frame_rate))
        for batch in self.tokens.held_out(split, self.args.prompt_ratio):
            meter.add(learner.frame_costs(batch))
        row.score(meter.overall(), meter.by_position())
        logging.info(f"{row.name}: {row.total_nats:.3f} nats a frame, {row.seconds:.0f} s")

    def settings(
        self, learner: Learner, num_epochs: int, num_steps: int, is_trial: bool
    ) -> dict[str, Any]:
        """All that a row depends on."""
        args, setup = self.args, learner.setup
        return {
            "contender": learner.settings(),
            "config": asdict(setup.config),
            "lr": learner.lr,
            "warmup_steps": setup.warmup_steps,
            "num_epochs": num_epochs,
            "seed": setup.seed,
            "dtype": setup.dtype,
            "device": setup.device.type,
            "prompt_ratio": setup.prompt_ratio,
            "max_duration": args.max_duration,
            "filter_max_duration": args.filter_max_duration,
            "limit_cuts": args.limit_cuts,
            "first_batches": self.digest,
            "codec": self.tokens.codec.fingerprint,
            "num_steps": num_steps,
            "held_out": self.digest_of_held_out("validation" if is_trial else args.split),
        }

    @cache  # noqa: B019 (a run is one object, and lasts as long as the program)
    def digest_of_held_out(self, split: str) -> str:
        return digest_of(self.tokens.held_out(split, self.args.prompt_ratio))

    def save_weights(self, learner: Learner, name: str, settings: dict[str, Any]) -> None:
        """As a checkpoint, if asked for; `AudioLM.from_checkpoint` takes AudioLM's."""
        if self.args.weights_dir is None:
            return
        data = {
            "settings": plain(settings),
            "prompt_ratio": self.args.prompt_ratio,
            "filter_min_duration": 0.0,
            "filter_max_duration": self.args.filter_max_duration,
            "codec": self.tokens.codec.to_dict(),
        }
        path = self.args.weights_dir / f"{name}.pt"
        save_checkpoint(path, learner.model, learner.checkpoint() | data)

    def restore(self, learner: Learner, name: str, settings: dict[str, Any]) -> bool:
        """Give a contender the weights that it was saved with, if they are of these settings."""
        if self.args.weights_dir is None or not (self.args.weights_dir / f"{name}.pt").exists():
            return False
        path = self.args.weights_dir / f"{name}.pt"
        checkpoint = read_checkpoint(path)
        if checkpoint["settings"] != plain(settings):
            return False
        load_weights(learner.model, checkpoint["model"], path)
        return True

    def _listening(self) -> Listening:
        args, rate = self.args, self.codec.frame_rate
        num_prompt, num_new = round(args.prompt_seconds * rate), round(args.new_seconds * rate)
        return Listening(
            excerpts=self.tokens.excerpts(args.split, num_prompt + num_new, args.num_prompts),
            num_prompt=num_prompt,
            num_samples=args.num_samples,
            first=Sampling(args.temperature, args.top_k),
            others=Sampling(args.nar_temperature),
            seed=args.seed,
        )


def learn(
    learner: Learner, batches: Iterator[CodeBatch], name: str
) -> tuple[int, bool, list[CodeBatch]]:
    """Take a step for each batch, while the loss is finite.

    Returns:
      How many cuts came by, whether the loss stayed finite, and the first batches.
    """
    num_cuts, first, loss = 0, [], torch.tensor(math.inf)
    for step, batch in enumerate(batches, start=1):
        loss = learner.learn(batch)
        num_cuts += len(batch.names)
        if step <= HASHED_BATCHES:
            first.append(batch)
        if step % LOG_INTERVAL == 0:
            logging.info(f"{name}: step {step}, epoch {batch.epoch}, loss {loss:.3f}")
            if not math.isfinite(loss):
                return num_cuts, False, first
    return num_cuts, math.isfinite(loss), first


if __name__ == "__main__":
    main()
