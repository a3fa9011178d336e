"""Images with bands go the whole way: training, resume, test, prediction, export."""
import json

import numpy as np
import pytest
import torch

import inference
import test as test_program
import train
from tests.support.band_images import band_config, band_image, write_band_data
from tests.support.tiff import tiff
from tools import browse, class_statistics, export, pack, plot_rules, run_onnx
from utils.checkpoint.read import read_checkpoint
from utils.errors import ConfigError, DataError
from utils.images.image_io import read_image, read_label


def run_of(config, *more):
    train.main(["-c", str(config), "-d", "cpu", *more])
    return max((config.parent / "saved" / "bands").iterdir())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bands")
    return folder, run_of(band_config(folder))


@pytest.mark.slow
def test_a_checkpoint_states_its_bands(trained):
    _, run = trained
    checkpoint = read_checkpoint(run / "last.pth")
    assert checkpoint["normalization"]["bands"] == {"numbers": [1, 2, 3, 4], "types": ["uint16"]}
    assert len(checkpoint["normalization"]["mean"]) == 4


@pytest.mark.slow
def test_inference_and_the_exported_graph_give_the_same_labels(trained, tmp_path):
    folder, run = trained
    images = str(folder / "data" / "images")
    assert not inference.main(["-r", str(run / "last.pth"), "-i", images, "-o",
                               str(tmp_path / "torch"), "--overlay", "-d", "cpu"])
    export.main(["-r", str(run / "last.pth"), "-o", str(tmp_path / "graph.onnx"), "--images",
                 images])
    assert not run_onnx.main([str(tmp_path / "graph.onnx"), "-i", images, "-o",
                              str(tmp_path / "onnx"), "--overlay"])
    for number in range(6):
        one, other = (read_label(tmp_path / name / f"p{number}.png") for name in ("torch", "onnx"))
        assert np.mean(one != other) < 0.01


@pytest.mark.slow
def test_a_graph_of_torch_export_takes_bands(trained, tmp_path):
    export.main(["-r", str(trained[1] / "last.pth"), "-o", str(tmp_path / "graph.pt2"), "--format",
                 "torch_export", "--size", "64"])


@pytest.mark.slow
def test_large_images_are_streamed_and_arrays_are_read(trained, tmp_path, capsys):
    _, run = trained
    np.save(tmp_path / "a.npy", band_image()[0].transpose(2, 0, 1))
    assert not inference.main(["-r", str(run / "last.pth"), "-i", str(tmp_path / "a.npy"), "-o",
                               str(tmp_path / "out"), "--mode", "sliding", "--crop-size", "32",
                               "-d", "cpu"])
    (tmp_path / "b.tif").write_bytes(tiff(band_image(3)[0]))
    assert inference.main(["-r", str(run / "last.pth"), "-i", str(tmp_path / "b.tif"), "-o",
                           str(tmp_path / "out"), "-d", "cpu"]) == 3
    assert "it has 3 bands, and band 4 is used" in capsys.readouterr().err


@pytest.mark.slow
def test_the_score_of_test_py_is_that_of_the_validation(trained, capsys):
    _, run = trained
    test_program.main(["-r", str(run / "last.pth"), "-d", "cpu", "--json"])
    assert json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_the_difference_of_two_rules_is_drawn(trained, tmp_path):
    plot_rules.main(["-r", str(trained[1] / "last.pth"), "-p", "max,rankdice", "-d", "cpu",
                     "--min-pixels", "1", "-o", str(tmp_path / "rules.png")])
    assert read_image(tmp_path / "rules.png").shape[1] >= 3 * 48 + 8


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_same_weights(tmp_path):
    run = run_of(band_config(tmp_path, iterations=6), "trainer.save_period=1",
                 "trainer.ema=0.9")
    whole = read_checkpoint(run / "last.pth")
    train.main(["-r", str(run / "checkpoint-epoch1.pth"), "-d", "cpu"])
    again = read_checkpoint(run / "last.pth")
    for part in ("model", "ema"):
        assert all(torch.equal(whole[part][key], again[part][key]) for key in whole[part])


