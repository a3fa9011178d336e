"""Probabilities of classes in files: the layout that inference.py writes.

An .npz file, uncompressed or deflated, of plain arrays; nothing in it is pickled:

    probabilities  float16 (C, H, W), or uint8 (C, H, W), where 255 is 1
    class_names    text (C,)
    palette        uint8 (C, 3), the color of each class
    activation     text (), "softmax" (the classes of a pixel sum to 1) or "sigmoid" (they do not)
    posterior      text (), what was undone of the loss, such as "class weights"; "" if nothing

float16 has 11 significant bits at any size down to 6e-5, so sums of many faint probabilities stay
right: rankdice and rankiou decide as on the original. uint8 rounds every probability below 1/510
to 0. (A class of 0.001 everywhere on 512x1024 pixels has an expected volume of 524 pixels, and
none in uint8.)
"""
import os
import zipfile
from typing import TYPE_CHECKING

import numpy as np

from utils.files.whole_file import unfinished

if TYPE_CHECKING:       # tools.run_onnx writes files without torch
    import torch

KINDS = ("float16", "uint8")
COARSE = ("uint8 rounds probabilities below 1/510 to 0: from such files rankdice and rankiou give "
          "smaller masks to classes with many faint pixels; float16 keeps their decisions")
_LEVEL = 1          # of deflate: higher ones take several times as long for a few percent


def stored_form(probs: "torch.Tensor", kind: str = "float16") -> np.ndarray:
    """Probabilities, any float, in the form that files hold: float16, or uint8, where 255 is 1.

    The tensor may be changed.
    """
    import torch
    if kind == "float16":
        return probs.half().cpu().numpy()
    return probs.mul_(255).round_().to(torch.uint8).cpu().numpy()


def write_probabilities(path: str | os.PathLike, probs: np.ndarray, class_names: list[str],
                        palette: list[list[int]], activation: str, posterior: str = ""):
    """Write a file in the layout above, complete or not at all.

    probs: of `stored_form`, (C, H, W); it may be mapped from a file, since it is written in parts.
    Raises DataError if the file cannot be written.
    """
    arrays = {"class_names": np.array(class_names, np.str_),
              "palette": np.array(palette, np.uint8).reshape(-1, 3),
              "activation": np.array(activation, np.str_),
              "posterior": np.array(posterior, np.str_), "probabilities": probs}
    with unfinished(path) as temporary, zipfile.ZipFile(
            temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=_LEVEL) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
