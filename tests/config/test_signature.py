"""Signatures as schemas of arguments."""
import inspect

import pytest

from utils.config.registry import KINDS, components
from utils.config.schema import Component
from utils.config.signature import REQUIRED, fits, parameters


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"optimizers"}))
def test_every_argument_has_a_type_and_a_default_that_fits_it(kind):
    for name, cls in components(kind).items():
        if cls.__module__.startswith("torch."):
            continue
        provided = Component(kind).fields(cls)[1]
        own = cls.__init__ if "__init__" in vars(cls) else None
        kinds = [p.kind for p in inspect.signature(own or cls).parameters.values()]
        assert inspect.Parameter.VAR_KEYWORD not in kinds, f"{name} accepts misspelled arguments"
        for key, (annotation, default) in parameters(cls).items():
            if key not in provided:
                assert key in inspect.get_annotations(cls.__init__), f"{name}: {key} has no type"
                if default is not REQUIRED:
                    assert fits(default, annotation), f"{name}: {key} = {default!r}"


def test_types_of_json_values_are_distinguished():
    assert fits(1, float) and fits(1, int | None) and fits(None, int | None)
    assert fits([1, 2], tuple[int, ...]) and fits([1, 2], tuple[int, int]) and fits([], list[int])
    assert fits([[1, 2.5]], list[tuple[int, float]]) and fits({"a": 1}, dict[str, int])
    for value, annotation in [(True, int), (True, float), (1, bool), ("1", int), (1, str),
                              (1.0, int), (float("inf"), float), ([1], tuple[int, int]),
                              (["a"], list[int]), ({"a": "b"}, dict[str, int]), ("ab", list),
                              (None, str), (1, type(None)), ("x", object.__class__)]:
        assert not fits(value, annotation), (value, annotation)
