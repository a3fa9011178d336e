"""Reads and writes the safetensors format: a JSON header that says where each tensor lies.

Eight bytes with the length of the header (little-endian), the header, then the values, row by row
and little-endian. The header maps each name to {"dtype", "shape", "data_offsets": [begin, end]},
and "__metadata__" to texts. Nothing in such a file can run. Its numbers are checked before memory
is taken for them: the places of the tensors must fill the file, without a gap and without overlap.

Metadata of Segwright has the entries of a checkpoint as JSON, so that such a file is one. It also
has a SHA-256 of header and values, because the format itself would not notice a changed bit. Files
of other programs have none.
"""
import hashlib
import json
import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from utils.checkpoint.format import Checkpoint, DamagedCheckpoint
from utils.errors import CheckpointError, DataError, shown
from utils.files.whole_file import unfinished

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
          "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
          "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8,
          "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "BOOL": torch.bool,
          "C64": torch.complex64}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
# Bytes of a header: one of ten thousand tensors has about one million. Python takes fifty times as
# many for a hostile one.
MOST_HEADER = 5_000_000
MOST_AXES = 32
_MOST_BYTES = 2 ** 63       # of a tensor, and of the strides of an empty one
_METADATA = "__metadata__"
_FORMAT, _SUM = "segwright_format", "segwright_sha256"
# Entries of a checkpoint that are stored as JSON, besides its tensors and format.
_ENTRIES = ("config", "class_names", "palette", "normalization", "activation", "epoch", "versions")


def is_safetensors(path: str | os.PathLike) -> bool:
    """Whether a file begins as one of this format: a length below a terabyte, then a "{"."""
    try:
        with open(path, "rb") as stream:
            start = stream.read(9)
    except OSError:
        return False
    return start[5:] == b"\0\0\0{"


def write_safetensors(path: str | os.PathLike, checkpoint: Checkpoint):
    """Write the network of a checkpoint, with all that is needed to predict. Raises DataError.

    Tensors that share memory are written once for each of their names.
    """
    tensors = {name: tensor.detach().cpu().contiguous()
               for name, tensor in (checkpoint.get("ema") or checkpoint["model"]).items()}
    try:
        metadata = {key: json.dumps(checkpoint[key], ensure_ascii=False)
                    for key in _ENTRIES if key in checkpoint}
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"an entry of the checkpoint is no JSON: {error}", str(path),
                        "use a checkpoint that Segwright wrote") from None
    metadata |= {"format": "pt", _FORMAT: str(checkpoint["format"])}
    strange = next((name for name in tensors if tensors[name].dtype not in _NAMES), None)
    if strange is not None:
        raise DataError(f"{strange} has the type {tensors[strange].dtype}, which the format lacks",
                        str(path), "convert the tensor first")
    # The largest elements first, so that all are aligned.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {}
    end = 0
    for name in order:
        begin, end = end, end + tensors[name].numel() * tensors[name].element_size()
        header[name] = {"dtype": _NAMES[tensors[name].dtype], "shape": list(tensors[name].shape),
                        "data_offsets": [begin, end]}
    sha = _sum_of_header(header, metadata)
    for name in order:
        sha.update(_bytes(tensors[name]))
    header = {_METADATA: {**metadata, _SUM: sha.hexdigest()}, **header}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with unfinished(path) as temporary, open(temporary, "wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            stream.write(_bytes(tensors[name]))


def read_safetensors(path: Path, values: bool = True) -> dict[str, Any]:
    """The checkpoint in a file of `write_safetensors`; of another one the state dict.

    values: whether to read the tensors; without, they are on the device "meta".
    Raises DamagedCheckpoint, CheckpointError for what is refused, and OSError.
    """
    with open(path, "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        header, metadata, start = _header(stream, size, path)
        places = _places(header, size - start, path)
        tensors, sha = {}, _sum_of_header(header, metadata)
        for name, (dtype, shape, length) in places.items():
            if not values:
                tensors[name] = torch.empty(shape, dtype=dtype, device="meta")
                continue
            data = bytearray(length)
            if stream.readinto(data) != length:
                raise _damaged(path, "it is cut off")
            sha.update(data)
            tensors[name] = _tensor(data, dtype, shape, path, name)
    if values and (_FORMAT in metadata or _SUM in metadata) \
            and metadata.get(_SUM) != sha.hexdigest():
        raise _damaged(path, "its checksum differs")
    return _checkpoint(tensors, metadata, path) if _FORMAT in metadata else tensors


def _sum_of_header(header: Mapping[str, Any], metadata: Mapping[str, str]):
    """The start of a checksum, for the values to follow: that of all else that the file says."""
    said = [header, {key: value for key, value in metadata.items() if key != _SUM}]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode())


def _header(stream: BinaryIO, size: int, path: Path):
    """(entries of the tensors, metadata, where the values begin)."""
    start = stream.read(8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if not 2 <= length <= size - 8:
        raise _damaged(path, f"its header should have {length} bytes, and the file has {size}")
    if length > MOST_HEADER:
        raise CheckpointError(f"refused: its header has {length} bytes, more than {MOST_HEADER}",
                              str(path), "use a file of the network's weights alone")
    text = stream.read(length)
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_without_doubles)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"its header is no JSON: {str(error)[:80]}") from None
    metadata = header.pop(_METADATA, {}) if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or not all(isinstance(one, str)
                                                 for one in metadata.values()):
        raise _damaged(path, "its header is no object of tensors, or its metadata are no texts")
    return header, metadata, 8 + length


