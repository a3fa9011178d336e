"""What test.py writes and prints: an entry and a table for each rule, a confusion matrix, scores
of the single images. tools.evaluate_labels writes the same for label files.

utils.evaluation.results_file keeps the entries and tables of earlier scores. The confusion matrix
is drawn for the newest score that has one; the counts of every run are in results.json.
"""
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from utils.cli import console
from utils.decision.ensemble import Ensemble, MeanPosterior
from utils.decision.rules import Decision
from utils.errors import DataError, UserError, files_text
from utils.evaluation.evaluate import REFINED
from utils.evaluation.label_pairs import LabelFileScores
from utils.evaluation.regret import PARTS
from utils.evaluation.regret_chart import regret_picture
from utils.evaluation.results_file import Entry, add_results, code_of, title_of
from utils.files.json_values import plain_json
from utils.files.whole_file import write_bytes
from utils.images.image_io import write_image
from utils.images.visualize import confusion_picture
from utils.metrics import Scores
from utils.metrics.confidence import intervals
from utils.metrics.image_scores import image_scores, write_image_scores
from utils.metrics.risk_coverage import risk_coverage_picture
from utils.metrics.table import (
    aligned,
    cell,
    format_intervals,
    format_rules,
    format_table,
    percent,
)
from utils.predict.open_model import OpenModel
from utils.predict.predictor import Predictor
from utils.predict.protocols import changes
from utils.segfix.refiner import Refiner

# 2: checkpoint.epoch is the number of finished epochs; before, it was one more. "intervals" and
# the settings of rules are new. No key of 1 is gone.
SCHEMA = 2
IMAGE_SCORES = ("Mean_IoU", "Mean_Dice", "Mean_Class_IoU", "Mean_Class_Dice", "Pixel_Accuracy",
                "Classes_Averaged", "Images", "published")


@dataclass(frozen=True)
class Scored:
    """What was scored, and how: all that tells one result from another.

    opened: the network, or the first one of an ensemble.
    rules: as given to evaluate(); refiner: also.
    loader_key, section: the loader of the config and its name, such as "val_loader".
    options: the `predict` section, with the arguments of the command line.
    read_at: the base size at which the loader read images and labels; None: at their own size.
    data_title: the name of the data for people.
    """

    opened: OpenModel
    predictor: Predictor | Ensemble
    rules: list[Decision]
    loader_key: str
    section: dict
    class_names: list[str]
    options: dict
    refiner: Refiner | None = None
    read_at: int | list[int] | None = None
    data_title: str = ""

    def setting(self, rule: str) -> dict[str, Any]:
        """The part of the entry of a rule that is known before the evaluation.

        Another value of any key is another result, which does not replace this one. Parts of the
        program describe themselves: Predictor.describe, Decision.describe, Refiner.describe.
        "ensemble" stands in place of "checkpoint" for several networks.
        """
        opened, section, options = self.opened, self.section, self.options
        by_name = {decision.name: decision for decision in self.rules}
        refined = self.refiner is not None and rule.endswith(REFINED)
        decision = by_name[rule.removesuffix(REFINED) if refined else rule]
        # Keys for what is seldom used are only there if it is.
        seldom = {"protocol": options.get("protocol"), "protocol_changes": changes(options),
                  "segfix": self.refiner.describe() if refined and self.refiner else None,
                  "labels_resized_to": self.read_at, "data_title": self.data_title,
                  "published": options.get("published"), "boundary": options.get("boundary"),
                  "classes_of_interest": None if options.get("CoI", "all") == "all"
                  else list(options["CoI"])}
        return {
            "dataset": section["type"],
            "split": section.get("args", {}).get("split", self.loader_key),
            "loader": self.loader_key, "data": section,
            "ignore_index": opened.config.get("ignore_index"), "procedure": rule,
            **{key: value for key, value in seldom.items() if value}, **decision.describe(),
            **self.predictor.describe(), **self._weights(decision)}

    def _weights(self, decision: Decision) -> dict[str, Any]:
        """The checkpoint, or the networks of an ensemble with what is different of each."""
        if isinstance(self.predictor, Ensemble):
            posterior = getattr(decision, "posterior", None)
            raw = isinstance(posterior, MeanPosterior) and posterior.raw
            return {"ensemble": self.predictor.describe_networks(raw)}
        opened = self.opened
        return {"checkpoint": {"path": str(opened.path), "sha256": opened.sha256,
                               "epoch": opened.epoch}}


