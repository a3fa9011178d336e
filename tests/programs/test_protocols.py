"""Protocols on the command line: test.py scores under them, results say so, files follow."""
import json

import numpy as np
import pytest
from PIL import Image

import inference
import test as test_program
from tests.programs.test_validated_size import (
    checkpoint,
    data,  # noqa: F401 - a fixture
    predicted,
    scores_of_files,
    scores_of_test,
)
from tools import compare_results
from utils.checkpoint.read import read_checkpoint
from utils.checkpoint.write import write_checkpoint
from utils.cli import console
from utils.inference import large_image
from utils.predict.protocols import PROTOCOLS

SMALL = {"mmseg-ade20k": {"input_size": 48, "long_side": 96, "multiple": 8},
         "whole": {"multiple": 8}, "whole-flip": {"multiple": 8, "flip": True}}


@pytest.fixture
def small_protocols(monkeypatch):
    """Protocols at the sizes of the test images, with sides that ENet takes: multiples of 8."""
    for name, settings in SMALL.items():
        monkeypatch.setitem(PROTOCOLS, name, PROTOCOLS[name]._replace(settings=settings))
    monkeypatch.setitem(PROTOCOLS, "mmseg-ade20k",
                        PROTOCOLS["mmseg-ade20k"]._replace(settings=SMALL["mmseg-ade20k"],
                                                           datasets=("Folder",)))


def run(capsys, *arguments):
    status = console.run(test_program.main, [*arguments, "-d", "cpu"])
    out = capsys.readouterr()
    return status, out.out, out.err


def test_the_score_of_a_protocol_is_that_of_the_files_of_inference_py(data, tmp_path, capsys,  # noqa: F811
                                                                      small_protocols):
    path = checkpoint(data, tmp_path / "model.pth")
    entry = scores_of_test(path, tmp_path, capsys, "--protocol", "mmseg-ade20k")
    predicted(path, data, tmp_path / "out", "--protocol", "mmseg-ade20k")
    files = scores_of_files(data, tmp_path / "out", tmp_path)
    assert entry["Mean_IoU"] == pytest.approx(files["Mean_IoU"], abs=1e-12)
    assert entry["protocol"] == "mmseg-ade20k" and entry["input_size"] == 48
    assert "protocol_changes" not in entry
    assert "protocol mmseg-ade20k" in (tmp_path / "results.txt").read_text()


def test_an_option_next_to_a_protocol_is_reported_as_a_change(data, tmp_path, capsys,  # noqa: F811
                                                              small_protocols):
    path = checkpoint(data, tmp_path / "model.pth")
    entry = scores_of_test(path, tmp_path, capsys, "--protocol", "mmseg-ade20k", "--flip")
    assert entry["flip"] and entry["protocol_changes"] == {"flip": True}
    config = scores_of_test(path, tmp_path, capsys, "predict.protocol=mmseg-ade20k")
    assert config["protocol"] == "mmseg-ade20k" and config["input_size"] == 48
    assert "base_size" not in config


def test_all_scores_the_own_settings_and_every_protocol_of_the_data(data, tmp_path, capsys,  # noqa: F811
                                                                    small_protocols):
    path = checkpoint(data, tmp_path / "model.pth", base_size=48)
    status, out, err = run(capsys, "-r", path, "-o", str(tmp_path), "--protocol", "all")
    assert status == 0
    table = out[out.index("what each protocol is worth"):].splitlines()
    rows = {line.split("  ")[0]: line for line in table}
    assert {"own settings", "whole", "whole-flip", "mmseg-ade20k"} <= set(rows)
    runs = json.loads((tmp_path / "results.json").read_text())["runs"]
    assert [one.get("protocol") for one in runs] == [None, "whole", "whole-flip", "mmseg-ade20k"]
    by_name = {one.get("protocol"): one["Mean_IoU"] for one in runs}
    for name in ("whole", "whole-flip", "mmseg-ade20k"):
        assert f"{100 * (by_name[name] - by_name[None]):+.2f}" in rows[name]
    assert "too few images to tell" in rows["whole"]
    assert "  whole-flip: flip True, multiple 8, base_size None" in table


def test_a_protocol_that_predicts_as_another_is_left_out(data, tmp_path, capsys,  # noqa: F811
                                                         small_protocols):
    path = checkpoint(data, tmp_path / "model.pth")
    status, out, err = run(capsys, "-r", path, "-o", str(tmp_path), "--protocol",
                           "whole,whole-flip", "predict.multiple=8")
    assert status == 0 and "protocol whole-flip" not in err
    status, out, err = run(capsys, "-r", path, "-o", str(tmp_path), "--protocol", "all",
                           "predict.multiple=8")
    assert status == 0 and "protocol whole is left out: it predicts as own settings" in err


