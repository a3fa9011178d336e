"""Refinement as a last stage: from label maps to label maps, with offsets of files or a network.

Yuan et al., SegFix, ECCV 2020, arXiv:2007.04269.
"""
import os
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from torch.nn import functional as F

from utils.errors import CheckpointError, ConfigError, DataError, shown, size_text
from utils.images.base_size import BaseSize, whole_view
from utils.machine.tensors import ImageBatch
from utils.predict.predictor import finite_images, not_finite
from utils.predict.resizing import at_base_size, at_own_size
from utils.predict.windows import mean_of_windows, strided_windows
from utils.segfix.mat_files import MatFolder, read_offsets
from utils.segfix.offsets import Refinement, offset_map

LabelMap = TypeVar("LabelMap", np.ndarray, torch.Tensor)     # labels (H, W), or masks (C, H, W)


def open_refiner(path: str | os.PathLike, scale: float = 2.0,
                 device: torch.device | str = "cpu") -> "Refiner":
    """The refiner for `path`, a folder of offset files or a SegFix checkpoint.

    scale: how many times the offset is added to find the pixel whose label is taken; the published
        values are 2 for semantic labels and 1 for instances. device: of the network.
    Raises ConfigError unless the scale is a number above 0, DataError for a folder without offset
    files, CheckpointError for the checkpoint of another network.
    """
    if not 0 < scale < float("inf"):
        raise ConfigError(f"the scale must be a number above 0, got {scale}", "--scale")
    missing_folder = not os.path.exists(path) and not os.fspath(path).endswith(".pth")
    if os.path.isdir(path) or missing_folder:       # FileOffsets reports the missing one
        return Refiner(FileOffsets(path), scale)
    return Refiner(NetworkOffsets.open(path, device), scale)


class Refiner:
    """Refines label maps: refiner(labels, image, name) -> refined labels.

    For several label maps of one image call `movement` once, and `refined` for each map.
    needs_image: True if the offsets are predicted from the image, False if they are read from a
    file, which is found by name.
    """

    def __init__(self, source: "FileOffsets | NetworkOffsets", scale: float = 2.0):
        self.source, self.scale, self.needs_image = source, scale, source.needs_image

    def __call__(self, labels: LabelMap, image: torch.Tensor | None = None,
                 name: str = "") -> LabelMap:
        """Refine labels (H, W), or masks (C, H, W), of any integer dtype or bool."""
        return refined(labels, self.movement(image, name, (labels.shape[-2], labels.shape[-1])))

    def movement(self, image: torch.Tensor | None, name: str, size: tuple[int, int]) -> Refinement:
        """Where each pixel of a label map of `size` (H, W) takes its label from.

        image: uint8 (3, H, W) RGB, the image of the labels, on any device; only used if
        needs_image. name: path or id of the image, used to find its file. Raises DataError with
        the name of a file that is missing, damaged or of another size.
        """
        return Refinement(self.source(image, name, size), self.scale)

    def describe(self) -> str:
        """For reports: where the offsets come from, and the scale."""
        return f"{self.source.describe()}, scale {self.scale:g}"


def refined(labels: LabelMap, move: Refinement) -> LabelMap:
    """labels (H, W), or masks (C, H, W), of any integer dtype or bool, moved by `move`."""
    if isinstance(labels, torch.Tensor):
        return torch.from_numpy(refined(labels.cpu().numpy(), move)).to(labels.device)
    return move(labels) if labels.ndim == 2 else np.stack([move(mask) for mask in labels])


class FileOffsets:
    """Offsets read from the published files, which are found by name."""

    needs_image = False

    def __init__(self, folder: str | os.PathLike):
        self.files = MatFolder(folder)

    def __call__(self, image: torch.Tensor | None, name: str, size: tuple[int, int]) -> np.ndarray:
        """Offsets (H, W, 2) for labels of `size` (H, W)."""
        return read_offsets(self.files.find(name), size)

    def describe(self) -> str:
        """For reports: the folder."""
        return f"offset files of {shown(self.files.folder)}"


