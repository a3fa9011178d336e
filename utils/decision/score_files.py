"""Reads the scores of classes that any program has stored, as logits for the decision rules.

Layouts: that of inference.py (utils.decision.stored_scores), nnU-Net's .npz ("probabilities" of
version 2, "softmax" of version 1, both (C, D, H, W) or (C, H, W)), and plain .npy or .npz of
(C, H, W) or (H, W, C), of volumes (C, D, H, W) or (D, H, W, C). A volume of one slice is an image.
Only plain arrays are read: nothing is unpickled, other files are never opened, and the size that a
header claims is compared with that of the file before memory is taken. Label volumes, integers in a
.npy, are read in the same way.

What the numbers are is found from their values: probabilities; scores that sum to less than 1
(mask-classification networks: sum_q p(class | q) p(mask | q), as transformers returns them), which
are divided by their sum; or logits, if any lies below 0 or above 1.
"""
import math
import os
import stat
import struct
import threading
import tokenize
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, Any, NamedTuple

import numpy as np
import torch

from utils.cli.console import notice
from utils.errors import DataError, first_line, listed, shown
from utils.images.class_names import first_difference, moved
from utils.machine.memory import free_memory, logits_too_large

SUFFIXES = (".npz", ".npy")
KEYS = ("probabilities", "softmax")     # of our files and nnU-Net's; else the only array there is
SUM_TOLERANCE = 1e-3                    # a sum of float16 probabilities may differ so much from 1
_OVERSHOOT = 0.1        # of probabilities after a cubic resize, whose sums stay 1 ...
_RESIZED_SUM = 0.02     # ... up to this
_LARGEST_SUM = 1.05     # above this, scores from 0 to 1 are neither probabilities nor partial ones
_DESCRIPTIONS = ("class_names", "palette", "activation", "posterior")
_MOST_TEXT = 1 << 25    # bytes of the class names and other small arrays
_LARGE = 1 << 28        # bytes of an array from which on the free memory is looked at
ASK = ("say it with --values logits, with --values probabilities (from 0 to 1, each is divided by "
       "their sum), or with --activation sigmoid (every class has a probability of its own)")
_SHOWN = 6
_DAMAGE = (ValueError, OSError, EOFError, KeyError, TypeError, OverflowError, SyntaxError,
           MemoryError, RuntimeError, NotImplementedError, struct.error, zlib.error,
           zipfile.BadZipFile, tokenize.TokenError)     # the last one of numpy's header parser


class StoredScores(NamedTuple):
    """The content of a file.

    values: float32 (C, H, W) or (C, D, H, W), probabilities or logits. are_logits: which of them.
    activation: "softmax" or "sigmoid". class_names, palette: of the file, None if it has none.
    posterior: what was undone of the loss of the network, as far as the file says.
    """

    values: torch.Tensor
    are_logits: bool
    activation: str
    class_names: list[str] | None = None
    palette: list[list[int]] | None = None
    posterior: str = ""

    def logits(self) -> torch.Tensor:
        """Logits (1, C, H, W) float32 whose softmax, or sigmoid, are the probabilities.

        Of a volume (1, C, D, H, W). Probabilities of 0 become -inf; a pixel whose scores are all 0
        gets equal logits.
        """
        if self.are_logits:
            return self.values[None]
        if self.activation == "sigmoid":
            return torch.logit(self.values)[None]
        logits = self.values.log()
        return logits.masked_fill_(self.values.sum(0) == 0, 0.0)[None]


