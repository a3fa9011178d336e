"""The first config that `train.py --init` writes for two folders."""
import cv2
import numpy as np
import pytest

from dataloader.loader import make_loader
from dataloader.shapes import Shapes
from utils.config import first_config
from utils.config.first_config import make_config
from utils.config.load import load_config
from utils.config.schema import resolve_config
from utils.errors import ConfigError, DataError
from utils.files.jsonc import read_jsonc
from utils.files.whole_file import write_bytes
from utils.images.image_io import write_image, write_label
from utils.images.palette import colorize, voc_palette

VOC_RED = [[0, 0, 0], [129, 0, 0], *voc_palette(21)[2:]]
SCENES = Shapes(size=(40, 64), length=12)


def data(root, store, image="{}.jpg", label="{}.png", folders=("im", "lab"), count=12):
    for i in range(count):
        picture, ids = SCENES.load(i)
        for folder, pattern, write, value in ((folders[0], image, write_image, picture),
                                              (folders[1], label, store, ids)):
            path = root / folder / pattern.format(f"frame{i}")
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path, value)


def indices(path, ids):
    write_label(path, ids, [])


def made(root, monkeypatch, *arguments):
    """Writes my.json in `root`; returns (config, class file, both loaders)."""
    monkeypatch.chdir(root)
    make_config(*arguments, "my.json")
    config = resolve_config(load_config("my.json"))
    loaders = [make_loader(config[key], ignore_index=config["ignore_index"],
                           training=key == "train_loader") for key in ("train_loader",
                                                                       "val_loader")]
    return config, read_jsonc("my.classes.json"), loaders


def test_the_config_works_from_any_folder(tmp_path, monkeypatch, capsys):
    data(tmp_path, indices)
    monkeypatch.chdir(tmp_path)
    make_config("im", "lab", "sub/my")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    config = resolve_config(load_config("../sub/my.json"))
    assert len(make_loader(config["train_loader"], ignore_index=255, training=True).dataset) == 10
    assert capsys.readouterr().err == ""


def yolo(folder, name):
    """One picture with its outline, as YOLO keeps them below one folder."""
    write_image(folder / f"images/{name}.png", np.full((32, 32, 3), 90, np.uint8))
    write_bytes(folder / f"labels/{name}.txt", b"0 0.1 0.1 0.9 0.1 0.9 0.9\n")


@pytest.mark.parametrize("config, annotations", [("my.json", "yolo"), ("yolo/my.json", "."),
                                                 ("sub/my.json", "../yolo")])
def test_images_may_lie_in_the_folder_of_the_annotations(tmp_path, monkeypatch, config,
                                                         annotations):
    """The layout of YOLO, labelme and Supervisely."""
    for folder in ("yolo/images", "yolo/labels", "sub"):
        (tmp_path / folder).mkdir(parents=True)
    for name in "ab":
        yolo(tmp_path / "yolo", name)
    monkeypatch.chdir(tmp_path)
    make_config("yolo/images", "yolo", config)
    assert read_jsonc(config)["train_loader"]["args"]["annotations"] == annotations
    loaded = resolve_config(load_config(config))
    loader = make_loader(loaded["val_loader"], ignore_index=255, training=False)
    assert loader.dataset.load(0)[1].max() == 1


def test_annotations_of_the_same_name_beside_the_config_are_not_taken(tmp_path, monkeypatch):
    for folder, outlines in (("data", b"0 0.1 0.1 0.9 0.1 0.9 0.9\n"), (".", b"")):
        (tmp_path / folder / "texts").mkdir(parents=True)
        for name in "ab":
            write_bytes(tmp_path / folder / f"texts/{name}.txt", outlines)
    (tmp_path / "data/im").mkdir()
    for name in "ab":
        write_image(tmp_path / f"data/im/{name}.png", np.full((32, 32, 3), 90, np.uint8))
    monkeypatch.chdir(tmp_path)
    make_config("data/im", "data/texts", "my.json")
    loaded = resolve_config(load_config("my.json"))
    assert make_loader(loaded["val_loader"], ignore_index=255, training=False).dataset.load(
        0)[1].max() == 1


