"""What the codec computes in each phase of its training, and what is done between them.

1. noise: an autoencoder whose latents pass unit Gaussian noise; a quantizer that learned from the
   first step on would chase an encoder that moves faster than its codebooks.
2. joint: the codebooks are filled, then encoder, decoder and codebooks learn together.
3. decoder: encoder and codebooks are frozen; the decoder learns the tokens as they will be.

A codec that is trained from other weights begins with 2, or with 3 alone: then its tokens stay.

Letters: B batch, N samples, D latent width, T frames, V vectors.
"""

import logging
import math
import time
from dataclasses import dataclass, field

import torch
from codec_run import KMEANS_STREAM, PHASES, CodecRun, make_optimizer
from torch import Tensor

from valle.codec.crops import StepSampler
from valle.codec.losses import rate_in_bits
from valle.codec.ranks import gather_rows, own_rows, same_on_all_ranks
from valle.codec.rvq import codebooks_of, fit_codebooks, refresh_averages
from valle.codec.rvq_training import SETTLED_FROM, Quantized, commitment, straight_through
from valle.data.codec import exact_cuda
from valle.utils.dist import get_world_size

NOISE_RAMP = 0.15  # share of the noise phase in which the noise grows to full
RATE_WEIGHT = 0.02  # a bit above the allowed rate


@dataclass
class Passed:
    """What came out of a pass.

    Attributes:
      sound: (B, N), whose distance to the truth is to be judged.
      others: Losses that are not of the sound, weighted.
      found: Codes, where the codebooks are to follow them.
    """

    sound: Tensor
    others: dict[str, Tensor] = field(default_factory=dict)
    found: Quantized | None = None


def run_pass(run: CodecRun, phase: str, audio: Tensor, share: float) -> Passed:
    """Send crops (B, 1, N) through the codec as the phase wants it; `share` of it is done."""
    if phase == "noise":
        return noise_pass(run, audio, share)
    return joint_pass(run, audio) if phase == "joint" else decoder_pass(run, audio)


def noise_pass(run: CodecRun, audio: Tensor, share: float) -> Passed:
    """What gets through the noise is a rate, and it is limited."""
    latents = encode(run, audio)
    everyones = (latents.shape[0] * get_world_size(), *latents.shape[1:])
    noise = own_rows(torch.randn(everyones, generator=run.generator, device=run.device))
    sound = rebuild(run, latents + min(1.0, share / NOISE_RAMP) * noise)
    excess = (rate_in_bits(latents) - run.params.rate_bits).relu()
    return Passed(sound, {"rate": RATE_WEIGHT * excess})


def joint_pass(run: CodecRun, audio: Tensor) -> Passed:
    latents = encode(run, audio)
    levels = run.quantizer.draw_levels(audio.shape[0], run.params.quantizer_drop)
    found = run.quantizer.quantize(latents.detach(), levels)
    sound = rebuild(run, straight_through(latents, found.latents))
    pull = commitment(latents, found.latents, run.latent_variance)
    return Passed(sound, {"commit": run.params.commitment_weight * pull}, found)


def decoder_pass(run: CodecRun, audio: Tensor) -> Passed:
    """Tokens are given, and computed as precisely as they are when a recording is tokenised."""
    levels = run.quantizer.draw_levels(audio.shape[0], run.params.quantizer_drop)
    with torch.no_grad(), exact_cuda():
        found = run.quantizer.quantize(run.model.encoder(audio), levels)
    return Passed(rebuild(run, found.latents))


def encode(run: CodecRun, audio: Tensor) -> Tensor:
    with run.autocast():
        return run.model.encoder(audio).float()  # (B, D, T)


def rebuild(run: CodecRun, latents: Tensor) -> Tensor:
    with run.autocast():
        return run.model.decoder(latents).float()[:, 0]  # (B, N)


