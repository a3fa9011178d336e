"""Encoders of timm: any size of image, a gradient for every parameter, one line for what fails.

The fast tests have a stand-in for timm; the slow ones need timm itself, and skip without it.
"""
import contextlib
import io
import re
import sys
import types
from typing import Any

import pytest
import torch
from torch import nn

from models.backbones import build_backbone
from models.backbones.plain_pyramid import PlainPyramid
from models.backbones.timm_adapter import TimmBackbone, plan
from models.pspnet import PSPNet
from models.upernet_yassouali import UperNet
from utils.config.docs import list_text
from utils.errors import ConfigError


class Info(list):
    """The maps of an encoder, as timm describes them."""

    def reduction(self):
        return [one["reduction"] for one in self]


class Encoder(nn.Module):
    """What timm's create_model returns: maps of strides 4 and 8, or of one stride.

    multiple: of the sides that it takes. only: the only size that it takes. idle: a parameter
    that it does not use. NHWC: the order of the axes of its maps.
    """

    def __init__(self, multiple=1, only=None, plain=False, nhwc=False, norms=False):
        super().__init__()
        self.feature_info = Info({"reduction": 8 if plain or i else 4, "num_chs": 6}
                                 for i in range(8 if plain else 2))
        self.pretrained_cfg = {"input_size": (3, *(only or (32, 32))), "mean": (0.5, 0.5, 0.5),
                               "std": (0.25, 0.5, 0.5)}
        self.multiple, self.only = multiple, only
        self.output_fmt = "NHWC" if nhwc else "NCHW"
        self.convs = nn.ModuleList(nn.Conv2d(3, 6, one["reduction"], one["reduction"])
                                   for one in self.feature_info[:2])
        self.norm = nn.BatchNorm2d(6) if norms else nn.Identity()
        self.unused, self.checkpointing = nn.Linear(2, 2), False

    def forward(self, x):
        height, width = x.shape[2:]
        assert not (height % self.multiple or width % self.multiple), "wrong multiple"
        assert self.only in (None, (height, width)), "wrong size"
        maps = [self.norm(conv(x)) for conv in self.convs]
        return [m.permute(0, 2, 3, 1) for m in maps] if self.output_fmt == "NHWC" else maps

    def forward_intermediates(self, x, indices, norm, output_fmt, intermediates_only):
        assert norm and intermediates_only and output_fmt == "NCHW"
        return [self(x)[1] + index for index in indices]

    def prune_intermediate_layers(self, indices, prune_norm, prune_head):
        assert prune_head and not prune_norm

    def set_grad_checkpointing(self, enable):
        self.checkpointing = enable


@pytest.fixture
def timm(monkeypatch):
    """A function that puts encoders of these options in place of timm."""
    def replace(refused="", error=None, **options):
        def create_model(name, pretrained, **given):
            for option in given:
                if option in refused or "any" in refused:
                    raise TypeError(f"got an unexpected keyword argument {option!r}")
            if error and torch.empty(0).device.type == "meta":
                raise error
            return Encoder(**options)
        module = types.ModuleType("timm")
        module.create_model = create_model         # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "timm", module)
        plan.cache_clear()
        return lambda **chosen: TimmBackbone("timm/fake", **chosen)
    yield replace
    plan.cache_clear()


def sizes(backbone, height, width):
    with torch.no_grad():
        return [tuple(m.shape) for m in backbone.eval()(torch.zeros(2, 3, height, width))]


def test_the_error_without_timm_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    plan.cache_clear()
    with pytest.raises(ConfigError, match="needs timm(.|\n)*pip install timm"):
        build_backbone("timm/resnet18")
    with pytest.raises(ConfigError, match="needs timm(.|\n)*pip install timm"):
        list_text("backbones", "timm")


