"""tools.evaluate_labels --instances: files of instance results against *_instanceIds.png."""
import json

import numpy as np
import pytest

from tools.evaluate_labels import main
from utils.cli.console import run
from utils.images.image_io import write_image

NAMES = ("ulm_000000_000019", "ulm_000001_000019")


@pytest.fixture
def city(tmp_path):
    """Two images with two cars each, all found exactly, and the arguments of the command."""
    for folder in ("gt/ulm", "pred/masks"):
        (tmp_path / folder).mkdir(parents=True)
    for name in NAMES:
        ids = np.full((20, 40), 7, np.uint16)
        ids[:, :10], ids[:, 20:30] = 26000, 26001
        write_image(tmp_path / "gt" / "ulm" / f"{name}_gtFine_instanceIds.png", ids)
        lines = []
        for number in (0, 1):
            mask = f"masks/{name}_{number}.png"
            write_image(tmp_path / "pred" / mask, ((ids == 26000 + number) * 255).astype(np.uint8))
            lines.append(f"{mask} 26 0.{9 - number}\n")
        (tmp_path / "pred" / f"{name}_pred.txt").write_text("".join(lines))
    return tmp_path


def scored(city, *more):
    argv = ["--dataset", "cityscapes", "--gt", city / "gt", "--pred", city / "pred", "--instances",
            "--results", "", "--json", city / "s.json", *more]
    (city / "s.json").unlink(missing_ok=True)
    status = run(main, [*map(str, argv)])
    return status, (json.loads((city / "s.json").read_text()) if status == 0 else None)


def test_the_table_and_the_file_have_the_official_names(city, capsys):
    status, document = scored(city)
    assert status == 0
    averages = document["averages"]
    assert averages["allAp"] == averages["allAp50%"] == 1
    assert averages["classes"]["car"] == {"ap": 1, "ap50%": 1}
    assert averages["classes"]["bus"] == {"ap": None, "ap50%": None}
    out = capsys.readouterr().out.splitlines()
    assert "car            :    1.000    1.000" in out
    assert "bus            :      nan      nan" in out
    assert "average        :    1.000    1.000" in out


def test_a_worse_mask_scores_only_at_lower_thresholds(city):
    path = city / "pred" / "masks" / f"{NAMES[0]}_0.png"
    mask = np.zeros((20, 40), np.uint8)
    mask[:, :6] = 1         # 6 of 10 columns: found at 0.5 and 0.55
    write_image(path, mask)
    _, document = scored(city)
    averages = document["averages"]
    assert averages["allAp50%"] == 1
    # From 0.6 on: scores 0.9 false and right, 0.8 right twice: points (0, 1) (1/4, 1/2) (3/4, 3/4).
    rest = 1 / 4 * (1 + 1 / 2) / 2 + 1 / 2 * (1 / 2 + 3 / 4) / 2
    assert averages["allAp"] == pytest.approx((2 + 8 * rest) / 10)


def test_all_wrong_files_are_named_at_once_and_nothing_is_scored(city, capsys):
    pred = city / "pred"
    names = [f"ulm_{i:06d}_000019" for i in range(2, 10)]
    for name in names:
        write_image(city / "gt" / "ulm" / f"{name}_gtFine_instanceIds.png",
                    np.full((20, 40), 26000, np.uint16))
    write_image(pred / "small.png", np.zeros((4, 4), np.uint8))
    write_image(pred / "rgb.png", np.zeros((20, 40, 3), np.uint8) + np.uint8([1, 2, 3]))
    texts = ["gone.png 26 0.5", "small.png 26 0.5", "rgb.png 26 0.5", "/etc/x.png 26 0.5",
             "small.png 99 0.5", "small.png 26 high", "small.png", "a.png 7 0.5\na.png 7 0.5"]
    for name, text in zip(names[1:], texts[1:], strict=True):
        (pred / f"{name}.txt").write_text(text)
    assert scored(city)[0] == 3
    err = " ".join(capsys.readouterr().err.split())
    for text in ("ulm_000002_000019_gtFine_instanceIds.png: no prediction", "small.png: is 4x4",
                 "rgb.png: is a color picture", "write a mask as a gray PNG",
                 "outside the folder of the results",
                 "expected a label id 0..33 and a score, found 99 0.5", "found 26 high",
                 "expected a mask file, a label id and a score", "was named before, in line 1"):
        assert text in err, text
    assert not (city / "s.json").exists()


def test_masks_of_classes_without_instances_are_counted_in_a_message(city, capsys):
    path = city / "pred" / f"{NAMES[0]}_pred.txt"
    path.write_text(path.read_text() + "masks/none.png 11 0.5\n")
    assert scored(city)[0] == 0
    err = capsys.readouterr().err
    assert "1 masks are of classes without instances and count nowhere (building: 1)" in err
    for name in NAMES:
        path = city / "pred" / f"{name}_pred.txt"
        path.write_text(path.read_text().replace(" 26 ", " 13 "))    # a train id
    assert scored(city)[1]["averages"]["allAp"] == 0
    assert "label ids are expected: 24 person" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("more, text", [
    (["--ids", "train"], "--ids has no effect with --instances"),
    (["-o", "x"], "no scores of single images"), (["--dataset", "ADE20K"], "is for cityscapes")])
def test_options_without_effect_on_instances_are_refused(city, capsys, more, text):
    with pytest.raises(SystemExit):
        scored(city, *more)
    assert text in capsys.readouterr().err


def test_a_truth_without_instances_is_an_error(city, capsys):
    for path in (city / "gt" / "ulm").iterdir():
        path.rename(path.with_name(path.name.replace("instance", "label")))
    assert scored(city)[0] == 3
    assert "found no *_gtFine_instanceIds.png" in capsys.readouterr().err
