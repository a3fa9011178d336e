"""From a study to its runs: which trainings it needs, under which names, and can they start?

A run is known by its key, a hash of its config as given (files and overrides, with the seed,
without what cannot change a number). So two rows, or two studies, that train the same way share
the run, a renamed row keeps it, and a changed config is another run. Defaults are not part of the
key: a new version of the program with a new setting does not repeat finished work.

A config with stages is one run, which train.py trains stage after stage. Each stage has a key and
a folder of its own, so that a stage that another row or another chain trains too is not repeated.
"""
import contextlib
import dataclasses
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.config.load import load_stages, with_config
from utils.errors import ConfigError, UserError
from utils.study.study_file import Cell, Study
from utils.training.earlier_runs import RUN, named_run, require_start
from utils.training.run_setup import HARMLESS
from utils.training.stages import resolve_stages

KEY_DIGITS = 8
_OWN = ("checkpoint", "config", "output", "json", "device", "debug")    # of test.py
_LONGEST_LABEL = 60     # characters of a run's name that come from its row
_LONGEST_FOLD = 20      # and from its fold


@dataclass(frozen=True)
class PlannedRun:
    """A training. overrides: without seed and name. config: the resolved one, of the last stage.

    name: of the run; its folder is `save_dir`/`name`/<date>, whose name ends in the key.
    earlier: the stages before the last one, in their order; none of a config without stages.
    naming: the overrides that give the run, or each of its stages, its name.
    """

    key: str
    name: str
    path: Path
    overrides: tuple[str, ...]
    seed: int
    config: dict[str, Any]
    earlier: tuple["PlannedRun", ...] = ()
    naming: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """The folder of all attempts of this run, or of its last stage."""
        return Path(self.config["trainer"]["save_dir"]) / self.name

    @property
    def stages(self) -> tuple["PlannedRun", ...]:
        """All stages in their order, this run as the last one."""
        return *self.earlier, self

    @property
    def gpus(self) -> int:
        """The processes that the config asks for; 1 if it does not say."""
        return max(1, self.config["n_gpu"] or 1)

    def config_arguments(self) -> list[str]:
        """The arguments of train.py that choose this run."""
        return ["-c", str(self.path), *self.overrides, f"seed={self.seed}", *self.naming]

    def train_arguments(self) -> list[str]:
        """The arguments of train.py that start or continue this run."""
        return [*self.config_arguments(), "-r", "auto"]


@dataclass(frozen=True)
class PlannedTest:
    """One score of the table: a run, and how it is tested for a cell. fold: of the cell, or ""."""

    cell: Cell
    run: PlannedRun
    fold: str = ""

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


def make_plan(study: Study, test_arguments: Callable[[list[str]], Any],
              check: "Callable[[Study, list[PlannedTest], Mistakes], None] | None" = None) -> Plan:
    """The runs and tests of a study. Reads every config.

    test_arguments: parses the arguments of test.py; it is called with those of each cell.
    check: notes further mistakes of the tests, such as `utils.study.comparable`.
    Raises one error with the mistakes of all cells, those of the file of the study first.
    """
    mistakes, found = Mistakes(), []
    for cell in study.cells:
        if cell.config is None or study.mistakes and not cell.config.is_file():
            continue
        trainings = []
        with mistakes.of(cell):
            trainings = [(cell, _read(cell, seed, fold)) for seed in cell.seeds
                         for fold in cell.folds or ("",)]
        with mistakes.of(cell):
            _check_test(cell, test_arguments)
            found += trainings
    names: dict[str, str] = {}
    for cell, training in sorted(found, key=lambda one: len(one[1].keys)):
        _name(study, cell, training, names)     # a stage that is a row has the name of the row
    tests = []
    for cell, training in found:
        with mistakes.of(cell):
            tests.append(PlannedTest(cell, _run(cell, training, names), training.fold))
    _note_twins(tests, mistakes)
    if check:
        check(study, tests, mistakes)
    mistakes.raise_all(study)
    first: dict[str, PlannedRun] = {}
    for test in tests:
        first.setdefault(test.run.key, test.run)
    # Seed by seed: a study that is stopped early has some run of every row. Chains come last: a
    # stage of theirs may be a row, which has its result then.
    runs = sorted(first.values(), key=lambda run: (run.seed, len(run.earlier)))
    return Plan(study, tuple(runs),
                tuple(dataclasses.replace(test, run=first[test.run.key]) for test in tests))


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


@dataclass(frozen=True)
class _Training:
    """The resolved config and the key of each stage; one if the config has none.

    fold: of the cell, or "". overrides: of the cell and the fold.
    starts: of a stage that starts from an earlier one the number of that one and the name of the
    file, "" for the best; else None.
    """

    seed: int
    fold: str
    overrides: tuple[str, ...]
    chain: bool
    configs: list[dict[str, Any]]
    keys: list[str]
    starts: list[tuple[int, str] | None]


