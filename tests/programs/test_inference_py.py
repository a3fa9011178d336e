"""inference.py: the correct result for every image, or one clear line."""
import argparse
import io
import json
import os
import signal
import time

import numpy as np
import pytest
import torch
from PIL import Image

import inference
from tests.support.limits import files_limited_to
from tests.support.places import ROOT
from tests.support.run_program import kill_group, program, start
from utils.checkpoint.read import read_checkpoint
from utils.checkpoint.write import write_checkpoint
from utils.cli import console
from utils.config.build import build
from utils.config.schema import resolve_config
from utils.decision.rules import build_decision
from utils.errors import DataError
from utils.images import headers, image_io
from utils.images.image_io import read_label, write_image
from utils.images.image_list import RESULTS_MARK, find_images, plan_outputs
from utils.images.palette import voc_palette
from utils.inference import large_image, segment_images
from utils.inference.prediction_files import mask_names
from utils.machine import memory
from utils.predict.arguments import scale_list
from utils.predict.open_model import open_model
from utils.predict.predictor import Predictor

NAMES = ["road", "sky", "tree", "car", "person"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "model_best.pth"
    loader = {"type": "Shapes", "args": {}}
    config = resolve_config({"arch": {"type": "ENet"}, "train_loader": loader,
                             "val_loader": loader, "loss": "CrossEntropyLoss2d",
                             "optimizer": {"type": "SGD", "args": {"lr": 0.1}},
                             "trainer": {"epochs": 1}})
    model = build("models", config["arch"], num_classes=len(NAMES))
    write_checkpoint(path, {
        "format": 1, "model": model.state_dict(), "ema": None, "epoch": 3, "config": config,
        "class_names": NAMES, "palette": voc_palette(len(NAMES)), "activation": "softmax",
        "normalization": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "order": "RGB",
                          "scale": 255.0}, "versions": {}})
    return str(path)


def picture(path, height=24, width=40, mode="RGB", **options):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    values = np.random.default_rng(7).integers(0, 256, (height, width, 3), dtype=np.uint8)
    with open(path, "wb") as file:        # Pillow cannot open names that are not UTF-8
        Image.fromarray(values).convert(mode).save(file, options.pop("format", "PNG"), **options)
    return str(path)


def run(checkpoint, *arguments):
    return console.run(inference.main,
                       ["-m", str(checkpoint), "--device", "cpu", *map(str, arguments)])


def tree(folder):
    return sorted(os.path.relpath(os.path.join(place, name), folder)
                  for place, _, names in os.walk(folder) for name in names)


def mask_stack(folder):
    """Returns the 1-bit PNGs of a folder as bool (C, H, W)."""
    masks = []
    for name in tree(folder):
        with Image.open(f"{folder}/{name}") as mask:
            assert mask.mode == "1" and mask.format == "PNG"
            masks.append(np.array(mask))
    return np.stack(masks)


def test_the_labels_of_the_predictor_are_written_as_a_palette_png(checkpoint, tmp_path):
    picture(f"{tmp_path}/in/a.png")
    assert run(checkpoint, "-i", tmp_path / "in", "-o", tmp_path / "out") == 0
    opened = open_model(read_checkpoint(checkpoint), "cpu")
    x = torch.from_numpy(np.array(Image.open(f"{tmp_path}/in/a.png"))).permute(2, 0, 1)[None]
    with Image.open(f"{tmp_path}/out/a.png") as written:
        assert written.mode == "P" and written.size == (40, 24)
        assert np.array_equal(np.array(written), opened.predictor()(x).argmax(1)[0].numpy())
        assert written.getpalette()[:15] == [v for color in voc_palette(5) for v in color]


def test_a_checkpoint_without_a_color_for_each_class_still_gives_pictures(checkpoint, tmp_path):
    write_checkpoint(tmp_path / "few.pth", {**read_checkpoint(checkpoint), "palette": [[9, 9, 9]]})
    picture(f"{tmp_path}/in/a.png")
    assert run(tmp_path / "few.pth", "-i", tmp_path / "in", "-o", tmp_path / "out",
               "--overlay") == 0
    with Image.open(f"{tmp_path}/out/a.png") as written:
        colors = written.getpalette()
        assert colors[:3] == [9, 9, 9] and any(colors[3:15])


def test_every_output_is_written_next_to_the_labels(checkpoint, tmp_path):
    picture(f"{tmp_path}/in/a.png")
    assert run(checkpoint, "-i", tmp_path / "in", "-o", tmp_path / "out", "--overlay",
               "--side-by-side", "--probabilities", "--masks", "-p", "T") == 0
    assert tree(tmp_path / "out") == [
        "a.png", "a_masks/00_road.png", "a_masks/01_sky.png", "a_masks/02_tree.png",
        "a_masks/03_car.png", "a_masks/04_person.png", "a_overlay.png", "a_probabilities.npz",
        "a_side_by_side.png"]
    file = np.load(f"{tmp_path}/out/a_probabilities.npz")
    probs = file["probabilities"]
    assert probs.dtype == np.float16 and probs.shape == (5, 24, 40)
    assert list(file["class_names"]) == NAMES and file["activation"] == "softmax"
    assert file["palette"].tolist() == voc_palette(5)
    assert np.abs(probs.sum(0, dtype=np.float32) - 1).max() <= 5 * 2 ** -12
    masks = mask_stack(f"{tmp_path}/out/a_masks")
    assert masks[probs > 0.501].all() and not masks[probs < 0.499].any()
    labels = np.array(Image.open(f"{tmp_path}/out/a.png"))
    assert np.array_equal(np.take_along_axis(probs, labels[None], 0)[0], probs.max(0))


