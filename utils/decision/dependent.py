"""RankDice and RankIoU for labels that depend on each other near by.

`utils.decision.rankdice` takes the labels of the pixels of a class as independent. In an object
whose border is uncertain they are not: where one pixel belongs to the class, its neighbors do too.
Here the labels of two pixels i and j at the distance r, with the probabilities p and
nu = sqrt(p (1 - p)), have the covariance

    nu_i nu_j K_ij,     K_ij = amplitude exp(-r^2 / (2 theta^2)),  K_ii = 1

(spatially localized dependence: Wang & Dai, On the Relaxation of Conditional Independence
Assumption for Image Segmentation, NeurIPS 2026; published: theta 300 pixels, amplitude 1). The
volume G of the class, given that pixel i belongs to it, is then expected to be

    mu_i = sum_j p_j + nu_i / p_i sum_j K_ij nu_j,

and to first order (1 / E for E of 1 /) a mask S of tau pixels has the expected scores

    Dice: sum_{i in S} 2 p_i / (tau + mu_i + g) + g / (tau + E[G] + g)            g = smooth
    IoU:  sum_{i in S} p_i / (tau + rho_i + g) + g / (tau + E[R] + g)

with R the volume outside the mask and rho_i = sum_{j not in S} (p_j + nu_i nu_j K_ij / p_i) its
expectation, given that pixel i belongs to the class. The IoU is derived here in the same way:
|S or Y| = tau + R.

The best mask takes the pixels that raise its score, which depends on the mask. So it is a fixed
point, found in a few rounds from the mask of the independent rule; a round that does not raise the
score is not taken, so the mask never scores below that one under this model.

K is a product of Gaussians along the axes, and a Gaussian that is wide compared with its axis has
few degrees of freedom: `_factors` interpolates it between a few nodes. A convolution with theta 300
is then two products with matrices of about 16 columns, many times faster than a Fourier transform.

Differs from the published rule: nothing is sorted; every round evaluates its mask by the formula
itself instead of an expansion around the mean of mu.
"""
import functools
import math
from typing import NamedTuple

import numpy as np
import torch

from utils.decision.expected_score import TINY, Objective
from utils.decision.rankdice import check_probabilities, check_settings, rank_dice
from utils.errors import ConfigError
from utils.machine.precision import full_dtype, full_precision
from utils.machine.tensors import LabelBatch, Masks, label_dtype

ELEMENTS = 2 ** 24       # probabilities that a GPU solves at a time; a CPU solves one class
ROUNDS = 10              # most rounds; two to four are usual
TOLERANCE = 1e-6         # a smaller rise of the score ends the rounds
SMALLEST = 1e-30         # a smaller probability, whose nu / p would overflow, counts as this


class Dependence(NamedTuple):
    """The correlation of labels: amplitude exp(-r^2 / (2 theta^2)) at r pixels, 1 at r = 0."""

    theta: float = 300.0
    amplitude: float = 1.0


def check_dependence(theta: float = 300.0, amplitude: float = 1.0):
    """Raises ConfigError if one of the fields of `Dependence` is wrong."""
    if not 0 < theta < float("inf"):
        raise ConfigError(f"theta must be a number of pixels above 0, got {theta}",
                          "predict.theta")
    if not 0 <= amplitude <= 1:
        raise ConfigError(f"amplitude must lie in 0..1, got {amplitude}", "predict.amplitude")


def rank_dependent(probs: torch.Tensor, smooth: float = 0.0, metric: str = "dice",
                   pruning: float = 0.5, overlap: bool = True, theta: float = 300.0,
                   amplitude: float = 1.0) -> Masks | LabelBatch:
    """The masks with the largest expected score of dependent labels, or a label map.

    theta: the distance, in pixels, over which labels depend on each other. amplitude: their
    correlation at the distance 0; at 0 they are independent. The rest is as in
    `utils.decision.rankdice.rank_dice`, including the errors.
    """
    check_probabilities(probs)
    check_settings(smooth, metric, pruning)
    check_dependence(theta, amplitude)
    # Devices other than CUDA may lack float64.
    solver = _Solver(probs if probs.is_cuda else probs.cpu(), Objective(metric, smooth), pruning,
                     Dependence(theta, amplitude))
    return (solver.masks() if overlap else solver.labels()).to(probs.device)


def expected_scores(probs: torch.Tensor, masks: Masks, metric: str = "dice", smooth: float = 0.0,
                    theta: float = 300.0, amplitude: float = 1.0) -> torch.Tensor:
    """The expected scores (N, C), float64, of masks under this model; see the head of this file.

    probs, masks: (N, C, H, W) or (N, C, D, H, W), float and bool.
    """
    scores = []
    for rows, mask in zip(full_precision(probs), masks, strict=True):
        problem = _Problem(rows, Objective(metric, smooth), Dependence(theta, amplitude))
        scores.append(problem.evaluate(mask.flatten(1).to(rows.dtype))[0])
    return torch.stack(scores)


