"""From a study to its runs: which trainings it needs, under which names, and can they start?

A run is known by its key, a hash of its config as given (files and overrides, with the seed,
without what cannot change a number). So two rows, or two studies, that train the same way share
the run, a renamed row keeps it, and a changed config is another run. Defaults are not part of the
key: a new version of the program with a new setting does not repeat finished work.
"""
import contextlib
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.config.load import load_config, with_config
from utils.config.schema import resolve_config
from utils.errors import ConfigError, UserError
from utils.study.study_file import Cell, Study
from utils.training.earlier_runs import start_file
from utils.training.run_setup import HARMLESS

KEY_DIGITS = 8
_LONGEST_LABEL = 60     # characters of a run's name that come from its row


@dataclass(frozen=True)
class PlannedRun:
    """A training. overrides: without seed and name. config: the resolved one.

    name: of the run; its folder is `save_dir`/`name`/<date>, whose name ends in the key.
    """

    key: str
    name: str
    path: Path
    overrides: tuple[str, ...]
    seed: int
    config: dict[str, Any]

    @property
    def folder(self) -> Path:
        """The folder of all attempts of this run."""
        return Path(self.config["trainer"]["save_dir"]) / self.name

    @property
    def gpus(self) -> int:
        """The processes that the config asks for; 1 if it does not say."""
        return max(1, self.config["n_gpu"] or 1)

    def train_arguments(self) -> list[str]:
        """The arguments of train.py that start or continue this run."""
        return ["-c", str(self.path), *self.overrides, f"seed={self.seed}", f"name={self.name}",
                "-r", "auto"]


@dataclass(frozen=True)
class PlannedTest:
    """One score of the table: a run, and how it is tested for a cell."""

    cell: Cell
    run: PlannedRun

    @property
    def code(self) -> str:
        """Names the folder of the result within the folder of the run."""
        if not self.cell.test:
            return "plain"
        return hashlib.sha256("\0".join(self.cell.test).encode()).hexdigest()[:KEY_DIGITS]


@dataclass(frozen=True)
class Plan:
    """All runs of a study, each once, in the order seed by seed, and the tests of each cell."""

    study: Study
    runs: tuple[PlannedRun, ...]
    tests: tuple[PlannedTest, ...]

    def tests_of(self, run: PlannedRun) -> list[PlannedTest]:
        """The tests of one run, each way of testing once."""
        return list({test.code: test for test in self.tests if test.run.key == run.key}.values())


def make_plan(study: Study, test_arguments: Callable[[list[str]], Any]) -> Plan:
    """The runs and tests of a study. Reads every config, and no data.

    test_arguments: parses the arguments of test.py; it is called with those of each cell.
    Raises one ConfigError with the mistakes of all cells.
    """
    mistakes, tests = _Mistakes(), []
    for cell in study.cells:
        if cell.config is None:
            for path in cell.results:
                if not path.is_file():
                    mistakes.add(cell, f"{path} does not exist")
            continue
        with mistakes.of(cell):
            _check_test(cell, test_arguments)
            tests += [PlannedTest(cell, _run(study, cell, seed)) for seed in cell.seeds]
    _note_twins(tests, mistakes)
    mistakes.raise_all(study)
    first: dict[str, PlannedRun] = {}
    for test in tests:
        first.setdefault(test.run.key, test.run)
    # Seed by seed: a study that is stopped early has some run of every row.
    runs = sorted(first.values(), key=lambda run: run.seed)
    return Plan(study, tuple(runs),
                tuple(PlannedTest(test.cell, first[test.run.key]) for test in tests))


def require_devices(plan: Plan, devices: Iterable[str]):
    """Raise ConfigError if a run needs more GPUs than there are."""
    devices = list(devices)
    given = sum(one != "cpu" for one in devices)
    for run in plan.runs:
        if run.gpus > 1 and run.gpus > given:
            raise ConfigError(
                f"{run.name} trains on {run.gpus} GPUs (n_gpu), and --devices names "
                f"{', '.join(devices)}", "--devices",
                "name as many, or set n_gpu (and the batch size, which is per GPU) in the study")


def config_of_test(test: PlannedTest, overrides: Iterable[str]) -> dict[str, Any]:
    """The config with which test.py scores the run: with the overrides of its arguments."""
    return with_config({"config": test.run.config}, None, overrides)["config"]