def _read(cell: Cell, seed: int, fold: str) -> _Training:
    assert cell.config is not None
    overrides = (*cell.overrides, *cell.folds.get(fold, ()))
    given = load_stages(cell.config, [*overrides, f"seed={seed}"])
    configs = resolve_stages(given, str(cell.config))
    names, keys, starts = [config["name"] for config in configs], [], []
    for number, stage in enumerate(given):
        named = named_run(configs[number]["trainer"]["finetune_from"])
        start = (names.index(named[0]), named[1]) if named and named[0] in names[:number] else None
        starts.append(start)
        if start:       # the names of runs are those of the study
            stage = {**stage, "trainer": {**stage["trainer"],
                                          "finetune_from": [keys[start[0]], start[1]]}}
        keys.append(key_of(stage))
    return _Training(seed, fold, overrides, given.chain, configs, keys, starts)


def _name(study: Study, cell: Cell, training: _Training, names: dict[str, str]):
    """Add key -> name of the run for each stage that has none yet: that of its folder, or a new."""
    label = re.sub(r"[^\w.+-]+", "_", f"{study.name}_{cell.title}").strip("_")[:_LONGEST_LABEL]
    last, fold = len(training.keys), re.sub(r"[^\w.+-]+", "_", training.fold)[:_LONGEST_FOLD]
    fold = f"_fold{fold}" if fold else ""
    for number, (key, config) in enumerate(zip(training.keys, training.configs, strict=True), 1):
        there = _folders_of(key, config)
        stage = "" if number == last else f"_stage{number}"
        names.setdefault(key, there[0] if there else f"{label}{stage}{fold}_s{training.seed}-{key}")


def _folders_of(key: str, config: dict[str, Any]) -> list[str]:
    folder = Path(config["trainer"]["save_dir"])
    return sorted(path.name for path in folder.glob(f"*-{key}") if path.is_dir())


def _run(cell: Cell, training: _Training, names: dict[str, str]) -> PlannedRun:
    """Raises CheckpointError if a file that a stage starts from is missing."""
    assert cell.config is not None
    stages, naming = [], []
    for number, (key, config) in enumerate(zip(training.keys, training.configs, strict=True)):
        of_stage = f"stages[{number}]." if training.chain else ""
        naming.append(f"{of_stage}name={names[key]}")
        trainer, before = config["trainer"], training.starts[number]
        if before:
            start = "/".join(filter(None, (RUN + names[training.keys[before[0]]], before[1])))
            naming.append(f"{of_stage}trainer.finetune_from={start}")
            trainer = {**trainer, "finetune_from": start}
        elif not _folders_of(key, config):
            require_start(trainer)
        stages.append(PlannedRun(key, names[key], cell.config, training.overrides, training.seed,
                                 {**config, "name": names[key], "trainer": trainer}))
    return dataclasses.replace(stages[-1], earlier=tuple(stages[:-1]), naming=tuple(naming))


def key_of(given: dict) -> str:
    """The hash of a config as given, before defaults are added."""
    text = json.dumps(settings_of(given), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_DIGITS]


def settings_of(given: dict) -> dict[str, Any]:
    """key -> value of a config, {"trainer.epochs": 4}, without what cannot change a number."""
    return {key: value for key, value in _flat(given) if not _is_harmless(key)}


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
            args, usual = test_arguments(list(cell.test)), test_arguments([])
    except SystemExit:
        reason = said.getvalue().strip().rpartition("error: ")[2]
        full = "\n  (a study names options in full)" * ("unrecognized" in reason)
        raise ConfigError(f"test: {reason}{full}") from None
    for name in _OWN:       # also as "-oFOLDER"
        if getattr(args, name) != getattr(usual, name):
            raise ConfigError(f"test: --{name} is set by the study")
    for option, value in (("rule", args.predict), ("protocol", args.protocol)):
        if value and ("," in value or value == "all"):
            name = "predict" if option == "rule" else option
            raise ConfigError(f"test: --{name} {value} gives several results: make an axis of the "
                              f"{option}s")


def _note_twins(tests: list[PlannedTest], mistakes: "Mistakes"):
    """Note rows that train and test the same: an axis that changes nothing."""
    seen: dict[tuple[str, str], PlannedTest] = {}
    for test in tests:
        first = seen.setdefault((test.run.key, test.code), test)
        if first.cell is test.cell and first.fold != test.fold:
            mistakes.add(test.cell, f"the folds {first.fold} and {test.fold} train the same: each "
                                    "needs lists of its own")
        elif first.cell is not test.cell:
            mistakes.add(test.cell, f"is the same run and test as {first.cell.title!r}: what "
                                    "distinguishes them changes nothing")


class Mistakes:
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
        if not self.found and not study.mistakes:
            return
        lines = list(study.mistakes)
        for text, titles in self.found.items():
            more = f" and {len(titles) - 1} more" if len(titles) > 1 else ""
            indented = text.replace("\n", "\n    ")
            lines.append(f"{titles[0]}{more}: {indented}")
        where = str(study.path) if study.path else None
        raise (ConfigError if study.mistakes else self.kind)(
            "\n".join(lines), where, "nothing was started" + (
                "; docs/studies.md describes the file" if study.mistakes else ""))
