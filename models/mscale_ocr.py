"""HRNet + OCR with hierarchical multi-scale attention.

Tao et al., Hierarchical Multi-Scale Attention for Semantic Segmentation, 2020,
arXiv:2005.10821, in the forms of NVIDIA, MIC-DKFZ and PaddleSeg. The formula in
the comments of the published code has a "*" where the code has, rightly, a "+".

Published checkpoints: `nvidia_ocrnet_hrnet_mscale` (Cityscapes and Mapillary),
`paddle_mscale_ocrnet_w48` (`model.pdparams` of PaddleSeg's contrib/CityscapesSOTA);
`mic_hrnet_ocr_ms` takes what MIC-DKFZ's program saves.
"""
import math

import torch
import torch.nn.functional as F
from torch import nn

from base.base_model import BaseModel
from models.backbones import build_backbone
from models.backbones.hrnet import PADDLE_KEYS
from models.foreign_state import BESIDE, PREFIXES, foreign_state
from models.layers.concat_maps import concat_maps
from models.layers.conv_norm_act import classifier_head, conv_norm_act
from models.layers.ocr import OCR_KEYS, PADDLE_OCR_KEYS, OCRHead
from models.layers.resize import resize_to
from models.openseg import backbone_keys
from models.published import Published
from utils.checkpoint import read_weights
from utils.errors import ConfigError

# variant -> (align_corners, whether the scaled input is sampled by the ratio of
# the two sizes rather than by the scale itself; the two differ where size * scale is not whole)
VARIANTS = {"nvidia": (False, True), "mic": (True, True), "paddle": (False, False)}


class MscaleOCR(BaseModel):
    """One network run at several scales, fused by attention from the coarsest to the finest.

    x: (N, 3, H, W) normalised RGB; any H and W.
    eval:  logits (N, C, H, W), fused over eval_scales
    train: {"out": fused over train_scales, "aux": the auxiliary logits fused by the same
           attention, "pred_05x", "pred_10x": each training scale's own logits}, all at (H, W)

    The scale 1.0 must be among both lists. eval_scales may be changed on the
    network at any time.
    variant: "nvidia", "mic" (align_corners everywhere) or "paddle" (input sampled by the
    scale as given). PaddleSeg updates its running variances with the biased variance of
    the batch; here every variant does as torch does.
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

    def forward(self, x: torch.Tensor):
        if not self.training:
            return self.fuse(x, self.eval_scales)["out"]
        fused = self.fuse(x, self.train_scales, with_aux=True, with_parts=True)
        outputs = {"out": fused["out"], "aux": fused["aux"]}
        for scale in self.train_scales:
            outputs[_scale_name(scale)] = resize_to(fused[f"pred_{scale}x"], x, self.align_corners)
        return outputs

    def fuse(self, x: torch.Tensor, scales: tuple, with_aux: bool = False,
             with_parts: bool = False) -> dict[str, torch.Tensor]:
        """Logits of `x` (N, 3, H, W) fused over `scales`, largest scale first.

        "out": (N, C, H, W); with_aux: "aux" too; with_parts: the logits
        "pred_Sx" and, but for the largest scale, the attention "attn_Sx" of every
        scale S at that scale's own size.
        """
        _check_scales(scales, "eval_scales")
        out = aux = None
        result = {}
        for scale in sorted(map(float, scales), reverse=True):
            image = self._scaled(x, scale)
            pred, pred_aux, attention = self._single(image, out is not None, with_aux)
            if with_parts:
                result[f"pred_{scale}x"] = pred
                if attention is not None:
                    result[f"attn_{scale}x"] = attention
            out = self._mix(out, pred, attention, scale)
            if with_aux:
                aux = self._mix(aux, pred_aux, attention, scale)
        result["out"] = out
        if with_aux:
            result["aux"] = aux
        return result

    def _single(self, image, with_attention, with_aux):
        """One pass: logits, auxiliary logits or None, attention or None, at the image's size."""
        features = concat_maps(self.backbone(image), self.align_corners)
        aux = self.aux_head(features)
        pred, context = self.head(features, aux)
        attention = self.attention(context).sigmoid() if with_attention else None
        return (resize_to(pred, image, self.align_corners),
                resize_to(aux, image, self.align_corners) if with_aux else None,
                resize_to(attention, image, self.align_corners) if with_attention else None)

    def _mix(self, larger, pred, attention, scale):
        """Fuse the result of the larger scales with this scale's logits."""
        if larger is None:
            return pred
        if scale >= 1.0:
            larger = resize_to(larger, pred, self.align_corners)
            return attention * pred + (1 - attention) * larger
        weighted = resize_to(attention * pred, larger, self.align_corners)
        return weighted + (1 - resize_to(attention, larger, self.align_corners)) * larger

    def _scaled(self, x, scale):
        if scale == 1.0:
            return x
        size = [math.floor(n * scale) for n in x.shape[2:]]
        if self.recompute_ratio or min(size) < 1:
            return resize_to(x, [max(1, n) for n in size], self.align_corners)
        return F.interpolate(x, scale_factor=float(scale), mode="bilinear", align_corners=False,
                             recompute_scale_factor=False)

    def rename_foreign(self, state: dict) -> dict:
        """ImageNet, Paddle, Mapillary and openseg HRNets in this network's keys."""
        return super().rename_foreign(foreign_state(
            state, backbone_keys(self) + OCR_KEYS + ATTENTION_KEYS, PADDLE_MSCALE_KEYS))


ATTENTION_KEYS = (
    (r"^scale_attn\.conv([01])\.", r"attention.\1.0."),
    (r"^scale_attn\.bn([01])\.", r"attention.\1.1."),
    (r"^scale_attn\.conv2\.", "attention.2."),
)
PADDLE_MSCALE_KEYS = PADDLE_OCR_KEYS + ((r"^scale_attn\.atten_head\.", "attention."),) + PADDLE_KEYS


def _check_scales(scales, where):
    if 1.0 not in scales or min(scales) <= 0:
        raise ConfigError(f"scales must be positive and hold 1.0, got {list(scales)}", where)
    if len(set(scales)) != len(scales):
        raise ConfigError(f"a scale stands twice in {list(scales)}", where)


def _scale_name(scale):
    return f"pred_{str(scale).replace('.', '')}x"


def _entry(variant, files=(), score="", rename=PREFIXES + OCR_KEYS + ATTENTION_KEYS,
           classes="ocr.cls_head.weight"):
    return Published(network=MscaleOCR, args={"variant": variant}, drop=BESIDE, rename=rename,
                     classes=classes, files=files, score=score, read=read_weights)


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
