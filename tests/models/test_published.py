"""Loading published checkpoints: wrappers, prefixes, rejected files and the report."""
import collections
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from models.enet import ENet
from models.unet import UNet
from models.unet_resnet import UNetResnet
from models.weights.published import (
    Published,
    _NoStartValues,
    form_of,
    identify,
    load_published,
    published,
)
from tests.checkpoint.test_checkpoint import Hostile
from tests.support.made_up import needs_goldens, published_keys
from utils.checkpoint.read import read_state
from utils.errors import CheckpointError

NAME = "yassouali_enet"


@pytest.fixture(scope="module")
def weights():
    torch.manual_seed(0)
    return ENet(num_classes=7).state_dict()


def logits(source, num_classes=None):
    image = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return load_published(NAME, source, num_classes)(image)


WRAPPED = {
    "bare": lambda s: s,
    "DataParallel": lambda s: {"module." + k: v for k, v in s.items()},
    "yassouali's trainer": lambda s: {
        "arch": "DataParallel", "epoch": 80, "monitor_best": np.float64(0.7), "config": {"a": [1]},
        "optimizer": {"state": {}}, "state_dict": {"module." + k: v for k, v in s.items()}},
    "Lightning": lambda s: {"state_dict": {"model." + k: v for k, v in s.items()}, "epoch": 3},
    "hoya012's trainer": lambda s: {"epoch": 1, "model_state_dict": s, "best_miou": 0.5},
    "model": lambda s: {"model": s, "optimizer": {}},
    "compiled": lambda s: {"_orig_mod." + k: v for k, v in s.items()},
    "without counters": lambda s: {k: v for k, v in s.items() if "num_batches" not in k},
    "ordered": lambda s: collections.OrderedDict(s),
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED.keys())
def test_the_weights_are_found_in_every_wrapper(wrap, weights, tmp_path):
    torch.save(wrap(dict(weights)), tmp_path / "file.pth")
    out = logits(tmp_path / "file.pth")
    assert out.shape == (1, 7, 32, 32) and torch.equal(out, logits(weights))
    assert torch.equal(out, logits(wrap(dict(weights))))


def test_the_network_is_in_eval_mode_and_the_source_is_not_changed(weights):
    before = {k: v.clone() for k, v in weights.items()}
    network = load_published(NAME, weights)
    assert not any(module.training for module in network.modules())
    assert all(torch.equal(weights[k], before[k]) for k in before)


def test_another_number_of_classes_keeps_the_random_classifier_and_is_reported(weights, capsys):
    network = load_published(NAME, weights, num_classes=21)
    message = capsys.readouterr().err
    assert "7 classes in the file, 21 requested: 1 tensors start from random values" in message
    assert "fullconv.weight is (16, 7, 3, 3)" in message and "(16, 21, 3, 3) " in message
    loaded = network.state_dict()
    assert loaded["fullconv.weight"].shape == (16, 21, 3, 3) and not network.training
    assert all(torch.equal(loaded[k], v) for k, v in weights.items() if k != "fullconv.weight")


def test_another_number_of_classes_allows_no_other_difference(weights):
    changed = weights | {"initial.conv.weight": torch.zeros(13, 3, 5, 5)}
    with pytest.raises(CheckpointError, match="initial.conv.weight"):
        load_published(NAME, changed, num_classes=21)


def test_the_number_of_classes_in_the_file_can_be_given(weights, capsys):
    assert torch.equal(logits(weights, 7), logits(weights)) and not capsys.readouterr().err


def test_weights_that_are_not_finite_are_rejected(weights):
    changed = weights | {"initial.bn.bias": torch.full((16,), float("nan"))}
    with pytest.raises(CheckpointError, match="initial.bn.bias"):
        load_published(NAME, changed)


def test_the_report_counts_by_part_and_names_five(weights):
    changed = {k: v for k, v in weights.items() if not k.startswith("bottleneck31.")}
    changed |= {"extra.weight": torch.zeros(1)}
    with pytest.raises(CheckpointError) as error:
        load_published(NAME, changed)
    message = str(error.value)
    assert "missing in the file: 19 (bottleneck31 19)" in message
    assert "not in the network: 1 (extra 1): extra.weight" in message
    assert message.count("bottleneck31.") == 5 and NAME in message


def test_a_checkpoint_of_another_network_is_rejected():
    state = UNet(num_classes=3).state_dict()
    with pytest.raises(CheckpointError, match="no fullconv.weight"):
        load_published(NAME, state)
    with pytest.raises(CheckpointError, match="loaded 0 of .* tensors"):
        load_published(NAME, state, num_classes=3)


def test_an_integer_tensor_in_place_of_weights_is_rejected(weights):
    changed = weights | {"initial.conv.weight": weights["initial.conv.weight"].int()}
    with pytest.raises(CheckpointError, match="initial.conv.weight is .* torch.int32 in"):
        load_published(NAME, changed)


def test_a_giant_tensor_of_stride_zero_is_rejected_before_it_is_copied(weights):
    changed = weights | {"initial.bn.weight": torch.zeros(1).expand(10 ** 6, 10 ** 6)}
    with pytest.raises(CheckpointError, match="initial.bn.weight"):
        load_published(NAME, changed)


