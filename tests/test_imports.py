"""The house rules that can be read off the source files."""
import ast
from pathlib import Path

import pytest

from tests.support.places import ROOT
from tests.support.run_program import program
from utils.config.registry import KINDS, components

ENTRY_POINTS = ("train.py", "test.py", "inference.py")
# What a package may import of the project. utils finds components by name, never by import.
ALLOWED = {
    "utils": {"utils"},
    "base": {"base", "utils"},
    "models": {"models", "base", "utils"},
    "dataloader": {"dataloader", "base", "utils"},
    "trainer.py": {"base", "utils"},
}
# Of utils/: a room imports only itself and those before it (docs/architecture.md).
ROOMS = ("errors", "cli", "machine", "files", "images", "annotations", "config", "losses",
         "metrics", "checkpoint", "training", "predict", "decision", "segfix", "evaluation",
         "inference", "export", "study")
PACKAGES = {"utils", "base", "models", "dataloader", "tools", "benchmarks", "trainer", "train",
            "test", "inference"}


def imported(path):
    """Top-level names of the project's modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.split(".")[0]


def sources(place):
    path = ROOT / place
    return [path] if path.is_file() else sorted(path.rglob("*.py"))


@pytest.mark.parametrize("place", ALLOWED)
def test_imports_run_one_way(place):
    wrong = {f"{path.relative_to(ROOT)} imports {name}" for path in sources(place)
             for name in imported(path) if name in PACKAGES - ALLOWED[place]}
    assert not wrong


def rooms_of(node):
    """The rooms of utils/ that an import statement names."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.level == 0:
        names = ([f"utils.{alias.name}" for alias in node.names] if node.module == "utils"
                 else [node.module])
    else:
        names = []
    return {name.split(".")[1] for name in names if name.startswith("utils.")}


def misplaced(files):
    """What breaks the rules of the rooms in {path below utils/: source text}, one line each."""
    for path, text in files.items():
        room, *inside = Path(path).with_suffix("").parts
        if room not in ROOMS or (room == "errors") == bool(inside):
            yield f"{path} lies in no room"
            continue
        if inside == ["__init__"] and text and room not in ("losses", "metrics"):
            yield f"{path} is not empty"
        allowed = set(ROOMS[:ROOMS.index(room) + 1])
        for node in ast.walk(ast.parse(text)):
            yield from (f"{path}:{node.lineno} imports utils.{later}, a room after its own"
                        for later in rooms_of(node) - allowed)
            if isinstance(node, ast.ImportFrom) and node.level:
                yield f"{path}:{node.lineno} is a relative import, which no rule here reads"


def test_a_room_imports_only_itself_and_the_rooms_before_it():
    files = {str(path.relative_to(ROOT / "utils")): path.read_text(encoding="utf-8")
             for path in sources("utils") if path != ROOT / "utils" / "__init__.py"}
    assert not list(misplaced(files))


@pytest.mark.parametrize("path,text,said", [
    ("files/jsonc.py", "from utils.images.headers import Header", "after its own"),
    ("files/jsonc.py", "from utils import images", "after its own"),
    ("files/jsonc.py", "import utils.images.headers", "after its own"),
    ("files/jsonc.py", "def f():\n    from utils.export.graph import export", "after its own"),
    ("errors.py", "from utils.cli.console import warn", "after its own"),
    ("config/__init__.py", "from utils.config.load import load_config", "is not empty"),
    ("files/jsonc.py", "from . import whole_file", "relative import"),
    ("palette.py", "", "lies in no room"),
    ("common/palette.py", "", "lies in no room"),
    ("errors/palette.py", "", "lies in no room"),
    ("files/__init__.py", "import json", "is not empty"),
])
def test_each_kind_of_wrong_import_is_found(path, text, said):
    wrong, = misplaced({path: text})
    assert said in wrong


def test_models_never_import_losses():
    for path in sources("models"):
        assert "utils.losses" not in path.read_text(encoding="utf-8"), path


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"optimizers", "schedulers"}))
def test_entry_points_and_contracts_name_no_component(kind):
    places = [*ENTRY_POINTS, "trainer.py", *(f"base/{p.name}" for p in sources("base"))]
    for place in places:
        nodes = list(ast.walk(ast.parse((ROOT / place).read_text())))
        # typing.Annotated is not the dataset of this name.
        typing = {alias.name for node in nodes if isinstance(node, ast.ImportFrom)
                  and node.module == "typing" for alias in node.names}
        words = {node.id for node in nodes if isinstance(node, ast.Name)} - typing
        words |= {node.value for node in nodes
                  if isinstance(node, ast.Constant) and isinstance(node.value, str)}
        assert not words & set(components(kind)), place


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_help_answers_without_importing_torch(entry_point):
    code = (f"import sys, runpy; sys.argv = ['{entry_point}', '--help']\n"
            f"try:\n    runpy.run_path('{entry_point}', run_name='__main__')\n"
            "except SystemExit as stop:\n    assert stop.code == 0\n"
            "assert 'torch' not in sys.modules and 'numpy' not in sys.modules")
    result = program("-c", code)
    assert result.returncode == 0, result.stderr
    assert "examples:" in result.stdout and "exit status" in result.stdout


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_entry_points_stay_short(entry_point):
    assert len((ROOT / entry_point).read_text().splitlines()) <= 100


def test_no_module_is_called_after_nothing():
    names = {path.stem for path in ROOT.rglob("*.py") if ".venv" not in path.parts}
    assert not names & {"helpers", "helper", "misc", "common", "utilities"}


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_version_names_what_decides_the_numbers(entry_point):
    result = program(entry_point, "--version")
    assert result.returncode == 0
    assert "segwright" in result.stdout and "torch " in result.stdout


def test_ci_tries_the_oldest_versions_that_are_allowed():
    def bounds(path, relation):
        lines = [line.partition(";")[0].split(relation) for line in
                 (ROOT / path).read_text().splitlines() if not line.startswith("#")]
        return {name: tuple(map(int, version.split("."))) for name, version in lines}
    allowed, tried = bounds("requirements.txt", ">="), bounds(".ci/oldest.txt", "==")
    assert tried.keys() == allowed.keys()
    for name, version in allowed.items():
        assert tried[name][:len(version)] == version, name
