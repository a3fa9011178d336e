"""Score label maps that were predicted by any program, against a folder of truth.

examples:
  python -m tools.evaluate_labels --dataset cityscapes --gt gtFine/val --pred results
  python -m tools.evaluate_labels --dataset cityscapes --gt gtFine/val --pred segmented --ids train
  python -m tools.evaluate_labels --dataset ADE20K --gt annotations/validation --pred segmented
  python -m tools.evaluate_labels --dataset VOC --split val --gt data/VOC --pred segmented

cityscapes and minicity are scored as the official Cityscapes script does, from *_labelIds.png and
*_instanceIds.png: IoU and iIoU (nIoU) of classes and categories. Every other dataset gets its
dataset-level and image-level scores; --gt is a folder of its labels or, with --split, the data_dir
of a config. A prediction belongs to the truth whose name its own begins with. Missing, surplus and
unfit predictions are listed together, and no score is given.
"""
import json
import os
import re
import sys
from pathlib import Path

from utils import console
from utils.arguments import at_least, command_parser, require_folder

OFFICIAL = ("cityscapes", "minicity")     # the names that are scored as the benchmark does
TRUTH_ENDINGS = ("_gtFine_labelIds.png", "_gtCoarse_labelIds.png")
SHOWN = 20                                # problems printed
RULE = "-" * 32


def parse(argv):
    parser = command_parser("python -m tools.evaluate_labels", __doc__)
    add = parser.add_argument
    add("--dataset", required=True, metavar="NAME",
        help="cityscapes, minicity, or a dataset of `train.py --list datasets`; case is ignored")
    add("--gt", required=True, metavar="DIR", type=Path, help="the truth")
    add("--pred", required=True, metavar="DIR", type=Path, help="the predictions, in any subfolder")
    add("--split", metavar="NAME",
        help="--gt is the data_dir of the dataset: score this split (Cityscapes: fine labels)")
    add("--args", metavar="JSON", default="{}",
        help="further arguments of the dataset, e.g. '{\"num_classes\": 171}'")
    add("--ids", choices=("label", "train"),
        help="what predictions hold: label ids as the truth does (default for cityscapes), or "
             "train ids 0, 1, ... as inference.py writes (default for others)")
    add("--json", metavar="FILE", help="write the scores as JSON")
    add("--results", metavar="FILE", default="results.txt",
        help="write a short text of the scores (default: results.txt; '' writes none)")
    add("--ignore-index", type=int, default=255,
        help="train id of ignored pixels, for other datasets than cityscapes (default 255)")
    add("--workers", type=at_least(1), default=min(8, os.cpu_count() or 1), help="reading threads")
    args = parser.parse_args(argv)
    if args.dataset.lower() in OFFICIAL and (args.args != "{}" or args.ignore_index != 255):
        parser.error(f"{args.dataset} is scored by the official rules: --args and --ignore-index "
                     "have no effect")
    return args


def main(argv=None):
    args = parse(argv)
    require_folder(args.json, args.results)
    from utils.image_io import write_bytes
    from utils.json_values import as_json
    official = args.dataset.lower() in OFFICIAL
    scores, text, summary = (_score_cityscapes if official else _score_dataset)(args)
    print(text)
    if args.json:
        document = json.dumps(as_json(scores), indent=1, allow_nan=False)
        write_bytes(args.json, document.encode() + b"\n")
    if args.results:
        write_bytes(args.results, summary.encode() + b"\n")