def test_a_legend_is_below_the_pictures_unless_it_is_not_wanted(checkpoint, tmp_path):
    picture(f"{tmp_path}/in/a.png", 60, 300)
    options = ["-i", tmp_path / "in", "--overlay", "--side-by-side"]
    assert run(checkpoint, *options, "-o", tmp_path / "with") == 0
    assert run(checkpoint, *options, "--no-legend", "-o", tmp_path / "without") == 0
    image = np.array(Image.open(f"{tmp_path}/in/a.png"))
    for name, width in (("a_overlay.png", 300), ("a_side_by_side.png", 604)):
        have, bare = (np.array(Image.open(f"{tmp_path}/{out}/{name}"))
                      for out in ("with", "without"))
        assert bare.shape == (60, width, 3) and np.array_equal(have[:60], bare)
        assert have.shape[1] == width and have.shape[0] > 60
        for color in voc_palette(5)[1:]:
            assert (have[60:] == color).all(-1).any(), color
        # Class 0 is black: its pixels show the photo, and the legend has no black box.
        labels = np.array(Image.open(f"{tmp_path}/without/a.png"))
        assert np.array_equal(bare[:, -300:][labels == 0], image[labels == 0])
        assert not np.array_equal(bare[:, -300:][labels != 0], image[labels != 0])
    assert np.array_equal(np.array(Image.open(f"{tmp_path}/with/a.png")), labels)


def test_a_picture_too_narrow_for_a_legend_gets_white_at_its_right(checkpoint, tmp_path):
    picture(f"{tmp_path}/in/a.png")
    assert run(checkpoint, "-i", tmp_path / "in", "-o", tmp_path / "out", "--overlay") == 0
    written = np.array(Image.open(f"{tmp_path}/out/a_overlay.png"))
    assert written.shape[1] == 240 and (written[:24, 40:] == 255).all()


def test_confidence_and_entropy_are_gray_values_whose_scale_the_file_says(checkpoint, tmp_path):
    picture(f"{tmp_path}/in/a.png")
    assert run(checkpoint, "-i", tmp_path / "in", "-o", tmp_path / "out", "--probabilities",
               "--confidence", "--entropy") == 0
    probs = np.load(tmp_path / "out" / "a_probabilities.npz")["probabilities"].astype(np.float32)
    entropy = -(probs * np.log(np.maximum(probs, 1e-30))).sum(0) / np.log(5)
    for name, expected in (("confidence", probs.max(0)), ("entropy", entropy)):
        with Image.open(tmp_path / "out" / f"a_{name}.png") as file:
            assert file.mode == "L" and file.text["Description"].startswith(f"{name}: ")
            assert "value / 255" in file.text["Description"]
            assert np.abs(np.array(file) / 255 - expected).max() <= 0.5 / 255 + 1e-3


def test_a_pixel_in_no_mask_is_void_on_request(checkpoint, tmp_path):
    picture(f"{tmp_path}/in/a.png")
    options = ("-i", tmp_path / "in", "-p", "T", "--threshold", "0.4", "--masks")
    for unassigned in ("assign", "void"):
        assert run(checkpoint, *options, "-o", tmp_path / unassigned, "--unassigned",
                   unassigned) == 0
    assigned, void = (read_label(tmp_path / name / "a.png") for name in ("assign", "void"))
    in_none = ~mask_stack(f"{tmp_path}/void/a_masks").any(0)
    assert in_none.any() and np.array_equal(void, np.where(in_none, 255, assigned))
    assert run(checkpoint, "-i", tmp_path / "in", "-o", tmp_path / "x", "--unassigned",
               "void") == 2


def test_probabilities_of_8_bits_are_rounded_and_the_cost_is_said(checkpoint, tmp_path, capsys):
    picture(f"{tmp_path}/in/a.png")
    for kind in ("float16", "uint8"):
        assert run(checkpoint, "-i", tmp_path / "in", "-o", tmp_path / kind, "--probabilities",
                   kind) == 0
    exact, coarse = (np.load(tmp_path / kind / "a_probabilities.npz")["probabilities"]
                     for kind in ("float16", "uint8"))
    assert coarse.dtype == np.uint8 and np.abs(coarse / 255 - exact).max() <= 1 / 510 + 2 ** -12
    assert capsys.readouterr().err.count("below 1/510") == 1


@pytest.mark.parametrize("options", [
    ("--mode", "sliding", "--flip"), ("--scales", "0.5,1.5"), ("--mode", "multiscale"),
    ("--mode", "sliding", "--crop-size", "16", "--tiling", "source", "--average", "probs")])
@pytest.mark.parametrize("size", [(1, 1), (1, 700), (33, 47)])
def test_output_is_exactly_as_large_as_the_input(checkpoint, tmp_path, options, size):
    picture(f"{tmp_path}/in/a.png", *size)
    assert run(checkpoint, "-i", tmp_path / "in", "-o", tmp_path / "out", *options) == 0
    assert Image.open(f"{tmp_path}/out/a.png").size == size[::-1]


def test_sub_folders_are_mirrored_and_names_that_collide_keep_their_extension(checkpoint, tmp_path):
    for name in ("a.png", "a.jpg", "b.c.png", "b.d.png", "x/a.png", "y/deep/a.png", ".hidden.png",
                 "__MACOSX/a.png", ".thumbs/a.png", "notes.png.txt"):
        picture(f"{tmp_path}/in/{name}")
    assert run(checkpoint, "-i", tmp_path / "in", "-o", tmp_path / "out") == 0
    assert tree(tmp_path / "out") == ["a.jpg.png", "a.png.png", "b.c.png", "b.d.png", "x/a.png",
                                      "y/deep/a.png"]


def test_an_overlay_never_has_the_name_of_another_result(checkpoint, tmp_path):
    picture(f"{tmp_path}/in/a.png")
    picture(f"{tmp_path}/in/a_overlay.png")
    assert run(checkpoint, "-i", tmp_path / "in", "-o", tmp_path / "out", "--overlay") == 0
    assert len(tree(tmp_path / "out")) == 4


def test_the_results_of_two_folders_keep_the_folder_names(checkpoint, tmp_path):
    picture(f"{tmp_path}/x/a.png")
    picture(f"{tmp_path}/y/a.png")
    assert run(checkpoint, "-i", tmp_path / "x", tmp_path / "y", "-o", tmp_path / "out") == 0
    assert tree(tmp_path / "out") == ["x/a.png", "y/a.png"]


