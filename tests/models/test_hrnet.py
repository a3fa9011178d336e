"""HRNet, Higher-HRNet and the plain head: structure, resizing, start weights, references."""
import pytest
import torch
import torch.nn.functional as F

from models.backbones import build_backbone
from models.backbones.hrnet import VARIANTS, HRNetBackbone, drop_classifier
from models.hrnet_ocr import HRNetOCR
from models.hrnet_seg import HRNet
from models.segfix_net import SegFix
from models.weights.published import load_published
from tests.support.made_up import (
    distance_to_golden,
    needs_goldens,
    picture,
    published_keys,
    published_weights,
    waves,
)
from tests.support.start_values import no_start_values
from utils.checkpoint.load import match_tensors
from utils.errors import CheckpointError, ConfigError

SMALL = "hrnet_w18_small_v1"


@pytest.mark.parametrize("name", [*VARIANTS, "hrnext20"])
def test_maps_have_the_declared_channels_and_strides(name):
    """Up to two seconds: hundreds of layers, on the meta device."""
    with torch.device("meta"):
        backbone = build_backbone(name)
        maps = backbone(torch.zeros(1, 3, 65, 97))
    for feature, channels, stride in zip(maps, backbone.channels, backbone.strides, strict=True):
        assert feature.shape == (1, channels, -(-65 // stride), -(-97 // stride))


def test_small_v1_is_16_channels_wide_although_its_name_says_18():
    with torch.device("meta"):
        assert build_backbone(SMALL).channels == [16, 32, 64, 128]


@pytest.mark.parametrize("network, parameters", [
    (lambda: HRNet(19), 65_859_379), (lambda: HRNet(19, "hrnet_w18_small_v2"), 3_939_579),
    (lambda: HRNet(19, SMALL), 1_540_819), (lambda: SegFix(backbone="hrnext20"), 47_406_208)])
def test_networks_have_the_published_number_of_parameters(network, parameters):
    with torch.device("meta"):
        assert sum(p.numel() for p in network().parameters()) == parameters


@pytest.mark.parametrize("align_corners, probes", [
    (False, [3.59682, 0.01938, -0.53965]), (True, [3.61181, 0.0277, -0.53388])])
def test_logits_of_made_up_weights_are_the_known_ones(align_corners, probes):
    with no_start_values():
        network = waves(HRNet(3, SMALL, align_corners=align_corners))
    with torch.no_grad():
        out = network(picture(61, 83))
    assert out[0, :, 30, 41].tolist() == pytest.approx(probes, abs=2e-4)


def test_segfix_logits_of_made_up_weights_are_the_known_ones():
    with no_start_values():
        network = waves(SegFix(backbone=SMALL, channels=16))
    with torch.no_grad():
        out = network(picture(61, 83))
    assert out[0, :5, 30, 41].tolist() == pytest.approx(
        [0.83483, -0.25648, -2.07351, -1.91167, 1.74089], abs=2e-4)


def test_a_coarse_branch_is_resized_to_the_actual_size_of_the_finer_one():
    module = HRNetBackbone(SMALL).stage2[0].eval()
    fine, coarse = torch.randn(1, 16, 9, 13), torch.randn(1, 32, 5, 7)
    with torch.no_grad():
        got = module([fine, coarse])[0]
        a, b = module.branches[0](fine), module.branches[1](coarse)
        expected = F.relu(a + F.interpolate(module.fuse_layers[0][1](b), (9, 13), mode="bilinear"))
    assert torch.allclose(got, expected, atol=1e-6)


def test_fusing_does_not_change_the_maps_of_the_branches():
    module = HRNetBackbone(SMALL).stage2[0].eval()
    fine, coarse = torch.randn(1, 16, 8, 8), torch.randn(1, 32, 4, 4)
    before = fine.clone(), coarse.clone()
    with torch.no_grad():
        first = module([fine, coarse])
        second = module([fine, coarse])
    assert torch.equal(fine, before[0]) and torch.equal(coarse, before[1])
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_imagenet_network_resizes_by_nearest_neighbor():
    with no_start_values():
        nearest, bilinear = (waves(HRNetBackbone(SMALL, upsample=how)) for how in
                             ("nearest", "bilinear"))
    with torch.no_grad():
        a, b = nearest(picture(32, 64)), bilinear(picture(32, 64))
    assert not torch.allclose(a[0], b[0], atol=1e-3)


def test_an_unknown_resize_mode_is_rejected():
    with pytest.raises(ConfigError, match="upsample must be"):
        HRNetBackbone(SMALL, upsample="cubic")


def test_segfix_returns_mask_and_direction_by_name_in_training_and_joined_in_eval():
    network = SegFix(backbone=SMALL).train()
    outputs = network(torch.randn(2, 3, 33, 50))
    assert {name: tuple(value.shape) for name, value in outputs.items()} == {
        "mask": (2, 2, 33, 50), "direction": (2, 8, 33, 50)}
    network.eval()
    network.training = True
    with torch.no_grad():
        parts = network(picture(33, 50))
        network.training = False
        both = network(picture(33, 50))
    assert torch.equal(both, torch.cat([parts["mask"], parts["direction"]], 1))


def test_segfix_accepts_only_4_8_16_and_32_directions():
    with torch.device("meta"), pytest.raises(ConfigError, match="directions"):
        SegFix(backbone=SMALL, directions=9)


def test_the_error_of_higher_hrnet_without_download_names_finetune_from():
    with torch.device("meta"), pytest.raises(ConfigError, match="finetune_from"):
        build_backbone("hrnext20", pretrained=True)


def test_an_imagenet_state_dict_fills_the_encoder_without_its_classifier():
    with torch.device("meta"):
        network, encoder = HRNet(7, SMALL), HRNetBackbone(SMALL)
        head = torch.empty(3)
    state = encoder.state_dict() | dict.fromkeys((
        "classifier.weight", "incre_modules.0.0.conv1.weight", "downsamp_modules.0.0.bias",
        "final_layer.0.bias"), head)
    report = match_tensors(network, network.rename_foreign(state))
    assert len(report.loaded) == len(encoder.state_dict())
    assert len(report.unexpected) == 4 and not report.mismatched
    assert drop_classifier(state).keys() == encoder.state_dict().keys()


def test_our_keys_are_not_renamed():
    for network in (HRNet(7, SMALL), SegFix(backbone=SMALL)):
        state = network.state_dict()
        assert network.rename_foreign(state).keys() == state.keys()


def test_paddleseg_s_ordinary_hrnet_is_rejected():
    with torch.device("meta"):
        network = HRNet(7, SMALL)
        state = {"backbone.conv_layer1_1._conv.weight": torch.empty(64, 3, 3, 3),
                 "backbone.conv_layer1_1._batch_norm._mean": torch.empty(64)}
    with pytest.raises(CheckpointError, match="one side"):
        network.rename_foreign(state)


def official(network):
    """The state dict of an HRNet with its authors' keys."""
    state = {}
    for key, value in network.state_dict().items():
        key = key.removeprefix("backbone.").replace("head.0.", "last_layer.")
        state[key.replace("head.2.", "last_layer.3.")] = value
    return state


@pytest.mark.parametrize("wrap", [
    lambda s: {"model." + k: v for k, v in s.items()} | {"loss.criterion.weight": torch.ones(3)},
    lambda s: {"state_dict": {"model." + k: v for k, v in s.items()}
               | {"best_metric_score": torch.tensor(0.5)}, "epoch": 3},
    lambda s: {"state_dict": {"module." + k: v for k, v in s.items()}
               | {"module.criterion.weight": torch.ones(3)}, "mean_iu": 0.1},
    lambda s: {k: v for k, v in s.items() if not k.endswith("num_batches_tracked")}],
    ids=["HRNet", "MIC-DKFZ", "NVIDIA", "torch 0.4"])
def test_tensors_that_a_training_program_adds_are_left_out(wrap):
    with no_start_values():
        network = waves(HRNet(3, SMALL))
        loaded = load_published(SMALL, wrap(official(network)))
    with torch.no_grad():
        assert torch.equal(loaded(picture(20, 30)), network(picture(20, 30)))


@needs_goldens
@pytest.mark.parametrize("name, loaded", [
    ("hrnet_cls_w48", 1830), ("hrnet_w48", 1837), ("hrnet_ocr_w48", 1830), ("mic_hrnet_ocr", 1830),
    ("nvidia_ocrnet_hrnet_mscale", 1830), ("openseg_hrnet48_ocr_bn", 1830),
    ("openseg_hrnet48_ocr", 1525), ("paddle_mscale_ocrnet_w48", 1525)])
def test_every_source_of_start_weights_fills_the_encoder(name, loaded):
    with torch.device("meta"):
        network = HRNet(7)
    report = match_tensors(network, network.rename_foreign(published_keys(name)))
    assert len(report.loaded) == loaded, str(report)


@needs_goldens
def test_a_plain_hrnet_fills_the_auxiliary_head_of_an_ocr_network():
    with torch.device("meta"):
        network = HRNetOCR(19)
    report = match_tensors(network, network.rename_foreign(published_keys("hrnet_w48")))
    assert len(report.loaded) == 1839 and not report.unexpected


# The other reference outputs of these networks are compared in test_parity.py.
@needs_goldens
@pytest.mark.parametrize("name, golden", [
    ("hrnet_w18_small_v1", "golden"), ("hrnet_w18_small_v1", "golden_align_corners"),
    ("hrnet_w18_small_v2", "golden_align_corners"),
    pytest.param("hrnet_w48", "golden_align_corners", marks=pytest.mark.slow)])
def test_plain_hrnet_equals_the_original(name, golden):
    """Some seconds for the networks of full size."""
    weights, image = published_weights(name)
    with no_start_values():
        plain = load_published(name, weights)
        network = HRNet(19, name, align_corners=golden == "golden_align_corners").eval()
    network.load_state_dict(plain.state_dict())
    with torch.no_grad():
        assert distance_to_golden(network(image), name, golden, "out_full") < 1e-4


@needs_goldens
def test_the_imagenet_encoder_equals_the_original():
    name = "hrnet_cls_w18_small_v2"
    weights, image = published_weights(name)
    with torch.no_grad(), no_start_values():
        maps = load_published(name, weights)(image)
    for i, feature in enumerate(maps):
        assert distance_to_golden(feature, name, "golden", f"stage4_branch{i}") < 1e-4


@needs_goldens
@pytest.mark.slow      # networks of full size
@pytest.mark.parametrize("name", ["openseg_segfix_hrnet48", "openseg_segfix_hrnext20"])
def test_segfix_heads_with_norms_of_any_sign_equal_the_originals(name):
    weights, image = published_weights(name, negative_gamma)
    with no_start_values():
        network, heads = load_published(name, weights), {}
    for key, head in (("mask", network.mask_head), ("dir", network.direction_head)):
        head.register_forward_hook(lambda _, __, out, key=key: heads.update({key: out}))
    with torch.no_grad():
        network(image)
    for key, logits in heads.items():
        assert distance_to_golden(logits, name, "golden_negative_gamma", key) < 1e-4


def negative_gamma(weights):
    """Negate every seventh norm weight from the fourth on, as in golden_negative_gamma."""
    for key, value in weights.items():
        if key.endswith(".weight") and value.ndim == 1:
            value[3::7] *= -1
    return weights


def test_the_head_of_openseg_is_a_3x3_convolution_and_a_classifier_without_bias():
    network = HRNet(5, "hrnet_w18_small_v1", head_kernel=3, dropout=0.1, head_bias=False,
                    activation="leaky_relu")
    (convolution, _, act), dropout, classifier = network.head
    assert convolution.kernel_size == (3, 3) and convolution.bias is not None
    assert (dropout.p, classifier.bias, type(act)) == (0.1, None, torch.nn.LeakyReLU)
    with pytest.raises(ValueError, match="head_kernel must be odd, found 2"):
        HRNet(5, "hrnet_w18_small_v1", head_kernel=2)
