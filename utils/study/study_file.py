"""Reads a study: which configs are trained, with which changes and seeds, and how they are scored.

docs/studies.md describes the file. All mistakes are collected and reported at once.
"""
import dataclasses
import itertools
import os
import re
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils.config.schema import PATHS
from utils.config.signature import value_name
from utils.errors import ConfigError, listed, nearest, unknown
from utils.files.jsonc import Lines, read_jsonc
from utils.metrics.scores import NUMBERS

DATA = "data"               # the axis, and the key of a cell, that names the data set
MARGIN = 0.3                # points that a study should be able to tell apart
_KEYS = ("name", "note", "config", "overrides", "seeds", "test", "axes", "cells", "score", "scores",
         "baseline", "published", "margin", "across_protocols", "folds")
# Scores that cannot be computed over the images of several folds: no file has what they need.
_NOT_OVER_FOLDS = ("Boundary_IoU", "Boundary_F")
_CELL_KEYS = ("label", "config", "overrides", "test", "seeds", "published", "note", DATA,
              "results")
_LEVEL_KEYS = ("overrides", "test", "note")
# Options of test.py that the program sets, or that give more than one result.
_OWN_OPTIONS = ("-r", "-m", "--resume", "--model", "-c", "--config", "-o", "--output", "--json",
                "-d", "--device", "--debug", "--version", "--help", "-h")


@dataclass(frozen=True)
class Published:
    """A printed score in percent. runs: the single runs where they are printed."""

    mean: float
    runs: tuple[float, ...] = ()


