"""tools.run_onnx: the labels of inference.py, without PyTorch."""
import json

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.graphs import NAMES, needs_onnx, write_tiny_checkpoint
from tests.support.run_program import program
from tools import export, run_onnx
from utils.checkpoint.read import read_checkpoint
from utils.cli import console
from utils.export import onnx_network
from utils.export.graph import made_up_image
from utils.images.palette import voc_palette
from utils.predict.largest_class import largest_class
from utils.predict.open_model import open_model

pytestmark = needs_onnx
SIZES = ((40, 56), (37, 91))


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A folder with two images and two graphs (any size, one size), and the expected labels.

    Takes seconds: two graphs are exported.
    """
    folder = tmp_path_factory.mktemp("lab")
    with pytest.MonkeyPatch.context() as monkeypatch:
        checkpoint = write_tiny_checkpoint(folder / "model.pth", monkeypatch)
        arguments = ["-r", checkpoint, "-o"]
        assert console.run(export.main, [*arguments, str(folder / "any.onnx")]) == 0
        assert console.run(export.main, [*arguments, str(folder / "fixed.onnx"), "--size", "40x56",
                                         "--uint8-input", "--argmax"]) == 0
        opened = open_model(read_checkpoint(checkpoint), "cpu")
    (folder / "images" / "sub").mkdir(parents=True)
    expected = {}
    for name, size in zip(("a", "sub/bü b"), SIZES, strict=True):
        image = made_up_image(1, *size)
        Image.fromarray(image[0].transpose(1, 2, 0)).save(folder / "images" / f"{name}.png")
        expected[name] = largest_class(opened.predictor({})(torch.from_numpy(image)))[0].numpy()
    return folder, expected


def run(lab, out, *arguments, model="any.onnx"):
    return console.run(run_onnx.main, [str(lab[0] / model), "--images", str(lab[0] / "images"),
                                       "--out", str(out), *map(str, arguments)])


def test_label_maps_equal_those_of_pytorch_in_the_folders_of_the_input(lab, tmp_path, capsys):
    assert run(lab, tmp_path, "--overlay", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] == 2 and not report["failed"]
    for name, labels in lab[1].items():
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert picture.mode == "P" and np.array_equal(np.array(picture), labels)
            colors = np.reshape(picture.getpalette()[:3 * len(NAMES)], (-1, 3))
        assert colors.tolist() == voc_palette(len(NAMES))
        assert (tmp_path / f"{name}_overlay.png").is_file()


def test_torch_is_never_imported(lab, tmp_path):
    """Runs in a new process in which `import torch` fails."""
    script = ("import sys; sys.modules['torch'] = None\n"
              "from tools import run_onnx; from utils.cli import console\n"
              "code = console.run(run_onnx.main, sys.argv[1:])\n"
              "assert not [name for name in sys.modules if name.startswith(('torch.', 'onnx.'))]\n"
              "sys.exit(code)")
    done = program("-c", script, lab[0] / "any.onnx", "-i", lab[0] / "images", "-o", tmp_path)
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "a.png") as picture:
        assert np.array_equal(np.array(picture), lab[1]["a"])


def test_a_fixed_graph_takes_other_sizes_only_with_resize(lab, tmp_path, capsys):
    assert run(lab, tmp_path / "strict", model="fixed.onnx") == 3
    error = capsys.readouterr().err
    assert "1 ok, 1 failed" in error and "it is 37x91, the graph takes 40x56" in error
    with Image.open(tmp_path / "strict" / "a.png") as picture:
        assert np.array_equal(np.array(picture), lab[1]["a"])
    assert run(lab, tmp_path / "resized", "--resize", model="fixed.onnx") == 0
    with Image.open(tmp_path / "resized" / "sub" / "bü b.png") as picture:
        assert picture.size == (91, 37)
        assert (np.array(picture) == lab[1]["sub/bü b"]).mean() > 0.6


def test_one_bad_image_does_not_stop_the_others(lab, tmp_path, capsys):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"<html>")
    for extra, status in ((), 3), (("--skip-bad",), 0):
        assert run(lab, tmp_path / "out", "-i", lab[0] / "images", bad, *extra) == status
        assert "2 ok, 1 failed" in capsys.readouterr().err


@pytest.mark.parametrize("content, words", [(b"", "ONNX Runtime can load"),
                                            (b"no graph", "ONNX Runtime can load"),
                                            (None, "no usable metadata")])
def test_a_file_that_tools_export_did_not_write_is_an_error(content, words, lab, tmp_path, capsys):
    path = tmp_path / "foreign.onnx"
    if content is None:
        import onnx
        model = onnx.load(str(lab[0] / "any.onnx"))
        del model.metadata_props[:]
        onnx.save(model, str(path))
    else:
        path.write_bytes(content)
    assert run(lab, tmp_path, model=path) == 4
    assert words in capsys.readouterr().err


def test_usage_errors_name_the_fix(lab, tmp_path, capsys, monkeypatch):
    assert run(lab, tmp_path, "--provider", "abacus") == 2
    assert "it has: " in capsys.readouterr().err
    assert run(lab, tmp_path / "x", model="missing.onnx") == 4
    monkeypatch.setattr(onnx_network.importlib.util, "find_spec", lambda name: None)
    assert run(lab, tmp_path) == 2
    assert "pip install -r requirements-export.txt" in capsys.readouterr().err


@pytest.mark.slow
def test_a_graph_carries_the_size_of_validation(tmp_path, monkeypatch, capsys):
    checkpoint = write_tiny_checkpoint(tmp_path / "model.pth", monkeypatch)
    picture = made_up_image(1, 90, 131)[0].transpose(1, 2, 0)
    (tmp_path / "in").mkdir()
    Image.fromarray(picture).save(tmp_path / "in" / "a.png")
    opened = open_model(read_checkpoint(checkpoint), "cpu")
    for arguments, base_size in (((), None), (("--base-size", "60"), 60)):
        path = str(tmp_path / f"{base_size}.onnx")
        assert console.run(export.main, ["-r", checkpoint, "-o", path, "--json", *arguments]) == 0
        assert json.loads(capsys.readouterr().out)["base_size"] == base_size
        image = torch.from_numpy(made_up_image(1, 90, 131))
        for given in (None, "none", "45x50"):
            size = {None: base_size, "none": None, "45x50": (45, 50)}[given]
            expected = largest_class(opened.predictor({"base_size": size})(image))[0].numpy()
            option = ["--base-size", given] if given else []
            assert console.run(run_onnx.main, [path, "-i", str(tmp_path / "in"), "-o",
                                               str(tmp_path / "out"), *option]) == 0
            told = "predicted at 60 pixels (long side), as in validation" in capsys.readouterr().err
            assert told == (given is None and base_size == 60)
            with Image.open(tmp_path / "out" / "a.png") as labels:
                assert (np.array(labels) != expected).mean() < 1e-3


def test_resize_without_effect_is_refused(lab, tmp_path, capsys):
    assert run(lab, tmp_path / "out", "--resize") == 2
    assert "--resize has no effect" in capsys.readouterr().err


@pytest.mark.parametrize("option", [("--max-drop", "0.1"), ("--split", "test"),
                                    ("--calibration-images", "3")])
def test_options_of_int8_alone_are_refused(option, capsys):
    with pytest.raises(SystemExit) as error:
        export.parse(["-r", "a.pth", "-o", "a.onnx", *option])
    assert error.value.code == 2
    assert f"{option[0]} has no effect without --int8" in capsys.readouterr().err
