"""results.json and results.txt: every score that test.py has written into a folder.

results.json has the newest score at its top level. Under "runs" it has every score that was ever
written there, one for each setting: checkpoint (its content, not only its name) or folder of
predictions, data, rule and way of predicting. Scoring the same setting again replaces its entry;
nothing else is lost, also if several programs write at the same time. results.txt has the tables of
all runs.
"""
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from utils.cli.console import notice, warn
from utils.errors import DataError, listed, shown
from utils.files.json_values import plain_json
from utils.files.shared_file import change_file, content, locked, set_aside
from utils.files.whole_file import write_bytes
from utils.images.base_size import base_size_text
from utils.metrics.image_scores import ImageScores, read_image_scores
from utils.metrics.scores import NUMBERS

Entry = dict[str, Any]

# What an entry says besides its setting: every other key tells two results apart.
OUTCOMES = {"schema", "runs", "image_scores", "classes", "image_level", "confusion", "intervals",
            "official", "risk_coverage", "calibration", "regret", "versions", "data_title",
            *NUMBERS}
# How the data is loaded, which changes no score.
LOADING = {"batch_size", "num_workers", "prefetch_factor", "pin_memory", "timeout", "shuffle"}
# What a rule adds (Decision.describe), and its refinement.
OF_RULES = {"procedure", "temperature", "posterior", "scale", "bias", "threshold", "smooth",
            "pruning", "solver", "theta", "amplitude", "segfix"}
TOLD = {"checkpoint", "ensemble", "predictions", "dataset", "split", "loader", "data", "n_images",
        "procedure", "mode", "crop_size", "overlap", "tiling", "scales", "flip", "average", "amp",
        "segfix", "base_size", "labels_resized_to"}
# Values that a title does not mention; of other keys False, None and nothing.
USUAL = {"ignore_index": 255, "threshold": 0.5, "temperature": 1.0, "smooth": 0.0, "pruning": 0.5,
         "solver": "auto"}
_OF_FILE = ("path", "sha256", "epoch")         # of a network; other keys are settings of its own
_SHOWN = 3         # differences or earlier results in a message


def setting_of(entry: Entry) -> Entry:
    """What distinguishes a result: the parts of an entry that are known before the evaluation."""
    setting = {key: value for key, value in entry.items() if key not in OUTCOMES}
    checkpoint, data = _part(setting, "checkpoint"), _part(setting, "data")
    if networks := _networks(setting):
        # By content: neither their order nor their folders make another ensemble.
        setting["ensemble"] = {str(one.get("sha256"))[:16]: {
            "name": Path(str(one.get("path", "?"))).name,
            **{key: value for key, value in one.items() if key not in _OF_FILE}}
            for one in networks}
    else:
        setting["checkpoint"] = {"name": Path(str(checkpoint.get("path", "?"))).name,
                                 "sha256": checkpoint.get("sha256")}
    setting["data"] = {"type": data.get("type"), "args": {
        key: value for key, value in _part(data, "args").items() if key not in LOADING}}
    return setting


def _part(entry, key):
    """A dict in a dict; an empty one if there is none, as in a file of unknown origin."""
    part = entry.get(key)
    return part if isinstance(part, dict) else {}


def _networks(entry) -> list[dict[str, Any]]:
    """What an entry says of each network of an ensemble; nothing for a single checkpoint."""
    found = entry.get("ensemble")
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def code_of(entry: Entry) -> str:
    """Eight letters that stand for the setting, in titles and in names of files."""
    setting = json.dumps(setting_of(entry), sort_keys=True, default=str)
    return hashlib.sha256(setting.encode()).hexdigest()[:8]


def title_of(entry: Entry) -> str:
    """A line for people that says what was scored and how; it ends with the code."""
    checkpoint, args = _part(entry, "checkpoint"), _part(_part(entry, "data"), "args")
    epoch, place = checkpoint.get("epoch"), args.get("data_dir")
    if "ids" in _part(entry, "predictions"):
        return shown(f"{_short_title(entry)}, {data_of(entry)} ({entry.get('n_images')} images, "
                     f"labels in {place}) [{code_of(entry)}]")
    if isinstance(epoch, int) and entry.get("schema", 1) == 1:
        epoch -= 1          # it was the epoch in training, or the next
    extra = [f"{key} {_text(value)}" for key, value in entry.items()
             if key not in OUTCOMES | TOLD and _is_told(key, value)]
    if networks := _networks(entry):
        name = f"ensemble of {len(networks)} ({listed(_own_paths(networks), _SHOWN)})"
        own = {key for one in networks for key in one if key not in _OF_FILE}
        extra += [f"each with its own {', '.join(sorted(own))}"] if own else []
    else:
        name = Path(str((checkpoint or _part(entry, "predictions")).get("path", "?"))).name
    return shown(f"{name}, {data_of(entry)} ({entry.get('loader')}, {entry.get('n_images')} images"
                 f"{f' in {place}' if place else ''}), rule {entry.get('procedure')}, "
                 + ", ".join([way_of(entry), *([entry["segfix"]] if "segfix" in entry else []),
                              *extra, *([f"epoch {epoch}"] if epoch is not None else [])])
                 + f" [{code_of(entry)}]")


