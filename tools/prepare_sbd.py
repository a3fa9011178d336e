"""Make SegmentationClassAug and its lists inside VOC 2012 from SBD as it was released.

    benchmark_RELEASE/dataset/cls/ID.mat
 -> VOCdevkit/VOC2012/SegmentationClassAug/ID.png
    VOCdevkit/VOC2012/ImageSets/Segmentation/{train,val,trainval,test}_aug.txt, aug.txt

examples:
  python -m tools.prepare_sbd data/benchmark_RELEASE/dataset --voc data/VOC --dry-run
  python -m tools.prepare_sbd data/benchmark_RELEASE/dataset --voc data/VOC

VOC's own labels (with their border of 255) go in where VOC has them, SBD's elsewhere; pictures of
VOC's val are in no training list. Complete downloads give 10582, 1449 and 12031 pictures. Files
that are there are left alone, so the command can be interrupted and repeated. A damaged file is
named, the others are written, and the lists wait until all is well.
"""
import functools
import sys
from pathlib import Path

from utils import console
from utils.convert_files import Job, conversion_parser, convert

LABELS = "SegmentationClassAug"


def parse(argv):
    parser = conversion_parser("prepare_sbd", __doc__)
    parser.add_argument("--voc", required=True, type=Path, metavar="DIR",
                        help="data_dir of VOC 2012: VOC2012/, VOCdevkit/, or what holds it")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse(argv)
    from utils.errors import DataError
    from utils.image_io import shown
    jobs, problems, of_voc, extra = [], [], {}, set()
    for split in ("train", "val"):
        voc, more = _opened("VOC", args.voc, split)
        problems += more
        of_voc[split] = sorted(sample.id for sample in voc.samples)
        for sample in voc.samples:
            target = voc.root / LABELS / f"{sample.id}.png"
            jobs.append(Job((sample.label,), (target,), functools.partial(
                _write, voc, sample, target)))
    known = {name for names in of_voc.values() for name in names}
    for split in ("train", "val"):
        sbd, more = _opened("SBD", args.data_dir, split)
        problems += more
        for sample in sbd.samples:
            if sample.id not in known and sample.id not in extra:
                extra.add(sample.id)
                image = voc.root / "JPEGImages" / f"{sample.id}.jpg"
                target = voc.root / LABELS / f"{sample.id}.png"
                jobs.append(Job((sample.label,), (image, target), functools.partial(
                    _write, sbd, sample, target, image)))
    if not jobs:
        raise DataError("; ".join(problems) or "found no pictures", shown(args.data_dir))
    problems = convert(jobs, args, problems).problems
    if problems:
        console.notice("the lists were not written")
        return 3
    folder = voc.root / "ImageSets" / "Segmentation"
    for name, lines in _lists(of_voc, sorted(extra), folder).items():
        _write_list(folder / name, lines, args)


def _opened(name, root, split):
    from tools.check_dataset import open_unchecked
    from utils.errors import DataError
    from utils.image_io import shown
    dataset, problems = open_unchecked(name, {"data_dir": str(root), "split": split}, 255)
    if dataset is None:
        raise DataError("; ".join(problems), shown(root))
    if not dataset.samples:
        raise DataError("; ".join(dataset.problems) or f"found no images of split {split!r}",
                        shown(root))
    return dataset, dataset.problems


def _write(dataset, sample, target, image=None):
    """The label as a grey PNG; the picture too, where VOC lacks it."""
    from utils.errors import DataError
    from utils.image_io import read_header, shown, write_bytes, write_image
    ids, header = dataset.read_train_ids(sample.label), read_header(sample.image)
    if ids.shape != header.stored_size:
        raise DataError(f"is {ids.shape[1]}x{ids.shape[0]}, its image {header.width}x"
                        f"{header.height}", shown(sample.label))
    if image is not None and not image.is_file():
        write_bytes(image, sample.image.read_bytes())
    write_image(target, ids)


def _lists(of_voc, extra, folder):
    """name -> lines, in the order of names, as the lists that circulate have it."""
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
    from utils.image_io import make_folder, shown, write_bytes
    text = "".join(f"{line}\n" for line in lines)
    if path.is_file() and not args.force:
        there = path.read_text("utf-8", "surrogateescape").splitlines()
        if sorted(there) != sorted(lines):
            console.warn(f"{shown(path)} has {len(there)} lines, {len(lines)} would be written: "
                         "it was left as it is; --force replaces it")
        return
    if args.dry_run:
        print(f"would write {shown(path)}: {len(lines)} lines")
        return
    make_folder(path.parent, "choose another place with --output")
    write_bytes(path, text.encode("utf-8", "surrogateescape"))
    print(f"{shown(path)}: {len(lines)} lines")


if __name__ == "__main__":
    sys.exit(console.run(main))
