"""The prepare_* commands: same ids as the datasets, done files skipped, files complete."""
import os

import numpy as np
import pytest
from PIL import Image

from tests.dataloader.test_datasets import (
    histogram,
    layout,
    make_fixtures,
    manifest,
    needs_fixtures,
    write_file,
    write_layout,
)
from tools import prepare_autolabelled, prepare_cityscapes, prepare_pascal_context, prepare_sbd
from utils.cli.console import run
from utils.config.registry import components
from utils.errors import DataError
from utils.files.file_jobs import Job, conversion_parser, convert
from utils.files.whole_file import write_bytes
from utils.images.image_io import read_label


def ran(tool, *argv):
    return run(tool.main, [*map(str, argv)])


def city(root, stems=("ulm_000000_000019", "ulm_000001_000019")):
    """Label files of some pictures, each of the values 0..33 once."""
    folder = root / "gtFine_trainvaltest" / "gtFine" / "train" / "ulm"
    for stem in stems:
        write_file(folder / f"{stem}_gtFine_labelIds.png", np.arange(34, dtype=np.uint8)[None])
    return folder


def test_train_ids_of_cityscapes_are_written_under_the_official_name(tmp_path):
    folder = city(tmp_path)
    assert ran(prepare_cityscapes, tmp_path) == 0
    path = folder / "ulm_000000_000019_gtFine_labelTrainIds.png"
    ids = read_label(path)[0].tolist()
    assert [ids[i] for i in (7, 8, 11, 26, 33)] == [0, 1, 2, 13, 18] and ids.count(255) == 15
    assert Image.open(path).mode == "L"
    assert len(list(folder.iterdir())) == 4


def test_a_second_run_writes_nothing_and_a_newer_label_is_converted_again(tmp_path, capsys):
    folder = city(tmp_path)
    assert ran(prepare_cityscapes, tmp_path) == 0
    capsys.readouterr()
    assert ran(prepare_cityscapes, tmp_path) == 0
    assert capsys.readouterr().out == "0 written, 2 exist already\n"
    target = folder / "ulm_000000_000019_gtFine_labelTrainIds.png"
    os.utime(target, (1, 1))
    assert ran(prepare_cityscapes, tmp_path) == 0
    assert capsys.readouterr().out == "1 written, 1 exist already\n"
    target.unlink()
    assert ran(prepare_cityscapes, tmp_path) == 0
    assert "1 written" in capsys.readouterr().out


def test_a_dry_run_writes_nothing(tmp_path, capsys):
    folder = city(tmp_path)
    assert ran(prepare_cityscapes, tmp_path, "--dry-run", "--output", tmp_path / "o") == 0
    out = capsys.readouterr().out
    assert "would write" in out and "2 to write, 0 exist already" in out
    assert len(list(folder.iterdir())) == 2 and not (tmp_path / "o").exists()


def test_damaged_labels_are_named_and_the_others_are_written(tmp_path, capsys):
    folder = city(tmp_path, ["a_0_0", "b_0_0", "c_0_0", "d_0_0"])
    (folder / "a_0_0_gtFine_labelIds.png").write_bytes(b"")
    write_file(folder / "b_0_0_gtFine_labelIds.png", np.full((1, 5), 77, np.uint8))
    write_file(folder / "c_0_0_gtFine_labelIds.png", np.full((2, 2, 3), (7, 8, 9), np.uint8))
    assert ran(prepare_cityscapes, tmp_path) == 3
    out, err = capsys.readouterr()
    assert out == "1 written, 0 exist already, 3 failed\n"
    assert [line.split(": ")[1].rsplit("/")[-1][0] for line in err.splitlines()] == list("abc")
    assert "value 77 (5 pixels)" in err
    assert [p.name[0] for p in folder.glob("*_labelTrainIds.png")] == ["d"]
    assert not list(tmp_path.rglob(".part-*"))


def test_kinds_splits_names_and_places_can_be_chosen(tmp_path):
    city(tmp_path)
    coarse = tmp_path / "gtCoarse" / "gtCoarse" / "train_extra" / "bonn"
    write_file(coarse / "bonn_000000_000000_gtCoarse_labelIds.png", np.array([[7]], np.uint8))
    assert ran(prepare_cityscapes, tmp_path, "--kind", "coarse", "--suffix",
               "labelIds_19classes") == 0
    written = coarse / "bonn_000000_000000_gtCoarse_labelIds_19classes.png"
    assert read_label(written).tolist() == [[0]]
    assert ran(prepare_cityscapes, tmp_path, "--split", "train", "--output", tmp_path / "o") == 0
    assert len(list((tmp_path / "o" / "gtFine_trainvaltest").rglob("*.png"))) == 2
    assert not (tmp_path / "o" / "gtCoarse").exists()
    assert ran(prepare_cityscapes, tmp_path, "--split", "valid") == 3