@pytest.mark.parametrize("most, steps, text", [(2000, 120, "120 epochs"), (3, 3, "3 epochs"),
                                               (1, 1, "of 1 in an epoch")])
def test_the_length_depends_on_the_number_of_images(tmp_path, monkeypatch, most, steps, text):
    data(tmp_path, indices)
    monkeypatch.setattr(first_config, "MOST_STEPS", most)
    config, _, _ = made(tmp_path, monkeypatch, "im", "lab")
    assert config["trainer"]["iterations"] == steps
    assert f"Steps of 8 images, {text}." in (tmp_path / "my.json").read_text()


def test_a_rare_class_gives_a_hint_at_weights(tmp_path, monkeypatch, capsys):
    label = np.zeros((40, 64), np.uint8)
    label[:2, :4], label[20:] = 2, 1
    for i in range(4):
        for folder in ("im", "lab"):
            (tmp_path / folder).mkdir(exist_ok=True)
        write_image(tmp_path / f"im/{i}.png", SCENES.load(i)[0])
        write_label(tmp_path / f"lab/{i}.png", label, [])
    made(tmp_path, monkeypatch, "im", "lab")
    assert "covers 0.31 % of the pixels" in capsys.readouterr().out
    assert "// One class covers 0.31 %" in (tmp_path / "my.json").read_text()


def test_index_labels_give_a_config_that_loads_the_data(tmp_path, monkeypatch, capsys):
    data(tmp_path, indices)
    config, classes, (train, val) = made(tmp_path, monkeypatch, "im", "lab")
    assert len(train.dataset) == 10 and len(val.dataset) == 2
    assert not {s.id for s in train.dataset.samples} & {s.id for s in val.dataset.samples}
    assert classes["names"] == [f"class {i}" for i in range(9)]
    assert train.dataset.num_classes == 9 and "label_ids" not in classes
    assert {"epochs", "save_dir", "monitor", "val_per_epochs", "log_per_iter"} <= config[
        "trainer"].keys()
    batch = next(iter(val))
    assert batch["image"].shape[1:] == (3, 40, 64)
    printed = capsys.readouterr().out
    assert "12 pairs" in printed and "40x64 (12)" in printed and "255 is ignored" in printed
    assert "python train.py --config my.json" in printed


def voc(path, ids, palette=None):
    write_label(path, np.where(ids == 8, 255, ids).astype(np.uint8), palette or voc_palette(21))


def test_labels_with_the_folder_and_palette_of_voc_get_its_names(tmp_path, monkeypatch, capsys):
    folders = "VOC2012/JPEGImages", "VOC2012/SegmentationClass"
    data(tmp_path, voc, folders=folders)
    _, classes, (train, _) = made(tmp_path, monkeypatch, *folders)
    assert classes["names"][:3] == ["background", "aeroplane", "bicycle"]
    assert classes["palette"] == voc_palette(21) and train.dataset.num_classes == 21
    assert "the names of its 21 classes are proposed" in capsys.readouterr().out


def test_a_few_classes_of_voc_have_its_names_too(tmp_path, monkeypatch):
    data(tmp_path, lambda path, ids: voc(path, np.uint8([0, 3, 16])[np.uint8(ids) % 3]),
         folders=("v/JPEGImages", "v/SegmentationClass"))
    _, classes, (train, _) = made(tmp_path, monkeypatch, "v/JPEGImages", "v/SegmentationClass")
    assert classes["names"][16] == "pottedplant" and "label_ids" not in classes
    assert train.dataset.num_classes == 21


@pytest.mark.parametrize("train, val, printed", [
    (range(9), range(9, 12), "split: 9 train, 3 val, by the lists of v/ImageSets/Segmentation"),
    (range(9), range(10, 12), "1 of 12 images are in none of them"),
    (range(9), range(8, 12), "1 of 12 images are in none of them, or in several")])
