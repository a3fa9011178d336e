"""Swin Transformer: self-attention in windows, which every second block moves by half a window.

Liu et al., Swin Transformer: Hierarchical Vision Transformer using Shifted Windows, ICCV 2021,
arXiv:2103.14030.

Files of ImageNet and segmentation networks that load (code and weights MIT): the authors', mmseg's,
Hugging Face's, timm's and torchvision's. `pretrained` downloads torchvision's weights, which exist
for tiny, small and base with windows of 7.

Every map has its own norm, and there is no other one at the end, as in the authors' segmentation
networks. Unlike in the ImageNet classifier, windows keep their size and are moved also where a map
is not larger than a window.
"""
import re
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from models.backbones import Backbone
from models.backbones.download import no_download, torchvision_state
from models.layers import checkpointing as activation_checkpointing
from models.layers.drop_path import drop_path as drop_path_layer
from models.layers.drop_path import growing_shares
from models.weights.rename_keys import Rule, State, join_qkv, rename
from utils.machine.tensors import ImageBatch

MASKED = -100.0     # added to the score of two pixels that do not belong together


class _Form(NamedTuple):
    channels: int                   # of the first map; each stage doubles them
    depths: tuple[int, ...]
    heads: int                      # of the first stage; each stage doubles them
    window: int
    torchvision: str | None = None  # the published classifier that has the weights


FORMS = {
    "swin_tiny": _Form(96, (2, 2, 6, 2), 3, 7, "swin_t"),
    "swin_small": _Form(96, (2, 2, 18, 2), 3, 7, "swin_s"),
    "swin_base": _Form(128, (2, 2, 18, 2), 4, 7, "swin_b"),
    "swin_large": _Form(192, (2, 2, 18, 2), 6, 7),
    "swin_base_384": _Form(128, (2, 2, 18, 2), 4, 12),
    "swin_large_384": _Form(192, (2, 2, 18, 2), 6, 12),
}


class Swin(Backbone):
    """Four feature maps at strides 4, 8, 16, 32, with C, 2C, 4C and 8C channels.

    x: float (N, 3, H, W), normalized RGB; any H and W: maps are padded at the right and the bottom
    to whole patches, pairs and windows.
    name: the forms "_384" have windows of 12x12 pixels instead of 7x7; they were made for images of
    384x384, but take any size. pretrained: torchvision's ImageNet weights (IMAGENET1K_V1).
    drop_path: the chance to leave out the last block for an image in training; it grows linearly
    from 0 at the first. checkpointing: compute the blocks again in the backward pass, which saves
    memory.
    """

    aliases = tuple(FORMS)
    layer_norms = True

    def __init__(self, name: str = "swin_tiny", pretrained: bool = False, drop_path: float = 0.3,
                 checkpointing: bool = False):
        super().__init__()
        form = FORMS[name]
        self.channels = [form.channels * 2 ** stage for stage in range(4)]
        self.strides, self.checkpointing = [4, 8, 16, 32], checkpointing
        self.patch_embed = PatchEmbedding(form.channels)
        shares = iter(growing_shares(drop_path, sum(form.depths)))
        self.stages = nn.ModuleList(
            Stage(channels, form.heads * 2 ** stage, form.depths[stage], form.window, shares,
                  merge=stage < 3) for stage, channels in enumerate(self.channels))
        for stage, channels in enumerate(self.channels):
            self.add_module(f"norm{stage}", nn.LayerNorm(channels))
        self.apply(_init)
        if pretrained:
            self._load_pretrained(name, form.torchvision)

    def forward(self, x: ImageBatch) -> list[torch.Tensor]:
        x, maps = self.patch_embed(x), []
        for number, stage in enumerate(self.stages):
            assert isinstance(stage, Stage)
            x = stage(x, self.checkpointing)
            maps.append(self.normed_map(number, x))
            if stage.downsample is not None:
                x = stage.downsample(x)
        return maps

    def rename_foreign(self, state: State) -> State:
        """Rename the tensors of Swin files of all sources; tables of other windows are resized."""
        state, own = to_our_keys(state), self.state_dict()
        for key, value in state.items():
            table = own.get(key.removeprefix("backbone."))
            if key.endswith(TABLE) and table is not None and table.shape != value.shape:
                state[key] = _resized_table(value, table)
        return state

    def _load_pretrained(self, name, classifier):
        if classifier is None:
            raise no_download(name)
        self.load_classifier(torchvision_state(classifier))


class PatchEmbedding(nn.Module):
    """float (N, 3, H, W) -> (N, ceil(H/4), ceil(W/4), C): a convolution of 4x4 patches, a norm."""

    def __init__(self, channels: int):
        super().__init__()
        self.proj = nn.Conv2d(3, channels, 4, 4)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: ImageBatch) -> torch.Tensor:
        rows, columns = (_ceil(side, 4) for side in x.shape[2:])
        x = _padded(x.permute(0, 2, 3, 1), 4 * rows, 4 * columns).permute(0, 3, 1, 2)
        return self.norm(self.proj(x).permute(0, 2, 3, 1).contiguous())


