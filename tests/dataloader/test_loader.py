import os
import signal
import textwrap
import threading
import time

import numpy as np
import pytest
import torch

from base.base_dataset import BaseDataset, Sample
from dataloader.augmentation.transforms import Augmentation
from dataloader.loader import _PatientIterator, build_loader, make_loader, split_loader
from dataloader.shapes import Shapes
from tests.support.run_program import start
from utils.errors import ConfigError, DataError
from utils.images.image_io import write_image, write_label
from utils.machine.running_time import is_suspended

AUGMENT = Augmentation(crop_size=24, augment=True, flip=True, rotate=True, blur=True)


def shapes(length=23, **options):
    return Shapes(size=(32, 48), length=length, augmentation=AUGMENT, **options)


def batches(loader, epoch=1, start=0):
    loader.set_epoch(epoch, start)
    return [(b["image"].numpy().tobytes(), b["label"].numpy().tobytes(), tuple(b["id"]))
            for b in loader]


class Pictures(BaseDataset):
    """Every image of a folder; see `folder`."""

    num_classes = 3
    class_names = list("abc")
    palette = [[0, 0, 0]] * 3

    def find_samples(self):
        for path in sorted((self.root / "images").iterdir()):
            yield Sample(path.stem, path, self.root / "labels" / f"{path.stem}.png")


def folder(tmp_path, sizes):
    for part in ("images", "labels"):
        (tmp_path / part).mkdir(exist_ok=True)
    for i, size in enumerate(sizes):
        write_image(tmp_path / "images" / f"{i:02d}.png", np.full((*size, 3), i, np.uint8))
        write_label(tmp_path / "labels" / f"{i:02d}.png", np.zeros(size, np.uint8), [])
    return Pictures(str(tmp_path), "train")


def test_a_batch_consists_of_bytes_with_channels_last():
    batch = next(iter(build_loader(shapes(), 4, num_workers=0, training=True)))
    assert batch["image"].shape == (4, 3, 24, 24) and batch["image"].dtype == torch.uint8
    assert batch["image"].is_contiguous(memory_format=torch.channels_last)
    assert batch["label"].shape == (4, 24, 24) and batch["label"].dtype == torch.uint8
    assert batch["id"] == [f"train_{i:05d}" for i in range(4)] and set(batch) == {"image", "label",
                                                                                  "id"}


def test_batches_do_not_depend_on_the_number_of_workers():
    expected = None
    for workers in (0, 1, 2, 4):
        loader = build_loader(shapes(), 4, shuffle=True, num_workers=workers, training=True)
        found = [batches(loader, epoch) for epoch in (1, 2)]
        expected = expected or found
        assert found == expected
    assert expected[0] != expected[1] and len(expected[0]) == 5


def test_an_epoch_resumed_at_any_batch_repeats_the_rest():
    loader = build_loader(shapes(), 4, shuffle=True, num_workers=2, training=True)
    whole = batches(loader, 3)
    for first in range(6):
        assert batches(loader, 3, first) == whole[first:]
    assert len(loader) == 5


def test_an_epoch_that_is_not_finished_does_not_change_the_next():
    loader = build_loader(shapes(), 4, shuffle=True, num_workers=2, training=True)
    expected = batches(loader, 2)
    loader.set_epoch(1)
    for _ in zip(range(2), loader, strict=False):
        pass
    assert batches(loader, 2) == expected


def test_reading_data_does_not_change_torchs_random_state():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    for workers in (0, 1):
        for _ in build_loader(shapes(), 8, shuffle=True, num_workers=workers, training=True):
            pass
    assert torch.equal(torch.get_rng_state(), before)


def test_training_ranks_share_the_batches_of_one_process():
    single = build_loader(shapes(24), 4, shuffle=True, num_workers=0, training=True)
    ranks = [build_loader(shapes(24), 2, shuffle=True, num_workers=0, training=True, rank=r,
                          world_size=2) for r in range(2)]
    for whole, *parts in zip(single, *ranks, strict=True):
        assert sorted(whole["id"]) == sorted(parts[0]["id"] + parts[1]["id"])
        assert whole["id"][::2] == parts[0]["id"]


def test_evaluation_ranks_take_whole_batches_of_one_process():
    single = list(build_loader(shapes(7), 2, num_workers=0))
    for rank in range(3):
        mine = list(build_loader(shapes(7), 2, num_workers=0, rank=rank, world_size=3))
        assert [b["id"] for b in mine] == [b["id"] for b in single[rank::3]]


