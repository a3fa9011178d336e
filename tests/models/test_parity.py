"""Every published network gives the numbers of the original network for made-up weights.

`python -m tests.models.test_parity` prints the table of all of them.
"""
import re

import numpy as np
import pytest
import torch

from models.layers.resize import resize_to
from models.weights.published import form_of, load_published, published, translate
from tests.support.made_up import (
    PARITY,
    in_dialect,
    picture,
    published_image,
    published_keys,
    published_manifest,
    published_weights,
    waves,
)
from tests.support.start_values import no_start_values
from utils.checkpoint.load import match_tensors

FOLDERS = [name for name in sorted(published()) if (PARITY / name / "golden.npz").is_file()]
# Folders with the keys and shapes of a file alone.
KEYS_ONLY = [name for name in sorted(published()) if (PARITY / name / "manifest.json").is_file()
             and name not in FOLDERS]
# Dialects of key_map.json that hold all tensors of the folder's file in the same shapes.
DIALECTS = [("segformer_b0", "nvlabs"), ("segformer_b2", "nvlabs")]
# The others take a minute on one core, so they are slow tests.
QUICK = ("yassouali_enet", "yassouali_unet", "yassouali_gcn_resnet50_deconv",
         "yassouali_unet_resnet50", "rankseg_fork_segnet", "yassouali_resnet50s_imagenet",
         "torchvision_lraspp_mobilenet_v3_large", "torchvision_deeplabv3_mobilenet_v3_large",
         "hoya012_deeplabv3_resnet50_evo", "hoya012_deeplabv3_resnet50_instance", "segformer_b0")


def differences(name):
    """{output: (greatest difference in standard deviations, its limit)} of the goldens."""
    manifest = published_manifest(name)
    weights, image = published_weights(name)
    with no_start_values():
        network = load_published(name, weights)
    result = _differences(name, network, image, manifest, "golden")
    for golden, group in manifest.get("goldens", {}).items():
        if golden in ("golden_odd", "golden_b"):    # the same weights, another image
            image = published_image(name, golden)
            found = _differences(name, network, image, group, golden)
            result |= {f"{golden} {key}": value for key, value in found.items()}
    return result


def _differences(name, network, image, manifest, golden_file):
    network.eval()
    with torch.no_grad():
        ours = {"eval": network(image)} | _inner(manifest, network, image)
        if isinstance(ours["eval"], torch.Tensor):
            network.training = True
            ours |= network(image)
    stored = np.load(PARITY / name / f"{golden_file}.npz")
    specs = manifest["outputs"]
    result = {}
    for key in stored.files:
        output = _ours(key, ours, set(stored.files), hasattr(network, "eval_scales"))
        if output is None:
            continue
        spec, golden = specs[key], torch.from_numpy(stored[key])
        if spec["stored"] == "full" and golden.shape[-2:] != output.shape[-2:]:
            # Stored before the resize that our network includes.
            aligned = key in ("mask", "dir") or name.startswith("pidnet_")
            golden = resize_to(golden, output, align_corners=aligned)
        else:
            assert list(output.shape) == spec["full_shape"], (name, key)
        part = eval(spec["stored"], {"full": output})           # "full[..., ::2, ::2]"
        noise = manifest.get("float32_noise", {}).get(key, {}).get("relative_to_std", 0)
        result[key] = (part - golden).abs().max().item() / spec["std"], max(1e-4, 10 * noise)
    assert result, f"no output of {name} was compared"
    return result


def _inner(manifest, network, image):
    """The maps of an encoder by the names of the reference, and the logits of a head on them."""
    if "stage1" in manifest["outputs"]:
        maps = network.backbone(image)
        logits = {"logits": network.head(maps)} if "logits" in manifest["outputs"] else {}
        return logits | {f"stage{number}": m for number, m in enumerate(maps, start=1)}
    blocks = [int(key[5:]) for key in manifest["outputs"] if re.fullmatch(r"layer\d+", key)]
    if not blocks:
        return {}
    kept = [block for number, block in enumerate(network.backbone.layers)
            if number not in network.backbone.unused]
    maps = [m for m in network.backbone(image) if m is not None]
    assert kept == blocks
    return {f"layer{block}": m for block, m in zip(blocks, maps, strict=True)} | {
        "logits": network.head(torch.cat(maps, 1))}


