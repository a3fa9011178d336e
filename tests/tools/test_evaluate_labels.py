"""tools.evaluate_labels and the Cityscapes scores."""
import json
import math
from pathlib import Path

import numpy as np
import pytest

from dataloader.cityscapes import CLASS_NAMES, LABEL_IDS
from tests.support.places import SHARED
from tools import compare_results
from tools.evaluate_labels import main
from utils.cli.console import run
from utils.errors import DataError
from utils.images.image_io import read_label, write_image, write_label
from utils.metrics.cityscapes_metrics import LABELS, MEAN_SIZE, CityscapesMetrics, count_pair
from utils.metrics.image_scores import read_image_scores
from utils.study.results import read_result

EVAL = SHARED / "metrics" / "cityscapes_eval"
needs_official = pytest.mark.skipif(not EVAL.is_dir(), reason="../shared/metrics is not here")
RNG = np.random.default_rng(0)


def scored(*argv):
    return run(main, [*map(str, argv)])


@needs_official
def test_scores_are_those_of_the_official_script_bit_for_bit(tmp_path, capsys):
    assert scored("--dataset", "cityscapes", "--gt", EVAL / "gtFine" / "val", "--pred",
                  EVAL / "results", "--json", tmp_path / "s.json", "--results",
                  tmp_path / "results.txt") == 0
    expected = json.loads((EVAL / "expected.json").read_text())
    assert json.loads((tmp_path / "s.json").read_text()) == expected
    out = capsys.readouterr().out
    for line in ("person        : 0.270    0.813", "Score Average : 0.545    0.656",
                 "vehicle       : 0.580    0.816", "road          : 0.663      nan"):
        assert f"\n{line}\n" in out
    lines = (tmp_path / "results.txt").read_text().splitlines()
    assert lines[:4] == [f"{title}: {expected[key]!r}" for title, key in (
        ("IoU Class", "averageScoreClasses"), ("iIoU Class", "averageScoreInstClasses"),
        ("IoU Category", "averageScoreCategories"),
        ("iIoU Category", "averageScoreInstCategories"))]
    matrix = np.array(expected["confusion_34x34"])
    assert lines[4:] == [f"Accuracy: {np.trace(matrix) / matrix.sum()}"]


@needs_official
def test_predictions_in_train_ids_get_the_same_scores_for_classes(tmp_path):
    """Train ids turn every void id into 0; wrong void predictions stay misses."""
    for path in (EVAL / "results").iterdir():
        ids = read_label(path)
        table = np.full(256, 255, np.uint8)
        table[list(LABEL_IDS)] = np.arange(19)
        write_label(tmp_path / path.name, table[ids], [])
    common = ("--dataset", "Cityscapes", "--gt", EVAL / "gtFine", "--results", "")
    assert scored(*common, "--pred", tmp_path, "--ids", "train", "--json", tmp_path / "a.json") == 0
    assert scored(*common, "--pred", EVAL / "results", "--json", tmp_path / "b.json") == 0
    a, b = (json.loads((tmp_path / name).read_text()) for name in ("a.json", "b.json"))
    assert a["classScores"] == b["classScores"] and a["classInstScores"] == b["classInstScores"]


def test_an_instance_is_weighted_by_the_mean_size_of_its_class_over_its_size():
    truth, instances = np.full((4, 8), 7), np.full((4, 8), 7)
    truth[0, :6], instances[0, :2], instances[0, 2:6] = 26, 26000, 26001    # two cars
    truth[1], instances[1] = 26, 26                                         # a group of cars
    prediction = truth.copy()
    prediction[0, 0] = prediction[0, 2] = 27        # one pixel of each car is called a truck
    prediction[3, :3] = 26                          # and three of the road a car
    metrics = CityscapesMetrics()
    metrics.update(prediction, truth, instances)
    scores = metrics.compute()
    size = MEAN_SIZE["car"]
    hits, misses = size / 2 + 3 * size / 4, size / 2 + size / 4
    assert scores["classScores"]["car"] == 12 / (14 + 3)
    assert scores["classInstScores"]["car"] == pytest.approx(hits / (hits + misses + 3), abs=1e-15)
    assert scores["categoryScores"]["vehicle"] == 14 / 17
    assert scores["categoryInstScores"]["vehicle"] == \
        pytest.approx(2 * size / (2 * size + 3), abs=1e-15)
    assert scores["classScores"]["truck"] == 0
    assert math.isnan(scores["classScores"]["bus"])
    assert math.isnan(scores["classInstScores"]["road"])


