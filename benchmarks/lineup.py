"""Who takes part: all contenders of one size, on one device, with one way of sampling."""

import argparse
from collections.abc import Callable
from dataclasses import asdict

import torch
from contenders import Contender, Ours
from peers import MusicGen, NoCache
from torch import Tensor

from valle.models import AudioLM
from valle.models.config import AudioLMConfig
from valle.modules.fused_step import why_not_fused
from valle.modules.sampling import Sampling

FLOATS = ("float32", "bfloat16")
NUM_LENGTHS = 5  # at which a frame without a cache is timed


class Lineup:
    """The contenders by key, `kind/type`, each made when it is asked for.

    Args:
      args: of `generate.py`, with no default left open.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.config = AudioLMConfig(args.d_model, args.nhead, args.num_layers)
        self.sampling = Sampling(top_k=args.top_k)
        self._model: AudioLM | None = None

    @property
    def model(self) -> AudioLM:
        """Random weights, in eval mode."""
        if self._model is None:
            self._model = AudioLM(**asdict(self.config)).eval().to(self.args.device)
        return self._model

    def forget_model(self) -> None:
        """Let go of it; those who still need it hold it themselves."""
        self._model = None

    def why_not_fused(self) -> str | None:
        return why_not_fused(self.model.ar.decoder)

    def participants(self) -> list[str]:
        """Those that take part."""
        floats = [dtype for dtype in self.args.dtypes if dtype in FLOATS]
        kinds = {"ours": self.args.dtypes}
        if self.why_not_fused() is None:
            kinds["layers"] = floats
        if "no-cache" not in self.args.skip:
            kinds["no_cache"] = floats
        if "musicgen" not in self.args.skip:
            kinds |= {"musicgen": floats, "musicgen_static": floats}
        return [f"{kind}/{dtype}" for kind, dtypes in kinds.items() for dtype in dtypes]

    def make(self, key: str) -> Contender:
        kind, _, dtype = key.partition("/")
        makers: dict[str, Callable[[], Contender]] = {
            "ours": lambda: Ours(self.model, dtype, None, self.sampling),
            "layers": lambda: Ours(self.model, dtype, False, self.sampling),
            "no_cache": lambda: NoCache(self.model, dtype, self.sampling, self._num_lengths),
            "musicgen": lambda: self._musicgen(dtype, static=False),
            "musicgen_static": lambda: self._musicgen(dtype, static=True),
        }
        return makers[kind]()

    def prompt(self, batch_size: int) -> Tensor:
        """(B, S, Q) random codes."""
        shape = (batch_size, self.args.prompt_frames, self.config.num_quantizers)
        return torch.randint(self.config.num_audio_tokens, shape).to(self.args.device)

    @property
    def _num_lengths(self) -> int:
        return 0 if self.args.full_no_cache else NUM_LENGTHS

    def _musicgen(self, dtype: str, static: bool) -> MusicGen:
        return MusicGen(self.config, dtype, self.args.device, self.sampling, static)
