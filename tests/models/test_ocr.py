"""Object context, self-attention and multi-scale attention, and the networks that use them."""
import math

import pytest
import torch
import torch.nn.functional as F

from models.asp_ocr import ASPOCR
from models.base_oc import BaseOC
from models.hrnet_ocr import HRNetOCR
from models.hrnet_ocr_aspp import HRNetOCRASPP
from models.isa import ISA
from models.layers.attention import InterlacedAttention, SelfAttention
from models.layers.image_pooling_aspp import ImagePoolingASPP
from models.layers.ocr import ObjectContext, SpatialOCR, gather_objects
from models.mscale_ocr import PADDLE_MSCALE_KEYS, MscaleOCR
from models.openseg_ocr import OCR
from models.weights.published import load_published, published
from models.weights.rename_keys import fold_in_place_norm, rename, uses_in_place_norm
from tests.models.test_hrnet import negative_gamma
from tests.support.made_up import (
    PARITY,
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
NARROW = {"mid_channels": 16, "key_channels": 8}
OPENSEG = {"aux_kernel": 3, "aux_channels": 16, "attention_bias": True,
           "activation": "leaky_relu"}


def mscale(variant="nvidia", **options):
    return MscaleOCR(3, SMALL, **NARROW, attention_channels=8, variant=variant, **options)


NETWORKS = {
    "HRNetOCR": (lambda: HRNetOCR(3, SMALL, **NARROW), [-0.12417, 0.59322, -1.6495]),
    "HRNetOCR of openseg": (lambda: HRNetOCR(3, SMALL, **NARROW, **OPENSEG),
                            [-0.22831, 0.3913, -1.54575]),
    "HRNetOCRASPP of MIC": (lambda: HRNetOCRASPP(3, SMALL, **NARROW, aspp_channels=16),
                            [-0.25919, -0.23525, -0.38823]),
    "HRNetOCRASPP of NVIDIA": (lambda: HRNetOCRASPP(
        3, SMALL, **NARROW, aspp_channels=16, distribution_aspp=False, align_corners=False),
        [0.03261, 0.15227, -0.8577]),
    "MscaleOCR of NVIDIA": (mscale, [-0.08835, 0.58138, -1.62533]),
    "MscaleOCR of MIC": (lambda: mscale("mic"), [-0.08103, 0.56894, -1.62304]),
    "MscaleOCR of Paddle": (lambda: mscale("paddle"), [-0.0875, 0.5769, -1.62732]),
    "BaseOC": (lambda: BaseOC(3, "deepbase_resnet18", channels=16, key_channels=8,
                              activation="leaky_relu"), [-0.01663, -0.44432, 0.64752]),
    "ISA": (lambda: ISA(3, "deepbase_resnet18", channels=16, key_channels=8),
            [-0.30695, -0.0719, 0.156]),
    "OCR": (lambda: OCR(3, "deepbase_resnet18", **NARROW), [-0.05911, -0.14642, -0.79197]),
    "ASPOCR": (lambda: ASPOCR(3, "deepbase_resnet18", channels=16),
               [-0.14771, 0.1281, 0.77459]),
}


def made(make):
    """The network that `make` builds, with made-up weights."""
    with no_start_values():
        return waves(make())


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_of_made_up_weights_equal_the_recorded_ones(name):
    make, probes = NETWORKS[name]
    with torch.no_grad():
        out = made(make)(picture(61, 83))
    assert out[0, :, 30, 41].tolist() == pytest.approx(probes, abs=2e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_training_flag_is_enough_to_get_all_outputs_and_does_not_change_out(name):
    network = made(NETWORKS[name][0])
    if isinstance(network, MscaleOCR):
        network.eval_scales = network.train_scales
    with torch.no_grad():
        out = network(picture(33, 47))
        network.training = True
        outputs = network(picture(33, 47))
    assert list(outputs) == list(network.output_weights)
    assert torch.equal(outputs["out"], out)
    assert all(value.shape == out.shape for value in outputs.values())


@pytest.mark.parametrize("name", ["HRNetOCR", *(
    pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS if name != "HRNetOCR")])
def test_exported_network_gives_the_same_logits(name):
    """Some seconds: torch's exporter starts slowly."""
    network, image = NETWORKS[name][0]().eval(), picture(33, 47)
    exported = torch.export.export(network, (image,)).module()
    with torch.no_grad():
        assert torch.allclose(exported(image), network(image), atol=1e-5)


@pytest.mark.parametrize("architecture", [BaseOC, ISA])
def test_use_aux_false_builds_no_auxiliary_head(architecture):
    network = architecture(3, "resnet18", channels=16, key_channels=8, use_aux=False)
    assert network.output_weights == {"out": 1.0} and network.aux_head is None
    assert list(network.train()(torch.randn(2, 3, 33, 47))) == ["out"]


def test_gathering_uses_a_softmax_over_the_pixels_and_not_over_the_classes():
    features, logits = torch.randn(2, 4, 3, 5), torch.randn(2, 6, 3, 5)
    got = gather_objects(features, logits)
    for n in range(2):
        for k in range(6):
            weights = logits[n, k].exp() / logits[n, k].exp().sum()
            expected = (features[n] * weights).sum(dim=(1, 2))
            assert torch.allclose(got[n, :, k, 0], expected, atol=1e-5)


def test_gathering_runs_in_float32_under_autocast():
    features, logits = torch.ones(1, 1, 400, 400), torch.zeros(1, 1, 400, 400)
    with torch.autocast("cpu", torch.bfloat16):
        got = gather_objects(features.bfloat16(), logits.bfloat16())
    assert got.dtype == torch.float32 and got.item() == pytest.approx(1, abs=5e-4)


def test_object_context_attends_from_pixels_to_classes():
    block = ObjectContext(6, 4).eval()
    features, logits = torch.randn(1, 6, 3, 5), torch.randn(1, 2, 3, 5)
    with torch.no_grad():
        objects = gather_objects(features, logits)
        query = block.query(features).flatten(2)[0].T                   # (15, 4)
        key, value = block.key(objects)[0, :, :, 0], block.value(objects)[0, :, :, 0]
        weights = (query @ key / math.sqrt(4)).softmax(dim=1)           # (15, 2)
        context = (weights @ value.T).T.reshape(1, 4, 3, 5)
        assert torch.allclose(block(features, logits), block.project(context), atol=1e-5)


def test_context_is_joined_before_the_features():
    block = SpatialOCR(4, 2, 3).eval()
    seen = []
    block.fuse.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    features = torch.randn(1, 4, 3, 3)
    with torch.no_grad():
        block(features, torch.randn(1, 2, 3, 3))
    assert torch.equal(seen[0][:, 4:], features)


def test_image_pooling_is_joined_before_the_branches():
    aspp = ImagePoolingASPP(4, 5, (2,)).eval()
    x = torch.randn(1, 4, 6, 7)
    with torch.no_grad():
        out, image = aspp(x), aspp.image(x.mean(dim=(2, 3), keepdim=True))
    assert out.shape == (1, 15, 6, 7) and torch.equal(out[:, :5], image.expand(1, 5, 6, 7))


def test_self_attention_is_a_softmax_over_all_pixels():
    block = SelfAttention(4, 2, 3).eval()
    x = torch.randn(1, 4, 3, 5)
    with torch.no_grad():
        query, key, value = (part(x)[0].flatten(1)
                             for part in (block.query, block.key, block.value))
        weights = (query.T @ key / math.sqrt(2)).softmax(dim=1)
        expected = block.project((value @ weights.T).reshape(1, 3, 3, 5))
        assert torch.allclose(block(x), expected, atol=1e-5)


def test_interlaced_attention_joins_distant_pixels_and_then_neighbors():
    block = waves(InterlacedAttention(3, 2, 3, step=2))
    x = torch.randn(1, 3, 5, 4)     # 5 rows get one row of zeros, below: 1 // 2 == 0 above
    padded, mixed = F.pad(x, (0, 0, 0, 1)), torch.empty(1, 3, 6, 4)
    expected = torch.empty(1, 3, 6, 4)
    with torch.no_grad():
        for i in range(2):
            for j in range(2):
                mixed[..., i::2, j::2] = block.long_range(padded[..., i::2, j::2])
        for i in range(0, 6, 2):
            for j in range(0, 4, 2):
                part = block.short_range(mixed[..., i:i + 2, j:j + 2])
                expected[..., i:i + 2, j:j + 2] = part
        assert torch.allclose(block(x), expected[..., :5, :], atol=1e-5)


def test_two_scales_are_fused_by_the_attention_of_the_smaller_one():
    network, x = waves(mscale()), picture(40, 48)
    with torch.no_grad():
        parts = network.fuse(x, (0.5, 1.0), with_aux=True, with_parts=True)

        def up(value):
            return F.interpolate(value, (40, 48), mode="bilinear", align_corners=False)
        a, low, high = parts["attn_0.5x"], parts["pred_0.5x"], parts["pred_1.0x"]
        expected = up(a * low) + (1 - up(a)) * high
    assert 0 < float(a.min()) and float(a.max()) < 1
    assert torch.allclose(parts["out"], expected, atol=1e-6)


def test_a_larger_scale_is_fused_by_the_attention_of_scale_1():
    network, x = waves(mscale()), picture(40, 48)
    with torch.no_grad():
        parts = network.fuse(x, (1.0, 2.0), with_parts=True)
        a, one = parts["attn_1.0x"], parts["pred_1.0x"]
        two = F.interpolate(parts["pred_2.0x"], (40, 48), mode="bilinear")
    assert torch.allclose(parts["out"], a * one + (1 - a) * two, atol=1e-6)
    assert "attn_2.0x" not in parts


def test_paddle_and_nvidia_differ_only_if_a_scaled_size_is_not_a_whole_number():
    nvidia, paddle = waves(mscale()), waves(mscale("paddle"))
    with torch.no_grad():
        assert torch.equal(nvidia(picture(40, 48)), paddle(picture(40, 48)))
        assert not torch.allclose(nvidia(picture(41, 49)), paddle(picture(41, 49)), atol=1e-4)


def test_scales_can_be_integers_and_name_the_outputs():
    network = mscale(train_scales=[1, 0.25], eval_scales=[1, 2])
    assert list(network.output_weights) == ["out", "aux", "pred_025x", "pred_10x"]
    assert network.train()(torch.randn(2, 3, 40, 48)).keys() == network.output_weights.keys()


@pytest.mark.parametrize("scales, message", [
    ((0.5, 2.0), "contain 1.0"), ((0.0, 1.0), "positive"), ((1.0, 0.5, 1.0), "twice")])
def test_scales_without_1_or_with_duplicates_are_rejected(scales, message):
    with torch.device("meta"), pytest.raises(ConfigError, match=message):
        mscale(eval_scales=scales)


def test_an_unknown_variant_is_rejected():
    with torch.device("meta"), pytest.raises(ConfigError, match="nvidia, mic, paddle"):
        mscale("google")


def test_an_image_too_small_for_its_scales_still_has_logits():
    with torch.no_grad():
        assert mscale(eval_scales=(0.25, 1.0)).eval()(picture(2, 3)).shape == (1, 3, 2, 3)


def test_an_unknown_activation_is_rejected():
    with torch.device("meta"), pytest.raises(ConfigError, match="relu or leaky_relu"):
        HRNetOCR(3, SMALL, activation="gelu")


def test_in_place_norms_are_folded_to_the_absolute_weight():
    state = {"conv3x3.0.weight": torch.full((1, 1, 3, 3), -2.0), "conv3x3.1.weight":
             torch.tensor([-0.5, 0.25]), "conv3x3.1.bias": torch.tensor([-1.0, 1.0]),
             "conv3x3.1.running_var": torch.ones(2)}
    assert uses_in_place_norm(state)
    folded = fold_in_place_norm(state)
    assert folded["conv3x3.1.weight"].tolist() == pytest.approx([0.50001, 0.25001], abs=1e-7)
    assert torch.equal(folded["conv3x3.1.bias"], state["conv3x3.1.bias"])
    assert torch.equal(folded["conv3x3.0.weight"], state["conv3x3.0.weight"])


def test_two_tensors_with_the_same_new_key_are_rejected():
    state = {"model.conv1.weight": torch.ones(1), "conv1.weight": torch.ones(1)}
    with pytest.raises(CheckpointError, match="two tensors"):
        rename(state, [(r"^model\.", "")])


@pytest.mark.parametrize("name", NETWORKS)
def test_our_keys_are_not_renamed(name):
    with torch.device("meta"):
        network = NETWORKS[name][0]()
    state = network.state_dict()
    assert network.rename_foreign(state).keys() == state.keys()


@pytest.mark.parametrize("backbone", ["deepbase_resnet18", "resnet18", "resnet50s"])
def test_an_encoder_at_the_top_level_of_a_file_is_renamed(backbone):
    with torch.device("meta"):
        network = OCR(3, backbone)
        state = network.backbone.state_dict() | {"fc.weight": torch.empty(1)}
    state = {key.removeprefix("resinit."): value for key, value in state.items()}
    report = match_tensors(network, network.rename_foreign(state))
    assert len(report.loaded) == len(state) - 1 and report.unexpected == ["fc.weight"]


@needs_goldens
@pytest.mark.parametrize("name", [n for n in sorted(published()) if n.startswith((
    "hrnet_ocr", "mic_hrnet_ocr", "nvidia", "openseg", "paddle"))])
def test_fine_tuning_renames_every_published_key_of_a_network(name):
    with torch.device("meta"):
        network = published()[name].build(19)
    report = match_tensors(network, network.rename_foreign(published_keys(name)))
    counters = [key for key in report.missing if key.endswith("num_batches_tracked")]
    assert not report.unexpected and not report.mismatched and report.missing == counters


@needs_goldens
def test_the_rules_for_paddle_s_keys_give_the_published_table():
    import json
    table = json.loads((PARITY / "paddle_mscale_ocrnet_w48" / "key_map.json").read_text())
    entry = published()["nvidia_ocrnet_hrnet_mscale"]
    for theirs, nvidias in table.items():
        ours = rename({theirs: 0}, PADDLE_MSCALE_KEYS)
        assert ours == rename({nvidias: 0}, entry.rename), theirs


@needs_goldens
def test_mapillary_s_weights_fill_a_single_scale_network():
    with torch.device("meta"):
        network = HRNetOCR(19, align_corners=False)
    keys = published_keys("nvidia_ocrnet_hrnet_mscale")
    report = match_tensors(network, network.rename_foreign(keys))
    assert not report.missing and {k.split(".")[0] for k in report.unexpected} == {"scale_attn"}


@needs_goldens
@pytest.mark.slow      # a network of full size
def test_hrnet_ocr_without_aligned_corners_equals_the_original():
    weights, image = published_weights("hrnet_ocr_w48")
    network, golden = HRNetOCR(19, align_corners=False).eval(), "golden_no_align_corners"
    network.load_state_dict(load_published("hrnet_ocr_w48", weights).state_dict())
    network.training = True
    with torch.no_grad():
        outputs = network(image)
    assert distance_to_golden(outputs["out"], "hrnet_ocr_w48", golden, "out_full") < 1e-4
    assert distance_to_golden(outputs["aux"], "hrnet_ocr_w48", golden, "aux_full") < 1e-4


@needs_goldens
@pytest.mark.slow      # networks of full size
@pytest.mark.parametrize("name", [n for n in sorted(published()) if n.startswith(
    ("openseg_r101", "openseg_hrnet48")) and not n.endswith("_bn")])
def test_in_place_norms_of_any_sign_equal_the_original(name):
    weights, image = published_weights(name, negative_gamma)
    network = load_published(name, weights)
    network.training = True
    with torch.no_grad():
        outputs = network(image)
    assert distance_to_golden(outputs["out"], name, "golden_negative_gamma", "seg") < 1e-4
    assert distance_to_golden(outputs["aux"], name, "golden_negative_gamma", "aux") < 1e-4


SCALES = {"golden": (0.5, 1.0, 2.0), "golden_05_10": (0.5, 1.0),
          "golden_025_05_10_20": (0.25, 0.5, 1.0, 2.0),
          "golden_05_10_15_20_25": (0.5, 1.0, 1.5, 2.0, 2.5)}


@needs_goldens
@pytest.mark.slow      # networks of full size, at several scales
@pytest.mark.parametrize("name, main", [("nvidia_ocrnet_hrnet_mscale", "pred"),
                                        ("mic_hrnet_ocr_ms", "out"),
                                        ("paddle_mscale_ocrnet_w48", "pred")])
def test_multi_scale_fusing_equals_the_original(name, main):
    weights, image = published_weights(name)
    network = load_published(name, weights)
    for golden in sorted(path.stem for path in (PARITY / name).glob("golden*.npz")):
        with torch.no_grad():
            if golden == "golden_two_scale":
                network.training = True
                outputs = network(image)
                network.training = False
                low = "pred_05x" if name.startswith("mic") else "pred_05x_in_loss"
                names = {main: "out", "aux": "aux", low: "pred_05x", "pred_10x": "pred_10x"}
            else:
                network.eval_scales = SCALES[golden]
                outputs = network.fuse(image, SCALES[golden], with_aux=True, with_parts=True)
                assert torch.equal(network(image), outputs["out"])
                names = {main: "out"} | ({} if name.startswith("paddle") else {"aux": "aux"})
                if not name.startswith("mic"):
                    # NVIDIA's naming loses the attention of scale 2.0.
                    names |= {key: key for key in outputs if "_" in key and key != "attn_2.0x"}
        for theirs, ours in names.items():
            assert distance_to_golden(outputs[ours], name, golden, theirs) < 1e-4, (golden, theirs)
