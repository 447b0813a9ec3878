"""One update of the codec and, where there is one, of the discriminator.

Letters: B batch, N samples.
"""

import logging
from collections.abc import Iterable

import torch
import torch.distributed as dist
from codec_passes import Passed, learning_module, run_pass
from codec_run import PHASES, CodecRun
from torch import Tensor, nn

from valle.codec.discriminator import adversarial_loss, discriminator_loss, feature_loss
from valle.codec.ranks import exchange_gradients, mean_over_ranks
from valle.utils.metrics import MetricsTracker

MAX_NORM = 1.0
ADVERSARIAL_TERMS = ("adversarial", "feature")


def train_step(run: CodecRun, phase: str, audio: Tensor, share: float) -> None:
    """Loss, backward, clip, step; a step whose numbers are not finite moves nothing.

    Args:
      run: Its metrics and outcomes tell what became of the step.
      phase: Of `codec_run.PHASES`.
      audio: (B, 1, N), this rank's crops.
      share: Of the phase that is done.
    """
    run.begins("computing the loss", waits=True)
    passed = run_pass(run, phase, audio, share)
    target = audio[:, 0]
    metrics, bad = {}, torch.zeros((), dtype=torch.bool, device=run.device)
    if run.has_adversary(phase):
        metrics["discriminator"], bad = train_discriminator(run, passed.sound.detach(), target)
    terms = judge(run, phase, passed.sound, target)
    weights = run.params.loss_weights
    loss = torch.stack([weights[n] * t for n, t in terms.items()] + [*passed.others.values()]).sum()
    backward(run, phase, terms, passed, loss)
    learning = learning_module(run, phase)
    norm, is_bad = guarded_step(run, run.optimizers["codec"], learning, loss.detach())
    if passed.found is not None:
        run.quantizer.update(passed.found, is_good=~is_bad)
    stop = torch.tensor(float(bool(run.stop.received)), device=run.device)
    outcome = torch.stack([(bad | is_bad).float(), mean_over_ranks(stop)])
    run.outcomes.put(outcome, run.params.step)
    metrics |= {"loss": loss, **terms, **passed.others, "grad_norm": norm}
    pairs = {name: (value.detach(), 1) for name, value in metrics.items()}
    run.metrics = run.metrics + MetricsTracker(pairs)


def judge(run: CodecRun, phase: str, sound: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Losses of the sound by name, not weighted."""
    terms = run.losses[phase](sound, target)
    if run.discriminator is not None and run.has_adversary(phase) and is_listened_to(run, phase):
        run.discriminator.requires_grad_(False)  # the gradient of the sound is all that is wanted
        with run.autocast():
            with torch.no_grad():
                real = run.discriminator(target)
            made = run.discriminator(sound)
        run.discriminator.requires_grad_(True)
        terms["adversarial"] = adversarial_loss(made)
        terms["feature"] = feature_loss(real, made)
    return terms


def is_listened_to(run: CodecRun, phase: str) -> bool:
    """Whether the discriminator has had its --disc-warmup steps alone."""
    first = next(p for p in PHASES if run.params.steps[p] and run.has_adversary(p))
    return phase != first or run.params.phase_step >= run.params.disc_warmup


def backward(
    run: CodecRun, phase: str, terms: dict[str, Tensor], passed: Passed, loss: Tensor
) -> None:
    """Gradients of everything that learns, from this rank's crops."""
    run.begins("computing gradients", waits=True)
    run.optimizers["codec"].zero_grad(set_to_none=True)
    balanced = run.params.balancer == "always" or (
        run.params.balancer == "auto" and run.has_adversary(phase)
    )
    if balanced:
        gradient = run.balancer.gradient(terms, passed.sound)
        roots = [passed.sound, *passed.others.values()]
        torch.autograd.backward(roots, [gradient, *([None] * len(passed.others))])
    else:
        loss.backward()


def train_discriminator(run: CodecRun, sound: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """One update of the discriminator; its loss, (), and whether the update was left out, ()."""
    assert run.discriminator is not None
    optimizer = run.optimizers["discriminator"]
    optimizer.zero_grad(set_to_none=True)
    with run.autocast():
        loss = discriminator_loss(run.discriminator(target), run.discriminator(sound))
    loss.backward()
    _, bad = guarded_step(run, optimizer, run.discriminator, loss.detach())
    return loss.detach(), bad


def guarded_step(
    run: CodecRun, optimizer: torch.optim.Optimizer, module: nn.Module, loss: Tensor
) -> tuple[Tensor, Tensor]:
    """Exchange, clip and step, unless the loss or a gradient is not finite.

    Returns:
      The gradient's norm, (), and whether the step was left out, () bool; nobody has waited.
    """
    parameters = [p for p in module.parameters() if p.grad is not None]
    run.begins("exchanging gradients", waits=True)
    exchange_gradients(parameters)
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    bad = anywhere(run, ~loss.isfinite() | ~norm.isfinite())
    # fused optimizers take it as a GradScaler would give it, and no host has to know
    optimizer.found_inf = bad.float()  # type: ignore[attr-defined]
    torch.nn.utils.clip_grads_with_norm_(parameters, MAX_NORM, norm)
    optimizer.step()
    return norm, bad


def anywhere(run: CodecRun, flag: Tensor) -> Tensor:
    """Whether a flag () is up on some rank."""
    if run.params.world_size == 1:
        return flag
    number = flag.float()
    dist.all_reduce(number, dist.ReduceOp.MAX)
    return number > 0


def review(run: CodecRun, all_of_them: bool = False) -> None:
    """Count and log skipped steps, as far as it is known which they are.

    Raises:
      ValueError: Too many in a row were skipped.
    """
    params = run.params
    known: Iterable = run.outcomes.all() if all_of_them else run.outcomes.ready()
    for (bad, stop), step in known:
        run.must_stop = run.must_stop or stop > 0
        params.skipped_in_row = params.skipped_in_row + 1 if bad else 0
        if not bad:
            continue
        params.num_skipped += 1
        logging.warning(
            f"Skipped step {step + 1}: loss or gradient was not finite; {params.num_skipped} "
            f"skipped so far, {params.skipped_in_row} in a row"
        )
        if params.skipped_in_row >= params.max_skipped_steps:
            raise ValueError(
                f"the loss or gradient was not finite in {params.skipped_in_row} steps in a row "
                "(--max-skipped-steps); the weights are those from before. Lower --lr, or try "
                "--dtype float32"
            )
