"""tools.pack and the cache that it writes."""
import json
import os
import pickle
import shutil
import threading

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from dataloader.augmentation.transforms import Augmentation
from dataloader.folder import Folder
from dataloader.loader import build_loader, make_loader
from dataloader.pixel_cache import CachePlan, PixelCache, use_cache
from dataloader.shapes import Shapes
from tests.dataloader.test_datasets import FIXTURES, READINGS, make_fixtures, needs_fixtures, read
from tests.dataloader.test_loader import batches
from tools.pack import main
from utils.cli.console import run
from utils.errors import ConfigError, DataError
from utils.files import whole_file
from utils.images.image_io import write_image, write_label

AUGMENT = Augmentation(crop_size=10, augment=True, flip=True, rotate=True, blur=True)


def pictures(root, sizes=((12, 17), (9, 11), (12, 17), (30, 8), (12, 17), (5, 5), (21, 13))):
    """Write random images of odd sizes; returns the arguments of a Folder."""
    for name in ("images", "labels"):
        (root / name).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(1)
    for i, size in enumerate(sizes):
        write_image(root / "images" / f"{i}.png", rng.integers(0, 256, (*size, 3), np.uint8))
        write_label(root / "labels" / f"{i}.png", rng.integers(0, 3, size).astype(np.uint8), [])
    return {"data_dir": str(root), "num_classes": 3}


def packed(args, folder, *options, name="Folder"):
    return run(main, ["--type", name, "--args", json.dumps(args), "-o", str(folder), *options])


@pytest.fixture
def cached(tmp_path):
    """(arguments of the dataset, folder of its cache)."""
    args = pictures(tmp_path / "data")
    assert packed(args, tmp_path / "cache") == 0
    return args, tmp_path / "cache"


def few_per_file(monkeypatch, samples=2):
    monkeypatch.setattr("dataloader.pixel_cache.SHARD_BYTES", 4 * samples * 180)


def test_every_sample_of_the_cache_equals_the_files(cached):
    args, folder = cached
    files, cache = Folder(**args), use_cache(Folder(**args), str(folder))
    for index in range(len(files)):
        for mine, other in zip(cache.cache.load(index), files.load(index), strict=True):
            assert mine.dtype == other.dtype and np.array_equal(mine, other)
            assert not mine.flags.writeable
        assert cache[index]["image"].equal(files[index]["image"])
        assert cache.load_label(index).tolist() == files.load_label(index).tolist()


@pytest.mark.filterwarnings("error")
def test_images_read_from_a_cache_may_be_changed(cached):
    args, folder = cached
    image = use_cache(Folder(**args), str(folder))[1, 0]["image"]
    image += 1
    assert not image.equal(use_cache(Folder(**args), str(folder))[1, 0]["image"])


def test_files_of_every_kind_are_packed_as_the_dataset_reads_them(tmp_path):
    args = pictures(tmp_path, [(6, 8)] * 5)
    images, labels = tmp_path / "images", tmp_path / "labels"
    gray = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8))
    gray.save(images / "0.png")
    turned = Image.fromarray(np.arange(144, dtype=np.uint8).reshape(6, 8, 3))
    tag = turned.getexif()
    tag[0x0112] = 6
    (images / "1.png").unlink()
    turned.save(images / "1.jpg", exif=tag)
    Image.fromarray(np.full((6, 8), 1, np.uint16)).save(labels / "2.png")
    (images / "3.png").unlink()
    turned.convert("CMYK").save(images / "3.jpg")
    assert packed(args, tmp_path / "cache") == 0
    files, cache = Folder(**args), use_cache(Folder(**args), str(tmp_path / "cache")).cache
    assert [cache.load(i)[1].dtype.itemsize for i in range(5)] == [1, 1, 2, 1, 1]
    assert cache.load(1)[0].shape == (8, 6, 3)
    for index in range(5):
        assert all(map(np.array_equal, cache.load(index), files.load(index)))


@needs_fixtures
@pytest.mark.slow       # makes and packs every layout of the sources
def test_every_layout_reads_the_same_from_a_cache_and_from_its_files(tmp_path):
    fixtures = make_fixtures(tmp_path / "fixtures", FIXTURES)
    for number, reading in enumerate(READINGS):
        files = read(fixtures, reading)
        CachePlan(files, tmp_path / str(number)).write()
        cache = use_cache(read(fixtures, reading), str(tmp_path / str(number)))
        for index in range(len(files)):
            assert all(map(np.array_equal, cache.cache.load(index), files.load(index))), reading
            for key in ("image", "label"):
                assert cache[index][key].equal(files[index][key]), reading


