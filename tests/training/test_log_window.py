"""LogWindow: the numbers of one log line."""
import math

import pytest
import torch

from utils.training.log_window import LogWindow


def test_the_mean_loss_starts_again_after_each_log_line():
    window = LogWindow(torch.device("cpu"), batch_size=2)
    for loss in (1.0, 2.0, 6.0):
        window.add(torch.tensor(loss))
    window.grad_norm = torch.tensor(0.5)
    assert window.means() == pytest.approx((3.0, 0.5))
    window.add(torch.tensor(4.0))
    assert window.means() == pytest.approx((4.0, 0.5))


def test_the_gradient_norm_is_nan_before_the_first_update():
    window = LogWindow(torch.device("cpu"), batch_size=2)
    window.add(torch.tensor(1.0))
    assert math.isnan(window.means()[1])
