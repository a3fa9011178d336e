"""Activation checkpointing of the blocks of a transformer.

Chen et al., Training Deep Nets with Sublinear Memory Cost, 2016, arXiv:1604.06174.
"""
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def run(block: nn.Module, *inputs: Any, active: bool) -> Any:
    """Return `block(*inputs)`; where active, backward computes it again instead of keeping it.

    Only the inputs stay in memory between forward and backward, which takes about a third more
    time. The second pass draws the same random numbers (drop path, dropout), so the
    gradients are those without checkpointing. The block must have no running statistics: they
    would be updated twice. Without gradients, nothing changes.
    """
    if not active or not torch.is_grad_enabled() or torch.compiler.is_exporting():
        return block(*inputs)
    return checkpoint(block, *inputs, use_reentrant=False)
