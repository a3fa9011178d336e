"""The recipes in configs/, and what their section "published" says.

A recipe is a config. Its section "published" states the scores that a document prints for it. The
section belongs to its file alone: a config that extends the file does not inherit the scores, and
no program uses them in a training, a prediction or a checkpoint.
"""
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from utils.config.schema import Mistakes
from utils.config.signature import Field, fields
from utils.errors import ConfigError, nearest, short_path
from utils.files.jsonc import Lines

FOLDER = Path(__file__).resolve().parents[2] / "configs"
NOT_RECIPES = ("base", "studies")       # sub-folders: parts of configs, and tables of runs
SECTION = "published"
METRICS = ("mDice", "mIoU", "AP")       # what a result can state, in %


def published_section(*, source: str, results: list[dict], checkpoint: str | None = None,
                      loader: str | None = None, gpus: int | None = None):
    """The keys of a section "published".

    source: the document. results: what it prints, a result_section each. checkpoint: the
    published file. loader: the name that tools.convert_checkpoint has for files of that program,
    also if none was published. gpus: of the published training.
    """


def result_section(*, name: str = "", mIoU: float | None = None, mDice: float | None = None,
                   AP: float | None = None, runs: list[float] | None = None, best: bool = False,
                   test: str = "", note: str = ""):
    """The keys of one published result.

    name: tells apart several tests of one training. mIoU, mDice, AP: in %, the mean if there are
    runs. runs: the mIoU of each run. best: the numbers are those of the best run, not a mean.
    test: arguments of test.py, besides the checkpoint. note: on the numbers.
    """


class Published(NamedTuple):
    """What a document prints for a recipe: see published_section."""

    source: str
    results: list[dict[str, Any]]       # with the keys of result_section
    checkpoint: str | None
    loader: str | None
    gpus: int | None

    @property
    def score(self) -> str:
        """The first number of each result, e.g. "81.26 / 82.30 mIoU"; "-" without a number."""
        metric = next((name for name in METRICS
                       if any(one[name] is not None for one in self.results)), None)
        if not metric:
            return "-"
        return f"{' / '.join(_number(one, one[metric]) for one in self.results)} {metric}"


def recipe_files(folder: Path = FOLDER) -> Iterator[Path]:
    """The configs below a folder, sorted, without bases and studies."""
    for path in sorted(folder.rglob("*.json")):
        if path.relative_to(folder).parts[0] not in NOT_RECIPES:
            yield path


def published_in(section: Any, lines: Lines, path: str) -> Published | None:
    """What a section "published" says, or None without one. Raises ConfigError if it is wrong.

    lines: of the values in its file, which is `path`.
    """
    if section is None:
        return None
    report = Mistakes(path, {where: f"{path}:{line}" for where, line in lines.items() if where}, {})
    values = _resolved(section, (SECTION,), fields(published_section), report)
    for number, result in enumerate(values.get("results") or ()):
        where = SECTION, "results", number
        values["results"][number] = _resolved(result, where, fields(result_section), report)
    report.raise_mistakes()
    return Published(**values)


def result_text(result: dict[str, Any]) -> str:
    """A result as documents print it: "81.13 (81.02, 81.44, 80.92)", "57.5, 49.6", "-"."""
    numbers = [_number(result, result[metric]) for metric in METRICS
               if result[metric] is not None]
    text = ("best " if result["best"] else "") + (", ".join(numbers) or "-")
    notes = [", ".join(_number(result, run) for run in result["runs"] or ()), result["note"]]
    return text + "".join(f" ({note})" for note in notes if note)


def no_such_config(path: str) -> ConfigError:
    """The error for a config file that does not exist; it names the recipe most likely meant."""
    stems = {recipe.stem: recipe for recipe in recipe_files()}
    near = nearest(Path(path).stem, stems)
    hint = f"did you mean {short_path(stems[near])}? " if near else ""
    return ConfigError("the file does not exist", path,
                       f"{hint}python train.py --list recipes prints all recipes")


def _resolved(section: Any, path: tuple, schema: dict[str, Field], report: Mistakes) -> dict:
    if not report.is_object(section, path, "an object {...}"):
        return {}
    return report.keys(section, path, schema)


def _number(result: dict, value: float | None) -> str:
    """A score with the digits that documents print: two where they print single runs."""
    if value is None:
        return "-"
    return f"{value:.2f}" if result["runs"] else str(value)
