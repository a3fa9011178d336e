"""What a loss did to the probabilities of a network, undone.

A network that minimizes a loss tends to outputs q that are a known function of the posterior p, the
share of pixels like this one that have the class. Cross-entropy gives q = p. The others here:

class weights w     q_c ∝ w_c p_c, so the logits lose ln w_c. With positive weights of a binary
                    cross-entropy the odds are multiplied by w, and the same holds.
focal, exponent γ   p_c ∝ h(q_c), h(q) = q / ((1 - q)^γ - γ (1 - q)^(γ - 1) q ln q).
                    Charoenphakdee et al., CVPR 2021, arXiv:2011.09172. Factors α act like weights.
                    Without a gradient of the factor h(q) = q / (1 - q)^γ: the expected gradient of
                    the logit c, q_c Σ_k p_k (1 - q_k)^γ - p_c (1 - q_c)^γ, is 0 there.
label smoothing ε   q_c = (1 - ε) p_c + ε / C. Szegedy et al., CVPR 2016, arXiv:1512.00567.

A loss states its own inverse in a method `inverse`, as an `Inverse` or a `NoInverse`.
"""
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from utils.machine.precision import full_precision

FLOOR = 2.0 ** -23      # of a probability after label smoothing: that of float32 rounding near 1
FARTHEST = 1e6          # logits further below the largest one are probabilities of 0 in any case


class NoInverse(NamedTuple):
    """A loss whose output does not determine the posterior. reason: why, for messages."""

    reason: str


HARDEST = NoInverse("it trains on the hardest pixels only, so its output is not a function of the "
                    "posterior of a pixel")
OF_REGIONS = NoInverse("it scores regions and not pixels, and no inverse of it is known")


@dataclass(frozen=True)
class Inverse:
    """Turns the logits of a network (N, C, ...) into logits of the posterior, of the same shape.

    By default nothing is to be undone. gamma: the focal exponent; detached: its factor has no
    gradient. weight: one factor of the loss per class; a class of weight 0 was not trained, has no
    inverse, and counts as one of mean weight (see `unknown`). label_smoothing: as of the loss.
    activation: that of the loss; with "sigmoid" each class is a binary decision, and weight a
    factor on its positive pixels.

    Every input dtype is computed in float32 (float64 stays), and finite logits of any size give
    finite logits.
    """

    gamma: float = 0.0
    weight: Sequence[float] | None = None
    label_smoothing: float = 0.0
    activation: str = "softmax"
    detached: bool = False

    @property
    def active(self) -> bool:
        """Whether there is anything to undo."""
        return bool(self.gamma or self.label_smoothing or self._shifts())

    @property
    def reorders(self) -> bool:
        """Whether another class may become the most probable one of a pixel."""
        return self._shifts() is not None

    @property
    def unknown(self) -> list[int]:
        """The classes without an inverse, because their weight is 0."""
        return [c for c, weight in enumerate(self.weight or ()) if weight == 0]

    def describe(self) -> str:
        """What is undone, such as "class weights undone"; "" if nothing is."""
        parts = ["class weights"] * self.reorders
        parts += [f"focal gamma {self.gamma:g}"] if self.gamma else []
        parts += [f"label smoothing {self.label_smoothing:g}"] if self.label_smoothing else []
        return f"{', '.join(parts)} undone" if parts else ""

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        if not self.active:
            return logits
        logits = full_precision(logits)
        if self.gamma:
            undo = _focal_softmax if self.activation == "softmax" else _focal_sigmoid
            logits = undo(logits, self.gamma, self.detached)
        shifts = self._shifts()
        if shifts is not None:
            shifts = torch.tensor(shifts, dtype=logits.dtype, device=logits.device)
            logits = logits - shifts.view(-1, *[1] * (logits.ndim - 2))
        return _unsmoothed(logits, self.label_smoothing) if self.label_smoothing else logits

    def _shifts(self) -> list[float] | None:
        """ln w of every class, relative to the mean weight; None if all classes are equal."""
        positive = [weight for weight in self.weight or () if weight > 0]
        if not positive:
            return None
        if self.activation == "sigmoid":
            shifts = [math.log(weight or 1.0) for weight in self.weight or ()]
        else:       # a common factor of the weights changes nothing
            mean = sum(positive) / len(positive)
            shifts = [math.log((weight or mean) / mean) for weight in self.weight or ()]
        return shifts if any(shifts) else None


