"""The losses: the contract of every loss, golden values, and probe values.

The golden values are not in this repository; the probe values are.
"""
import re
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.support.places import SHARED
from tests.support.ranks import on_ranks
from utils.config.registry import components
from utils.errors import ConfigError
from utils.losses import build_loss
from utils.losses.focal import FocalLoss
from utils.segfix.targets import segfix_targets

GOLDEN = SHARED / "losses/cases.npz"
LOSSES = components("losses")
NAMES = sorted(LOSSES)
# Arguments that a loss requires, and arguments whose defaults are meant for larger images.
ARGS = {
    "MixedLoss": {"losses": [{"type": "CE"}, {"type": "DC", "weight": 0.5}]},
    "OhemCrossEntropy": {"min_kept": 20}, "fs_ohemce": {"min_kept": 20},
    "BootstrappedCrossEntropyLoss": {"min_K": 20}, "MaskClassificationLoss": {"points": 300},
    "BoundaryOhemCrossEntropy": {"boundary": 0.5, "min_kept": 20},
}
# Of outputs and targets that are not class scores.
CHANNELS = {"mask": 2, "boundary": 2, "direction": 8, "d": 1}
# Shapes of outputs that are not maps of the labels' size, behind the number of images.
SHAPES = {"masks": (2, 5, 12, 12), "classes": (2, 5, 20)}
GOLDEN_CONFIGS = {
    "ce": ("CrossEntropyLoss2d", {}),
    "ce_sum": ("CrossEntropyLoss2d", {"reduction": "sum"}),
    "ce_weighted": ("CrossEntropyLoss2d", {"weight": "WEIGHTS"}),
    "dice_flat": ("DiceLoss", {}),
    "dice_flat_smooth0.1": ("DiceLoss", {"smooth": 0.1}),
    "ce_dice": ("CE_DiceLoss", {}),
    "logcosh_dice": ("LogCoshDiceLoss", {}),
    "focal_g0": ("FocalLoss", {"gamma": 0}),
    "focal_g2": ("FocalLoss", {"gamma": 2}),
    "focal_g3.5": ("FocalLoss", {"gamma": 3.5}),
    "focal_g2_alpha": ("FocalLoss", {"gamma": 2, "alpha": "WEIGHTS"}),
    "focal_g2_sum": ("FocalLoss", {"gamma": 2, "reduction": "sum"}),
    "lovasz_present": ("LovaszSoftmax", {}),
    "lovasz_all": ("LovaszSoftmax", {"classes": "all"}),
    "lovasz_present_per_image": ("LovaszSoftmax", {"per_image": True}),
    "bce": ("BCEWithLogitsLoss2d", {}),
    "bce_focal": ("BCEWithLogitsFocalLoss2d", {}),
    "bdice": ("BDiceLoss", {}),
    "dc": ("DC", {}),
    "dc_mean_over_present": ("DC", {"average": "present"}),
    "dc_ce": ("DC_CE", {}),
    "dc_ce_with_class0": ("DC_CE", {"do_bg": True}),
    "nnunet_dc_ce": ("DC_CE", {"smooth": 1e-5}),
    "topk10": ("TOPK", {"k": 10}),
    "dc_topk10": ("DC_TOPK", {"k": 10}),
    "rmi_max3": ("RMI", {"pool": "max", "stride": 3}),
    "wrmi_max3": ("wRMI", {"weight": "WEIGHTS"}),
    "rmi_avg4": ("RMI", {"pool": "avg", "stride": 4}),
    "rmi_avg2": ("RMI", {"pool": "avg", "stride": 2}),
    "rmi_interp2": ("RMI", {"pool": "interp", "stride": 2}),
    "rmi_nopool": ("RMI", {"pool": "none"}),
    "rmi_bce_only": ("RMI", {"do_rmi": False}),
    "ohem_t0.7_k100": ("OhemCrossEntropy", {"thresh": 0.7, "min_kept": 100}),
    "ohem_t0.7_k100_weighted": ("OhemCrossEntropy",
                                {"thresh": 0.7, "min_kept": 100, "weight": "WEIGHTS"}),
    "ohem_t0.2_k60": ("OhemCrossEntropy", {"thresh": 0.2, "min_kept": 60}),
    "ohem_t0.9_k100000": ("OhemCrossEntropy", {"thresh": 0.9, "min_kept": 100000}),
    "bootstrapped_K50_th0.05": ("BootstrappedCrossEntropyLoss", {"min_K": 50, "loss_th": 0.05}),
    "bootstrapped_K50_th3": ("BootstrappedCrossEntropyLoss", {"min_K": 50, "loss_th": 3}),
    "bootstrapped_K200_th1": ("BootstrappedCrossEntropyLoss", {"min_K": 200, "loss_th": 1}),
    "dice_per_image_class": ("ClassDiceLoss", {"smooth": 1}),
    "dice_per_image_class_weighted": ("ClassDiceLoss", {"smooth": 1, "weight": "WEIGHTS"}),
    "dice_batch_class_eps1e-5": ("ClassDiceLoss", {"batch": True, "smooth": 0, "eps": 1e-5}),
}


@pytest.fixture(scope="module")
def golden():
    if not GOLDEN.exists():
        pytest.skip("the golden values (../shared/losses) are missing")
    with np.load(GOLDEN) as file:
        return dict(file)


