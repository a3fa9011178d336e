"""parameter_groups: which parameter trains at which rate and with which weight decay."""
import copy
import signal

import pytest
import torch
from torch import nn

from base.base_model import BaseModel
from models.backbones import build_backbone
from tests.config.samples import only_mistake, small
from tests.programs.test_trainer import Net, make, same, signal_at, weights
from utils.checkpoint.load import load_optimizer
from utils.checkpoint.read import read_checkpoint
from utils.cli.console import Interrupted
from utils.config.build import build
from utils.errors import ConfigError
from utils.training.optimizer import build_optimizer
from utils.training.parameter_groups import backbone_layers, parameter_order


class Former(BaseModel):
    """A transformer of two blocks, with the parameters that such networks have."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.pos_embed = nn.Parameter(torch.zeros(1, 4, 6))
        self.backbone.cls_token = nn.Parameter(torch.zeros(1, 1, 6))
        self.backbone.patch_embed = nn.Sequential(nn.Conv2d(3, 6, 2, 2), nn.LayerNorm(6))
        self.backbone.blocks = nn.Sequential(*(nn.TransformerEncoderLayer(6, 2, 8)
                                               for _ in range(2)))
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return x


def settings(model, **section):
    """name -> (rate, weight decay) of every parameter under an optimizer section."""
    optimizer = build_optimizer({"type": "SGD", "args": {"lr": 1.0, "weight_decay": 0.1},
                                 **section}, model)
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)]: (pytest.approx(group["lr"]), group["weight_decay"])
            for group in optimizer.param_groups for p in group["params"]}


def group_names(model, **section):
    optimizer = build_optimizer({"type": "SGD", "args": {"lr": 1.0, "weight_decay": 0.1},
                                 **section}, model)
    return [group["name"] for group in optimizer.param_groups]


def test_the_first_entry_that_fits_a_name_counts():
    found = settings(Net(), groups=[{"match": r"bias$", "weight_decay": 0.0},
                                    {"match": r"^backbone\.", "lr_factor": 0.5}])
    assert found == {
        "backbone.0.weight": (0.5, 0.1), "backbone.0.bias": (1.0, 0.0),
        "backbone.1.weight": (0.5, 0.1), "backbone.1.bias": (1.0, 0.0),
        "head.1.weight": (1.0, 0.1), "head.1.bias": (1.0, 0.0)}


def test_an_entry_without_values_keeps_what_it_fits_out_of_later_ones():
    found = settings(Net(), groups=[{"match": "head"}, {"match": "bias", "weight_decay": 0.0}])
    assert found["head.1.bias"] == (1.0, 0.1) and found["backbone.0.bias"] == (1.0, 0.0)


def test_a_group_replaces_the_tenth_of_differential_lr_where_it_states_a_rate():
    found = settings(Net(), differential_lr=True, groups=[
        {"match": r"backbone\.0", "lr_factor": 3.0}, {"match": r"head.*bias", "lr_factor": 0.1}])
    assert found["backbone.0.weight"] == (3.0, 0.1)
    assert found["backbone.1.weight"] == (0.1, 0.1)
    assert found["head.1.weight"] == (1.0, 0.1) and found["head.1.bias"] == (0.1, 0.1)


def test_fcn8_of_rankdice_trains_its_convolutions_6_and_7_like_the_encoder():
    model = build("models", {"type": "FCN8", "args": {"channels": 8}}, num_classes=3)
    found = settings(model, differential_lr=True,
                     groups=[{"match": r"^output\.", "lr_factor": 0.1}])
    assert {name.split(".")[0]: rate for name, (rate, _) in found.items()} == {
        "adj_pool3": 1.0, "adj_pool4": 1.0, "output": 0.1, "backbone": 0.1}


@pytest.mark.parametrize("kinds, without", [
    (["norm"], {"norm1", "norm2", "1"}),
    (["position"], {"pos_embed", "cls_token"}),
])
def test_weight_decay_is_left_out_for_a_kind_of_parameters(kinds, without):
    found = settings(Former(), no_decay=kinds)
    undecayed = {name for name, (_, decay) in found.items() if not decay}
    assert undecayed == {name for name in found
                         if name.split(".")[-2] in without or name.split(".")[-1] in without}


def test_biases_and_vectors_are_kinds_too():
    def undecayed(kinds):
        return {n for n, (_, decay) in settings(Former(), no_decay=kinds).items() if not decay}
    model = Former()
    names = dict(model.named_parameters())
    assert undecayed(["bias"]) == {name for name in names if name.endswith("bias")}
    assert undecayed(["vector"]) == {name for name, p in names.items() if p.ndim == 1
                                     or name == "backbone.cls_token"}


@pytest.mark.parametrize("norm", ["batch", "group", "evo_s0", "evo_b0"])
def test_every_norm_of_a_network_is_left_out(norm):
    model = build("models", {"type": "PSPNet", "args": {"backbone": "resnet18", "norm": norm}},
                  num_classes=3)
    found = settings(model, no_decay=["norm", "bias"])
    decayed = {name for name, (_, decay) in found.items() if decay}
    assert decayed == {name for name, p in model.named_parameters()
                       if p.ndim == 4 and p.shape[0] > 1}       # the convolutions


def test_a_weight_decay_of_a_group_counts_more_than_its_kind():
    found = settings(Net(), no_decay=["bias"], groups=[{"match": "head", "weight_decay": 0.3}])
    assert found["head.1.bias"] == (1.0, 0.3) and found["backbone.0.bias"] == (1.0, 0.0)


def test_layers_of_the_backbone_get_smaller_rates_towards_the_image():
    found = settings(Former(), layer_decay=0.5)
    assert found["head.weight"] == (1.0, 0.1)
    assert found["backbone.blocks.1.linear1.weight"] == (0.5, 0.1)
    assert found["backbone.blocks.0.linear1.weight"] == (0.25, 0.1)
    assert found["backbone.patch_embed.0.weight"] == found["backbone.pos_embed"] == (0.125, 0.1)


@pytest.mark.parametrize("backbone, layers", [
    ("resnet18", 1 + 8), ("resnet50", 1 + 16), ("vgg16", 13), ("mobilenet_v3_large", 17)])
def test_a_layer_is_a_block_or_a_convolution_with_its_norm(backbone, layers):
    model = build("models", {"type": "FCN8" if "vgg" in backbone else "DeepLab", "args": {
        "backbone": backbone}}, num_classes=2)
    found = backbone_layers(model)
    assert len(found) == layers
    assert sorted(id(p) for layer in found for p in layer) \
        == sorted(map(id, model.backbone_parameters()))


@pytest.mark.parametrize("name, layers", [
    ("resnet18", 1 + 8), ("convnext_atto", 1 + 2 + 1 + 2 + 1 + 6 + 1 + 2),
    ("vit_tiny_patch16_224", 1 + 12)])
def test_the_layers_of_a_timm_encoder_are_its_blocks(name, layers):
    pytest.importorskip("timm")
    model = Net()
    model.backbone = build_backbone(f"timm/{name}")
    found = backbone_layers(model)
    assert len(found) == layers
    assert sorted(id(p) for layer in found for p in layer) \
        == sorted(map(id, model.backbone_parameters()))
    rates = settings(model, layer_decay=0.5)
    first = next(name for name, p in model.named_parameters() if p is found[0][0])
    assert rates[first] == (0.5 ** layers, 0.1)
    assert rates["head.1.weight"] == (1.0, 0.1)


def test_without_settings_there_is_one_group_and_with_differential_lr_two():
    assert group_names(Net()) == ["all"]
    assert group_names(Net(), differential_lr=True) == ["head", "backbone"]
    assert group_names(Net(), differential_lr=True, no_decay=["bias"]) == [
        "head", "head_no_decay", "backbone", "backbone_no_decay"]
    assert group_names(Net(), layer_decay=0.5, groups=[{"match": "head.*weight"}]) == [
        "head", "backbone_layer_0", "head_group_0"]


@pytest.mark.parametrize("groups, message", [
    ([{"match": "encoder"}], r"'encoder' fits no parameter; they are called backbone.0.weight, "),
    ([{"match": "backbone"}, {"match": r"bone\.0"}],
     r"the entries before it take all 2 parameters that 'bone\\.0' fits"),
])
def test_an_entry_that_gets_no_parameter_is_refused(groups, message):
    with pytest.raises(ConfigError) as caught:
        settings(Net(), groups=groups)
    assert message in str(caught.value)
    assert f"optimizer.groups[{len(groups) - 1}].match" in str(caught.value)


@pytest.mark.parametrize("section, message", [
    ({"groups": [{"match": "("}]}, "optimizer.groups[0].match: '(' is no regular expression"),
    ({"groups": [{"match": "a", "lr_factor": -1}]},
     "optimizer.groups[0].lr_factor: expected at least 0, got -1"),
    ({"groups": [{"lr_factor": 1}]}, "optimizer.groups[0].match: missing; expected string"),
    ({"groups": [{"match": "a", "lr": 1}]}, "optimizer.groups[0].lr: unknown key"),
    ({"groups": {"match": "a"}}, "optimizer.groups: expected a list of objects"),
    ({"layer_decay": 0}, "optimizer.layer_decay: expected a number in (0, 1], found 0"),
    ({"no_decay": ["norms"]}, "optimizer.no_decay: expected list of one of \"norm\""),
])
def test_mistakes_are_found_with_the_others_of_the_config(section, message):
    assert message in only_mistake(small(optimizer={"type": "SGD", "args": {"lr": 1}, **section}))


def test_settings_without_effect_are_told(capsys):
    build_optimizer({"type": "SGD", "args": {"lr": 1.0}, "no_decay": ["position"]}, Net())
    model = Net()
    model.freeze(freeze_backbone=True)
    settings(model, groups=[{"match": "backbone", "lr_factor": 0.1}])
    told = capsys.readouterr().err
    assert "optimizer.no_decay has no effect: optimizer.args.weight_decay is 0" in told
    assert 'optimizer.no_decay "position" has no effect: Net has no such parameter' in told
    assert "optimizer.groups[0] has no effect: what 'backbone' fits is frozen" in told


def test_an_optimizer_without_weight_decay_refuses_that_of_a_group():
    with pytest.raises(ConfigError, match="Rprop has no weight decay"):
        build_optimizer({"type": "Rprop", "args": {"lr": 1.0},
                         "groups": [{"match": "bias", "weight_decay": 0.1}]}, Net())


def test_other_groups_at_a_resume_keep_the_momentum_of_each_parameter():
    old, new = {"groups": [{"match": "bias", "lr_factor": 0.1}]}, {"no_decay": ["norm"]}
    model = Net()
    before = build_optimizer({"type": "SGD", "args": {"lr": 1.0, "momentum": 0.9}, **old}, model)
    for number, parameter in enumerate(model.parameters()):
        parameter.grad = torch.full_like(parameter, float(number))
    before.step()
    wanted = {id(p): before.state[p]["momentum_buffer"].clone() for p in model.parameters()}
    after = build_optimizer({"type": "SGD", "args": {"lr": 1.0, "momentum": 0.9}, **new}, model)
    load_optimizer(after, copy.deepcopy(before.state_dict()), "here", parameter_order(old, model))
    assert all(torch.equal(after.state[p]["momentum_buffer"], wanted[id(p)])
               for p in model.parameters())


def test_a_resumed_run_with_groups_ends_like_one_without_interruption(tmp_path):
    options = ['optimizer.groups=[{"match": "bias", "lr_factor": 2.0, "weight_decay": 0.0}]',
               "optimizer.layer_decay=0.7", 'optimizer.no_decay=["norm"]',
               "optimizer.args.weight_decay=0.01"]
    for name in ("whole", "part"):
        (tmp_path / name).mkdir()
    whole = make(tmp_path / "whole", *options)
    whole.train()
    part = signal_at(make(tmp_path / "part", *options), 5, signal.SIGTERM)
    with pytest.raises(Interrupted):
        part.train()
    resumed = make(tmp_path / "part", *options,
                   checkpoint=read_checkpoint(tmp_path / "part" / "last.pth"))
    resumed.train()
    assert same(weights(whole), weights(resumed))


def test_a_step_with_groups_equals_the_step_worked_out_by_hand(tmp_path, monkeypatch):
    trainer = make(tmp_path, 'optimizer.args={"lr": 0.5}', "lr_scheduler=null",
                   "trainer.iterations=1", "trainer.epochs=null",
                   'optimizer.groups=[{"match": "head", "lr_factor": 0.1}]')
    before, gradients, update = weights(trainer), {}, trainer._update

    def seen(*args):
        gradients.update({name: torch.as_tensor(p.grad).clone()
                          for name, p in trainer.model.named_parameters()})
        return update(*args)
    monkeypatch.setattr(trainer, "_update", seen)
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        rate = 0.05 if name.startswith("head") else 0.5
        assert gradients[name].any()
        torch.testing.assert_close(parameter.detach(), before[name] - rate * gradients[name])
