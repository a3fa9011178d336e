"""SegFix's directions, and the refinement of label maps by offsets."""
import itertools

import numpy as np
import pytest
import torch

from tests.support.segfix import RNG, blocks, golden, random_offsets
from utils.decision.rules import offset_classes
from utils.metrics.cityscapes_metrics import EVALUATED_IDS
from utils.segfix.offsets import (
    DIRECTIONS,
    Refinement,
    direction_vectors,
    moved_directions,
    offset_class_names,
    offset_colors,
    refine,
)
from utils.segfix.targets import distance_maps, segfix_targets, stored_angle


def gathered(labels, offset, scale):
    """Returns the refined labels by the formula, pixel by pixel."""
    height, width = labels.shape
    result = np.empty_like(labels)
    for y in range(height):
        for x in range(width):
            dy, dx = (int(scale * step) for step in offset[y, x])
            result[y, x] = labels[min(max(y + dy, 0), height - 1), min(max(x + dx, 0), width - 1)]
    return result


def test_the_eight_directions_are_those_of_the_published_files():
    assert direction_vectors().tolist() == [[0, -1], [-1, -1], [-1, 0], [-1, 1], [0, 1], [1, 1],
                                            [1, 0], [1, -1]]


@pytest.mark.parametrize("directions", DIRECTIONS)
def test_a_direction_points_along_its_angle(directions):
    vectors = direction_vectors(directions).astype(float)
    assert np.abs(vectors).max() == max(1, directions // 8)
    angle = np.degrees(np.arctan2(vectors[:, 0], vectors[:, 1]))
    center = -180 + np.arange(directions) * 360 / directions
    assert (np.abs((angle - center + 180) % 360 - 180) < 180 / directions).all()


@pytest.mark.parametrize("directions", DIRECTIONS)
def test_mirrored_directions_have_the_opposite_dx(directions):
    vectors = direction_vectors(directions)
    mirrored = vectors[moved_directions(directions, flip=True)]
    np.testing.assert_array_equal(mirrored, vectors * [1, -1])


@pytest.mark.parametrize("directions", DIRECTIONS)
def test_moved_directions_are_the_vectors_of_the_moved_image(directions):
    vectors = direction_vectors(directions).astype(int)
    for flip, vflip, turns in itertools.product((False, True), (False, True), range(4)):
        expected = vectors * [-1 if vflip else 1, -1 if flip else 1]
        for _ in range(turns):      # counterclockwise: right becomes up
            expected = np.stack([-expected[:, 1], expected[:, 0]], 1)
        np.testing.assert_array_equal(
            vectors[moved_directions(directions, flip, vflip, turns)], expected)


def test_an_unknown_number_of_directions_is_an_error():
    with pytest.raises(ValueError, match="4, 8, 16, 32"):
        direction_vectors(6)


@pytest.mark.parametrize("directions", DIRECTIONS)
def test_every_channel_of_the_network_has_a_name_and_a_color(directions):
    assert len(offset_class_names(directions)) == len(offset_colors(directions)) == directions + 2


def test_only_border_pixels_get_a_direction():
    logits = torch.zeros(1, 10, 1, 2)
    logits[0, 1, 0, 1], logits[0, 2 + 5] = 1, 3
    assert offset_classes(logits).tolist() == [[[0, 7]]]


@pytest.mark.parametrize("letter", "ab")
@pytest.mark.parametrize("scale", [1, 2])
def test_refined_labels_equal_the_golden_ones(letter, scale):
    case = golden(f"refine_{letter}")
    labels = case["input_ids"]
    known = np.where(np.isin(labels, EVALUATED_IDS), labels, np.uint8(255))
    np.testing.assert_array_equal(refine(known, case["offset"], scale),
                                  case[f"refined_ids_scale{scale}"])


@pytest.mark.parametrize("letter", "ab")
def test_refined_instance_masks_equal_the_golden_ones(letter):
    case = golden(f"refine_{letter}")
    move = Refinement(case["inst_offset"], 1)
    for mask, expected in zip(case["inst_masks"], case["inst_refined_scale1"], strict=True):
        np.testing.assert_array_equal(move(mask), expected)


@pytest.mark.parametrize("labels", [np.uint8, np.uint16, np.int16, np.int32, np.int64, bool])
@pytest.mark.parametrize("order", ["C", "F"])
def test_refinement_is_a_clamped_gather_for_every_dtype_and_memory_order(labels, order):
    ids = RNG.integers(0, 2 if labels is bool else 99, (13, 17)).astype(labels)
    for dtype in (np.int8, np.uint8, np.int16, np.int32, np.int64, np.float32, np.float64):
        offset = random_offsets(13, 17, dtype if dtype is not np.uint8 else np.int8)
        stored = np.asarray(offset, order=order)
        refined = refine(ids, stored, 2)
        assert refined.dtype == ids.dtype
        np.testing.assert_array_equal(refined, gathered(ids, offset, 2))


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (3, 30000), (0, 4)])
def test_refinement_works_for_any_size(shape):
    labels = RNG.integers(0, 9, shape).astype(np.uint8)
    offset = random_offsets(*shape)
    np.testing.assert_array_equal(refine(labels, offset), gathered(labels, offset, 2))


def test_steps_beyond_the_image_reach_its_edge():
    labels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    offset = np.full((3, 4, 2), 10 ** 6)
    assert (refine(labels, offset) == 11).all() and (refine(labels, -offset) == 0).all()


def test_fractions_of_a_step_are_rounded_and_labels_are_never_interpolated():
    labels = np.arange(10, dtype=np.uint8)[None] * 20
    offset = np.zeros((1, 10, 2))
    offset[..., 1] = 1
    for scale, step in ((0.4, 0), (0.5, 1), (1.5, 2), (2.4, 2)):
        expected = labels[:, np.minimum(np.arange(10) + step, 9)]
        np.testing.assert_array_equal(refine(labels, offset, scale), expected)
        back = labels[:, np.maximum(np.arange(10) - step, 0)]
        np.testing.assert_array_equal(refine(labels, -offset, scale), back)


def test_the_input_is_not_changed():
    labels, offset = blocks(), random_offsets(40, 60)
    before = labels.copy(), offset.copy()
    refine(labels, offset)
    np.testing.assert_array_equal(labels, before[0])
    np.testing.assert_array_equal(offset, before[1])


@pytest.mark.parametrize("offset, text", [
    (np.zeros((4, 5)), "shape"), (np.zeros((4, 5, 3)), "shape"),
    (np.full((4, 5, 2), np.nan), "finite"), (np.zeros((4, 5, 2), complex), "numbers"),
    (np.zeros((5, 4, 2)), "pixels")])
def test_a_wrong_offset_map_is_an_error(offset, text):
    with pytest.raises(ValueError, match=text):
        refine(np.zeros((4, 5), np.uint8), offset)


def test_true_offsets_correct_labels_that_are_wrong_at_borders():
    truth = blocks(200, 300)
    depth, dir_deg = distance_maps(truth)
    boundary, direction = segfix_targets(torch.from_numpy(truth), torch.from_numpy(depth),
                                         torch.from_numpy(stored_angle(dir_deg)))
    offset = direction_vectors()[direction] * (boundary == 1).numpy()[..., None]
    predicted = np.roll(truth, (1, 1), (0, 1))
    assert (refine(predicted, offset) != truth).mean() < 0.3 * (predicted != truth).mean()
