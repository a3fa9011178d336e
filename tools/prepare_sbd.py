"""Make SegmentationClassAug and its lists in the folder of VOC 2012 from SBD as released.

    benchmark_RELEASE/dataset/cls/ID.mat
 -> VOCdevkit/VOC2012/SegmentationClassAug/ID.png
    VOCdevkit/VOC2012/ImageSets/Segmentation/{train,val,trainval,test}_aug.txt, aug.txt

examples:
  python -m tools.prepare_sbd data/benchmark_RELEASE/dataset --voc data/VOC --dry-run
  python -m tools.prepare_sbd data/benchmark_RELEASE/dataset --voc data/VOC

The labels of VOC (with their border of 255) are used if VOC has them, otherwise those of SBD. No
training list contains a picture of VOC's val. Complete downloads give 10582, 1449 and 12031
pictures. Existing files are kept, so the command can be interrupted and repeated. A damaged file is
named, the others are written; the lists are written only if no file failed.
"""
import argparse
import functools
import sys
from pathlib import Path

from utils.cli import console
from utils.files.file_jobs import Job, conversion_parser, convert

LABELS = "SegmentationClassAug"


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = conversion_parser("prepare_sbd", __doc__)
    parser.add_argument("--voc", required=True, type=Path, metavar="DIR",
                        help="data_dir of VOC 2012: VOC2012/, VOCdevkit/, or its parent folder")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    from utils.errors import DataError, shown
    jobs, problems, of_voc, extra = [], [], {}, set()
    for split in ("train", "val"):
        voc, more = _open("VOC", args.voc, split)
        problems += more
        of_voc[split] = sorted(sample.id for sample in voc.samples)
        for sample in voc.samples:
            assert sample.label is not None
            target = voc.root / LABELS / f"{sample.id}.png"
            jobs.append(Job((sample.label,), (target,), functools.partial(
                _write, voc, sample, target)))
    known = {name for names in of_voc.values() for name in names}
    for split in ("train", "val"):
        sbd, more = _open("SBD", args.data_dir, split)
        problems += more
        for sample in sbd.samples:
            if sample.id not in known and sample.id not in extra:
                assert sample.label is not None
                extra.add(sample.id)
                image = voc.root / "JPEGImages" / f"{sample.id}.jpg"
                target = voc.root / LABELS / f"{sample.id}.png"
                jobs.append(Job((sample.label,), (image, target), functools.partial(
                    _write, sbd, sample, target, image)))
    if not jobs:
        raise DataError("; ".join(problems) or "found no pictures", shown(args.data_dir))
    outcome = convert(jobs, args, problems)
    if outcome.failed:
        console.notice("the lists were not written")
        return outcome.status
    folder = voc.root / "ImageSets" / "Segmentation"
    for name, lines in _lists(of_voc, sorted(extra), folder).items():
        _write_list(folder / name, lines, args)
    return 0


def _open(name, root, split):
    from dataloader.dataset_report import open_unchecked
    from utils.errors import DataError, shown
    dataset = open_unchecked(name, {"data_dir": str(root), "split": split}, 255)
    if not dataset.samples:
        raise DataError("; ".join(dataset.problems) or f"found no images of split {split!r}",
                        shown(root))
    return dataset, dataset.problems


def _write(dataset, sample, target, image=None):
    """Write the label as a gray PNG, and the picture if `image` is given and does not exist."""
    from utils.errors import DataError, shown, size_text
    from utils.files.whole_file import write_bytes
    from utils.images.headers import read_header
    from utils.images.image_io import write_image
    ids, header = dataset.read_train_ids(sample.label), read_header(sample.image)
    if ids.shape != header.stored_size:
        raise DataError(f"is {size_text(ids.shape)}, its image "
                        f"{size_text(header.stored_size)} (height x width)", shown(sample.label))
    if image is not None and not image.is_file():
        write_bytes(image, sample.image.read_bytes())
    write_image(target, ids)


def _lists(of_voc, extra, folder):
    """name -> lines, sorted by name as in the lists that others have published."""
    train, val = sorted([*of_voc["train"], *extra]), of_voc["val"]
    lists = {"train_aug.txt": _pairs(train), "val_aug.txt": _pairs(val),
             "trainval_aug.txt": _pairs(sorted(train + val)), "aug.txt": extra}
    if (folder / "test.txt").is_file():
        names = (folder / "test.txt").read_text("utf-8", "surrogateescape").split()
        lists["test_aug.txt"] = [f"/JPEGImages/{name}.jpg" for name in names]
    return lists


def _pairs(names):
    return [f"/JPEGImages/{name}.jpg /{LABELS}/{name}.png" for name in names]


def _write_list(path, lines, args):
    from utils.errors import shown
    from utils.files.whole_file import make_folder, write_bytes
    text = "".join(f"{line}\n" for line in lines)
    if path.is_file() and not args.force:
        existing = path.read_text("utf-8", "surrogateescape").splitlines()
        if sorted(existing) != sorted(lines):
            console.warn(f"{shown(path)} has {len(existing)} lines, {len(lines)} would be written: "
                         "it was kept; --force replaces it")
        return
    if args.dry_run:
        print(f"would write {shown(path)}: {len(lines)} lines")
        return
    make_folder(path.parent, "choose another place with --output")
    write_bytes(path, text.encode("utf-8", "surrogateescape"))
    print(f"{shown(path)}: {len(lines)} lines")


if __name__ == "__main__":
    sys.exit(console.run(main))