def test_results_inside_the_input_folder_are_not_segmented_again(checkpoint, tmp_path):
    picture(f"{tmp_path}/in/a.png")
    for _ in range(2):
        assert run(checkpoint, "-i", tmp_path / "in", "-o", tmp_path / "in/out") == 0
    assert tree(tmp_path / "in") == ["a.png", f"out/{RESULTS_MARK}", "out/a.png"]


def test_results_of_another_run_inside_the_input_folder_are_left_out(checkpoint, tmp_path, capsys):
    picture(f"{tmp_path}/in/a.png")
    assert run(checkpoint, "-i", tmp_path / "in", "-o", tmp_path / "in/deep/first") == 0
    assert run(checkpoint, "-i", tmp_path / "in", "-o", tmp_path / "in/second") == 0
    assert "in/deep/first holds results of an earlier run" in capsys.readouterr().err
    assert tree(tmp_path / "in/second") == [RESULTS_MARK, "a.png"]


def test_pictures_that_lie_in_the_output_folder_are_counted(checkpoint, tmp_path, capsys):
    for name in ("a.png", "out/b.png", "out/c.jpg"):
        picture(f"{tmp_path}/in/{name}")
    assert run(checkpoint, "-i", tmp_path / "in", "-o", tmp_path / "in/out") == 0
    assert "in/out is the output folder: the 2 pictures in it are left out" \
        in capsys.readouterr().err


@pytest.mark.parametrize("given", ["in", "in/../in", "in/*.jpg"])
def test_results_may_not_lie_among_the_images(checkpoint, tmp_path, capsys, given):
    picture(f"{tmp_path}/in/a.jpg", format="JPEG")
    os.symlink(tmp_path / "in", tmp_path / "link")
    for out in ("in", "link"):
        assert run(checkpoint, "-i", tmp_path / given, "-o", tmp_path / out) == 3
        assert "would lie among the images" in capsys.readouterr().err
    assert tree(tmp_path / "in") == ["a.jpg"]


@pytest.mark.parametrize("others", [(), ("-e", "jpg")])
def test_inputs_are_never_overwritten(checkpoint, tmp_path, capsys, others):
    picture(f"{tmp_path}/in/a.jpg", format="JPEG")
    kept = open(picture(f"{tmp_path}/in/{'a' if others else 'b'}.png"), "rb").read()
    assert run(checkpoint, "-i", tmp_path / "in", "-o", tmp_path / "in", *others) == 3
    assert "overwrite" in capsys.readouterr().err
    assert open(f"{tmp_path}/in/{'a' if others else 'b'}.png", "rb").read() == kept
    assert len(tree(tmp_path / "in")) == 2


