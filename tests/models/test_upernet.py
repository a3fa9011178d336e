"""UPerNet on Swin and ConvNeXt: dialects of their files, tables of other windows, odd sizes."""
import functools
import re

import pytest
import torch

from models.backbones import build_backbone
from models.backbones.swin import PatchMerging
from models.upernet import UPerNet
from models.weights.published import load_published, published
from models.weights.rename_keys import rename
from tests.models.test_backbones import outputs, randomized
from tests.support.made_up import (
    in_dialect,
    needs_goldens,
    published_manifest,
    published_weights,
)
from tests.support.start_values import no_start_values
from utils.checkpoint.load import match_tensors
from utils.errors import CheckpointError, ConfigError
from utils.export.graph import EXAMPLE

TINY = ("swin_tiny", "convnext_tiny")
every_encoder = pytest.mark.parametrize("encoder", TINY)


@functools.cache
def hugging_face(encoder):
    """Made-up weights with the published keys of Hugging Face."""
    return published_weights(f"upernet_{encoder}")[0]


@functools.cache
def loaded(encoder):
    """The network with these weights."""
    with no_start_values():
        return load_published(f"upernet_{encoder}", hugging_face(encoder))


def mmseg(encoder):
    """The same weights as mmsegmentation stores them, with one of its constant tables."""
    state = in_dialect(f"upernet_{encoder}", "mmseg", hugging_face(encoder))
    if encoder == "convnext_tiny":
        return state
    for key, value in state.items():
        if ".downsample." in key:       # theirs[4 c + (0, 2, 1, 3)[g]] = value[g C + c]
            value = value.unflatten(-1, (4, -1))[..., [0, 2, 1, 3], :]
            state[key] = value.transpose(-2, -1).flatten(-2)
    index = "backbone.stages.0.blocks.1.attn.w_msa.relative_position_index"
    return state | {index: torch.zeros(49, 49)}


def authors(encoder):
    """The same weights with the keys of the authors' segmentation networks."""
    if encoder == "convnext_tiny":
        return rename(mmseg(encoder), (
            (r"\.depthwise_conv\.", ".dwconv."), (r"\.pointwise_conv", ".pwconv")))
    state = rename({key: value for key, value in loaded(encoder).state_dict().items()
                    if key.startswith("backbone.")},
                   ((r"^backbone\.stages\.", "backbone.layers."),))
    state |= {key: value for key, value in mmseg(encoder).items()
              if not key.startswith("backbone.")}
    return state | {"backbone.layers.1.blocks.1.attn_mask": torch.zeros(4, 49, 49)}


def first_hugging_face(encoder):
    """The same weights with the keys of Hugging Face's first conversions of ConvNeXt."""
    state = rename(hugging_face(encoder), (
        (r"^backbone\.(?=embeddings|encoder)", "backbone.convnext."),
        (r"^backbone\.hidden_states_norms\.stage(\d)",
         lambda m: f"backbone.hidden_states_norms.{int(m[1]) - 1}")))
    return state | {"backbone.layernorm.weight": torch.ones(768),
                    "backbone.layernorm.bias": torch.ones(768)}


def with_constants(encoder):
    """Hugging Face's file as release 4 wrote it, with the tables of its windows."""
    index = "backbone.encoder.layers.0.blocks.0.attention.self.relative_position_index"
    return hugging_face(encoder) | {index: torch.zeros(49, 49, dtype=torch.int64)}


DIALECTS = [(mmseg, "swin_tiny"), (mmseg, "convnext_tiny"), (authors, "swin_tiny"),
            (authors, "convnext_tiny"), (first_hugging_face, "convnext_tiny"),
            (with_constants, "swin_tiny")]


