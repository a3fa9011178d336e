"""inference.py: the right result for every image, or one clear line."""
import argparse
import json
import os

import numpy as np
import pytest
import torch
from PIL import Image

import inference
from utils import console
from utils.checkpoint import read_checkpoint, write_checkpoint
from utils.config import build
from utils.image_list import find_images, plan_outputs
from utils.open_model import open_model
from utils.palette import voc_palette
from utils.predict_arguments import scale_list

NAMES = ["road", "sky", "tree", "car", "person"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "model_best.pth"
    config = {"arch": {"type": "ENet", "args": {}}, "ignore_index": 255, "predict": {}}
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
    with open(path, "wb") as file:        # Pillow cannot open names that are not UTF-8 itself
        Image.fromarray(values).convert(mode).save(file, options.pop("format", "PNG"), **options)
    return str(path)


def run(checkpoint, *arguments):
    return console.run(inference.main, ["-m", checkpoint, "--device", "cpu", *map(str, arguments)])


def tree(folder):
    return sorted(os.path.relpath(os.path.join(place, name), folder)
                  for place, _, names in os.walk(folder) for name in names)


def mask_stack(folder):
    """The 1-bit PNGs of a folder as bool (C, H, W)."""
    masks = []
    for name in tree(folder):
        with Image.open(f"{folder}/{name}") as mask:
            assert mask.mode == "1" and mask.format == "PNG"
            masks.append(np.array(mask))
    return np.stack(masks)


def test_labels_are_those_of_the_predictor_in_a_palette_png(checkpoint, tmp_path):
    picture(f"{tmp_path}/in/a.png")
    assert run(checkpoint, "-i", tmp_path / "in", "-o", tmp_path / "out") == 0
    opened = open_model(read_checkpoint(checkpoint), "cpu")
    x = torch.from_numpy(np.array(Image.open(f"{tmp_path}/in/a.png"))).permute(2, 0, 1)[None]
    with Image.open(f"{tmp_path}/out/a.png") as written:
        assert written.mode == "P" and written.size == (40, 24)
        assert np.array_equal(np.array(written), opened.predictor()(x).argmax(1)[0].numpy())
        assert written.getpalette()[:15] == [v for colour in voc_palette(5) for v in colour]


def test_every_product_is_written_beside_the_labels(checkpoint, tmp_path):
    picture(f"{tmp_path}/in/a.png")
    assert run(checkpoint, "-i", tmp_path / "in", "-o", tmp_path / "out", "--overlay",
               "--side-by-side", "--probabilities", "--masks", "-p", "T") == 0
    assert tree(tmp_path / "out") == [
        "a.png", "a_masks/00_road.png", "a_masks/01_sky.png", "a_masks/02_tree.png",
        "a_masks/03_car.png", "a_masks/04_person.png", "a_overlay.png", "a_probabilities.npz",
        "a_side_by_side.png"]
    file = np.load(f"{tmp_path}/out/a_probabilities.npz")
    probs = file["probabilities"]                     # uint8, 255 is 1
    assert probs.shape == (5, 24, 40) and list(file["class_names"]) == NAMES
    assert np.abs(probs.sum(0, dtype=int) - 255).max() <= 3
    masks = mask_stack(f"{tmp_path}/out/a_masks")
    assert masks[probs > 128].all() and not masks[probs < 127].any()
    labels = np.array(Image.open(f"{tmp_path}/out/a.png"))
    assert np.array_equal(np.take_along_axis(probs, labels[None], 0)[0], probs.max(0))
    assert Image.open(f"{tmp_path}/out/a_overlay.png").size == (40, 24)


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


def test_an_overlay_never_takes_the_name_of_another_result(checkpoint, tmp_path):
    picture(f"{tmp_path}/in/a.png")
    picture(f"{tmp_path}/in/a_overlay.png")
    assert run(checkpoint, "-i", tmp_path / "in", "-o", tmp_path / "out", "--overlay") == 0
    assert len(tree(tmp_path / "out")) == 4


def test_two_folders_keep_their_names(checkpoint, tmp_path):
    picture(f"{tmp_path}/x/a.png")
    picture(f"{tmp_path}/y/a.png")
    assert run(checkpoint, "-i", tmp_path / "x", tmp_path / "y", "-o", tmp_path / "out") == 0
    assert tree(tmp_path / "out") == ["x/a.png", "y/a.png"]


def test_results_inside_the_input_folder_are_not_segmented_again(checkpoint, tmp_path):
    picture(f"{tmp_path}/in/a.png")
    for _ in range(2):
        assert run(checkpoint, "-i", tmp_path / "in", "-o", tmp_path / "in/out") == 0
    assert tree(tmp_path / "in") == ["a.png", "out/a.png"]


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


def test_a_header_that_claims_a_gigapixel_is_refused_and_the_rest_is_done(checkpoint, tmp_path,
                                                                          capsys):
    picture(f"{tmp_path}/in/a.png")
    data = bytearray(open(f"{tmp_path}/in/a.png", "rb").read())
    data[16:24] = (40000).to_bytes(4, "big") * 2
    open(f"{tmp_path}/in/bomb.png", "wb").write(data)
    assert run(checkpoint, "-i", tmp_path / "in", "-o", tmp_path / "out") == 3
    assert "1 ok, 1 failed" in capsys.readouterr().err


def test_an_image_the_network_cannot_take_is_reported_and_the_rest_is_done(checkpoint, tmp_path,
                                                                           capsys, monkeypatch):
    for name, height in (("a", 24), ("b", 50), ("c", 24)):
        picture(f"{tmp_path}/in/{name}.png", height)
    from utils.predictor import Predictor
    whole = Predictor.labels

    def limited(self, image, decision):
        if image.shape[2] > 40:
            raise RuntimeError("not enough memory: you tried to allocate 9 bytes\nand more")
        return whole(self, image, decision)
    monkeypatch.setattr(Predictor, "labels", limited)
    assert run(checkpoint, "-i", tmp_path / "in", "-o", tmp_path / "out") == 3
    message = capsys.readouterr().err
    assert "2 ok, 1 failed" in message and "fails on 40x50" in message and "sliding" in message


def test_the_json_report_is_all_there_is_on_stdout(checkpoint, tmp_path, capsys):
    picture(f"{tmp_path}/in/a.png")
    open(f"{tmp_path}/in/b.png", "wb").close()
    assert run(checkpoint, "-i", tmp_path / "in", "-o", tmp_path / "out", "--json") == 3
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] == 1 and len(report["failed"]) == 1
    assert sum(report["images"][0]["classes"].values()) == pytest.approx(1)


