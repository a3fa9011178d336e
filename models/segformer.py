"""SegFormer. Xie et al., SegFormer: Simple and Efficient Design for Semantic Segmentation with
Transformers, NeurIPS 2021, arXiv:2105.15203.

Published checkpoints: `segformer_b0` to `segformer_b5`, in the keys of Hugging Face (files, and
networks in memory since transformers 5), NVlabs and mmseg. mmseg retrained them with another head,
which is built for its files (head "mmseg"). ADE20K val mIoU of the paper, single scale: 37.4, 42.2,
46.5, 49.4, 50.3, 51.0. The license of NVlabs' weights and of their conversions allows research
only.

Published numbers differ in the eps of the layer norms: 1e-5 in Hugging Face's network, which is the
default here, 1e-6 in mmseg's. Differs from the code of others, not in the result: the convolution
that joins the stages is applied to each of them before it is resized, which takes a fraction of the
time and of the memory.
"""
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from models.backbones import build_backbone
from models.backbones.mit import MIT_KEYS, init_transformer, joined_keys_and_values
from models.layers.conv_norm_act import conv_norm_act
from models.layers.norm import activation, norm_layer
from models.layers.outputs import as_outputs
from models.layers.resize import resize_to
from models.weights.published import Published
from models.weights.rename_keys import PREFIXES, Rule
from models.weights.start_weights import StartsFromFiles
from utils.errors import ConfigError, unknown
from utils.machine.tensors import ImageBatch, Logits


class SegFormer(StartsFromFiles):
    """A mix transformer and a head that joins its four maps; output stride 4.

    x: float (N, 3, H, W), normalized RGB; any H and W.
    eval:  logits (N, C, H, W)
    train: {"out": logits (N, C, H, W)}

    head: "paper": a linear layer per map; "mmseg": convolution, norm and ReLU per map.
    head_channels: null: 256 for B0 and B1, 768 for the others. drop_path, norm_eps and
    checkpointing are those of the encoder.
    """

    def __init__(self, num_classes: int, backbone: str = "mit_b0",
                 head: Literal["paper", "mmseg"] = "paper", head_channels: int | None = None,
                 dropout: float = 0.1, norm: str = "batch", norm_eps: float = 1e-5,
                 drop_path: float = 0.1, checkpointing: bool = False, pretrained: bool = False):
        super().__init__()
        if head not in HEADS:
            raise ConfigError(unknown("head", head, HEADS), "arch.args.head")
        self.backbone = build_backbone(backbone, levels=4, drop_path=drop_path,
                                       checkpointing=checkpointing, pretrained=pretrained,
                                       if_known={"norm_eps": norm_eps})
        if head_channels is None:
            head_channels = 256 if backbone in ("mit_b0", "mit_b1") else 768
        self.head = HEADS[head](self.backbone.channels[-4:], head_channels, num_classes, dropout,
                                norm)

    def forward(self, x: ImageBatch) -> Logits | dict[str, Logits]:
        return as_outputs({"out": self.head(self.backbone(x)[-4:])}, x, self.training)


class LinearHead(nn.Module):
    """A linear layer per map, a 1x1 convolution over all of them; maps -> logits (N, C, h, w).

    maps: four of float (N, C_i, H_i, W_i), finest first; h and w are those of the first.
    """

    def __init__(self, in_channels: list[int], channels: int, num_classes: int, dropout: float,
                 norm: str):
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(width, channels) for width in in_channels)
        self.fuse = nn.Conv2d(len(in_channels) * channels, channels, 1, bias=False)
        self.classify = _classifier(channels, num_classes, dropout, norm)
        init_transformer(self)

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        maps = [linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
                for linear, x in zip(self.linears, maps, strict=True)]
        # The weights expect the coarsest map first.
        return self.classify(_on_joined(self.fuse, maps[::-1], maps[0]))