def begin_phase(run: CodecRun, phase: str) -> None:
    """Make ready what the phase learns on: codebooks and weights."""
    if run.params.train == "decoder":
        return  # they are given
    if phase == "joint":
        begin_joint(run)
    elif phase == "decoder":
        # the averaged encoder is final: its codebooks are fitted to it once more
        logging.info("k-means of the codebooks of the averaged encoder")
        latents = collect_latents(run, run.average, PHASES.index(phase))
        fit_codebooks(codebooks_of(run.average), latents, kmeans_generator(run), 5, restart=False)
        same_on_all_ranks(run.average)  # sums on a GPU are not the same twice
        run.model.load_state_dict(run.average.state_dict())


def begin_joint(run: CodecRun) -> None:
    """Fill the codebooks of a new codec; of one that has codes, count how they are used."""
    begin = time.monotonic()
    latents = collect_latents(run, run.model, PHASES.index("joint"))
    books = codebooks_of(run.model)
    if run.params.init_from is None:
        fit_codebooks(books, latents, kmeans_generator(run), restart=True)
        what = "k-means of the codebooks"
    else:
        refresh_averages(books, latents)
        run.quantizer.num_updates = SETTLED_FROM  # short averages are for codes that still jump
        what = "use of the codes counted"
    same_on_all_ranks(run.model)
    run.latent_variance = latents.var()
    follow(run, 1.0)
    logging.info(f"{what}: {time.monotonic() - begin:.1f} s")


def kmeans_generator(run: CodecRun) -> torch.Generator:
    """One of its own, that a run which goes on need not know of."""
    return torch.Generator(run.device).manual_seed(run.params.train_seed + 1)


@torch.no_grad()
def collect_latents(run: CodecRun, model: torch.nn.Module, number: int) -> Tensor:
    """What a model's encoder makes of crops: (V, D), at least --kmeans-latents rows."""
    crops = run.crops("joint", KMEANS_STREAM + number)
    frames = crops.num_samples // run.model.config.hop_length
    steps = math.ceil(run.params.kmeans_latents / (frames * run.params.batch_size))
    rows = []
    sampler = StepSampler(0, steps, run.params.batch_size, run.rank, get_world_size())
    for numbers in sampler:
        run.begins("encoding for k-means", waits=True)
        audio = torch.stack([crops[n] for n in numbers]).to(run.device)
        latents = model.encoder(audio)  # type: ignore[operator]
        rows.append(gather_rows(latents.transpose(1, 2).flatten(0, 1)))
    found = torch.cat(rows)
    logging.info(f"latents: variance {found.var():.3g}, largest {found.abs().max():.3g}")
    usable = found.isfinite().all(dim=1)
    if not usable.all():
        # one such row would spread over all centres
        logging.warning(f"k-means leaves out {int((~usable).sum())} latents that are not finite")
    return found[usable]


def learning_module(run: CodecRun, phase: str) -> torch.nn.Module:
    """The part of the codec that learns in a phase."""
    return run.model.decoder if phase == "decoder" else run.model


def use_optimizer(run: CodecRun, phase: str) -> None:
    """The optimizer of a phase; noise and joint share one."""
    if phase == "decoder" or "codec" not in run.optimizers:
        run.optimizers["codec"] = make_optimizer(learning_module(run, phase), run.params.lr)


@torch.no_grad()
def follow(run: CodecRun, weight: float) -> None:
    """Move the averaged weights and codebooks towards the newest."""
    pairs = [
        (list(run.average.parameters()), list(run.model.parameters())),
        (
            [book.embed for book in codebooks_of(run.average)],
            [book.embed for book in codebooks_of(run.model)],
        ),
    ]
    for kept, newest in pairs:
        torch._foreach_lerp_(kept, newest, weight)


def averaging(run: CodecRun) -> float:
    """Weight of the newest weights in the average; larger while a phase has had few steps."""
    return max(1 - run.params.weight_average, 9 / (10 + run.params.phase_step))