@pytest.mark.slow
def test_a_cache_holds_the_bands(tmp_path):
    config = band_config(tmp_path, dtype="float32")
    pack.main(["-c", str(config), "-o", str(tmp_path / "cache"), "--loader", "val"])
    from dataloader.loader import make_loader
    section = json.loads(config.read_text())["val_loader"]
    files = make_loader(section, ignore_index=255).dataset[0]["image"]
    section["args"]["cache"] = str(tmp_path / "cache")
    cached = make_loader(section, ignore_index=255).dataset[0]["image"]
    assert cached.dtype == torch.float32 and torch.equal(files, cached)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_statistics_are_those_of_the_stored_values(tmp_path, capsys, dtype):
    args = write_band_data(tmp_path, dtype=dtype)
    mean, std = args.pop("mean"), args.pop("std")
    class_statistics.main(["--type", "Folder", "--args", json.dumps(args), "--workers", "0",
                           "--json", str(tmp_path / "numbers.json")])
    found = json.loads((tmp_path / "numbers.json").read_text())
    np.testing.assert_allclose(found["mean"], mean, rtol=1e-6)
    np.testing.assert_allclose(found["std"], std, rtol=1e-6)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].startswith('"mean": [') and lines[-1].startswith('"std": [')


def test_browse_shows_the_bands_that_are_asked_for(tmp_path, capsys):
    args = json.dumps(write_band_data(tmp_path))
    browse.main(["--type", "Folder", "--args", args, "-o", str(tmp_path / "sheet.png"), "-n", "2",
                 "--bands", "4,3,2"])
    assert "shown: bands 4, 3, 2 of 4 bands of uint16" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="expected one or three of the bands 1, 2, 3, 4"):
        browse.main(["--type", "Folder", "--args", args, "-o", str(tmp_path / "sheet.png"),
                     "--bands", "5"])


@pytest.mark.parametrize("more, text", [
    ({"augment": True, "transforms": ["RGBShift"]}, "RGBShift is for RGB of 8 bits"),
    ({"augment": True, "border": [1, 2, 3]}, "border is a color of RGB"),
    ({"mean": [1.0]}, "expected a number for each of 4 bands"),
    ({"white": 4095}, "white scales to 8 bits"),
    ({"bands": 600}, "expected 1 to 512 bands")])
def test_what_is_for_rgb_is_refused_by_name(tmp_path, more, text):
    from dataloader.loader import make_loader
    args = {**write_band_data(tmp_path, count=2), **more}
    with pytest.raises(ConfigError, match=text):
        make_loader({"type": "Folder", "args": args}, ignore_index=255)


def test_images_of_other_bands_or_types_are_reported_together(tmp_path):
    from dataloader.loader import make_loader
    args = write_band_data(tmp_path)
    (tmp_path / "images" / "p3.tif").write_bytes(tiff(band_image(3)[0]))
    (tmp_path / "images" / "p4.tif").write_bytes(tiff(band_image(dtype="uint8")[0]))
    with pytest.raises(DataError) as error:
        make_loader({"type": "Folder", "args": args}, ignore_index=255)
    assert "it has 3 bands, and band 4 is used" in str(error.value)
    assert "its values are uint8; those of the others are uint16" in str(error.value)


def test_without_mean_and_std_the_remedy_is_named(tmp_path):
    from dataloader.loader import make_loader
    args = write_band_data(tmp_path, mean=None, std=None)
    dataset = make_loader({"type": "Folder", "args": args}, ignore_index=255).dataset
    with pytest.raises(ConfigError, match="mean and std of the 4 bands are not given"):
        dataset.normalization()


def test_bands_that_are_left_out_are_told(tmp_path, capsys):
    from dataloader.loader import make_loader
    args = write_band_data(tmp_path)
    args |= {"bands": [4, 1], "mean": [1.0, 1.0], "std": [1.0, 1.0]}
    dataset = make_loader({"type": "Folder", "args": args}, ignore_index=255).dataset
    assert "6 of 6 images have more bands than those used (up to 2 more" in capsys.readouterr().err
    values = band_image(seed=0)[0]
    np.testing.assert_array_equal(dataset[0]["image"].numpy(), values.transpose(2, 0, 1)[[3, 0]])


def test_every_geometric_option_keeps_type_and_bands(tmp_path):
    from dataloader.loader import make_loader
    for bands, dtype in ((1, "float32"), (4, "uint16"), (70, "uint8")):
        args = write_band_data(tmp_path / f"{bands}", 2, bands, dtype)
        for more in ({"interpolation": "cubic"}, {"interpolation": "lanczos"},
                     {"border_place": "random"}):
            dataset = make_loader({"type": "Folder", "args": {
                **args, "augment": True, "crop_size": [60, 50], "scale": [0.2, 1.5], "flip": True,
                "vflip": True, "rot90": True, "rotate": 45, "blur": True, "aspect": True,
                "transforms": ["BandJitter", "Cutout"], **more}}, ignore_index=255,
                training=True).dataset
            for epoch in range(4):
                image = dataset[epoch, 0]["image"]
                assert image.shape == (bands, 60, 50) and str(image.dtype) == f"torch.{dtype}"


