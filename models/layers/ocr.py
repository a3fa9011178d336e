"""Object-contextual representations.

Yuan et al., Object-Contextual Representations for Semantic Segmentation, ECCV
2020, arXiv:1909.11065. A first, coarse segmentation says which pixels belong
to each class; every class becomes one feature vector, and every pixel attends
to these vectors.
"""
import torch
from torch import nn

from models.foreign_state import ROW
from models.layers.attention import attend
from models.layers.conv_norm_act import conv_norm_act, two_1x1

# Names of HRNet's, NVIDIA's, MIC-DKFZ's and openseg's OCR heads -> ours. They count the
# modules of a row: 0 convolution, 1 norm, 2 and 3 the next pair.
_PARTS = {"pixel": "query", "object": "key", "down": "value", "up": "project"}
OCR_KEYS = (
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
PADDLE_OCR_KEYS = (
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

    features (N, C, H, W), class_logits (N, K, H, W) of the same size -> (N, C, H, W).
    """

    def __init__(self, channels: int, key_channels: int, *, bias: bool = False,
                 norm: str = "batch", act: str = "relu"):
        super().__init__()
        options = dict(bias=bias, norm=norm, act=act)
        self.query = two_1x1(channels, key_channels, **options)
        self.key = two_1x1(channels, key_channels, **options)
        self.value = conv_norm_act(channels, key_channels, 1, **options)
        self.project = conv_norm_act(key_channels, channels, 1, **options)

    def forward(self, features, class_logits):
        objects = gather_objects(features, class_logits)             # (N, C, K, 1)
        query = self.query(features)                                 # (N, key, H, W)
        key, value = self.key(objects), self.value(objects)          # (N, key, K, 1)
        return self.project(attend(query, key, value).reshape(query.shape))


def gather_objects(features: torch.Tensor, class_logits: torch.Tensor) -> torch.Tensor:
    """One feature vector per class: the mean over pixels, weighted by a softmax over *pixels*.

    features (N, C, H, W), class_logits (N, K, H, W) -> (N, C, K, 1). Under
    autocast the sum runs in float32: a weight of one in 100 000 pixels is
    below what float16 resolves.
    """
    device = features.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        with torch.autocast(device, enabled=False):
            return gather_objects(features.float(), class_logits.float())
    weights = class_logits.flatten(2).softmax(dim=2)                 # (N, K, HW)
    objects = weights @ features.flatten(2).transpose(1, 2)          # (N, K, C)
    return objects.transpose(1, 2).unsqueeze(3)


class SpatialOCR(nn.Module):
    """The context beside the features, mixed by a 1x1 convolution.

    features (N, C, H, W), class_logits (N, K, H, W) -> (N, out_channels, H, W).
    `extra`, a module on the features that gives `extra.channels`, joins between
    the two: [context, extra, features].
    """

    def __init__(self, channels: int, key_channels: int, out_channels: int, *,
                 dropout: float = 0.05, bias: bool = False, norm: str = "batch",
                 act: str = "relu", extra: nn.Module | None = None):
        super().__init__()
        options = dict(bias=bias, norm=norm, act=act)
        self.context = ObjectContext(channels, key_channels, **options)
        self.extra = extra
        joined = 2 * channels + (0 if extra is None else extra.channels)
        self.fuse = conv_norm_act(joined, out_channels, 1, **options)
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, features, class_logits):
        parts = [self.context(features, class_logits), features]
        if self.extra is not None:
            parts.insert(1, self.extra(features))
        return self.dropout(self.fuse(torch.cat(parts, dim=1)))


class OCRHead(nn.Module):
    """3x3 convolution, object context, classifier.

    x (N, in_channels, H, W), class_logits (N, K, H, W)
    -> logits (N, K, H, W), features (N, mid_channels, H, W).
    """

    def __init__(self, in_channels: int, num_classes: int, mid_channels: int = 512,
                 key_channels: int = 256, *, dropout: float = 0.05, bias: bool = False,
                 norm: str = "batch", act: str = "relu", extra: nn.Module | None = None):
        super().__init__()
        self.reduce = conv_norm_act(in_channels, mid_channels, 3, bias=True, norm=norm,
                                    act=act)
        self.ocr = SpatialOCR(mid_channels, key_channels, mid_channels, dropout=dropout, bias=bias,
                              norm=norm, act=act, extra=extra)
        self.classifier = nn.Conv2d(mid_channels, num_classes, 1)

    def forward(self, x, class_logits):
        features = self.ocr(self.reduce(x), class_logits)
        return self.classifier(features), features
