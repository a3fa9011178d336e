"""Pack predicted label maps for a test server, after checking that it will accept them.

examples:
  python inference.py -r model_best.pth -i leftImg8bit/test -o results
  python -m tools.submission cityscapes results -o submission.zip
  python -m tools.submission ade20k results -o submission.zip --images release_test/testing
  python -m tools.submission acdc results --ids label -o submission.zip
  python -m tools.submission coco_stuff results --images test-dev2017 \
      -o stuff_test-dev2017_mynet_results.zip

Checked before anything is written: the number of files and their names, that every image has one
prediction, sizes, and that each file holds values of classes only. All problems are listed at once,
and then there is no zip file. Values are converted to those that the server expects. That of
COCO-Stuff takes one JSON file with a mask for each class of each image: categories 92 to 182, and
183 ("other") for the pixels of things.
"""
import argparse
import io
import json
import re
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from utils.cli import console
from utils.cli.arguments import DEFAULT_WORKERS, at_least, command_parser, require_folder
from utils.errors import DataError, listed, shown, size_text

if TYPE_CHECKING:
    import numpy as np

SHOWN = 10              # problems in a message
_FIXED = (2000, 1, 1, 0, 0, 0)      # the time of every entry: equal results give equal files


class Server(NamedTuple):
    """What a test server expects.

    about: printed by --help. name: the pattern of the names of test images, without suffix; the
    result is named NAME.png. count: of the test images. size: (height, width); None: that of each
    image. ids: for each class, its value in the label files of the dataset. wanted: whether the
    server takes these values ("label") or class ids ("train"). folder: of the files in the zip.
    masks: the zip has one JSON file of masks in place of label maps.
    """

    about: str
    name: str
    count: int
    size: tuple[int, int] | None
    ids: tuple[int, ...]
    wanted: str = "label"
    folder: str = ""
    masks: bool = False


_CITY = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
_UNUSED_STUFF = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)        # of the ids 1 to 182
SERVERS = {
    "cityscapes": Server("1525 images of 2048x1024, label ids", r"[a-z-]+_\d{6}_\d{6}_leftImg8bit",
                         1525, (1024, 2048), _CITY),
    "acdc": Server("2000 images of 1920x1080, train ids in a folder labelTrainIds",
                   r"\w+_frame_\d+_rgb_anon", 2000, (1080, 1920), _CITY, "train",
                   "labelTrainIds/"),
    "ade20k": Server("3352 images, values 1 to 150", r"ADE_test_\d{8}", 3352, None,
                     tuple(range(1, 151))),
    "coco_stuff": Server("20288 images of test-dev2017 (40670 of test2017), one JSON file of masks",
                         r"\d{12}", 40670, None,
                         tuple(one - 1 for one in range(1, 183) if one not in _UNUSED_STUFF),
                         masks=True),
    "lip": Server("10000 images, values 0 to 19", r"\d+_\d+", 10000, None, tuple(range(20))),
    "pascal_context": Server("5105 images of val, values 1 to 59", r"\d{4}_\d{6}", 5105, None,
                             tuple(range(1, 60)))}


# COCO's server knows a submission by the name of its file; sets of images and their sizes.
_STUFF_NAME = re.compile(r"stuff_(test-dev2017|test2017|val2017)_[\w.-]+_results\.zip")
_STUFF_IMAGES = {"test-dev2017": 20288, "test2017": 40670, "val2017": 5000}
_FIRST_STUFF, _OTHER = 92, 183      # categories


