"""Mix transformer, the encoder of SegFormer.

Xie et al., SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers,
NeurIPS 2021, arXiv:2105.15203.

Files: `mit_b0.pth` to `mit_b5.pth` of NVlabs, nvidia/mit-b0 to -b5 of Hugging Face and mmseg's
conversions of them, all of ImageNet-1k; their license allows research only. They come in through
trainer.finetune_from, as do the encoders in the files of a SegFormer.

Differs from other implementations, which raise an error there: a map smaller than the kernel of
the reduction is padded with zeros.
"""
import re
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from models.backbones import Backbone
from models.backbones.download import no_download
from models.layers import checkpointing as activation_checkpointing
from models.layers.drop_path import drop_path as drop_path_layer
from models.layers.drop_path import growing_shares
from models.weights.rename_keys import Rule, State, rename
from utils.machine.tensors import ImageBatch


class _Variant(NamedTuple):
    channels: tuple[int, int, int, int]
    blocks: tuple[int, int, int, int]


_WIDE = (64, 128, 320, 512)
VARIANTS = {
    "mit_b0": _Variant((32, 64, 160, 256), (2, 2, 2, 2)),
    "mit_b1": _Variant(_WIDE, (2, 2, 2, 2)),
    "mit_b2": _Variant(_WIDE, (3, 4, 6, 3)),
    "mit_b3": _Variant(_WIDE, (3, 4, 18, 3)),
    "mit_b4": _Variant(_WIDE, (3, 8, 27, 3)),
    "mit_b5": _Variant(_WIDE, (3, 6, 40, 3)),
}
HEADS, REDUCTIONS = (1, 2, 5, 8), (8, 4, 2, 1)     # of the four stages
MLP_RATIO = 4


class MiT(Backbone):
    """Four feature maps at strides 4, 8, 16 and 32, without position embeddings.

    x: float (N, 3, H, W), normalized RGB; any H and W (the maps are rounded up).
    drop_path: the chance of leaving out the last block for an image in training; it grows linearly
    from 0 in the first. norm_eps: of the layer norms; 1e-5 in Hugging Face's network, 1e-6 in
    mmseg's. checkpointing: compute the blocks again in backward instead of keeping their
    activations. pretrained: an error, because the files have no address that checks them.
    """

    aliases = tuple(VARIANTS)
    layer_norms = True

    def __init__(self, name: str = "mit_b0", drop_path: float = 0.0, norm_eps: float = 1e-5,
                 checkpointing: bool = False, pretrained: bool = False):
        super().__init__()
        if pretrained:
            raise no_download(name)
        channels, blocks = VARIANTS[name]
        self.channels, self.strides = list(channels), [4, 8, 16, 32]
        shares = iter(growing_shares(drop_path, sum(blocks)))
        self.stages = nn.ModuleList(
            Stage(before, width, 7 if before == 3 else 3, [next(shares) for _ in range(count)],
                  heads, reduction, norm_eps, checkpointing)
            for (before, width), count, heads, reduction
            in zip(pairwise((3, *channels)), blocks, HEADS, REDUCTIONS, strict=True))
        init_transformer(self)

    def forward(self, x: ImageBatch) -> list[torch.Tensor]:
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def rename_foreign(self, state: State) -> State:
        """Rename the tensors of this encoder in files of NVlabs, Hugging Face and mmseg."""
        return rename(joined_keys_and_values(state), MIT_KEYS)


