"""trainer.finetune_from: HRNet and ResNet networks can start from every family of encoders.

Tensors are on the meta device where only names and shapes are compared.
"""
import functools
import inspect

import pytest
import torch

from models.backbones import build_backbone
from models.deeplabv3 import DeepLabV3
from models.isa import ISA
from models.psp_densenet import PSPDenseNet
from models.pspnet import PSPNet
from models.segnet import SegNet
from models.upernet_yassouali import UperNet
from models.weights.rename_keys import rename
from tests.support.made_up import needs_goldens, published_keys
from utils.checkpoint.load import MAX_DROPPED, load_foreign, load_partial, match_tensors
from utils.config.registry import components
from utils.errors import CheckpointError, ConfigError

ARCHITECTURES = {name: cls for name, cls in sorted(components("models").items())
                 if name == cls.__name__ and "backbone" in inspect.signature(cls).parameters}


@functools.cache
def on(name, backbone):
    """The architecture with the encoder, on the meta device, at a stride that both support."""
    cls = ARCHITECTURES[name]
    strides = [{}]
    if "output_stride" in inspect.signature(cls).parameters:
        strides.append({"output_stride": 32})
    for options in strides:
        try:
            with torch.device("meta"):
                return cls(num_classes=10, backbone=backbone, **options)
        except ConfigError:
            continue
    return None


def paddle_clas(name):
    """The encoder of a multi-scale network with the keys of PaddleClas's SSLD file."""
    return {key.removeprefix("ocrnet.backbone."): value for key, value in
            published_keys(name).items() if key.startswith("ocrnet.backbone.")} | {
            "last_cls.weight": torch.empty(2, device="meta")}


def plain(backbone):
    """An ImageNet classifier: the keys of the encoder at the top level."""
    with torch.device("meta"):
        state = build_backbone(backbone).state_dict() | {"fc.weight": torch.empty(2)}
    return {key.removeprefix("resinit."): value for key, value in state.items()}


# source -> encoder, and a function that makes its file
SOURCES = {
    "ImageNet HRNet": ("hrnet_w48", lambda: published_keys("hrnet_cls_w48")),
    "Paddle SSLD": ("hrnet_w48", lambda: paddle_clas("paddle_mscale_ocrnet_w48")),
    "Paddle multi-scale": ("hrnet_w48", lambda: published_keys("paddle_mscale_ocrnet_w48")),
    "Mapillary, NVIDIA": ("hrnet_w48", lambda: published_keys("nvidia_ocrnet_hrnet_mscale")),
    "openseg HRNet in place": ("hrnet_w48", lambda: published_keys("openseg_hrnet48_ocr")),
    "openseg HRNet": ("hrnet_w48", lambda: published_keys("openseg_hrnet48_ocr_bn")),
    "ImageNet ResNet": ("resnet101", lambda: plain("resnet101")),
    "ImageNet deep stem": ("resnet101s", lambda: published_keys("yassouali_resnet101s_imagenet")),
    "openseg ImageNet": ("deepbase_resnet101", lambda: plain("deepbase_resnet101")),
    "openseg ResNet in place": ("deepbase_resnet101", lambda: published_keys("openseg_r101_isa")),
    "openseg ResNet": ("deepbase_resnet101", lambda: published_keys("openseg_r101_ocr_bn")),
}


@functools.cache
def keys_of(source):
    return SOURCES[source][1]()


@needs_goldens
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in ("PSPNet", "HRNet") else
                                               pytest.mark.slow) for name in ARCHITECTURES])
def test_every_tensor_of_the_encoder_starts_from_the_file(name, source):
    """Slow in total: every network is constructed with every encoder."""
    network = on(name, SOURCES[source][0])
    if network is None:
        pytest.skip("it does not accept this encoder")
    report = match_tensors(network, network.rename_foreign(keys_of(source)))
    wanted = [k for k in network.state_dict() if k.startswith("backbone.")
              and not k.endswith("num_batches_tracked")]
    tensors = [k for k in network.state_dict() if not k.endswith("num_batches_tracked")]
    assert wanted and not set(wanted) - set(report.loaded), str(report)
    assert len(set(tensors) & set(report.loaded)) >= (1 - MAX_DROPPED) * len(tensors)


