"""RankDice and RankIoU: the masks that maximize the expected Dice or IoU score.

Problem: Dai & Li, RankSEG, JMLR 2023. One class of one image has n pixels with
independent labels Y_j ~ Bernoulli(q_j). We look for the mask v that maximizes

    Dice: E[(2 sum v_j Y_j + g) / (|v| + sum Y_j + g)]     g = smooth, 0 / 0 := 0
    IoU:  E[(sum v_j Y_j + g) / (|v or Y| + g)]

A set of the largest q_j is always best, so one threshold per class describes the mask. The
solver depends on the volume mu, the sum of all q_j (in pixels); `_solver_for` chooses it for each
class of each image. C and N are the sum and the count of the chosen q_j.

* Large volumes, from SORTED_VOLUME, in images of more than FEW_PIXELS pixels (`_solve_large`): the
  score is about (2C + g) / (N + mu + g), a ratio of linear functions of the mask (Wang & Dai,
  RankSEG-RMA, NeurIPS 2025: reciprocal moment approximation). Its maximum is the fixed point of
  t -> (C(t) + g/2) / (N(t) + mu + g) (Dinkelbach 1967), reached in two or three passes over the
  pixels; nothing is sorted.
* Medium volumes (`_solve_sorted`): the candidates are sorted, and the second-order expansion of
  the expectation is maximized over every size.
* Small volumes, below EXACT_VOLUME (`_solve_sorted`): the same with the exact expectation, as the
  integral E[1 / (a + G)] = int_0^inf exp(-a u) prod_j (1 - q_j (1 - exp(-u))) du.

On a GPU, utils.decision.rankdice_batched solves all classes and images at once, in the same way.

Differs from the published code: large classes are not sorted; small volumes are exact; the mean is
truncated, which costs up to 0.2 of expected Dice, only by the solver "published_truncated".

The probabilities must be calibrated: with networks trained with focal, Dice or Lovasz losses the
rule gains little or loses (docs/rankdice.md, tools.calibrate).
"""
import concurrent.futures
import contextlib
import dataclasses
from typing import Literal, overload

import numpy as np
import torch

from utils.decision.expected_score import EXACT_VOLUME, FAINT, Objective
from utils.decision.rankdice_batched import solve_batched
from utils.errors import ConfigError, NumericalError, unknown
from utils.machine.precision import full_precision
from utils.machine.tensors import LabelBatch, Masks, label_dtype

METRICS = ("dice", "iou")
TRUNCATED = "published_truncated"
SOLVERS = ("auto", "exact", "rma", TRUNCATED)
SORTED_VOLUME = 2048     # smaller volumes are sorted: the error of RMA is 0.15 / mu^2
FEW_PIXELS = 4096        # with at most this many pixels, each one is a candidate
STRIDE = 16              # the warm start uses one block of SAMPLE pixels out of 16
SAMPLE = 64
BLOCK = 2 ** 15          # pixels that are labeled at a time, with all their classes
PARALLEL = 2 ** 18       # from this many probabilities on, several threads are faster
TOLERANCE = 1e-3         # a larger relative change of the threshold needs another pass
PASSES = 20              # most Newton passes; three to six are usual


@dataclasses.dataclass
class RankInfo:
    """thresholds, expected: (N, C) float64 on the CPU or the device of the probabilities.

    A pixel is in the mask if its probability exceeds the threshold of its class. `expected` is
    the expected score of the mask (exact for small volumes, second order for medium, first order
    for large ones). A pruned class has threshold 1 and the score of the empty mask.
    """
    thresholds: torch.Tensor
    expected: torch.Tensor


@overload
def rank_dice(probs: torch.Tensor, smooth: float = ..., metric: str = ..., pruning: float = ...,
              overlap: bool = ..., solver: str = ..., return_info: Literal[False] = ...
              ) -> Masks | LabelBatch: ...


@overload
def rank_dice(probs: torch.Tensor, smooth: float = ..., metric: str = ..., pruning: float = ...,
              overlap: bool = ..., solver: str = ..., *, return_info: Literal[True]
              ) -> tuple[Masks | LabelBatch, RankInfo]: ...