def score_entries(results: dict[str, Scores], scored: Scored) -> list[Entry]:
    """One plain JSON object for each rule of `results`, the result of evaluate(); nan is None.

    Raises DataError if no pixel was scored.
    """
    entries = []
    for rule, scores in results.items():
        _require_pixels(scores, scored)
        entries.append(entry_of(scores, scored.setting(rule), scored.class_names,
                                scored.options.get("CoI"), scored.opened.device))
    return entries


def file_entry(files: LabelFileScores, setting: dict[str, Any]) -> Entry:
    """The entry of label files. setting: what tells this result from another."""
    return entry_of(files.measured, setting, files.class_names)


def entry_of(scores: Scores, setting: Entry, class_names: list[str],
             classes_of_interest: list[int] | str | None = None,
             device: torch.device | str = "cpu") -> Entry:
    """The entry of one rule. setting: what tells this result from another, with "procedure"."""
    image = _image_level(scores)
    entry = plain_json({
        "schema": SCHEMA, **setting, "n_images": scores.images, **scores.numbers(),
        "classes": _classes(scores.dataset, image, class_names),
        "image_level": {name: image[name] for name in IMAGE_SCORES if name in image},
        "intervals": _intervals(image, class_names, classes_of_interest),
        "confusion": scores.dataset["confusion"],
        "versions": {"torch": str(torch.__version__), "device": str(device)}})
    entry["image_scores"] = f"image_scores_{setting['procedure']}_{code_of(entry)}.csv"
    return entry


def _require_pixels(scores, scored):
    if sum(scores.dataset["pixels"]):
        return
    args = scored.section.get("args", {})
    raise DataError(f"there is nothing to score: not one pixel of {scores.images} images has a "
                    f"label, all are ignored (ignore_index {scored.opened.config['ignore_index']})",
                    f"{scored.loader_key}: {scored.section['type']} "
                    f"{args.get('data_dir', '')}".rstrip(),
                    "check what the stored label values mean: python -m tools.check_dataset")


def _image_level(scores):
    assert scores.image is not None, "evaluate() scores every image on its own"
    return scores.image


def _intervals(image, class_names, classes_of_interest):
    """metric -> {"low", "high"}, 95 %; {} for fewer images than these need."""
    ids = list(map(str, range(1 + max(image["img_index"], default=-1))))
    table = image_scores(image, ids, class_names, classes_of_interest)
    return {name: {"low": one.low, "high": one.high} for name, one in intervals(table).items()
            if one.low == one.low}


def _classes(dataset, image, class_names):
    """One JSON object for each class, from the scores of both conventions."""
    return [{"id": k, "name": name, "IoU": dataset["Class_IoU"][k],
             "Dice": dataset["Class_Dice"][k], "Acc": dataset["Class_Recall"][k],
             "Precision": dataset["Class_Precision"][k], "IoU_I": image["Class_IoU"][k],
             "Dice_I": image["Class_Dice"][k], "pixels": dataset["pixels"][k]}
            for k, name in enumerate(class_names)]


def score_text(results: dict[str, Scores], entries: list[Entry], class_names: list[str]) -> str:
    """The tables to print: one per rule, and the rules side by side."""
    tables = [f"== {title_of(entry)}\n{table_of(entry)}" for entry in entries]
    if len(entries) > 1:
        tables.append(format_rules(results, class_names))
    return "\n\n".join(tables)


