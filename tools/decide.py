"""Apply a decision rule to the stored probabilities of any program.

examples:
  python -m tools.decide saved_probabilities -p rankdice -o segmented
  python -m tools.decide nnunet_out -p rankdice -o out --labels labelsTs --classes classes.json
  python -m tools.decide theirs -p all -o out --labels data/CamVid/valannot --dataset CamVid
  python -m tools.compare_results out/results.json saved/a/results.json --rule rankdice max

FOLDER holds a file for each image, in any subfolder: the .npz files of inference.py
--probabilities, those of nnU-Net (version 2 "probabilities", version 1 "softmax"), or plain .npz
and .npy files of (C, H, W) or (H, W, C), or of volumes, (C, D, H, W) or (D, H, W, C). The result of
a volume is a label volume NAME.npy (D, H, W), and its true labels are such a file. Probabilities,
scores that do not sum to 1, and logits are told apart by their values, and what is done to them is
said. Nothing is unpickled, and .pkl files are not opened.

The label maps and masks are those of inference.py. With --labels the tables, results.json and the
scores of every image are those of test.py, so that tools.compare_results compares any two programs.
The name of a score file must begin with that of its label. A file that cannot be used is one line,
the others are done, and the exit status is 3. docs/inference.md describes the formats.
"""
import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.cli import console
from utils.cli.arguments import at_least, command_parser
from utils.errors import ConfigError, DataError, shown
from utils.predict.arguments import add_rule_arguments, add_unassigned, require_rule_arguments

if TYPE_CHECKING:
    from base.base_dataset import BaseDataset
    from utils.decision.rules import Decision
    from utils.decision.score_files import ScoreReader
    from utils.images.image_list import Source
    from utils.inference.decide_files import DecideJob, FileDecider
    from utils.inference.report import InferenceReport

