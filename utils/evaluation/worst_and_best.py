"""Keeps small pictures of the worst and the best images of an evaluation, in its only pass."""
import bisect
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict

import numpy as np
import torch

from utils.errors import counted
from utils.evaluation.html_page import data_url, small_picture
from utils.evaluation.result_page import ShownImage
from utils.images.palette import colorize
from utils.machine.tensors import ImageBatch, LabelBatch, Masks
from utils.metrics import ImageMetrics
from utils.metrics.counts import PixelCounts
from utils.metrics.reduction import all_gather

MOST = 6            # worst images, and as many best ones
WIDTH = 480         # pixels of a picture


class WorstAndBest:
    """The images with the lowest and with the highest mIoU_I under the first rule.

    Only the pictures of the 2 x `most` images that lead at the moment are in memory. Of equal
    scores the first in the data count as the worse, so the choice is the same for any number of
    processes, and no image is on both sides while there are others.

    palette: (r, g, b) by class id. shown: makes pictures to look at of images that are not RGB.
    The other arguments are those of `ImageMetrics`.
    """

    def __init__(self, palette: Sequence[Sequence[int]], num_classes: int, ignore_index: int = 255,
                 classes_of_interest: list[int] | str | None = None, published: bool = False,
                 most: int = MOST, shown: Callable[[ImageBatch], ImageBatch] | None = None):
        self.palette, self.most, self._shown = palette, most, shown
        self._settings = (num_classes, ignore_index, classes_of_interest)
        self._published, self._first, self._masks = published, "", False
        # Ordered by (score, position), and by (-score, -position).
        self._worst: list[tuple[float, int, ShownImage]] = []
        self._best: list[tuple[float, int, ShownImage]] = []

    def add(self, rule: str, prediction: LabelBatch | Masks, counts: PixelCounts,
            images: ImageBatch, labels: LabelBatch, ids: Sequence[str],
            positions: Iterable[int]):
        """Look at the images of one size; of each batch, the first rule must come first.

        prediction: labels (N, H, W) or masks (N, C, H, W). counts: of count_pixels. images:
        uint8 (N, 3, h, w), of any size. positions: of the N images in the data.
        """
        places = list(positions)
        self._first = self._first or rule
        self._masks |= prediction.ndim > labels.ndim
        if rule == self._first:
            self._choose(counts, images, labels, ids, places)
        for position, one in self._kept().items():
            if position in places:
                drawn = label_map(prediction[places.index(position)])
                one.predictions[rule] = _drawn(drawn, self.palette)
                one.classes[:] = sorted({*one.classes, *_classes(drawn, self.palette)})

    def _choose(self, counts, images, labels, ids, places):
        metrics = ImageMetrics(*self._settings, published=self._published)
        metrics.add(counts, places)
        found = metrics.compute()
        for position, score in zip(found["img_index"], found["img_miou"], strict=True):
            if score != score or not (_enters(self._worst, score, position, self.most)
                                      or _enters(self._best, -score, -position, self.most)):
                continue
            k = places.index(position)
            truth = labels[k].cpu().numpy()
            photo = images[k] if self._shown is None else self._shown(images[k])
            photo = photo.cpu().numpy().transpose(1, 2, 0)
            one = ShownImage(ids[k], score,
                             data_url(small_picture(photo, WIDTH, photo=True), "jpeg"),
                             _drawn(truth, self.palette), {}, _classes(truth, self.palette))
            for kept, sign in ((self._worst, 1), (self._best, -1)):
                bisect.insort(kept, (sign * score, sign * position, one),
                              key=lambda entry: entry[:2])
                del kept[self.most:]

    def _kept(self) -> dict[int, ShownImage]:
        """position -> image, each once."""
        return {abs(position): one for _, position, one in (*self._worst, *self._best)}

    def gather(self) -> tuple[list[ShownImage], list[ShownImage]]:
        """(worst, best) over all processes, each of which must call this once.

        No image is in both: of few images, the better half are the best.
        """
        lines = "".join(json.dumps({**asdict(one), "position": position}) + "\n"
                        for position, one in self._kept().items())
        block = torch.frombuffer(bytearray(lines.encode() or b"\n"), dtype=torch.uint8)
        content = all_gather(block[:, None]).numpy().tobytes().decode()
        found = [json.loads(line) for line in content.splitlines() if line]
        found.sort(key=lambda one: (one["score"], one["position"]))
        images = [ShownImage(**{key: value for key, value in one.items() if key != "position"})
                  for one in found]
        count = min(self.most, (len(images) + 1) // 2)
        return images[:count], images[count:][:-self.most - 1:-1]

    def about(self, worst: int, best: int) -> str:
        """A line on the numbers of images that `gather` has returned."""
        masks = (" Masks may overlap: a pixel has the color of the first class among them, and "
                 "black where it is in none." if self._masks else "")
        return (f"{counted(worst, 'image')} with the lowest and {counted(best, 'image')} with the "
                f"highest mIoU_I under {self._first}, at most {WIDTH} pixels wide.{masks}")


def _enters(kept, key, position, most):
    return len(kept) < most or (key, position) < kept[-1][:2]


def label_map(prediction: torch.Tensor) -> np.ndarray:
    """Labels (H, W) of a prediction (H, W) or of masks (C, H, W).

    Where masks overlap, it is the first class; where there is none, -1.
    """
    if prediction.ndim == 2:
        return prediction.cpu().numpy()
    first = prediction.to(torch.uint8).argmax(0)
    return first.masked_fill_(~prediction.any(0), -1).cpu().numpy()


def _drawn(labels, palette):
    return data_url(small_picture(colorize(labels, palette), WIDTH, photo=False), "png")


def _classes(labels, palette):
    """The class ids that occur."""
    return [int(k) for k in np.unique(labels) if 0 <= k < len(palette)]
