"""Scores of both conventions: golden values, examples worked by hand, independence of batches."""
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.places import SHARED
from tests.support.ranks import on_ranks
from utils.errors import ConfigError, DataError
from utils.metrics import BoundaryMetrics, DatasetMetrics, ImageMetrics, Scores, count_pixels
from utils.metrics.confidence import compare
from utils.metrics.image_scores import image_scores, read_image_scores, write_image_scores
from utils.metrics.table import format_rules, format_table

GOLDEN = SHARED / "metrics" / "cases.npz"
CASES = 15

golden = pytest.mark.skipif(not GOLDEN.exists(), reason=f"{GOLDEN} is missing")


def case(number):
    """field -> array, of one golden case."""
    data = np.load(GOLDEN)
    prefix = f"c{number:02d}__"
    return {key.removeprefix(prefix): data[key] for key in data.files if key.startswith(prefix)}


def scored(metrics, prediction, target, batch_size=1):
    """The scores after adding the images in batches."""
    for start in range(0, len(prediction), batch_size):
        metrics.update(prediction[start:start + batch_size], target[start:start + batch_size])
    return metrics.compute()


def assert_equal(results, fields, kind, tolerance):
    """Compares all golden scores of a kind ("image", "dataset" or "published")."""
    names = [key.removeprefix(kind + "__") for key in fields if key.startswith(kind + "__")]
    assert names
    for name in names:
        np.testing.assert_allclose(np.array(results[name], np.float64), fields[f"{kind}__{name}"],
                                   rtol=0, atol=tolerance, err_msg=name)


@golden
@pytest.mark.parametrize("number", range(CASES))
def test_image_scores_equal_the_golden_values(number):
    fields = case(number)
    metrics = ImageMetrics(int(fields["num_classes"]), 255, fields["CoI"].tolist(),
                           float(fields["smooth"]))
    results = scored(metrics, torch.from_numpy(fields["pred"]), torch.from_numpy(fields["target"]))
    assert_equal(results, fields, "image", 1e-9)


@golden
@pytest.mark.parametrize("number", range(CASES))
def test_dataset_scores_equal_the_golden_values(number):
    fields = case(number)
    metrics = DatasetMetrics(int(fields["num_classes"]), 255, fields["CoI"].tolist())
    results = scored(metrics, torch.from_numpy(fields["pred"]), torch.from_numpy(fields["target"]))
    assert_equal(results, fields, "dataset", 1e-9)


@golden
@pytest.mark.parametrize("number", range(CASES))
def test_published_mode_equals_the_published_numbers(number):
    fields = case(number)
    metrics = ImageMetrics(int(fields["num_classes"]), 255, fields["CoI"].tolist(),
                           float(fields["smooth"]), published=True,
                           one_hot_target=bool(fields["onehot_target"]))
    results = scored(metrics, torch.from_numpy(fields["pred"]), torch.from_numpy(fields["target"]),
                     int(fields["batch_size"]))
    assert_equal(results, fields, "published", 1e-5)


def worked_example():
    """(prediction, target) of two images.

    Image 0 has an ignored pixel and no class 2; in image 1, class 2 is only predicted.
    """
    target = torch.tensor([[[0, 0, 1, 255]], [[0, 1, 1, 1]]], dtype=torch.uint8)
    prediction = torch.tensor([[[0, 1, 1, 1]], [[0, 1, 2, 255]]], dtype=torch.uint8)
    return prediction, target


def test_dataset_scores_of_an_example_worked_by_hand():
    results = scored(DatasetMetrics(3), *worked_example())
    assert results["confusion"] == [[2, 1, 0, 0], [0, 2, 1, 1], [0, 0, 0, 0]]
    assert results["tp"] == [2, 2, 0]
    assert results["fp"] == [0, 1, 1]
    assert results["fn"] == [1, 2, 0]
    assert results["Class_IoU"] == pytest.approx([2 / 3, 2 / 5, 0])
    assert results["Mean_IoU"] == pytest.approx((2 / 3 + 2 / 5) / 3)
    assert results["Pixel_Accuracy"] == pytest.approx(4 / 7)
    assert results["FWIoU"] == pytest.approx(3 / 7 * 2 / 3 + 4 / 7 * 2 / 5)
    assert math.isnan(results["Class_Recall"][2])


