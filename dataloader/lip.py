"""LIP, 20 classes. Gong et al., Look into Person, CVPR 2017, arXiv:1703.05446.

    TrainVal_images/{train_images,val_images}/ID.jpg           30462 and 10000
    TrainVal_images/{train_id,val_id}.txt                      one id per line
    TrainVal_parsing_annotations/{train,val}_segmentations/ID.png
    Testing_images/testing_images/ID.jpg                       10000, without labels

or the folders train_images, train_segmentations, ... in one folder. Labels contain 0..19 and no
ignored value. Left and right are those of the person, so mirroring an image exchanges six classes;
the release's folder train_segmentations_reversed confirms it.
"""
from collections.abc import Iterator

from base.base_dataset import BaseDataset, Sample


class LIP(BaseDataset):
    """LIP as released: data_dir contains TrainVal_images/, or train_images/ and so on."""

    num_classes = 20
    class_names = ["Background", "Hat", "Hair", "Glove", "Sunglasses", "UpperClothes", "Dress",
                   "Coat", "Socks", "Pants", "Jumpsuits", "Scarf", "Skirt", "Face", "Left-arm",
                   "Right-arm", "Left-leg", "Right-leg", "Left-shoe", "Right-shoe"]
    palette = [[0, 0, 0], [128, 0, 0], [255, 0, 0], [0, 85, 0], [170, 0, 51], [255, 85, 0],
               [0, 0, 85], [0, 119, 221], [85, 85, 0], [0, 85, 85], [85, 51, 0], [52, 86, 128],
               [0, 128, 0], [0, 0, 255], [51, 170, 221], [0, 255, 255], [85, 255, 170],
               [170, 255, 85], [255, 255, 0], [255, 170, 0]]
    flip_label_pairs = ((14, 15), (16, 17), (18, 19))
    splits = ("train", "val", "test")
    split_sizes = {"train": 30462, "val": 10000, "test": 10000}

    def find_samples(self) -> Iterator[Sample]:
        if self.split == "test":
            images = self.first_folder("Testing_images/testing_images", "testing_images",
                                       "Testing_images", "test_images")
        else:
            name = f"{self.split}_images"
            images = self.first_folder(f"TrainVal_images/{name}",
                                       f"TrainVal_images/TrainVal_images/{name}", name)
        if images is None:
            return
        list_file = images.parent / f"{self.split}_id.txt"
        stems = self.read_stems(list_file) if list_file.is_file() else None
        if self.split == "test":
            yield from self.images_only(images, stems=stems)
            return
        name, outer = f"{self.split}_segmentations", "TrainVal_parsing_annotations"
        labels = self.first_folder(f"{outer}/{name}", f"{outer}/{outer}/{name}", name)
        if labels:
            yield from self.pair_by_stem(images, labels, stems=stems)
