"""FCN on a dilated ResNet. Long et al., CVPR 2015, arXiv:1411.4038; the network of torchvision.

Published (COCO with the 21 VOC classes, mIoU on COCO val2017):
`fcn_resnet50_coco-1167a1af.pth` 60.5, `fcn_resnet101_coco-7ecb50ca.pth` 63.7.
"""
from models.layers.auxiliary import AuxiliaryHeadModel
from models.layers.heads import fcn_head
from models.weights.published import Published
from models.weights.start_weights import StartsFromFiles


class FCNResNet(StartsFromFiles, AuxiliaryHeadModel):
    """One 3x3 convolution and a classifier on the features of stride 8.

    x: float (N, 3, H, W), normalized RGB; any H and W. use_aux: whether the auxiliary
    head is built.
    eval:  logits (N, C, H, W)
    train: {"out": logits (N, C, H, W), "aux": logits (N, C, H, W)}
    """

    output_weights = {"out": 1.0, "aux": 0.5}

    def __init__(self, num_classes: int, backbone: str = "resnet50", pretrained: bool = False,
                 output_stride: int = 8, use_aux: bool = True, norm: str = "batch"):
        super().__init__()
        aux, last = self.build_encoder(backbone, use_aux, output_stride=output_stride,
                                       pretrained=pretrained, norm=norm)
        self.head = fcn_head(last, last // 4, num_classes, norm=norm)
        if use_aux:
            self.aux_head = fcn_head(aux, aux // 4, num_classes, norm=norm)


PUBLISHED = {
    f"torchvision_fcn_{name}": Published(
        network=FCNResNet, args={"backbone": name},
        rename=((r"^classifier\.", "head."), (r"^aux_classifier\.", "aux_head.")),
        classes="classifier.4.weight", files=(file,),
        score=f"COCO val2017, VOC classes: mIoU {score}")
    for name, file, score in (("resnet50", "fcn_resnet50_coco-1167a1af.pth", 60.5),
                              ("resnet101", "fcn_resnet101_coco-7ecb50ca.pth", 63.7))
}
