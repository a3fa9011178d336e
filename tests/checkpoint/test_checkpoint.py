"""Checkpoints are atomic, verified and safe, and errors name what does not fit."""
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from utils.checkpoint.find import newest_best
from utils.checkpoint.format import epochs_finished
from utils.checkpoint.load import load_exact, load_foreign, load_partial, match_tensors, unwrap
from utils.checkpoint.read import read_checkpoint, read_state
from utils.checkpoint.write import write_checkpoint
from utils.errors import CheckpointError, ConfigError


class Net(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3))
        self.head = nn.Conv2d(8, classes, 1)


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "last.pth"
    write_checkpoint(path, {"format": 1, "model": Net().state_dict(), "config": {}, "epoch": 3})
    return path


def test_a_written_checkpoint_can_be_read(saved):
    assert read_checkpoint(saved)["epoch"] == 3


def test_only_the_checkpoint_stays_in_the_folder(saved):
    assert os.listdir(saved.parent) == ["last.pth"]


def test_an_interrupted_write_keeps_the_old_file(saved):
    class Interrupts:
        def __reduce__(self):
            raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(saved, {"format": 1, "model": {}, "config": {}, "bomb": Interrupts()})
    assert read_checkpoint(saved)["epoch"] == 3
    assert os.listdir(saved.parent) == ["last.pth"]


@pytest.mark.parametrize("share", [0.0, 1e-4, 0.01, 0.5, 0.999])
def test_a_truncated_file_is_named_as_damaged(saved, share):
    data = saved.read_bytes()
    saved.write_bytes(data[:int(len(data) * share)])
    with pytest.raises(CheckpointError, match="damaged") as error:
        read_checkpoint(saved)
    assert str(saved) in str(error.value)
    assert "weights_only" not in str(error.value)


def test_one_flipped_bit_is_found_and_its_record_named(saved):
    with zipfile.ZipFile(saved) as archive:
        info = max(archive.infolist(), key=lambda i: i.file_size)
    data = bytearray(saved.read_bytes())
    data[info.header_offset + 200] ^= 1
    saved.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"data/\d+"):
        read_checkpoint(saved)


def test_the_error_of_a_missing_file_lists_the_files_of_the_folder(saved):
    with pytest.raises(CheckpointError, match="last.pth"):
        read_checkpoint(saved.with_name("best.pth"))


class Hostile:
    def __init__(self, sentinel):
        self.sentinel = sentinel

    def __reduce__(self):
        return os.system, (f"touch {self.sentinel}",)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_hostile_pickle_is_refused_and_not_executed(tmp_path, legacy):
    sentinel, path = tmp_path / "ran", tmp_path / "evil.pth"
    if legacy:
        path.write_bytes(pickle.dumps({"model": Hostile(sentinel)}))
    else:
        torch.save({"model": Hostile(sentinel)}, path)
    with pytest.raises(CheckpointError) as error:
        read_state(path)
    assert not sentinel.exists()
    assert legacy or "asks to run posix.system" in str(error.value)
    assert "weights_only" not in str(error.value)


def test_a_checkpoint_of_the_ancestor_with_numpy_scalars_loads(tmp_path):
    path = tmp_path / "checkpoint-epoch10.pth"
    torch.save({"arch": "DataParallel", "monitor_best": np.float64(0.71), "config": {"n_gpu": 1},
                "state_dict": {f"module.{k}": v for k, v in Net().state_dict().items()}}, path)
    state = read_state(path)
    assert state["monitor_best"] == 0.71
    assert unwrap(state).keys() == Net().state_dict().keys()


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "model."])
@pytest.mark.parametrize("key", [None, "state_dict", "model_state_dict", "model"])
def test_every_usual_wrapper_is_removed(prefix, key):
    state = {prefix + k: v for k, v in Net().state_dict().items()}
    assert unwrap({key: state, "epoch": 1} if key else state).keys() == Net().state_dict().keys()


def test_the_error_of_another_network_counts_the_matching_tensors():
    with pytest.raises(CheckpointError, match="saved by arch UNet, the config says Net; 0 of 11"):
        load_exact(Net(), {"conv.weight": torch.zeros(1)}, "UNet", "x.pth")


def test_fine_tuning_loads_the_fitting_tensors_and_lists_the_others():
    source, target = Net(19), Net(5)
    report = load_partial(target, source.state_dict(), "x.pth")
    assert torch.equal(target.body[0].weight, source.body[0].weight)
    assert {key for key, *_ in report.mismatched} == {"head.weight", "head.bias"}
    assert "(19, 8, 1, 1)" in str(report) and "(5, 8, 1, 1)" in str(report)


@pytest.mark.parametrize("norm, name", [
    ("group", "GroupNorm"), ("instance", "InstanceNorm, GroupNorm"),
    ("evo_s0", "EvoNormS0, Affine"), ("evo_b0", "EvoNormB0, Affine, GroupNorm")])
