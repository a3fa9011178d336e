"""HRNet + OCR with hierarchical multi-scale attention.

Tao et al., Hierarchical Multi-Scale Attention for Semantic Segmentation, 2020,
arXiv:2005.10821, as in the code of NVIDIA, MIC-DKFZ and PaddleSeg. The formula in the
comments of the published code has a "*" where the code correctly has a "+".

Published checkpoints: `nvidia_ocrnet_hrnet_mscale` (Cityscapes and Mapillary),
`paddle_mscale_ocrnet_w48` (`model.pdparams` of PaddleSeg's contrib/CityscapesSOTA).
Checkpoints that MIC-DKFZ's program saves load as `mic_hrnet_ocr_ms`.
"""
import math

import torch
import torch.nn.functional as F
from torch import nn

from base.base_model import BaseModel
from models.backbones import build_backbone
from models.backbones.hrnet import PADDLE_KEYS
from models.layers.concat_maps import concat_maps
from models.layers.conv_norm_act import classifier_head, conv_norm_act
from models.layers.ocr import OCR_KEYS, PADDLE_OCR_KEYS, OCRHead
from models.layers.resize import resize_to
from models.weights.openseg import backbone_keys
from models.weights.published import Published
from models.weights.rename_keys import PREFIXES, TRAINING_KEYS, Rule, to_our_keys
from utils.checkpoint.read import read_weights
from utils.errors import ConfigError
from utils.machine.tensors import ImageBatch, Logits

# variant -> (align_corners, recompute_ratio). recompute_ratio: the scaled input is sampled by the
# ratio of the two sizes instead of the scale; they differ if size * scale is not a whole number.
VARIANTS = {"nvidia": (False, True), "mic": (True, True), "paddle": (False, False)}


class MscaleOCR(BaseModel):
    """One network, applied at several scales; an attention map fuses the results.

    x: float (N, 3, H, W), normalized RGB; any H and W.
    eval:  logits (N, C, H, W), fused over eval_scales
    train: {"out": fused over train_scales, "aux": the auxiliary logits fused by the same
           attention, "pred_05x", "pred_10x": each training scale's own logits}, all at (H, W)

    Both lists of scales must contain 1.0. The attribute eval_scales may be changed at any time.
    variant: "nvidia", "mic" (align_corners everywhere) or "paddle" (the input is sampled by
    the scale as given). PaddleSeg updates its running variances with the biased variance of
    the batch; here every variant uses the unbiased one, as torch does.
    """

    output_weights = {"out": 1.0, "aux": 0.4, "pred_05x": 0.05, "pred_10x": 0.05}

    def __init__(self, num_classes: int, backbone: str = "hrnet_w48", mid_channels: int = 512,
                 key_channels: int = 256, attention_channels: int = 256,
                 train_scales: tuple = (0.5, 1.0), eval_scales: tuple = (0.5, 1.0, 2.0),
                 variant: str = "nvidia", dropout: float = 0.05, norm: str = "batch",
                 pretrained: bool = False):
        super().__init__()
        if variant not in VARIANTS:
            raise ConfigError(f"variant must be one of {', '.join(VARIANTS)}, got {variant!r}",
                              "arch.args.variant")
        self.align_corners, self.recompute_ratio = VARIANTS[variant]
        self.train_scales = tuple(sorted(map(float, train_scales)))
        self.eval_scales = tuple(eval_scales)
        _check_scales(self.train_scales, "arch.args.train_scales")
        _check_scales(self.eval_scales, "arch.args.eval_scales")
        self.output_weights = {"out": 1.0, "aux": 0.4,
                               **{_scale_name(s): 0.05 for s in self.train_scales}}
        self.backbone = build_backbone(backbone, norm=norm, pretrained=pretrained,
                                       if_known={"align_corners": self.align_corners})
        channels = sum(self.backbone.channels)
        self.aux_head = classifier_head(channels, channels, num_classes, norm=norm)
        self.head = OCRHead(channels, num_classes, mid_channels, key_channels, dropout=dropout,
                            norm=norm)
        self.attention = nn.Sequential(
            conv_norm_act(mid_channels, attention_channels, 3, norm=norm),
            conv_norm_act(attention_channels, attention_channels, 3, norm=norm),
            nn.Conv2d(attention_channels, 1, 1, bias=False))

    def forward(self, x: ImageBatch) -> Logits | dict[str, Logits]:
        if not self.training:
            return self.fuse(x, self.eval_scales)["out"]
        fused = self.fuse(x, self.train_scales, with_aux=True, with_parts=True)
        outputs = {"out": fused["out"], "aux": fused["aux"]}
        for scale in self.train_scales:
            outputs[_scale_name(scale)] = resize_to(fused[f"pred_{scale}x"], x, self.align_corners)
        return outputs

    def fuse(self, x: ImageBatch, scales: tuple, with_aux: bool = False,
             with_parts: bool = False) -> dict[str, Logits]:
        """Fuse the logits of `x`, float (N, 3, H, W), over `scales`, largest scale first.

        Returns "out": (N, C, H, W). with_aux: also "aux". with_parts: also the logits "pred_Sx"
        of every scale S and, except for the largest scale, the attention "attn_Sx",
        (N, 1, S H, S W), both at the size of the scaled image.
        """
        _check_scales(scales, "eval_scales")
        result: dict[str, Logits] = {}
        for scale in sorted(map(float, scales), reverse=True):
            image = self._scaled(x, scale)
            pred, pred_aux, attention = self._single(image, "out" in result, with_aux)
            if with_parts:
                result[f"pred_{scale}x"] = pred
                if attention is not None:
                    result[f"attn_{scale}x"] = attention
            result["out"] = self._mix(result.get("out"), pred, attention, scale)
            if pred_aux is not None:
                result["aux"] = self._mix(result.get("aux"), pred_aux, attention, scale)
        return result

    def _single(self, image: ImageBatch, with_attention: bool, with_aux: bool
                ) -> tuple[Logits, Logits | None, torch.Tensor | None]:
        """One pass: logits, auxiliary logits or None, attention or None, at the image's size."""
        features = concat_maps(self.backbone(image), self.align_corners)
        aux = self.aux_head(features)
        pred, context = self.head(features, aux)
        attention = self.attention(context).sigmoid() if with_attention else None
        return (resize_to(pred, image, self.align_corners),
                resize_to(aux, image, self.align_corners) if with_aux else None,
                None if attention is None else resize_to(attention, image, self.align_corners))

    def _mix(self, larger: Logits | None, pred: Logits, attention: torch.Tensor | None,
             scale: float) -> Logits:
        """Fuse the result of the larger scales, None for the largest, with this scale's logits."""
        if larger is None or attention is None:
            return pred
        if scale >= 1.0:
            larger = resize_to(larger, pred, self.align_corners)
            return attention * pred + (1 - attention) * larger
        weighted = resize_to(attention * pred, larger, self.align_corners)
        return weighted + (1 - resize_to(attention, larger, self.align_corners)) * larger

    def _scaled(self, x: ImageBatch, scale: float) -> ImageBatch:
        if scale == 1.0:
            return x
        size = [math.floor(n * scale) for n in x.shape[2:]]
        if self.recompute_ratio or min(size) < 1:
            return resize_to(x, [max(1, n) for n in size], self.align_corners)
        return F.interpolate(x, scale_factor=float(scale), mode="bilinear", align_corners=False,
                             recompute_scale_factor=False)

    def rename_foreign(self, state: dict) -> dict:
        """Rename the keys of ImageNet, Paddle, Mapillary and openseg HRNets to ours."""
        return super().rename_foreign(to_our_keys(
            state, backbone_keys(self) + OCR_KEYS + ATTENTION_KEYS, PADDLE_MSCALE_KEYS))