def pair(truths: dict, folder: Path, suffixes: tuple) -> tuple[dict, list[str]]:
    """({name: prediction}, problems): each name of `truths` with the file that begins with it.

    After the name comes the extension, or anything that starts with neither a letter nor a digit.
    Names with folders in them are compared whole first, then by their last part.
    """
    from utils.image_io import picture_files, shown
    found, problems = {}, []
    short = {}
    for name in truths:
        short.setdefault(name.rpartition("/")[2], []).append(name)
    for path in picture_files(folder, suffixes):
        relative = os.path.splitext(path.relative_to(folder).as_posix())[0]
        name = next((start for start in _beginnings(relative) if start in truths), None)
        if name is None:
            start = next((start for start in _beginnings(relative.rpartition("/")[2])
                          if start in short), None)
            meant = short.get(start, ())
            if len(meant) != 1:
                problems.append(f"{shown(path)}: a prediction without truth" if not meant else
                                f"{shown(path)}: may belong to {len(meant)} files of the truth")
                continue
            name = meant[0]
        if name in found:
            problems.append(f"{shown(path)}: a second prediction of {shown(name)}, beside "
                            f"{shown(found[name])}")
        found.setdefault(name, path)
    problems += [f"{shown(truths[name])}: no prediction {shown(name)} in {shown(folder)}"
                 for name in truths if name not in found]
    return found, problems


def _score_cityscapes(args):
    """(scores under the official names, the official tables, the five lines of results.txt)."""
    from utils.console import warn
    from utils.errors import DataError
    from utils.image_io import shown
    from utils.metrics.cityscapes_metrics import CityscapesMetrics, count_pair
    _require_folders(args)
    folder = _city_folder(args)
    truths, problems = _city_truths(folder)
    if not truths:
        raise DataError("found no *_gtFine_labelIds.png or *_gtCoarse_labelIds.png",
                        shown(folder), "give the folder of the truth, such as gtFine/val")
    predictions, unpaired = pair(truths, args.pred, (".png",))
    instances = {name: Path(str(path).replace("_labelIds.png", "_instanceIds.png"))
                 for name, path in truths.items()}
    with_instances = [name for name, path in instances.items() if path.is_file()]
    if not with_instances:
        warn(f"{shown(args.gt)} has no *_instanceIds.png: there is no nIoU")
        instances = {}

    def count(name):
        truth = _read_city_ids(truths[name], "label")
        prediction = _read_city_ids(predictions[name], args.ids or "label")
        _require_size(prediction, predictions[name], truth, truths[name])
        return count_pair(prediction, truth, _read_instances(instances.get(name), truth))

    metrics = CityscapesMetrics()
    for counts in _counted(count, [n for n in truths if n in predictions], args.workers,
                           problems + unpaired):
        metrics.add(counts)
    named = metrics.confusion.sum(0)
    if args.ids is None and named[:7].any() and not named[19:].any():
        warn("no prediction holds an id above 18: if they are train ids, say --ids train")
    scores = metrics.compute()
    accuracy, with_ignored = metrics.accuracies()
    text = "\n".join((*_table("classes", "Class", "Classes", scores), "",
                      *_table("categories", "Category", "Categories", scores), "",
                      f"{metrics.images} images, pixel accuracy {accuracy:.4f}"))
    summary = "\n".join(f"{title}: {value}" for title, value in (
        ("IoU Class", scores["averageScoreClasses"]),
        ("iIoU Class", scores["averageScoreInstClasses"]),
        ("IoU Category", scores["averageScoreCategories"]),
        ("iIoU Category", scores["averageScoreInstCategories"]), ("Accuracy", with_ignored)))
    return scores, text, summary


def _city_folder(args):
    """--gt, or with --split the folder of that split below it."""
    from utils.errors import DataError
    from utils.image_io import shown
    places = [f"{outer}gtFine/{args.split}" for outer in ("gtFine_trainvaltest/", "", "minicity/")]
    if not args.split:
        return args.gt
    for place in places:
        if (args.gt / place).is_dir():
            return args.gt / place
    raise DataError(f"found no folder {' or '.join(places)} in it", shown(args.gt),
                    "without --split, --gt is the folder of the truth itself")


def _city_truths(folder):
    from utils.image_io import picture_files, shown
    truths, problems = {}, []
    for path in picture_files(folder, (".png",)):
        ending = next((e for e in TRUTH_ENDINGS if path.name.endswith(e)), None)
        if ending is None:
            continue
        name = path.name.removesuffix(ending)
        if name in truths:
            problems.append(f"{shown(path)}: same name as {shown(truths[name])}")
        truths.setdefault(name, path)
    return truths, problems


