"""Sound files -> codec tokens -> batches. The codec is loaded only where one is used."""

from valle.data.codec import Codec, CodecInfo, load_audio
from valle.data.codec_stream import StreamDecoder
from valle.data.collation import check_codes, collate_codes
from valle.data.datamodule import Survey, TokenDataModule
from valle.data.dataset import TokenDataset
from valle.data.manifest import codec_of, cut_codes, load_cuts
from valle.data.prompt import (
    GapSplit,
    PromptSplit,
    draw_gaps,
    middle_gaps,
    split_gaps,
    split_prompt,
)
from valle.data.sampler import consumed_state
from valle.data.sound_writer import GrowingWav, RawPCM, ReaderGone

__all__ = [
    "Codec",
    "CodecInfo",
    "GapSplit",
    "GrowingWav",
    "PromptSplit",
    "RawPCM",
    "ReaderGone",
    "StreamDecoder",
    "Survey",
    "TokenDataModule",
    "TokenDataset",
    "check_codes",
    "codec_of",
    "collate_codes",
    "consumed_state",
    "cut_codes",
    "draw_gaps",
    "load_audio",
    "load_cuts",
    "middle_gaps",
    "split_gaps",
    "split_prompt",
]
