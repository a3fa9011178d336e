"""Refinement as a last stage: label maps in, label maps out, offsets from files or a network.

Yuan et al., SegFix, ECCV 2020, arXiv:2007.04269.
"""
import os

import numpy as np
import torch

from utils.errors import CheckpointError, ConfigError, DataError
from utils.image_io import shown
from utils.segfix import Refinement, offset_map
from utils.segfix_files import MatFolder, read_offsets


def open_refiner(path: str | os.PathLike, scale: float = 2.0,
                 device: torch.device | str = "cpu") -> "Refiner":
    """What refines label maps by `path`: a folder of offset files or a SegFix checkpoint.

    scale: how many offsets further a pixel's label is taken from; 2 is the
    published value for semantic labels, 1 for instances. device: of the network.
    Raises ConfigError for a scale that is none, DataError for a folder without
    offset files, CheckpointError for a checkpoint of another network.
    """
    if not 0 < scale < float("inf"):
        raise ConfigError(f"the scale must be a number above 0, got {scale}", "--scale")
    source = FileOffsets(path) if os.path.isdir(path) or not os.path.exists(path) \
        and not os.fspath(path).endswith(".pth") else NetworkOffsets.open(path, device)
    return Refiner(source, scale)


class Refiner:
    """refiner(labels, image, name) -> refined labels; in two steps for several maps of an image.

    needs_image: whether the offsets come from the image (a network) or by name
    from a file.
    """

    def __init__(self, source: "FileOffsets | NetworkOffsets", scale: float = 2.0):
        self.source, self.scale, self.needs_image = source, scale, source.needs_image

    def __call__(self, labels: np.ndarray | torch.Tensor, image: torch.Tensor | None = None,
                 name: str = "") -> np.ndarray | torch.Tensor:
        """labels (H, W), or masks (C, H, W), of any integer dtype or bool -> the same, refined."""
        return refined(labels, self.movement(image, name, tuple(labels.shape[-2:])))

    def movement(self, image: torch.Tensor | None, name: str, size: tuple[int, int]) -> Refinement:
        """Where every pixel of the labels (H, W) = `size` takes its label from.

        image: uint8 (3, H, W) RGB, the one the labels belong to, on any device;
        only looked at if needs_image. name: path or id of the image, by which a
        file is found. Raises DataError naming a file that is missing, damaged
        or of another size.
        """
        return Refinement(self.source(image, name, size), self.scale)

    def describe(self) -> str:
        """For reports: where the offsets come from, and the scale."""
        return f"{self.source.describe()}, scale {self.scale:g}"


def refined(labels: np.ndarray | torch.Tensor, move: Refinement) -> np.ndarray | torch.Tensor:
    """labels (H, W), or masks (C, H, W), of any integer dtype or bool, moved."""
    array = labels.cpu().numpy() if isinstance(labels, torch.Tensor) else labels
    moved = move(array) if array.ndim == 2 else np.stack([move(mask) for mask in array])
    return torch.from_numpy(moved).to(labels.device) if array is not labels else moved


class FileOffsets:
    """Offsets of the published files, found by name."""

    needs_image = False

    def __init__(self, folder: str | os.PathLike):
        self.files = MatFolder(folder)

    def __call__(self, image, name: str, size: tuple[int, int]) -> np.ndarray:
        return read_offsets(self.files.find(name), size)

    def describe(self) -> str:
        return f"offset files of {shown(self.files.folder)}"


class NetworkOffsets:
    """Offsets that a SegFix network predicts from the image.

    model: has `heads(x)`: (mask logits (N, 2, h, w), direction logits (N, D, h, w)).
    normalize: uint8 (N, 3, H, W) -> float. crop, stride: see `predict_offsets`.
    """

    needs_image = True

    def __init__(self, model: torch.nn.Module, normalize, path: str = "network",
                 crop: int | None = None, stride: int | None = None):
        self.model, self.normalize, self.path = model, normalize, path
        self.crop, self.stride = crop, stride

    @classmethod
    def open(cls, path: str | os.PathLike, device: torch.device | str = "cpu",
             crop: int | None = None, stride: int | None = None) -> "NetworkOffsets":
        """Of a checkpoint; CheckpointError unless its network is a SegFix."""
        from utils.checkpoint import read_checkpoint
        from utils.open_model import open_model
        opened = open_model(read_checkpoint(path), device, path)
        if not hasattr(opened.model, "heads"):
            raise CheckpointError(f"{type(opened.model).__name__} predicts classes, no offsets",
                                  shown(path), "give a SegFix checkpoint, or a folder of offset "
                                  "files")
        return cls(opened.model, opened.normalize, str(path), crop, stride)

    def __call__(self, image: torch.Tensor, name: str, size: tuple[int, int]) -> np.ndarray:
        if image is None or tuple(image.shape[-2:]) != size:
            raise DataError(f"the labels are {size[1]}x{size[0]}, the image "
                            + ("is not there" if image is None else
                               f"is {image.shape[-1]}x{image.shape[-2]}"), shown(name) or None,
                            "offsets are predicted from the image of the labels' size")
        return self.predict(image)

    def predict(self, image: torch.Tensor) -> np.ndarray:
        """Offsets int8 (H, W, 2) of one image, uint8 (3, H, W) RGB."""
        return predict_offsets(self.model, self.normalize, image, self.crop, self.stride)

    def describe(self) -> str:
        return f"the network {shown(self.path)}"


def predict_offsets(model: torch.nn.Module, normalize, image: torch.Tensor,
                    crop: int | None = None, stride: int | None = None) -> np.ndarray:
    """Offsets int8 (H, W, 2), (dy, dx), of one image, uint8 (3, H, W) RGB.

    crop: None runs on the whole image; otherwise on square crops that start every
    `stride` pixels (default a third of the crop), the last ones at the far edges, and
    averages what they say. The published script uses 512 and 170. The softmax over
    the mask is taken before the upsampling (bilinear, align_corners), directions are
    averaged as logits, as published.
    """
    device = next(model.parameters()).device
    height, width = image.shape[-2:]
    with torch.inference_mode():
        x = normalize(image[None].to(device))
        rows, columns = (_starts(length, crop, stride) for length in (height, width))
        if len(rows) == len(columns) == 1:
            mask, direction = _full_size(model, x)
            return offset_map(mask, direction)[0].cpu().numpy()
        total, cover = None, torch.zeros(height, width, device=device)
        for top in rows:
            for left in columns:
                window = (..., slice(top, top + crop), slice(left, left + crop))
                view = torch.cat(_full_size(model, x[window]), dim=1)
                if total is None:
                    total = view.new_zeros(1, view.shape[1], height, width)
                total[window] += view
                cover[window] += 1
        total /= cover
        return offset_map(total[:, :2], total[:, 2:])[0].cpu().numpy()


def _full_size(model, x):
    """(border probabilities (N, 2, H, W), direction logits (N, D, H, W)) of normalised images."""
    from torch.nn.functional import interpolate
    mask, direction = model.heads(x)
    return tuple(interpolate(each.float(), x.shape[-2:], mode="bilinear", align_corners=True)
                 for each in (mask.float().softmax(1), direction))


def _starts(length, crop, stride):
    """First pixels of the crops along one axis."""
    if crop is None or crop >= length:
        return [0]
    starts = list(range(0, length - crop + 1, stride or max(1, crop // 3)))
    return starts if starts[-1] == length - crop else [*starts, length - crop]
