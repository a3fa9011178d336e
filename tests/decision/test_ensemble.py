"""Several networks as one, against a plain mean of their probabilities."""
import weakref

import pytest
import torch

from tests.predict.test_predictor import Net, normalize, picture
from utils.decision.ensemble import Ensemble, Member
from utils.decision.posterior import Posterior
from utils.decision.rules import RULES, build_decision
from utils.errors import ConfigError, NumericalError
from utils.evaluation.evaluate import build_rules
from utils.images.input_size import InputSize
from utils.losses.inverse import Inverse
from utils.predict.predictor import Predictor

WEIGHTED = Inverse(weight=[1.0, 8.0, 1.0, 0.2, 1.0])


def networks(count=2, cls=Net):
    nets = []
    for seed in range(count):
        torch.manual_seed(seed)
        nets.append(cls().eval())
    return nets


def ensemble_of(predictors, posteriors=None, activation="softmax"):
    posteriors = posteriors or [Posterior(activation) for _ in predictors]
    members = []
    for number, (predictor, posterior) in enumerate(zip(predictors, posteriors, strict=True)):
        about = {"path": f"{number}.pth", "sha256": str(number), "epoch": number}
        members.append(Member(predictor, lambda one=posterior: one, about))
    return Ensemble(members, "cpu", activation)


def mean(maps):
    return torch.stack(list(maps)).sum(0) / len(maps)


@pytest.mark.parametrize("count,options", [
    (2, {}), (3, {}), (2, {"flip": True}),
    (2, {"mode": "multiscale", "scales": (0.5, 1.3), "flip": True}),
    (3, {"mode": "sliding", "crop_size": 24, "flip": True}),
    (2, {"mode": "sliding", "crop_size": 24, "scales": (0.5, 1.0)}),
    (2, {"base_size": 32, "average": "probs", "flip": True})])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_it_is_the_mean_of_the_probabilities(count, options, activation):
    predictors = [Predictor(net, normalize, activation=activation, **options)
                  for net in networks(count)]
    ensemble = ensemble_of(predictors, activation=activation)
    posterior, image = ensemble.posterior(), picture(2)
    logits = [predictor(image) for predictor in predictors]
    probs = [one.softmax(1) if activation == "softmax" else one.sigmoid() for one in logits]
    expected, found = mean(probs), posterior(ensemble(image))
    assert found.shape == expected.shape and (found - expected).abs().max() < 1e-6
    decision = build_decision("max", activation, {}, ensemble=ensemble)
    assert torch.equal(ensemble.decide(image, decision).long(), expected.argmax(1))


def test_each_network_has_its_own_way_of_predicting():
    first, second, third = networks(3)
    predictors = [Predictor(first, normalize, base_size=20),
                  Predictor(second, lambda image: image.float() / 255, flip=True),
                  Predictor(third, normalize, mode="sliding", crop_size=16)]
    ensemble = ensemble_of(predictors)
    posterior = ensemble.posterior()
    expected = mean([one(picture()).softmax(1) for one in predictors])
    assert (posterior(ensemble(picture())) - expected).abs().max() < 1e-6
    shared, each = ensemble.describe(), ensemble.describe_networks()
    assert shared == {"scales": [1.0], "average": "logits", "amp": False}
    assert each[0] == {"path": "0.pth", "sha256": "0", "epoch": 0, "mode": "whole", "flip": False,
                       "base_size": 20}
    assert each[2]["crop_size"] == [16, 16]


def test_each_posterior_is_taken_before_the_mean_and_max_takes_raw_probabilities():
    predictors = [Predictor(net, normalize) for net in networks()]
    posteriors = [Posterior(temperature=2.0, inverse=WEIGHTED), Posterior(bias=[0, 0, 3, 0, 0])]
    ensemble = ensemble_of(predictors, posteriors)
    rules = {rule.name: rule for rule in build_rules("all", "softmax", {}, ensemble=ensemble)}
    assert [*rules] == ["max", "max_posterior", *RULES[1:]]
    logits, outputs = ensemble(picture()), [one(picture()) for one in predictors]
    raw = mean([one.softmax(1) for one in outputs])
    undone = mean([posterior(one) for posterior, one in zip(posteriors, outputs, strict=True)])
    assert logits.shape[1] == 2 * raw.shape[1] and ensemble.parts == 2
    assert torch.equal(rules["max"](logits).long(), raw.argmax(1))
    assert torch.equal(rules["max_posterior"](logits).long(), undone.argmax(1))
    assert (raw.argmax(1) != undone.argmax(1)).any()
    assert torch.equal(rules["T"](logits), undone > 0.5)
    assert torch.equal(rules["T"].labels(logits).long(), undone.argmax(1))
    for name in ("rankdice", "rankiou_dep"):
        plain = build_decision(name)
        assert torch.equal(rules[name](logits), plain(undone.log()))
        assert torch.equal(rules[name].labels(logits), plain.labels(undone.log()))


def test_one_mean_is_made_where_only_one_is_needed():
    predictors = [Predictor(net, normalize) for net in networks()]
    posteriors = [Posterior(inverse=WEIGHTED), Posterior()]
    for names, shared in (("max", {}), ("T", {"temperature": 1.0})):
        ensemble = ensemble_of(predictors, posteriors)
        rule, = build_rules(names, "softmax", {}, ensemble=ensemble)
        assert ensemble(picture()).shape[1] == 5
        assert {**rule.describe(), **shared}.get("posterior") == (
            None if names == "max" else
            "class weights undone in 1 of 2 networks, nothing undone in 1 of 2 networks")


