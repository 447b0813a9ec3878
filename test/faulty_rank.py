"""The trainer, in which something goes wrong on rank 1: `faulty_rank.py FAULT` and its flags."""

import os
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "egs/atepp/bin")]

import trainer  # noqa: E402

from valle.models import AudioLM  # noqa: E402

FAULTY_PASS = 3  # the forward pass of training in which it happens


def install(fault: str) -> None:
    forward, count = AudioLM.forward, [0]

    def faulty(self, x, *args, **kwargs):
        count[0] += self.training
        if fault == "no-memory" and self.training and len(x) > 1:
            raise torch.OutOfMemoryError("no room for two rows")
        output = forward(self, x, *args, **kwargs)
        if count[0] != FAULTY_PASS or not self.training:
            return output
        if fault == "stuck":
            time.sleep(600)
        return output._replace(loss=output.loss + torch.inf) if fault == "infinite" else output

    AudioLM.forward = faulty


if __name__ == "__main__":
    if os.environ["RANK"] == "1":
        install(sys.argv[1])
    trainer.main(sys.argv[2:])
