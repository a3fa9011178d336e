"""EoMT: a plain vision transformer that segments by masks and their classes.

Kerssies et al., Your ViT is Secretly an Image Segmentation Model, CVPR 2025, arXiv:2503.19108.

Published checkpoints (of tue-mps, also in the form of Hugging Face): EoMT-L on DINOv2, ADE20K
58.4 mIoU at 512, Cityscapes 84.2 at 1024, by the protocols `eomt-ade20k` and `eomt-cityscapes`.
The form of Hugging Face takes images of the trained size only; this one takes any. Differs from
tue-mps: validation during a training runs without masked attention, as the finished network does.
"""
import torch
import torch.nn.functional as F
from torch import nn

from models.backbones import build_backbone
from models.backbones.vit import FORMS, VisionTransformer
from models.layers import checkpointing as activation_checkpointing
from models.layers.feature_pyramid import LayerNorm2d
from models.weights.published import Published
from models.weights.rename_keys import PREFIXES, Rule, State, join_qkv, rename
from models.weights.start_weights import StartsFromFiles
from utils.errors import ConfigError
from utils.machine.precision import full_precision, no_autocast
from utils.machine.tensors import ImageBatch

POWER = 0.9         # of the polynomial by which the chance of masking falls


class EoMT(StartsFromFiles):
    """Queries join the patches of a vision transformer in its last blocks.

    x: float (N, 3, H, W), normalized; any H and W.
    eval:  scores (N, C, H, W), not logits: the sum over the queries of the probability of the class
           times the sigmoid of the mask
    train: {"masks": logits (N, L, Q, h, w), "classes": logits (N, L, Q, C + 1)} of L = `blocks` + 1
           predictions, the last one by the whole network. The last class is "no object".

    The position table is resized to the grid of patches, and images whose sides are not multiples
    of the patch are padded with zeros on both sides. Masks have a quarter of the image's size; of a
    padded image they are enlarged first and have the size of the image. Scores are computed in
    float32, of masks at the size of the image.

    backbone: a plain vision transformer. patch, image_size: of its patches and of the images whose
    positions its table has; null is that of the backbone (DINOv3 has no table). pretrained: the
    weights of DINOv2, whose patches and positions are resampled. queries: their number. blocks: how
    many of the last blocks have queries. drop_path, checkpointing: as of the backbone.

    In training a query sees in these blocks only patches where its mask, predicted before the
    block, is positive, with the chance `attn_mask_probs` (one for each block). The chance falls
    from 1 to 0, block after block, the first one first (`at_progress`): the finished network does
    not mask, nor does one that is not told of a training. The draws are those of torch's generator.
    """

    output_weights = {"masks": 1.0, "classes": 1.0}
    loss = "MaskClassificationLoss"
    activation = "scores"
    attn_mask_probs: torch.Tensor

    def __init__(self, num_classes: int, backbone: str = "dinov2_vitl14_reg",
                 patch: int | None = 16, image_size: int | None = 512, queries: int = 100,
                 blocks: int = 4, drop_path: float = 0.0, checkpointing: bool = False,
                 pretrained: bool = False):
        super().__init__()
        if backbone not in FORMS:
            raise ConfigError("EoMT needs a plain vision transformer of DINOv2 or DINOv3, got "
                              f"{backbone!r}", "arch.args.backbone",
                              f"choose one of {', '.join(FORMS)}")
        self.backbone = encoder = _encoder(backbone, patch=patch, image_size=image_size,
                                           drop_path=drop_path, checkpointing=checkpointing,
                                           pretrained=pretrained)
        if not 1 <= blocks <= encoder.depth:
            raise ConfigError(f"blocks must be in 1..{encoder.depth}, found {blocks}",
                              "arch.args.blocks")
        if queries < 1:
            raise ConfigError(f"queries must be at least 1, found {queries}", "arch.args.queries")
        width, self.query_blocks = encoder.embed_dim, blocks
        self.queries = nn.Parameter(torch.randn(queries, width))
        self.class_head = nn.Linear(width, num_classes + 1)
        self.mask_head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width),
                                       nn.GELU(), nn.Linear(width, width))
        steps = max(1, encoder.patch.bit_length() - 3)          # to about a quarter of the image
        self.upscale = nn.Sequential(*(Upscale(width) for _ in range(steps)))
        # In no file: it follows from the progress of the training alone.
        self.register_buffer("attn_mask_probs", torch.zeros(blocks), persistent=False)

    def forward(self, x: ImageBatch) -> torch.Tensor | dict[str, torch.Tensor]:
        encoder = self.backbone
        tokens, grid = encoder.embed(x)
        rope, first, predictions = encoder.rope(grid), encoder.depth - self.query_blocks, []
        for number, block in enumerate(encoder.blocks):
            if number == first:
                tokens = torch.cat([self.queries.expand(len(tokens), -1, -1), tokens], dim=1)
            mask = None
            if number >= first and self.training:
                predictions.append(self.predict(tokens, grid))
                mask = self._attention_mask(predictions[-1][0], grid, number - first)
            tokens = activation_checkpointing.run(block, tokens, rope, mask,
                                                  active=encoder.checkpointing)
        predictions.append(self.predict(tokens, grid))
        if not self.training:
            masks, classes = predictions[0]
            return class_scores(self._of_image(masks, x), classes)
        masks, classes = (torch.stack(each, dim=1) for each in zip(*predictions, strict=True))
        if any(encoder.padding(x)):
            masks = self._of_image(masks.flatten(1, 2), x).unflatten(1, masks.shape[1:3])
        return {"masks": masks, "classes": classes}

    def predict(self, tokens: torch.Tensor, grid: tuple[int, int]) \
            -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens (N, Q + prefix + h w, D) -> logits of masks (N, Q, 4 h, 4 w) and classes.

        grid: (h, w). 4 is that of a patch of 16. Classes are (N, Q, C + 1).
        """
        tokens, count = self.backbone.norm(tokens), len(self.queries)
        queries, patches = tokens[:, :count], tokens[:, count + self.backbone.prefix:]
        maps = self.upscale(patches.transpose(1, 2).unflatten(2, grid))
        masks = torch.einsum("nqd,ndhw->nqhw", self.mask_head(queries), maps)
        return masks, self.class_head(queries)

    def at_progress(self, progress: float):
        """Set the chance of masking of each block: 1, and after its turn 0.

        Of `blocks` + 2 equal parts of the training the first and the last belong to no block.
        """
        turn, chances = progress * (self.query_blocks + 2), []
        for number in range(1, self.query_blocks + 1):
            done = min(max(turn - number, 0.0), 1.0)            # of the turn of this block
            chances.append((1 - done) ** POWER)
        self.attn_mask_probs.copy_(torch.tensor(chances))

    def rename_foreign(self, state: State) -> State:
        """Rename the tensors of EoMT's published files, or of a transformer without a head.

        Patches and positions of other sizes are resampled (VisionTransformer.fitted).
        """
        state = eomt_keys(rename(state, PREFIXES))
        if "queries" not in state:
            state = super().rename_foreign(state)
        front = "backbone."
        encoder = {key.removeprefix(front): value for key, value in state.items()
                   if key.startswith(front)}
        heads = {key: value for key, value in state.items() if not key.startswith(front)}
        return heads | {front + key: value for key, value in self.backbone.fitted(encoder).items()}

    def _of_image(self, masks, x):
        """Masks (N, K, h, w) of the padded image, enlarged to the image x alone: (N, K, H, W)."""
        (left, right, top, bottom), (height, width) = self.backbone.padding(x), x.shape[2:]
        masks = F.interpolate(masks, (top + height + bottom, left + width + right),
                              mode="bilinear", align_corners=False)
        return masks[:, :, top:top + height, left:left + width]

    def _attention_mask(self, masks, grid, number):
        """Which tokens attend to which, bool (N, 1, T, T), in the block with this number.

        masks: logits (N, Q, 4 h, 4 w) predicted before the block.
        """
        with torch.no_grad():
            seen = F.interpolate(masks, grid, mode="bilinear", align_corners=False) > 0
            n, queries = seen.shape[:2]
            masked = torch.rand((n, queries, 1), device=seen.device) < self.attn_mask_probs[number]
            patches = seen.flatten(2) | ~masked
            rest = queries + self.backbone.prefix
            rows = F.pad(patches, (rest, 0), value=True)            # queries, class, registers
            return F.pad(rows, (0, 0, 0, rows.shape[2] - queries), value=True).unsqueeze(1)


class Upscale(nn.Module):
    """Twice the size, float (N, D, h, w) -> (N, D, 2 h, 2 w)."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.ConvTranspose2d(channels, channels, 2, stride=2)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.norm = LayerNorm2d(channels, eps=1e-6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv2(F.gelu(self.conv1(x))))


