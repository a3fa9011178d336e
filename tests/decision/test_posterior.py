"""The posterior: what is done to the logits before a rule decides, and what says so."""
import pytest
import torch

from utils.decision.posterior import Posterior, build_posterior, probabilities
from utils.decision.rankdice import rank_dice
from utils.decision.rules import RULES, build_decision
from utils.errors import ConfigError
from utils.evaluation.evaluate import build_rules
from utils.losses.inverse import Inverse, NoInverse

WEIGHTED = Inverse(weight=[1.0, 2.0, 40.0])


def logits(seed=0):
    return torch.randn(2, 3, 9, 11, generator=torch.Generator().manual_seed(seed)) * 3


def of_weighted():
    return WEIGHTED


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("source", [None, lambda: Inverse(weight=[3.0, 3.0, 3.0]),
                                    lambda: NoInverse("it ranks pixels")])
def test_without_anything_to_undo_every_rule_decides_bit_by_bit_as_on_raw_logits(activation,
                                                                                  source):
    x = logits()
    if source and activation == "sigmoid" and isinstance(source(), Inverse):
        def source():       # a factor on positive pixels alone is something to undo
            return Inverse(activation="sigmoid")
    assert torch.equal(build_posterior({"temperature": 1.7}, activation, source)(x),
                       probabilities(x, activation, 1.7))
    for name in RULES:
        rule, raw = build_decision(name, activation, {}, source), build_decision(name, activation)
        assert torch.equal(rule(x), raw(x)) and torch.equal(rule.labels(x), raw.labels(x))
        assert rule.describe() == raw.describe()


def test_the_loss_is_inverted_before_the_temperature_and_that_before_the_softmax():
    x, shift = logits(), torch.tensor([1.0, 2.0, 40.0]).log()[:, None, None]
    expected = ((x - shift) / 1.7).softmax(1)
    options = {"temperature": 1.7}
    assert torch.allclose(build_posterior(options, inverse=of_weighted)(x), expected)
    assert torch.equal(build_decision("T", options=options, inverse=of_weighted)(x), expected > 0.5)
    rule = build_decision("rankdice", options=options, inverse=of_weighted)
    probs = build_posterior(options, inverse=of_weighted)(x)
    assert torch.equal(rule(x), rank_dice(probs))
    assert rule.describe()["posterior"] == "class weights undone"


def test_raw_leaves_the_logits_and_says_nothing():
    x, rule = logits(), build_decision("T", options={"posterior": "raw"}, inverse=of_weighted)
    assert torch.equal(rule(x), x.softmax(1) > 0.5)
    assert "posterior" not in rule.describe()


def test_max_takes_raw_logits_unless_auto_is_written_out():
    x = logits()
    rule = build_decision("max", inverse=of_weighted)
    assert rule.largest_logit and torch.equal(rule(x).long(), x.argmax(1)) and not rule.describe()
    rule = build_decision("max", options={"posterior": "auto"}, inverse=of_weighted)
    undone = WEIGHTED(x).argmax(1)
    assert not rule.largest_logit and not torch.equal(undone, x.argmax(1))
    assert torch.equal(rule(x).long(), undone)
    assert rule.describe()["posterior"] == "class weights undone"


def test_max_keeps_its_shortcut_where_the_order_of_the_classes_stays():
    rule = build_decision("max", options={"posterior": "auto"}, inverse=lambda: Inverse(2.0))
    assert rule.largest_logit and torch.equal(rule(logits()).long(), logits().argmax(1))


def test_a_label_of_rule_T_is_the_most_probable_class_of_the_posterior():
    x = logits()
    labels = build_decision("T", inverse=of_weighted).labels(x)
    assert torch.equal(labels.long(), WEIGHTED(x).argmax(1))


def test_all_rules_have_max_twice_only_if_the_posterior_changes_it():
    def names(options, inverse):
        return [rule.name for rule in build_rules("all", "softmax", options, inverse=inverse)]
    for options in ({}, {"posterior": "auto"}):
        assert names(options, of_weighted) == ["max", "max_posterior", *RULES[1:]]
        raw, undone, *_ = build_rules("all", "softmax", options, inverse=of_weighted)
        assert raw.largest_logit and not undone.largest_logit
    for options, inverse in (({}, lambda: Inverse(2.0)), ({}, None),
                             ({"posterior": "raw"}, of_weighted)):
        assert names(options, inverse) == [*RULES]
    assert len(build_rules("max,max_posterior", "softmax", {}, inverse=of_weighted)) == 2
    with pytest.raises(ConfigError, match="the same as max"):
        build_rules("max_posterior", "softmax", {}, inverse=lambda: Inverse(2.0))


def test_a_loss_without_an_inverse_is_told_once(capsys):
    for _ in range(2):
        build_decision("rankdice", inverse=lambda: NoInverse("Made: it ranks the pixels"))
    assert capsys.readouterr().err.count("Made: it ranks the pixels") == 1


def test_a_class_that_was_not_trained_is_told(capsys):
    build_posterior({}, inverse=lambda: Inverse(weight=[1.0, 2.0, 0.0]))
    assert "the class weight of 2 is 0" in capsys.readouterr().err


def test_vector_scaling_is_a_power_and_a_factor_of_each_probability():
    x, scale, bias = logits().double(), [0.5, 1.0, 2.0], [0.1, -0.2, 0.4]
    p = (x / 1.5).softmax(1)
    factor = torch.tensor(bias, dtype=torch.float64).exp()[:, None, None]
    expected = p ** torch.tensor(scale, dtype=torch.float64)[:, None, None] * factor
    found = Posterior("softmax", 1.5, None, scale, bias)(x)
    assert torch.allclose(found, expected / expected.sum(1, keepdim=True))
    shifted = Posterior("softmax", 1.5, None, scale, bias)(x + torch.randn(2, 1, 9, 11))
    assert torch.allclose(found, shifted)       # a constant in a pixel means nothing
    found = Posterior("sigmoid", 1.0, None, scale, bias)(x)
    vectors = torch.tensor([scale, bias], dtype=torch.float64)[:, :, None, None]
    assert torch.allclose(found, (x * vectors[0] + vectors[1]).sigmoid())


@pytest.mark.parametrize("options, what", [
    ({"scale": [1.0, 1.0]}, "2 numbers for 3 classes"), ({"bias": [0.0] * 4}, "4 numbers for 3"),
    ({"scale": [1.0, 0.0, 1.0]}, "scale must be positive"),
    ({"bias": [0.0, float("nan"), 0.0]}, "bias must be finite"),
    ({"posterior": "none"}, '"auto", "raw" or null')])
def test_settings_that_fit_no_network_are_errors(options, what):
    with pytest.raises(ConfigError, match=what):
        build_decision("rankdice", options=options)(logits())


def test_a_mean_of_logits_may_be_inverted_before_or_after_it_is_taken():
    views = [logits(seed).double() for seed in range(3)]
    after = WEIGHTED(sum(views[1:], views[0]) / 3)
    before = sum((WEIGHTED(one) for one in views[1:]), WEIGHTED(views[0])) / 3
    assert torch.allclose(after, before)