def test_the_lists_of_voc_are_its_split(tmp_path, monkeypatch, capsys, train, val, printed):
    data(tmp_path, voc, folders=("v/JPEGImages", "v/SegmentationClass"))
    (tmp_path / "v/ImageSets/Segmentation").mkdir(parents=True)
    for name, numbers in (("train", train), ("val", val)):
        write_bytes(tmp_path / f"v/ImageSets/Segmentation/{name}.txt",
                    "".join(f"frame{i}\r\n" for i in numbers).encode())
    _, _, loaders = made(tmp_path, monkeypatch, "v/JPEGImages", "v/SegmentationClass")
    assert printed in capsys.readouterr().out
    assert sum(len(loader.dataset) for loader in loaders) == 12


@pytest.mark.parametrize("folder, palette", [("labels", None), ("SegmentationClass", VOC_RED)])
def test_the_palette_of_voc_alone_gives_no_names(tmp_path, monkeypatch, folder, palette):
    data(tmp_path, lambda path, ids: voc(path, ids, palette), folders=("im", folder))
    assert made(tmp_path, monkeypatch, "im", folder)[1]["names"][1] == "class 1"


def test_names_in_class_names_txt_are_taken(tmp_path, monkeypatch, capsys):
    data(tmp_path, voc, folders=("v/JPEGImages", "v/SegmentationClass"))
    names = ["_background_", *"abcdefgh"]
    (tmp_path / "v" / "class_names.txt").write_text("\n".join(names))
    _, classes, _ = made(tmp_path, monkeypatch, "v/JPEGImages", "v/SegmentationClass")
    assert classes["names"] == names
    assert "the names are those of v/class_names.txt" in capsys.readouterr().out
    (tmp_path / "v" / "class_names.txt").write_text("too\nfew")
    for path in tmp_path.glob("my.*"):
        path.unlink()
    assert made(tmp_path, monkeypatch, "v/JPEGImages", "v/SegmentationClass")[1]["names"] != names


def test_binary_masks_of_0_and_255_get_two_classes(tmp_path, monkeypatch, capsys):
    data(tmp_path, lambda path, ids: indices(path, np.uint8(ids == 0) * 255),
         label="{}_mask.png")
    config, classes, (train, _) = made(tmp_path, monkeypatch, "im", "lab")
    assert classes["names"] == ["background", "foreground"] and classes["label_ids"] == [0, 255]
    assert config["train_loader"]["args"]["label_ending"] == "_mask"
    assert set(train.dataset[0]["label"].unique().tolist()) <= {0, 1, 255}
    assert "binary masks" in capsys.readouterr().out


def test_jpeg_masks_of_black_and_white_are_divided_in_the_middle(tmp_path, monkeypatch, capsys):
    """As Kvasir-SEG has them."""
    data(tmp_path, lambda path, ids: write_image(path, np.uint8(ids == 0) * 255), label="{}.jpg")
    config, classes, (train, val) = made(tmp_path, monkeypatch, "im", "lab")
    assert classes["names"] == ["background", "foreground"] and "label_ids" not in classes
    assert config["train_loader"]["args"]["label_threshold"] == 128
    for sample in val.dataset.samples:
        number = int(sample.image.stem.removeprefix("frame"))
        wrong = val.dataset.read_label(sample.label) != (SCENES.load(number)[1] == 0)
        assert wrong.mean() < 0.01
    assert "gray 128 to 255 is the foreground" in capsys.readouterr().out


def test_jpeg_labels_of_more_values_are_refused(tmp_path, monkeypatch):
    data(tmp_path, lambda path, ids: write_image(path, np.uint8(ids) * 25), label="{}.jpg")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="the 12 labels are .jpg files"):
        make_config("im", "lab", "my.json")