class NetworkOffsets:
    """Offsets that a SegFix network predicts from the image.

    model: its method `heads(x)` returns mask logits (N, 2, h, w) and direction logits (N, D, h, w).
    normalize: uint8 (N, 3, H, W) -> float. crop, stride, base_size: see `predict_offsets`. white:
    of `read_image`, for its images.
    """

    needs_image = True

    def __init__(self, model: torch.nn.Module, normalize: Callable[[ImageBatch], ImageBatch],
                 path: str = "network", crop: int | None = None, stride: int | None = None,
                 white: float | None = None, base_size: BaseSize = None):
        self.model, self.normalize, self.path = model, normalize, path
        self.crop, self.stride, self.white, self.base_size = crop, stride, white, base_size

    @classmethod
    def open(cls, path: str | os.PathLike, device: torch.device | str = "cpu",
             crop: int | None = None, stride: int | None = None) -> "NetworkOffsets":
        """The offsets of the network in a checkpoint, at the size of its validation.

        Raises CheckpointError if the network is not a SegFix network.
        """
        from utils.checkpoint.read import read_checkpoint
        from utils.predict.open_model import open_model
        opened = open_model(read_checkpoint(os.fspath(path)), device, path)
        if not hasattr(opened.model, "heads"):
            raise CheckpointError(f"{type(opened.model).__name__} predicts classes, not offsets",
                                  shown(path), "give a SegFix checkpoint, or a folder of offset "
                                  "files")
        predictor = opened.predictor()
        if predictor.seen_at is not None:
            raise ConfigError("offsets are predicted at a base size; the config of this network "
                              f"has an input size ({predictor.seen_at.describe()})", shown(path),
                              "train or convert it with predict.base_size")
        return cls(opened.model, opened.normalize, str(path), crop, stride,
                   opened.normalize.white, predictor.base_size)

    def __call__(self, image: torch.Tensor | None, name: str, size: tuple[int, int]) -> np.ndarray:
        """Offsets int8 (H, W, 2) of an image, uint8 (3, H, W) RGB, for labels of `size` (H, W)."""
        if image is None or tuple(image.shape[-2:]) != size:
            raise DataError(f"the labels are {size_text(size)} (height x width), the image "
                            + ("is not there" if image is None else
                               f"is {size_text(image.shape[-2:])}"), shown(name) or None,
                            "offsets are predicted from the image of the labels' size")
        return self.predict(image)

    def predict(self, image: torch.Tensor) -> np.ndarray:
        """Offsets int8 (H, W, 2) of one image, uint8 (3, H, W) RGB."""
        return predict_offsets(self.model, self.normalize, image, self.crop, self.stride,
                               self.base_size)

    def describe(self) -> str:
        """For reports: the path of the checkpoint."""
        return f"the network {shown(self.path)}"


def predict_offsets(model: torch.nn.Module, normalize: Callable[[ImageBatch], ImageBatch],
                    image: torch.Tensor, crop: int | None = None,
                    stride: int | None = None, base_size: BaseSize = None) -> np.ndarray:
    """Offsets int8 (H, W, 2), (dy, dx), of one image, uint8 (3, H, W) RGB.

    crop: None runs on the whole image. A number runs on square windows of this size that start
        every `stride` pixels (default a third of the crop), the last ones at the far edges
        (utils.predict.windows), and averages their predictions. The published script uses 512
        and 170. As published, the softmax over the mask is computed before the upsampling
        (bilinear, align_corners), and directions are averaged as logits.
    base_size: the size at which the network sees the image (utils.images.base_size); border and
        directions are resized back.
    Raises NumericalError if the network's outputs are not finite.
    """
    device = next(model.parameters()).device
    own = image.shape[-2], image.shape[-1]
    view = whole_view(*own, base_size)
    images = image[None] if view is None else at_base_size(image[None], view)
    size = images.shape[-2], images.shape[-1]
    if crop is None:
        windows = strided_windows(size, size, size)
    else:
        step = stride or max(1, crop // 3)
        windows = strided_windows(size, (crop, crop), (step, step))
    with torch.inference_mode():
        x = normalize(images.to(device))
        if len(windows.places) == 1:
            mask, direction = _full_size(model, x)
        else:
            views = ((*place, torch.cat(_full_size(model, x[(..., *windows.area(*place))]), dim=1))
                     for place in windows.places)
            mean = mean_of_windows(windows, views)
            mask, direction = mean[:, :2], mean[:, 2:]
        if not (finite_images(mask) & finite_images(direction)).all():
            raise not_finite()
        if view is not None:
            mask, direction = (at_own_size(part, view, own) for part in (mask, direction))
        return offset_map(mask, direction)[0].cpu().numpy()


def _full_size(model, x):
    """(border probabilities (N, 2, H, W), direction logits (N, D, H, W)) of normalized images."""
    mask, direction = model.heads(x)
    return tuple(F.interpolate(each.float(), x.shape[-2:], mode="bilinear", align_corners=True)
                 for each in (mask.float().softmax(1), direction))
