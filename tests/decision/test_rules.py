"""Decision rules: the result of each one, and the settings that are errors."""
import pytest
import torch

from utils.decision.dependent import rank_dependent
from utils.decision.posterior import probabilities
from utils.decision.rankdice import rank_dice
from utils.decision.rules import DEPENDENT, RULES, build_decision, predict_section
from utils.errors import ConfigError


def logits(images=2, classes=5, height=13, width=17, seed=0):
    return torch.randn(images, classes, height, width,
                       generator=torch.Generator().manual_seed(seed)) * 3


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_rule_returns_its_shape_and_dtype_and_keeps_its_input(name, activation, dtype):
    rule, x = build_decision(name, activation), logits().to(dtype)
    before = x.clone()
    result, labels = rule(x), rule.labels(x)
    assert rule.name == name
    if rule.masks:
        assert (result.shape, result.dtype) == (x.shape, torch.bool)
    else:
        assert torch.equal(result, labels)
    assert (labels.shape, labels.dtype) == ((2, 13, 17), torch.uint8)
    assert torch.equal(x, before)


def test_max_is_the_class_of_the_largest_logit_at_any_temperature():
    x = logits()
    rule = build_decision("max", options={"temperature": 3.0})
    assert torch.equal(rule(x), x.argmax(1).to(torch.uint8))


def test_max_takes_the_first_of_equal_classes():
    assert build_decision("max")(torch.zeros(1, 3, 1, 1)).item() == 0


@pytest.mark.parametrize("classes, dtype", [(255, torch.uint8), (256, torch.int16)])
def test_labels_are_bytes_up_to_255_classes(classes, dtype):
    assert build_decision("max")(logits(1, classes, 2, 2)).dtype == dtype


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_a_class_exactly_at_the_threshold_is_not_in_the_mask(activation):
    x = torch.zeros(1, 2, 1, 1)      # probability 1/2 of both classes
    assert not build_decision("T", activation)(x).any()
    assert build_decision("T", activation, {"threshold": 0.49})(x).all()


def test_each_class_may_have_its_own_threshold():
    x, thresholds = logits(), [0.1, 0.2, 0.3, 0.4, 0.5]
    masks = build_decision("T", options={"threshold": thresholds})(x)
    assert torch.equal(masks, x.softmax(1) > torch.tensor(thresholds).view(-1, 1, 1))


def test_a_label_of_rule_T_is_the_class_furthest_above_its_threshold():
    x = torch.tensor([0.5, 0.3, 0.2]).log().view(1, 3, 1, 1)
    rule = build_decision("T", options={"threshold": [0.5, 0.1, 0.2]})
    assert rule.labels(x).item() == 1
    assert build_decision("T").labels(x).item() == 0


def test_temperature_divides_the_logits_first():
    x = logits()
    masks = build_decision("T", options={"temperature": 2.0})(x)
    assert torch.equal(masks, (x / 2).softmax(1) > 0.5)
    masks = build_decision("rankdice", options={"temperature": 2.0})(x)
    assert torch.equal(masks, rank_dice((x / 2).softmax(1)))


@pytest.mark.parametrize("name, metric", [("rankdice", "dice"), ("rankiou", "iou")])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_rankdice_and_rankiou_use_their_options(name, metric, activation):
    x = logits()
    options = {"smooth": 1.0, "pruning": 0.2, "solver": "rma"}
    rule, probs = build_decision(name, activation, options), probabilities(x, activation)
    assert torch.equal(rule(x), rank_dice(probs, metric=metric, **options))
    assert torch.equal(rule.labels(x), rank_dice(probs, metric=metric, overlap=False, **options))


def test_log_probabilities_give_the_result_of_the_logits():
    x = logits().double()
    for name in RULES:
        rule = build_decision(name)
        assert torch.equal(rule(x.log_softmax(1)), rule(x))


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("thresholds", [0.3, [0.1, 0.2, 0.3, 0.4, 0.5]])
def test_a_volume_of_one_slice_equals_the_image(name, thresholds):
    x, rule = logits(), build_decision(name, options={"threshold": thresholds})
    assert torch.equal(rule(x[:, :, None]).squeeze(-3), rule(x))
    assert torch.equal(rule.labels(x[:, :, None]).squeeze(-3), rule.labels(x))


@pytest.mark.parametrize("name", [name for name in RULES if name not in DEPENDENT])
def test_a_volume_equals_its_slices_side_by_side(name):
    x, rule = logits(2, 5, 12, 10), build_decision(name)
    volume = x.view(2, 5, 4, 3, 10)
    assert torch.equal(rule(volume).view_as(rule(x)), rule(x))
    assert torch.equal(rule.labels(volume).view(2, 12, 10), rule.labels(x))


@pytest.mark.parametrize("name, metric", [("rankdice_dep", "dice"), ("rankiou_dep", "iou")])
def test_rules_for_dependent_pixels_use_their_options(name, metric):
    x, options = logits(), {"smooth": 1.0, "pruning": 0.2, "theta": 3.0, "amplitude": 0.5}
    rule, probs = build_decision(name, options={**options, "solver": "rma"}), x.softmax(1)
    assert torch.equal(rule(x), rank_dependent(probs, metric=metric, **options))
    assert torch.equal(rule.labels(x), rank_dependent(probs, metric=metric, overlap=False,
                                                      **options))
    assert rule.describe() == {"temperature": 1.0, **options}


def test_the_message_about_an_unknown_rule_names_the_nearest_one():
    with pytest.raises(ConfigError, match="'rankdice'"):
        build_decision("rankdise")


@pytest.mark.parametrize("name, options", [
    ("max", {"temperature": 0}), ("T", {"temperature": -1}), ("T", {"threshold": 1.5}),
    ("T", {"threshold": [0.5, -0.1]}), ("rankdice", {"pruning": 2}),
    ("rankdice", {"smooth": -1}), ("rankiou", {"solver": "best"}),
    ("rankdice_dep", {"theta": 0}), ("rankiou_dep", {"amplitude": 2})])
def test_an_option_out_of_range_is_an_error_that_names_it(name, options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        build_decision(name, options=options)


def test_thresholds_for_another_number_of_classes_are_an_error():
    rule = build_decision("T", options={"threshold": [0.5, 0.5]})
    with pytest.raises(ConfigError, match="2 thresholds for 5 classes"):
        rule(logits())


def test_every_key_of_the_predict_section_has_a_default():
    options = predict_section()
    assert (options["train"], options["val"], options["test"]) == ("max", "max", "max")
    for name in RULES:
        build_decision(name, options=options)
        build_decision(name, options={})


def test_the_message_about_an_unknown_rule_in_the_config_names_its_key():
    with pytest.raises(ConfigError, match=r"predict\.val"):
        predict_section(val="argmax")