def _ours(key, ours, keys, multi_scale):
    """Our output to compare with the reference output `key`, or None."""
    if isinstance(ours["eval"], list):
        layer = re.fullmatch(r"layer(\d)_every_(\d+)th_channel", key)
        if layer:
            return ours["eval"][int(layer[1]) - 1][:, ::int(layer[2])]
        branch = re.fullmatch(r"stage4_branch(\d)", key)
        return ours["eval"][int(branch[1])] if branch else None
    if f"{key}_full" in keys or key == "aux" and multi_scale:
        return None         # stored at a quarter of the size; or auxiliary logits of other scales
    key = key.removesuffix("_full")
    if key in ("class_logits", "mask_logits"):      # of the last of several predictions
        return ours["classes" if key == "class_logits" else "masks"][:, -1]
    if key in ("mask", "dir"):
        return ours["eval"][:, :2] if key == "mask" else ours["eval"][:, 2:]
    if key == "logits":         # without the last resize, if it is not part of the head
        return ours.get(key, ours["eval"])
    return ours["eval"] if key in ("out", "pred", "seg") else ours.get(key)


@pytest.mark.parametrize("name", KEYS_ONLY)
def test_every_tensor_of_a_file_whose_outputs_are_not_stored_finds_its_place(name):
    """Up to two seconds: networks of full size on the meta device."""
    state = published_keys(name)
    form = form_of(published()[name], state)
    key = form.class_key(state)
    assert key is not None
    with torch.device("meta"):
        network = form.build(state[key].shape[0])
    report = match_tensors(network, translate(state, form))
    assert report.exact, str(report)


@pytest.mark.parametrize("name, dialect", [
    (name, dialect) for name, dialect in DIALECTS if name in FOLDERS])
def test_a_file_in_another_dialect_gives_the_same_network(name, dialect):
    weights, _ = published_weights(name)
    expected = load_published(name, weights).state_dict()
    found = load_published(name, in_dialect(name, dialect, weights)).state_dict()
    assert all(value.equal(found[key]) for key, value in expected.items())


@pytest.mark.skipif(not FOLDERS, reason="../shared/parity is not there")
@pytest.mark.parametrize("name", [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in FOLDERS])
def test_the_outputs_equal_those_of_the_original(name):
    """Up to a few seconds: networks of full size, at several sizes."""
    for key, (difference, limit) in differences(name).items():
        assert difference <= limit, key


def test_every_folder_of_reference_outputs_has_a_network():
    if not FOLDERS:
        pytest.skip("../shared/parity is not there")
    folders = {path.parent.name for path in PARITY.glob("*/manifest.json")}
    assert not folders - set(published())


def test_a_published_network_without_reference_outputs_is_a_size_of_one_that_has_them():
    if not FOLDERS:
        pytest.skip("../shared/parity is not there")

    def code(name):
        entry = published()[name]
        return entry.network, entry.rename, entry.drop, entry.convert, entry.classes

    compared = {code(name) for name in FOLDERS}
    assert {code(name) for name in published()} == compared


# The larger networks of torchvision use the same code as these.
@pytest.mark.parametrize("name", [
    pytest.param("fcn_resnet50", marks=pytest.mark.slow), "deeplabv3_mobilenet_v3_large",
    "lraspp_mobilenet_v3_large"])
def test_the_network_of_torchvision_gives_the_same_logits_at_an_odd_size(name):
    """Some seconds: both networks have their full size."""
    build = getattr(pytest.importorskip("torchvision.models.segmentation"), name)
    aux = {} if name.startswith("lraspp") else {"aux_loss": True}
    with no_start_values():
        theirs = waves(build(weights=None, weights_backbone=None, num_classes=4, **aux))
        ours = load_published(f"torchvision_{name}", theirs.state_dict())
    images = picture(65, 97, 2)
    with torch.no_grad():
        expected = theirs(images)
        ours.training = True
        outputs = ours(images)
    for key, value in expected.items():
        assert (outputs[key] - value).abs().max() <= 1e-4 * value.std(), key


