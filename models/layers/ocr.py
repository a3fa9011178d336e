"""Object-contextual representations.

Yuan et al., Object-Contextual Representations for Semantic Segmentation, ECCV 2020,
arXiv:1909.11065. A coarse segmentation assigns pixels to classes. Every class becomes one
feature vector, and every pixel attends to these vectors.
"""
from typing import Any

import torch
from torch import nn

from models.layers.attention import attend
from models.layers.conv_norm_act import conv_norm_act, two_1x1
from models.layers.image_pooling_aspp import ImagePoolingASPP
from models.weights.rename_keys import ROW, Rule
from utils.machine.tensors import Logits

# Keys of the OCR heads of HRNet, NVIDIA, MIC-DKFZ and openseg -> ours. Their numbers are
# places in a Sequential: 0 is a convolution, 1 its norm, 2 and 3 the next pair.
_PARTS = {"pixel": "query", "object": "key", "down": "value", "up": "project"}
OCR_KEYS: tuple[Rule, ...] = (
    (r"^ocr\.", ""),
    (r"^(?:conv3x3_ocr|conv3x3|conv_3x3)" + ROW, r"head.reduce.\1."),
    (r"^(?:ocr_distri_head|spatial_ocr_head)\.", "head.ocr."),
    (r"\.object_context_block\.", ".context."),
    (r"\.f_(pixel|object)" + ROW,
     lambda m: f".{_PARTS[m[1]]}.{int(m[2]) // 2}.{int(m[2]) % 2}."),
    (r"\.f_(down|up)" + ROW, lambda m: f".{_PARTS[m[1]]}.{m[2]}."),
    (r"\.conv_bn_dropout" + ROW, r".fuse.\1."),
    (r"^(?:cls_head|head|cls)\.(?=weight$|bias$)", "head.classifier."),
    (r"^(?:aux_head|dsn_head|dsn)\.([01])(?:\.0)?\.(?=\w+$)", r"aux_head.0.\1."),
    (r"^(?:aux_head|dsn_head|dsn)\.[23]\.", "aux_head.2."),
)
PADDLE_OCR_KEYS: tuple[Rule, ...] = (
    (r"^ocrnet\.head\.spatial_ocr\.attention_block\.", "head.ocr.context."),
    (r"^ocrnet\.head\.spatial_ocr\.conv1x1\.0\.", "head.ocr.fuse."),
    (r"\.f_(pixel|object|down|up)\.", lambda m: f".{_PARTS[m[1]]}."),
    (r"^ocrnet\.head\.conv3x3_ocr\.", "head.reduce."),
    (r"^ocrnet\.head\.cls_head\.", "head.classifier."),
    (r"^ocrnet\.head\.aux_head\.0\.", "aux_head.0."),
    (r"^ocrnet\.head\.aux_head\.1\.", "aux_head.2."),
)


class ObjectContext(nn.Module):
    """The context of every pixel: attention from pixels to classes.

    features: float (N, C, H, W), class_logits: float (N, K, H, W) -> (N, C, H, W).
    """

    def __init__(self, channels: int, key_channels: int, *, bias: bool = False,
                 norm: str = "batch", act: str = "relu"):
        super().__init__()
        options: dict[str, Any] = dict(bias=bias, norm=norm, act=act)
        self.query = two_1x1(channels, key_channels, **options)
        self.key = two_1x1(channels, key_channels, **options)
        self.value = conv_norm_act(channels, key_channels, 1, **options)
        self.project = conv_norm_act(key_channels, channels, 1, **options)

    def forward(self, features: torch.Tensor, class_logits: Logits) -> torch.Tensor:
        objects = gather_objects(features, class_logits)             # (N, C, K, 1)
        query = self.query(features)                                 # (N, key, H, W)
        key, value = self.key(objects), self.value(objects)          # (N, key, K, 1)
        return self.project(attend(query, key, value).reshape(query.shape))


def gather_objects(features: torch.Tensor, class_logits: Logits) -> torch.Tensor:
    """One feature vector per class: the mean over pixels, weighted by a softmax over *pixels*.

    features: float (N, C, H, W), class_logits: float (N, K, H, W) -> (N, C, K, 1). Under
    autocast the sum runs in float32, because float16 cannot represent the weight of
    one in 100 000 pixels well enough.
    """
    device = features.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        with torch.autocast(device, enabled=False):
            return gather_objects(features.float(), class_logits.float())
    weights = class_logits.flatten(2).softmax(dim=2)                 # (N, K, HW)
    objects = weights @ features.flatten(2).transpose(1, 2)          # (N, K, C)
    return objects.transpose(1, 2).unsqueeze(3)


class SpatialOCR(nn.Module):
    """Joins context and features and mixes them by a 1x1 convolution.

    features: float (N, C, H, W), class_logits: float (N, K, H, W) -> (N, out_channels, H, W).
    extra: a pyramid on the features, whose output is joined between the two:
    [context, extra, features].
    """

    def __init__(self, channels: int, key_channels: int, out_channels: int, *,
                 dropout: float = 0.05, bias: bool = False, norm: str = "batch",
                 act: str = "relu", extra: ImagePoolingASPP | None = None):
        super().__init__()
        options: dict[str, Any] = dict(bias=bias, norm=norm, act=act)
        self.context = ObjectContext(channels, key_channels, **options)
        self.extra = extra
        joined = 2 * channels + (0 if extra is None else extra.channels)
        self.fuse = conv_norm_act(joined, out_channels, 1, **options)
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, features: torch.Tensor, class_logits: Logits) -> torch.Tensor:
        parts = [self.context(features, class_logits), features]
        if self.extra is not None:
            parts.insert(1, self.extra(features))
        return self.dropout(self.fuse(torch.cat(parts, dim=1)))


class OCRHead(nn.Module):
    """3x3 convolution, object context, classifier.

    x: float (N, in_channels, H, W), class_logits: float (N, K, H, W)
    -> logits (N, K, H, W), features (N, mid_channels, H, W).
    """

    def __init__(self, in_channels: int, num_classes: int, mid_channels: int = 512,
                 key_channels: int = 256, *, dropout: float = 0.05, bias: bool = False,
                 norm: str = "batch", act: str = "relu", extra: ImagePoolingASPP | None = None):
        super().__init__()
        self.reduce = conv_norm_act(in_channels, mid_channels, 3, bias=True, norm=norm,
                                    act=act)
        self.ocr = SpatialOCR(mid_channels, key_channels, mid_channels, dropout=dropout, bias=bias,
                              norm=norm, act=act, extra=extra)
        self.classifier = nn.Conv2d(mid_channels, num_classes, 1)

    def forward(self, x: torch.Tensor, class_logits: Logits) -> tuple[Logits, torch.Tensor]:
        features = self.ocr(self.reduce(x), class_logits)
        return self.classifier(features), features
