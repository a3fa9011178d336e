"""The content of a Segwright checkpoint: one file of tensors and plain Python types.

Every random draw of a run is a function of (seed, epoch, sample) or (seed, step, rank), so a
checkpoint contains no state of a random number generator.
"""
from collections.abc import Mapping
from typing import Any, TypedDict, TypeGuard

import torch

from utils.errors import CheckpointError

FORMAT = 1      # raised when older versions of Segwright cannot read the new files


class DamagedCheckpoint(CheckpointError):
    """The content of a file proves that it is cut off, changed, or not what a program writes."""


class Checkpoint(TypedDict):
    """The keys of every checkpoint: a network, and everything needed to predict with it."""

    format: int
    model: dict[str, torch.Tensor]          # state dict of the network
    ema: dict[str, torch.Tensor] | None     # the averaged weights, if trainer.ema is set
    config: dict[str, Any]                  # the resolved config
    class_names: list[str]
    palette: list[list[int]]                # [red, green, blue] of each class, 0..255
    normalization: dict[str, Any]           # the arguments of utils.images.normalize.Normalize
    activation: str             # of the logits: "softmax" or "sigmoid"; or "scores", not logits
    epoch: int | None                       # in training, or the next; None: a converted file
    versions: dict[str, Any]                # Python, torch, command line, git revision


class TrainingCheckpoint(Checkpoint):
    """The keys of a checkpoint from which a training can resume."""

    optimizer: dict[str, Any]       # state dicts
    scheduler: dict[str, Any]
    scaler: dict[str, Any]
    monitor: dict[str, Any]
    step: int                       # optimizer steps taken
    samples: int                    # trained in this epoch, over all ranks
    steps_per_epoch: int            # absent in files of older versions, like the next six
    skipped: int                    # steps without an update: loss or gradient not finite
    overflows: int                  # steps without an update: the scaled gradient overflowed
    validated: int                  # the step after which the last validation was made
    averaged: int                   # steps that are in `ema`
    dataset: dict[str, Any]         # length and hash of the training data
    lineage: list[list[int]]        # [number, step] of each time the run was taken back to a step


# Entries that files of older versions lack.
ADDED_LATER = ("steps_per_epoch", "skipped", "overflows", "validated", "averaged", "dataset",
               "lineage", "activation", "versions")


def epochs_finished(checkpoint: Mapping[str, Any]) -> int | None:
    """How many epochs the weights of a checkpoint were trained; None for a converted file.

    An epoch that was interrupted, or that trainer.iterations cut short, counts when the training
    has left it.
    """
    epoch = checkpoint.get("epoch")
    return None if epoch is None else epoch - 1


def can_resume(checkpoint: Mapping[str, Any]) -> TypeGuard[TrainingCheckpoint]:
    """Whether a checkpoint contains the state of a training, not only weights."""
    return bool(checkpoint.get("optimizer"))
