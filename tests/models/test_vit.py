"""Plain vision transformers and linear heads on them: positions, masks, and their files."""
import pytest
import torch
import torch.nn.functional as F

from models.backbones import build_backbone
from models.backbones.vit import FORMS, Block, VisionTransformer, ViTForm, our_vit_keys
from models.layers.positions import resize_positions
from models.upernet_yassouali import UperNet
from models.vit_linear import ViTLinear, ViTMultiLinear
from models.weights.published import load_published
from tests.support.made_up import (
    distance_to_golden,
    needs_goldens,
    picture,
    published_image,
    published_weights,
    waves,
)
from tools import convert_checkpoint
from utils.checkpoint.load import load_foreign
from utils.checkpoint.read import read_checkpoint
from utils.errors import CheckpointError, ConfigError
from utils.predict.open_model import open_model

TINY = ViTForm(embed_dim=16, depth=4, num_heads=2, hidden=32)
TINY_V3 = ViTForm(embed_dim=16, depth=4, num_heads=2, hidden=32, patch=16, image_size=None,
                  registers=4, class_row=False, qkv_bias=False, eps=1e-5)


@pytest.fixture
def tiny(monkeypatch):
    """Transformers of the two families and one with registers, with 16 channels and 4 blocks."""
    monkeypatch.setitem(FORMS, "dinov2_vits14", TINY)
    monkeypatch.setitem(FORMS, "dinov2_vits14_reg", ViTForm(
        16, 4, 2, 32, registers=4, class_row=False, offset=0.0, antialias=True, gated=True))
    monkeypatch.setitem(FORMS, "dinov3_vits16", TINY_V3)


# Sizes and positions

@needs_goldens
@pytest.mark.parametrize("name, golden", [
    ("dinov2_vit_small_linear", "golden_odd"), ("dinov2_vit_small_ms", "golden_odd"),
    ("dinov3_vit_small_linear", "golden_b")])
def test_the_logits_at_another_size_equal_those_of_the_original(name, golden):
    weights, _ = published_weights(name)
    with torch.no_grad():
        out = load_published(name, weights)(published_image(name, golden))
    assert distance_to_golden(out, name, golden, "out_full") < 1e-4


@pytest.mark.parametrize("grid", [(1, 1), (5, 7), (37, 20), (36, 38), (74, 50)])
def test_positions_are_resized_as_by_torch_with_the_factor_of_dinov2(grid):
    table = torch.randn(1, 37 * 37, 3, generator=torch.Generator().manual_seed(0))
    square = table.view(1, 37, 37, 3).permute(0, 3, 1, 2)
    factors = [(side + 0.1) / 37 for side in grid]
    expected = F.interpolate(square, scale_factor=factors, mode="bicubic")
    torch.testing.assert_close(resize_positions(table, grid, 0.1, False),
                               expected.flatten(2).transpose(1, 2), rtol=0, atol=3e-5)
    expected = F.interpolate(square, size=grid, mode="bicubic", antialias=True)
    torch.testing.assert_close(resize_positions(table, grid, 0.0, True),
                               expected.flatten(2).transpose(1, 2), rtol=0, atol=3e-5)


def test_a_grid_of_the_size_of_the_table_keeps_its_positions():
    table = torch.randn(1, 25, 3)
    assert resize_positions(table, (5, 5), 0.1, False) is table


@pytest.mark.slow      # torch's exporter
@pytest.mark.parametrize("offset, antialias", [(0.1, False), (0.0, True)])
def test_an_exported_resize_of_positions_is_right_at_every_size(offset, antialias):
    class Resize(torch.nn.Module):
        def forward(self, table, image):
            return resize_positions(table, image.shape, offset, antialias)

    table = torch.randn(1, 25, 3)
    dynamic = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    graph = torch.export.export(Resize(), (table, torch.zeros(6, 7)),
                                dynamic_shapes=({}, dynamic)).module()
    for grid in ((5, 5), (5, 9), (2, 3), (11, 8)):
        torch.testing.assert_close(graph(table, torch.zeros(grid)),
                                   resize_positions(table, grid, offset, antialias))


