"""Drop path: shares that grow evenly, branches that are left out as a whole."""
import pytest
import torch
from torch import nn

from models.layers.drop_path import drop_path, growing_shares
from utils.errors import ConfigError


def test_shares_grow_evenly_from_zero():
    assert growing_shares(0.3, 4) == pytest.approx([0, 0.1, 0.2, 0.3])
    assert growing_shares(0.3, 1) == [0]


def test_a_share_of_one_is_a_config_error():
    with pytest.raises(ConfigError, match="drop_path"):
        growing_shares(1.0, 4)


def test_in_training_whole_images_are_left_out_and_the_others_are_divided_by_what_stays():
    torch.manual_seed(0)
    out = drop_path(0.25).train()(torch.ones(400, 2, 3))
    assert out.unique().tolist() == pytest.approx([0, 4 / 3])
    assert (out.flatten(1).std(1) == 0).all() and out.mean() == pytest.approx(1, abs=0.1)


def test_without_a_share_and_in_eval_mode_nothing_changes():
    x = torch.randn(4, 2)
    assert isinstance(drop_path(0.0), nn.Identity) and drop_path(0.5).eval()(x) is x
