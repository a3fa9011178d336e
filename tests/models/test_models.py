"""Rules that every architecture must follow; a new file in models/ is tested automatically."""
import functools
import inspect
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from base.base_model import BaseModel
from models.layers.norm import NORMS
from models.layers.resize import max_unpool
from tests.support.made_up import twenty_steps_on_shapes
from utils.config.registry import components
from utils.errors import ConfigError
from utils.training.criterion import Criterion

ARCHITECTURES = {name: cls for name, cls in sorted(components("models").items())
                 if name == cls.__name__}
# Encoders to try, smallest first: an architecture is tested with the first that it accepts.
SMALL = ("resnet18", "mobilenet_v3_small", "densenet121", "vgg11_bn", "hrnet_w18_small_v1",
         "deepbase_resnet18", "hrnext20", "resnet50")
BACKBONES = ("resnet34", "resnet50s", "mobilenet_v3_large", "densenet121", "vgg16_bn", "vgg11",
             "xception", "hrnet_w18_small_v2", "deepbase_resnet50", "swin_tiny", "convnext_tiny")
# Options that make a network small enough for tests.
SMALLER = {"EoMT": {"backbone": "dinov2_vits14_reg", "image_size": 64, "queries": 8, "blocks": 2},
           "FCN8": {"channels": 64}, "SegFormer": {"backbone": "mit_b0", "drop_path": 0.0},
           "ViTLinear": {"backbone": "dinov2_vits14"},
           "ViTMultiLinear": {"backbone": "dinov3_vits16", "layers": "quarters"}}

every_architecture = pytest.mark.parametrize("name", ARCHITECTURES)


def construct(name, num_classes=5, **options):
    """The architecture with the smallest encoder that it accepts, and its number of channels."""
    cls, options = ARCHITECTURES[name], SMALLER.get(name, {}) | options
    parameters = inspect.signature(cls).parameters
    if parameters["num_classes"].default is not inspect.Parameter.empty:    # it is fixed
        num_classes = parameters["num_classes"].default
    torch.manual_seed(0)
    if "backbone" not in parameters or "backbone" in options:
        return cls(num_classes=num_classes, **options), num_classes
    for backbone in SMALL:
        try:
            return cls(num_classes=num_classes, backbone=backbone, **options), num_classes
        except ConfigError:
            continue
    return cls(num_classes=num_classes, **options), num_classes


@functools.cache
def built(name):
    return construct(name)


def own_loss(model):
    """The criterion of a network that is made for one loss on labels; None for the others."""
    if model.loss is None or hasattr(components("losses")[model.loss], "targets"):
        return None
    return Criterion(model.loss, model.output_weights)


def scalar(outputs):
    """A weighted sum of all outputs; all weights differ."""
    return sum((value * torch.linspace(0.5, 1.5, value.numel()).view_as(value)).sum()
               for value in outputs.values())


@every_architecture
@pytest.mark.parametrize("size", [(33, 47), (5, 3), *(
    pytest.param(size, marks=pytest.mark.slow) for size in ((1, 1), (63, 95), (64, 64), (66, 98),
                                                           (200, 31)))])
def test_logits_of_one_image_have_the_size_of_the_input(name, size):
    """The slow cases take seconds in total: every network at five more sizes."""
    model, classes = built(name)
    with torch.no_grad():
        out = model.eval()(torch.randn(1, 3, *size))
    assert out.shape == (1, classes, *size) and out.isfinite().all()


@every_architecture
def test_training_gives_the_outputs_with_a_weight_and_every_parameter_has_a_gradient(name):
    """Up to three seconds: networks of full size, forward and backward."""
    model, classes = built(name)
    outputs = model.train()(torch.randn(2, 3, 33, 47))
    assert outputs.keys() == model.output_weights.keys()
    criterion = own_loss(model)
    if criterion:           # the outputs are what this loss reads, of any shape
        labels = torch.arange(33 * 47).view(1, 33, 47).repeat(2, 1, 1) % classes
        criterion(outputs, {"label": labels})[0].backward()
    else:
        assert all(value.shape[2:] == (33, 47) for value in outputs.values())
        assert model.output_channels.keys() <= outputs.keys() - {"out"}
        assert all(value.shape[1] == model.output_channels.get(key, classes)
                   for key, value in outputs.items())
        scalar(outputs).backward()
    idle = [key for key, p in model.named_parameters() if p.requires_grad and (
        p.grad is None or not p.grad.isfinite().all())]
    model.zero_grad(set_to_none=True)
    assert not idle


