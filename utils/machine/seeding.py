"""Random numbers that depend on the position in a run, not on its history.

Dropout draws from torch's global generator. The trainer seeds it with (seed, step, rank) before
every step, so a resumed run draws the same numbers as an uninterrupted one, even if validation,
workers or logging drew others in between.
"""
import os
import random

import numpy as np
import torch


def seed_everything(*parts: int):
    """Seed Python, NumPy and torch (all devices) from non-negative integers, e.g. seed, step, rank.

    Different tuples give independent streams.
    """
    seed = int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0])
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed % 2**63)


def set_deterministic(enabled: bool):
    """Switch torch's strict mode on or off: in it an operation without a deterministic form raises.

    Without it cuDNN benchmarks its algorithms, which is faster because training crops have one
    size.
    """
    if enabled:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Calling it without need would load torch's compiler, which takes a second at every start.
    if enabled != torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(enabled)
    torch.backends.cudnn.benchmark = not enabled
