#!/usr/bin/env python3
"""Fill gaps in sound files with an AudioLM that was trained for it (--infill-prob).

Usage, a gap from 3.0 to 5.5 s in one or several files:

  python3 egs/atepp/bin/infill_audiolm.py --checkpoint exp/audio-lm/best-valid-loss.pt \
      --audio-files a.wav b.flac --gap 3.0:5.5 --output-dir infill

and between two recordings, of which the second is to follow the first after 2.5 s:

  python3 egs/atepp/bin/infill_audiolm.py --checkpoint exp/audio-lm/best-valid-loss.pt \
      --before a.wav --after b.wav --gap-duration 2.5 --output-dir infill

What a file holds in its gap is never heard. For each gap three files appear: `NAME_full.wav`, all
decoded together; `NAME_gap.wav`, the gap of it alone; and `NAME_spliced.wav`, that gap within the
recording as it was, cross-faded over a frame on either side. All are mono, at the codec's rate.
"""

import argparse
import logging
import math
from pathlib import Path
from typing import Any, NamedTuple

import soundfile
import torch
from generation_flags import (
    add_sampling_arguments,
    add_subject_arguments,
    load_codec,
    refuse_other_model,
    sampling_options,
)
from generation_rows import different_names, row_batches, sample_names
from infer_output import Meter
from torch import Tensor

from valle.data import Codec, collate_codes
from valle.data.audio import read_mono, resample
from valle.models import AudioLM, Engine
from valle.models.checks import check_infills
from valle.models.engine import infill_options
from valle.utils.checkpoint import read_checkpoint
from valle.utils.cli import flag_of
from valle.utils.dist import choose_device, choose_dtype
from valle.utils.files import written_whole


class GapIn(NamedTuple):
    """A gap to fill: sound (N,) before and after it at the codec's rate, codes (T, Q) of both.

    The two sides are encoded by themselves, so that nothing of what may lie in the gap is heard.
    """

    name: str
    sounds: tuple[Tensor, Tensor]
    codes: tuple[Tensor, Tensor]
    num_frames: int


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add_subject_arguments(add)
    add("--audio-files", type=Path, nargs="*", default=[], help="sound files with a gap")
    add("--gap", type=span, help="START:STOP in seconds, of all --audio-files")
    add("--before", type=Path, nargs="*", default=[], help="sound files before gaps")
    add("--after", type=Path, nargs="*", default=[], help="as many, after them")
    add("--gap-duration", type=float, help="seconds between --before and --after")
    add(
        "--window",
        type=float,
        help="seconds that are read at most, the gap and what is nearest to it; default: the "
        "longest cut that the model may have been trained on; 0: everything",
    )
    add("--num-samples", type=int, default=1, help="fillings of each gap")
    add("--output-dir", type=Path, default=Path("infill/demo"))
    add("--batch-size", type=int, default=8, help="gaps at a time; changes no sample on a CPU")
    add_sampling_arguments(parser)
    return parser


