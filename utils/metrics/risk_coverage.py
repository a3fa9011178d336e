"""Selective prediction: the error rate of the most confident pixels, and its area (AURC).

Geifman & El-Yaniv, Bias-Reduced Uncertainty Estimation for Deep Neural Classifiers, ICLR 2019,
arXiv:1805.08206. The prediction of a pixel is its most probable class, and its confidence that
probability. All labeled pixels of all images are sorted by confidence; the risk at a coverage c is
the share of errors among the first c of them. AURC is the mean of the risk over all coverages;
E-AURC subtracts that of the best order, all errors last, for the same number of errors.

Differs from the paper: pixels are counted in bins of confidence, of a width of 1/256 octave of
1 - confidence, so that memory does not depend on the data. Inside a bin the order is taken as
random, and the area is the integral over the share instead of a sum over pixels.
"""
import math
from collections.abc import Callable
from functools import cached_property

import numpy as np
import torch

from utils.images.sheet import FAINT, GRID, Sheet, png_bytes
from utils.metrics.reduction import all_reduce

PER_OCTAVE, OCTAVES = 256, 24       # 2^-24 is the smallest 1 - p above 0 in float32
BINS = PER_OCTAVE * OCTAVES + 1
POINTS = 101                        # of the curve that is stored and drawn
_LINE = (0, 114, 178)               # blue of a palette for color-blind readers (Okabe & Ito)


class RiskCoverage:
    """Counts pixels and errors by confidence, on the device; the same for any number of processes.

    posterior: logits (N, C, H, W) -> probabilities. Labels below 0, from num_classes on, and
    ignore_index are left out.
    """

    def __init__(self, posterior: Callable[[torch.Tensor], torch.Tensor], num_classes: int,
                 ignore_index: int = 255):
        self.posterior, self.num_classes = posterior, num_classes
        self.ignore_index = ignore_index
        self.counts = torch.zeros(2, BINS, dtype=torch.int64)       # pixels, errors

    def add(self, logits: torch.Tensor, labels: torch.Tensor):
        """Count logits (N, C, H, W) with labels (N, H, W), any integer dtype."""
        largest, guess = self.posterior(logits).max(1)
        labels = labels.long()
        valid = (labels >= 0) & (labels < self.num_classes) & (labels != self.ignore_index)
        # Bin 0 is certain; 1 - p is exact in float32 from p = 0.5 on.
        place = ((OCTAVES + (1 - largest.float()).log2()) * PER_OCTAVE).clamp_(0, BINS - 1).long()
        self.counts = self.counts.to(logits.device)
        for row, weight in zip(self.counts, (valid, valid & (guess != labels)), strict=True):
            row.scatter_add_(0, place.flatten(), weight.flatten().long())

    def compute(self) -> dict:
        """Over all processes; each must call this.

        AURC, E_AURC: see the head of this file. risk: of all pixels. coverage, curve: POINTS shares
        and the risk at each. Fractions; nan without a labeled pixel.
        """
        pixels, errors = self._summed
        total = pixels.sum()
        if not total:
            return {"AURC": math.nan, "E_AURC": math.nan, "risk": math.nan, "coverage": [],
                    "curve": []}
        risk = errors.sum() / total
        area = area_under_curve(pixels, errors)
        # All right pixels first: the risk is 0 up to 1 - risk, then (c - 1 + risk) / c.
        best = risk + (1 - risk) * math.log1p(-risk) if risk < 1 else 1.0
        coverage = np.linspace(0, 1, POINTS)
        after, wrong = np.cumsum(pixels) / total, np.cumsum(errors) / total
        at = np.interp(coverage, np.concatenate(([0], after)), np.concatenate(([0], wrong)))
        first = np.flatnonzero(pixels)[0]
        curve = np.divide(at, coverage, where=coverage > 0,
                          out=np.full(POINTS, errors[first] / pixels[first]))
        return {"AURC": area, "E_AURC": area - best, "risk": risk, "coverage": coverage.tolist(),
                "curve": curve.tolist()}

    def reliability(self, bins: int = 15) -> dict:
        """Calibration of the most probable class, over all processes; each must call this.

        ECE: the gap between confidence and accuracy, averaged over the pixels (as in
        utils.decision.calibration, which sorts a sample of pixels). pixels, confidence, accuracy:
        one number for each of `bins` bins of equal width from 0 to 1; the latter are nan in an
        empty bin. The confidence of a pixel is known to 0.2 % of 1 - p.
        """
        pixels, errors = self._summed
        middle = 1 - 2.0 ** ((np.arange(BINS) + 0.5) / PER_OCTAVE - OCTAVES)
        middle[[0, -1]] = 1.0, 0.0
        place = np.minimum((middle * bins).astype(int), bins - 1)
        count, sums, wrong = (np.bincount(place, weights, bins)
                              for weights in (pixels, pixels * middle, errors))
        some = np.maximum(count, 1)
        confidence, accuracy = (np.where(count > 0, values / some, math.nan)
                                for values in (sums, count - wrong))
        gap = np.abs(sums - (count - wrong)).sum()
        return {"ECE": gap / count.sum() if count.sum() else math.nan,
                "pixels": count.astype(int).tolist(), "confidence": confidence.tolist(),
                "accuracy": accuracy.tolist()}

    @cached_property
    def _summed(self) -> np.ndarray:
        """The counts of all processes, float64 (2, BINS)."""
        return all_reduce(self.counts.cpu()).double().numpy()


def area_under_curve(pixels: np.ndarray, errors: np.ndarray) -> float:
    """The mean risk over all coverages; pixels, errors: float64 (B,) by falling confidence.

    In a bin of n pixels and e errors, after N pixels and E errors, the risk at N + x pixels is
    (E + x e / n) / (N + x), whose integral is e + (E - N e / n) ln((N + n) / N).
    """
    area = before = wrong = 0.0
    for n, e in zip(pixels.tolist(), errors.tolist(), strict=True):
        if n:
            area += e + ((wrong - before * e / n) * math.log1p(n / before) if before else 0.0)
            before, wrong = before + n, wrong + e
    return area / before


def risk_coverage_picture(scores: dict) -> bytes:
    """A PNG of the curve that `RiskCoverage.compute` returns."""
    width, height, left, top = 460, 360, 62, 52
    sheet = Sheet(width + left + 24, height + top + 52)
    highest = max([0.01, *scores["curve"]])
    step = next(s for s in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5) if highest / s <= 6)
    end = step * math.ceil(highest / step)
    for number in range(round(end / step) + 1):
        y = top + height * (1 - number * step / end)
        sheet.line([(left, y), (left + width, y)], GRID)
        sheet.text(left - 6, y, f"{100 * number * step:g} %", anchor="rm")
    for tick in (0, 25, 50, 75, 100):
        x = left + width * tick / 100
        sheet.line([(x, top), (x, top + height)], GRID)
        sheet.text(x, top + height + 8, f"{tick} %", anchor="ma")
    sheet.line([(left + width * c, top + height * (1 - r / end))
                for c, r in zip(scores["coverage"], scores["curve"], strict=True)], _LINE, 2)
    sheet.text(left, 16, "Error rate of the most confident pixels", 13)
    area, excess, risk = (f"{100 * scores[key]:.2f} %" for key in ("AURC", "E_AURC", "risk"))
    sheet.text(left, 36, f"AURC {area}, of which {excess} for the order of the pixels (E-AURC); "
                         f"all pixels: {risk}", color=FAINT)
    sheet.text(left + width / 2, top + height + 36, "share of the pixels (coverage)", anchor="mm")
    return png_bytes(sheet.image())
