"""Compares what annotations cost with what they stand beside: parsing JSON, decoding a JPEG.

    python -m benchmarks.annotations        half a minute on one core

Opening: a COCO file of 1000 images and 200,000 outlines of 24 points against json.loads of the same
file. A sample: the label of one of its images, 640x480 with 200 outlines, against decoding a JPEG
of this size. CPU times; the smallest of several runs.
"""
import argparse
import json
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

from dataloader.shapes import Shapes
from utils.annotations import coco
from utils.annotations.annotation_set import Findings
from utils.annotations.rasterize import draw
from utils.images.image_io import read_image

IMAGES, REGIONS, POINTS, SIZE = 1000, 200, 24, (480, 640)


def main(argv: list[str] | None = None):
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.
                            RawDescriptionHelpFormatter).parse_args(argv)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        path, photo = Path(folder, "instances.json"), Path(folder, "photo.jpg")
        path.write_text(_coco_text(), "ascii")
        picture = Shapes(size=SIZE, length=1).load(0)[0].astype(np.int16)
        noise = np.random.default_rng(0).normal(0, 12, picture.shape)
        cv2.imwrite(str(photo), np.clip(picture + noise, 0, 255).astype(np.uint8))
        print(f"{path.stat().st_size >> 20} MiB of JSON, {photo.stat().st_size >> 10} KiB of JPEG")
        _compare("opening", lambda: coco.read(path, Findings()),
                 "json.loads", lambda: json.loads(path.read_bytes()), 2)
        found = coco.read(path, Findings())
        regions, values = found.images[0].regions, range(len(found.categories))
        _compare("a label", lambda: draw(regions(SIZE), values, SIZE, 255, found.overlap),
                 "its JPEG", lambda: read_image(photo), 60)


def _compare(name, ours, other_name, other, runs):
    ours, other = _seconds(ours, runs), _seconds(other, runs)
    print(f"{name} {1000 * ours:.1f} ms, {other_name} {1000 * other:.1f} ms, "
          f"ratio {ours / other:.2f}")


def _seconds(function, runs):
    times = []
    for _ in range(runs):
        begin = time.process_time()
        function()
        times.append(time.process_time() - begin)
    return min(times)


def _coco_text():
    """Outlines that cover the images about once, with two decimals."""
    rng = np.random.default_rng(0)
    annotations = []
    for number in range(IMAGES * REGIONS):
        angles = np.sort(rng.uniform(0, 2 * np.pi, POINTS))
        radii = rng.uniform(0.6, 1, POINTS) * rng.uniform(5, 35)
        center = rng.uniform(0, 1, 2) * SIZE[::-1]
        points = center + radii[:, None] * np.stack((np.cos(angles), np.sin(angles)), 1)
        annotations.append({"id": number, "image_id": number // REGIONS, "iscrowd": 0,
                            "category_id": number % 20, "bbox": [1.0, 2.0, 3.0, 4.0],
                            "segmentation": [points.round(2).ravel().tolist()]})
    return json.dumps({
        "images": [{"id": number, "file_name": f"{number:012d}.jpg", "height": SIZE[0],
                    "width": SIZE[1]} for number in range(IMAGES)],
        "annotations": annotations,
        "categories": [{"id": number, "name": f"class {number}"} for number in range(20)]})


if __name__ == "__main__":
    main()