RANK_SETTINGS = ("smooth", "pruning", "solver")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = command_parser("python -m tools.decide", __doc__)
    add = parser.add_argument
    add("folder", metavar="FOLDER", help="the score files, .npz or .npy")
    add("-p", "--predict", metavar="RULE", default="max",
        help="max (default), T, rankdice, rankiou, rankdice_dep or rankiou_dep; with --labels "
             "several with commas, or all")
    add("-o", "--output", default="outputs", metavar="DIR",
        help="folder for the results, with the subfolders of the input (default: outputs)")
    add("--masks", action="store_true",
        help="also write a folder NAME_masks with a 1-bit PNG per class, of a volume "
             "NAME_masks.npy, bool (C, D, H, W); masks may overlap")
    add("--labels", metavar="DIR", type=Path, help="score against the true labels in this folder")
    add("--classes", metavar="FILE",
        help="JSON file with \"names\" and, if needed, \"palette\", \"label_ids\", \"ignore_ids\" "
             "(docs/datasets.md): names and colors of the classes, and values of the labels")
    add("--dataset", metavar="NAME",
        help="instead of --classes: a dataset of `train.py --list datasets`")
    add("--args", metavar="JSON", default="{}", help="arguments of the dataset")
    add("--ignore-index", type=int, default=255, help="train id of ignored pixels (default 255)")
    add("--axes", choices=("auto", "CHW", "HWC"), default="auto",
        help="order of the axes, if it is not clear from the number of classes and the values")
    add("--values", choices=("auto", "probabilities", "logits"), default="auto",
        help="what the files hold, if it is not clear from the values")
    add("--activation", choices=("softmax", "sigmoid"),
        help="softmax: the classes of a pixel sum to 1; sigmoid: each has a probability of its "
             "own (default: as the file says, or softmax)")
    add("--key", metavar="NAME", help="name of the array of scores in .npz files")
    add_rule_arguments(parser, posterior=False)
    add_unassigned(parser)
    parser.set_defaults(posterior=None)     # what others' losses did is not known
    add("--smooth", type=float, metavar="G", help="of rankdice and rankiou (default 0)")
    add("--pruning", type=float, metavar="P",
        help="rankdice and rankiou leave a class out whose largest probability does not exceed "
             "this (default 0.5)")
    add("--solver", choices=("auto", "exact", "rma"), help="of rankdice and rankiou")
    add("--workers", type=at_least(1), default=2, metavar="N",
        help="files that are worked on at once; each needs memory (default: 2)")
    add("--json", action="store_true",
        help="print one JSON object per rule; without --labels, one about the files")
    args = parser.parse_args(argv)
    if args.classes and args.dataset:
        parser.error("--classes and --dataset both name the classes: give one of them")
    if args.args != "{}" and not args.dataset:
        parser.error("--args has no effect without --dataset")
    if args.labels and not (args.classes or args.dataset):
        parser.error("--labels needs --classes FILE or --dataset NAME, which say what the values "
                     "of the labels mean")
    if args.ignore_index != 255 and not args.labels and args.unassigned != "void":
        parser.error("--ignore-index has no effect without --labels or --unassigned void")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    from utils.decision.score_files import ScoreReader
    from utils.evaluation.results_file import check_results
    from utils.files.file_jobs import work_through
    from utils.images.image_list import prepare_folder
    from utils.inference.decide_files import FileDecider
    from utils.inference.report import InferenceReport
    reader = ScoreReader(activation=args.activation, axes=args.axes, values=args.values,
                         key=args.key)
    dataset = _open_classes(args)
    if dataset is not None:
        reader.num_classes, reader.class_names = dataset.num_classes, dataset.class_names
    report = InferenceReport()
    jobs = _plan(args, reader, dataset, report)
    if args.key and jobs and not any(
            job.source.path.lower().endswith(".npz") for job in jobs):
        raise ConfigError("--key has no effect on .npy files, which hold one array each", "--key",
                          "leave it out")
    prepare_folder(args.output)
    if args.labels:
        check_results(Path(args.output))
    names, palette = _learn(args, reader, jobs, dataset)
    decisions = _rules(args, reader)
    decider = FileDecider(reader, decisions, names, palette, dataset if args.labels else None)
    outcome = work_through(jobs, decider.decide, args.workers, "deciding", report=console.fail)
    reader.tell()
    report.done = outcome.done
    for error in outcome.failed:
        report.fail(error.where or "", error)
    for fix in dict.fromkeys(error.fix for error in outcome.failed if error.fix):
        console.notice(f"fix: {fix}")
    if args.labels and decider.digests:
        _deliver(args, decider, dataset)
    elif args.json:
        report.prediction = {"procedure": decisions[0].name, **decisions[0].describe()}
        console.output(json.dumps(report.as_dict(), indent=2))
    console.notice(f"{len(report.done)} ok, {len(report.failed)} failed; results in "
                   f"{shown(args.output)}")
    return report.status


def _open_classes(args) -> "BaseDataset | None":
    """The labels as a dataset without images; without --labels only its classes; or None."""
    if not (args.classes or args.dataset):
        return None
    from dataloader.label_files import label_files
    from utils.config.registry import components, lookup
    from utils.inference.decide_files import require_readable_labels
    known = components("datasets")
    if args.dataset:
        given: str = args.dataset
        wanted = {key.lower(): key for key in known}.get(given.lower(), given)
        cls = lookup(wanted, known, "--dataset")
    else:
        cls = known["Folder"]
    dataset_args = _dataset_args(args)
    if args.labels:
        if not args.labels.is_dir():
            raise DataError("no such folder", f"--labels {shown(args.labels)}")
        require_readable_labels(args.labels)
        return label_files(cls, args.labels, None, dataset_args, args.ignore_index, volumes=True)
    with tempfile.TemporaryDirectory() as empty:
        return label_files(cls, Path(empty), [], dataset_args, args.ignore_index)


def _dataset_args(args):
    from utils.files.jsonc import parse_jsonc
    return parse_jsonc(args.args, "--args") if args.dataset else {"classes": args.classes}