def parse(argv: list[str] | None) -> argparse.Namespace:
    table = "\n".join(f"  {name:<15} {one.about}" for name, one in SERVERS.items())
    parser = command_parser("python -m tools.submission", __doc__, f"servers:\n{table}\n\n")
    add = parser.add_argument
    add("server", choices=SERVERS)
    add("results", type=Path, metavar="FOLDER",
        help="the predictions (PNG), in any subfolder, named as the images; other outputs of "
             "inference.py next to them are left out")
    add("-o", "--output", required=True, metavar="ZIP", help="the file to upload")
    add("--images", type=Path, metavar="DIR",
        help="the test images: names and sizes are compared with them (needed if sizes differ)")
    add("--ids", choices=("train", "label"), default="train",
        help="what the predictions hold: class ids, as inference.py writes (default), or the "
             "values of label files, as inference.py --ids label writes")
    add("--count", type=at_least(1), metavar="N",
        help="number of test images, if yours are not all (the server will not accept these)")
    add("--workers", type=at_least(1), default=DEFAULT_WORKERS, help="reading threads")
    args = parser.parse_args(argv)
    if SERVERS[args.server].size is None and args.images is None:
        parser.error(f"{args.server}: the sizes of the images differ, so --images is needed")
    if args.server == "coco_stuff" and not _STUFF_NAME.fullmatch(Path(args.output).name):
        parser.error("coco_stuff: the server knows a submission by its name; call the output "
                     "stuff_TESTSET_NAME_results.zip, with TESTSET one of "
                     + ", ".join(_STUFF_IMAGES))
    return args


def main(argv: list[str] | None = None):
    args = parse(argv)
    server = _server(args)
    require_folder(args.output)
    for option, folder in (("FOLDER", args.results), ("--images", args.images)):
        if folder is not None and not folder.is_dir():
            raise DataError("no such folder", f"{option} {shown(folder)}")
    paths, problems = predictions(server, args.results)
    sizes, missing = wanted_sizes(server, paths, args.images, args.count)
    names = [name for name in paths if name in sizes]
    content, wrong = _read_all(server, {name: paths[name] for name in names}, sizes, args.ids,
                               args.workers)
    problems += missing + wrong
    if problems:
        raise DataError(f"{len(problems)} {'problem' if len(problems) == 1 else 'problems'}, no "
                        "file is written:\n    " + listed(problems, SHOWN, "\n    "),
                        shown(args.results))
    if server.masks:
        joined = b"[" + b",\n".join(content[name] for name in names) + b"]\n"
        write_zip(args.output, {Path(args.output).stem + ".json": joined})
    else:
        write_zip(args.output, {f"{server.folder}{name}.png": content[name] for name in names})
    if args.count:
        console.warn(f"{args.count} images are checked; the server expects {server.count}")
    console.notice(f"{args.output}: {len(names)} label maps of {args.server} "
                   f"({server.about.partition(', ')[2]})")


def _server(args) -> Server:
    """The server, with the number of the images of a test set that the output names."""
    server, match = SERVERS[args.server], _STUFF_NAME.fullmatch(Path(args.output).name)
    return server if match is None or not server.masks else server._replace(
        count=min(server.count, _STUFF_IMAGES[match[1]]))


def predictions(server: Server, folder: Path) -> tuple[dict[str, Path], list[str]]:
    """({name of the image: its prediction NAME.png}, problems)."""
    from utils.images.picture_files import picture_files
    paths, problems = {}, []
    ours = re.compile(rf"({server.name})(_overlay|_side_by_side)?\.png")
    for path in picture_files(folder, (".png",)):
        match = ours.fullmatch(path.name)
        if match is None:
            if not path.parent.name.endswith("_masks"):
                problems.append(f"{shown(path)}: not named as an image of the test set "
                                f"({server.name})")
        elif match[2]:
            continue
        elif match[1] in paths:
            problems.append(f"{shown(path)}: a second prediction for {match[1]}")
        else:
            paths[match[1]] = path
    return paths, problems


def wanted_sizes(server: Server, paths: dict[str, Path], images: Path | None,
                 count: int | None) -> tuple[dict[str, tuple[int, int]], list[str]]:
    """({name: (height, width)} of the images that have a prediction, problems)."""
    from utils.images.headers import read_header
    from utils.images.picture_files import IMAGE_SUFFIXES, picture_files
    expected, problems = count or server.count, []
    if images is None:
        assert server.size is not None
        sizes = dict.fromkeys(paths, server.size)
    else:
        found = {path.stem: path for path in picture_files(images, IMAGE_SUFFIXES)
                 if re.fullmatch(server.name, path.stem)}
        if not found:
            raise DataError(f"has no image of the test set ({server.name})", shown(images))
        if len(found) != expected:
            problems.append(f"{shown(images)}: {len(found)} images, expected {expected}")
        problems += [f"{name}: no prediction" for name in found if name not in paths]
        problems += [f"{shown(paths[name])}: no such image in {shown(images)}"
                     for name in paths if name not in found]
        sizes = {}
        for name in paths:
            try:
                if name in found:
                    sizes[name] = server.size or read_header(found[name]).size
            except DataError as error:
                problems.append(error.in_one_line)
    if len(paths) != expected:
        problems.append(f"{len(paths)} predictions, expected {expected}")
    return sizes, problems