@pytest.mark.slow       # networks of full size
@needs_goldens
@pytest.mark.parametrize("dialect, encoder", DIALECTS)
def test_every_dialect_of_a_file_gives_the_same_tensors(dialect, encoder):
    state = dialect(encoder)
    expected = loaded(encoder).state_dict()
    with no_start_values():
        found = load_published(f"upernet_{encoder}", state).state_dict()
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    with torch.device("meta"):
        network = UPerNet(150, encoder)
    renamed = network.rename_foreign(state)
    assert all(torch.equal(renamed[key], value) for key, value in expected.items()
               if not key.endswith("num_batches_tracked"))


@pytest.mark.parametrize("size", ["small", "base", "base_384", "large", "large_384"])
def test_the_tensors_of_a_larger_swin_are_those_of_the_table(size):
    """Parameters in millions of the encoders in the paper, without the classifier: 50, 88, 197."""
    with torch.device("meta"):
        encoder = build_backbone(f"swin_{size}")
    count = sum(p.numel() for p in encoder.parameters()) / 1e6
    assert round(count) == {"small": 49, "base": 87, "large": 195}[size.removesuffix("_384")]
    window = 12 if size.endswith("384") else 7
    table = encoder.state_dict()["stages.3.blocks.1.attn.relative_position_bias_table"]
    assert table.shape == ((2 * window - 1) ** 2, encoder.channels[3] // 32)


def test_merging_joins_rows_before_columns():
    merge = PatchMerging(1)
    torch.nn.init.eye_(merge.reduction.weight)
    square = torch.tensor([[0.0, 1], [2, 3]]).view(1, 2, 2, 1)
    normed = merge.norm(torch.tensor([0.0, 2, 1, 3]))
    assert torch.allclose(merge(square).flatten(), normed[:2])


# torchvision's classifiers. Maps must be larger than a window: there a classifier does not move it.
TWINS = {"swin_tiny": ("swin_t", 256), "convnext_tiny": ("convnext_tiny", 65)}


def twin(encoder):
    models = pytest.importorskip("torchvision.models")
    name, size = TWINS[encoder]
    return randomized(models.get_model(name, weights=None)), size


@pytest.mark.slow       # both encoders have their full size
@every_encoder
def test_pretrained_weights_give_the_features_of_torchvisions_classifier(encoder, monkeypatch):
    theirs, size = twin(encoder)
    state = theirs.state_dict()
    monkeypatch.setattr(f"models.backbones.{encoder.split('_')[0]}.torchvision_state",
                        lambda name: state if name == TWINS[encoder][0] else None)
    ours = build_backbone(encoder, pretrained=True).eval()
    x = torch.randn(1, 3, size, size + 32, generator=torch.Generator().manual_seed(1))
    expected = outputs(theirs, ["features.1", "features.3", "features.5", "features.7"], x)
    with torch.no_grad():
        for number, m in enumerate(expected):
            m = m if encoder.startswith("swin") else m.permute(0, 2, 3, 1)
            expected[number] = ours.get_submodule(f"norm{number}")(m).permute(0, 3, 1, 2)
        for mine, other in zip(ours(x), expected, strict=True):
            assert (mine - other).abs().max() <= 1e-4 * other.std()


@every_encoder
def test_a_file_of_torchvision_fills_the_encoder_of_a_network(encoder):
    models = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        state, network = models.get_model(TWINS[encoder][0]).state_dict(), UPerNet(3, encoder)
    report = match_tensors(network, network.rename_foreign(state))
    assert set(report.missing) == {key for key in network.state_dict() if not re.match(
        r"backbone\.(?!norm\d)", key)} and not report.mismatched


@pytest.mark.parametrize("name", ["swin_large", "swin_base_384", "convnext_xlarge"])
def test_pretrained_is_a_config_error_where_torchvision_has_no_weights(name):
    with torch.device("meta"), pytest.raises(ConfigError, match="finetune_from"):
        build_backbone(name, pretrained=True)


def test_a_bias_table_of_another_window_is_resized():
    with torch.device("meta"):
        network = UPerNet(3, "swin_base")
    key = "layers.2.blocks.1.attn.relative_position_bias_table"
    row = torch.arange(23.0).repeat_interleave(23)                      # the offset in rows
    renamed = network.rename_foreign({key: row[:, None].repeat(1, 16)})
    table, = (value for name, value in renamed.items() if name.endswith("bias_table"))
    assert table.shape == (169, 16)
    grid = table[:, 3].view(13, 13)
    assert torch.allclose(grid, grid[:, :1].expand(13, 13), atol=1e-4)
    # Opposite offsets stay opposite, seen from the middle row, 11.
    torch.testing.assert_close(grid + grid.flip(0), torch.full((13, 13), 22.0))
    assert (grid[1:] > grid[:-1]).all() and grid[6, 0] == pytest.approx(11)


def test_a_published_file_with_other_windows_is_refused_with_the_shapes():
    with torch.device("meta"):
        state = UPerNet(3, "swin_base_384").state_dict()
    theirs = rename(state, ((r"^head\.1\.", "decode_head.conv_seg."),))
    with pytest.raises(CheckpointError, match=r"bias_table is \(529, 4\)"):
        load_published("upernet_swin_base", theirs)


@needs_goldens
@every_encoder
def test_the_parameters_are_as_many_as_in_the_original(encoder):
    with torch.device("meta"):
        network = published()[f"upernet_{encoder}"].build(150)
    assert (sum(p.numel() for p in network.parameters())
            == published_manifest(f"upernet_{encoder}")["n_params"])


@every_encoder
def test_the_encoders_of_the_paper_train(encoder):
    """A second each: networks of full size, forward and backward."""
    torch.manual_seed(0)
    network = UPerNet(3, encoder, channels=16).train()
    outputs = network(torch.randn(2, 3, 33, 47))
    (outputs["out"].square().mean() + outputs["aux"].square().mean()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@every_encoder
@pytest.mark.parametrize("size", [(1, 1), (5, 3), (33, 47)])
def test_the_encoders_of_the_paper_take_images_of_any_size(encoder, size):
    network = small(encoder)
    with torch.no_grad():
        out = network(torch.randn(1, 3, *size))
    assert out.shape == (1, 3, *size) and out.isfinite().all()


@functools.cache
def small(encoder):
    torch.manual_seed(0)
    return UPerNet(3, encoder, channels=16).eval()


@pytest.mark.slow       # two forward and backward passes of networks of full size
@every_encoder
def test_checkpointing_changes_no_gradient(encoder):
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        network = build_backbone(encoder, checkpointing=checkpointing).train()
        maps = network(torch.randn(2, 3, 33, 47))
        torch.cat([m.flatten() for m in maps]).square().sum().backward()
        gradients.append([p.grad for p in network.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@every_encoder
def test_logits_do_not_depend_on_batch_and_memory_format_and_little_on_bf16(encoder):
    network, images = small(encoder), torch.randn(2, 3, 61, 90)
    with torch.no_grad():
        both = network(images)
        one = network(images[1:].to(memory_format=torch.channels_last))
        part = images[:1, :, :29, :45]
        exact = network(part)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = network(part).float()
    assert (both[1:] - one).abs().max() <= 1e-4 * both.std()
    assert (half - exact).abs().mean() <= 0.1 * exact.std()


@pytest.mark.slow       # torch's exporter traces networks of full size
@every_encoder
def test_a_graph_for_any_size_gives_the_logits_of_the_network(encoder):
    network, sizes = small(encoder), torch.export.Dim.DYNAMIC
    with torch.no_grad():
        example = torch.randn(EXAMPLE[0], 3, *EXAMPLE[1:])
        graph = torch.export.export(network, (example,), dynamic_shapes=(
            {0: sizes, 2: sizes, 3: sizes},)).module(check_guards=False)
        for shape in ((1, 3, 97, 131), (2, 3, 64, 96), (1, 3, 203, 75)):
            image = torch.randn(shape)
            expected = network(image)
            assert (graph(image) - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_drop_path_for_an_encoder_without_it_is_an_error():
    with pytest.raises(ConfigError, match="no option drop_path"):
        UPerNet(3, "resnet18", drop_path=0.2)
