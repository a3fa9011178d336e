"""GCN. Peng et al., Large Kernel Matters: Improve Semantic Segmentation by Global
Convolutional Network, CVPR 2017, arXiv:1703.02719.

The network of yassouali/pytorch-segmentation; checkpoints of its trainer load as
`yassouali_gcn_resnet50` and `yassouali_gcn_resnet50_deconv`. No weights are
published.

Differs from the source: the two norms of the boundary refinement, which are stored there but
never used, are not built. The deconvolution variant works for any size (there, all sizes
except certain multiples of 8 raise an error): the image is padded with zeros and the logits
are cropped. The option use_resnet_gcn, which does not work there, does not exist.
"""
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from models.backbones import build_backbone
from models.backbones.resnet import YASSOUALI_KEYS
from models.layers.init import he_init
from models.layers.resize import resize_to
from models.weights.published import Published
from models.weights.start_weights import StartsFromFiles
from utils.errors import ConfigError
from utils.machine.tensors import ImageBatch, Logits


class GCN(StartsFromFiles):
    """Large separable kernels on four feature maps, refined at every scale of the decoder.

    x: float (N, 3, H, W), normalized RGB; any H and W. kernel_size: of the large
    kernels; odd. use_deconv: use transposed convolutions instead of bilinear resizes.
    eval:  logits (N, C, H, W)
    train: {"out": logits (N, C, H, W)}
    """

    def __init__(self, num_classes: int, backbone: str = "resnet50", pretrained: bool = False,
                 kernel_size: int = 11, use_deconv: bool = False, norm: str = "batch"):
        super().__init__()
        if kernel_size % 2 == 0:
            raise ConfigError(f"kernel_size must be odd, got {kernel_size}",
                              where="arch.args.kernel_size")
        self.backbone = build_backbone(backbone, levels=4, pyramid=True,
                                       pretrained=pretrained, norm=norm)
        self.use_deconv = use_deconv
        self.gcn1, self.gcn2, self.gcn3, self.gcn4 = (
            _LargeKernel(channels, num_classes, kernel_size)
            for channels in self.backbone.channels[-4:])
        (self.br1, self.br2, self.br3, self.br4, self.br5, self.br6, self.br7, self.br8,
         self.br9) = (_Refine(num_classes) for _ in range(9))
        if use_deconv:
            self.decon1, self.decon2, self.decon3, self.decon4, self.decon5 = (
                nn.ConvTranspose2d(num_classes, num_classes, 3, stride=2, padding=1,
                                   output_padding=1, bias=False) for _ in range(5))
        self.final_conv = nn.Conv2d(num_classes, num_classes, 1)
        he_init(*(child for name, child in self.named_children() if name != "backbone"))

    def forward(self, x: ImageBatch) -> Logits | dict[str, Logits]:
        up = self._up_by_deconvolution if self.use_deconv else self._up_by_resize
        out = self.final_conv(up(x))
        return {"out": out} if self.training else out

    def _refined(self, x: ImageBatch) -> tuple[torch.Tensor, ...]:
        """The class maps of the four scales, from high to low resolution."""
        x1, x2, x3, x4 = self.backbone(x)[-4:]
        return (self.br1(self.gcn1(x1)), self.br2(self.gcn2(x2)), self.br3(self.gcn3(x3)),
                self.br4(self.gcn4(x4)))

    def _up_by_resize(self, x: ImageBatch) -> torch.Tensor:
        x1, x2, x3, x4 = self._refined(x)
        x3 = self.br5(x3 + resize_to(x4, x3, align_corners=True))
        x2 = self.br6(x2 + resize_to(x3, x2, align_corners=True))
        x1 = self.br7(x1 + resize_to(x2, x1, align_corners=True))
        return self.br9(resize_to(self.br8(x1), x, align_corners=True))

    def _up_by_deconvolution(self, x: ImageBatch) -> torch.Tensor:
        height, width = x.shape[-2:]
        x1, x2, x3, x4 = self._refined(F.pad(x, (0, -width % 8, 0, -height % 8)))
        x3 = self.br5(x3 + _fit(self.decon4(x4), x3))
        x2 = self.br6(x2 + _fit(self.decon3(x3), x2))
        x1 = self.br7(x1 + self.decon2(x2))
        out = self.decon5(self.br8(self.decon1(x1)))
        return self.br9(out)[..., :height, :width]


class _LargeKernel(nn.Module):
    """k x 1 then 1 x k, plus 1 x k then k x 1: (N, in, H, W) -> (N, C, H, W)."""

    def __init__(self, in_channels: int, channels: int, size: int):
        super().__init__()
        tall: dict[str, Any] = {"kernel_size": (size, 1), "padding": (size // 2, 0)}
        wide: dict[str, Any] = {"kernel_size": (1, size), "padding": (0, size // 2)}
        self.conv11 = nn.Conv2d(in_channels, channels, **tall)
        self.conv12 = nn.Conv2d(channels, channels, **wide)
        self.conv21 = nn.Conv2d(in_channels, channels, **wide)
        self.conv22 = nn.Conv2d(channels, channels, **tall)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv12(self.conv11(x)) + self.conv22(self.conv21(x))


class _Refine(nn.Module):
    """Boundary refinement: x + conv(relu(conv(x)))."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv2(F.relu(self.conv1(x), inplace=True))


def _fit(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Cut a doubled map at the top and left to the size of `like`, which may be odd."""
    return x[..., x.shape[-2] - like.shape[-2]:, x.shape[-1] - like.shape[-1]:]


PUBLISHED = {
    f"yassouali_gcn_resnet50{suffix}": Published(
        network=GCN, args={"backbone": "resnet50", "use_deconv": deconv},
        drop=(r"^br\d\.bn\d\.",), rename=YASSOUALI_KEYS, classes="final_conv.weight")
    for suffix, deconv in (("", False), ("_deconv", True))
}
