#!/usr/bin/env python3
"""Continue sound files with a trained AudioLM.

Usage:

  python3 egs/atepp/bin/infer_audiolm.py --checkpoint exp/audio-lm/best-valid-loss.pt \
      --audio-prompts a.wav b.flac --prompt-duration 3 --max-duration 10 --output-dir infer

For each prompt two files appear: `NAME_full.wav`, prompt and continuation decoded together, so that
there is no seam, and `NAME_continuation.wav`, the same from the end of the prompt on.
"""

import argparse
import logging
import resource
import time
from pathlib import Path

import soundfile
import torch
from torch import Tensor
from tqdm import tqdm

from valle.data import Codec, CodecInfo, collate_codes, load_audio
from valle.models import AudioLM
from valle.utils.checkpoint import read_checkpoint
from valle.utils.cli import str2bool
from valle.utils.dist import choose_device
from valle.utils.files import written_whole


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, help="of trainer_audiolm.py")
    add("--audio-prompts", type=Path, nargs="*", default=[], help="sound files to continue")
    add("--num-unconditional", type=int, default=0, help="pieces out of nothing (--prepend-bos)")
    add("--prompt-duration", type=float, help="take this many seconds of each file; default: all")
    add("--output-dir", type=Path, default=Path("infer/demo"))
    add("--max-duration", type=float, default=10.0, help="seconds to add at most")
    add("--ignore-eos", type=str2bool, default=False, help="do not stop where a piece would end")
    add("--temperature", type=float, default=1.0, help="of quantizer 1; 0 is greedy")
    add("--top-k", type=int, default=50, help="draw among the k likeliest codes; 0: all")
    add("--top-p", type=float, default=1.0, help="draw among codes of this probability in all")
    add("--nar-temperature", type=float, default=0.0, help="of the other quantizers; 0 is greedy")
    add("--seed", type=int, default=42)
    add("--codec", help="folder or hub name; default: the one that the checkpoint names")
    add("--device", default="auto", help="cpu, cuda, or auto: cuda where there is one")
    return parser


def main(argv: list[str] | None = None) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = get_parser()
    args = parser.parse_args(argv)
    try:
        continue_files(args)
    except (ValueError, OSError, ImportError) as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")


def continue_files(args: argparse.Namespace) -> None:
    if not args.audio_prompts and args.num_unconditional < 1:
        raise ValueError("nothing to do: give --audio-prompts FILE..., or --num-unconditional N")
    device = choose_device(args.device)
    model = AudioLM.from_checkpoint(args.checkpoint, device)
    codec = load_codec(args.codec, args.checkpoint, device, model.config.num_quantizers)
    names, x, x_lens = read_prompts(args, codec, model.config.num_quantizers)
    max_new_tokens = round(args.max_duration * codec.frame_rate)
    started = time.perf_counter()
    with tqdm(total=max_new_tokens, unit="frame", disable=None) as bar:
        codes, lens = model.inference(
            x.to(device),
            x_lens.to(device),
            max_new_tokens=max_new_tokens,
            temperature=args.temperature,
            top_k=args.top_k,
            top_p=args.top_p,
            nar_temperature=args.nar_temperature,
            ignore_eos=args.ignore_eos,
            generator=torch.Generator(device).manual_seed(args.seed),
            progress=lambda num_frames: bar.update(num_frames - bar.n),
            return_lens=True,
        )
    report(time.perf_counter() - started, int((lens.cpu() - x_lens).sum()), codec.frame_rate)
    write_sounds(args.output_dir, names, codes, lens.cpu(), x_lens, codec)


def load_codec(
    name: str | None, checkpoint: Path, device: torch.device, num_quantizers: int
) -> Codec:
    """The codec that the model was trained on, from where it was then or from `name`."""
    recorded = read_checkpoint(checkpoint).get("codec")
    name = name or (recorded or {}).get("name")
    if name is None:
        raise ValueError(f"{checkpoint} names no codec: give --codec FOLDER_OR_HUB_NAME")
    codec = Codec.from_pretrained(name, device, num_quantizers)
    if recorded is None:
        logging.warning(f"{checkpoint} names no codec; taking {name} on trust")
    else:
        CodecInfo.from_dict(recorded).check_same(codec.info, f"--codec for {checkpoint}")
    return codec


def read_prompts(
    args: argparse.Namespace, codec: Codec, num_quantizers: int
) -> tuple[list[str], Tensor, Tensor]:
    """Names of the outputs, prompt codes (B, S, Q) and lengths (B,)."""
    codes = [load_audio(path, codec, args.prompt_duration)[0] for path in args.audio_prompts]
    codes += [torch.zeros(0, num_quantizers, dtype=torch.long)] * args.num_unconditional
    stems = [path.stem for path in args.audio_prompts]
    stems += [f"unconditional-{i + 1}" for i in range(args.num_unconditional)]
    # two files of one name must not write over each other
    names = [s if stems.count(s) == 1 else f"{s}-{i + 1}" for i, s in enumerate(stems)]
    x, x_lens = collate_codes([c.numpy() for c in codes])
    return names, x, x_lens


def report(seconds: float, num_frames: int, frame_rate: float) -> None:
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    sound = num_frames / frame_rate
    logging.info(
        f"{num_frames} frames ({sound:.1f} s of sound) in {seconds:.1f} s: "
        f"{num_frames / seconds:.0f} frames/s, {sound / seconds:.2f} x real time, "
        f"peak memory {memory:.0f} MiB"
    )


def write_sounds(
    folder: Path, names: list[str], codes: Tensor, lens: Tensor, prompt_lens: Tensor, codec: Codec
) -> None:
    waveforms, _ = codec.decode(codes, lens)
    for b, name in enumerate(names):
        start, stop = (int(n[b]) * codec.hop_length for n in (prompt_lens, lens))
        if start == stop:
            logging.warning(f"{name}: the model ended the piece at once, nothing was added")
        for kind, waveform in (
            ("full", waveforms[b, :stop]),
            ("continuation", waveforms[b, start:stop]),
        ):
            path = folder / f"{name}_{kind}.wav"
            with written_whole(path) as temporary:
                samples = waveform.clamp(-1, 1).numpy()
                soundfile.write(temporary, samples, codec.sampling_rate, format="WAV")
            logging.info(f"{path}: {waveform.shape[0] / codec.sampling_rate:.2f} s")


if __name__ == "__main__":
    main()