def _read_city_ids(path, ids):
    """A map of label ids 0..33."""
    import numpy as np

    from dataloader.cityscapes import LABEL_IDS
    from utils.image_io import read_label
    values = read_label(path)
    if ids == "train":
        table = np.full(int(values.max(initial=255)) + 1, 255, np.uint8)
        table[:len(LABEL_IDS)] = LABEL_IDS
        table[255] = 0          # unlabeled
        return _in_range(table[values], 34, values, path, "a train id 0..18, or 255")
    fix = None
    if not ((values > 18) & (values != 255)).any():
        fix = "if these are train ids, say --ids train"
    return _in_range(values, 34, values, path, "a label id 0..33", fix)


def _read_instances(path, truth):
    from utils.errors import DataError
    from utils.image_io import read_label, shown
    if path is None:
        return None
    values = read_label(path)
    _require_size(values, path, truth, path)
    if values.max(initial=0) >= 34000:
        raise DataError(f"holds instance id {values.max()}, of no class", shown(path),
                        "copy or download the file again")
    return values


def _score_dataset(args):
    """(scores, tables, the same tables) of any dataset."""
    import numpy as np
    import torch

    from utils.errors import ConfigError, DataError
    from utils.image_io import LABEL_SUFFIXES, read_label, shown
    from utils.jsonc import parse_jsonc
    from utils.metrics import DatasetMetrics, ImageMetrics, count_pixels
    from utils.metrics.table import format_table
    _require_folders(args)
    given = parse_jsonc(args.args, "--args")
    if not isinstance(given, dict):
        raise ConfigError("expected an object", "--args")
    dataset = _open_truth(args, given)
    truths = {sample.id: sample.label for sample in dataset.samples if sample.label is not None}
    if not truths and not dataset.problems:
        raise DataError("found no labels", shown(args.gt),
                        "give a folder of labels, or with --split the data_dir of the dataset")
    predictions, unpaired = pair(truths, args.pred, LABEL_SUFFIXES)
    classes, void = dataset.num_classes, _void_values(dataset)

    def count(name):
        target = dataset.read_train_ids(truths[name])
        if args.ids == "label":
            prediction = dataset.read_train_ids(predictions[name])
        else:
            stored = read_label(predictions[name])
            prediction = np.where(np.isin(stored, void), -1, stored.astype(np.int32))
            _in_range(prediction, classes, stored, predictions[name],
                      f"a train id 0..{classes - 1}, or 255",
                      "if these are encoded as the truth is, say --ids label")
        _require_size(prediction, predictions[name], target, truths[name])
        return count_pixels(torch.from_numpy(prediction)[None], torch.from_numpy(target)[None],
                            classes, args.ignore_index)

    metrics, of_images = (kind(classes, args.ignore_index)
                          for kind in (DatasetMetrics, ImageMetrics))
    names = [name for name in truths if name in predictions]
    for number, counts in enumerate(_counted(count, names, args.workers,
                                             dataset.problems + unpaired)):
        metrics.add(counts, [number])
        of_images.add(counts, [number])
    results = {**metrics.compute(), "image": of_images.compute()}
    text = format_table(results, dataset.class_names)
    image = {key: value for key, value in results["image"].items() if not key.startswith("img_")}
    return ({"dataset": type(dataset).__name__, "split": args.split,
             "class_names": dataset.class_names, **results, "image": image}, text, text)


def _open_truth(args, given):
    """The dataset, or its labels alone."""
    from dataloader.label_files import label_files
    from tools.check_dataset import open_unchecked
    from utils.errors import ConfigError, DataError
    from utils.image_io import shown
    from utils.registry import components, lookup
    known = components("datasets")
    name = {key.lower(): key for key in known}.get(args.dataset.lower(), args.dataset)
    cls = lookup(name, known, "--dataset")
    if args.split or "split" in given:
        given = {"split": args.split, **given, "data_dir": str(args.gt)}
        dataset, problems = open_unchecked(name, given, args.ignore_index)
        if dataset is None:
            raise DataError(problems[0], shown(args.gt))
        return dataset
    if cls.encodings > 1:
        raise ConfigError(f"labels of {name} come in more than one encoding", "--split",
                          "give the data_dir of the dataset as --gt and name a split")
    return label_files(cls, args.gt, None, given, args.ignore_index)


