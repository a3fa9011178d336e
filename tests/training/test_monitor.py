"""Monitor: which validation is the best, and when to stop early."""
import pytest

from utils.errors import ConfigError
from utils.training.monitor import Monitor


def judge(monitor, *values):
    return [monitor.update({"Mean_IoU": v, "loss": v}, n) for n, v in enumerate(values, 1)]


def test_best_is_the_largest_for_max_and_the_smallest_for_min():
    assert judge(Monitor("max Mean_IoU"), .1, .3, .2, .3) == [True, True, False, False]
    assert judge(Monitor("min loss"), .3, .1, .2) == [True, True, False]


def test_early_stop_counts_validations_without_a_better_value():
    monitor = Monitor("max Mean_IoU", 2)
    judge(monitor, .3, .2)
    assert not monitor.exhausted
    monitor.update({"Mean_IoU": .1}, 3)
    assert monitor.exhausted


def test_early_stop_zero_never_stops():
    monitor = Monitor("max Mean_IoU", 0)
    judge(monitor, *[.5] * 50)
    assert not monitor.exhausted


def test_nan_is_never_the_best():
    assert judge(Monitor("max Mean_IoU"), float("nan"), .1) == [False, True]


def test_a_gain_too_small_to_print_still_counts():
    assert judge(Monitor("max Mean_IoU"), .50001, .50002) == [True, True]


def test_the_state_can_be_saved_and_restored():
    first, second = Monitor("max Mean_IoU", 3), Monitor("max Mean_IoU", 3)
    judge(first, .4, .3)
    second.load_state_dict(first.state_dict())
    assert (second.best, second.epoch, second.waited) == (.4, 1, 1)


@pytest.mark.parametrize("spec, hint", [("max Mean_IOU", "Mean_IoU"), ("Mean_IoU", "max NAME"),
                                        ("most Mean_IoU", "max NAME"), ("max mIoU", "Mean_IoU")])
def test_a_misspelt_monitor_is_refused_with_the_legal_names(spec, hint):
    with pytest.raises(ConfigError, match=hint):
        Monitor(spec)
