"""UPerNet as in yassouali/pytorch-segmentation. Xiao et al., Unified Perceptual Parsing for Scene
Understanding, ECCV 2018, arXiv:1807.10221.

Checkpoints of its trainer load as `yassouali_upernet_resnet101`. No weights are published.
mmsegmentation's network, `UPerNet`, is another one: models/upernet.py.

Differs from the paper, like the source: each level adds only the next coarser one as it was
before merging; one 3x3 convolution, shared by all levels, smooths the sums; the poolings are
adaptive mean poolings. Differs from the source: `backbone` has an effect (there it is
always ResNet-101), and a 1x1 convolution brings the finest map to
`fpn_channels` channels if it has another number.
"""
import torch
from torch import nn

from models.backbones import build_backbone
from models.backbones.resnet import YASSOUALI_KEYS
from models.layers.conv_norm_act import conv_norm_act
from models.layers.heads import PyramidPooling
from models.layers.init import he_init
from models.layers.outputs import as_outputs
from models.layers.resize import resize_to
from models.weights.published import Published
from models.weights.start_weights import StartsFromFiles
from utils.machine.tensors import ImageBatch, Logits


class UperNet(StartsFromFiles):
    """yassouali's UPerNet (ResNet): every level adds the next coarser one before its own sum.

    x: float (N, 3, H, W), normalized RGB; any H and W. A training batch needs at
    least two images (1x1 bin).
    eval:  logits (N, C, H, W)
    train: {"out": logits (N, C, H, W)}
    """

    def __init__(self, num_classes: int, backbone: str = "resnet101", pretrained: bool = False,
                 output_stride: int = 16, fpn_channels: int = 256, norm: str = "batch"):
        super().__init__()
        self.backbone = build_backbone(backbone, levels=4, pyramid=True,
                                       output_stride=output_stride, pretrained=pretrained,
                                       norm=norm, if_known={"dilate_first": True})
        first, *rest = self.backbone.channels[-4:]
        self.ppm = PyramidPooling(rest[-1], rest[-1], (1, 2, 4, 6), norm=norm)
        self.lateral0 = (nn.Identity() if first == fpn_channels
                         else nn.Conv2d(first, fpn_channels, 1))
        self.laterals = nn.ModuleList(nn.Conv2d(channels, fpn_channels, 1) for channels in rest)
        self.smooth = nn.Conv2d(fpn_channels, fpn_channels, 3, padding=1)
        self.fuse = conv_norm_act(4 * fpn_channels, fpn_channels, 3, norm=norm)
        self.head = nn.Conv2d(fpn_channels, num_classes, 3, padding=1)
        he_init(*(child for name, child in self.named_children() if name != "backbone"))

    def forward(self, x: ImageBatch) -> Logits | dict[str, Logits]:
        maps = self.backbone(x)[-4:]
        maps[-1] = self.ppm(maps[-1])
        levels = [self.lateral0(maps[0])]
        levels += [lateral(m) for lateral, m in zip(self.laterals, maps[1:], strict=True)]
        merged = [self.smooth(fine + resize_to(coarse, fine, align_corners=True))
                  for fine, coarse in zip(levels, levels[1:], strict=False)] + [levels[-1]]
        merged = [resize_to(level, merged[0], align_corners=True) for level in merged]
        out = self.head(self.fuse(torch.cat(merged, dim=1)))
        return as_outputs({"out": out}, x, self.training)


PUBLISHED = {
    "yassouali_upernet_resnet101": Published(
        network=UperNet, args={"backbone": "resnet101"}, classes="head.weight",
        drop=(r"^FPN\.smooth_conv\.[12]\.",),
        rename=YASSOUALI_KEYS + ((r"^PPN\.", "ppm."), (r"^FPN\.conv1x1\.", "laterals."),
                                 (r"^FPN\.smooth_conv\.0\.", "smooth."),
                                 (r"^FPN\.conv_fusion\.", "fuse."))),
}
