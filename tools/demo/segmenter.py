"""Segments one uploaded image for the demo page."""
import math
from collections.abc import Iterable

import cv2
import numpy as np
import torch

from utils.decision.rules import EXPLAINED, RULES, build_decision
from utils.errors import DataError
from utils.evaluation.html_page import data_url
from utils.images.band_files import input_header, read_input
from utils.images.base_size import BaseSize, base_size_text, by_bands, whole_view
from utils.images.image_io import label_png
from utils.images.palette import colorize
from utils.images.types import Image
from utils.inference.prediction_files import as_stored
from utils.predict.open_model import OpenModel

# What a mode does, for the page.
MODES = {"whole": "the network sees the whole image at once",
         "sliding": "the network sees overlapping windows, and their answers are averaged",
         "multiscale": "the network sees the image at several sizes; the answers are averaged"}
_TIFF = (b"II", b"MM")          # first bytes; browsers do not show these files


class Segmenter:
    """The function that the server calls for each image: segmenter(path, mode, rule).

    pixels: larger images are refused, by their header.
    work_pixels: larger images are reduced to this number of pixels, or to the base size of the
        predictor if that is larger.
    options: the `predict` section; None: that of the checkpoint's config.
    """

    def __init__(self, opened: OpenModel, pixels: int, work_pixels: int,
                 options: dict | None = None):
        self.opened, self.pixels, self.work_pixels = opened, pixels, work_pixels
        options = opened.config["predict"] if options is None else options
        self.rules = {name: build_decision(name, opened.activation, options, opened.inverse)
                      for name in _first(options["test"], RULES)}
        self.predictors = {}
        self.protocol = options.get("protocol")
        for mode in _first(options["mode"], MODES):
            # The scales in the config are meant for its mode only.
            scales = {} if mode == options["mode"] else {"scales": None}
            self.predictors[mode] = opened.predictor(
                {**options, "mode": mode, **scales}).for_files()

    @property
    def base_size(self) -> BaseSize:
        """The size at which the network sees images."""
        return next(iter(self.predictors.values())).base_size

    def about(self) -> dict:
        """Returns what the page shows before the first image, and its choices."""
        opened = self.opened
        trained = f", epoch {opened.epoch}" if opened.epoch else ""
        return {"title": f"{opened.config['arch']['type']}{trained}", "name": opened.path.name,
                "classes": opened.class_names, "palette": opened.palette,
                "modes": list(self.predictors), "rules": list(self.rules),
                "explained": {**{mode: MODES[mode] for mode in self.predictors},
                              **{rule: EXPLAINED[rule] for rule in self.rules}},
                "size": self._size_text(), "work_pixels": self.work_pixels}

    def _size_text(self):
        """At which size the network sees an image."""
        first = next(iter(self.predictors.values()))
        size = "the input size of the config" if first.seen_at is not None else \
            base_size_text(first.base_size)
        validated = first.base_size is not None and first.base_size == self.opened.base_size
        return (f"The network sees images at {size}" + ", as in validation" * validated
                + (f", by the protocol {self.protocol}" if self.protocol else "")
                + "; labels have the size of the image.")

    def __call__(self, path: str, mode: str, rule: str) -> dict:
        """Returns the labels of an image file as a PNG, and the share of each class.

        "labels" is to look at, where black classes are transparent, as overlays show them; "file",
        if it is not the same, is the label map that inference.py writes. "image" is there for a
        file that browsers do not show.
        Raises DataError if the file is not an image or is too large.
        """
        image, (height, width) = self._read(path)
        predictor = self.predictors[mode]
        x = torch.from_numpy(image).permute(2, 0, 1)[None].contiguous()
        with torch.inference_mode():
            logits = predictor(x.to(predictor.takes(self.opened.device)))
            predictor.require_finite(["the image"])
            labels = self.rules[rule].labels(logits)[0].cpu().numpy()
        names, palette = self.opened.class_names, self.opened.palette
        counts = np.bincount(labels.ravel(), minlength=len(names)).tolist()
        shares = [{"name": name, "colour": list(color), "share": count / labels.size}
                  for name, color, count in zip(names, palette, counts, strict=False) if count]
        stored, colors = as_stored(labels, palette, self.opened.label_ids)
        file = data_url(label_png(stored, colors), "png")
        colored = colorize(labels, palette)
        shown_otherwise = len(colors) > 256 or not colored.any(-1).all()
        seen = data_url(_png(_with_alpha(colored)), "png") if shown_otherwise else file
        with open(path, "rb") as opened:
            hidden = opened.read(2) in _TIFF or self.opened.normalize.bands
        return {"height": labels.shape[0], "width": labels.shape[1],
                "original": [height, width], "labels": seen,
                **({"file": file} if shown_otherwise else {}),
                **({"image": data_url(_png(self.opened.normalize.picture(image)), "png")}
                   if hidden else {}),
                "classes": sorted(shares, key=lambda one: -one["share"])}

    def _read(self, path) -> tuple[Image, tuple[int, int]]:
        """Returns the image, reduced if it is too large for the network, and its original size."""
        normalize = self.opened.normalize
        height, width = size = input_header(path, normalize.bands).size
        if height * width > self.pixels:
            raise DataError(f"the image has {height}x{width} pixels; at most {self.pixels:,} are "
                            "accepted")
        image = read_input(path, normalize.white, normalize.bands)
        view = whole_view(height, width, self.base_size)
        kept = max(self.work_pixels, math.prod(view.size) if view else 0)
        share = (kept / (height * width)) ** 0.5
        if share < 1:
            reduced = (max(1, int(width * share)), max(1, int(height * share)))
            image = by_bands(lambda part: cv2.resize(part, reduced, interpolation=cv2.INTER_AREA),
                             image)
        return image, size


def _png(image: np.ndarray) -> bytes:
    """The PNG of RGB (H, W, 3) or of RGB with alpha (H, W, 4), uint8."""
    order = cv2.COLOR_RGB2BGR if image.shape[2] == 3 else cv2.COLOR_RGBA2BGRA
    return cv2.imencode(".png", cv2.cvtColor(image, order))[1].tobytes()


def _with_alpha(colored: Image) -> np.ndarray:
    """The picture, uint8 (H, W, 4), in which black is transparent."""
    return np.dstack([colored, 255 * colored.any(-1, keepdims=True).astype(np.uint8)])


def _first(name: str, names: Iterable[str]) -> list[str]:
    """Returns `names` with `name` first: the page preselects the first choice."""
    return [name, *(other for other in names if other != name)]
