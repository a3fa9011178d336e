"""Building components from the sections of a config."""
import pytest

from utils.config.build import build, construct, split_args
from utils.errors import ConfigError, DataError


def test_shared_arguments_go_to_every_callable_that_declares_them():
    def one(a: int, size: tuple[int, int] | None = None, both: tuple = ()): ...
    def two(both: list, c: float = 0.0): ...
    section = {"type": "X", "args": {"a": 1, "size": [2, 3], "both": [4], "c": 1}}
    first, second = split_args(section, one, two)
    assert first == {"a": 1, "size": (2, 3), "both": (4,)}
    assert second == {"both": [4], "c": 1}
    with pytest.raises(ConfigError, match="unknown argument 'sise'. Did you mean 'size'"):
        split_args({"type": "X", "args": {"sise": 1}}, one, two)


class Part:
    """A component with one required argument and an argument that the program provides."""

    def __init__(self, size: int, ratio: float = 0.5, seed: int = 0):
        if size < 1:
            raise ValueError(f"size must be at least 1, found {size}")
        if size > 100:
            raise DataError("no file is that large", "a.png")
        self.size, self.ratio, self.seed = size, 1 / ratio, seed


def test_construct_passes_the_arguments_of_the_config_and_of_the_program():
    built = construct(Part, {"size": 3}, "x.args", {"seed": 7})
    assert (built.size, built.ratio, built.seed) == (3, 2.0, 7)


@pytest.mark.parametrize("args, text", [
    ({"size": 3, "ration": 1}, "Part: unknown argument 'ration'. Did you mean 'ratio'? "
                               "Known: ratio, size."),
    ({"ratio": 1}, "Part needs the argument 'size'"),
    ({"size": 3, "seed": 1}, "Part: 'seed' is set by the program"),
    ({"size": 0}, "Part: size must be at least 1, found 0"),
])
def test_a_wrong_argument_is_a_config_error_with_its_place(args, text):
    with pytest.raises(ConfigError) as caught:
        construct(Part, args, "x.args", {"seed": 7})
    assert (caught.value.what, caught.value.where) == (text, "x.args")


def test_construct_passes_on_the_users_errors_and_those_that_are_not_refusals():
    with pytest.raises(DataError, match="no file is that large"):
        construct(Part, {"size": 101}, "x.args")
    with pytest.raises(ZeroDivisionError):
        construct(Part, {"size": 1, "ratio": 0}, "x.args")
    with pytest.raises(ConfigError, match="Part: .*division by zero"):
        construct(Part, {"size": 1, "ratio": 0}, "x.args", refusals=(ZeroDivisionError,))


def test_build_gives_a_component_its_arguments_and_what_the_program_provides():
    section = {"type": "ENet", "args": {"freeze_bn": True}}
    model = build("models", section, num_classes=5, seed=3)
    assert model._freeze_bn and not model._freeze_backbone
    assert type(model).__name__ == "ENet"


def test_build_turns_a_rejected_value_into_a_config_error_and_passes_other_errors():
    section = {"type": "VOC", "args": {"data_dir": "d", "split": "none"}}
    with pytest.raises(DataError, match="no such split"):
        build("datasets", section, ignore_index=255)
    with pytest.raises(ConfigError, match="SGD: Invalid learning rate"):
        import torch
        build("optimizers", {"type": "SGD", "args": {"lr": -1.0}},
              params=[torch.nn.Parameter(torch.zeros(1))])
    with pytest.raises(ConfigError, match="VOC needs the argument 'split'"):
        build("datasets", {"type": "VOC", "args": {"data_dir": "d"}})
    with pytest.raises(ConfigError, match="unknown type 'VOD'. Did you mean 'VOC'?"):
        build("datasets", {"type": "VOD"})
