"""DeepLabV3. Chen et al., Rethinking Atrous Convolution for Semantic Image
Segmentation, 2017, arXiv:1706.05587.

The network of torchvision. Published (COCO with the 21 VOC classes, mIoU on
COCO val2017): `deeplabv3_resnet50_coco-cd0a2569.pth` 66.4,
`deeplabv3_resnet101_coco-586e9e4e.pth` 67.4,
`deeplabv3_mobilenet_v3_large-fc3c493d.pth` 60.3. Checkpoints of
hoya012/semantic-segmentation-tutorial-pytorch (20 outputs, the last one is void; no
auxiliary head; norm batch, instance, group or EvoNorm-S0) load as
`hoya012_deeplabv3_*`; none of them is published.

Differs from the paper: no multi-grid; ASPP rates 12, 24, 36 for every output stride.
"""
from torch import nn

from models.layers.auxiliary import AuxiliaryHeadModel
from models.layers.conv_norm_act import conv_norm_act
from models.layers.heads import ASPP, fcn_head
from models.weights.published import Published
from models.weights.start_weights import StartsFromFiles


class DeepLabV3(StartsFromFiles, AuxiliaryHeadModel):
    """ASPP on a dilated backbone.

    x: float (N, 3, H, W), normalized RGB; any H and W. output_stride: 8 or 16;
    mobilenet_v3_large only has 16. use_aux: whether the auxiliary head is built. A
    training batch needs at least two images (image pooling).
    eval:  logits (N, C, H, W)
    train: {"out": logits (N, C, H, W), "aux": logits (N, C, H, W)}
    """

    output_weights = {"out": 1.0, "aux": 0.5}

    def __init__(self, num_classes: int, backbone: str = "resnet50", pretrained: bool = False,
                 output_stride: int = 8, use_aux: bool = True, norm: str = "batch"):
        super().__init__()
        aux, last = self.build_encoder(backbone, use_aux, output_stride=output_stride,
                                       pretrained=pretrained, norm=norm)
        self.head = nn.Sequential(ASPP(last, 256, (12, 24, 36), norm=norm),
                                  *conv_norm_act(256, 256, 3, norm=norm),
                                  nn.Conv2d(256, num_classes, 1))
        if use_aux:
            self.aux_head = fcn_head(aux, aux // 4, num_classes, norm=norm)


# Keys of torchvision and hoya012 -> ours.
ASPP_KEYS = ((r"^classifier\.0\.convs\.4\.1\.", "head.0.image.0."),
             (r"^classifier\.0\.convs\.4\.2\.", "head.0.image.1."),
             (r"^classifier\.0\.convs\.", "head.0.branches."), (r"^classifier\.", "head."))
AUX_KEYS = ((r"^aux_classifier\.", "aux_head."),)
MOBILENET_KEYS = ((r"^backbone\.(\d+)\.", r"backbone.layers.\1."),)

PUBLISHED = {
    f"torchvision_deeplabv3_{name}": Published(
        network=DeepLabV3, args=args,
        rename=ASPP_KEYS + AUX_KEYS + keys, classes="classifier.4.weight", files=(file,),
        score=f"COCO val2017, VOC classes: mIoU {score}")
    for name, args, keys, file, score in (
        ("resnet50", {"backbone": "resnet50"}, (), "deeplabv3_resnet50_coco-cd0a2569.pth", 66.4),
        ("resnet101", {"backbone": "resnet101"}, (), "deeplabv3_resnet101_coco-586e9e4e.pth", 67.4),
        ("mobilenet_v3_large", {"backbone": "mobilenet_v3_large", "output_stride": 16},
         MOBILENET_KEYS, "deeplabv3_mobilenet_v3_large-fc3c493d.pth", 60.3))
} | {
    f"hoya012_deeplabv3_{backbone}_{name}": Published(
        network=DeepLabV3, args={"backbone": backbone, "use_aux": False, "norm": norm},
        # The files contain a running variance that EvoNorm-S0 does not use.
        drop=(r"running_var$",) if name == "evo" else (),
        rename=ASPP_KEYS, classes="classifier.4.weight")
    for backbone, name, norm in (
        ("resnet50", "batch", "batch"), ("resnet101", "batch", "batch"),
        ("resnet50", "group", "group"), ("resnet50", "instance", "instance_hoya012"),
        ("resnet50", "evo", "evo_s0_hoya012"))
}