def test_values_with_gaps_become_classes_in_their_order(tmp_path, monkeypatch):
    data(tmp_path, lambda path, ids: indices(path, np.uint8([200, 40, 7])[np.uint8(ids) % 3]))
    _, classes, (train, _) = made(tmp_path, monkeypatch, "im", "lab")
    assert classes["label_ids"] == [7, 40, 200] and train.dataset.num_classes == 3


def test_color_labels_give_a_palette(tmp_path, monkeypatch):
    colors = [[0, 0, 0], [250, 0, 0], [0, 0, 250]]
    data(tmp_path, lambda path, ids: write_image(path, colorize(np.uint8(ids) % 3, colors)))
    _, classes, (train, _) = made(tmp_path, monkeypatch, "im", "lab")
    assert sorted(classes["palette"]) == sorted(colors)
    assert train.dataset.num_classes == 3
    train.dataset[0]


def test_sub_folders_train_and_val_are_the_split(tmp_path, monkeypatch):
    for part in ("train", "val"):
        data(tmp_path, indices, folders=(f"d/images/{part}", f"d/labels/{part}"), count=3)
    _, _, (train, val) = made(tmp_path, monkeypatch, "d/images", "d/labels")
    assert [s.id for s in val.dataset.samples] == [f"val/frame{i}" for i in range(3)]
    assert all(s.id.startswith("train/") for s in train.dataset.samples)


def test_image_and_label_names_can_have_different_endings(tmp_path, monkeypatch):
    data(tmp_path, indices, image="{}_rgb.png", label="{}_gt.png")
    _, _, (train, _) = made(tmp_path, monkeypatch, str(tmp_path / "im"), "lab")
    assert len(train.dataset) == 10


@pytest.mark.parametrize("label, pattern", [
    ("{0}_mask.png", "masks/{stem}_mask.png"), ("{0}/{0}_m.png", "masks/{stem}/{stem}_m.png"),
    ("{0}/by_ann_7.png", "masks/{stem}/by_ann_*.png")])
def test_labels_can_be_named_by_the_stem_of_the_image(tmp_path, monkeypatch, label, pattern):
    data(tmp_path, indices, label=label, folders=("im", "masks"))
    data(tmp_path, indices, label="other/{0}.png", folders=("im", "masks"))
    config, _, (train, _) = made(tmp_path, monkeypatch, "im", pattern)
    assert len(train.dataset) == 10
    assert config["train_loader"]["args"]["label_pattern"] == pattern.removeprefix("masks/")


def test_images_without_a_usable_label_are_left_out(tmp_path, monkeypatch, capsys):
    data(tmp_path, indices)
    (tmp_path / "lab" / "frame3.png").unlink()
    write_bytes(tmp_path / "im" / "frame4.jpg", b"broken")
    indices(tmp_path / "lab" / "frame5.png", np.zeros((3, 3), np.uint8))
    _, _, (train, val) = made(tmp_path, monkeypatch, "im", "lab")
    assert len(train.dataset) + len(val.dataset) == 9
    assert "3 images without a usable label" in capsys.readouterr().out


def test_large_images_are_trained_small_and_validated_at_that_size(tmp_path, monkeypatch):
    picture, ids = Shapes(size=(512, 1024), length=1).load(0)
    for i in range(3):
        for folder, write, value in (("im", write_image, picture), ("lab", indices, ids)):
            (tmp_path / folder).mkdir(exist_ok=True)
            write(tmp_path / folder / f"{i}.png", value)
    _, _, (train, val) = made(tmp_path, monkeypatch, "im", "lab")
    assert next(iter(val))["image"].shape == (1, 3, 256, 512)
    assert train.dataset[0]["image"].shape == (3, 256, 512)


def test_the_same_data_is_split_the_same_way(tmp_path, monkeypatch):
    data(tmp_path, indices)
    monkeypatch.chdir(tmp_path)
    make_config("im", "lab", "one.json")
    make_config("im", "lab", "two.json")
    assert (tmp_path / "one.val.txt").read_text() == (tmp_path / "two.val.txt").read_text()