# Mean, standard deviation and three values of the logits, for weights and an image that need no
# file; recorded when the networks were equal to the reference outputs.
PROBES = {
    "yassouali_enet": [-0.20368, 1.6416, -0.53639, 1.4401, -1.133],
    "yassouali_unet": [0.3057, 0.56074, 1.1241, 0.31878, 0.043058],
    "yassouali_gcn_resnet50": [-7.1616, 28.457, 26.418, -2.3169, -110.38],
    "yassouali_gcn_resnet50_deconv": [-7.1696, 77.572, 2.5855, -5.2401, -39.178],
    "yassouali_unet_resnet50": [-0.053943, 0.8061, 0.089217, 1.0335, 0.034499],
    "yassouali_segnet": [0.020515, 0.56491, 0.21209, -0.5985, 0.15376],
    "rankseg_fork_segnet": [0.019768, 0.56523, 0.20572, -0.63598, 0.17378],
    "yassouali_segresnet": [-0.007221, 0.29098, 0.084654, 0.13068, 0.37387],
    "yassouali_pspnet_resnet50": [-0.2767, 0.34355, -0.51063, 0.099254, 0.46863],
    "yassouali_pspdensenet201": [-0.37476, 0.45957, -1.2686, -0.27292, -0.25481],
    "yassouali_deeplabv3plus_resnet101": [0.04694, 1.6107, -1.7086, 1.1881, -0.66958],
    "yassouali_deeplabv3plus_xception": [-0.41758, 0.8333, -1.9639, 0.23342, -0.059827],
    "yassouali_duc_hdc": [0.29225, 0.30063, 1.1539, 0.07357, 0.44658],
    "torchvision_lraspp_mobilenet_v3_large": [-0.07864, 0.54492, -1.0028, 0.34187, 0.024896],
    "torchvision_deeplabv3_mobilenet_v3_large": [-0.63624, 0.6988, -1.8852, -0.31022, -0.33057],
    "torchvision_deeplabv3_resnet50": [-0.43259, 0.44838, -1.4155, -0.19835, -0.44973],
    "torchvision_fcn_resnet50": [-0.0075604, 0.83265, -0.95297, -1.1607, 0.44231],
    "hoya012_deeplabv3_resnet50_evo": [-0.43506, 0.42995, -1.0668, -0.40027, -0.32164],
    "hoya012_deeplabv3_resnet50_instance": [0.18225, 0.71614, -0.052468, -1.218, 1.1849],
    "hoya012_deeplabv3_resnet50_group": [-0.083941, 0.76568, 0.82924, -0.48305, -1.0007],
    "yassouali_upernet_resnet101": [-5.4102, 9.5731, 6.9512, -15.866, -0.88031],
    "upernet_swin_tiny": [-0.64062, 0.85192, -2.3579, -0.35419, 0.080524],
    "upernet_convnext_tiny": [-0.70736, 0.86185, -2.4339, -0.4278, -0.020584],
    "yassouali_fcn8": [0.0028419, 0.22381, 0.20212, -0.11194, -0.50323],
}


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in PROBES])
def test_logits_of_made_up_weights_equal_the_recorded_ones(name):
    """Up to a few seconds: networks of full size."""
    torch.testing.assert_close(torch.tensor(probe(name)), torch.tensor(PROBES[name]),
                               rtol=2e-3, atol=2e-4)


def probe(name):
    with no_start_values():
        network = waves(published()[name].build(4))
    with torch.no_grad():
        out = network(picture(33, 47))
    out = out[-1] if isinstance(out, list) else out
    values = out.mean().item(), out.std().item(), *out.flatten()[[0, out.numel() // 3, -1]].tolist()
    return [float(f"{value:.5g}") for value in values]


def print_table():
    print("| network | output | greatest difference / std | limit |\n|---|---|---|---|")
    for name in FOLDERS:
        for key, (difference, limit) in differences(name).items():
            print(f"| {name} | {key} | {difference:.1e} | {limit:.0e} |", flush=True)


if __name__ == "__main__":
    print_table()
