"""The safetensors format: what is written, and what is refused before memory is taken for it."""
import json
import struct

import pytest
import torch

from utils.checkpoint import read
from utils.checkpoint.format import DamagedCheckpoint
from utils.checkpoint.read import (
    peek,
    read_checkpoint,
    read_checkpoint_and_digest,
    read_state,
    read_weights,
    verified,
)
from utils.checkpoint.safetensors import DTYPES, is_safetensors, read_safetensors, write_safetensors
from utils.errors import CheckpointError, DataError

SHARED = torch.arange(6.).reshape(2, 3)
TENSORS = {"a": torch.arange(24.).reshape(2, 3, 4), "one": torch.tensor(3),
           "none": torch.empty(0, 5), "half": torch.ones(3).bfloat16(),
           "yes": torch.tensor([True, False, True]), "s.1": SHARED,
           "turned": torch.arange(6.).reshape(2, 3).t(), "s.2": SHARED,
           "small": torch.arange(5, dtype=torch.uint8)}
CHECKPOINT = {"format": 1, "model": TENSORS, "ema": None, "config": {"name": "x", "seed": 1},
              "class_names": ["Straße", "b"], "palette": [[0, 0, 0], [9, 9, 9]],
              "normalization": {"mean": [0.5] * 3, "std": [0.2] * 3}, "activation": "softmax",
              "epoch": 3, "versions": {"torch": "2"}}


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(read, "WAITS", (0, 0, 0, 0))


@pytest.fixture
def path(tmp_path):
    write_safetensors(tmp_path / "model.safetensors", CHECKPOINT)
    return tmp_path / "model.safetensors"


def same(a, b):
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def file_of(path, header, data=bytes(16), length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(dtype="F32", shape=(4,), begin=0, end=16):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def test_a_checkpoint_is_the_same_after_writing_and_reading(path):
    assert is_safetensors(path) and verified(path)
    for found in (read_checkpoint(path), read_checkpoint_and_digest(path)[0], read_state(path),
                  read_weights(path)):
        assert same(found["model"], TENSORS)
        assert {k: v for k, v in found.items() if k != "model"} == \
            {k: v for k, v in CHECKPOINT.items() if k != "model"}
    shapes = peek(path)["model"]
    assert shapes["a"].device.type == "meta" and shapes["a"].shape == (2, 3, 4)


def test_the_averaged_weights_are_written_if_there_are_some(tmp_path):
    average = {name: tensor + 1 for name, tensor in TENSORS.items() if name in ("a", "half")}
    write_safetensors(tmp_path / "m", {**CHECKPOINT, "ema": average})
    assert same(read_checkpoint(tmp_path / "m")["model"], average)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_every_type_keeps_its_bits(tmp_path, dtype):
    bits = torch.arange(64, dtype=torch.uint8)
    tensor = bits.bool() if dtype is torch.bool else bits.clone().view(dtype)
    write_safetensors(tmp_path / "m", {**CHECKPOINT, "model": {"w": tensor}})
    found = read_safetensors(tmp_path / "m")["model"]["w"]
    assert found.dtype is dtype and found.shape == tensor.shape
    assert torch.equal(torch.view_as_real(found).view(torch.uint8) if dtype.is_complex
                       else found.view(torch.uint8), bits.bool().view(torch.uint8)
                       if dtype is torch.bool
                       else bits if not dtype.is_complex else bits.view(8, 8))


def test_the_header_is_aligned_and_has_names_colors_and_normalization(path):
    data = path.read_bytes()
    length, = struct.unpack("<Q", data[:8])
    header = json.loads(data[8:8 + length])
    assert length % 8 == 0
    for name, place in header.items():
        if name != "__metadata__":
            assert place["data_offsets"][0] % DTYPES[place["dtype"]].itemsize == 0
    meta = header["__metadata__"]
    assert json.loads(meta["class_names"]) == ["Straße", "b"] and meta["format"] == "pt"
    assert json.loads(meta["palette"])[1] == [9, 9, 9] and "mean" in meta["normalization"]


def test_the_official_package_reads_our_file_and_we_read_its(path, tmp_path):
    official = pytest.importorskip("safetensors.torch")
    assert same(official.load_file(str(path)), TENSORS)
    plain = {name: tensor.clone().contiguous() for name, tensor in TENSORS.items()}
    official.save_file(plain, str(tmp_path / "theirs"))
    assert same(read_weights(tmp_path / "theirs"), TENSORS)
    with pytest.raises(CheckpointError, match="not a Segwright checkpoint: it holds"):
        read_checkpoint(tmp_path / "theirs")


def test_a_changed_bit_is_found(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedCheckpoint, match="its checksum differs"):
        read_checkpoint(path)
    assert not verified(path)


@pytest.mark.parametrize("before, after", [
    (b"0.2, 0.2", b"0.3, 0.2"), (b"Stra", b"Stre"), (b"segwright_sha256", b"segwright_sha257"),
    (b"segwright_format", b"segwright_fosmat"), (b'"turned"', b'"turnee"'),
    (b'[2,3,4]', b'[2,4,3]')])
def test_a_changed_bit_of_the_header_is_found(path, before, after):
    data = path.read_bytes()
    assert before in data
    path.write_bytes(data.replace(before, after, 1))
    with pytest.raises(DamagedCheckpoint, match="its checksum differs"):
        read_state(path)


def test_files_of_others_need_no_checksum(tmp_path):
    header = {"w": entry(), "__metadata__": {"sha256": "of something else"}}
    assert read_state(file_of(tmp_path / "m", header))["w"].shape == (4,)


def test_empty_tensors_keep_their_shape(tmp_path):
    empty = {"a": torch.zeros(0, 5), "b": torch.zeros(3, 0, 7)}
    write_safetensors(tmp_path / "m", {**CHECKPOINT, "model": empty})
    assert same(read_checkpoint(tmp_path / "m")["model"], empty)
    assert peek(tmp_path / "m")["model"]["b"].shape == (3, 0, 7)


@pytest.mark.parametrize("change, text", [
    ({"versions": {"x": torch.zeros(1)}}, "is no JSON"),
    ({"model": {"w": torch.zeros(2, dtype=torch.complex128)}}, "which the format lacks")])
def test_what_cannot_be_written_is_refused(tmp_path, change, text):
    with pytest.raises(DataError, match=text):
        write_safetensors(tmp_path / "m", {**CHECKPOINT, **change})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kept", [9, 100, -1, -40])
def test_a_cut_file_is_damaged(path, kept):
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DamagedCheckpoint):
        read_checkpoint(path)


