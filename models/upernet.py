"""UPerNet in the form of mmsegmentation, on any encoder with four maps. Xiao et al., Unified
Perceptual Parsing for Scene Understanding, ECCV 2018, arXiv:1807.10221.

Swin (arXiv:2103.14030) and ConvNeXt (arXiv:2201.03545) are published with this network. Their
checkpoints load as `upernet_*`, whether they come from Hugging Face (openmmlab/upernet-*, also its
first conversions), mmsegmentation or the authors. ADE20K val mIoU, single scale: Swin-T 44.41, S
47.72, B 47.99 (windows of 12: 48.35) on whole images with a short side of 512; ConvNeXt-T 46.11 on
windows of 512. Code and weights of Swin and ConvNeXt are MIT, mmsegmentation is Apache-2.0.

The network of models/upernet_yassouali.py, `UperNet`, is another one.
"""
from typing import Any

import torch
from torch import nn

from models.backbones import build_backbone, convnext, swin
from models.layers.conv_norm_act import conv_norm_act
from models.layers.heads import PyramidPooling, fcn_head
from models.layers.init import he_init
from models.layers.outputs import as_outputs
from models.layers.resize import resize_to
from models.weights.published import Published
from models.weights.rename_keys import Rule
from models.weights.start_weights import StartsFromFiles
from utils.machine.tensors import ImageBatch, Logits


class UPerNet(StartsFromFiles):
    """mmsegmentation's UPerNet (Swin, ConvNeXt): every level adds the sum of all coarser ones.

    x: float (N, 3, H, W), normalized RGB; any H and W. A training batch needs at least two images
    (1x1 bin).
    channels: of the pyramid. use_aux: whether the auxiliary head, on the third map, is built.
    drop_path: share of images for which the last block of the encoder is left out in training;
    null: what the encoder has as a default (Swin 0.3, ConvNeXt 0.4, as published). checkpointing:
    compute the encoder's blocks again in the backward pass, which saves memory. norm: of the
    head, and of an encoder that has batch norms.
    eval:  logits (N, C, H, W)
    train: {"out": logits (N, C, H, W), "aux": logits (N, C, H, W)}
    """

    output_weights = {"out": 1.0, "aux": 0.4}

    def __init__(self, num_classes: int, backbone: str = "swin_tiny", pretrained: bool = False,
                 channels: int = 512, use_aux: bool = True, drop_path: float | None = None,
                 checkpointing: bool = False, norm: str = "batch"):
        super().__init__()
        options: dict[str, Any] = {"checkpointing": checkpointing, "pretrained": pretrained}
        if drop_path is not None:
            options["drop_path"] = drop_path
        self.backbone = build_backbone(backbone, levels=4, pyramid=True, norm=norm, **options)
        *finer, last = self.backbone.channels[-4:]
        self.ppm = PyramidPooling(last, channels, pooled_channels=channels, align_corners=False,
                                  dropout=0.0, norm=norm)
        self.laterals = nn.ModuleList(conv_norm_act(width, channels, 1, norm=norm)
                                      for width in finer)
        self.smooth = nn.ModuleList(conv_norm_act(channels, channels, 3, norm=norm) for _ in finer)
        self.fuse = conv_norm_act(4 * channels, channels, 3, norm=norm)
        self.head = nn.Sequential(nn.Dropout2d(0.1), nn.Conv2d(channels, num_classes, 1))
        if use_aux:
            self.aux_head = fcn_head(finer[-1], 256, num_classes, dropout_maps=True, norm=norm)
        else:
            self.aux_head, self.output_weights = None, {"out": 1.0}
        he_init(*(child for name, child in self.named_children() if name != "backbone"))

    def forward(self, x: ImageBatch) -> Logits | dict[str, Logits]:
        *finer, last = self.backbone(x)[-4:]
        logits = {"out": self.head(self._fused(finer, last))}
        if self.training and self.aux_head is not None:
            logits["aux"] = self.aux_head(finer[-1])
        return as_outputs(logits, x, self.training)

    def _fused(self, finer, last):
        """The maps of strides 4, 8, 16 and that of stride 32 -> (N, channels, H/4, W/4)."""
        total = self.ppm(last)
        levels = [total]
        for lateral, smooth, level in zip(reversed(self.laterals), reversed(self.smooth),
                                          reversed(finer), strict=True):
            level = lateral(level)
            total = level + resize_to(total, level)
            levels.insert(0, smooth(total))
        del level, total        # the largest maps, which a prediction needs no longer
        size = levels[0].shape[2:]
        return self.fuse(torch.cat([resize_to(level, size) for level in levels], dim=1))


