"""The SegFix commands and test.py --segfix, on files of many kinds."""
import json
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image

import test as scoring
from dataloader.loader import make_loader
from tests.support.places import ROOT
from tests.support.run_program import program
from tests.support.segfix import golden
from tools import segfix_predict, segfix_refine, segfix_targets
from utils.checkpoint.write import write_checkpoint
from utils.cli import console
from utils.config.build import build
from utils.config.load import load_config
from utils.config.schema import resolve_config
from utils.images import headers
from utils.images.image_io import read_image, read_label, write_image, write_label
from utils.images.normalize import Normalize
from utils.segfix.mat_files import read_distance_maps, read_offsets, write_offsets
from utils.segfix.offsets import refine
from utils.segfix.targets import VOID, distance_maps, semantic_regions

NAME = "frankfurt_000000_000294"
PALETTE = [[value, 255 - value, 7] for value in range(20)]
RNG = np.random.default_rng(0)


def run(tool, *arguments):
    return console.run(tool.main, list(map(str, arguments)))


def offset_field(size=(12, 15)):
    """Returns random offsets (H, W, 2) from -1 to 1."""
    return RNG.integers(-1, 2, (*size, 2))


@pytest.fixture
def folder(tmp_path):
    """A folder with labels/ of every kind, and off/ with their offsets."""
    for place in ("labels/sub", "off"):
        (tmp_path / place).mkdir(parents=True)
    ids = RNG.integers(0, 20, (12, 15)).astype(np.uint8)
    write_label(tmp_path / "labels/palette.png", ids, PALETTE)
    write_image(tmp_path / "labels/gray.png", ids)
    Image.fromarray(ids.astype(np.uint16) * 1000).save(tmp_path / "labels/sub/deep.png")
    write_image(tmp_path / "labels/sub/color é.png", np.array(PALETTE, np.uint8)[ids])
    for name in ("palette", "gray", "deep", "color é"):
        write_offsets(tmp_path / f"off/{name}.mat", offset_field())
    return tmp_path


def refined(folder, *arguments):
    return run(segfix_refine, "--input", folder / "labels", "--offset", folder / "off", "--out",
               folder / "out", *arguments)


def offsets(folder, name):
    return read_offsets(folder / f"off/{name}.mat")


def test_label_files_keep_their_kind_and_folder(folder, capsys):
    assert refined(folder) == 0
    assert capsys.readouterr().out.startswith("4 label files refined (")
    for name in ("palette", "gray", "sub/deep"):
        before = read_label(folder / f"labels/{name}.png")
        after = read_label(folder / f"out/{name}.png")
        assert after.dtype == before.dtype
        np.testing.assert_array_equal(after, refine(before, offsets(folder, Path(name).name)))
    picture = Image.open(folder / "out/palette.png")
    assert picture.mode == "P" and picture.getpalette()[:6] == [0, 255, 7, 1, 254, 7]
    assert Image.open(folder / "out/gray.png").mode == "L"
    color = read_image(folder / "labels/sub/color é.png")
    expected = np.stack([refine(plane, offsets(folder, "color é"))
                         for plane in color.transpose(2, 0, 1)], -1)
    np.testing.assert_array_equal(read_image(folder / "out/sub/color é.png"), expected)


def test_the_scale_can_be_set(folder):
    assert refined(folder, "--scale", 3) == 0
    np.testing.assert_array_equal(
        read_label(folder / "out/gray.png"),
        refine(read_label(folder / "labels/gray.png"), offsets(folder, "gray"), 3))