def check_classes(plan: Plan, test_arguments: Callable[[list[str]], Any],
                  class_names: Callable[[dict, str | None], list[str]]):
    """Open the data of every test, each once, and compare the classes of the rows.

    class_names: (config, split) -> the names of the classes of the data to score.
    Raises one error with the mistakes of all cells.
    """
    mistakes, known, first = _Mistakes(), {}, {}
    for test in plan.tests:
        cell = test.cell
        args = test_arguments(list(cell.test))
        with mistakes.of(cell):
            config = config_of_test(test, args.overrides)
            sections = json.dumps([config[f"{name}_loader"] for name in ("test", "val", "train")]
                                  + [args.split], sort_keys=True)
            if sections not in known:
                known[sections] = None      # an error is told once
                known[sections] = class_names(config, args.split)
            names = known[sections]
            of_data = first.setdefault(cell.data, (cell, names))
            if names and of_data[1] and names != of_data[1]:
                mistakes.add(cell, f"is scored on {len(names)} classes ({_first_of(names)}), "
                                   f"{of_data[0].title} on {len(of_data[1])} "
                                   f"({_first_of(of_data[1])}): they cannot stand in one table "
                                   "(give cells another \"data\")")
    mistakes.raise_all(plan.study)


def _first_of(names):
    return ", ".join(names[:3]) + ", ..." * (len(names) > 3)


def _run(study: Study, cell: Cell, seed: int) -> PlannedRun:
    assert cell.config is not None
    given = load_config(cell.config, [*cell.overrides, f"seed={seed}"])
    config = resolve_config(given, str(cell.config))
    key = key_of(given)
    folder = Path(config["trainer"]["save_dir"])
    there = sorted(path.name for path in folder.glob(f"*-{key}") if path.is_dir())
    start = config["trainer"]["finetune_from"]
    if start and not there and not Path(start_file(start, config["trainer"]["save_dir"])).is_file():
        raise ConfigError(f"trainer.finetune_from: {start} does not exist", str(cell.config),
                          "train the stage before it first, or download the file")
    label = re.sub(r"[^\w.+-]+", "_", f"{study.name}_{cell.title}").strip("_")[:_LONGEST_LABEL]
    name = there[0] if there else f"{label}_s{seed}-{key}"
    return PlannedRun(key, name, cell.config, cell.overrides, seed, {**config, "name": name})


def key_of(given: dict) -> str:
    """The hash of a config as given, before defaults are added."""
    flat = {key: value for key, value in _flat(given) if not _is_harmless(key)}
    text = json.dumps(flat, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_DIGITS]


def _is_harmless(key):
    # The number of processes is a matter of the batch size too, unless the run was resumed.
    return key != "n_gpu" and bool(HARMLESS.fullmatch(key))


def _flat(value, path=""):
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _flat(item, f"{path}.{key}" if path else key)
    else:
        yield path, value


def _check_test(cell: Cell, test_arguments):
    """Raise ConfigError if test.py would not take the arguments of a cell, or give two results."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            args = test_arguments(list(cell.test))
    except SystemExit:
        reason = said.getvalue().strip().rpartition("error: ")[2]
        raise ConfigError(f"test: {reason}") from None
    for option, value in (("rule", args.predict), ("protocol", args.protocol)):
        if value and ("," in value or value == "all"):
            name = "predict" if option == "rule" else option
            raise ConfigError(f"test: --{name} {value} gives several results: make an axis of the "
                              f"{option}s")


def _note_twins(tests: list[PlannedTest], mistakes: "_Mistakes"):
    """Note rows that train and test the same: an axis that changes nothing."""
    seen: dict[tuple[str, str], PlannedTest] = {}
    for test in tests:
        first = seen.setdefault((test.run.key, test.code), test)
        if first.cell is not test.cell:
            mistakes.add(test.cell, f"is the same run and test as {first.cell.title!r}: what "
                                    "distinguishes them changes nothing")


class _Mistakes:
    """Collects the mistakes of all cells; the same mistake of several cells is told once."""

    def __init__(self):
        self.found: dict[str, list[str]] = {}
        self.kind: type[UserError] = ConfigError

    def add(self, cell: Cell, text: str):
        titles = self.found.setdefault(text, [])
        if cell.title not in titles:
            titles.append(cell.title)

    @contextlib.contextmanager
    def of(self, cell: Cell):
        """Collect a UserError of the block."""
        try:
            yield
        except UserError as error:
            if not self.found:
                self.kind = type(error)
            self.add(cell, str(error))

    def raise_all(self, study: Study):
        if not self.found:
            return
        lines = []
        for text, titles in self.found.items():
            more = f" and {len(titles) - 1} more" if len(titles) > 1 else ""
            indented = text.replace("\n", "\n    ")
            lines.append(f"{titles[0]}{more}: {indented}")
        where = str(study.path) if study.path else None
        raise self.kind("\n".join(lines), where, "nothing was started")
