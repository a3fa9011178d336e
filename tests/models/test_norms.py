"""Norms by name: reference values of EvoNorm, groups, pooled maps and activations."""
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from models.layers.norm import (
    NORMS,
    Affine,
    EvoNormB0,
    EvoNormS0,
    activation,
    norm_layer,
    pooled_norm,
)
from tests.support.places import SHARED
from utils.errors import ConfigError

CASES = SHARED / "losses" / "cases.npz"
needs_goldens = pytest.mark.skipif(not CASES.is_file(), reason="../shared/losses is not there")


def evo_case(letter):
    stored = np.load(CASES)
    prefix = f"extra/evo_{letter}/"
    return {key.removeprefix(prefix): torch.from_numpy(np.asarray(stored[key]))
            for key in stored.files if key.startswith(prefix)}


def run(norm, case):
    """y and the gradients of a norm with the parameters of a case, in float64."""
    norm = norm.double()
    with torch.no_grad():
        for name in ("gamma", "beta", "v"):
            getattr(norm, name).copy_(case[name].view(1, -1, 1, 1))
        if hasattr(norm, "running_var"):
            norm.running_var.copy_(case["running_var"].view(1, -1, 1, 1))
    x = case["x"].double().requires_grad_()
    y = norm(x)
    y.backward(case["grad_output"].double())
    return {"y": y.detach(), "grad_x": x.grad, "grad_gamma": norm.gamma.grad.flatten(),
            "grad_beta": norm.beta.grad.flatten(), "grad_v": norm.v.grad.flatten()}


def make(form, channels, groups):
    if form.startswith("s0"):
        return EvoNormS0(channels, groups, unbiased=form.endswith("unbiased"))
    return EvoNormB0(channels).train(form == "b0_train")


@needs_goldens
@pytest.mark.parametrize("form", ["s0", "s0_reference_unbiased", "b0_train", "b0_eval"])
@pytest.mark.parametrize("letter", "abc")
def test_evonorm_and_its_gradients_equal_the_reference_values(letter, form):
    case = evo_case(letter)
    if f"{form}/y" not in case:
        pytest.skip("the variant of the tutorial has 32 groups")
    got = run(make(form, case["x"].shape[1], int(case["groups"])), case)
    for name, value in got.items():
        want = case[f"{form}/{name}"].double()
        assert (value - want).abs().max() <= 2e-6 * want.abs().max().clamp(min=1), name


@needs_goldens
@pytest.mark.parametrize("letter", "abc")
def test_evonorm_b0_keeps_nine_tenths_of_its_running_variance(letter):
    case = evo_case(letter)
    norm = EvoNormB0(case["x"].shape[1])
    run(norm, case)
    torch.testing.assert_close(norm.running_var.flatten(),
                               case["b0_train/running_var_after"].double(), rtol=1e-6, atol=0)


def test_evonorm_s0_of_four_values_equals_a_calculation_by_hand():
    x = torch.tensor([1.0, 2.0, 3.0, 6.0]).view(1, 1, 2, 2)
    # mean 3, biased variance (4 + 1 + 0 + 9) / 4 = 3.5
    want = x * torch.sigmoid(x) / (3.5 + 1e-5) ** 0.5
    torch.testing.assert_close(EvoNormS0(1)(x), want)


def test_evonorm_b0_of_four_values_equals_a_calculation_by_hand():
    x = torch.tensor([-3.0, 2.0, 3.0, 6.0]).view(1, 1, 2, 2)
    # mean 2, biased variance (25 + 0 + 1 + 16) / 4 = 10.5, for batch and image alike
    std = (10.5 + 1e-5) ** 0.5
    torch.testing.assert_close(EvoNormB0(1)(x), x / (x + std).clamp(min=std))


def test_evonorm_computes_its_variance_in_float32_for_half_precision():
    x = torch.randn(1, 32, 8, 8) * 3000                # squares overflow float16
    assert EvoNormS0(32).half()(x.half()).isfinite().all()


@pytest.mark.parametrize("channels, groups", [(64, 32), (48, 16), (720, 16), (21, 1)])
def test_the_number_of_groups_is_the_gcd_of_32_and_the_channels(channels, groups):
    assert norm_layer("group")(channels).num_groups == groups


