"""Finds the classes that a config may name.

A component is a public class defined in a module of its package: adding one is
adding a file. The class name is the type name in the JSON; `aliases`, a tuple
on the class, adds further spellings. An import error inside a module is not
caught, and two classes that claim one name are an error of ours.
"""
import difflib
import functools
import importlib
import inspect
import pkgutil

from utils.errors import ConfigError

# kind -> (package or module to search, "module:Class" that components derive from)
KINDS = {
    "models": ("models", "base.base_model:BaseModel"),
    "backbones": ("models.backbones", "models.backbones:Backbone"),
    "datasets": ("dataloader", "base.base_dataset:BaseDataset"),
    "samplers": ("dataloader", "dataloader.samplers:EpochDraw"),
    "transforms": ("dataloader", "dataloader.pixel_transforms:PixelTransform"),
    "batch_transforms": ("dataloader", "dataloader.batch_transforms:BatchTransform"),
    "losses": ("utils.losses", "torch.nn:Module"),
    "schedulers": ("utils.lr_scheduler", "torch.optim.lr_scheduler:LRScheduler"),
    "optimizers": ("torch.optim", "torch.optim:Optimizer"),
}
# Torch's own classes that a config may name beside ours.
TORCH_SCHEDULERS = ("StepLR", "MultiStepLR", "ConstantLR", "LinearLR", "ExponentialLR",
                    "PolynomialLR", "CosineAnnealingLR", "CosineAnnealingWarmRestarts",
                    "CyclicLR", "OneCycleLR")
# They want a closure, and sparse gradients.
UNUSABLE_OPTIMIZERS = ("LBFGS", "SparseAdam")


@functools.cache
def components(kind: str) -> dict[str, type]:
    """Every class a config may name for `kind`, by class name and alias."""
    package, base = KINDS[kind]
    base = load(base)
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


def lookup(name: str, choices: dict, where: str):
    """The value called `name` in `choices`; `where` is its place in the config."""
    if name in choices:
        return choices[name]
    raise ConfigError(f"{where}: {unknown('type', name, choices)}")


def unknown(what: str, name, choices) -> str:
    """One line: the unknown name, the nearest known one, and all known ones."""
    known = sorted(map(str, choices))
    near = nearest(name, known)
    hint = f" Did you mean {near!r}?" if near else ""
    return f"unknown {what} {name!r}.{hint} Known: {', '.join(known) or 'none'}."


def nearest(name, known) -> str | None:
    """The known name closest to a mistyped one, letter case aside."""
    folded = {str(k).lower(): str(k) for k in known}
    close = difflib.get_close_matches(str(name).lower(), folded, n=1)
    return folded[close[0]] if close else None


def load(name: str):
    """The object called "module:attribute" or "module:class.attribute"."""
    module, attributes = name.split(":")
    return functools.reduce(getattr, attributes.split("."), importlib.import_module(module))


def _modules(package):
    module = importlib.import_module(package)
    yield module
    for info in pkgutil.iter_modules(getattr(module, "__path__", ())):
        if not info.ispkg and not info.name.startswith("_"):
            yield importlib.import_module(f"{package}.{info.name}")
