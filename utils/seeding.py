"""Random numbers as a function of where a run is, not of how it got there.

Dropout draws from torch's global generator. Setting it from (seed, step, rank)
before every step makes a resumed run draw what the uninterrupted one drew,
whatever validation, workers or logging consumed in between.
"""
import os
import random

import numpy as np
import torch


def seed_everything(*parts: int):
    """Seed python, numpy and torch (all devices) from a tuple of non-negative integers."""
    seed = int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0])
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed % 2**63)


def set_deterministic(enabled: bool):
    """Torch's strict mode: an operation without a deterministic form raises and names itself.
    Otherwise cuDNN may time its algorithms, which pays with the fixed crop of a training."""
    if enabled:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Even switching off what is off loads torch's compiler, a second of every start.
    if enabled != torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(enabled)
    torch.backends.cudnn.benchmark = not enabled
