"""SegFix's network: where class borders are, and in which direction the inside lies.

Yuan et al., SegFix: Model-Agnostic Boundary Refinement for Segmentation, ECCV
2020, arXiv:2007.04269.

Published checkpoints: `segfix_hrnet_hrnet48_segfix_loss_iter80000_1_latest.pth`
(`openseg_segfix_hrnet48`), `segfix_hrnet_hrnext20_segfix_loss_1_latest.pth` and
its `trainval` and `inst` relatives (`openseg_segfix_hrnext20`); the same names
with `_bn` for files with plain batch norm.
"""
import torch

from base.base_model import BaseModel
from models.backbones import build_backbone
from models.backbones.hrnet import BACKBONE_KEYS, PADDLE_KEYS
from models.foreign_state import BESIDE, PREFIXES, fold_in_place_norm, foreign_state
from models.layers.concat_maps import concat_maps
from models.layers.conv_norm_act import classifier_head
from models.layers.resize import resize_to
from models.openseg import backbone_keys
from models.published import Published
from utils.errors import ConfigError


class SegFix(BaseModel):
    """Two heads on the concatenated branches of an HRNet or Higher-HRNet.

    x: (N, 3, H, W) normalised; any H and W.
    eval:  (N, 2 + directions, H, W): the logits of no border and border, then
           of the directions
    train: {"mask": logits (N, 2, H, W), "direction": logits (N, directions, H, W)}

    No output is called "out": both heads are the main one, and the loss reads
    them together. num_classes, which a program derives from the dataset, has no
    say here, since the network knows borders and directions only.
    activation: that of the heads, "leaky_relu" in the released checkpoints.
    """

    output_weights = {"mask": 1.0, "direction": 1.0}
    decision = "offsets"        # the rule that reads these logits

    def __init__(self, num_classes: int = 10, backbone: str = "hrnet_w48", directions: int = 8,
                 channels: int = 256, activation: str = "relu", norm: str = "batch",
                 pretrained: bool = False):
        super().__init__()
        if directions not in (4, 8, 16, 32):
            raise ConfigError(f"directions must be 4, 8, 16 or 32, got {directions}",
                              "arch.args.directions")
        self.backbone = build_backbone(backbone, norm=norm, pretrained=pretrained,
                                       if_known={"align_corners": True})
        features = sum(self.backbone.channels)
        options = dict(bias=False, classifier_bias=False, norm=norm, act=activation)
        self.mask_head = classifier_head(features, channels, 2, **options)
        self.direction_head = classifier_head(features, channels, directions, **options)

    def heads(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(mask, direction) logits at the size of the first branch, a half or a quarter of x."""
        features = concat_maps(self.backbone(x), align_corners=True)
        return self.mask_head(features), self.direction_head(features)

    def forward(self, x: torch.Tensor):
        mask, direction = (resize_to(head, x, align_corners=True) for head in self.heads(x))
        if self.training:
            return {"mask": mask, "direction": direction}
        return torch.cat([mask, direction], dim=1)

    def rename_foreign(self, state: dict) -> dict:
        """ImageNet, Paddle, Mapillary and openseg HRNets in this network's keys."""
        return super().rename_foreign(foreign_state(
            state, backbone_keys(self) + FOREIGN_KEYS, PADDLE_KEYS))


FOREIGN_KEYS = BACKBONE_KEYS + (
    (r"^dir_head\.", "direction_head."),
    (r"^(mask|direction)_head\.([01])(?:\.0)?\.(?=\w+$)", r"\1_head.0.\2."),
)


def _entry(backbone, in_place, files=()):
    activation = "leaky_relu" if in_place else "relu"
    return Published(
        network=SegFix, args={"backbone": backbone, "activation": activation}, drop=BESIDE,
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
