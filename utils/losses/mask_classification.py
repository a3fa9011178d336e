"""The loss of mask classification: queries are matched with the masks of the classes in the image.

Cheng et al., MaskFormer, NeurIPS 2021, arXiv:2107.06278; Mask2Former, CVPR 2022, arXiv:2112.01527,
which samples points; Kerssies et al., EoMT, CVPR 2025, arXiv:2503.19108, whose weights these are.

Differs from their code: a label map has one mask for each class in it, and pixels without a label
count for nothing. A point is left out of every sum and mean if one of its pixels has no label, and
an image without any labeled pixel is left out as a whole.
"""
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from utils.losses.inverse import NoInverse
from utils.losses.pixels import labeled
from utils.machine.distributed import all_reduce_, world_size
from utils.machine.precision import full_precision, no_autocast
from utils.machine.tensors import LabelBatch


class MaskClassificationLoss(nn.Module):
    """Cross-entropy of the class of every query, and BCE and Dice of the matched masks.

    masks: logits (N, L, Q, h, w) of Q masks, of L predictions one after the other. classes: logits
    (N, L, Q, C + 1), the last class is "no object". target (N, H, W): class ids or ignore_index;
    h and w may differ from H and W. Returns a scalar, the sum over the L predictions, each of which
    is matched anew. `last_parts` has the three losses of the last prediction, without weights.

    Matching: the assignment of the masks of an image to different queries with the least sum of
    class_weight (-p) + mask_weight BCE + dice_weight Dice, at `points` random points that all masks
    of the image share. Where there are more masks than queries, some masks stay without one.
    Class: cross-entropy of all queries, of weight no_object where none is matched, divided by the
    sum of the weights. Masks: means over `points` points of each matched pair, of which `important`
    are the least certain of `oversample` times as many random ones; their sums over the pairs are
    divided by the number of pairs in the batches of all processes, per process and at least 1.

    Random numbers are those of torch's generator on the device of the masks. The computation has at
    least float32. Reads the costs and the classes in each image from the device.
    """

    activation = "scores"
    inputs = ("masks", "classes")
    resize = None
    reads_values = True
    over_processes = True

    def __init__(self, class_weight: float = 2.0, mask_weight: float = 5.0,
                 dice_weight: float = 5.0, no_object: float = 0.1, points: int = 12544,
                 oversample: float = 3.0, important: float = 0.75, ignore_index: int = 255):
        super().__init__()
        if not 0 <= important <= 1:
            raise ValueError(f"important must be in [0, 1], found {important}")
        if points < 1 or oversample < 1:
            raise ValueError(f"points and oversample must be at least 1, found {points} and "
                             f"{oversample}")
        if no_object < 0:
            raise ValueError(f"no_object must not be negative, found {no_object}")
        self.class_weight, self.mask_weight = class_weight, mask_weight
        self.dice_weight, self.no_object = dice_weight, no_object
        self.points, self.oversample, self.important = points, oversample, important
        self.ignore_index = ignore_index
        self.last_parts: dict[str, torch.Tensor] = {}

    def forward(self, masks: torch.Tensor, classes: torch.Tensor, target: LabelBatch) \
            -> torch.Tensor:
        counted, index = labeled(target, self.ignore_index)
        return self.of_targets(masks, classes, Targets(
            index, counted, _present(index, counted, classes.shape[-1] - 1)))

    def of_targets(self, masks: torch.Tensor, classes: torch.Tensor,
                   targets: "Targets") -> torch.Tensor:
        """The loss for targets that are not made from a label map alone."""
        with no_autocast(masks):
            masks, classes = full_precision(masks), full_precision(classes)
            pairs = self._match(masks.detach(), classes.detach(), targets)
            total = (masks * 0).sum() + (classes * 0).sum()     # every output has a gradient
            share = _mean_over_ranks(len(pairs[0].query), masks)
            for number, matched in enumerate(pairs):
                of_class = self._class_loss(classes[:, number], matched, targets)
                of_mask, of_dice = (one.sum() / share for one in self._mask_losses(
                    masks[:, number], matched, targets))
                total = (total + self.class_weight * of_class + self.mask_weight * of_mask
                         + self.dice_weight * of_dice)
                self.last_parts = {"class": of_class.detach(), "mask": of_mask.detach(),
                                   "dice": of_dice.detach()}
        return total

    def num_classes(self, masks: torch.Tensor, classes: torch.Tensor) -> int:
        """The number of classes of a network's outputs."""
        return classes.shape[-1] - 1

    def inverse(self) -> NoInverse:
        """None: a query learns whole masks."""
        return NoInverse("it scores masks and their classes, so the scores of a pixel are not a "
                         "known function of the posterior")

    def _match(self, masks, classes, targets) -> list["Pairs"]:
        """For each of the L predictions the matched pairs of all images."""
        from scipy.optimize import linear_sum_assignment
        costs = [self.costs(masks[i, number], classes[i, number], targets, i)
                 for number in range(masks.shape[1]) for i in range(len(masks))]
        flat = torch.cat([cost.flatten() for cost in costs] or [masks.new_zeros(0)]).cpu()
        rows = flat.split([cost.numel() for cost in costs])
        found = []
        for number in range(masks.shape[1]):
            image, query, klass = [], [], []
            for i, present in enumerate(targets.present):
                place = number * len(masks) + i
                cost = rows[place].view(costs[place].shape)
                # A network that has diverged still gets a loss, which is then not finite.
                cost = cost.nan_to_num(nan=1e9, posinf=1e9, neginf=-1e9)
                queries, columns = linear_sum_assignment(cost.double().numpy())
                image += [i] * len(queries)
                query += queries.tolist()
                klass += [present[column] for column in columns]
            found.append(Pairs(*torch.tensor([image, query, klass], dtype=torch.long,
                                             device=masks.device).view(3, -1)))
        return found

    def costs(self, masks: torch.Tensor, classes: torch.Tensor, targets: "Targets",
              image: int) -> torch.Tensor:
        """The cost of each query with each class of an image: (Q, classes in the image).

        masks: logits (Q, h, w); classes: logits (Q, C + 1), of the image with this number.
        """
        present = torch.tensor(targets.present[image], dtype=torch.long, device=masks.device)
        points = torch.rand((1, self.points, 2), device=masks.device)
        values = sample(masks[None], points)[0].T.to(masks.dtype)                    # (P, Q)
        which = torch.full((1,), image, device=masks.device)
        truth = sample_masks(targets, which, points, present[None])[0].to(values.dtype)  # (K, P)
        counted = counts(targets, which, points)[0].to(values.dtype)                     # (P,)
        number = counted.sum().clamp(min=1)
        # BCE of logit z and truth t is softplus(z) - z t.
        bce = ((F.softplus(values) * counted[:, None]).sum(0)[:, None]
               - values.T @ (truth * counted).T) / number
        probs = values.sigmoid() * counted[:, None]
        both, either = probs.T @ truth.T, probs.sum(0)[:, None] + (truth * counted).sum(1)
        dice = 1 - (2 * both + 1) / (either + 1)
        return (self.mask_weight * bce + self.dice_weight * dice
                - self.class_weight * classes.softmax(-1)[:, present])

    def _class_loss(self, classes, pairs, targets):
        """Cross-entropy of all queries of labeled images, divided by the sum of the weights."""
        n, queries, no_object = classes.shape[0], classes.shape[1], classes.shape[2] - 1
        truth = torch.full((n, queries), no_object, device=classes.device)
        truth[pairs.image, pairs.query] = pairs.klass
        weight = torch.where(truth == no_object, self.no_object, 1.0).to(classes.dtype)
        known = torch.tensor([bool(present) for present in targets.present], dtype=classes.dtype,
                             device=classes.device)
        weight = weight * known[:, None]
        loss = F.cross_entropy(classes.flatten(0, 1), truth.flatten(), reduction="none")
        return (loss * weight.flatten()).sum() / weight.sum().clamp(min=1e-12)

    def _mask_losses(self, masks, pairs, targets):
        """(BCE, Dice), each (M,), of the M matched pairs, at points of their own."""
        chosen = masks[pairs.image, pairs.query]                                # (M, h, w)
        with torch.no_grad():
            points = self._points(chosen, pairs, targets)
            truth = sample_masks(targets, pairs.image, points, pairs.klass[:, None])[:, 0]
            truth = truth.to(masks.dtype)
            counted = counts(targets, pairs.image, points).to(masks.dtype)
        values = sample(chosen[:, None], points)[:, 0]                          # (M, P)
        bce = F.binary_cross_entropy_with_logits(values, truth, reduction="none")
        bce = (bce * counted).sum(1) / counted.sum(1).clamp(min=1)
        probs, truth = values.sigmoid() * counted, truth * counted
        dice = 1 - (2 * (probs * truth).sum(1) + 1) / (probs.sum(1) + truth.sum(1) + 1)
        return bce, dice

    def _points(self, masks, pairs, targets):
        """The points (M, P, 2) for logits (M, h, w): the least certain ones, and random ones."""
        certain = int(self.important * self.points)
        many = torch.rand((len(masks), int(self.points * self.oversample), 2),
                          device=masks.device)
        doubt = -sample(masks[:, None], many)[:, 0].abs()
        doubt = doubt.masked_fill(~counts(targets, pairs.image, many), -torch.inf)
        best = doubt.topk(certain, dim=1).indices
        points = many.gather(1, best[..., None].expand(-1, -1, 2))
        rest = torch.rand((len(masks), self.points - certain, 2), device=masks.device)
        return torch.cat([points, rest], dim=1)