def _is_told(key, value):
    """Whether a title mentions this value; 0 is a value like any other number."""
    return value != USUAL[key] if key in USUAL else value is not False and value not in (
        None, "", [], {})


def data_of(entry: Entry) -> str:
    """The name of the data in messages: "Shapes val", and of own files "leaves val"."""
    return str(entry.get("data_title")
               or f"{entry.get('dataset')} {entry.get('split') or ''}".rstrip())


def _own_paths(networks):
    """The path of each network without what all have in common: often the name of the file."""
    parts = [Path(str(one.get("path", "?"))).parts for one in networks]
    first = len(os.path.commonprefix(parts))
    last = len(os.path.commonprefix([one[::-1] for one in parts]))
    return [str(Path(*(one[first:len(one) - last] or one[-1:]))) for one in parts]


def _short_title(entry):
    """Loader, rule and way of predicting, for a list; the folder of label files."""
    try:
        files = _part(entry, "predictions")
        if "ids" in files:
            return shown(f"label files in {files.get('path')} ({files.get('ids')} ids)")
        of = f"ensemble of {len(_networks(entry))}, " if _networks(entry) else ""
        return shown(f"{of}{entry.get('loader')}, {entry.get('procedure')}, {way_of(entry)}")
    except (TypeError, ValueError):
        return "a result of unknown origin"


def way_of(entry: Entry) -> str:
    """How the logits were predicted."""
    way = str(entry.get("mode", "several modes" if _networks(entry) else None))
    if way == "sliding":
        crop = entry.get("crop_size")
        way += f" {'x'.join(map(str, crop)) if crop else 'H/2.5'}"
        way += f" overlap {entry.get('overlap', 0):.3g}"
        way += " source tiling" * (entry.get("tiling") == "source")
    scales = entry.get("scales") or [1.0]
    if scales != [1.0]:
        way += " at " + ", ".join(f"{scale:.4g}" for scale in scales)
    average = entry.get("average", "logits")
    way += (" + flip" * bool(entry.get("flip")) + f" mean of {average}" * (average != "logits")
            + (f" {entry['amp']}" if entry.get("amp") else ""))
    if entry.get("labels_resized_to"):
        return f"{way}, images and labels at {base_size_text(entry['labels_resized_to'])}"
    if entry.get("base_size"):
        return f"{way}, images at {base_size_text(entry['base_size'])}, labels at their own size"
    return way


def differences(first: Entry, second: Entry) -> list[str]:
    """What two results do not have in common, such as "flip: false / true"."""
    one, two = flat_setting(first), flat_setting(second)
    parts = []
    for key in dict.fromkeys((*one, *two)):
        # An older version has not written every key; then it did what is usual, or nothing.
        a, b = one.get(key, USUAL.get(key)), two.get(key, USUAL.get(key))
        if (a or None) != (b or None):
            parts.append(f"{key}: {_text(a)} / {_text(b)}")
    return parts


def read_results(path: Path) -> tuple[Entry, list[Entry]]:
    """(the newest result, all results in their order) of a results.json. Raises DataError."""
    try:
        document: Any = json.loads(path.read_bytes())
        runs = document.get("runs", [document])
        if not all(isinstance(run, dict) for run in runs) or "procedure" not in document:
            raise ValueError("it has no \"procedure\", or its \"runs\" are not results")
    except OSError as error:
        raise DataError(f"cannot read: {error.strerror or error}", shown(path)) from None
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise DataError(f"is not a results file: {error!r}", shown(path)) from None
    return document, runs


def image_scores_of(entry: Entry, path: Path) -> ImageScores | None:
    """The scores of the single images of an entry of the results file `path`; None if it has none.

    Raises DataError if the file that the entry names cannot be read, or does not fit the entry.
    """
    if not isinstance(entry.get("image_scores"), str):
        return None
    scores = read_image_scores(path.parent / entry["image_scores"])
    chosen = entry.get("classes_of_interest")
    if chosen:
        if not isinstance(chosen, list) or not all(
                type(one) is int and 0 <= one < len(scores.class_names) for one in chosen):
            raise DataError(f"classes_of_interest {chosen!r:.80} are no numbers of classes",
                            shown(path), "run test.py again")
        scores.classes_of_interest = chosen
    return scores