def test_files_that_cannot_be_refined_are_one_line_each(folder, capsys):
    good = read_label(folder / "labels/gray.png")
    for name in ("missing", "damaged", "other size", "no mat"):
        write_image(folder / f"labels/{name}.png", good)
    (folder / "labels/empty.png").touch()
    (folder / "labels/page.png").write_text("<html>")
    whole = (folder / "off/gray.mat").read_bytes()
    (folder / "off/damaged.mat").write_bytes(whole[:len(whole) // 2])
    write_offsets(folder / "off/other size.mat", offset_field((12, 16)))
    scipy.io.savemat(folder / "off/no mat.mat", {"x": 1})
    assert refined(folder) == 3
    out, err = capsys.readouterr()
    assert "4 label files refined, 6 failed" in out
    lines = [line for line in err.splitlines() if "warning:" in line]
    assert len(lines) == len(err.splitlines()) == 6
    for line, text in zip(sorted(lines), sorted([
            "off/damaged.mat: damaged", "off/missing.mat: no offset file",
            "off/no mat.mat: contains no variable", "off/other size.mat: is 12x16",
            "labels/empty.png: the file is empty", "labels/page.png: not a picture"],
            key=lambda text: str(folder / text)), strict=True):
        assert text in line
    assert (folder / "out/palette.png").is_file() and not (folder / "out/missing.png").exists()


def test_a_palette_file_of_which_the_end_is_missing_is_one_line(folder, capsys):
    path = folder / "labels/palette.png"
    whole = path.read_bytes()
    for kept in (len(whole) - 12, len(whole) // 2, 60):
        path.write_bytes(whole[:kept])
        assert refined(folder) == 3
        line, = capsys.readouterr().err.splitlines()
        assert "labels/palette.png: " in line and "runcated" in line


def test_each_label_is_read_once_and_a_short_palette_keeps_its_colors(folder, monkeypatch):
    image = Image.fromarray(np.arange(180, dtype=np.uint8).reshape(12, 15) % 3)
    image.putpalette([9, 8, 7, 60, 50, 40, 1, 2, 3])
    image.save(folder / "labels/palette.png", bits=8)
    opened, read_bytes = [], headers.read_bytes
    monkeypatch.setattr(headers, "read_bytes", lambda path, *more: opened.append(Path(path).name)
                        or read_bytes(path, *more))
    assert refined(folder) == 0
    assert sorted(opened) == ["color é.png", "deep.png", "gray.png", "palette.png"]
    assert Image.open(folder / "out/palette.png").getpalette()[:9] == [9, 8, 7, 60, 50, 40, 1, 2, 3]


def test_a_folder_that_cannot_be_created_is_one_line_per_file(folder, capsys):
    for place in ("out", "targets"):
        (folder / place).mkdir()
        (folder / place / "sub").touch()
    assert refined(folder) == 3
    out, err = capsys.readouterr()
    assert "2 label files refined, 2 failed" in out and "Traceback" not in err
    assert err.count(f"{folder}/out/sub: cannot make the folder: ") == 2
    assert run(segfix_targets, "--labels", folder / "labels", "--out", folder / "targets") == 3
    assert f"{folder}/targets/sub: cannot make the folder: " in capsys.readouterr().err


def test_the_default_output_folder_is_the_published_one(folder, capsys):
    (folder / "labels").rename(folder / "label")
    assert run(segfix_refine, "--input", folder / "label", "--offset", folder / "off") == 0
    assert (folder / "label_w_segfix/sub/deep.png").is_file()
    (folder / "label").rename(folder / "else")
    assert run(segfix_refine, "--input", folder / "else", "--offset", folder / "off") == 0
    assert (folder / "else/label_w_segfix/sub/deep.png").is_file()
    capsys.readouterr()
    assert run(segfix_refine, "--input", folder / "else", "--offset", folder / "off") == 0
    assert capsys.readouterr().out.startswith("4 label files")      # no earlier results


def test_split_selects_a_subfolder_of_both_folders(folder):
    (folder / "labels").rename(folder / "val")
    (folder / "labels").mkdir()
    (folder / "val").rename(folder / "labels/val")
    deep = folder / "data/val/offset_pred/semantic/offset_hrnext"
    deep.parent.mkdir(parents=True)
    (folder / "off").rename(deep)
    write_offsets(folder / "data/gray.mat", offset_field())
    assert run(segfix_refine, "--input", folder / "labels", "--offset", folder / "data", "--out",
               folder / "out", "--split", "val") == 0
    np.testing.assert_array_equal(
        read_label(folder / "out/gray.png"),
        refine(read_label(folder / "labels/val/gray.png"), read_offsets(deep / "gray.mat")))


@pytest.mark.parametrize("letter", "ab")
def test_refined_files_equal_the_golden_ones(tmp_path, letter):
    case = golden(f"refine_{letter}")
    for place in ("labels", "off"):
        (tmp_path / place).mkdir()
    write_image(tmp_path / f"labels/{NAME}_leftImg8bit.png", case["input_ids"])
    write_offsets(tmp_path / f"off/{NAME}_leftImg8bit.mat", case["offset"])
    for scale in (1, 2):
        assert refined(tmp_path, "--scale", scale, "--ids", "cityscapes") == 0
        np.testing.assert_array_equal(read_label(tmp_path / f"out/{NAME}_leftImg8bit.png"),
                                      case[f"refined_ids_scale{scale}"])


# --- instances --------------------------------------------------------------------------------

@pytest.fixture
def results(tmp_path):
    """Cityscapes instance results of three images, one of them without instances."""
    for place in ("labels/masks", "off"):
        (tmp_path / place).mkdir(parents=True)
    for image in ("a_0_0", "b_0_1"):
        lines = []
        for number in range(3):
            mask = RNG.integers(0, 2, (12, 15)).astype(np.uint8) * (255 if number else 7)
            write_image(tmp_path / f"labels/masks/{image} {number}.png", mask)
            lines.append(f"masks/{image} {number}.png 26 0.{number}5\n")
        (tmp_path / f"labels/{image}_leftImg8bit_pred.txt").write_text("".join(lines))
        write_offsets(tmp_path / f"off/{image}_leftImg8bit.mat", offset_field())
    (tmp_path / "labels/none_0_2_leftImg8bit_pred.txt").touch()
    return tmp_path


def test_masks_are_refined_and_text_files_are_copied(results, capsys):
    assert refined(results, "--instances") == 0
    assert "3 instance results refined" in capsys.readouterr().out
    for text in (results / "labels").glob("*.txt"):
        assert (results / "out" / text.name).read_bytes() == text.read_bytes()
    for image in ("a_0_0", "b_0_1"):
        offset = offsets(results, f"{image}_leftImg8bit")
        for number in range(3):
            mask = read_label(results / f"labels/masks/{image} {number}.png") != 0
            found = read_label(results / f"out/masks/{image} {number}.png")
            np.testing.assert_array_equal(found, refine(mask, offset, 1) * np.uint8(255))


def test_a_bad_instance_result_is_one_line_and_writes_nothing(results, capsys):
    write_image(results / "labels/masks/b_0_1 1.png", np.zeros((5, 5), np.uint8))
    (results / "labels/c_pred.txt").write_text("../off/a.png 26 0.5\n")
    (results / "labels/d_pred.txt").write_text("two words\n")
    (results / "labels/e_pred.txt").write_text("masks/nowhere.png 26 0.5\n")
    assert refined(results, "--instances") == 3
    out, err = capsys.readouterr()
    assert "2 instance results refined, 4 failed" in out
    lines = [line for line in err.splitlines() if "warning:" in line]
    assert len(lines) == 4
    for line, text in zip(lines, ("is 5x5", "outside", "expected a mask file", "cannot be opened"),
                          strict=True):
        assert text in line
    assert not list((results / "out").rglob("b_0_1*"))


def test_a_mask_folder_that_cannot_be_created_is_one_line_per_result(results, capsys):
    (results / "out").mkdir()
    (results / "out/masks").touch()
    assert refined(results, "--instances") == 3
    out, err = capsys.readouterr()
    assert "1 instance results refined, 2 failed" in out and "Traceback" not in err
    assert err.count("out/masks: cannot make the folder: ") == 2


def test_paths_in_the_ground_truth_are_changed(results):
    inside = str(results / "labels/x.png")
    (results / "labels/gtInstances.json").write_text(json.dumps({inside: [{"a": inside, "n": 3}],
                                                                 "else": "/data/y.png"}))
    assert refined(results, "--instances") == 0
    moved = str(results / "out/x.png")
    assert json.loads((results / "out/gtInstances.json").read_text()) == {
        moved: [{"a": moved, "n": 3}], "else": "/data/y.png"}


def test_instance_results_are_never_overwritten(results, capsys):
    assert run(segfix_refine, "--input", results / "labels", "--offset", results / "off", "--out",
               results / "labels", "--instances") == 3
    assert "overwrite" in capsys.readouterr().err


def test_refined_instances_equal_the_golden_ones(tmp_path):
    case = golden("refine_a")
    for place in ("labels", "off"):
        (tmp_path / place).mkdir()
    lines = []
    for number, mask in enumerate(case["inst_masks"]):
        write_image(tmp_path / f"labels/{number}.png", mask * np.uint8(255))
        lines.append(f"{number}.png 24 0.9\n")
    (tmp_path / f"labels/{NAME}_leftImg8bit_pred.txt").write_text("".join(lines))
    write_offsets(tmp_path / f"off/{NAME}_leftImg8bit.mat", case["inst_offset"])
    assert refined(tmp_path, "--instances") == 0
    for number, expected in enumerate(case["inst_refined_scale1"]):
        np.testing.assert_array_equal(read_label(tmp_path / f"out/{number}.png"), expected * 255)


# --- targets ----------------------------------------------------------------------------------

def test_targets_have_the_names_of_their_labels(folder):
    assert run(segfix_targets, "--labels", folder / "labels/gray.png", "--out", folder / "t",
               "--void", 3, "--min-pixels", 0) == 0
    ids = read_label(folder / "labels/gray.png")
    expected = distance_maps(semantic_regions(ids, void=(3,)), VOID, 0)
    depth, angle = read_distance_maps(folder / "t/gray.mat", ids.shape)
    np.testing.assert_array_equal(depth, expected[0])
    np.testing.assert_array_equal(angle, expected[1] * 2.0 - 180)
    assert not depth[ids == 3].any()


def test_targets_of_cityscapes_use_only_its_label_files(tmp_path, capsys):
    (tmp_path / "gt").mkdir()
    labels = np.full((30, 40), 7, np.uint16)
    labels[10:20, 10:30] = 26
    write_image(tmp_path / f"gt/{NAME}_gtFine_labelIds.png", labels.astype(np.uint8))
    write_image(tmp_path / f"gt/{NAME}_gtFine_color.png", np.zeros((30, 40, 3), np.uint8))
    labels[10:20, 10:20] = 26001
    write_image(tmp_path / f"gt/{NAME}_gtFine_instanceIds.png", labels)
    assert run(segfix_targets, "--labels", tmp_path / "gt", "--ids", "cityscapes", "--out",
               tmp_path / "t") == 0
    assert [path.name for path in (tmp_path / "t").iterdir()] == [f"{NAME}_gtFine_labelIds.mat"]
    assert run(segfix_targets, "--labels", tmp_path / "gt", "--instances", "--out",
               tmp_path / "i") == 0
    whole, _ = read_distance_maps(tmp_path / "t" / f"{NAME}_gtFine_labelIds.mat")
    parts, _ = read_distance_maps(tmp_path / "i" / f"{NAME}_gtFine_instanceIds.mat")
    assert whole[15, 20] == 5 and parts[15, 20] == 1      # a border between the two instances
    assert run(segfix_targets, "--labels", tmp_path / "gt", "--instances", "--out",
               tmp_path / "i", "--skip-existing") == 0
    assert "1 exist already" in capsys.readouterr().out


@pytest.mark.parametrize("tool, arguments", [
    (segfix_refine, ["--input", "a", "--offset", "b", "--scale", "0"]),
    (segfix_refine, ["--input", "a", "--offset", "b", "--instances", "--ids", "ade20k"]),
    (segfix_targets, ["--labels", "a", "--out", "b", "--ids", "cityscapes", "--void", "3"]),
    (segfix_targets, ["--labels", "a", "--out", "b", "--instances", "--void", "3"]),
    (segfix_predict, ["-r", "a", "-i", "b", "-o", "c", "--stride", "5"])])
def test_arguments_without_effect_are_an_error(tool, arguments):
    with pytest.raises(SystemExit) as stopped:
        run(tool, *arguments)
    assert stopped.value.code == 2


@pytest.mark.parametrize("tool", ["targets", "predict", "refine"])
def test_help_imports_neither_torch_nor_numpy(tool):
    code = (f"import sys, runpy; sys.argv = ['{tool}', '--help']\n"
            f"try:\n    runpy.run_module('tools.segfix_{tool}', run_name='__main__')\n"
            "except SystemExit as stop:\n    assert stop.code == 0\n"
            "assert 'torch' not in sys.modules and 'numpy' not in sys.modules")
    result = program("-c", code)
    assert result.returncode == 0, result.stderr
    assert "examples:" in result.stdout and "exit status" in result.stdout


# --- a network --------------------------------------------------------------------------------

def checkpoint(path, config):
    dataset = make_loader(config["val_loader"], ignore_index=255).dataset
    torch.manual_seed(0)
    model = build("models", config["arch"], num_classes=dataset.num_classes)
    write_checkpoint(path, {
        "format": 1, "model": model.state_dict(), "ema": None, "epoch": 1, "config": config,
        "class_names": dataset.class_names, "palette": dataset.palette, "activation": "softmax",
        "normalization": Normalize(dataset.mean, dataset.std).state(), "versions": {}})
    return path


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """(SegFix checkpoint, checkpoint of a network for classes, folder of validation images)."""
    place = tmp_path_factory.mktemp("networks")
    shapes = '{"split":"val","length":3,"size":[48,64]}'
    source = f'{{"type":"Shapes","args":{shapes}}}'
    segfix = resolve_config(load_config(ROOT / "configs/segfix_camvid_light.json", [
        f"train_loader.args.source={source}", f"val_loader.args.source={source}",
        "arch.args.channels=8", "val_loader.args.num_workers=0", "val_loader.args.batch_size=2"]))
    classes = resolve_config(load_config(ROOT / "config.json", [
        f"train_loader.args={shapes}", "val_loader.args=" + shapes[:-1]
        + ',"num_workers":0,"batch_size":2}']))
    images = make_loader(classes["val_loader"], ignore_index=255).dataset
    (place / "images").mkdir()
    for sample in images:
        write_image(place / f"images/{sample['id']}.png",
                    sample["image"].permute(1, 2, 0).numpy())
    return checkpoint(place / "segfix.pth", segfix), checkpoint(place / "net.pth", classes), \
        place / "images"


def test_offset_files_are_in_one_folder_with_the_names_of_the_images(networks, tmp_path, capsys):
    segfix, _, images = networks
    assert run(segfix_predict, "-r", segfix, "-i", images, "-o", tmp_path, "-d", "cpu") == 0
    assert "3 offset files written" in capsys.readouterr().out
    for image in images.iterdir():
        stored = scipy.io.loadmat(tmp_path / f"{image.stem}.mat")["mat"]
        assert stored.shape == (48, 64, 2) and np.abs(stored).max() <= 1
    assert run(segfix_predict, "-r", segfix, "-i", images, "-o", tmp_path, "-d", "cpu",
               "--skip-existing", "--crop", 32) == 0
    assert "3 exist already" in capsys.readouterr().out


def test_an_image_that_cannot_be_read_is_one_line(networks, tmp_path, capsys):
    segfix, _, images = networks
    pictures = tmp_path / "images"
    pictures.mkdir()
    (pictures / "good.png").write_bytes(next(images.iterdir()).read_bytes())
    (pictures / "bad.png").write_text("not an image")
    assert run(segfix_predict, "-r", segfix, "-i", pictures, "-o", tmp_path / "o", "-d",
               "cpu") == 3
    out, err = capsys.readouterr()
    assert "1 offset files written, 1 failed" in out and len(err.splitlines()) == 1


def test_another_network_predicts_no_offsets(networks, tmp_path, capsys):
    _, other, images = networks
    assert run(segfix_predict, "-r", other, "-i", images, "-o", tmp_path, "-d", "cpu") == 4
    assert "SegFix checkpoint" in capsys.readouterr().err


def scores(networks, folder, *arguments):
    return run(scoring, "-r", networks[1], "-d", "cpu", "-o", folder, *arguments)


@pytest.mark.parametrize("rules", ["max", "max,T"])
def test_every_rule_is_scored_with_and_without_segfix(networks, tmp_path, capsys, rules):
    """Offsets from files, from the network, and files of zeros, which change nothing.

    Takes one or two seconds for each of the three evaluations.
    """
    segfix, _, images = networks
    offset_folder, zeros = tmp_path / "off", tmp_path / "zeros"
    assert run(segfix_predict, "-r", segfix, "-i", images, "-o", offset_folder, "-d", "cpu") == 0
    zeros.mkdir()
    for image in images.iterdir():
        write_offsets(zeros / f"{image.stem}.mat", np.zeros((48, 64, 2)))
    found = {}
    for way in (offset_folder, segfix, zeros):
        capsys.readouterr()
        assert scores(networks, tmp_path / "scores", "--json", "-p", rules, "--segfix", way) == 0
        found[way] = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [one["procedure"] for one in found[way]] == [
            name + end for name in rules.split(",") for end in ("", "_segfix")]
    for one, other in zip(found[offset_folder], found[segfix], strict=True):
        assert one["Mean_IoU"] == other["Mean_IoU"]
        assert one["Boundary_IoU"] == other["Boundary_IoU"]
    plain, refined_score = found[zeros][:2]
    assert plain["Mean_IoU"] == refined_score["Mean_IoU"]
    assert found[segfix][1]["Mean_IoU"] != found[segfix][0]["Mean_IoU"]
    runs = json.loads((tmp_path / "scores/results.json").read_text())["runs"]
    assert len({run.get("segfix") for run in runs}) == 4      # without SegFix, and three with it


def test_a_missing_offset_file_ends_the_scoring(networks, tmp_path, capsys):
    write_offsets(tmp_path / "other.mat", offset_field())
    assert scores(networks, tmp_path / "scores", "--segfix", tmp_path) == 3
    assert "no offset file" in capsys.readouterr().err


def test_a_segfix_checkpoint_is_scored_by_its_offsets(networks, tmp_path, capsys):
    assert run(scoring, "-r", networks[0], "-d", "cpu", "-o", tmp_path) == 0
    out = capsys.readouterr().out
    assert "no border" in out and "down left" in out
    assert run(scoring, "-r", networks[0], "-d", "cpu", "-o", tmp_path, "-p", "T") == 2


@pytest.mark.slow
def test_from_training_to_refined_labels(tmp_path):
    """Trains two steps, validates, predicts, refines: takes some seconds for each program."""
    source = '{"type":"Shapes","args":{"split":"%s","length":4,"size":[64,64]}}'
    result = program(
        "train.py", "-c", "configs/segfix_camvid_light.json", "-d", "cpu",
        f"train_loader.args.source={source % 'train'}", f"val_loader.args.source={source % 'val'}",
        "train_loader.args.crop_size=[48,48]", "train_loader.args.batch_size=2",
        "train_loader.args.num_workers=0", "val_loader.args.num_workers=0", "trainer.epochs=1",
        "trainer.val_per_epochs=1", "trainer.tensorboard=false", "trainer.ema=0",
        f"trainer.save_dir={tmp_path}")
    assert result.returncode == 0, result.stderr
    assert "rule offsets, whole images" in result.stdout + result.stderr
    best, = tmp_path.rglob("model_best.pth")
    images, labels = tmp_path / "images", tmp_path / "labels"
    for place in (images, labels):
        place.mkdir()
    write_image(images / "x.png", RNG.integers(0, 255, (50, 70, 3), dtype=np.uint8))
    write_label(labels / "x.png", RNG.integers(0, 9, (50, 70)).astype(np.uint8), PALETTE)
    result = program("-m", "tools.segfix_predict", "-r", best, "-i", images, "-o",
                     tmp_path / "off", "-d", "cpu")
    assert result.returncode == 0, result.stderr
    result = program("-m", "tools.segfix_refine", "--input", labels, "--offset",
                     tmp_path / "off", "--out", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    np.testing.assert_array_equal(
        read_label(tmp_path / "out/x.png"),
        refine(read_label(labels / "x.png"), read_offsets(tmp_path / "off/x.mat")))
