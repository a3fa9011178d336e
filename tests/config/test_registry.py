"""Discovery of components in the modules of a package."""
import sys

import pytest

from utils.config import registry
from utils.errors import ConfigError


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A function that writes modules of a package and returns the components found in it."""
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "__init__.py").write_text("class Base: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(registry.KINDS, "plugins", ("plugins", "plugins:Base"))

    def find(**modules):
        for name, text in modules.items():
            (tmp_path / "plugins" / f"{name}.py").write_text("from plugins import Base\n" + text)
        return registry.components.__wrapped__("plugins")
    yield find
    for name in [name for name in sys.modules if name.partition(".")[0] == "plugins"]:
        del sys.modules[name]


def test_a_class_is_found_by_its_name_and_aliases(package):
    found = package(one="class One(Base): aliases = ('first', 'Erste')\nclass Two(One): pass\n")
    assert sorted(found) == ["Erste", "One", "Two", "first"]
    assert found["first"] is found["Erste"] is found["One"]


def test_imported_private_abstract_and_foreign_classes_are_not_components(package):
    found = package(one="class One(Base): pass\n", two="""
from abc import ABC, abstractmethod
from plugins.one import One
class _Hidden(Base): pass
class Other: pass
class Abstract(Base, ABC):
    @abstractmethod
    def f(self): ...
""")
    assert list(found) == ["One"]


def test_two_classes_of_one_name_are_an_error_that_names_both_modules(package):
    with pytest.raises(RuntimeError, match=r"'One'.*plugins\.one.*plugins\.two"):
        package(one="class One(Base): pass\n", two="class Two(Base): aliases = ('One',)\n")


def test_an_import_error_in_a_component_is_not_hidden(package):
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        package(one="import no_such_module\n")


def test_schedulers_and_optimizers_of_torch_are_found_too():
    assert {"Poly", "OneCycle", "StepLR", "CosineAnnealingLR"} <= set(
        registry.components("schedulers"))
    optimizers = registry.components("optimizers")
    assert {"SGD", "AdamW"} <= set(optimizers)
    assert not {"Optimizer", "LBFGS"} & set(optimizers)


def test_a_lookup_of_an_unknown_name_reports_its_place_and_the_known_names():
    with pytest.raises(ConfigError, match=r"arch\.type: unknown type 'B'.*Known: A, C\."):
        registry.lookup("B", {"C": 1, "A": 2}, "arch.type")