def test_nothing_is_overwritten(tmp_path, monkeypatch):
    data(tmp_path, indices)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.classes.json").write_text("{}")
    with pytest.raises(ConfigError, match="my.classes.json exists"):
        make_config("im", "lab", "my.json")
    assert (tmp_path / "my.classes.json").read_text() == "{}"


def test_photographs_instead_of_labels_are_an_error(tmp_path, monkeypatch):
    data(tmp_path, lambda path, ids: write_image(path, SCENES.load(0)[0]))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="not a label map"):
        make_config("im", "lab", "my.json")
    with pytest.raises(DataError, match="no such folder"):
        make_config("im", "nowhere", "my.json")
    assert not list(tmp_path.glob("my*"))


def test_bits_beyond_8_are_used_and_nothing_else_is_said_of_them(tmp_path, monkeypatch, capsys):
    """A microscope's 12 bits in 16."""
    data(tmp_path, lambda path, ids: write_label(path, ids, []))
    for path in (tmp_path / "im").glob("*"):
        gray = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE).astype(np.uint16) * 16
        path.unlink()
        cv2.imwrite(str(path.with_suffix(".png")), gray)
    monkeypatch.chdir(tmp_path)
    make_config("im", "lab", "my.json")
    out = capsys.readouterr().out
    assert "one band of uint16, used as stored" in out
    assert "more than 8 bits" not in out and "white" not in out


def test_alpha_that_is_not_used_is_told_once(tmp_path, monkeypatch, capsys):
    data(tmp_path, indices, image="{}.png")
    for path in (tmp_path / "im").glob("*"):
        picture = cv2.imread(str(path))
        cv2.imwrite(str(path), np.dstack([picture, picture[..., 0]]))
    monkeypatch.chdir(tmp_path)
    make_config("im", "lab", "my.json")
    assert capsys.readouterr().out.count("12 of 12 images have a band of alpha") == 1


def test_a_damaged_label_is_named_with_what_to_do(tmp_path, monkeypatch):
    data(tmp_path, lambda path, ids: write_label(path, ids, []))
    monkeypatch.chdir(tmp_path)
    path = sorted((tmp_path / "lab").glob("*"))[0]
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=f"truncated PNG(.|\n)*{path.name}(.|\n)*or remove it"):
        make_config("im", "lab", "my.json")


def smoothed(path, values):
    write_image(path, cv2.GaussianBlur(values, (0, 0), 1))


@pytest.mark.parametrize("colors, text", [
    ([0, 255], "12 of 12 labels were smoothed .* their values 0, 255 lie"),
    ([[0, 0, 0], [250, 0, 0]], r"their colors \(0, 0, 0\), \(250, 0, 0\) lie"),
])
def test_smoothed_labels_are_refused(colors, text, tmp_path, monkeypatch):
    data(tmp_path, lambda path, ids: smoothed(path, np.array(colors, np.uint8)[np.uint8(ids == 0)]))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=text) as caught:
        make_config("im", "lab", "my.json")
    assert "without smoothing" in caught.value.fix and not list(tmp_path.glob("my*"))


def test_a_few_smoothed_labels_do_not_stop_it(tmp_path, monkeypatch):
    data(tmp_path, indices)
    path = tmp_path / "lab" / "frame0.png"
    smoothed(path, np.uint8(SCENES.load(0)[1] == 0) * np.uint8(8))
    made(tmp_path, monkeypatch, "im", "lab")