class Stage(nn.Module):
    """Blocks of one resolution, (N, H, W, C) -> the same; `downsample` is called by the encoder."""

    downsample: "PatchMerging | None"

    def __init__(self, channels: int, heads: int, depth: int, window: int, shares: Iterator[float],
                 merge: bool):
        super().__init__()
        self.window = window
        self.blocks = nn.ModuleList(Block(channels, heads, window, window // 2 * (number % 2),
                                          next(shares)) for number in range(depth))
        self.downsample = PatchMerging(channels) if merge else None

    def forward(self, x: torch.Tensor, checkpointing: bool) -> torch.Tensor:
        mask = _shift_mask(x, self.window)
        for block in self.blocks:
            x = activation_checkpointing.run(block, x, mask, active=checkpointing)
        return x


class Block(nn.Module):
    """Attention in windows and an MLP, each as a residual: float (N, H, W, C) -> the same.

    shift: by how many pixels the windows are moved.
    """

    def __init__(self, channels: int, heads: int, window: int, shift: int, share: float):
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, heads, window)
        self.mlp = nn.Sequential()
        self.mlp.add_module("fc1", nn.Linear(channels, 4 * channels))
        self.mlp.add_module("act", nn.GELU())
        self.mlp.add_module("fc2", nn.Linear(4 * channels, channels))
        self.drop_path = drop_path_layer(share)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = x + self.drop_path(self._attention(self.norm1(x), mask))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def _attention(self, x, mask):
        count, height, width, channels = x.shape
        size = self.window
        rows, columns = _ceil(height, size), _ceil(width, size)
        x = _padded(x, rows * size, columns * size)
        if self.shift:
            x = x.roll((-self.shift, -self.shift), (1, 2))
        x = x.view(count, rows, size, columns, size, channels).transpose(2, 3)
        x = self.attn(x.reshape(count * rows * columns, size * size, channels),
                      mask if self.shift else None)
        x = x.view(count, rows, columns, size, size, channels).transpose(2, 3)
        x = x.reshape(count, rows * size, columns * size, channels)
        if self.shift:
            x = x.roll((self.shift, self.shift), (1, 2))
        return x[:, :height, :width]