def test_batches_from_a_cache_equal_those_of_the_files_for_any_number_of_workers(cached):
    # Two seconds: processes are started for every number of workers.
    args, folder = cached
    section = {"type": "Folder", "args": {
        **args, "batch_size": 2, "shuffle": True, "crop_size": 10, "augment": True, "flip": True,
        "rotate": True, "scale": True}}

    def loader(workers, **cache):
        return make_loader({**section, "args": {**section["args"], "num_workers": workers,
                                                **cache}}, ignore_index=255, training=True)

    expected = [batches(loader(0), epoch) for epoch in (1, 2)]
    for workers in (0, 1, 2, 4):
        from_cache = loader(workers, cache=str(folder))
        assert [batches(from_cache, epoch) for epoch in (1, 2)] == expected
        if workers in (0, 2):
            for start in range(len(from_cache) + 1):
                assert batches(from_cache, 2, start) == expected[1][start:]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_read_from_a_cache_what_one_process_reads_from_files(world, cached):
    args, folder = cached
    dataset = Folder(**args, augmentation=AUGMENT)
    single = build_loader(dataset, 6, True, 0, training=True)
    ranks = [build_loader(use_cache(Folder(**args, augmentation=AUGMENT), str(folder)),
                          6 // world, True, 0, training=True, rank=rank, world_size=world)
             for rank in range(world)]
    whole, *parts = (next(iter(one)) for one in (single, *ranks))
    together = {name: image for one in parts for name, image in
                zip(one["id"], one["image"], strict=True)}
    assert together.keys() == set(whole["id"])
    assert all(together[name].equal(image)
               for name, image in zip(whole["id"], whole["image"], strict=True))


def test_a_mixture_reads_each_part_from_the_cache_of_the_part(cached):
    args, folder = cached
    parts = [{"type": "Folder", "args": {**args, "cache": str(folder)}},
             {"type": "Folder", "args": args}]
    mixture = make_loader({"type": "Mixture", "args": {"parts": parts, "num_workers": 0}},
                          ignore_index=255).dataset
    assert mixture.parts[0].cache and mixture.parts[1].cache is None
    assert mixture[0]["image"].equal(mixture[7]["image"])
    assert all(map(np.array_equal, mixture.load(3), mixture.load(10)))
    with pytest.raises(ConfigError, match="a mixture has no cache"):
        use_cache(mixture, str(folder))


def test_pack_reads_the_caches_from_a_config(tmp_path, capsys):
    # One or two seconds: the whole tool, with a config.
    parts = [{"type": "Shapes", "args": {"split": split, "length": 3, "size": [32, 48],
                                         "cache": str(tmp_path / split)}}
             for split in ("train", "test")]
    options = ["-c", "config.json", "train_loader.type=Mixture",
               f"train_loader.args.parts={json.dumps(parts)}"]
    assert run(main, options) == 0
    assert capsys.readouterr().out.count("wrote 3 of 3 samples") == 2
    section = {"type": "Mixture", "args": {"parts": parts, "num_workers": 0}}
    assert len(make_loader(section, ignore_index=255).dataset) == 6
    assert run(main, [*options, "--verify"]) == 0
    assert run(main, [*options, "-o", str(tmp_path / "x")]) == 2
    assert "each needs another cache" in capsys.readouterr().err
    assert run(main, ["-c", "config.json"]) == 2
    assert "no folder for the cache" in capsys.readouterr().err


def test_a_cache_can_be_pickled_to_other_processes(cached):
    args, folder = cached
    dataset = use_cache(Folder(**args), str(folder))
    other = pickle.loads(pickle.dumps(dataset))
    assert other[2]["image"].equal(dataset[2]["image"])


def test_drawn_images_are_packed_too(tmp_path):
    args = {"length": 6, "size": [32, 48]}
    assert packed(args, tmp_path / "cache", name="Shapes") == 0
    cache = use_cache(Shapes(length=6, size=(32, 48)), str(tmp_path / "cache"))
    assert cache[5]["image"].equal(Shapes(length=6, size=(32, 48))[5]["image"])
    with pytest.raises(DataError, match="other pixels of train_00000"):
        use_cache(Shapes(length=6, size=(32, 48), seed=1), str(tmp_path / "cache"))


def test_a_second_run_has_nothing_to_do(cached, capsys):
    args, folder = cached
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert packed(args, folder) == 0
    assert "is complete: 7 samples" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_a_dry_run_writes_nothing(tmp_path, capsys):
    args = pictures(tmp_path / "data")
    assert packed(args, tmp_path / "cache", "--dry-run") == 0
    out = capsys.readouterr().out
    assert "would write 7 of 7 samples in 1 of 1 files" in out and "are free" in out
    assert not (tmp_path / "cache").exists()


def test_an_interrupted_run_continues_and_its_part_is_not_a_cache(tmp_path, monkeypatch):
    few_per_file(monkeypatch)
    args = pictures(tmp_path / "data")
    folder = tmp_path / "cache"
    plan, done = CachePlan(Folder(**args), folder), []

    def stop():
        done.append(1)
        if len(done) == 5:
            raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        plan.write(1, stop)
    whole = sorted(path.name for path in folder.iterdir())
    assert whole and all(name.startswith("pixels-") for name in whole)      # no temporary file
    with pytest.raises(DataError, match="not complete"):
        PixelCache(folder, Folder(**args))
    (folder / f".part-{whole_file._host()}-0123456789abcdef").write_bytes(b"x")
    rest = CachePlan(Folder(**args), folder)
    assert rest.todo == plan.todo[len(whole):] and not rest.complete
    rest.write()
    assert CachePlan(Folder(**args), folder).complete
    assert not list(folder.glob(".part-*"))
    PixelCache(folder, Folder(**args))


def test_the_message_of_an_interruption_tells_how_to_continue(tmp_path, monkeypatch, capsys):
    def stop(*_):
        raise KeyboardInterrupt
    monkeypatch.setattr(CachePlan, "write", stop)
    assert packed(pictures(tmp_path / "data"), tmp_path / "cache") == 130
    assert "the same command resumes" in capsys.readouterr().err


def test_only_what_has_changed_is_written_again(tmp_path, monkeypatch, capsys):
    few_per_file(monkeypatch)
    args, folder = pictures(tmp_path / "data"), tmp_path / "cache"
    assert packed(args, folder) == 0
    files = len(CachePlan(Folder(**args), folder).shards)
    assert files > 2
    write_label(tmp_path / "data" / "labels" / "6.png", np.full((21, 13), 2, np.uint8), [])
    plan = CachePlan(Folder(**args), folder)
    assert plan.todo == [files - 1]
    capsys.readouterr()
    assert packed(args, folder) == 0
    assert (use_cache(Folder(**args), str(folder)).load_label(6) == 2).all()
    for name in "23456":
        (tmp_path / "data" / "images" / f"{name}.png").unlink()
        (tmp_path / "data" / "labels" / f"{name}.png").unlink()
    assert packed(args, folder) == 0
    assert len(list(folder.glob("pixels-*.bin"))) < files
    assert len(use_cache(Folder(**args), str(folder))) == 2


def test_a_cache_also_fits_a_subset_of_the_packed_samples(cached, tmp_path):
    args, folder = cached
    (tmp_path / "data" / "few.txt").write_text("4\n1\n")
    few = use_cache(Folder(**args, split="few"), str(folder))
    assert few[0]["image"].equal(Folder(**args)[4]["image"])


def refused(args, folder, match):
    with pytest.raises(DataError, match=match) as caught:
        dataset = use_cache(Folder(**args), str(folder))
        for index in range(len(dataset)):
            dataset[index]
    assert "tools.pack" in caught.value.fix and str(folder) in caught.value.where
    assert "Traceback" not in str(caught.value)


def test_a_changed_file_makes_the_cache_stale(cached):
    args, folder = cached
    path = os.path.join(args["data_dir"], "images", "3.png")
    stat = os.stat(path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    refused(args, folder, "1 of 7 samples of data all have changed .*images/3.png")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    use_cache(Folder(**args), str(folder))
    with open(path, "ab") as file:
        file.write(b"x")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    refused(args, folder, "have changed")


def test_a_new_file_makes_the_cache_stale(cached):
    args, folder = cached
    for name in ("images", "labels"):
        place = os.path.join(args["data_dir"], name)
        shutil.copy(os.path.join(place, "0.png"), os.path.join(place, "new.png"))
    refused(args, folder, "1 of 7|1 of 8 samples of data all are not in the cache: images/new")


def test_the_cache_of_another_dataset_is_refused(cached, tmp_path):
    _, folder = cached
    refused(pictures(tmp_path / "other", [(12, 17)] * 3), folder, "have changed|not in the cache")


def test_labels_of_another_palette_are_not_read_from_the_cache(tmp_path):
    args = pictures(tmp_path / "data", [(6, 8)] * 3)
    colors = [[0, 0, 0], [255, 0, 0], [0, 255, 0]]
    for i in range(3):
        ids = np.arange(48).reshape(6, 8) % 3
        Image.fromarray(np.array(colors, np.uint8)[ids]).save(
            tmp_path / "data" / "labels" / f"{i}.png")
    args["palette"] = colors
    folder = tmp_path / "cache"
    assert packed(args, folder) == 0
    use_cache(Folder(**args), str(folder))
    refused({**args, "palette": colors[::-1]}, folder, "another palette")


def test_ids_are_mapped_after_the_cache(cached):
    args, folder = cached
    other = {"label_map": {"0": 1, "1": 0, "2": "ignore"}}
    mapped = use_cache(Folder(**args, **other), str(folder))
    assert mapped[0]["label"].equal(Folder(**args, **other)[0]["label"])


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"3", b"\x80\x04K\x01.",
                                     b'{"format": "segwright pixel cache", "shards": "x"}',
                                     b'{"format": "segwright pixel cache", "shards": []}'])
