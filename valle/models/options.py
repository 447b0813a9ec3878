"""What can be asked of a generation. Everything is counted in frames."""

from dataclasses import dataclass
from functools import cached_property

from valle.modules.sampling import GREEDY, Sampling


@dataclass(frozen=True)
class Length:
    """When a row ends: at EOS or after `max_new_frames`, whichever is first.

    Attributes:
      max_new_frames: no row grows longer.
      min_new_frames: EOS cannot be drawn before.
      ignore_eos: EOS cannot be drawn at all.
    """

    max_new_frames: int
    min_new_frames: int = 0
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.min_new_frames <= self.max_new_frames:
            raise ValueError(
                "expected 0 <= min_new_tokens <= max_new_tokens, got "
                f"{self.min_new_frames} and {self.max_new_frames}"
            )

    @property
    def first_end(self) -> int:
        """How many new frames a row must have before it may end."""
        return self.max_new_frames + 1 if self.ignore_eos else self.min_new_frames


@dataclass(frozen=True)
class Windows:
    """How much of a long piece is read and finished at a time; 0 is always "no bound".

    The AR half reads at most `window` frames. When it has no room for another chunk, its oldest
    frames go, so that `window - stride` remain, and it reads these again; as the prompt that they
    now are, with the codes of all quantizers. A prompt without room for a stride after it is read
    from its end in the same way.

    The NAR half completes `chunk` frames at a time, from up to `nar_context` complete frames before
    them and quantizer 1 of up to `lookahead` frames after them. So a piece of one chunk, whose
    prompt is within `nar_context`, is completed by one full pass; of a longer piece each chunk is
    the full pass over just those frames.

    Attributes:
      window: most frames the AR half reads, prompt included.
      stride: frames by which the window moves on; default half of it.
      chunk: frames that are completed and given out at once; default the most that fit.
      lookahead: frames after a chunk that the NAR half hears before completing it.
      nar_context: most frames before a chunk that it hears; default all that the AR half keeps.
    """

    window: int = 0
    stride: int = 0
    chunk: int = 0
    lookahead: int = 0
    nar_context: int = 0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 0:
                raise ValueError(f"{name} must be 0 or more frames, got {value}")
        if not self.window:
            if self.stride:
                raise ValueError(f"stride {self.stride} moves a window, but window is 0 (all)")
            return
        if not self.stride_frames < self.window:
            raise ValueError(f"stride {self.stride} must be less than window {self.window}")
        if not self.window - self.stride_frames > max(self.lookahead, 1):
            raise ValueError(
                f"window {self.window} less stride {self.stride_frames} must leave more than the "
                f"lookahead of {self.lookahead} frames to go on from"
            )
        if self.chunk + self.lookahead > self.stride_frames or self.chunk_frames < 1:
            raise ValueError(
                f"chunk {self.chunk} and lookahead {self.lookahead} must fit into the stride of "
                f"{self.stride_frames} frames (window {self.window})"
            )

    @property
    def stride_frames(self) -> int:
        return self.stride or self.window // 2

    @property
    def chunk_frames(self) -> int:
        """Frames completed at once; 0 is all there will be."""
        return self.chunk or max(self.stride_frames - self.lookahead, 0)

    @property
    def kept(self) -> int:
        """Complete frames that are still needed after a chunk; 0 is all."""
        if not self.window:
            return self.nar_context
        return max(self.nar_context, self.window - self.stride_frames)


@dataclass(frozen=True)
class GenerationOptions:
    """The arguments of `AudioLM.inference` and `AudioLM.stream`.

    Attributes:
      max_new_tokens: new frames at most.
      min_new_tokens: new frames at least.
      ignore_eos: always make `max_new_tokens` frames.
      temperature: of quantizer 1; 0 is greedy.
      top_k: draw quantizer 1 among the k likeliest codes; 0 among all.
      top_p: draw quantizer 1 among the likeliest codes that make up this probability.
      min_p: draw quantizer 1 among codes at least so many times as probable as the likeliest.
      repetition_window: draw quantizer 1 again where it makes up more than
        `repetition_threshold` of so many frames before it (`Sampling` tells the whole rule).
      repetition_threshold: a share.
      nar_temperature: of quantizers 2 to Q; 0 is greedy.
      num_samples: continuations of each prompt; they share its prefill.
      window: the AR half reads at most so many frames; 0: all.
      stride: and moves on by so many when they are full; 0: half a window.
      chunk: frames completed by the NAR half at a time; 0: all, or what the window allows.
      lookahead: frames after a chunk that the NAR half hears before completing it.
      nar_context: complete frames before a chunk that the NAR half hears; 0: all that are kept.
    """

    max_new_tokens: int = 500
    min_new_tokens: int = Length.min_new_frames
    ignore_eos: bool = Length.ignore_eos
    temperature: float = Sampling.temperature
    top_k: int = Sampling.top_k
    top_p: float = Sampling.top_p
    min_p: float = Sampling.min_p
    repetition_window: int = Sampling.repetition_window
    repetition_threshold: float = Sampling.repetition_threshold
    nar_temperature: float = GREEDY.temperature
    num_samples: int = 1
    window: int = Windows.window
    stride: int = Windows.stride
    chunk: int = Windows.chunk
    lookahead: int = Windows.lookahead
    nar_context: int = Windows.nar_context

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise ValueError(f"num_samples must be 1 or more, got {self.num_samples}")
        # each part checks itself, now and not in the midst of a generation
        _ = self.length, self.ar_sampling, self.nar_sampling, self.windows

    @cached_property
    def length(self) -> Length:
        return Length(self.max_new_tokens, self.min_new_tokens, self.ignore_eos)

    @cached_property
    def ar_sampling(self) -> Sampling:
        return Sampling(
            self.temperature,
            self.top_k,
            self.top_p,
            self.min_p,
            self.repetition_window,
            self.repetition_threshold,
        )

    @cached_property
    def nar_sampling(self) -> Sampling:
        return Sampling(self.nar_temperature)

    @cached_property
    def windows(self) -> Windows:
        return Windows(self.window, self.stride, self.chunk, self.lookahead, self.nar_context)