def _read_all(server, paths, sizes, ids, workers):
    """({name: PNG or JSON as the server wants it}, problems)."""
    from utils.files.file_jobs import work_through
    convert, done = converter(server, ids), {}

    def read(name: str) -> None:
        values = converted(paths[name], sizes[name], convert)
        done[name] = stuff_masks(name, values) if server.masks else gray_png(values)
    outcome = work_through(list(paths), read, workers, "checking")
    return done, [error.in_one_line for error in outcome.failed]


def converter(server: Server, ids: str) -> "Callable[[np.ndarray, Path], np.ndarray]":
    """A function from the values of a prediction to those that the server expects, uint8.

    It raises DataError for a value that is not a class.
    """
    import numpy as np
    classes = range(len(server.ids))
    given = tuple(classes) if ids == "train" else server.ids
    other = server.ids if ids == "train" else tuple(classes)
    wanted = server.ids if server.wanted == "label" else tuple(classes)
    table = np.full(1 << 16, -1, np.int16)
    table[list(given)] = wanted

    def convert(values: np.ndarray, path: Path) -> np.ndarray:
        result = table[values.astype(np.int64)]
        if (result >= 0).all():
            return result.astype(np.uint8)
        wrong = [int(one) for one in np.unique(values[result < 0])]
        fits = set(np.unique(values).tolist()) <= set(other)
        fix = f"they fit --ids {'label' if ids == 'train' else 'train'}" if fits else None
        raise DataError(f"holds {listed(wrong, 5)}, which {'are' if len(wrong) > 1 else 'is'} not "
                        f"a class as --ids {ids}" + (f"; {fix}" if fix else ""), shown(path))
    return convert


def converted(path: Path, size: tuple[int, int],
              convert: "Callable[[np.ndarray, Path], np.ndarray]") -> "np.ndarray":
    """The values of the prediction in a file as the server expects them, (H, W) uint8.

    Raises DataError if it is wrong.
    """
    from utils.images.image_io import read_label
    values = read_label(path)
    if values.shape != size:
        raise DataError(f"is {size_text(values.shape)}, the image {size_text(size)} "
                        "(height x width)", shown(path))
    return convert(values, path)


def gray_png(values: "np.ndarray") -> bytes:
    """A gray 8-bit PNG of values (H, W)."""
    from PIL import Image
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def stuff_masks(name: str, values: "np.ndarray") -> bytes:
    """The entries of one image in COCO-Stuff's results, joined by commas.

    name: of the image, its number. values: (H, W) as in the label files, the category minus 1.
    """
    import numpy as np

    from utils.images.run_lengths import compressed_runs
    categories = values.astype(np.int64) + 1
    categories[categories < _FIRST_STUFF] = _OTHER
    entries = [{"image_id": int(name), "category_id": int(category), "segmentation": {
        "size": list(values.shape), "counts": compressed_runs(categories == category)}}
        for category in np.unique(categories)]
    return ",\n".join(map(json.dumps, entries)).encode()


def write_zip(path: str, files: dict[str, bytes]):
    """Write a zip file whole or not at all; the same files give the same bytes."""
    from utils.files.whole_file import unfinished
    with unfinished(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name in sorted(files):      # PNG is compressed already
            kind = zipfile.ZIP_STORED if name.endswith(".png") else zipfile.ZIP_DEFLATED
            archive.writestr(zipfile.ZipInfo(name, _FIXED), files[name], kind)


if __name__ == "__main__":
    sys.exit(console.run(main))
