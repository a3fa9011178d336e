"""The files that test.py writes: results.json, results.txt, confusion_matrix.png, image scores.

results.json has the newest score at its top level. Under "runs" it has every score that was ever
written there, one for each combination of checkpoint, data, rule and way of predicting. Scoring
the same combination again replaces its entry; nothing else is lost. results.txt has the tables of
all runs. The confusion matrix is drawn for the newest score that has one; the counts of every run
are in results.json.
"""
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from utils.decision.rules import Decision
from utils.errors import DataError
from utils.evaluation.evaluate import REFINED
from utils.files.json_values import plain_json
from utils.files.whole_file import write_bytes
from utils.images.base_size import base_size_text
from utils.images.image_io import write_image
from utils.images.visualize import confusion_picture
from utils.metrics import Scores
from utils.metrics.image_scores import write_image_scores
from utils.metrics.table import format_rules, format_table
from utils.predict.open_model import OpenModel
from utils.predict.predictor import Predictor
from utils.segfix.refiner import Refiner

SCHEMA = 1
IMAGE_SCORES = ("Mean_IoU", "Mean_Dice", "Mean_Class_IoU", "Mean_Class_Dice", "Pixel_Accuracy",
                "Classes_Averaged", "Images", "published")


def score_entries(results: dict[str, Scores], opened: OpenModel, predictor: Predictor,
                  loader_key: str, section: dict, class_names: list[str],
                  classes_of_interest: list[int] | str = "all",
                  refiner: Refiner | None = None, rules: Sequence[Decision] = (),
                  read_at: int | list[int] | None = None) -> list[dict]:
    """One plain JSON object for each rule of `results`, the result of evaluate(); nan is None.

    loader_key, section: the loader of the config and its name, such as "val_loader".
    refiner: used by the rules whose names end with REFINED.
    rules: the decision rules, whose settings the entries contain.
    read_at: the base size at which the loader read images and labels; None: at their own size.
    """
    sha256 = hashlib.sha256(opened.path.read_bytes()).hexdigest()
    common = {
        "schema": SCHEMA, "dataset": section["type"],
        "split": section.get("args", {}).get("split", loader_key), "loader": loader_key,
        "data": section}
    if read_at is not None:
        common["labels_resized_to"] = read_at
    settings = {rule.name: rule.describe() for rule in rules}
    checkpoint = {"path": str(opened.path), "sha256": sha256, "epoch": opened.epoch}
    versions = {"torch": str(torch.__version__), "device": str(opened.device)}
    entries = []
    for rule, scores in results.items():
        image = _image_level(scores)
        segfix = {"segfix": refiner.describe()} if refiner and rule.endswith(REFINED) else {}
        interest = ({} if classes_of_interest == "all"
                    else {"classes_of_interest": list(classes_of_interest)})
        entries.append(plain_json({
            **common, "n_images": scores.images, "procedure": rule, **segfix,
            **settings.get(rule.removesuffix(REFINED), {}), **predictor.describe(),
            **scores.numbers(),
            "classes": _classes(scores.dataset, image, class_names),
            "image_level": {name: image[name] for name in IMAGE_SCORES if name in image},
            "confusion": scores.dataset["confusion"], **interest, "checkpoint": checkpoint,
            "versions": versions}))
    return entries


def _image_level(scores):
    assert scores.image is not None, "evaluate() scores every image on its own"
    return scores.image


def _classes(dataset, image, class_names):
    """One JSON object for each class, from the scores of both conventions."""
    return [{"id": k, "name": name, "IoU": dataset["Class_IoU"][k],
             "Dice": dataset["Class_Dice"][k], "Acc": dataset["Class_Recall"][k],
             "Precision": dataset["Class_Precision"][k], "IoU_I": image["Class_IoU"][k],
             "Dice_I": image["Class_Dice"][k], "pixels": dataset["pixels"][k]}
            for k, name in enumerate(class_names)]


def score_text(results: dict[str, Scores], entries: list[dict], class_names: list[str]) -> str:
    """The tables to print: one per rule, and the rules side by side."""
    tables = [format_table(results[entry["procedure"]], class_names, f"== {_title(entry)}")
              for entry in entries]
    if len(entries) > 1:
        tables.append(format_rules(results, class_names))
    return "\n\n".join(tables)


