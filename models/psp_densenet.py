"""PSPNet on DenseNet. Zhao et al., CVPR 2017; Huang et al., CVPR 2017.

The network of yassouali/pytorch-segmentation; checkpoints of its trainer load as
`yassouali_pspdensenet201`. No weights are published.

Differs from the source: always the 7x7 stem, which the source uses with pretrained=True. Its
other stem contains one pair of layers twice by mistake.
"""
from models.pspnet import HEAD_KEYS, PSPNet
from models.weights.published import Published


class PSPDenseNet(PSPNet):
    """Pyramid pooling on a DenseNet, output stride 8: the last two poolings become dilation.

    x: float (N, 3, H, W), normalized RGB; any H and W. use_aux: whether the auxiliary
    head is built. A training batch needs at least two images (1x1 bin).
    eval:  logits (N, C, H, W)
    train: {"out": logits (N, C, H, W), "aux": logits (N, C, H, W)}
    """

    def __init__(self, num_classes: int, backbone: str = "densenet201", pretrained: bool = False,
                 output_stride: int = 8, use_aux: bool = True, bins: tuple = (1, 2, 3, 6),
                 norm: str = "batch"):
        super().__init__(num_classes, backbone, pretrained, output_stride, use_aux, bins, norm)


PUBLISHED = {
    "yassouali_pspdensenet201": Published(
        network=PSPDenseNet, classes="master_branch.1.weight",
        rename=((r"^block0\.0\.", "backbone.conv0."), (r"^block0\.1\.", "backbone.norm0."),
                (r"^block(\d)\.", r"backbone.denseblock\1."),
                (r"^transition(\d)\.0\.", r"backbone.transition\1.norm."),
                (r"^transition(\d)\.2\.", r"backbone.transition\1.conv."),
                (r"^transition(\d)\.", r"backbone.transition\1."), *HEAD_KEYS)),
}
