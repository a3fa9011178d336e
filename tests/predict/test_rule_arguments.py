"""Settings of decision rules on the command line: used, or refused with the reason."""
import re

import pytest

from utils.errors import ConfigError
from utils.evaluation.arguments import parse
from utils.predict.arguments import require_rule_arguments


def check(rules, *arguments, options=None, **more):
    args = parse(["-r", "x.pth", *arguments])
    require_rule_arguments(args, rules.split(","), options or {}, **more)


@pytest.mark.parametrize("rules, argument", [
    ("max,rankdice", "--threshold=0.3"), ("T", "--theta=20"), ("rankdice", "--amplitude=0.5"),
    ("max", "--temperature=2"), ("max", "predict.threshold=0.3"), ("T", "predict.smooth=1"),
    ("rankdice_dep", "predict.solver=exact"), ("rankiou", "predict.theta=20"),
    ("max", "predict.temperature=2"), ("max", "predict.scale=[1,2]"), ("max", "predict.bias+=1")])
def test_a_setting_that_no_rule_uses_is_refused_in_both_forms(rules, argument):
    name = re.split(r"=|\+", argument)[0]
    with pytest.raises(ConfigError, match=f"^{name} has no effect on rule "):
        check(rules, argument)
    check("max,T,rankdice,rankdice_dep", argument)


def test_regret_uses_the_settings_of_the_rules_it_compares_with():
    check("max", "--theta=20", "predict.pruning=0.2", probabilities=True, dependent=True)
    with pytest.raises(ConfigError, match="predict.solver"):
        check("max", "predict.solver=rma", probabilities=True, dependent=True)


def test_theta_is_refused_where_the_amplitude_is_0():
    for arguments, options in ((["--amplitude=0"], {}), ([], {"amplitude": 0.0})):
        with pytest.raises(ConfigError, match="--theta has no effect with amplitude 0"):
            check("rankdice_dep", "--theta=20", *arguments, options=options)
    check("rankdice_dep", "--theta=20", "--amplitude=0.1", options={"amplitude": 0.0})


def test_a_temperature_moves_the_largest_probability_only_of_a_posterior_with_a_vector():
    vector = {"bias": [0.0, 1.0]}
    check("max", "--temperature=2", options={**vector, "posterior": "auto"})
    check("max,max_posterior", "--temperature=2", options=vector)
    for options in (vector, {"posterior": "auto"}):
        with pytest.raises(ConfigError, match="--temperature has no effect on rule max"):
            check("max", "--temperature=2", options=options)


def test_what_label_maps_leave_out_is_refused_where_masks_are_scored():
    with pytest.raises(ConfigError, match="predict.unassigned has no effect"):
        check("rankdice", "predict.unassigned=void")