def test_ignored_pixels_count_nowhere_and_void_predictions_are_misses():
    truth = np.array([[7, 7, 7, 0, 29, 29]])
    prediction = np.array([[7, 0, 29, 7, 26, 29]])
    metrics = CityscapesMetrics()
    metrics.update(prediction, truth, None)
    scores = metrics.compute()
    assert scores["classScores"]["road"] == 1 / 3
    assert math.isnan(scores["classScores"]["car"])
    assert metrics.accuracies() == (1 / 3, 2 / 6)


def test_the_order_of_classes_is_that_of_the_dataset():
    assert [i for i, label in enumerate(LABELS) if label.evaluated] == list(LABEL_IDS)
    assert [label.name for label in LABELS if label.evaluated] == CLASS_NAMES


@pytest.mark.parametrize("wrong", [34, 255, -1])
def test_an_id_that_does_not_exist_is_refused_by_the_counts(wrong):
    with pytest.raises(ValueError, match="0..33"):
        count_pair(np.array([[wrong]]), np.array([[7]]))
    with pytest.raises(ValueError, match="99000"):
        count_pair(np.array([[7]]), np.array([[7]]), np.array([[99000]]))


@pytest.mark.parametrize("shape", [(1, 2), (2, 1), (2,)])
def test_instances_of_another_size_are_refused_by_the_counts(shape):
    with pytest.raises(ValueError, match="size of the truth"):
        count_pair(np.full((2, 2), 7), np.full((2, 2), 7), np.zeros(shape, int))


def make_city(root, names=("ulm_000000_000019", "ulm_000001_000019"), instances=True):
    """Truth below root/gt/ulm, equal predictions in root/pred."""
    (root / "gt" / "ulm").mkdir(parents=True)
    (root / "pred").mkdir()
    for name in names:
        ids = RNG.choice([7, 8, 24, 26, 0], (4, 6)).astype(np.uint8)
        write_image(root / "gt" / "ulm" / f"{name}_gtFine_labelIds.png", ids)
        if instances:
            write_image(root / "gt" / "ulm" / f"{name}_gtFine_instanceIds.png",
                        np.where(ids > 23, ids * np.uint16(1000), ids).astype(np.uint16))
        write_image(root / "pred" / f"{name}.png", ids)
    return ["--dataset", "cityscapes", "--gt", root / "gt", "--pred", root / "pred",
            "--results", ""]


def test_every_wrong_prediction_is_listed_and_nothing_is_scored(tmp_path, capsys):
    argv = make_city(tmp_path, [f"ulm_{i:06d}_000019" for i in range(7)])
    pred = tmp_path / "pred"
    (pred / "ulm_000000_000019.png").unlink()
    write_image(pred / "bonn_000000_000019.png", np.zeros((4, 6), np.uint8))
    write_image(pred / "ulm_000001_000019.png", np.full((4, 5), 7, np.uint8))
    write_image(pred / "ulm_000002_000019.png", np.full((4, 6), 255, np.uint8))
    (pred / "ulm_000003_000019.png").write_bytes(b"")
    write_image(pred / "ulm_000004_000019.png", np.full((4, 6, 3), (128, 64, 128), np.uint8))
    assert scored(*argv, "--json", tmp_path / "s.json") == 3
    err = capsys.readouterr().err
    for text in ("ulm_000000_000019_gtFine_labelIds.png: no prediction",
                 "bonn_000000_000019.png: a prediction without truth",
                 "ulm_000001_000019.png: is 4x5, the truth",
                 "ulm_000002_000019.png: holds 255 (24 pixels)",
                 "ulm_000003_000019.png: the file is empty",
                 "ulm_000004_000019.png: is a color picture", "6 files are wrong",
                 "write label ids or train ids as a gray or palette PNG"):
        assert text in err
    assert not (tmp_path / "s.json").exists()


