"""PIDNet and DDRNet: variants without reference outputs, files, heads, and training.

`Plain` is the same family written once more, on the keys of the published files.
"""
import functools
import re

import pytest
import torch
import torch.nn.functional as F

from models.ddrnet import DDRNet
from models.layers.outputs import as_outputs
from models.pidnet import PIDNet
from models.weights.published import load_published, published
from models.weights.rename_keys import rename
from tests.support.made_up import (
    needs_goldens,
    picture,
    published_keys,
    published_weights,
    twenty_steps_on_shapes,
    waves,
)
from utils.checkpoint.load import load_foreign
from utils.errors import ConfigError

LOSS = {"out": {"type": "OhemCrossEntropy", "args": {"thresh": 0.9, "min_kept": 131072}},
        "p": "CE", "d": "BoundaryBCELoss", "out+d": "BoundaryOhemCrossEntropy"}

made_up = functools.cache(published_weights)


class Plain:
    """Forward of both networks in eval mode, from a state dict with the published keys."""

    def __init__(self, weights):
        self.weights = weights

    def has(self, key):
        return any(name.startswith(f"{key}.") for name in self.weights)

    def conv(self, key, x, stride=1):
        weight = self.weights[f"{key}.weight"]
        return F.conv2d(x, weight, self.weights.get(f"{key}.bias"), stride, weight.shape[2] // 2,
                        groups=x.shape[1] // weight.shape[1])

    def norm(self, key, x):
        w = self.weights
        return F.batch_norm(x, w[f"{key}.running_mean"], w[f"{key}.running_var"],
                            w[f"{key}.weight"], w[f"{key}.bias"])

    def conv_norm(self, key, x, stride=1, first=0):
        return self.norm(f"{key}.{first + 1}", self.conv(f"{key}.{first}", x, stride))

    def norm_conv(self, key, x, first=0):
        return self.conv(f"{key}.{first + 2}", self.norm(f"{key}.{first}", x).relu())

    def block(self, key, x, stride):
        count = 3 if self.has(f"{key}.conv3") else 2
        out = x
        for i in range(1, count + 1):
            own = stride if i == count - 1 else 1
            out = self.norm(f"{key}.bn{i}", self.conv(f"{key}.conv{i}", out, own))
            out = out.relu() if i < count else out
        return out + (self.conv_norm(f"{key}.downsample", x, stride)
                      if self.has(f"{key}.downsample") else x)

    def stage(self, key, x, stride=1):
        """Only blocks of two convolutions end with ReLU, and not the last one."""
        if self.has(f"{key}.conv1"):
            return self.block(key, x, stride)
        number = 0
        while self.has(f"{key}.{number}"):
            if number and not self.has(f"{key}.0.conv3"):
                x = x.relu()
            x = self.block(f"{key}.{number}", x, 1 if number else stride)
            number += 1
        return x

    def stem(self, x):
        x = self.conv_norm("conv1", x, 2).relu()
        return self.conv_norm("conv1", x, 2, first=3).relu()

    def head(self, key, x):
        x = self.conv(f"{key}.conv1", self.norm(f"{key}.bn1", x).relu())
        return self.conv(f"{key}.conv2", self.norm(f"{key}.bn2", x).relu())

    def pyramid(self, x):
        parts, sums = [self.norm_conv("spp.scale0", x)], []
        for i, (window, stride) in enumerate(((5, 2), (9, 4), (17, 8), (0, 0)), start=1):
            pooled = F.avg_pool2d(x, window, stride, window // 2) if window else \
                x.mean((2, 3), keepdim=True)
            scale = F.interpolate(self.norm_conv(f"spp.scale{i}", pooled, 1), x.shape[2:],
                                  mode="bilinear")
            if self.has("spp.process1"):
                parts.append(self.norm_conv(f"spp.process{i}", scale + parts[-1]))
            else:
                sums.append(scale + parts[0])
        if sums:
            parts.append(self.norm_conv("spp.scale_process", torch.cat(sums, 1)))
        return self.norm_conv("spp.compression", torch.cat(parts, 1)) + \
            self.norm_conv("spp.shortcut", x)

    def pag(self, key, detail, context):
        query = F.interpolate(self.conv_norm(f"{key}.f_y", context), detail.shape[2:],
                              mode="bilinear")
        share = (self.conv_norm(f"{key}.f_x", detail) * query).sum(1, keepdim=True).sigmoid()
        context = F.interpolate(context, detail.shape[2:], mode="bilinear")
        return (1 - share) * detail + share * context

    def fuse(self, p, i, d):
        share = d.sigmoid()
        if self.has("dfm.conv"):
            return self.norm_conv("dfm.conv", share * p + (1 - share) * i)
        return self.conv_norm("dfm.conv_p", (1 - share) * i + p) + \
            self.conv_norm("dfm.conv_i", i + share * p)

    def pidnet(self, x):
        """[p, main, d] at stride 8."""
        x = self.stage("layer2", self.stage("layer1", self.stem(x)).relu(), 2).relu()
        size = x.shape[2:]
        p, d = self.stage("layer3_", x), self.stage("layer3_d", x)
        x = self.stage("layer3", x, 2).relu()
        p = first = self.pag("pag3", p, self.conv_norm("compression3", x)).relu()
        d = d + F.interpolate(self.conv_norm("diff3", x), size, mode="bilinear")
        x = self.stage("layer4", x, 2).relu()
        p, d = self.stage("layer4_", p), self.stage("layer4_d", d.relu())
        p = self.pag("pag4", p, self.conv_norm("compression4", x))
        d = second = (d + F.interpolate(self.conv_norm("diff4", x), size, mode="bilinear")).relu()
        p, d = self.stage("layer5_", p.relu()), self.stage("layer5_d", d)
        i = F.interpolate(self.pyramid(self.stage("layer5", x, 2)), size, mode="bilinear")
        return {"p": self.head("seghead_p", first),
                "out": self.head("final_layer", self.fuse(p, i, d)),
                "d": self.head("seghead_d", second)}

    def ddrnet(self, x):
        """[main, aux] at stride 8."""
        x = self.stage("layer2", self.stage("layer1", self.stem(x)).relu(), 2)
        size = x.shape[2:]
        low, high = self.stage("layer3", x.relu(), 2), self.stage("layer3_", x.relu())
        x = low + self.conv_norm("down3", high.relu(), 2)
        high = middle = high + F.interpolate(self.conv_norm("compression3", low.relu()), size,
                                             mode="bilinear")
        low, high = self.stage("layer4", x.relu(), 2), self.stage("layer4_", high.relu())
        x = low + self.conv_norm("down4", self.conv_norm("down4", high.relu(), 2).relu(), 2, 3)
        high = high + F.interpolate(self.conv_norm("compression4", low.relu()), size,
                                    mode="bilinear")
        x = self.pyramid(self.stage("layer5", x.relu(), 2))
        x = F.interpolate(x, size, mode="bilinear") + self.stage("layer5_", high.relu())
        return {"out": self.head("final_layer", x), "aux": self.head("seghead_extra", middle)}


def all_outputs(network, image):
    """The outputs of a network in eval mode, those of the extra heads included."""
    with torch.no_grad():
        network.training = True
        outputs = network(image)
        network.training = False
        assert torch.equal(network(image), outputs["out"])
    return outputs


def assert_equal_to_plain(network, plain, image):
    outputs = all_outputs(network, image)
    with torch.no_grad():
        expected = (plain.pidnet if isinstance(network, PIDNet) else plain.ddrnet)(image)
        expected = as_outputs(expected, image, True, isinstance(network, PIDNet))
    assert outputs.keys() == expected.keys()
    for key, value in expected.items():
        assert (outputs[key] - value).abs().max() <= 1e-4 * value.std(), key


@needs_goldens
@pytest.mark.parametrize("name, size", [
    ("pidnet_s", (8, 40)), ("ddrnet_23_slim", (8, 40)),
    *(pytest.param(name, (64, 104), marks=pytest.mark.slow)     # 29 and 37 million weights
      for name in ("pidnet_m", "pidnet_l"))])
def test_the_outputs_equal_those_of_a_second_forward(name, size):
    weights, _ = made_up(name)
    assert_equal_to_plain(load_published(name, weights), Plain(weights), picture(*size, 2))


@needs_goldens
@pytest.mark.slow      # 20 million weights
def test_ddrnet_23_equals_a_second_forward():
    entry = published()["ddrnet_23"]
    network = waves(entry.build(5))
    ours = rename({key: key for key in published_keys("ddrnet_23_slim")}, entry.rename)
    state = network.state_dict()
    weights = {theirs: state[key] for key, theirs in ours.items()}
    assert len(weights) == len(state)
    assert_equal_to_plain(network, Plain(weights), picture(64, 104, 2))


NETWORKS = pytest.mark.parametrize("name, head, extra", [
    ("pidnet_s", r"aux_head_", "seghead_"), ("ddrnet_23_slim", "aux_head.", "seghead_extra.")])


@needs_goldens
@NETWORKS
def test_a_file_without_the_extra_heads_gives_a_network_without_them(name, head, extra):
    weights, image = made_up(name)
    whole = load_published(name, weights)
    without = load_published(name, {k: v for k, v in weights.items() if not k.startswith(extra)})
    assert without.output_weights == {"out": 1.0} and not without.output_channels
    assert not any(key.startswith(head) for key in without.state_dict())
    with torch.no_grad():
        assert torch.equal(without(image), whole(image))


@needs_goldens
@NETWORKS
def test_the_file_of_the_training_wrapper_loads(name, head, extra):
    weights, image = made_up(name)
    wrapped = {f"model.{key}": value for key, value in weights.items()}
    beside = "sem_loss" if name == "pidnet_s" else "loss"
    wrapped[f"{beside}.criterion.weight"] = torch.ones(19)
    again = load_published(name, {"state_dict": wrapped, "epoch": 3, "best_mIoU": 0.7})
    with torch.no_grad():
        assert torch.equal(again(image), load_published(name, weights)(image))


@NETWORKS
def test_the_extra_heads_are_not_computed_in_eval_mode(name, head, extra):
    network = published()[name].build(3).eval()
    called = []
    for key, module in network.named_children():
        if key.startswith("aux_head"):
            module.register_forward_hook(lambda *_, key=key: called.append(key))
    with torch.no_grad():
        network(torch.zeros(1, 3, 16, 16))
        assert not called
        network.training = True
        network(torch.zeros(1, 3, 16, 16))
    assert called


@needs_goldens
@pytest.mark.parametrize("name, prefix, absent, more", [
    ("pidnet_s", "", r"seghead|final|spp|dfm|diff|layer\d_d", ("last_layer.0", "linear")),
    ("ddrnet_23_slim", "module.", r"seghead|final|spp", ("down5.0", "last_layer.0", "linear"))])
def test_an_imagenet_file_starts_the_encoder_and_tells_what_is_left_out(name, prefix, absent, more,
                                                                       tmp_path):
    weights = {key: value for key, value in made_up(name)[0].items() if not re.match(absent, key)}
    state = {prefix + key: value for key, value in weights.items()}
    state |= {f"{prefix}{key}.weight": torch.zeros(2) for key in more}
    torch.save({"state_dict": state, "epoch": 90}, tmp_path / "imagenet.pth.tar")
    network = published()[name].build(4)
    report = load_foreign(network, tmp_path / "imagenet.pth.tar")
    assert f"loaded {len(weights)} of {report.total} tensors" in str(report)
    assert f"missing in the file: {report.total - len(weights)} (" in str(report)
    assert f"not in the network: {len(more)} (" in str(report)
    filled = {id(p) for key, p in network.named_parameters() if key in report.loaded}
    assert filled == {id(p) for p in network.backbone_parameters()}


def test_an_unknown_variant_names_those_that_exist():
    for cls in (PIDNet, DDRNet):
        with pytest.raises(ConfigError, match="unknown variant 'x'. Known: "):
            cls(num_classes=3, variant="x")


def test_one_logit_for_two_classes_leaves_the_boundary_output_alone():
    network = PIDNet(num_classes=1).two_classes(one_logit=True).train()
    with torch.no_grad():
        outputs = network(torch.randn(2, 3, 16, 24))
    assert {key: value.shape[1] for key, value in outputs.items()} == {"out": 2, "p": 2, "d": 1}


@pytest.mark.slow      # twenty steps of networks of full size
@pytest.mark.parametrize("cls, loss", [(PIDNet, LOSS), (DDRNet, {"out": LOSS["out"], "aux": "CE"})])
def test_twenty_steps_on_shapes_reduce_every_published_loss(cls, loss):
    torch.manual_seed(0)
    network = cls(num_classes=9)
    first, last = twenty_steps_on_shapes(network, loss, torch.optim.SGD, lr=0.01, momentum=0.9,
                                         weight_decay=5e-4)
    assert last["total"] < 0.7 * first["total"]
    assert all(last[key] < first[key] for key in network.output_weights)