class Targets(NamedTuple):
    """Masks of a batch. index: class ids (N, H, W); the mask of class k is where index == k.

    counted: bool (N, H, W), pixels without a label are False. present: for each image the classes
    that have a mask.
    """

    index: torch.Tensor
    counted: torch.Tensor
    present: list[list[int]]


class Pairs(NamedTuple):
    """M matched pairs: the number of the image, the query and the class, each int64 (M,)."""

    image: torch.Tensor
    query: torch.Tensor
    klass: torch.Tensor


def sample(maps: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Values (M, K, P) of maps (M, K, h, w) at points (M, P, 2), bilinear, zeros outside.

    points: (x, y), 0 and 1 are the edges of the map; torch's grid_sample without aligned corners.
    Unlike that it has a deterministic gradient on a GPU.
    """
    flat, total = maps.flatten(2), 0.0
    for place, weight in _corners(points.to(maps.dtype), maps.shape[-2], maps.shape[-1]):
        value = flat.gather(2, place[:, None].expand(-1, flat.shape[1], -1))
        total = total + value * weight[:, None]
    assert isinstance(total, torch.Tensor)
    return total


def sample_masks(targets: Targets, image: torch.Tensor, points: torch.Tensor,
                 classes: torch.Tensor) -> torch.Tensor:
    """The masks of classes (M, K) in the images (M,) at points (M, P, 2), as `sample` reads them.

    returns: float (M, K, P), without making the masks.
    """
    index, truth = targets.index.flatten(1), 0.0
    for place, weight in _corners(points, *targets.index.shape[-2:]):
        labels = index[image[:, None].expand_as(place), place]
        truth = truth + (labels[:, None] == classes[..., None]) * weight[:, None]
    assert isinstance(truth, torch.Tensor)
    return truth


def counts(targets: Targets, image: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Whether all pixels that points (M, P, 2) of images (M,) touch are labeled: bool (M, P)."""
    known = targets.counted.flatten(1)
    result = torch.ones(points.shape[:2], dtype=torch.bool, device=points.device)
    for place, weight in _corners(points, *targets.index.shape[-2:]):
        result &= known[image[:, None].expand_as(place), place] | (weight == 0)
    return result


def _corners(points, height, width):
    """For each of the four pixels around points (M, P, 2): its place in the map, and its weight.

    Each (M, P). A pixel outside has the weight 0.
    """
    x, y = points[..., 0] * width - 0.5, points[..., 1] * height - 0.5
    left, top = x.floor(), y.floor()
    right, below = x - left, y - top                    # the shares of the further column and row
    for row, of_row in ((top, 1 - below), (top + 1, below)):
        for column, of_column in ((left, 1 - right), (left + 1, right)):
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            place = (row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).long()
            yield place, of_row * of_column * inside


def _present(index, counted, classes) -> list[list[int]]:
    """The classes with a labeled pixel in each image of labels (N, H, W)."""
    seen = torch.zeros(len(index), classes + 1, dtype=torch.bool, device=index.device)
    seen.scatter_(1, index.masked_fill(~counted, classes).flatten(1), True)
    return [row.nonzero()[:, 0].tolist() for row in seen[:, :classes].cpu()]


def _mean_over_ranks(pairs: int, like: torch.Tensor) -> torch.Tensor:
    """The number of pairs, the mean over the processes, at least 1."""
    count = torch.tensor(float(pairs), dtype=like.dtype, device=like.device)
    return (all_reduce_(count) / world_size()).clamp(min=1)
