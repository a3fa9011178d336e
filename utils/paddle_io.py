"""Reads PaddlePaddle's .pdparams files without Paddle, running nothing from them.

Such a file is a plain pickle: a dict from parameter name to NumPy array, with
bookkeeping entries beside. A pickle is a program, so every instruction of it is
looked at first and only those that build plain values are let through; the few
callables that an array needs are replaced by stand-ins of ours that check what
they are given. Anything else, Paddle's own call of `eval` for a bare tensor
included, is refused by name.

Layout: convolution weights as in PyTorch; the weights of linear layers are
transposed, which only the network can tell. bfloat16 is stored as uint16, a
type that Paddle has no parameters of, and comes back as bfloat16.
"""
import math
import os
import pickle
import pickletools

import numpy as np
import torch

from utils.errors import CheckpointError

# Instructions that Paddle's pickles (protocols 2 to 4) are made of.
_ALLOWED = frozenset("""
    PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT
    BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES
    BINBYTES8 EMPTY_DICT DICT SETITEM SETITEMS EMPTY_LIST LIST APPEND APPENDS EMPTY_TUPLE TUPLE
    TUPLE1 TUPLE2 TUPLE3 BINGET LONG_BINGET BINPUT LONG_BINPUT MEMOIZE GLOBAL STACK_GLOBAL
    REDUCE BUILD
""".split())
_KINDS = frozenset(("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "b1"))
_BOOKKEEPING = ("StructuredToParameterName@@", "UnpackBigParamInfor@@")


def is_pdparams(path) -> bool:
    """Whether a file is Paddle's, by its name."""
    return os.fspath(path).endswith((".pdparams", ".pdiparams"))


def read_pdparams(path) -> dict:
    """What a .pdparams file holds: dicts, plain values, and tensors in place of arrays.

    Bookkeeping entries are dropped and arrays above 1 GiB, which older protocols
    split, put together again. Raises CheckpointError for a missing, damaged or
    hostile file; nothing in it is executed.
    """
    where = os.fspath(path)
    try:
        with open(path, "rb") as stream:
            _inspect(stream)
            stream.seek(0)
            content = _Unpickler(stream, encoding="latin1").load()
        if not isinstance(content, dict):
            raise CheckpointError(f"holds a {type(content).__name__}, not a state dict")
        return _plain(content)
    except CheckpointError as error:
        raise CheckpointError(error.what, where, error.fix) from None
    except FileNotFoundError:
        raise CheckpointError("no such checkpoint", where) from None
    except (Exception, MemoryError) as error:      # a damaged pickle raises nearly anything
        raise CheckpointError(f"not a readable .pdparams file ({type(error).__name__}: "
                              f"{str(error)[:120]})", where,
                              "download it again; its size and checksum are published") from error


def _inspect(stream):
    """Refuse a pickle with any instruction that plain arrays in dicts do not need."""
    for count, (opcode, argument, _) in enumerate(pickletools.genops(stream), start=1):
        if opcode.name not in _ALLOWED:
            raise _refused(f"the pickle instruction {opcode.name}"
                           + (f" ({argument})" if isinstance(argument, str) else ""))
        # A huge index would make the unpickler reserve as much memory.
        if opcode.name in ("BINPUT", "LONG_BINPUT") and argument > count:
            raise _refused(f"a memo index of {argument}")


def _refused(what):
    return CheckpointError(f"refused: the file asks for {what}",
                           fix="only load files you trust; a .pdparams file of paddle.save("
                               "layer.state_dict()) needs nothing but arrays")


class _Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        stand_in = _STAND_INS.get((module, name))
        if stand_in is None:
            raise _refused(f"{module}.{name}")
        return stand_in()

    def persistent_load(self, pid):
        raise _refused("a persistent object")


class _Callable:
    """A stand-in. Without attributes, so that a pickle cannot change it."""

    __slots__ = ()


class _ArrayType(_Callable):
    """numpy.ndarray, which is only ever handed to `_reconstruct`."""

    __slots__ = ()


class _Reconstruct(_Callable):
    """numpy's _reconstruct(ndarray, (0,), b"b"): an empty array, to be filled by its state."""

    __slots__ = ()

    def __call__(self, kind, shape, code):
        if not isinstance(kind, _ArrayType):
            raise _refused(f"an array of {type(kind).__name__}")
        return _Array()


class _Array:
    __slots__ = ("value",)

    def __setstate__(self, state):
        _, shape, dtype, fortran, data = state
        if not isinstance(dtype, _Dtype):
            raise _refused("an array without a type")
        if isinstance(data, str):
            data = data.encode("latin1")
        if not isinstance(data, bytes) or len(data) != math.prod(shape) * dtype.value.itemsize:
            raise CheckpointError("not a readable .pdparams file (an array's bytes do not fit its "
                                  "shape)")
        value = np.frombuffer(data, dtype.value).reshape(shape, order="F" if fortran else "C")
        self.value = np.array(value, dtype.value.newbyteorder("="), order="C")


class _MakeDtype(_Callable):
    __slots__ = ()

    def __call__(self, code, *flags):
        code = str(code).lstrip("<>|=")
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
        if encoding not in ("latin1", "latin-1"):
            raise _refused(f"the encoding {encoding!r}")
        return str(text).encode("latin1")


class _MakeTuple(_Callable):
    __slots__ = ()

    def __call__(self, items=()):
        return tuple(items)


class _MakeDict(_Callable):
    __slots__ = ()

    def __call__(self, items=()):
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


def _plain(value):
    """Tensors for arrays, also for the (name, array) pairs of nested state dicts."""
    if isinstance(value, _Array):
        return _tensor(value.value)
    if isinstance(value, dict):
        split = value.get("UnpackBigParamInfor@@", {})
        inner = {k: _plain(v) for k, v in value.items() if k not in _BOOKKEEPING}
        for key, info in split.items():
            parts = [inner.pop(part) for part in info["slices"]]
            inner[key] = torch.cat(parts).reshape(tuple(info["OriginShape"]))
        return inner
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], _Array):
        return _tensor(value[1].value)
    if isinstance(value, (list, tuple)):
        return type(value)(map(_plain, value))
    if value is None or isinstance(value, (bool, int, float, str, bytes)):
        return value
    raise _refused(f"a {type(value).__name__.lstrip('_')} in place of a value")


def _tensor(array):
    if array.dtype == np.uint16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
