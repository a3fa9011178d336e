"""Plain vision transformers of DINOv2 and DINOv3.

Dosovitskiy et al., An Image is Worth 16x16 Words, ICLR 2021, arXiv:2010.11929; Oquab et al.,
DINOv2, 2023, arXiv:2304.07193; Darcet et al., Vision Transformers Need Registers, 2023,
arXiv:2309.16588; Siméoni et al., DINOv3, 2025, arXiv:2508.10104.

Published: `dinov2_vit{s,b,l,g}14[_reg4]_pretrain.pth` (Apache-2.0) and
`dinov3_vit*_pretrain_lvd1689m-*.pth` (DINOv3 License; the files are gated), and the files of timm
and Hugging Face with the same weights. DINOv3's periods are computed in float32 here, as in timm;
Meta's own code rounds them to bfloat16, so its numbers differ a little.
"""
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn

from models.backbones import Backbone
from models.backbones.download import no_download, state_from
from models.layers import checkpointing as activation_checkpointing
from models.layers.drop_path import drop_path, growing_shares
from models.layers.positions import resize_patches, resize_positions
from models.weights.rename_keys import Rule, State, join_qkv, rename
from utils.errors import CheckpointError, ConfigError
from utils.machine.tensors import ImageBatch


@dataclass(frozen=True)
class ViTForm:
    """What distinguishes one vision transformer from another.

    image_size: side of the images whose patches the position table has; None: there is no table,
        and rotary embedding gives queries and keys their positions (DINOv3).
    class_row: whether the first row of the table belongs to the class token. Without it, only
        patches have positions.
    offset, antialias: how the table is resized, see models/layers/positions.py.
    hidden: width of the MLP. gated: whether its activation is SwiGLU; otherwise it is GELU.
    eps: of the layer norms.
    """

    embed_dim: int
    depth: int
    num_heads: int
    hidden: int
    patch: int = 14
    image_size: int | None = 518
    registers: int = 0
    class_row: bool = True
    offset: float = 0.1
    antialias: bool = False
    gated: bool = False
    qkv_bias: bool = True
    eps: float = 1e-6


_DINOV2 = {"s": ViTForm(384, 12, 6, 1536), "b": ViTForm(768, 12, 12, 3072),
           "l": ViTForm(1024, 24, 16, 4096), "g": ViTForm(1536, 40, 24, 4096, gated=True)}
_DINOV3 = {"s16": ViTForm(384, 12, 6, 1536), "s16plus": ViTForm(384, 12, 6, 1536, gated=True),
           "b16": ViTForm(768, 12, 12, 3072), "l16": ViTForm(1024, 24, 16, 4096),
           "h16plus": ViTForm(1280, 32, 20, 5120, gated=True)}
FORMS = (
    {f"dinov2_vit{size}14": form for size, form in _DINOV2.items()}
    | {f"dinov2_vit{size}14_reg": replace(form, registers=4, class_row=False, offset=0.0,
                                          antialias=True) for size, form in _DINOV2.items()}
    | {f"dinov3_vit{size}": replace(form, patch=16, image_size=None, registers=4,
                                      class_row=False, qkv_bias=False, eps=1e-5)
       for size, form in _DINOV3.items()})


