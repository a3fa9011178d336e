"""tools.convert_checkpoint: published files become checkpoints for test.py and inference.py."""
import json

import numpy as np
import pytest
import torch

from models.hrnet_seg import HRNet
from models.weights.published import published
from tests.models.test_hrnet import official
from tests.support.made_up import picture, waves
from tools import convert_checkpoint
from tools.convert_checkpoint import make_checkpoint
from utils.checkpoint.load import model_from_checkpoint
from utils.checkpoint.read import read_checkpoint
from utils.config.build import build
from utils.config.schema import resolve_config
from utils.errors import CheckpointError, ConfigError
from utils.predict.open_model import open_model

NAME, SMALL = "hrnet_w18_small_v1", "hrnet_w18_small_v1"
NETWORKS = [name for name, entry in sorted(published().items()) if not entry.imagenet]


@pytest.fixture(scope="module")
def network():
    return waves(HRNet(11, SMALL))


@pytest.fixture
def source(network, tmp_path):
    """The network's weights in the format of its authors."""
    state = {"model." + key: value for key, value in official(network).items()}
    path = tmp_path / "published.pth"
    torch.save({"state_dict": state, "epoch": 3}, path)
    return path


def convert(*arguments):
    return convert_checkpoint.main([str(argument) for argument in arguments])


def test_the_converted_checkpoint_gives_the_logits_of_the_original(network, source, tmp_path):
    assert convert(NAME, source, tmp_path / "out.pth") == 0
    opened = open_model(read_checkpoint(tmp_path / "out.pth"), "cpu")
    with torch.no_grad():
        assert torch.allclose(opened.model(picture(33, 50)), network(picture(33, 50)), atol=1e-5)
    assert opened.class_names[3] == "class 3" and len(opened.palette) == 11


@pytest.mark.slow      # the encoders that have no classes are built to compare their tensors
def test_without_a_name_the_tensors_tell_the_network(source, tmp_path, capsys):
    assert convert(source, tmp_path / "out.pth") == 0
    assert read_checkpoint(tmp_path / "out.pth")["versions"]["published"] == NAME
    assert f"published.pth: taken as {NAME}" in capsys.readouterr().err


@pytest.mark.parametrize("names, message", [
    (["unet", "segnet"], "fit several published networks: unet, segnet"),
    ([], "no published network has exactly these tensors")])
def test_without_a_name_the_tensors_must_tell_one_network(names, message, source, tmp_path,
                                                          monkeypatch):
    monkeypatch.setattr("models.weights.published.identify", lambda state: names)
    with pytest.raises(CheckpointError, match=message):
        convert(source, tmp_path / "out.pth")


def test_a_name_with_one_file_is_an_error(source):
    with pytest.raises(CheckpointError, match="name of a network, and there is only one file"):
        convert(NAME, source)


def test_classes_and_colors_come_from_the_dataset(source, tmp_path):
    convert(NAME, source, tmp_path / "out.pth", "--dataset", "CamVid", "--data-dir", "/data/camvid")
    checkpoint = read_checkpoint(tmp_path / "out.pth")
    assert checkpoint["class_names"][:3] == ["sky", "building", "pole"]
    assert checkpoint["palette"][3] == [128, 64, 128]
    assert checkpoint["config"]["val_loader"]["args"]["data_dir"] == "/data/camvid"
    assert checkpoint["config"]["val_loader"]["args"]["split"] == "val"


def test_a_dataset_with_other_classes_is_an_error(source, tmp_path):
    with pytest.raises(ConfigError, match="11 classes, Shapes has"):
        convert(NAME, source, tmp_path / "out.pth", "--dataset", "Shapes")


def test_an_unknown_dataset_is_an_error_with_the_nearest_name(source, tmp_path):
    with pytest.raises(ConfigError, match="CamVid"):
        convert(NAME, source, tmp_path / "out.pth", "--dataset", "Camvd")


def test_num_classes_leaves_the_published_classifier_out(network, source, tmp_path, capsys):
    convert(NAME, source, tmp_path / "out.pth", "--num-classes", 4)
    checkpoint = read_checkpoint(tmp_path / "out.pth")
    assert checkpoint["model"]["head.2.weight"].shape[0] == 4 == len(checkpoint["class_names"])
    assert torch.equal(checkpoint["model"]["backbone.conv1.weight"], network.backbone.conv1.weight)
    assert "other shape: head.2.weight" in capsys.readouterr().err