class ConvHead(nn.Module):
    """As `LinearHead`, with convolution, norm and ReLU per map, and the finest map first.

    The names differ from those of LinearHead, so that neither starts from weights of the other.
    """

    def __init__(self, in_channels: list[int], channels: int, num_classes: int, dropout: float,
                 norm: str):
        super().__init__()
        self.convs = nn.ModuleList(conv_norm_act(width, channels, 1, norm=norm)
                                   for width in in_channels)
        self.join = nn.Conv2d(len(in_channels) * channels, channels, 1, bias=False)
        self.predict = _classifier(channels, num_classes, dropout, norm)
        init_transformer(self)

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        maps = [conv(x) for conv, x in zip(self.convs, maps, strict=True)]
        return self.predict(_on_joined(self.join, maps, maps[0]))


def _classifier(channels: int, num_classes: int, dropout: float, norm: str) -> nn.Sequential:
    return nn.Sequential(norm_layer(norm)(channels), activation(norm), nn.Dropout2d(dropout),
                         nn.Conv2d(channels, num_classes, 1))


def _on_joined(conv: nn.Conv2d, maps: list[torch.Tensor], finest: torch.Tensor) -> torch.Tensor:
    """A 1x1 convolution of the maps, resized to the finest and concatenated in this order.

    Resizing and a 1x1 convolution without bias can be exchanged, so each map is resized last.
    """
    parts = conv.weight.split([x.shape[1] for x in maps], dim=1)
    total = None
    for x, weight in zip(maps, parts, strict=True):
        x = resize_to(F.conv2d(x, weight), finest)
        total = x if total is None else total + x
    assert total is not None, "a head needs a map"
    return total


HEADS = {"paper": LinearHead, "mmseg": ConvHead}

HEAD_KEYS: tuple[Rule, ...] = (
    (r"^decode_head\.(?:linear_c|linear_projections)\.(\d)\.proj\.", r"head.linears.\1."),
    (r"^decode_head\.linear_c([1-4])\.proj\.", lambda m: f"head.linears.{int(m[1]) - 1}."),
    (r"^decode_head\.linear_fuse\.(?:conv\.)?(?=\w+$)", "head.fuse."),
    (r"^decode_head\.(?:batch_norm|linear_fuse\.bn)\.", "head.classify.0."),
    (r"^decode_head\.(?:classifier|linear_pred)\.", "head.classify.3."),
)
MMSEG_HEAD_KEYS: tuple[Rule, ...] = (
    (r"^decode_head\.convs\.(\d)\.conv\.", r"head.convs.\1.0."),
    (r"^decode_head\.convs\.(\d)\.bn\.", r"head.convs.\1.1."),
    (r"^decode_head\.fusion_conv\.conv\.", "head.join."),
    (r"^decode_head\.fusion_conv\.bn\.", "head.predict.0."),
    (r"^decode_head\.conv_seg\.", "head.predict.3."),
)


def _entry(size: str, score: str) -> Published:
    files = tuple(f"segformer.{size}.{kind}.160k.pth" for kind in ("512x512.ade", "1024x1024.city"))
    files += tuple(f"nvidia/segformer-{size}-finetuned-{kind}" for kind in (
        "ade-640-640" if size == "b5" else "ade-512-512", "cityscapes-1024-1024"))
    # NVlabs' files also contain a classifier `conv_seg` that its network never uses.
    paper = Published(
        network=SegFormer, args={"backbone": f"mit_{size}"}, drop=(r"^decode_head\.conv_seg\.",),
        convert=joined_keys_and_values, rename=PREFIXES + MIT_KEYS + HEAD_KEYS,
        classes=("decode_head.classifier.weight", "decode_head.linear_pred.weight"),
        files=files, score=f"ADE20K val mIoU {score}")
    mmseg = replace(
        paper, args={**paper.args, "head": "mmseg", "norm_eps": 1e-6}, drop=(),
        rename=PREFIXES + MIT_KEYS + MMSEG_HEAD_KEYS, classes="decode_head.conv_seg.weight",
        files=(), score="")
    return replace(paper, forms=(mmseg,))


PUBLISHED = {f"segformer_b{size}": _entry(f"b{size}", score)
             for size, score in enumerate(("37.4", "42.2", "46.5", "49.4", "50.3", "51.0"))}
