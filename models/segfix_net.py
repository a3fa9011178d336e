"""The network of SegFix: it predicts class borders, and at them the direction to the inside.

Yuan et al., SegFix: Model-Agnostic Boundary Refinement for Segmentation, ECCV
2020, arXiv:2007.04269.

Published checkpoints: `segfix_hrnet_hrnet48_segfix_loss_iter80000_1_latest.pth`
(`openseg_segfix_hrnet48`), `segfix_hrnet_hrnext20_segfix_loss_1_latest.pth` and
its `trainval` and `inst` variants (`openseg_segfix_hrnext20`). The same names
with `_bn` are for files with plain batch norm.
"""
from typing import Any

import torch

from base.base_model import BaseModel
from models.backbones import build_backbone
from models.backbones.hrnet import BACKBONE_KEYS, PADDLE_KEYS
from models.layers.concat_maps import concat_maps
from models.layers.conv_norm_act import classifier_head
from models.layers.resize import resize_to
from models.weights.openseg import backbone_keys
from models.weights.published import Published
from models.weights.rename_keys import PREFIXES, TRAINING_KEYS, fold_in_place_norm, to_our_keys
from utils.errors import ConfigError
from utils.machine.tensors import ImageBatch, Logits
from utils.segfix.offsets import DIRECTIONS


class SegFix(BaseModel):
    """Two heads on the concatenated branches of an HRNet or Higher-HRNet.

    x: float (N, 3, H, W), normalized; any H and W.
    eval:  logits (N, 2 + directions, H, W): no border, border, then the directions
    train: {"mask": logits (N, 2, H, W), "direction": logits (N, directions, H, W)}

    No output is called "out": both heads are main outputs, and the loss uses them
    together. num_classes has no effect, because the classes are borders and directions.
    activation: of the heads; "leaky_relu" for the published checkpoints.
    """

    output_weights = {"mask": 1.0, "direction": 1.0}
    loss = "SegFixLoss"
    decision = "offsets"        # the decision rule for these logits

    def __init__(self, num_classes: int = 10, backbone: str = "hrnet_w48", directions: int = 8,
                 channels: int = 256, activation: str = "relu", norm: str = "batch",
                 pretrained: bool = False):
        super().__init__()
        if directions not in DIRECTIONS:
            raise ConfigError(f"directions must be 4, 8, 16 or 32, got {directions}",
                              "arch.args.directions")
        self.output_channels = {"mask": 2, "direction": directions}
        self.backbone = build_backbone(backbone, norm=norm, pretrained=pretrained,
                                       if_known={"align_corners": True})
        features = sum(self.backbone.channels)
        options: dict[str, Any] = dict(bias=False, classifier_bias=False, norm=norm, act=activation)
        self.mask_head = classifier_head(features, channels, 2, **options)
        self.direction_head = classifier_head(features, channels, directions, **options)

    def heads(self, x: ImageBatch) -> tuple[Logits, Logits]:
        """Logits (N, 2, h, w) of the mask and (N, directions, h, w) of the direction.

        (h, w) is the size of the first branch, a half or a quarter of that of x.
        """
        features = concat_maps(self.backbone(x), align_corners=True)
        return self.mask_head(features), self.direction_head(features)

    def forward(self, x: ImageBatch) -> Logits | dict[str, Logits]:
        mask, direction = (resize_to(head, x, align_corners=True) for head in self.heads(x))
        if self.training:
            return {"mask": mask, "direction": direction}
        return torch.cat([mask, direction], dim=1)

    def rename_foreign(self, state: dict) -> dict:
        """Rename the keys of ImageNet, Paddle, Mapillary and openseg HRNets to ours."""
        return super().rename_foreign(to_our_keys(
            state, backbone_keys(self) + FOREIGN_KEYS, PADDLE_KEYS))


# Keys of openseg's SegFix -> ours.
FOREIGN_KEYS = BACKBONE_KEYS + (
    (r"^dir_head\.", "direction_head."),
    (r"^(mask|direction)_head\.([01])(?:\.0)?\.(?=\w+$)", r"\1_head.0.\2."),
)


def _entry(backbone: str, in_place: bool, files: tuple[str, ...] = ()) -> Published:
    activation = "leaky_relu" if in_place else "relu"
    return Published(
        network=SegFix, args={"backbone": backbone, "activation": activation}, drop=TRAINING_KEYS,
        rename=PREFIXES + FOREIGN_KEYS, convert=fold_in_place_norm if in_place else None,
        files=files, order="BGR")


PUBLISHED = {
    "openseg_segfix_hrnet48": _entry("hrnet_w48", True, (
        "segfix_hrnet_hrnet48_segfix_loss_iter80000_1_latest.pth",)),
    "openseg_segfix_hrnet48_bn": _entry("hrnet_w48", False),
    "openseg_segfix_hrnext20": _entry("hrnext20", True, (
        "segfix_hrnet_hrnext20_segfix_loss_1_latest.pth",
        "segfix_hrnet_hrnext20_segfix_loss_trainval_1_latest.pth",
        "segfix_hrnet_hrnext20_segfix_loss_inst_1_latest.pth")),
    "openseg_segfix_hrnext20_bn": _entry("hrnext20", False),
}
