"""Every recipe is built without its data, and takes a step on a batch of noise.

On a CPU the images of that step are small. SEGWRIGHT_WHOLE_CROPS=1 takes it on crops of the
recipe's own size as well, one image or two at a time, in an hour or two:

    SEGWRIGHT_WHOLE_CROPS=1 python -m pytest -m slow -n 0 tests/recipes/test_build.py -k own_crop
"""
import contextlib
import functools
import json
import math
import os
from typing import Any

import pytest
import torch

from models.weights.published import published
from tests.recipes.facts import PUBLISHED, RECIPES, STAGES, resolved
from utils.checkpoint.load import without_download
from utils.config.build import build
from utils.config.registry import components
from utils.images.normalize import Normalize
from utils.training.criterion import Criterion
from utils.training.lr_scheduler import build_scheduler
from utils.training.optimizer import build_optimizer

CLASSES = {"CityScapes": 19, "Cityscapes": 19, "MiniCity": 19, "VOC": 21, "VOC2010_Context": 59,
           "LIP": 20, "ADE20K": 150, "COCO": 171, "Folder": 2, "CamVid": 11, "Shapes": 9,
           "KvasirSEG": 2, "SegFixTargets": 10, "Cityscapes_coarse": 19,
           "Cityscapes_fine_coarse": 19, "Mapillary": 65}
OTHER_STATISTICS = ("KvasirSEG",)      # RankDice trained on it with ADE20K's mean; no file exists
STEPS = 1000
PIXELS = 64 * 128      # of a crop of a step on a CPU; RMI and pyramid pooling need as many
WHOLE_CROPS = os.environ.get("SEGWRIGHT_WHOLE_CROPS") == "1"
LARGE = 150e6           # parameters of a network that takes a step on whole crops only
IN_MEMORY = 2 ** 20     # pixels of a step whose activations fit into the memory of a usual machine


def classes_of(config):
    """The number of classes that the network of a recipe needs, from the published tables."""
    section = config["train_loader"]
    section = (section["args"].get("parts") or [section])[0]
    return CLASSES[section["type"]] + bool(section["args"].get("train_void"))


@functools.cache
def _network(arch, classes):
    with torch.device("meta"):
        network = build("models", json.loads(arch), num_classes=classes)
    return network.to_empty(device="cpu")       # memory that nothing touches


@pytest.fixture(scope="module", autouse=True)
def networks_are_freed():
    """Other tests limit the memory of the same process."""
    yield
    _network.cache_clear()


def network_of(config):
    """The network of a recipe without weights, and the number of its classes."""
    classes = classes_of(config)
    return _network(json.dumps(without_download(config["arch"])), classes), classes


def criterion_of(config, model, classes):
    return Criterion(config["loss"], model.output_weights, config["ignore_index"],
                     config["loss_weights"], classes)


@pytest.mark.parametrize("name", [*RECIPES, *STAGES])
def test_a_recipe_builds_network_loss_optimizer_and_schedule(name):
    config = resolved(name)
    model, classes = network_of(config)
    section = config["train_loader"]
    declared = section["args"].get("num_classes") or getattr(
        components("datasets")[section["type"]], "num_classes", None)
    if isinstance(declared, int):
        assert declared + bool(section["args"].get("train_void")) == classes
    criterion_of(config, model, classes)
    optimizer = build_optimizer(config["optimizer"], model)
    scheduler: Any = build_scheduler(config["lr_scheduler"], optimizer, 10 * STEPS, 10)
    assert scheduler.per_iteration or config["lr_scheduler"]["type"] == "ConstantLR"
    args = config["optimizer"]["args"]
    decays = {group["weight_decay"] for group in optimizer.param_groups}
    assert decays == {args["weight_decay"], *([0.0] if config["optimizer"]["no_decay"] else [])}
    sizes = [p.numel() for group in optimizer.param_groups for p in group["params"]]
    assert sum(sizes) == sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("name, share, factor", [
    ("mic_hrnet_wce", 0.5, 0.5 ** 0.9), ("openseg_baseoc_r101", 0.25, 0.75 ** 0.9),
    ("paddle_mscale_ocr_w48", 0.5, 0.25), ("hoya012_r50_ce", 0.7, 1.0),
    ("rankdice_voc_pspnet_r50_ce", 0.5, (0.5 - 1 / STEPS) ** 0.9)])
