"""SegFormer: dialects of its files, mmseg's head, sizes, drop path, checkpointing."""
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.backbones import build_backbone
from models.segformer import SegFormer
from models.upernet_yassouali import UperNet
from models.weights.published import load_published, open_published, published
from tests.support.made_up import (
    in_dialect,
    needs_goldens,
    picture,
    published_manifest,
    published_weights,
    waves,
)
from tests.support.ranks import on_ranks
from utils.checkpoint.load import load_foreign, match_tensors
from utils.errors import CheckpointError, ConfigError

NAME = "segformer_b0"


def as_mmseg(weights):
    """Hugging Face's encoder in mmseg's dialect, whose MLPs have 1x1 convolutions."""
    state = in_dialect(NAME, "mmseg_backbone_only", weights)
    return {key: value[..., None, None] if ".ffn.layers." in key and value.ndim == 2 else value
            for key, value in state.items()}


def in_memory(state):
    """The keys of a network of transformers 5 for those of the file it is read from."""
    pairs = (
        ("segformer.encoder.patch_embeddings.{}.", "segformer.stages.{}.patch_embeddings."),
        ("segformer.encoder.block.{}.", "segformer.stages.{}.blocks."),
        ("segformer.encoder.layer_norm.{}.", "segformer.stages.{}.layer_norm."))
    inside = {"layer_norm_1": "layernorm_before", "layer_norm_2": "layernorm_after",
              "attention.self.query": "attention.q_proj", "attention.self.key": "attention.k_proj",
              "attention.self.value": "attention.v_proj",
              "attention.output.dense": "attention.o_proj",
              "attention.self.sr": "attention.sequence_reduction.sequence_reduction",
              "attention.self.layer_norm": "attention.sequence_reduction.layer_norm",
              "mlp.dense": "mlp.fc", "decode_head.linear_c": "decode_head.linear_projections"}
    renamed = {}
    for key, value in state.items():
        for theirs, live in pairs:
            for stage in range(4):
                key = key.replace(theirs.format(stage), live.format(stage))
        for theirs, live in inside.items():
            key = key.replace(theirs, live)
        renamed[key] = value
    return renamed


def mmseg_head(channels, width, classes):
    """Made-up weights of mmseg's head, by its keys."""
    generator = torch.Generator().manual_seed(5)

    def conv_norm(name, inputs):
        return {f"{name}.conv.weight": torch.randn(width, inputs, 1, 1, generator=generator)
                * inputs ** -0.5,
                f"{name}.bn.weight": torch.rand(width, generator=generator) + 0.5,
                f"{name}.bn.bias": torch.randn(width, generator=generator),
                f"{name}.bn.running_mean": torch.randn(width, generator=generator),
                f"{name}.bn.running_var": torch.rand(width, generator=generator) + 0.5,
                f"{name}.bn.num_batches_tracked": torch.tensor(0)}
    state = {}
    for index, inputs in enumerate(channels):
        state |= conv_norm(f"decode_head.convs.{index}", inputs)
    return state | conv_norm("decode_head.fusion_conv", 4 * width) | {
        "decode_head.conv_seg.weight": torch.randn(classes, width, 1, 1, generator=generator),
        "decode_head.conv_seg.bias": torch.randn(classes, generator=generator)}


def mmseg_logits(state, maps):
    """mmseg's head, restated: the maps from fine to coarse, resized, then joined."""
    def conv_norm(name, x):
        x = F.conv2d(x, state[f"{name}.conv.weight"])
        return F.relu(F.batch_norm(x, *(state[f"{name}.bn.{part}"] for part in (
            "running_mean", "running_var", "weight", "bias"))))
    size = maps[0].shape[2:]
    joined = torch.cat([
        F.interpolate(conv_norm(f"decode_head.convs.{i}", x), size, mode="bilinear")
        for i, x in enumerate(maps)], dim=1)
    return F.conv2d(conv_norm("decode_head.fusion_conv", joined),
                    state["decode_head.conv_seg.weight"], state["decode_head.conv_seg.bias"])