def test_image_scores_of_an_example_worked_by_hand():
    results = scored(ImageMetrics(3), *worked_example())
    assert results["img_iou"][0][:2] == pytest.approx([1 / 2, 1 / 2])
    assert math.isnan(results["img_iou"][0][2])
    assert results["img_iou"][1] == pytest.approx([1, 1 / 3, 0])
    assert results["Mean_IoU"] == pytest.approx((1 / 2 + 4 / 9) / 2)
    assert results["Class_IoU"] == pytest.approx([3 / 4, 5 / 12, 0])
    assert results["Pixel_Accuracy"] == pytest.approx((2 / 3 + 2 / 4) / 2)


def test_an_image_without_a_valid_pixel_is_left_out():
    target = torch.tensor([[[255, 255]], [[0, 1]]], dtype=torch.uint8)
    results = scored(ImageMetrics(2), torch.zeros(2, 1, 2, dtype=torch.uint8), target, batch_size=2)
    assert results["Images"] == 1
    assert results["img_index"] == [1]


def test_classes_of_interest_change_only_the_means():
    prediction, target = worked_example()
    every, some = (scored(DatasetMetrics(3, 255, c), prediction, target) for c in (None, [1]))
    assert some["Mean_IoU"] == every["Class_IoU"][1]
    assert some["Class_IoU"] == every["Class_IoU"]
    assert some["Pixel_Accuracy"] == every["Pixel_Accuracy"]


@pytest.mark.parametrize("classes", ["road", [3], [-1], [0, 0], [True], []])
def test_invalid_classes_of_interest_raise_an_error(classes):
    with pytest.raises(ConfigError):
        DatasetMetrics(3, 255, classes)


def labels(shape, classes, seed=0, void=True):
    """Random labels, uint8; void: also 255."""
    g = torch.Generator().manual_seed(seed)
    values = torch.randint(0, classes + int(void), shape, generator=g)
    return torch.where(values == classes, 255, values).to(torch.uint8)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("classes", [2, 19, 150, 200])
def test_every_integer_dtype_gives_the_same_counts(dtype, classes):
    prediction, target = labels((2, 9, 11), classes, 0), labels((2, 9, 11), classes, 1)
    expected = np.zeros((classes, classes + 1), int)
    for p, t in zip(prediction.flatten().tolist(), target.flatten().tolist(), strict=True):
        if t < classes:
            expected[t, min(p, classes)] += 1
    results = scored(DatasetMetrics(classes), prediction.to(dtype), target.to(dtype), 2)
    assert results["confusion"] == expected.tolist()
    mixed = scored(DatasetMetrics(classes), prediction, target.to(dtype), 2)
    assert mixed["confusion"] == expected.tolist()


@pytest.mark.parametrize("ignore", [-1, -100, 255, 7, 2, 65536, 65537, -65535, 2 ** 32])
def test_pixels_of_any_ignore_index_are_left_out(ignore):
    target = torch.tensor([[[0, 1, 0, ignore]]])
    prediction = torch.tensor([[[0, 1, 1, 1]]])
    masks = torch.stack([prediction == k for k in range(3)], 1)
    for batch in (prediction, masks):
        results = scored(DatasetMetrics(3, ignore), batch, target)
        assert results["tp"] == [1, 1, 0]
        assert results["fp"] == [0, 1, 0]


def test_an_ignore_index_that_is_a_class_id_is_left_out():
    target, prediction = torch.tensor([[[0, 1, 2, 2]]]), torch.tensor([[[0, 0, 1, 2]]])
    results = scored(DatasetMetrics(3, 0), prediction, target)
    assert results["pixels"] == [0, 1, 2]


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_masks_that_do_not_overlap_have_the_scores_of_their_label_map(data):
    classes = data.draw(st.integers(1, 6))
    seed = data.draw(st.integers(0, 10 ** 6))
    prediction, target = labels((2, 5, 7), classes, seed), labels((2, 5, 7), classes, seed + 1)
    masks = torch.stack([prediction == k for k in range(classes)], 1)
    for kind in (DatasetMetrics, ImageMetrics):
        of_labels, of_masks = (scored(kind(classes), shown, target)
                               for shown in (prediction, masks))
        for name in ("Class_IoU", "Class_Dice", "Binary_Accuracy"):
            np.testing.assert_array_equal(of_labels[name], of_masks[name])


def test_masks_counted_all_at_once_equal_those_counted_row_by_row():
    """A GPU counts them all at once."""
    from utils.metrics import counts
    target = labels((2, 9, 11), 5, 1)
    masks = torch.rand(2, 5, 9, 11, generator=torch.Generator().manual_seed(0)) > 0.5
    by_row = counts._mask_counts_by_row(masks, target, 5)
    batched = counts._mask_counts_batched(masks, target, 5)
    assert all(torch.equal(a, b) for a, b in zip(by_row, batched, strict=True))