@pytest.mark.parametrize("dtype, kind", [("uint16", "tif"), ("float32", "npy"), ("uint8", "tif")])
def test_init_measures_bands_and_its_config_gives_them(tmp_path, monkeypatch, capsys, dtype, kind):
    from dataloader.loader import make_loader
    from utils.config.load import load_config
    from utils.config.schema import resolve_config
    args = write_band_data(tmp_path, dtype=dtype)
    if kind == "npy":
        for path in (tmp_path / "images").iterdir():
            number = int(path.stem[1:])
            np.save(path.with_suffix(".npy"), band_image(dtype=dtype, seed=number)[0])
            path.unlink()
    monkeypatch.chdir(tmp_path)
    train.main(["--init", "my.json", "--images", "images", "--labels", "labels"])
    said = capsys.readouterr().out
    assert f"images: 4 bands of {dtype}, used as stored" in said
    config = resolve_config(load_config("my.json"), "my.json")
    dataset = make_loader(config["val_loader"], ignore_index=255).dataset
    assert dataset.in_channels == 4 and str(dataset[0]["image"].dtype) == f"torch.{dtype}"
    np.testing.assert_allclose(dataset.mean, args["mean"], rtol=0.1)
    np.testing.assert_allclose(dataset.std, args["std"], rtol=0.2)