def test_the_error_for_an_unknown_name_suggests_the_nearest():
    with pytest.raises(CheckpointError, match="Did you mean 'yassouali_enet'"):
        load_published("yassouali_enett", {})


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, {"state_dict": {}}, [1, 2], None])
def test_a_file_without_weights_is_rejected(content):
    with pytest.raises(CheckpointError, match="holds no tensors|holds a (list|NoneType)"):
        load_published(NAME, content)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_hostile_file_is_rejected_and_none_of_its_code_runs(tmp_path, legacy):
    path, sentinel = tmp_path / "x.pth", tmp_path / "ran"
    torch.save({"state_dict": Hostile(sentinel)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match="refused: the file asks .*system") as error:
        load_published(NAME, path)
    assert not sentinel.exists() and "weights_only" not in str(error.value)


def test_a_hostile_bare_pickle_is_rejected(tmp_path):
    path, sentinel = tmp_path / "x.pth", tmp_path / "ran"
    path.write_bytes(pickle.dumps(Hostile(sentinel), protocol=2))
    with pytest.raises(CheckpointError):
        load_published(NAME, path)
    assert not sentinel.exists()


@pytest.mark.parametrize("keep", [0, 100, -50])
def test_a_truncated_file_is_named(tmp_path, weights, keep):
    path = tmp_path / "cut.pth"
    torch.save(weights, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="(damaged|incomplete)(.|\n)*cut.pth"):
        read_state(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="no such checkpoint(.|\n)*nothing.pth"):
        load_published(NAME, tmp_path / "nothing.pth")


@pytest.mark.parametrize("value", [np.float64(0.5), np.float32(0.5), np.int64(3)])
def test_numpy_scalars_of_older_trainers_are_read(tmp_path, value):
    torch.save({"monitor_best": value}, tmp_path / "old.pth")
    assert read_state(tmp_path / "old.pth")["monitor_best"] == value


def test_fine_tuning_renames_published_keys_and_keeps_others():
    model = UNetResnet(num_classes=3, backbone="resnet18")
    own = model.state_dict()
    theirs = {"conv7.weight": own["classifier.weight"], "initial.0.weight":
              own["backbone.conv1.weight"], "upconv5.weight": own["upconvs.4.weight"],
              "layer2.0.conv1.weight": own["backbone.layer2.0.conv1.weight"]}
    encoder = {k.removeprefix("backbone."): v for k, v in own.items() if "backbone." in k}
    renamed = model.rename_foreign(theirs)
    assert renamed.keys() == {"classifier.weight", "backbone.conv1.weight", "upconvs.4.weight",
                              "backbone.layer2.0.conv1.weight"}
    assert model.rename_foreign(own).keys() == own.keys()
    assert model.rename_foreign(encoder).keys() == {f"backbone.{k}" for k in encoder}


def test_every_entry_states_how_its_input_is_normalised():
    for name, entry in published().items():
        assert len(entry.mean) == len(entry.std) == 3 and entry.order in ("RGB", "BGR"), name
        assert entry.scale in (1.0, 255.0) and (entry.imagenet or entry.classes
                                                or "segfix" in name), name


def test_every_file_name_belongs_to_one_network():
    files = [file for entry in published().values() for file in entry.files]
    assert len(files) == len(set(files))


def test_a_file_in_a_further_form_is_known_by_its_keys(weights):
    other = Published(network=ENet, rename=((r"^last\.", "fullconv."),), classes="last.weight")
    entry = Published(network=ENet, classes="fullconv.weight", forms=(other,))
    assert form_of(entry, weights) is entry
    assert form_of(entry, {"last.weight": weights["fullconv.weight"]}) is other


def test_of_two_forms_with_the_same_classifier_the_one_without_leftovers_counts(weights):
    theirs = {key.replace("initial.", "first."): value for key, value in weights.items()}
    other = Published(network=ENet, rename=((r"^first\.", "initial."),), classes="fullconv.weight")
    entry = Published(network=ENet, classes="fullconv.weight", forms=(other,))
    assert form_of(entry, weights) is entry and form_of(entry, theirs) is other


def test_a_network_that_is_only_compared_gets_no_start_values_and_the_same_tensors():
    with _NoStartValues():
        value = torch.zeros(3)
        for fill in (nn.init.ones_, nn.init.normal_, nn.init.trunc_normal_, torch.Tensor.uniform_):
            assert fill(value) is value and not value.any()
        with torch.device("meta"):
            found = published()["segformer_b0"].build(19).state_dict()
    with torch.device("meta"):
        usual = published()["segformer_b0"].build(19).state_dict()
    assert [(key, one.shape, one.dtype) for key, one in found.items()] == \
        [(key, one.shape, one.dtype) for key, one in usual.items()]


@pytest.mark.slow      # the encoders that have no classes are built to compare their tensors
@needs_goldens
@pytest.mark.parametrize("name", ["openseg_r101_isa", "openseg_r101_isa_bn", "hrnet_cls_w48",
                                  "hoya012_deeplabv3_resnet50_evo", "paddle_mscale_ocrnet_w48"])
def test_a_published_network_is_identified_by_its_tensors(name):
    assert identify(published_keys(name)) == [name]
