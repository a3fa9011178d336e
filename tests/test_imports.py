"""The house rules that can be read off the source files."""
import ast
import subprocess
import sys
from pathlib import Path

import pytest

from utils.registry import KINDS, components

ROOT = Path(__file__).resolve().parents[1]
ENTRY_POINTS = ("train.py", "test.py", "inference.py")
# What a package may import of the project. utils finds components by name, never by import.
ALLOWED = {
    "utils": {"utils"},
    "base": {"base", "utils"},
    "models": {"models", "base", "utils"},
    "dataloader": {"dataloader", "base", "utils"},
    "trainer.py": {"base", "utils"},
}
# Inside utils only these import siblings broadly; the rest take what they need by name.
BROAD = {"config", "criterion", "evaluate"}
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


def test_models_never_import_losses():
    for path in sources("models"):
        assert "utils.losses" not in path.read_text(encoding="utf-8"), path


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"optimizers", "schedulers"}))
def test_entry_points_and_contracts_name_no_component(kind):
    places = [*ENTRY_POINTS, "trainer.py", *(f"base/{p.name}" for p in sources("base"))]
    for place in places:
        words = {node.id for node in ast.walk(ast.parse((ROOT / place).read_text()))
                 if isinstance(node, ast.Name)}
        words |= {node.value for node in ast.walk(ast.parse((ROOT / place).read_text()))
                  if isinstance(node, ast.Constant) and isinstance(node.value, str)}
        assert not words & set(components(kind)), place


@pytest.mark.parametrize("program", ENTRY_POINTS)
def test_help_answers_without_importing_torch(program):
    code = (f"import sys, runpy; sys.argv = ['{program}', '--help']\n"
            f"try:\n    runpy.run_path('{program}', run_name='__main__')\n"
            "except SystemExit as stop:\n    assert stop.code == 0\n"
            "assert 'torch' not in sys.modules and 'numpy' not in sys.modules")
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "examples:" in result.stdout and "exit status" in result.stdout


@pytest.mark.parametrize("program", ENTRY_POINTS)
def test_entry_points_stay_short(program):
    assert len((ROOT / program).read_text().splitlines()) <= 100


def test_no_module_is_called_after_nothing():
    names = {path.stem for path in ROOT.rglob("*.py") if ".venv" not in path.parts}
    assert not names & {"helpers", "helper", "misc", "common", "utilities"}


@pytest.mark.parametrize("program", ENTRY_POINTS)
def test_version_names_what_decides_the_numbers(program):
    result = subprocess.run([sys.executable, program, "--version"], cwd=ROOT, capture_output=True,
                            text=True)
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
