"""Class weights: the published table and the rules over pixel counts."""
import json
import math

import pytest

from tests.support.places import SHARED
from utils.errors import ConfigError
from utils.losses import build_loss
from utils.losses.class_weights import (
    CITYSCAPES_TABLE,
    class_weights,
    rule_weights,
    with_numbers,
)

GOLDEN = SHARED / "losses/class_weights.json"


@pytest.fixture(scope="module")
def cityscapes():
    if not GOLDEN.exists():
        pytest.skip("the golden class weights (../shared/losses) are missing")
    return json.loads(GOLDEN.read_text())["cityscapes_19"]


def test_the_table_is_the_published_one(cityscapes):
    assert list(CITYSCAPES_TABLE) == cityscapes["table"]
    assert class_weights("table").tolist() == cityscapes["table"]


def test_the_table_sums_to_its_number_of_classes():
    assert len(CITYSCAPES_TABLE) == 19 and sum(CITYSCAPES_TABLE) == pytest.approx(19, abs=2e-4)
    assert CITYSCAPES_TABLE[0] == 0.8373 and CITYSCAPES_TABLE[-2:] == (1.1529, 1.0507)


def test_the_log_rule_reproduces_the_table(cityscapes):
    pixels = [share * cityscapes["implied_total_pixels"] for share in
              cityscapes["implied_frequency"]]
    weights = rule_weights("log", pixels)
    recomputed = cityscapes["table_recomputed_from_the_rule"]
    assert weights == pytest.approx(recomputed, abs=6e-5)
    assert weights == pytest.approx(cityscapes["table"], abs=1e-3)


def test_the_enet_rule_reproduces_the_published_enet_weights(cityscapes):
    shares = cityscapes["implied_frequency"]
    raw = cityscapes["enet_style_table_c_1.02"]
    weights = rule_weights("enet", shares)
    mean = sum(raw) / len(raw)
    assert weights == pytest.approx([value / mean for value in raw], rel=2e-3)


@pytest.mark.parametrize("rule, expected", [
    ("log", [1 / math.log(100), 1 / math.log(300), 1 / math.log(600)]),
    ("enet", [1 / math.log(1.12), 1 / math.log(1.32), 1 / math.log(1.62)]),
    ("median", [3.0, 1.0, 0.5]),
])
def test_the_rules_over_100_300_600_pixels(rule, expected):
    mean = sum(expected) / 3
    assert rule_weights(rule, [100, 300, 600]) == pytest.approx([w / mean for w in expected])


@pytest.mark.parametrize("name, key", [
    ("CE", "weight"), ("wCE", "weight"), ("FocalLoss", "alpha"), ("OhemCrossEntropy", "weight"),
    ("CE_DiceLoss", "weight"), ("ClassDiceLoss", "weight"), ("BCEWithLogitsLoss2d", "weight"),
    ("BCEWithLogitsFocalLoss2d", "alpha"), ("RMI", "weight")])
@pytest.mark.parametrize("weights", [[0, 0, 0], [0.0], [math.nan, 1, 1], [math.inf, 1, 1],
                                     [-1, 1, 1]])
def test_weights_with_which_nothing_is_learned_are_refused(name, key, weights):
    with pytest.raises(ConfigError, match="class weights"):
        build_loss({"type": name, "args": {key: weights}})


@pytest.mark.parametrize("name", ["CE", "OhemCrossEntropy", "FocalLoss"])
def test_a_softmax_over_the_pixels_of_one_class_is_refused(name):
    section = {"type": name, "args": {"alpha" if name == "FocalLoss" else "weight": [0, 2, 0]}}
    with pytest.raises(ConfigError, match="1 of the 3 class weights is above 0: the network would "
                       "learn to predict that class everywhere"):
        build_loss(section)
    assert class_weights([0, 2, 0]).tolist() == [0, 2, 0]       # of a Dice or a sigmoid: meant


def test_pixel_counts_of_one_class_give_no_weights_for_a_softmax():
    with pytest.raises(ConfigError, match="1 of the 3"):
        build_loss({"type": "CE", "args": {"weight": "log", "class_pixels": [0, 500, 0]}})


@pytest.mark.parametrize("rule", ["log", "enet", "median"])
def test_weights_have_mean_one_and_a_class_without_pixels_gets_weight_zero(rule):
    weights = rule_weights(rule, [1000, 0, 50, 7])
    assert weights[1] == 0 and sum(weights) == pytest.approx(3)


def test_median_frequency_counts_only_images_with_the_class():
    # 600 pixels in 3 images are 200 per image, 100 pixels in 1 image are 100: the ratio is 2.
    weights = rule_weights("median", [600, 100], images_with=[3, 1])
    assert weights[1] / weights[0] == pytest.approx(2)


def test_a_loss_reads_its_weights_from_a_statistics_file(tmp_path):
    path = tmp_path / "statistics.json"
    path.write_text(json.dumps({"pixels": [100, 300, 600], "images_with": [1, 2, 2]}))
    loss = build_loss({"type": "wCE", "args": {"weight": "log", "class_pixels": str(path)}})
    assert loss.weight.tolist() == pytest.approx(rule_weights("log", [100, 300, 600]))
    counted = build_loss({"type": "wCE", "args": {"weight": "log",
                                                  "class_pixels": [100, 300, 600]}})
    assert counted.weight.tolist() == loss.weight.tolist()


@pytest.mark.parametrize("args, text", [
    ({"weight": "log"}, "class_pixels is missing"),
    ({"weight": "log", "class_pixels": "absent.json"}, "No such file"),
    ({"weight": [1, 2], "class_pixels": [1, 2]}, "no effect"),
    ({"weight": [1, -1]}, "not negative"),
    ({"weight": [1, math.nan]}, "finite"),
    ({"weight": "log", "class_pixels": [0, 0]}, "no class has a pixel"),
])
def test_invalid_arguments_raise_config_errors(args, text):
    with pytest.raises(ConfigError, match=text):
        build_loss({"type": "CE", "args": args})


@pytest.mark.parametrize("content", ["[]", '{"pixel": [1]}', '{"pixels": ["x"]}', "no json"])
def test_the_error_names_a_file_that_is_not_a_statistics_file(tmp_path, content):
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match="other.json"):
        class_weights("enet", str(path))


def test_a_loss_section_gets_numbers_for_its_rules_and_tables(tmp_path):
    counts = tmp_path / "counts.json"
    counts.write_text('{"pixels": [90, 10]}')
    section = {"out": {"type": "MixedLoss", "args": {"losses": [
        {"type": "CE", "args": {"weight": "enet", "class_pixels": str(counts)}},
        {"type": "FocalLoss", "args": {"alpha": "log", "class_pixels": [90, 10]}}]}},
        "aux": {"type": "TverskyLoss", "args": {"alpha": 0.3}}}
    found = with_numbers(section)
    counts.unlink()
    first, second = found["out"]["args"]["losses"]
    assert first["args"] == {"weight": class_weights("enet", [90, 10]).tolist(),
                             "class_pixels": None}
    assert second["args"]["alpha"] == class_weights("log", [90, 10]).tolist()
    assert found["aux"] == section["aux"] and with_numbers(found) == found
    assert section["out"]["args"]["losses"][0]["args"]["weight"] == "enet"
    with pytest.raises(ConfigError, match="cannot read class_pixels"):
        with_numbers(section)
