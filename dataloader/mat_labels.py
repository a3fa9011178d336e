"""Labels in MATLAB files: COCO-Stuff 10k, SBD and PASCAL-Context are released so."""
import io
from abc import abstractmethod
from pathlib import Path

import numpy as np

from base.base_dataset import BaseDataset
from utils.errors import DataError
from utils.image_io import LABEL_SUFFIXES, Header, UnreadableFile, read_pair, shown


class MatLabels(BaseDataset):
    """A dataset whose labels are .mat files, or may be.

    A label has no orientation tag of its own: one of the size of the stored,
    unturned picture is turned with it.
    """

    label_suffixes = (".mat", *LABEL_SUFFIXES)

    @property
    @abstractmethod
    def mat_variable(self) -> str:
        """The variable that holds the label, "GTcls.Segmentation" for a field of a struct."""

    def read_label(self, path):
        if path.suffix.lower() != ".mat":
            return super().read_label(path)
        return read_mat_label(path, self.mat_variable)

    def label_header(self, path):
        if path.suffix.lower() != ".mat":
            return super().label_header(path)
        height, width = self.read_label(path).shape
        return Header(width, height)

    def load(self, index):
        sample = self.samples[index]
        if sample.label is None or sample.label.suffix.lower() != ".mat":
            return super().load(index)
        return read_pair(sample.image, sample.label, label=self.read_label(sample.label))


def read_mat_label(path: Path, variable: str) -> np.ndarray:
    """The label map (H, W), uint8 or uint16, in a variable of a MATLAB file (up to version 7.2).

    variable: its name, or "struct.field".
    """
    from scipy.io import loadmat
    name, _, field = variable.partition(".")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UnreadableFile(f"cannot be opened: {error.strerror or error}", shown(path)) from None
    try:
        values = loadmat(io.BytesIO(data), variable_names=[name]).get(name)
    except Exception as error:              # the parser raises many types on bad bytes
        raise UnreadableFile(f"not a MATLAB file that can be read: {error}", shown(path),
                             "copy or download the file again") from None
    if field and values is not None:
        fields = values.dtype.names or ()
        values = values[field].flat[0] if field in fields and values.size else None
    if values is None:
        raise DataError(f"has no variable {variable}", shown(path),
                        "check that it is a label of this dataset")
    if values.ndim != 2 or values.dtype.kind not in "uif" or not values.size:
        raise DataError(f"{variable} is no map of class ids: shape {values.shape}, "
                        f"{values.dtype}", shown(path), "check that it is a label of this dataset")
    low, high = values.min(), values.max()
    if not (0 <= low <= high < 65536 and (values.dtype.kind != "f"
                                          or (values == np.floor(values)).all())):
        raise DataError(f"{variable} holds {low} to {high}: no class ids", shown(path))
    kind = np.uint8 if values.dtype == np.uint8 else np.uint16
    return np.ascontiguousarray(values, dtype=kind)
