"""What codec training says while it runs: a bar on a terminal, and a line every now and then.

Letters: C clips, N samples, Q quantizers, K codebook size.
"""

import math
import time
from typing import Any

import torch
from codec_metrics import compare, decode_clips, encode_clips
from codec_quantizer import perplexity
from torch import Tensor
from tqdm import tqdm

PACE_AT_STEPS = (20, 100)  # told twice, since the first steps include one-time costs


class PhaseReport:
    """Says how one phase is doing.

    Args:
        name: Of the phase.
        steps: Planned ones.
        seconds: Time that is allotted to the phase.
        log_every: Steps from one line of losses to the next.
    """

    def __init__(self, name: str, steps: int, seconds: float, log_every: int) -> None:
        self.name, self.steps, self.seconds, self.log_every = name, steps, seconds, log_every
        self.begin = self.since = time.monotonic()
        self.since_step = 0
        self.sums: Tensor | None = None
        self.just_listed = False
        self.bar = tqdm(total=steps, desc=name, disable=None, leave=False)

    def after_step(self, step: int, terms: dict[str, Tensor], lr: float, last: bool) -> None:
        """Add the loss terms of a step, each 0-dimensional, and list their means when it is time.

        Raises:
            ValueError: If a mean is no finite number; it names the phase, step and terms.
        """
        values = torch.stack(list(terms.values())).detach()
        self.sums = values if self.sums is None else self.sums + values
        self.bar.update(1)
        if step in PACE_AT_STEPS:
            self._pace(step, values.device)
        self.just_listed = last or step % self.log_every == 0
        if self.just_listed:
            self._list_terms(step, list(terms), lr)

    def _pace(self, step: int, device: torch.device) -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        pace = (time.monotonic() - self.begin) / step
        tqdm.write(
            f"{self.name} step {step}: {1000 * pace:.1f} ms a step on average, "
            f"{self.steps} steps would take {pace * self.steps:.0f} s, "
            f"{self.seconds:.0f} s are allotted"
        )

    def _list_terms(self, step: int, names: list[str], lr: float) -> None:
        assert self.sums is not None
        count = step - self.since_step
        means = (self.sums / count).tolist()  # here alone the loop waits for the device
        if not all(math.isfinite(mean) for mean in means):
            found = dict(zip(names, means, strict=True))
            raise ValueError(
                f"{self.name} step {step}: loss is no number any more, {found}; "
                "lower --lr, or use --precision float32"
            )
        listed = " ".join(f"{n} {m:.4f}" for n, m in zip(names, means, strict=True))
        pace = (time.monotonic() - self.since) / count
        line = f"{self.name} step {step}/{self.steps}: {listed} loss {sum(means):.4f}"
        tqdm.write(f"{line} lr {lr:.2e} {1000 * pace:.1f} ms/step")
        self.sums, self.since, self.since_step = None, time.monotonic(), step

    def usage(self, step: int, counts: Tensor) -> None:
        """Say how many codes were used since the last line, from counts (Q, K)."""
        used = "/".join(str(n) for n in (counts > 0).sum(dim=1).tolist())
        spread = "/".join(f"{p:.0f}" for p in perplexity(counts).tolist())
        tqdm.write(f"{self.name} step {step}: codes used {used} perplexity {spread}")

    def held_out(self, step: int, model: Any, clips: Tensor) -> None:
        """Score a model on held-out clips (C, 1, N); without its codes in the noise phase."""
        begin = time.monotonic()
        sound = rebuild_clips(model, clips, through_codes=self.name != "noise")
        scores = compare(sound, clips[:, 0], model.config.sampling_rate)
        listed = " ".join(f"{name} {value:.3f}" for name, value in scores.items())
        tqdm.write(f"{self.name} step {step} held out: {listed}")
        self.since += time.monotonic() - begin

    def close(self) -> None:
        self.bar.close()


@torch.no_grad()
def rebuild_clips(model: Any, clips: Tensor, through_codes: bool) -> Tensor:
    """Sound (C, N) that a model makes of clips (C, 1, N), with or without its quantizer."""
    if through_codes:
        return decode_clips(model, encode_clips(model, clips), clips.shape[2])
    return model.decoder(model.encoder(clips))[:, 0, : clips.shape[2]]
