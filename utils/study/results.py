"""Finds and reads what runs have left in their folders: scores, curves, times.

Nothing else records the state of a study. Results of other programs are read as well: results.json
of test.py, and the JSON of tools.evaluate_labels.
"""
import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from utils.checkpoint.find import BEST, LAST, modified
from utils.cli.console import notice
from utils.errors import CheckpointError, DataError, listed, shown
from utils.evaluation.evaluate import REFINED
from utils.evaluation.results_file import code_of, image_scores_of, title_of
from utils.files.json_values import plain_json
from utils.metrics.image_scores import ImageScores
from utils.metrics.scores import NUMBERS
from utils.study.plan import PlannedRun, PlannedTest
from utils.study.study_file import Cell

TESTS = "tests"             # in the folder of a run: one folder for each way of testing
COSTS = "costs.json"        # parameters and FLOPs, next to results.json
_POINTS = 400               # of a curve
_STAMP = "%Y-%m-%d %H:%M:%S"


@dataclass
class RunResult:
    """The result of one run in one row.

    seed: None if it is not known (of another program). place: its results file.
    folder: of the run; None for results of other programs.
    scores: name -> fraction. classes: name -> IoU, nan where undefined.
    images: None if the result has no scores of single images.
    seconds: of the training, as its log shows it; None if there is none.
    curves: "loss" and "score" -> [step, value] pairs.
    fold: of a cross-validation, or "". parts: the results of the folds that this one is of.
    """

    cell: Cell
    name: str
    place: Path
    scores: dict[str, float]
    classes: dict[str, float | None]
    seed: int | None = None
    folder: Path | None = None
    entry: dict[str, Any] = field(default_factory=dict)
    images: ImageScores | None = None
    seconds: float | None = None
    curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    costs: dict[str, Any] = field(default_factory=dict)
    fold: str = ""
    parts: "tuple[RunResult, ...]" = ()


def attempts(run: PlannedRun) -> list[Path]:
    """The dated folders of a run that have a checkpoint, the newest first."""
    found = [path for path in run.folder.glob("*") if (path / LAST).is_file()
             or (path / BEST).is_file()]
    return sorted(found, key=lambda path: modified(path / LAST), reverse=True)


def stage_is_finished(stage: PlannedRun) -> bool:
    """Whether a stage of a chain has trained to its end, by the newest checkpoint in its folder."""
    from utils.checkpoint.read import peek
    from utils.training.earlier_runs import is_finished
    newest = next(iter(attempts(stage)), None)
    try:
        return newest is not None and is_finished(peek(newest / LAST))
    except CheckpointError:
        return False


def seconds_of(run: PlannedRun) -> float | None:
    """The time that a run took, all of its stages together; None if a log is missing."""
    total = 0.0
    for stage in run.stages:
        newest = next(iter(attempts(stage)), None)
        seconds = training_seconds(newest / "log.txt") if newest else None
        if seconds is None:
            return None
        total += seconds
    return total


def checkpoint_to_test(run: PlannedRun) -> Path | None:
    """The best checkpoint of a run, or its last one if it was not validated; None without any."""
    settings = run.config["trainer"]
    validated = settings["val"] and settings["monitor"] != "off"
    name = BEST if validated else LAST
    return next((folder / name for folder in attempts(run) if (folder / name).is_file()), None)


def test_folder(checkpoint: Path, test: PlannedTest) -> Path:
    """Where the result of a test of this checkpoint is kept."""
    return checkpoint.parent / TESTS / test.code


def find_result(test: PlannedTest) -> Path | None:
    """The results file of a finished test, or None. Files that a kill left unfinished do not count.

    A result that is older than its checkpoint does not count either: the run was continued by hand.
    """
    checkpoint = checkpoint_to_test(test.run)
    if checkpoint is None:
        return None
    path = test_folder(checkpoint, test) / "results.json"
    try:
        entry = content_of(path)
        images = path.parent / entry["image_scores"]
        if not images.is_file() or modified(path) < modified(checkpoint):
            return None
    except (DataError, KeyError, TypeError):
        return None
    return path