@dataclass(frozen=True)
class Cell:
    """One row of the table: a training, and a way to score it.

    label: unique together with `data`, the name of the data set ("" if the study has only one).
    config: None for results that exist already, which `results` names.
    overrides, test: of train.py, and the arguments of test.py.
    published: score -> its published value. where: the place in the file, for messages.
    folds: of a cross-validation, name -> overrides; each seed is trained once for each of them,
        and the row is scored over all their held-out images. Empty: there are none.
    """

    label: str
    data: str = ""
    config: Path | None = None
    overrides: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    results: tuple[Path, ...] = ()
    published: Mapping[str, Published] = field(default_factory=dict)
    note: str = ""
    where: str = ""
    folds: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The label, with the data set if there are several."""
        return f"{self.label} on {self.data}" if self.data else self.label


@dataclass(frozen=True)
class Study:
    """A study as its file says it. scores: the columns, the first decides what is best.

    baseline: the label of the row that all others are compared with, or None.
    across_protocols: rows of different evaluation protocols are compared.
    mistakes: of the file, see `read_study`.
    margin: the difference in points for which the number of seeds is worked out.
    """

    name: str
    cells: tuple[Cell, ...]
    scores: tuple[str, ...] = ("Mean_IoU",)
    baseline: str | None = None
    margin: float = MARGIN
    note: str = ""
    path: Path | None = None
    across_protocols: bool = False
    mistakes: tuple[str, ...] = ()


def read_study(path: str | Path, keep_mistakes: bool = False) -> Study:
    """The study in a file. Raises one ConfigError with all mistakes in it.

    keep_mistakes: those of the content become `mistakes` of the study, so that utils.study.plan,
    which reads the configs, reports them together with its own.
    """
    path, lines = Path(path), {}
    content = read_jsonc(path, lines)
    reader = _Reader(path, lines)
    if not isinstance(content, dict):
        raise ConfigError(f"a study is an object {{...}}, found {value_name(content)}", str(path))
    study = reader.study(content)
    if keep_mistakes:
        return dataclasses.replace(study, mistakes=reader.distinct_mistakes())
    reader.raise_mistakes()
    return study


class _Reader:
    """Turns the values of a file into a Study, and collects the mistakes.

    Paths in the file are relative to it.
    """

    def __init__(self, path: Path, lines: Lines):
        self.path, self.lines = path, lines
        self.mistakes: list[str] = []

    def distinct_mistakes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.mistakes))

    def raise_mistakes(self):
        if self.mistakes:
            raise ConfigError("\n".join(self.distinct_mistakes()), str(self.path),
                              "docs/studies.md describes the file")

    def note(self, where: tuple, text: str):
        line = next((self.lines[where[:n]] for n in range(len(where), 0, -1)
                     if where[:n] in self.lines), None)
        name = ".".join(map(str, where)) or "top level"
        self.mistakes.append(f"{name}: {text}" + (f" (line {line})" if line else ""))

    def study(self, content: dict) -> Study:
        self.known_keys(content, (), _KEYS)
        if "score" in content and "scores" in content:
            self.note(("scores",), "\"score\" and \"scores\" are the same setting: give one")
        key = "scores" if "scores" in content else "score"
        scores = self.texts(content, key) or ["Mean_IoU"]
        for name in scores:
            if name not in NUMBERS:
                self.note((key,), unknown("score", name, NUMBERS))
        cells = self.cells(content, scores)
        margin = content.get("margin", MARGIN)
        if type(margin) not in (int, float) or not margin > 0:
            self.note(("margin",), f"expected points above 0, found {value_name(margin)}")
            margin = MARGIN
        baseline = self.text(content, (), "baseline")
        across = content.get("across_protocols", False)
        if type(across) is not bool:
            self.note(("across_protocols",), f"expected true or false, found {value_name(across)}")
            across = False
        labels = dict.fromkeys(cell.label for cell in cells)
        if baseline is not None and cells and baseline not in labels:
            self.note(("baseline",), unknown("row", baseline, labels))
        return Study(self.text(content, (), "name") or self.path.stem, tuple(cells),
                     tuple(scores), baseline, margin, self.text(content, (), "note") or "",
                     self.path, across)

    def cells(self, content: dict, scores: list[str]) -> list[Cell]:
        rows = content.get("cells", [{}])
        if not isinstance(rows, list) or not rows:
            self.note(("cells",), f"expected a list of objects, found {value_name(rows)}")
            rows = []
        axes, combinations = self.axes(content), []
        folds = self.folds(content, scores)
        for number, row in enumerate(rows):
            where = ("cells", number) if "cells" in content else ()
            if not isinstance(row, dict):
                self.note(where, f"expected an object, found {value_name(row)}")
                continue
            if where:
                self.known_keys(row, where, _CELL_KEYS)
            if "results" in row and axes:
                self.note(where, "\"results\" exist already and cannot be combined with \"axes\"")
            for levels in itertools.product(*(list(axis.items()) for axis in axes.values())):
                named = dict(zip(axes, levels, strict=True))
                cell = self.cell(content, row, where, named, scores)
                combinations.append(cell if cell.config is None else
                                    dataclasses.replace(cell, folds=folds))
        self.distinct(combinations)
        self.published_rows(content, combinations)
        return [self.with_published(content, cell, scores) for cell in combinations]

    def cell(self, content, row, where, levels, scores) -> Cell:
        """levels: axis -> (name, {"overrides", "test"})."""
        parts = [self.text(row, where, "label")] if "label" in row else []
        parts += [name for axis, (name, _) in levels.items() if axis != DATA]
        data = levels[DATA][0] if DATA in levels else self.text(row, where, DATA) or ""
        results = self.texts(row, "results", where)
        config = self.text(row, where, "config") or self.text(content, (), "config")
        if results and any(key in row for key in ("config", "overrides", "test", "seeds")):
            self.note(where, "\"results\" exist already: config, overrides, test and seeds have no "
                             "effect there")
        if not results and not config:
            self.note(where, "there is no \"config\", neither here nor for the whole study")
        if config and not (self.path.parent / config).is_file() and not results:
            at = (*where, "config") if "config" in row else ("config",)
            self.note(at, f"{self.path.parent / config} does not exist{self.near(config)}")
        for result in results:
            if not self.below(result).is_file():
                self.note((*where, "results"), f"{self.below(result)} does not exist")
        of_levels = [level for _, level in levels.values()]
        overrides = [*self.overrides(content, ()), *(self.overrides(row, where) if where else ()),
                     *(text for level in of_levels for text in level["overrides"])]
        test = [*self.test(content, ()), *(self.test(row, where) if where else ()),
                *(text for level in of_levels for text in level["test"])]
        seeds = self.seeds(row, where) if where and "seeds" in row else self.seeds(content, ())
        published = self.published(row["published"], (*where, "published"), scores) \
            if where and row.get("published") is not None else {}
        label = ", ".join(filter(None, parts)) or (Path(config).stem if config else "results")
        return Cell(label, data, None if results or not config else self.below(config),
                    tuple(dict.fromkeys(overrides)), tuple(test), seeds,
                    tuple(map(self.below, results)), published,
                    (self.text(row, where, "note") if where else None) or "",
                    f"{self.path}: {'.'.join(map(str, where))}" if where else str(self.path))

    def folds(self, content: dict, scores: list[str]) -> dict[str, tuple[str, ...]]:
        """fold -> its overrides."""
        given = content.get("folds", {})
        if not isinstance(given, dict) or "folds" in content and len(given) < 2:
            self.note(("folds",), "expected {\"fold\": [overrides], ...} of two folds or more, "
                                  f"found {value_name(given)}; train.py --init --folds writes them")
            return {}
        for score in scores:
            if given and score in _NOT_OVER_FOLDS:
                self.note(("folds",), f"{score} cannot be computed over the images of all folds: "
                                      "leave it out of \"scores\"")
        return {name: tuple(map(self.with_path, self.overrides(given, ("folds",), name)))
                for name in given}

    def with_path(self, override: str) -> str:
        """An override that names a file beside the study, such as a list, with its whole path.

        train.py would look for it in the current folder.
        """
        key, _, value = override.partition("=")
        if key.rpartition(".")[2] in PATHS["datasets"] and value and self.below(value).exists():
            return f"{key}={self.below(value)}"
        return override

    def axes(self, content: dict) -> dict[str, dict[str, dict]]:
        """axis -> level -> {"overrides", "test"}."""
        given = content.get("axes", {})
        if not isinstance(given, dict):
            self.note(("axes",), f"expected an object, found {value_name(given)}")
            return {}
        axes = {}
        for axis, levels in given.items():
            where = ("axes", axis)
            if not isinstance(levels, dict) or not levels:
                self.note(where, "the axis names nothing: expected {\"level\": [overrides], ...}, "
                                 f"found {value_name(levels)}")
                continue
            axes[axis] = {name: self.level(level, (*where, name))
                          for name, level in levels.items()}
        return axes

    def level(self, level, where) -> dict:
        if isinstance(level, dict):
            self.known_keys(level, where, _LEVEL_KEYS)
            return {"overrides": self.overrides(level, where), "test": self.test(level, where)}
        return {"overrides": self.overrides({where[-1]: level}, where[:-1], where[-1]), "test": []}

    def overrides(self, holder, where, key="overrides") -> list[str]:
        texts = self.texts(holder, key, where)
        for text in texts:
            name = re.sub(r"^stages(\[\d+\]|\.\d+)\.", "",
                          text.partition("=")[0].removesuffix("+").strip())
            if "=" not in text:
                self.note((*where, key), f"{text!r} is not an override: write KEY=VALUE")
            elif name in ("seed", "name"):
                self.note((*where, key), f"{name} is set by the study"
                          + ("; list the seeds under \"seeds\"" if name == "seed" else ""))
        return texts

    def test(self, holder, where) -> list[str]:
        texts = self.texts(holder, "test", where)
        for text in texts:
            if text.partition("=")[0] in _OWN_OPTIONS:
                self.note((*where, "test"), f"{text} is set by the study")
        return texts

    def seeds(self, holder, where) -> tuple[int, ...]:
        seeds = holder.get("seeds", 1)
        if type(seeds) is int and seeds > 0:
            return tuple(range(seeds))
        if not isinstance(seeds, list) or not seeds or \
                not all(type(seed) is int and seed >= 0 for seed in seeds):
            self.note((*where, "seeds"), "expected a number of seeds or a list of them, found "
                                         f"{value_name(seeds)}")
            return (0,)
        if len(set(seeds)) < len(seeds):
            self.note((*where, "seeds"), f"a seed occurs twice in {seeds}")
        return tuple(dict.fromkeys(seeds))

    def distinct(self, cells: list[Cell]):
        """Note rows of one name."""
        seen: dict[tuple[str, str], Cell] = {}
        for cell in cells:
            first = seen.setdefault((cell.label, cell.data), cell)
            if first is not cell:
                self.mistakes.append(f"two cells have the name {cell.title!r}: {first.where} and "
                                     f"{cell.where}; give each a \"label\" of its own")

    def published_rows(self, content, cells):
        """Note names under the study's "published" that are no rows."""
        given = content.get("published", {})
        if not isinstance(given, dict):
            self.note(("published",), "expected {\"row\": score, ...}, found "
                                      f"{value_name(given)}")
            return
        titles = [cell.title for cell in cells]
        for name in given:
            if name not in titles:
                self.note(("published", name), unknown("row", name, titles))

    def with_published(self, content, cell, scores):
        """The cell with what the study's "published" says about its row."""
        given = content.get("published", {})
        value = given.get(cell.title) if isinstance(given, dict) else None
        if value is None:
            return cell
        published = self.published(value, ("published", cell.title), scores)
        return dataclasses.replace(cell, published={**cell.published, **published})

    def published(self, value: Any, where: tuple, scores: list[str]) -> dict[str, Published]:
        """A number, a list of runs, {"mean", "runs"}, or one of these for each score."""
        if isinstance(value, dict) and not value.keys() & {"mean", "runs"}:
            for name in value.keys() - set(scores):
                self.note((*where, name), unknown("score of this study", name, scores))
            return {name: one for name in value if name in scores
                    if (one := self.one_published(value[name], (*where, name)))}
        one = self.one_published(value, where)
        return {scores[0]: one} if one else {}

    def one_published(self, value, where) -> Published | None:
        if isinstance(value, dict):
            self.known_keys(value, where, ("mean", "runs"))
        parts: dict[str, Any] = value if isinstance(value, dict) else \
            {"runs": value} if isinstance(value, list) else {"mean": value}
        runs, mean = parts.get("runs", []), parts.get("mean")
        numbers = [*(runs if isinstance(runs, list) else [None]),
                   *([mean] if mean is not None or not runs else [])]
        if not all(type(one) in (int, float) and 0 <= one <= 100 for one in numbers):
            self.note(where, "expected a score in percent, a list of runs, or "
                             f"{{\"mean\", \"runs\"}}, found {value_name(value)}")
            return None
        return Published(statistics.fmean(runs) if mean is None else mean, tuple(runs))

    def known_keys(self, value, where, known):
        for key in value:
            if key not in known:
                self.note((*where, key), unknown("key", key, known))

    def text(self, holder, where, key) -> str | None:
        value = holder.get(key)
        if value is not None and (not isinstance(value, str) or not value.strip()):
            self.note((*where, key), f"expected text, found {value_name(value)}")
            return None
        return value

    def texts(self, holder, key, where=()) -> list[str]:
        """A text or a list of texts."""
        value = holder.get(key, [])
        value = [value] if isinstance(value, str) else value
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            self.note((*where, key), f"expected text or a list of texts, found {value_name(value)}")
            return []
        return value

    def below(self, path: str) -> Path:
        """A path in the file, which is relative to the file."""
        return Path(os.path.normpath(self.path.absolute().parent / path))

    def near(self, config: str) -> str:
        """A hint with the existing config whose name is the most similar one."""
        folder = (self.path.parent / config).parent
        near = nearest(Path(config).name, (one.name for one in folder.glob("*.json"))) \
            if folder.is_dir() else None
        return f". Did you mean {near!r}?" if near else ""


def of_results(groups: Mapping[str, list[Path]], name: str, scores: tuple[str, ...],
               baseline: str | None) -> Study:
    """A study of results that exist: label -> results files of its runs (--from).

    Raises ConfigError if the baseline is not among them.
    """
    if baseline is not None and baseline not in groups:
        raise ConfigError(unknown("row", baseline, groups), "--baseline",
                          f"rows: {listed(list(groups), 20)}")
    return Study(name, tuple(Cell(label, results=tuple(paths)) for label, paths in groups.items()),
                 scores, baseline)
