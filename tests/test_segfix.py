"""SegFix: distance maps, directions, offsets and refinement against goldens and worked examples."""
import io
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch

from utils.errors import ConfigError, DataError
from utils.losses import build_loss
from utils.segfix import (CITYSCAPES_IDS, DIRECTIONS, VOID, Refinement, direction_vectors,
                          distance_maps, instance_regions, mirrored_directions,
                          offset_class_names, offset_classes, offset_colours, refine,
                          segfix_targets, semantic_regions, stored_angle)
from utils.segfix_files import (MatFolder, part_of_split, plain_name, read_distance_maps,
                                read_offsets, write_distance_maps, write_offsets)
from utils.segfix_refiner import NetworkOffsets, open_refiner, predict_offsets

GOLDEN = Path(__file__).resolve().parents[1].parent / "shared/parity/segfix"
RNG = np.random.default_rng(0)


def golden(name):
    path = GOLDEN / f"{name}.npz"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    return np.load(path)


def cells(height=40, width=60, classes=5):
    """A label map of blocks."""
    blocks = RNG.integers(0, classes, (-(-height // 10), -(-width // 10)))
    return np.kron(blocks, np.ones((10, 10)))[:height, :width].astype(np.uint8)


def some_offsets(height, width, dtype=np.int8):
    return RNG.integers(-1, 2, (height, width, 2)).astype(dtype)


def gathered(labels, offset, scale):
    """The refinement as its formula says, pixel by pixel."""
    height, width = labels.shape
    result = np.empty_like(labels)
    for y in range(height):
        for x in range(width):
            dy, dx = (int(scale * step) for step in offset[y, x])
            result[y, x] = labels[min(max(y + dy, 0), height - 1), min(max(x + dx, 0), width - 1)]
    return result


# --- directions -------------------------------------------------------------------------------

def test_the_eight_directions_are_those_of_the_published_files():
    assert direction_vectors().tolist() == [[0, -1], [-1, -1], [-1, 0], [-1, 1], [0, 1], [1, 1],
                                            [1, 0], [1, -1]]


@pytest.mark.parametrize("directions", DIRECTIONS)
def test_a_direction_points_where_its_angle_does(directions):
    vectors = direction_vectors(directions).astype(float)
    assert np.abs(vectors).max() == max(1, directions // 8)
    angle = np.degrees(np.arctan2(vectors[:, 0], vectors[:, 1]))
    centre = -180 + np.arange(directions) * 360 / directions
    assert (np.abs((angle - centre + 180) % 360 - 180) < 180 / directions).all()


@pytest.mark.parametrize("directions", DIRECTIONS)
def test_mirrored_directions_point_the_other_way_across(directions):
    vectors = direction_vectors(directions)
    np.testing.assert_array_equal(vectors[mirrored_directions(directions)], vectors * [1, -1])


def test_an_unknown_number_of_directions_is_refused():
    with pytest.raises(ValueError, match="4, 8, 16, 32"):
        direction_vectors(6)


@pytest.mark.parametrize("directions", DIRECTIONS)
def test_names_and_colours_belong_to_the_channels_of_the_network(directions):
    assert len(offset_class_names(directions)) == len(offset_colours(directions)) == directions + 2


# --- distance maps ----------------------------------------------------------------------------

def test_distances_of_a_strip_are_those_to_its_nearest_side():
    labels = np.zeros((30, 9), np.uint8)
    labels[:, 5:] = 1
    depth, dir_deg = distance_maps(labels, min_pixels=0)
    assert depth[15].tolist() == [5, 4, 3, 2, 1, 1, 2, 3, 4]
    # To the left of the border the inside lies left, 180 degrees, and right of it right, 0.
    assert dir_deg[15, 4] in (0, 180) and dir_deg[15, 5] == 90


def test_depth_is_cut_to_whole_pixels():
    labels = np.ones((21, 21), np.uint8)
    labels[10, 10] = 0
    depth, _ = distance_maps(labels, min_pixels=0)
    assert depth[12, 12] == 2 and depth[13, 12] == 3       # sqrt(8) and sqrt(13)


def test_void_and_small_classes_have_depth_0_and_angle_0():
    labels = np.full((30, 30), 255, np.uint8)
    labels[:, 10:] = 1
    labels[:5, 15:20] = 2        # 25 pixels
    depth, dir_deg = distance_maps(labels)
    for passed_over in (labels == 255, labels == 2):
        assert not depth[passed_over].any() and set(dir_deg[passed_over]) == {90}
    assert depth[20, 12] == 3 and distance_maps(labels, min_pixels=0)[0][2, 17] == 3


def test_an_image_of_one_class_has_no_border():
    depth, _ = distance_maps(np.zeros((20, 300), np.uint8))
    assert (depth == 250).all()


def test_empty_and_tiny_label_maps_are_answered():
    for shape in ((0, 0), (1, 1), (1, 5000)):
        assert distance_maps(np.zeros(shape, np.uint8), min_pixels=0)[0].shape == shape


@pytest.mark.parametrize("letter", "ab")
def test_semantic_targets_are_the_golden_ones(letter):
    maps = golden(f"maps_{letter}")
    regions = semantic_regions(maps["label_ids"], "cityscapes")
    depth, dir_deg = distance_maps(regions, VOID)
    np.testing.assert_array_equal(depth, maps["sem_depth"])
    assert_targets(maps, "sem", depth, dir_deg)


@pytest.mark.parametrize("letter", "ab")
def test_instance_targets_are_the_golden_ones(letter):
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
    labelled = maps[f"{kind}_direction"] >= 0
    assert (direction.numpy() == maps[f"{kind}_direction"])[labelled].mean() >= 0.995


def test_the_gradient_equals_a_plain_correlation():
    labels = cells()
    depth, dir_deg = distance_maps(labels, min_pixels=0)
    j, i = np.mgrid[-2:3, -2:3].astype(float)
    square = np.where(i * i + j * j == 0, 1, i * i + j * j)
    import scipy.ndimage as ndimage
    gx, gy = np.zeros(labels.shape), np.zeros(labels.shape)
    for value in np.unique(labels):
        mask = labels == value
        distance = ndimage.distance_transform_edt(mask)
        np.testing.assert_array_equal(depth[mask], np.minimum(distance, 250).astype(int)[mask])
        for total, kernel in ((gx, i / square), (gy, j / square)):
            total += ndimage.correlate(distance, kernel, mode="constant") * mask
    strong = np.hypot(gx, gy) > 1e-3
    expected = ((np.degrees(np.arctan2(gy, gx)) + 180) / 2).astype(int)
    away = np.abs(dir_deg - expected)[strong]
    assert (np.minimum(away, 180 - away) <= 1).all()


# --- refinement -------------------------------------------------------------------------------

@pytest.mark.parametrize("letter", "ab")
@pytest.mark.parametrize("scale", [1, 2])
def test_refined_labels_are_the_golden_ones(letter, scale):
    case = golden(f"refine_{letter}")
    labels = case["input_ids"]
    known = np.where(np.isin(labels, CITYSCAPES_IDS), labels, np.uint8(255))
    np.testing.assert_array_equal(refine(known, case["offset"], scale),
                                  case[f"refined_ids_scale{scale}"])


@pytest.mark.parametrize("letter", "ab")
def test_refined_instance_masks_are_the_golden_ones(letter):
    case = golden(f"refine_{letter}")
    move = Refinement(case["inst_offset"], 1)
    for mask, expected in zip(case["inst_masks"], case["inst_refined_scale1"], strict=True):
        np.testing.assert_array_equal(move(mask), expected)


@pytest.mark.parametrize("labels", [np.uint8, np.uint16, np.int16, np.int32, np.int64, bool])
@pytest.mark.parametrize("order", ["C", "F"])
def test_refinement_is_a_clamped_gather_for_every_dtype_and_memory_order(labels, order):
    ids = RNG.integers(0, 2 if labels is bool else 99, (13, 17)).astype(labels)
    for dtype in (np.int8, np.uint8, np.int16, np.int32, np.int64, np.float32, np.float64):
        offset = some_offsets(13, 17, dtype if dtype is not np.uint8 else np.int8)
        stored = np.asarray(offset, order=order)
        refined = refine(ids, stored, 2)
        assert refined.dtype == ids.dtype
        np.testing.assert_array_equal(refined, gathered(ids, offset, 2))


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (3, 30000), (0, 4)])
def test_refinement_serves_any_size(shape):
    labels = RNG.integers(0, 9, shape).astype(np.uint8)
    offset = some_offsets(*shape)
    np.testing.assert_array_equal(refine(labels, offset), gathered(labels, offset, 2))


def test_steps_beyond_the_image_reach_its_edge():
    labels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    offset = np.full((3, 4, 2), 10 ** 6)
    assert (refine(labels, offset) == 11).all() and (refine(labels, -offset) == 0).all()


def test_a_fraction_of_a_step_is_rounded_and_labels_are_never_blended():
    labels = np.arange(10, dtype=np.uint8)[None] * 20
    offset = np.zeros((1, 10, 2))
    offset[..., 1] = 1
    for scale, step in ((0.4, 0), (0.5, 1), (1.5, 2), (2.4, 2)):
        expected = labels[:, np.minimum(np.arange(10) + step, 9)]
        np.testing.assert_array_equal(refine(labels, offset, scale), expected)
        back = labels[:, np.maximum(np.arange(10) - step, 0)]
        np.testing.assert_array_equal(refine(labels, -offset, scale), back)


def test_input_stays_as_it_is():
    labels, offset = cells(), some_offsets(40, 60)
    before = labels.copy(), offset.copy()
    refine(labels, offset)
    np.testing.assert_array_equal(labels, before[0])
    np.testing.assert_array_equal(offset, before[1])


@pytest.mark.parametrize("offset, text", [
    (np.zeros((4, 5)), "shape"), (np.zeros((4, 5, 3)), "shape"),
    (np.full((4, 5, 2), np.nan), "finite"), (np.zeros((4, 5, 2), complex), "numbers"),
    (np.zeros((5, 4, 2)), "pixels")])
def test_an_offset_map_that_is_none_is_refused(offset, text):
    with pytest.raises(ValueError, match=text):
        refine(np.zeros((4, 5), np.uint8), offset)


def test_true_offsets_mend_labels_that_are_wrong_at_their_borders():
    truth = cells(200, 300)
    depth, dir_deg = distance_maps(truth)
    boundary, direction = segfix_targets(torch.from_numpy(truth), torch.from_numpy(depth),
                                         torch.from_numpy(stored_angle(dir_deg)))
    offset = direction_vectors()[direction] * (boundary == 1).numpy()[..., None]
    predicted = np.roll(truth, (1, 1), (0, 1))
    assert (refine(predicted, offset) != truth).mean() < 0.3 * (predicted != truth).mean()


# --- offsets of a network ---------------------------------------------------------------------

class Answers(torch.nn.Module):
    """A network that says the same of every image."""

    def __init__(self, mask, direction):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.answer = mask, direction

    def heads(self, x):
        return self.answer


def test_logits_become_the_golden_offsets():
    case = golden("network_a")
    model = Answers(*(torch.from_numpy(case[f"{name}_logits"]) for name in ("mask", "dir")))
    found = predict_offsets(model, torch.Tensor.float, torch.zeros(3, 128, 256, dtype=torch.uint8))
    np.testing.assert_array_equal(found, case["offset"])


def test_the_loss_is_the_golden_one():
    case, maps = golden("network_a"), golden("maps_a")
    logits = [torch.from_numpy(case[f"{name}_logits"]).double() for name in ("mask", "dir")]
    targets = [torch.from_numpy(maps[f"sem_{name}"].astype(np.int64))[None]
               for name in ("mask", "direction")]
    loss = build_loss("SegFixLoss", -1)
    total = loss(*logits, *targets).item()
    # The golden was summed in float32: its mask part is 4e-6 away from the same in float64.
    expected = {name: float(case[f"loss_{name}_only"]) for name in ("mask", "direction")}
    assert total == pytest.approx(float(case["loss_total"]), rel=5e-6)
    for name, value in loss.last_parts.items():
        assert value.item() == pytest.approx(expected[name], rel=5e-6)
    assert total == pytest.approx(sum(plain_loss(*pair) for pair in zip(
        logits, [targets[0], np.where(border(logits[0]), targets[1], -1)])), rel=1e-9)


def border(mask_logits):
    full = torch.nn.functional.interpolate(mask_logits, (128, 256), mode="bilinear",
                                           align_corners=True)
    return (full.softmax(1)[:, 1] > 0.5).numpy()


def plain_loss(logits, target):
    """Torch's weighted mean with the weights of the paper's code."""
    target = torch.as_tensor(target)
    full = torch.nn.functional.interpolate(logits, target.shape[-2:], mode="bilinear",
                                           align_corners=True)
    counts = torch.bincount(target[target >= 0], minlength=full.shape[1]).double()
    return torch.nn.functional.cross_entropy(full, target, 1 - counts / counts.sum(),
                                             ignore_index=-1).item()


class Pointwise(torch.nn.Module):
    """Mask and direction are functions of each pixel alone, so crops change nothing."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.sizes = []

    def heads(self, x):
        self.sizes.append(tuple(x.shape[-2:]))
        red = x[:, :1] / 255 - 0.5
        direction = torch.cat([torch.cos(7 * red + k) for k in range(8)], 1)
        return torch.cat([-red, red], 1), direction


@pytest.mark.parametrize("size", [(40, 70), (32, 32), (20, 90), (33, 65)])
def test_crops_cover_the_image_and_are_averaged(size):
    image = torch.from_numpy(RNG.integers(0, 256, (3, *size), dtype=np.uint8))
    model = Pointwise()
    whole = predict_offsets(model, torch.Tensor.float, image)
    assert model.sizes.pop() == size
    np.testing.assert_array_equal(
        predict_offsets(model, torch.Tensor.float, image, crop=32, stride=10), whole)
    expected = [1 if length <= 32 else -(-(length - 32) // 10) + 1 for length in size]
    assert len(model.sizes) == np.prod(expected)
    assert all(height <= 32 and width <= 32 for height, width in model.sizes)


def test_offset_classes_need_a_border():
    logits = torch.zeros(1, 10, 1, 2)
    logits[0, 1, 0, 1], logits[0, 2 + 5] = 1, 3
    assert offset_classes(logits).tolist() == [[[0, 7]]]


# --- files ------------------------------------------------------------------------------------

def test_offset_files_are_those_of_the_published_layout(tmp_path):
    offset = some_offsets(5, 7)
    write_offsets(tmp_path / "a.mat", offset)
    stored = scipy.io.loadmat(tmp_path / "a.mat")["mat"]
    assert stored.dtype == np.int32 and stored.shape == (5, 7, 2)
    np.testing.assert_array_equal(read_offsets(tmp_path / "a.mat", (5, 7)), offset)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.int64, np.float32, np.float64])
def test_offsets_of_every_number_type_are_read(tmp_path, dtype):
    offset = np.abs(some_offsets(4, 6)).astype(dtype)
    scipy.io.savemat(tmp_path / "a.mat", {"mat": offset})
    np.testing.assert_array_equal(read_offsets(tmp_path / "a.mat"), offset)


def test_distance_maps_come_back_from_their_file(tmp_path):
    depth, dir_deg = distance_maps(cells(), min_pixels=0)
    write_distance_maps(tmp_path / "a.mat", depth, dir_deg)
    stored = scipy.io.loadmat(tmp_path / "a.mat")
    assert stored["dir_deg"].dtype == stored["depth"].dtype == np.uint8
    assert stored["deg_reduce"].item() == 2
    again, angle = read_distance_maps(tmp_path / "a.mat", depth.shape)
    np.testing.assert_array_equal(again, depth)
    np.testing.assert_array_equal(angle, 2.0 * dir_deg - 180)


def mat(**variables):
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, variables)
    return buffer.getvalue()


@pytest.mark.parametrize("data, text", [
    (b"", "0 bytes"), (b"no matlab file" * 20, "no MATLAB file"), (mat(a=np.zeros(3)), "'mat'"),
    (mat(mat=np.zeros((4, 6, 2)))[:-40], "damaged"), (mat(mat="text"), "not the"),
    (mat(mat=np.zeros((4, 6))), "not the"), (mat(mat=np.full((4, 6, 2), np.inf)), "not finite"),
    (mat(mat=np.zeros((6, 4, 2))), "the image is 6x4")])
def test_a_bad_offset_file_is_one_message_with_its_name(tmp_path, data, text):
    path = tmp_path / "bad.mat"
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        read_offsets(path, (4, 6))
    assert text in caught.value.what and caught.value.where == str(path)
    assert "\n" not in caught.value.what


def test_the_file_of_an_image_is_found_by_its_name(tmp_path):
    for name in ("x/a.mat", "y/a.mat", "aachen_0_1_leftImg8bit.mat", "v1.25.mat"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_offsets(tmp_path / name, some_offsets(2, 2))
    files = MatFolder(tmp_path)
    assert files.find("x/a.png") == tmp_path / "x/a.mat"
    for name in ("aachen/aachen_0_1", "aachen_0_1_leftImg8bit.png", "aachen_0_1_gtFine_labelIds",
                 "aachen_0_1_leftImg8bit_pred.txt"):
        assert files.find(name) == tmp_path / "aachen_0_1_leftImg8bit.mat", name
    assert files.find("v1.25") == files.find("v1.25.png") == tmp_path / "v1.25.mat"
    for name, text in (("a", "2 offset files"), ("b", "no offset file")):
        with pytest.raises(DataError, match=text):
            files.find(name)


def test_a_folder_without_offset_files_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DataError, match="no"):
            MatFolder(folder)


def test_a_split_is_looked_for_where_the_published_archives_have_it(tmp_path):
    for place in ("val/offset_pred/semantic", "test_offset/instance"):
        (tmp_path / place).mkdir(parents=True)
    assert part_of_split(tmp_path, "val", "semantic") == tmp_path / "val/offset_pred/semantic"
    assert part_of_split(tmp_path, "test", "instance") == tmp_path / "test_offset/instance"
    assert part_of_split(tmp_path, "train", "semantic") == tmp_path
    assert part_of_split(tmp_path, None) == tmp_path


def test_names_lose_folders_and_known_endings_only():
    assert plain_name("a/b_leftImg8bit.png") == "b" and plain_name("0016E5_07959") == "0016E5_07959"


# --- the last stage ---------------------------------------------------------------------------

def test_a_refiner_of_files_takes_arrays_tensors_and_masks(tmp_path):
    labels, offset = cells(), some_offsets(40, 60)
    write_offsets(tmp_path / "a.mat", offset)
    refiner = open_refiner(tmp_path, 2)
    assert not refiner.needs_image
    expected = refine(labels, offset)
    np.testing.assert_array_equal(refiner(labels, None, "a.png"), expected)
    found = refiner(torch.from_numpy(labels), None, "a")
    assert isinstance(found, torch.Tensor)
    np.testing.assert_array_equal(found.numpy(), expected)
    masks = torch.from_numpy(np.stack([labels == 1, labels == 2]))
    np.testing.assert_array_equal(refiner(masks, None, "a")[1].numpy(), expected == 2)


def test_a_refiner_names_the_file_it_lacks(tmp_path):
    write_offsets(tmp_path / "a.mat", some_offsets(4, 4))
    with pytest.raises(DataError) as caught:
        open_refiner(tmp_path)(cells(), None, "b")
    assert caught.value.where == str(tmp_path / "b.mat")


@pytest.mark.parametrize("scale", [0, -1, float("nan"), float("inf")])
def test_a_scale_that_is_none_is_refused(tmp_path, scale):
    with pytest.raises(ConfigError, match="scale"):
        open_refiner(tmp_path, scale)


def test_offsets_of_a_network_need_the_image_of_the_labels():
    network = NetworkOffsets(Pointwise(), torch.Tensor.float)
    image = torch.zeros(3, 4, 6, dtype=torch.uint8)
    assert network(image, "a", (4, 6)).shape == (4, 6, 2)
    for wrong, text in ((None, "not there"), (image[:, 1:], "6x3")):
        with pytest.raises(DataError, match=text):
            network(wrong, "a", (4, 6))
