"""Public arguments have types; `python -m tests.test_annotations PLACE` lists those without."""
import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.support.places import ROOT
from tests.test_imports import sources

PLACES = ("base", "dataloader", "models", "utils", "tools", "trainer.py", "train.py", "test.py",
          "inference.py")


def public_functions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef, bool]]:
    """(name, definition, whether the first argument is self or cls) of what a module offers."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node.name, node, False
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and (
                        not method.name.startswith("_") or method.name in ("__init__", "__call__")):
                    static = any(isinstance(one, ast.Name) and one.id == "staticmethod"
                                 for one in method.decorator_list)
                    yield f"{node.name}.{method.name}", method, not static


def arguments(path: Path) -> Iterator[tuple[str, bool]]:
    """("file:line function(argument)", whether it is annotated) of every public argument."""
    for name, function, bound in public_functions(ast.parse(path.read_text(encoding="utf-8"))):
        found = [*function.args.posonlyargs, *function.args.args][bound:] + function.args.kwonlyargs
        found += [one for one in (function.args.vararg, function.args.kwarg) if one]
        for one in found:
            yield (f"{path.relative_to(ROOT)}:{one.lineno} {name}({one.arg})",
                   one.annotation is not None)


def test_public_arguments_are_annotated():
    found = [one for place in PLACES for path in sources(place) for one in arguments(path)]
    missing = [name for name, annotated in found if not annotated]
    assert len(missing) <= 0.02 * len(found), "\n".join(missing)


if __name__ == "__main__":
    for place in sys.argv[1:] or PLACES:
        found = [one for path in sources(place) for one in arguments(path)]
        missing = [name for name, annotated in found if not annotated]
        print(*missing, f"{place}: {len(found) - len(missing)} of {len(found)} annotated", sep="\n")