def _without_doubles(pairs):
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a name occurs twice")
    return made


def _places(header: Mapping[str, Any], size: int, path: Path):
    """name -> (dtype, shape, bytes) in the order of the file, whose values have `size` bytes."""
    found = []
    for name, entry in header.items():
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise _damaged(path, f"the entry of {_short(name)} is no description of a tensor")
        dtype = DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
        shape, place = entry["shape"], entry["data_offsets"]
        if dtype is None:
            raise CheckpointError(f"{_short(name)} has the type {_short(entry['dtype'])}, which "
                                  "is not known", str(path), f"known: {', '.join(DTYPES)}")
        if not _are_counts(shape, _MOST_BYTES) or len(shape) > MOST_AXES \
                or math.prod(max(one, 1) for one in shape) * dtype.itemsize >= _MOST_BYTES \
                or not _are_counts(place, size) or len(place) != 2 \
                or place[1] - place[0] != math.prod(shape) * dtype.itemsize:
            raise _damaged(path, f"the shape and the place of {_short(name)} do not fit")
        found.append((place[0], place[1], name, dtype, shape))
    found.sort(key=lambda one: one[:2])
    ends = [0, *(one[1] for one in found)]
    for end, (begin, _, name, *_) in zip(ends, found, strict=False):
        if begin != end:
            raise _damaged(path, f"{_short(name)} overlaps another tensor, or leaves a gap")
    if ends[-1] != size:
        raise _damaged(path, f"its tensors have {ends[-1]} bytes, and the file has {size} for them")
    return {name: (dtype, shape, end - begin) for begin, end, name, dtype, shape in found}


def _are_counts(numbers, most):
    """Whether these are whole numbers from 0 to `most`."""
    return isinstance(numbers, list) and all(type(one) is int and 0 <= one <= most
                                             for one in numbers)


def _tensor(data: bytearray, dtype, shape, path, name):
    if not data:
        return torch.empty(shape, dtype=dtype)
    if dtype is torch.bool and max(data) > 1:
        raise _damaged(path, f"{_short(name)} has truth values that are neither 0 nor 1")
    return torch.frombuffer(data, dtype=dtype).reshape(shape)


def _bytes(tensor: torch.Tensor) -> memoryview:
    flat = tensor.reshape(-1)
    flat = torch.view_as_real(flat).reshape(-1) if flat.is_complex() else flat
    return flat.view(torch.uint8).numpy().data if len(flat) else memoryview(b"")


def _checkpoint(tensors, metadata, path):
    """The checkpoint of a file that Segwright wrote; its entries are checked by the caller."""
    try:
        entries = {key: json.loads(metadata[key]) for key in _ENTRIES if key in metadata}
        return {"format": int(metadata[_FORMAT]), "model": tensors, "ema": None, **entries}
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"its metadata are no JSON: {str(error)[:80]}") from None


def _short(value):
    return shown(repr(value))[:60]


def _damaged(path, what):
    return DamagedCheckpoint(f"the safetensors file is damaged: {what}", str(path),
                             "download or write it again")