@needs_goldens
def test_a_file_of_nvlabs_loads_with_the_classifier_that_its_network_never_uses():
    weights, _ = published_weights(NAME)
    theirs = in_dialect(NAME, "nvlabs", weights)
    assert len(theirs) == 192
    theirs |= {"decode_head.conv_seg.weight": torch.ones(19, 256, 1, 1),
               "decode_head.conv_seg.bias": torch.ones(19)}
    network, form = open_published(NAME, {"state_dict": theirs, "meta": {}})
    expected = load_published(NAME, weights).state_dict()
    assert form.args == {"backbone": "mit_b0"}
    assert all(value.equal(expected[key]) for key, value in network.state_dict().items())


@needs_goldens
def test_the_state_dict_of_a_network_of_transformers_5_loads():
    weights, _ = published_weights(NAME)
    live = in_memory(weights)
    assert "segformer.stages.0.blocks.0.attention.q_proj.weight" in live
    found, expected = (load_published(NAME, state).state_dict() for state in (live, weights))
    assert all(value.equal(found[key]) for key, value in expected.items())


@needs_goldens
def test_a_file_of_mmseg_builds_mmsegs_head_and_gives_its_logits():
    state = as_mmseg(published_weights(NAME)[0])
    state |= mmseg_head((32, 64, 160, 256), 256, 7)
    network: Any
    network, form = open_published(NAME, state)
    assert form.args["head"] == "mmseg" and network.backbone.stages[0].norm.eps == 1e-6
    image = picture(65, 97)
    with torch.no_grad():
        expected = mmseg_logits(state, network.backbone(image))
        found = network.head(network.backbone(image))
    assert (found - expected).abs().max() <= 1e-5 * expected.std()


@needs_goldens
def test_a_file_of_mmseg_fills_the_encoder_of_the_papers_network_and_nothing_of_its_head():
    state = as_mmseg(published_weights(NAME)[0]) | mmseg_head((32, 64, 160, 256), 256, 7)
    network = SegFormer(7)
    report = match_tensors(network, network.rename_foreign(state))
    assert {key for key in network.state_dict() if key.startswith("backbone.")} == \
        set(report.loaded)


ENCODERS = {
    "NVlabs": lambda weights: {
        key.removeprefix("backbone."): value
        for key, value in in_dialect(NAME, "nvlabs", weights).items() if "decode" not in key}
    | {"head.weight": torch.ones(1000, 256), "head.bias": torch.ones(1000)},
    "Hugging Face": lambda weights: {
        key: value for key, value in weights.items() if "decode" not in key}
    | {"classifier.weight": torch.ones(1000, 256), "classifier.bias": torch.ones(1000)},
    "mmseg": lambda weights: {key.removeprefix("backbone."): value
                              for key, value in as_mmseg(weights).items()},
    "a SegFormer of NVlabs": lambda weights: in_dialect(NAME, "nvlabs", weights),
}


@needs_goldens
@pytest.mark.parametrize("source", ENCODERS)
@pytest.mark.parametrize("network", [SegFormer, UperNet])
def test_the_encoder_of_a_file_starts_the_encoder_of_any_network(source, network, tmp_path):
    weights, _ = published_weights(NAME)
    torch.save(ENCODERS[source](weights), tmp_path / "mit_b0.pth")
    options: dict[str, Any] = {} if network is SegFormer else {
        "output_stride": 32, "fpn_channels": 16}
    model: Any = network(3, backbone="mit_b0", **options)
    load_foreign(model, tmp_path / "mit_b0.pth")
    published_network: Any = load_published(NAME, weights)
    expected = published_network.backbone.state_dict()
    assert all(value.equal(expected[key]) for key, value in model.backbone.state_dict().items())


def test_a_file_with_half_of_keys_and_values_is_an_error_that_names_the_tensor():
    with torch.device("meta"):
        own = published()[NAME].build(3).state_dict()
    state = {key: torch.zeros(value.shape) for key, value in own.items()}
    state["decode_head.classifier.weight"] = state.pop("head.classify.3.weight")
    del state["backbone.stages.0.blocks.0.attn.kv.weight"]
    state["segformer.encoder.block.0.0.attention.self.key.weight"] = torch.zeros(32, 32)
    with pytest.raises(CheckpointError, match=r"attn\.kv\.weight"):
        load_published(NAME, state)


@needs_goldens
@pytest.mark.parametrize("size", range(6))
def test_the_number_of_parameters_is_the_published_one(size):
    manifest = published_manifest(f"segformer_b{size}")
    with torch.device("meta"):
        network = published()[f"segformer_b{size}"].build(manifest["build"]["num_classes"])
    assert sum(p.numel() for p in network.parameters()) == manifest["n_params"]