def test_the_index_of_another_program_is_not_a_cache(content, cached):
    args, folder = cached
    (folder / "cache.json").write_bytes(content)
    refused(args, folder, "damaged or foreign|version None")


def test_a_missing_file_and_a_missing_folder_are_named(cached, tmp_path):
    args, folder = cached
    refused(args, tmp_path / "nothing", "no cache is here")
    (folder / "pixels-00000.bin").unlink()
    refused(args, folder, "cannot be read")


@settings(max_examples=40, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_flipped_bit_of_a_file_is_found(cached, place, bit):
    args, folder = cached
    path = folder / "pixels-00000.bin"
    whole = path.read_bytes()
    changed = bytearray(whole)
    changed[int(place * len(whole))] ^= 1 << bit
    path.write_bytes(changed)
    try:
        same = padding_only(args, folder)
        if not same:
            refused(args, folder, "damaged or foreign|version")
    finally:
        path.write_bytes(whole)


def padding_only(args, folder):
    """Whether every sample still equals the files: the bit lies between two samples."""
    try:
        dataset = use_cache(Folder(**args), str(folder))
        return all(dataset[i]["image"].equal(Folder(**args)[i]["image"])
                   and dataset[i]["label"].equal(Folder(**args)[i]["label"]) for i in range(7))
    except DataError:
        return False


@pytest.mark.parametrize("kept", [0, 10, 100, -1])
def test_a_truncated_file_is_refused(kept, cached):
    args, folder = cached
    path = folder / "pixels-00000.bin"
    path.write_bytes(path.read_bytes()[:kept])
    refused(args, folder, "damaged or foreign")
    assert packed(args, folder, "--verify") == 3
    assert packed(args, folder) == 0                # writing it again repairs it
    assert packed(args, folder, "--verify") == 0


def test_verify_reads_every_pixel(cached, capsys):
    args, folder = cached
    assert packed(args, folder, "--verify") == 0
    assert "whole: 7 samples" in capsys.readouterr().out
    path = folder / "pixels-00000.bin"
    changed = bytearray(path.read_bytes())
    changed[200] ^= 1
    path.write_bytes(changed)
    assert packed(args, folder, "--verify") == 3
    assert "have changed since they were written" in (error := capsys.readouterr().err)
    assert "delete this file" in error
    path.unlink()
    assert packed(args, folder) == packed(args, folder, "--verify") == 0


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch, capsys):
    args = pictures(tmp_path / "data")

    def full(descriptor):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "fsync", full)
    assert packed(args, tmp_path / "cache") == 3
    error = capsys.readouterr().err
    assert "No space left" in error and "pixels-00000.bin" in error