def test_autolabelled_pictures_become_what_the_loader_reads(tmp_path):
    source = layout("Cityscapes_autolabelled", "refinement_final")
    root = write_layout(tmp_path, source)
    write_file(tmp_path / "refinement_final" / "train_extra" / "tmp" / "x_leftImg8bit.png",
               np.zeros((1, 1), np.uint8))
    open_it = components("datasets")["Cityscapes_autolabelled"]
    before = open_it(data_dir=root, split="train")
    assert len(before) == 1
    assert ran(prepare_autolabelled, root) == 0
    after = open_it(data_dir=root, split="train")
    assert "convert_autolabelled" in str(after.samples[0].label)
    np.testing.assert_array_equal(before[0]["label"], after[0]["label"])
    label = Image.open(after.samples[0].label)
    assert label.mode == "P" and label.getpalette()[3:6] == [128, 0, 0]
    assert not (tmp_path / "convert_autolabelled" / "tmp").exists()


def test_the_folder_of_pascal_context_is_made_from_the_downloads(tmp_path, capsys):
    for split in ("train", "val"):
        one = list(layout("VOC2010_Context_60", ".mat"))
        one[4] = {f"VOCdevkit/VOC2010/ImageSets/Main/{split}.txt": "2008_000002\n"}
        root = write_layout(tmp_path, one)
    assert ran(prepare_pascal_context, root, "--link") == 0
    assert ran(prepare_pascal_context, root) == 0
    assert capsys.readouterr().out.endswith("0 written, 2 exist already\n")
    for name in ("VOC2010_Context", "VOC2010_Context_60"):
        open_it = components("datasets")[name]
        before = open_it(data_dir=root, split="val")
        after = open_it(data_dir=str(tmp_path / "VOC2010_Context"), split="val")
        for key in ("image", "label"):
            np.testing.assert_array_equal(before[0][key], after[0][key])
    assert ran(prepare_pascal_context, tmp_path / "VOC2010_Context") == 3


def voc_and_sbd(root):
    """VOC with x in train and y in val; SBD with x, y and z in its lists."""
    voc, sbd = root / "VOCdevkit" / "VOC2012", root / "dataset"
    for name, split in (("x", "train"), ("y", "val")):
        write_file(voc / "JPEGImages" / f"{name}.jpg", np.zeros((2, 2, 3), np.uint8))
        write_file(voc / "SegmentationClass" / f"{name}.png",
                   np.array([[0, 5], [255, 5]], np.uint8))
        write_file(voc / "ImageSets" / "Segmentation" / f"{split}.txt", f"{name}\n")
    for name in "xyz":
        write_file(sbd / "img" / f"{name}.jpg", np.zeros((2, 2, 3), np.uint8))
        write_file(sbd / "cls" / f"{name}.mat", np.array([[0, 5], [7, 5]], np.uint8))
    write_file(sbd / "train.txt", "x\ny\n")
    write_file(sbd / "val.txt", "z\n")
    return voc, sbd


def test_sbd_is_merged_into_voc_with_its_lists(tmp_path):
    voc, sbd = voc_and_sbd(tmp_path)
    assert ran(prepare_sbd, sbd, "--voc", tmp_path) == 0
    lists = voc / "ImageSets" / "Segmentation"
    assert (lists / "train_aug.txt").read_text() == "".join(
        f"/JPEGImages/{name}.jpg /SegmentationClassAug/{name}.png\n" for name in "xz")
    assert (lists / "aug.txt").read_text() == "z\n" and not (lists / "test_aug.txt").exists()
    found = {split: components("datasets")["VOC"](data_dir=str(tmp_path), split=split)
             for split in ("train_aug", "val_aug", "trainval_aug", "trainaug")}
    assert [[s.id for s in one.samples] for one in found.values()] == \
        [["x", "z"], ["y"], ["x", "y", "z"], ["x", "z"]]
    assert found["train_aug"][0]["label"].tolist() == [[0, 5], [255, 5]]      # VOC's own
    assert found["train_aug"][1]["label"].tolist() == [[0, 5], [7, 5]]        # SBD's
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
    assert ran(prepare_sbd, sbd, "--voc", tmp_path) == 0
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}


