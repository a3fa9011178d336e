"""Joins the feature maps of a backbone into one map, as HRNetV2 does."""
import torch

from models.layers.resize import resize_to


def concat_maps(maps: list[torch.Tensor], align_corners: bool = False) -> torch.Tensor:
    """[float (N, C_i, H_i, W_i)], finest first -> (N, sum of C_i, H_0, W_0), in this order."""
    return torch.cat([maps[0]] + [resize_to(m, maps[0], align_corners) for m in maps[1:]], dim=1)
