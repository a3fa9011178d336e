"""Confidence and entropy of pixels, and label maps that leave pixels out."""
import pytest
import torch

from utils.decision.confidence import confidence, entropy, gray_form
from utils.decision.rules import build_decision, predict_section
from utils.errors import ConfigError

LOGITS = torch.randn(2, 6, 5, 7, generator=torch.Generator().manual_seed(3)) * 2


def test_the_entropy_is_that_of_torch_divided_by_its_largest_value():
    expected = torch.distributions.Categorical(logits=LOGITS.movedim(1, -1)).entropy()
    found = entropy(LOGITS.softmax(1))
    assert torch.allclose(found, expected / torch.tensor(6.0).log(), atol=1e-6)
    binary = torch.distributions.Bernoulli(logits=LOGITS).entropy().mean(1)
    assert torch.allclose(entropy(LOGITS.sigmoid(), "sigmoid"), binary / torch.tensor(2.0).log(),
                          atol=1e-6)


def test_certain_pixels_have_entropy_0_and_equal_classes_1():
    assert entropy(torch.eye(4)[None, :, :, None]).tolist() == [[[0.0]] * 4]
    assert gray_form(entropy(torch.full((1, 4, 1, 1), 0.25))).item() == 255
    assert confidence(torch.full((1, 4, 1, 1), 0.25)).item() == 0.25
    assert entropy(torch.ones(1, 1, 1, 1)).item() == 0


@pytest.mark.parametrize("rule", ["T", "rankdice", "rankiou"])
def test_void_marks_the_pixels_in_no_mask_and_no_others(rule):
    options = {"unassigned": "void", "threshold": 0.6, "pruning": 0.9}
    decision = build_decision(rule, options=options)
    assigned = decision(LOGITS).any(1)
    found = decision.label_map(LOGITS)
    assert 0 < (~assigned).sum() and ((found == 255) == ~assigned).all()
    assert torch.equal(found[assigned], decision.labels(LOGITS)[assigned])
    every = build_decision(rule, options={**options, "unassigned": "assign"})
    assert torch.equal(every.label_map(LOGITS), every.labels(LOGITS))


@pytest.mark.parametrize("value", [-1, 3, 256])
def test_a_void_value_that_a_label_map_cannot_hold_is_refused(value):
    decision = build_decision("T", options={"unassigned": "void"}, ignore_index=value)
    with pytest.raises(ConfigError, match="cannot hold"):
        decision.label_map(LOGITS)


def test_void_without_a_rule_that_leaves_pixels_out_is_refused():
    with pytest.raises(ConfigError, match="no effect on rule max"):
        predict_section(unassigned="void")
    assert predict_section(unassigned="void", test="rankdice")["unassigned"] == "void"