def test_the_rate_after_a_share_of_the_steps_is_the_published_one(name, share, factor):
    config = resolved(name)
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=config["optimizer"]["args"]["lr"])
    scheduler = build_scheduler(config["lr_scheduler"], optimizer, STEPS, 1)
    optimizer.step()
    for _ in range(round(share * STEPS)):
        scheduler.step()
    rate = optimizer.param_groups[0]["lr"] / config["optimizer"]["args"]["lr"]
    assert rate == pytest.approx(factor, rel=1e-6)


def test_the_head_of_rankdice_learns_ten_times_as_fast_as_its_backbone():
    for name in ("rankdice_voc_pspnet_r50_ce", "rankdice_cityscapes_deeplab_r101_ce",
                 "rankdice_kvasir_fcn8_ce", "openseg_hrnet48_ocr_pascal_context"):
        config = resolved(name)
        optimizer = build_optimizer(config["optimizer"], network_of(config)[0])
        assert sorted({group["lr"] for group in optimizer.param_groups}) == \
            pytest.approx([0.001, 0.01]), name


def test_the_head_of_segformer_learns_ten_times_as_fast_and_its_norms_decay():
    groups = groups_of("segformer_b0")
    head, = {groups[name] for name in groups if name.startswith("head.")}
    assert head == pytest.approx((6e-4, 0.01))
    assert groups["backbone.stages.0.blocks.0.norm1.weight"] == (6e-5, 0.0)
    assert groups["backbone.stages.0.blocks.0.attn.norm.bias"] == (6e-5, 0.0)
    assert groups["backbone.stages.0.norm.weight"] == (6e-5, 0.01)
    assert groups["backbone.stages.0.blocks.0.mlp.fc1.bias"] == (6e-5, 0.01)


def test_the_rate_of_segformer_rises_from_a_millionth_for_1500_steps_and_falls_to_zero():
    section = resolved("segformer_b0")["lr_scheduler"]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=6e-4)
    scheduler: Any = build_scheduler(section, optimizer, 160000, 1263)
    assert [scheduler.factor(step) for step in (0, 750, 1500, 80750, 160000)] == pytest.approx(
        [1e-6, 0.5, 1.0, 0.5, 0.0], abs=1e-6)


def groups_of(name):
    """(rate, weight decay) of each parameter of a recipe's network, by name."""
    model, _ = network_of(resolved(name))
    optimizer = build_optimizer(resolved(name)["optimizer"], model)
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)]: (group["lr"], group["weight_decay"])
            for group in optimizer.param_groups for p in group["params"]}


def test_the_norms_and_tables_of_swin_do_not_decay_and_the_norms_of_its_heads_do():
    groups = groups_of("upernet_swin_tiny")
    assert {rate for rate, _ in groups.values()} == {6e-5}
    kept = {name for name, (_, decay) in groups.items() if decay == 0}
    assert kept == {name for name in groups if name.startswith("backbone.") and (
        "norm" in name or "position_bias_table" in name)}
    assert groups["ppm.bottleneck.1.weight"] == groups["head.1.bias"] == (6e-5, 0.01)


@pytest.mark.parametrize("name, layers", [("upernet_convnext_tiny", 6),
                                          ("upernet_convnext_base", 12)])
def test_the_stages_of_convnext_learn_more_slowly_from_the_head_to_the_image(name, layers):
    groups, (model, _) = groups_of(name), network_of(resolved(name))
    for key, (rate, decay) in groups.items():
        stage = key.split(".")[2] if key.startswith("backbone.stages.") else None
        away = 0 if stage is None else layers + 1 if ".downsample." in key else layers - int(stage)
        assert rate == pytest.approx(1e-4 * 0.9 ** away, rel=2e-6), key
        assert decay == (0.0 if model.get_parameter(key).ndim == 1 else 0.05), key


def test_the_blocks_of_eomt_learn_as_published_and_everything_decays():
    groups, depth = groups_of("eomt_large_ade20k"), 24
    assert {decay for _, decay in groups.values()} == {0.05}
    for key, (rate, _) in groups.items():
        away = 0
        if key.startswith("backbone.blocks."):
            away = depth - 1 - int(key.split(".")[2])
        elif key.startswith("backbone.") and not key.startswith("backbone.norm."):
            away = depth - 1
        assert rate == pytest.approx(1e-4 * 0.8 ** away), key


