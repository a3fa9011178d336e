"""SegNet. Badrinarayanan et al., 2017, arXiv:1511.00561.

The network of yassouali/pytorch-segmentation; checkpoints of its trainer load as
`yassouali_segnet`. In the RankDice fork (statmlben/rankseg) and in older
versions, decoder convolutions and norms that keep the number of channels
*are* those of the encoder, including running statistics: `shared_decoder`; such checkpoints
load as `rankseg_fork_segnet`. No weights are published.

Differs from the paper: the encoder is torchvision's VGG-16 with batch norm and
biases. Differs from the source: images below 32 pixels, which it cannot pool, are padded and
the logits are cropped.
"""
import torch.nn.functional as F
from torch import nn

from models.backbones import build_backbone
from models.backbones.vgg import VGG, WIDTHS
from models.layers.init import he_init
from models.layers.norm import activation, norm_layer
from models.layers.resize import max_unpool
from models.weights.published import Published
from models.weights.rename_keys import State
from models.weights.start_weights import StartsFromFiles
from utils.errors import ConfigError
from utils.machine.tensors import ImageBatch, Logits


class SegNet(StartsFromFiles):
    """VGG and its mirror image as decoder, which unpools by the stored positions of the maxima.

    x: float (N, 3, H, W), normalized RGB; any H and W. backbone: vgg11_bn to vgg19_bn.
    eval:  logits (N, C, H, W)
    train: {"out": logits (N, C, H, W)}
    """

    def __init__(self, num_classes: int, backbone: str = "vgg16_bn", pretrained: bool = False,
                 shared_decoder: bool = False, norm: str = "batch"):
        super().__init__()
        if not (backbone.startswith("vgg") and backbone.endswith("_bn")):
            raise ConfigError(f"SegNet needs a vgg backbone with norms, got {backbone!r}",
                              where="arch.args.backbone", fix="use vgg16_bn")
        encoder = build_backbone(backbone, pretrained=pretrained, norm=norm)
        assert isinstance(encoder, VGG)
        self.backbone = encoder
        stages: list[list[nn.Module]] = []
        for i in reversed(range(5)):
            width, below = WIDTHS[i], WIDTHS[max(i - 1, 0)]
            first, _ = encoder.bounds[i]
            parts: list[nn.Module] = []
            for j in reversed(range(encoder.convs[i])):
                channels = below if j == 0 else width
                # The convolution and the norm at the same place in the encoder.
                twin = encoder.features[first + 3 * j:first + 3 * j + 2]
                outermost = i == 0 and j == 0       # 3 input channels: only the norm is shared
                share = shared_decoder and channels == width
                conv = twin[0] if share and not outermost else nn.Conv2d(width, channels, 3,
                                                                         padding=1)
                layer = twin[1] if share else norm_layer(norm)(channels)
                parts += [conv, layer, activation(norm)]
            stages.append(parts)
        stages[-1].append(nn.Conv2d(WIDTHS[0], num_classes, 3, padding=1))
        self.decoder = nn.ModuleList(nn.Sequential(*parts) for parts in stages)
        shared = {id(module) for module in encoder.modules()}
        for module in self.decoder.modules():
            if id(module) not in shared and isinstance(module, nn.Conv2d):
                he_init(module)
                nn.init.zeros_(module.get_parameter("bias"))

    def forward(self, x: ImageBatch) -> Logits | dict[str, Logits]:
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
            x = stage(max_unpool(x, positions, size))
        out = x[..., :height, :width]
        return {"out": out} if self.training else out


def _share(state: State) -> State:
    """Add the decoder keys of shared tensors, which the file may store only as encoder keys."""
    # (decoder stage, encoder stage, pairs of convolution and norm: their indices in the encoder's
    # stage, in the order of the decoder's stage; "-": not shared)
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


# The index in VGG's `features` at which each published stage starts.
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
