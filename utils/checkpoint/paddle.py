"""Reads PaddlePaddle's .pdparams files without Paddle, and executes nothing in them.

Such a file is a plain pickle: a dict from parameter name to NumPy array, and some bookkeeping
entries. A pickle is a program, so all its instructions are inspected first, and only those that
build plain values are allowed. The few callables that an array needs are replaced by stand-ins
that check their arguments. Anything else is refused by name, also the call of `eval` that Paddle
writes for a bare tensor.

Layout: convolution weights are stored as in PyTorch. The weights of linear layers are transposed;
the file does not show which these are, only the network does. bfloat16 is stored as uint16, which
Paddle has no parameters of, and is returned as bfloat16.
"""
import math
import os
import pickle
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from utils.checkpoint.limits import TooMuch, check_pickle, check_values
from utils.checkpoint.read import DamagedCheckpoint, settled
from utils.errors import CheckpointError

# The instructions in Paddle's pickles (protocols 2 to 4).
_ALLOWED = frozenset("""
    PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT
    BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES
    BINBYTES8 EMPTY_DICT DICT SETITEM SETITEMS EMPTY_LIST LIST APPEND APPENDS EMPTY_TUPLE TUPLE
    TUPLE1 TUPLE2 TUPLE3 BINGET LONG_BINGET BINPUT LONG_BINPUT MEMOIZE GLOBAL STACK_GLOBAL
    REDUCE BUILD
""".split())
_KINDS = frozenset(("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "b1"))
MOST_AXES = 32              # of an array
_BOOKKEEPING = ("StructuredToParameterName@@", "UnpackBigParamInfor@@")


def is_pdparams(path: str | os.PathLike) -> bool:
    """Whether the name of a file ends as those of Paddle do."""
    return os.fspath(path).endswith((".pdparams", ".pdiparams"))


def read_pdparams(path: str | os.PathLike) -> dict:
    """The content of a .pdparams file: dicts, plain values, and a tensor for each array.

    Bookkeeping entries are dropped. Arrays above 1 GiB, which older protocols split, are joined
    again. Nothing in the file is executed. Raises CheckpointError for a missing, damaged or
    hostile file, see utils.checkpoint.read.settled.
    """
    return settled(Path(path), _read)


def _read(path):
    try:
        with open(path, "rb") as stream:
            _inspect(stream)
            stream.seek(0)
            check_pickle(stream)
            stream.seek(0)
            content = _Unpickler(stream, encoding="latin1").load()
        check_values(content)
        if not isinstance(content, dict):
            raise CheckpointError(f"holds a {type(content).__name__}, not a state dict")
        return _plain(content, {})
    except CheckpointError as error:
        raise type(error)(error.what, os.fspath(path), error.fix) from None
    except TooMuch as error:
        raise CheckpointError(_refused(error).what, os.fspath(path), _refused(error).fix) from None
    except (OSError, MemoryError):
        raise
    except Exception as error:      # a damaged pickle raises nearly anything
        raise DamagedCheckpoint(f"not a readable .pdparams file ({type(error).__name__}: "
                                f"{str(error)[:120]})", os.fspath(path),
                                "download it again; its size and checksum are published"
                                ) from error


def _inspect(stream):
    """Refuse a pickle with an instruction that plain arrays in dicts do not need."""
    for count, (opcode, argument, _) in enumerate(pickletools.genops(stream), start=1):
        if opcode.name not in _ALLOWED:
            raise _refused(f"the pickle instruction {opcode.name}"
                           + (f" ({argument})" if isinstance(argument, str) else ""))
        # A huge index would make the unpickler reserve as much memory.
        if opcode.name in ("BINPUT", "LONG_BINPUT") and isinstance(argument, int) \
                and argument > count:
            raise _refused(f"a memo index of {argument}")


def _refused(what: object):
    text = f"refused: {what}" if isinstance(what, TooMuch) else f"refused: the file asks for {what}"
    return CheckpointError(text,
                           fix="only load files you trust; a .pdparams file of paddle.save("
                               "layer.state_dict()) needs nothing but arrays")


class _Unpickler(pickle.Unpickler):
    """Builds what the stand-ins allow, of hardly more bytes than the file has.

    A pickle can name one block of bytes for thousands of arrays, and each would be a copy of it.
    """

    def __init__(self, stream: BinaryIO, **options: Any):
        super().__init__(stream, **options)
        # Protocol 2 stores bytes as text: they are counted as text, as bytes, and as an array's.
        self._left = 3 * os.fstat(stream.fileno()).st_size

    def take(self, count: int):
        """Count what is built. Raises TooMuch."""
        self._left -= count
        if self._left < 0:
            raise TooMuch("its arrays together have more bytes than the file")

    def find_class(self, module, name):
        stand_in = _STAND_INS.get((module, name))
        if stand_in is None:
            raise _refused(f"{module}.{name}")
        return stand_in(self.take)

    def persistent_load(self, pid):
        raise _refused("a persistent object")


class _Callable:
    """A stand-in for a callable. It has no attributes, so a pickle cannot change it."""

    __slots__ = ("_take",)

    def __init__(self, take: Callable[[int], None]):
        self._take = take

    def __setstate__(self, state):
        raise _refused("a changed function")


class _ArrayType(_Callable):
    """numpy.ndarray; it only occurs as an argument of `_reconstruct`."""

    __slots__ = ()


class _Reconstruct(_Callable):
    """numpy's _reconstruct(ndarray, (0,), b"b"): an empty array, which its state fills."""

    __slots__ = ()

    def __call__(self, kind, shape, code):
        if not isinstance(kind, _ArrayType):
            raise _refused(f"an array of {type(kind).__name__}")
        return _Array(self._take)


class _Array:
    __slots__ = ("_take", "value")

    def __init__(self, take):
        self._take = take

    def __setstate__(self, state):
        _, shape, dtype, fortran, data = state
        if not isinstance(dtype, _Dtype):
            raise _refused("an array without a type")
        if not isinstance(shape, tuple) or len(shape) > MOST_AXES \
                or not all(type(side) is int for side in shape):
            raise _refused("an array of a shape that is none")
        if isinstance(data, str):
            data = data.encode("latin1")
        if not isinstance(data, bytes) or len(data) != math.prod(shape) * dtype.value.itemsize:
            raise DamagedCheckpoint("not a readable .pdparams file (an array's bytes do not fit "
                                    "its shape)")
        self._take(len(data))
        value = np.frombuffer(data, dtype.value).reshape(shape, order="F" if fortran else "C")
        self.value = np.array(value, dtype.value.newbyteorder("="), order="C")


class _MakeDtype(_Callable):
    __slots__ = ()

    def __call__(self, code, *flags):
        code = code.lstrip("<>|=") if isinstance(code, str) else type(code).__name__
        if code not in _KINDS:
            raise _refused(f"an array of type {code!r}")
        return _Dtype(np.dtype(code))


class _Dtype:
    __slots__ = ("value",)

    def __init__(self, value):
        self.value = value

    def __setstate__(self, state):
        if state[1] in ("<", ">"):
            self.value = self.value.newbyteorder(state[1])


class _Encode(_Callable):
    """_codecs.encode(text, "latin1"), how protocol 2 writes bytes."""

    __slots__ = ()

    def __call__(self, text, encoding="latin1"):
        if not isinstance(text, str) or not isinstance(encoding, str):
            raise _refused("the bytes of something else than text")
        if encoding not in ("latin1", "latin-1"):
            raise _refused(f"the encoding {encoding!r}")
        self._take(len(text))
        return text.encode("latin1")


class _MakeTuple(_Callable):
    __slots__ = ()

    def __call__(self, items=()):
        self._take(len(items))
        made = tuple(items)
        if any(isinstance(item, tuple) for item in made):
            raise _refused("a tuple of tuples")     # its hash can take very long
        return made


class _MakeDict(_Callable):
    __slots__ = ()

    def __call__(self, items=()):
        self._take(len(items))
        return dict(items)


_STAND_INS = {
    ("numpy.core.multiarray", "_reconstruct"): _Reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _Reconstruct,
    ("numpy", "ndarray"): _ArrayType,
    ("numpy", "dtype"): _MakeDtype,
    ("_codecs", "encode"): _Encode,
    ("builtins", "tuple"): _MakeTuple,
    ("__builtin__", "tuple"): _MakeTuple,
    ("collections", "OrderedDict"): _MakeDict,
}


def _plain(value: Any, made: dict[int, Any]) -> Any:
    """Replace arrays by tensors, also for the (name, array) pairs of nested state dicts.

    made: id of a value -> what it became, so that a value in several places is replaced once.
    """
    if value is None or isinstance(value, (bool, int, float, str, bytes)):
        return value
    if id(value) not in made:
        made[id(value)] = _replaced(value, made)
    return made[id(value)]


def _replaced(value, made):
    if isinstance(value, _Array):
        return _tensor(value.value)
    if isinstance(value, dict):
        split = value.get("UnpackBigParamInfor@@", {})
        inner = {k: _plain(v, made) for k, v in value.items() if k not in _BOOKKEEPING}
        for key, info in split.items():
            parts = [inner.pop(part) for part in info["slices"]]
            inner[key] = torch.cat(parts).reshape(tuple(info["OriginShape"]))
        return inner
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], _Array):
        return _plain(value[1], made)
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(entry, made) for entry in value)
    raise _refused(f"a {type(value).__name__.lstrip('_')} in place of a value")


def _tensor(array):
    if array.dtype == np.uint16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
