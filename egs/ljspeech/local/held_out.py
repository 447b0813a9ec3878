"""Prints sentences that no training has heard: what to speak, or whose voice to speak in.

    python egs/ljspeech/local/held_out.py --manifest-dir data/ljspeech --num-sentences 3
    python egs/ljspeech/local/held_out.py --manifest-dir data/ljspeech --prompt true

The first prints texts of the test split, a line each. The second prints two lines, a sound file and
its text: of the sentences of the validation split whose sound is there, the one that is nearest to
three seconds, which is how long VALL-E's prompts last.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from valle.data.manifest import load_cuts, manifest_path
from valle.utils.cli import str2bool

PROMPT_SEC = 3.0


def text_of(cut: Any) -> str:
    """What is said in a cut, in one line.

    Raises:
      ValueError: It does not come with a text.
    """
    texts = [supervision.text for supervision in cut.supervisions if supervision.text]
    if not texts:
        raise ValueError(f"cut {cut.id} has no text; expected manifests of egs/ljspeech/prepare.sh")
    return " ".join(" ".join(texts).split())


def choose_prompt(cuts: Iterable[Any]) -> tuple[str, str]:
    """The sound file and the text of the cut that is the best prompt.

    Raises:
      ValueError: There is none whose sound is there.
    """
    there = [cut for cut in cuts if Path(cut.recording.sources[0].source).is_file()]
    if not there:
        raise ValueError(
            "no sentence of the validation split has its sound any more; bring the corpus back"
        )
    best = min(there, key=lambda cut: (abs(cut.duration - PROMPT_SEC), cut.id))
    return str(best.recording.sources[0].source), text_of(best)


def lines(args: argparse.Namespace) -> Iterator[str]:
    """What is to be printed."""
    if args.prompt:
        yield from choose_prompt(load_cuts(manifest_path(args.manifest_dir, "validation")))
        return
    cuts = load_cuts(manifest_path(args.manifest_dir, "test"))
    yield from map(text_of, islice(cuts, args.num_sentences))


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--manifest-dir", type=Path, default=Path("data/ljspeech"))
    add("--num-sentences", type=int, default=3, help="how many to print")
    add("--prompt", type=str2bool, default=False, help="a prompt instead")
    return parser


def main() -> None:
    """Command line."""
    try:
        print("\n".join(lines(get_parser().parse_args())))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