def test_the_encoder_of_eomt_waits_for_the_new_layers():
    config = resolved("eomt_large_cityscapes")
    optimizer = build_optimizer(config["optimizer"], network_of(config)[0])
    scheduler: Any = build_scheduler(config["lr_scheduler"], optimizer, 19795, 185)
    assert [scheduler.factor(step) for step in (0, 250, 500)] == [0, 0.5, 1]
    assert [scheduler.backbone_factor(step) for step in (499, 500, 1000, 1500)] == [0, 0, 0.5, 1]
    assert all(late == group["name"].startswith("backbone") for late, group in
               zip(scheduler.late, optimizer.param_groups, strict=True))


@pytest.mark.parametrize("name", ["dinov2_vits14_linear", "dinov3_vits16_linear"])
def test_a_linear_head_learns_alone(name):
    model, _ = network_of(resolved(name))
    assert {key.split(".")[0] for key, p in model.named_parameters() if p.requires_grad} == {"head"}


@pytest.mark.parametrize("name, output", [
    ("mic_hrnet_wce", "out"), ("mic_ms_wrmi", "out"), ("mic_ocr_wce", "aux"),
    ("openseg_baseoc_r101", "aux"), ("hoya012_r50_wce", "out"), ("pidnet_s", "p"),
    ("ddrnet_23", "aux")])
def test_weighted_losses_have_the_class_weights_of_the_cityscapes_table(name, output):
    config = resolved(name)
    criterion = criterion_of(config, *network_of(config))
    weights, = {tuple(buffer.tolist()) for key, buffer in criterion.named_buffers()
                if key.endswith("weight") and buffer.numel() == 19}
    table = [0.8373, 0.918, 0.866, 1.0345, 1.0166, 0.9969, 0.9754, 1.0489, 0.8786, 1.0023, 0.9539,
             0.9843, 1.1116, 0.9037, 1.0865, 1.0955, 1.0865, 1.1529, 1.0507]
    assert weights == pytest.approx(table)


@pytest.mark.parametrize("name", ["camvid_enet", "segfix_camvid_light", "losses_mic_dkfz"])
def test_a_small_recipe_takes_a_step(name):
    take_step(resolved(name), "cpu")


def distinct(crops=False):
    """A recipe of every combination of network and loss; crops: and of crop."""
    found = {}
    for name in [*RECIPES, *STAGES]:
        config = resolved(name)
        key = [without_download(config["arch"]), config["loss"], config["loss_weights"],
               crops and config["train_loader"]["args"]["crop_size"]]
        found.setdefault(json.dumps(key), name)
    return list(found.values())


def losses_of_networks():
    """The recipes of `distinct`, those of one network together."""
    groups = {}
    for name in distinct():
        config = resolved(name)
        key = json.dumps([without_download(config["arch"]), classes_of(config)])
        groups.setdefault(key, []).append(name)
    return list(groups.values())


@pytest.mark.slow
@pytest.mark.parametrize("names", losses_of_networks(), ids=lambda names: names[0])
def test_every_network_takes_a_step_and_all_of_its_losses_have_a_gradient(names):
    network, _ = network_of(resolved(names[0]))
    if sum(p.numel() for p in network.parameters()) > LARGE and not WHOLE_CROPS:
        pytest.skip("needs gigabytes: set SEGWRIGHT_WHOLE_CROPS=1")
    model, outputs, batch = take_step(resolved(names[0]), "cpu")
    for name in names[1:]:      # what follows the gradient of the outputs is the same
        leaves = {key: value.detach().requires_grad_() for key, value in outputs.items()}
        loss, _ = criterion_of(resolved(name), model, outputs["out"].shape[1])(leaves, batch)
        loss.backward()
        assert math.isfinite(loss.item()) and loss.item() > 0, name
        for key in model.output_weights:
            gradient = leaves[key].grad
            assert gradient is not None and gradient.isfinite().all() and gradient.any(), name


@pytest.mark.slow
@pytest.mark.skipif(not WHOLE_CROPS, reason="takes hours: set SEGWRIGHT_WHOLE_CROPS=1")
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", distinct(crops=True))
def test_every_recipe_takes_a_step_on_a_batch_of_its_own_crop(name, tmp_path):
    config = resolved(name)
    height, width = crop_of(config["train_loader"]["args"])
    images = least_images(config)
    stored = activations_on_disk(tmp_path) if images * height * width > IN_MEMORY else \
        contextlib.nullcontext()
    with stored:
        take_step(config, "cpu", images)


@pytest.mark.gpu
@pytest.mark.parametrize("name", distinct(crops=True))
def test_every_recipe_takes_a_step_on_a_batch_of_its_crop(name, request):
    config = resolved(name)
    images = max(config["train_loader"]["args"]["batch_size"], least_images(config))
    take_step(config, request.config.getoption("--device"), images)


