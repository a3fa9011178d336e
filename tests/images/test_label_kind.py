"""Label maps, smoothed label maps and photos are told apart by their pixels."""
import io

import cv2
import numpy as np
import pytest
from PIL import Image

from dataloader.shapes import Shapes
from tests.support.places import SHARED
from utils.images.label_kind import busyness, mixing

RNG = np.random.default_rng(0)
COLORS = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)


def ellipses(classes=1, size=(120, 160), seed=0):
    """Class ids 0 to `classes`, uint8 (H, W)."""
    draw, ids = np.random.default_rng(seed), np.zeros(size, np.uint8)
    for number in range(8):
        center = int(draw.integers(size[1])), int(draw.integers(size[0]))
        cv2.ellipse(ids, center, (int(draw.integers(5, 40)), int(draw.integers(5, 30))), 30, 0, 360,
                    number % classes + 1, -1)
    return ids


def regions(classes, count, size, seed=0):
    """Regions around random points, with few frequent and many rare classes: uint8 (H, W)."""
    draw, mask = np.random.default_rng(seed), np.full(size, 255, np.uint8)
    points = draw.integers(0, size, (count, 2))
    mask[points[:, 0], points[:, 1]] = 0
    _, nearest = cv2.distanceTransformWithLabels(mask, cv2.DIST_L2, 5,
                                                 labelType=cv2.DIST_LABEL_PIXEL)
    share = 1 / np.arange(1, classes + 1) ** 1.2
    table = np.zeros(nearest.max() + 1, np.uint8)
    table[nearest[points[:, 0], points[:, 1]]] = draw.permutation(classes)[
        draw.choice(classes, count, p=share / share.sum())]
    return table[nearest]


def jpeg(values, quality):
    file = io.BytesIO()
    Image.fromarray(values).save(file, "JPEG", quality=quality)
    return np.array(Image.open(file))


def resized(values, scale, how):
    size = [round(side * scale) for side in values.shape[1::-1]]
    return np.array(Image.fromarray(values).resize(size, how))


SMOOTHINGS = {
    **{f"JPEG {quality}": lambda v, q=quality: jpeg(v, q) for quality in (50, 75, 90, 95)},
    **{f"blur {sigma}": lambda v, s=sigma: cv2.GaussianBlur(v, (0, 0), s) for sigma in (0.7, 1, 2)},
    **{f"resized {how.name} {scale}": lambda v, s=scale, h=how: resized(v, s, h) for how in (
        Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)
       for scale in (0.6, 1.3)},
    "halved": lambda v: cv2.resize(v, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
}


@pytest.mark.parametrize("how", SMOOTHINGS)
@pytest.mark.parametrize("classes", [1, 3])
def test_smoothed_masks_are_recognized(how, classes):
    values = ellipses(classes) * np.uint8(255 // classes)
    assert mixing(values) is None
    found = mixing(SMOOTHINGS[how](values))
    assert found and found.count >= 3 and 0 < found.share < 0.6
    assert {0, 255} & set(found.areas)


@pytest.mark.parametrize("how", [how for how in SMOOTHINGS if how != "JPEG 50"])
def test_smoothed_color_labels_are_recognized(how):
    colors = COLORS[ellipses(3, (240, 320))]
    assert mixing(colors) is None
    found = mixing(SMOOTHINGS[how](colors))
    assert found and found.count >= 4


SOUND = {
    "150 classes": lambda seed: regions(150, 60, (256, 341), seed),
    "150 classes, small": lambda seed: regions(150, 200, (64, 64), seed),
    "150 classes, crowded": lambda seed: regions(150, 2000, (512, 512), seed),
    "ids of Cityscapes": lambda seed: regions(34, 300, (256, 512), seed),
    "thin lines": lambda seed: cv2.polylines(
        np.zeros((120, 160), np.uint8), [np.random.default_rng(seed).integers(
            0, 120, (30, 2)).astype(np.int32)], False, 255, 1),
    "depth": lambda seed: (np.exp(-np.mgrid[:240, :320][0] / 200) * 230
                           + 20 * np.sin(np.mgrid[:240, :320][1] / 30 + seed)).astype(np.uint8),
    "a depth map with holes": lambda seed: SOUND["depth"](seed) * (ellipses(1, (240, 320)) == 0),
    "noise": lambda seed: np.random.default_rng(seed).integers(0, 256, (64, 64), dtype=np.uint8),
    "scenes": lambda seed: np.uint8(Shapes(size=(96, 128), length=4).load(seed)[1]),
    "one value": lambda seed: np.full((9, 9), seed, np.uint8),
    "ids of instances": lambda seed: regions(250, 60, (256, 341), seed).astype(np.uint16) * 257,
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", SOUND)
def test_label_maps_with_many_or_thin_classes_are_not(kind, seed):
    assert mixing(np.ascontiguousarray(SOUND[kind](seed))) is None


@pytest.mark.parametrize("seed", range(3))
def test_borders_marked_with_255_are_not(seed):
    ids = regions(20, 60, (256, 256), seed)
    ids[cv2.erode(ids, np.ones((3, 3))) != cv2.dilate(ids, np.ones((3, 3)))] = 255
    assert mixing(ids) is None


def test_labels_of_camvid_are_not():
    paths = sorted((SHARED / "data" / "camvid" / "trainannot").glob("*.png"))[::60]
    if not paths:
        pytest.skip("needs CamVid")
    assert not any(mixing(np.array(Image.open(path))) for path in paths)


def test_photos_are_busier_than_labels(tmp_path):
    photo, ids = Shapes(size=(120, 160), length=1).load(0)
    pictures = {"photo.png": photo, "gray.png": photo[..., 1], "ids.png": np.uint8(ids),
                "binary.png": ellipses() * np.uint8(255), "colors.png": COLORS[ellipses(3)],
                "mask.jpg": ellipses() * np.uint8(255), "150.png": regions(150, 60, (256, 341))}
    for name, values in pictures.items():
        Image.fromarray(np.ascontiguousarray(values)).save(tmp_path / name)
    Image.fromarray(photo).quantize(200).save(tmp_path / "photo.gif")
    found = {name: busyness(tmp_path / name) for name in [*pictures, "photo.gif"]}
    photos = [found.pop(name) for name in ("photo.png", "gray.png", "photo.gif")]
    assert min(photos) > 4 * max(found.values())
