"""Expected Dice and IoU of the masks that take the largest probabilities.

Notation of utils.rankdice: pixels sorted by descending probability q, the mask
takes the first tau of them; C and V are the sums of q and q (1 - q) over the
mask, mu and s2 those over all pixels, g the smooth term, G the true volume.
All in float64.
"""
import numpy as np

# Nodes x candidates held at once by the quadrature.
BLOCK = 2 ** 18


def first_order(metric: str, chosen, size, volume, smooth):
    """E[1/X] taken as 1/E[X]: (2C + g) / (tau + mu + g), (C + g) / (tau + mu - C + g)."""
    if metric == "dice":
        return _safe_ratio(2 * chosen + smooth, size + volume + smooth)
    return _safe_ratio(chosen + smooth, size + volume - chosen + smooth)


def second_order(metric: str, chosen, chosen_variance, size, volume, variance, smooth):
    """The expectation expanded to second moments of the volume."""
    if metric == "dice":
        a = np.maximum(size + volume + smooth, 1e-300)
        return ((2 * chosen + smooth) * (1 / a + variance / a ** 3)
                - 2 * chosen_variance / a ** 2)
    b = np.maximum(size + volume - chosen + smooth, 1e-300)
    return (chosen + smooth) * (1 / b + (variance - chosen_variance) / b ** 3)


def exact(metric: str, q: np.ndarray, rest: tuple, smooth: float, scale: float,
          precise: bool = False) -> np.ndarray:
    """Scores of tau = 0..M for M candidates q (descending); (M + 1,).

    rest: sums of q, q^2, q^3 ... over the pixels that are no candidates: enough powers of
        faint probabilities to stand for their part of the product.
    scale: about tau + mu + g of the best mask; places the nodes.
    precise: three times the nodes: 1e-12 instead of 1e-7.
    """
    nodes, weights = _nodes(scale, smooth, precise)
    size = np.arange(len(q) + 1.0)
    scores = np.zeros(len(q) + 1)
    step = max(1, BLOCK // (len(q) + 1))
    for start in range(0, len(nodes), step):
        u, w = nodes[start:start + step, None], weights[start:start + step, None]
        z, decayed = -np.expm1(-u), np.exp(-u)
        log_rest = -sum(power * z ** m / m for m, power in enumerate(rest, 1))
        kept = np.maximum((1 - q) + q * decayed, 1e-300)          # 1 - q z, (nodes, M)
        logs = np.log(kept)
        if metric == "dice":
            log_all = logs.sum(1, keepdims=True) + log_rest
            decay = w * np.exp(log_all - (size + smooth) * u)     # (nodes, M + 1)
            scores += smooth * decay.sum(0)
            chosen = np.cumsum(q / kept, 1)
            scores[1:] += 2 * (decay[:, 1:] * decayed * chosen).sum(0)
        else:
            # log prod over the pixels left out, from the faintest up.
            left = np.zeros((len(u), len(q) + 1))
            left[:, :-1] = np.cumsum(logs[:, ::-1], 1)[:, ::-1]
            scores += (w * np.exp(left + log_rest - (size + smooth) * u)).sum(0)
    if metric == "iou":
        scores *= np.concatenate(([0.0], np.cumsum(q))) + smooth
    return scores


def _nodes(scale, smooth, precise):
    """Nodes u and weights w with int_0^inf f(u) du = sum w f(u), f of exponential decay.

    Trapezoidal rule after u = exp(s - exp(-s)) / scale (Takahasi & Mori, 1974), up to where
    the slowest decay is gone: that of the empty mask, exp(-smooth u), or of one pixel.
    """
    slowest = min(smooth, 1.0) if smooth > 0 else 1.0
    step = 0.1 if precise else 0.3
    s = np.arange(-3.8, np.log(60 * max(scale, 1.0) / slowest), step)
    u = np.exp(s - np.exp(-s)) / scale
    return u, step * (1 + np.exp(-s)) * u


def _safe_ratio(part, whole):
    return part / np.maximum(whole, 1e-300)