class WindowAttention(nn.Module):
    """Self-attention of the L = window * window pixels of each window, with a bias per offset.

    x: float (B, L, C), the windows of one image one after another -> the same. mask: float
    (windows of an image, L, L), added to the scores, or None.
    """

    relative_position_index: torch.Tensor

    def __init__(self, channels: int, heads: int, window: int):
        super().__init__()
        self.heads, self.scale = heads, (channels // heads) ** -0.5
        self.qkv, self.proj = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.register_buffer("relative_position_index", _offsets(window), persistent=False)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        count, length, channels = x.shape
        qkv = self.qkv(x).view(count, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind()                                # (B, heads, L, C / heads)
        # In place, because the scores take most of the memory. F.scaled_dot_product_attention is
        # slower here: a bias with a gradient excludes its fast kernels.
        scores = (query * self.scale) @ key.transpose(2, 3)             # (B, heads, L, L)
        scores += self._bias()
        if mask is not None:
            scores = (scores.view(-1, mask.shape[0], self.heads, length, length)
                      .add_(mask.to(scores.dtype).unsqueeze(1)).view(scores.shape))
        out = scores.softmax(3) @ value
        return self.proj(out.transpose(1, 2).reshape(count, length, channels))

    def _bias(self):
        bias = self.relative_position_bias_table[self.relative_position_index]      # (L, L, heads)
        return bias.permute(2, 0, 1)


class PatchMerging(nn.Module):
    """float (N, H, W, C) -> (N, ceil(H/2), ceil(W/2), 2C).

    The four pixels (row, column) of a square are joined in the order (0, 0), (1, 0), (0, 1),
    (1, 1). A map of odd size gets a row or column of zeros at its end.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count, height, width, channels = x.shape
        rows, columns = _ceil(height, 2), _ceil(width, 2)
        x = _padded(x, 2 * rows, 2 * columns)
        x = x.view(count, rows, 2, columns, 2, channels).permute(0, 1, 3, 4, 2, 5)
        return self.reduction(self.norm(x.reshape(count, rows, columns, 4 * channels)))


def _ceil(side, part):
    """How many parts cover a side. Written so that torch's exporter can reason about it."""
    return (side + part - 1) // part


def _padded(x, height, width):
    """x, (N, h, w, C), with zeros at the right and the bottom: (N, height, width, C)."""
    down, right = height - x.shape[1], width - x.shape[2]
    # During an export the comparison would fix the sizes of the graph.
    if torch.compiler.is_exporting() or down or right:
        x = F.pad(x, (0, 0, 0, right, 0, down))
    return x


def _offsets(window):
    """The row of the bias table for each pair of pixels (query, key), int64 (L, L)."""
    place = torch.arange(window)
    row, column = place.repeat_interleave(window), place.repeat(window)
    return ((row[:, None] - row + window - 1) * (2 * window - 1)
            + column[:, None] - column + window - 1)


def _shift_mask(x, window):
    """What separates pixels that come from different sides of a moved map of the size of x.

    x: (N, H, W, C), before the padding -> (windows, L, L) of 0 and MASKED in the dtype of x.
    """
    shift = window // 2
    rows, columns = (_ceil(side, window) for side in x.shape[1:3])

    def parts(windows):         # 0, 1 or 2 for each pixel: the last window has two parts
        side = windows * window
        place = torch.arange(side, device=x.device)
        return (place >= side - window).long() + (place >= side - shift).long()

    region = 3 * parts(rows)[:, None] + parts(columns)                          # (H, W)
    region = region.view(rows, window, columns, window).transpose(1, 2)
    region = region.reshape(rows * columns, window * window)
    return (region[:, :, None] != region[:, None]).to(x.dtype) * MASKED


def _init(module):
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, WindowAttention):
        nn.init.trunc_normal_(module.relative_position_bias_table, std=0.02)


# Files of other sources

TABLE = ".attn.relative_position_bias_table"
CONSTANTS = re.compile(r"\.(relative_position_index|attn_mask)$")
# Hugging Face, mmseg, the authors (whose names are ours) and torchvision -> ours.
KEYS: tuple[Rule, ...] = (
    (r"^(?:backbone\.)?(?:swin\.)?embeddings\.(norm|patch_embeddings)\.",
     r"backbone.patch_embed.\1."),
    (r"^(?:backbone\.)?(?:swin\.)?encoder\.layers\.(?=\d)", "backbone.stages."),
    (r"^(?:backbone\.)?hidden_states_norms\.stage(\d)\.",
     lambda m: f"backbone.norm{int(m[1]) - 1}."),
    (r"^features\.0\.0\.", "backbone.patch_embed.proj."),
    (r"^features\.0\.2\.", "backbone.patch_embed.norm."),
    (r"^features\.([1357])\.", lambda m: f"backbone.stages.{int(m[1]) // 2}.blocks."),
    (r"^features\.([246])\.", lambda m: f"backbone.stages.{int(m[1]) // 2 - 1}.downsample."),
    (r"^(?:backbone\.)?(?:layers|stages)\.(?=\d)", "backbone.stages."),
    (r"^(?:backbone\.)?(patch_embed|norm\d)\.", r"backbone.\1."),
    (r"^(backbone\.patch_embed)\.(?:patch_embeddings\.)?projection\.", r"\1.proj."),
    (r"^(backbone\.stages\.\d\.blocks\.\d+)\.layernorm_before\.", r"\1.norm1."),
    (r"^(backbone\.stages\.\d\.blocks\.\d+)\.layernorm_after\.", r"\1.norm2."),
    (r"^(backbone\.stages\.\d\.blocks\.\d+)\.(?:attention\.self|attn\.w_msa)\.", r"\1.attn."),
    (r"^(backbone\.stages\.\d\.blocks\.\d+)\.attention\.output\.dense\.", r"\1.attn.proj."),
    (r"^(backbone\.stages\.\d\.blocks\.\d+)\.(?:intermediate\.dense|ffn\.layers\.0\.0|mlp\.0)\.",
     r"\1.mlp.fc1."),
    (r"^(backbone\.stages\.\d\.blocks\.\d+)\.(?:output\.dense|ffn\.layers\.1|mlp\.3)\.",
     r"\1.mlp.fc2."),
)


def to_our_keys(state: State) -> State:
    """Return a state dict of any source with the keys of `backbone` for the tensors of Swin.

    Other keys stay. Tables that do not depend on weights are left out. Where mmseg has another
    order of the pixels that a merging joins, its weights are put in ours; shapes are equal in both
    orders, so the names decide: `attn.w_msa` is mmseg's.
    """
    reorder = any(".attn.w_msa." in key for key in state)
    state = {key: value for key, value in state.items() if not CONSTANTS.search(key)}
    if not any(re.match(r"layers\.0\.downsample\.", key) for key in state):
        # timm has each merging at the start of a stage, the others have it at the end.
        state = rename(state, ((r"^layers\.([123])\.downsample\.",
                                lambda m: f"layers.{int(m[1]) - 1}.downsample."),))
    state = join_qkv(rename(state, KEYS))
    if reorder:
        state = {key: _from_unfold(value)
                 if re.match(r"backbone\.stages\.\d\.downsample\.", key) else value
                 for key, value in state.items()}
    return state


def _from_unfold(value):
    """mmseg's last axis, (channel, row, column), in our order (column, row, channel)."""
    return (value.unflatten(-1, (-1, 2, 2)).movedim(-3, -1).transpose(-3, -2)
            .flatten(-3).contiguous())


def _resized_table(value, like):
    """A bias table ((2w-1)^2, heads) for the windows of `like`, bicubic as in the authors' code."""
    if value.ndim != 2 or value.shape[1] != like.shape[1]:
        return value                    # of another network: its shape is reported
    old, new = (round(len(table) ** 0.5) for table in (value, like))
    if old ** 2 != len(value):
        return value
    grid = value.float().T.reshape(1, -1, old, old)
    grid = F.interpolate(grid, (new, new), mode="bicubic", align_corners=False)
    return grid.reshape(-1, new * new).T.contiguous().to(value.dtype)