# Keys of NVIDIA and MIC-DKFZ, and of PaddleSeg -> ours.
ATTENTION_KEYS = (
    (r"^scale_attn\.conv([01])\.", r"attention.\1.0."),
    (r"^scale_attn\.bn([01])\.", r"attention.\1.1."),
    (r"^scale_attn\.conv2\.", "attention.2."),
)
PADDLE_MSCALE_KEYS = PADDLE_OCR_KEYS + ((r"^scale_attn\.atten_head\.", "attention."),) + PADDLE_KEYS


def _check_scales(scales: tuple, where: str) -> None:
    if 1.0 not in scales or min(scales) <= 0:
        raise ConfigError(f"scales must be positive and contain 1.0, got {list(scales)}", where)
    if len(set(scales)) != len(scales):
        raise ConfigError(f"a scale is given twice in {list(scales)}", where)


def _scale_name(scale: float) -> str:
    return f"pred_{str(scale).replace('.', '')}x"


def _entry(variant: str, files: tuple[str, ...] = (),
           rename: tuple[Rule, ...] = PREFIXES + OCR_KEYS + ATTENTION_KEYS,
           classes: str = "ocr.cls_head.weight") -> Published:
    return Published(network=MscaleOCR, args={"variant": variant}, drop=TRAINING_KEYS,
                     rename=rename, classes=classes, files=files, read=read_weights)


PUBLISHED = {
    "nvidia_ocrnet_hrnet_mscale": _entry(
        "nvidia", ("cityscapes_ocrnet.HRNet_Mscale_outstanding-turtle.pth",
                   "mapillary_ocrnet.HRNet_Mscale_fast-rattlesnake.pth")),
    "mic_hrnet_ocr_ms": _entry("mic"),
    "paddle_mscale_ocrnet_w48": _entry(
        "paddle", ("mscale_ocr_hrnetw48_cityscapes_autolabel_mapillary/model.pdparams",
                   "ocrnet_hrnetw48_mapillary/pretrained.pdparams"),
        rename=PADDLE_MSCALE_KEYS, classes="ocrnet.head.cls_head.weight"),
}