def test_one_hot_targets_give_the_scores_of_index_targets():
    prediction, target = labels((2, 5, 7), 4, 0), labels((2, 5, 7), 4, 1)
    one_hot = torch.stack([target == k for k in range(4)], 1).float()
    for kind in (DatasetMetrics, ImageMetrics):
        a, b = (scored(kind(4), prediction, t) for t in (target, one_hot))
        assert a["Class_IoU"] == b["Class_IoU"]


def test_published_iou_of_one_hot_targets_is_half_the_dice():
    prediction, target = labels((2, 5, 7), 4, 0), labels((2, 5, 7), 4, 1)
    one_hot = torch.stack([target == k for k in range(4)], 1).float()
    results = scored(ImageMetrics(4, published=True), prediction, one_hot)
    assert results["Mean_IoU"] == pytest.approx(results["Mean_Dice"] / 2, abs=1e-9)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.integers(0, 10 ** 6))
@settings(max_examples=25, deadline=None)
def test_the_batch_size_does_not_change_the_scores(sizes, seed):
    prediction, target = (labels((sum(sizes), 4, 5), 3, seed + i) for i in range(2))
    metrics = [(kind(3), kind(3)) for kind in (DatasetMetrics, ImageMetrics)]
    start = 0
    for size in sizes:
        for streamed, _ in metrics:
            streamed.update(prediction[start:start + size], target[start:start + size])
        start += size
    for streamed, whole in metrics:
        whole.update(prediction, target)
        assert str(streamed.compute()) == str(whole.compute())


def test_adding_counts_equals_updating_in_both_conventions():
    prediction, target = labels((2, 5, 7), 4, 0), labels((2, 5, 7), 4, 1)
    counts = count_pixels(prediction, target, 4)
    for kind in (DatasetMetrics, ImageMetrics):
        added, updated = kind(4), kind(4)
        added.add(counts)
        updated.update(prediction, target)
        assert str(added.compute()) == str(updated.compute())


def test_image_scores_are_sorted_by_index():
    prediction, target = labels((3, 5, 7), 4, 0), labels((3, 5, 7), 4, 1)
    sorted_, shuffled = ImageMetrics(4), ImageMetrics(4)
    sorted_.update(prediction, target)
    order = [2, 0, 1]
    shuffled.update(prediction[order], target[order], index=order)
    assert str(sorted_.compute()) == str(shuffled.compute())


@pytest.mark.parametrize("metrics", [DatasetMetrics(3), ImageMetrics(3), BoundaryMetrics(3)])
def test_without_images_every_mean_is_nan(metrics):
    assert all(math.isnan(value) for name, value in metrics.compute().items()
               if name.startswith("Mean") or name.endswith(("_IoU", "_F"))
               and isinstance(value, float))


@pytest.mark.parametrize("prediction, error", [
    (torch.zeros(1, 2, 3, dtype=torch.uint8), ValueError),
    (torch.zeros(1, 4, 2, 2, dtype=torch.bool), ValueError),
    (torch.zeros(1, 3, 2, 2), TypeError), (torch.zeros(1, 2, 2), TypeError)])
def test_predictions_of_a_wrong_shape_or_dtype_raise_an_error(prediction, error):
    with pytest.raises(error):
        DatasetMetrics(3).update(prediction, torch.zeros(1, 2, 2, dtype=torch.uint8))


def reduced(rank, world):
    """The scores of five images, of which each of `world` ranks adds its share, as text."""
    prediction, target = labels((5, 6, 7), 4, 0), labels((5, 6, 7), 4, 1)
    results = []
    for metrics in (DatasetMetrics(4), ImageMetrics(4), BoundaryMetrics(4)):
        for i in range(rank, 5, world):
            index = {"index": [i]} if isinstance(metrics, ImageMetrics) else {}
            metrics.update(prediction[i:i + 1], target[i:i + 1], **index)
        metrics.reduce()
        results.append(metrics.compute())
    return str(results)


def assert_reduced_equals(rank, world, expected):
    assert reduced(rank, world) == expected


def test_two_processes_give_the_scores_of_one_process():
    """Takes seconds, because two processes import torch."""
    on_ranks(assert_reduced_equals, 2, reduced(0, 1))


