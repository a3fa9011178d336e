"""RankDice for many classes and images at once: a GPU needs few, large operations.

The same answers as utils.decision.rankdice, but nothing is read back from the device. So `_solve`
does not choose a solver for each class: it runs a fixed number of steps of the first-order solver
on all of them, corrects their thresholds to second order, and puts the exact optimum into the rows
of small volume.
"""
import torch

from utils.decision.expected_score import EXACT_VOLUME, TINY, Objective, quadrature
from utils.machine.precision import full_precision
from utils.machine.tensors import LabelBatch, Masks, label_dtype

ELEMENTS = 2 ** 24       # probabilities processed at a time; bounds the temporary memory
STEPS = 8                # Newton steps; starting at 0.5, three to six reach the fixed point
CANDIDATES = 2048        # of a class of small volume, the largest probabilities are candidates
POWERS = 5               # sums of powers that represent its other pixels


def solve_batched(flat: torch.Tensor, objective: Objective, pruning: float, solver: str,
                  overlap: bool) -> tuple[Masks | LabelBatch, torch.Tensor]:
    """The best masks and what is known about them, for all rows at once.

    flat: (N, C, n) probabilities, a contiguous float tensor. solver: "auto" or "rma".
    returns: bool masks (N, C, n) with `overlap`, else labels (N, n), uint8 up to 255 classes and
        int16 above; and thresholds and expected scores, (2, N, C) float64.
    """
    images, classes, n = flat.shape
    rows = flat.reshape(images * classes, n)
    masks = torch.empty(rows.shape if overlap else 0, dtype=torch.bool, device=flat.device)
    answers = []
    step = max(1, ELEMENTS // n)
    for start in range(0, len(rows), step):
        x = full_precision(rows[start:start + step])
        answer = _solve(x, objective, pruning, solver)
        answers.append(answer)
        if overlap:
            threshold = torch.where(answer["active"], answer["threshold"], torch.inf)
            torch.gt(x, threshold[:, None].to(x.dtype), out=masks[start:start + step])
    answer = {key: torch.cat([a[key] for a in answers]).view(images, classes)
              for key in answers[0]}
    active = answer["active"]
    info = torch.stack((torch.where(active, answer["threshold"], 1.0),
                        torch.where(active, answer["expected"], answer["empty"])))
    return masks.view(flat.shape) if overlap else _labels(flat, objective, answer), info


def _solve(x, objective, pruning, solver):
    """The answers for the rows of x (R, n), as a dict of float64 and bool tensors (R,).

    The names are those of `rankdice._Answer`; also "active" (not pruned), and "empty", the
    expected score of the empty mask.
    """
    top, volume = x.amax(1), x.sum(1).double()
    threshold, above, chosen, size = _fixed_point(x, objective, top, volume)
    answer = {"active": top > pruning, "threshold": threshold, "chosen": chosen, "size": size,
              "volume": volume, "expected": objective.first_order(chosen, size, volume),
              "empty": objective.first_order(torch.zeros_like(volume), 0.0, volume)}
    if solver == "rma":
        return answer
    terms = x * (1 - x)
    variance = terms.sum(1).double()
    chosen_variance = terms.mul_(above).sum(1).double()
    del terms, above
    answer["expected"] = objective.second_order(chosen, chosen_variance, size, volume, variance)
    answer["threshold"] = _corrected(objective, threshold, chosen, chosen_variance, size, volume,
                                     variance)
    _solve_small(x, objective, answer)
    return answer


def first_order_growth(probs: torch.Tensor, objective: Objective, pruning: float) \
        -> torch.Tensor:
    """How much each pixel raises the first-order score of each class, of the shape of `probs`.

    probs: (N, C, H, W), float32 or float64. Pixels of the mask have a positive growth, and the
    label of a pixel is the class of its largest growth. A pruned class has -inf, unless all of the
    image are pruned. A fixed number of operators, so that an exported graph can contain it.
    """
    x = probs.flatten(2)
    # A class without any probability must not be 0 / 0.
    top, volume = x.amax(-1), x.sum(-1).clamp(min=1e-30)
    threshold, _, chosen, size = _fixed_point(x, objective, top, volume)
    active = top > pruning
    active = active | ~active.any(1, keepdim=True)
    growth = (x - threshold[..., None]) * objective.gain(chosen, size, volume)[..., None]
    return torch.where(active[..., None], growth, -torch.inf).view(probs.shape)


def _fixed_point(x, objective, top, volume):
    """(thresholds, `_above` of them) of rows (..., n) after all steps; top, volume: (...)."""
    threshold = torch.where(top > 0.5, torch.full_like(top, 0.5), top / 2).to(volume.dtype)
    for _ in range(STEPS):
        _, chosen, size = _above(x, threshold)
        threshold = objective.threshold(chosen, size, volume)
    return threshold, *_above(x, threshold)


def _above(x, threshold):
    """The mask x > threshold (..., n), and sum and count of its probabilities (...)."""
    limit = threshold[..., None].to(x.dtype)
    above = x > limit
    size = above.sum(-1).to(threshold.dtype)
    excess = (x - limit).clamp_(min=0).sum(-1).to(threshold.dtype)
    return above, excess + size * threshold, size


def _corrected(objective, threshold, chosen, chosen_variance, size, volume, variance):
    """The threshold at which one more pixel no longer raises the second-order score, by the secant
    method from the first-order threshold."""
    score = objective.second_order(chosen, chosen_variance, size, volume, variance)

    def marginal(q):
        return objective.second_order(chosen + q, chosen_variance + q * (1 - q), size + 1, volume,
                                      variance) - score

    before, now = threshold * 0.95, threshold
    at_before = marginal(before)
    for _ in range(3):
        at_now = marginal(now)
        slope = (at_now - at_before) / (now - before)
        move = torch.nan_to_num(-at_now / slope, nan=0.0, posinf=0.0, neginf=0.0)
        before, at_before, now = now, at_now, now + move
    # In a class of a few pixels the expansion fails; `_solve_small` replaces its threshold.
    return torch.where((now - threshold).abs() < threshold / 2, now, threshold)


def _solve_small(x, objective, answer):
    """Put the exact optimum into the rows of small volume with enough candidates."""
    n = x.shape[1]
    count = min(n, CANDIDATES)
    q = x.topk(min(n, count + 1), dim=1).values.double()
    beyond = q[:, count:] if n > count else torch.zeros_like(q[:, :1])
    following = torch.cat((q[:, 1:count], beyond), 1)       # the first pixel that is left out
    q = q[:, :count]
    rest, power_all, power_top = [], x, q
    for _ in range(POWERS):
        rest.append((power_all.sum(1).double() - power_top.sum(1)).clamp_(min=0))
        power_all, power_top = power_all * x, power_top * q
    del power_all
    volume = q.sum(1) + rest[0]
    sizes = torch.arange(count + 1, dtype=torch.float64, device=x.device)
    chosen = torch.cat((torch.zeros_like(q[:, :1]), q.cumsum(1)), 1)
    about = objective.first_order(chosen, sizes, volume[:, None]).max(1).indices
    scores = _exact(objective, q, chosen, sizes, rest, about + volume + objective.smooth)
    ends = torch.cat((torch.ones_like(q[:, :1], dtype=torch.bool), q > following), 1)
    if n <= count:
        ends[:, -1] = True
    best_score, best = torch.where(ends, scores, -torch.inf).max(1)
    # The first pixel that the empty mask leaves out is the most probable one.
    limits = torch.cat((q[:, :1], following), 1)
    small = (volume < EXACT_VOLUME) & ((about < count // 2) | (n <= count))
    exact = {"threshold": limits.gather(1, best[:, None])[:, 0], "expected": best_score,
             "chosen": chosen.gather(1, best[:, None])[:, 0], "size": best.double(),
             "volume": volume, "empty": scores[:, 0]}
    for key, value in exact.items():
        answer[key] = torch.where(small, value, answer[key])


def _exact(objective, q, chosen, sizes, rest, scale):
    """`Objective.exact` for rows, (R, M + 1): q (R, M), chosen (R, M + 1), sizes (M + 1,), rest a
    list of (R,), scale (R,)."""
    largest = EXACT_VOLUME + CANDIDATES + objective.smooth
    nodes, weights = quadrature(largest, objective.smooth, 0.3)
    stretch = (largest / scale)[:, None]
    smooth, scores = objective.smooth, torch.zeros_like(chosen)
    for node, weight in zip(nodes.tolist(), weights.tolist(), strict=True):
        u, w = node * stretch, weight * stretch                 # (R, 1)
        decayed, z = torch.exp(-u), -torch.expm1(-u)
        kept = ((1 - q) + q * decayed).clamp_(min=TINY)
        log_rest = -sum(power[:, None] * z ** m / m for m, power in enumerate(rest, 1))
        if objective.metric == "dice":
            log_all = kept.log().sum(1, keepdim=True) + log_rest
            decay = w * torch.exp(log_all - (sizes + smooth) * u)
            scores += smooth * decay
            scores[:, 1:] += 2 * decayed * decay[:, 1:] * (q / kept).cumsum(1)
        else:
            left = kept.log().flip(1).cumsum(1).flip(1)
            left = torch.cat((left, torch.zeros_like(left[:, :1])), 1)
            scores += w * torch.exp(left + log_rest - (sizes + smooth) * u)
    return scores if objective.metric == "dice" else scores * (chosen + smooth)


def _labels(flat, objective, answer):
    """Labels (N, n): each pixel gets the class with the largest gain."""
    images, classes, n = flat.shape
    known = answer["chosen"], answer["size"], answer["volume"]
    active = answer["active"] | ~answer["active"].any(1, keepdim=True)
    gain = objective.gain(*known)
    gain_at_zero = torch.where(active, -objective.threshold(*known) * gain, -torch.inf)
    labels = torch.empty(images, n, dtype=label_dtype(classes), device=flat.device)
    step = max(1, ELEMENTS // classes)
    for image in range(images):
        slope = gain[image, :, None].to(torch.float32)
        offset = gain_at_zero[image, :, None].to(torch.float32)
        for start in range(0, n, step):
            part = full_precision(flat[image, :, start:start + step])
            labels[image, start:start + step] = torch.addcmul(offset.to(part.dtype), part,
                                                              slope).max(0).indices
    return labels