def _plan(args, reader: "ScoreReader", dataset, report: "InferenceReport") -> "list[DecideJob]":
    """The files to decide on. Files and labels without a partner are reported as failed."""
    from utils.images.image_list import plan_outputs
    from utils.inference.decide_files import DecideJob, pair_with_labels, score_files
    from utils.inference.prediction_files import LABELS, MASKS, VOLUME, VOLUME_MASKS
    sources = score_files(args.folder)
    several = "," in args.predict or args.predict == "all"
    if several and not args.labels:
        raise ConfigError("several rules make several label maps", "--predict",
                          "give one rule, or --labels to compare their scores")
    if several and args.masks:
        raise ConfigError("--masks has no effect with several rules: only scores are written",
                          "--masks", "give one rule")
    if several:
        console.notice("several rules: their scores are written, and no label maps")
    kinds: dict[tuple[str, str], list[Source]] = {(LABELS, MASKS): [], (VOLUME, VOLUME_MASKS): []}
    for source in sources:
        is_volume = reader.holds_volume(source.path)
        kinds[(VOLUME, VOLUME_MASKS) if is_volume else (LABELS, MASKS)].append(source)
    outputs = {}
    for kind, some in kinds.items():
        planned = plan_outputs(some, args.output,
                               [] if several else list(kind if args.masks else kind[:1]))
        outputs |= zip((source.path for source in some), planned, strict=True)
    if not args.labels:
        return [DecideJob(source, outputs[source.path]) for source in sources]
    labels = {sample.id: sample.label for sample in dataset.samples}
    paired, unpaired = pair_with_labels(sources, labels, args.folder)
    for path, reason in unpaired:
        console.fail(f"{shown(path)}: {reason}")
        report.fail(path, reason)
    files = list(labels.values())
    return [DecideJob(source, outputs[source.path], paired[source.path],
                      files[paired[source.path]])
            for source in sources if source.path in paired]


def _learn(args, reader: "ScoreReader", jobs, dataset) -> tuple[list[str], list[list[int]]]:
    """The names and colors of the classes; the reader then expects them, and one activation.

    What is not given is taken from the first file that can be read.
    """
    from utils.images.class_names import usable
    from utils.images.palette import class_palette
    for job in jobs:
        try:
            first = reader.read(job.source.path)
        except DataError:       # reported with the others
            continue
        reader.forget()
        reader.num_classes, reader.activation = len(first.values), first.activation
        if first.posterior and {"max", "all"} & set(args.predict.split(",")):
            console.notice(f"the files hold probabilities with {first.posterior}: max takes the "
                           "most probable class, as inference.py -p max --posterior auto does")
        if dataset is None:
            reader.class_names = first.class_names
            names = usable(first.class_names or [f"class {k}" for k in range(reader.num_classes)])
            return names, first.palette or class_palette(names)
        break
    reader.activation = reader.activation or "softmax"
    return (dataset.class_names, dataset.palette) if dataset else ([], [])


def _rules(args, reader: "ScoreReader") -> "list[Decision]":
    from utils.evaluation.evaluate import build_rules
    given: dict[str, Any] = {
        name: getattr(args, name)
        for name in ("threshold", "temperature", "unassigned", "theta", "amplitude", *RANK_SETTINGS)
        if getattr(args, name) is not None}
    rules = build_rules(args.predict, reader.activation or "softmax", given)
    if args.unassigned and len(rules) > 1:
        raise ConfigError("--unassigned has no effect with several rules: only scores are written",
                          "--unassigned", "give one rule")
    for rule in rules:
        rule.void = args.ignore_index if rule.masks and args.unassigned == "void" else None
    names = [rule.name for rule in rules]
    require_rule_arguments(args, names, {})
    return rules


def _deliver(args, decider: "FileDecider", dataset):
    """Write and print the scores as test.py does."""
    from utils.evaluation.score_report import deliver, entry_of
    count = len(decider.digests)
    results = {name: counter.scores(count) for name, counter in decider.counters.items()}
    read_as = {name: value for name in ("key", "values", "axes", "activation")
               if (value := getattr(args, name)) not in (None, "auto")}
    setting = {"dataset": type(dataset).__name__, "split": None, "loader": "labels",
               "data": {"type": type(dataset).__name__,
                        "args": {**_dataset_args(args), "data_dir": str(args.labels)}},
               "ignore_index": args.ignore_index, "mode": "stored scores",
               "predictions": {"path": args.folder, "sha256": decider.digest(), **read_as}}
    entries = [entry_of(results[one.name], {**setting, "procedure": one.name, **one.describe()},
                        decider.class_names) for one in decider.decisions]
    deliver(args.output, results, entries, decider.class_names,
            [sample.id for sample in dataset.samples], args.json)


if __name__ == "__main__":
    sys.exit(console.run(main))
