"""How others generate: a whole pass for every frame, and the MusicGen decoder of transformers.

B rows of a batch, S prompt frames, T new frames so far, Q quantizers, V codebook size.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from contenders import Cached, Clock, Contender, Phases, first_context, lengths_between, num_bytes
from measure import seconds_of
from torch import Tensor

from valle.models import AudioLM
from valle.models.ar import ARDecoder
from valle.models.config import AudioLMConfig
from valle.models.engine import Engine
from valle.models.generation import generate_nar
from valle.models.nar import NARDecoder
from valle.modules.sampling import GREEDY, Sampling, sample


class NoCache(Contender):
    """What the VALL-E family does: the whole sequence goes through the layers for every frame.

    The model is ours, so that nothing but the cache makes the difference.

    Args:
      model: in eval mode.
      dtype: "float32" or "bfloat16".
      sampling: how quantizer 1 is drawn.
      num_lengths: time a frame at so many lengths, and sum up what all frames would take, taking
        the cost between two of them as a straight line. 0: really make every frame.
    """

    name = "ours, no cache"

    def __init__(self, model: AudioLM, dtype: str, sampling: Sampling, num_lengths: int) -> None:
        engine = Engine(model, dtype, fused=False)
        self.ar, self.nar = engine.ar, engine.nar
        self.dtype, self.sampling, self.num_lengths = dtype, sampling, num_lengths
        self.repeatable = num_lengths > 0

    def generate(self, prompt: Tensor, num_frames: int) -> Phases:
        if self.num_lengths:
            return self._estimate(prompt, num_frames)
        clock = Clock(prompt.device, num_frames)
        codes = prompt[:, :0, 0]
        for count in range(1, num_frames + 1):
            logits = next_logits(self.ar, prompt, codes)
            logits[:, self.ar.eos_id] = -torch.inf
            drawn = sample(logits, self.sampling, torch.rand(len(prompt), device=prompt.device))
            codes = torch.cat([codes, drawn[:, None]], dim=1)
            clock.frame_done(count)
        other_quantizers(self.nar, prompt, codes)
        return clock.phases()

    def _estimate(self, prompt: Tensor, num_frames: int) -> Phases:
        device = prompt.device
        counts = lengths_between(0, num_frames - 1, self.num_lengths)
        codes = prompt.new_zeros(len(prompt), num_frames)
        seconds = [
            seconds_of(partial(next_logits, self.ar, prompt, codes[:, :n]), device) for n in counts
        ]
        of_all = np.interp(np.arange(num_frames), counts, seconds)
        nar = seconds_of(partial(other_quantizers, self.nar, prompt, codes), device)
        return Phases(float(of_all[0]), float(of_all[1:].sum()), nar, len(counts))


def next_logits(ar: ARDecoder, prompt: Tensor, codes: Tensor) -> Tensor:
    """(B, S, Q) prompts and (B, T) codes of quantizer 1 to (B, V + 1) logits, nothing reused."""
    B, T = codes.shape
    lens = torch.full((2, B), prompt.shape[1], device=prompt.device)
    lens[1] = T
    condition, _ = ar.read(prompt, lens[0])
    return ar(condition, codes, lens[1])[:, -1].float()


def other_quantizers(nar: NARDecoder, prompt: Tensor, codes: Tensor) -> Tensor:
    """(B, S, Q) prompts and (B, T) codes of quantizer 1 to (B, T, Q) codes, greedily."""
    B, T = codes.shape
    lens = torch.full((2, B), prompt.shape[1], device=prompt.device)
    lens[1] = T
    uniforms = torch.zeros(B, T, prompt.shape[2], device=prompt.device)  # greedy needs no chance
    return generate_nar(nar, *nar.read(prompt, lens[0]), codes, lens[1], GREEDY, uniforms)


class MusicGen(Cached):
    """The decoder of MusicGen in transformers, of our width, depth and heads, with random weights.

    Its frames carry all codebooks at once, so there is no second half. It is given all that speaks
    for it: no text to attend to, no guidance (which would double the batch), and no delay between
    codebooks (which would add a frame for each but one). Its `forward` is called for each frame
    and a sample is drawn from each codebook as ours is drawn.

    Args:
      config: ours.
      dtype: "float32" or "bfloat16".
      device: where it runs.
      sampling: how each codebook is drawn.
      static: give it transformers' `StaticCache` in the place of its own growing one.
    """

    def __init__(
        self,
        config: AudioLMConfig,
        dtype: str,
        device: torch.device,
        sampling: Sampling,
        static: bool,
    ) -> None:
        self.model = musicgen_decoder(config, dtype, device)
        self.dtype, self.sampling, self.static = dtype, sampling, static
        self.name = "MusicGen, static cache" if static else "MusicGen"
        self._num_codebooks = config.num_quantizers
        weight = self.model.lm_heads[0].weight
        self._frame_bytes = 2 * config.num_layers * config.d_model * weight.element_size()

    def frame_step(self, batch_size: int, context: int, num_frames: int) -> Callable[[], None]:
        first = first_context(context, num_frames)
        device = self.model.device
        codes = torch.zeros(batch_size * self._num_codebooks, first, dtype=torch.long).to(device)
        _, cache = self.read(codes, self.new_cache(first + num_frames))

        def step() -> None:
            self.read(codes[:, :1], cache)

        return step

    def bytes_per_frame(self, batch_size: int, context: int) -> int:
        decoder = self.model.model.decoder
        weights = num_bytes((decoder.layers, decoder.layer_norm, self.model.lm_heads))
        return weights + self.cache_bytes(batch_size, context)

    def cache_bytes(self, batch_size: int, context: int) -> int:
        return batch_size * context * self._frame_bytes

    def generate(self, prompt: Tensor, num_frames: int) -> Phases:
        clock = Clock(prompt.device, num_frames)
        codes = prompt.transpose(1, 2).flatten(0, 1)  # (B Q, S), as it takes them
        cache = self.new_cache(codes.shape[1] + num_frames)
        for count in range(1, num_frames + 1):
            logits, cache = self.read(codes, cache)
            uniforms = torch.rand(len(codes), device=codes.device)
            codes = sample(logits, self.sampling, uniforms)[:, None]
            clock.frame_done(count)
        return clock.phases()._replace(nar=0.0)

    def read(self, codes: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """(B Q, L) codes after what a cache holds, to (B Q, V) logits and the cache."""
        out = self.model(input_ids=codes, past_key_values=cache, use_cache=True)
        return out.logits[:, -1].float(), out.past_key_values

    def new_cache(self, max_len: int) -> Any:
        """A cache for so many frames; None lets the model make its own."""
        if not self.static:
            return None
        from transformers import StaticCache

        return StaticCache(config=self.model.config, max_cache_len=max_len)


@lru_cache
def musicgen_decoder(config: AudioLMConfig, dtype: str, device: torch.device) -> Any:
    """A `MusicgenForCausalLM` of our size with random weights, in eval mode, one for each type."""
    musicgen = import_musicgen()
    theirs = musicgen.MusicgenDecoderConfig(
        vocab_size=config.num_audio_tokens,
        hidden_size=config.d_model,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.nhead,
        ffn_dim=4 * config.d_model,
        num_codebooks=config.num_quantizers,
        pad_token_id=config.num_audio_tokens,
        bos_token_id=config.num_audio_tokens,
    )
    model = musicgen.MusicgenForCausalLM(theirs)
    for layer in model.model.decoder.layers:
        layer.encoder_attn = None  # there is no text: it should neither be read nor take memory
    return model.eval().to(device, getattr(torch, dtype))


def import_musicgen() -> Any:
    """The module of transformers that has the decoder and its config.

    Raises:
      ImportError: transformers is missing; with the line that installs it.
    """
    try:
        from transformers.models.musicgen import modeling_musicgen
    except ImportError as error:
        raise ImportError(
            "MusicGen's decoder is in transformers, which is not installed: "
            "pip install 'transformers>=5.0', or go without it: --skip musicgen"
        ) from error
    return modeling_musicgen
