"""Reading .pdparams: what Paddle writes is read, anything that could run is refused."""
import collections
import io
import json
import pickle
import struct

import numpy as np
import pytest
import torch

from tests.support.made_up import PARITY, needs_goldens
from utils.checkpoint.paddle import is_pdparams, read_pdparams
from utils.errors import CheckpointError

FILES = ("tiny", "tiny_protocol2", "tiny_paddle3", "tiny_nested")


def written(tmp_path, content, protocol=4):
    path = tmp_path / "model.pdparams"
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol))
    return path


class Calls:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int64", "int32", "uint8",
                                   "bool"])
def test_arrays_become_tensors_of_their_type(tmp_path, protocol, dtype):
    array = (np.arange(24).reshape(2, 3, 4) % 7).astype(dtype)
    state = read_pdparams(written(tmp_path, {"weight": array}, protocol))
    assert np.array_equal(state["weight"].numpy(), array)
    assert state["weight"].numpy().dtype == array.dtype


def test_fortran_order_and_foreign_byte_order_are_put_right(tmp_path):
    array = np.arange(6, dtype=">f4").reshape(2, 3)
    state = read_pdparams(written(tmp_path, {"a": array, "b": np.asfortranarray(array),
                                             "c": np.float32(array)}))
    for key in "abc":
        assert state[key].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_scalars_and_empty_arrays_are_arrays_too(tmp_path):
    state = read_pdparams(written(tmp_path, {"a": np.array(3.5), "b": np.zeros((0, 4), "f4")}))
    assert state["a"].shape == () and state["a"].item() == 3.5 and state["b"].shape == (0, 4)


def test_bookkeeping_is_dropped_and_pairs_are_opened(tmp_path):
    array = np.ones(3, "float32")
    nested = {"model": collections.OrderedDict(w=("linear_0.w_0", array)), "epoch": 3,
              "StructuredToParameterName@@": {"w": "linear_0.w_0"}}
    state = read_pdparams(written(tmp_path, nested))
    assert state["epoch"] == 3 and list(state) == ["model", "epoch"]
    assert torch.equal(state["model"]["w"], torch.ones(3))


def test_bfloat16_comes_back_from_its_disguise(tmp_path):
    values = torch.tensor([1.5, -2.0, 0.0078125], dtype=torch.bfloat16)
    disguised = values.view(torch.int16).numpy().view(np.uint16)
    assert torch.equal(read_pdparams(written(tmp_path, {"w": disguised}))["w"], values)


def test_a_split_array_is_put_together_again(tmp_path):
    whole = np.arange(12, dtype="float32")
    state = {"w@@.0": whole[:7], "w@@.1": whole[7:], "v": np.ones(1, "float32"),
             "UnpackBigParamInfor@@": {"w": {"OriginShape": (3, 4), "slices": ["w@@.0", "w@@.1"]}}}
    state = read_pdparams(written(tmp_path, state, protocol=2))
    assert sorted(state) == ["v", "w"] and np.array_equal(state["w"].numpy(), whole.reshape(3, 4))


@pytest.mark.parametrize("function, arguments, name", [
    (eval, ("1 + 1",), "builtins.eval"), (exec, ("x = 1",), "builtins.exec"),
    (getattr, ("", "join"), "builtins.getattr"), (open, ("file", "w"), "io.open"),
    (np.fromfile, ("file",), "numpy.fromfile"), (np.load, ("file",), "numpy.load"),
    (__import__, ("os",), "builtins.__import__"),
    (torch.load, ("file",), "torch.serialization.load")])
def test_any_other_callable_is_refused_by_name(tmp_path, function, arguments, name):
    path = written(tmp_path, {"weight": Calls(function, *arguments)})
    with pytest.raises(CheckpointError, match="refused") as error:
        read_pdparams(path)
    assert name in str(error.value) and str(path) in str(error.value)


def test_a_command_is_not_run(tmp_path):
    proof = tmp_path / "proof"
    path = written(tmp_path, f"cposix\nsystem\n(S'touch {proof}'\ntR.".encode())
    with pytest.raises(CheckpointError, match="refused"):
        read_pdparams(path)
    assert not proof.exists()


def test_a_command_in_binary_instructions_is_refused_by_name(tmp_path):
    import os
    with pytest.raises(CheckpointError, match="(posix|nt).system"):
        read_pdparams(written(tmp_path, {"w": Calls(os.system, "true")}))


