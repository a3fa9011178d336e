"""Encoders: same numbers as torchvision, sizes, dilation, errors for wrong names and options."""
import pytest
import torch
from torch import nn

from models.backbones import backbone_names, build_backbone
from tests.support.run_program import program
from tests.support.start_values import no_start_values
from utils.errors import ConfigError

IMAGE = (1, 3, 65, 97)


def randomized(network, seed=0):
    """Give norms other statistics than 0 and 1, so that a swapped tensor changes the result."""
    generator = torch.Generator().manual_seed(seed)
    for key, value in network.state_dict().items():
        if key.endswith(("running_var", "norm.weight")) or value.dim() == 1 and "weight" in key:
            value.uniform_(0.5, 1.0, generator=generator)
        elif key.endswith(("running_mean", "bias")):
            value.normal_(0, 0.1, generator=generator)
    return network.eval()


def outputs(network, wanted, x):
    """The outputs of the named modules of `network` for x."""
    found = {}
    handles = [network.get_submodule(name).register_forward_hook(
        lambda module, args, out, name=name: found.update({name: out})) for name in wanted]
    with torch.no_grad():
        network(x)
    for handle in handles:
        handle.remove()
    return [found[name] for name in wanted]


LAYERS = ["layer1", "layer2", "layer3", "layer4"]
TWINS = {       # ours -> options of ours, options of torchvision's, modules to compare
    "resnet18": ({}, {}, LAYERS),
    "resnet50": ({"output_stride": 8},
                 {"replace_stride_with_dilation": [False, True, True]}, LAYERS),
    "vgg11_bn": ({}, {}, ["features.3", "features.7", "features.14", "features.21",
                          "features.28"]),
    "vgg13": ({}, {}, ["features.4", "features.9", "features.14", "features.19", "features.24"]),
    "densenet121": ({}, {}, ["features.transition1.conv", "features.transition2.conv",
                             "features.transition3.conv", "features.denseblock4"]),
    "mobilenet_v3_large": ({"output_stride": 16}, {"dilated": True},
                           ["features.2", "features.4", "features.7", "features.16"]),
    "mobilenet_v3_small": ({}, {}, ["features.1", "features.2", "features.4", "features.12"]),
}


def encoder_state(name, state):
    """The state dict of a torchvision classifier with the keys of our encoder."""
    if name.startswith("vgg"):
        return {k: v for k, v in state.items() if k.startswith("features.")}
    if name.startswith("resnet"):
        return {k: v for k, v in state.items() if not k.startswith("fc.")}
    prefix = "layers." if name.startswith("mobilenet") else ""
    return {prefix + k.removeprefix("features."): v for k, v in state.items()
            if k.startswith("features.") and not k.startswith("features.norm5.")}