def test_max_posterior_is_left_out_where_nothing_is_done_to_the_probabilities():
    ensemble = ensemble_of([Predictor(net, normalize) for net in networks()])
    names = [rule.name for rule in build_rules("all", "softmax", {}, ensemble=ensemble)]
    assert names == [*RULES] and ensemble.parts == 1
    # The mean of focal networks may have another largest class, one network may not.
    focal = [Posterior(inverse=Inverse(gamma=2.0)), Posterior()]
    ensemble = ensemble_of([Predictor(net, normalize) for net in networks()], focal)
    assert build_rules("all", "softmax", {}, ensemble=ensemble)[1].name == "max_posterior"


def test_faint_probabilities_of_a_sigmoid_stay_faint():
    class Certain(torch.nn.Module):
        def forward(self, x):
            return torch.full_like(x[:, :1], -40.0)

    ensemble = ensemble_of([Predictor(Certain(), normalize)] * 2, activation="sigmoid")
    posterior = ensemble.posterior()
    assert torch.allclose(posterior(ensemble(picture())).log(), torch.tensor(-40.0), atol=1e-3)


def test_sure_classes_of_a_sigmoid_stay_apart():
    class Sure(torch.nn.Module):
        def forward(self, x):
            return torch.tensor([18.0, 60.0, 2.0]).view(1, 3, 1, 1).expand(1, 3, *x.shape[2:])

    posteriors = [Posterior("sigmoid"), Posterior("sigmoid", temperature=0.75)]
    ensemble = ensemble_of([Predictor(Sure(), normalize)] * 2, posteriors, "sigmoid")
    rules = build_rules("max,max_posterior", "sigmoid", {}, ensemble=ensemble)
    logits = ensemble(picture())
    for raw, expected in ((True, [18.0, 60.0, 2.0]), (False, [18.69, 60.69, 2.29])):
        found = ensemble.part(logits, raw)[0, :, 0, 0]
        assert found.tolist() == pytest.approx(expected, abs=0.01)
    assert all((rule(logits) == 1).all() for rule in rules)


def test_the_logits_of_one_network_exist_at_a_time(monkeypatch):
    alive, most = [], []
    keep = Predictor.__call__

    def call(self, image):
        most.append(sum(one() is not None for one in alive))
        logits = keep(self, image)
        alive.append(weakref.ref(logits))
        return logits

    monkeypatch.setattr(Predictor, "__call__", call)
    ensemble = ensemble_of([Predictor(net, normalize) for net in networks(3)],
                           [Posterior(inverse=WEIGHTED)] * 3)
    for raw in (True, False):
        ensemble.posterior(raw)
    logits = ensemble(picture())
    assert most == [0, 0, 0] and not any(one() is not None for one in alive)
    assert logits.shape[1] == 10


def test_an_image_of_which_one_network_has_no_finite_logits_is_refused():
    nets = networks()
    with torch.no_grad():
        nets[1].head.bias[2] = torch.nan
    ensemble = ensemble_of([Predictor(net, normalize) for net in nets])
    ensemble.posterior()
    ensemble(picture(2))
    assert ensemble.finite.tolist() == [False, False]
    with pytest.raises(NumericalError, match="not finite"):
        ensemble.require_finite(["a", "b"])


@pytest.mark.parametrize("options", [{"mode": "sliding", "crop_size": (12, 20), "flip": True},
                                     {"base_size": 30}])
def test_blocks_of_an_image_are_those_of_the_whole_image(options):
    predictors = [Predictor(net, normalize, **options) for net in networks()]
    ensemble = ensemble_of(predictors, [Posterior(inverse=WEIGHTED), Posterior()])
    for raw in (True, False):
        ensemble.posterior(raw)
    image = picture()
    whole, found, blocks = ensemble(image), torch.zeros(1, 10, 37, 53), 0

    def store(rows, columns, logits):
        nonlocal blocks
        blocks += 1
        found[:, :, rows, columns] = logits

    ensemble.in_blocks(image[0].permute(1, 2, 0).numpy(), "cpu", store, most_bytes=4 * 4 * 5 * 600)
    assert blocks > 3 and ensemble.finite.tolist() == [True]
    assert (found - whole).abs().max() < 1e-4 and not torch.is_inference_mode_enabled()


def test_networks_that_cut_an_image_differently_give_no_blocks():
    first, second = networks()
    ensemble = ensemble_of([Predictor(first, normalize, mode="sliding", crop_size=16),
                            Predictor(second, normalize, mode="sliding", crop_size=20)])
    ensemble.posterior()
    assert not ensemble.cuts_alike(37, 53)
    with pytest.raises(ConfigError, match="different windows"):
        ensemble.in_blocks(picture()[0].permute(1, 2, 0).numpy(), "cpu", lambda *_: None)


def test_networks_that_are_scored_at_different_sizes_are_refused():
    first, second = networks()
    seen = InputSize(32, score_at="input")
    with pytest.raises(ConfigError, match="scored at different sizes"):
        ensemble_of([Predictor(first, normalize), Predictor(second, normalize, seen_at=seen)])
    ensemble = ensemble_of([Predictor(net, normalize, seen_at=seen) for net in networks()])
    ensemble.posterior()
    labels = torch.zeros(1, 37, 53, dtype=torch.uint8)
    assert ensemble.as_scored(labels).shape[1:] == ensemble(picture()).shape[2:]