@every_architecture
def test_the_training_flag_of_the_top_module_is_enough_to_get_all_outputs(name):
    model, _ = built(name)
    model.eval().training = True
    with torch.no_grad():
        outputs = model(torch.randn(1, 3, 33, 47))
    model.eval()
    assert outputs.keys() == model.output_weights.keys()


@every_architecture
def test_a_single_image_has_the_same_logits_as_in_a_batch(name):
    model, _ = built(name)
    images = torch.randn(2, 3, 33, 47)
    with torch.no_grad():
        both, one = model.eval()(images), model(images[1:])
    assert (both[1:] - one).abs().max() <= 1e-4 * both.abs().max()


@every_architecture
def test_the_constructor_is_a_schema(name):
    parameters = list(inspect.signature(ARCHITECTURES[name]).parameters.values())
    assert parameters[0].name == "num_classes"
    for parameter in parameters:
        assert parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        assert parameter.annotation is not inspect.Parameter.empty
        assert parameter.name == "num_classes" or parameter.default is not inspect.Parameter.empty
    assert not any(p.name.startswith("freeze") for p in parameters)


@every_architecture
def test_the_input_is_not_changed(name):
    model, _ = built(name)
    image = torch.randn(1, 3, 33, 47)
    before = image.clone()
    with torch.no_grad():
        model.eval()(image)
    assert torch.equal(image, before)


@every_architecture
def test_every_parameter_belongs_either_to_the_backbone_or_to_the_head(name):
    model, _ = built(name)
    backbone = {id(p) for p in model.backbone_parameters()}
    head = {id(p) for p in model.head_parameters()}
    assert not backbone & head and backbone | head == {id(p) for p in model.parameters()}


@every_architecture
def test_a_frozen_backbone_gets_no_gradient_and_keeps_its_statistics(name):
    model, _ = built(name)
    if not model.backbone_modules():
        pytest.skip("there is no encoder to freeze")
    fixed = {id(p) for p in model.parameters() if not p.requires_grad}
    model.freeze(freeze_backbone=True).train()
    before = {k: v.clone() for module in model.backbone_modules()
              for k, v in module.named_buffers()}
    scalar(model(torch.randn(2, 3, 33, 47))).backward()
    touched = [p for p in model.backbone_parameters() if p.grad is not None]
    after = {k: v for module in model.backbone_modules() for k, v in module.named_buffers()}
    model.zero_grad(set_to_none=True)
    model.freeze()
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) not in fixed)
    assert not touched and all(torch.equal(before[k], after[k]) for k in before)


@pytest.mark.parametrize("norm", ["batch", "sync", "evo_b0"])
def test_frozen_norms_of_every_kind_keep_their_statistics(norm):
    model, _ = construct("ENet", norm=norm)
    model.freeze(freeze_bn=True).train()
    before = {k: v.clone() for k, v in model.named_buffers()}
    model(torch.randn(2, 3, 33, 47))
    assert before and all(torch.equal(v, before[k]) for k, v in model.named_buffers())


@every_architecture
def test_bf16_and_channels_last_change_the_logits_only_a_little(name):
    model, _ = built(name)
    image = torch.randn(1, 3, 33, 47)
    with torch.no_grad():
        plain = model.eval()(image)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            fast = model(image.to(memory_format=torch.channels_last)).float()
        other = model(image.to(memory_format=torch.channels_last))
    assert (other - plain).abs().max() <= 1e-4 * plain.abs().max()
    assert fast.isfinite().all()
    # bfloat16 has 8 bits of mantissa; deep networks accumulate dozens of rounding errors.
    assert (fast - plain).abs().mean() <= 0.1 * plain.abs().mean() + 0.02 * plain.abs().max()


def with_norm(names):
    return [n for n in names if "norm" in inspect.signature(ARCHITECTURES[n]).parameters]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", [
    name if name in ("DeepLabV3", "ENet", "PSPNet") else
    pytest.param(name, marks=pytest.mark.slow)      # full size, forward and backward
    for name in with_norm(ARCHITECTURES)])
def test_networks_train_with_every_norm(name, norm):
    model, classes = construct(name, norm=norm)
    with torch.no_grad():
        assert model.eval()(torch.randn(1, 3, 33, 47)).isfinite().all()
    outputs = model.train()(torch.randn(2, 3, 64, 64))
    scalar(outputs).backward()
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), key


@pytest.mark.parametrize("norm", ["group", *(pytest.param(norm, marks=pytest.mark.slow)
                                             for norm in NORMS if norm not in ("batch", "group"))])