def test_truth_without_instances_has_no_niou_and_says_so(tmp_path, capsys):
    argv = make_city(tmp_path, instances=False)
    assert scored(*argv, "--json", tmp_path / "s.json") == 0
    found = json.loads((tmp_path / "s.json").read_text())
    assert found["averageScoreClasses"] == 1 and found["averageScoreInstClasses"] is None
    assert "no *_instanceIds.png" in capsys.readouterr().err


def test_a_split_of_cityscapes_is_found_below_its_data_dir(tmp_path, capsys):
    argv = make_city(tmp_path)
    (tmp_path / "cs" / "gtFine").mkdir(parents=True)
    (tmp_path / "gt").rename(tmp_path / "cs" / "gtFine" / "val")
    argv[3] = tmp_path / "cs"
    assert scored(*argv, "--split", "val") == 0
    assert scored(*argv, "--split", "train") == 3
    assert "gtFine/train" in capsys.readouterr().err


def test_options_without_effect_are_refused():
    for more in (("--args", '{"a": 1}'), ("--ignore-index", "19")):
        with pytest.raises(SystemExit):
            main(["--dataset", "minicity", "--gt", ".", "--pred", ".", *more])


def test_a_single_missing_instance_file_is_a_mistake(tmp_path, capsys):
    argv = make_city(tmp_path)
    next((tmp_path / "gt" / "ulm").glob("*1_000019_gtFine_instanceIds.png")).unlink()
    assert scored(*argv) == 3
    assert "ulm_000001_000019_gtFine_instanceIds.png" in capsys.readouterr().err


def test_instances_of_another_size_than_the_truth_name_both_files(tmp_path, capsys):
    argv = make_city(tmp_path)
    path = next((tmp_path / "gt" / "ulm").glob("*1_000019_gtFine_instanceIds.png"))
    height, width = read_label(path).shape
    write_image(path, np.zeros((height + 1, width), np.uint16))
    assert scored(*argv) == 3
    err = " ".join(capsys.readouterr().err.split())
    assert f"{path}: is {height + 1}x{width}, the truth" in err
    assert f"the truth {path.name.replace('instance', 'label')} {height}x{width}" in err


def test_train_ids_in_place_of_label_ids_cause_a_warning(tmp_path, capsys):
    argv = make_city(tmp_path)
    for path in (tmp_path / "pred").iterdir():
        write_image(path, np.full((4, 6), 0, np.uint8))
    assert scored(*argv) == 0
    assert "--ids train" in capsys.readouterr().err


def make_two_folders(root, labels, predictions):
    for folder, maps in (("gt", labels), ("pred", predictions)):
        for name, ids in maps.items():
            path = root / folder / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_label(path, np.array([ids], np.uint8), [])
    return ["--gt", root / "gt", "--pred", root / "pred", "--results", root / "r.txt",
            "--json", root / "s.json"]


def test_other_datasets_get_the_dataset_metrics(tmp_path, capsys):
    argv = make_two_folders(tmp_path, {"a": [1, 1, 2, 0], "sub/b": [2, 2, 2, 2]},
                            {"a": [0, 1, 1, 0], "sub/b": [1, 1, 1, 255]})
    assert scored("--dataset", "ade20k", *argv) == 0
    found = json.loads((tmp_path / "s.json").read_text())
    assert found["Class_IoU"][:3] == [1 / 2, 4 / 6, None]
    assert found["Pixel_Accuracy"] == 5 / 7 and found["Images"] == 2
    assert found["image"]["Mean_IoU"] == pytest.approx((0.5 + 0.75) / 2)
    assert capsys.readouterr().out == (tmp_path / "r.txt").read_text()