def test_one_bad_image_does_not_stop_the_others(checkpoint, tmp_path, capsys):
    for name in "abc":
        picture(f"{tmp_path}/in/{name}.png")
    whole = open(f"{tmp_path}/in/b.png", "rb").read()
    open(f"{tmp_path}/in/b.png", "wb").write(whole[:len(whole) // 2])
    open(f"{tmp_path}/in/empty.jpg", "wb").close()
    open(f"{tmp_path}/in/page.jpg", "w").write("<html>not found</html>")
    assert run(checkpoint, "-i", tmp_path / "in", "-o", tmp_path / "out") == 3
    message = capsys.readouterr().err
    assert "2 ok, 3 failed: " in message and "b.png (truncated" in message
    assert tree(tmp_path / "out") == ["a.png", "c.png"]
    assert run(checkpoint, "-i", tmp_path / "in", "-o", tmp_path / "out", "--skip-bad") == 0


def test_an_image_with_a_gigapixel_header_fails_and_the_others_are_done(checkpoint, tmp_path,
                                                                        capsys):
    picture(f"{tmp_path}/in/a.png")
    data = bytearray(open(f"{tmp_path}/in/a.png", "rb").read())
    data[16:24] = (40000).to_bytes(4, "big") * 2
    open(f"{tmp_path}/in/bomb.png", "wb").write(data)
    assert run(checkpoint, "-i", tmp_path / "in", "-o", tmp_path / "out") == 3
    assert "1 ok, 1 failed" in capsys.readouterr().err


def test_an_image_too_large_for_the_network_fails_and_the_others_are_done(checkpoint, tmp_path,
                                                                          capsys, monkeypatch):
    for name, height in (("a", 24), ("b", 50), ("c", 24)):
        picture(f"{tmp_path}/in/{name}.png", height)
    from utils.predict.predictor import Predictor
    whole = Predictor.labels

    def limited(self, image, decision):
        if image.shape[2] > 40:
            raise RuntimeError("not enough memory: you tried to allocate 9 bytes\nand more")
        return whole(self, image, decision)
    monkeypatch.setattr(Predictor, "labels", limited)
    assert run(checkpoint, "-i", tmp_path / "in", "-o", tmp_path / "out") == 3
    message = capsys.readouterr().err
    assert "2 ok, 1 failed" in message and "fails on 50x40" in message and "sliding" in message


def test_stdout_contains_only_the_json_report(checkpoint, tmp_path, capsys):
    picture(f"{tmp_path}/in/a.png")
    open(f"{tmp_path}/in/b.png", "wb").close()
    assert run(checkpoint, "-i", tmp_path / "in", "-o", tmp_path / "out", "--json") == 3
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] == 1 and len(report["failed"]) == 1
    assert sum(report["images"][0]["classes"].values()) == pytest.approx(1)


def test_skip_existing_leaves_existing_results_unchanged(checkpoint, tmp_path, capsys):
    for name in "ab":
        picture(f"{tmp_path}/in/{name}.png")
    picture(f"{tmp_path}/out/a.png", 2, 2)
    assert run(checkpoint, "-i", tmp_path / "in", "-o", tmp_path / "out", "--skip-existing") == 0
    assert Image.open(f"{tmp_path}/out/a.png").size == (2, 2)
    assert "1 ok, 1 skipped" in capsys.readouterr().err


def test_batches_of_equal_sizes_give_the_same_labels(checkpoint, tmp_path):
    for i, size in enumerate([(24, 40), (24, 40), (24, 40), (16, 16), (24, 40)]):
        picture(f"{tmp_path}/in/{i}.png", *size)
    assert run(checkpoint, "-i", tmp_path / "in", "-o", tmp_path / "one") == 0
    assert run(checkpoint, "-i", tmp_path / "in", "-o", tmp_path / "two", "--batch", 2) == 0
    for name in tree(tmp_path / "one"):
        a, b = (np.array(Image.open(f"{tmp_path}/{run}/{name}")) for run in ("one", "two"))
        assert (a == b).mean() > 0.999


def test_odd_file_names_work(checkpoint, tmp_path, capsys):
    names = ["ünï cödé 图.png", "-dash.png", "new\nline.png", "n" * 251 + ".png"]
    paths = [f"{tmp_path}/in/{name}" for name in names]
    paths.append(os.fsdecode(os.fsencode(f"{tmp_path}/in/") + b"caf\xe9.png"))
    for path in paths:
        picture(path)
    picture(f"{tmp_path}/in/{'n' * 251}.jpg")
    open(os.fsencode(f"{tmp_path}/in/") + b"bad\xff.png", "wb").close()
    assert run(checkpoint, "-i", tmp_path / "in", "-o", tmp_path / "out", "--json") == 3
    captured = capsys.readouterr()
    assert json.loads(captured.out)["ok"] == 6
    assert "bad" in captured.err and "empty" in captured.err
    assert len(tree(tmp_path / "out")) == 6


@pytest.mark.parametrize("mode,options", [
    ("RGBA", {}), ("L", {}), ("1", {}), ("P", {}), ("LA", {}), ("I;16", {}),
    ("CMYK", {"format": "JPEG"}), ("RGB", {"format": "TIFF"}), ("P", {"format": "GIF"})])
def test_every_kind_of_image_is_segmented(checkpoint, tmp_path, mode, options):
    path = f"{tmp_path}/in/a.{options.get('format', 'PNG').lower()}"
    if mode == "I;16":
        os.makedirs(tmp_path / "in")
        Image.fromarray(np.arange(24 * 40, dtype=np.uint16).reshape(24, 40)).save(path)
    else:
        picture(path, mode=mode, **options)
    extension = path.rsplit(".", 1)[1]
    assert run(checkpoint, "-i", path, "-o", tmp_path / "out", "-e", extension) == 0
    assert Image.open(f"{tmp_path}/out/a.png").size == (40, 24)


def test_a_photo_rotated_by_exif_gets_labels_as_displayed(checkpoint, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(f"{tmp_path}/in/a.jpg", 24, 40, format="JPEG", exif=exif)
    assert run(checkpoint, "-i", tmp_path / "in", "-o", tmp_path / "out") == 0
    assert Image.open(f"{tmp_path}/out/a.png").size == (24, 40)


def test_a_list_file_may_have_bom_crlf_blanks_labels_and_absolute_paths(checkpoint, tmp_path):
    picture(f"{tmp_path}/in/a.png")
    other = picture(f"{tmp_path}/in/sub/b c.png")
    lines = ["\ufeff", "in/a.png in/a_label.png  ", "", other, "in/a.png"]
    (tmp_path / "list.txt").write_bytes("\r\n".join(lines).encode())
    assert run(checkpoint, "-i", tmp_path / "list.txt", "-o", tmp_path / "out") == 0
    assert tree(tmp_path / "out") == ["a.png", "sub/b c.png"]


def test_a_list_file_with_missing_images_names_the_lines(checkpoint, tmp_path, capsys):
    picture(f"{tmp_path}/a.png")
    (tmp_path / "list.txt").write_text("a.png\n\nnot there.png\n")
    assert run(checkpoint, "-i", tmp_path / "list.txt", "-o", tmp_path / "out") == 3
    assert "line 3: not there.png" in capsys.readouterr().err


def test_a_pattern_mirrors_the_folders_below_its_fixed_part(checkpoint, tmp_path):
    for name in ("a/1.png", "a/2.jpg", "b/c/3.png"):
        picture(f"{tmp_path}/in/{name}")
    assert run(checkpoint, "-i", f"{tmp_path}/in/**/*.png", "-o", tmp_path / "out") == 0
    assert tree(tmp_path / "out") == ["a/1.png", "b/c/3.png"]


def test_circular_links_end_and_a_folder_named_like_an_image_is_a_folder(tmp_path):
    picture(f"{tmp_path}/in/x.jpg/a.png")
    os.symlink(tmp_path / "in", tmp_path / "in/loop")
    found = find_images([str(tmp_path / "in")])
    assert [source.relative for source in found] == ["x.jpg/a.png"]
    assert plan_outputs(found, "out", [".png"]) == [{".png": "out/x.jpg/a.png"}]


@pytest.mark.parametrize("arguments,status,text", [
    (("-i", "{}/nothing", "-o", "{}/out"), 3, "no such file"),
    (("-i", "{}/empty", "-o", "{}/out"), 3, "no image"),
    (("-i", "{}/in", "-o", "{}/in/a.png"), 3, "output folder"),
    (("-i", "{}/in", "-o", "{}/out", "-m", "{}/none.pth"), 4, "no such checkpoint"),
    (("-i", "{}/in", "-o", "{}/out", "-p", "dice"), 2, "unknown rule"),
    (("-i", "{}/in", "-o", "{}/out", "-d", "cuda:77"), 2, "cuda:77")])
def test_a_usage_error_is_one_message_and_its_exit_status(checkpoint, tmp_path, capsys, arguments,
                                                          status, text):
    picture(f"{tmp_path}/in/a.png")
    os.makedirs(tmp_path / "empty")
    assert run(checkpoint, *(a.format(tmp_path) for a in arguments)) == status
    message = capsys.readouterr().err
    assert message.count("error:") == 1 and text in message and "Traceback" not in message


@pytest.mark.parametrize("options,named", [
    (("--crop-size", "32"), "--crop-size"), (("--overlap", "0.1"), "--overlap"),
    (("--tiling", "source"), "--tiling"), (("--window-batch", "2"), "--window-batch"),
    (("--scales", "0.5,1", "--crop-size", "9"), "--crop-size"),
    (("--average", "probs"), "--average"), (("--segfix-scale", "1"), "--segfix-scale"),
    (("--frames",), "--frames"), (("--max-frames", "3"), "--max-frames"),
    (("--no-legend",), "--no-legend"),
    (("--threshold", "0.3"), "--threshold"), (("--temperature", "2"), "--temperature"),
    (("-p", "rankdice", "--threshold", "0.3"), "--threshold")])
def test_an_option_without_effect_is_refused(checkpoint, tmp_path, capsys, options, named):
    picture(f"{tmp_path}/in/a.png")
    try:
        status = run(checkpoint, "-i", tmp_path / "in", "-o", tmp_path / "out", *options)
    except SystemExit as error:         # of argparse
        status = error.code
    error = capsys.readouterr().err
    assert status == 2 and f"{named} has no effect" in error
    assert not os.path.exists(tmp_path / "out")


@pytest.mark.parametrize("options", [
    ("--mode", "sliding", "--crop-size", "32", "--overlap", "0.1", "--tiling", "source"),
    ("--average", "probs", "--flip"), ("--scales", "0.5,1", "--average", "probs"),
    ("-p", "T", "--threshold", "0.3"), ("-p", "rankiou", "--temperature", "2"),
    ("--temperature", "2", "--probabilities"), ("--scales", "1"),
    ("--mode", "multiscale", "--scales", "1")])
def test_the_same_options_are_accepted_where_they_have_an_effect(checkpoint, tmp_path, options):
    picture(f"{tmp_path}/in/a.png")
    assert run(checkpoint, "-i", tmp_path / "in", "-o", tmp_path / "out", *options) == 0


def test_scale_1_is_one_scale_and_not_the_default_ones(checkpoint, tmp_path, capsys):
    picture(f"{tmp_path}/in/a.png")
    for options in ((), ("--scales", "1"), ("--mode", "multiscale", "--scales", "1")):
        assert run(checkpoint, "-i", tmp_path / "in", "-o", tmp_path / f"out{len(options)}",
                   "--json", *options) == 0
        assert json.loads(capsys.readouterr().out)["prediction"]["scales"] == [1.0]
    labels = [Image.open(tmp_path / f"out{n}" / "a.png").tobytes() for n in (0, 2, 4)]
    assert labels[0] == labels[1] == labels[2]


@pytest.mark.parametrize("values", ["1.5", "-0.1", "0.2,x", "", "nan"])
def test_a_threshold_is_a_probability(checkpoint, tmp_path, capsys, values):
    with pytest.raises(SystemExit) as error:
        run(checkpoint, "-i", tmp_path, "-p", "T", f"--threshold={values}")
    assert error.value.code == 2 and "--threshold" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["0", "-1", "inf", "nan", "warm"])
def test_a_temperature_is_a_finite_number_above_0(checkpoint, tmp_path, capsys, value):
    with pytest.raises(SystemExit) as error:
        run(checkpoint, "-i", tmp_path, "-p", "T", f"--temperature={value}")
    assert error.value.code == 2 and "--temperature" in capsys.readouterr().err


def test_scales_are_a_list_or_a_series():
    assert scale_list("0.5,1,1.5") == (0.5, 1.0, 1.5)
    assert scale_list("0.5:2.5:0.5") == (0.5, 1.0, 1.5, 2.0, 2.5)
    assert scale_list("0.5:2.0:0.25") == (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
    assert scale_list("0.5:2:*2") == (0.5, 1.0, 2.0)
    assert scale_list("1:1:0.5") == (1.0,)
    assert scale_list("0.1:0.4:0.1") == (0.1, 0.2, 0.3, 0.4)


@pytest.mark.parametrize("text,reason", [
    ("", "not a number"), ("a", "not a number"), ("1:2", "not a number"), ("1,,2", "not a number"),
    ("1:2:0", "step must be above 0"), ("1:2:-1", "step"), ("2:1:0.5", "starts above its end"),
    ("1:2:*1", "factor must be above 1"), ("0:2:*2", "start above 0"), ("1:inf:1", "finite"),
    ("0,1", "0 is outside"), ("-1", "outside"), ("nan", "outside"), ("1e9", "outside"),
    ("1:2:0.0001", "more than 100"), ("1,1", "twice")])
def test_the_error_for_a_wrong_list_of_scales_contains_the_reason(text, reason):
    with pytest.raises(argparse.ArgumentTypeError, match=reason):
        scale_list(text)


def hostile(folder):
    """Creates files that often cause errors.

    Returns ({name: (width, height)} of the valid ones, {name: reason} of the invalid ones).
    """
    def save(name, image, format="PNG", **options):
        buffer = io.BytesIO()
        image.save(buffer, format, **options)
        with open(os.path.join(folder, name), "wb") as file:
            file.write(buffer.getvalue())
        return buffer.getvalue()

    os.makedirs(folder)
    values = np.random.default_rng(7).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    rgb, rotated = Image.fromarray(values), Image.Exif()
    rotated[0x0112] = 6
    sixteen = Image.fromarray(np.arange(24 * 40, dtype=np.uint16).reshape(24, 40) * 60)
    good = {}
    for name, image, options in [
            ("unicode ünï 图.png", rgb, {}), ("space and (brackets)[1].png", rgb, {}),
            ("-dash.png", rgb, {}), ("rgba.png", rgb.convert("RGBA"), {}),
            ("cmyk.jpg", rgb.convert("CMYK"), {"format": "JPEG"}),
            ("sixteen.png", sixteen, {}), ("gray.png", rgb.convert("L"), {}),
            ("one bit.png", rgb.convert("1"), {}), ("palette.gif", rgb, {"format": "GIF"}),
            ("one pixel.png", rgb.crop((0, 0, 1, 1)), {}),
            ("thin.png", rgb.resize((5000, 1)), {}), ("tall.png", rgb.resize((1, 500)), {}),
            ("twins.png", rgb, {}), ("twins.jpg", rgb, {"format": "JPEG"}),
            ("really a png.jpg", rgb, {})]:
        save(name, image, **options)
        good[name] = image.size
    save("rotated.jpg", rgb, "JPEG", exif=rotated)
    good["rotated.jpg"] = (24, 40)
    whole = save("truncated.png", rgb)
    with open(f"{folder}/truncated.png", "wb") as file:
        file.write(whole[:-200])
    jpeg = save("truncated.jpg", rgb, "JPEG")
    with open(f"{folder}/truncated.jpg", "wb") as file:
        file.write(jpeg[:-200])
    open(f"{folder}/empty.png", "wb").close()
    with open(f"{folder}/page.jpg", "w") as file:
        file.write("<html>404</html>")
    with open(f"{folder}/bomb.png", "wb") as file:
        file.write(whole[:16] + (60000).to_bytes(4, "big") * 2 + whole[24:])
    os.mkfifo(f"{folder}/pipe.png")
    return good, {"truncated.png": "truncated", "truncated.jpg": "truncated",
                  "empty.png": "empty", "page.jpg": "not a picture", "bomb.png": "pixels",
                  "pipe.png": "not a regular file"}


@pytest.mark.parametrize("options", [(), ("--mode", "sliding", "--crop-size", "24x300"),
                                     ("--scales", "0.5,1", "--flip", "--batch", "3")])
def test_k61_k62_hostile_inputs_give_the_right_result_or_one_clear_line(checkpoint, tmp_path,
                                                                        capsys, options):
    """K61, K62: of 22 files the bad ones are named in one line. The others are all done, and each
    result has the size at which its image is displayed. Takes seconds: some files are large."""
    good, bad = hostile(f"{tmp_path}/in")
    assert run(checkpoint, "-i", tmp_path / "in", "-o", tmp_path / "out", "--json", *options) == 3
    captured = capsys.readouterr()
    assert len(captured.err.splitlines()) == 1
    report = json.loads(captured.out)
    assert {os.path.basename(one["image"]): tuple(one["size"][::-1])
            for one in report["images"]} == good
    reasons = {os.path.basename(one["image"]): one["reason"] for one in report["failed"]}
    assert reasons.keys() == bad.keys()
    assert all(text in reasons[name] for name, text in bad.items())
    for one in report["images"]:
        assert Image.open(one["files"][0]).size == tuple(one["size"][::-1])
    assert len(tree(tmp_path / "out")) == len(good)
    assert run(checkpoint, "-i", tmp_path / "in", "-o", tmp_path / "two", "--skip-bad",
               *options) == 0


def test_k59_names_that_collide_lose_nothing(checkpoint, tmp_path):
    """K59: there are as many results as images, even if names differ only in letter case."""
    for name in ("a.jpg", "a.png", "x/a.jpg", "y/a.jpg", "a_overlay.png", "a_masks/q.png",
                 "b.png", "B.png"):
        picture(f"{tmp_path}/in/{name}", format="JPEG" if name.endswith("jpg") else "PNG")
    assert run(checkpoint, "-i", tmp_path / "in", "-o", tmp_path / "out", "--overlay",
               "--masks") == 0
    names = tree(tmp_path / "out")
    assert len(names) == 8 * (2 + len(NAMES))
    labels = [n for n in names if "_masks/0" not in n and not n.endswith("_overlay.png")]
    assert {"a.jpg.png", "a.png.png", "x/a.png", "y/a.png"} <= set(labels)


def test_k60_an_output_folder_that_cannot_be_written_is_status_3(checkpoint, tmp_path, capsys):
    """K60: a read-only folder (root can write everywhere except in /proc), and a file as folder."""
    picture(f"{tmp_path}/in/a.png")
    for output in ("/proc/segwright-out", f"{tmp_path}/in/a.png/out"):
        assert run(checkpoint, "-i", tmp_path / "in", "-o", output) == 3
        error = capsys.readouterr().err
        assert "cannot write into the output folder" in error and output in error


def test_k60_a_full_disk_ends_the_run_with_status_3_and_the_file(checkpoint, tmp_path, capsys):
    """K60: a limit on file sizes simulates the full disk."""
    for name in "ab":
        picture(f"{tmp_path}/in/{name}.png", 200, 300)
    with files_limited_to(300):
        status = run(checkpoint, "-i", tmp_path / "in", "-o", tmp_path / "out", "--masks")
    assert status == 3 and "cannot write" in capsys.readouterr().err
    assert not [n for n in tree(tmp_path / "out") if ".part-" in n or n in ("a.png", "b.png")]


@pytest.mark.parametrize("signum,status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_k63_a_signal_leaves_whole_files_and_skip_existing_does_the_rest(
        checkpoint, tmp_path, capsys, monkeypatch, signum, status):
    """K63, SIGINT and SIGTERM: one line, complete files, and the next call does the rest."""
    for i in range(12):
        picture(f"{tmp_path}/in/{i:02d}.png")
    read = segment_images.read_input

    def and_then(path, *how):
        if path.endswith("08.png"):
            os.kill(os.getpid(), signum)
        return read(path, *how)
    with monkeypatch.context() as patched:
        patched.setattr(segment_images, "read_input", and_then)
        assert run(checkpoint, "-i", tmp_path / "in", "-o", tmp_path / "out",
                   "--workers", 1) == status
    message = capsys.readouterr().err
    assert len(message.splitlines()) == 1 and "--skip-existing" in message
    done = tree(tmp_path / "out")
    assert 0 < len(done) < 12 and all(name.endswith(".png") and name[0] != "." for name in done)
    assert run(checkpoint, "-i", tmp_path / "in", "-o", tmp_path / "out", "--skip-existing") == 0
    assert f"{12 - len(done)} ok, {len(done)} skipped" in capsys.readouterr().err
    for name in tree(tmp_path / "out"):
        Image.open(f"{tmp_path}/out/{name}").load()


@pytest.mark.slow
def test_k63_killed_at_any_moment_no_half_written_png_is_taken_as_done(checkpoint, tmp_path):
    """K63: SIGKILL while large images are written; starts two processes, takes 10 s."""
    for i in range(30):
        picture(f"{tmp_path}/in/{i:02d}.png", 200, 300)
    command = ["inference.py", "-m", checkpoint, "-d", "cpu", "-i", tmp_path / "in",
               "-o", tmp_path / "out", "--overlay", "--masks", "--skip-existing"]
    process = start(*map(str, command))
    while not [name for name in tree(tmp_path / "out") if name.endswith("_overlay.png")]:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    kill_group(process)
    process.wait()
    for name in tree(tmp_path / "out"):
        if ".part-" not in name:
            Image.open(f"{tmp_path}/out/{name}").load()
    assert program(*command).returncode == 0
    finished = [name for name in tree(tmp_path / "out") if ".part-" not in name]
    assert len(finished) == 30 * (2 + len(NAMES))


@pytest.mark.slow
def test_ranks_of_torchrun_share_the_images_and_print_one_summary(checkpoint, tmp_path):
    """Starts torchrun twice, takes 15 s."""
    for i in range(5):
        picture(f"{tmp_path}/in/{i}.png")
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
               "inference.py", "-m", checkpoint, "-d", "cpu", "-i", tmp_path / "in",
               "-o", tmp_path / "out", "--json"]
    done = program(*command)
    assert done.returncode == 0, done.stderr
    assert "5 ok; results in" in done.stderr and done.stderr.count("results in") == 1
    report = json.loads(done.stdout)
    assert [os.path.basename(one["image"]) for one in report["images"]] == \
        [f"{i}.png" for i in range(5)]
    assert run(checkpoint, "-i", tmp_path / "in", "-o", tmp_path / "alone") == 0
    for name in tree(tmp_path / "alone"):
        assert open(f"{tmp_path}/out/{name}", "rb").read() == \
            open(f"{tmp_path}/alone/{name}", "rb").read()
    open(f"{tmp_path}/in/3.png", "wb").close()
    done = program(*command)
    assert done.returncode != 0
    assert "4 ok, 1 failed" in done.stderr and "empty" in done.stderr
    assert len(json.loads(done.stdout)["failed"]) == 1


# The 20th image of rank 0 stops torchrun; later images take 0.3 s each.
STOPPED = """
import os, signal, sys, time
sys.path.insert(0, {!r})
import inference
from utils.cli import console
from utils.inference import segment_images
read, seen = segment_images.read_input, []
def and_then(path, *how):
    seen.append(path)
    if len(seen) == 20 and os.environ["RANK"] == "0":
        os.kill(os.getppid(), signal.SIGTERM)
    if len(seen) >= 20:
        time.sleep(0.3)
    return read(path, *how)
segment_images.read_input = and_then
sys.exit(console.run(inference.main))
"""


@pytest.mark.slow
def test_sigterm_to_torchrun_is_one_line_and_leaves_complete_files(checkpoint, tmp_path):
    """Starts torchrun and stops it, takes 10 s."""
    for i in range(200):
        picture(f"{tmp_path}/in/{i:03d}.png", 100, 150)
    (tmp_path / "stopped.py").write_text(STOPPED.format(str(ROOT)))
    error = program("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
                    tmp_path / "stopped.py", "-m", checkpoint, "-d", "cpu", "-i", tmp_path / "in",
                    "-o", tmp_path / "out", "--workers", 1).stderr
    assert error.count("interrupted:") == 1 and "images are done" in error
    names = tree(tmp_path / "out")
    assert 0 < len(names) < 200 and not [name for name in names if ".part-" in name]
    for name in names:
        Image.open(f"{tmp_path}/out/{name}").load()


@pytest.fixture
def everything_is_large(monkeypatch):
    """Every image is streamed, in strips and blocks of a few rows."""
    monkeypatch.setattr(large_image, "LARGE_PIXELS", 1)
    monkeypatch.setattr(large_image, "STRIP_PIXELS", 700)
    keep = Predictor.in_blocks
    monkeypatch.setattr(Predictor, "in_blocks", lambda *args: keep(*args, most_bytes=1))


@pytest.mark.parametrize("rule", ["max", "T"])
def test_a_streamed_image_has_the_results_of_the_whole_image(checkpoint, tmp_path, request, rule):
    picture(f"{tmp_path}/in/a.png", 75, 143)
    options = ["-i", tmp_path / "in", "--mode", "sliding", "--crop-size", "24x32", "--overlay",
               "--side-by-side", "-p", rule, "--probabilities",
               "--confidence", "--entropy",
               *(["--masks"] if rule == "max" else ["--unassigned", "void"])]
    assert run(checkpoint, *options, "-o", tmp_path / "whole") == 0
    request.getfixturevalue("everything_is_large")
    assert run(checkpoint, *options, "-o", tmp_path / "out") == 0
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
    assert (tmp_path / "out" / "a_probabilities.npz").read_bytes() == \
        (tmp_path / "whole" / "a_probabilities.npz").read_bytes()
    for name in filter(lambda name: name.endswith(".png"), tree(tmp_path / "out")):
        streamed, whole = (Image.open(f"{tmp_path}/{run}/{name}") for run in ("out", "whole"))
        assert streamed.mode == whole.mode and streamed.getpalette() == whole.getpalette()
        assert np.array_equal(np.array(streamed), np.array(whole))


@pytest.mark.parametrize("name,options,mapped", [
    ("a.ppm", {"format": "PPM"}, True), ("a.tif", {"format": "TIFF"}, True),
    ("b.tif", {"format": "TIFF", "compression": "tiff_lzw"}, False), ("a.png", {}, False),
    ("gray.tif", {"format": "TIFF", "mode": "L"}, False)])
def test_uncompressed_files_are_mapped_and_pixels_are_equal(tmp_path, name, options, mapped):
    path = picture(f"{tmp_path}/{name}", 700, 300, **options)
    image = image_io.map_image(path)
    assert isinstance(image, np.memmap) == mapped
    assert np.array_equal(image, image_io.read_image(path))
    if mapped:
        os.truncate(path, os.path.getsize(path) // 2)
        with pytest.raises(DataError):
            image_io.map_image(path)


@pytest.mark.parametrize("options,text", [
    (("-p", "rankdice"), "-p max"), (("-p", "T", "--masks"), "--masks")])
def test_an_output_that_cannot_be_streamed_is_one_line(checkpoint, tmp_path, capsys, options, text,
                                                       everything_is_large):
    picture(f"{tmp_path}/in/a.png")
    assert run(checkpoint, "-i", tmp_path / "in", "-o", tmp_path / "out", "--mode", "sliding",
               "--crop-size", "16", *options) == 3
    error = capsys.readouterr().err
    assert text in error and len(error.splitlines()) == 1 and not tree(tmp_path / "out")


def test_a_streamed_image_that_is_stopped_leaves_no_file(checkpoint, tmp_path, monkeypatch,
                                                         everything_is_large):
    picture(f"{tmp_path}/in/a.png", 75, 143)
    keep = large_image.PngStrips.write

    def and_then(self, rows):
        os.kill(os.getpid(), signal.SIGTERM)
        keep(self, rows)
    monkeypatch.setattr(large_image.PngStrips, "write", and_then)
    assert run(checkpoint, "-i", tmp_path / "in", "-o", tmp_path / "out", "--mode", "sliding",
               "--crop-size", "24", "--overlay", "--masks") == 143
    assert not tree(tmp_path / "out")


def test_logits_that_do_not_fit_are_one_line_with_the_fix(checkpoint, tmp_path, capsys,
                                                          monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda: 1 << 29)
    monkeypatch.setattr(memory, "LOGIT_MAPS", 10**6)
    picture(f"{tmp_path}/in/a.png")
    assert run(checkpoint, "-i", tmp_path / "in", "-o", tmp_path / "out") == 3
    assert "--mode sliding --crop-size N" in capsys.readouterr().err


def test_the_limit_of_pixels_is_an_option(checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(headers, "MAX_PIXELS", headers.MAX_PIXELS)
    picture(f"{tmp_path}/in/a.png")
    for most, status in ((959, 3), (960, 0)):
        assert run(checkpoint, "-i", tmp_path / "in", "-o", tmp_path / "out",
                   "--max-pixels", most) == status
    assert "--max-pixels" not in capsys.readouterr().out


@pytest.mark.parametrize("rule", ["rankdice", "max"])
def test_the_masks_are_those_of_the_rule(checkpoint, tmp_path, rule):
    """RankDice's masks may overlap and may leave pixels without a class; its labels do neither."""
    picture(f"{tmp_path}/in/sub/a.png")
    assert run(checkpoint, "-i", tmp_path / "in", "-o", tmp_path / "out", "--masks", "-p",
               rule) == 0
    opened = open_model(read_checkpoint(checkpoint), "cpu")
    x = torch.from_numpy(np.array(Image.open(f"{tmp_path}/in/sub/a.png"))).permute(2, 0, 1)[None]
    logits, decision = opened.predictor()(x), build_decision(rule)
    labels = decision.labels(logits)[0].numpy()
    found = mask_stack(f"{tmp_path}/out/sub/a_masks")
    expected = (decision(logits)[0].numpy() if decision.masks
                else labels == np.arange(len(NAMES))[:, None, None])
    assert np.array_equal(found, expected)
    assert np.array_equal(np.array(Image.open(f"{tmp_path}/out/sub/a.png")), labels)


def test_names_of_masks_are_safe_and_unique():
    assert mask_names(["a", "a", "traffic light/red", "..", "ü", "背景"]) == [
        "00_a.png", "01_a.png", "02_traffic_light_red.png", "03_.png", "04_ü.png", "05_背景.png"]
    assert len(mask_names(["背" * 200])[0].encode()) < 200
    assert mask_names(["x"] * 101)[100] == "100_x.png"


def test_labels_are_refined_by_segfix_offsets(checkpoint, tmp_path, capsys):
    """Offsets of zero change nothing; an image without an offset file fails."""
    scipy_io = pytest.importorskip("scipy.io")
    for name in "ab":
        picture(f"{tmp_path}/in/{name}.png")
    os.makedirs(tmp_path / "offsets")
    scipy_io.savemat(f"{tmp_path}/offsets/a.mat", {"mat": np.zeros((24, 40, 2), np.int8)})
    assert run(checkpoint, "-i", tmp_path / "in", "-o", tmp_path / "out", "--segfix",
               tmp_path / "offsets", "--masks") == 3
    assert "1 ok, 1 failed" in capsys.readouterr().err
    assert run(checkpoint, "-i", tmp_path / "in/a.png", "-o", tmp_path / "plain") == 0
    assert open(f"{tmp_path}/out/a.png", "rb").read() == open(f"{tmp_path}/plain/a.png",
                                                              "rb").read()
    assert run(checkpoint, "-i", tmp_path / "in", "-o", tmp_path / "out", "--segfix",
               tmp_path / "nothing") in (3, 4)


@pytest.mark.parametrize("white", [None, 4095])
def test_images_of_sixteen_bits_are_read_with_the_range_of_the_training(checkpoint, white, tmp_path,
                                                                        capsys):
    values = np.random.default_rng(7).integers(0, 4096, (24, 40, 3)).astype(np.uint16)
    values[0, 0] = 4095
    deep, same = tmp_path / "deep", tmp_path / "same"
    for folder, pixels in ((deep, values),
                           (same, np.floor(values.astype(float) * 255 / (white or 65535) + 0.5)
                            .astype(np.uint8))):
        folder.mkdir()
        write_image(folder / "a.png", pixels)
    content = dict(read_checkpoint(checkpoint))
    content["normalization"] = {**content["normalization"], **({"white": white} if white else {})}
    write_checkpoint(tmp_path / "c.pth", content)
    for folder in (deep, same):
        assert run(str(tmp_path / "c.pth"), "-i", folder, "-o", f"{folder}_out") == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "more than 8 bits" in line]
    assert len(said) == (0 if white else 1)
    np.testing.assert_array_equal(read_label(tmp_path / "deep_out" / "a.png"),
                                  read_label(tmp_path / "same_out" / "a.png"))


def test_pages_that_are_not_segmented_are_one_notice(checkpoint, tmp_path, capsys):
    frames = [Image.fromarray(np.full((24, 40, 3), 60 * k, np.uint8)) for k in range(3)]
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
    assert run(checkpoint, "-i", tmp_path / "a.tif", "-o", tmp_path / "out") == 0
    assert "1 of 1 images have several pages or frames (3 in " in capsys.readouterr().err
