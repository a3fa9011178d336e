"""tools.class_statistics: counts, weights, mean and std, and the file that a loss reads."""
import json
import math
import statistics as stdlib

import numpy as np
import pytest

from dataloader.ade20k import ADE20K
from tools.class_statistics import main, statistics
from utils.cli.console import run
from utils.images.class_chart import PANEL, class_chart
from utils.images.image_io import read_image, write_image, write_label
from utils.images.sheet import Sheet
from utils.losses.class_weights import WEIGHT_RULES, class_weights

RNG = np.random.default_rng(0)


def make(root, labels):
    """ADE20K training with these stored labels, images of noise; its loader arguments."""
    for folder in ("images", "annotations"):
        (root / folder / "training").mkdir(parents=True)
    for number, values in enumerate(labels):
        label = np.array(values, np.uint8)
        write_image(root / "images" / "training" / f"{number}.png",
                    RNG.integers(0, 256, (*label.shape, 3), dtype=np.uint8))
        write_label(root / "annotations" / "training" / f"{number}.png", label, [])
    return {"data_dir": str(root), "split": "training"}


def test_pixels_and_images_of_each_class_are_counted(tmp_path):
    args = make(tmp_path, [[[1, 1, 0], [2, 2, 2]], [[1, 0, 0, 0]]])
    found = statistics(ADE20K(**args))
    assert found["pixels"][:3] == [3, 3, 0] and found["images_with"][:3] == [2, 1, 0]
    assert found["pixels_in_images_with"][:3] == [6, 5, 0]
    assert found["ignored_pixels"] == 4 and found["images"] == 2
    assert found["share"][0] == 0.5


def test_mean_and_std_are_those_of_all_pixels(tmp_path):
    args = make(tmp_path, [np.ones((3, 5)), np.ones((40, 7))])
    pixels = np.concatenate([read_image(path).reshape(-1, 3) for path in
                             sorted((tmp_path / "images" / "training").iterdir())]) / 255
    found = statistics(ADE20K(**args))
    np.testing.assert_allclose(found["mean"], pixels.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found["std"], pixels.std(0), rtol=1e-12)


def test_the_numbers_do_not_depend_on_the_workers(tmp_path):
    args = make(tmp_path, RNG.integers(0, 151, (7, 6, 5)))
    assert statistics(ADE20K(**args), 2) == statistics(ADE20K(**args), 0)


def test_a_loss_reads_the_file_by_every_rule(tmp_path, capsys):
    args = make(tmp_path / "d", [[[1, 1, 0], [2, 2, 2]], [[1, 3, 3, 3]]])
    path = tmp_path / "s.json"
    assert run(main, ["--type", "ADE20K", "--args", json.dumps({**args, "crop_size": 2,
                                                                "augment": True}),
                      "--json", str(path), "--workers", "0"]) == 0
    found = json.loads(path.read_text())
    for rule in WEIGHT_RULES:
        assert class_weights(rule, str(path)).tolist() == found["weights"][rule]
        present = [w for w, n in zip(found["weights"][rule], found["pixels"],
                                     strict=True) if n]
        assert stdlib.fmean(present) == pytest.approx(1)
    assert found["weights"]["table"] is None
    out = capsys.readouterr().out
    assert "wall" in out and '"normalize": {"mean": [' in out and "without a single pixel: " in out


def test_the_published_table_is_listed_for_the_classes_of_cityscapes():
    from dataloader.shapes import Shapes
    shapes = Shapes(length=1)
    shapes.class_names = list(range(19))
    from dataloader.cityscapes import CLASS_NAMES
    assert statistics(shapes)["weights"]["table"] is None
    shapes.class_names = CLASS_NAMES
    assert len(statistics(shapes)["weights"]["table"]) == 19


def test_a_split_without_labels_has_no_weights(tmp_path, capsys):
    args = make(tmp_path, [[[0, 0]]])
    assert run(main, ["--type", "ADE20K", "--args", json.dumps(args), "--workers", "0",
                      "--png", str(tmp_path / "c.png")]) == 0
    out = capsys.readouterr().out
    assert "ignored: 2 pixels, 100.00% of all" in out and "median" not in out
    assert read_image(tmp_path / "c.png").shape[2] == 3


def test_a_damaged_file_is_named(tmp_path, capsys):
    args = make(tmp_path, [[[1, 1]]] * 3)
    image = tmp_path / "images" / "training" / "1.png"
    image.write_bytes(image.read_bytes()[:-20])
    assert run(main, ["--type", "ADE20K", "--args", json.dumps(args), "--workers", "0"]) == 3
    assert "1.png" in capsys.readouterr().err


def test_a_config_can_name_the_data(capsys):
    argv = ["-c", "config.json", "train_loader.args.length=3", "--workers", "0"]
    assert run(main, argv) == 0
    assert "Shapes" in capsys.readouterr().out
    assert run(main, [*argv, "--loader", "test"]) == 2
    assert "test_loader" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [
    [], ["-c", "config.json", "--type", "VOC"], ["--type", "VOC", "a.b=1"], ["-c", "x", "a"]])
def test_arguments_that_contradict_each_other_are_refused(argv):
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2


def test_every_mistake_in_the_arguments_of_a_dataset_is_shown_at_once(capsys):
    assert run(main, ["--type", "ADE20K", "--args", '{"splitt": 1, "data_dir": 5}']) == 2
    err = capsys.readouterr().err
    assert "splitt" in err and "data_dir" in err and "args.split" in err


def test_dots_and_bars_have_the_colors_of_the_classes_and_lie_at_the_shares():
    colors = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    chart = class_chart(["a", "b", "c"], [list(color) for color in colors], [900, 100, 0],
                        [4, 1, 0], 4)
    (red, green, blue) = (np.nonzero((chart == color).all(2))[1] for color in colors)
    middle = (chart.shape[1] - 70) // 2         # between the two panels
    assert (red > middle).sum() > 2 * (green > middle).sum() > 500 and not len(blue)
    # The axis of the dots ends at 100 %, a decade of it is 210 pixels: 10 % lies 0.95 decades left
    # of 90 %.
    dots = [np.median(columns[columns < middle]) for columns in (red, green)]
    assert dots[0] - dots[1] == pytest.approx(PANEL * math.log10(9) / 2, abs=1)
    assert all(np.ptp(columns[columns < middle]) < 20 for columns in (red, green))


@pytest.mark.parametrize("names, labels", [
    (["class 0", "class 1"], ["class 0", "class 1"]),
    (["sky", "class 0"], ["0: sky", "1: class 0"])])
def test_a_class_without_a_name_is_called_by_its_id_once(names, labels, monkeypatch):
    said, written = [], Sheet.text
    monkeypatch.setattr(Sheet, "text", lambda sheet, x, y, words, *rest, **more: (
        said.append(words), written(sheet, x, y, words, *rest, **more)))
    class_chart(names, [[9, 9, 9], [200, 0, 0]], [3, 1], [1, 1], 1)
    assert [words for words in said if words in labels] == labels
    assert "share of the labeled pixels (logarithmic axis)" in said
