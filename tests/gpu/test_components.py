"""Losses, rules, metrics, batch transforms and networks give on a GPU what they give on a CPU.

float32 sums in another order differ by some units of the last digit, so numbers are compared with a
tolerance, and labels by the share of pixels that agree. What only counts or copies must be equal.
"""
import pytest
import torch

from dataloader.augmentation.batch_transforms import CopyBlob, CutMix
from tests.dataloader.test_batch_transforms import batch as made_batch
from tests.decision.test_rankdice import smooth_map
from tests.gpu.support import no_waiting, share_equal
from tests.losses.test_losses import NAMES, build, inputs_of, value_and_gradients
from tests.models.test_models import ARCHITECTURES, construct
from utils.decision.rankdice import rank_dice
from utils.decision.rules import RULES, build_decision
from utils.export.graph import unpools
from utils.machine.seeding import seed_everything
from utils.metrics import DatasetMetrics, ImageMetrics

pytestmark = pytest.mark.gpu

CLASSES = 5
PIXELS = 0.9999     # the share of pixels that must have the same label


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_has_its_value_and_gradient(name, device):
    loss = build(name)
    logits, targets = inputs_of(loss, size=(33, 40))
    expected, slopes = value_and_gradients(loss, logits, targets)
    loss = build(name).to(device)
    moved = [x.detach().to(device).requires_grad_() for x in logits]
    value, gradients = value_and_gradients(loss, moved, [t.to(device) for t in targets])
    torch.testing.assert_close(value.cpu(), expected, rtol=1e-5, atol=1e-6)
    for gradient, slope in zip(gradients, slopes, strict=True):
        largest = slope.abs().max().item()
        torch.testing.assert_close(gradient.cpu(), slope, rtol=1e-3, atol=1e-5 * largest)


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_does_not_wait_for_the_device(name, cuda):
    loss = build(name).to(cuda)
    logits, targets = inputs_of(loss)
    logits = [x.detach().to(cuda).requires_grad_() for x in logits]
    targets = [t.to(cuda) for t in targets]
    value_and_gradients(loss, logits, targets)
    with no_waiting():
        value_and_gradients(loss, logits, targets)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("name", RULES)
def test_a_rule_decides_the_same(name, activation, device):
    logits = torch.logit(smooth_map(2, CLASSES).clamp(1e-6, 1 - 1e-6))
    rule = build_decision(name, activation, {"threshold": [0.1, 0.2, 0.3, 0.4, 0.5],
                                             "temperature": 1.3})
    assert share_equal(rule(logits.to(device)), rule(logits)) > PIXELS
    assert share_equal(rule.labels(logits.to(device)), rule.labels(logits)) > PIXELS


@pytest.mark.parametrize("name", RULES)
def test_a_rule_does_not_wait_for_the_device(name, cuda):
    rule = build_decision(name, options={"threshold": [0.1, 0.2, 0.3, 0.4, 0.5]})
    logits = smooth_map(2, CLASSES).to(cuda)
    rule(logits)
    rule.labels(logits)
    with no_waiting():
        rule(logits)
        rule.labels(logits)


def test_the_offsets_rule_decides_the_same(device):
    logits = torch.randn(2, 10, 33, 47, generator=torch.Generator().manual_seed(0))
    rule = build_decision("offsets")
    assert torch.equal(rule(logits.to(device)).cpu(), rule(logits))


@pytest.mark.parametrize("solver", ["auto", "rma"])
@pytest.mark.parametrize("metric", ["dice", "iou"])
def test_rankdice_gives_the_same_masks_and_labels(metric, solver, device):
    probs = smooth_map(2, CLASSES)
    for overlap in (True, False):
        found = rank_dice(probs.to(device), metric=metric, solver=solver, overlap=overlap)
        expected = rank_dice(probs, metric=metric, solver=solver, overlap=overlap)
        assert share_equal(found, expected) > PIXELS


@pytest.mark.parametrize("kind", [DatasetMetrics, ImageMetrics])
@pytest.mark.parametrize("masks", [False, True], ids=["labels", "masks"])
def test_metrics_are_equal(kind, masks, device):
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, CLASSES, (3, 37, 41), generator=generator).to(torch.uint8)
    target[:, :4] = 255
    prediction = torch.rand(3, CLASSES, 37, 41, generator=generator) > 0.6 if masks else \
        torch.randint(0, CLASSES, (3, 37, 41), generator=generator).to(torch.uint8)
    here, there = kind(CLASSES), kind(CLASSES)
    here.update(prediction, target)
    there.update(prediction.to(device), target.to(device))
    assert str(there.compute()) == str(here.compute())


@pytest.mark.parametrize("kind", [DatasetMetrics, ImageMetrics])
def test_metrics_do_not_wait_for_the_device(kind, cuda):
    prediction, target = torch.randint(0, CLASSES, (2, 2, 9, 11), device=cuda)
    masks, metric = torch.rand(2, CLASSES, 9, 11, device=cuda) > 0.5, kind(CLASSES)
    with no_waiting():
        metric.update(prediction, target)
        metric.update(masks, target)


@pytest.mark.parametrize("transform", [CutMix(), CopyBlob(((3, 1), (4, 1), (5, 0)))],
                         ids=["CutMix", "CopyBlob"])
def test_a_batch_transform_moves_the_same_pixels(transform, device):
    batch = made_batch()
    moved = {key: value.to(device) if isinstance(value, torch.Tensor) else value
             for key, value in batch.items()}
    seed_everything(7)
    expected = transform(batch)
    seed_everything(7)
    found = transform(moved)
    for key in ("image", "label"):
        assert torch.equal(found[key].cpu(), expected[key])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_network_has_its_outputs_and_gradients(name, device):
    """ENet and SegNet unpool to the positions of maxima, where rounding decides between equals."""
    model, _ = construct(name)
    images = torch.randn(2, 3, 65, 97, generator=torch.Generator().manual_seed(0))
    jumps = unpools(model.eval())
    with torch.no_grad():
        expected = model(images)
    slopes = _gradients(model, images)
    model.to(device).eval()
    with torch.no_grad():
        found = model(images.to(device)).cpu()
    off = (found - expected).abs() > 1e-3 * expected.std()
    assert off.float().mean() <= (0.02 if jumps else 0)
    if not jumps:
        gradients = _gradients(model, images.to(device))
        for key, slope in slopes.items():
            assert (gradients[key] - slope).norm() <= 0.02 * slope.norm() + 1e-6, key


def _gradients(model, images):
    """name -> gradient of a sum of the outputs in training mode, without dropout, on the CPU."""
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.modules.dropout._DropoutNd):
            module.eval()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    outputs = model(images)
    sum((value * torch.linspace(0.5, 1.5, value.numel(), device=value.device).view_as(value)).mean()
        for value in outputs.values()).backward()
    gradients = {key: p.grad.cpu() for key, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    model.load_state_dict(state)        # the running statistics of the norms
    return gradients