class Stage(nn.Module):
    """Overlapping patches, then transformer blocks: (N, C, H, W) -> (N, width, ~H/s, ~W/s).

    s is 4 with a kernel of 7 and 2 with a kernel of 3. Inside, maps are (N, H, W, C), so that
    neither the layer norms nor the convolutions (which take this as channels_last) copy them.
    """

    def __init__(self, in_channels: int, channels: int, kernel: int, shares: list[float],
                 heads: int, reduction: int, eps: float, checkpointing: bool):
        super().__init__()
        self.checkpointing = checkpointing
        self.embed = PatchEmbedding(in_channels, channels, kernel, eps)
        self.blocks = nn.ModuleList(Block(channels, heads, reduction, share, eps)
                                    for share in shares)
        self.norm = nn.LayerNorm(channels, eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = activation_checkpointing.run(block, x, active=self.checkpointing and self.training)
        return self.norm(x).permute(0, 3, 1, 2)


class PatchEmbedding(nn.Module):
    """A convolution with overlapping windows, a layer norm: (N, C, H, W) -> (N, h, w, channels)."""

    def __init__(self, in_channels: int, channels: int, kernel: int, eps: float):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, kernel, kernel // 2 + 1, kernel // 2)
        self.norm = nn.LayerNorm(channels, eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x).permute(0, 2, 3, 1))