def test_rotary_positions_are_relative_and_independent_of_the_size_of_the_image(tiny):
    network = VisionTransformer("dinov3_vits16")
    cos, sin = network.rope((3, 5))
    assert cos.shape == (15, 8) and torch.equal(cos[:, :4], cos[:, 4:])
    # The middle of the image is at 0, and its first row at -2/3: angles 2 pi c / 100^(i / 2).
    assert torch.allclose(cos[7], torch.ones(8)) and torch.allclose(sin[7], torch.zeros(8))
    expected = [2 * torch.pi * -2 / 3, 2 * torch.pi * -2 / 30,      # of the row
                2 * torch.pi * -4 / 5, 2 * torch.pi * -4 / 50]      # of the column
    assert torch.allclose(sin[0, :4], torch.tensor(expected).sin(), atol=1e-5)


def test_the_image_is_padded_with_zeros_on_all_sides(tiny):
    network = waves(VisionTransformer("dinov2_vits14"))
    image = picture(30, 17)
    padded = F.pad(image, (5, 6, 6, 6))
    with torch.no_grad():
        assert all(map(torch.equal, network(image), network(padded)))


# Parts that other networks use

@pytest.mark.parametrize("name", ["dinov2_vits14", "dinov2_vits14_reg", "dinov3_vits16"])
def test_the_parts_make_the_maps_that_forward_returns(name, tiny):
    network = waves(VisionTransformer(name, layers=(1, -1)))
    with torch.no_grad():
        tokens, grid = network.embed(picture(30, 50, 2))
        assert tokens.shape == (2, network.prefix + grid[0] * grid[1], network.embed_dim)
        for block in network.blocks:
            tokens = block(tokens, network.rope(grid))
        patches = network.norm(tokens)[:, network.prefix:]
        *_, last = network(picture(30, 50, 2))
    assert network.channels == [16, 16] and network.strides == [network.patch] * 2
    torch.testing.assert_close(patches.transpose(1, 2).reshape(last.shape), last)


def test_further_tokens_in_front_move_no_rotary_position(tiny):
    network = waves(VisionTransformer("dinov3_vits16"))
    mask = torch.zeros(1, 1, 14, 14, dtype=torch.bool)
    mask[..., :3, :3] = mask[..., 3:, 3:] = True            # the first three and the others apart
    with torch.no_grad():
        tokens, grid = network.embed(picture(32, 48))
        rope, block = network.rope(grid), network.blocks[0]
        more = torch.cat([torch.ones(1, 3, 16), tokens], dim=1)
        torch.testing.assert_close(block(more, rope, mask)[:, 3:], block(tokens, rope))


def test_a_mask_of_numbers_is_added_before_the_softmax():
    torch.manual_seed(0)
    block, tokens = Block(TINY).eval(), torch.randn(2, 6, 16)
    allowed = torch.rand(2, 2, 6, 6) > 0.3
    allowed |= torch.eye(6, dtype=torch.bool)
    added = torch.zeros(2, 2, 6, 6).masked_fill(~allowed, float("-inf"))
    with torch.no_grad():
        block.ls1.gamma.fill_(1.0)
        torch.testing.assert_close(block(tokens, None, added), block(tokens, None, allowed))
        assert not torch.allclose(block(tokens, None, allowed), block(tokens), atol=1e-4)


def test_patch_and_table_can_have_another_size_as_eomt_needs_it(tiny):
    network = VisionTransformer("dinov2_vits14_reg", patch=16, image_size=96)
    assert network.pos_embed.shape == (1, 36, 16) and network.strides == [16] * 4
    assert network.embed(torch.zeros(1, 3, 96, 96))[0].shape == (1, 5 + 36, 16)
    with pytest.raises(ConfigError, match="not a multiple of the patch"):
        VisionTransformer("dinov2_vits14", patch=16)
    with pytest.raises(ConfigError, match="no position table"):
        VisionTransformer("dinov3_vits16", image_size=96)