# network, options, and rules from our keys to those of one published file
RELATIVES = {
    "MobileNet of torchvision": (DeepLabV3, {"backbone": "mobilenet_v3_large",
                                             "output_stride": 16}, (
        (r"^backbone\.layers\.", "backbone."), (r"^aux_head\.", "aux_classifier."),
        (r"^head\.0\.image\.0\.", "classifier.0.convs.4.1."),
        (r"^head\.0\.image\.1\.", "classifier.0.convs.4.2."),
        (r"^head\.0\.branches\.", "classifier.0.convs."), (r"^head\.", "classifier."))),
    "PSPNet on DenseNet": (PSPDenseNet, {}, (
        (r"^backbone\.conv0\.", "block0.0."), (r"^backbone\.norm0\.", "block0.1."),
        (r"^backbone\.denseblock(\d)\.", r"block\1."),
        (r"^backbone\.transition(\d)\.norm\.", r"transition\1.0."),
        (r"^backbone\.transition(\d)\.conv\.", r"transition\1.2."),
        (r"^head\.", "master_branch."), (r"^aux_head\.", "auxiliary_branch."))),
    "SegNet with one copy of what it shares": (SegNet, {"shared_decoder": True}, (
        *((rf"^backbone\.features\.{place + i}\.", f"stage{stage}_encoder.{i}.")
          for stage, place in ((1, 0), (2, 7), (3, 14), (4, 24), (5, 34)) for i in range(8)),
        *((rf"^decoder\.{i}\.", f"stage{i + 1}_decoder.") for i in range(5)))),
}


@pytest.mark.parametrize("name", RELATIVES)
def test_a_published_file_fills_every_tensor_of_a_similar_network(name):
    cls, options, rules = RELATIVES[name]
    with torch.device("meta"):
        network = cls(num_classes=5, **options)
    own = network.state_dict()
    once = dict.fromkeys(k for k, _ in network.named_parameters()) | dict.fromkeys(
        k for k, _ in network.named_buffers())           # a shared tensor has only its first name
    renamed = network.rename_foreign(rename({k: own[k] for k in once}, rules))
    assert renamed.keys() == own.keys(), str(match_tensors(network, renamed))


@pytest.mark.parametrize("network", [ISA, PSPNet, UperNet])
def test_in_place_norms_are_folded_for_every_network(network):
    model = network(3, "deepbase_resnet18")
    renamed = model.rename_foreign({"conv_3x3.1.running_var": torch.ones(2),
                                    "backbone.resinit.bn1.weight": torch.tensor([-0.5, 0.5])})
    torch.testing.assert_close(renamed["backbone.resinit.bn1.weight"], torch.full((2,), 0.50001))


def test_the_report_lists_tensors_loaded_left_out_and_of_another_shape(tmp_path):
    torch.manual_seed(0)
    donor = PSPNet(7, "resnet18").state_dict()
    torch.save({"state_dict": {f"module.{k}": v for k, v in donor.items()}
                | {"module.extra.weight": torch.ones(1)}}, tmp_path / "file.pth")
    model = PSPNet(3, "resnet18")
    report = load_foreign(model, tmp_path / "file.pth")
    assert [key for key, *_ in report.mismatched] == [
        "head.1.weight", "head.1.bias", "aux_head.4.weight", "aux_head.4.bias"]
    assert report.unexpected == ["extra.weight"] and not report.missing
    assert torch.equal(model.backbone.conv1.weight, donor["backbone.conv1.weight"])
    text = str(report)
    assert f"loaded {len(donor) - 4} of {len(donor)}" in text and "head.1.weight is (7" in text


def test_a_file_with_less_than_half_of_the_tensors_is_rejected():
    model = PSPNet(3, "resnet18")
    before = model.backbone.conv1.weight.clone()
    state = {k: v for k, v in build_backbone("resnet18").state_dict().items()
             if k.startswith(("conv1", "bn1", "layer1", "layer2"))}
    with pytest.raises(CheckpointError, match="only .* tensors of PSPNet are in the file"):
        load_partial(model, model.rename_foreign(state), "half.pth")
    assert torch.equal(model.backbone.conv1.weight, before)
