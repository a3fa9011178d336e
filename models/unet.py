"""U-Net. Ronneberger et al., MICCAI 2015, arXiv:1505.04597.

The network of yassouali/pytorch-segmentation; checkpoints of its trainer load as
`yassouali_unet`, with the same keys. No weights are published.

Differs from the paper: padded convolutions with batch norm, and the first
convolution of each pair has half the channels of the second.
"""
import torch
import torch.nn.functional as F
from torch import nn

from base.base_model import BaseModel
from models.layers.conv_norm_act import conv_norm_act
from models.layers.init import he_init
from models.layers.resize import resize_to
from models.weights.published import Published
from utils.machine.tensors import ImageBatch, Logits


class UNet(BaseModel):
    """Four poolings down, four transposed convolutions up, with skips.

    x: float (N, 3, H, W), normalized RGB; any H and W. Poolings round up, and an upsampled map
    that is one pixel larger than its skip is resized to it.
    eval:  logits (N, C, H, W)
    train: {"out": logits (N, C, H, W)}
    """

    def __init__(self, num_classes: int, norm: str = "batch"):
        super().__init__()
        self.start_conv = _two_convs(3, 64, norm)
        self.down1 = _Down(64, 128, norm)
        self.down2 = _Down(128, 256, norm)
        self.down3 = _Down(256, 512, norm)
        self.down4 = _Down(512, 1024, norm)
        self.middle_conv = _two_convs(1024, 1024, norm)
        self.up1 = _Up(1024, 512, norm)
        self.up2 = _Up(512, 256, norm)
        self.up3 = _Up(256, 128, norm)
        self.up4 = _Up(128, 64, norm)
        self.final_conv = nn.Conv2d(64, num_classes, 1)
        he_init(self)
        nn.init.zeros_(self.final_conv.get_parameter("bias"))

    def forward(self, x: ImageBatch) -> Logits | dict[str, Logits]:
        maps = [self.start_conv(x)]                 # (N, 64, H, W)
        for down in (self.down1, self.down2, self.down3, self.down4):
            maps.append(down(maps[-1]))             # (N, 2 C, H/2, W/2)
        x = self.middle_conv(maps.pop())            # (N, 1024, H/16, W/16)
        for up in (self.up1, self.up2, self.up3, self.up4):
            x = up.up_conv(up.join(maps.pop(), x))  # no name for the map, so it is freed early
        out = self.final_conv(x)
        return {"out": out} if self.training else out


class _Down(nn.Module):
    """(N, in, H, W) -> (N, out, ceil(H/2), ceil(W/2))."""

    def __init__(self, in_channels: int, channels: int, norm: str):
        super().__init__()
        self.down_conv = _two_convs(in_channels, channels, norm)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.max_pool2d(self.down_conv(x), 2, ceil_mode=True)


class _Up(nn.Module):
    """Doubles the size and joins the skip; then two convolutions."""

    def __init__(self, in_channels: int, channels: int, norm: str):
        super().__init__()
        self.up = nn.ConvTranspose2d(in_channels, in_channels // 2, 2, stride=2)
        self.up_conv = _two_convs(in_channels, channels, norm)

    def join(self, skip: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """skip (N, out, H, W) and x (N, 2 out, H/2, W/2) -> (N, 2 out, H, W)."""
        return torch.cat([skip, resize_to(self.up(x), skip, align_corners=True)], dim=1)


def _two_convs(in_channels: int, channels: int, norm: str) -> nn.Sequential:
    return nn.Sequential(*conv_norm_act(in_channels, channels // 2, 3, norm=norm),
                         *conv_norm_act(channels // 2, channels, 3, norm=norm))


PUBLISHED = {
    "yassouali_unet": Published(network=UNet, classes="final_conv.weight"),
}