def test_images_of_different_sizes_are_lists_in_evaluation(tmp_path):
    dataset = folder(tmp_path, [(8, 9), (8, 9), (5, 6), (8, 9)])
    same, mixed = list(build_loader(dataset, 2, num_workers=0))
    assert isinstance(same["image"], torch.Tensor)
    assert [tuple(image.shape) for image in mixed["image"]] == [(3, 5, 6), (3, 8, 9)]
    assert [tuple(label.shape) for label in mixed["label"]] == [(5, 6), (8, 9)]


def test_images_of_different_sizes_are_an_error_in_training(tmp_path):
    dataset = folder(tmp_path, [(8, 9), (5, 6)])
    with pytest.raises(DataError, match="differ in size") as caught:
        list(build_loader(dataset, 2, num_workers=0, training=True))
    assert "crop_size" in caught.value.fix


def test_fewer_images_than_a_batch_switch_drop_last_off(capsys):
    loader = build_loader(shapes(3), 8, num_workers=0, training=True)
    assert [len(b["id"]) for b in loader] == [3] and len(loader) == 1
    assert "drop_last is off" in capsys.readouterr().err
    assert len(build_loader(shapes(9), 8, num_workers=0, training=True)) == 1
    assert len(build_loader(shapes(9), 8, num_workers=0, training=True, drop_last=False)) == 2


def test_an_empty_dataset_is_a_data_error():
    with pytest.raises(DataError, match="no images"):
        build_loader(shapes(0), 8)


@pytest.mark.parametrize("options", [{"drop_last": True}, {"on_corrupt": "skip"},
                                     {"batch_size": 0}, {"num_workers": -1}])
def test_settings_that_would_falsify_a_score_are_refused(options):
    with pytest.raises(ConfigError):
        build_loader(shapes(), **options)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_data_error_in_a_worker_arrives_without_a_traceback(workers, tmp_path):
    dataset = folder(tmp_path, [(8, 9)] * 40)
    write_label(tmp_path / "labels" / "03.png", np.full((8, 9), 7, np.uint8), [])
    with pytest.raises(DataError) as caught:
        list(build_loader(dataset, 2, num_workers=workers))
    assert "value 7 (72 pixels)" in caught.value.what and "Traceback" not in str(caught.value)
    assert caught.value.where.endswith("03.png")


def corrupt(tmp_path):
    dataset = folder(tmp_path, [(8, 9)] * 12)
    path = tmp_path / "images" / "05.png"
    path.write_bytes(path.read_bytes()[:30])
    return dataset


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_image_is_an_error_by_default(workers, tmp_path):
    with pytest.raises(DataError) as caught:
        list(build_loader(corrupt(tmp_path), 4, num_workers=workers, training=True))
    assert caught.value.where.endswith("05.png")


def test_a_corrupt_image_is_replaced_by_the_next_one_on_request(tmp_path, capsys):
    dataset, found = corrupt(tmp_path), []
    for workers in (0, 2):
        loader = build_loader(dataset, 4, num_workers=workers, training=True, on_corrupt="skip")
        found.append([b["id"] for b in loader])
    assert found[0] == found[1] and found[0][1] == ["04", "06", "06", "07"]
    assert "05.png" in (err := capsys.readouterr().err) and "1 so far" in err


def test_make_loader_distributes_one_flat_dict():
    section = {"type": "Shapes", "args": {"split": "val", "length": 6, "size": [32, 48],
                                          "batch_size": 3, "num_workers": 0, "crop_size": 16,
                                          "val": True}}
    loader = make_loader(section, ignore_index=200, seed=4)
    batch = next(iter(loader))
    assert batch["image"].shape == (3, 3, 16, 16) and loader.batch_size == 3
    assert loader.dataset.seed == 4 and loader.dataset.ignore_index == 200
    with pytest.raises(ConfigError, match="batch_sise"):
        make_loader({"type": "Shapes", "args": {"batch_sise": 3}}, ignore_index=255)
    with pytest.raises(ConfigError, match="Shapes"):
        make_loader({"type": "Shaps", "args": {}}, ignore_index=255)


@pytest.mark.parametrize("args, place", [
    ({"drop_last": True}, "drop_last"), ({"split": "tst"}, "split"), ({"size": [8, 8]}, "size"),
    ({"val": True, "crop_size": -1}, "crop_size"), ({"num_workers": 10 ** 6}, "num_workers")])
def test_a_mistake_names_the_loader_and_the_key(args, place):
    config = {"test_loader": {"type": "Shapes", "args": args}, "ignore_index": 255, "seed": 0}
    with pytest.raises(ConfigError) as caught:
        split_loader(config, "test")
    assert caught.value.where == f"test_loader.args.{place}"