def _void_values(dataset):
    """What a prediction of train ids may hold for "no class"."""
    import numpy as np
    values = np.arange(256)
    ids = dataset.train_ids(values)
    classes = values < dataset.num_classes
    void = {255, dataset.ignore_index}
    if (ids == values)[classes].all():      # the truth holds train ids too: its void is ours
        void |= set(values[ids == dataset.ignore_index].tolist())
    return sorted(void)


def _counted(count, names, workers, problems):
    """count(name) for every name, in order; every problem at once as one DataError."""
    from concurrent.futures import ThreadPoolExecutor

    from tqdm import tqdm

    from utils.errors import DataError

    fixes = []

    def attempt(name):
        try:
            return count(name)
        except DataError as error:
            fixes.append(error.fix)
            return error.in_one_line

    with ThreadPoolExecutor(workers) as pool:
        found = list(tqdm(pool.map(attempt, names), desc="scoring", total=len(names), unit="image",
                          leave=False, dynamic_ncols=True, disable=None))
    problems = [*problems, *(one for one in found if isinstance(one, str))]
    if problems:
        more = len(problems) - SHOWN
        listed = "".join(f"\n    {text}" for text in problems[:SHOWN])
        raise DataError(f"{len(problems)} {'file is' if len(problems) == 1 else 'files are'} "
                        f"wrong, no score is given:{listed}"
                        + (f"\n    and {more} more" if more > 0 else ""),
                        fix="; ".join(dict.fromkeys(filter(None, fixes))) or None)
    return found


def _table(title, kind, kinds, scores):
    """The table of the official script."""
    yield f"{title:<17}IoU      nIoU"
    yield RULE
    instances = scores[f"{kind.lower()}InstScores"]
    for name, value in scores[f"{kind.lower()}Scores"].items():
        if name != "void":
            yield f"{name:<14}: {value:>5.3f}    {instances[name]:>5.3f}"
    yield RULE
    yield (f"Score Average : {scores[f'averageScore{kinds}']:5.3f}    "
           f"{scores[f'averageScoreInst{kinds}']:5.3f}")
    yield RULE


def _in_range(ids, end, stored, path, expected, fix=None):
    """`ids`, if none is `end` or above; the error shows the stored values."""
    import numpy as np

    from utils.errors import DataError
    from utils.image_io import shown
    wrong = ids >= end
    if wrong.any():
        values, counts = np.unique(stored[wrong], return_counts=True)
        listed = ", ".join(f"{v} ({n} pixels)" for v, n in list(zip(values, counts))[:8])
        raise DataError(f"holds {listed}; expected {expected}", shown(path), fix)
    return ids


def _require_size(ids, path, truth, truth_path):
    from utils.errors import DataError
    from utils.image_io import shown
    if ids.shape != truth.shape:
        raise DataError(f"is {ids.shape[1]}x{ids.shape[0]}, the truth {shown(truth_path.name)} "
                        f"{truth.shape[1]}x{truth.shape[0]}", shown(path))


def _require_folders(args):
    from utils.errors import DataError
    from utils.image_io import shown
    for option, folder in (("--gt", args.gt), ("--pred", args.pred)):
        if not folder.is_dir():
            raise DataError("no such folder", f"{option} {shown(folder)}")


def _beginnings(name):
    """The name, and every beginning of it that stops before a sign; the longest first."""
    yield name
    for match in reversed(list(re.finditer(r"[\W_]", name))):
        yield name[:match.start()]


if __name__ == "__main__":
    sys.exit(console.run(main))