def test_predictions_may_be_encoded_as_the_truth_is(tmp_path):
    argv = make_two_folders(tmp_path, {"a": [1, 1, 2, 0]}, {"a": [1, 2, 2, 150]})
    assert scored("--dataset", "ADE20K", "--ids", "label", *argv) == 0
    assert json.loads((tmp_path / "s.json").read_text())["Class_IoU"][:2] == [1 / 2, 1 / 2]


def test_void_of_a_truth_in_train_ids_is_void_in_predictions_too(tmp_path):
    argv = make_two_folders(tmp_path, {"a": [1, 1, 2, 11]}, {"a": [1, 11, 2, 3]})
    assert scored("--dataset", "camvid", *argv) == 0
    found = json.loads((tmp_path / "s.json").read_text())
    assert found["Class_IoU"][1:4] == [1 / 2, 1, None]


def test_255_is_a_class_of_300_and_files_of_8_and_16_bits_are_read_by_their_values(tmp_path):
    truth = {"a": np.array([[0, 255, 255, 7]], np.uint8),            # a file of 8 bits
             "b": np.array([[299, 255, 65535, 7]], np.uint16)}       # one of 16 with padding
    guess = {"a": np.array([[0, 255, 299, 7]], np.uint16),
             "b": np.array([[255, 255, 3, 65535]], np.uint16)}
    for folder, maps in (("gt", truth), ("pred", guess)):
        (tmp_path / folder).mkdir()
        for name, ids in maps.items():
            write_image(tmp_path / folder / f"{name}.png", ids)
    assert scored("--dataset", "Folder", "--gt", tmp_path / "gt", "--pred", tmp_path / "pred",
                  "--args", '{"num_classes": 300}', "--ignore-index", "1000",
                  "--json", tmp_path / "s.json", "--results", "") == 0
    document = json.loads((tmp_path / "s.json").read_text())
    # labeled 255: three pixels, two of them right; once 255 in place of 299
    assert document["Class_IoU"][255] == pytest.approx(2 / 4)
    assert document["Class_IoU"][7] == pytest.approx(1 / 2)          # void is a miss
    assert document["Class_IoU"][299] == 0


def test_a_value_that_is_not_a_class_is_an_error_with_its_pixels(tmp_path, capsys):
    argv = make_two_folders(tmp_path, {"a": [1, 1, 2, 0]}, {"a": [1, 2, 150, 151]})
    assert scored("--dataset", "ADE20K", *argv) == 3
    err = capsys.readouterr().err
    assert "a.png: holds 150 (1 pixel), 151 (1 pixel)" in err and "--ids label" in err


def folder_scored(tmp_path, truth, guess, args, *more):
    """(status, the JSON file) of predictions of one image against its label, by Folder."""
    for folder, values in (("gt", truth), ("pred", guess)):
        values = np.asarray(values)
        kind = np.uint16 if values.max() > 255 else np.uint8
        (tmp_path / folder).mkdir(exist_ok=True)
        write_image(tmp_path / folder / "a.png", values.astype(kind))
    status = scored("--dataset", "Folder", "--gt", tmp_path / "gt", "--pred", tmp_path / "pred",
                    "--args", json.dumps(args), "--results", "", "--json", tmp_path / "s.json",
                    *more)
    file = tmp_path / "s.json"
    return status, json.loads(file.read_text()) if file.exists() else None


BINARY = {"num_classes": 2, "label_map": {"255": 1}}


@pytest.mark.parametrize("truth, guess, args, scores", [
    ([[0, 255, 255, 0]], [[0, 255, 0, 0]], BINARY, [2 / 3, 1 / 2]),
    ([[0, 128, 255, 0]], [[0, 128, 255, 255]], {"num_classes": 3, "label_map": {"128": 1,
                                                                              "255": 2}},
     [1 / 2, 1, 1 / 2]),
    ([[0, 500, 0, 500]], [[500, 500, 0, 500]], {"num_classes": 2, "label_map": {"500": 1}},
     [1 / 2, 2 / 3])])
