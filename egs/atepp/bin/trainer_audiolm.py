#!/usr/bin/env python3
"""Train an AudioLM on token cuts: `trainer.py` under the name that AudioLM's users know.

Usage, from the repository root:

  python3 egs/atepp/bin/trainer_audiolm.py --exp-dir exp/audio-lm --manifest-dir data/tokenized \
      --decoder-dim 1024 --nhead 16 --num-decoder-layers 12 --num-epochs 20 --max-duration 150
"""

from trainer import get_parser, main

__all__ = ["get_parser", "main"]

if __name__ == "__main__":
    main()
