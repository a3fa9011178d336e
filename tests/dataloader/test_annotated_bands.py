"""Annotated reads images with bands as Folder does."""
import json

import numpy as np

from dataloader.annotated import Annotated
from tests.support.band_images import band_image, write_band_data


def test_polygons_label_images_of_four_bands(tmp_path):
    args = write_band_data(tmp_path, count=2)
    images = [{"id": n, "file_name": f"p{n}.tif", "height": 40, "width": 48} for n in range(2)]
    areas = [{"id": n, "image_id": n, "category_id": 1, "iscrowd": 0, "area": 100,
              "bbox": [0, 0, 10, 10], "segmentation": [[0, 0, 10, 0, 10, 10, 0, 10]]}
             for n in range(2)]
    (tmp_path / "all.json").write_text(json.dumps({
        "images": images, "annotations": areas, "categories": [{"id": 1, "name": "field"}]}))
    (tmp_path / "c.json").write_text(json.dumps({
        "names": ["background", "field"], "bands": 4, "mean": args["mean"], "std": args["std"]}))
    dataset = Annotated(str(tmp_path), "all.json", "c.json")
    sample = dataset[0]
    assert dataset.in_channels == 4
    np.testing.assert_array_equal(sample["image"].numpy(),
                                  band_image(seed=0)[0].transpose(2, 0, 1))
    assert int(sample["label"].sum()) == 100
