"""How sure a network is of each pixel: the largest probability, and the entropy.

Both are in 0..1. In files they are 8-bit gray values, where 255 is 1; a text in the file says so.
"""
import math

import torch


def confidence(probs: torch.Tensor) -> torch.Tensor:
    """The largest probability (N, H, W) of probabilities (N, C, H, W)."""
    return probs.amax(1)


def entropy(probs: torch.Tensor, activation: str = "softmax") -> torch.Tensor:
    """The entropy of each pixel, 0..1, (N, H, W): in nats, divided by its largest value.

    probs: (N, C, H, W). activation: "softmax": of the distribution over the classes, divided by
    log C (0 if there is one class); "sigmoid": the mean over the classes of that of a binary
    decision, divided by log 2. Summed class by class: no further map of all classes is needed.
    """
    total = torch.zeros_like(probs[:, 0])
    for share in probs.unbind(1):
        total -= torch.special.xlogy(share, share)
        if activation == "sigmoid":
            total -= torch.special.xlogy(1 - share, 1 - share)
    classes = probs.shape[1]
    largest = classes * math.log(2) if activation == "sigmoid" else math.log(classes) or 1.0
    return total.div_(largest).clamp_(0, 1)


def gray_form(values: torch.Tensor):
    """Values in 0..1 as uint8 of any shape, on the CPU, where 255 is 1."""
    return (values * 255).round_().to(torch.uint8).cpu().numpy()
