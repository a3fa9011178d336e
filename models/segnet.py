"""SegNet. Badrinarayanan et al., 2017, arXiv:1511.00561.

The form of yassouali/pytorch-segmentation, whose trainer's checkpoints load as
`yassouali_segnet`. In the RankDice fork (statmlben/rankseg) and in older
versions the decoder's convolutions and norms that keep the number of channels
*are* the encoder's, running statistics included: `shared_decoder`, checkpoints
as `rankseg_fork_segnet`. No weights are published.

Differs from the paper: the encoder is VGG-16 with batch norm as torchvision
builds it, with biases. Differs from the source: images below 32 pixels, which
it cannot pool, are padded and the logits cropped.
"""
import torch.nn.functional as F
from torch import nn

from models.backbones import build_backbone
from models.backbones.vgg import WIDTHS
from models.layers.init import he_init
from models.layers.norm import activation, norm_layer
from models.published import Published
from models.start_weights import StartsFromFiles
from utils.errors import ConfigError


class SegNet(StartsFromFiles):
    """VGG down, the mirrored convolutions up, unpooling by the stored positions of the maxima.

    x: (N, 3, H, W) normalised RGB, any H and W. backbone: vgg11_bn … vgg19_bn.
    eval: logits (N, C, H, W); train: {"out": logits}.
    """

    def __init__(self, num_classes: int, backbone: str = "vgg16_bn", pretrained: bool = False,
                 shared_decoder: bool = False, norm: str = "batch"):
        super().__init__()
        if not (backbone.startswith("vgg") and backbone.endswith("_bn")):
            raise ConfigError(f"SegNet needs a vgg backbone with norms, got {backbone!r}",
                              where="arch.args.backbone", fix="take vgg16_bn")
        self.backbone = build_backbone(backbone, pretrained=pretrained, norm=norm)
        stages = []
        for i in reversed(range(5)):
            width, below = WIDTHS[i], WIDTHS[max(i - 1, 0)]
            first, _ = self.backbone.bounds[i]
            parts = []
            for j in reversed(range(self.backbone.convs[i])):
                channels = below if j == 0 else width
                # What the same place of the encoder has, if it has these widths.
                twin = self.backbone.features[first + 3 * j:first + 3 * j + 2]
                outermost = i == 0 and j == 0       # 3 channels there: only the norm fits
                share = shared_decoder and channels == width
                conv = twin[0] if share and not outermost else nn.Conv2d(width, channels, 3,
                                                                         padding=1)
                layer = twin[1] if share else norm_layer(norm)(channels)
                parts += [conv, layer, activation(norm)]
            stages.append(parts)
        stages[-1].append(nn.Conv2d(WIDTHS[0], num_classes, 3, padding=1))
        self.decoder = nn.ModuleList(nn.Sequential(*parts) for parts in stages)
        encoder = {id(module) for module in self.backbone.modules()}
        for module in self.decoder.modules():
            if id(module) not in encoder and isinstance(module, nn.Conv2d):
                he_init(module)
                nn.init.zeros_(module.bias)

    def forward(self, x):
        height, width = x.shape[-2:]
        if min(height, width) < 32:
            x = F.pad(x, (0, max(0, 32 - width), 0, max(0, 32 - height)))
        stored = []
        for i in range(5):
            x = self.backbone.stage(i, x)
            size = x.shape[-2:]
            x, positions = F.max_pool2d(x, 2, return_indices=True)
            stored.append((positions, size))
        for stage in self.decoder:
            positions, size = stored.pop()
            x = stage(F.max_unpool2d(x, positions, 2, output_size=size))
        out = x[..., :height, :width]
        return {"out": out} if self.training else out


def _share(state):
    """The encoder's values for the keys that name its tensors a second time."""
    # decoder stage, place -> encoder stage, place; of convolutions and norms.
    for decoder, encoder, places in ((1, 5, "67 34 01"), (2, 4, "67 34"), (3, 3, "67 34"),
                                     (4, 2, "34"), (5, 1, "34 -1")):
        for i, pair in enumerate(places.split()):
            for j, place in enumerate(pair):
                if place != "-":
                    source = f"stage{encoder}_encoder.{place}."
                    target = f"stage{decoder}_decoder.{3 * i + j}."
                    state |= {target + key.removeprefix(source): value
                              for key, value in state.items() if key.startswith(source)}
    return state


# Place of the first convolution of each published stage in VGG's `features`.
_STAGES = {1: 0, 2: 7, 3: 14, 4: 24, 5: 34}
_KEYS = tuple((rf"^stage{stage}_encoder\.{i}\.", f"backbone.features.{start + i}.")
              for stage, start in _STAGES.items() for i in range(8)) + tuple(
    (rf"^stage{stage}_decoder\.", f"decoder.{stage - 1}.") for stage in _STAGES)

PUBLISHED = {
    "yassouali_segnet": Published(network=SegNet, rename=_KEYS, classes="stage5_decoder.6.weight"),
    "rankseg_fork_segnet": Published(network=SegNet, args={"shared_decoder": True},
                                     convert=_share, rename=_KEYS,
                                     classes="stage5_decoder.6.weight"),
}