@pytest.mark.parametrize("nhwc", [False, True])
def test_an_encoder_for_any_size_gets_the_image_as_it_is(timm, nhwc):
    backbone = timm(nhwc=nhwc)()
    assert (backbone.strides, backbone.channels, backbone.multiple) == ([4, 8], [6, 6], 1)
    x = torch.randn(1, 3, 33, 41)
    got, given = backbone(x), Encoder.forward(backbone.encoder, x)
    for mine, theirs in zip(got, given, strict=True):
        assert mine.equal(theirs.permute(0, 3, 1, 2) if nhwc else theirs)


def test_images_smaller_than_a_pixel_of_the_last_map_are_padded(timm):
    assert sizes(timm()(), 1, 3) == [(2, 6, 1, 1), (2, 6, 1, 1)]


def test_an_encoder_with_a_patch_gets_padded_images_and_its_maps_are_cropped(timm):
    backbone = timm(multiple=8)()
    assert backbone.multiple == 8 and backbone.tile is None
    assert sizes(backbone, 9, 25) == [(2, 6, 3, 7), (2, 6, 2, 4)]
    x = torch.randn(1, 3, 9, 25)
    padded = nn.functional.pad(x, (0, 7, 0, 7))
    assert backbone(x)[0].equal(backbone.encoder(padded)[0][..., :3, :7])


def test_an_encoder_for_one_size_gets_the_image_in_tiles(timm, capsys):
    backbone = timm(only=(16, 24))()
    assert "fake is made for images of 16x24: it encodes an image in tiles" \
        in capsys.readouterr().err
    x = torch.randn(2, 3, 32, 48)
    got = backbone(x)[1]
    for row in (0, 1):
        for column in (0, 1):
            tile = x[:, :, 16 * row:, 24 * column:][:, :, :16, :24]
            torch.testing.assert_close(
                got[:, :, 2 * row:, 3 * column:][:, :, :2, :3], backbone.encoder(tile)[1])
    assert sizes(backbone, 17, 5) == [(2, 6, 5, 2), (2, 6, 3, 1)]


def test_an_encoder_that_takes_no_image_is_refused_when_it_is_built(timm):
    with pytest.raises(ConfigError, match="timm/fake cannot be an encoder: wrong multiple"):
        timm(multiple=5, only=(7, 7))()


def test_an_encoder_that_cannot_be_built_without_values_is_tried_with_zeros(timm):
    backbone = timm(error=RuntimeError("item() cannot be called on meta tensors"))()
    assert backbone.channels == [6, 6]


def test_what_timm_refuses_is_one_line(timm):
    with pytest.raises(ConfigError, match=r"cannot build timm/fake \(KeyError: 'x'\)"):
        timm(error=KeyError("x"))()


def test_a_plain_encoder_has_a_map_after_each_quarter_of_its_blocks(timm, capsys):
    backbone = timm(plain=True)()
    assert backbone.equal_strides and backbone.strides == [8] * 4
    assert backbone.layers == [1, 3, 5, 7]
    maps = backbone(torch.zeros(1, 3, 16, 16))
    torch.testing.assert_close(maps[3] - maps[0], torch.full_like(maps[0], 6))


def test_a_plain_encoder_gets_a_pyramid_or_ignores_the_output_stride(timm, capsys):
    timm(plain=True, refused="output_stride")
    found = build_backbone("timm/fake", levels=4, pyramid=True, output_stride=16)
    assert isinstance(found, PlainPyramid) and found.strides == [4, 8, 16, 16]
    assert build_backbone("timm/fake", levels=2, output_stride=16).strides == [8] * 4
    assert "output_stride 16 has no effect" in capsys.readouterr().err


def test_an_encoder_that_cannot_be_dilated_says_which_output_stride_it_takes(timm):
    with pytest.raises(ConfigError, match="output stride 8 and cannot be dilated to 16(.|\n)*"
                                          "set it to 8 if the network has this option"):
        timm(refused="output_stride")(output_stride=16)


def test_an_encoder_without_drop_path_says_so(timm):
    with pytest.raises(ConfigError, match="set arch.args.drop_path to 0"):
        timm(refused="drop_path_rate")(drop_path=0.1)


