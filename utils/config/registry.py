"""Finds the classes that a config can name.

A component is a public class that is defined in a module of its package; a new one needs only a
new file. The class name is the type name in the JSON; the class attribute `aliases`, a tuple,
adds further names. Import errors inside a module are not caught, and two classes of one name are
a RuntimeError.
"""
import functools
import importlib
import inspect
import pkgutil
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any, TypeVar

from utils.errors import ConfigError, unknown

_T = TypeVar("_T")

# kind -> (package or module to search, "module:Class" that its components derive from)
KINDS = {
    "models": ("models", "base.base_model:BaseModel"),
    "backbones": ("models.backbones", "models.backbones:Backbone"),
    "datasets": ("dataloader", "base.base_dataset:BaseDataset"),
    "samplers": ("dataloader", "dataloader.samplers:EpochDraw"),
    "transforms": ("dataloader.augmentation",
                   "dataloader.augmentation.pixel_transforms:PixelTransform"),
    "batch_transforms": ("dataloader.augmentation",
                         "dataloader.augmentation.batch_transforms:BatchTransform"),
    "losses": ("utils.losses", "torch.nn:Module"),
    "schedulers": ("utils.training.lr_scheduler", "torch.optim.lr_scheduler:LRScheduler"),
    "optimizers": ("torch.optim", "torch.optim:Optimizer"),
    "trackers": ("utils.training.trackers", "utils.training.trackers.tracker:Tracker"),
}
# Classes of torch that a config can name in addition to those of this project.
TORCH_SCHEDULERS = ("StepLR", "MultiStepLR", "ConstantLR", "LinearLR", "ExponentialLR",
                    "PolynomialLR", "CosineAnnealingLR", "CosineAnnealingWarmRestarts",
                    "CyclicLR", "OneCycleLR")
# LBFGS needs a closure, SparseAdam sparse gradients.
UNUSABLE_OPTIMIZERS = ("LBFGS", "SparseAdam")
# Arguments of an optimizer that choose how torch computes a step, not its result. Their defaults
# depend on the machine and on torch's version: resolved configs leave them out, and a resumed
# run uses those of its own machine.
STEP_IMPLEMENTATION = ("foreach", "fused", "capturable", "differentiable")


@functools.cache
def components(kind: str) -> dict[str, type]:
    """Every class that a config can name for `kind`, by class name and alias."""
    package, base_name = KINDS[kind]
    base = load(base_name)
    if kind == "optimizers":
        return {name: cls for name, cls in vars(importlib.import_module(package)).items()
                if inspect.isclass(cls) and issubclass(cls, base) and cls is not base
                and name not in UNUSABLE_OPTIMIZERS}
    found = {}
    for module in _modules(package):
        for name, cls in vars(module).items():
            if (inspect.isclass(cls) and cls.__module__ == module.__name__
                    and not name.startswith("_") and issubclass(cls, base)
                    and cls is not base and not inspect.isabstract(cls)):
                for key in (name, *vars(cls).get("aliases", ())):
                    if key in found:
                        raise RuntimeError(f"two {kind} are called {key!r}: {found[key].__module__}"
                                           f" and {cls.__module__}")
                    found[key] = cls
    if kind == "schedulers":
        torch_module = importlib.import_module("torch.optim.lr_scheduler")
        for name in TORCH_SCHEDULERS:
            found.setdefault(name, getattr(torch_module, name))
    return found


def lookup(name: str, choices: Mapping[str, _T], where: str) -> _T:
    """Returns choices[name]; a ConfigError names the nearest choice.

    where: the position of the name in the config, for the message.
    """
    if name in choices:
        return choices[name]
    raise ConfigError(f"{where}: {unknown('type', name, choices)}")


def load(name: str) -> Any:
    """Imports and returns the object called "module:attribute" or "module:class.attribute"."""
    module, attributes = name.split(":")
    found: Any = importlib.import_module(module)
    for attribute in attributes.split("."):
        found = getattr(found, attribute)
    return found


def _modules(package: str) -> Iterator[ModuleType]:
    module = importlib.import_module(package)
    yield module
    for info in pkgutil.iter_modules(getattr(module, "__path__", ())):
        if not info.ispkg and not info.name.startswith("_"):
            yield importlib.import_module(f"{package}.{info.name}")