class Slow(Shapes):
    def __getitem__(self, key):
        if key[1] == 3:
            time.sleep(60)
        return super().__getitem__(key)


def test_a_read_that_never_returns_becomes_an_error_naming_the_files():
    loader = build_loader(Slow(size=(32, 48), length=8), 2, num_workers=1, timeout=60)
    batches = iter(loader)
    next(batches)
    loader._iterator._timeout = 1       # set only now: the start of the worker may take long
    with pytest.raises(DataError, match="timed out") as caught:
        next(batches)
    assert "val" not in caught.value.what and "train_00003" in caught.value.what
    assert "train_00005" not in caught.value.what


def test_a_worker_that_is_suspended_for_longer_than_the_timeout_is_not_dead():
    """Suspends the only worker for two timeouts of one second."""
    loader = build_loader(Shapes(size=(32, 48), length=64), 2, num_workers=1, timeout=60)
    batches = iter(loader)
    next(batches)
    loader._iterator._timeout = 1
    worker = loader._iterator._workers[0].pid
    os.kill(worker, signal.SIGSTOP)
    threading.Timer(3, os.kill, (worker, signal.SIGCONT)).start()
    assert len(list(batches)) == 31


def test_closing_a_loader_ends_a_suspended_worker_too():
    loader = build_loader(Shapes(size=(32, 48), length=64), 2, num_workers=1)
    next(iter(loader))
    worker = loader._iterator._workers[0]
    os.kill(worker.pid, signal.SIGSTOP)
    while not is_suspended(worker.pid):
        time.sleep(0.01)
    loader.close()
    worker.join(20)
    assert worker.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"),
                                   BlockingIOError(11, "Resource temporarily unavailable"),
                                   RuntimeError("can't start new thread")])
def test_workers_that_cannot_be_started_are_one_message(monkeypatch, error):
    """No shared memory for their queues, or no further process or thread."""
    loader = build_loader(Shapes(size=(32, 48), length=8), 2, num_workers=2)

    def refused(_):
        raise error
    monkeypatch.setattr(type(loader._loader), "_get_iterator", refused)
    with pytest.raises(DataError, match="2 data workers cannot be started: "
                                        f"{error.args[-1]}(.|\n)*num_workers"):
        next(iter(loader))


def test_a_reader_whose_queues_could_not_be_made_ends_without_a_word():
    """Python would print an error of the destructor with its traceback."""
    _PatientIterator.__new__(_PatientIterator).__del__()


class Suicidal(Shapes):
    def __getitem__(self, key):
        if key[1] == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(key)


@pytest.mark.slow      # worker processes import torch, and one is waited for
def test_a_killed_worker_becomes_an_error_with_the_likely_cause():
    loader = build_loader(Suicidal(size=(32, 48), length=12), 2, num_workers=2)
    with pytest.raises(DataError, match="worker died") as caught:
        for _ in loader:
            time.sleep(0.05)
    message = str(caught.value)
    assert "train_00005" in message and "/dev/shm" in message and "num_workers" in message


def run_script(body):
    return start("-c", textwrap.dedent(body))


@pytest.mark.slow      # starts a process that imports torch
def test_workers_survive_a_sigterm_to_the_group_and_end_with_the_program():
    process = run_script("""
        import os, signal, time
        from dataloader.loader import _PatientIterator, build_loader
        from dataloader.shapes import Shapes
        loader = build_loader(Shapes(size=(32, 48), length=400), 2, num_workers=2)
        signal.signal(signal.SIGTERM, lambda *_: None)
        batches = iter(loader)
        next(batches)
        os.killpg(0, signal.SIGTERM)
        print(1 + sum(1 for _ in batches), flush=True)
    """)
    out, err = process.communicate(timeout=60)
    assert (out.strip(), err, process.returncode) == ("200", "", 0)
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


@pytest.mark.slow      # starts a process that imports torch
def test_a_program_that_ends_in_the_middle_of_an_epoch_does_not_wait_for_workers():
    process = run_script("""
        import atexit, time
        from dataloader.loader import _PatientIterator, build_loader
        from dataloader.shapes import Shapes
        atexit.register(lambda: print(time.monotonic() - end))
        loader = build_loader(Shapes(size=(32, 48), length=400), 2, num_workers=2)
        cycle = [loader]; cycle.append(cycle)
        batches = iter(loader)
        next(batches)
        end = time.monotonic()
    """)
    out, err = process.communicate(timeout=120)
    assert err == "" and process.returncode == 0
    assert float(out) < 4                       # waiting for a worker takes 5 s
