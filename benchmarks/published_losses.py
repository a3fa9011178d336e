"""Plain versions of the published algorithms of the losses. Used by benchmarks.losses.

One statement per step of the published algorithm, without early exits or fused kernels.
All take logits (N, C, H, W) float and target (N, H, W) int64 and return a scalar.
"""
import torch
import torch.nn.functional as F

from utils.machine.tensors import LabelBatch, Logits


def ohem(logits: Logits, target: LabelBatch, ignore_index: int = 255, thresh: float = 0.7,
         min_kept: int = 100000) -> torch.Tensor:
    """OHEM by sorting the probabilities of the true class."""
    losses = F.cross_entropy(logits, target, ignore_index=ignore_index, reduction="none").flatten()
    probs = F.softmax(logits, dim=1)
    valid = target.flatten() != ignore_index
    index = target.clone()
    index[index == ignore_index] = 0
    true = probs.gather(1, index[:, None]).flatten()[valid]
    ranked, order = true.sort()
    threshold = max(ranked[min(min_kept, len(ranked) - 1)], thresh)
    return losses[valid][order][ranked < threshold].mean()


def topk(logits: Logits, target: LabelBatch, ignore_index: int = 255,
         k: float = 10) -> torch.Tensor:
    """Top-k: the mean of the largest k percent of the cross-entropies."""
    losses = F.cross_entropy(logits, target, ignore_index=ignore_index, reduction="none").flatten()
    return losses.topk(int(losses.numel() * k / 100), sorted=False).values.mean()


def bootstrapped(logits: Logits, target: LabelBatch, ignore_index: int = 255, min_k: int = 100000,
                 threshold: float = 0.05) -> torch.Tensor:
    """Bootstrapped cross-entropy by sorting all cross-entropies of each image."""
    losses = F.cross_entropy(logits, target, ignore_index=ignore_index, reduction="none")
    total = logits.new_zeros(())
    for image in losses.flatten(1):
        ranked = image.sort(descending=True).values
        kept = ranked[ranked > threshold] if ranked[min_k] > threshold else ranked[:min_k]
        total = total + kept.mean()
    return total / len(losses)


def focal(logits: Logits, target: LabelBatch, ignore_index: int = 255,
          gamma: float = 2.0) -> torch.Tensor:
    """Focal loss with exp(-cross-entropy) as the probability."""
    loss = F.cross_entropy(logits, target, ignore_index=ignore_index, reduction="none")
    return ((1 - torch.exp(-loss)) ** gamma * loss).sum() / (target != ignore_index).sum()


def flat_dice(logits: Logits, target: LabelBatch, ignore_index: int = 255,
              smooth: float = 1.0) -> torch.Tensor:
    """Flat Dice from the product of softmax and one-hot labels."""
    y = _one_hot(logits, target, ignore_index).contiguous().flatten()
    p = F.softmax(logits, dim=1).flatten()
    return 1 - (2 * (p * y).sum() + smooth) / (p.sum() + y.sum() + smooth)


def class_dice(logits: Logits, target: LabelBatch, ignore_index: int = 255) -> torch.Tensor:
    """Dice per class over the batch, with a mask and one-hot labels."""
    mask = (target != ignore_index)[:, None]
    p = F.softmax(logits, dim=1) * mask
    y = _one_hot(logits, target, ignore_index) * mask
    hit, predicted, labels = (p * y).sum((0, 2, 3)), p.sum((0, 2, 3)), y.sum((0, 2, 3))
    return ((1 - 2 * hit / (predicted + labels).clamp_min(1e-7)) * (labels > 0)).mean()


