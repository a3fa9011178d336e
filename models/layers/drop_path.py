"""Drop path: residual branches that are left out at random in training.

Huang et al., Deep Networks with Stochastic Depth, ECCV 2016, arXiv:1603.09382.
"""
from torch import nn

from utils.errors import ConfigError


def drop_path(share: float) -> nn.Module:
    """Return a module that in training sets the branch of an image to zero with this probability.

    share: in [0, 1). float (N, ...) -> the same shape. The branches that stay are divided by
    1 - share, so that the mean does not change. In eval mode nothing changes.
    """
    if share == 0:
        return nn.Identity()
    from torchvision.ops import StochasticDepth  # an import of a second that few networks need
    return StochasticDepth(share, "row")


def growing_shares(most: float, blocks: int) -> list[float]:
    """Return the share of each block, from 0 in the first to `most` in the last, evenly growing.

    Raises ConfigError if `most` is not in [0, 1).
    """
    if not 0 <= most < 1:
        raise ConfigError(f"expected a number in [0, 1), found {most}", "arch.args.drop_path")
    return [most * block / max(1, blocks - 1) for block in range(blocks)]