def test_layers_have_to_end_with_the_last_block(tiny):
    assert VisionTransformer("dinov2_vits14").layers == (0, 1, 2, 3)
    assert VisionTransformer("dinov2_vits14", layers=(-3, -1)).layers == (1, 3)
    for layers in ((0, 1), (3, 1), (1, 1, 3), (4,), ()):
        with pytest.raises(ConfigError, match=r"growing numbers(.|\n)*layers"):
            VisionTransformer("dinov2_vits14", layers=layers)


def test_checkpointing_changes_neither_loss_nor_gradients(tiny):
    found = []
    for checkpointing in (False, True):
        network = waves(ViTLinear(3, drop_path=0.5, checkpointing=checkpointing)).train()
        torch.manual_seed(1)
        network(picture(28, 42, 4))["out"].square().mean().backward()
        found.append([p.grad for p in network.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_drop_path_grows_from_block_to_block(tiny):
    network = VisionTransformer("dinov2_vits14", drop_path=0.3)
    shares = [getattr(block.drop_path, "p", 0.0) for block in network.blocks]
    assert shares == pytest.approx([0.0, 0.1, 0.2, 0.3])


# Networks

def test_networks_that_need_a_pyramid_get_one_of_the_last_map(tiny):
    network = UperNet(3, backbone="dinov3_vits16")
    with torch.no_grad():
        assert network.eval()(picture(33, 50)).shape == (1, 3, 33, 50)


def test_the_pyramid_does_not_move_the_image(tiny):
    """The encoder alone would pad on all sides, and the pyramid crops at the right and below."""
    encoder = build_backbone("dinov2_vits14", levels=4, pyramid=True)
    seen = []
    encoder.encoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        encoder.eval()(picture(30, 17))
    assert torch.equal(seen[0], F.pad(picture(30, 17), (0, 11, 0, 12)))


def test_a_linear_head_is_refused_on_an_encoder_with_several_strides():
    with pytest.raises(ConfigError, match=r"maps of one size(.|\n)*dinov2_vits14"):
        ViTLinear(3, backbone="resnet18")


def test_several_layers_are_the_last_four_or_one_of_each_quarter():
    with torch.device("meta"):
        assert ViTMultiLinear(3).backbone.layers == (8, 9, 10, 11)
        assert ViTMultiLinear(3, layers="quarters").backbone.layers == (2, 5, 8, 11)
        large = ViTMultiLinear(3, "dinov3_vitl16", layers="quarters")
    assert large.backbone.layers == (5, 11, 17, 23) and large.head[2].in_channels == 4096


def test_only_the_maps_in_use_are_normalized(tiny):
    network = ViTLinear(3).eval()
    calls = []
    network.backbone.norm.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        network(picture(28, 28))
    assert len(calls) == 1


# Files

def meta_keys(state):
    """The file of Meta for a transformer with the tensors `state`, with a chunk index of blocks."""
    names = {"reg_token": "storage_tokens" if "pos_embed" not in state else "register_tokens"}
    state = {names.get(key, key.replace("blocks.", "blocks.0.")): value
             for key, value in state.items()}
    if "register_tokens" in state:
        row = torch.randn(1, 1, 16)
        state["pos_embed"] = torch.cat([row, state["pos_embed"]], dim=1)
        state["cls_token"] = state["cls_token"] - row
        for key in [key for key in state if ".mlp.fc1." in key]:
            state[key.replace(".fc1.", ".w12.")] = state.pop(key)
        for key in [key for key in state if ".mlp.fc2." in key]:
            state[key.replace(".fc2.", ".w3.")] = state.pop(key)
    if "storage_tokens" in state:
        state["rope_embed.periods"] = torch.ones(2, dtype=torch.bfloat16)
        for block in range(4):
            bias, mask = torch.zeros(48), torch.ones(48)
            bias[16:32], mask[16:32] = float("nan"), 0.0
            state[f"blocks.0.{block}.attn.qkv.bias"] = bias
            state[f"blocks.0.{block}.attn.qkv.bias_mask"] = mask
    return state | {"mask_token": torch.zeros(1, 16)}


def hugging_face_keys(state):
    """The file of Hugging Face for a transformer with the tensors `state`."""
    newer, file = "pos_embed" not in state, {}                          # newer: DINOv3
    for key, value in state.items():
        key = key.replace("pos_embed", "embeddings.position_embeddings")
        key = key.replace("patch_embed.proj", "embeddings.patch_embeddings"
                          if newer else "embeddings.patch_embeddings.projection")
        key = key.replace("cls_token", "embeddings.cls_token")
        key = key.replace("reg_token", "embeddings.register_tokens")
        key = key.replace("blocks.", "layer." if newer else "encoder.layer.")
        key = key.replace(".attn.proj.", ".attention.o_proj." if newer else
                          ".attention.output.dense.")
        for number in "12":
            key = key.replace(f".ls{number}.gamma", f".layer_scale{number}.lambda1")
        if ".attn.qkv." in key:
            names = ("q_proj", "k_proj", "v_proj") if newer else (
                "attention.query", "attention.key", "attention.value")
            file |= {key.replace("attn.qkv", f"attention.{name}"): part
                     for name, part in zip(names, value.chunk(3), strict=True)}
        elif "reg_token" in "".join(state) and not newer and ".mlp." in key:    # gated
            file[key.replace("fc1", "weights_in").replace("fc2", "weights_out")] = value
        elif newer:
            file[key.replace("fc1", "up_proj").replace("fc2", "down_proj")] = value
        else:
            file["layernorm." + key[5:] if key.startswith("norm.") else key] = value
    if newer:
        for block in range(4):
            file |= {f"layer.{block}.attention.{name}_proj.bias": torch.zeros(16) for name in "qv"}
    elif "embeddings.register_tokens" in file:
        row = torch.randn(1, 1, 16)
        table = file["embeddings.position_embeddings"]
        file["embeddings.position_embeddings"] = torch.cat([row, table], dim=1)
        file["embeddings.cls_token"] = file["embeddings.cls_token"] - row
    return file | {"embeddings.mask_token": torch.zeros(1, 16)}


@pytest.mark.parametrize("keys_of", [meta_keys, hugging_face_keys])
@pytest.mark.parametrize("name", ["dinov2_vits14", "dinov2_vits14_reg", "dinov3_vits16"])
def test_the_encoder_starts_from_a_published_file(name, keys_of, tiny, tmp_path):
    torch.manual_seed(0)
    donor, network = ViTLinear(3, name), ViTLinear(5, name)
    waves(donor)
    torch.save(keys_of(donor.backbone.state_dict()), tmp_path / "file.pth")
    report = load_foreign(network, tmp_path / "file.pth")
    assert not report.unexpected and not report.mismatched
    assert {key.split(".")[0] for key in report.missing} == {"head"}
    for key, value in donor.backbone.state_dict().items():
        torch.testing.assert_close(network.backbone.state_dict()[key], value)


def test_a_bias_of_dinov3_that_is_not_zero_is_an_error(tiny):
    state = meta_keys(VisionTransformer("dinov3_vits16").state_dict())
    state["blocks.0.2.attn.qkv.bias"][3] = 0.1
    with pytest.raises(CheckpointError, match=r"blocks.2.attn.qkv.bias is not zero"):
        our_vit_keys(state)


def test_the_two_first_layers_of_swiglu_become_one_with_the_gate_first():
    for gate, other in (("w1", "w2"), ("fc1_g", "fc1_x"), ("w1", "fc1")):
        state = our_vit_keys({f"blocks.3.mlp.{gate}.bias": torch.tensor([1.0]),
                              f"blocks.3.mlp.{other}.bias": torch.tensor([2.0])})
        assert state.keys() == {"blocks.3.mlp.fc1.bias"}
        assert state["blocks.3.mlp.fc1.bias"].tolist() == [1.0, 2.0]


def test_layers_of_attention_that_are_not_whole_stay_as_they_are():
    front = "encoder.layer.0.attention.attention."
    for others in ({}, {f"{front}value.weight": torch.zeros(3, 2)}):
        state = {"embeddings.cls_token": torch.zeros(1, 1, 2),
                 f"{front}query.weight": torch.zeros(2, 2),
                 f"{front}key.weight": torch.zeros(2, 2), **others}
        assert our_vit_keys(state).keys() == {"cls_token"} | {
            key.replace(front, "blocks.0.attn.") for key in state if key.startswith(front)}


@pytest.fixture
def files(tiny):
    """A small network, and the files of its head and of its encoder."""
    network = waves(ViTLinear(4))
    state = network.state_dict()
    encoder = {key.removeprefix("backbone."): value for key, value in state.items()
               if key.startswith("backbone.")} | {"mask_token": torch.zeros(1, 16)}
    head = {key.replace("head.1.", "decode_head.bn.").replace("head.2.", "decode_head.conv_seg."):
            value for key, value in state.items() if key.startswith("head.")}
    return network, {"meta": {}, "state_dict": head}, encoder


def test_the_files_of_a_head_and_its_encoder_become_one_checkpoint(files, tmp_path):
    network, head, encoder = files
    torch.save(head, tmp_path / "head.pth")
    torch.save(encoder, tmp_path / "encoder.pth")
    assert convert_checkpoint.main(["dinov2_vit_small_linear", *(str(tmp_path / name) for name in (
        "head.pth", "out.pth")), "--encoder", str(tmp_path / "encoder.pth")]) == 0
    opened = open_model(read_checkpoint(tmp_path / "out.pth"), "cpu")
    found, given = opened.model.state_dict(), network.state_dict()
    assert found.keys() == given.keys() and all(found[key].equal(given[key]) for key in given)
    with torch.no_grad():       # where tensors begin in memory may change the last bit of a product
        torch.testing.assert_close(opened.model(picture(33, 50)), network(picture(33, 50)))


def test_a_head_without_its_encoder_and_an_encoder_too_many_are_errors(files):
    _, head, encoder = files
    with pytest.raises(CheckpointError, match=r"head alone(.|\n)*dinov2_vits14_pretrain.pth"):
        load_published("dinov2_vit_small_linear", head)
    both = head["state_dict"] | {f"backbone.{key}": value for key, value in encoder.items()}
    with pytest.raises(CheckpointError, match="leave --encoder out"):
        load_published("dinov2_vit_small_linear", both, encoder=encoder)
    with pytest.raises(CheckpointError, match="leave --encoder out"):
        load_published("yassouali_enet", {"a": torch.zeros(1)}, encoder=encoder)


def test_pretrained_takes_metas_file_and_dinov3_has_to_be_asked_for(tiny, monkeypatch):
    donor, urls = waves(VisionTransformer("dinov2_vits14_reg")), []

    def fetch(url, **options):
        urls.append(url)
        return meta_keys(donor.state_dict())

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fetch)
    network = VisionTransformer("dinov2_vits14_reg", pretrained=True)
    torch.testing.assert_close(network.cls_token, donor.cls_token)
    assert urls[0].endswith("/dinov2/dinov2_vits14/dinov2_vits14_reg4_pretrain.pth")
    with pytest.raises(ConfigError, match="no download for dinov3_vits16"):
        VisionTransformer("dinov3_vits16", pretrained=True)