@pytest.mark.parametrize("name", with_norm(ARCHITECTURES))
def test_one_pixel_is_an_image_with_every_norm(name, norm):
    """Slow in total: every network is constructed with every norm."""
    model, classes = construct(name, norm=norm)
    with torch.no_grad():
        out = model.eval()(torch.randn(1, 3, 1, 1))
    assert out.shape == (1, classes, 1, 1) and out.isfinite().all()


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=() if name in ("ENet", "PSPNet", "HRNet", "GCN") else pytest.mark.slow)
    for name in ARCHITECTURES])
def test_a_head_of_one_logit_works_and_learns(name):
    """Up to a few seconds: networks of full size, forward and backward."""
    if "out" not in ARCHITECTURES[name].output_weights:
        pytest.skip("its channels are not classes")
    torch.manual_seed(0)
    model, _ = construct(name, num_classes=1)
    with torch.no_grad():
        assert model.eval()(torch.randn(1, 3, 33, 47)).shape == (1, 1, 33, 47)
    outputs = model.train()(torch.randn(2, 3, 33, 47))
    assert {value.shape for value in outputs.values()} == {(2, 1, 33, 47)}
    scalar(outputs).backward()
    assert all(p.grad is not None and p.grad.isfinite().all()
               for p in model.parameters() if p.requires_grad)


@pytest.mark.slow      # a thousand networks are constructed
@every_architecture
@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_backbone_works_or_is_rejected_with_a_reason(name, backbone):
    if "backbone" not in inspect.signature(ARCHITECTURES[name]).parameters:
        pytest.skip("its encoder cannot be chosen")
    with torch.device("meta"), torch.no_grad():         # only shapes are checked
        try:
            model, classes = construct(name, backbone=backbone)
        except ConfigError as error:
            assert backbone in str(error)
            return
        assert model.eval()(torch.randn(1, 3, 65, 97)).shape == (1, classes, 65, 97)


