"""What a model is made of, in numbers: checked once, saved with the weights."""

from dataclasses import dataclass

from valle.modules.embedding import POSITIONS
from valle.utils.vocabulary import CONDITIONS


@dataclass(frozen=True)
class CodecLMConfig:
    """What both models have in common.

    Attributes:
      d_model: width of the AR half.
      nhead: attention heads of the AR half.
      num_layers: layers of the AR half.
      norm_first: layer norms before attention and feed-forward, not after.
      add_prenet: a bottleneck between embeddings and transformer.
      num_quantizers: Q of the codec.
      nar_scale_factor: width, heads and layers of the NAR half, as a multiple of the AR half's.
      prepend_bos: a BOS frame before the target, which allows an empty prompt.
      num_audio_tokens: V, the codebook size of the codec.
      dropout: of embeddings and residuals.
      positions: "rotary", turning queries and keys, or "sine", added to embeddings, as in VALL-E
        and in checkpoints that do not name them.
    """

    d_model: int = 1024
    nhead: int = 16
    num_layers: int = 12
    norm_first: bool = True
    add_prenet: bool = False
    num_quantizers: int = 4
    nar_scale_factor: float = 1.0
    prepend_bos: bool = False
    num_audio_tokens: int = 2048
    dropout: float = 0.1
    positions: str = "rotary"

    def __post_init__(self) -> None:
        for name in ("d_model", "nhead", "num_layers", "nar_scale_factor", "num_audio_tokens"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.num_quantizers < 2:
            raise ValueError(
                f"num_quantizers must be at least 2 (one for each half), got {self.num_quantizers}"
            )
        if self.positions not in POSITIONS:
            raise ValueError(f"positions must be {' or '.join(POSITIONS)}, got {self.positions}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        _check_heads("d_model", self.d_model, "nhead", self.nhead)
        scale = f" x nar_scale_factor {self.nar_scale_factor}"
        _check_heads("d_model" + scale, self.nar_d_model, "nhead" + scale, self.nar_nhead)
        if self.positions == "rotary":
            _check_turns("d_model", self.d_model, "nhead", self.nhead)
            _check_turns("d_model" + scale, self.nar_d_model, "nhead" + scale, self.nar_nhead)
        if self.nar_num_layers < 1:
            raise ValueError(f"num_layers{scale} leaves the NAR half no layer")

    @property
    def nar_d_model(self) -> int:
        return int(self.d_model * self.nar_scale_factor)

    @property
    def nar_nhead(self) -> int:
        return int(self.nhead * self.nar_scale_factor)

    @property
    def nar_num_layers(self) -> int:
        return int(self.num_layers * self.nar_scale_factor)


@dataclass(frozen=True)
class AudioLMConfig(CodecLMConfig):
    """All that rebuilds an AudioLM: `AudioLM(**asdict(config))`.

    Attributes:
      ahead_frames: what the AR half reads of what follows a gap before it fills it; 0: the model
        only continues.
    """

    ahead_frames: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ahead_frames < 0:
            raise ValueError(f"ahead_frames must be 0 or more, got {self.ahead_frames}")

    @property
    def condition(self) -> None:
        """What is read beside codes: nothing."""
        return None

    @property
    def shortest_prompt(self) -> int:
        """Frames that a prompt must have: what predicts the first new frame needs a place."""
        return 0 if self.prepend_bos else 1

    @property
    def infills(self) -> bool:
        """Whether the model has been made to fill gaps."""
        return self.ahead_frames > 0


NO_PROMPT, OWN_BEGINNING, ELSEWHERE = 0, 1, 4
PREFIX_MODES = (NO_PROMPT, OWN_BEGINNING, ELSEWHERE)
PREFIX_SEC = 3.0


@dataclass(frozen=True)
class VALLEConfig(CodecLMConfig):
    """All that rebuilds a VALLE: `VALLE(**asdict(config))`.

    Attributes:
      condition: "text" or "midi".
      num_text_tokens: how many symbols there are, the special ones included; no matter for MIDI.
      prefix_mode: what the NAR half reads of a recording whole, all quantizers. 0: nothing. 1: the
        beginning of the target, of a length that is drawn in training. 4: a prompt from elsewhere
        in the same recording. The numbers are those of the VALL-E recipes.
      frame_rate: of the codec, frames a second; it tells where in time MIDI events are.
      longest_condition: a condition of more symbols or events is refused.
    """

    num_quantizers: int = 8
    condition: str = "text"
    num_text_tokens: int = 512
    prefix_mode: int = OWN_BEGINNING
    frame_rate: float = 50.0
    longest_condition: int = 4096

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.condition not in CONDITIONS:
            raise ValueError(f"condition must be {' or '.join(CONDITIONS)}, got {self.condition}")
        if self.prefix_mode not in PREFIX_MODES:
            modes = ", ".join(map(str, PREFIX_MODES))
            raise ValueError(f"prefix_mode must be one of {modes}, got {self.prefix_mode}")
        for name in ("num_text_tokens", "frame_rate", "longest_condition"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")

    @property
    def longest_prefix(self) -> int:
        """Frames of the longest prefix of a target that the NAR half reads whole, in training."""
        return int(PREFIX_SEC * self.frame_rate)

    @property
    def shortest_prompt(self) -> int:
        """Frames that a prompt must have: none, the condition predicts the first new frame."""
        return 0

    @property
    def infills(self) -> bool:
        """Whether the model has been made to fill gaps: no."""
        return False


def _check_heads(width_name: str, width: int, heads_name: str, heads: int) -> None:
    if heads < 1 or width % heads or width % 2:
        raise ValueError(
            f"{width_name} must be even and divisible by {heads_name}, got {width} and {heads}"
        )


def _check_turns(width_name: str, width: int, heads_name: str, heads: int) -> None:
    if width // heads % 2:
        raise ValueError(
            f"rotary positions turn pairs: {width_name} / {heads_name} must be even, got "
            f'{width} / {heads}; take other sizes, or positions "sine"'
        )
