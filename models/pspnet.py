"""PSPNet. Zhao et al., Pyramid Scene Parsing Network, CVPR 2017, arXiv:1612.01105.

Published checkpoint: `PSPnet.pth`, ResNet-50 with the deep stem, VOC 2012 val mIoU 82 (README
of yassouali/pytorch-segmentation), loaded as `yassouali_pspnet_resnet50`.
Differs from the paper: logits are resized with align_corners=False; the 3x3 convolution
after the pyramid has a quarter of the encoder's channels.
"""
from torch import nn

from models.backbones.resnet import YASSOUALI_KEYS
from models.layers.auxiliary import AuxiliaryHeadModel
from models.layers.heads import PyramidPooling, fcn_head
from models.layers.init import he_init
from models.weights.published import Published
from models.weights.start_weights import StartsFromFiles


class PSPNet(StartsFromFiles, AuxiliaryHeadModel):
    """Pyramid pooling on a dilated backbone, output stride 8.

    x: float (N, 3, H, W), normalized RGB; any H and W.
    backbone: resnet50s, resnet101s and resnet152s are the encoders of
        yassouali/pytorch-segmentation, with the deep stem; other encoders also work.
    bins: sides of the pooled maps. use_aux: whether the auxiliary head is built.
    A training batch needs at least two images: batch norm cannot train on the one value per
    channel of a 1x1 region.
    eval:  logits (N, C, H, W)
    train: {"out": logits (N, C, H, W), "aux": logits (N, C, H, W)}, without "aux" if there is no
        auxiliary head; the forward is that of AuxiliaryHeadModel.
    """

    output_weights = {"out": 1.0, "aux": 0.4}

    def __init__(self, num_classes: int, backbone: str = "resnet50", pretrained: bool = False,
                 output_stride: int = 8, use_aux: bool = True, bins: tuple = (1, 2, 3, 6),
                 norm: str = "batch"):
        super().__init__()
        aux, last = self.build_encoder(backbone, use_aux, output_stride=output_stride,
                                       pretrained=pretrained, norm=norm)
        self.head = nn.Sequential(PyramidPooling(last, last // 4, bins, norm=norm),
                                  nn.Conv2d(last // 4, num_classes, 1))
        if use_aux:
            self.aux_head = fcn_head(aux, last // 4, num_classes, dropout_maps=True, norm=norm)
            he_init(self.aux_head, norm_bias=1e-4)
        he_init(self.head, norm_bias=1e-4)


# Keys of yassouali's PSPNet and PSPDenseNet -> keys of this network.
HEAD_KEYS = ((r"^master_branch\.", "head."), (r"^auxiliary_branch\.", "aux_head."))

VOC_MEAN, VOC_STD = (0.45734706, 0.43338275, 0.40058118), (0.23965294, 0.23532275, 0.2398498)

PUBLISHED = {
    f"yassouali_pspnet_resnet{depth}": Published(
        network=PSPNet, args={"backbone": f"resnet{depth}s"},
        rename=YASSOUALI_KEYS + HEAD_KEYS, classes="master_branch.1.weight", files=files,
        score=score, mean=VOC_MEAN, std=VOC_STD)
    for depth, files, score in ((50, ("PSPnet.pth",), "VOC 2012 val mIoU 82"), (101, (), ""),
                                (152, (), ""))
}