def take_step(config, device, images=None):
    """Take an optimizer step on noise; the weights change and stay finite.

    Returns the network, its outputs before the step, and the batch.
    images: of the recipe's crop; None: two crops of PIXELS.
    """
    torch.manual_seed(0)
    classes, args = classes_of(config), config["train_loader"]["args"]
    model = build("models", without_download(config["arch"]), num_classes=classes).to(device)
    criterion = criterion_of(config, model, classes).to(device)
    optimizer = build_optimizer(config["optimizer"], model)
    batch = made_up_batch(args, classes, config["ignore_index"], images)
    batch = {key: value.to(device) for key, value in batch.items()}
    normalize = Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]).to(device)
    trained = [p for p in model.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in trained]
    outputs = model.train()(normalize(batch["image"]))
    loss, _ = criterion(outputs, batch)
    loss.backward()
    optimizer.step()
    assert math.isfinite(loss.item()) and loss.item() > 0
    assert all(p.isfinite().all() for p in trained)
    changed = sum(not torch.equal(old, p) for old, p in zip(before, trained, strict=True))
    assert changed > 0.5 * len(before)
    return model, outputs, batch


def least_images(config):
    """The images that a step needs: two where a batch norm follows a pooling to 1x1."""
    classes = classes_of(config)
    model = build("models", without_download(config["arch"]), num_classes=classes)
    try:
        model.train()(torch.zeros(1, 3, 64, 128))
    except ValueError as error:
        assert "more than 1 value per channel" in str(error)
        return 2
    return 1


def activations_on_disk(folder):
    """A context in which what a backward pass needs is kept in files instead of in memory."""
    numbers = iter(range(10 ** 9))

    def store(tensor):
        if isinstance(tensor, torch.nn.Parameter) or tensor.numel() < 2 ** 20:
            return tensor
        path = folder / f"{next(numbers)}.bin"
        tensor.detach().contiguous().numpy().tofile(path)
        return path, tensor.dtype, tensor.shape

    def load(stored):
        if isinstance(stored, torch.Tensor):
            return stored
        path, dtype, shape = stored
        return torch.from_file(str(path), size=math.prod(shape), dtype=dtype).view(shape)

    return torch.autograd.graph.saved_tensors_hooks(store, load)


def crop_of(args):
    """(height, width) of a recipe's crop; 256 pixels where it takes whole images."""
    crop = args["crop_size"] or 256
    return (crop, crop) if isinstance(crop, int) else tuple(crop)


def made_up_batch(args, classes, ignore_index, images=None):
    """Images of noise with labels in blocks, as a loader returns them."""
    height, width = crop_of(args)
    if images is None:
        images = 2
        factor = (PIXELS / (height * width)) ** 0.5
        height, width = (max(64, round(side * factor / 8) * 8) for side in (height, width))
    blocks = torch.randint(0, classes, (images, 1, height // 8 + 1, width // 8 + 1))
    label = torch.nn.functional.interpolate(blocks.float(), scale_factor=8)
    label = label[:, 0, :height, :width].long()
    label[:, :8] = ignore_index
    boundary = (label % 2).where(label != ignore_index, ignore_index)
    return {"image": torch.randint(0, 256, (images, 3, height, width), dtype=torch.uint8),
            "label": label, "boundary": boundary,
            "direction": (label % 8).where(label != ignore_index, ignore_index)}


@pytest.mark.parametrize("loader", sorted({section.loader for section in PUBLISHED.values()
                                           if section.loader}))
def test_a_published_file_fits_the_networks_of_its_recipes(loader):
    entry, shapes = published()[loader], {}
    for name in (name for name, section in PUBLISHED.items() if section.loader == loader):
        config = resolved(name)
        network, classes = network_of(config)
        if classes not in shapes:
            with torch.device("meta"):
                shapes[classes] = {key: value.shape for key, value in
                                   entry.build(classes).state_dict().items()}
        mine = {key: value.shape for key, value in network.state_dict().items()}
        assert mine == shapes[classes], name
        normalize = config["normalize"]
        if normalize and config["train_loader"]["type"] not in OTHER_STATISTICS:
            assert (normalize["order"], normalize["scale"]) == (entry.order, entry.scale), name
            assert normalize["mean"] == pytest.approx(entry.mean, abs=0.01), name
            assert normalize["std"] == pytest.approx(entry.std), name
