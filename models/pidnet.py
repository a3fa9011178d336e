"""PIDNet S, M and L. Xu et al., PIDNet: A Real-time Semantic Segmentation Network Inspired by PID
Controllers, CVPR 2023, arXiv:2206.02066.

Published checkpoints (XuJiacong/PIDNet): Cityscapes val mIoU 78.8, 79.9 and 80.9 for S, M and L,
CamVid test 80.1 for S. Files without the two extra heads load too, into a network without them.

Differs from the source: any input size. There only multiples of 8 run; here maps of other sizes are
rounded up, and a coarse map is resized to the actual size of the finer one.
"""
from dataclasses import replace

import torch
from torch import nn

from base.base_model import BaseModel
from models.layers.dual_resolution import (
    DUAL_RESOLUTION_KEYS,
    NarrowBottleneck,
    ParallelPyramid,
    SequentialPyramid,
    basic_block,
    basic_stage,
    conv_norm,
    half_stem,
    norm_act_conv,
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

# variant -> (width of the stem, blocks in the shallow and in the deep stages, width of the
# pyramid's scales, width of the heads)
VARIANTS = {"s": (32, 2, 3, 96, 128), "m": (64, 2, 3, 96, 128), "l": (64, 3, 4, 112, 256)}


class PIDNet(BaseModel):
    """Three branches: details at stride 8, context down to stride 64, and boundaries at stride 8.

    x: float (N, 3, H, W), normalized RGB; any H and W.
    eval:  logits (N, C, H, W); the extra heads are not computed
    train: {"out": logits (N, C, H, W), "p": logits (N, C, H, W), of the details,
            "d": logits (N, 1, H, W) of boundaries between classes}

    variant: "s", "m" or "l". L has the pyramid of DDRNet and another fusion of the branches.
    use_aux: whether the heads of "p" and "d" exist. "d" is trained by a loss of boundaries, such as
    BoundaryBCELoss; docs/losses.md has the published combination.
    """

    output_weights = {"out": 1.0, "p": 0.4, "d": 20.0}
    output_channels = {"d": 1}

    def __init__(self, num_classes: int, variant: str = "s", use_aux: bool = True,
                 norm: str = "batch"):
        super().__init__()
        if variant not in VARIANTS:
            raise ConfigError(unknown("variant", variant, VARIANTS), "arch.args.variant")
        width, shallow, deep, scale, head = VARIANTS[variant]
        detail, small = 2 * width, variant != "l"       # channels of the maps at stride 8
        self.relu = activation(norm, after_sum=True)
        self.stem = half_stem(width, norm)
        self.layer1 = basic_stage(width, width, shallow, norm)
        self.layer2 = basic_stage(width, detail, shallow, norm, stride=2)
        self.layer3 = basic_stage(detail, 4 * width, deep, norm, stride=2)
        self.layer4 = basic_stage(4 * width, 8 * width, deep, norm, stride=2)
        self.layer5 = nn.Sequential(NarrowBottleneck(8 * width, 8 * width, 2, norm),
                                    NarrowBottleneck(16 * width, 8 * width, 1, norm))
        pyramid = ParallelPyramid if small else SequentialPyramid
        self.pyramid = pyramid(16 * width, scale, 4 * width, norm)

        self.detail3 = basic_stage(detail, detail, shallow, norm)
        self.detail4 = basic_stage(detail, detail, shallow, norm)
        self.detail5 = NarrowBottleneck(detail, detail, 1, norm)
        self.compression3 = conv_norm(4 * width, detail, 1, norm)
        self.compression4 = conv_norm(8 * width, detail, 1, norm)
        self.pag3 = GuidedFusion(detail, width, norm)
        self.pag4 = GuidedFusion(detail, width, norm)

        edge = width if small else detail
        self.boundary3 = basic_block(detail, edge, norm)
        self.boundary4 = (NarrowBottleneck(edge, edge, 1, norm) if small
                          else basic_block(edge, detail, norm))
        self.boundary5 = NarrowBottleneck(detail, detail, 1, norm)
        self.diff3 = conv_norm(4 * width, edge, 3, norm)
        self.diff4 = conv_norm(8 * width, detail, 3, norm)

        fusion = LightBoundaryFusion if small else BoundaryFusion
        self.fusion = fusion(4 * width, norm)
        self.head = pre_norm_head(4 * width, head, num_classes, norm)
        self.aux_head_p = self.aux_head_d = None
        if use_aux:
            self.aux_head_p = pre_norm_head(detail, head, num_classes, norm)
            self.aux_head_d = pre_norm_head(detail, width, 1, norm)
        else:
            self.output_weights, self.output_channels = {"out": 1.0}, {}
        he_init(self, mode="fan_out")

    def backbone_modules(self) -> list[nn.Module]:
        """The modules of the ImageNet network: the branches of details and context."""
        return [self.stem, self.layer1, self.layer2, self.layer3, self.layer4, self.layer5,
                self.detail3, self.detail4, self.detail5, self.compression3, self.compression4,
                self.pag3, self.pag4]

    def forward(self, x: ImageBatch) -> Logits | dict[str, Logits]:
        image, relu = x, self.relu
        x = relu(self.layer2(relu(self.layer1(self.stem(x)))))      # (N, 2 width, H/8, W/8)
        detail, boundary = self.detail3(x), self.boundary3(x)
        x = relu(self.layer3(x))                                    # (N, 4 width, H/16, W/16)
        detail = p = relu(self.pag3(detail, self.compression3(x)))
        boundary = relu(boundary + resize_to(self.diff3(x), boundary))

        x = relu(self.layer4(x))                                    # (N, 8 width, H/32, W/32)
        detail = relu(self.pag4(self.detail4(detail), self.compression4(x)))
        boundary = self.boundary4(boundary)
        boundary = d = relu(boundary + resize_to(self.diff4(x), boundary))

        detail, boundary = self.detail5(detail), self.boundary5(boundary)
        context = resize_to(self.pyramid(self.layer5(x)), detail)   # from H/64, W/64
        logits = {"out": self.head(self.fusion(detail, context, boundary))}
        if self.training and self.aux_head_p is not None and self.aux_head_d is not None:
            logits |= {"p": self.aux_head_p(p), "d": self.aux_head_d(d)}
        return as_outputs(logits, image, self.training, align_corners=True)

    def rename_foreign(self, state: State) -> State:
        """Rename the keys of published and ImageNet files to ours; other keys stay."""
        return super().rename_foreign(to_our_keys(state, KEYS))


class GuidedFusion(nn.Module):
    """Pag: context replaces details at the pixels where the two agree.

    detail: float (N, channels, H, W), context: (N, channels, h, w) -> (N, channels, H, W). The
    share of context is the sigmoid of the dot product of both, mapped to `key_channels`.
    """

    def __init__(self, channels: int, key_channels: int, norm: str):
        super().__init__()
        self.f_x = conv_norm(channels, key_channels, 1, norm)
        self.f_y = conv_norm(channels, key_channels, 1, norm)

    def forward(self, detail: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        key = resize_to(self.f_y(context), detail)
        share = (self.f_x(detail) * key).sum(1, keepdim=True).sigmoid().to(detail.dtype)
        return detail + share * (resize_to(context, detail) - detail)


class BoundaryFusion(nn.Module):
    """Bag: details at boundaries and context elsewhere, mixed by a 3x3 convolution.

    detail, context, boundary: float (N, channels, H, W) -> (N, channels, H, W).
    """

    def __init__(self, channels: int, norm: str):
        super().__init__()
        self.conv = norm_act_conv(channels, channels, 3, norm)

    def forward(self, detail: torch.Tensor, context: torch.Tensor,
                boundary: torch.Tensor) -> torch.Tensor:
        return self.conv(context + boundary.sigmoid() * (detail - context))


class LightBoundaryFusion(nn.Module):
    """Light-Bag: the sum of both, where each gets the other one's part by a 1x1 convolution.

    detail, context, boundary: float (N, channels, H, W) -> (N, channels, H, W).
    """

    def __init__(self, channels: int, norm: str):
        super().__init__()
        self.conv_p = conv_norm(channels, channels, 1, norm)
        self.conv_i = conv_norm(channels, channels, 1, norm)

    def forward(self, detail: torch.Tensor, context: torch.Tensor,
                boundary: torch.Tensor) -> torch.Tensor:
        share = boundary.sigmoid()
        return (self.conv_p(detail + (1 - share) * context)
                + self.conv_i(context + share * detail))


# Keys of the authors -> ours, of networks and of ImageNet files.
KEYS = (
    (r"^layer([345])_d\.(?:0\.)?", r"boundary\1."),
    (r"^dfm\.", "fusion."),
    *DUAL_RESOLUTION_KEYS,
    (r"^seghead_([pd])\.", r"aux_head_\1."),
)


def _entry(variant: str, files: tuple[str, ...], score: str) -> Published:
    form = Published(
        network=PIDNet, args={"variant": variant}, rename=PREFIXES + KEYS,
        drop=(*TRAINING_KEYS, r"^((module|model)\.)*(sem|bd)_loss\."),
        classes="final_layer.conv2.weight", files=files, score=score)
    return replace(form, forms=(replace(form, args={**form.args, "use_aux": False}),))


PUBLISHED = {
    "pidnet_s": _entry("s", (
        "PIDNet_S_Cityscapes_val.pt", "PIDNet_S_Cityscapes_test.pt", "PIDNet_S_Camvid_Test.pt"),
        "Cityscapes val mIoU 78.8"),
    "pidnet_m": _entry("m", (
        "PIDNet_M_Cityscapes_val.pt", "PIDNet_M_Cityscapes_test.pt"), "Cityscapes val mIoU 79.9"),
    "pidnet_l": _entry("l", (
        "PIDNet_L_Cityscapes_val.pt", "PIDNet_L_Cityscapes_test.pt"), "Cityscapes val mIoU 80.9"),
}