def test_values_that_only_the_truth_has_are_read_as_in_the_truth(tmp_path, capsys, truth, guess,
                                                                 args, scores):
    """A mask of 0 and 255 has no train id but 0: 255 is its other class."""
    status, document = folder_scored(tmp_path, truth, guess, args)
    assert status == 0 and document["Class_IoU"] == scores and document["ids"] == "label"
    assert "read as the truth is (--ids label" in capsys.readouterr().err


def test_255_means_no_class_where_the_train_id_of_its_class_is_predicted(tmp_path, capsys):
    status, document = folder_scored(tmp_path, [[0, 255, 255, 255]], [[0, 1, 1, 255]],
                                     {"num_classes": 2, "label_map": {"0": 0, "1": 0, "255": 1}})
    assert status == 0 and document["ids"] == "train"
    assert document["Class_IoU"] == [1, 2 / 3] and document["pixels_without_prediction"] == 1
    assert "1 of 4 labeled pixels (25.00%) are predicted as no class (value 255)" \
        in capsys.readouterr().err


def test_two_readings_of_which_the_other_fits_better_are_refused(tmp_path, capsys):
    """Values of ADE20K's truth are its train ids plus 1: both readings are possible."""
    argv = make_two_folders(tmp_path, {"a": [1, 1, 2, 0]}, {"a": [1, 1, 2, 2]})
    assert scored("--dataset", "ADE20K", *argv) == 3
    err = capsys.readouterr().err
    assert "read as train ids 0.00 % of the pixels are right" in err
    assert "read as values of the truth 100.00 %" in err and "--ids train or --ids label" in err
    assert not (tmp_path / "s.json").exists()
    for ids, score in (("train", 0), ("label", 1)):
        assert scored("--dataset", "ADE20K", "--ids", ids, *argv) == 0
        assert json.loads((tmp_path / "s.json").read_text())["Mean_IoU"] == score


def test_one_wrong_pixel_does_not_change_the_reading(tmp_path, capsys):
    """150 is no train id of ADE20K, but its last class in the truth."""
    argv = make_two_folders(tmp_path, {"a": [1, 1, 2, 3]}, {"a": [0, 0, 1, 150]})
    assert scored("--dataset", "ADE20K", *argv) == 3
    assert "holds 150 (1 pixel)" in capsys.readouterr().err


def test_an_explicit_reading_counts_void_pixels_and_says_so(tmp_path, capsys):
    status, document = folder_scored(tmp_path, [[0, 255, 255, 0]], [[0, 255, 255, 0]], BINARY,
                                     "--ids", "train")
    assert status == 0 and document["Class_IoU"] == [1, 0]
    assert "2 of 4 labeled pixels (50.00%)" in capsys.readouterr().err


def test_the_class_void_of_a_network_counts_as_no_class(tmp_path, capsys):
    """2 of 4 labeled pixels are void: misses of the true class, and false alarms of none."""
    truth, guess = [[0, 1, 1, 0, 255]], [[0, 1, 2, 2, 2]]
    args = {"num_classes": 2}
    status, _ = folder_scored(tmp_path, truth, guess, args)
    assert status == 3
    assert "2 is the void of a network with train_void, use --args" in capsys.readouterr().err
    status, document = folder_scored(tmp_path, truth, guess, {**args, "train_void": True})
    assert status == 0 and document["Class_IoU"] == [1 / 2, 1 / 2]
    assert document["pixels_without_prediction"] == 2
    assert folder_scored(tmp_path, truth, guess, {**args, "train_void": True}, "--ids",
                         "label")[0] == 2
    assert "train_void has no effect" in capsys.readouterr().err