@pytest.mark.parametrize("values, names, ids, ignored, text", [
    ([0, 128, 255], 3, [0, 128, 255], None, "255 is a class"),
    ([0, 85, 170, 255], 4, [0, 85, 170, 255], None, "255 is a class"),
    ([0, 1, 255], 2, None, None, "255 is ignored"),
    ([7, 8, 11, 255], 3, [7, 8, 11], [255], "255 is ignored"),
    ([0, 64, 255], 3, [0, 64, 255], None, "255 is a class"),
    ([4, 40, 255], 2, [4, 40], [255], "255 is ignored"),
    ([1, 2, 3, 255], 4, None, None, "255 is ignored"),
    ([3, 40, 200], 3, [3, 40, 200], None, "values 3"),
    ([0, 128], 2, [0, 128], None, "128 is the foreground"),
    ([0, 1], 2, None, None, "values 0"),
])
def test_what_the_value_255_means_is_decided_by_the_others(values, names, ids, ignored, text,
                                                           tmp_path, monkeypatch, capsys):
    data(tmp_path, lambda path, label: indices(path, np.uint8(values)[np.uint8(label) %
                                                                      len(values)]))
    _, classes, (train, _) = made(tmp_path, monkeypatch, "im", "lab")
    assert len(classes["names"]) == names and classes.get("label_ids") == ids
    assert classes.get("ignore_ids") == ignored and text in capsys.readouterr().out
    stored = np.uint8(values)[np.uint8(SCENES.load(0)[1]) % len(values)]
    sample = next(s for s in range(len(train.dataset)) if train.dataset.samples[s].id == "frame0")
    expected = [value if not ids else ids.index(value) if value in ids else 255
                for value in np.unique(stored).tolist()]
    train.dataset.augmentation = None
    assert train.dataset[sample]["label"].unique().tolist() == sorted(expected)


@pytest.mark.parametrize("values", [[0, 1, 2], [0, 100, 255], [0, 255]])
def test_ids_in_three_equal_channels_are_ids(values, tmp_path, monkeypatch):
    table = np.uint8(values)

    def store(path, ids):
        write_image(path, np.repeat(table[np.uint8(ids) % len(values)][..., None], 3, 2))

    data(tmp_path, store)
    _, classes, (train, _) = made(tmp_path, monkeypatch, "im", "lab")
    assert classes["label_ids"] == values
    train.dataset.augmentation = None
    seen = {value for i in range(10) for value in train.dataset[i]["label"].unique().tolist()}
    assert seen == set(range(len(values)))


def test_labels_of_one_value_are_refused(tmp_path, monkeypatch):
    data(tmp_path, lambda path, ids: indices(path, np.uint8(ids) * 0))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="every pixel of the labels has the value 0"):
        make_config("im", "lab", "my.json")


def test_label_maps_of_many_classes_are_accepted(tmp_path, monkeypatch):
    draw = np.random.default_rng(0)
    data(tmp_path, lambda path, ids: indices(path, np.kron(
        draw.permutation(160)[:40].reshape(5, 8), np.ones((8, 8), int)).astype(np.uint8)))
    _, classes, _ = made(tmp_path, monkeypatch, "im", "lab")
    assert len(classes["names"]) > 150


def test_folds_give_lists_for_each_of_them_and_a_study(tmp_path, monkeypatch, capsys):
    data(tmp_path, indices, image="v{}.jpg", label="v{}.png")
    monkeypatch.chdir(tmp_path)
    make_config("im", "lab", "my.json", r"(\d)$", 3)
    study = read_jsonc("my.folds.json")
    held_out = []
    for number in "123":
        config = resolve_config(load_config("my.json", study["folds"][number]))
        train, val = (make_loader(config[key], ignore_index=255, training=key == "train_loader")
                      .dataset for key in ("train_loader", "val_loader"))
        ids = [{sample.id for sample in dataset.samples} for dataset in (train, val)]
        assert len(ids[0] | ids[1]) == 12 and not ids[0] & ids[1]
        groups = [{name[-1] for name in side} for side in ids]      # frame1 and frame11 are one
        assert not groups[0] & groups[1]
        held_out += ids[1]
    assert len(held_out) == len(set(held_out)) == 12
    printed = capsys.readouterr().out
    assert "3 folds of 4, 4, 4 images; 10 groups" in printed
    assert "python -m tools.study my.folds.json" in printed
    with pytest.raises(ConfigError, match="exists"):
        make_config("im", "lab", "my.json", folds=2)