def test_a_folder_with_other_files_is_not_changed(tmp_path, capsys):
    args = pictures(tmp_path / "data")
    assert packed(args, tmp_path / "data" / "images") == 3
    assert "contains other files, such as 0.png" in capsys.readouterr().err
    (tmp_path / "file").write_text("x")
    assert packed(args, tmp_path / "file") == 3
    assert len(list((tmp_path / "data" / "images").iterdir())) == 7


def test_a_full_disk_is_reported_before_anything_is_written(tmp_path, monkeypatch, capsys):
    args = pictures(tmp_path / "data")
    monkeypatch.setattr("tools.pack._room", lambda folder: 1000)
    assert packed(args, tmp_path / "cache") == 3
    assert "are free" in capsys.readouterr().err and not (tmp_path / "cache").exists()


def test_a_broken_file_stops_packing_and_names_itself(tmp_path, capsys):
    args = pictures(tmp_path / "data")
    path = tmp_path / "data" / "images" / "2.png"
    data = path.read_bytes()
    path.write_bytes(data[:60] + bytes(len(data) - 72) + data[-12:])
    assert packed(args, tmp_path / "cache") == 3
    assert "2.png" in capsys.readouterr().err
    assert not list((tmp_path / "cache").glob(".part-*"))


@pytest.mark.parametrize("args, status", [
    ('{"data_dir": "x", "splt": "y"}', 2), ("[1]", 2), ('{"split": 3, "data_dir": "x"}', 2),
    ("{", 2), ('{"data_dir": "nowhere", "num_classes": 2}', 3), ("{}", 2)])
