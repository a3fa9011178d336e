"""Compares the start-up times of the commands with `import torch`.

    python -m benchmarks.startup [--rounds 3]

Measured are the wall times of whole processes until --help is printed, an error in the config is
reported, and the first training iteration is finished, with byte-code already compiled. Goals:
--help within 0.3 s; the first iteration finished at most one second after `import torch` would be.

torch's optimizers import torch's compiler (torch._dynamo) when they are constructed and at every
step, even if it is not used: the last number leaves that import out.
"""
import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args(argv).rounds
    from benchmarks.measure import interleaved, table
    environment = {**os.environ}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    with tempfile.TemporaryDirectory() as folder:
        first_iteration = [sys.executable, "train.py", "trainer.iterations=1",
                           "trainer.epochs=null", "trainer.val=false", "trainer.tensorboard=false",
                           f"trainer.save_dir={folder}", "train_loader.args.num_workers=0",
                           "train_loader.args.batch_size=2", "train_loader.args.length=2"]
        commands = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "import torch": [sys.executable, "-c", "import torch"],
            "import torch, torch._dynamo": [sys.executable, "-c", "import torch, torch._dynamo"],
            **{f"{name} --help": [sys.executable, name, "--help"]
               for name in ("train.py", "test.py", "inference.py")},
            "a syntax error in the config": [sys.executable, "train.py", "-c", os.devnull],
            "first iteration (ENet, Shapes)": first_iteration,
        }
        seconds = interleaved({name: partial(subprocess.run, command, capture_output=True,
                                             env=environment)
                               for name, command in commands.items()},
                              rounds, clock=time.perf_counter)
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    table("start-up, wall seconds", [("command", "median s")]
          + [(name, f"{value:.2f}") for name, value in middle.items()])
    first = middle["first iteration (ENet, Shapes)"]
    print(f"\nfirst iteration beyond import torch: {first - middle['import torch']:.2f} s, "
          f"beyond torch and its compiler: {first - middle['import torch, torch._dynamo']:.2f} s")


if __name__ == "__main__":
    main()