def span(text: str) -> tuple[float, float]:
    """START:STOP for argparse, which adds the name of the flag to the error."""
    try:
        start, stop = map(float, text.split(":"))
    except ValueError:
        start = stop = math.nan
    if not 0 <= start < stop < math.inf:
        raise argparse.ArgumentTypeError(
            f"expected START:STOP in seconds, from 0 and in this order, as 3.0:5.5, got {text}"
        )
    return start, stop


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse what does not fit together, before anything is read."""
    if not args.audio_files and not args.before:
        raise ValueError(
            "nothing to do: give --audio-files FILE... with --gap START:STOP, or --before FILE... "
            "and --after FILE... with --gap-duration SECONDS"
        )
    if bool(args.audio_files) != (args.gap is not None):
        raise ValueError("--audio-files and --gap START:STOP go together: give both")
    if len(args.before) != len(args.after):
        raise ValueError(
            f"--before names {len(args.before)} files and --after {len(args.after)}: give as many"
        )
    if bool(args.before) != (args.gap_duration is not None):
        raise ValueError("--before and --after need --gap-duration SECONDS, and it needs them")
    if args.gap_duration is not None and not 0 < args.gap_duration < math.inf:
        raise ValueError(f"--gap-duration must be above 0 s and finite, got {args.gap_duration:g}")
    if args.window is not None and not 0 <= args.window < math.inf:
        raise ValueError(f"--window must be 0 s (everything) or more, got {args.window:g}")
    for name in ("batch_size", "num_samples"):
        if getattr(args, name) < 1:
            raise ValueError(f"{flag_of(name)} must be 1 or more, got {getattr(args, name)}")


def read_gaps(args: argparse.Namespace, codec: Codec) -> list[GapIn]:
    """All gaps, in the order of the flags."""
    stems = [path.stem for path in (*args.audio_files, *args.before)]
    names = different_names(stems)
    gaps = [gap_within(path, args.gap, codec) for path in args.audio_files]
    for before, after in zip(args.before, args.after, strict=True):
        num_frames = round(args.gap_duration * codec.frame_rate)
        gaps.append(
            encode_sides(read_sound(before, codec), num_frames, read_sound(after, codec), codec)
        )
    return [gap._replace(name=name) for gap, name in zip(gaps, names, strict=True)]


def gap_within(path: Path, gap: tuple[float, float], codec: Codec) -> GapIn:
    """The gap of one file, at the frames nearest to its times in seconds.

    Raises:
      ValueError: it does not lie within the file.
    """
    sound = read_sound(path, codec)
    first, last = (round(sec * codec.frame_rate) for sec in gap)
    seconds = len(sound) / codec.sampling_rate
    if last * codec.hop_length >= len(sound):
        raise ValueError(
            f"--gap {gap[0]:g}:{gap[1]:g} does not end within {path}, which lasts {seconds:.2f} s: "
            "give a gap with sound on both sides (infer_audiolm.py continues a file)"
        )
    before, after = sound[: first * codec.hop_length], sound[last * codec.hop_length :]
    return encode_sides(before, last - first, after, codec)


def read_sound(path: Path, codec: Codec) -> Tensor:
    """(N,) at the codec's rate."""
    sound = read_mono(path)
    return resample(sound.samples, sound.sampling_rate, codec.sampling_rate)


def encode_sides(before: Tensor, num_frames: int, after: Tensor, codec: Codec) -> GapIn:
    """Codes of both sides, each by itself.

    What comes before the gap is cut to whole frames: less than one is lost at its beginning.
    """
    if num_frames < 1:
        raise ValueError(
            f"a gap must hold a frame of {1 / codec.frame_rate:.3g} s at least: give a longer one"
        )
    before = before[len(before) % codec.hop_length :]  # whole frames up to the gap
    if not len(before):
        raise ValueError("a gap needs a frame of sound before it: let it begin later")
    codes = tuple(codec.encode(sound, codec.sampling_rate)[0][0] for sound in (before, after))
    return GapIn("", (before, after), (codes[0], codes[1]), num_frames)