def test_19_is_void_in_train_ids_of_the_official_rules(tmp_path, capsys):
    argv = make_city(tmp_path, ["ulm_000000_000019"])
    write_image(tmp_path / "pred" / "ulm_000000_000019.png", np.full((4, 6), 19, np.uint8))
    assert scored(*argv, "--ids", "train", "--json", tmp_path / "s.json") == 0
    assert json.loads((tmp_path / "s.json").read_text())["averageScoreClasses"] == 0
    assert "are predicted as ids that are not evaluated" in capsys.readouterr().err
    write_image(tmp_path / "pred" / "ulm_000000_000019.png", np.full((4, 6), 20, np.uint8))
    assert scored(*argv, "--ids", "train") == 3
    assert "expected a train id 0..18, or 19 or 255" in capsys.readouterr().err


def test_predictions_in_the_colors_of_the_palette_are_read(tmp_path, capsys):
    palette = [[0, 0, 0], [255, 0, 0]]
    truth, guess = np.array([[0, 1, 1, 0]]), np.array([[0, 1, 0, 0]])
    for folder, ids in (("gt", truth), ("pred", guess)):
        (tmp_path / folder).mkdir()
        write_image(tmp_path / folder / "a.png", np.array(palette, np.uint8)[ids])
    argv = ["--dataset", "Folder", "--gt", tmp_path / "gt", "--pred", tmp_path / "pred", "--args",
            json.dumps({"num_classes": 2, "palette": palette}), "--results", "",
            "--json", tmp_path / "s.json"]
    assert scored(*argv) == 0
    assert json.loads((tmp_path / "s.json").read_text())["Class_IoU"] == [2 / 3, 1 / 2]
    assert "color pictures" in capsys.readouterr().err
    assert scored(*argv, "--ids", "train") == 3
    assert "--ids label reads the colors" in capsys.readouterr().err
    write_label(tmp_path / "pred" / "a.png", guess, [])
    assert scored(*argv) == 0           # ids, against a truth in colors
    assert json.loads((tmp_path / "s.json").read_text())["Class_IoU"] == [2 / 3, 1 / 2]


def test_colors_without_a_palette_are_refused_with_a_remedy_of_this_command(tmp_path, capsys):
    status, _ = folder_scored(tmp_path, [[0, 1]], np.full((1, 2, 3), (9, 8, 7), np.uint8),
                              {"num_classes": 2})
    assert status == 3
    assert "--args '{\"palette\"" in capsys.readouterr().err


def test_predictions_as_jpeg_are_named_for_what_is_wrong(tmp_path, capsys):
    argv = make_two_folders(tmp_path, {"a": [1, 0], "sub/b": [1, 0]}, {"a": [1, 0]})
    (tmp_path / "pred" / "sub").mkdir()
    write_image(tmp_path / "pred" / "sub" / "b.jpg", np.zeros((1, 2), np.uint8))
    assert scored("--dataset", "Folder", "--args", '{"num_classes": 2}', *argv) == 3
    err = capsys.readouterr().err
    assert "b.jpg: a .jpg file; predictions are label files" in err
    assert "no prediction" not in err


def test_a_truth_without_a_labeled_pixel_is_an_error(tmp_path, capsys):
    status, document = folder_scored(tmp_path, [[255, 255]], [[0, 1]], {"num_classes": 2})
    assert status == 3 and document is None
    assert "nothing to score: all pixels of 1 labels are ignored" in capsys.readouterr().err


def test_scores_are_in_their_files_before_they_are_printed(tmp_path, monkeypatch):
    def gone(*_):
        raise DataError("cannot write the output")
    monkeypatch.setattr("utils.cli.console.output", gone)
    argv = make_two_folders(tmp_path, {"a": [1, 0]}, {"a": [1, 0]})
    assert scored("--dataset", "Folder", "--args", '{"num_classes": 2}', *argv) == 3
    assert (tmp_path / "s.json").exists() and (tmp_path / "r.txt").exists()