@dataclass
class ScoreReader:
    """Reads files whose scores have one layout.

    num_classes, activation, class_names: None until they are known; the first file then decides.
    axes: "auto", "CHW" or "HWC". values: "auto", "probabilities" or "logits". key: of the array in
    an .npz, None for the usual ones.
    """

    num_classes: int | None = None
    activation: str | None = None
    class_names: list[str] | None = None
    axes: str = "auto"
    values: str = "auto"
    key: str | None = None
    _seen: dict[str, list] = field(default_factory=dict)
    _lock: Any = field(default_factory=threading.Lock)

    def read(self, path: str | os.PathLike) -> StoredScores:
        """The scores in a file. Raises DataError, which names it, for anything unusable."""
        where = shown(path)
        content = _readable(path, lambda: _read_npy(path) if str(path).lower().endswith(".npy")
                            else _read_npz(path, self.key))
        try:
            return self._interpreted(content)
        except DataError as error:
            raise DataError(error.what, where, error.fix) from None

    def holds_volume(self, path: str | os.PathLike) -> bool:
        """Whether the scores in a file are a volume, by its header; False if it is unusable."""
        try:
            _require_file(path)
            if str(path).lower().endswith(".npy"):
                with open(path, "rb") as stream:
                    shape, _ = _read_header(stream)
            else:
                with zipfile.ZipFile(path) as archive:
                    members = _members(archive)
                    with archive.open(members[_chosen(members, self.key)]) as stream:
                        shape, _ = _read_header(stream)
        except (DataError, *_DAMAGE):
            return False
        return len(shape) == 4 and _axis_of_one(shape, self.num_classes, self.axes) is None

    def _interpreted(self, content: "_Content") -> StoredScores:
        names = content.class_names
        self._compare(names)
        classes = self.num_classes or (len(names) if names else None)
        activation = content.activation or self.activation or "softmax"
        shape = content.array.shape
        if not classes and activation == "sigmoid" and self.axes != "HWC" and len(shape) == 4 \
                and shape[0] == 1 < shape[1]:
            raise DataError(f"is {_text(content.array)}: it is not clear whether the first axis "
                            "is a single class or a single image", None,
                            "name the classes with --classes or --dataset")
        array = _classes_first(_scores_of(content.array, classes, self.axes), classes, self.axes)
        if names and len(names) != len(array):
            raise DataError(f"has {len(names)} class names and scores of {len(array)} classes: "
                            f"{_text(content.array)}")
        if classes and len(array) != classes:
            raise DataError(f"has {len(array)} classes, expected {classes}: its scores are "
                            f"{_text(content.array)}")
        classes, *slices, height, width = array.shape
        too_large = logits_too_large(math.prod(slices), classes, height, width,
                                     torch.device("cpu"))
        if too_large:
            raise DataError(too_large)
        if self.activation and activation != self.activation:
            raise DataError(f"has activation {activation}, the others {self.activation}")
        if activation == "softmax" and len(array) == 1:
            raise DataError("has one class, whose softmax is always 1", None,
                            "--activation sigmoid reads the probability of a single class")
        values = torch.from_numpy(np.array(array, np.float32, order="C"))
        if array.dtype == np.uint8:
            values.div_(255)
        are_logits = self._judge(values, activation, array.dtype == np.uint8)
        return StoredScores(values, are_logits, activation, names, content.palette,
                            content.posterior)

    def _compare(self, names):
        """Raise DataError if the classes have another order; count names spelled differently."""
        if not (names and self.class_names and len(names) == len(self.class_names)):
            return
        if elsewhere := moved(names, self.class_names):
            raise DataError(f"the order of its classes differs: {elsewhere} (in the file, "
                            "expected)")
        if difference := first_difference(names, self.class_names):
            self._note(difference, 0, 0)

    def _judge(self, values, activation, coarse) -> bool:
        """Whether the values are logits. Clips and counts what is not quite a probability."""
        finite = torch.isfinite(values)
        if not finite.all():
            raise DataError(f"{int((~finite).sum())} of {values.numel()} scores are not finite "
                            "(NaN or Inf)")
        low, high = float(values.min()), float(values.max())
        outside = low < 0 or high > 1
        if self.values == "logits":
            return True
        sums = values.sum(0) if activation == "softmax" else torch.ones(1)
        if outside and self.values == "auto" and not (
                -_OVERSHOOT <= low and high <= 1 + _OVERSHOOT
                and activation == "softmax" and float((sums - 1).abs().max()) <= _RESIZED_SUM):
            if low >= 0 and activation == "softmax" and float(sums.max() - sums.min()) <= \
                    _RESIZED_SUM * float(sums.max()):
                raise DataError(f"the scores of every pixel sum to {float(sums.max()):.4g}: it is "
                                "not clear what they are", None, ASK)
            self._note("logits", low, high)
            return True
        if outside:
            if low < -_OVERSHOOT or high > 1 + _OVERSHOOT:
                raise DataError(f"its values lie in {low:.4g} .. {high:.4g}: they are not "
                                "probabilities", None, "--values logits reads logits")
            self._note("clipped", low, high)
            values.clamp_(0, 1)
        self._judge_sums(sums, len(values) / 510 if coarse else SUM_TOLERANCE)
        return False

    def _judge_sums(self, sums, tolerance):
        low, high = float(sums.min()), float(sums.max())
        if high > _LARGEST_SUM and self.values == "auto":
            raise DataError(f"the scores of a pixel sum to {low:.4g} .. {high:.4g}: it is not "
                            "clear what they are", None, ASK)
        empty = int((sums == 0).sum())
        if empty:
            self._note("empty", empty, sums.numel())
        if max(1 - low, high - 1) > tolerance:
            self._note("sums", low, high)

    def _note(self, kind, low, high):
        with self._lock:
            self._seen.setdefault(kind, []).append((low, high))

    def forget(self):
        """Forget what was noted of the files that were read."""
        self._seen.clear()

    def tell(self):
        """One notice for each thing that was done to the values, with the number of files."""
        for difference in self._seen.keys() - {"logits", "clipped", "sums", "empty"}:
            notice(f"{_files(len(self._seen[difference]))} with other class names: {difference} "
                   "(in the file, expected)")
        for kind, text in (
                ("logits", "logits, with values from {low:.4g} to {high:.4g}: probabilities are "
                           "their {act}"),
                ("clipped", "probabilities from {low:.4g} to {high:.4g}, clipped to 0..1"),
                ("sums", "scores that sum to {low:.4g} .. {high:.4g} in a pixel, each divided by "
                         "the sum")):
            if found := self._seen.get(kind):
                text = text.format(low=min(low for low, _ in found), act=self.activation,
                                   high=max(high for _, high in found))
                notice(f"{_files(len(found))} with {text}")
        if empty := self._seen.get("empty"):
            notice(f"{_files(len(empty))} with {sum(count for count, _ in empty)} of "
                   f"{sum(total for _, total in empty)} pixels whose scores are all 0: their "
                   "classes are taken as equally probable")