def class_scores(masks: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Scores (N, C, H, W), at least float32, of masks (N, Q, H, W) and classes (N, Q, C + 1)."""
    with no_autocast(masks):
        probs = full_precision(classes).softmax(-1)[..., :-1]
        return torch.einsum("nqc,nqhw->nchw", probs, full_precision(masks).sigmoid())


def _encoder(name, *, image_size, **options) -> VisionTransformer:
    # DINOv3 has no table of positions, whose size could be set.
    size = {"image_size": image_size} if FORMS[name].image_size else {}
    backbone = build_backbone(name, **size, **options)
    assert isinstance(backbone, VisionTransformer)
    return backbone


# Hugging Face's keys -> those of timm and tue-mps; queries, keys and values are joined after it.
HUGGING_FACE_KEYS: tuple[Rule, ...] = (
    (r"^embeddings\.cls_token$", "backbone.cls_token"),
    (r"^embeddings\.register_tokens$", "backbone.reg_token"),
    (r"^embeddings\.patch_embeddings\.projection\.", "backbone.patch_embed.proj."),
    (r"^embeddings\.position_embeddings\.weight$", "backbone.pos_embed"),
    (r"^layernorm\.", "backbone.norm."),
    (r"^layers\.", "backbone.blocks."),
    (r"\.attention\.q_proj\.", ".attn.query."),
    (r"\.attention\.k_proj\.", ".attn.key."),
    (r"\.attention\.v_proj\.", ".attn.value."),
    (r"\.attention\.out_proj\.", ".attn.proj."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"^query\.weight$", "queries"),
    (r"^upscale_block\.block\.", "upscale."),
    (r"\.layernorm2d\.", ".norm."),
    (r"^mask_head\.fc([123])\.", lambda m: f"mask_head.{2 * int(m[1]) - 2}."),
    (r"^class_predictor\.", "class_head."),
)
TUE_MPS_KEYS: tuple[Rule, ...] = (
    (r"^network\.encoder\.backbone\.", "backbone."),
    (r"^network\.q\.weight$", "queries"),
    (r"^network\.", ""),
)
# Of the training and of the input; the finished network masks no attention.
_LEFT_OUT = ("criterion.empty_weight", "network.attn_mask_probs", "attn_mask_probs",
             "network.encoder.pixel_mean", "network.encoder.pixel_std")


def eomt_keys(state: State) -> State:
    """Rename the tensors of EoMT's files, of Hugging Face and of tue-mps, to ours.

    Keys that belong to neither stay. What is not part of a finished network is left out.
    """
    if "query.weight" not in state and "network.q.weight" not in state:
        return state
    state = {key: value for key, value in state.items() if key not in _LEFT_OUT}
    state = join_qkv(rename(state, (*TUE_MPS_KEYS, *HUGGING_FACE_KEYS)))
    if "backbone.pos_embed" in state:       # Hugging Face has no dimension of images
        state["backbone.pos_embed"] = state["backbone.pos_embed"].flatten(0, -2).unsqueeze(0)
    return state


def _entry(size: str, image_size: int, queries: int, blocks: int, files: tuple[str, ...] = (),
           score: str = "") -> Published:
    return Published(
        network=EoMT, args={"backbone": f"dinov2_vit{size}14_reg", "image_size": image_size,
                            "queries": queries, "blocks": blocks},
        convert=eomt_keys,
        classes=("class_predictor.weight", "network.class_head.weight"), no_object=True,
        files=files, score=score)


PUBLISHED = {
    "eomt_small": _entry("s", 96, 20, 3),
    "eomt_small_coco_640": _entry("s", 640, 200, 3, ("tue-mps/coco_panoptic_eomt_small_640_2x",)),
    "eomt_base_coco_640": _entry("b", 640, 200, 3, ("tue-mps/coco_panoptic_eomt_base_640_2x",)),
    "eomt_large_ade20k_512": _entry(
        "l", 512, 100, 4, ("tue-mps/ade20k_semantic_eomt_large_512",),
        "ADE20K val: mIoU 58.4, protocol eomt-ade20k"),
    "eomt_large_cityscapes_1024": _entry(
        "l", 1024, 100, 4, ("tue-mps/cityscapes_semantic_eomt_large_1024",),
        "Cityscapes val: mIoU 84.2, protocol eomt-cityscapes"),
}
