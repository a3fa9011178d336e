"""Runs train.py with a network whose outputs are not finite at some steps.

    python -m tests.support.nan_steps 2,3,11 -c CONFIG …    steps counted from 0
"""
import sys
from collections.abc import Collection

import train
import trainer
from utils.cli import console


def nans_at(steps: Collection[int]):
    """From now on the outputs of every training in this process are NaN at these steps."""
    forward = trainer.Trainer._forward

    def with_nans(self, model, images):
        outputs = forward(self, model, images)
        if self.progress.stage == "training" and self.progress.step in steps:
            return {name: output * float("nan") for name, output in outputs.items()}
        return outputs
    trainer.Trainer._forward = with_nans


def main(argv: list[str]) -> int:
    """Returns the exit status of train.py ARGV[1:] with outputs of NaN at the steps ARGV[0]."""
    nans_at(set(map(int, argv[0].split(","))))
    return console.run(train.main, argv[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