def read_label_array(path: str | os.PathLike) -> np.ndarray:
    """The labels in a .npy file, uint8 or uint16 (D, H, W) or (H, W). Raises DataError."""
    def read():
        array = _read_array(lambda: open(path, "rb"), os.path.getsize(path), _check_labels)
        low, high = int(array.min()), int(array.max())
        if low < 0 or high > 65535:
            raise DataError(f"holds labels from {low} to {high}: expected 0 to 65535")
        return array.astype(np.uint8 if high < 256 else np.uint16)
    return _readable(path, read)


def _readable(path, read):
    """What `read` returns; every error of a file that is no such array becomes a DataError."""
    try:
        _require_file(path)
        return read()
    except DataError as error:
        raise DataError(error.what, shown(path), error.fix) from None
    except _DAMAGE as error:
        reason = shown(getattr(error, "strerror", None) or first_line(error))
        raise DataError(f"cannot be read, or is damaged or truncated: {reason[:120]}",
                        shown(path)) from None


def _require_file(path):
    """Raise DataError for a pipe or a device, on which a reader would wait without end."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise DataError("is not a regular file")


class _Content(NamedTuple):
    """array: the scores as stored. activation, class_names, palette: None if there are none."""

    array: np.ndarray
    activation: str | None = None
    class_names: list[str] | None = None
    palette: list[list[int]] | None = None
    posterior: str = ""


def _files(count):
    return "1 file" if count == 1 else f"{count} files"


def _text(array):
    return f"{array.dtype} ({', '.join(map(str, array.shape))})"


def _read_npy(path):
    size = os.path.getsize(path)
    return _Content(_read_array(lambda: open(path, "rb"), size))


def _read_npz(path, key):
    with zipfile.ZipFile(path) as archive:
        members = _members(archive)

        def array(name, *check):
            info = members[name]
            if info.flag_bits & 1:
                raise DataError("is encrypted", None, "store the array without a password")
            return _read_array(lambda: archive.open(info), info.file_size, *check)
        scores = array(_chosen(members, key))
        small = {name: array(name, _check_text) for name in _DESCRIPTIONS if name in members}
    activation = names = palette = None
    if "activation" in small:
        activation = str(small["activation"])
        if activation not in ("softmax", "sigmoid"):
            raise DataError(f"its activation is {shown(activation)[:40]}; expected softmax or "
                            "sigmoid")
    if "class_names" in small:
        names = [str(name) for name in small["class_names"].reshape(-1)]
    if "palette" in small and small["palette"].dtype == np.uint8 and names:
        palette = small["palette"].reshape(-1, 3).tolist()
        palette = palette if len(palette) == len(names) else None
    return _Content(scores, activation, names, palette, shown(small.get("posterior", ""))[:200])


def _members(archive):
    return {info.filename.removesuffix(".npy"): info for info in archive.infolist()
            if info.filename.endswith(".npy")}


def _chosen(members, key):
    """The name of the array of scores."""
    if key is not None:
        if key not in members:
            raise DataError(f"has no array {key!r}; it has {listed(sorted(members), _SHOWN)}")
        return key
    known = [name for name in KEYS if name in members]
    if len(known) == 1 or not known and len(members) == 1:
        return known[0] if known else next(iter(members))
    raise DataError(f"has {len(members)} arrays"
                    + (f" ({listed(sorted(members), _SHOWN, text=shown)})" if members else ""),
                    None, "name the one with the scores: --key NAME")


def _read_array(open_stream: Callable[[], IO[bytes]], size: int,
                check: "Callable[[tuple, np.dtype, int], None] | None" = None):
    """The array in a stream of `size` bytes. Raises DataError if they are not what it claims.

    check: of (shape, dtype, bytes), raises DataError; by default that they are scores.
    """
    with open_stream() as stream:
        shape, dtype = _read_header(stream)
        start = stream.tell()
    needed = math.prod(shape) * dtype.itemsize
    if dtype.hasobject:
        raise DataError("holds Python objects, which are never unpickled", None,
                        "store a plain array of numbers")
    if min(shape, default=1) < 0 or needed != size - start:
        raise DataError(f"is truncated or damaged: its header claims {_shape(shape)} {dtype}, "
                        f"{needed} bytes, and it has {size - start}")
    (check or _check_scores)(shape, dtype, needed)
    if needed > _LARGE and needed > (free_memory() or needed):
        raise DataError(f"holds {_shape(shape)} {dtype}, {needed / 2**30:.1f} GiB, which do not "
                        "fit into memory")
    with open_stream() as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)


def _read_header(stream):
    """(shape, dtype) of the array at the beginning of a stream."""
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise DataError(f"has an array of format {version[0]}.{version[1]}, which is only used "
                        "for tables")
    read_header = (np.lib.format.read_array_header_1_0 if version == (1, 0)
                   else np.lib.format.read_array_header_2_0)
    shape, _, dtype = read_header(stream)       # refuses headers above 10,000 characters
    return shape, dtype


def _check_text(shape, dtype, needed):
    if needed > _MOST_TEXT:
        raise DataError(f"has {needed} bytes of names")


def _check_scores(shape, dtype, needed):
    if not (dtype.kind == "f" and dtype.itemsize <= 8) and dtype != np.uint8:
        raise DataError(f"holds {_shape(shape)} {dtype}, which are not scores: expected float16, "
                        "float32, float64, or uint8, where 255 is 1", None,
                        "label maps are scored with tools.evaluate_labels"
                        if len(shape) == 2 else None)


def _check_labels(shape, dtype, needed):
    if dtype.kind not in "iu" or len(shape) not in (2, 3) or 0 in shape:
        raise DataError(f"holds {_shape(shape)} {dtype}: expected labels, integers (D, H, W)")


def _shape(shape):
    return f"({', '.join(map(str, shape))})"


def _axis_of_one(shape, classes, axes):
    """The axis of one slice or one image in (C, D, H, W), (N, C, H, W) or (D, H, W, C), or None.

    In (1, D, H, W) the first axis is that of the classes if there is a single one.
    """
    if shape[1] == 1 and axes != "HWC":
        return 1
    single_class = classes == 1 and axes != "HWC" and shape[-1] != 1
    return 0 if shape[0] == 1 and not single_class else None


def _scores_of(array, classes, axes):
    """The array without the axis of one slice or one image."""
    if 0 in array.shape:
        raise DataError(f"is empty: {_text(array)}")
    if array.ndim == 4:
        one = _axis_of_one(array.shape, classes, axes)
        array = array if one is None else array.squeeze(one)
    if array.ndim not in (3, 4):
        raise DataError(f"is {_text(array)}: expected (C, H, W) or (H, W, C), or a volume "
                        "(C, D, H, W) or (D, H, W, C)")
    return array


def _classes_first(array, classes, axes):
    """Classes first, of (C, [D,] H, W) or ([D,] H, W, C): by their number, or where they sum to 1.
    """
    if axes != "auto":
        return array if axes == "CHW" else np.moveaxis(array, -1, 0)
    first, last = ((classes is None or array.shape[axis] == classes) for axis in (0, -1))
    if first and last:
        first, last = (_sums_to_one(array, axis) for axis in (0, -1))
        if first == last:
            raise DataError(f"is {_text(array)}: it is not clear which axis is that of the classes",
                            None, "say it with --axes CHW or --axes HWC")
    return np.moveaxis(array, -1, 0) if last else array


def _sums_to_one(array, axis):
    one = 255 if array.dtype == np.uint8 else 1
    sums = array.sum(axis, dtype=np.float32) / one
    return bool(np.abs(sums - 1).max() <= max(_RESIZED_SUM, array.shape[axis] / 510 * (one > 1)))