def test_checkpointing_is_switched_on_where_no_statistics_would_be_counted_twice(timm):
    assert timm()(checkpointing=True).encoder.checkpointing
    with pytest.raises(ConfigError, match="batch norms(.|\n)*checkpointing"):
        timm(norms=True)(checkpointing=True)


def test_parameters_without_a_use_are_no_parameters_but_stay_in_the_state(timm):
    backbone = timm()()
    assert not any("unused" in name for name, _ in backbone.named_parameters())
    assert "encoder.unused.weight" in backbone.state_dict()


def test_pretrained_weights_say_which_input_they_need(timm):
    make = timm(plain=True)
    assert make().normalization is None
    needed = {"mean": [0.5] * 3, "std": [0.25, 0.5, 0.5], "order": "RGB", "scale": 255.0}
    assert make(pretrained=True).normalization == needed
    network = UperNet(2, backbone="timm/fake", pretrained=True)
    assert network.input_of_weights() == needed     # also below a pyramid


# Encoder -> (strides, multiple or size of the tiles, whether timm can dilate it).
FAMILIES = {
    "swin_tiny_patch4_window7_224": ([4, 8, 16, 32], 4, False),
    "swinv2_tiny_window8_256": ([4, 8, 16, 32], 4, False),
    "swinv2_cr_tiny_224": ([4, 8, 16, 32], 1, False),
    "test_vit": ([16] * 4, 16, False),
    "vit_small_patch14_dinov2": ([14] * 4, 14, False),
    "vit_small_patch14_reg4_dinov2": ([14] * 4, 14, False),
    "vit_small_patch16_dinov3": ([16] * 4, 16, False),
    "eva02_tiny_patch14_224": ([14] * 4, 14, False),
    "beit_base_patch16_224": ([16] * 4, (224, 224), False),
    "deit_tiny_patch16_224": ([16] * 4, 16, False),
    "samvit_base_patch16": ([16] * 4, 16, False),
    "hiera_tiny_224": ([4, 8, 16, 32], (224, 224), False),
    "sam2_hiera_tiny": ([4, 8, 16, 32], 32, False),
    "test_maxvit": ([4, 8, 16, 32], 160, False),
    "test_coatnet": ([4, 8, 16, 32], (160, 160), False),
    "test_convnext": ([4, 8, 16, 32], 1, True),
    "pvt_v2_b0": ([4, 8, 16, 32], 1, False),
    "test_efficientnet": ([4, 8, 16, 32], 1, True),
    "mobilenetv3_small_050": ([4, 8, 16, 32], 1, True),
    "mobilenetv4_conv_small_035": ([4, 8, 16, 32], 1, True),
    "efficientvit_b0": ([4, 8, 16, 32], 1, False),
    "efficientvit_m0": ([16, 32, 64], 1, False),
    "fastvit_t8": ([4, 8, 16, 32], 1, False),
    "mobileone_s0": ([4, 8, 16, 32], 1, True),
    "regnetx_002": ([4, 8, 16, 32], 1, True),
    "test_nfnet": ([4, 8, 16, 32], 1, True),
    "xcit_nano_12_p8_224": ([8] * 4, 1, False),
    "tiny_vit_5m_224": ([4, 8, 16, 32], 1, False),
    "levit_128s": ([16, 32, 64], (224, 224), False),
    "davit_tiny": ([4, 8, 16, 32], 1, False),
    "poolformer_s12": ([4, 8, 16, 32], 1, False),
    "volo_d1_224": ([8, 16, 16, 16], (224, 224), False),
    "dla46_c": ([4, 8, 16, 32], 32, False),
    "csatv2": ([8, 16, 32, 64], 8, False),
}
# Encoders of timm that are small enough to compute with.
TINY = ["test_vit", "test_vit3", "test_convnext", "test_maxvit", "test_efficientnet", "test_nfnet",
        "test_coatnet", "test_mambaout", "test_byobnet", "test_resnet", "test_vit_relpos"]