def protocol_of(entry: Entry) -> str:
    """The name of the protocol of a result and what was changed in it, or that it has none."""
    name, changed = entry.get("protocol"), entry.get("protocol_changes")
    if name is None:
        return "none"
    return f"{name}, but {_text(changed)}" if isinstance(changed, dict) and changed else str(name)


def same_but_for_the_rule(first: Entry, second: Entry) -> bool:
    """Whether two results differ in nothing but their decision rule and its settings."""
    return _without_rule(first) == _without_rule(second)


def _without_rule(entry: Entry) -> Entry:
    setting = setting_of(entry)
    if _networks(entry):        # each may have a temperature of its own
        setting["ensemble"] = {name: _other_keys(one) for name, one in setting["ensemble"].items()}
    return _other_keys(setting)


def _other_keys(setting):
    return {key: value for key, value in setting.items() if key not in OF_RULES}


def flat_setting(entry: Entry) -> dict[str, Any]:
    """The setting of an entry as {"data.args.split": "val", ...}."""
    return _flat(setting_of(entry))


def _flat(value, name=""):
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    if not isinstance(value, dict):
        return {name: value}
    return {key: item for part, inner in value.items()
            for key, item in _flat(inner, f"{name}.{part}" if name else str(part)).items()}


def _text(value):
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def check_results(folder: Path):
    """Look at the results in a folder before an evaluation, which may take hours.

    A results.json that test.py has not written is copied, with a warning, because
    `add_results` will replace it. Raises DataError if it cannot be read.
    """
    _entries(folder / "results.json", content(folder / "results.json"))


def add_results(folder: Path, entries: list[Entry], table: Callable[[Entry], str]):
    """Add entries to results.json, in place of those of the same setting; the first goes on top.

    table: the text of an entry for results.txt.
    Raises DataError if a file cannot be read or written.
    """
    path, codes = folder / "results.json", {code_of(entry) for entry in entries}
    others = []

    def changed(data):
        others[:] = [run for run in _entries(path, data) if code_of(run) not in codes]
        document = plain_json({**entries[0], "runs": others + entries})
        return (json.dumps(document, indent=1, allow_nan=False) + "\n").encode()

    def kept(data):
        return codes <= {code_of(run) for run in _entries(path, data)}

    _save_foreign_text(folder)
    change_file(path, changed, kept)
    _write_text(folder, table)
    if others:
        notice(f"results.json keeps {len(others)} earlier "
               f"{'result' if len(others) == 1 else 'results'} under \"runs\" ("
               + listed(others[::-1], _SHOWN, "; ", _short_title)
               + "); its top level shows the new one")


def _write_text(folder, table):
    """Write the tables of all entries of results.json, until it holds no newer ones."""
    path = folder / "results.json"
    with locked(folder):
        while True:
            data = content(path)
            parts = [_section(run, table) for run in _entries(path, data)]
            text = "\n\n".join(parts) + "\n"
            write_bytes(folder / "results.txt", text.encode("utf-8", "backslashreplace"))
            if content(path) == data:
                return


def _section(run, table):
    """The title and table of a run, which another program or version may have written."""
    try:
        return f"== {title_of(run)}\n{table(run)}"
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        return f"== a result that cannot be shown ({type(error).__name__}) [{code_of(run)}]"


def _save_foreign_text(folder):
    """Copy a results.txt that holds other things than the tables of results.json."""
    path = folder / "results.txt"
    data = content(path)
    if data is None:
        return
    runs = _entries(folder / "results.json", content(folder / "results.json"))
    if not data.startswith(b"== ") or not runs:
        aside, _ = set_aside(path, data)
        warn(f"{shown(path)} has other text than the tables of results.json: it is kept as "
             f"{aside.name}")


def _entries(path: Path, data: bytes | None) -> list[Entry]:
    """The runs in a results.json; none if there is no file, or if it is of another kind."""
    if data is None:
        return []
    try:
        runs = json.loads(data)["runs"]
        if isinstance(runs, list) and all(isinstance(run, dict) for run in runs):
            return runs
        reason = "\"runs\" is not a list of results"
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
    aside, new = set_aside(path, data)
    if new:
        warn(f"{shown(path)} is not a results file of test.py ({reason}): it is kept as "
             f"{aside.name}, and a new one is written")
    return []