def read_test(test: PlannedTest) -> RunResult | None:
    """The result of a finished test; None if it is not finished. Raises DataError."""
    path = find_result(test)
    if path is None:
        return None
    with _once_more(path):
        result = read_result(path, test.cell, test.run.seed, test.run.name, path.parents[2],
                             _entry_of(test, path))
    result.fold = test.fold
    if test.run.earlier:
        result.seconds = seconds_of(test.run)
    return result


def read_test_scores(test: PlannedTest) -> dict[str, float] | None:
    """The scores of a finished test, without those of images, as `read_test`."""
    path = find_result(test)
    if path is None:
        return None
    with _once_more(path):
        return _scores(_entry_of(test, path), path)


def class_names_of(path: Path) -> list[str]:
    """The names of the classes in a results file; none if it has no classes. Raises DataError."""
    return class_names(content_of(path))


def class_names(entry: Mapping[str, Any]) -> list[str]:
    """The names of the classes in a result; none if it has no classes."""
    return list(_classes(entry))


def _entry_of(test: PlannedTest, path: Path) -> dict[str, Any]:
    """What a test is for: with --segfix the refined labels, which test.py scores next to others."""
    content = content_of(path)
    if not any(text.partition("=")[0] == "--segfix" for text in test.cell.test):
        return content
    runs = content.get("runs")
    for one in reversed(runs if isinstance(runs, list) else []):
        if isinstance(one, dict) and str(one.get("procedure")).endswith(REFINED):
            return one
    raise DataError("has no refined result", shown(path))


@contextlib.contextmanager
def _once_more(path: Path) -> Iterator[None]:
    """Say how the test of a run is repeated whose result is damaged."""
    try:
        yield
    except DataError as error:
        raise DataError(error.what, error.where, f"delete {shown(path.parent)} and start the study "
                                                 "again: it tests the run once more") from None


def read_result(path: Path, cell: Cell, seed: int | None = None, name: str | None = None,
                folder: Path | None = None, entry: Mapping[str, Any] | None = None) -> RunResult:
    """The result in a results file. entry: one of several in it; None takes the newest.

    Raises DataError if the file cannot be read or has no scores.
    """
    entry = dict(entry or content_of(path))
    scores = _scores(entry, path)
    result = RunResult(cell, name or _name_of(path, entry), path, scores, _classes(entry), seed,
                       folder, entry, image_scores_of(entry, path))
    if folder is not None:
        result.seconds = training_seconds(folder / "log.txt")
        result.curves = curves(folder / "metrics.jsonl")
    result.costs = read_costs(path.parent)
    return result


def read_costs(folder: Path) -> dict[str, Any]:
    """Parameters, FLOPs and classes next to a result; nothing if the file is missing or damaged."""
    costs = _read_json(folder / COSTS) or {}
    numbers = [costs.get(key) for key in ("parameters", "flops")]
    sound = all(type(one) in (int, float) for one in numbers) and _is_list(costs.get("size"), 2) \
        and _is_list(costs.get("classes")) and all(
            _is_list(one, 2) and _is_list(one[1], 3) for one in costs["classes"])
    return costs if sound else {}


def _is_list(value, length: int | None = None) -> bool:
    return isinstance(value, list) and length in (None, len(value))


def _scores(entry: Mapping[str, Any], path: Path) -> dict[str, float]:
    scores = {key: entry[key] for key in NUMBERS if isinstance(entry.get(key), (int, float))}
    image = entry.get("image")              # of tools.evaluate_labels
    for key, inner in (("mIoU_I", "Mean_IoU"), ("mDice_I", "Mean_Dice")):
        if isinstance(image, dict) and isinstance(image.get(inner), (int, float)):
            scores[key] = image[inner]
    if isinstance(entry.get("averageScoreClasses"), (int, float)):     # Cityscapes' own rules
        scores["Mean_IoU"] = entry["averageScoreClasses"]
    if not scores:
        raise DataError("has no score", shown(path), "give a results.json of test.py, or the "
                                                     "--json file of tools.evaluate_labels")
    return scores


def read_existing(cells: Iterable[Cell]) -> list[RunResult]:
    """The results of the cells that name results files."""
    found = []
    for cell in cells:
        for path in cell.results:
            entry = content_of(path)
            folder = run_of_result(path, entry)
            found.append(read_result(path, cell, seed_of(folder), None, folder, entry))
            _tell_others(path, found[-1].entry)
    return found