def test_instance_norm_has_no_parameters_and_turns_one_pixel_into_zero():
    norm = norm_layer("instance")(8)
    assert not norm.state_dict()
    assert norm(torch.rand(2, 8, 1, 1)).abs().max() < 1e-4      # rounding error / sqrt(eps)
    x = torch.randn(2, 8, 5, 7)
    torch.testing.assert_close(norm(x), nn.InstanceNorm2d(8)(x))


def test_sync_norm_in_one_process_is_batch_norm():
    x = torch.randn(2, 8, 5, 7)
    torch.testing.assert_close(norm_layer("sync")(8)(x), norm_layer("batch")(8)(x))


@pytest.mark.parametrize("name", NORMS)
def test_every_norm_keeps_the_shape_with_and_without_an_activation(name):
    x = torch.randn(2, 32, 3, 5)
    for linear in (False, True):
        assert norm_layer(name)(32, linear=linear)(x).shape == x.shape


@pytest.mark.parametrize("name", NORMS)
def test_norms_keep_the_dtype_of_a_half_precision_map(name):
    x = torch.randn(2, 32, 3, 5, dtype=torch.bfloat16)
    for linear in (False, True):
        with torch.autocast("cpu", torch.bfloat16):
            assert norm_layer(name)(32, linear=linear)(x).dtype == x.dtype


def test_evonorm_includes_the_activation_and_is_affine_where_none_follows():
    assert isinstance(activation("evo_s0"), nn.Identity)
    assert isinstance(activation("evo_s0", after_sum=True), nn.ReLU)
    assert isinstance(activation("evo_s0_hoya012", after_sum=True), nn.Identity)
    assert isinstance(activation("batch"), nn.ReLU)
    assert type(norm_layer("evo_b0")(8, linear=True)) is Affine


def test_maps_of_one_pixel_get_a_norm_that_does_not_erase_them():
    assert pooled_norm("instance") == pooled_norm("evo_b0") == "group"
    assert pooled_norm("batch") == "batch"


def test_the_error_for_an_unknown_norm_suggests_the_nearest():
    with pytest.raises(ConfigError, match="'bach'.*Did you mean 'batch'"):
        norm_layer("bach")


@pytest.mark.parametrize("training", [True, False])
def test_group_norm_of_single_values_returns_the_bias(training):
    norm = norm_layer("group")(16).train(training)
    torch.nn.init.constant_(norm.bias, 0.5)
    out = norm(torch.randn(1, 16, 1, 1))
    torch.testing.assert_close(out, torch.full((1, 16, 1, 1), 0.5), rtol=0, atol=1e-3)


def test_an_in_place_norm_uses_the_absolute_weight_in_training_and_evaluation():
    x = torch.randn(2, 3, 4, 5)
    mine: Any = norm_layer("inplace_abn")(3)
    plain = nn.BatchNorm2d(3)
    with torch.no_grad():
        mine.weight.copy_(torch.tensor([-2.0, 0.5, 0.0]))
        plain.weight.copy_(torch.tensor([2.00001, 0.50001, 0.00001]))
    assert torch.equal(mine(x), plain(x)) and torch.equal(mine.running_var, plain.running_var)
    assert torch.equal(mine.eval()(x), plain.eval()(x))
    (mine.train()(x) * x).sum().backward()
    assert mine.weight.grad[0] < 0 < mine.weight.grad[1]


def test_norm_momentum_sets_every_running_statistic():
    from utils.config.build import build
    args = {"backbone": "resnet18", "norm_momentum": 0.01}
    network = build("models", {"type": "FCNResNet", "args": args}, num_classes=3)
    assert {m.momentum for m in network.modules() if hasattr(m, "momentum")} == {0.01}
    with pytest.raises(ConfigError, match="no norm of the network has running statistics"):
        build("models", {"type": "FCNResNet", "args": {**args, "norm": "group"}}, num_classes=3)
    with pytest.raises(ConfigError, match=r"expected a number in \(0, 1\], found 1.5"):
        build("models", {"type": "FCNResNet", "args": {**args, "norm_momentum": 1.5}},
              num_classes=3)