def test_an_image_of_two_files_is_one_of_four_bands(tmp_path, capsys):
    import cv2

    from dataloader.dataset_report import check_dataset
    from dataloader.loader import make_loader
    args = write_band_data(tmp_path, count=3)
    (tmp_path / "depth").mkdir()
    for path in sorted((tmp_path / "images").iterdir()):
        values = band_image(seed=int(path.stem[1:]))[0]
        cv2.imwrite(str(path.with_suffix(".png")), (values[..., 2::-1] // 256).astype(np.uint8))
        cv2.imwrite(str(tmp_path / "depth" / f"{path.stem}.png"), values[..., 3])
        path.unlink()
    args["band_files"] = ["../depth/{stem}.png"]
    dataset = make_loader({"type": "Folder", "args": args}, ignore_index=255).dataset
    image = dataset[0]["image"].numpy()
    assert dataset.bands.types == ("uint8", "uint16") and image.dtype == np.uint16
    np.testing.assert_array_equal(image[3], band_image(seed=0)[0][..., 3])
    assert check_dataset("Folder", args).as_text().endswith("nothing is wrong")
    (tmp_path / "depth" / "p1.png").unlink()
    with pytest.raises(DataError, match="a file of this image is missing"):
        make_loader({"type": "Folder", "args": args}, ignore_index=255)


def test_a_value_for_no_data_is_told(tmp_path, capsys):
    from PIL import Image
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    from dataloader.loader import make_loader
    args = write_band_data(tmp_path, count=2, bands=1, dtype="float32")
    info = ImageFileDirectory_v2()
    info.tagtype[42113], info[42113] = 2, "-9999"
    Image.fromarray(band_image(1, "float32")[0][..., 0]).save(tmp_path / "images" / "p0.tif",
                                                               tiffinfo=info)
    make_loader({"type": "Folder", "args": args}, ignore_index=255)
    said = capsys.readouterr().err
    assert '1 images say which value means "no data" (-9999 in' in said
    assert '"no_data": -9999 with "bands" ignores these pixels' in said
    make_loader({"type": "Folder", "args": {**args, "no_data": -9999}}, ignore_index=255)
    assert not capsys.readouterr().err
    make_loader({"type": "Folder", "args": {**args, "no_data": 0}}, ignore_index=255)
    assert 'ignored are those of 0 ("no_data")' in capsys.readouterr().err


def write_holes(folder, no_data, dtype="float32"):
    """Images of `write_band_data` with a corner of 4x5 pixels without data; its arguments."""
    args = write_band_data(folder, count=3, dtype=dtype)
    for number in range(3):
        values = band_image(dtype=dtype, seed=number)[0]
        values[:4, :5] = no_data
        values[4, 5, 2] = no_data       # in one band only
        (folder / "images" / f"p{number}.tif").write_bytes(
            tiff(values, kind=3 if dtype == "float32" else 1))
    return {**args, "no_data": "nan" if no_data != no_data else no_data}


@pytest.mark.parametrize("no_data, dtype", [(-9999.0, "float32"), (float("nan"), "float32"),
                                            (0, "uint16"), (-3.4028234663852886e38, "float32")])
def test_pixels_without_data_are_ignored_and_seen_as_the_mean(tmp_path, capsys, no_data, dtype):
    from dataloader.loader import make_loader
    args = write_holes(tmp_path, no_data, dtype)
    dataset = make_loader({"type": "Folder", "args": args}, ignore_index=255).dataset
    sample, whole = dataset[1], band_image(dtype=dtype, seed=1)[0].transpose(2, 0, 1)
    seen = dataset.normalization()(sample["image"][None])[0]
    assert seen[:, :4, :5].abs().max() < 1e-3 and abs(seen[2, 4, 5]) < 1e-3
    np.testing.assert_array_equal(sample["image"].numpy()[:, 8:], whole[:, 8:])
    ignored = sample["label"].numpy() == 255
    assert ignored[:4, :5].all() and ignored.sum() == 20        # data in one band is data
    class_statistics.main(["--type", "Folder", "--args", json.dumps(args), "--workers", "0",
                           "--json", str(tmp_path / "numbers.json")])
    found = json.loads((tmp_path / "numbers.json").read_text())
    assert found["ignored_pixels"] == 60
    for key in ("mean", "std"):
        np.testing.assert_allclose(found[key], args[key], rtol=0.02)


def test_geometry_and_a_cache_keep_pixels_without_data(tmp_path):
    from dataloader.loader import make_loader
    args = write_holes(tmp_path / "data", -9999.0)
    section = {"type": "Folder", "args": {**args, "augment": True, "crop_size": [40, 48],
                                          "flip": True, "scale": [1.0, 1.0]}}
    dataset = make_loader(section, ignore_index=255, training=True).dataset
    for epoch in range(4):
        assert (dataset[epoch, 0]["label"] == 255).sum() == 20
    pack.main(["--type", "Folder", "--args", json.dumps(args), "-o", str(tmp_path / "cache")])
    section["args"]["cache"] = str(tmp_path / "cache")
    cached = make_loader(section, ignore_index=255, training=True).dataset
    for key in ("image", "label"):
        assert torch.equal(dataset[3, 1][key], cached[3, 1][key])
    assert np.array_equal(dataset.load_label(0), dataset.load(0)[1])


@pytest.mark.parametrize("more, text", [
    ({"no_data": "none"}, "expected a finite number or \"nan\""),
    ({"no_data": 0, "bands": None, "mean": None, "std": None}, "no_data has no effect without")])
def test_a_wrong_value_for_no_data_is_refused(tmp_path, more, text):
    from dataloader.loader import make_loader
    args = {**write_band_data(tmp_path, count=2), **more}
    with pytest.raises(ConfigError, match=text):
        make_loader({"type": "Folder", "args": args}, ignore_index=255)


@pytest.mark.parametrize("no_data, tag", [(-9999.0, b"-9999"), (float("nan"), None)])
def test_init_finds_out_what_is_no_data(tmp_path, monkeypatch, capsys, no_data, tag):
    args = write_holes(tmp_path, no_data)
    if tag:
        from utils.config import measured_bands
        monkeypatch.setattr(measured_bands, "no_data_of", lambda path: float(tag))
    monkeypatch.chdir(tmp_path)
    train.main(["--init", "my.json", "--images", "images", "--labels", "labels"])
    said = capsys.readouterr().out
    assert "(no data: " in said and "), used as stored" in said
    assert "1 % of the pixels have no data, in 3 of 3 images looked at" in said
    from utils.files.jsonc import read_jsonc
    classes = read_jsonc("my.classes.json")
    assert classes["no_data"] == args["no_data"]
    for key in ("mean", "std"):
        np.testing.assert_allclose(classes[key], args[key], rtol=0.1)


def test_a_report_on_bands_names_their_kind(tmp_path):
    from dataloader.dataset_report import check_dataset
    report = check_dataset("Folder", write_band_data(tmp_path, count=2, bands=5))
    assert "2 TIF 5 bands of uint16" in report.as_text() and not report.problems


def test_mean_and_std_of_rgb_in_a_class_file_are_measured_anew(tmp_path, capsys):
    """As --init writes them, before "bands" and "band_files" are added."""
    from dataloader.loader import make_loader
    args = write_band_data(tmp_path, count=2)
    place = tmp_path / "c.json"
    place.write_text(json.dumps({"names": args.pop("class_names"), "bands": args.pop("bands"),
                                 "mean": [0.4, 0.4, 0.3], "std": [0.1, 0.1, 0.1]}))
    args = {key: value for key, value in args.items() if key not in ("mean", "std")} | {
        "classes": str(place)}
    class_statistics.main(["--type", "Folder", "--args", json.dumps(args), "--workers", "0"])
    assert '"mean": [' in capsys.readouterr().out
    dataset = make_loader({"type": "Folder", "args": args}, ignore_index=255).dataset
    assert dataset.mean == dataset.std == []        # the training asks for them