class VisionTransformer(Backbone):
    """Maps of some blocks, all at 1/patch of the image, after the final layer norm.

    x: float (N, 3, H, W), normalized RGB; any H and W. The image is padded with zeros to a multiple
    of the patch, half of them (rounded down) before it, as DINOv2's segmentation does.
    name: one of `aliases`. pretrained: the weights of DINOv2; those of DINOv3 have to be requested
    from Meta. layers: the blocks whose maps are returned, counted from 0, or from -1 backwards;
    null: the last block of each quarter. drop_path: how often training leaves out the two branches
    of the last block; the share grows evenly from 0 in the first. checkpointing: compute the blocks
    again in the backward pass, which saves memory. patch, image_size: other sizes than the
    published ones, in pixels.

    Other networks use the parts: `embed`, `rope`, `blocks`, `norm`. `prefix` tokens (the class and
    the registers) are in front of the patches; `patch`, `embed_dim`, `depth` and `num_heads` are
    sizes.
    """

    aliases = tuple(FORMS)
    layer_norms = True

    def __init__(self, name: str = "dinov2_vits14", pretrained: bool = False,
                 layers: tuple[int, ...] | None = None, drop_path: float = 0.0,
                 checkpointing: bool = False, patch: int | None = None,
                 image_size: int | None = None):
        super().__init__()
        self.form = form = _changed(name, patch, image_size)
        self.patch, self.embed_dim = form.patch, form.embed_dim
        self.depth, self.num_heads = form.depth, form.num_heads
        self.prefix, self.checkpointing = 1 + form.registers, checkpointing
        self.layers = _checked(layers, form.depth)
        self.channels = [form.embed_dim] * len(self.layers)
        self.strides = [form.patch] * len(self.layers)
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, form.embed_dim, form.patch,
                                                            form.patch)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, form.embed_dim))
        if form.registers:
            self.reg_token = nn.Parameter(torch.zeros(1, form.registers, form.embed_dim))
        if form.image_size:
            rows = (form.image_size // form.patch) ** 2 + form.class_row
            self.pos_embed = nn.Parameter(torch.zeros(1, rows, form.embed_dim))
        self.blocks = nn.ModuleList(Block(form, share) for share
                                    in growing_shares(drop_path, form.depth))
        self.norm = nn.LayerNorm(form.embed_dim, eps=form.eps)
        self._init_weights()
        if pretrained:
            self.load_state_dict(self.fitted(_downloaded(name)))

    def forward(self, x: ImageBatch) -> list[torch.Tensor]:
        tokens, grid = self.embed(x)
        rope, maps = self.rope(grid), []
        for number, block in enumerate(self.blocks):
            tokens = activation_checkpointing.run(block, tokens, rope, active=self.checkpointing)
            if number in self.layers:
                maps.append(None if len(maps) in self.unused else self._as_map(tokens, grid))
        return maps

    def embed(self, x: ImageBatch) -> tuple[torch.Tensor, tuple[int, int]]:
        """Image (N, 3, H, W) -> tokens (N, prefix + h w, D) with their positions, and (h, w)."""
        maps = self.patch_embed["proj"](F.pad(x, self.padding(x)))
        grid = (maps.shape[2], maps.shape[3])
        patches, first = maps.flatten(2).transpose(1, 2), self.cls_token
        if self.form.image_size:
            table = self.pos_embed
            if self.form.class_row:
                first, table = first + table[:, :1], table[:, 1:]
            patches = patches + resize_positions(table, grid, self.form.offset,
                                                 self.form.antialias)
        front = torch.cat([first, self.reg_token], dim=1) if self.form.registers else first
        return torch.cat([front.expand(patches.shape[0], -1, -1), patches], dim=1), grid

    def padding(self, x: ImageBatch) -> tuple[int, int, int, int]:
        """How many zeros are put at the left, right, top and bottom of the images x, in pixels."""
        height, width = (-side % self.patch for side in x.shape[2:])
        return width // 2, width - width // 2, height // 2, height - height // 2

    def rope(self, grid: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The rotary embedding of a grid (h, w), or None if the positions are in a table.

        Cosines and sines, float32 (h w, channels of a head). The channels of a head are in two
        equal halves, which rotate against each other. Each half has the angles of the row, then
        those of the column. Coordinates go from -1 to 1 on each axis, whatever its length.
        """
        if self.form.image_size:
            return None
        pairs, device = self.embed_dim // self.num_heads // 4, self.cls_token.device
        periods = 100.0 ** (torch.arange(pairs, device=device) / pairs)
        rows, columns = (2 * math.pi * ((torch.arange(n, device=device) + 0.5) / n * 2 - 1)
                         .unsqueeze(1) / periods for n in grid)                 # (n, pairs)
        angles = torch.cat([rows.unsqueeze(1).expand(-1, grid[1], -1),
                            columns.unsqueeze(0).expand(grid[0], -1, -1)], dim=2)
        angles = angles.flatten(0, 1).repeat(1, 2)
        return angles.cos(), angles.sin()

    def fitted(self, state: State) -> State:
        """A state dict with our keys, its patches and positions resampled to the sizes here.

        Patches so that they give about the same tokens on an image that is resized alike (Beyer et
        al., FlexiViT, CVPR 2023, arXiv:2212.08013); positions as those of an image of that size.
        """
        kernel, table = state.get("patch_embed.proj.weight"), state.get("pos_embed")
        state = dict(state)
        if kernel is not None and kernel.shape[-1] != self.patch:
            state["patch_embed.proj.weight"] = resize_patches(kernel, self.patch)
        side = (self.form.image_size or 0) // self.patch
        row = int(self.form.class_row)
        if side and table is not None and table.shape[1] != side ** 2 + row:
            patches = resize_positions(table[:, row:], (side, side), self.form.offset,
                                       self.form.antialias)
            state["pos_embed"] = torch.cat([table[:, :row], patches], dim=1)
        return state

    def rename_foreign(self, state: State) -> State:
        """Rename the tensors of files of a transformer without a head; see `our_vit_keys`."""
        state, own = our_vit_keys(state), self.state_dict()
        return {f"backbone.{key}" if key in own else key: value for key, value in state.items()}

    def _as_map(self, tokens, grid):
        """Tokens (N, prefix + h w, D) -> normalized patches (N, D, h, w)."""
        patches = self.norm(tokens)[:, self.prefix:]
        return patches.transpose(1, 2).unflatten(2, grid)

    def _init_weights(self):
        """The start values of DINOv2 (those of the convolution are torch's).

        Its normal distribution is cut off at 100 standard deviations, which changes nothing.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for name, value in self.named_parameters(recurse=False):
            nn.init.normal_(value, std=0.02 if name == "pos_embed" else 1e-6)


class Block(nn.Module):
    """Attention and an MLP, each after a layer norm, times a learned scale, plus its input.

    tokens: float (N, T, D) -> the same. rope: cosines and sines (P, channels of a head) for the
    last P tokens. mask: bool (True: attend) or a float to add, (N, heads or 1, T, T). share: of
    the images for which drop path leaves out attention, and again the MLP.
    """

    def __init__(self, form: ViTForm, share: float = 0.0):
        super().__init__()
        self.norm1 = nn.LayerNorm(form.embed_dim, eps=form.eps)
        self.attn = Attention(form.embed_dim, form.num_heads, form.qkv_bias)
        self.ls1 = LayerScale(form.embed_dim)
        self.norm2 = nn.LayerNorm(form.embed_dim, eps=form.eps)
        self.mlp = MLP(form.embed_dim, form.hidden, form.gated)
        self.ls2 = LayerScale(form.embed_dim)
        self.drop_path = drop_path(share)

    def forward(self, tokens: torch.Tensor,
                rope: tuple[torch.Tensor, torch.Tensor] | None = None,
                mask: torch.Tensor | None = None) -> torch.Tensor:
        tokens = tokens + self.drop_path(self.ls1(self.attn(self.norm1(tokens), rope, mask)))
        return tokens + self.drop_path(self.ls2(self.mlp(self.norm2(tokens))))


class Attention(nn.Module):
    """Self-attention of several heads; the arguments are those of `Block`."""

    def __init__(self, channels: int, heads: int, qkv_bias: bool):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels, bias=qkv_bias)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor] | None,
                mask: torch.Tensor | None) -> torch.Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        if rope is not None:
            q, k = _rotated(q, *rope).to(v.dtype), _rotated(k, *rope).to(v.dtype)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)     # (N, heads, T, D / heads)
        return self.proj(y.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Linear, activation, linear; float (..., D) -> (..., D).

    gated: SwiGLU (Shazeer, 2020, arXiv:2002.05202). The first half of the first linear layer is
    the gate.
    """

    def __init__(self, channels: int, hidden: int, gated: bool):
        super().__init__()
        self.gated = gated
        self.fc1 = nn.Linear(channels, 2 * hidden if gated else hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.fc1(x)         # one call a line: a nested call would keep its input alive
        x = _swiglu(x) if self.gated else F.gelu(x)
        return self.fc2(x)


class LayerScale(nn.Module):
    """One learned factor per channel, at first 1e-5; float (..., D). Touvron et al., 2021,
    arXiv:2103.17239."""

    def __init__(self, channels: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((channels,), 1e-5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gamma


def _swiglu(x: torch.Tensor) -> torch.Tensor:
    gate, value = x.chunk(2, dim=-1)
    return F.silu(gate) * value


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate the last P of T tokens of x, float (N, heads, T, channels of a head)."""
    prefix = x.shape[2] - cos.shape[0]
    front, patches = x[:, :, :prefix], x[:, :, prefix:]
    first, second = patches.chunk(2, dim=-1)
    turned = patches * cos + torch.cat([-second, first], dim=-1) * sin
    return torch.cat([front, turned], dim=2)


def _changed(name: str, patch: int | None, image_size: int | None) -> ViTForm:
    form = FORMS[name]
    if image_size and not form.image_size:
        raise ConfigError(f"{name} has no position table, so it has no image_size",
                          "arch.args.image_size", "leave it out")
    form = replace(form, patch=patch or form.patch, image_size=image_size or form.image_size)
    if form.image_size and form.image_size % form.patch:
        raise ConfigError(f"image_size {form.image_size} is not a multiple of the patch, "
                          f"{form.patch}", "arch.args.image_size")
    return form


def _checked(layers: tuple[int, ...] | None, depth: int) -> tuple[int, ...]:
    """The numbers of the blocks, from 0; the last one is among them, or it would never train."""
    if layers is None:
        return tuple(depth * quarter // 4 - 1 for quarter in (1, 2, 3, 4))
    found = [layer + depth if layer < 0 else layer for layer in layers]
    if found != sorted({*found} & {*range(depth)}) or found[-1:] != [depth - 1]:
        raise ConfigError(f"expected growing numbers of its {depth} blocks, at last the last one, "
                          f"found {list(layers)}", "arch.args.layers")
    return tuple(found)


def _downloaded(name: str) -> State:
    """The state dict of DINOv2's published file; Meta's file names contain no checksum."""
    if not name.startswith("dinov2"):
        raise no_download(name)
    short, reg = name.removesuffix("_reg"), "_reg4" if name.endswith("_reg") else ""
    url = f"https://dl.fbaipublicfiles.com/dinov2/{short}/{short}{reg}_pretrain.pth"
    return our_vit_keys(state_from(url, name))


# Tensors that no published network uses in its forward pass.
_UNUSED = re.compile(r"(^|\.)(mask_token|rope_embed\.periods|attn\.qkv\.bias_mask|"
                     r"local_cls_norm\.(weight|bias))$")
VIT_KEYS: tuple[Rule, ...] = (
    (r"(^|\.)blocks\.\d+\.(\d+)\.", r"\1blocks.\2."),       # the training's chunks of blocks
    (r"(^|\.)(register_tokens|storage_tokens)$", r"\1reg_token"),
    (r"\.gamma_([12])$", r".ls\1.gamma"),
    (r"\.mlp\.w12\.", ".mlp.fc1."),
    (r"\.mlp\.w3\.", ".mlp.fc2."),
)
# Keys of Hugging Face's files of DINOv2 and DINOv3, also within a classifier -> Meta's, except that
# queries, keys and values are joined after it.
HUGGING_FACE_KEYS: tuple[Rule, ...] = (
    (r"^(?:dinov2(?:_with_registers)?|dinov3_vit|model)\.", ""),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.(?:projection\.)?", "patch_embed.proj."),
    (r"^embeddings\.", ""),
    (r"^(?:encoder\.)?layer\.", "blocks."),
    (r"^layernorm\.", "norm."),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.attention\.attention\.", ".attn."),
    (r"\.attention\.q_proj\.", ".attn.query."),
    (r"\.attention\.k_proj\.", ".attn.key."),
    (r"\.attention\.v_proj\.", ".attn.value."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"\.mlp\.gate_proj\.", ".mlp.w1."),
    (r"\.mlp\.(?:weights_in|up_proj)\.", ".mlp.fc1."),
    (r"\.mlp\.(?:weights_out|down_proj)\.", ".mlp.fc2."),
)


def our_vit_keys(state: Mapping[str, torch.Tensor]) -> State:
    """Rename the keys of a vision transformer of Meta, timm or Hugging Face.

    Anything may be in front of the keys of Meta and timm. Left out are tensors without a use here,
    such as `mask_token`. The class token of a network with registers takes over its row of the
    position table, as in timm's files. The biases of DINOv3's queries and values are zero in every
    published file; CheckpointError if they are not.
    """
    state = {key: value for key, value in state.items() if not _UNUSED.search(key)}
    if any(key.endswith("embeddings.cls_token") for key in state):
        state = join_qkv(rename(state, HUGGING_FACE_KEYS))
    state = rename(state, VIT_KEYS)
    for key in [key for key in state if re.search(r"\.mlp\.(w1|fc1_g)\.", key)]:
        _join_gate(state, key)
    for key in [key for key in state if key.endswith("reg_token")]:
        front = key.removesuffix("reg_token")
        _fold_class_row(state, front)
        if front + "pos_embed" not in state:
            _drop_zero_biases(state, front)
    return state


def _join_gate(state: State, gate: str) -> None:
    """Join the two first layers of SwiGLU: w1 and w2 (Meta), fc1_g and fc1_x (timm).

    In DINOv3's files of Hugging Face, renamed, they are w1 and fc1.
    """
    others = (re.sub(r"(w1|fc1_g)(?=\.\w+$)", name, gate) for name in ("w2", "fc1_x", "fc1"))
    if other := next((key for key in others if key in state), None):
        state[re.sub(r"(w1|fc1_g)(?=\.\w+$)", "fc1", gate)] = torch.cat(
            [state.pop(gate), state.pop(other)])


def _fold_class_row(state: State, front: str) -> None:
    """Add the row of the class token to that token, if the table of positions has one."""
    table, token = state.get(front + "pos_embed"), front + "cls_token"
    if table is not None and math.isqrt(table.shape[1]) ** 2 != table.shape[1] and token in state:
        state[token] = state[token] + table[:, :1]
        state[front + "pos_embed"] = table[:, 1:]


def _drop_zero_biases(state: State, front: str) -> None:
    """Leave out attn.qkv.bias (Meta) or attn.q_bias and attn.v_bias (timm) of DINOv3.

    The third of the keys changes no result, so Meta masks it.
    """
    for key in [key for key in state if key.startswith(front)
                and key.endswith(("attn.qkv.bias", "attn.q_bias", "attn.v_bias"))]:
        bias = state.pop(key)
        used = bias.chunk(3)[::2] if key.endswith("qkv.bias") else (bias,)
        if not bias.is_meta and any(part.any() for part in used):
            raise CheckpointError(f"{key} is not zero, and DINOv3 has no such bias here",
                                  fix="give the file of a published DINOv3 of this size")
