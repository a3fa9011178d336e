"""Which results that exist already are runs of one row of a table (tools.study --from).

Runs of one training under several seeds are one row: their configs are equal but for the seed and
what cannot change a number (name, save_dir, workers, ...), and they were tested in the same way.
Their names may differ if all of their seeds do; two names with the same seed are two things, such
as two versions of the code. Everything else is a row of its own, unless a regular expression says
otherwise. What became one row is said, and so is how rows of one name differ.
"""
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.cli.console import notice, warn
from utils.errors import ConfigError, DataError, listed, shown
from utils.evaluation.results_file import differences, setting_of
from utils.study.plan import key_of, settings_of
from utils.study.results import (
    TESTS,
    class_names,
    config_of,
    content_of,
    run_folder_of,
    run_of_result,
    seed_of,
)

# The folder of a run that a study made.
_OF_STUDY = re.compile(r"(?P<label>.+)_s(?P<seed>\d+)-[0-9a-f]{8}")
_DATE = re.compile(r"(\d{4}-)?\d\d-\d\d_\d\d-\d\d-\d\d(-\d+)?")     # the folder of one attempt
_SEED_WORD = re.compile(r"([\W_]+(seed|run|rep|s))?[\W_]*$", re.IGNORECASE)
_SHOWN = 4          # names or differences in a message


@dataclass
class _Result:
    """A results file. label: the name of its row if it has a row of its own.

    folder: of its run, or None. settings: of the training, without the seed; None if not known.
    """

    path: Path
    folder: Path | None
    label: str
    way: str
    entry: dict[str, Any]
    settings: dict[str, Any] | None

    @property
    def seed(self) -> int | None:
        return seed_of(self.folder)

    @property
    def key(self) -> str:
        """Equal for results that differ only in their seed."""
        if self.settings is None:       # nothing says that two such results are of one method
            return str(self.path.resolve())
        return json.dumps([self.settings, _tested(self.entry), self.way], sort_keys=True,
                          default=str)


def find_results(places: Iterable[Path], group: str | None = None) -> dict[str, list[Path]]:
    """label -> results files of the runs of this row, in files and folders.

    group: a regular expression with a group in parentheses: results in whose paths it finds the
    same text in the parentheses are one row, which has this text as its name.
    Raises DataError if a place has no results or if classes of one row differ, ConfigError for an
    expression that is wrong or finds nothing.
    """
    found = _distinct([_read(path, place) for place in places for path in _paths(place)])
    named = _named(found, group) if group is not None else {}
    rows: dict[str, list[_Result]] = {}
    for one in found:
        key = f"group {named[one.path]}" if one.path in named else one.key
        rows.setdefault(key, []).append(one)
    apart = [part for row in rows.values()
             for part in ([row] if row[0].path in named else _of_one_thing(row))]
    labeled = dict(zip(_labels(apart, named), apart, strict=True))
    for label, row in labeled.items():
        _tell_runs(label, row)
    _tell_differences(labeled, named)
    return {label: [one.path for one in row] for label, row in labeled.items()}


def _paths(place: Path) -> list[Path]:
    paths = [place] if place.is_file() else sorted(place.rglob("results.json"))
    if not paths:
        raise DataError("there is no results.json", shown(place),
                        "run test.py first, or give the file itself")
    return paths


def _read(path: Path, place: Path) -> _Result:
    entry = content_of(path)
    folder = run_of_result(path, entry)
    if folder is None:
        label = path.stem if path == place else str(path.parent.relative_to(place.parent))
        return _Result(path, None, label, "", entry, None)
    label = label_of_run(folder.parent.name)
    way = "/".join(part for part in path.parent.relative_to(folder).parts if part != TESTS)
    way = "" if way in (".", "plain") else way
    return _Result(path, folder, f"{label}, test {way}" if way else label, way, entry,
                   _settings(folder))


def _distinct(found: list[_Result]) -> list[_Result]:
    """Without files that were given twice, and without a second result of a run tested alike."""
    kept: dict[object, _Result] = {}
    for one in found:
        first = kept.setdefault((one.folder, one.key) if one.folder else one.path.resolve(), one)
        if not first.path.samefile(one.path):
            notice(f"{shown(one.path)} is left out: the row {shown(one.label)} has this run from "
                   f"{shown(first.path)}")
    return list(kept.values())


def _of_one_thing(row: list[_Result]) -> list[list[_Result]]:
    """Results of equal settings, apart by their names if these have a seed in common."""
    seeds, labels = [one.seed for one in row], dict.fromkeys(one.label for one in row)
    if len(labels) == 1 or None not in seeds and len(set(seeds)) == len(seeds):
        return [row]
    notice(f"the configs of {listed(labels, _SHOWN)} are equal; they are rows of their own, "
           "because their seeds are not all different")
    return [[one for one in row if one.label == label] for label in labels]


def label_of_run(name: str) -> str:
    """The name of a run without the seed and the key that a study gives it."""
    match = _OF_STUDY.fullmatch(name)
    return match["label"] if match else name


def _settings(folder: Path) -> dict[str, Any] | None:
    """The settings of a run that change a number, without its seed; None if nothing tells them."""
    config = config_of(folder)
    if not config:
        return None
    trainer = config.get("trainer")
    start = trainer.get("finetune_from") if isinstance(trainer, dict) else None
    if isinstance(trainer, dict) and isinstance(start, str):
        config = {**config, "trainer": {**trainer, "finetune_from": _start(Path(start))}}
    # A setting that an older version did not know is null.
    return {key: value for key, value in settings_of(config).items()
            if value is not None and key != "seed"}


