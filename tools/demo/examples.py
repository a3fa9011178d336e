"""The example pictures of the demo page: some of the data that the checkpoint was scored on."""
import math
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from utils.errors import DataError, UserError, first_line, shown
from utils.evaluation.html_page import data_url, small_picture
from utils.images.headers import read_header
from utils.images.image_io import read_image
from utils.images.picture_files import evenly_spaced, picture_files
from utils.images.types import Image

MOST = 6
_WIDTH = 160            # pixels of a picture to click


class Example(NamedTuple):
    """name: for people. picture: a small one, as a data URL. png: the file that is segmented."""

    name: str
    picture: str
    png: bytes


def of_folder(folder: str, pixels: int, white: float | None = None) -> list[Example]:
    """Pictures of a folder, at even distances; those of more than `pixels` are left out.

    Raises DataError if there is none.
    """
    files = [path for path in picture_files(folder)
             if math.prod(read_header(path).size) <= pixels]
    if not files:
        raise DataError(f"no picture of at most {pixels:,} pixels", shown(folder),
                        "--examples none shows the page without examples")
    return [_example(Path(path).name, read_image(path, white))
            for path in evenly_spaced(files, MOST)]


def of_config(config: dict, pixels: int) -> list[Example] | str:
    """Pictures of the data that test.py scores; or why there are none on this machine."""
    from dataloader.loader import split_loader
    try:
        dataset = split_loader(config, None, own_size=True)[2].dataset
        found = []
        for index in evenly_spaced(range(len(dataset)), MOST):
            path = dataset.samples[index].image
            if path is not None and math.prod(read_header(path).size) > pixels:
                continue        # not decoded, as its label is not
            sample = dataset[index]
            image = np.asarray(sample["image"]).transpose(1, 2, 0)
            if image.shape[0] * image.shape[1] <= pixels:
                found.append(_example(sample["id"], image))
    except UserError as error:
        return error.in_one_line
    except OSError as error:        # of a network disk that is gone: the page needs no data
        return first_line(error)
    return found or f"the data has no picture of at most {pixels:,} pixels"


def _example(name: str, image: Image) -> Example:
    png = cv2.imencode(".png", cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2BGR))[1]
    return Example(shown(name), data_url(small_picture(image, _WIDTH, photo=True), "jpeg"),
                   png.tobytes())