def dice_and_cross_entropy(logits: Logits, target: LabelBatch,
                           ignore_index: int = 255) -> torch.Tensor:
    """nnU-Net's cross-entropy minus Dice, each computed separately."""
    mask = (target != ignore_index)[:, None]
    p = F.softmax(logits, dim=1)
    y = _one_hot(logits, target, ignore_index)
    hit = (p * y * mask).sum((0, 2, 3))
    wrong, missed = (p * (1 - y) * mask).sum((0, 2, 3)), ((1 - p) * y * mask).sum((0, 2, 3))
    dice = 2 * hit / (2 * hit + wrong + missed).clamp_min(1e-8)
    return F.cross_entropy(logits, target, ignore_index=ignore_index) - dice[1:].mean()


def lovasz(logits: Logits, target: LabelBatch, ignore_index: int = 255) -> torch.Tensor:
    """Lovász-Softmax in a loop over the classes that sorts the errors of all labeled pixels."""
    probs = F.softmax(logits, dim=1).permute(0, 2, 3, 1).reshape(-1, logits.shape[1])
    labels = target.flatten()
    valid = labels != ignore_index
    probs, labels = probs[valid], labels[valid]
    losses = []
    for c in range(probs.shape[1]):
        in_class = (labels == c).float()
        if in_class.sum() == 0:
            continue
        errors, order = (in_class - probs[:, c]).abs().sort(0, descending=True)
        in_class = in_class[order]
        total = in_class.sum()
        jaccard = 1 - (total - in_class.cumsum(0)) / (total + (1 - in_class).cumsum(0))
        jaccard[1:] = jaccard[1:] - jaccard[:-1].clone()
        losses.append(torch.dot(errors, jaccard))
    return torch.stack(losses).mean()


def bce(logits: Logits, target: LabelBatch, ignore_index: int = 255) -> torch.Tensor:
    """torch's binary cross-entropy on one-hot labels."""
    mask = (target != ignore_index)[:, None]
    y = _one_hot(logits, target, ignore_index).float()
    loss = F.binary_cross_entropy_with_logits(logits, y, reduction="none") * mask
    return loss.sum() / (mask.sum() * logits.shape[1])


def rmi(logits: Logits, target: LabelBatch, ignore_index: int = 255, pool: str = "max",
        stride: int = 3, radius: int = 3, alpha: float = 5e-4) -> torch.Tensor:
    """RMI over all classes, with all windows stacked in float64 and a matrix inverse."""
    mask = (target != ignore_index)[:, None]
    y = _one_hot(logits, target, ignore_index).float()
    bce_part = (F.binary_cross_entropy_with_logits(logits, y, reduction="none") * mask).sum() \
        / (mask.sum() + 1)
    q = logits.sigmoid() * mask + 1e-6
    pooling = F.max_pool2d if pool == "max" else F.avg_pool2d
    y, q = (pooling(t, stride, stride, stride // 2) for t in (y, q))
    height, width = y.shape[2] - radius + 1, y.shape[3] - radius + 1

    def windows(t):
        parts = [t[:, :, i:i + height, j:j + width] for i in range(radius) for j in range(radius)]
        stack = torch.stack(parts, 2).flatten(3).double()
        return stack - stack.mean(3, keepdim=True)

    y, q = windows(y), windows(q)
    ridge = alpha * torch.eye(radius ** 2, dtype=torch.float64)
    inverse = torch.inverse(q @ q.transpose(2, 3) + ridge)
    cross = y @ q.transpose(2, 3)
    left = y @ y.transpose(2, 3) - cross @ inverse @ cross.transpose(2, 3) + ridge
    diagonal = torch.linalg.cholesky(left).diagonal(dim1=2, dim2=3)
    region = torch.log(diagonal + 1e-8).sum(2).mean(0) / radius ** 2
    return 0.5 * bce_part + 0.5 * region.sum().float()


def _one_hot(logits, target, ignore_index):
    """One-hot labels (N, C, H, W) int64, all 0 at an ignored pixel."""
    index = target.masked_fill(target == ignore_index, 0)
    y = F.one_hot(index, logits.shape[1]).permute(0, 3, 1, 2)
    return y * (target != ignore_index)[:, None]