# Keys of the heads, Hugging Face's and mmsegmentation's -> ours.
_NORM = r"(?:bn|batch_norm)"
HEAD_KEYS: tuple[Rule, ...] = (
    (r"^decode_head\.psp_modules\.(\d)\.1\.conv\.", r"ppm.stages.\1.1."),
    (rf"^decode_head\.psp_modules\.(\d)\.1\.{_NORM}\.", r"ppm.stages.\1.2."),
    (r"^decode_head\.bottleneck\.", "ppm.bottleneck."),
    (r"^decode_head\.lateral_convs\.", "laterals."),
    (r"^decode_head\.fpn_convs\.", "smooth."),
    (r"^decode_head\.fpn_bottleneck\.", "fuse."),
    (r"^decode_head\.(?:classifier|conv_seg)\.", "head.1."),
    (r"^auxiliary_head\.convs\.0\.", "aux_head."),
    (r"^auxiliary_head\.(?:classifier|conv_seg)\.", "aux_head.4."),
    (r"^((?:ppm\.bottleneck|laterals\.\d|smooth\.\d|fuse|aux_head)\.)conv\.", r"\g<1>0."),
    (rf"^((?:ppm\.bottleneck|laterals\.\d|smooth\.\d|fuse|aux_head)\.){_NORM}\.", r"\g<1>1."),
)
# Hugging Face's first conversions of ConvNeXt contain a norm that they do not use.
_UNUSED = (r"^backbone\.(convnext\.)?layernorm\.",)
_ADE20K = "ADE20K val mIoU {}, single scale, "
_WHOLE = _ADE20K + "whole image, short side 512"


def _entry(backbone: str, score: str = "", files: tuple[str, ...] = ()) -> Published:
    return Published(
        network=UPerNet, args={"backbone": backbone}, drop=_UNUSED,
        convert=swin.to_our_keys if backbone.startswith("swin") else convnext.to_our_keys,
        rename=HEAD_KEYS,
        classes=("decode_head.classifier.weight", "decode_head.conv_seg.weight"),
        files=files, score=score)


PUBLISHED = {f"upernet_{backbone}": entry for backbone, entry in (
    ("swin_tiny", _entry("swin_tiny", _WHOLE.format("44.41"), (
        "openmmlab/upernet-swin-tiny",
        "upernet_swin_tiny_patch4_window7_512x512_160k_ade20k_pretrain_224x224_1K_"
        "20210531_112542-e380ad3e.pth"))),
    ("swin_small", _entry("swin_small", _WHOLE.format("47.72"))),
    ("swin_base", _entry("swin_base", _WHOLE.format("47.99, 50.31 after ImageNet-22k"))),
    ("swin_base_384", _entry("swin_base_384", _WHOLE.format("48.35, 50.76 after ImageNet-22k"))),
    ("convnext_tiny", _entry("convnext_tiny", _ADE20K.format("46.11") + "windows of 512", (
        "openmmlab/upernet-convnext-tiny",
        "upernet_convnext_tiny_fp16_512x512_160k_ade20k_20220227_124553-cad485de.pth"))),
    ("convnext_small", _entry("convnext_small", _ADE20K.format("48.56") + "windows of 512")),
    ("convnext_base", _entry("convnext_base", _ADE20K.format("48.71") + "windows of 512; 52.13 "
                             "after ImageNet-22k, windows of 640")),
    *((name, _entry(name, _ADE20K.format(score) + "windows of 640")) for name, score in (
        ("convnext_large", "53.16"), ("convnext_xlarge", "53.58"))),
    *((name, _entry(name)) for name in ("swin_large", "swin_large_384")))}