@pytest.mark.slow      # twenty steps of networks of full size
@every_architecture
def test_twenty_steps_reduce_the_loss(name):
    model, classes = construct(name)
    criterion = own_loss(model)
    if "out" not in model.output_weights and not criterion:
        pytest.skip("it is trained on other targets")
    torch.manual_seed(0)
    tiles = torch.randn(2, 3, 4, 4)         # the class is the brightest channel of a tile
    images = tiles.repeat_interleave(16, 2).repeat_interleave(16, 3)
    target = images.argmax(1)
    # Adam: with random weights the gradient of a deep encoder is much larger than the head's.
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for _ in range(20):
        outputs = model.train()(images)
        loss = criterion(outputs, {"label": target})[0] if criterion else sum(
            model.output_weights[k] * nn.functional.cross_entropy(v, target)
            for k, v in outputs.items() if k not in model.output_channels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert min(losses[-5:]) < 0.95 * losses[0]


@pytest.mark.slow      # twenty steps of networks of full size
@pytest.mark.parametrize("name, options", [
    ("SegFormer", {}), *(("UPerNet", {"backbone": backbone, "channels": 64})
                         for backbone in ("swin_tiny", "convnext_tiny")),
    ("ViTLinear", {}), ("ViTMultiLinear", {})])
def test_twenty_steps_on_shapes_reduce_every_loss_of_a_transformer(name, options):
    torch.manual_seed(0)
    network = ARCHITECTURES[name](num_classes=9, **options)
    first, last = twenty_steps_on_shapes(network, "CE", torch.optim.AdamW, lr=1e-4,
                                         weight_decay=0.01)
    assert all(last[key] < 0.8 * first[key] for key in (*network.output_weights, "total"))


@pytest.mark.slow      # torch's exporter traces networks of full size
@every_architecture
def test_torch_can_export_it(name):
    model, _ = construct(name)
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        exported = torch.export.export(model.eval(), (image,)).module()
        assert (exported(image) - model(image)).abs().max() <= 1e-5 * model(image).abs().max()


@pytest.mark.parametrize("name", [n for n in ARCHITECTURES if "use_aux" in
                                  inspect.signature(ARCHITECTURES[n]).parameters])
def test_an_auxiliary_head_that_is_switched_off_is_not_built(name):
    model, _ = construct(name, use_aux=False)
    assert model.output_weights == {"out": 1.0} and model.train()(
        torch.randn(2, 3, 33, 47)).keys() == {"out"}
    assert not any(key.startswith("aux") for key in model.state_dict())


def test_every_architecture_names_a_paper_with_its_year():
    for name, cls in ARCHITECTURES.items():
        assert issubclass(cls, BaseModel) and cls.__doc__, name
        module = inspect.getmodule(cls)
        assert module.__doc__ and "20" in module.__doc__, f"{name}: no paper with its year"


@pytest.mark.parametrize("name, backbone", [
    ("FCN8", "resnet18"), ("SegNet", "resnet18"), ("SegResNet", "vgg16"), ("DUC_HDC", "mit_b0")])
def test_an_encoder_of_another_kind_is_refused_in_one_line_that_names_what_fits(name, backbone):
    with pytest.raises(ConfigError) as error:
        ARCHITECTURES[name](num_classes=5, backbone=backbone)
    assert error.value.where == "arch.args.backbone" and error.value.fix
    assert re.fullmatch(rf"{name} needs a (vgg|resnet).*'{backbone}'.*", error.value.what)


def test_a_wrong_argument_is_a_config_error():
    for name, options in (("FCN8", {"backbone": "resnet50"}), ("SegNet", {"backbone": "vgg16"}),
                          ("GCN", {"kernel_size": 4}), ("DeepLab", {"output_stride": 32}),
                          ("PSPNet", {"norm": "bacht"}), ("PSPNet", {"output_stride": 4})):
        with pytest.raises(ConfigError):
            ARCHITECTURES[name](num_classes=3, **options)


def test_segnet_of_the_fork_shares_weights_between_encoder_and_decoder():
    shared, _ = construct("SegNet", shared_decoder=True)
    separate, _ = construct("SegNet")
    count = [sum(p.numel() for p in model.parameters()) for model in (shared, separate)]
    assert count[0] < 0.75 * count[1]
    assert any(shared.decoder[0][0] is module for module in shared.backbone.features)


# With `deterministic`

# Gradients for which torch.use_deterministic_algorithms lists no deterministic form on a GPU.
NOT_DETERMINISTIC = {f"{name}Backward" for name in (
    "AdaptiveAvgPool2D", "AdaptiveAvgPool3D", "AdaptiveMaxPool2D", "AvgPool3D",
    "FractionalMaxPool2D", "FractionalMaxPool3D", "MaxUnpool2D", "MaxUnpool3D", "UpsampleLinear1D",
    "UpsampleBilinear2D", "UpsampleBicubic2D", "UpsampleTrilinear3D", "ReflectionPad1D",
    "ReflectionPad2D", "ReflectionPad3D", "NllLoss", "NllLoss2D", "CtcLoss", "EmbeddingBag", "Put",
    "GridSampler2D", "GridSampler3D", "ScatterReduce", "Median")}


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def gradients_in(outputs):
    """The names of torch's gradients behind the outputs, without the number at their end."""
    found, left = set(), [output.grad_fn for output in outputs]
    while left:
        node = left.pop()
        if node is not None and node not in found:
            found.add(node)
            left += [before for before, _ in node.next_functions]
    return {node.name().rstrip("0123456789") for node in found}


@pytest.mark.parametrize("height, width, stride", [(8, 10, 2), (9, 7, 2), (8, 10, 1)])
def test_unpooling_with_deterministic_equals_torchs(height, width, stride, deterministic):
    torch.manual_seed(0)
    pooled, positions = F.max_pool2d(torch.randn(2, 3, height, width), 2, stride,
                                     return_indices=True)
    if stride == 1:       # positions of several windows: the last one counts
        pooled, positions = (x[..., ::2, ::2].contiguous() for x in (pooled, positions))
    values = pooled.clone().requires_grad_()
    found = max_unpool(values, positions, (height, width))
    weight = torch.randn_like(found)
    (found * weight).sum().backward()
    torch.use_deterministic_algorithms(False)
    expected_of = pooled.clone().requires_grad_()
    expected = F.max_unpool2d(expected_of, positions, 2, output_size=(height, width))
    (expected * weight).sum().backward()
    assert torch.equal(found, expected) and torch.equal(values.grad, expected_of.grad)
    assert torch.equal(found, max_unpool(pooled, positions, (height, width)))


@pytest.mark.slow      # half a minute for all networks
@every_architecture
def test_every_gradient_has_a_deterministic_form_on_a_gpu(name, deterministic):
    """The GPU is simulated: only shapes are computed."""
    with FakeTensorMode(), torch.device("cuda"):
        model, _ = construct(name)
        outputs = model.train()(torch.empty(2, 3, 65, 97))
    assert not gradients_in(outputs.values()) & NOT_DETERMINISTIC


@pytest.mark.slow      # two steps of every network at full size, twice
@every_architecture
def test_two_deterministic_steps_can_be_repeated(name, deterministic):
    def steps():
        torch.manual_seed(1)
        model, _ = construct(name)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        images = torch.randn(2, 3, 65, 97)
        for _ in range(2):
            scalar(model.train()(images)).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        return model.state_dict()
    first, second = steps(), steps()
    assert all(value.isfinite().all() and torch.equal(value, second[key])
               for key, value in first.items())