def test_ids_that_are_not_evaluated_are_told_by_the_official_rules(tmp_path, capsys):
    argv = make_city(tmp_path, ["ulm_000000_000019"])
    truth = read_label(tmp_path / "gt" / "ulm" / "ulm_000000_000019_gtFine_labelIds.png")
    write_image(tmp_path / "pred" / "ulm_000000_000019.png", np.zeros_like(truth))
    assert scored(*argv) == 0
    evaluated = int((truth != 0).sum())
    assert f"{evaluated} of {evaluated} evaluated pixels" in capsys.readouterr().err


def test_a_split_of_a_whole_dataset_is_scored_by_its_list(tmp_path):
    base = tmp_path / "data" / "VOCdevkit" / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (base / folder).mkdir(parents=True)
    (tmp_path / "pred").mkdir()
    for name in "xy":
        write_image(base / "JPEGImages" / f"{name}.jpg", np.zeros((1, 3, 3), np.uint8))
        write_label(base / "SegmentationClass" / f"{name}.png", np.array([[0, 5, 255]]), [])
    (base / "ImageSets" / "Segmentation" / "val.txt").write_text("x\n")
    write_label(tmp_path / "pred" / "x.png", np.array([[0, 5, 3]]), [])
    argv = ["--dataset", "voc", "--split", "val", "--gt", tmp_path / "data", "--pred",
            tmp_path / "pred", "--json", tmp_path / "s.json", "--results", ""]
    assert scored(*argv) == 0
    found = json.loads((tmp_path / "s.json").read_text())
    assert found["Mean_IoU"] == 1 and found["Images"] == 1


@pytest.fixture(scope="module")
def two_programs(tmp_path_factory):
    """64 labels, and the predictions of two programs: theirs has more errors than ours."""
    root = tmp_path_factory.mktemp("two")
    rng = np.random.default_rng(0)
    for folder in ("gt", "ours", "theirs"):
        (root / folder).mkdir()
    for number in range(64):
        truth = rng.integers(0, 3, (6, 8)).astype(np.uint8)
        for folder, errors in (("gt", 0), ("ours", 0.1), ("theirs", 0.2)):
            wrong = rng.random(truth.shape) < errors
            write_label(root / folder / f"{number:02d}.png", np.where(wrong, (truth + 1) % 3, truth)
                        .astype(np.uint8), [])
    for name in ("ours", "theirs"):
        assert scored("--dataset", "Folder", "--args", '{"num_classes": 3}', "--gt", root / "gt",
                      "--pred", root / name, "-o", root / "scores" / name) == 0
    return root


def entry_of(folder):
    return json.loads((folder / "results.json").read_text())


def test_o_writes_what_test_py_writes(two_programs, tmp_path, capsys):
    entry = entry_of(two_programs / "scores" / "ours")
    assert entry["n_images"] == 64 and len(entry["classes"]) == 3 and entry["schema"] == 2
    table = read_image_scores(two_programs / "scores" / "ours" / entry["image_scores"])
    hits, predicted, labeled = table.pixels.sum(0)
    assert entry["Mean_IoU"] == pytest.approx((hits / (predicted + labeled - hits)).mean())
    assert table.ids[:2] == ["00", "01"]
    assert not Path("results.txt").exists()
    assert {path.suffix for path in (two_programs / "scores" / "ours").iterdir()} == {
        ".json", ".txt", ".csv", ".png"}
    text = (two_programs / "scores" / "ours" / "results.txt").read_text()
    assert text.startswith(f"== label files in {two_programs / 'ours'} (train ids), Folder "
                           f"(64 images, labels in {two_programs / 'gt'}) [")


def test_intervals_are_printed_from_60_images_on(two_programs, tmp_path, capsys):
    argv = ["--dataset", "Folder", "--args", '{"num_classes": 3}', "--gt", two_programs / "gt",
            "--pred", two_programs / "ours", "--results", "", "--json", tmp_path / "s.json"]
    assert scored(*argv) == 0
    bounds = json.loads((tmp_path / "s.json").read_text())["intervals"]["Mean_IoU"]
    assert bounds == entry_of(two_programs / "scores" / "ours")["intervals"]["Mean_IoU"]
    assert f"95 % intervals for other images: mean IoU {100 * bounds['low']:.2f} .. " \
        in capsys.readouterr().out