def test_lists_of_voc_wait_for_labels_and_other_lists_are_kept(tmp_path, capsys):
    voc, sbd = voc_and_sbd(tmp_path)
    (sbd / "cls" / "z.mat").write_bytes(b"x")
    lists = voc / "ImageSets" / "Segmentation"
    assert ran(prepare_sbd, sbd, "--voc", tmp_path) == 3
    assert "z.mat" in capsys.readouterr().err and not (lists / "train_aug.txt").exists()
    write_file(sbd / "cls" / "z.mat", np.zeros((2, 2), np.uint8))
    (lists / "train_aug.txt").write_text("mine\n")
    assert ran(prepare_sbd, sbd, "--voc", tmp_path) == 0
    assert "train_aug.txt has 1 lines, 2 would be written" in capsys.readouterr().err
    assert (lists / "train_aug.txt").read_text() == "mine\n"
    assert ran(prepare_sbd, sbd, "--voc", tmp_path, "--force") == 0
    assert len((lists / "train_aug.txt").read_text().splitlines()) == 2


@pytest.mark.parametrize("tool", [prepare_cityscapes, prepare_autolabelled,
                                  prepare_pascal_context, prepare_sbd])
def test_a_folder_without_the_dataset_is_one_clear_error(tool, tmp_path, capsys):
    for place in (tmp_path, tmp_path / "none"):
        assert ran(tool, place, *(("--voc", place) if tool is prepare_sbd else ())) == 3
        assert str(place) in capsys.readouterr().err


def test_an_interrupt_leaves_complete_files_and_the_next_run_resumes(tmp_path):
    args = conversion_parser("x", "").parse_args([str(tmp_path), "--workers", "1"])
    source = tmp_path / "source"
    source.write_text("")

    def job(number, fails):
        target = tmp_path / "out" / str(number)

        def write():
            if fails and number == 2:
                raise KeyboardInterrupt
            write_bytes(target, b"whole")
        return Job((source,), (target,), write)
    with pytest.raises(KeyboardInterrupt):
        convert([job(i, True) for i in range(5)], args)
    assert {p.read_bytes() for p in (tmp_path / "out").iterdir()} == {b"whole"}
    outcome = convert([job(i, False) for i in range(5)], args)
    assert len(outcome.done) + outcome.skipped == 5 and outcome.skipped >= 2


def test_a_folder_that_cannot_be_created_fails_its_job(tmp_path):
    args = conversion_parser("x", "").parse_args([str(tmp_path)])
    (tmp_path / "file").write_text("")
    job = Job((tmp_path / "file",), (tmp_path / "file" / "x.png",), lambda: None)
    assert "cannot make the folder" in convert([job], args).failed[0].what
    with pytest.raises(DataError):
        from utils.files.whole_file import make_folder
        make_folder(tmp_path / "file" / "x")


@needs_fixtures
def test_the_fixtures_are_converted_to_their_expected_ids(tmp_path):
    """Official layouts, made by the fixture program in a separate process: a few seconds."""
    names = ["cityscapes_coarse", "cityscapes_plain", "cityscapes_paddle", "pascal_context",
             "sbd", "voc2012"]
    out = make_fixtures(tmp_path, names, "--seed", "3")
    for name in names[:2]:
        assert ran(prepare_cityscapes, out / name, "--output", out / "made") == 0
        for sample in manifest(out, name)["samples"]:
            made = out / "made" / os.path.relpath(sample["label"], name).replace(
                "_labelIds", "_labelTrainIds")
            assert histogram(read_label(made)) == sample["hist"]["19"]
    for sample in manifest(out, "cityscapes_plain")["samples"]:
        official = out / sample["label"].replace("_labelIds", "_labelTrainIds")
        made = out / "made" / os.path.relpath(official, out / "cityscapes_plain")
        np.testing.assert_array_equal(read_label(made), read_label(official))
    paddle = out / "cityscapes_paddle"
    assert ran(prepare_autolabelled, paddle, "--output", out / "auto") == 0
    known = sorted((paddle / "convert_autolabelled").rglob("*.png"))
    for path in known:
        made = out / "auto" / path.relative_to(paddle / "convert_autolabelled")
        assert np.array_equal(np.asarray(Image.open(path)), np.asarray(Image.open(made)))
        assert Image.open(path).getpalette() == Image.open(made).getpalette()
    context = out / "pascal_context"
    assert ran(prepare_pascal_context, context, "--output", out / "context") == 0
    for path in sorted(p for p in (context / "VOC2010_Context").rglob("*.*") if p.is_file()):
        made = out / "context" / path.relative_to(context / "VOC2010_Context")
        if path.suffix == ".jpg":
            assert path.read_bytes() == made.read_bytes()
        else:
            np.testing.assert_array_equal(read_label(path), read_label(made))


