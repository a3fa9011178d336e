"""SegFix's distance maps and training targets, against golden files and worked examples."""
import numpy as np
import pytest
import scipy.ndimage
import torch

from tests.support.segfix import blocks, golden
from utils.losses import build_loss
from utils.segfix.targets import (
    VOID,
    distance_maps,
    instance_regions,
    segfix_targets,
    semantic_regions,
    stored_angle,
)


def test_distances_in_a_strip_are_to_its_nearest_side():
    labels = np.zeros((30, 9), np.uint8)
    labels[:, 5:] = 1
    depth, dir_deg = distance_maps(labels, min_pixels=0)
    assert depth[15].tolist() == [5, 4, 3, 2, 1, 1, 2, 3, 4]
    # Left of the border the inside is to the left (180 degrees), right of it to the right (0).
    assert dir_deg[15, 4] in (0, 180) and dir_deg[15, 5] == 90


def test_depth_is_rounded_down_to_whole_pixels():
    labels = np.ones((21, 21), np.uint8)
    labels[10, 10] = 0
    depth, _ = distance_maps(labels, min_pixels=0)
    assert depth[12, 12] == 2 and depth[13, 12] == 3       # sqrt(8) and sqrt(13)


def test_void_and_small_classes_have_depth_0_and_angle_0():
    labels = np.full((30, 30), 255, np.uint8)
    labels[:, 10:] = 1
    labels[:5, 15:20] = 2        # 25 pixels
    depth, dir_deg = distance_maps(labels)
    for without in (labels == 255, labels == 2):
        assert not depth[without].any() and set(dir_deg[without]) == {90}
    assert depth[20, 12] == 3 and distance_maps(labels, min_pixels=0)[0][2, 17] == 3


def test_an_image_of_one_class_has_no_border():
    depth, _ = distance_maps(np.zeros((20, 300), np.uint8))
    assert (depth == 250).all()


def test_empty_and_tiny_label_maps_work():
    for shape in ((0, 0), (1, 1), (1, 5000)):
        assert distance_maps(np.zeros(shape, np.uint8), min_pixels=0)[0].shape == shape


@pytest.mark.parametrize("letter", "ab")
def test_semantic_targets_equal_the_golden_ones(letter):
    maps = golden(f"maps_{letter}")
    regions = semantic_regions(maps["label_ids"], "cityscapes")
    depth, dir_deg = distance_maps(regions, VOID)
    np.testing.assert_array_equal(depth, maps["sem_depth"])
    assert_targets(maps, "sem", depth, dir_deg)


@pytest.mark.parametrize("letter", "ab")
def test_instance_targets_equal_the_golden_ones(letter):
    maps = golden(f"maps_{letter}")
    depth, dir_deg = distance_maps(instance_regions(maps["instance_ids"]), None, 0)
    np.testing.assert_array_equal(depth, maps["inst_depth"])
    assert depth.min() >= 1
    assert_targets(maps, "inst", depth, dir_deg)


def assert_targets(maps, kind, depth, dir_deg):
    away = np.abs(dir_deg.astype(int) - maps[f"{kind}_dir_deg"])
    assert (np.minimum(away, 180 - away) <= 1).mean() >= 0.995
    boundary, direction = segfix_targets(
        torch.from_numpy(maps["train_ids"]), torch.from_numpy(depth),
        torch.from_numpy(stored_angle(dir_deg)))
    boundary[boundary == 255], direction[direction == 255] = -1, -1
    np.testing.assert_array_equal(boundary.numpy(), maps[f"{kind}_mask"])
    labeled = maps[f"{kind}_direction"] >= 0
    assert (direction.numpy() == maps[f"{kind}_direction"])[labeled].mean() >= 0.995


def test_the_gradient_equals_a_plain_correlation():
    labels = blocks()
    depth, dir_deg = distance_maps(labels, min_pixels=0)
    j, i = np.mgrid[-2:3, -2:3].astype(float)
    square = np.where(i * i + j * j == 0, 1, i * i + j * j)
    gx, gy = np.zeros(labels.shape), np.zeros(labels.shape)
    for value in np.unique(labels):
        mask = labels == value
        distance = scipy.ndimage.distance_transform_edt(mask)
        np.testing.assert_array_equal(depth[mask], np.minimum(distance, 250).astype(int)[mask])
        for total, kernel in ((gx, i / square), (gy, j / square)):
            total += scipy.ndimage.correlate(distance, kernel, mode="constant") * mask
    strong = np.hypot(gx, gy) > 1e-3
    expected = ((np.degrees(np.arctan2(gy, gx)) + 180) / 2).astype(int)
    away = np.abs(dir_deg - expected)[strong]
    assert (np.minimum(away, 180 - away) <= 1).all()


def test_the_loss_equals_the_golden_one():
    case, maps = golden("network_a"), golden("maps_a")
    logits = [torch.from_numpy(case[f"{name}_logits"]).double() for name in ("mask", "dir")]
    targets = [torch.from_numpy(maps[f"sem_{name}"].astype(np.int64))[None]
               for name in ("mask", "direction")]
    loss = build_loss("SegFixLoss", -1)
    total = loss(*logits, *targets).item()
    # The golden loss was summed in float32, which is 4e-6 away from float64 for the mask.
    expected = {name: float(case[f"loss_{name}_only"]) for name in ("mask", "direction")}
    assert total == pytest.approx(float(case["loss_total"]), rel=5e-6)
    for name, value in loss.last_parts.items():
        assert value.item() == pytest.approx(expected[name], rel=5e-6)
    direction = np.where(border(logits[0]), targets[1], -1)
    assert total == pytest.approx(plain_loss(logits[0], targets[0])
                                  + plain_loss(logits[1], direction), rel=1e-9)


def border(mask_logits):
    full = torch.nn.functional.interpolate(mask_logits, (128, 256), mode="bilinear",
                                           align_corners=True)
    return (full.softmax(1)[:, 1] > 0.5).numpy()


def plain_loss(logits, target):
    """Returns torch's weighted mean with the class weights of the paper's code."""
    target = torch.as_tensor(target)
    full = torch.nn.functional.interpolate(logits, target.shape[-2:], mode="bilinear",
                                           align_corners=True)
    counts = torch.bincount(target[target >= 0], minlength=full.shape[1]).double()
    return torch.nn.functional.cross_entropy(full, target, 1 - counts / counts.sum(),
                                             ignore_index=-1).item()