@pytest.mark.parametrize("header, text", [
    ({"w": entry(end=20)}, "do not fit"),
    ({"w": entry(begin=16, end=32)}, "do not fit"),
    ({"w": entry(begin=-16, end=0)}, "do not fit"),
    ({"w": entry(shape=[2 ** 62, 4])}, "do not fit"),
    ({"w": entry(shape=[0, *[10 ** 6] * 31], end=0)}, "do not fit"),
    ({"w": entry(shape=[0, 2 ** 70], end=0)}, "do not fit"),
    ({"w": entry(shape=[-4])}, "do not fit"),
    ({"w": entry(shape=[True] * 4)}, "do not fit"),
    ({"w": entry(shape=[4.0])}, "do not fit"),
    ({"w": entry(shape=[1] * 40 + [4])}, "do not fit"),
    ({"w": {**entry(), "data_offsets": [0, 8, 16]}}, "do not fit"),
    ({"w": {**entry(), "data_offsets": "0"}}, "do not fit"),
    ({"w": {**entry(), "shape": 4}}, "do not fit"),
    ({"a": entry(), "b": entry()}, "overlaps another tensor"),
    ({"a": entry(), "b": entry(shape=[2], begin=8, end=16)}, "overlaps another tensor"),
    ({"a": entry(shape=[1], end=4), "b": entry(shape=[2], begin=8, end=16)}, "leaves a gap"),
    ({"a": entry(shape=[2], end=8)}, "its tensors have 8 bytes, and the file has 16"),
    ({}, "its tensors have 0 bytes"),
    ({"w": entry("F128")}, "the type 'F128', which is not known"),
    ({"w": entry(["F32"])}, "which is not known"),
    ({"w": 5}, "no description of a tensor"),
    ({"w": {**entry(), "code": "x"}}, "no description of a tensor"),
    ({"w": entry("BOOL", [16])}, "truth values that are neither 0 nor 1"),
    ({"w": entry(), "__metadata__": {"a": 1}}, "metadata are no texts"),
    ({"w": entry(), "__metadata__": {"segwright_format": "1"}}, "its checksum differs"),
    (b'{"w": 1, "w": 2}', "a name occurs twice"),
    (b'{"w": {"dtype": "F32", "dtype": "F64"}}', "a name occurs twice"),
    (b"{" * 50_000, "no JSON"), (b'{"\xff": 1}', "no JSON"), (b"{}]", "no JSON")])
def test_a_hostile_header_is_refused(tmp_path, header, text):
    path = file_of(tmp_path / "m", header, bytes(15) + b"\2")
    with pytest.raises(CheckpointError, match=text):
        read_state(path)


@pytest.mark.parametrize("metadata", [{"segwright_format": "one"}, {
    "segwright_format": "1", "config": "[" * 50_000}])
def test_metadata_that_are_no_json_are_damage(tmp_path, metadata):
    with pytest.raises(CheckpointError, match="metadata are no JSON"):
        peek(file_of(tmp_path / "m", {"w": entry(), "__metadata__": metadata}))


@pytest.mark.parametrize("length, text", [(1, "header should have 1 bytes"),
                                          (2 ** 39, "header should have 549755813888 bytes")])
def test_a_length_of_the_header_that_is_wrong_is_refused(tmp_path, length, text):
    with pytest.raises(DamagedCheckpoint, match=text):
        read_state(file_of(tmp_path / "m", {"w": entry()}, length=length))


def test_a_huge_header_is_refused_without_reading_it(tmp_path):
    path = file_of(tmp_path / "m", b"{", length=2 ** 33)
    with open(path, "r+b") as stream:
        stream.truncate(2 ** 33 + 100)          # takes no room on the disk
    with pytest.raises(CheckpointError, match="refused: its header has 8589934592 bytes"):
        read_state(path)


def test_a_header_of_a_few_megabytes_is_refused_at_once(tmp_path):
    path = file_of(tmp_path / "m", b'{"w": [' + b"[]," * 2_000_000 + b"[]]}")
    with pytest.raises(CheckpointError, match="bytes, more than 5000000"):
        read_state(path)


def test_entries_of_a_wrong_kind_are_damage(tmp_path):
    write_safetensors(tmp_path / "m", {**CHECKPOINT, "class_names": [5]})
    with pytest.raises(DamagedCheckpoint, match="entry class_names"):
        read_checkpoint(tmp_path / "m")
    write_safetensors(tmp_path / "m", {**CHECKPOINT, "format": 99})
    with pytest.raises(CheckpointError, match="newer than this program"):
        read_checkpoint(tmp_path / "m")
