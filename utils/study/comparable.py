"""Whether the rows of a study can stand in one table: the same classes, one evaluation protocol.

A finished run says so in its results file; of the others the data is opened, each once.
"""
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from utils.evaluation.results_file import protocol_of
from utils.predict.arguments import with_arguments
from utils.predict.protocols import changes
from utils.study.plan import Mistakes, PlannedTest, config_of_test
from utils.study.results import class_names_of, find_result, read_result
from utils.study.study_file import Cell, Study

ClassNames = Callable[[dict, str | None], list[str]]


def note_incomparable(study: Study, tests: Sequence[PlannedTest], mistakes: Mistakes,
                      test_arguments: Callable[[list[str]], Any],
                      class_names: ClassNames | None):
    """Note rows of other classes or of another protocol than the first row of their data set.

    test_arguments: parses the arguments of test.py. class_names: (config, split) -> the names of
    the classes of the data to score; None: unfinished runs are left out, and no data is opened.
    """
    rows = _Rows(study, mistakes)
    known: dict[str, list[str] | None] = {}
    for test in tests:
        with mistakes.of(test.cell):
            path = find_result(test)
            if path is None and class_names is None:
                continue
            args = test_arguments(list(test.cell.test))
            config = config_of_test(test, args.overrides)
            rows.note_protocol(test.cell, _protocol(with_arguments(config["predict"], args)))
            if path is not None:
                rows.note_classes(test.cell, class_names_of(path))
            elif class_names:
                sections = json.dumps([config[f"{name}_loader"] for name in (
                    "test", "val", "train")] + [args.split], sort_keys=True)
                if sections not in known:
                    known[sections] = None          # an error is told once
                    known[sections] = class_names(config, args.split)
                rows.note_classes(test.cell, known[sections] or [])
    for cell in study.cells:
        for path in cell.results:
            with mistakes.of(cell):
                result = read_result(path, cell)
                if "schema" in result.entry and "predictions" not in result.entry:  # of test.py
                    rows.note_protocol(cell, protocol_of(result.entry))
                if cell.where:      # the classes of --from may differ: the table then says so
                    rows.note_classes(cell, list(result.classes))


def require_comparable(study: Study, tests: Sequence[PlannedTest],
                       test_arguments: Callable[[list[str]], Any], class_names: ClassNames | None):
    """Raise one error with all that `note_incomparable` notes."""
    mistakes = Mistakes()
    note_incomparable(study, tests, mistakes, test_arguments, class_names)
    mistakes.raise_all(study)


class _Rows:
    """What the first row of each data set has, and the mistakes of the others."""

    def __init__(self, study: Study, mistakes: Mistakes):
        self.study, self.mistakes = study, mistakes
        self.classes: dict[str, tuple[Cell, list[str]]] = {}
        self.protocols: dict[str, tuple[Cell, str]] = {}

    def note_classes(self, cell: Cell, names: list[str]):
        if not names:
            return
        first, others = self.classes.setdefault(cell.data, (cell, names))
        if list(map(_plain, names)) != list(map(_plain, others)):
            self.mistakes.add(
                cell, f"is scored on {_few(names)}, {first.title} on {_few(others)}: they cannot "
                      "stand in one table (give cells another \"data\")")

    def note_protocol(self, cell: Cell, name: str):
        first, other = self.protocols.setdefault(cell.data, (cell, name))
        if name != other and not self.study.across_protocols:
            self.mistakes.add(
                cell, f"is scored under the protocol {name}, {first.title} under {other}: score "
                      "all rows under the same, or say that the study compares protocols with "
                      "\"across_protocols\": true, of results --across-protocols")


def _protocol(options: dict) -> str:
    return protocol_of({"protocol": options.get("protocol"), "protocol_changes": changes(options)})


def _plain(name: str) -> str:
    """A class name as programs may spell it: "traffic_light", "Traffic light"."""
    return re.sub(r"[\W_]+", " ", name).strip().casefold()


def _few(names: list[str]) -> str:
    return f"{len(names)} classes ({', '.join(names[:3])}{', ...' * (len(names) > 3)})"