def test_batch_norms_are_not_taken_into_norms_of_another_kind(norm, name):
    from models.pspnet import PSPNet
    source, target = (PSPNet(3, backbone="resnet18", norm=one) for one in ("batch", norm))
    places = [place for place, module in source.named_modules()
              if isinstance(module, nn.BatchNorm2d)]
    kept = {k: v.clone() for k, v in target.state_dict().items()
            if k.rpartition(".")[0] in places}
    state = {k: v + 2 for k, v in source.state_dict().items()}
    report = load_partial(target, state, "x.pth")
    for key, value in target.state_dict().items():
        assert torch.equal(value, kept[key] if key in kept else state[key]), key
    assert len(report.loaded) == len(state) - 5 * len(places) and report.exact
    assert f"left out: {5 * len(places)} tensors of {len(places)} batch norms, because the norms " \
        f"here are {name}; these" in str(report)


def test_norms_without_running_statistics_are_not_taken_into_batch_norms():
    from models.pspnet import PSPNet
    source, target = (PSPNet(3, backbone="resnet18", norm=one) for one in ("group", "batch"))
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(2)
    report = load_partial(target, source.state_dict(), "x.pth")
    assert torch.equal(target.backbone.layer1[0].conv1.weight,
                       source.backbone.layer1[0].conv1.weight)
    assert all((module.weight == 1).all() for module in target.modules()
               if isinstance(module, nn.BatchNorm2d))
    assert "norms without running statistics, because the norms here are BatchNorm2d" in str(report)


def test_other_norms_with_running_statistics_are_taken_from_a_file_of_the_same_network():
    source, target = (nn.Sequential(nn.Conv2d(3, 4, 1), nn.InstanceNorm2d(
        4, affine=True, track_running_stats=True)) for _ in range(2))
    source[1].running_mean.fill_(2)
    report = load_partial(target, source.state_dict(), "x.pth")
    assert report.exact and not report.other_norms and (target[1].running_mean == 2).all()


def test_excluded_tensors_keep_their_start_values_and_are_not_missing():
    source, target = Net(), Net()
    kept = {k: v.clone() for k, v in target.state_dict().items()}
    some = next(iter(kept)).split(".")[0]
    report = load_partial(target, source.state_dict(), "x.pth", [f"^{some}"])
    for key, value in target.state_dict().items():
        wanted = kept if key.startswith(some) else source.state_dict()
        assert torch.equal(value, wanted[key]), key
    assert report.excluded == sorted(k for k in kept if k.startswith(some))
    assert not report.missing and "left out by trainer.finetune_exclude" in str(report)


def test_a_pattern_that_excludes_nothing_is_refused():
    with pytest.raises(ConfigError, match="'nothing' fits no tensor of x.pth"):
        load_partial(Net(), Net().state_dict(), "x.pth", ["nothing"])


@pytest.mark.parametrize("wrap", [
    lambda state: state, lambda state: {f"encoder.{k}": v for k, v in state.items()},
    lambda state: {"state_dict": {f"model.encoder.{k}": v for k, v in state.items()} | {
        "model.decoder.blocks.0.weight": torch.zeros(1),
        "model.segmentation_head.0.weight": torch.zeros(1)}}])
def test_the_encoder_of_segmentation_models_pytorch_is_taken_like_a_bare_one(tmp_path, wrap):
    from torchvision.models import resnet18

    from models.pspnet import PSPNet
    source = resnet18(num_classes=3).state_dict()
    torch.save(wrap(source), tmp_path / "w.pth")
    network = PSPNet(3, backbone="resnet18")
    report = load_foreign(network, tmp_path / "w.pth")
    assert len(report.loaded) == len(source) - 2        # all but its classifier
    assert torch.equal(network.state_dict()["backbone.layer4.1.conv2.weight"],
                       source["layer4.1.conv2.weight"])


def test_fine_tuning_from_an_unrelated_file_is_refused():
    with pytest.raises(CheckpointError, match="only 0 of"):
        load_partial(Net(), {"other.weight": torch.zeros(3)}, "x.pth")


def test_weights_with_nan_are_refused():
    state = Net().state_dict()
    state["head.weight"][0] = float("nan")
    with pytest.raises(CheckpointError, match="head.weight"):
        load_exact(Net(), state, "Net", "x.pth")


def test_a_giant_tensor_without_memory_behind_it_is_a_shape_mismatch():
    state = Net().state_dict() | {"head.weight": torch.zeros(1).expand(100000, 100000)}
    assert match_tensors(Net(), state).mismatched[0][0] == "head.weight"


def test_the_newest_undamaged_checkpoint_is_found(tmp_path):
    for n, name in enumerate(("a", "b", "c")):
        (tmp_path / name).mkdir()
        path = tmp_path / name / "model_best.pth"
        write_checkpoint(path, {"format": 1, "model": {}, "config": {}})
        os.utime(path, (n, n))
    (tmp_path / "c" / "model_best.pth").write_bytes(b"PK broken")
    assert newest_best(tmp_path) == tmp_path / "b" / "model_best.pth"
    assert newest_best(tmp_path / "none") is None


@pytest.mark.parametrize("stored, finished", [(1, 0), (2, 1), (9, 8), (None, None)])
def test_the_epoch_of_weights_is_the_number_of_finished_epochs(stored, finished):
    """A checkpoint stores the epoch in training, or the next one."""
    assert epochs_finished({"epoch": stored}) == finished
