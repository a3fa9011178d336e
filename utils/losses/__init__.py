"""Losses: modules `(logits (N, C, H, W), target (N, H, W)) -> scalar`, found by name.

Every loss takes logits, leaves out the pixels labelled `ignore_index`, never
writes to its inputs, computes in float32 or better, and gives a finite value
with zero gradient when no pixel is labelled. Its constructor is the schema of
its JSON arguments; `activation` says how its logits become probabilities.
"""
import inspect

from utils import registry
from utils.errors import ConfigError


def build_loss(section: str | dict, ignore_index: int = 255, where: str = "loss"):
    """The loss a config names: "NAME" or {"type": NAME, "args": {...}}.

    where: the section's place in the config, for messages.
    ConfigError: an unknown name, an unknown or missing argument, a value that
    the loss refuses.
    """
    if isinstance(section, str):
        section = {"type": section}
    if not isinstance(section, dict) or "type" not in section:
        raise ConfigError(f'expected a name or {{"type": ..., "args": ...}}, found {section!r}',
                          where)
    extra = sorted(set(section) - {"type", "args"})
    if extra:
        raise ConfigError(registry.unknown("key", extra[0], ("type", "args")), where)
    loss = registry.lookup(section["type"], registry.components("losses"), f"{where}.type")
    args = dict(section.get("args") or {})
    _check_arguments(loss, args, f"{where}.args")
    try:
        return loss(**args, ignore_index=ignore_index)
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{section['type']}: {error}", f"{where}.args") from error


def _check_arguments(loss, args, where):
    parameters = dict(inspect.signature(loss).parameters)
    parameters.pop("ignore_index", None)
    for name in args:
        if name == "ignore_index":
            raise ConfigError("ignore_index is a key of the whole config, not of one loss", where,
                              fix='write "ignore_index" at the top level')
        if name not in parameters:
            raise ConfigError(registry.unknown("argument", name, parameters), where)
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in args:
            raise ConfigError(f"{loss.__name__} needs the argument {name!r}", where)
