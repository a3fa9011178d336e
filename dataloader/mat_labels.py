"""Labels in MATLAB files, as in the releases of COCO-Stuff 10k, SBD and PASCAL-Context."""
import io
from pathlib import Path

import numpy as np

from base.base_dataset import BaseDataset
from utils.errors import DataError, shown
from utils.images.headers import Header, UnreadableFile, read_bytes
from utils.images.image_io import read_pair
from utils.images.picture_files import LABEL_SUFFIXES
from utils.images.types import Image, Labels


class MatLabels(BaseDataset):
    """A dataset whose labels are .mat files, or images.

    mat_variable: the variable that contains the label, or "GTcls.Segmentation" for a
    field of a struct.

    A .mat label has no orientation tag: if it has the size of the image before the
    image's orientation is applied, it is turned with the image.
    """

    mat_variable: str

    label_suffixes = (".mat", *LABEL_SUFFIXES)

    def read_label(self, path: Path) -> Labels:
        """A label as stored, (H, W)."""
        if path.suffix.lower() != ".mat":
            return super().read_label(path)
        return read_mat_label(path, self.mat_variable)

    def label_header(self, path: Path) -> Header:
        """The size of a label; a .mat file is read for it."""
        if path.suffix.lower() != ".mat":
            return super().label_header(path)
        height, width = self.read_label(path).shape
        return Header(width, height)

    def load(self, index: int) -> tuple[Image, Labels]:
        """The image, uint8 (H, W, 3), and its label as stored, (H, W)."""
        sample = self.samples[index]
        if sample.label is None or sample.label.suffix.lower() != ".mat":
            return super().load(index)
        assert sample.image is not None, "a label file without an image is read by read_label"
        return read_pair(sample.image, sample.label, label=self.read_label(sample.label),
                         white=self.white)


def read_mat_label(path: Path, variable: str) -> Labels:
    """The label map, uint8 or uint16 (H, W), in a variable of a MATLAB file (up to version 7.2).

    variable: its name, or "struct.field". Raises DataError if the variable is missing or is
    not a label map, and UnreadableFile if the file cannot be read.
    """
    from scipy.io import loadmat
    name, _, field = variable.partition(".")
    data = read_bytes(path)
    try:
        values = loadmat(io.BytesIO(data), variable_names=[name]).get(name)
    except MemoryError:                     # says nothing about the file
        raise
    except Exception as error:              # the parser raises many types for damaged files
        raise UnreadableFile(f"not a MATLAB file that can be read: {error}", shown(path),
                             "copy or download the file again") from None
    if field and values is not None:
        fields = values.dtype.names or ()
        values = values[field].flat[0] if field in fields and values.size else None
    if values is None:
        raise DataError(f"has no variable {variable}", shown(path),
                        "check that it is a label of this dataset")
    if values.ndim != 2 or values.dtype.kind not in "uif" or not values.size:
        raise DataError(f"{variable} is not a map of class ids: shape {values.shape}, "
                        f"{values.dtype}", shown(path), "check that it is a label of this dataset")
    low, high = values.min(), values.max()
    if not (0 <= low <= high < 65536 and (values.dtype.kind != "f"
                                          or (values == np.floor(values)).all())):
        raise DataError(f"{variable} contains {low} to {high}, which are not class ids",
                        shown(path))
    kind = np.uint8 if values.dtype == np.uint8 else np.uint16
    return np.ascontiguousarray(values, dtype=kind)