# Gives the inverse when it is needed: making a loss may read files, and warn.
InverseSource = Callable[[], Inverse | NoInverse]


def inverse_of(loss: nn.Module) -> Inverse | NoInverse:
    """What the loss states in its method `inverse`, or why that does not hold.

    A subclass that computes another loss, in a `forward` of its own, must state its own inverse.
    """
    name = type(loss).__name__
    if not hasattr(loss, "inverse"):
        return NoInverse(f"{name} does not state an inverse")
    inverse = loss.inverse()  # pyright: ignore[reportCallIssue]
    order = [cls for cls in type(loss).__mro__ if {"forward", "inverse"} & set(vars(cls))]
    if isinstance(inverse, Inverse) and "inverse" not in vars(order[0]):
        return NoInverse(f"{name} does not state an inverse")
    if isinstance(inverse, NoInverse) and not inverse.reason.startswith(name):
        return NoInverse(f"{name}: {inverse.reason}")
    return inverse


def _log_focal(odds, gamma, detached):
    """ln h(q) for the logit of q. odds: float, any shape.

    With r = -q ln q / (1 - q), which is between 0 and 1, h(q) = q / ((1 - q)^γ (1 + γ r)).
    """
    if detached:
        return gamma * _softplus(odds) - _softplus(-odds)
    rest = odds.clamp(min=0).neg().exp()        # (1 - q) / q of the likely ones
    likely = torch.where(rest < 1e-3, 1 - rest / 2 + rest * rest / 3,
                         torch.log1p(rest) / rest.clamp(min=1e-3))
    ratio = torch.where(odds > 0, likely, odds.clamp(max=0).exp() * _softplus(-odds))
    return gamma * _softplus(odds) - _softplus(-odds) - torch.log1p(gamma * ratio)


def _softplus(x):
    """ln(1 + e^x) without overflow, of operators that stay exact in an exported graph."""
    return x.clamp(min=0) + torch.log1p((-x.abs()).exp())


def _focal_softmax(logits, gamma, detached):
    """The logits ln h(q) of the softmax q of logits (N, C, ...)."""
    if logits.shape[1] == 1:
        return logits       # a single class has the probability 1
    z = (logits - logits.amax(1, keepdim=True)).clamp(min=-FARTHEST)
    classes = torch.arange(z.shape[1], device=z.device).view(-1, *[1] * (z.ndim - 2))
    largest = classes == z.argmax(1, keepdim=True)
    # 1 - q of the largest class is the sum of the others, never a difference from 1: exact where q
    # itself rounds to 1.
    others = z.masked_fill(largest, -torch.inf).logsumexp(1, keepdim=True)
    log_q = z - _softplus(others)
    # Every other class has q <= 1/2. The bound only serves the largest, whose result is not used.
    odds = log_q - torch.log1p(-log_q.clamp(max=-math.log(2)).exp())
    return _log_focal(torch.where(largest, -others, odds), gamma, detached)


def _focal_sigmoid(logits, gamma, detached):
    """The logits of h(q) against h(1 - q) for the sigmoid q of logits."""
    z = logits.clamp(-FARTHEST, FARTHEST)
    return _log_focal(z, gamma, detached) - _log_focal(-z, gamma, detached)


def _unsmoothed(logits, smoothing):
    """ln of p = (q - ε/C) / (1 - ε), at least FLOOR, for the softmax q of logits (N, C, ...)."""
    q = logits.softmax(1)
    p = (q - smoothing / logits.shape[1]) / (1 - smoothing)
    return p.clamp(min=FLOOR).log()
