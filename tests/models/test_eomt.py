"""EoMT: goldens in other modes and dialects, masked attention, and any size of image."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models.backbones.vit import VisionTransformer
from models.eomt import EoMT, class_scores
from models.layers.positions import resize_patches
from models.weights.published import identify, load_published
from tests.support.made_up import (
    PARITY,
    in_dialect,
    needs_goldens,
    published_weights,
    twenty_steps_on_shapes,
    waves,
)
from tests.support.ranks import on_ranks
from tests.support.start_values import no_start_values
from utils.checkpoint.load import load_foreign
from utils.errors import ConfigError
from utils.losses.mask_classification import MaskClassificationLoss

NAME = "eomt_small"
SMALL = {"backbone": "dinov2_vits14_reg", "image_size": 64, "queries": 6, "blocks": 3}


@pytest.fixture
def net():
    torch.manual_seed(0)
    return waves(EoMT(4, **SMALL))


def golden_network(state):
    with no_start_values():
        return load_published(NAME, state)


@needs_goldens
@pytest.mark.slow      # makes up the weights of a whole network
def test_with_masked_attention_it_gives_the_numbers_of_the_original():
    file, image = published_weights(NAME)
    network = golden_network(file)
    network.attn_mask_probs.fill_(1)
    with torch.no_grad():
        outputs = network.train()(image)
    masks, classes = outputs["masks"][:, -1], outputs["classes"][:, -1]
    full = F.interpolate(masks, image.shape[2:], mode="bilinear")
    found = {"class_logits": classes, "mask_logits": masks,
             "out": class_scores(full, classes)[..., ::9, ::9]}
    with np.load(PARITY / NAME / "golden_masked.npz") as stored:
        for key, limit in (("class_logits", 1e-4), ("mask_logits", 1e-4), ("out", 2e-4)):
            golden = torch.from_numpy(stored[key])
            assert (found[key] - golden).abs().max() <= limit * golden.std(), key


@needs_goldens
@pytest.mark.slow      # makes up the weights of a whole network
def test_both_dialects_are_the_same_network_whatever_the_file_says_of_masking():
    file, image = published_weights(NAME)
    other = in_dialect(NAME, "tue_mps", file)
    table = "network.encoder.backbone.pos_embed"
    other |= {table: other[table].unsqueeze(0), "network.attn_mask_probs": torch.zeros(3),
              "criterion.empty_weight": torch.ones(151),
              "network.encoder.pixel_mean": torch.zeros(1, 3, 1, 1),
              "network.encoder.pixel_std": torch.ones(1, 3, 1, 1)}
    file["attn_mask_probs"] = torch.ones(3)
    with torch.no_grad():
        first, second = golden_network(file)(image), golden_network(other)(image)
    assert torch.equal(first, second)
    assert identify(file) == identify(other) == [NAME]


@needs_goldens
@pytest.mark.slow      # makes up the weights of a whole network
def test_training_starts_from_published_files_of_another_size(tmp_path):
    file, image = published_weights(NAME)
    torch.save(file, tmp_path / "file.pth")
    network = EoMT(5, **{**SMALL, "queries": 20})
    report = load_foreign(network, str(tmp_path / "file.pth"))
    assert report.mismatched and all("class_head" in str(one) for one in report.mismatched)
    assert network.backbone.pos_embed.shape == (1, 16, 384)


def test_scores_are_the_sum_of_softmax_times_sigmoid(net):
    masks, classes = torch.randn(1, 6, 5, 7), torch.randn(1, 6, 5)
    expected = sum(classes[0, q].softmax(0)[:4, None, None] * masks[0, q].sigmoid()
                   for q in range(6))
    assert torch.allclose(class_scores(masks, classes)[0], expected, atol=1e-6)


def test_in_eval_mode_nothing_is_masked(net):
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        net.attn_mask_probs.fill_(1)
        first = net.eval()(image)
        net.attn_mask_probs.fill_(0)
        assert torch.equal(net(image), first)
        unmasked = net.train()(image)["masks"][:, -1]
        net.attn_mask_probs.fill_(1)
        assert not torch.allclose(net(image)["masks"][:, -1], unmasked)


def test_a_query_sees_the_patches_of_its_mask_and_all_other_tokens(net):
    masks = torch.full((1, 6, 16, 16), -1.0)
    masks[0, 2, :, :8] = 1          # the left half
    net.attn_mask_probs.copy_(torch.tensor([1.0, 0.0, 1.0]))
    seen = net._attention_mask(masks, (4, 4), 0)[0, 0]
    assert seen.shape == (6 + 5 + 16,) * 2 and seen[6:].all() and seen[:, :11].all()
    assert seen[2, 11:].view(4, 4).tolist() == [[True, True, False, False]] * 4
    assert not seen[0, 11:].any()
    assert net._attention_mask(masks, (4, 4), 1).all()      # with the chance 0


def test_masking_ends_block_after_block(net):
    def at(progress):
        net.at_progress(progress)
        return net.attn_mask_probs.tolist()
    assert at(0) == at(0.2) == [1, 1, 1]
    assert at(0.3) == pytest.approx([0.5 ** 0.9, 1, 1])
    assert at(0.4) == pytest.approx([0, 1, 1], abs=1e-6)
    assert at(0.7) == pytest.approx([0, 0, 0.5 ** 0.9], abs=1e-6)
    assert at(0.8) == at(0.999) == pytest.approx([0, 0, 0], abs=1e-6)


@pytest.mark.parametrize("size", [(70, 91), (16, 33)])
def test_a_padded_image_gets_the_masks_of_its_own_pixels(net, size):
    image = torch.randn(1, 3, *size)
    height, width = (-side % 16 for side in size)
    padded = F.pad(image, (width // 2, width - width // 2, height // 2, height - height // 2))
    with torch.no_grad():
        found, whole = net.eval()(image), net(padded)
        expected = whole[..., height // 2:height // 2 + size[0], width // 2:width // 2 + size[1]]
        torch.testing.assert_close(found, expected)
        net.attn_mask_probs.fill_(0)
        outputs = net.train()(image)
        masks, classes = outputs["masks"][:, -1], outputs["classes"][:, -1]
        torch.testing.assert_close(class_scores(masks, classes), expected)


def test_larger_patches_give_the_same_tokens_on_resized_images():
    torch.manual_seed(0)
    kernel, patch = torch.randn(5, 3, 14, 14), torch.randn(1, 3, 14, 14)
    larger = F.interpolate(patch, 16, mode="bicubic", antialias=True)
    expected = (kernel * patch).sum((1, 2, 3))
    found = (resize_patches(kernel, 16) * larger).sum((1, 2, 3))
    assert torch.allclose(found, expected, atol=1e-3)


def test_a_transformer_of_other_patches_is_resampled():
    own = VisionTransformer("dinov2_vits14_reg", patch=16, image_size=64)
    file = VisionTransformer("dinov2_vits14_reg", image_size=70).state_dict()
    own.load_state_dict(own.fitted(file))
    assert own.fitted(own.state_dict())["pos_embed"] is not None


def test_a_network_that_is_no_transformer_is_refused():
    with pytest.raises(ConfigError, match="needs a plain vision transformer(.*)'resnet50'"):
        EoMT(4, backbone="resnet50")
    with pytest.raises(ConfigError, match="blocks"):
        EoMT(4, **{**SMALL, "blocks": 13})


def _ranks_train(rank, world):
    """Rank 1 has no label in one step, and masked attention may leave tokens unused."""
    torch.manual_seed(0)
    net = torch.nn.parallel.DistributedDataParallel(
        EoMT(4, **SMALL).train(), broadcast_buffers=False, static_graph=True)
    loss = MaskClassificationLoss(points=50)
    for step in range(3):
        image = torch.randn(1, 3, 32, 32)
        label = torch.full((1, 32, 32), 255 if rank == 1 and step == 1 else rank)
        net.module.at_progress(step / 3)
        outputs = net(image)
        loss(outputs["masks"], outputs["classes"], label).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.slow      # starts two processes
def test_two_ranks_train_also_where_one_has_no_mask():
    on_ranks(_ranks_train, 2)


@pytest.mark.slow      # twenty steps of a network of twelve blocks
def test_twenty_steps_on_shapes_reduce_every_part_of_the_loss():
    torch.manual_seed(0)
    network = EoMT(9, **{**SMALL, "queries": 20})
    first, last = twenty_steps_on_shapes(
        network, {"type": "MaskClassificationLoss", "args": {"points": 1000}},
        torch.optim.AdamW, lr=1e-4, weight_decay=0.05)
    assert len(first) == 5 and all(last[key] < first[key] for key in first)
    assert last["total"] < 0.8 * first["total"]