def test_existing_results_are_left_alone_when_asked(checkpoint, tmp_path, capsys):
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


def test_a_turned_photo_gets_labels_as_displayed(checkpoint, tmp_path):
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


def test_links_that_go_in_circles_end_and_a_folder_called_like_an_image_is_a_folder(tmp_path):
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
def test_a_mistake_is_one_message_and_its_exit_status(checkpoint, tmp_path, capsys, arguments,
                                                      status, text):
    picture(f"{tmp_path}/in/a.png")
    os.makedirs(tmp_path / "empty")
    assert run(checkpoint, *(a.format(tmp_path) for a in arguments)) == status
    message = capsys.readouterr().err
    assert message.count("error:") == 1 and text in message and "Traceback" not in message


def test_scales_are_a_list_or_a_series():
    assert scale_list("0.5,1,1.5") == (0.5, 1.0, 1.5)
    assert scale_list("0.5:2.5:0.5") == (0.5, 1.0, 1.5, 2.0, 2.5)
    assert scale_list("0.5:2.0:0.25") == (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
    assert scale_list("0.5:2:*2") == (0.5, 1.0, 2.0)
    assert scale_list("1:1:0.5") == (1.0,)
    assert scale_list("0.1:0.4:0.1") == (0.1, 0.2, 0.3, 0.4)


@pytest.mark.parametrize("text,reason", [
    ("", "numbers"), ("a", "numbers"), ("1:2", "numbers"), ("1,,2", "numbers"),
    ("1:2:0", "step must be above 0"), ("1:2:-1", "step"), ("2:1:0.5", "starts above its end"),
    ("1:2:*1", "factor must be above 1"), ("0:2:*2", "start above 0"), ("1:inf:1", "finite"),
    ("0,1", "0 is outside"), ("-1", "outside"), ("nan", "outside"), ("1e9", "outside"),
    ("1:2:0.0001", "more than 100"), ("1,1", "twice")])
def test_a_wrong_list_of_scales_says_why(text, reason):
    with pytest.raises(argparse.ArgumentTypeError, match=reason):
        scale_list(text)