class Block(nn.Module):
    """Attention and MLP, each after a norm and added to its input; float (N, H, W, C)."""

    def __init__(self, channels: int, heads: int, reduction: int, share: float, eps: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps)
        self.attn = ReducedAttention(channels, heads, reduction, eps)
        self.norm2 = nn.LayerNorm(channels, eps)
        self.mlp = MixMLP(channels, MLP_RATIO * channels)
        self.drop_path = drop_path_layer(share)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class ReducedAttention(nn.Module):
    """Each pixel attends a map that is `reduction` times smaller; float (N, H, W, C).

    The pixels at the right and at the bottom that fill no whole window of the reduction are
    left out of keys and values.
    """

    def __init__(self, channels: int, heads: int, reduction: int, eps: float):
        super().__init__()
        self.heads, self.reduction = heads, reduction
        self.q = nn.Linear(channels, channels)
        self.kv = nn.Linear(channels, 2 * channels)
        self.proj = nn.Linear(channels, channels)
        if reduction > 1:
            self.reduce = nn.Conv2d(channels, channels, reduction, reduction)
            self.norm = nn.LayerNorm(channels, eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q = self._by_head(self.q(x))
        k, v = (self._by_head(part) for part in self.kv(self._reduced(x)).chunk(2, dim=-1))
        out = F.scaled_dot_product_attention(q, k, v)       # (N, heads, H * W, C / heads)
        return self.proj(out.transpose(1, 2).reshape(x.shape))

    def _reduced(self, x):
        if self.reduction == 1:
            return x
        x = x.permute(0, 3, 1, 2)
        rows, columns = (max(0, self.reduction - side) for side in x.shape[2:])
        if rows or columns:
            x = F.pad(x, (0, columns, 0, rows))
        return self.norm(self.reduce(x).permute(0, 2, 3, 1))

    def _by_head(self, x):
        """(N, H, W, C) -> (N, heads, H * W, C / heads)."""
        return x.flatten(1, 2).unflatten(2, (self.heads, -1)).transpose(1, 2)


class MixMLP(nn.Module):
    """Linear, depthwise 3x3 convolution, GELU, linear; float (N, H, W, C).

    The zeros around the convolution tell where a pixel is, in place of a position embedding.
    """

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.conv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(self.fc1(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.fc2(F.gelu(x))


def init_transformer(network: nn.Module) -> None:
    """Linear layers: normal with deviation 0.02, no bias; convolutions: He, by their outputs."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
        elif isinstance(module, nn.Conv2d):
            outputs = module.out_channels * module.kernel_size[0] ** 2 // module.groups
            nn.init.normal_(module.weight, std=(2 / outputs) ** 0.5)
        if isinstance(module, (nn.Linear, nn.Conv2d)) and module.bias is not None:
            nn.init.zeros_(module.bias)


def joined_keys_and_values(state: State) -> State:
    """Adapt the tensors of a block in a file of Hugging Face or mmseg; their keys stay foreign.

    Keys and values become one layer `kv`, the joined queries, keys and values of mmseg two, `q` and
    `kv`, and mmseg's 1x1 convolutions of the MLP linear layers.
    """
    adapted = {}
    for key, value in state.items():
        separate = re.fullmatch(r"(.*\battention\.)(self\.key|self\.value|k_proj|v_proj)"
                                r"\.(weight|bias)", key)
        together = re.fullmatch(r"(.*\battn\.attn\.)in_proj_(weight|bias)", key)
        if separate:
            front, name, kind = separate.groups()
            names = ("self.key", "self.value") if "self." in name else ("k_proj", "v_proj")
            pair = [state.get(f"{front}{one}.{kind}") for one in names]
            if pair[0] is None or pair[1] is None:
                adapted[key] = value
            else:
                adapted[f"{front}kv.{kind}"] = torch.cat([pair[0], pair[1]])
        elif together:
            front, kind = together.groups()
            third = value.shape[0] // 3
            adapted[f"{front}q.{kind}"], adapted[f"{front}kv.{kind}"] = value[:third], value[third:]
        elif re.search(r"\bffn\.layers\.[04]\.weight$", key) and value.shape[2:] == (1, 1):
            adapted[key] = value[:, :, 0, 0]
        else:
            adapted[key] = value
    return adapted


_FRONT = r"^(?:segformer\.)?"
_BLOCK = r"^(backbone\.stages\.\d\.blocks\.\d+)\."
# Keys after `joined_keys_and_values`, of Hugging Face's files and, since transformers 5, networks,
# of NVlabs and of mmseg, for a whole SegFormer or its encoder alone.
MIT_KEYS: tuple[Rule, ...] = (
    (_FRONT + r"encoder\.patch_embeddings\.(\d)\.", r"backbone.stages.\1.embed."),
    (_FRONT + r"encoder\.block\.(\d)\.", r"backbone.stages.\1.blocks."),
    (_FRONT + r"encoder\.layer_norm\.(\d)\.", r"backbone.stages.\1.norm."),
    (_FRONT + r"stages\.(\d)\.patch_embeddings\.", r"backbone.stages.\1.embed."),
    (_FRONT + r"stages\.(\d)\.blocks\.", r"backbone.stages.\1.blocks."),
    (_FRONT + r"stages\.(\d)\.layer_norm\.", r"backbone.stages.\1.norm."),
    *((rf"^(?:backbone\.)?{theirs}([1-4])\.",
       lambda m, ours=ours: f"backbone.stages.{int(m[1]) - 1}.{ours}.")
      for theirs, ours in (("patch_embed", "embed"), ("block", "blocks"), ("norm", "norm"))),
    *((rf"^(?:backbone\.)?layers\.(\d)\.{index}\.", rf"backbone.stages.\1.{ours}.")
      for index, ours in enumerate(("embed", "blocks", "norm"))),
    (r"^(backbone\.stages\.\d\.embed)\.(?:proj|projection)\.", r"\1.conv."),
    (r"^(backbone\.stages\.\d\.embed)\.layer_norm\.", r"\1.norm."),
    *((rf"{_BLOCK}(?:{theirs})\.", rf"\1.{ours}.") for theirs, ours in (
        (r"layer_norm_1|layernorm_before", "norm1"), (r"layer_norm_2|layernorm_after", "norm2"),
        (r"attention\.self\.query|attention\.q_proj|attn\.attn\.q", "attn.q"),
        (r"attention\.kv|attn\.attn\.kv", "attn.kv"),
        (r"attention\.output\.dense|attention\.o_proj|attn\.attn\.out_proj", "attn.proj"),
        (r"attention\.self\.sr|attention\.sequence_reduction\.sequence_reduction|attn\.sr",
         "attn.reduce"),
        (r"attention\.self\.layer_norm|attention\.sequence_reduction\.layer_norm", "attn.norm"),
        (r"mlp\.dense1|ffn\.layers\.0", "mlp.fc1"), (r"mlp\.dense2|ffn\.layers\.4", "mlp.fc2"),
        (r"mlp\.dwconv\.dwconv|ffn\.layers\.1", "mlp.conv"))),
)
