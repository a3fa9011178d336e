"""What test.py leaves behind: results.json, results.txt, confusion_matrix.png and image scores.

results.json holds the newest score at its top level, and under "runs" every
score that was ever written there, one for each combination of checkpoint,
data, rule and way of predicting; measuring the same combination again replaces
its entry, nothing else is lost. results.txt has their tables. The confusion
matrix is drawn for the newest score that has one; the counts of every run are
in results.json.
"""
import hashlib
import json
from pathlib import Path

import torch

from utils.errors import DataError
from utils.evaluate import REFINED
from utils.image_io import write_bytes, write_image
from utils.json_values import as_json
from utils.metrics.image_scores import write_image_scores
from utils.metrics.table import format_rules, format_table
from utils.open_model import OpenModel
from utils.predictor import Predictor
from utils.segfix_refiner import Refiner
from utils.visualize import confusion_picture

SCHEMA = 1
SCORES = ("Mean_IoU", "Mean_Dice", "Mean_Recall", "Mean_Precision", "Pixel_Accuracy",
          "Binary_Accuracy", "FWIoU", "Classes_Averaged", "mIoU_I", "mDice_I", "Boundary_IoU",
          "Boundary_F", "loss")
IMAGE_SCORES = ("Mean_IoU", "Mean_Dice", "Mean_Class_IoU", "Mean_Class_Dice", "Pixel_Accuracy",
                "Classes_Averaged", "Images", "published")


def score_entries(results: dict[str, dict], opened: OpenModel, predictor: Predictor,
                  loader_key: str, section: dict, class_names: list[str],
                  classes_of_interest: list[int] | str = "all",
                  refiner: Refiner | None = None) -> list[dict]:
    """One plain-JSON object per rule of utils.evaluate.evaluate's results; nan becomes None.

    refiner: what refined the rules whose names end with utils.evaluate.REFINED.
    """
    sha256 = hashlib.sha256(opened.path.read_bytes()).hexdigest()
    entries = []
    for rule, scores in results.items():
        image = scores["image"]
        classes = [{"id": k, "name": name, "IoU": scores["Class_IoU"][k],
                    "Dice": scores["Class_Dice"][k], "Acc": scores["Class_Recall"][k],
                    "Precision": scores["Class_Precision"][k], "IoU_I": image["Class_IoU"][k],
                    "Dice_I": image["Class_Dice"][k], "pixels": scores["pixels"][k]}
                   for k, name in enumerate(class_names)]
        entries.append(as_json({
            "schema": SCHEMA, "dataset": section["type"],
            "split": section.get("args", {}).get("split", loader_key), "loader": loader_key,
            "data": section, "n_images": scores["images"], "procedure": rule,
            **({"segfix": refiner.describe()} if refiner and rule.endswith(REFINED) else {}),
            **predictor.describe(),
            **{name: scores[name] for name in SCORES if name in scores}, "classes": classes,
            "image_level": {name: image[name] for name in IMAGE_SCORES if name in image},
            "confusion": scores["confusion"],
            **({} if classes_of_interest == "all" else {"classes_of_interest":
                                                        list(classes_of_interest)}),
            "checkpoint": {"path": str(opened.path), "sha256": sha256, "epoch": opened.epoch},
            "versions": {"torch": str(torch.__version__), "device": str(opened.device)}}))
    return entries


def score_text(results: dict[str, dict], entries: list[dict], class_names: list[str]) -> str:
    """The tables for a person: one per rule, and the rules side by side."""
    tables = [format_table(results[entry["procedure"]], class_names, f"== {_title(entry)}")
              for entry in entries]
    if len(entries) > 1:
        tables.append(format_rules(results, class_names))
    return "\n\n".join(tables)


def write_scores(folder, results: dict[str, dict], entries: list[dict], class_names: list[str],
                 ids: list[str]) -> list[str]:
    """Add the scores to the files in `folder`; returns the paths of those that were written.

    ids: of all images, by position in the dataset.
    Raises DataError if that cannot be done.
    """
    folder = Path(folder)
    for entry in entries:
        code = hashlib.sha256(_title(entry).encode()).hexdigest()[:6]
        entry["image_scores"] = f"image_scores_{entry['procedure']}_{code}.csv"
        write_image_scores(folder / entry["image_scores"], results[entry["procedure"]], ids,
                           class_names)
    measured = {_title(entry) for entry in entries}
    runs = [run for run in _earlier(folder / "results.json") if _title(run) not in measured]
    runs += entries
    text = json.dumps({**entries[0], "runs": runs}, indent=1, allow_nan=False)
    write_bytes(folder / "results.json", (text + "\n").encode())
    sections = _earlier_sections(folder / "results.txt")
    for entry in entries:
        sections[_title(entry)] = format_table(results[entry["procedure"]], class_names)
    write_bytes(folder / "results.txt", "\n\n".join(
        f"== {title}\n{table}" for title, table in sections.items()).encode() + b"\n")
    confusion = next((results[entry["procedure"]]["confusion"] for entry in entries
                      if entry["confusion"]), None)
    written = [folder / "results.json", folder / "results.txt",
               *(folder / entry["image_scores"] for entry in entries)]
    if confusion:
        written.append(folder / "confusion_matrix.png")
        write_image(written[-1], confusion_picture(confusion, class_names))
    return list(map(str, written))


def _title(entry):
    """The line that names a score: two scores with one title are the same measurement."""
    way = entry["mode"]
    if entry["mode"] == "sliding":
        crop = entry["crop_size"]
        way += f" {'x'.join(map(str, crop)) if crop else 'H/2.5'}"
        way += f" overlap {entry['overlap']:.3g}" + " source tiling" * (entry["tiling"] == "source")
    if entry["scales"] != [1.0]:
        way += " at " + ", ".join(f"{scale:.4g}" for scale in entry["scales"])
    way += " + flip" * entry["flip"] + f" mean of {entry['average']}" * (
        entry["average"] != "logits") + (f" {entry['amp']}" if entry["amp"] else "")
    place = entry["data"].get("args", {}).get("data_dir")
    return (f"{Path(entry['checkpoint']['path']).name}, {entry['dataset']} {entry['split']} "
            f"({entry['loader']}, {entry['n_images']} images{f' in {place}' if place else ''}), "
            f"rule {entry['procedure']}, {way}"
            + (f", {entry['segfix']}" if "segfix" in entry else ""))


def _earlier(path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))["runs"]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"is no results file of this program ({type(error).__name__}: {error})",
                        str(path), "move it away, or choose another folder with "
                                   "--output") from None


def _earlier_sections(path):
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    sections = {}
    for block in ("\n" + text).split("\n== ")[1:]:
        title, _, table = block.partition("\n")
        sections[title] = table.strip("\n")
    return sections
