"""The loss of mask classification: against the original, and against brute force."""
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.support.made_up import PARITY, fill, needs_goldens, published_manifest
from tests.support.ranks import on_ranks
from utils.losses.mask_classification import MaskClassificationLoss, Targets, counts, sample
from utils.training.criterion import Criterion

NAME = "eomt_small"
IMAGE = torch.zeros(1, dtype=torch.long)


def outputs(images=2, predictions=2, queries=5, size=(6, 8), classes=3, seed=0):
    """(masks, classes) of a network, random."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.randn(images, predictions, queries, *size, generator=generator)
    return (3 * masks).requires_grad_(), torch.randn(
        images, predictions, queries, classes + 1, generator=generator).requires_grad_()


def labels(images=2, size=(24, 32), classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, classes, (images, 3, 4), generator=generator)
    return coarse.repeat_interleave(size[0] // 3, 1).repeat_interleave(size[1] // 4, 2)


def value(loss, *inputs, seed=0):
    torch.manual_seed(seed)
    return loss(*inputs)


def golden_target(spec):
    """(Targets, class ids) of golden_loss: pixels of no mask count, and belong to no class."""
    count, = spec["target"]["counts"]
    generator = fill().generator(spec["seed"], "target0")
    ids = np.sort(generator.choice(150, count, replace=False))
    coarse = generator.integers(0, count + 1, (12, 12))
    index = np.append(ids, -1)[coarse.repeat(8, 0).repeat(8, 1)]
    index = torch.from_numpy(index)[None]
    return Targets(index, torch.ones_like(index, dtype=torch.bool), [ids.tolist()]), ids


@needs_goldens
def test_matching_losses_and_gradients_equal_those_of_the_original(monkeypatch):
    spec = published_manifest(NAME)["loss"]
    stored, golden = (np.load(PARITY / NAME / f"{part}.npz") for part in ("golden", "golden_loss"))
    targets, ids = golden_target(spec)
    assert (golden["labels0"] == ids).all()
    assert (golden["masks0_every8th"] == [targets.index[0, ::8, ::8] == k for k in ids]).all()
    calls = itertools.count()
    shapes = iter(spec["points"]["shapes_in_order"])

    def drawn(shape, **_):
        assert list(shape) == next(shapes)
        values = fill().generator(spec["seed"], f"rand{next(calls)}").random(tuple(shape))
        return torch.from_numpy(values.astype(np.float32))
    monkeypatch.setattr(torch, "rand", drawn)
    classes = torch.from_numpy(stored["class_logits"])[:, None].requires_grad_()
    masks = torch.from_numpy(stored["mask_logits"])[:, None].requires_grad_()
    loss, costs, pairs = MaskClassificationLoss(), [], []
    for name, found in (("costs", costs), ("_match", pairs)):
        own = getattr(loss, name)
        monkeypatch.setattr(loss, name,
                            lambda *a, own=own, found=found: found.append(own(*a)) or found[-1])
    total = loss.of_targets(masks, classes, targets)
    total.backward()
    assert np.abs(costs[0].numpy() - golden["cost0"]).max() < 1e-4
    matched, = pairs[0]
    order = np.argsort(golden["match0_query"])
    assert matched.query.tolist() == golden["match0_query"][order].tolist()
    assert matched.klass.tolist() == ids[golden["match0_target"][order]].tolist()
    for ours, theirs in (("class", "cross_entropy"), ("mask", "mask"), ("dice", "dice")):
        expected = float(golden[f"loss_{theirs}"])
        assert abs(float(loss.last_parts[ours]) - expected) < 1e-5 * max(1, expected), ours
    assert abs(total.item() - float(golden["total"])) < 1e-5 * float(golden["total"])
    for found, key, part in ((classes, "grad_class_logits", ...),
                             (masks, "grad_mask_logits", (..., slice(0, None, 2),
                                                          slice(0, None, 2)))):
        assert found.grad is not None
        expected = torch.from_numpy(golden[key])
        assert (found.grad[:, 0][part] - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("seed", range(4))
def test_the_matching_is_the_best_of_all_assignments(seed):
    loss = MaskClassificationLoss(points=300)
    masks, classes = outputs(1, 1, seed=seed)
    target = labels(1, seed=seed)
    targets = Targets(target, target >= 0, [target.unique().tolist()])
    torch.manual_seed(seed)
    cost = loss.costs(masks[0, 0].detach(), classes[0, 0].detach(), targets, 0)
    torch.manual_seed(seed)
    pairs, = loss._match(masks.detach(), classes.detach(), targets)
    columns = [targets.present[0].index(k) for k in pairs.klass.tolist()]
    found = cost[pairs.query, columns].sum()
    every = [cost[list(order), range(cost.shape[1])].sum()
             for order in itertools.permutations(range(cost.shape[0]), cost.shape[1])]
    assert len(set(pairs.query.tolist())) == cost.shape[1]
    assert torch.isclose(found, min(every))


def test_points_are_read_as_torchs_grid_sample_reads_them():
    torch.manual_seed(0)
    maps, points = torch.randn(3, 2, 5, 7), torch.rand(3, 50, 2) * 1.2 - 0.1
    expected = F.grid_sample(maps, 2 * points[:, None] - 1, align_corners=False)[:, :, 0]
    assert (sample(maps, points) - expected).abs().max() < 1e-5


def test_a_point_beside_an_ignored_pixel_does_not_count():
    target = torch.zeros(1, 2, 4, dtype=torch.long)
    counted = torch.tensor([[[True, True, False, False]] * 2])
    targets = Targets(target, counted, [[0]])
    points = torch.tensor([[[0.1, 0.5], [0.375, 0.5], [0.4, 0.5], [0.6, 0.5]]])
    assert counts(targets, IMAGE, points).tolist() == [[True, True, False, False]]


def test_labels_of_ignored_pixels_change_nothing():
    loss, target = MaskClassificationLoss(points=400), labels()
    masks, classes = outputs(size=(24, 32))
    target[:, :8] = 255
    first = value(loss, masks, classes, target)
    first.backward()
    assert masks.grad is not None and not masks.grad[..., :8, :].any()
    other = MaskClassificationLoss(points=400, ignore_index=7)
    assert value(other, masks, classes, target.where(target != 255, 7)) == first


def test_an_image_without_labels_is_left_out():
    """Its queries are not taught that there is no object."""
    loss, target = MaskClassificationLoss(points=100), labels()
    target[1] = 255
    masks, classes = outputs()
    value(loss, masks, classes, target).backward()
    assert classes.grad is not None and masks.grad is not None
    assert classes.grad[0].any() and not classes.grad[1].any() and not masks.grad[1].any()


def test_more_masks_than_queries_leave_some_without_one():
    target = torch.arange(12).view(1, 3, 4)
    masks, classes = outputs(1, 1, queries=5, classes=12)
    assert value(MaskClassificationLoss(points=50), masks, classes, target).isfinite()


def test_the_class_loss_divides_by_the_sum_of_the_weights():
    loss = MaskClassificationLoss(points=50, mask_weight=0, dice_weight=0, class_weight=1)
    masks, classes = outputs(1, 1)
    target = torch.zeros(1, 24, 32, dtype=torch.long)
    found = value(loss, masks, classes, target)
    logits = classes[0, 0]
    query = logits.softmax(-1)[:, 0].argmax()
    truth = torch.full((5,), 3)
    truth[query] = 0
    weight = torch.tensor([1, 1, 1, 0.1])
    assert torch.isclose(found, F.cross_entropy(logits, truth, weight))


def test_every_prediction_is_matched_anew_and_added():
    masks, classes = outputs()
    loss, target = MaskClassificationLoss(points=2000), labels()
    parts = sum(value(loss, masks[:, i:i + 1], classes[:, i:i + 1], target) for i in range(2))
    assert abs(value(loss, masks, classes, target) - parts) < 0.02 * parts     # other points


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_under_autocast_gives_the_same_pairs_and_no_nan(dtype):
    loss, target = MaskClassificationLoss(points=200), labels()
    masks, classes = (x.detach().to(dtype).requires_grad_() for x in outputs())
    with torch.autocast("cpu", dtype):
        found = value(loss, masks, classes, target)
    found.backward()
    assert found.dtype == torch.float32 and masks.grad is not None and masks.grad.isfinite().all()
    assert found == value(loss, masks.float(), classes.float(), target)


def test_outputs_of_any_size_are_a_finite_loss():
    loss, target = MaskClassificationLoss(points=50), labels(1)
    for scale in (0.0, 1e4):
        masks, classes = outputs(1, 1)
        found = value(loss, masks * scale, classes * scale, target)
        found.backward()
        assert found.isfinite() and masks.grad is not None and masks.grad.isfinite().all()


def test_the_criterion_gives_it_the_outputs_as_they_are():
    masks, classes = outputs()
    criterion = Criterion({"type": "MaskClassificationLoss", "args": {"points": 50}},
                          {"masks": 1.0, "classes": 1.0}, num_classes=3)
    torch.manual_seed(0)
    total, parts = criterion({"masks": masks, "classes": classes}, {"label": labels()})
    assert total == value(MaskClassificationLoss(points=50), masks, classes, labels())
    assert parts.keys() == {f"masks+classes{end}" for end in ("", ".class", ".mask", ".dice")}
    assert criterion.activation == "scores" and criterion.main_loss is None
    assert "not a known function of the posterior" in str(criterion.inverse)


def _rank_loss(rank, world, folder):
    """Ranks with one and three masks: their mean of losses is that of one process."""
    target = torch.zeros(1, 24, 32, dtype=torch.long) if rank == 0 else labels(1)
    loss = MaskClassificationLoss(points=50, class_weight=0)
    masks, classes = outputs(1, 1, seed=rank)
    found = value(loss, masks, classes, target, seed=rank)
    torch.save(found.detach(), folder / f"{rank}.pt")


@pytest.mark.slow      # starts two processes
def test_masks_are_counted_over_all_processes(tmp_path):
    on_ranks(_rank_loss, 2, tmp_path)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    alone = []
    for rank, target in enumerate((torch.zeros(1, 24, 32, dtype=torch.long), labels(1))):
        loss = MaskClassificationLoss(points=50, class_weight=0)
        alone.append(value(loss, *outputs(1, 1, seed=rank), target, seed=rank).detach())
    # (1 + 3) / 2 masks for each process, where one alone divides by its own.
    assert torch.isclose(found[0], alone[0] / 2) and torch.isclose(found[1], alone[1] * 3 / 2)