class _Solver:
    """The answers for all classes of all images; a part of the classes of one image at a time.

    A CPU takes one class, which fits its cache, and leaves out pruned ones. A GPU takes many, and
    nothing is read back from it.
    """

    def __init__(self, probs, objective, pruning, dependence):
        self.probs, self.objective, self.dependence = probs.detach(), objective, dependence
        tops = self.probs.flatten(2).amax(2)
        self.active = ~(tops <= pruning)        # so a nan is active, and an error later
        self.gpu = on_gpu(probs)
        self.step = max(1, ELEMENTS // probs[0, 0].numel()) if self.gpu else 1

    def masks(self):
        masks = torch.zeros(self.probs.shape, dtype=torch.bool, device=self.probs.device)
        for image, part, growth in self._growths(self.active):
            out = masks[image, part]
            torch.gt(growth.view(out.shape), 0, out=out)
        return masks

    def labels(self):
        images, classes = self.probs.shape[:2]
        # Every pixel gets a label, so all classes of an image take part if all are pruned.
        active = self.active | ~self.active.any(1, keepdim=True)
        shape = images, self.probs[0, 0].numel()
        labels = torch.zeros(shape, dtype=label_dtype(classes), device=self.probs.device)
        largest = torch.full(shape, -torch.inf, device=self.probs.device,
                             dtype=full_dtype(self.probs))
        for image, part, growth in self._growths(active):
            for c, one in enumerate(growth, part.start):
                labels[image].masked_fill_(one > largest[image], c)
                torch.maximum(largest[image], one, out=largest[image])
        return labels.view(images, *self.probs.shape[2:])

    def _growths(self, active):
        """Yields (image, slice of classes, the growth of the score with each pixel (R, n)).

        The growth is positive for the pixels of the mask, and -inf for a class that is not active.
        """
        for image, probs in enumerate(self.probs):
            for start in range(0, len(probs), self.step):
                part = slice(start, min(start + self.step, len(probs)))
                if self.gpu:
                    growth = self._solve(probs[part])
                    yield image, part, growth.where(active[image, part, None], -torch.inf)
                elif active[image, start]:
                    yield image, part, self._solve(probs[part])

    def _solve(self, probs):
        """The growth of the score of the best masks (R, n) of classes (R, H, W)."""
        problem = _Problem(full_precision(probs), self.objective, self.dependence)
        growth = problem.independent()
        best, best_score = growth, torch.full_like(problem.volume, -torch.inf)
        searching = torch.ones_like(best_score, dtype=torch.bool)
        for _ in range(ROUNDS):
            score, following = problem.evaluate(positive(growth))
            rise = score - best_score
            if self.gpu:
                best = torch.where((searching & (rise > 0))[:, None], growth, best)
            elif rise > 0:
                best = growth
            best_score = torch.where(searching & (rise > 0), score, best_score)
            searching &= rise > TOLERANCE
            if not self.gpu and not searching.any():
                break           # half the cost of a round is the growth, which nobody needs now
            growth = following()
        if self.objective.smooth:
            empty = self.objective.smooth / (problem.volume + self.objective.smooth)
            best = torch.where((empty > best_score)[:, None], -problem.p, best)
        return best


def on_gpu(tensor: torch.Tensor) -> bool:
    """Whether nothing should be read back, and many classes are solved at once."""
    return tensor.is_cuda


class _Problem:
    """The expected scores of masks of classes, whose probabilities are (R, H, W) or (R, D, H, W).

    p, nu: (R, n). odds: nu / p. volume: the sum of p, float64 (R,), as are all sums. Masks are
    (R, n) of the dtype of p, because a CPU multiplies floats and bools slowly.
    """

    def __init__(self, probs, objective, dependence):
        self.objective, self.dependence, self.shape = objective, dependence, probs.shape
        self.p = probs.reshape(len(probs), -1)
        self.volume = self.p.sum(1).double()
        self.odds = (1 - self.p).clamp_(min=0).div_(self.p.clamp(min=SMALLEST)).sqrt_()
        self.nu = self.p * self.odds
        # mu + g, which is the same for every mask; the IoU has no such part.
        self.given = (None if objective.metric == "iou" else
                      self._told(self.nu).add_(self._each(self.volume + objective.smooth)))

    def independent(self):
        """The growth of the score with each pixel by the independent rule, (R, n)."""
        rows = self.p.view(1, len(self.p), 1, -1)
        _, info = rank_dice(rows, self.objective.smooth, self.objective.metric, 0.0,
                            return_info=True)
        excess = self.p - self._each(info.thresholds[0].to(self.p.device))
        mask = positive(excess)
        known = self._sum(self.p, mask), mask.sum(1).double(), self.volume
        return excess.mul_(self._each(self.objective.gain(*known)))

    def evaluate(self, mask):
        """The expected scores (R,) of masks (R, n), and a function for their growth.

        It returns the growth with each pixel (R, n), a derivative: of the score by a pixel, be it
        in the mask or not. Call it once.
        """
        return (self._dice if self.objective.metric == "dice" else self._iou)(mask)

    def _dice(self, mask):
        g, size = self.objective.smooth, mask.sum(1).double()
        denominator = self.given + self._each(size)
        share = self.p / denominator
        whole = self.volume + size + g + TINY

        def growth():
            lost = self._sum(denominator.reciprocal_().mul_(share), mask) + g / 2 / whole ** 2
            return share.sub_(self._each(lost)).mul_(2)
        return 2 * self._sum(share, mask) + g / whole, growth

    def _iou(self, mask):
        g, size = self.objective.smooth, mask.sum(1).double()
        union = self.volume - self._sum(self.p, mask) + size + g + TINY
        inside = self.nu * mask
        denominator = self._told(self.nu - inside).add_(self._each(union))
        share = self.p / denominator

        def growth():
            shrunk = denominator.reciprocal_()
            lost = self._sum(share * shrunk, mask) + g / union ** 2
            # A pixel that joins the mask leaves the volume outside it. So the union grows by
            # 1 - p, less what the pixel tells of the others that is now inside.
            kept = self._correlated(shrunk.square_().mul_(inside)).mul_(self.nu)
            return share.add_(kept).sub_((1 - self.p).mul_(self._each(lost)))
        return self._sum(share, mask) + g / union, growth

    def _told(self, nu):
        """What pixel i tells of the volume with these `nu` (R, n): nu_i / p_i sum_j K_ij nu_j."""
        return self._correlated(nu).mul_(self.odds)

    def _correlated(self, x):
        """sum_j K_ij x_j for (R, n)."""
        theta, amplitude = self.dependence
        spread = smoothed(x.view(self.shape), theta).reshape(x.shape)
        return spread if amplitude == 1 else spread.mul_(amplitude).add_(x, alpha=1 - amplitude)

    def _each(self, values):
        """(R,) float64 as (R, 1) in the dtype of the pixels."""
        return values.to(self.p.dtype)[:, None]

    def _sum(self, values, mask):
        return (values * mask).sum(1).double()


def positive(values: torch.Tensor) -> torch.Tensor:
    """values > 0 as 0 and 1 in the same dtype: on a CPU several times faster than as a bool."""
    return torch.gt(values, 0, out=torch.empty_like(values))


def smoothed(x: torch.Tensor, theta: float) -> torch.Tensor:
    """sum_j exp(-r_ij^2 / (2 theta^2)) x_j, of the shape of x: (R, H, W) or (R, D, H, W).

    Pixels outside the image count as 0. The error is that of sums in the dtype of x.
    """
    factors = [_factors(length, theta, x.dtype, x.device) for length in x.shape[1:]]
    # The last axis first, and later last: it is contiguous, and the others are then short.
    for axis in range(x.ndim - 1, 0, -1):
        x = _along(axis, x, factors[axis - 1][0])
    for axis in range(1, x.ndim):
        x = _along(axis, x, factors[axis - 1][1])
    return x


def _along(axis, x, matrix):
    """x with its axis multiplied by a matrix (length, new length); None changes nothing."""
    if matrix is None:
        return x
    return (x.movedim(axis, -1) @ matrix).movedim(-1, axis)


@functools.lru_cache(maxsize=32)
def _factors(length, theta, dtype, device):
    """Matrices (length, m), (m, length) whose product is the Gaussian between `length` pixels.

    The Gaussian is interpolated between m Chebyshev nodes in both directions, to 1e-8 of its
    largest value. Where that takes many, the first is None and the second the Gaussian itself.
    """
    places = np.arange(length)
    nodes = math.ceil(3 * length / theta) + 8       # its band limit, and what the ends need
    if nodes > length / 2:
        return None, torch.as_tensor(_gaussian(places, places, theta), dtype=dtype, device=device)
    degrees, angles = np.arange(nodes), (np.arange(nodes) + 0.5) * np.pi / nodes
    at = (length - 1) / 2 * (1 + np.cos(angles))
    # Chebyshev polynomials of the pixels, from those of the nodes.
    scaled = np.arccos(np.clip(2 * places / (length - 1) - 1, -1, 1))
    basis = (np.cos(scaled[:, None] * degrees) * (2 - (degrees == 0)) / nodes
             @ np.cos(degrees[:, None] * angles))
    return tuple(torch.as_tensor(matrix, dtype=dtype, device=device)
                 for matrix in (basis, _gaussian(at, at, theta) @ basis.T))


def _gaussian(a, b, theta):
    return np.exp(-(a[:, None] - b) ** 2 / (2 * theta ** 2))