def test_several_protocols_as_published_are_compared_by_image_level_scores(data, tmp_path, capsys,  # noqa: F811
                                                                           small_protocols):
    path = checkpoint(data, tmp_path / "model.pth")
    for rule in ("max", "T"):
        status, out, err = run(capsys, "-r", path, "-o", str(tmp_path), "--protocol",
                               "whole,whole-flip", "-p", rule, "predict.published=true",
                               "predict.CoI=[1]")
        assert status == 0, err
        table = out[out.index("what each protocol is worth"):].splitlines()
        assert "mIoU_I" in table[1] and "mean IoU" not in table[1] and len(table) == 7


def test_a_wrong_protocol_ends_before_anything_is_scored(data, tmp_path, capsys):  # noqa: F811
    path = checkpoint(data, tmp_path / "model.pth")
    status, _, err = run(capsys, "-r", path, "--protocol", "whole,mmseg-ade2k")
    assert status == 2 and "Did you mean 'mmseg-ade20k'?" in err
    status, _, err = run(capsys, "-r", path, "predict.protocol=hole")
    assert status == 2 and "Did you mean 'whole'?" in err


def test_files_show_whole_images_where_a_protocol_scores_the_center(data, tmp_path, capsys,  # noqa: F811
                                                                    monkeypatch):
    monkeypatch.setitem(PROTOCOLS, "rankdice-voc", PROTOCOLS["rankdice-voc"]._replace(
        settings={"input_size": 40, "input_crop": 40, "score_at": "input", "multiple": 8}))
    path = checkpoint(data, tmp_path / "model.pth")
    labels = predicted(path, data, tmp_path / "out", "--protocol", "rankdice-voc")
    assert "files show the whole image" in capsys.readouterr().err
    for name, one in labels.items():
        assert one.shape == np.array(Image.open(data / "images" / name)).shape[:2]
    assert console.run(inference.main, ["-r", path, "-i", str(data / "images"), "-o",
                                        str(tmp_path / "out"), "--protocol", "nothing"]) == 2


def test_two_protocols_are_compared_only_when_asked(data, tmp_path, capsys, small_protocols):  # noqa: F811
    path = checkpoint(data, tmp_path / "model.pth")
    for name in ("whole", "mmseg-ade20k"):
        scores_of_test(path, tmp_path / name, capsys, "--protocol", name)
    results = [str(tmp_path / name / "results.json") for name in ("whole", "mmseg-ade20k")]
    assert console.run(compare_results.main, results) == 2
    assert "different protocols: whole / mmseg-ade20k" in capsys.readouterr().err
    assert console.run(compare_results.main, [*results, "--across-protocols"]) == 0
    assert "protocol: whole / mmseg-ade20k" in capsys.readouterr().out
    assert console.run(compare_results.main, [results[0], results[0]]) == 0


def test_label_ids_are_the_values_of_the_datasets_own_label_files(data, tmp_path):  # noqa: F811
    path = checkpoint(data, tmp_path / "model.pth")
    state = read_checkpoint(path)
    state["config"]["train_loader"]["args"]["label_map"] = {"7": 0, "300": 1, "2": 2}
    write_checkpoint(path, state)
    classes = predicted(path, data, tmp_path / "classes")
    stored = predicted(path, data, tmp_path / "stored", "--ids", "label")
    for name, one in classes.items():
        assert np.array_equal(stored[name], np.array([7, 300, 2])[one])


def test_the_class_void_of_a_network_gets_the_value_that_labels_ignore(data, tmp_path):  # noqa: F811
    path = checkpoint(data, tmp_path / "model.pth")
    state = read_checkpoint(path)
    for key in ("train_loader", "val_loader"):
        state["config"][key]["args"] |= {"num_classes": 2, "train_void": True,
                                         "label_map": {"7": 0, "30": 1, "40": "ignore"}}
    state["config"]["predict"]["CoI"] = [0, 1]
    write_checkpoint(path, state)
    classes = predicted(path, data, tmp_path / "classes")
    stored = predicted(path, data, tmp_path / "stored", "--ids", "label")
    for name, one in classes.items():
        assert np.array_equal(stored[name], np.array([7, 30, 40])[one])


def test_a_streamed_image_gets_label_ids_and_their_colors(data, tmp_path, monkeypatch):  # noqa: F811
    path = checkpoint(data, tmp_path / "model.pth", base_size=48)
    state = read_checkpoint(path)
    state["config"]["train_loader"]["args"]["label_map"] = {"7": 0, "30": 1, "2": 2}
    write_checkpoint(path, state)
    whole = predicted(path, data, tmp_path / "whole", "--ids", "label")
    monkeypatch.setattr(large_image, "LARGE_PIXELS", 1)
    streamed = predicted(path, data, tmp_path / "streamed", "--ids", "label")
    for name, one in whole.items():
        assert set(np.unique(streamed[name])) <= {2, 7, 30}
        assert (streamed[name] != one).mean() < 1e-3
        colors = [np.array(Image.open(tmp_path / folder / name).convert("RGB"))
                  for folder in ("whole", "streamed")]
        assert np.array_equal(colors[0][one == streamed[name]], colors[1][one == streamed[name]])
        assert [99, 99, 99] in colors[0].reshape(-1, 3).tolist() or 2 not in one