def _start(path: Path) -> str:
    """What stands for a start file: each seed of a chain starts from a run of its own."""
    settings = _settings(path.parent) if run_folder_of(path) == path.parent else None
    if settings is not None:
        return f"{path.name} of the training {key_of(settings)}"
    if _DATE.fullmatch(path.parent.name):
        return f"{path.name} of {label_of_run(path.parent.parent.name)}"
    return str(path)


def _tested(entry: dict[str, Any]) -> dict[str, Any]:
    """How a result was tested: which of the checkpoints of its run, but not its content."""
    setting = setting_of(entry)
    setting["checkpoint"] = setting["checkpoint"]["name"]
    return setting


def _named(found: list[_Result], group: str) -> dict[Path, str]:
    """path -> the name that the expression gives it, for those in which it is found."""
    try:
        pattern = re.compile(group)
    except re.error as error:
        raise ConfigError(f"is not a regular expression: {error}", f"--group {group}") from None
    if not pattern.groups:
        raise ConfigError("the expression has no parentheses, whose text would be the name of a "
                          "row", f"--group {group}", "write for example 'saved/(.*)_run\\d+/'")
    named = {}
    for one in found:
        match = pattern.search(one.path.as_posix())
        text = " ".join(filter(None, match.groups())) if match else ""
        if text:
            named[one.path] = text
    if not named:
        raise ConfigError("is found in none of the paths: " + listed(
            [shown(one.path) for one in found], _SHOWN), f"--group {group}")
    for name in dict.fromkeys(named.values()):
        _require_one_kind(name, [one for one in found if named.get(one.path) == name])
    return named


def _require_one_kind(name: str, row: list[_Result]):
    """Raise DataError if results of one row have other classes, or other scores at all."""
    first = row[0]
    for one in row[1:]:
        mine, others = class_names(one.entry), class_names(first.entry)
        if mine != others:
            raise DataError(f"--group makes one row {name!r} of results with other classes: "
                            f"{listed(mine, 3) or 'none'} and {listed(others, 3) or 'none'}",
                            f"{shown(one.path)} and {shown(first.path)}")


def _labels(rows: list[list[_Result]], named: dict[Path, str]) -> list[str]:
    """A name for each row, all of them different."""
    wanted = [named.get(row[0].path) or _common_name([one.label for one in row]) for row in rows]
    labels: list[str] = []
    for row, label in zip(rows, wanted, strict=True):
        if wanted.count(label) > 1 and row[0].folder is None:
            label = _longer(row[0], [other[0] for other in rows])
        number = 1
        while (text := label if number == 1 else f"{label} ({number})") in labels:
            number += 1
        labels.append(text)
    return labels


def _common_name(labels: list[str]) -> str:
    """What names of runs share, without the word for the seed: net_seed0, net_seed1 -> net."""
    if len(set(labels)) == 1:
        return labels[0]
    start = os.path.commonprefix(labels)
    rest = [label[len(start):][::-1] for label in labels]
    end = re.sub(r"^\d+", "", os.path.commonprefix(rest)[::-1])
    return _SEED_WORD.sub("", re.sub(r"\d+$", "", start)) + end or labels[0]


def _longer(one: _Result, others: list[_Result]) -> str:
    """The end of the path of a file, as long as it takes to tell it from the others."""
    def end(result, count):
        parts = result.path.resolve().with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "results" else parts
        return "/".join(parts[-count:])
    most = len(one.path.resolve().parts)
    return next((end(one, count) for count in range(1, most)
                 if sum(end(one, count) == end(other, count) for other in others) == 1), one.label)


def _tell_runs(label: str, row: list[_Result]):
    """Say which runs became one row; warn if a seed has several."""
    if len(row) < 2:
        return
    names = dict.fromkeys(shown(one.folder.parent.name if one.folder else one.path) for one in row)
    seeds = [one.seed for one in row]
    known = [seed for seed in seeds if seed is not None]
    text = f"seeds {', '.join(map(str, sorted(known)))}" if known else "of unknown seeds"
    if known and len(known) < len(seeds):
        text += f" and {len(seeds) - len(known)} of unknown seeds"
    notice(f"row {shown(label)}: {len(row)} runs, {text}"
           + (f" ({listed(names, _SHOWN)})" if list(names) != [label] else ""))
    twice = sorted({seed for seed in known if known.count(seed) > 1})
    if twice:
        warn(f"row {shown(label)}: several runs of seed {listed(twice, _SHOWN)} all count: "
             + listed([shown(one.path) for one in row if one.seed in twice], _SHOWN))


def _tell_differences(rows: dict[str, list[_Result]], named: dict[Path, str]):
    """Say how rows of one name differ, and how results that --group put into one row do."""
    first: dict[str, tuple[str, _Result]] = {}
    for label, row in rows.items():
        for one in row[1:] if row[0].path in named else ():
            told = _told(row[0], one)
            if told:
                warn(f"row {shown(label)}: --group puts results into it that differ: "
                     f"{shown(row[0].path)} and {shown(one.path)}: {told}")
                break
        if row[0].folder is None or row[0].path in named:
            continue
        other, result = first.setdefault(row[0].label, (label, row[0]))
        if other != label:
            notice(f"rows {shown(other)} and {shown(label)} differ: {_told(result, row[0])}")


def _told(one: _Result, two: _Result) -> str:
    """What differs between two results besides the seed, as text; empty if nothing does."""
    parts = []
    if one.settings is not None and two.settings is not None:
        keys = dict.fromkeys((*one.settings, *two.settings))
        parts = [f"{key} {_value(one.settings.get(key))} / {_value(two.settings.get(key))}"
                 for key in keys if one.settings.get(key) != two.settings.get(key)]
    parts += [text for text in differences(one.entry, two.entry)
              if not text.startswith(("checkpoint.sha256", "predictions."))]
    return listed(parts, _SHOWN, "; ")


def _value(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
