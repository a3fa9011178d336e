"""From the scores of a network whose output are not logits to probabilities.

A mask-classification network (MaskFormer, Cheng et al., NeurIPS 2021, arXiv:2107.06278) gives each
class the score Σ p(class) sigmoid(mask), over its queries. Scores are not negative and not bounded
by 1, and their sum over the classes says how many queries claim the pixel. A softmax of them means
nothing: the probability of a class is its share of the sum. Such a network states `activation =
"scores"`, and its loss does too.
"""
import torch

from utils.machine.precision import full_precision


def shares(scores: torch.Tensor) -> torch.Tensor:
    """The probabilities (N, C, ...) of scores (N, C, ...): divided by their sum over the classes.

    Where no query claims a pixel the sum is near 0, and the shares say what little there is: they
    keep the order of the classes. Where even the sum is 0, or below the smallest normal float32,
    all classes have the same probability. A negative score, which a cubic resize can make, counts
    as 0. float64 stays; any other float becomes float32.
    """
    scores = full_precision(scores).clamp(min=0)
    total = scores.sum(1, keepdim=True)
    smallest = torch.finfo(torch.float32).tiny
    return torch.where(total >= smallest, scores / total.clamp(min=smallest), 1 / scores.shape[1])


def log_shares(scores: torch.Tensor) -> torch.Tensor:
    """Logits (N, C, ...) whose softmax are the `shares`: their logarithms.

    A score of 0 gives the logarithm of the smallest normal float32, so that the result is finite.
    """
    return shares(scores).clamp(min=torch.finfo(torch.float32).tiny).log()