def table_of(entry: Entry) -> str:
    """The table of an entry, also of one that an older version of test.py has written."""
    classes = entry.get("classes") or []
    dataset = {"Class_IoU": _column(classes, "IoU"), "Class_Dice": _column(classes, "Dice"),
               "Class_Recall": _column(classes, "Acc"),
               **{name: entry.get(name) for name in ("Mean_IoU", "Mean_Dice", "Classes_Averaged",
                                                     "Pixel_Accuracy", "Binary_Accuracy")}}
    image = {"published": False, **dict.fromkeys(IMAGE_SCORES[:-1]),
             **(entry.get("image_level") or {}),
             "Class_IoU": _column(classes, "IoU_I"), "Class_Dice": _column(classes, "Dice_I")}
    boundary = entry if entry.get("Boundary_IoU") is not None else None
    table = format_table(Scores(dataset, image, boundary), [one.get("name") for one in classes])
    if risk := entry.get("risk_coverage"):
        table += (f"\nMost probable class: error rate {percent(risk.get('risk'))}, area under the "
                  f"risk-coverage curve AURC {percent(risk.get('AURC'))}, E-AURC "
                  f"{percent(risk.get('E_AURC'))}")
    if regret := entry.get("regret"):
        table += f"\n{_regret_table(regret, classes)}"
    bounds = format_intervals(entry.get("intervals") or {})
    return f"{table}\n{bounds}" if bounds else table


def _regret_table(regret, classes):
    """Where the Dice of a rule is lost: a line for each class, and one for the mean."""
    rows = [["id", "class", "Dice_I", *PARTS]]
    names = [[str(k), cell(one.get("name"))] for k, one in enumerate(classes)]
    for name, one in (*zip(names, regret["classes"], strict=True), (["", "mean"], regret)):
        rows.append([*name, percent(one["Dice"]), *(_with_bounds(one[part]) for part in PARTS)])
    lines = ["Where the Dice is lost: Dice_I and the four parts add up to 100 (docs/rankdice.md)",
             *aligned(rows, (1,))]
    if percent(regret["promised"]) != "-":
        lines.append("Solver, as the probabilities expect it: " + percent(regret["promised"]))
    return "\n".join(lines)


def _with_bounds(part):
    value, high = part["value"], part["high"]
    text = "0.00" if percent(value) == "-0.00" else percent(value)
    return text + ("" if high is None or value is None else f" +-{percent(high - value)}")


def _column(classes, key):
    return [one.get(key) for one in classes]


def deliver(folder: str | os.PathLike, results: dict[str, Scores], entries: list[Entry],
            class_names: list[str], ids: list[str], as_json: bool = False):
    """Write the files (see `write_scores`), then print tables, or one JSON object per rule.

    In this order, because whoever reads the output may have left, and its disk may be full. What
    cannot be written is printed before the error ends the program.
    """
    text = ("\n".join(map(json.dumps, entries)) if as_json
            else score_text(results, entries, class_names))
    try:
        written = write_scores(folder, results, entries, class_names, ids)
    except UserError:
        console.output(text)
        raise
    console.notice("written in " + files_text(folder, written))
    console.output(text)


def write_scores(folder: str | os.PathLike, results: dict[str, Scores], entries: list[Entry],
                 class_names: list[str], ids: list[str]) -> list[str]:
    """Add the scores to the files in `folder`; returns the names of the files that were written.

    entries: of `score_entries`. ids: of all images, by position in the dataset.
    Raises DataError if a file cannot be read or written.
    """
    folder = Path(folder)
    # First what cannot be computed again from the other files.
    add_results(folder, entries, table_of)
    written = [folder / "results.json", folder / "results.txt"]
    for entry in entries:
        written.append(folder / entry["image_scores"])
        write_image_scores(written[-1], _image_level(results[entry["procedure"]]), ids,
                           class_names)
    risk = next((entry["risk_coverage"] for entry in entries if "risk_coverage" in entry), None)
    if risk:
        written.append(folder / "risk_coverage.png")
        write_bytes(written[-1], risk_coverage_picture(risk))
    for entry in entries:
        if "regret" in entry:
            written.append(folder / f"regret_{entry['procedure']}.png")
            write_bytes(written[-1], regret_picture(
                entry["regret"], class_names, title_of(entry)))
    confusion = next((entry["confusion"] for entry in entries if entry["confusion"]), None)
    if confusion:
        written.append(folder / "confusion_matrix.png")
        write_image(written[-1], confusion_picture(confusion, class_names))
    return [path.name for path in written]
