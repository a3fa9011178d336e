"""The simple feature pyramid of plain encoders: sizes, parameters, what belongs to the encoder."""
import pytest
import torch
from torch import nn

import models.backbones as backbones
from models.backbones import Backbone, build_backbone
from models.backbones.plain_pyramid import PlainPyramid
from models.deeplab import DeepLab
from models.layers.feature_pyramid import SimpleFeaturePyramid
from models.pspnet import PSPNet
from models.upernet_yassouali import UperNet

IMAGE = torch.zeros(1, 3, 65, 97)


class Plain(Backbone):
    """A stand-in for a vision transformer: two maps of one stride, the image padded."""

    aliases = ("plain",)

    def __init__(self, pretrained: bool = False, patch: int = 16):
        super().__init__()
        self.patch = nn.Conv2d(3, 24, patch, stride=patch)
        self.channels, self.strides = [24, 24], [patch, patch]

    def forward(self, x):
        side = self.strides[0]
        x = nn.functional.pad(x, (0, -x.shape[3] % side, 0, -x.shape[2] % side))
        return [self.patch(x), self.patch(x)]


@pytest.fixture
def plain(monkeypatch):
    monkeypatch.setattr(backbones, "_by_name", lambda: {"plain": Plain})
    return "plain"


def ceil(number, divisor):
    return -(-number // divisor)


@pytest.mark.parametrize("patch", [8, 16, 32])
@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_maps_have_the_sizes_of_their_strides(patch, output_stride):
    network = PlainPyramid(Plain(patch=patch), output_stride)
    assert network.strides == [4, 8, min(16, output_stride), output_stride]
    with torch.no_grad():
        maps = network(IMAGE)
    assert [m.shape for m in maps] == [(1, 256, ceil(65, s), ceil(97, s)) for s in network.strides]


def test_patches_of_14_pixels_have_strides_that_are_14_16ths_of_the_usual():
    network = PlainPyramid(Plain(patch=14))
    assert network.strides == [4, 7, 14, 28]
    with torch.no_grad():
        maps = network(IMAGE)
    assert [m.shape[2:] for m in maps] == [(ceil(65 * 2, 7), ceil(97 * 2, 7)), (10, 14), (5, 7),
                                           (3, 4)]


def test_the_layers_are_those_of_vitdet():
    layers = [[type(layer).__name__ for layer in branch.children()]
              for branch in SimpleFeaturePyramid(64, 16).branches]
    last = ["Conv2d", "LayerNorm2d", "Conv2d", "LayerNorm2d"]
    up = "ConvTranspose2d"
    assert layers == [[up, "LayerNorm2d", "GELU", up, *last], [up, *last], last,
                      ["MaxPool2d", *last]]


def test_a_network_that_needs_several_strides_gets_a_pyramid_of_a_plain_encoder(plain):
    network = UperNet(3, backbone=plain)
    assert network.backbone.strides == [4, 8, 16, 16] and not network.backbone.equal_strides
    assert network.eval()(IMAGE).shape == (1, 3, 65, 97)


def test_a_network_that_needs_one_stride_takes_the_maps_as_they_are(plain, capsys):
    network = PSPNet(3, backbone=plain)
    assert isinstance(network.backbone, Plain) and network.backbone.equal_strides
    assert "all maps of plain have stride 16; output_stride 8 has no effect" \
        in capsys.readouterr().err
    assert network.eval()(IMAGE).shape == (1, 3, 65, 97)


def test_maps_that_no_head_uses_have_no_parameters(plain):
    network = DeepLab(3, backbone=plain)
    outputs = network(torch.randn(2, 3, 65, 97))
    outputs["out"].sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []


def test_the_pyramid_belongs_to_the_head(plain):
    network = UperNet(3, backbone=plain).freeze(freeze_backbone=True)
    frozen = [name for name, p in network.named_parameters() if not p.requires_grad]
    assert frozen == ["backbone.encoder.patch.weight", "backbone.encoder.patch.bias"]


def test_weights_of_the_encoder_alone_go_below_the_pyramid(plain):
    network = UperNet(3, backbone=plain)
    state = build_backbone(plain).state_dict()
    assert set(network.rename_foreign(state)) == {"backbone.encoder.patch.weight",
                                                  "backbone.encoder.patch.bias"}