@pytest.fixture
def device_path(monkeypatch):
    """On the CPU, the losses use the code path that never reads a value from a device."""
    for name, module in list(sys.modules.items()):
        if name.startswith("utils.losses.") and hasattr(module, "reads_are_free"):
            monkeypatch.setattr(module, "reads_are_free", lambda tensor: False)


def build(name, ignore_index=255, **args):
    loss = build_loss({"type": name, "args": {**ARGS.get(name, {}), **args}}, ignore_index)
    # A loss that draws points draws the same ones in every call.
    loss.register_forward_pre_hook(lambda *_: torch.manual_seed(0) and None)
    return loss


def reads_maps(loss):
    """Whether each of the loss's outputs has a value for each labeled pixel."""
    return getattr(loss, "resize", "logits") is not None


def inputs_of(loss, images=2, size=(12, 12), dtype=torch.float32, ignore_index=255, num_classes=19):
    """(logits, targets) for a loss: random labels, a block of class 1, and two ignored rows."""
    generator = torch.Generator().manual_seed(1)
    single = getattr(loss, "channels", num_classes)
    inputs = getattr(loss, "inputs", None)
    shapes = ([(single, *size)] if inputs is None else
              [SHAPES.get(name) or (CHANNELS.get(name, num_classes), *size) for name in inputs])
    logits, targets = [], []
    for shape in shapes:
        noise = torch.randn((images, *shape), generator=generator, dtype=torch.float64)
        logits.append((2 * noise).to(dtype).requires_grad_())
    for name in getattr(loss, "targets", ("label",)):
        count = max(CHANNELS.get(name, single if inputs is None else num_classes), 2)
        target = torch.randint(0, count, (images, *size), generator=generator)
        target[:, :3, :5] = 1
        target[:, 3:5] = ignore_index
        targets.append(target)
    return logits, targets[:len(getattr(loss, "targets", ("label",)))]


def value_and_gradients(loss, logits, targets):
    for x in logits:
        x.grad = None
    value = loss(*logits, *targets)
    value.backward()
    return value.detach(), [x.grad for x in logits]


# --- the contract -----------------------------------------------------------------------------

@pytest.mark.parametrize("name", NAMES)
def test_a_loss_is_a_finite_scalar_with_a_gradient(name):
    loss = build(name)
    value, gradients = value_and_gradients(loss, *inputs_of(loss))
    assert value.shape == () and value.isfinite() and value.dtype == torch.float32
    assert all(g.isfinite().all() for g in gradients) and any(g.abs().sum() > 0 for g in gradients)
    assert loss.activation in ("softmax", "sigmoid", "scores")


@pytest.mark.parametrize("ignore_index", [255, -1])
@pytest.mark.parametrize("name", NAMES)
def test_without_a_labeled_pixel_the_value_is_finite_and_the_gradient_zero(name, ignore_index):
    loss = build(name, ignore_index)
    logits, targets = inputs_of(loss)
    targets = [torch.full_like(target, ignore_index) for target in targets]
    value, gradients = value_and_gradients(loss, logits, targets)
    assert value.isfinite() and all((g == 0).all() for g in gradients)


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_without_images_gives_a_finite_value(name):
    loss = build(name)
    logits, targets = inputs_of(loss, images=0)
    assert value_and_gradients(loss, logits, targets)[0].isfinite()


