"""What the content of a checkpoint proves, what a passing fault is, and what is refused."""
import errno
import math
import os
import pickle
import shutil
import zipfile

import numpy as np
import pytest
import torch

from utils.checkpoint import read
from utils.checkpoint.read import (
    DamagedCheckpoint,
    UnreadableCheckpoint,
    peek,
    read_checkpoint,
    read_state,
    read_training,
    read_weights,
    verified,
)
from utils.errors import CheckpointError

WHOLE = {"format": 1, "model": {"w": torch.arange(4000.)}, "ema": None, "config": {"name": "x"},
         "class_names": ["a"], "palette": [[0, 0, 0]],
         "normalization": {"mean": [0.5] * 3, "std": [0.2] * 3}, "activation": "softmax",
         "epoch": 3, "optimizer": {"state": {}, "param_groups": []}, "scheduler": {}, "scaler": {},
         "monitor": {"best": 0.5, "epoch": 2, "waited": 0}, "step": 8, "samples": 4}


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(read, "WAITS", (0, 0, 0, 0))


@pytest.fixture
def path(tmp_path):
    torch.save(WHOLE, tmp_path / "last.pth")
    return tmp_path / "last.pth"


def changed(path, **entries):
    torch.save({**WHOLE, **entries}, path)
    return path


def failing(monkeypatch, place, error, times):
    """Let a function fail the first `times` times."""
    target, name = place
    real, calls = getattr(target, name), []

    def call(*args, **kwargs):
        calls.append(args)
        if len(calls) <= times:
            raise error
        return real(*args, **kwargs)
    monkeypatch.setattr(target, name, call)
    return calls


PLACES = {"stat": (os, "stat"), "directory": (zipfile, "_EndRecData"),
          "checksums": (zipfile.ZipFile, "testzip"), "torch": (torch, "load")}
PASSING = [OSError(errno.EIO, "Input/output error"), OSError(errno.ESTALE, "Stale file handle"),
           PermissionError(errno.EACCES, "Permission denied"), MemoryError(),
           OSError(errno.ENOMEM, "Cannot allocate memory"),
           RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("error", PASSING, ids=lambda error: type(error).__name__)
def test_a_read_error_that_passes_does_no_harm(path, monkeypatch, place, error):
    if place == "stat" and not isinstance(error, OSError):
        pytest.skip("of the system only")
    failing(monkeypatch, PLACES[place], error, 1)
    assert read_checkpoint(path)["step"] == 8


@pytest.mark.parametrize("place", ["directory", "checksums", "torch"])
@pytest.mark.parametrize("error, said", [(PASSING[0], "Input/output error"),
                                         (MemoryError(), "not enough memory")])
def test_a_read_error_that_stays_is_told_as_what_it_is(path, monkeypatch, place, error, said):
    failing(monkeypatch, PLACES[place], error, math.inf)
    with pytest.raises(UnreadableCheckpoint, match=f"could not be read: .*{said}") as raised:
        read_checkpoint(path)
    assert raised.value.exit_status == 4 and "damaged" not in raised.value.what


def test_damage_is_found_twice_before_it_is_told(path, monkeypatch):
    path.write_bytes(path.read_bytes()[:-100])
    calls = failing(monkeypatch, PLACES["directory"], None, 0)
    with pytest.raises(DamagedCheckpoint, match="incomplete zip"):
        read_checkpoint(path)
    assert len(calls) == 2


def test_damage_that_a_second_read_does_not_find_is_none(path, monkeypatch):
    failing(monkeypatch, PLACES["directory"], zipfile.BadZipFile("File is not a zip file"), 1)
    assert read_checkpoint(path)["step"] == 8


@pytest.mark.parametrize("damaged", [False, True])
def test_a_file_that_is_replaced_while_it_is_read_is_read_again(path, tmp_path, monkeypatch,
                                                                damaged):
    newer, load = changed(tmp_path / "newer.pth", step=9), torch.load

    def replaced(*args, **kwargs):
        if newer.exists():
            content = load(*args, **kwargs)
            os.replace(newer, path)
            if damaged:
                raise ValueError("parts of both files")
            return content
        return load(*args, **kwargs)
    monkeypatch.setattr(torch, "load", replaced)
    assert read_checkpoint(path)["step"] == 9


@pytest.mark.parametrize("cut, sound", [(None, True), (-50, False), (200, False), (1, False)])
def test_a_cut_file_in_the_old_format_is_not_verified(tmp_path, cut, sound):
    path = tmp_path / "old.pth"
    torch.save(WHOLE, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:cut])
    assert verified(path) is sound