@pytest.mark.parametrize("name", TWINS)
def test_feature_maps_equal_those_of_torchvision(name):
    """Up to two seconds: both encoders have their full size."""
    models = pytest.importorskip("torchvision.models")
    ours_options, theirs_options, wanted = TWINS[name]
    twin = randomized(models.get_model(name, weights=None, **theirs_options))
    with no_start_values():
        ours = build_backbone(name, **ours_options)
    ours.load_state_dict(encoder_state(name, twin.state_dict()))
    x = torch.randn(IMAGE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        got = ours.eval()(x)
    for mine, theirs in zip(got, outputs(twin, wanted, x), strict=True):
        assert (mine - theirs).abs().max() <= 1e-5 * theirs.abs().max()


# Those of HRNet are in test_hrnet.py.
@pytest.mark.parametrize("name", [n for n in backbone_names() if not n.startswith("hrn")])
def test_maps_have_the_declared_channels_and_strides(name):
    with torch.device("meta"), torch.no_grad():
        network = build_backbone(name).eval()
        maps = network(torch.zeros(1, 3, 65, 97))
    assert [m.shape[1] for m in maps] == network.channels
    for m, stride in zip(maps, network.strides, strict=True):       # rounded up or down
        assert m.shape[-2] - 64 // stride in (0, 1) and m.shape[-1] - 96 // stride in (0, 1)


@pytest.mark.parametrize("name", ["resnet18", "resnet50s", "resnet34s", "densenet121",
                                  "xception"])
@pytest.mark.parametrize("stride", [8, 16])
def test_dilation_replaces_stride(name, stride):
    with torch.device("meta"), torch.no_grad():
        network = build_backbone(name, output_stride=stride).eval()
        last = network(torch.zeros(1, 3, 64, 96))[-1]
    assert last.shape[-2:] == (64 // stride, 96 // stride) and network.strides[-1] == stride


def rates(layer):
    return [block.conv2.dilation[0] for block in layer]


def test_the_first_block_of_a_dilated_stage_keeps_its_rate_by_default():
    with torch.device("meta"):
        plain = build_backbone("resnet50", output_stride=8)
        whole = build_backbone("resnet50", output_stride=16, dilate_first=True)
    assert rates(plain.layer3)[:2] == [1, 2] and rates(plain.layer4) == [2, 4, 4]
    assert rates(whole.layer3)[:2] == [1, 1] and rates(whole.layer4) == [2, 2, 2]


def test_multi_grid_multiplies_the_rates_of_the_last_stage():
    with torch.device("meta"):
        network = build_backbone("resnet50", output_stride=16, dilate_first=True,
                                 multi_grid=(1, 2, 4))
    assert rates(network.layer4) == [2, 4, 8]


def test_explicit_rates_replace_the_computed_ones():
    with torch.device("meta"):
        network = build_backbone("resnet50", output_stride=8, rates3=(1, 2, 3), rates4=(3, 4, 5))
    assert rates(network.layer3) == [1, 2, 3, 1, 2, 3] and rates(network.layer4) == [3, 4, 5]


def test_the_pooling_of_openseg_rounds_up_and_that_of_torchvision_rounds_down():
    with torch.device("meta"), torch.no_grad():
        for size, up, down in ((64, 17, 16), (66, 17, 17)):     # 32 and 33 before the pooling
            x = torch.zeros(1, 3, size, size)
            assert build_backbone("deepbase_resnet18").eval()(x)[0].shape[-1] == up
            assert build_backbone("resnet18").eval()(x)[0].shape[-1] == down


def test_the_error_for_an_unknown_name_suggests_the_nearest():
    with pytest.raises(ConfigError, match="'resnet5O'.*Did you mean 'resnet50'"):
        build_backbone("resnet5O")


def test_an_unknown_option_of_an_encoder_is_an_error_unless_its_value_changes_nothing():
    with torch.device("meta"):
        assert build_backbone("xception", pretrained=False, norm="batch")
        assert build_backbone("vgg11", output_stride=32)
    with pytest.raises(ConfigError, match="output stride 32, not 8"):
        build_backbone("vgg11", output_stride=8)
    with pytest.raises(ConfigError, match="no option dilate_first"):
        build_backbone("vgg11", dilate_first=True)


def test_too_few_feature_maps_are_a_config_error():
    with pytest.raises(ConfigError, match="needs 4 feature maps, backbone xception has 2"):
        build_backbone("xception", levels=4)


def test_a_failed_download_is_a_config_error(monkeypatch):
    weights = pytest.importorskip("torchvision.models").ResNet18_Weights

    def refuse(self, **options):
        raise OSError("no route to host")

    monkeypatch.setattr(weights, "get_state_dict", refuse)
    with pytest.raises(ConfigError, match="no route to host(.|\n)*pretrained to false"):
        build_backbone("resnet18", pretrained=True)


def test_pretrained_weights_go_into_every_tensor(monkeypatch):
    models = pytest.importorskip("torchvision.models")
    state = randomized(models.resnet18(weights=None)).state_dict()
    monkeypatch.setattr(models.ResNet18_Weights, "get_state_dict", lambda self, **options: state)
    network = build_backbone("resnet18", pretrained=True)
    for key, value in network.state_dict().items():
        assert torch.equal(value, state[key]), key


@pytest.mark.parametrize("norm, left_out", [
    ("group", "100 of the batch norms are left out, because the 20 norms here are GroupNorm"),
    ("instance", "are InstanceNorm"), ("evo_s0", "EvoNormS0, Affine"),
    ("evo_s0_hoya012", "EvoNormS0")])
def test_below_other_norms_pretrained_fills_the_convolutions_only(norm, left_out, monkeypatch,
                                                                  capsys):
    models = pytest.importorskip("torchvision.models")
    state = randomized(models.resnet18(weights=None)).state_dict()
    monkeypatch.setattr(models.ResNet18_Weights, "get_state_dict", lambda self, **options: state)
    network = build_backbone("resnet18", norm=norm, pretrained=True)
    fresh = build_backbone("resnet18", norm=norm).state_dict()
    convolutions = [key for key, value in state.items() if value.ndim == 4]
    for key, value in network.state_dict().items():
        assert torch.equal(value, state[key] if key in convolutions else fresh[key]), key
    text, = capsys.readouterr().err.splitlines()
    assert text.startswith("pretrained resnet18: 20 of 120 tensors are taken") and left_out in text


def test_in_place_norms_take_the_pretrained_batch_norms_without_a_word(monkeypatch, capsys):
    models = pytest.importorskip("torchvision.models")
    state = randomized(models.resnet18(weights=None)).state_dict()
    monkeypatch.setattr(models.ResNet18_Weights, "get_state_dict", lambda self, **options: state)
    network = build_backbone("resnet18", norm="inplace_abn", pretrained=True)
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert not capsys.readouterr().err


def test_a_pretrained_tensor_of_no_norm_that_does_not_fit_is_an_error():
    network = build_backbone("resnet18", norm="group")
    state = build_backbone("resnet18").state_dict()
    state.pop("conv1.weight")
    with pytest.raises(RuntimeError, match="conv1.weight"):
        network.load_imagenet(state, "resnet18")


@pytest.mark.parametrize("name", ["resnet50s", "deepbase_resnet50", "xception"])
def test_pretrained_is_a_config_error_for_encoders_without_a_download(name):
    with pytest.raises(ConfigError, match="pretrained to false"):
        build_backbone(name, pretrained=True)


def test_constructing_an_encoder_does_not_import_torchvision():
    """Some seconds: a new process imports torch."""
    source = ("import sys, models.backbones as b; b.build_backbone('resnet18'); "
              "assert 'torchvision' not in sys.modules")
    program("-c", source, check=True)


def test_convolutions_before_a_norm_have_no_bias():
    with torch.device("meta"):
        network = build_backbone("resnet50s")
    assert not any(m.bias is not None for m in network.modules() if isinstance(m, nn.Conv2d))