def test_an_existing_file_is_replaced_only_with_overwrite(source, tmp_path):
    out = tmp_path / "out.pth"
    out.write_text("mine")
    with pytest.raises(CheckpointError, match="exists already"):
        convert(NAME, source, out)
    assert out.read_text() == "mine"
    convert(NAME, source, out, "--overwrite")
    assert read_checkpoint(out)["versions"]["published"] == NAME


def test_a_file_of_another_network_is_an_error_and_nothing_is_written(source, tmp_path):
    with pytest.raises(CheckpointError):
        convert("yassouali_enet", source, tmp_path / "out.pth")
    assert not (tmp_path / "out.pth").exists()


def test_an_imagenet_encoder_is_an_error(tmp_path):
    from models.backbones.hrnet import HRNetBackbone
    state = HRNetBackbone("hrnet_w18_small_v2").state_dict()
    torch.save(state, tmp_path / "imagenet.pth")
    with pytest.raises(ConfigError, match="finetune_from"):
        convert("hrnet_cls_w18_small_v2", tmp_path / "imagenet.pth", tmp_path / "out.pth")


def test_the_list_names_every_published_network(capsys):
    assert convert("--list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == sorted(published())


QUICK = (NAME, "yassouali_enet", "openseg_r101_isa", "mic_hrnet_ocr_ms")


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow)
                                            for name in NETWORKS if name not in QUICK)])
def test_the_config_inside_rebuilds_the_network(name):
    """Takes seconds: networks of full size are built twice."""
    entry = published()[name]
    classes = 10 if "segfix" in name else 7
    with torch.device("meta"):
        original = entry.build(classes)
    checkpoint = make_checkpoint(name, original)
    assert resolve_config(checkpoint["config"]) == checkpoint["config"]
    assert len(checkpoint["class_names"]) == classes == len(checkpoint["palette"])
    with torch.device("meta"):
        again = build("models", checkpoint["config"]["arch"], num_classes=classes)
    shapes = [{key: value.shape for key, value in network.state_dict().items()}
              for network in (original, again)]
    assert shapes[0] == shapes[1]
    settings = [{key: value for module in network.modules() for key, value in vars(module).items()
                 if isinstance(value, (int, float, str, tuple)) and key != "training"}
                for network in (original, again)]
    assert settings[0] == settings[1]


@pytest.mark.parametrize("name, expected", [
    ("openseg_r101_ocr", ("BGR", 1.0, 102.9801)), ("openseg_hrnet48_ocr", ("BGR", 255.0, 0.485)),
    ("hrnet_ocr_w48", ("RGB", 255.0, 0.485)),
    ("yassouali_pspnet_resnet50", ("RGB", 255.0, 0.45734706))])
def test_the_normalization_is_the_published_one(name, expected):
    entry = published()[name]
    assert (entry.order, entry.scale, entry.mean[0]) == expected


def test_a_caffe_network_of_openseg_takes_bgr_minus_the_mean():
    with torch.device("meta"):
        network = published()["openseg_r101_ocr"].build(3)
    checkpoint = make_checkpoint("openseg_r101_ocr", network)
    from utils.images.normalize import Normalize
    image = torch.tensor([10, 20, 30], dtype=torch.uint8).view(1, 3, 1, 1)
    normalized = Normalize(**checkpoint["normalization"])(image).flatten().tolist()
    assert normalized == pytest.approx([30 - 102.9801, 20 - 115.9465, 10 - 122.7717], abs=1e-4)


def test_the_checkpoint_contains_only_plain_values(source, tmp_path):
    convert(NAME, source, tmp_path / "out.pth")
    checkpoint = torch.load(tmp_path / "out.pth", weights_only=True)
    json.dumps({key: value for key, value in checkpoint.items() if key != "model"})


def test_a_paddle_file_is_read_without_paddle(tmp_path):
    import pickle
    path = tmp_path / "model.pdparams"
    path.write_bytes(pickle.dumps({"a": np.ones(3, "float32")}, 4))
    with pytest.raises(CheckpointError, match="ocrnet.head.cls_head.weight"):
        convert("paddle_mscale_ocrnet_w48", path, tmp_path / "out.pth")


def test_model_from_checkpoint_reads_the_result(network):
    checkpoint = make_checkpoint(NAME, network)
    again = model_from_checkpoint(checkpoint)
    with torch.no_grad():
        assert torch.equal(again(picture(20, 20)), network(picture(20, 20)))