@pytest.mark.parametrize("name", NAMES)
def test_one_labeled_pixel_gives_a_finite_value_and_gradient(name):
    loss = build(name)
    logits, targets = inputs_of(loss)
    for target in targets:
        target.fill_(255)[0, 6, 6] = 1
    value, gradients = value_and_gradients(loss, logits, targets)
    assert value.isfinite() and all(g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("name", NAMES)
def test_ignored_pixels_change_neither_value_nor_gradient(name):
    loss = build(name)
    if not reads_maps(loss):
        pytest.skip("a pixel of the label has no value of its own in the outputs")
    logits, targets = inputs_of(loss)
    value, gradients = value_and_gradients(loss, logits, targets)
    ignored = targets[0] == 255
    with torch.no_grad():
        for x in logits:
            x += 5 * torch.randn(x.shape) * ignored[:, None]
    new_value, new_gradients = value_and_gradients(loss, logits, targets)
    torch.testing.assert_close(new_value, value, rtol=1e-6, atol=1e-7)
    for gradient, new_gradient in zip(gradients, new_gradients, strict=True):
        torch.testing.assert_close(new_gradient, gradient, rtol=1e-4, atol=1e-7)
        assert (gradient * ignored[:, None] == 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_does_not_change_its_inputs(name):
    loss = build(name)
    logits, targets = inputs_of(loss)
    before = [t.detach().clone() for t in (*logits, *targets)]
    value_and_gradients(loss, logits, targets)
    assert all(torch.equal(a, b.detach())
               for a, b in zip(before, (*logits, *targets), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_ignore_index_minus_one_gives_the_same_result(name):
    expected = value_and_gradients(build(name), *inputs_of(build(name)))
    loss = build(name, -1)
    found = value_and_gradients(loss, *inputs_of(loss, ignore_index=-1))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
@pytest.mark.parametrize("name", NAMES)
def test_labels_of_every_integer_dtype_give_the_same_value(name, dtype):
    loss = build(name)
    logits, targets = inputs_of(loss)
    expected = loss(*logits, *targets)
    assert torch.equal(loss(*logits, *(target.to(dtype) for target in targets)), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_logits_under_autocast_change_the_value_by_at_most_a_hundredth(name, dtype):
    loss = build(name)
    logits, targets = inputs_of(loss)
    expected = loss(*logits, *targets)
    half = [x.detach().to(dtype).requires_grad_() for x in logits]
    with torch.autocast("cpu", dtype):
        found, gradients = value_and_gradients(loss, half, targets)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected.detach(), rtol=1e-2, atol=1e-2)
    # Only the logits and their gradient are half precision; everything between is float32.
    rounded = [x.detach().float().requires_grad_() for x in half]
    exact, references = value_and_gradients(loss, rounded, targets)
    torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-6)
    for gradient, reference, x in zip(gradients, references, half, strict=True):
        assert gradient.dtype == x.dtype and gradient.isfinite().all()
        assert (gradient.float() - reference).abs().max() <= 8e-3 * reference.abs().max()


@pytest.mark.parametrize("name", NAMES)
def test_autocast_does_not_change_a_loss(name):
    loss = build(name)
    logits, targets = inputs_of(loss)
    expected = value_and_gradients(loss, logits, targets)
    with torch.autocast("cpu", torch.bfloat16):
        found = value_and_gradients(loss, logits, targets)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_is_the_derivative_of_the_value(name):
    loss = build(name)
    logits, targets = inputs_of(loss, images=2, size=(9, 10), dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *x: loss(*x, *targets), logits, fast_mode=True)


@pytest.mark.parametrize("name", NAMES)
def test_channels_last_logits_give_the_same_result(name):
    loss = build(name)
    logits, targets = inputs_of(loss)
    expected = value_and_gradients(loss, logits, targets)
    strided = [(x.detach().to(memory_format=torch.channels_last) if x.ndim == 4 else x.detach())
               .requires_grad_() for x in logits]
    found = value_and_gradients(loss, strided, targets)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_backward_can_run_twice_on_a_retained_graph(name):
    loss = build(name)
    logits, targets = inputs_of(loss)
    value = loss(*logits, *targets)
    first = torch.autograd.grad(value, logits, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(value, logits), first, rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_the_value_is_the_same_under_no_grad(name):
    loss = build(name)
    logits, targets = inputs_of(loss)
    expected = loss(*logits, *targets).detach()
    with torch.no_grad():
        torch.testing.assert_close(loss(*logits, *targets), expected)


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_on_a_device_reads_no_value_from_it(name):
    # Tensors on the meta device have no values: reading a value fails, and so does an operation
    # whose output shape depends on one.
    loss = build(name).to("meta")
    if getattr(loss, "reads_values", False):
        pytest.skip("it says that it does")
    logits, targets = inputs_of(loss)
    logits = [x.detach().to("meta").requires_grad_() for x in logits]
    value, gradients = value_and_gradients(loss, logits, [t.to("meta") for t in targets])
    assert value.shape == ()
    assert all(g.shape == x.shape for g, x in zip(gradients, logits, strict=True))


# --- golden values -----------------------------------------------------------------------------

@pytest.mark.parametrize("dtype, rtol, gradient_rtol",
                         [(torch.float64, 1e-9, 1e-6), (torch.float32, 1e-5, 1e-4)])
@pytest.mark.parametrize("name", GOLDEN_CONFIGS)
def test_values_and_gradients_equal_the_golden_ones(golden, name, dtype, rtol, gradient_rtol):
    compared = 0
    for case in map(str, golden["cases"]):
        if f"{case}/{name}/correct/value" not in golden:
            continue
        for ignore_index in (255, -1):
            value, gradient = golden_result(golden, case, name, dtype, ignore_index)
            expected = float(golden[f"{case}/{name}/correct/value"])
            assert abs(value - expected) <= rtol * abs(expected) + 1e-15, case
            if saturated_ranking(case, name):
                continue
            slope = torch.tensor(golden[f"{case}/{name}/correct/grad"]).double()
            assert (gradient - slope).abs().max() <= gradient_rtol * slope.abs().max(), case
            compared += 1
    assert compared >= 12


@pytest.mark.parametrize("name", [name for name in GOLDEN_CONFIGS if name.startswith(
    ("lovasz", "ohem", "bootstrapped", "topk", "dc_topk", "rmi", "wrmi"))])
def test_the_path_for_devices_gives_the_golden_values(golden, name, device_path):
    for case in map(str, golden["cases"]):
        value, gradient = golden_result(golden, case, name, torch.float64)
        expected = float(golden[f"{case}/{name}/correct/value"])
        assert abs(value - expected) <= 1e-9 * abs(expected) + 1e-15, case
        if not saturated_ranking(case, name):
            slope = torch.tensor(golden[f"{case}/{name}/correct/grad"]).double()
            assert (gradient - slope).abs().max() <= 1e-6 * slope.abs().max(), case


def golden_result(golden, case, name, dtype, ignore_index=255):
    """(value, gradient) of a golden configuration on the inputs of a golden case."""
    kind, args = GOLDEN_CONFIGS[name]
    weights = golden[f"{case}/class_weights"].tolist()
    args = {key: weights if arg == "WEIGHTS" else arg for key, arg in args.items()}
    logits = torch.tensor(golden[f"{case}/logits"], dtype=dtype).requires_grad_()
    target = torch.tensor(golden[f"{case}/target"]).long()
    target = target.masked_fill(target == 255, ignore_index)
    value = build_loss({"type": kind, "args": args}, ignore_index)(logits, target)
    value.backward()
    return value.item(), logits.grad.double()


def saturated_ranking(case, name):
    """Whether errors are tied, so that the Lovász gradient depends on the order of the sort."""
    return case == "extreme5" and name.startswith("lovasz")


def test_nnunet_top_k_with_dice_equals_the_published_value_if_nothing_is_ignored(golden):
    logits = torch.tensor(golden["full5/logits"]).double()
    value = build_loss({"type": "DC_TOPK", "args": {"smooth": 1e-5}})(
        logits, torch.tensor(golden["full5/target"]))
    expected = float(golden["full5/nnunet_dc_topk10/reference/value"])
    assert value.item() == pytest.approx(expected, rel=1e-9)


def test_segfix_loss_and_targets_equal_the_golden_ones(golden):
    def field(name):
        return torch.tensor(golden[f"extra/segfix/{name}"])
    boundary, direction = segfix_targets(field("seg_label"), field("distance"), field("angle"),
                                         ignore_index=-1)
    assert torch.equal(boundary, field("gt_mask").long())
    assert torch.equal(direction, field("gt_direction").long())
    mask = field("mask_logits").double().requires_grad_()
    way = field("direction_logits").double().requires_grad_()
    loss = build_loss("SegFixLoss", -1)
    value = loss(mask, way, boundary, direction)
    value.backward()
    assert value.item() == pytest.approx(float(field("value")), rel=1e-9)
    assert loss.last_parts["mask"].item() == pytest.approx(float(field("mask_loss")), rel=1e-9)
    torch.testing.assert_close(mask.grad, field("grad_mask").double(), rtol=0, atol=1e-8)
    torch.testing.assert_close(way.grad, field("grad_direction").double(), rtol=0, atol=1e-8)


# --- probes: the value and gradient norm of each golden configuration -----------------------------

PROBES = {
    "ce": (2.64708708209, 1.53043067775),
    "ce_sum": (730.596034657, 422.398867059),
    "ce_weighted": (2.62867036675, 1.51982002377),
    "dice_flat": (0.763831586001, 0.192712018104),
    "dice_flat_smooth0.1": (0.765076738016, 0.193026165571),
    "ce_dice": (3.41091866809, 1.72314269585),
    "logcosh_dice": (0.267107948188, 0.123977095412),
    "focal_g0": (2.64708708209, 1.53043067775),
    "focal_g2": (2.34480400089, 1.60397149294),
    "focal_g3.5": (2.20638024105, 1.60525470396),
    "focal_g2_alpha": (2.34407570735, 1.60177484812),
    "focal_g2_sum": (647.165904245, 442.696132051),
    "lovasz_present": (0.809900262461, 0.173212099255),
    "lovasz_all": (0.854817341625, 0.135070264138),
    "lovasz_present_per_image": (0.809929326087, 0.173123030078),
    "bce": (1.14647829226, 0.5043915743),
    "bce_focal": (0.825901818374, 0.494677596427),
    "bdice": (0.669001113277, 0.110600808609),
    "dc": (0.548657733362, 0.165353326968),
    "dc_mean_over_present": (0.731543644482, 0.220471102624),
    "dc_ce": (2.459382243, 1.6709604864),
    "dc_ce_with_class0": (2.44574481545, 1.68893637602),
    "nnunet_dc_ce": (2.45938216457, 1.6709604886),
    "topk10": (5.92076004115, 1.99431724053),
    "dc_topk10": (5.73305520206, 2.14505127501),
    "rmi_max3": (-3.36097075456, 2.41846351725),
    "wrmi_max3": (-5.15609136267, 2.40792545469),
    "rmi_avg4": (-5.08964228088, 1.04281061095),
    "rmi_avg2": (-0.399705628529, 1.53840214975),
    "rmi_interp2": (-2.22941609782, 1.23343462582),
    "rmi_nopool": (2.1139154642, 1.08182591889),
    "rmi_bce_only": (4.56935752584, 2.01028266436),
    "ohem_t0.7_k100": (2.94350017689, 1.68427092907),
    "ohem_t0.7_k100_weighted": (2.93842929733, 1.68068668047),
    "ohem_t0.2_k60": (3.80094778175, 1.90310410957),
    "ohem_t0.9_k100000": (2.64708708209, 1.53043067775),
    "bootstrapped_K50_th0.05": (2.76605609858, 1.59733712742),
    "bootstrapped_K50_th3": (4.59498938266, 1.96874383763),
    "bootstrapped_K200_th1": (2.64708708209, 1.53043067775),
    "dice_per_image_class": (0.784916059198, 0.162748664149),
    "dice_per_image_class_weighted": (1.02232672999, 0.164111428843),
    "dice_batch_class_eps1e-5": (0.798657745884, 0.165353316548),
}


def probe(name):
    """(value, sum of |gradient|) on waves (2, 4, 12, 13) with an absent class, ignored pixels."""
    kind, args = GOLDEN_CONFIGS[name]
    args = {key: [0.5, 1.0, 1.5, 2.0] if arg == "WEIGHTS" else arg for key, arg in args.items()}
    place = torch.arange(2 * 4 * 12 * 13, dtype=torch.float64)
    logits = (3 * torch.sin(place * 1.7 + place ** 2 * 0.003)).view(2, 4, 12, 13).requires_grad_()
    spot = torch.arange(2 * 12 * 13).view(2, 12, 13)
    target = (spot // 7 * 5 + spot // 31) % 3
    target[:, 4:6, :9] = 255
    value = build_loss({"type": kind, "args": args})(logits, target)
    value.backward()
    return value.item(), logits.grad.abs().sum().item()


@pytest.mark.parametrize("name", GOLDEN_CONFIGS)
def test_values_and_gradients_equal_the_probes(name):
    assert probe(name) == pytest.approx(PROBES[name], rel=1e-8)


@pytest.mark.parametrize("name", GOLDEN_CONFIGS)
def test_the_path_for_devices_gives_the_probes(name, device_path):
    assert probe(name) == pytest.approx(PROBES[name], rel=1e-8)


# --- known values --------------------------------------------------------------------------------

def test_cross_entropy_of_equal_logits_is_the_logarithm_of_the_number_of_classes():
    logits = torch.zeros(1, 7, 3, 3, dtype=torch.float64)
    loss = build_loss("CE")(logits, torch.ones(1, 3, 3).long())
    assert loss.item() == pytest.approx(np.log(7), rel=1e-15)


@pytest.mark.parametrize("num_classes", [2, 32, 33, 150])
def test_cross_entropy_equals_torch_for_few_and_for_many_classes(num_classes):
    logits, (target,) = inputs_of(build("CE"), num_classes=num_classes)
    found, (gradient,) = value_and_gradients(build("CE"), logits, [target])
    expected = torch.nn.functional.cross_entropy(logits[0], target, ignore_index=255)
    slope, = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient, slope, rtol=1e-4, atol=1e-8)


def test_a_logit_of_minus_infinity_gives_a_finite_value_and_gradient():
    logits, (target,) = inputs_of(build("CE"))
    with torch.no_grad():
        logits[0][:, 0] = -torch.inf
    target[target == 0] = 1
    value, (gradient,) = value_and_gradients(build("CE"), logits, [target])
    assert value.isfinite() and gradient.isfinite().all() and (gradient[:, 0] == 0).all()


def test_the_weighted_mean_divides_by_the_summed_weights():
    logits = torch.randn(1, 2, 1, 3, dtype=torch.float64)
    target = torch.tensor([[[0, 1, 255]]])
    each = torch.nn.functional.cross_entropy(logits, target, ignore_index=255, reduction="none")
    loss = build_loss({"type": "CE", "args": {"weight": [1, 3]}})(logits, target)
    assert loss.item() == pytest.approx((each[0, 0, 0] + 3 * each[0, 0, 1]).item() / 4, rel=1e-12)


def test_lovasz_of_hard_predictions_is_one_minus_the_mean_iou():
    prediction = torch.tensor([[[0, 0, 1, 1, 2, 2]]])
    target = torch.tensor([[[0, 1, 1, 1, 2, 0]]])
    logits = 1e4 * torch.nn.functional.one_hot(prediction, 4).permute(0, 3, 1, 2).double()
    loss = build_loss("LovaszSoftmax")(logits, target)
    assert loss.item() == pytest.approx(1 - (1 / 3 + 2 / 3 + 1 / 2) / 3, rel=1e-12)


def test_the_lovasz_loss_of_an_absent_class_is_its_largest_probability():
    logits = torch.tensor([[[[0.0, 0.0]], [[0.0, np.log(3)]]]], dtype=torch.float64)
    loss = build_loss({"type": "LovaszSoftmax", "args": {"classes": [1]}})(
        logits, torch.zeros(1, 1, 2).long())
    assert loss.item() == pytest.approx(0.75, rel=1e-12)


@pytest.mark.parametrize("confident", [False, True])
def test_lovasz_equals_its_definition_which_sorts_every_error(confident):
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 5, 20, 20, generator=generator)
    target = torch.randint(0, 4, (2, 20, 20), generator=generator)
    if confident:
        logits.scatter_add_(1, target[:, None], torch.full_like(logits[:, :1], 8))
    logits.requires_grad_()
    value = build_loss("LovaszSoftmax")(logits, target)
    gradient, = torch.autograd.grad(value, logits)
    expected = plain_lovasz(logits, target)
    slope, = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient, slope, rtol=0, atol=1e-4 * slope.abs().max().item())


def plain_lovasz(logits, target):
    """The definition: for each class, all sorted errors times differences of the Jaccard loss."""
    losses = []
    for c in target.unique():
        in_class = (target == c).double().flatten()
        p = logits.double().softmax(1)[:, c].flatten()
        errors, order = (in_class - p).abs().sort(descending=True)
        in_class = in_class[order]
        hits, misses = in_class.cumsum(0), (1 - in_class).cumsum(0)
        jaccard = 1 - (in_class.sum() - hits) / (in_class.sum() + misses)
        losses.append((errors * jaccard.diff(prepend=jaccard.new_zeros(1))).sum())
    return torch.stack(losses).mean().float()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("num_classes", [2, 33])
def test_label_smoothing_equals_torch(num_classes, weighted, reduction):
    weight = torch.linspace(0.5, 2, num_classes, dtype=torch.float64) if weighted else None
    args = {"label_smoothing": 0.2, "reduction": reduction} | (
        {"weight": weight.tolist()} if weighted else {})
    loss = build("CE", **args)
    logits, (target,) = inputs_of(loss, num_classes=num_classes, dtype=torch.float64)
    found, (gradient,) = value_and_gradients(loss, logits, [target])
    expected = torch.nn.functional.cross_entropy(logits[0], target, weight, ignore_index=255,
                                                 reduction=reduction, label_smoothing=0.2)
    slope, = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, slope, rtol=1e-9, atol=1e-15)
    assert (gradient[:, :, 3:5] == 0).all()
    if not weighted:
        dice = build("DiceLoss")(logits[0], target)
        both = build("CE_DiceLoss", **args)(logits[0], target)
        torch.testing.assert_close(both, expected + dice, rtol=1e-12, atol=0)


def test_label_smoothing_of_logits_with_a_large_common_part_keeps_its_digits():
    loss = build("CE", label_smoothing=0.1)
    logits, (target,) = inputs_of(loss)
    torch.testing.assert_close(loss(logits[0] + 1e4, target), loss(logits[0], target),
                               rtol=1e-3, atol=0)
    assert loss(torch.zeros(1, 7, 3, 3), torch.ones(1, 3, 3).long()).item() \
        == pytest.approx(np.log(7), rel=1e-6)


@pytest.mark.parametrize("share", [1, -0.1, 2])
def test_a_label_smoothing_out_of_range_is_refused(share):
    for name in ("CE", "wCE", "CE_DiceLoss"):
        with pytest.raises(ConfigError, match="label_smoothing must be in"):
            build(name, label_smoothing=share)


TVERSKY = [
    {}, {"alpha": 0.3, "beta": 0.7}, {"alpha": 1, "beta": 1}, {"batch": False},
    {"alpha": 0.3, "beta": 0.7, "gamma": 4 / 3}, {"average": "all", "smooth": 1},
    {"average": "all", "smooth": 1, "batch": False, "gamma": 2},
    {"weight": [0, 1, 2, 3, 0.5]}, {"activation": "sigmoid", "alpha": 0.2, "beta": 0.8},
    {"activation": "sigmoid", "batch": False, "average": "all", "smooth": 0.5}]


def plain_tversky(logits, target, alpha=0.5, beta=0.5, gamma=1.0, smooth=0.0, batch=True,
                  average="present", weight=None, activation="softmax"):
    """The definition with loops, in NumPy."""
    images, classes = logits.shape[:2]
    e = np.exp(logits)
    p = e / e.sum(1, keepdims=True) if activation == "softmax" else e / (1 + e)
    values = []
    for part in [range(images)] if batch else [[i] for i in range(images)]:
        total = count = 0
        for c in range(classes):
            true = false = missed = 0.0
            for i in part:
                seen = target[i] != 255
                of_class = target[i] == c
                true += p[i, c][of_class].sum()
                false += p[i, c][seen & ~of_class].sum()
                missed += (1 - p[i, c][of_class]).sum()
            if average == "all" or any((target[i] == c).any() for i in part):
                index = (true + smooth) / (true + alpha * false + beta * missed + smooth)
                total += (1 if weight is None else weight[c]) * (1 - index) ** (1 / gamma)
                count += 1
        values.append(total / count)
    return np.mean(values)


@pytest.mark.parametrize("args", TVERSKY, ids=str)
def test_tversky_equals_its_definition(args):
    loss = build("TverskyLoss", **args)
    logits, (target,) = inputs_of(loss, num_classes=5, size=(7, 6), dtype=torch.float64)
    target[target == 4] = 2                     # class 4 is absent
    found = loss(logits[0], target)
    expected = plain_tversky(logits[0].detach().numpy(), target.numpy(), **args)
    assert found.item() == pytest.approx(expected, rel=1e-12)
    assert torch.autograd.gradcheck(lambda x: loss(x, target), logits, fast_mode=True)


@pytest.mark.parametrize("args", [{}, {"batch": False}, {"average": "all", "smooth": 1.0},
                                  {"activation": "sigmoid"}])
def test_jaccard_is_the_soft_iou_and_that_of_hard_predictions_one_minus_the_iou(args):
    loss = build("JaccardLoss", **args)
    logits, (target,) = inputs_of(loss, num_classes=5, dtype=torch.float64)
    assert loss(logits[0], target).item() == pytest.approx(
        plain_tversky(logits[0].detach().numpy(), target.numpy(), 1, 1, **args), rel=1e-12)
    hard = torch.tensor([[[[1, 1, 0, 0]], [[0, 0, 1, 1]]]]) * 200.0 - 100
    target = torch.tensor([[[0, 1, 1, 255]]])
    assert build("JaccardLoss")(hard, target).item() == pytest.approx(0.5)


def test_tversky_of_one_half_is_the_dice_loss_and_beta_weighs_missed_pixels():
    logits, (target,) = inputs_of(build("DC"), dtype=torch.float64)
    assert build("TverskyLoss")(logits[0], target).item() == pytest.approx(
        build("DC", average="present")(logits[0], target).item(), rel=1e-12)
    missing = torch.tensor([[[[9.0, 9, 9, 9]], [[-9, -9, -9, 9]]]])     # class 1 found once of two
    target = torch.tensor([[[0, 0, 1, 1]]])
    few, many = (build("TverskyLoss", alpha=1 - beta, beta=beta, weight=[0, 1])(missing, target)
                 for beta in (0.1, 0.9))
    assert many > few


def test_ohem_keeps_only_the_pixels_below_the_threshold():
    logits = torch.zeros(1, 2, 1, 5, dtype=torch.float64)
    logits[0, 1, 0] = torch.tensor([0.1, 0.5, 1.0, 2.0, 3.0])
    target = torch.ones(1, 1, 5).long()
    each = torch.nn.functional.softplus(-logits[0, 1, 0])
    kept = each[:3].mean().item()               # p = 0.52, 0.62, 0.73 | 0.88, 0.95
    loss = build_loss({"type": "OhemCrossEntropy", "args": {"thresh": 0.75, "min_kept": 1}})
    assert loss(logits, target).item() == pytest.approx(kept, rel=1e-12)
    loss = build_loss({"type": "OhemCrossEntropy", "args": {"thresh": 0.55, "min_kept": 3}})
    assert loss(logits, target).item() == pytest.approx(kept, rel=1e-12)


def test_top_k_percent_counts_labeled_pixels_only():
    logits = torch.zeros(1, 2, 1, 20, dtype=torch.float64)
    logits[0, 0, 0] = torch.linspace(-1, 1, 20)
    target = torch.zeros(1, 1, 20).long()
    target[..., 10:] = 255
    each = torch.nn.functional.softplus(-logits[0, 0, 0, :10])
    loss = build_loss({"type": "TOPK", "args": {"k": 20}})(logits, target)
    assert loss.item() == pytest.approx(each.topk(2).values.mean().item(), rel=1e-12)


def test_focal_with_a_small_exponent_has_a_finite_gradient_at_probability_one():
    logits = torch.tensor([[[[200.0]], [[0.0]]]], requires_grad=True)
    build_loss({"type": "FocalLoss", "args": {"gamma": 0.5}})(
        logits, torch.zeros(1, 1, 1).long()).backward()
    assert logits.grad.isfinite().all()


def test_binary_losses_are_exact_for_large_logits():
    logits = torch.tensor([[[[-30.0, 40.0]]]], requires_grad=True)
    value = build_loss("BCEWithLogitsLoss2d")(logits, torch.zeros(1, 1, 2).long())
    assert value.item() == pytest.approx((30 + 4e-18) / 2, rel=1e-6)
    wrong = build_loss("BCEWithLogitsFocalLoss2d")(logits, torch.zeros(1, 1, 2).long())
    assert wrong.item() == pytest.approx(15, rel=1e-6)


def test_rmi_of_confident_predictions_is_finite_on_large_regions():
    target = torch.zeros(1, 96, 96).long()
    target[:, 30:, 40:] = 1
    logits = (40.0 * torch.nn.functional.one_hot(target, 2).permute(0, 3, 1, 2).float() - 20)
    value, (gradient,) = value_and_gradients(build("RMI"), [logits.requires_grad_()], [target])
    assert value.isfinite() and gradient.isfinite().all()


def test_dice_sums_over_a_million_pixels_keep_their_digits():
    target = torch.zeros(1, 1024, 1024, dtype=torch.uint8)
    logits = torch.zeros(1, 2, 1024, 1024, dtype=torch.bfloat16)
    # p = 1/2 everywhere: I = 2^19, P = 2^19, Y = 2^20
    loss = build_loss({"type": "DC", "args": {"average": "present"}})(logits, target)
    assert loss.item() == pytest.approx(1 - 2 / 3, rel=1e-6)


def test_a_mixed_loss_is_a_weighted_sum_and_keeps_its_parts():
    logits, target = torch.randn(1, 3, 4, 4), torch.randint(0, 3, (1, 4, 4))
    loss = build_loss({"type": "MixedLoss", "args": {"losses": [
        {"type": "CE"}, {"type": "DC", "args": {"average": "present"}, "weight": 0.25}]}})
    dc = build_loss({"type": "DC", "args": {"average": "present"}})(logits, target)
    ce = build_loss("CE")(logits, target)
    torch.testing.assert_close(loss(logits, target), ce + 0.25 * dc)
    assert loss.last_parts.keys() == {"CE", "DC"} and torch.equal(loss.last_parts["CE"], ce)


def test_a_mixed_loss_keeps_the_parts_of_its_losses():
    loss = build_loss({"type": "MixedLoss", "args": {"losses": ["CE", "RMI"]}})
    loss(torch.randn(1, 3, 16, 16), torch.randint(0, 3, (1, 16, 16)))
    assert loss.last_parts.keys() == {"CE", "RMI", "RMI.bce", "RMI.rmi"}


def test_segfix_without_a_predicted_boundary_has_no_direction_loss():
    loss = build_loss("SegFixLoss")
    mask = torch.zeros(1, 2, 4, 4)
    mask[:, 0] = 5
    way = torch.randn(1, 8, 4, 4, requires_grad=True)
    target = torch.ones(1, 4, 4).long()
    value = loss(mask, way, target, target)
    value.backward()
    assert value.isfinite() and loss.last_parts["direction"] == 0 and (way.grad == 0).all()


@pytest.mark.slow      # two processes that import torch
def test_synchronized_dice_on_two_ranks_equals_the_whole_batch(tmp_path):
    on_ranks(_rank_of_dice, 2, tmp_path / "gradients.pt")
    loss = build_loss({"type": "DC_CE", "args": {"sync": True, "weight_ce": 0}})
    logits, (target,) = inputs_of(loss)
    value, (gradient,) = value_and_gradients(loss, logits, [target])
    found = torch.load(tmp_path / "gradients.pt")
    torch.testing.assert_close(found["value"], value)
    torch.testing.assert_close(found["gradient"], gradient, rtol=1e-4, atol=1e-8)


def _rank_of_dice(rank, world, path):
    """Saves the value, and the gradient of all ranks' images, of a loss over the ranks."""
    loss = build_loss({"type": "DC_CE", "args": {"sync": True, "weight_ce": 0}})
    logits, (target,) = inputs_of(loss)
    image = logits[0].detach()[rank:rank + 1].requires_grad_()
    value = loss(image, target[rank:rank + 1])
    value.backward()
    # DistributedDataParallel divides the sum of the gradients by the number of ranks.
    parts = [torch.empty_like(image) for _ in range(world)]
    torch.distributed.all_gather(parts, image.grad / world)
    if rank == 0:
        torch.save({"value": value.detach(), "gradient": torch.cat(parts)}, path)


# --- names, arguments, warnings ------------------------------------------------------------------

@pytest.mark.parametrize("section, text", [
    ("CrossEntropyLoss", "Did you mean 'CrossEntropyLoss2d'"),
    ({"type": "FocalLoss", "args": {"gama": 2}}, "Did you mean 'gamma'"),
    ({"type": "CE", "args": {"ignore_index": 3}}, "top level"),
    ({"type": "CE", "arg": {}}, "Did you mean 'args'"),
    ({"type": "MixedLoss"}, "needs the argument 'losses'"),
    ({"type": "TOPK", "args": {"k": 0}}, "percentage"),
    ({"type": "TverskyLoss", "args": {"alpha": 0, "beta": 0}}, "both 0"),
    ({"type": "TverskyLoss", "args": {"gamma": 0.5}}, "gamma must be at least 1"),
    ({"type": "JaccardLoss", "args": {"smooth": -1}}, "smooth not negative"),
    ({"type": "MixedLoss", "args": {"losses": [{"type": "Ce2"}]}}, "losses[0].type"),
    ({"args": {}}, "expected a name"),
    ({"type": "CE", "args": {"weight": "tabel"}}, "unknown class weights"),
    ({"type": "MixedLoss", "args": {"losses": [{"type": "CE", "weight": 0}]}}, "learn nothing"),
    ({"type": "DC_CE", "args": {"weight_ce": 0, "weight_dice": 0}}, "learn nothing"),
    ({"type": "SegFixLoss", "args": {"mask_weight": 0, "direction_weight": 0}}, "learn nothing"),
])
def test_invalid_sections_raise_config_errors_with_their_position(section, text):
    with pytest.raises(ConfigError, match=re.escape(text)):
        build_loss(section)


def test_lovasz_refuses_a_class_that_does_not_exist():
    for classes in ([19], [-1], [0, 1.5]):
        loss = build("LovaszSoftmax", classes=classes)
        with pytest.raises(ConfigError, match="classes from 0 to 18, found"):
            loss(*sum(inputs_of(loss), []))


def test_rmi_on_a_crop_that_is_too_small_says_which_setting_to_change():
    loss = build("RMI")
    with pytest.raises(ConfigError, match="3x3 pixels after pooling, found(.|\n)*larger crops"):
        loss(*sum(inputs_of(loss, size=(5, 5)), []))


@pytest.mark.parametrize("name, others", [("CrossEntropyLoss2d", ["CE"]), ("wCE", ["weighted_ce"]),
                                          ("OhemCrossEntropy", ["fs_ohemce"])])
def test_aliases_name_the_same_class(name, others):
    assert all(LOSSES[other] is LOSSES[name] for other in others)


def test_warnings_are_printed_once(capfd):
    from utils.losses.warning import warn_once
    warn_once.cache_clear()
    for _ in range(2):
        build("DiceLoss"), build("RMI"), build("BCEWithLogitsLoss2d"), build("DC_CE")
    messages = capfd.readouterr().err
    for text in ("does not balance classes", "do not compare them", "not calibrated",
                 "leaves class 0 out"):
        assert text in messages
    assert messages.count("does not balance classes") == 1


def test_a_detached_focal_factor_scales_the_gradient_of_cross_entropy():
    torch.manual_seed(0)
    logits, target = torch.randn(1, 3, 4, 5, requires_grad=True), torch.randint(0, 3, (1, 4, 5))
    plain, detached = FocalLoss(gamma=2.0), FocalLoss(gamma=2.0, detach=True)
    assert torch.equal(plain(logits, target), detached(logits, target))
    detached(logits, target).backward()
    probs = logits.detach().softmax(1)
    factor = (1 - probs.gather(1, target[:, None])) ** 2
    one_hot = F.one_hot(target, 3).movedim(-1, 1)
    torch.testing.assert_close(logits.grad, (probs - one_hot) * factor / 20)
    with pytest.raises(ValueError, match="detach has no effect with gamma 0"):
        FocalLoss(gamma=0, detach=True)
