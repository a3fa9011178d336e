"""Score label maps that any program predicted, against a folder of true labels.

examples:
  python -m tools.evaluate_labels --dataset cityscapes --gt gtFine/val --pred results
  python -m tools.evaluate_labels --dataset cityscapes --gt gtFine/val --pred segmented --ids train
  python -m tools.evaluate_labels --dataset ADE20K --gt annotations/validation --pred segmented
  python -m tools.evaluate_labels --dataset VOC --split val --gt data/VOC --pred segmented
  python -m tools.evaluate_labels --dataset CamVid --split val --gt data/CamVid --pred theirs -o a
  python -m tools.evaluate_labels --dataset cityscapes --gt gtFine/val --pred masks --instances

cityscapes and minicity are scored as the official Cityscapes script does, from *_labelIds.png and
*_instanceIds.png: IoU and iIoU (nIoU) of classes and categories. Every other dataset gets
dataset-level and image-level scores; --gt is a folder of its labels or, with --split, the data_dir
of a config. The name of a prediction must begin with the name of its true label; x_overlay.png next
to x.png is left out, and so are predictions of other splits. If predictions are missing or wrong,
all of them are listed and no score is given.

-o FOLDER writes what test.py writes: results.json, results.txt and the scores of every image, for
tools.compare_results and `tools.study --from`. Images are paired by the names of the true labels;
with --split these are the names that test.py uses.

--instances scores masks of instances by the official rules: AP and AP50 of eight classes. For each
image --pred has a text file that begins with its name, with lines "MASK LABEL_ID SCORE".
"""
import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.cli import console
from utils.cli.arguments import DEFAULT_WORKERS, at_least, command_parser, require_folder
from utils.errors import ConfigError, DataError, files_text, shown

if TYPE_CHECKING:
    from base.base_dataset import BaseDataset
    from utils.evaluation.label_pairs import LabelFileScores
    from utils.evaluation.results_file import Entry

# Datasets that are scored by the official rules, and the types of their configs.
OFFICIAL = {"cityscapes": "CityScapes", "minicity": "MiniCity"}


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = command_parser("python -m tools.evaluate_labels", __doc__)
    add = parser.add_argument
    add("--dataset", required=True, metavar="NAME",
        help="cityscapes, minicity, or a dataset of `train.py --list datasets`; case is ignored")
    add("--gt", required=True, metavar="DIR", type=Path, help="the true labels")
    add("--pred", required=True, metavar="DIR", type=Path, help="the predictions, in any subfolder")
    add("--split", metavar="NAME",
        help="--gt is the data_dir of the dataset: score this split (Cityscapes: fine labels)")
    add("--args", metavar="JSON", default="{}",
        help="further arguments of the dataset, e.g. '{\"num_classes\": 171}'; "
             "'{\"train_void\": true}' if the network has a class for void")
    add("--ids", choices=("label", "train"),
        help="what predictions contain: label ids as the truth (default for cityscapes), or "
             "train ids 0, 1, ... as inference.py writes (default for others, unless the "
             "values can only be those of the truth)")
    add("--instances", action="store_true",
        help="score masks of instances: average precision (cityscapes and minicity)")
    add("-o", "--output", metavar="FOLDER",
        help="write results.json, results.txt and image scores there, as test.py does")
    add("--json", metavar="FILE", help="write the scores as one JSON object")
    add("--results", metavar="FILE",
        help="write a short text of the scores (default: results.txt, or none with -o; '' writes "
             "none)")
    add("--ignore-index", type=int, default=255,
        help="train id of ignored pixels, for other datasets than cityscapes (default 255)")
    add("--workers", type=at_least(1), default=DEFAULT_WORKERS, help="reading threads")
    args = parser.parse_args(argv)
    if args.dataset.lower() in OFFICIAL and (args.args != "{}" or args.ignore_index != 255):
        parser.error(f"{args.dataset} is scored by the official rules: --args and --ignore-index "
                     "have no effect")
    if args.instances:
        if args.dataset.lower() not in OFFICIAL:
            parser.error(f"--instances is for {' and '.join(OFFICIAL)}")
        for option, given in (("--ids", args.ids), ("-o", args.output)):
            if given:
                parser.error(f"{option} has no effect with --instances: " + (
                    "the text files hold label ids" if option == "--ids" else
                    "average precision has no scores of single images; use --json"))
    if args.results is None:
        args.results = "" if args.output else "results.txt"
    return args


def main(argv: list[str] | None = None):
    args = parse(argv)
    require_folder(args.json, args.results)
    for option, folder in (("--gt", args.gt), ("--pred", args.pred)):
        if not folder.is_dir():
            raise DataError("no such folder", f"{option} {shown(folder)}")
    if args.output:
        _prepare_output(args)
    if args.instances:
        from utils.evaluation.cityscapes_instances import score_instances
        scores, text = score_instances(_city_folder(args), args.pred, args.workers)
        summary = text
    else:
        scores, text, summary = _score_labels(args)
    _write(args, scores, summary)
    console.output(text)


