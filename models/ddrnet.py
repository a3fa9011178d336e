"""DDRNet-23-slim and DDRNet-23. Pan et al., Deep Dual-Resolution Networks for Real-Time and
Accurate Semantic Segmentation of Traffic Scenes, IEEE T-ITS 2023, arXiv:2101.06085.

Published checkpoints (ydhongHIT/DDRNet): DDRNet-23-slim with Cityscapes val mIoU 77.8. Files
without the auxiliary head load too, into a network without it.

Differs from the source: any input size. There only multiples of 8 run; here maps of other sizes are
rounded up, and a coarse map is resized to the actual size of the finer one.
"""
from dataclasses import replace

import torch
from torch import nn

from base.base_model import BaseModel
from models.layers.conv_norm_act import conv_norm_act
from models.layers.dual_resolution import (
    DUAL_RESOLUTION_KEYS,
    NarrowBottleneck,
    SequentialPyramid,
    basic_stage,
    conv_norm,
    half_stem,
    pre_norm_head,
)
from models.layers.init import he_init
from models.layers.norm import activation
from models.layers.outputs import as_outputs
from models.layers.resize import resize_to
from models.weights.published import Published
from models.weights.rename_keys import PREFIXES, TRAINING_KEYS, State, to_our_keys
from utils.errors import ConfigError, unknown
from utils.machine.tensors import ImageBatch, Logits

# variant -> (width of the stem, width of the heads)
VARIANTS = {"23-slim": (32, 64), "23": (64, 128)}


class DDRNet(BaseModel):
    """Two branches, details at stride 8 and context down to stride 64, that exchange their sums.

    x: float (N, 3, H, W), normalized RGB; any H and W.
    eval:  logits (N, C, H, W); the auxiliary head is not computed
    train: {"out": logits (N, C, H, W), "aux": logits (N, C, H, W)}

    variant: "23-slim" or "23". use_aux: whether the auxiliary head, on the details, exists.
    """

    output_weights = {"out": 1.0, "aux": 0.4}

    def __init__(self, num_classes: int, variant: str = "23-slim", use_aux: bool = True,
                 norm: str = "batch"):
        super().__init__()
        if variant not in VARIANTS:
            raise ConfigError(unknown("variant", variant, VARIANTS), "arch.args.variant")
        width, head = VARIANTS[variant]
        detail = 2 * width
        # Not in place: the sums are exchanged as they were before it.
        self.relu = activation(norm, after_sum=True, make=nn.ReLU)
        self.stem = half_stem(width, norm)
        self.layer1 = basic_stage(width, width, 2, norm)
        self.layer2 = basic_stage(width, detail, 2, norm, stride=2)
        self.layer3 = basic_stage(detail, 4 * width, 2, norm, stride=2)
        self.layer4 = basic_stage(4 * width, 8 * width, 2, norm, stride=2)
        self.layer5 = NarrowBottleneck(8 * width, 8 * width, 2, norm)
        self.pyramid = SequentialPyramid(16 * width, 128, 4 * width, norm)

        self.detail3 = basic_stage(detail, detail, 2, norm)
        self.detail4 = basic_stage(detail, detail, 2, norm)
        self.detail5 = NarrowBottleneck(detail, detail, 1, norm)
        self.compression3 = conv_norm(4 * width, detail, 1, norm)
        self.compression4 = conv_norm(8 * width, detail, 1, norm)
        self.down3 = conv_norm(detail, 4 * width, 3, norm, stride=2)
        self.down4 = nn.Sequential(*conv_norm_act(detail, 4 * width, 3, stride=2, norm=norm),
                                   *conv_norm(4 * width, 8 * width, 3, norm, stride=2))

        self.head = pre_norm_head(4 * width, head, num_classes, norm)
        self.aux_head = None
        if use_aux:
            self.aux_head = pre_norm_head(detail, head, num_classes, norm)
        else:
            self.output_weights = {"out": 1.0}
        he_init(self, mode="fan_out")

    def backbone_modules(self) -> list[nn.Module]:
        """The modules of the ImageNet network: both branches up to the pyramid."""
        return [self.stem, self.layer1, self.layer2, self.layer3, self.layer4, self.layer5,
                self.detail3, self.detail4, self.detail5, self.compression3, self.compression4,
                self.down3, self.down4]

    def forward(self, x: ImageBatch) -> Logits | dict[str, Logits]:
        image, relu = x, self.relu
        x = relu(self.layer2(relu(self.layer1(self.stem(x)))))      # (N, 2 width, H/8, W/8)
        x, detail = self._exchange(self.layer3(x), self.detail3(x), self.compression3, self.down3)
        middle = detail
        x, detail = self._exchange(self.layer4(relu(x)), self.detail4(relu(detail)),
                                   self.compression4, self.down4)
        detail = self.detail5(relu(detail))                         # (N, 4 width, H/8, W/8)
        context = self.pyramid(self.layer5(relu(x)))                # (N, 4 width, H/64, W/64)
        logits = {"out": self.head(detail + resize_to(context, detail))}
        if self.training and self.aux_head is not None:
            logits["aux"] = self.aux_head(middle)
        return as_outputs(logits, image, self.training)

    def _exchange(self, context: torch.Tensor, detail: torch.Tensor, compression: nn.Module,
                  down: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
        """Each branch plus what the other one had before: (context, detail) of the same shapes."""
        coarse = compression(self.relu(context))
        return (context + down(self.relu(detail)), detail + resize_to(coarse, detail))

    def rename_foreign(self, state: State) -> State:
        """Rename the keys of published and ImageNet files to ours; other keys stay."""
        return super().rename_foreign(to_our_keys(state, KEYS))


# Keys of the authors -> ours, of networks and of ImageNet files.
KEYS = (
    (r"^layer5\.0\.", "layer5."),
    *DUAL_RESOLUTION_KEYS,
    (r"^seghead_extra\.", "aux_head."),
)


def _entry(variant: str, files: tuple[str, ...], score: str = "") -> Published:
    form = Published(
        network=DDRNet, args={"variant": variant}, rename=PREFIXES + KEYS, drop=TRAINING_KEYS,
        classes="final_layer.conv2.weight", files=files, score=score)
    return replace(form, forms=(replace(form, args={**form.args, "use_aux": False}),))


PUBLISHED = {
    "ddrnet_23_slim": _entry("23-slim", ("best_val_smaller.pth",), "Cityscapes val mIoU 77.8"),
    "ddrnet_23": _entry("23", ("best_val.pth",)),
}