@pytest.mark.parametrize("content, name", [
    (b"\x80\x02(iposix\nsystem\n.", "INST"), (b"\x80\x02cos\nsystem\n)\x81.", "NEWOBJ"),
    (b"\x80\x02Pfile\n.", "PERSID"), (b"\x80\x02\x82\x01.", "EXT1"),
    (b"\x80\x05\x97.", "NEXT_BUFFER")])
def test_instructions_that_arrays_do_not_need_are_refused(tmp_path, content, name):
    with pytest.raises(CheckpointError, match=f"refused.*{name}"):
        read_pdparams(written(tmp_path, content))


def test_arrays_of_objects_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="refused.*type 'O"):
        read_pdparams(written(tmp_path, {"w": np.array([None, "text"], dtype=object)}))


def test_arrays_of_records_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="refused.*type"):
        read_pdparams(written(tmp_path, {"w": np.zeros(2, dtype=[("a", "f4"), ("b", "i4")])}))


def test_another_encoding_is_refused(tmp_path):
    import _codecs
    with pytest.raises(CheckpointError, match="encoding 'rot13'"):
        read_pdparams(written(tmp_path, {"w": Calls(_codecs.encode, "abc", "rot13")}))


def test_a_memo_index_that_would_fill_the_memory_is_refused(tmp_path):
    content = b"\x80\x02}r" + struct.pack("<I", 2 ** 31) + b"."
    with pytest.raises(CheckpointError, match="memo index"):
        read_pdparams(written(tmp_path, content))


def test_a_shape_that_its_bytes_do_not_fill_is_damage(tmp_path):
    content = pickle.dumps({"w": np.zeros((3, 4), "float32")}, 2)
    stretched = content.replace(b"K\x03K\x04\x86", b"K\x7fK\x7f\x86")
    assert stretched != content
    with pytest.raises(CheckpointError, match="do not fit its shape"):
        read_pdparams(written(tmp_path, stretched))


def test_stand_ins_cannot_be_changed_by_a_pickle(tmp_path):
    stream = io.BytesIO()
    stream.write(b"\x80\x02cnumpy\ndtype\n}X\x08\x00\x00\x00__call__X\x01\x00\x00\x00xsb.")
    with pytest.raises(CheckpointError, match="readable|refused"):
        read_pdparams(written(tmp_path, stream.getvalue()))
    array = np.ones(2, "float32")
    assert read_pdparams(written(tmp_path, {"w": array}))["w"].tolist() == [1, 1]


@pytest.mark.parametrize("content", [b"", b"text, not a pickle", b"\x80\x04N.", b"\x80\x04]."])
def test_what_is_no_state_dict_is_said_to_be_none(tmp_path, content):
    with pytest.raises(CheckpointError, match="readable|not a state dict"):
        read_pdparams(written(tmp_path, content))


def test_every_truncation_is_an_error_and_no_crash(tmp_path):
    content = pickle.dumps({"w": np.arange(9, dtype="float32"), "n": 3}, 4)
    for length in range(len(content)):
        with pytest.raises(CheckpointError):
            read_pdparams(written(tmp_path, content[:length]))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="no such checkpoint") as error:
        read_pdparams(tmp_path / "away.pdparams")
    assert "away.pdparams" in str(error.value)


def test_files_are_known_by_their_ending(tmp_path):
    assert is_pdparams(tmp_path / "model.pdparams") and not is_pdparams("model.pth")


@needs_goldens
@pytest.mark.parametrize("name", FILES)
def test_files_that_paddle_wrote_hold_the_expected_arrays(name):
    state = read_pdparams(PARITY / "paddle" / f"{name}.pdparams")
    state = state.get("model", state)
    with np.load(PARITY / "paddle" / "tiny_expected.npz") as expected:
        assert set(state) == set(expected.files)
        for key in expected.files:
            assert np.array_equal(state[key].numpy(), expected[key]), key
            assert state[key].numpy().dtype == expected[key].dtype, key


@needs_goldens
def test_the_test_files_are_those_the_facts_describe():
    facts = json.loads((PARITY / "paddle" / "tiny.json").read_text())
    assert {f"{name}.pdparams" for name in FILES} == set(facts["files"])