def rank_dice(probs: torch.Tensor, smooth: float = 0.0, metric: str = "dice",
              pruning: float = 0.5, overlap: bool = True, solver: str = "auto",
              return_info: bool = False
              ) -> Masks | LabelBatch | tuple[Masks | LabelBatch, RankInfo]:
    """The masks with the largest expected score, or a label map.

    probs: (N, C, H, W) probabilities, softmax or sigmoid; half precision is promoted. Those of
        volumes are (N, C, D, H, W), with masks of that shape and labels (N, D, H, W).
    smooth: g of the score, >= 0. With g > 0 the empty mask is a candidate.
    metric: "dice" or "iou".
    pruning: a class whose largest probability does not exceed this stays empty. Not part of
        the optimum; it avoids the score of 0 of a predicted class that is absent. 0 turns it off.
    overlap: True returns bool masks (N, C, H, W), which may overlap or leave pixels to no
        class. False returns labels (N, H, W), uint8 up to 255 classes, int16 above: each
        pixel goes to the class whose score it raises most, or lowers least.
    solver: "auto" chooses by volume, as described above; "exact" is the exact expectation in
        float64 for every volume (slow, for tests); "rma" the first-order score for every volume;
        "published_truncated" (Dice only) the same with the number of probabilities of at least
        0.5 in place of the expected volume, as in the published Cityscapes tests of networks
        trained with the focal loss: it costs up to 0.2 of expected Dice, and reproduces them.
    return_info: also return `RankInfo`.
    Raises ConfigError for a wrong setting, ValueError for a tensor of another shape or dtype, and
    on a CPU NumericalError for a probability that is not finite.
    """
    check_probabilities(probs)
    check_settings(smooth, metric, pruning, solver)
    problem = _Problem(Objective(metric, smooth), pruning, solver)
    flat = probs.detach().contiguous().flatten(2)        # (N, C, n)
    if probs.is_cuda and solver not in ("exact", TRUNCATED):
        result, info = solve_batched(flat, problem.objective, pruning, solver, overlap)
        info = RankInfo(*info)
    else:
        result, info = _by_row(flat.cpu(), problem, overlap, return_info)
        result = result.to(probs.device)
    result = result.view(probs.shape if overlap else (len(probs), *probs.shape[2:]))
    if not return_info:
        return result
    assert info is not None, "info was requested"
    return result, info


def check_probabilities(probs: torch.Tensor):
    """Raises ValueError if `probs` is not a float tensor of images or volumes."""
    if probs.ndim not in (4, 5) or not probs.is_floating_point():
        raise ValueError("probs must be a float tensor (N, C, H, W) or (N, C, D, H, W), got "
                         f"{probs.dtype} {tuple(probs.shape)}")


def check_settings(smooth: float = 0.0, metric: str = "dice", pruning: float = 0.5,
                   solver: str = "auto"):
    """Raises ConfigError if one of these arguments of `rank_dice` is wrong."""
    if metric not in METRICS:
        raise ConfigError(unknown("metric", metric, METRICS), "rank_dice")
    if solver not in SOLVERS:
        raise ConfigError(unknown("solver", solver, SOLVERS), "predict.solver")
    if solver == TRUNCATED and metric != "dice":
        raise ConfigError(f'"{TRUNCATED}" was published for Dice only', "predict.solver",
                          'use the rule "rankdice", or another solver')
    if not 0 <= smooth < float("inf"):
        raise ConfigError(f"smooth must not be negative, got {smooth}", "predict.smooth")
    if not 0 <= pruning <= 1:
        raise ConfigError(f"pruning must lie in 0..1, got {pruning}", "predict.pruning")


@dataclasses.dataclass(frozen=True)
class _Problem:
    """The settings of `rank_dice`, the same for every class."""

    objective: Objective
    pruning: float
    solver: str


@dataclasses.dataclass
class _Answer:
    """The best mask of one class of one image.

    A pixel is in the mask if its probability exceeds `threshold`. expected: its expected score.
    chosen, size: sum and count of the probabilities in the mask; volume: the sum of all.
    """

    threshold: float
    expected: float
    chosen: float
    size: float
    volume: float