def quietly(make):
    with contextlib.redirect_stderr(io.StringIO()):
        return make()


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_an_encoder_family_works_in_networks_or_is_refused_in_one_line(name):
    pytest.importorskip("timm")
    strides, unit, dilatable = FAMILIES[name]
    found = plan(f"timm/{name}")
    assert (found.strides, found.tile or found.multiple) == (strides, unit)
    plain = len(set(strides)) == 1
    cases: list[tuple[Any, dict[str, Any], bool]] = [
        (UperNet, {"output_stride": 32}, plain or strides[-1] == 32 and len(strides) == 4),
        (PSPNet, {}, plain or dilatable)]
    for network, options, works in cases:
        with torch.device("meta"):
            if not works:
                with pytest.raises(ConfigError) as error:
                    network(3, backbone=f"timm/{name}", **options)
                assert "\n" not in error.value.what and name in error.value.what
                continue
            model = quietly(lambda: network(3, backbone=f"timm/{name}", **options))  # noqa: B023
            for size in ((1, 1), (37, 53), (97, 65)):
                assert model.eval()(torch.empty(1, 3, *size)).shape == (1, 3, *size)
            outputs = model.train()(torch.empty(2, 3, 65, 97))
        torch.stack([one.sum() for one in outputs.values()]).sum().backward()
        assert [key for key, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_maps_equal_those_of_timm_at_the_size_of_its_weights(name):
    timm = pytest.importorskip("timm")
    backbone = quietly(lambda: TimmBackbone(f"timm/{name}")).eval()
    plain = backbone.layers is not None
    theirs = timm.create_model(name, **({"num_classes": 0} if plain else {"features_only": True}))
    theirs.load_state_dict(backbone.encoder.state_dict(), strict=not plain)
    x = torch.randn(2, 3, *theirs.eval().pretrained_cfg["input_size"][1:])
    with torch.no_grad():
        if plain:
            maps = theirs.forward_intermediates(x, backbone.layers, norm=True,
                                                intermediates_only=True)
        else:
            maps = [theirs(x)[i] for i in backbone.kept]
            maps = [m.movedim(3, 1) if m.shape[1] not in backbone.channels else m for m in maps]
        for mine, other in zip(backbone(x), maps, strict=True):
            torch.testing.assert_close(mine, other)


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_bf16_and_channels_last_change_the_maps_only_a_little(name):
    pytest.importorskip("timm")
    backbone = quietly(lambda: TimmBackbone(f"timm/{name}")).eval()
    x = torch.randn(1, 3, 65, 97)
    with torch.no_grad():
        exact = backbone(x)[-1]
        last = backbone.to(memory_format=torch.channels_last)(
            x.contiguous(memory_format=torch.channels_last))[-1]
        with torch.autocast("cpu", torch.bfloat16):
            half = backbone(x)[-1]
    torch.testing.assert_close(last, exact, rtol=1e-3, atol=1e-4)
    assert (half.float() - exact).norm() < 0.05 * exact.norm()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["test_vit", "test_convnext"])
def test_checkpointing_changes_no_gradient(name):
    pytest.importorskip("timm")
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        backbone = TimmBackbone(f"timm/{name}", checkpointing=checkpointing, drop_path=0.5)
        torch.manual_seed(1)
        backbone(torch.ones(2, 3, 64, 64))[-1].square().sum().backward()
        gradients.append([p.grad for p in backbone.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.slow
def test_the_list_names_families_and_the_networks_that_take_an_encoder():
    pytest.importorskip("timm")
    text = list_text("backbones", "timm")
    assert re.search(r"^convnext +\d+ +convnext_atto$", text, re.M)
    text = list_text("backbones", "timm", "test_conv")
    assert re.search(r"^convnext +3 +test_convnext +4 8 16 32, dilatable +any size$", text, re.M)
    text = list_text("backbones", "timm", "timm/test_vit")
    assert re.search(r"images +padded to multiples of 16", text)
    assert re.search(r"taken by: .*PSPNet.*UperNet", text)
    assert re.search(r"refused \(.*needs a vgg.*\) by: FCN8", text)
    with pytest.raises(ConfigError, match="Did you mean 'convnext_atto'"):
        list_text("backbones", "timm", "convnext_ato")