def test_maps_have_the_rounded_up_sizes():
    with torch.no_grad():
        maps = build_backbone("mit_b0").eval()(torch.randn(1, 3, 65, 33))
    assert [tuple(x.shape[1:]) for x in maps] == [(32, 17, 9), (64, 9, 5), (160, 5, 3), (256, 3, 2)]


def test_the_head_joins_the_maps_from_the_coarsest_to_the_finest():
    head: Any = waves(SegFormer(3)).head
    maps = [picture(8, 8)[:, :1].expand(1, width, 8, 8) * (index + 1)
            for index, width in enumerate((32, 64, 160, 256))]
    linear = [layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
              for layer, x in zip(head.linears, maps, strict=True)]
    with torch.no_grad():
        expected = head.classify(head.fuse(torch.cat(linear[::-1], dim=1)))
        torch.testing.assert_close(head(maps), expected, rtol=1e-4, atol=1e-4)


def test_drop_path_grows_evenly_over_all_blocks():
    backbone: Any = SegFormer(3, drop_path=0.7).backbone
    shares = [getattr(block.drop_path, "p", 0.0)
              for stage in backbone.stages for block in stage.blocks]
    assert shares == pytest.approx([0.1 * i for i in range(8)])


def test_checkpointing_changes_no_gradient():
    image = picture(32, 48, 2)

    def gradients(checkpointing):
        torch.manual_seed(0)
        network = SegFormer(3, checkpointing=checkpointing).train()
        torch.manual_seed(1)
        outputs: Any = network(image)
        return torch.autograd.grad(outputs["out"].square().mean(), [*network.parameters()])
    assert all(a.equal(b) for a, b in zip(gradients(True), gradients(False), strict=True))


def test_every_norm_has_the_given_eps():
    network = SegFormer(3, norm_eps=1e-6)
    assert {m.eps for m in network.modules() if isinstance(m, nn.LayerNorm)} == {1e-6}


@pytest.mark.parametrize("options, message", [
    ({"head": "mlp"}, "head"), ({"drop_path": 1.0}, "drop_path"), ({"pretrained": True}, "mit_b0"),
    ({"backbone": "resnet18"}, "drop_path")])
def test_a_wrong_option_is_a_config_error(options, message):
    with pytest.raises(ConfigError, match=message):
        SegFormer(3, **options)  # pyright: ignore[reportArgumentType]


def test_an_encoder_without_drop_path_serves_if_it_is_switched_off():
    network = SegFormer(3, backbone="resnet18", drop_path=0.0, head_channels=32).eval()
    with torch.no_grad():
        assert network(picture(33, 47)).shape == (1, 3, 33, 47)


def _ranks_train(rank, world):
    """As base_trainer wraps a network: gradients are those of the whole batch, blocks may rest."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, 40, 56, generator=generator)
    labels = torch.randint(0, 4, (2, 40, 56), generator=generator)

    def loss(network, part):
        return F.cross_entropy(network(images[part])["out"], labels[part])

    networks = []
    for drop_path in (0.0, 0.9):
        torch.manual_seed(0)
        networks.append(SegFormer(4, dropout=0.0, norm="group", drop_path=drop_path).train())
    plain, resting = networks
    loss(plain, slice(0, 2)).backward()
    expected = [p.grad.clone() for p in plain.parameters()]
    for switches in ({"static_graph": True}, {"find_unused_parameters": True}):
        for network in networks:
            network.zero_grad(set_to_none=True)
            parallel = nn.parallel.DistributedDataParallel(network, broadcast_buffers=False,
                                                           **switches)
            torch.manual_seed(rank)
            for _ in range(2):
                loss(parallel, slice(rank, rank + 1)).backward()
            assert all(p.grad is not None and p.grad.isfinite().all()
                       for p in network.parameters())
        for p, gradient in zip(plain.parameters(), expected, strict=True):
            torch.testing.assert_close(p.grad, 2 * gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.slow      # starts two processes
def test_two_ranks_give_the_gradient_of_the_whole_batch_and_may_leave_out_blocks():
    on_ranks(_ranks_train, 2)