def test_the_old_format_is_still_read(tmp_path):
    path = tmp_path / "old.pth"
    torch.save(WHOLE, path, _use_new_zipfile_serialization=False)
    assert read_checkpoint(path)["step"] == peek(path)["step"] == 8


def test_a_peek_has_shapes_and_no_values(path):
    tensor = peek(path)["model"]["w"]
    assert tensor.shape == (4000,) and tensor.device.type == "meta"


# Files that are small on the disk and huge in memory or time.

def packed(path, front=b""):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(1 << 20))
    path.write_bytes(front + path.read_bytes())
    return path


@pytest.mark.parametrize("front", [b"", b"XX", b"PK", b"PK\3\4" + bytes(60)])
def test_a_packed_archive_is_never_unpacked(tmp_path, monkeypatch, front):
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda *_: pytest.fail("unpacked"))
    with pytest.raises(CheckpointError):
        read_weights(packed(tmp_path / "bomb.pth", front))


def test_an_archive_behind_other_bytes_is_called_so(path):
    path.write_bytes(b"XX" + path.read_bytes())
    with pytest.raises(CheckpointError, match="this is an archive behind other bytes"):
        read_state(path)


def test_an_archive_with_a_comment_is_refused(path):
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = b"PK\5\6" + bytes(18)
    with pytest.raises(CheckpointError):
        read_state(path)


def doubled(start, join, times=60):
    for _ in range(times):
        start = join(start)
    return start


SHARED = {"lists": lambda x: [x, x], "dicts": lambda x: {"a": x, "b": x},
          "tuples": lambda x: (x, x), "mixed": lambda x: [{"a": (x, [x])}]}


@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize("kind", ["pth", "old", "pdparams"])
def test_values_that_contain_each_other_again_and_again_are_refused(tmp_path, name, kind):
    content, path = {"w": doubled([1], SHARED[name], 30)}, tmp_path / f"laughs.{kind}"
    if kind == "pdparams":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "pth")
    with pytest.raises(CheckpointError, match="refused: its (values|tuples) "):
        read_weights(path)


@pytest.mark.parametrize("entry", ["config", "versions", "class_names", "extra"])
def test_shared_values_are_refused_in_every_entry(path, entry):
    with pytest.raises(CheckpointError, match="again and again"):
        read_checkpoint(changed(path, **{entry: {"a": doubled([1], SHARED["lists"])}}))


def keyed(levels):
    """A pickle of {t: 1}, where the tuple t contains the tuple before twice, and so on."""
    code = b"\x80\x02}K\x01q\x00"
    for level in range(levels):
        code += b"h" + bytes([level]) + b"\x86q" + bytes([level + 1])
    return code + b"K\x01s."


def test_a_key_whose_hash_takes_for_ever_is_refused(tmp_path):
    (tmp_path / "key.pdparams").write_bytes(keyed(60))
    with zipfile.ZipFile(tmp_path / "key.pth", "w") as archive:
        archive.writestr("archive/data.pkl", keyed(60))
        archive.writestr("archive/version", "3\n")
    for name in ("key.pdparams", "key.pth"):
        with pytest.raises(CheckpointError, match="its tuples contain each other"):
            read_weights(tmp_path / name)


def test_values_in_each_other_or_in_a_circle_are_refused(path):
    circle = []
    circle.append(circle)
    for value in (doubled(1, lambda x: [x], 300), circle):
        with pytest.raises(CheckpointError, match="nested too deep"):
            read_checkpoint(changed(path, extra=value))


def test_a_list_in_many_places_is_no_bomb(path):
    names = ["a", "b", "c"]
    read_checkpoint(changed(path, extra=[names] * 1000, config={"a": names, "b": names}))


@pytest.mark.parametrize("protocol", [2, 4])
def test_an_array_that_is_named_many_times_is_not_copied_each_time(tmp_path, protocol):
    block = np.random.default_rng(0).integers(0, 255, 100_000, dtype=np.uint8)
    path = tmp_path / "w.pdparams"
    path.write_bytes(pickle.dumps({"a": block, "b": block}, protocol=protocol))
    content = read_weights(path)
    assert content["a"] is content["b"] and content["a"].tolist() == block.tolist()


