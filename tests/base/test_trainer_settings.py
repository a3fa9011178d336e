"""TrainerSettings: the section `trainer` of a config."""
import dataclasses
import inspect

import pytest

from base.trainer_settings import TrainerSettings

NAMES = [field.name for field in dataclasses.fields(TrainerSettings)]


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_has_a_line_of_explanation(name):
    lines = inspect.getdoc(TrainerSettings).splitlines()
    assert any(line.startswith(f"{name}: ") for line in lines)


def test_the_explanations_are_in_the_order_of_the_settings():
    lines = inspect.getdoc(TrainerSettings).splitlines()
    explained = [line.partition(":")[0] for line in lines]
    assert [name for name in explained if name in NAMES] == NAMES


def test_a_length_in_epochs_is_enough_for_a_config():
    settings = dataclasses.asdict(TrainerSettings(epochs=1))
    assert TrainerSettings.check_settings(settings) == []


@pytest.mark.parametrize("change, message", [
    ({"iterations": 5}, "trainer: expected exactly one of epochs and iterations, got both"),
    ({"epochs": None}, "trainer: expected exactly one of epochs and iterations, got neither"),
    ({"keep": -1}, "trainer.keep: expected at least 0, got -1"),
    ({"ema": 1.0}, "trainer.ema: expected a decay in [0, 1), got 1.0"),
    ({"monitor": "best"}, "trainer.monitor: expected")])
def test_a_wrong_value_is_named(change, message):
    settings = {**dataclasses.asdict(TrainerSettings(epochs=1)), **change}
    problem, = TrainerSettings.check_settings(settings)
    assert problem.startswith(message)
