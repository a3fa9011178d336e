"""Expected Dice and IoU of the masks that take the largest probabilities.

Notation of utils.decision.rankdice: pixels are sorted by descending probability q, and the
mask takes the first `size` of them. `chosen` and `chosen_variance` are the sums of q and
q (1 - q) over the mask, `volume` and `variance` those over all pixels, G is the true volume
and g the smooth term. Everything is float64.
"""
import dataclasses
from typing import Any, TypeAlias

import numpy as np

EXACT_VOLUME = 64        # expected pixels of a class below which its score is computed exactly
TINY = 1e-300            # makes 0 / 0 equal 0
FAINT = 1 / 128          # in a small class, smaller probabilities only count in sums
BLOCK = 2 ** 18          # nodes x candidates that the quadrature holds at once

# A number, a numpy array or a tensor, float64: the formulas only add, multiply and divide, and
# broadcast their arguments.
Values: TypeAlias = Any


@dataclasses.dataclass(frozen=True)
class Objective:
    """The expected score to maximize. metric: "dice" or "iou". smooth: g >= 0."""

    metric: str
    smooth: float

    def first_order(self, chosen: Values, size: Values, volume: Values) -> Values:
        """The expected score, with E[X / Y] approximated by E[X] / E[Y]."""
        if self.metric == "dice":
            return (2 * chosen + self.smooth) / (size + volume + self.smooth + TINY)
        return (chosen + self.smooth) / (size + volume - chosen + self.smooth + TINY)

    def threshold(self, chosen: Values, size: Values, volume: Values) -> Values:
        """The probability above which one more pixel raises the first-order score.

        The 1 in the denominator of Dice comes from E[1 / (a + G)], given that the pixel is true.
        """
        if self.metric == "dice":
            return (chosen + self.smooth / 2) / (size + volume + self.smooth + 1)
        return (chosen + self.smooth) / (size + volume + 2 * self.smooth + TINY)

    def gain(self, chosen: Values, size: Values, volume: Values) -> Values:
        """The score that one more pixel adds, per unit of its probability above the threshold."""
        if self.metric == "dice":
            return 2 / (size + volume + self.smooth + 2)
        union = size + volume - chosen + self.smooth + 1e-12
        return (union + chosen + self.smooth) / union ** 2

    def second_order(self, chosen: Values, chosen_variance: Values, size: Values, volume: Values,
                     variance: Values) -> Values:
        """The expected score, expanded to the second moments of the volume."""
        if self.metric == "dice":
            a = size + volume + self.smooth + TINY
            return ((2 * chosen + self.smooth) * (1 + variance / a / a)
                    - 2 * chosen_variance / a) / a
        b = size + volume - chosen + self.smooth + TINY
        return (chosen + self.smooth) * (1 + (variance - chosen_variance) / b / b) / b

    def exact(self, q: np.ndarray, rest: tuple, scale: float,
              precise: bool = False) -> np.ndarray:
        """The exact expected scores of the sizes 0..M, float64 (M + 1,).

        q: the probabilities of the M candidates, float64 (M,), descending.
        rest: sums of q, q^2, q^3 ... over the other pixels, whose probabilities are so small that
            these powers represent their part of the product.
        scale: about size + volume + g of the best mask; places the nodes.
        precise: three times as many nodes: an error of 1e-14 instead of 1e-8 near the best size.
        """
        nodes, weights = quadrature(scale, self.smooth, 0.1 if precise else 0.3)
        size = np.arange(len(q) + 1.0)
        scores = np.zeros(len(q) + 1)
        step = max(1, BLOCK // (len(q) + 1))
        for start in range(0, len(nodes), step):
            u, w = nodes[start:start + step, None], weights[start:start + step, None]
            decayed = np.exp(-u)
            kept = np.maximum((1 - q) + q * decayed, TINY)       # 1 - q (1 - e^-u), (nodes, M)
            logs = np.log(kept)
            z = -np.expm1(-u)
            log_rest = -sum(power * z ** m / m for m, power in enumerate(rest, 1))
            if self.metric == "dice":
                log_all = logs.sum(1, keepdims=True) + log_rest
                decay = w * np.exp(log_all - (size + self.smooth) * u)       # (nodes, M + 1)
                scores += self.smooth * decay.sum(0)
                scores[1:] += 2 * (decay[:, 1:] * decayed * np.cumsum(q / kept, 1)).sum(0)
            else:
                # Log of the product over the candidates that are left out, faintest first.
                left = np.zeros((len(u), len(q) + 1))
                left[:, :-1] = np.cumsum(logs[:, ::-1], 1)[:, ::-1]
                scores += (w * np.exp(left + log_rest - (size + self.smooth) * u)).sum(0)
        if self.metric == "iou":
            scores *= np.concatenate(([0.0], np.cumsum(q))) + self.smooth
        return scores


def expected_dice(probs: np.ndarray, mask: np.ndarray) -> float:
    """The expected Dice score of any mask, if the labels of its pixels are independent.

    probs: (n,) float; mask: (n,) bool. Exact for small volumes, to the second order above. 0 for
    the empty mask.
    """
    q, size = probs.astype(np.float64), np.count_nonzero(mask)
    volume, inside = q.sum(), q[mask]
    if volume >= EXACT_VOLUME:
        variance, of_mask = (float((one * (1 - one)).sum()) for one in (q, inside))
        return float(Objective("dice", 0.0).second_order(inside.sum(), of_mask, size, volume,
                                                         variance))
    # The integral of `Objective.exact` for one mask. Faint pixels count by their power sums.
    nodes, weights = quadrature(size + volume, 0.0, 0.3)
    z, total = -np.expm1(-nodes), np.zeros(len(nodes))
    log_all = -size * nodes
    for m in range(1, 4):
        power = q[q <= FAINT] ** m
        log_all -= power.sum() * z ** m / m
        total += (inside[inside <= FAINT] ** m).sum() * z ** (m - 1)
    clear = q > FAINT
    kept = np.maximum(1 - q[clear] * z[:, None], TINY)          # (nodes, clear pixels)
    total += (q[clear] * mask[clear] / kept).sum(1)
    return float((weights * 2 * np.exp(log_all + np.log(kept).sum(1) - nodes) * total).sum())


def quadrature(scale: float, smooth: float, step: float) -> tuple[np.ndarray, np.ndarray]:
    """Nodes u and weights w, float64 (K,), with int_0^inf f(u) du = sum w f(u).

    f must decay exponentially. Trapezoidal rule after the substitution u = exp(s - exp(-s)) / scale
    (Takahasi & Mori, 1974). It ends where the slowest decay has become 0: that of the empty mask,
    exp(-smooth u), or that of one pixel.
    """
    slowest = min(smooth, 1.0) if smooth > 0 else 1.0
    s = np.arange(-3.8, np.log(60 * max(scale, 1.0) / slowest), step)
    u = np.exp(s - np.exp(-s))
    return u / scale, step * (1 + np.exp(-s)) * u / scale