def _by_row(flat, problem, overlap, with_info):
    """CPU: solve one class of one image after the other, so that its pixels stay in the cache.

    flat: probabilities (N, C, n). returns: masks (N, C, n) or labels (N, n), and RankInfo or None.
    """
    images, classes, n = flat.shape
    answers = {}
    masks = torch.zeros(flat.shape if overlap else 0, dtype=torch.bool)

    def solve(place, prune=True):
        row = full_precision(flat[place]).numpy()
        mask = masks[place].numpy() if overlap else np.empty(n, bool)
        answer = _solve_class(row, problem, mask, prune)
        if overlap and answer is not None:
            np.greater(row, answer.threshold, out=mask)
        answers[place] = answer

    with _pool(flat.numel()) as run:
        run(solve, [(i, c) for i in range(images) for c in range(classes)])
        info = _info(flat, problem, answers) if with_info else None
        if overlap:
            result = masks
        else:
            empty = [i for i in range(images)
                     if all(answers[i, c] is None for c in range(classes))]
            # Every pixel gets a label, so an image whose classes are all pruned needs answers.
            run(lambda place: solve(place, prune=False),
                [(i, c) for i in empty for c in range(classes)])
            result = _labels_by_row(flat, problem, answers, run)
    return result, info


def _info(flat, problem, answers):
    info = torch.ones(2, *flat.shape[:2], dtype=torch.float64)
    for place, answer in answers.items():
        if answer is None:
            info[1][place] = _empty_score(full_precision(flat[place]).numpy(), problem)
        else:
            info[0][place], info[1][place] = answer.threshold, answer.expected
    return RankInfo(*info)


def _empty_score(row, problem):
    """The expected score of the empty mask: E[g / (G + g)]."""
    if problem.objective.smooth == 0:
        return 0.0
    clear = row > FAINT
    q = np.sort(row[clear].astype(np.float64))[::-1]
    rest = _power_sums(row[~clear], 3)
    scale = q.sum() + rest[0] + problem.objective.smooth
    return float(problem.objective.exact(q, rest, scale)[0])


def _solve_class(row, problem, scratch, prune):
    """The answer for one class of one image; None if it is pruned.

    row: the probabilities of its pixels (n,), float32 or float64. scratch: bool (n,), overwritten.
    """
    top = float(row.max())
    if not top < np.inf:        # nan, which the maximum passes on, or infinite
        raise NumericalError("a probability is not finite (NaN or Inf)", "rank_dice",
                             "check the logits")
    if prune and not top > problem.pruning:
        return None
    volume = float(row.sum())
    solve = _solver_for(problem.solver, volume, len(row))
    return solve(row, top, volume, problem, scratch)


def _solver_for(setting, volume, pixels):
    """The solver for one class of one image, by its expected volume; see the head of this file.

    `_solve_sorted` computes exact scores below EXACT_VOLUME and second-order ones above.
    """
    if setting == TRUNCATED:
        return _solve_truncated
    if setting == "rma":
        return _solve_large
    if setting == "exact" or volume < SORTED_VOLUME or pixels <= FEW_PIXELS:
        return _solve_sorted
    return _solve_large


def _solve_large(row, top, volume, problem, scratch):
    """The first-order optimum: the fixed point of the threshold, from a warm start."""
    start = _warm_start(row, top, problem.objective)
    threshold, chosen, size = _fixed_point(row, start, volume, problem.objective, scratch)
    expected = float(problem.objective.first_order(chosen, size, volume))
    return _Answer(threshold, expected, chosen, size, volume)


def _solve_truncated(row, top, volume, problem, scratch):
    """The first-order optimum for a volume that is the number of probabilities of at least 0.5.

    The repository of RankDice calls this truncate_mean. Its scores are those of that volume.
    """
    return _solve_large(row, top, float(np.count_nonzero(row >= 0.5)), problem, scratch)


def _warm_start(row, top, objective):
    """The threshold of a sample of the pixels: every 16th block of pixels contiguous in memory."""
    blocks = len(row) // (STRIDE * SAMPLE)
    if blocks < STRIDE:
        return min(0.5, top / 2)
    sample = np.ascontiguousarray(
        row[:blocks * STRIDE * SAMPLE].reshape(blocks, STRIDE, SAMPLE)[:, 0]).ravel()
    scaled = dataclasses.replace(objective, smooth=objective.smooth / STRIDE)
    threshold, _, _ = _fixed_point(sample, 0.5, float(sample.sum()), scaled,
                                   np.empty(len(sample), bool))
    return threshold or min(0.5, top / 2)