def test_two_programs_are_compared_by_their_files(two_programs, capsys):
    ours, theirs = (str(two_programs / "scores" / name / "results.json")
                    for name in ("ours", "theirs"))
    assert run(compare_results.main, [ours, theirs]) == 0
    out = capsys.readouterr().out
    assert f"first:  {ours}: label files in {two_programs / 'ours'} (train ids), Folder" in out
    line = next(line for line in out.splitlines() if line.startswith("Mean_IoU"))
    assert line.endswith("<0.001  differ")
    found = read_result(Path(ours), None)
    assert found.scores["Mean_IoU"] == entry_of(Path(ours).parent)["Mean_IoU"]
    assert len(found.images.ids) == 64 and len(found.classes) == 3


def test_a_second_score_of_a_folder_replaces_the_first(two_programs, tmp_path):
    argv = ["--dataset", "Folder", "--args", '{"num_classes": 3}', "--gt", two_programs / "gt",
            "-o", tmp_path]
    for name in ("ours", "theirs", "ours"):
        assert scored(*argv, "--pred", two_programs / name) == 0
    runs = entry_of(tmp_path)["runs"]
    assert [one["predictions"]["path"] for one in runs] == [str(two_programs / name)
                                                            for name in ("theirs", "ours")]


def test_results_among_the_predictions_are_refused(two_programs, capsys):
    for place in (two_programs / "ours", two_programs / "gt" / "scores"):
        assert scored("--dataset", "Folder", "--args", '{"num_classes": 3}', "--gt",
                      two_programs / "gt", "--pred", two_programs / "ours", "-o", place) == 2
        assert "would lie among the files of" in capsys.readouterr().err


@needs_official
def test_results_json_of_cityscapes_has_the_official_scores_and_those_of_each_image(tmp_path):
    assert scored("--dataset", "cityscapes", "--gt", EVAL / "gtFine" / "val", "--pred",
                  EVAL / "results", "-o", tmp_path) == 0
    entry = entry_of(tmp_path)
    expected = json.loads((EVAL / "expected.json").read_text())
    assert entry["Mean_IoU"] == pytest.approx(expected["averageScoreClasses"], abs=1e-12)
    assert {one["name"]: one["IoU"] for one in entry["classes"]} == pytest.approx(
        expected["classScores"], nan_ok=True)
    assert entry["official"]["averageScoreInstClasses"] == expected["averageScoreInstClasses"]
    assert len(read_image_scores(tmp_path / entry["image_scores"]).ids) == 4


def test_labels_without_an_evaluated_pixel_are_an_error(tmp_path, capsys):
    argv = make_city(tmp_path)
    for path in (tmp_path / "gt" / "ulm").glob("*labelIds.png"):
        write_image(path, np.zeros((4, 6), np.uint8))
    assert scored(*argv) == 3
    assert "no pixel of 2 images has a class" in capsys.readouterr().err


@pytest.mark.parametrize("argv, status", [
    (["--dataset", "cityscapes", "--gt", "{tmp}/none", "--pred", "{tmp}"], 3),
    (["--dataset", "cityscapes", "--gt", "{tmp}", "--pred", "{tmp}"], 3),
    (["--dataset", "ADE20K", "--gt", "{tmp}", "--pred", "{tmp}"], 3),
    (["--dataset", "ADE2K", "--gt", "{tmp}", "--pred", "{tmp}"], 2),
    (["--dataset", "VOC2010_Context", "--gt", "{tmp}", "--pred", "{tmp}"], 2),
    (["--dataset", "ADE20K", "--gt", "{tmp}", "--pred", "{tmp}", "--args", "[]"], 2)])
def test_unusable_arguments_end_with_the_right_status(argv, status, tmp_path):
    assert scored(*(text.replace("{tmp}", str(tmp_path)) for text in argv)) == status