def test_boundary_iou_of_a_moved_square_equals_the_value_worked_by_hand():
    target = torch.zeros(1, 60, 80, dtype=torch.uint8)      # diagonal 100: a band of 2 pixels
    prediction = target.clone()
    target[0, 20:30, 20:30] = 1
    prediction[0, 20:30, 21:31] = 1
    results = scored(BoundaryMetrics(2), prediction, target)
    band = np.zeros((2, 60, 80), bool)
    for k, x in enumerate((20, 21)):
        band[k, 20:30, x:x + 10] = True
        band[k, 22:28, x + 2:x + 8] = False
    assert results["Class_Boundary_IoU"][1] == (band[0] & band[1]).sum() / (band[0] | band[1]).sum()


def test_boundary_f_counts_outlines_within_the_tolerance():
    target = torch.zeros(1, 60, 80, dtype=torch.uint8)
    prediction = target.clone()
    target[0, 20:30, 20:30] = 1
    prediction[0, 20:30, 24:34] = 1
    near, far = (scored(BoundaryMetrics(2, tolerance=t), prediction, target) for t in (0.04, 0.01))
    assert near["Class_Boundary_F"][1] == 1
    assert far["Class_Boundary_F"][1] < 1


def test_the_border_of_an_ignored_region_is_not_an_outline():
    target = torch.zeros(1, 40, 40, dtype=torch.uint8)
    target[0, 10:30, 10:30] = 255
    prediction = torch.zeros_like(target)
    prediction[0, 15:25, 15:25] = 1
    results = scored(BoundaryMetrics(2), prediction, target)
    assert results["Class_Boundary_IoU"][0] == 1
    assert math.isnan(results["Class_Boundary_IoU"][1])


def results_of(error, seed=0, masks=False):
    """The scores of 30 images in which the share `error` of the pixels is drawn at random."""
    g = torch.Generator().manual_seed(seed)
    dataset, image = DatasetMetrics(4), ImageMetrics(4)
    for n in range(30):
        target = labels((1, 12, 12), 3, n)
        wrong = torch.rand(target.shape, generator=g) < error
        prediction = torch.where(wrong, labels(target.shape, 3, n + 100, void=False), target)
        if masks:
            prediction = torch.stack([prediction == k for k in range(4)], 1)
        counts = count_pixels(prediction, target, 4)
        dataset.add(counts)
        image.add(counts)
    return Scores(dataset.compute(), image.compute(), images=30)


NAMES = ["road", "traffic sign, left", 'the "car"', "none"]
IDS = [f"image {i}" for i in range(30)]


def test_image_scores_are_read_as_they_were_written(tmp_path):
    results = results_of(0.2)
    write_image_scores(tmp_path / "scores.csv", results.image, IDS, NAMES)
    written = image_scores(results.image, IDS, NAMES)
    read = read_image_scores(tmp_path / "scores.csv")
    assert (read.ids, read.class_names) == (written.ids, written.class_names)
    np.testing.assert_array_equal(read.image, written.image)
    np.testing.assert_array_equal(read.pixels, written.pixels)


def test_the_error_names_a_file_without_image_scores(tmp_path):
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="other.csv"):
        read_image_scores(tmp_path / "other.csv")


def test_pixel_accuracy_of_masks_is_not_compared():
    a = image_scores(results_of(0.1).image, IDS, NAMES)
    b = image_scores(results_of(0.1, masks=True).image, IDS, NAMES)
    table = compare(a, b, draws=100)
    assert "Pixel_Accuracy" not in table
    assert "Binary_Accuracy" in table


def test_the_table_shows_both_conventions_and_a_dash_for_an_absent_class():
    text = format_table(results_of(0.2), NAMES, "ENet on CamVid")
    lines = text.splitlines()
    assert lines[0] == "ENet on CamVid"
    assert lines[5].split() == ["3", "none", "-", "-", "-", "-", "-"]
    assert "mean IoU" in lines[-2]
    assert "mIoU_I" in lines[-1]


def test_the_table_of_published_scores_contains_a_note():
    results = results_of(0.2)
    results.image["published"] = True
    assert "RankDice code" in format_table(results, NAMES)
    assert "RankDice code" in format_rules({"max": results}, NAMES)


def test_the_table_of_rules_has_one_column_per_rule():
    text = format_rules({"max": results_of(0.1), "T": results_of(0.2)}, NAMES)
    assert text.splitlines()[0].split() == ["max", "T"]
    assert [line.split()[0] for line in text.splitlines()[1:3]] == ["Mean_IoU", "Mean_Dice"]
