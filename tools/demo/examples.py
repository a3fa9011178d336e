"""The example pictures of the demo page: some of the data that the checkpoint was scored on.

Of images that are not RGB of 8 bits the files are given as they are; of others PNG files are made.
"""
import math
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from utils.errors import DataError, UserError, first_line, shown
from utils.evaluation.html_page import data_url, small_picture
from utils.images.band_files import BAND_SUFFIXES, input_header, read_input
from utils.images.normalize import Normalize
from utils.images.picture_files import IMAGE_SUFFIXES, evenly_spaced, picture_files

MOST = 6
_WIDTH = 160            # pixels of a picture to click


class Example(NamedTuple):
    """name: for people. picture: a small one, as a data URL. file: the one that is segmented."""

    name: str
    picture: str
    file: bytes


def of_folder(folder: str, pixels: int, normalize: Normalize) -> list[Example]:
    """Pictures of a folder, at even distances; those of more than `pixels` are left out.

    normalize: of the network, which says how images are read. Raises DataError if there is none.
    """
    bands = normalize.bands
    files = [path for path in picture_files(folder, BAND_SUFFIXES if bands else IMAGE_SUFFIXES)
             if math.prod(input_header(path, bands).size) <= pixels]
    if not files:
        raise DataError(f"no picture of at most {pixels:,} pixels", shown(folder),
                        "--examples none shows the page without examples")
    return [_example(path.name, read_input(path, normalize.white, bands), normalize, path)
            for path in evenly_spaced(files, MOST)]


def of_config(config: dict, pixels: int) -> list[Example] | str:
    """Pictures of the data that test.py scores; or why there are none on this machine."""
    from dataloader.loader import split_loader
    try:
        dataset = split_loader(config, None, own_size=True)[2].dataset
        found = []
        for index in evenly_spaced(range(len(dataset)), MOST):
            path = dataset.samples[index].image
            if path is not None and math.prod(dataset.image_header(path).size) > pixels:
                continue        # not decoded, as its label is not
            sample = dataset[index]
            image = np.asarray(sample["image"]).transpose(1, 2, 0)
            if image.shape[0] * image.shape[1] <= pixels:
                found.append(_example(sample["id"], image, dataset.normalization(), path))
    except UserError as error:
        return error.in_one_line
    except OSError as error:        # of a network disk that is gone: the page needs no data
        return first_line(error)
    return found or f"the data has no picture of at most {pixels:,} pixels"


def _example(name: str, image: np.ndarray, normalize: Normalize, path: Path | None) -> Example:
    """An Example; image: (H, W, C), as the network takes it, of the file at `path`."""
    picture = np.ascontiguousarray(normalize.picture(image))
    file = path.read_bytes() if path and normalize.bands else \
        cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes()
    return Example(shown(name), data_url(small_picture(picture, _WIDTH, photo=True), "jpeg"), file)