def _tell_others(path: Path, entry: dict[str, Any]):
    """Say which results of a file are not in the table: it has one row for each file."""
    runs = entry.get("runs")
    others = [one for one in runs if isinstance(one, dict) and code_of(one) != code_of(entry)] \
        if isinstance(runs, list) else []
    if others:
        notice(f"{shown(path)} holds {len(others) + 1} results; the table has the one at its top, "
               f"of rule {entry.get('procedure')}, and not those of "
               + listed(others, 4, "; ", title_of)
               + ". Each result needs a file of its own: test.py -o FOLDER")


def run_folder_of(path: Path) -> Path | None:
    """The folder of the run that a results file lies in, or None."""
    for folder in list(path.parents)[:3]:
        if (folder / "config.json").is_file() and (folder / LAST).is_file():
            return folder
    return None


def run_of_result(path: Path, entry: Mapping[str, Any]) -> Path | None:
    """The folder of the run whose result `path` is; None for an ensemble: it is of several."""
    return None if isinstance(entry.get("ensemble"), list) else run_folder_of(path)


def seed_of(folder: Path | None) -> int | None:
    """The seed of the run in a folder."""
    seed = config_of(folder).get("seed") if folder else None
    return seed if type(seed) is int else None


def config_of(folder: Path) -> dict[str, Any]:
    """The config of the run in a folder; empty if it cannot be read."""
    return _read_json(folder / "config.json") or {}


def _name_of(path, entry):
    folder = run_of_result(path, entry)
    return f"{folder.parent.name}/{folder.name}" if folder else str(path)


def content_of(path: Path) -> dict[str, Any]:
    """The content of a results file. Raises DataError if it is not one."""
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"cannot read: {error.strerror or error}", shown(path)) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"is not a results file: {error}", shown(path)) from None
    if not isinstance(document, dict):
        raise DataError("is not a results file", shown(path))
    return document


def _classes(entry) -> dict[str, float | None]:
    pairs: Iterable[tuple] = ()
    if isinstance(entry.get("classes"), list):
        pairs = ((one.get("name"), one.get("IoU")) for one in entry["classes"]
                 if isinstance(one, dict))
    elif isinstance(entry.get("classScores"), dict):
        pairs = entry["classScores"].items()
    elif isinstance(entry.get("class_names"), list) and isinstance(entry.get("Class_IoU"), list):
        pairs = zip(entry["class_names"], entry["Class_IoU"], strict=False)
    return {str(name): value if isinstance(value, (int, float)) else None
            for name, value in pairs}


def training_seconds(log: Path) -> float | None:
    """The time from the first to the last line of each session in a log.txt; None without one.

    Steps that were repeated after a kill count twice: it is the time that was spent.
    """
    total, first, last = 0.0, None, None
    for line in _lines(log):
        try:
            now = datetime.strptime(line[:19], _STAMP)
        except ValueError:
            continue
        if line[20:].startswith("training ") or first is None:
            total += (last - first).total_seconds() if first and last else 0.0
            first = now
        last = now
    return total + (last - first).total_seconds() if first and last else None


def curves(path: Path) -> dict[str, list[tuple[float, float]]]:
    """The loss of the training and the scores of the validations over the steps."""
    loss: dict[int, float] = {}
    score: dict[int, float] = {}
    for line in _lines(path):
        try:
            one = json.loads(line)
            step = one["step"]
            if one["kind"] == "train" and isinstance(one.get("train/loss"), (int, float)):
                loss[step] = one["train/loss"]
            elif one["kind"] == "validation" and isinstance(one.get("Mean_IoU"), (int, float)):
                score[step] = one["Mean_IoU"]
        except (ValueError, KeyError, TypeError):
            continue        # a line that a kill has cut off
    return {"loss": _thinned(loss), "score": _thinned(score)}


def _thinned(points: dict[int, float]) -> list[tuple[float, float]]:
    """At most _POINTS of a curve; a point stands for the mean of its neighbors."""
    ordered = sorted(points.items())
    width = -(-len(ordered) // _POINTS) or 1
    groups = [ordered[i:i + width] for i in range(0, len(ordered), width)]
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]


def _lines(path: Path) -> Iterator[str]:
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            yield from stream
    except OSError:
        return


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return plain_json(content) if isinstance(content, dict) else None