def test_unusable_arguments_give_one_message(args, status, tmp_path, capsys):
    assert run(main, ["--type", "Folder", "--args", args, "-o", str(tmp_path / "c")]) == status
    assert capsys.readouterr().err.startswith("error: ")


def test_threads_may_pack_and_read(tmp_path):
    args = pictures(tmp_path / "data")
    assert packed(args, tmp_path / "cache", "--workers", "4") == 0
    dataset, found = use_cache(Folder(**args), str(tmp_path / "cache")), []
    threads = [threading.Thread(target=lambda: found.append(dataset[3]["image"]))
               for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and all(torch.equal(one, found[0]) for one in found)


def test_no_pickle_is_read():
    import dataloader.pixel_cache as module
    with open(module.__file__) as file:
        source = file.read()
    assert "import pickle" not in source and "allow_pickle" not in source


def test_a_cache_belongs_to_the_range_it_was_decoded_with(tmp_path):
    args = pictures(tmp_path / "data")
    for path in (tmp_path / "data" / "images").iterdir():
        write_image(path, np.random.default_rng(1).integers(0, 4096, (9, 9, 3)).astype(np.uint16))
        write_label(tmp_path / "data" / "labels" / path.name, np.zeros((9, 9), np.uint8), [])
    wide = {**args, "white": 4095}
    assert packed(wide, tmp_path / "cache") == 0
    dataset = Folder(**wide)
    np.testing.assert_array_equal(PixelCache(tmp_path / "cache", dataset).load(0)[0],
                                  dataset.load(0)[0])
    for other in (args, {**args, "white": 2000}):
        with pytest.raises(DataError, match="decoded in another way"):
            PixelCache(tmp_path / "cache", Folder(**other))


@pytest.mark.parametrize("read_before", [True, False])
@pytest.mark.parametrize("left", [0.5, 0.0])
def test_a_file_that_is_cut_while_it_is_mapped_is_an_error_and_no_signal(cached, left, read_before):
    args, folder = cached
    cache = PixelCache(folder, Folder(**args))
    if read_before:
        for index in range(7):
            cache.load(index)
    shard = folder / "pixels-00000.bin"
    os.truncate(shard, int(left * shard.stat().st_size))
    with pytest.raises(DataError, match="bytes now and had more|cannot be read"):
        for index in range(7):
            for part in cache.load(index):
                part.sum()                  # touches every byte


@pytest.mark.parametrize("how", ["in place", "by another file"])
def test_a_file_that_is_written_again_is_compared_with_its_checksums_again(cached, how):
    args, folder = cached
    dataset = Folder(**args)
    cache = PixelCache(folder, dataset)
    for index in range(7):
        cache.load(index)
    shard = folder / "pixels-00000.bin"
    content = bytearray(shard.read_bytes())
    other = shard if how == "in place" else folder / "other"
    other.write_bytes(content)
    os.replace(other, shard)                # the same pixels: nothing is wrong
    np.testing.assert_array_equal(cache.load(2)[0], dataset.load(2)[0])
    content[cache._places[2, 1] + 5] ^= 1
    other.write_bytes(content)
    os.utime(other, ns=(1, 1))
    os.replace(other, shard)
    with pytest.raises(DataError, match="have changed since they were"):
        cache.load(2)
    shard.unlink()                          # the mapped bytes remain
    np.testing.assert_array_equal(cache.load(3)[0], dataset.load(3)[0])
