"""Networks that give scores in place of logits: every rule and what it needs."""
import pytest
import torch

from tests.decision.test_ensemble import mean, networks
from tests.predict.test_predictor import Net, normalize, picture
from utils.decision.calibration import fit_temperature, reliability
from utils.decision.ensemble import Ensemble, Member
from utils.decision.posterior import Posterior, build_posterior
from utils.decision.rules import RULES, build_decision
from utils.losses.inverse import Inverse, NoInverse
from utils.predict.predictor import Predictor


class ScoreNet(Net):
    """Scores Σ softmax·sigmoid of as many queries as classes."""

    activation = "scores"

    def forward(self, x):
        return 4 * super().forward(x).sigmoid()


@pytest.fixture
def scores():
    generator = torch.Generator().manual_seed(0)
    return 3 * torch.rand(2, 5, 12, 9, generator=generator) ** 4


def shares(scores):
    return scores / scores.sum(1, keepdim=True)


def test_probabilities_are_the_shares_of_the_scores(scores):
    assert torch.allclose(Posterior("scores")(scores), shares(scores))
    assert torch.allclose(Posterior("scores").logits(scores).softmax(1), shares(scores))


def test_a_temperature_divides_the_logarithms_of_the_shares(scores):
    expected = (shares(scores).log() / 1.7).softmax(1)
    assert torch.allclose(Posterior("scores", 1.7)(scores), expected, atol=1e-6)


def test_vector_scaling_is_a_power_and_a_factor_of_the_shares(scores):
    scale, bias = [1.0, 2.0, 0.5, 1.0, 1.5], [0.0, 1.0, -1.0, 0.0, 0.5]
    powers = shares(scores) ** torch.tensor(scale).view(5, 1, 1)
    expected = shares(powers * torch.tensor(bias).view(5, 1, 1).exp())
    posterior = Posterior("scores", scale=scale, bias=bias)
    assert torch.allclose(posterior(scores), expected, atol=1e-6)


def test_max_is_the_class_of_the_largest_score(scores):
    scores[0, :, 0, 0] = torch.tensor([0, 1, 1 + 1e-6, 0, 0])
    assert torch.equal(build_decision("max", "scores")(scores).long(), scores.argmax(1))


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "max"])
def test_every_other_rule_decides_on_the_shares(scores, rule):
    options = {"temperature": 1.3, "threshold": 0.3}
    found = build_decision(rule, "scores", options)
    expected = build_decision(rule, "softmax", options)
    logits = shares(scores).log()
    assert torch.equal(found(scores), expected(logits))
    assert torch.equal(found.labels(scores), expected.labels(logits))


def test_a_temperature_is_fitted_on_the_logarithms_of_the_shares():
    """Labels are drawn from the shares of known scores, whose cubes the network gives."""
    torch.manual_seed(0)
    scores = torch.rand(20000, 4)
    labels = torch.multinomial(scores, 1)[:, 0]
    posterior = Posterior("scores")
    logits = posterior.logits(scores ** 3)
    fitted = fit_temperature(logits, labels, posterior.of_logits)
    assert abs(fitted - 3) < 0.1
    assert reliability(logits, labels, posterior.of_logits, fitted).ece < 0.02


def test_what_cannot_be_undone_of_the_loss_is_said(capsys):
    build_posterior({}, "scores", lambda: NoInverse("masks are learned"))
    assert "masks are learned" in capsys.readouterr().err
    assert Posterior("scores").text == "shares of the scores"
    assert Posterior("scores", 2.0).describe()["temperature"] == 2.0


@pytest.mark.parametrize("options", [{}, {"flip": True}, {
    "mode": "sliding", "crop_size": 24, "flip": True}, {"mode": "multiscale", "scales": (0.5, 1)}])
@pytest.mark.parametrize("others", [[], ["softmax"]])
def test_an_ensemble_averages_probabilities_also_with_a_softmax_network(options, others):
    nets = [(net, "scores") for net in networks(cls=ScoreNet)]
    torch.manual_seed(9)
    nets += [(Net().eval(), kind) for kind in others]
    predictors = [Predictor(net, normalize, activation=kind, **options) for net, kind in nets]
    members = [Member(predictor, lambda kind=kind: Posterior(kind), {}, kind)
               for predictor, (_, kind) in zip(predictors, nets, strict=True)]
    ensemble, image = Ensemble(members, "cpu", "softmax"), picture(2)
    raw, posterior = ensemble.posterior(raw=True), ensemble.posterior()
    expected = mean([Posterior(kind)(one(image))
                     for one, (_, kind) in zip(predictors, nets, strict=True)])
    output = ensemble(image)
    for one in (raw, posterior):
        assert (one(output) - expected).abs().max() < 1e-6
    rule = build_decision("max", "scores", {}, ensemble=ensemble)
    assert torch.equal(rule(output).long(), expected.argmax(1))
    assert raw.text.startswith("mean of the shares of the scores")


def test_an_inverse_of_the_logarithms_may_still_be_given(scores):
    weights = [1.0, 4.0, 1.0, 1.0, 0.5]
    found = Posterior("scores", inverse=Inverse(weight=weights))(scores)
    assert torch.allclose(found, shares(scores / torch.tensor(weights).view(5, 1, 1)), atol=1e-6)