def write_scores(folder: str | os.PathLike, results: dict[str, Scores], entries: list[dict],
                 class_names: list[str], ids: list[str]) -> list[str]:
    """Add the scores to the files in `folder`; returns the paths of the files that were written.

    entries: of `score_entries`; each gets the name of its image scores.
    ids: of all images, by position in the dataset.
    Raises DataError if a file cannot be read or written.
    """
    folder = Path(folder)
    for entry in entries:
        code = hashlib.sha256(_title(entry).encode()).hexdigest()[:6]
        entry["image_scores"] = f"image_scores_{entry['procedure']}_{code}.csv"
        write_image_scores(folder / entry["image_scores"],
                           _image_level(results[entry["procedure"]]), ids, class_names)
    _add_to_json(folder / "results.json", entries)
    _add_to_text(folder / "results.txt", results, entries, class_names)
    written = [folder / "results.json", folder / "results.txt",
               *(folder / entry["image_scores"] for entry in entries)]
    confusion = next((entry["confusion"] for entry in entries if entry["confusion"]), None)
    if confusion:
        written.append(folder / "confusion_matrix.png")
        write_image(written[-1], confusion_picture(confusion, class_names))
    return list(map(str, written))


def _add_to_json(path, entries):
    """Add the entries to the runs, in place of runs with the same titles; the first goes on top."""
    titles = {_title(entry) for entry in entries}
    runs = [run for run in _earlier(path) if _title(run) not in titles] + entries
    text = json.dumps({**entries[0], "runs": runs}, indent=1, allow_nan=False)
    write_bytes(path, (text + "\n").encode())


def _add_to_text(path, results, entries, class_names):
    sections = _earlier_sections(path)
    for entry in entries:
        sections[_title(entry)] = format_table(results[entry["procedure"]], class_names)
    text = "\n\n".join(f"== {title}\n{table}" for title, table in sections.items())
    write_bytes(path, text.encode() + b"\n")


def _title(entry):
    """The line that identifies a score; a score replaces an earlier one with the same title."""
    way = entry["mode"]
    if entry["mode"] == "sliding":
        crop = entry["crop_size"]
        way += f" {'x'.join(map(str, crop)) if crop else 'H/2.5'}"
        way += f" overlap {entry['overlap']:.3g}" + " source tiling" * (entry["tiling"] == "source")
    if entry["scales"] != [1.0]:
        way += " at " + ", ".join(f"{scale:.4g}" for scale in entry["scales"])
    way += " + flip" * entry["flip"] + f" mean of {entry['average']}" * (
        entry["average"] != "logits") + (f" {entry['amp']}" if entry["amp"] else "")
    if entry.get("labels_resized_to"):
        way += f", images and labels at {base_size_text(entry['labels_resized_to'])}"
    elif entry.get("base_size"):
        way += f", images at {base_size_text(entry['base_size'])}, labels at their own size"
    rule = entry["procedure"]
    if entry.get("threshold", 0.5) != 0.5:
        rule += f" above {entry['threshold']}"
    if entry.get("temperature", 1.0) != 1.0:
        rule += f" at temperature {entry['temperature']:g}"
    place = entry["data"].get("args", {}).get("data_dir")
    return (f"{Path(entry['checkpoint']['path']).name}, {entry['dataset']} {entry['split']} "
            f"({entry['loader']}, {entry['n_images']} images{f' in {place}' if place else ''}), "
            f"rule {rule}, {way}"
            + (f", {entry['segfix']}" if "segfix" in entry else ""))


def _earlier(path):
    """The runs in a results.json; none if it does not exist."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))["runs"]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"is not a results file of test.py ({type(error).__name__}: {error})",
                        str(path), "move it away, or choose another folder with "
                                   "--output") from None


def _earlier_sections(path):
    """title -> table of a results.txt; none if it does not exist."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    sections = {}
    for block in ("\n" + text).split("\n== ")[1:]:
        title, _, table = block.partition("\n")
        sections[title] = table.strip("\n")
    return sections