def _score_labels(args) -> tuple[dict[str, Any], str, str]:
    """(scores for a JSON file, tables, a short text) of label maps; writes the files of -o."""
    from utils.evaluation.score_report import file_entry, write_scores
    from utils.metrics.table import format_intervals
    found = _score(args)
    entry = file_entry(found, _setting(args, found))
    scores, text, summary, bounds = found.scores, found.text, found.summary, entry["intervals"]
    if bounds:
        scores = {**scores, "intervals": bounds}
        text, summary = (f"{one}\n{format_intervals(bounds)}" for one in (text, summary))
    if args.output:
        if args.dataset.lower() in OFFICIAL:
            entry["official"] = {key: value for key, value in found.scores.items()
                                 if key != "confusion_34x34"}
        written = write_scores(args.output, {entry["procedure"]: found.measured}, [entry],
                               found.class_names, found.names)
        console.notice("written in " + files_text(args.output, written))
    return scores, text, summary


def _setting(args, found: "LabelFileScores") -> "Entry":
    """What tells this result from another in results.json."""
    name = OFFICIAL.get(args.dataset.lower()) or found.scores["dataset"]
    ids = found.scores.get("ids") or args.ids or "label"
    return {"dataset": name, "split": args.split, "loader": "labels",
            "data": {"type": name, "args": {**_dataset_args(args), "data_dir": str(args.gt)}},
            "ignore_index": args.ignore_index, "procedure": "files", "mode": "label files",
            "predictions": {"path": str(args.pred), "ids": ids}}


def _prepare_output(args):
    """Create the folder of -o and look at the results in it. Raises if they cannot lie there."""
    from utils.evaluation.results_file import check_results
    from utils.images.image_list import prepare_folder
    place = os.path.realpath(args.output)
    for option, folder in (("--gt", args.gt), ("--pred", args.pred)):
        root = os.path.realpath(folder)
        if os.path.commonpath([place, root]) == root:
            raise ConfigError(f"the results would lie among the files of {option}",
                              f"-o {shown(args.output)}", "choose another folder")
    prepare_folder(args.output)
    check_results(Path(args.output))


def _write(args, scores: dict[str, Any], summary: str):
    """Write the files of --json and --results."""
    from utils.files.json_values import plain_json
    from utils.files.whole_file import write_bytes
    if args.json:
        document = json.dumps(plain_json(scores), indent=1, allow_nan=False)
        write_bytes(args.json, document.encode() + b"\n")
    if args.results:
        write_bytes(args.results, summary.encode("utf-8", "backslashreplace") + b"\n")


def _score(args) -> "LabelFileScores":
    if args.dataset.lower() in OFFICIAL:
        from utils.evaluation.cityscapes_files import score_cityscapes
        return score_cityscapes(_city_folder(args), args.pred, args.ids, args.workers)
    from utils.evaluation.label_scores import score_labels
    dataset_args = _dataset_args(args)
    train_void = dataset_args.pop("train_void", False)
    if not isinstance(train_void, bool):
        raise ConfigError(f"train_void: expected true or false, got {train_void!r}", "--args")
    if train_void and args.ids == "label":
        raise ConfigError("train_void has no effect: label values have no class for void",
                          "--args", "leave it out")
    dataset = _open_truth(args, dataset_args)
    if not dataset.problems and not any(sample.label for sample in dataset.samples):
        raise DataError("found no labels", shown(args.gt),
                        "give a folder of labels, or with --split the data_dir of the dataset")
    return score_labels(dataset, args.pred, args.ids, args.split, args.workers, train_void)


def _dataset_args(args) -> dict[str, Any]:
    from utils.files.jsonc import parse_jsonc
    dataset_args = parse_jsonc(args.args, "--args")
    if not isinstance(dataset_args, dict):
        raise ConfigError("expected an object", "--args")
    return dataset_args


def _city_folder(args):
    """--gt, or with --split the folder of that split below it."""
    places = [f"{outer}gtFine/{args.split}" for outer in ("gtFine_trainvaltest/", "", "minicity/")]
    if not args.split:
        return args.gt
    for place in places:
        if (args.gt / place).is_dir():
            return args.gt / place
    raise DataError(f"found no folder {' or '.join(places)} in it", shown(args.gt),
                    "without --split, --gt is the folder of the truth itself")


def _open_truth(args, dataset_args: dict[str, Any]) -> "BaseDataset":
    """The dataset, or only its labels if --gt is a folder of labels."""
    from dataloader.dataset_report import open_unchecked
    from dataloader.label_files import label_files
    from utils.config.registry import components, lookup
    known = components("datasets")
    wanted: str = args.dataset
    name = {key.lower(): key for key in known}.get(wanted.lower(), wanted)
    cls = lookup(name, known, "--dataset")
    if args.split or "split" in dataset_args:
        dataset_args = {"split": args.split, **dataset_args, "data_dir": str(args.gt)}
        return open_unchecked(name, dataset_args, args.ignore_index)
    if cls.encodings > 1:
        raise ConfigError(f"labels of {name} come in more than one encoding", "--split",
                          "give the data_dir of the dataset as --gt and name a split")
    return label_files(cls, args.gt, None, dataset_args, args.ignore_index)


if __name__ == "__main__":
    sys.exit(console.run(main))