def _fixed_point(row, threshold, volume, objective, scratch):
    """Iterate the threshold; returns it, and sum and count of the pixels above the previous one."""
    buffer = np.empty_like(row)
    for _ in range(PASSES):
        chosen, size = _above(row, threshold, scratch, buffer)
        previous, threshold = threshold, float(objective.threshold(chosen, size, volume))
        if abs(threshold - previous) <= TOLERANCE * threshold:
            break
    return threshold, chosen, size


def _above(row, threshold, scratch, buffer):
    """Sum and count of the pixels above the threshold."""
    size = int(np.count_nonzero(np.greater(row, threshold, out=scratch)))
    # Sum the excess over the threshold: a large sum would lose digits when it cancels.
    np.subtract(row, row.dtype.type(threshold), out=buffer)
    np.maximum(buffer, 0, out=buffer)
    return float(buffer.sum()) + size * threshold, size


def _solve_sorted(row, top, volume, problem, scratch):
    """The best size of the sorted candidates by exact or second-order scores, in float64."""
    objective, precise = problem.objective, problem.solver == "exact"
    few = len(row) <= FEW_PIXELS
    # The score of any mask bounds the best threshold from below. Dividing it by 4 leaves a wide
    # margin for the difference between the first-order threshold and the exact one.
    chosen, size = _above(row, min(0.5, top / 2), scratch, np.empty_like(row))
    floor = float(objective.threshold(chosen, size, volume)) / 4
    floor = -1.0 if few else floor if precise else min(floor, FAINT)
    q = np.sort(row[np.greater(row, floor, out=scratch)].astype(np.float64))[::-1]
    rest = _power_sums(row[np.logical_not(scratch, out=scratch)], 16 if precise else 3)
    volume = q.sum() + rest[0]
    chosen = np.concatenate(([0.0], np.cumsum(q)))
    sizes = np.arange(len(chosen))
    if precise or volume < EXACT_VOLUME:
        about = int(np.argmax(objective.first_order(chosen, sizes, volume)))
        scores = objective.exact(q, rest, about + volume + objective.smooth, precise)
    else:
        chosen_variance = np.concatenate(([0.0], np.cumsum(q * (1 - q))))
        variance = chosen_variance[-1] + rest[0] - rest[1]
        scores = objective.second_order(chosen, chosen_variance, sizes, volume, variance)
    # A threshold takes all pixels of equal probability or none; one of the best masks does, too.
    ends = np.concatenate(([True], q[:-1] > q[1:], [True]))[:len(scores)]
    best = int(np.argmax(np.where(ends, scores, -np.inf)))
    threshold = float(q[best]) if best < len(q) else max(floor, 0.0)
    return _Answer(threshold, float(scores[best]), float(chosen[best]), best, float(volume))


def _power_sums(values, count):
    """The sums of values, values^2, ..., values^count."""
    values = values.astype(np.float64)
    power, sums = np.ones_like(values), []
    for _ in range(count):
        power *= values
        sums.append(float(power.sum()))
    return tuple(sums)


def _labels_by_row(flat, problem, answers, run):
    """Labels (N, n): each pixel gets the class with the largest gain, a block of pixels at a time.
    """
    images, classes, n = flat.shape
    labels = torch.zeros(images, n, dtype=label_dtype(classes))    # where no gain is a number

    def fill(place):
        image, start = place
        block = full_precision(flat[image, :, start:start + BLOCK]).numpy()
        out = labels[image, start:start + BLOCK].numpy()
        best = np.full(len(out), -np.inf, block.dtype)
        gain, better = np.empty_like(best), np.empty(len(out), bool)
        for c in range(classes):
            answer = answers[image, c]
            if answer is None:
                continue
            known = answer.chosen, answer.size, answer.volume
            np.subtract(block[c], block.dtype.type(problem.objective.threshold(*known)), out=gain)
            gain *= block.dtype.type(problem.objective.gain(*known))
            np.greater(gain, best, out=better)
            np.copyto(best, gain, where=better)
            out[better] = c

    run(fill, [(i, start) for i in range(images) for start in range(0, n, BLOCK)])
    return labels


@contextlib.contextmanager
def _pool(elements):
    """Yields map(function, places), on as many threads as torch uses (numpy releases the GIL)."""
    threads = torch.get_num_threads()
    if threads == 1 or elements < PARALLEL:
        yield lambda function, places: [function(place) for place in places]
        return
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        yield lambda function, places: list(pool.map(function, places))