def fill_files(args: argparse.Namespace) -> None:
    check_arguments(args)
    device = choose_device(args.device)
    checkpoint = read_checkpoint(args.checkpoint)
    refuse_other_model(checkpoint, args.checkpoint, AudioLM)
    model = AudioLM.from_checkpoint(args.checkpoint, device, args.averaged)
    check_infills(model.config)
    codec = load_codec(args.codec, checkpoint, args.checkpoint, device, model.config.num_quantizers)
    gaps = read_gaps(args, codec)
    options = sampling_options(args)
    longest = max(gap.num_frames for gap in gaps)
    infill_options(longest, options)  # checks itself, before any time is spent
    window = args.window
    if window is None:
        window = checkpoint.get("filter_max_duration") or 0.0
    options["window"] = round(window * codec.frame_rate)
    engine = Engine(model, dtype=choose_dtype(args.dtype, device))
    del model  # an engine of another type has weights of its own
    num_batches = -(-len(gaps) // args.batch_size)
    with Meter(longest * num_batches, codec.frame_rate, device) as meter:
        for rows, generators in row_batches(
            len(gaps), args.num_samples, args.batch_size, args.seed
        ):
            fill_batch(args, engine, codec, gaps[rows], meter, options | {"generator": generators})
    logging.info(meter.summary())


def fill_batch(
    args: argparse.Namespace,
    engine: Engine,
    codec: Codec,
    gaps: list[GapIn],
    meter: Meter,
    options: dict[str, Any],
) -> None:
    """Fill a few gaps, and write what came of it."""
    sides = [collate_codes([gap.codes[i].numpy() for gap in gaps]) for i in (0, 1)]
    (before, before_lens), (after, after_lens) = sides
    codes, lens = engine.infill(
        before.to(codec.device),
        before_lens.to(codec.device),
        after.to(codec.device),
        after_lens.to(codec.device),
        torch.tensor([gap.num_frames for gap in gaps]),
        progress=meter.progress(),
        return_lens=True,
        **options,
    )
    rows = [gap for gap in gaps for _ in range(args.num_samples)]
    meter.count(sum(gap.num_frames for gap in rows))
    waveforms, sizes = codec.decode(codes, lens)
    names = sample_names([gap.name for gap in gaps], args.num_samples)
    for name, gap, waveform, size in zip(names, rows, waveforms, sizes.tolist(), strict=True):
        write_gap(args.output_dir, name, gap, waveform[:size].cpu(), codec)


def write_gap(folder: Path, name: str, gap: GapIn, full: Tensor, codec: Codec) -> None:
    start = len(gap.sounds[0])
    stop = start + gap.num_frames * codec.hop_length
    kinds = {
        "full": full,
        "gap": full[start:stop],
        "spliced": splice(gap.sounds, full, codec.hop_length),
    }
    for kind, waveform in kinds.items():
        path = folder / f"{name}_{kind}.wav"
        with written_whole(path) as temporary:
            samples = waveform.clamp(-1, 1).numpy()
            soundfile.write(temporary, samples, codec.sampling_rate, format="WAV")
        logging.info(f"{path}: {len(waveform) / codec.sampling_rate:.2f} s")


def splice(sounds: tuple[Tensor, Tensor], full: Tensor, fade: int) -> Tensor:
    """The recording as it was, with what was made in its gap.

    Args:
      sounds: (N,) before and after the gap.
      full: (N,) all three parts as decoded, perhaps a little longer, as frames are whole.
      fade: samples, outside of the gap, in which one gives way to the other.
    """
    before, after = sounds
    first_after = len(full) - _whole(len(after), fade)
    end = first_after + len(after)
    share = torch.ones(end)  # of what was made
    share[: len(before)] = _fading_in(len(before), fade)
    share[first_after:] = _fading_in(len(after), fade).flip(0)
    known = torch.cat([before, torch.zeros(first_after - len(before)), after])
    return known + share * (full[:end] - known)


def _whole(num_samples: int, frame: int) -> int:
    return -(-num_samples // frame) * frame


def _fading_in(num_samples: int, fade: int) -> Tensor:
    """0, and at the end a rise towards 1."""
    share = torch.zeros(num_samples)
    length = min(fade, num_samples)
    share[num_samples - length :] = torch.arange(1, length + 1) / (length + 1)
    return share


def main(argv: list[str] | None = None) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = get_parser()
    args = parser.parse_args(argv)
    try:
        fill_files(args)
    except KeyboardInterrupt:
        parser.exit(130, "stopped\n")
    except (ValueError, OSError, ImportError) as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")


if __name__ == "__main__":
    main()