def test_bytes_that_are_named_by_many_arrays_are_refused(tmp_path):
    class Array:
        def __init__(self, block):
            self.block = block

        def __reduce__(self):
            kind, made = np.ndarray, np.zeros(0).__reduce__()[0]
            return made, (kind, (0,), b"b"), (1, (len(self.block),), np.dtype("u1"), False,
                                              self.block)
    block, path = os.urandom(1 << 20), tmp_path / "copies.pdparams"
    path.write_bytes(pickle.dumps({f"k{k}": Array(block) for k in range(9)}, protocol=4))
    assert path.stat().st_size < 2 << 20
    with pytest.raises(CheckpointError, match="more bytes than the file"):
        read_weights(path)


# Files of other kinds.

@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_torchscript_program_is_called_by_its_name(tmp_path):
    torch.jit.trace(torch.nn.Conv2d(3, 3, 1), torch.zeros(1, 3, 2, 2)).save(tmp_path / "s.pt")
    with pytest.raises(CheckpointError, match="a TorchScript program, not a file of weights"):
        read_weights(tmp_path / "s.pt")


@pytest.mark.parametrize("start, kind", [
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "a Git LFS pointer"),
    (b"\n<!DOCTYPE html><html>", "a web page"), (b"\x1f\x8b\x08" + bytes(20), "a compressed file")])
def test_a_file_of_another_kind_is_called_by_its_name(tmp_path, start, kind):
    (tmp_path / "w.pth").write_bytes(start)
    with pytest.raises(CheckpointError, match=f"this is {kind}"):
        read_weights(tmp_path / "w.pth")


def test_a_folder_in_place_of_a_file_says_what_it_contains(path):
    with pytest.raises(CheckpointError, match="is a folder") as error:
        read_checkpoint(path.parent)
    assert "last.pth" in error.value.fix


# Entries with a wrong type or value.

WRONG = {
    "format": [-1, 0, "1", True],
    "monitor": [{"best": math.nan, "epoch": 1, "waited": 0}, {"best": "high", "epoch": 1,
                "waited": 0}, {"best": 0.5, "epoch": 1, "waited": "x"}, {"best": 0.5}, 3],
    "epoch": ["3", -5, 0, 2.5, True], "step": [-3, "1", 1 << 60], "samples": [-6, 1.5],
    "skipped": ["a", -1], "steps_per_epoch": ["a", 0], "dataset": [[1], {"length": "x"}],
    "versions": [3], "scheduler": [1], "scaler": [None], "optimizer": [[1]],
    "lineage": [3, [1], [[1, -2]]],
    "normalization": [{"mean": [math.nan] * 3, "std": [1.] * 3}, {"mean": "x", "std": [1.] * 3}],
    "palette": [None, [[1, 2]]], "class_names": [[1]], "activation": ["tanh", ["softmax"]]}


@pytest.mark.parametrize("entry, value", [(entry, value) for entry, values in WRONG.items()
                                          for value in values], ids=repr)
def test_a_wrong_entry_is_named_when_the_file_is_read(path, entry, value):
    with pytest.raises(DamagedCheckpoint, match=f"entry {entry} has the wrong type or value"):
        read_checkpoint(changed(path, **{entry: value}))


@pytest.mark.parametrize("entry", ["monitor", "scaler", "scheduler", "samples", "step", "ema"])
def test_a_missing_entry_is_named_before_a_training_resumes(path, entry):
    torch.save({key: value for key, value in WHOLE.items() if key != entry}, path)
    with pytest.raises(DamagedCheckpoint, match=f"it lacks {entry}"):
        read_training(path)


@pytest.mark.parametrize("last", [9, 10 ** 9, -2, math.nan, "a"])
def test_a_schedule_that_is_further_than_the_training_is_damage(path, last):
    assert read_training(changed(path, scheduler={"last_epoch": 8}))["step"] == 8
    with pytest.raises(DamagedCheckpoint, match="its schedule is at"):
        read_training(changed(path, scheduler={"last_epoch": last}))


def test_entries_that_older_versions_did_not_save_may_be_missing(path):
    assert not {"skipped", "dataset", "lineage", "versions"} & read_training(path).keys()


def test_a_palette_with_too_few_colors_is_no_damage(path):
    assert read_checkpoint(changed(path, palette=[]))["palette"] == []


def test_a_copy_is_verified_like_the_file_itself(path, tmp_path):
    copy = shutil.copy(path, tmp_path / "copy.pth")
    assert verified(path) and verified(copy) and not verified(tmp_path / "none.pth")
